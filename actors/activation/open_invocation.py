"""Open invocation: an invocation in the memory of its shard: its journal, its attempt, and its next commit."""

from collections import deque
from enum import Enum
from typing import Any, Final

from actors.blocks.calls import TIMEOUT, callee_of
from actors.blocks.restarts import Restarts, kept, mark_of
from actors.blocks.steps import Step
from actors.errors import TerminalError
from actors.execution.execution import Execution
from actors.execution.state_view import laid_over
from actors.objects.objects import Declaration
from actors.policy import ResolvedPolicy
from actors.requests.run_ids import run_id
from journal.ids import Shard
from journal.records import Delivered, Event, EventKind, Message, Record, Tries, time_of, timer_of

FORGOTTEN_AFTER_MS: Final = 60_000
"""How much longer than its state the outcome of a workflow is kept."""


_NONE: Final[frozenset[str]] = frozenset()
"""Shared, and never changed: most invocations need no set of their own."""


class Renewal(Enum):
    """The reason why an invocation does not simply go on with its present code."""

    NEWER = "its last attempt failed, and its journal holds no entry"
    RESUMED = "it was resumed: its attempts are counted anew, too"
    MISSING = "its class, or its handler, is nowhere: it waits for a program that has it"


class OpenInvocation:
    """An open invocation on its host."""

    # Not a dataclass: every message makes an instance, and default factories take three times as long as all else.
    __slots__ = (
        "asleep",
        "attempt",
        "backing_off",
        "began_again",
        "began_at",
        "began_ms",
        "declared",
        "delivered",
        "ended",
        "exclusive",
        "execution",
        "handler",
        "deliveries",
        "holder",
        "id",
        "idle",
        "inbox_id",
        "journal",
        "leave_after",
        "message",
        "olds",
        "outcomes",
        "pending",
        "policy",
        "reader",
        "reads",
        "records",
        "renewal",
        "replays",
        "resume",
        "running",
        "settling",
        "shard",
        "spent",
        "staged",
        "timers",
        "unsettled",
    )

    def __init__(self, message: Message, shard: Shard, inbox_id: str, *, asleep: bool = False) -> None:
        self.message, self.id, self.shard, self.inbox_id = message, message.id, shard, inbox_id
        self.asleep = asleep
        """It has left memory at least once: its message lies in its hash."""
        self.records: list[tuple[str, Record]] = []
        """The journal, in order: stream id and record."""
        self.journal: list[str] = []
        """Ids of the records that lie in the shard's `journal`."""
        self.pending: deque[Event] = deque()
        """Durable events that are not delivered yet."""
        self.delivered: list[Delivered] = []
        """Delivered events that no record holds yet."""
        self.spent: list[str] = []
        """Ids in `events` that the next commit deletes."""
        self.execution: Execution | None = None
        self.declared: Declaration | None = None
        self.handler: Any = None
        """Its `Handler`: a checker would read a field of that type as a descriptor."""
        self.policy: ResolvedPolicy | None = None
        self.exclusive = False
        self.attempt = 1
        self.began_at, self.began_ms = 0.0, 0
        """When its first attempt began: by the host's clock, and, once that is asked for, by the store's; 0 before."""
        self.staged = 0
        """How many entries are in records or under way to one."""
        self.replays = 0
        """How many of the entries were there before this attempt."""
        self.olds: frozenset[str] = _NONE
        """Fields whose former value is recorded."""
        self.reads: frozenset[str] = _NONE
        """Fields whose value, as a shared handler read it before its first wait, is recorded."""
        self.reader, self.deliveries = False, 0
        """Whether it is a shared handler of an object, and the number of events and step outcomes delivered to it."""
        self.timers: dict[str, str] = {}
        """Durable timers to clear at the end, by the mark of their entry or by `staging.BACK_OFF`."""
        self.outcomes: list[tuple[int, bytes]] = []
        """Outcomes of steps that wait for their record."""
        self.running: dict[int, Step] = {}
        """Steps whose action is under way."""
        self.settling = False
        """A commit with outcomes of steps is under way: nothing else is delivered."""
        self.backing_off = False
        """Its last attempt failed, and the next has not begun."""
        self.holder: OpenInvocation | None = None
        """The invocation that has let it in, if any (`reentry`)."""
        self.began_again = False
        """The next attempt has begun, and no record says so yet."""
        self.resume: Event | None = None
        """A RESUME event: it goes on with the newest code when the present attempt of its step fails."""
        self.renewal: Renewal | None = None
        """Why its code is renewed before its next attempt; None if it is not."""
        self.unsettled = 0
        """Commits of it that are not acknowledged."""
        self.leave_after = 0
        """Its steps begin only when this many commits of its shard are settled: it has read their state."""
        self.ended = False
        """Its end is handed to the writer, or its host gave it up."""
        self.idle = False
        """It only waits, and is listed in `Idle`."""

    @property
    def recorded(self) -> list[str]:
        """All entries that the journal holds, in order."""
        entries: list[str] = []
        for _, record in self.records:
            if record.entries:
                entries[record.first :] = record.entries
        return entries

    def to_replay(self) -> list[Delivered | tuple[int, bytes, int]]:
        """Return all recorded events, and outcomes of steps with their time, in the order of delivery."""
        out: list[Delivered | tuple[int, bytes, int]] = []
        for id_, record in self.records:
            out += record.events
            out += [(index, outcome, time_of(id_)) for index, outcome in record.steps]
        return out

    @property
    def tries(self) -> dict[int, Tries]:
        """The recorded failed attempts of steps since the last pause, by entry."""
        found: dict[int, Tries] = {}
        for _, record in self.records:
            if record.code is not None:
                found.clear()
            found.update({tries.entry: tries for tries in record.tries})
        return found

    @property
    def restarts(self) -> Restarts:
        """The recorded restarts."""
        return [record.restart for _, record in self.records if record.restart[1]]

    @property
    def is_failing(self) -> bool:
        """Whether its handler waits for a step that has failed before."""
        steps = self.execution.steps if self.execution is not None else None
        return steps is not None and any(steps.holds(index) for index in self.tries)

    @property
    def type_name(self) -> str:
        """The name of its class."""
        return self.message.target.partition("/")[0]

    def callees(self, shards: int) -> list[str]:
        """Return the ids of the calls that have left it, or leave with a commit before its end, and have no outcome."""
        entries, events = self.recorded, [event for _, record in self.records for event in record.events]
        answered = {event.index for event in events if event.kind is EventKind.REPLY}
        late = [entries[event.index] for event in events if event.kind is EventKind.TIMER]
        answered |= {int(entry.removeprefix(TIMEOUT)) for entry in late if entry.startswith(TIMEOUT)}
        if self.execution is not None:
            # A failed attempt may have made fewer entries than are recorded, and entries that never will be recorded.
            entries = max(entries, self.execution.entries[: self.staged], key=len)
            answered |= self.execution.calls.answered()
        marks = ((mark_of(index, self.restarts), entry) for index, entry in enumerate(entries))
        found = (callee_of(self.id, mark, entry, shards) for mark, entry in marks)
        return [id_ for index, id_ in enumerate(found) if id_ is not None and index not in answered]

    @property
    def answers(self) -> dict[int, bytes | None]:
        """The recorded answers that entries got at once."""
        return {index: answer for _, record in self.records for index, answer in record.answers}

    def found(self, stored: dict[str, bytes]) -> dict[str, bytes]:
        """Return the state as this invocation found it: recorded values laid over what is stored."""
        laid: dict[str, bytes | None] = {}
        for _, record in self.records:
            laid |= record.olds
            laid |= record.reads
        return laid_over(stored, laid) if laid else stored

    def seen(self) -> tuple[dict[int, dict[str, bytes | None]], int]:
        """Return a shared handler's reads by the number of deliveries before, and that number at its last record.

        Later reads are not recorded: reads of an attempt that failed, or after the last outcomes of steps.
        """
        found: dict[int, dict[str, bytes | None]] = {}
        count = covered = 0
        for _, record in self.records:
            count += len(record.events)
            if not (record.attempt or record.error or record.code is not None):
                covered = count
            count += len(record.steps)
            for at, fields in record.seen:
                found.setdefault(at, {}).update(fields)
        return found, covered

    def adopt(self, records: list[tuple[str, Record]]) -> None:
        """Take over a journal that was read from the store."""
        for id_, record in records:
            self.began_ms = record.began_ms or self.began_ms or time_of(id_)
            self.records.append((id_, record))
            self.journal.append(id_)
            self.attempt = record.attempt or self.attempt
            if record.code is not None:
                self.message.code, self.attempt, self.began_ms = record.code, 1, time_of(id_)
            if record.newer:
                self.message.code = record.newer
            self.olds |= record.olds.keys()
            self.reads |= record.reads.keys()
            self.backing_off = bool(record.attempt)
            for event in record.events:
                if event.kind is EventKind.TIMER:
                    self.timers.pop(str(event.index), None)
            for what, counter in record.timers.items():
                self.timers[what] = timer_of(counter, self.id, what)
        if self.restarts:
            self.records = kept(self.records)
        self.staged = len(self.recorded)

    def forget_journal(self, journal: list[str]) -> None:
        """Forget the content of a journal that cannot be read, and keep the ids of its records."""
        self.records, self.journal, self.backing_off, self.staged = [], journal, False, 0

    def is_misdirected(self, shards: int) -> bool:
        """Whether its class has no such handler, is of another kind, or is a workflow with another run."""
        assert self.declared is not None
        if self.handler is None or self.declared.is_service != ("/" not in self.message.target):
            return True
        return self.declared.is_workflow and self.handler.exclusive and self.id != run_id(self.message.target, shards)

    def misdirected(self) -> TerminalError:
        """Return the outcome of a misdirected invocation: its class has no such handler, or is of another kind."""
        assert self.declared is not None
        name, kind = self.declared.name, "service" if self.declared.is_service else "virtual object"
        if self.declared.is_workflow and self.handler is not None:
            why = "was started by a program that does not know the workflow: import its class there"
            return TerminalError(f"{self.message.target}.run {why}", 400)
        if self.handler is not None:
            how = (
                f"{name}.{self.message.handler}" if self.declared.is_service else f"{name}[key].{self.message.handler}"
            )
            return TerminalError(f"{name} is a {kind}: call it as {how}", 404)
        return TerminalError(self.declared.without(self.message.handler), 404)

    @property
    def refusal(self) -> str:
        """Why its handler may not write state; empty if it may."""
        assert self.declared is not None
        if self.exclusive:
            return ""
        if self.declared.is_service:
            return "a service has no state"
        return f"{self.message.handler} is a shared handler, which reads only (make it a @handler)"

    def keep_outcome(self) -> None:
        """Keep the outcome of a workflow's run until its retention is over, however many outcomes there are."""
        if self.exclusive and self.policy is not None:
            self.message.keep_ms = int(self.policy.retention.total_seconds() * 1000) + FORGOTTEN_AFTER_MS

    @property
    def holds(self) -> bool:
        """Whether it has the turn of its object itself, and was not let in by the holder of the turn."""
        return self.exclusive and self.holder is None

    @property
    def is_acting(self) -> bool:
        """Whether a step is under way or its outcome unwritten; a step between two attempts does not count."""
        return bool(self.outcomes or self.settling or any(step.acting_since_ms for step in self.running.values()))

    @property
    def is_waiting(self) -> bool:
        """Whether it only waits: nothing under way, nothing to deliver."""
        return not (self.running or self.outcomes or self.settling or self.pending)
