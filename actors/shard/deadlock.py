"""Deadlock: calls that wait for each other's keys in a circle are found, and one of them is refused.

A call that a handler makes carries the exclusive invocations that wait for it, its chain. One with a chain that waits
for its turn sends a probe along: to the invocation that holds the key, from there to the calls that this one waits for,
from a queued one again to the holder of its key. The probe carries its path. Where it comes back to what is on the path
there is a circle, and the youngest queued call of it is refused with `DeadlockError`; it never began. A probe leaves
after a second, then at longer and longer intervals; at once where the holder is in the call's own chain, and again each
time that this holder has come to wait.

A handler passes a probe on only if nothing but calls can move it: one that also waits for a step, a timer, a signal or
an awakeable may go on by itself. So no circle is seen where a wait ends by its time-out, and none because a handler has
started a call that it does not wait for. Where it waits for several calls and any one of them would do, a circle
through one of them is refused although another might have ended the wait.

Where it lies. The chain lies in the message. A probe is an event, from a commit of the shard that passes it on, until
that of the next one deletes it; no journal holds it, no handler sees it. A circle that stands does not go away by
itself, so what a probe has found is true when it arrives, but for waits that were given up meanwhile: a probe that is
old is dropped, and a call that has begun is not refused.

What a death between two store calls does. Of a host before it has passed a probe on: the probe is passed on by the next
owner, or is lost with its deletion; the queued call sends another, and the next owner of its shard begins anew. Of one
that was to refuse a call: the same. A circle is refused some seconds later then.

Invariants:
    1. Only a queued invocation is refused, of which nothing is durable but its message.
    2. All who find the same circle refuse the same call.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from actors.activation.activation import Activation, InFlight
from actors.activation.services import Services
from actors.activation.staging import Staging
from actors.errors import DeadlockError, TerminalError
from actors.execution.execution import Execution
from journal.ids import shard_in
from journal.records import Event, EventKind, order_of, pack, unpack
from journal.store import Bring, Leaving

from .reentry import Reentry
from .turns import Turns

FIRST_S: Final = 1.0
"""After so long in the queue a call sends its first probe."""
INTERVAL_MAX_S: Final = 30.0
"""The intervals between its probes double up to this."""
STALE_MS: Final = 10_000
"""A probe that has been under way for longer is dropped."""
PATH_MAX: Final = 200
"""A probe that has come by so many invocations is dropped."""

_PROBE, _REFUSAL = 0, 1


class Deadlocks:
    """The probes of one shard."""

    def __init__(
        self,
        services: Services,
        staging: Staging,
        turns: Turns,
        reentry: Reentry,
        reject: Callable[[InFlight, Activation, TerminalError], None],
    ) -> None:
        self._services, self._staging, self._turns, self._reject = services, staging, turns, reject
        self._reentry = reentry
        self._own: dict[str, list[InFlight]] = {}
        """Queued calls by the holder of their key, where that is in their chain."""

    def queued(self, run: InFlight, activation: Activation) -> None:
        """Watch over a call that waits for its turn."""
        holder = self._reentry.holder_of(activation)
        if holder in (run.message.chain or ()) and not run.handler.reentrant:
            self._own.setdefault(holder, []).append(run)
            self._ask(run)
        self._services.loop.call_later(FIRST_S, self._again, run, holder, FIRST_S)

    def _again(self, run: InFlight, holder: str, waited_s: float) -> None:
        if self._is_queued(run):
            self._ask(run)
            waited_s = min(2 * waited_s, INTERVAL_MAX_S)
            self._services.loop.call_later(waited_s, self._again, run, holder, waited_s)
        elif run in (own := self._own.get(holder, [])):
            own.remove(run)
            if not own:
                del self._own[holder]

    def _is_queued(self, run: InFlight) -> bool:
        return (
            self._turns.in_flight.get(run.id) is run
            and run.exclusive
            and not (run.asleep or run.records or run.ended or run.execution is not None or run.backing_off)
            and self._turns.activation_of(run).current is not run
        )

    def _ask(self, run: InFlight) -> None:
        ids = [self._reentry.holder_of(self._turns.activation_of(run))]
        self._pass_on(run, ids, self._services.surroundings.now_ms(), [])

    def _pass_on(self, run: InFlight, ids: Sequence[str], started_ms: int, path: list[Any]) -> None:
        order = run.inbox_id if self._is_queued(run) else ""
        path = [*path, [run.id, f"{run.message.target}.{run.message.handler}", order]]
        probe = pack([started_ms, path])
        brings: list[Leaving] = [Bring(shard_in(id_), id_, EventKind.PROBE, _PROBE, probe) for id_ in ids if id_]
        if brings and len(path) <= PATH_MAX:
            self._staging.tell(run.id, brings)

    def is_taken(self, run: InFlight, event: Event) -> bool:
        """Take a probe, or a refusal, for one that is queued; whether it was."""
        if not self._is_queued(run):
            return False
        self._staging.stray([event.id])
        if event.index == _REFUSAL:
            activation = self._turns.activation_of(run)
            assert activation.mailbox is not None
            activation.mailbox.remove(run)
            self._reject(run, activation, DeadlockError(unpack(event.payload)[0]))
        else:
            self._follow(run, event, [self._reentry.holder_of(self._turns.activation_of(run))])
        return True

    def without_probes(self, events: Sequence[Event]) -> list[Event]:
        """Drop the probes that came to a paused invocation, and return the other events."""
        self._staging.stray([event.id for event in events if event.kind is EventKind.PROBE])
        return [event for event in events if event.kind is not EventKind.PROBE]

    def waits(self, run: InFlight, execution: Execution, probes: Sequence[Event]) -> None:
        """Pass on the probes that came to a handler which waits; else let those ask that its wait may concern."""
        if probes:
            self._staging.stray([event.id for event in probes])
            ids = _waited_for(execution)
            for event in probes:
                if event.index == _PROBE:
                    self._follow(run, event, ids)
        else:
            for queued in self._own.get(run.id, ()):
                if self._is_queued(queued):
                    self._ask(queued)

    def _follow(self, run: InFlight, event: Event, ids: Sequence[str]) -> None:
        started_ms, path = unpack(event.payload)[0]
        if not ids or self._services.surroundings.now_ms() - started_ms > STALE_MS:
            return
        met = next((at for at, (id_, _, _) in enumerate(path) if id_ == run.id), None)
        if met is None:
            self._pass_on(run, ids, started_ms, path)
        elif not path[met][2] or self._is_queued(run):  # else it has begun meanwhile, and stands in nobody's way
            self._found(run, path[met:])

    def _found(self, run: InFlight, circle: list[Any]) -> None:
        queued = [(order_of(order), id_, at) for at, (id_, _, order) in enumerate(circle) if order]
        _, youngest, at = max(queued)
        names = " → ".join(name for _, name, _ in (*circle[at + 1 :], *circle[: at + 1]))
        text = f"calls that wait for each other: {names}. Answer without waiting: one of them must be a .send()"
        self._staging.tell(run.id, [Bring(shard_in(youngest), youngest, EventKind.PROBE, _REFUSAL, pack(text))])


def _waited_for(execution: Execution) -> list[str]:
    """Return the ids of what a handler waits for, none if it waits for anything but invocations."""
    waits = execution.calls.waits()
    if any(True for _ in execution.timers) or len(execution.loop.open_waits()) > sum(waits.values()):
        return []
    return list(waits)
