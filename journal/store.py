"""Store: the durable transitions that the runtime stands on, as a protocol and as values.

Owns the contract between `actors` and whatever keeps the bytes. `RedisStore` and `MemoryStore` both keep it, under one
contract suite. A transition is atomic: it happens as a whole or not at all, whichever process dies meanwhile.

Invariants:
    1. Writes of a writer are numbered: the store applies last + 1, answers the last one again, and refuses the rest. A
       write whose answer was lost is therefore sent again, unchanged.
    2. A commit carries the epoch and the incarnation of its shard's owner; another one's is refused, as a whole part.
    3. The writes of one `Progress` appear together: records, state, timers, messages, replies.
    4. Expected outcomes are values (`Fenced`, `Settled`); exceptions are faults (`UnavailableError`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Protocol

from .ids import Epoch, Shard
from .limits import SHARDS as SHARDS
from .limits import NamespaceLimits as NamespaceLimits
from .losses import WriterStatus
from .records import Event, EventKind, Failure, failure
from .survey import Survey

READ_BYTES = 4_000_000
"""Bytes that one read brings, about: it ends with the entry, or object, that exceeds them."""

INBOX_FULL = failure(
    Failure(503, "the inbox of the called object's shard is full: its hosts do not keep up", {}, "OverloadedError")
)
"""The outcome of a handler's call that finds no room."""


UNKNOWN = "is not known: it never was, or its outcome is forgotten, by age (retention) or by count (done_max)"
"""Follows the id of an invocation that the store does not know."""


def unknown(invocation: str) -> bytes:
    """Return the outcome that a handler sees of an invocation that is not known."""
    return failure(Failure(404, f"{invocation} {UNKNOWN}", {}, "TerminalError"))


@dataclass(slots=True)
class Outgoing:
    """A message for an inbox; a known invocation is attached to instead."""

    shard: Shard
    invocation: str
    caller: str
    data: bytes
    refusal: bytes | None = None
    """With it, the invocation must be new, or be of the same request: if it is known and is not, it is left alone, and
    the write's answer says so (`known`); a handler that calls is told this outcome instead."""
    digest: str = ""
    """Digest of the request, kept with the outcome, to tell requests apart; empty: no two requests are the same."""
    is_trusted: bool = False
    """A known invocation without a stored digest counts as the same request."""


@dataclass(slots=True)
class Attach:
    """An attachment: a request for the outcome of an invocation."""

    shard: Shard
    invocation: str
    caller: str = ""
    """The entry that gets the outcome, for an attachment of a commit; for one of a submit it is the driver."""
    data: bytes = b""
    """The outcome that this entry gets if the invocation is unknown."""


@dataclass(slots=True)
class Bring:
    """An event for an open invocation; a finished invocation ignores it."""

    shard: Shard
    invocation: str
    kind: EventKind
    index: int
    data: bytes


def makes_room(operation: Outgoing | Attach | Bring) -> bool:
    """Whether a store without memory takes this from a driver: it brings something to its end, or only asks."""
    if isinstance(operation, Bring):
        return operation.kind in (EventKind.CANCEL, EventKind.KILL)
    return isinstance(operation, Attach)


Leaving = Outgoing | Bring | Attach
"""Messages, events and attachments that leave an invocation with a commit."""


class Settled(Enum):
    """The result of a driver's numbered write."""

    APPLIED = "applied"
    REFUSED = "refused"
    """The writer is unknown or its number is not the next one: open another and attach."""


@dataclass(frozen=True, slots=True)
class PartlyApplied:
    """The write was applied but for these operations, by their place in it, from 0."""

    overloaded: tuple[int, ...] = ()
    """Messages whose inboxes are full, and events whose streams are."""
    unknown: tuple[int, ...] = ()
    """Events whose invocations are not known: they never were, or their outcomes are forgotten."""
    known: tuple[int, ...] = ()
    """Messages whose invocations had to be new, and are known, of another request."""
    later: tuple[int, ...] = ()
    """Questions for outcomes after others of `READ_BYTES`, to be asked again."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One entry for a driver; the payload's first byte is a `ReplyKind`."""

    id: str
    invocation: str
    payload: bytes


@dataclass(slots=True)
class Finish:
    """The end of an invocation."""

    outcome: bytes
    summary: bytes
    keep_ms: int = 0


