"""Activation: an object in memory, and the invocations of it that are open.

Owns whose turn it is and the cached state of one object; an `InFlight` owns what is durable of one invocation, its
attempt, and what its next commit brings. Neither does I/O: the host calls and is asked.

Invariants:
    1. At most one exclusive invocation has the turn, from its start to its outcome, sleep included (promise 2).
    2. `fields` is the state of the last commit handed to the writer; a dict that an execution was given stays as it is.
    3. Of the messages that wait for their turn only the first `queue_in_memory` keep their arguments.
"""

from collections import deque
from typing import Any

from journal.entries import Delivered, Event, Message, Record, time_of
from journal.names import ObjectId, Shard

from .execution import Execution
from .objects import Declaration
from .policy import Settled
from .steps import Step


class InFlight:
    """One open invocation on its host."""

    # Not a dataclass: one is made for every message, and default factories take three times as long as all else.
    __slots__ = (
        "asleep",
        "attempt",
        "backing_off",
        "began_again",
        "began_ms",
        "declared",
        "delivered",
        "ended",
        "exclusive",
        "execution",
        "handler",
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
        "reads",
        "records",
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
        """Its message lies in its hash: it has left memory once."""
        self.records: list[tuple[str, Record]] = []
        """The journal, in order: stream id and record."""
        self.journal: list[str] = []
        """Ids of those records that lie in the shard's `journal`."""
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
        self.policy: Settled | None = None
        self.exclusive = False
        self.attempt = 1
        self.began_ms = 0
        """When its first attempt began, as far as the journal tells; 0 before."""
        self.staged = 0
        """How many entries are in records or under way to one."""
        self.olds: set[str] = set()
        """Fields whose former value is recorded."""
        self.reads: set[str] = set()
        """Fields whose value, as a shared handler read it, is recorded."""
        self.timers: dict[int, str] = {}
        """Durable timers by entry, as far as this host knows their members."""
        self.outcomes: list[tuple[int, bytes]] = []
        """Outcomes of steps that wait for their record."""
        self.running: dict[int, Step] = {}
        """Steps whose action is under way."""
        self.settling = False
        """A commit with outcomes of steps is under way: nothing else is delivered."""
        self.backing_off = False
        """Its last attempt failed, and the next has not begun."""
        self.began_again = False
        """The next attempt has begun, and no record says so yet."""
        self.unsettled = 0
        """Commits of it that are not acknowledged."""
        self.leave_after = 0
        """Nothing leaves it before this many commits of its shard are settled: it has seen their state."""
        self.ended = False
        """Its end is handed to the writer, or its host gave it up."""
        self.idle: Any = None
        """The handle of the timer after which it leaves memory."""

    @property
    def recorded(self) -> list[str]:
        """All entries that the journal holds, in order."""
        entries: list[str] = []
        for _, record in self.records:
            if record.entries:
                entries[record.first :] = record.entries
        return entries

    def history(self) -> list[Delivered | tuple[int, bytes, int]]:
        """Return all recorded events, and outcomes of steps with their time, in the order of delivery."""
        out: list[Delivered | tuple[int, bytes, int]] = []
        for id_, record in self.records:
            out += record.events
            out += [(index, outcome, time_of(id_)) for index, outcome in record.steps]
        return out

    def found(self, stored: dict[str, bytes]) -> dict[str, bytes]:
        """Return the state as this invocation found it: recorded values laid over what is stored."""
        fields = stored
        for _, record in self.records:
            for name, value in (*record.olds.items(), *record.reads.items()):
                if fields is stored:
                    fields = dict(stored)
                if value is None:
                    fields.pop(name, None)
                else:
                    fields[name] = value
        return fields

    def adopt(self, records: list[tuple[str, Record]]) -> None:
        """Take over a journal that was read from the store."""
        for id_, record in records:
            self.began_ms = self.began_ms or time_of(id_)
            self.records.append((id_, record))
            self.journal.append(id_)
            self.attempt = max(self.attempt, record.attempt)
            self.olds.update(record.olds)
            self.reads.update(record.reads)
            self.backing_off = bool(record.attempt)
        self.staged = len(self.recorded)

    @property
    def is_waiting(self) -> bool:
        """Whether it only waits: nothing under way, nothing to deliver."""
        return not (self.running or self.outcomes or self.settling or self.pending)


class Activation:
    """An object, or a service, in memory."""

    __slots__ = (
        "arrivals",
        "current",
        "fields",
        "held_by",
        "key",
        "loading",
        "mailbox",
        "shard",
        "sharing",
        "staged",
        "target",
        "used_at",
    )

    def __init__(self, shard: Shard, target: str, now: float) -> None:
        self.shard, self.target, self.used_at = shard, target, now
        self.key = ObjectId.parse(target).key
        self.fields: dict[str, bytes] | None = {} if self.key is None else None
        """The state; None until it is loaded."""
        self.loading = False
        self.held_by = ""
        """The invocation asleep that has the turn."""
        # An empty deque takes 760 bytes, so that it is there only while something is in it.
        self.arrivals: deque[InFlight] | None = None
        """What has come in and is not sorted yet: its class may have to be fetched."""
        self.mailbox: deque[InFlight] | None = None
        """Exclusive invocations that wait for their turn."""
        self.current: InFlight | None = None
        """The exclusive invocation in memory that has the turn."""
        self.sharing: set[InFlight] = set()
        """Invocations that need no turn: of shared handlers and of services."""
        self.staged = 0
        """Number, in the shard, of the last commit handed to the writer for this object."""

    @property
    def is_idle(self) -> bool:
        """Whether it can leave memory at any time."""
        return not (self.arrivals or self.mailbox or self.current or self.sharing or self.loading)

    @property
    def is_free(self) -> bool:
        """Whether the next exclusive invocation may start."""
        return self.current is None and not self.held_by

    def write(self, changes: dict[str, bytes | None]) -> None:
        """Put the changes of a commit into the cached state; what executions were given stays as it is."""
        assert self.fields is not None
        fields = dict(self.fields) if self.sharing or self.current is not None else self.fields
        for name, value in changes.items():
            if value is None:
                fields.pop(name, None)
            else:
                fields[name] = value
        self.fields = fields
