"""Watches: how shared handlers of an object wait for a change of its state, `ctx.changed("log")`.

Where it lies. A watch is a field of the state that no user can name, `@watch <invocation>:<mark of the entry>`, and
holds the names of the fields that are watched. All handlers of an object run on the owner of its shard, so that its
activation decides. An object that nobody watches has none of it, and a commit asks no more than whether there is one.

How it goes. Asking makes one entry, and notes what the handler has seen in the fields; that counts as read, so it is
recorded with the entry. The commit that records both adds the watch, or, if the state differs from what was seen by
then, brings the event to the invocation itself: nothing falls between reading and waiting. Each commit that changes a
watched field brings an event to all who watch it, and clears their watches; so does the end of the state. The event is
that of an awakeable: what waits is one.

What a death between two store calls does. Before the commit of a watch is applied, the replay asks anew, of a state
that it may see anew; afterwards the watch lies in the state, and whoever owns the shard brings the event with the
change. A change and its events are one commit.

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

from .activation import Activation, InFlight

WATCH: Final = f"{OWN}watch "
_CHANGED: Final = outcomes.encoded_value(None)

Changes = Mapping[str, bytes | None]
Seen = dict[str, bytes | None]
"""What a handler has seen in the fields that it watches."""


def posted_of(
    run: InFlight, execution: Execution, activation: Activation, changes: Changes, posted: Posted | None
) -> Posted | None:
    """Return what a commit posts, with what it brings to those who watch and what it adds of watches."""
    others = [posted, told(activation, changes) if changes else None]
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


def _added(run: InFlight, activation: Activation, watching: dict[int, Seen], restarts: Restarts) -> Posted:
    """Return what the commit that is being made does for new watches, by their entry."""
    assert activation.fields is not None
    posted = Posted({}, [])
    for index, seen in watching.items():
        mark = mark_of(index, restarts)
        if any(activation.fields.get(name) != value for name, value in seen.items()):
            posted.events.append(Bring(run.shard, run.id, EventKind.AWAKEABLE, mark, _CHANGED))
        else:
            posted.fields[f"{WATCH}{run.id}:{mark}"] = "\0".join(seen).encode("utf-8", "surrogatepass")
    return posted


def told(activation: Activation, changes: Iterable[str]) -> Posted | None:
    """Return what a commit with these changes brings to those who watch, None if nobody does."""
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


def farewells(activation: Activation, field: str) -> list[Leaving]:
    """Return what tells those who watch that state is over: this field, or all of it."""
    found: list[Leaving] = []
    for name, value in (activation.fields or {}).items():
        if name.startswith(WATCH) and (not field or field in _names(value)):
            found.append(_event(activation, name))
    return found


def ended(
    run: InFlight, activation: Activation, changes: dict[str, bytes | None], brings: Sequence[Bring]
) -> tuple[dict[str, bytes | None], Sequence[Bring]]:
    """Return what the end of an invocation changes and brings, with what it tells and takes along of watches."""
    if changes and activation.watches != {} and (found := told(activation, changes)) is not None:
        changes, brings, activation.watches = changes | found.fields, [*brings, *found.events], None
    mine = f"{WATCH}{run.id}:"
    is_shared = run.staged and not run.exclusive
    if watches := [field for field in activation.fields or () if field.startswith(mine)] if is_shared else ():
        changes, activation.watches = changes | dict.fromkeys(watches), None
    return changes, brings


def hear(
    run: InFlight, activation: Activation, seen: dict[str, bytes | None] | None = None, *, is_recorded: bool = False
) -> None:
    """Let a shared handler see, with what is delivered next, the state that is committed, or what it saw then."""
    assert run.execution is not None
    view = run.execution.view
    assert view is not None
    if not run.heard:
        view.note_recorded(run.reads)
    if seen is not None:
        view.show(seen, run.heard + 1)
    elif not is_recorded:
        assert activation.fields is not None
        if activation.fields is not view.is_shown:
            view.refresh(activation.fields, run.heard + 1)
            run.leave_after = max(run.leave_after, activation.staged)
    run.heard += 1


def _names(value: bytes) -> set[str]:
    return set(value.decode("utf-8", "surrogatepass").split("\0"))


def _event(activation: Activation, field: str) -> Bring:
    invocation, _, mark = field.removeprefix(WATCH).rpartition(":")
    return Bring(activation.shard, invocation, EventKind.AWAKEABLE, int(mark), _CHANGED)
