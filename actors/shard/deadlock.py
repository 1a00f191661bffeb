"""Deadlock: finds calls that wait for each other's keys in a cycle, and refuses one call of the cycle.

A call that a handler makes carries its chain: the exclusive invocations that wait for it. A call with a chain that
waits for its turn sends a probe: to the invocation that holds the key, from there to the calls that the holder waits
for, and from a queued call again to the holder of its key. The probe carries its path. If it comes back to an
invocation on its path, there is a cycle, and the youngest queued call of the cycle is refused with `DeadlockError`; it
never began. A probe is sent after a second, then at longer and longer intervals; if the holder is in the call's own
chain, at once, and again each time that this holder begins to wait.

A handler passes a probe on only if nothing but calls can move it: a handler that also waits for a step, a timer, a
signal or an awakeable may go on by itself. So a wait with a time-out is part of no cycle, and neither is a call that
its handler does not wait for. If a handler waits for any of several calls, a cycle through one of them is refused
although another call might have ended the wait.

Where it lies. The chain lies in the message. A probe is an event, from the commit of the shard that passes it on until
the commit of the next shard deletes it; no journal holds it, no handler sees it. A cycle does not go away by itself, so
the finding of a probe is true when it arrives, except for waits that were given up meanwhile: an old probe is dropped,
and a call that has begun is not refused.

A death between two store calls. If a host dies before it has passed a probe on, the next owner passes it on, or it is
lost with its deletion; the queued call sends another, and the next owner of its shard begins anew. The same holds for a
host that was about to refuse a call. The cycle is then refused some seconds later.

Invariants:
    1. Only a queued invocation is refused, of which nothing but its message is durable.
    2. All probes that find the same cycle refuse the same call.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

from actors.activation.activation import Activation
from actors.activation.open_invocation import OpenInvocation
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
"""Seconds in the queue after which a call sends its first probe."""
INTERVAL_MAX_S: Final = 30.0
"""The intervals between its probes double up to this."""
STALE_MS: Final = 10_000
"""Age after which a probe is dropped."""
PATH_MAX: Final = 200
"""Length of its path beyond which a probe is dropped."""

_PROBE, _REFUSAL = 0, 1


class Deadlocks:
    """The probes of one shard."""

    def __init__(
        self,
        services: Services,
        staging: Staging,
        turns: Turns,
        reentry: Reentry,
        reject: Callable[[OpenInvocation, Activation, TerminalError], None],
    ) -> None:
        self._services, self._staging, self._turns, self._reject = services, staging, turns, reject
        self._reentry = reentry
        self._own: dict[str, list[OpenInvocation]] = {}
        """Queued calls whose chain holds the holder of their key, by that holder."""

    def queued(self, run: OpenInvocation, activation: Activation) -> None:
        """Begin to send probes for a call that waits for its turn."""
        holder = self._reentry.holder_of(activation)
        if holder in (run.message.chain or ()) and not run.handler.reentrant:
            self._own.setdefault(holder, []).append(run)
            self._ask(run)
        self._services.loop.call_later(FIRST_S, self._again, run, holder, FIRST_S)

    def _again(self, run: OpenInvocation, holder: str, waited_s: float) -> None:
        if self._is_queued(run):
            self._ask(run)
            waited_s = min(2 * waited_s, INTERVAL_MAX_S)
            self._services.loop.call_later(waited_s, self._again, run, holder, waited_s)
        elif run in (own := self._own.get(holder, [])):
            own.remove(run)
            if not own:
                del self._own[holder]

    def _is_queued(self, run: OpenInvocation) -> bool:
        return (
            self._turns.in_flight.get(run.id) is run
            and run.exclusive
            and not (run.asleep or run.records or run.ended or run.execution is not None or run.backing_off)
            and self._turns.activation_of(run).current is not run
        )

    def _ask(self, run: OpenInvocation) -> None:
        ids = [self._reentry.holder_of(self._turns.activation_of(run))]
        self._pass_on(run, ids, self._services.surroundings.now_ms(), [])

    def _pass_on(self, run: OpenInvocation, ids: Sequence[str], started_ms: int, path: list[Any]) -> None:
        order = run.inbox_id if self._is_queued(run) else ""
        path = [*path, [run.id, f"{run.message.target}.{run.message.handler}", order]]
        probe = pack([started_ms, path])
        brings: list[Leaving] = [Bring(shard_in(id_), id_, EventKind.PROBE, _PROBE, probe) for id_ in ids if id_]
        if brings and len(path) <= PATH_MAX:
            self._staging.tell(run.id, brings)

    def is_taken(self, run: OpenInvocation, event: Event) -> bool:
        """Take a probe, or a refusal, for a queued invocation; return whether the event was either."""
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

    def waits(self, run: OpenInvocation, execution: Execution, probes: Sequence[Event]) -> None:
        """Pass on the probes that came to a handler that waits; without any, let the calls behind it send probes."""
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

    def _follow(self, run: OpenInvocation, event: Event, ids: Sequence[str]) -> None:
        started_ms, path = unpack(event.payload)[0]
        if not ids or self._services.surroundings.now_ms() - started_ms > STALE_MS:
            return
        met = next((at for at, (id_, _, _) in enumerate(path) if id_ == run.id), None)
        if met is None:
            self._pass_on(run, ids, started_ms, path)
        elif not path[met][2] or self._is_queued(run):  # otherwise it has begun meanwhile, and blocks no other call
            self._found(run, path[met:])

    def _found(self, run: OpenInvocation, cycle: list[Any]) -> None:
        queued = [(order_of(order), id_, at) for at, (id_, _, order) in enumerate(cycle) if order]
        _, youngest, at = max(queued)
        names = " → ".join(name for _, name, _ in (*cycle[at + 1 :], *cycle[: at + 1]))
        text = f"calls that wait for each other: {names}. Answer without waiting: one of them must be a .send()"
        self._staging.tell(run.id, [Bring(shard_in(youngest), youngest, EventKind.PROBE, _REFUSAL, pack(text))])


def _waited_for(execution: Execution) -> list[str]:
    """Return the ids of the invocations that a handler waits for, none if it also waits for anything else."""
    waits = execution.calls.waits()
    if any(True for _ in execution.timers) or len(execution.loop.open_waits()) > sum(waits.values()):
        return []
    return list(waits)
