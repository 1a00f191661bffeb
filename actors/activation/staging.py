"""Staging: a shard's queue of progress that its next commits will write.

Owns the order of a shard's commits before they are written: a numbered queue of progress, each with the invocation to
tell when it is durable. Does not own the time of a commit, or its effects in memory (`shard`). Progress is bytes only:
every check that can fail (encoding, a limit) was made before, and failed the attempt.

Invariants:
    1. Progress is written in the order staged, so an acknowledged progress means that all before it are durable.
    2. A record holds the events delivered since the last one, then the outcomes of steps: the order of delivery.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from actors.blocks.promises import Posted
from actors.blocks.restarts import mark_of
from actors.code.code import is_hash
from actors.execution.execution import Execution
from actors.values.outcomes import ERROR_MAX, NOTICE_MAX
from actors.values.values import scope_of
from journal.ids import Epoch, Shard
from journal.records import Delivered, Event, EventKind, Message, Record, Tries, order_of, timer_of, timer_of_object
from journal.store import Bring, Committed, Expire, Finish, Leaving, Part, Progress, Sleep
from journal.texts import repr_of, shortened

from .open_invocation import FORGOTTEN_AFTER_MS, OpenInvocation, Renewal

logger = logging.getLogger("actors")

COMMANDS_MAX: Final = 2_000
"""Most progress in one commit, of all shards of a host: the store does nothing else meanwhile, for some 50 ms."""
BYTES_MAX: Final = 4_000_000
"""Most bytes in one commit, except for a single progress that is larger."""

REASON_MAX: Final = 4_000
"""Most characters of the reason of a pause."""

BACK_OFF: Final = "a"
"""The mark of the timer that ends a back-off."""


@dataclass(slots=True)
class CommitBudget:
    """The room that is left in a commit."""

    commands: int = COMMANDS_MAX
    bytes: int = BYTES_MAX

    @property
    def is_left(self) -> bool:
        """Whether there is room for another progress."""
        return self.commands > 0 and self.bytes > 0


@dataclass(slots=True)
class Staged:
    """A progress on its way to the store."""

    progress: Progress
    run: OpenInvocation | None
    record: Record | None
    id: str = ""
    """The record's stream id, once it is durable."""
    is_joined: bool = False
    """It is written in one commit with the next progress."""


@dataclass(slots=True)
class Unwritten:
    """A part of the commit that is being made, with the progress it was made from."""

    part: Part
    items: list[Staged]