@dataclass(slots=True)
class Sleep:
    """An invocation leaves memory; it holds its object unless it is shared, delayed, or of a service."""

    holds: bool
    paused: str = ""
    """Why an operator is waited for; empty if it merely waits."""
    resumed: bool = False
    """It was paused and goes on: it counts as open until it sleeps again."""


@dataclass(slots=True)
class Expire:
    """The end of an object's state, or of one field, unless its timer was set again since it came due.

    Messages of the same progress leave only if it ends.
    """

    field: str
    """The field; empty for all of them."""


@dataclass(slots=True)
class Progress:
    """The share of one invocation in a commit; without an invocation, of one object."""

    invocation: str
    target: str
    inbox_id: str
    asleep: bool = False
    """The invocation has left memory once: its message lies in its hash."""
    record: bytes = b""
    events: list[str] = field(default_factory=list[str])
    """Ids in `events` that the record (or the end) makes superfluous."""
    writes: dict[str, bytes] = field(default_factory=dict[str, bytes])
    clears: list[str] = field(default_factory=list[str])
    timers: list[tuple[int, str]] = field(default_factory=list[tuple[int, str]])
    """Due time in ms and member: `counter:invocation:what`, where `what` is an entry's index, `a` or `d`; or the result
    of `timer_of_object` or `timer_of_field`."""
    untimers: list[str] = field(default_factory=list[str])
    messages: list[Leaving] = field(default_factory=list[Leaving])
    journal: list[str] = field(default_factory=list[str])
    """With an end: ids of its records in the shard's `journal`, except those of this part."""
    end: Finish | Sleep | Expire | None = None
    notice: bytes = b""
    """Text for waiting callers: an attempt has failed."""


@dataclass(slots=True)
class Part:
    """One shard's share of a commit."""

    shard: Shard
    epoch: Epoch
    incarnation: str
    number: int
    progress: list[Progress]
    stray: list[str] = field(default_factory=list[str])
    """Ids in `events` of invocations that had finished."""


@dataclass(frozen=True, slots=True)
class Committed:
    """The part is durable; `first` is the stream id of its first journal record, if it has one."""

    first: str
    known: tuple[str, ...] = ()
    """Invocations that a send wanted to start anew, and that were known."""
    is_torn: bool = False
    """The store has lost some of the data that the part names. The rest was applied."""

    @classmethod
    def parse(cls, answer: str) -> "Committed":
        """Return the answer that a head keeps: both, with spaces between."""
        first, *known = answer.removeprefix("!").split(" ")
        return cls(first, tuple(known), answer.startswith("!"))


@dataclass(frozen=True, slots=True)
class Fenced:
    """Another host owns the shard, or this number is not the next: nothing was written."""

    head: str


@dataclass(frozen=True, slots=True)
class Damaged:
    """The store failed half way through the part: nobody may serve the shard until an operator has looked."""

    reason: str


Answer = Committed | Fenced | Damaged


@dataclass(frozen=True, slots=True)
class Granted:
    """The lease is ours, with a new epoch; `number` is that of the last commit, `clean` that it was handed over."""

    epoch: Epoch
    number: int
    clean: bool
    is_whole: bool = True
    """Whether nothing of the shard is known to be gone; else it is to be mended before it is recovered."""
    is_untimed: bool = False
    """Whether its timers are gone: mending sets those of delayed messages, and sends `RETIME` to begun invocations."""


@dataclass(frozen=True, slots=True)
class LeaseHeld:
    """Somebody else has the lease; its value changes with each renewal."""

    value: str


@dataclass(slots=True)
class Cursor:
    """How far a host has read a shard."""

    inbox: str
    events: str


NOTHING_READ: Mapping[Shard, Cursor] = MappingProxyType({})


@dataclass(slots=True)
class Arrivals:
    """The messages and events of a host's blocking read."""

    messages: list[tuple[Shard, str, bytes]] = field(default_factory=list[tuple[Shard, str, bytes]])
    """Shard, inbox id, message."""
    events: list[tuple[Shard, Event]] = field(default_factory=list[tuple[Shard, Event]])
    control: str = ""
    """The last id of the control stream, if there was something new."""
    unread: set[Shard] = field(default_factory=set[Shard])
    """Shards of whose events there may be more to read."""


