"""Staging: what an invocation has become, as the next commit will write it.

Owns the order of a shard's commits before they are written: a queue of progress, numbered, each with whom to tell when
it is durable. Bytes only: whatever can fail (encoding, a limit) has failed before, as that attempt.
"""

from collections import deque
from dataclasses import dataclass, field

from journal.entries import Record
from journal.store import Finish, Part, Progress

from .activation import Activation, InFlight
from .errors import UsageError

COMMANDS_MAX = 10_000
"""Most progress in one commit."""
BYTES_MAX = 4_000_000
"""Most bytes in one commit, but for a single progress that is larger."""


@dataclass(slots=True)
class Staged:
    """One progress on its way to the store."""

    progress: Progress
    run: InFlight | None
    record: Record | None


@dataclass(slots=True)
class Queue:
    """A shard's progress that is not written yet, in order."""

    staged: deque[Staged] = field(default_factory=deque[Staged])
    stray: list[str] = field(default_factory=list[str])
    """Events of invocations that had finished, to be deleted."""
    count: int = 0
    """How many were ever staged: the number of the last one."""
    settled: int = 0
    """The number of the last one that is durable."""

    def add(self, progress: Progress, run: InFlight | None = None, record: Record | None = None) -> int:
        """Queue a progress and return its number."""
        self.staged.append(Staged(progress, run, record))
        self.count += 1
        if run is not None:
            run.unsettled += 1
        return self.count

    def take(self) -> list[Staged]:
        """Remove and return what fits one commit."""
        taken: list[Staged] = []
        size = 0
        while self.staged and len(taken) < COMMANDS_MAX and (size < BYTES_MAX or not taken):
            item = self.staged.popleft()
            if item.progress.end is not None and item.run is not None:
                item.progress.journal = list(item.run.journal)
            size += _size(item.progress)
            taken.append(item)
        return taken


def _size(progress: Progress) -> int:
    size = 200 + len(progress.record) + sum(map(len, progress.writes.values()))
    size += sum(len(message.data) for message in progress.messages)
    return size + (len(progress.end.outcome) if isinstance(progress.end, Finish) else 0)


@dataclass(slots=True)
class Unwritten:
    """The part of a commit that is being made, and what was asked of it."""

    part: Part
    items: list[Staged]


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
    changed = {name: value for name, value in seen.items() if value != stored.get(name)}
    for name, value in changed.items():
        if value is not None and len(value) > field_max:
            raise UsageError(
                f"state {name!r} takes {len(value):,} bytes, the limit payload_max is {field_max:,}: "
                "keep large data elsewhere, or spread it over several fields or objects"
            )
    return changed


def record_of(run: InFlight, changes: dict[str, bytes | None], outcomes: list[tuple[int, bytes]]) -> Record:
    """Return the record of all that no record holds yet, and count it as recorded."""
    execution = run.execution
    assert execution is not None and execution.view is not None
    record = Record(events=run.delivered, first=run.staged, entries=execution.entries[run.staged :], steps=outcomes)
    for name in changes:
        if name not in run.olds:
            record.olds[name] = execution.view.found(name)
            run.olds.add(name)
    if not run.exclusive:
        record.reads = {name: value for name, value in execution.view.reads().items() if name not in run.reads}
        run.reads.update(record.reads)
    run.staged += len(record.entries)
    run.delivered = []
    return record


def is_empty(record: Record) -> bool:
    """Whether the record says nothing."""
    return not (record.events or record.entries or record.olds or record.reads or record.steps or record.attempt)


def progress_of(run: InFlight, changes: dict[str, bytes | None]) -> Progress:
    """Return a progress with the run's address, its state changes, and the events that it makes superfluous."""
    spent, run.spent = run.spent, []
    return Progress(
        run.id,
        run.message.target,
        run.inbox_id,
        run.asleep,
        events=spent,
        writes={name: value for name, value in changes.items() if value is not None},
        clears=[name for name, value in changes.items() if value is None],
    )

