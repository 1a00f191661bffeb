"""Staging: what an invocation has become, as the next commit will write it.

Owns the order of a shard's commits before they are written: a queue of progress, numbered, each with whom to tell when
it is durable. Does not own: when to commit, or what happens in memory then (`shard`). Bytes only: whatever can fail
(encoding, a limit) has failed before, as that attempt.

Invariants:
    1. Progress is written in the order staged, so that what is acknowledged vouches for all before it.
    2. A record holds the events delivered since the last one, then the outcomes of steps: the order of delivery.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from journal.entries import Message, Record, order_of
from journal.names import Epoch, Shard
from journal.store import Committed, Finish, Part, Progress, Sleep

from .activation import Activation, InFlight
from .execution import Execution
from .outgoing import bounded

COMMANDS_MAX: Final = 10_000
"""Most progress in one commit."""
BYTES_MAX: Final = 4_000_000
"""Most bytes in one commit, but for a single progress that is larger."""


@dataclass(slots=True)
class Staged:
    """One progress on its way to the store."""

    progress: Progress
    run: InFlight | None
    record: Record | None
    id: str = ""
    """The record's stream id, once it is durable."""


@dataclass(slots=True)
class Unwritten:
    """A part of the commit that is being made, and what was asked of it."""

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
        """How many were ever staged: the number of the last one."""
        self.settled = 0
        """The number of the last one that is durable."""
        self.acknowledged = number
        """The number of the last commit that the store has answered."""

    # What is staged

    def commit(
        self, run: InFlight, changes: dict[str, bytes | None], results: list[tuple[int, bytes]], *, sleeps: bool
    ) -> int:
        """Stage what an execution that waits has become; with `sleeps` it leaves memory."""
        execution = run.execution
        assert execution is not None
        record = _record_of(run, execution, changes, results)
        progress = _progress_of(run, changes)
        self._take_commands(run, execution, progress)
        if run.began_again or not _is_empty(record):
            run.began_again = False
            progress.record = record.encoded()
        if sleeps:
            progress.end = Sleep(holds=run.exclusive)
        return self._add(progress, run, record if progress.record else None)

    def finish(self, run: InFlight, outcome: bytes, changes: dict[str, bytes | None], *, commands: bool) -> int:
        """Stage the end of an invocation; with `commands` what its execution asked for last leaves with it."""
        run.spent += [event.id for event in run.pending]
        progress = _progress_of(run, changes)
        if commands and run.execution is not None:
            self._take_commands(run, run.execution, progress)
            progress.timers = []
        progress.untimers += run.timers.values()
        progress.end = Finish(outcome, f"{run.message.target}.{run.message.handler}".encode(), run.message.keep_ms)
        return self._add(progress, run)

    def failed(self, run: InFlight, error: BaseException, delay_s: float, notice: str, *, sleeps: bool) -> int:
        """Stage the end of an attempt and the timer of the next; nothing else of what it had not committed."""
        record = Record(events=run.delivered, attempt=run.attempt, error=repr(error))
        progress = _progress_of(run, {})
        progress.timers = [(self._now_ms() + int(delay_s * 1000), self._member(run.id, "a"))]
        progress.untimers = list(run.timers.values())
        if sleeps:
            progress.end = Sleep(holds=run.exclusive)
        return self._end_attempt(run, progress, record, notice)

    def paused(self, run: InFlight, reason: str) -> int:
        """Stage an invocation that waits for an operator."""
        progress = _progress_of(run, {})
        progress.end = Sleep(holds=run.exclusive, paused=reason)
        return self._end_attempt(run, progress, Record(events=run.delivered, error=reason), f"paused: {reason}")

    def _end_attempt(self, run: InFlight, progress: Progress, record: Record, notice: str) -> int:
        run.delivered, run.timers = [], {}
        progress.record, progress.notice = record.encoded(), notice.encode(errors="backslashreplace")
        return self._add(progress, run, record)

    def delayed(self, message: Message, inbox_id: str) -> None:
        """Stage a message that is not due: it sleeps until then."""
        timer = (message.due_ms, self._member(message.id, "d"))
        self._add(Progress(message.id, message.target, inbox_id, timers=[timer], end=Sleep(holds=False)))

    def notice(self, invocation: str, text: bytes, events: list[str]) -> None:
        """Stage a notice to those who wait for an invocation."""
        self._add(Progress(invocation, "", "", events=events, notice=text))

    def stray(self, events: list[str]) -> None:
        """Stage the deletion of events whose invocation has ended."""
        self._stray += events
        self._wake()

    def _add(self, progress: Progress, run: InFlight | None = None, record: Record | None = None) -> int:
        self._staged.append(Staged(progress, run, record))
        self.count += 1
        if run is not None:
            run.unsettled += 1
        self._wake()
        return self.count

    def _take_commands(self, run: InFlight, execution: Execution, progress: Progress) -> None:
        progress.messages = execution.take_messages()
        timers = execution.timers
        if timers.set:
            now_ms = self._now_ms()
            for index, delay_s in timers.set.items():
                run.timers[index] = self._member(run.id, str(index))
                progress.timers.append((now_ms + int(delay_s * 1000), run.timers[index]))
            timers.set = {}
        for index in timers.cleared:
            member = run.timers.pop(index, None)
            if member is not None:
                progress.untimers.append(member)
        timers.cleared = []

    def _member(self, id_: str, what: str) -> str:
        """Return the name of a timer: those due at the same time sort in the order of setting, of all owners."""
        self._timers_set += 1
        return f"{self._epoch:012x}{self._timers_set:08x}:{id_}:{what}"

    # What is written

    @property
    def is_empty(self) -> bool:
        """Whether nothing waits to be written."""
        return not (self._staged or self._stray)

    @property
    def backlog(self) -> int:
        """How much is staged and not durable."""
        return self.count - self.settled

    def take(self, incarnation: str) -> Unwritten:
        """Remove and return what fits one commit, as the next part of the shard."""
        items: list[Staged] = []
        size = 0
        while self._staged and len(items) < COMMANDS_MAX and (size < BYTES_MAX or not items):
            item = self._staged.popleft()
            if item.progress.end is not None and item.run is not None:
                item.progress.journal = list(item.run.journal)
            size += _size(item.progress)
            items.append(item)
        stray, self._stray = self._stray, []
        self._number += 1
        progress = [item.progress for item in items]
        return Unwritten(Part(self._shard, self._epoch, incarnation, self._number, progress, stray), items)

    def acknowledge(self, unwritten: Unwritten, answer: Committed) -> None:
        """Note that a part is durable; its records have ids now, and their runs have them in their journals."""
        self.settled += len(unwritten.items)
        self.acknowledged = unwritten.part.number
        ids = _following(answer.first)
        for item in unwritten.items:
            item.id = next(ids) if item.progress.record else ""
            if item.run is None:
                continue
            item.run.unsettled -= 1
            if item.record is not None and item.progress.end is None:
                item.run.records.append((item.id, item.record))
                item.run.journal.append(item.id)