class Staging:
    """A shard's progress that is not durable yet."""

    def __init__(
        self, shard: Shard, epoch: Epoch, number: int, now_ms: Callable[[], int], wake: Callable[[], None]
    ) -> None:
        self._shard, self._epoch, self._number, self._now_ms, self._wake = shard, epoch, number, now_ms, wake
        self._staged: deque[Staged] = deque()
        self._stray: list[str] = []
        self._timers_set = 0
        self.count = 0
        """How many were ever staged: the number of the last progress."""
        self.settled = 0
        """The number of the last progress that is durable."""
        self.acknowledged = number
        """The number of the last commit that the store has answered."""
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        """Futures by the number of progress that must be durable before they are done."""

    # Staging progress

    def commit(
        self,
        run: OpenInvocation,
        changes: dict[str, bytes | None],
        stored: dict[str, bytes],
        results: list[tuple[int, bytes]],
        posted: Posted | None,
        *,
        sleeps: bool,
    ) -> int:
        """Stage the progress of an execution that waits, with changes of `stored`; with `sleeps` it leaves memory."""
        execution = run.execution
        assert execution is not None
        record = _record_of(run, execution, changes, results)
        progress = _progress_of(run, changes)
        self._take_commands(run, execution, progress, record)
        self._set_lifetimes(run, progress, changes, stored)
        if posted is not None:
            progress.writes |= {name: value for name, value in posted.fields.items() if value is not None}
            progress.clears += [name for name, value in posted.fields.items() if value is None]
            progress.messages += posted.events
        if run.began_again or not _is_empty(record):
            run.began_again = False
            progress.record = record.encoded()
        if sleeps:
            progress.end = Sleep(holds=run.holds)
        return self._add(progress, run, record if progress.record else None)

    def finish(
        self,
        run: OpenInvocation,
        outcome: bytes,
        changes: dict[str, bytes | None],
        stored: dict[str, bytes] | None,
        *,
        commands: bool,
        messages: Sequence[Bring] = (),
    ) -> int:
        """Stage the end of an invocation; with `commands` the execution's last messages are part of it."""
        if run.pending:
            run.spent += [event.id for event in run.pending]
        if run.resume is not None:
            run.spent.append(run.resume.id)
        progress = _progress_of(run, changes)
        if commands and run.execution is not None:
            self._take_commands(run, run.execution, progress, None)
            progress.timers = []
        if messages:
            progress.messages += messages
        if run.timers:
            progress.untimers += run.timers.values()
        if changes:
            self._set_lifetimes(run, progress, changes, stored or {})
        if run.message.keep_ms and run.exclusive and (run.declared is None or run.declared.is_workflow):
            # State and promises expire before the outcome: the next run of the key finds nothing of the first.
            over_ms = self._now_ms() + run.message.keep_ms - FORGOTTEN_AFTER_MS
            progress.timers.append((over_ms, timer_of_object(run.message.target)))
        summary = f"{run.message.target}.{run.message.handler}".encode("utf-8", "surrogatepass")
        progress.end = Finish(outcome, summary, run.message.keep_ms)
        return self._add(progress, run)

    def failed(self, run: OpenInvocation, error: BaseException, delay_s: float, notice: str, *, sleeps: bool) -> int:
        """Stage the end of an attempt and the timer of the next; the rest of its uncommitted progress is dropped."""
        record = Record(
            events=run.delivered, attempt=run.attempt, error=repr_of(error, ERROR_MAX), began_ms=run.began_ms
        )
        progress = _progress_of(run, {})
        member = self._member(run.id, BACK_OFF, record.timers)
        record.next_ms = self._now_ms() + int(delay_s * 1000)
        progress.timers = [(record.next_ms, member)]
        if BACK_OFF in run.timers:
            progress.untimers.append(run.timers[BACK_OFF])
        if sleeps:
            progress.end = Sleep(holds=run.holds)
        number = self._end_attempt(run, progress, record, notice)
        run.timers[BACK_OFF] = member  # cleared with the others if something else ends the back-off
        return number

    def backs_off_again(self, run: OpenInvocation) -> None:
        """Stage the timer of the next attempt once more, if the store has lost it."""
        found = [event for event in run.pending if event.kind is EventKind.RETIME and not event.index]
        if not found:
            return
        for event in found:
            event.index = 1  # it stays for the next attempt, which waits for the timers of its entries
        progress = _progress_of(run, {})
        due_ms = next((record.next_ms for _, record in reversed(run.records) if record.attempt), self._now_ms())
        member = run.timers[BACK_OFF] = run.timers.get(BACK_OFF) or self._member(run.id, BACK_OFF, {})
        progress.timers = [(due_ms, member)]
        self._add(progress, run)

    def tried(self, run: OpenInvocation, tries: Tries, error: BaseException, notice: str) -> int:
        """Stage a failed attempt of a step that another attempt follows, after all commands of its handler."""
        assert run.execution is not None
        record = _record_of(run, run.execution, {}, [])
        record.tries.append(tries)
        record.error, record.next_ms = repr_of(error, ERROR_MAX), tries.next_ms
        progress = _progress_of(run, {})
        self._take_commands(run, run.execution, progress, record)
        run.began_again = False
        progress.record, progress.notice = record.encoded(), _noticed(notice)
        return self._add(progress, run, record)

    def paused(self, run: OpenInvocation, reason: str, notice: str) -> int:
        """Stage an invocation that waits for an operator."""
        progress = _progress_of(run, {})
        reason = shortened(reason, REASON_MAX)
        progress.end = Sleep(holds=run.holds, paused=reason)
        return self._end_attempt(run, progress, Record(events=run.delivered, error=reason), notice)

    def _end_attempt(self, run: OpenInvocation, progress: Progress, record: Record, notice: str) -> int:
        run.delivered = []  # its timers go on: the next attempt waits for the same entries
        progress.record, progress.notice = record.encoded(), _noticed(notice)
        return self._add(progress, run, record)

    def interject(
        self, run: OpenInvocation, event: Delivered, olds: dict[str, bytes | None], *, is_joined: bool
    ) -> int:
        """Stage an event that lies in no other place than the journal, with the former values of fields."""
        assert run.execution is not None
        run.delivered.append(event)
        record = _record_of(run, run.execution, {}, [])
        record.olds = olds
        run.olds |= olds.keys()
        progress = _progress_of(run, {})
        self._take_commands(run, run.execution, progress, record)
        run.began_again = False
        progress.record = record.encoded()
        number = self._add(progress, run, record)
        self._staged[-1].is_joined = is_joined
        return number

    def renewed(self, run: OpenInvocation, code: str) -> int:
        """Stage that the next attempt begins on this code; after a resume all counts of attempts begin anew."""
        is_resumed = run.renewal is Renewal.RESUMED
        if is_resumed:
            run.attempt, run.began_ms = 1, self._now_ms()
        record = Record(code=code) if is_resumed else Record(newer=code)
        run.message.code, run.began_again = code, False
        progress = _progress_of(run, {})
        progress.record = record.encoded()
        return self._add(progress, run, record)

    def interrupted(self, run: OpenInvocation) -> None:
        """Stage the end of an attempt that another follows at once; its uncommitted progress is dropped."""
        self._end_attempt(run, _progress_of(run, {}), Record(events=run.delivered), "")

    def answered(self, message: Message, inbox_id: str, record: Record, end: Sleep, events: list[str]) -> None:
        """Stage the answer to a command for a paused invocation."""
        self._add(Progress(message.id, message.target, inbox_id, True, record.encoded(), events, end=end))

    def delayed(self, message: Message, inbox_id: str) -> None:
        """Stage a message that is not due: it sleeps until then."""
        timer = (message.due_ms, self._member(message.id, "d", {}))
        self._add(Progress(message.id, message.target, inbox_id, timers=[timer], end=Sleep(holds=False)))

    def hasten(self, invocation: str) -> None:
        """Stage that a delayed invocation is due: its message goes to the inbox, where it can be ended."""
        self._add(Progress(invocation, "", "", timers=[(self._now_ms(), self._member(invocation, "d", {}))]))

    def expire(self, event: Event, messages: list[Leaving]) -> int:
        """Stage the expiry of an object's state or of a field; the store skips it if that was written since."""
        end = Expire(event.payload.decode("utf-8", "surrogatepass"))
        return self._add(Progress("", event.invocation, "", events=[event.id], messages=messages, end=end))

    def notice(self, invocation: str, text: bytes, events: list[str]) -> None:
        """Stage a notice to the callers that wait for an invocation."""
        self._add(Progress(invocation, "", "", events=events, notice=text))

    def tell(self, invocation: str, messages: list[Leaving]) -> None:
        """Stage messages to others that belong to no invocation's journal."""
        self._add(Progress(invocation, "", "", messages=messages))

    def stray(self, events: list[str]) -> None:
        """Stage the deletion of events whose invocation has ended."""
        self._stray += events
        self._wake()

    def _add(self, progress: Progress, run: OpenInvocation | None = None, record: Record | None = None) -> int:
        self._staged.append(Staged(progress, run, record))
        self.count += 1
        if run is not None:
            run.unsettled += 1
        self._wake()
        return self.count

    def _take_commands(
        self, run: OpenInvocation, execution: Execution, progress: Progress, record: Record | None
    ) -> None:
        """Take the messages and timers of a commit; the record, if any, notes the timers that it sets."""
        progress.messages = execution.calls.take_messages()
        timers = execution.timers
        if timers.set:
            now_ms, recorded = self._now_ms(), record.timers if record is not None else {}
            for index, delay_s in timers.set.items():
                mark = str(mark_of(index, execution.restarts))
                # A timer that is set again, because the store has lost it, keeps the name that its journal holds.
                run.timers[mark] = run.timers.get(mark) or self._member(run.id, mark, recorded)
                progress.timers.append((now_ms + int(delay_s * 1000), run.timers[mark]))
            timers.set = {}
        for index in timers.cleared:
            member = run.timers.pop(str(mark_of(index, execution.restarts)), None)
            if member is not None:
                progress.untimers.append(member)
        timers.cleared = []

    def _set_lifetimes(
        self, run: OpenInvocation, progress: Progress, changes: dict[str, bytes | None], stored: dict[str, bytes]
    ) -> None:
        # A shared handler writes its waits only: no state, which could expire at the end of a retention.
        lifetimes = run.declared.lifetimes if run.declared is not None and run.exclusive else None
        if changes and lifetimes is not None:
            timers, untimers = lifetimes.timers(run.message.target, changes, stored, self._now_ms())
            progress.timers += timers
            progress.untimers += untimers

    def _member(self, id_: str, what: str, recorded: dict[str, str]) -> str:
        """Return the name of a timer, and note it: timers of the same due time sort in the order of setting."""
        self._timers_set += 1
        recorded[what] = counter = f"{self._epoch:012x}{self._timers_set:08x}"
        return timer_of(counter, id_, what)

    # Writing progress

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits to be written."""
        return not (self._staged or self._stray)

    @property
    def backlog(self) -> int:
        """How much is staged and not durable."""
        return self.count - self.settled

    def take(self, incarnation: str, room: CommitBudget) -> Unwritten:
        """Remove and return as much progress as the commit has room for, as the next part of the shard."""
        items: list[Staged] = []
        while self._staged and (room.is_left or (items and items[-1].is_joined)):
            item = self._staged.popleft()
            if item.progress.end is not None and item.run is not None:
                item.progress.journal = list(item.run.journal)
            room.bytes -= _size(item.progress)
            room.commands -= 1
            items.append(item)
        stray, self._stray = self._stray, []
        self._number += 1
        progress = [item.progress for item in items]
        return Unwritten(Part(self._shard, self._epoch, incarnation, self._number, progress, stray), items)

    def acknowledge(self, unwritten: Unwritten, answer: Committed) -> None:
        """Note that a part is durable: its records get their ids, and their invocations note them in their journals."""
        self.settled += len(unwritten.items)
        self.acknowledged = unwritten.part.number
        ids = _following(answer.first)
        for id_ in answer.known:
            why = "is known, of another request: its run happens once, or its idempotency key came with other arguments"
            logger.warning("a send was dropped: %s %s", id_, why)
        for item in unwritten.items:
            item.id = next(ids) if item.progress.record else ""
            if item.run is None:
                continue
            item.run.unsettled -= 1
            if item.record is not None and item.progress.end is None:
                item.run.records.append((item.id, item.record))
                item.run.journal.append(item.id)
        if self._waiting:
            for number, waiting in self._waiting:
                if number <= self.settled and not waiting.done():
                    waiting.set_result(None)
            self._waiting = [(number, waiting) for number, waiting in self._waiting if not waiting.done()]

    async def until_durable(self, number: int) -> None:
        """Wait until progress up to this number is durable; this never returns if the shard is lost."""
        if self.settled < number:
            waiting = asyncio.get_running_loop().create_future()
            self._waiting.append((number, waiting))
            await waiting


def must_commit(run: OpenInvocation, execution: Execution) -> bool:
    """Whether an execution that waits has commands that must be durable before they take effect."""
    if execution.calls.messages or execution.timers.set or execution.timers.cleared:
        return True
    board = execution.board
    if board is not None and (board.has_waits or (board.answers.new and execution.steps.unstarted)):
        return True
    if run.exclusive or execution.view is None:
        return False
    return bool(execution.watching) or (bool(execution.steps.unstarted) and execution.view.has_read)


def _record_of(
    run: OpenInvocation, execution: Execution, changes: dict[str, bytes | None], results: list[tuple[int, bytes]]
) -> Record:
    """Return a record of everything that no record holds yet, and count it as recorded."""
    view = execution.view
    assert view is not None
    record = Record(events=run.delivered, first=run.staged, entries=execution.entries[run.staged :], steps=results)
    if not is_hash(run.message.code) and run.declared is not None and (begun_on := scope_of(run.declared.cls).digest):
        record.newer = run.message.code = begun_on  # its caller named no code: it ends on that which it began with
    for name in changes:
        if name not in run.olds:
            record.olds[name] = view.found(name)
    if record.olds:
        run.olds |= record.olds.keys()
    if not run.exclusive:
        for position, fields in view.take_reads():
            if position:
                record.seen.append((position, fields))
            else:
                record.reads.update(fields)
                run.reads |= fields.keys()
    if execution.board is not None:
        record.answers = execution.board.answers.take()
    run.staged += len(record.entries)
    run.delivered = []
    return record


def _is_empty(record: Record) -> bool:
    return not (
        record.events or record.entries or record.olds or record.reads or record.seen or record.steps or record.attempt
    )


def _progress_of(run: OpenInvocation, changes: dict[str, bytes | None]) -> Progress:
    """Return a progress with the run's address, its state changes, and the events that it makes superfluous."""
    spent, run.spent = run.spent, []
    writes: dict[str, Any] = changes.copy() if changes else {}
    clears: list[str] = []
    if None in writes.values():
        clears = [name for name, value in changes.items() if value is None]
        writes = {name: value for name, value in changes.items() if value is not None}
    # All lists are passed, also the empty ones: a default factory takes ten times as long.
    return Progress(run.id, run.message.target, run.inbox_id, run.asleep, b"", spent, writes, clears, [], [], [], [])


def _noticed(notice: str) -> bytes:
    return shortened(notice, NOTICE_MAX).encode(errors="backslashreplace")


def _size(progress: Progress) -> int:
    size = 200 + len(progress.record) + sum(map(len, progress.writes.values()))
    if progress.messages:
        size += sum([len(message.data) for message in progress.messages])
    return size + len(progress.end.outcome) if isinstance(progress.end, Finish) else size


def _following(first: str) -> Iterator[str]:
    """Yield the ids of a part's records: a single script writes them, so they differ in their last number only."""
    ms, sequence = order_of(first) if first else (0, 0)
    while True:
        yield f"{ms}-{sequence}"
        sequence += 1
