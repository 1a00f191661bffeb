"""Watches: how shared handlers of an object wait for a change of its state, `ctx.changed("log")`.

Where it lies. A watch is a field of the state that no user can name, `@watch <invocation>:<mark of the entry>`, and
holds the names of the fields that are watched. All handlers of an object run on the owner of its shard, so that its
activation decides. An object without watches has no such field, and a commit only asks whether there is any.

How it works. `ctx.changed` makes an entry, and notes the values that the handler has seen in the fields; these count as
read, so they are recorded with the entry. The commit that records both adds the watch or, if the state differs by then
from the values seen, brings the event to the invocation itself: no change is missed between reading and waiting. Each
commit that changes a watched field brings an event to all its watchers, and clears their watches; so does the end of
the state. The event is of the kind AWAKEABLE, since the handler waits on an awakeable.

A death between two store calls. Before the commit of a watch is applied: the replay asks again, and may see another
state. After it: the watch lies in the state, and the owner of the shard brings the event with the change. A change and
its events are one commit.

Invariants:
    1. A watch that is recorded lies in the state, or its event is brought.
    2. An invocation that ends takes its watches along.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from actors.blocks.promises import Posted
from actors.blocks.restarts import Restarts, mark_of
from actors.execution.execution import Execution
from actors.values import outcomes
from journal.keys import OWN
from journal.records import EventKind
from journal.store import Bring, Leaving

from .activation import Activation
from .open_invocation import OpenInvocation

WATCH: Final = f"{OWN}watch "
_CHANGED: Final = outcomes.encoded_value(None)

Changes = Mapping[str, bytes | None]
Seen = dict[str, bytes | None]
"""The values that a handler has seen in the fields that it watches."""


def posted_of(
    run: OpenInvocation, execution: Execution, activation: Activation, changes: Changes, posted: Posted | None
) -> Posted | None:
    """Return the posted part of a commit, with the events for watchers and the new watches."""
    others = [posted, change_events(activation, changes) if changes else None]
    if execution.watching:
        others.append(_added(run, activation, execution.watching, execution.restarts))
        execution.watching = {}
    found = [each for each in others if each is not None]
    if len(found) < 2:
        return found[0] if found else None
    fields: dict[str, bytes | None] = {}
    for each in found:
        fields |= each.fields
    return Posted(fields, [event for each in found for event in each.events])


def _added(run: OpenInvocation, activation: Activation, watching: dict[int, Seen], restarts: Restarts) -> Posted:
    """Return the fields and events of new watches, given by entry, for the commit that is being made."""
    assert activation.fields is not None
    posted = Posted({}, [])
    for index, seen in watching.items():
        mark = mark_of(index, restarts)
        if any(activation.fields.get(name) != value for name, value in seen.items()):
            posted.events.append(Bring(run.shard, run.id, EventKind.AWAKEABLE, mark, _CHANGED))
        else:
            posted.fields[f"{WATCH}{run.id}:{mark}"] = "\0".join(seen).encode("utf-8", "surrogatepass")
    return posted


def change_events(activation: Activation, changes: Iterable[str]) -> Posted | None:
    """Return the events for the watchers of these changes, None if there are none."""
    if activation.watches is None:
        fields = activation.fields or {}
        activation.watches = {name: _names(fields[name]) for name in fields if name.startswith(WATCH)}
    if not activation.watches:
        return None
    changed, posted = set(changes), Posted({}, [])
    for field, names in activation.watches.items():
        if not changed.isdisjoint(names):
            posted.fields[field] = None
            posted.events.append(_event(activation, field))
    return posted if posted.events else None


def expiry_events(activation: Activation, field: str) -> list[Leaving]:
    """Return the events that tell watchers of the expiry of this field, or of all state."""
    found: list[Leaving] = []
    for name, value in (activation.fields or {}).items():
        if name.startswith(WATCH) and (not field or field in _names(value)):
            found.append(_event(activation, name))
    return found


def end_watches(
    run: OpenInvocation, activation: Activation, changes: dict[str, bytes | None], brings: Sequence[Bring]
) -> tuple[dict[str, bytes | None], Sequence[Bring]]:
    """Return the changes and messages of an invocation's end, with the events for watchers and its own watches."""
    if activation.watches == {}:
        return changes, brings
    if changes and (found := change_events(activation, changes)) is not None:
        changes, brings, activation.watches = changes | found.fields, [*brings, *found.events], None
    mine = f"{WATCH}{run.id}:"
    is_shared = run.staged and not run.exclusive
    if watches := [field for field in activation.fields or () if field.startswith(mine)] if is_shared else ():
        changes, activation.watches = changes | dict.fromkeys(watches), None
    return changes, brings


def refresh_view(
    run: OpenInvocation,
    activation: Activation,
    seen: dict[str, bytes | None] | None = None,
    *,
    is_recorded: bool = False,
) -> None:
    """Show a shared handler, before its next delivery, the committed state, or the state recorded as `seen`."""
    assert run.execution is not None
    view = run.execution.view
    assert view is not None
    if not run.deliveries:
        view.note_recorded(run.reads)
    if seen is not None:
        view.show(seen, run.deliveries + 1)
    elif not is_recorded:
        assert activation.fields is not None
        if activation.fields is not view.is_shown:
            view.refresh(activation.fields, run.deliveries + 1)
            run.leave_after = max(run.leave_after, activation.staged)
    run.deliveries += 1


def _names(value: bytes) -> set[str]:
    return set(value.decode("utf-8", "surrogatepass").split("\0"))


def _event(activation: Activation, field: str) -> Bring:
    invocation, _, mark = field.removeprefix(WATCH).rpartition(":")
    return Bring(activation.shard, invocation, EventKind.AWAKEABLE, int(mark), _CHANGED)