def changes_of(run: InFlight, activation: Activation, field_max: int) -> dict[str, bytes | None]:
    """Return what must be written so that the stored state is the state as the invocation sees it.

    Raises:
        UsageError: a field cannot be encoded, or is too large; it names the field.
    """
    execution = run.execution
    if execution is None or execution.view is None or not run.exclusive:
        return {}
    stored, view = activation.fields or {}, execution.view
    seen = view.changes()
    for name in run.olds:
        seen.setdefault(name, view.found(name))
    if not seen:
        return seen
    changed = {name: value for name, value in seen.items() if value != stored.get(name)}
    for name, value in changed.items():
        if value is not None:
            bounded(value, f"state {name!r}", field_max)
    return changed


def _record_of(
    run: InFlight, execution: Execution, changes: dict[str, bytes | None], results: list[tuple[int, bytes]]
) -> Record:
    """Return the record of all that no record holds yet, and count it as recorded."""
    view = execution.view
    assert view is not None
    record = Record(events=run.delivered, first=run.staged, entries=execution.entries[run.staged :], steps=results)
    for name in changes:
        if name not in run.olds:
            record.olds[name] = view.found(name)
            run.olds.add(name)
    if not run.exclusive:
        record.reads = {name: value for name, value in view.reads().items() if name not in run.reads}
        run.reads.update(record.reads)
    run.staged += len(record.entries)
    run.delivered = []
    return record


def _is_empty(record: Record) -> bool:
    return not (record.events or record.entries or record.olds or record.reads or record.steps or record.attempt)


def _progress_of(run: InFlight, changes: dict[str, bytes | None]) -> Progress:
    """Return a progress with the run's address, its state changes, and the events that it makes superfluous."""
    spent, run.spent = run.spent, []
    writes = {name: value for name, value in changes.items() if value is not None}
    clears = [name for name in changes if name not in writes] if len(writes) < len(changes) else []
    # All of its lists, also the empty ones: a default factory takes ten times as long.
    return Progress(run.id, run.message.target, run.inbox_id, run.asleep, b"", spent, writes, clears, [], [], [], [])


def _size(progress: Progress) -> int:
    size = 200 + len(progress.record) + sum(map(len, progress.writes.values()))
    size += sum(len(message.data) for message in progress.messages)
    return size + (len(progress.end.outcome) if isinstance(progress.end, Finish) else 0)


def _following(first: str) -> Iterator[str]:
    """Yield the ids of a part's records: one script writes them, so they differ in their last number only."""
    ms, sequence = order_of(first) if first else (0, 0)
    while True:
        yield f"{ms}-{sequence}"
        sequence += 1
