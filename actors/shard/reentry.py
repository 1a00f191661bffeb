"""Reentry: calls that come back to a key whose holder waits for them, and are let in (`@handler(reentrant=True)`).

Such a call carries the holder of its key in its chain. As soon as the holder waits, with no step under way, the call
is let in: it begins, and the holder stands still until it has ended. It is the holder's inner one then. It may wait
itself, and let another one in: of all that are under way on a key only the innermost moves. So none sees state change
under it but by those that it has let in, and what they wrote it sees from its next event on.

Where it lies, all in the shard of the key. That one is let in is a record of the holder (a STATE event). What the inner
one writes is another record for the holder, in one commit with the write: the holder's old values of these fields,
which its replay begins from, and the new ones, which the replay takes where the holder has. The end of the inner one
brings an event to the holder, in the commit of the outcome; before everything else that has come, it is delivered.

What a death between two store calls does. Before the record that lets in: nothing of the inner one is durable, it has
started no action, and the holder, if it is moved by something else first, lets it in later. After it: the next owner
replays the holder up to the last record, so that it stands still; then the inner one, whose message is in the inbox or
in its hash, is let in again and replays its journal. After a write of the inner one: state, old values and new ones are
there, or none of them; what was not durable the inner one writes again, from what it had found. After its end: outcome
and event are there, and the holder goes on. A holder that is killed, or fails for good as it is replayed, takes its
inner one along: the kill of it stands in the commit with the holder's outcome, so that whoever owns the shard then ends
it without another word of its handler; in memory the key stays held until that is done.

Invariants:
    1. An invocation moves only while nothing that it let in is under way; one that is let in moves only while the one
       that let it in is in memory.
    2. Who is replayed finds in each field what it found before, whatever an inner one has written since.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from actors.activation.activation import Activation, InFlight
from actors.activation.services import Services
from actors.activation.staging import Staging
from actors.execution.execution import Execution
from actors.execution.phases import Phase
from actors.execution.state_view import INNER_WROTE, packed, unpacked
from journal.ids import shard_in
from journal.records import Delivered, EventKind, Record
from journal.store import Bring

from .turns import Turns

LET_IN: Final = 1
OVER: Final = 2


class Reentry:
    """The inner invocations of one shard."""

    def __init__(
        self, services: Services, staging: Staging, turns: Turns, begin: Callable[[InFlight, Activation], None]
    ) -> None:
        self._services, self._staging, self._turns, self._begin = services, staging, turns, begin
        self.inner: dict[str, str] = {}
        """By each that has let one in: whom. Of those in memory."""
        self.waiting: dict[str, list[InFlight]] = {}
        """By object: who waits for its turn, or to be let in."""

    # Who is let in

    def queued(self, run: InFlight, activation: Activation) -> None:
        """Take one that waits for its turn, or to be let in."""
        self.waiting.setdefault(activation.target, []).append(run)
        self.look(activation)

    def drop(self, run: InFlight) -> None:
        """Forget one that waited: it begins, or has ended."""
        waiting = self.waiting.get(run.message.target, [])
        if run in waiting:
            waiting.remove(run)
            if not waiting:
                del self.waiting[run.message.target]

    def is_wanted(self, target: str, id_: str) -> bool:
        """Whether one waits to be let in by this invocation."""
        return any(id_ in (run.message.chain or ()) for run in self.waiting.get(target, ()))

    def look(self, activation: Activation) -> None:
        """Let one in, if the innermost waits; bring the innermost into memory, if it is asleep."""
        waiting = self.waiting.get(activation.target)
        if not waiting:
            return
        holder, absent = activation.current, activation.held_by
        if holder is not None:
            holder, absent = self._innermost(holder)
        if holder is not None and not absent:
            found = next((run for run in waiting if holder.id in (run.message.chain or ())), None)
            if found is not None and _is_blocked(holder):
                self._let_in(found, holder, activation)
        elif holder is not None and (found := next((run for run in waiting if run.id == absent), None)) is not None:
            if holder.execution is not None:
                self._let_in(found, holder, activation)
        elif absent and absent not in self._turns.in_flight and self.is_wanted(activation.target, absent):
            self._turns.wake(absent)

    def _innermost(self, run: InFlight) -> tuple[InFlight, str]:
        """Return the innermost that is in memory, and the id of whom it has let in, if that is not."""
        while (inner := self.inner.get(run.id)) is not None:
            found = self._turns.in_flight.get(inner)
            if found is None or found.holder is not run:
                return run, inner
            run = found
        return run, ""

    def holder_of(self, activation: Activation) -> str:
        """Return the id of the innermost invocation of an object; empty if there is none."""
        id_ = activation.current.id if activation.current is not None else activation.held_by
        while id_ in self.inner:
            id_ = self.inner[id_]
        return id_

    def _let_in(self, run: InFlight, holder: InFlight, activation: Activation) -> None:
        if self._turns.is_draining:
            return
        if holder.id not in self.inner:
            self.inner[holder.id] = run.id
            event = Delivered(EventKind.STATE, LET_IN, self._services.surroundings.now_ms(), run.id.encode())
            # What leaves the inner one waits for this to be durable.
            activation.staged = self._staging.interject(holder, event, {}, is_joined=False)
        activation.dequeue(run)
        run.holder = holder
        self._services.idle.remove(holder)
        self._begin(run, activation)

    # Who stands still

    def replayed(self, run: InFlight) -> None:
        """Note whom a replayed invocation had let in."""
        inner = _inner_in(record for _, record in run.records)
        if inner:
            self.inner[run.id] = inner

    def stands_still(self, run: InFlight) -> bool:
        """Whether one that it let in is under way; the event of its end is taken first."""
        inner = self.inner.get(run.id)
        if inner is None:
            return False
        over = next((e for e in run.pending if e.kind is EventKind.STATE and e.payload.decode() == inner), None)
        if over is None:
            self.look(self._turns.activation_of(run))
            return True
        del self.inner[run.id]
        run.pending.remove(over)
        run.spent.append(over.id)
        run.delivered.append(Delivered(over.kind, over.index, over.time_ms, over.payload))
        return False

    def pass_on(self, run: InFlight, activation: Activation, changes: Mapping[str, bytes | None]) -> None:
        """Stage what an inner one is about to write for all that have let it in, in the commit of the write itself."""
        assert activation.fields is not None
        event = Delivered(EventKind.STATE, INNER_WROTE, self._services.surroundings.now_ms(), packed(changes))
        holder = run.holder
        while holder is not None:
            if not holder.ended:
                assert holder.execution is not None
                olds = {name: activation.fields.get(name) for name in changes if name not in holder.olds}
                holder.leave_after = self._staging.interject(holder, event, olds, is_joined=True)
                self.tell(holder.execution, event)
            holder = holder.holder

    def tell(self, execution: Execution, event: Delivered) -> None:
        """Let an execution have what an inner one has written; its handler sees it with the event that comes next."""
        if event.index == INNER_WROTE:
            execution.state.absorb(unpacked(event.payload))

    # Ends

    def closing(self, run: InFlight, activation: Activation) -> list[Bring]:
        """Return what leaves with the end of an invocation: for whom it let in, and for who has let it in."""
        brings: list[Bring] = []
        inner = self._inner_of(run)
        if inner:
            brings.append(Bring(run.shard, inner, EventKind.KILL, 0, b""))
            found = self._turns.in_flight.get(inner)
            if found is not None and found.holder is run:
                activation.held_by = inner
            self.inner.pop(run.id, None)
        may_be_inner = run.handler is None or (run.exclusive and (run.asleep or run.handler.reentrant))
        if may_be_inner and activation.current is not run:
            # Who has let it in need not be in memory: it is one of these, and the others take no notice.
            ids = [id_ for id_ in run.message.chain or () if shard_in(id_) == run.shard]
            brings += [Bring(run.shard, id_, EventKind.STATE, OVER, run.id.encode()) for id_ in ids]
        return brings

    def _inner_of(self, run: InFlight) -> str:
        if run.execution is not None or run.id in self.inner:
            return self.inner.get(run.id, "")
        return _inner_in(record for _, record in run.records)


def _inner_in(records: Iterable[Record]) -> str:
    """Return who was let in and has not ended, as a journal tells; empty if there is nobody."""
    inner = ""
    for record in records:
        for event in record.events:
            if event.kind is EventKind.STATE and event.index != INNER_WROTE:
                inner = event.payload.decode() if event.index == LET_IN else ""
    return inner


def _is_blocked(run: InFlight) -> bool:
    execution = run.execution
    if execution is None or execution.phase is not Phase.PROCESSING:
        return False
    return run.is_waiting and not execution.steps.unstarted