@dataclass(slots=True)
class Dormant:
    """An invocation that has left memory once, as its hash holds it."""

    inbox_id: str
    message: bytes
    records: list[tuple[str, bytes]]
    """Stream id (its time) and record, in order."""
    paused: str


class Where(Enum):
    """Where an invocation is."""

    INBOX = "i"
    """It has not finished, and never left memory."""
    ASLEEP = "a"
    """It has not finished; its hash holds it."""
    GONE = ""
    """It has finished, or is not known."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """An object's state, and the invocation asleep that holds it."""

    fields: dict[str, bytes]
    held_by: str


@dataclass(frozen=True, slots=True)
class Trimmed:
    """How many finished invocations were forgotten, and whether the store is so full that some went early."""

    count: int
    is_full: bool


@dataclass(frozen=True, slots=True)
class Membership:
    """Hosts by incarnation (with their descriptions of themselves) and leases by shard, at one time."""

    hosts: dict[str, bytes]
    leases: list[str]
    now_ms: int
    """The store's time."""


class Store(Protocol):
    """Every durable transition, each in one round trip or a few.

    Raises, from any method:
        UnavailableError: the store does not answer, or takes no writes now; whether a write took effect is unknown.
        DamagedError: a script failed, because the data in the store is not as it ought to be.
    """

    async def aclose(self) -> None:
        """Close the connections; the store goes on."""
        ...

    async def open_namespace(self, limits: NamespaceLimits) -> NamespaceLimits:
        """Return the namespace's limits, and write these if it is new; from here on this connection goes by them.

        Raises:
            SettingsError: the store would lose data (promise 10), or the namespace has another format.
            DamagedError: its limits cannot be read.
        """
        ...

    async def check(self) -> None:
        """Ask whether the store still keeps what it acknowledges; until it does, `submit` and `commit` raise the same.

        Raises:
            UnavailableError: it could lose it (promise 10); the message says what to set.
        """
        ...

    async def now_ms(self) -> int:
        """Return the store's time."""
        ...

    def survey(self) -> Survey:
        """Return the reads of operators, on the same connections."""
        ...

    # Drivers

    async def open_writer(self) -> str:
        """Return a new writer with number 0 and an empty reply stream; both expire when silent for `session`."""
        ...

    async def close_writer(self, writer: str) -> None:
        """Forget a writer and its replies: its program has ended."""
        ...

    async def submit(
        self, writer: str, number: int, operations: Sequence[Outgoing | Attach | Bring], seen: str
    ) -> Settled | PartlyApplied:
        """Append messages and events, and attach, in order, as one numbered write; trim the replies before `seen`.

        The number of the last write again gets its answer again, changes nothing, and prolongs the writer's life.

        Raises:
            FullError: the store is full, and not all of these make room (`makes_room`): this write did nothing.
        """
        ...

    async def replies(self, writer: str, after: str, block_ms: int) -> list[Reply]:
        """Return the replies after an id, bounded as `arrivals`, waiting for the first one up to `block_ms`."""
        ...

    async def writer_status(self, writer: str) -> WriterStatus | None:
        """Return a writer's status; None if the store has forgotten it."""
        ...

    async def status(self, invocation: str) -> str:
        """Return where an invocation is: `open`, `asleep`, `paused: why`, `succeeded`, `failed`, or `` if unknown."""
        ...

    async def latest(self, shard: Shard, count: int) -> list[tuple[str, str, bytes]]:
        """Return the newest records of a shard's journal, newest first: stream id, invocation, record."""
        ...

    async def holder(self, invocation: str) -> str:
        """Return the holder of the key of an invocation in an inbox, if the holder has left memory; else empty."""
        ...

    async def outcome(self, invocation: str) -> bytes | None:
        """Return the outcome of an invocation, empty while it is open; None if it is not known."""
        ...

    # Hosts: ownership

    async def acquire(self, shard: Shard, incarnation: str, seen: str) -> Granted | LeaseHeld:
        """Take a lease that nobody has, or whose value is still `seen`; the epoch grows, and the past is fenced.

        Raises:
            DamagedError: a commit failed half way; nobody gets the shard until its head is mended.
        """
        ...

    async def renew(
        self, incarnation: str, owned: Mapping[Shard, Epoch], about: bytes, read: Mapping[Shard, Cursor] = NOTHING_READ
    ) -> dict[Shard, int]:
        """Renew leases and store this host's description; return the last commit's number of each shard that is still
        ours.

        For a shard of which the store has lost data, or ends before the last id that was read, it is `WENT_BACK`. Ends
        of streams are compared after each reconnect, since a store goes back when it starts again or another takes its
        place.
        """
        ...

    async def mend(self, shard: Shard, epoch: Epoch, incarnation: str) -> list[str]:
        """Find open and finished invocations in a torn shard; end the lost ones (`GONE`), and return their ids."""
        ...

    async def has_gone(self, shard: Shard, cursor: int) -> tuple[int, bool]:
        """Look through some open invocations; return where to go on (0: at the beginning), and whether one is gone."""
        ...

    async def lose(self) -> None:
        """Count a loss, so that every driver attaches anew to the invocations that it waits for."""
        ...

    async def release(self, incarnation: str, owned: Mapping[Shard, Epoch], *, leaving: bool) -> None:
        """Hand shards over: free their leases, mark them clean and wake the other hosts."""
        ...

    async def bury(self, incarnation: str) -> int:
        """Free all leases of a host that is known to be dead, wake the others, and return how many there were."""
        ...

    async def membership(self, shards: int = 0) -> Membership:
        """Return hosts, the leases of so many shards, and the store's time."""
        ...

    # Hosts: reading

    async def arrivals(self, cursors: Mapping[Shard, Cursor], control: str, block_ms: int, count: int) -> Arrivals:
        """Return the messages and events after the cursors, waiting up to `block_ms`.

        At most `count` of each stream, and no more after `READ_BYTES`, except the rest of a single write.
        """
        ...

    async def interrupt(self) -> None:
        """End a blocking read of this store object at once, or the next one if none is under way."""
        ...

    async def inbox(self, shard: Shard, after: str, count: int) -> list[tuple[str, bytes]]:
        """Return a page of a shard's messages: at most `count`, and no more after `READ_BYTES`."""
        ...

    async def events(self, shard: Shard, after: str, count: int) -> list[Event]:
        """Return a page of a shard's events, bounded as one of the inbox."""
        ...

    async def journal(self, shard: Shard, after: str, count: int) -> list[tuple[str, str, bytes]]:
        """Return a page of a shard's journal, bounded as one of the inbox: stream id, invocation, record."""
        ...

    async def messages(self, shard: Shard, ids: Sequence[str]) -> list[bytes | None]:
        """Return messages by inbox id, the first ones up to `READ_BYTES`; None for a message that is gone."""
        ...

    async def load(self, objects: Sequence[tuple[Shard, str]]) -> list[Loaded]:
        """Return the state of objects, of the first ones up to `READ_BYTES`, in one round trip."""
        ...

    async def where(self, invocations: Sequence[str]) -> list[Where]:
        """Return where invocations are, in one round trip."""
        ...

    async def dormant(self, invocations: Sequence[tuple[Shard, str]]) -> list[Dormant | None]:
        """Return invocations that have left memory once, None for others; the first up to `READ_BYTES`."""
        ...

    # Hosts: writing

    async def commit(self, parts: Sequence[Part]) -> list[Answer]:
        """Apply each part whose owner and number are right, each as a whole, and answer for each."""
        ...

    async def move_due(self, shard: Shard, epoch: Epoch, incarnation: str, count: int) -> tuple[int, int]:
        """Move up to `count` due timers into `events` or `inbox`; return how many, and the next due time (0: none).

        Fenced but not numbered: repeated, it moves what is still there.
        """
        ...

    async def trim(self, incarnation: str, owned: Mapping[Shard, Epoch], count: int) -> Trimmed:
        """Forget, of each of these shards, up to `count` finished invocations that count and time let go.

        Fenced but not numbered.
        """
        ...

    # Code

    async def put_code(self, digest: str, code: bytes, types: Sequence[str], *, instead_of: bytes = b"") -> None:
        """Keep code under its hash; it becomes current for its types if the hash is new.

        With `instead_of` it replaces the stored code, if that is the same, and changes nothing else.
        """
        ...

    async def code(self, digest: str) -> bytes | None:
        """Return the code with this hash."""
        ...

    async def current_code(self, type_name: str) -> str:
        """Return the hash of a type's current code, or `` if nobody has stored any."""
        ...
