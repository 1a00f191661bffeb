"""Run starts: a driver's starts of invocations that happen once for a workflow's key or an idempotency key.

Whether such an invocation is new, or the request a repeated one, is decided by the store, in the write that starts it.
So each start has a slot of its own: the answer of the write refuses it (409) or accepts it, and from then on it follows
the slot of the invocation, which gets the outcome for all waits in this process, whichever program started it.

A refused writer. Whether its last write was applied cannot be known any more. A start in it follows the invocation all
the same: if the store knows the invocation, it may well be ours, and the start is not refused for that; if the store
does not, the outcome is unknown, as that of any other start.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from actors.errors import NotFoundError, OverloadedError
from actors.requests.request import Request
from actors.values import outcomes
from journal.ids import shard_in
from journal.records import Failure, outcome_of
from journal.store import UNKNOWN, Attach, Outgoing, PartlyApplied

from .slots import Operation, Slot, Started, Waiting, slot_of, wake


@dataclass(slots=True, eq=False)
class Start(Slot):
    """The slot of one start."""

    run: Slot | None = field(default=None)
    """The slot of the invocation, if somebody waits for its outcome."""

    @property
    def gets_outcome(self) -> bool:
        """Whether the store tells this client the outcome: never here, but in the slot that this one follows."""
        return False


class Starts:
    """The starts of one client; callers of `start` and `expect` hold its lock."""

    def __init__(
        self,
        slots: dict[str, Slot],
        lock: threading.Lock,
        put: Callable[[Operation], None],
        now: Callable[[], float],
    ) -> None:
        self._slots, self._lock, self._put, self._now = slots, lock, put, now

    def start(self, request: Request, message: Outgoing, number: int) -> Start:
        """Submit a start, and return its slot."""
        id_ = message.invocation
        name = f"{id_} #{number}"
        start = self._slots[name] = Start(request.declared, is_own=True)
        said = message.refusal, message.digest, message.is_trusted
        self._put(Started(message.shard, id_, "", message.data, *said, name))
        if not request.one_way:
            self.expect(start, id_)
        return start

    def expect(self, start: Start, id_: str) -> None:
        """Let a start get the outcome, once it is accepted."""
        if start.run is not None or start.has_ended:
            return
        run = self._slots.get(id_)
        if run is None:
            run = self._slots[id_] = Slot(start.declared, is_accepted=True, is_attached=True, unknown_until=self._now())
            self._put(Attach(shard_in(id_), id_))
        start.run, start.is_attached = run, True
        if start.is_accepted:
            self._follow(start)  # nobody waits for it yet

    def _follow(self, start: Start) -> tuple[Waiting, ...]:
        """Follow the invocation; return the waits that are to be told."""
        run = start.run
        if run is None:
            return ()
        if run.has_ended:
            return start.settle(run.outcome, run.error)
        run.waiting += (partial(self._ended, start, run),)
        return ()

    def accepted(self, operations: Sequence[Operation], missed: PartlyApplied) -> None:
        """Note which of these the store has now, and end the waits for their acknowledgement."""
        told: list[Waiting] = []
        not_taken = {*missed.unknown, *missed.later}
        with self._lock:
            for at, operation in enumerate(operations):
                name = operation.invocation if type(operation) is Outgoing else slot_of(operation)
                slot = self._slots.get(name)
                if slot is None or isinstance(operation, Attach) or at in not_taken:
                    continue
                slot.is_accepted = True
                told += slot.accepting
                slot.accepting = ()
                if isinstance(slot, Start):
                    told += self._follow(slot)
                if isinstance(slot, Start) or not (slot.is_attached or slot.waiting):
                    del self._slots[name]  # of a send: a later wait attaches
        wake(told)

    def _ended(self, start: Start, run: Slot) -> None:
        with self._lock:
            told = start.settle(run.outcome, run.error)
        wake(told)

    def start_over(self, operation: Started) -> bool:
        """Follow the invocation whose start may have been applied; return False if nobody waits for it."""
        with self._lock:
            start = self._slots.get(operation.slot)
            if not isinstance(start, Start) or start.run is None:
                return False
            del self._slots[operation.slot]
            start.run.is_own = True
            told = self._follow(start)
        wake(told)
        return True


def refusals(operations: Sequence[Operation], missed: PartlyApplied) -> Iterator[tuple[Operation, Exception]]:
    """Yield the operations of a write that were not applied, and why."""
    full = "the inbox of its shard is full (inbox_max); its hosts do not keep up"
    for at in missed.overloaded:
        yield operations[at], OverloadedError(f"{operations[at].invocation} was refused: {full}")
    for at in missed.unknown:
        yield operations[at], NotFoundError(f"{operations[at].invocation} {UNKNOWN}")
    for at in missed.known:
        operation = operations[at]
        assert isinstance(operation, Started)
        assert operation.refusal is not None
        found = outcome_of(operation.refusal)
        assert isinstance(found, Failure)
        yield operation, outcomes.error_of(found)
