"""Reentry: calls that return to a key whose holder waits for them, and are let in (`@handler(reentrant=True)`).

Such a call carries the holder of its key in its chain. As soon as the holder waits, with no step under way, the call is
let in: it begins as the holder's inner invocation, and the holder is suspended until it has ended. The inner invocation
may wait itself, and let in another: of all invocations under way on a key only the innermost advances. So the state
under an invocation changes only by its inner invocations, and it sees their writes from its next event on.

Where it lies: all in the shard of the key. Letting in is a record of the holder (a STATE event). A write of the inner
invocation is another record for the holder, in one commit with the write: the holder's old values of these fields, from
which its replay begins, and the new values, which the replay takes over at the same place as the holder did. The end of
the inner invocation brings an event to the holder, in the commit of the outcome; it is delivered before all others.

A death between two store calls. Before the record that lets in: nothing of the inner invocation is durable, it has
started no action, and the holder, if another event moves it first, lets it in later. After that record: the next owner
replays the holder up to its last record, where it is suspended; then the inner invocation, whose message is in the
inbox or in its hash, is let in again and replays its journal. After a write of the inner invocation: state, old values
and new values are all there, or none; the inner invocation repeats a write that was not durable, from the values that
it had found. After its end: outcome and event are there, and the holder goes on. A holder that is killed, or fails for
good as it is replayed, ends its inner invocation too: the kill of it stands in the commit with the holder's outcome, so
that the owner of the shard ends it without running its handler; in memory the key stays held until that is done.

Invariants:
    1. An invocation advances only while no inner invocation of it is under way; an inner invocation advances only while
       the invocation that let it in is in memory.
    2. A replayed invocation finds in each field the value that it found before, whatever inner invocations wrote since.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from actors.activation.activation import Activation
from actors.activation.open_invocation import OpenInvocation
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
        self, services: Services, staging: Staging, turns: Turns, begin: Callable[[OpenInvocation, Activation], None]
    ) -> None:
        self._services, self._staging, self._turns, self._begin = services, staging, turns, begin
        self.inner: dict[str, str] = {}
        """The id of the inner invocation, by the id of the invocation that let it in, which is in memory."""
        self.waiting: dict[str, list[OpenInvocation]] = {}
        """The calls that wait for their turn, or to be let in, by object."""

    # Letting in

    def queued(self, run: OpenInvocation, activation: Activation) -> None:
        """Add a call that waits for its turn, or to be let in."""
        self.waiting.setdefault(activation.target, []).append(run)
        self.look(activation)

    def drop(self, run: OpenInvocation) -> None:
        """Remove a call that begins or has ended."""
        waiting = self.waiting.get(run.message.target, [])
        if run in waiting:
            waiting.remove(run)
            if not waiting:
                del self.waiting[run.message.target]

    def is_wanted(self, target: str, id_: str) -> bool:
        """Whether a call waits to be let in by this invocation."""
        return any(id_ in (run.message.chain or ()) for run in self.waiting.get(target, ()))

    def look(self, activation: Activation) -> None:
        """Let a call in, if the innermost invocation waits; read the innermost into memory, if it is asleep."""
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

    def _innermost(self, run: OpenInvocation) -> tuple[OpenInvocation, str]:
        """Return the innermost invocation in memory, and the id of its inner invocation if that is not in memory."""
        while (inner := self.inner.get(run.id)) is not None:
            found = self._turns.in_flight.get(inner)
            if found is None or found.holder is not run:
                return run, inner
            run = found
        return run, ""

    def holder_of(self, activation: Activation) -> str:
        """Return the id of the innermost invocation that holds an object; empty if there is none."""
        id_ = activation.current.id if activation.current is not None else activation.held_by
        while id_ in self.inner:
            id_ = self.inner[id_]
        return id_

    def _let_in(self, run: OpenInvocation, holder: OpenInvocation, activation: Activation) -> None:
        if self._turns.is_draining:
            return
        if holder.id not in self.inner:
            self.inner[holder.id] = run.id
            event = Delivered(EventKind.STATE, LET_IN, self._services.surroundings.now_ms(), run.id.encode())
            # The inner invocation starts its steps only when this is durable.
            activation.staged = self._staging.interject(holder, event, {}, is_joined=False)
        activation.dequeue(run)
        run.holder = holder
        self._services.idle.remove(holder)
        self._begin(run, activation)

    # Suspended holders

    def replayed(self, run: OpenInvocation) -> None:
        """Note the inner invocation of a replayed invocation."""
        inner = _inner_in(record for _, record in run.records)
        if inner:
            self.inner[run.id] = inner

    def is_suspended(self, run: OpenInvocation) -> bool:
        """Whether an inner invocation of it is under way; the event of that one's end is taken first."""
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

    def pass_on(self, run: OpenInvocation, activation: Activation, changes: Mapping[str, bytes | None]) -> None:
        """Stage the writes of an inner invocation for all its holders, in the commit of the write itself."""
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
        """Give an execution the writes of an inner invocation; its handler sees them from its next event on."""
        if event.index == INNER_WROTE:
            execution.state.absorb(unpacked(event.payload))

    # Ends

    def end_events(self, run: OpenInvocation, activation: Activation) -> list[Bring]:
        """Return the events of an invocation's end: a kill for its inner invocation, a STATE event for its holder."""
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
            # Its holder may have left memory: it is among these, and the other invocations ignore the event.
            ids = [id_ for id_ in run.message.chain or () if shard_in(id_) == run.shard]
            brings += [Bring(run.shard, id_, EventKind.STATE, OVER, run.id.encode()) for id_ in ids]
        return brings

    def _inner_of(self, run: OpenInvocation) -> str:
        if run.execution is not None or run.id in self.inner:
            return self.inner.get(run.id, "")
        return _inner_in(record for _, record in run.records)


def _inner_in(records: Iterable[Record]) -> str:
    """Return the id of the inner invocation that, by this journal, has not ended; empty if there is none."""
    inner = ""
    for record in records:
        for event in record.events:
            if event.kind is EventKind.STATE and event.index != INNER_WROTE:
                inner = event.payload.decode() if event.index == LET_IN else ""
    return inner


def _is_blocked(run: OpenInvocation) -> bool:
    execution = run.execution
    if execution is None or execution.phase is not Phase.PROCESSING:
        return False
    return run.is_waiting and not execution.steps.unstarted
