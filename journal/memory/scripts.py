"""World: a server's data in this process, and the scripts' transitions of it.

Owns the data behind every `MemoryStore` of one namespace, and a faithful copy of the scripts in plain Python: the same
places, the same order of effects, the same answers. Whatever differs is a bug in one of the two; the contract suite and
a random comparison (tests/test_store*.py) look for it.

Invariants:
    1. A transition happens at one instant: `now` is read once, as a script reads its server's time once.
    2. Ids of a stream only grow; those of one commit's records follow each other.
"""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

from journal.ids import shard_in
from journal.losses import GONE
from journal.records import EventKind, Message, order_of, timer_of, timer_of_field, timer_of_object
from journal.store import (
    INBOX_FULL,
    Answer,
    Attach,
    Bring,
    Committed,
    Cursor,
    Damaged,
    Dormant,
    Expire,
    Fenced,
    Finish,
    Leaving,
    NamespaceLimits,
    Outgoing,
    Part,
    PartlyApplied,
    Progress,
    Settled,
    Sleep,
)

T = TypeVar("T")


class Stream(Generic[T]):
    """Entries by id, in order; an id is never given twice."""

    def __init__(self) -> None:
        self.entries: dict[str, T] = {}
        self._last: tuple[int, int] = (0, 0)
        self.last = "0-0"
        """The id given last."""

    def add(self, now: int, entry: T) -> str:
        """Append an entry and return its id."""
        ms, sequence = self._last
        self._last = (now, 0) if now > ms else (ms, sequence + 1)
        self.last = f"{self._last[0]}-{self._last[1]}"
        self.entries[self.last] = entry
        return self.last

    def after(self, id_: str, count: int) -> list[tuple[str, T]]:
        """Return up to `count` entries after an id; `` is before the first."""
        if id_ == self.last or not self.entries:
            return []
        floor: tuple[int, int] = order_of(id_) if id_ else (-1, 0)
        if floor >= self._last:
            return []
        return list(islice(((key, entry) for key, entry in self.entries.items() if order_of(key) > floor), count))

    def discard(self, ids: Iterable[str]) -> None:
        """Remove entries, if they are there."""
        for id_ in ids:
            self.entries.pop(id_, None)


@dataclass(slots=True)
class Head:
    """A shard's epoch, its owner's incarnation, and the number and answer of its last commit."""

    epoch: int = 0
    incarnation: str = "-"
    number: int = 0
    answer: str = ""
    damage: str = ""
    """Why nobody may own the shard any more; empty if all is well."""

    def __str__(self) -> str:
        head = f"{self.epoch} {self.incarnation} {self.number} {self.answer}"
        return f"damaged {self.damage} ({head})" if self.damage else head

    def is_of(self, epoch: int, incarnation: str) -> bool:
        """Whether this is the owner."""
        return not self.damage and (self.epoch, self.incarnation) == (epoch, incarnation)


@dataclass(slots=True)
class IdEntry:
    """An entry of `ids`: in the inbox (`i`), asleep (`a`), finished (`d`), or finished and kept (`o`)."""

    kind: str
    id: str
    tellers: list[str]

    @property
    def is_open(self) -> bool:
        """Whether the invocation has not finished."""
        return self.kind in "ia"


class ShardData:
    """The data of one shard."""

    def __init__(self) -> None:
        self.inbox: Stream[bytes] = Stream()
        self.events: Stream[tuple[str, EventKind, int, bytes]] = Stream()
        self.journal: Stream[tuple[str, bytes]] = Stream()
        self.done: Stream[tuple[str, bytes, bytes]] = Stream()
        self.asleep: dict[str, Dormant] = {}
        self.resumed: set[str] = set()
        self.held: dict[str, str] = {}
        self.ids: dict[str, IdEntry] = {}
        self.state: dict[str, dict[str, bytes]] = {}
        self.timers: dict[str, int] = {}
        self.outcomes: dict[str, bytes] = {}
        self.digests: dict[str, str] = {}
        self.forget: dict[str, int] = {}
        self.head = Head()
        self.lease = ""
        self.is_torn = False
        """Whether something that `ids` names is known to be gone."""
        self.is_timed = True
        """Whether its timers are there: tests take them away."""
        self.is_untimed = False
        """Whether its timers are known to be gone."""

    def ends_before(self, read: Cursor) -> bool:
        """Whether a stream ends before the last id that was read of it."""
        pairs = ((self.inbox, read.inbox), (self.events, read.events))
        return any(order_of(stream.last) < order_of(id_) for stream, id_ in pairs)

    def outcome(self, invocation: str, place: IdEntry) -> bytes | None:
        """Return the outcome of a finished invocation, if it is still there."""
        if place.kind == "o":
            return self.outcomes.get(invocation)
        entry = self.done.entries.get(place.id)
        return entry and entry[1]


@dataclass(slots=True)
class WriterData:
    """A driver's last number with its answer, and its replies, until it has been silent for too long."""

    until: int
    number: int = 0
    answer: Settled | PartlyApplied = Settled.APPLIED
    replies: Stream[tuple[str, bytes]] = field(default_factory=Stream[tuple[str, bytes]])


class World:
    """One namespace, shared by every connection to it."""

    def __init__(self, clock: Callable[[], int], limits: NamespaceLimits) -> None:
        self.clock, self.limits = clock, limits
        self.now = 0
        self.shards: list[ShardData] = []
        self.writers: dict[str, WriterData] = {}
        self.hosts: dict[str, bytes] = {}
        self.control: Stream[str] = Stream()
        self.code: dict[str, bytes] = {}
        self.current: dict[str, str] = {}
        self.losses = 0
        self.changed = asyncio.Event()
        self.is_full = False
        """Whether there is no memory left: set by tests."""
        self.told = 0
        """Bytes sent to drivers since a write began."""
        self._is_torn = False
        """Whether the part that is being applied names data that is gone."""
        self._known: list[str] = []
        """Invocations that sends of the part that is being applied wanted to start, and that were known."""

    def wake(self) -> None:
        """Let every blocking read look again."""
        self.changed.set()
        self.changed = asyncio.Event()

    def tick(self) -> int:
        """Begin a transition: read the time, once."""
        self.now = self.clock()
        return self.now

    def shard(self, number: int) -> ShardData:
        """Return a shard; a shard without data is empty, as it is on a server."""
        return self.shards[number] if number < len(self.shards) else ShardData()

    def writer(self, writer: str) -> WriterData | None:
        """Return a driver that has not been silent for too long."""
        known = self.writers.get(writer)
        if known is not None and known.until <= self.now:
            known = self.writers.pop(writer) and None
        return known

    # As `tell.lua`

    def tell(self, teller: str, invocation: str, payload: bytes, kind: EventKind) -> None:
        """Tell a driver, or an open invocation, about an invocation that it waits for."""
        if teller.startswith("w:"):
            writer = self.writer(teller[2:])
            if writer is not None:
                writer.replies.add(self.now, (invocation, payload))
                self.told += len(payload)
            return
        waiting, _, index = teller[2:].rpartition(":")
        self.bring(Bring(shard_in(waiting), waiting, kind, int(index), payload))

    def bring(self, event: Bring) -> bool:
        """Bring an event to an invocation, if it is open; return whether it is known."""
        shard = self.shard(event.shard)
        place = shard.ids.get(event.invocation)
        if place is not None and place.is_open:
            shard.events.add(self.now, (event.invocation, event.kind, event.index, event.data))
        return place is not None

    def attach(self, shard: ShardData, invocation: str, teller: str) -> bool:
        """Add a teller to a known invocation, or tell it the outcome; return whether it is known."""
        place = shard.ids.get(invocation)
        if place is None:
            return False
        if not teller:
            return True
        if place.is_open:
            if teller not in place.tellers:
                place.tellers.append(teller)
        else:
            self.tell(teller, invocation, shard.outcome(invocation, place) or b"U", EventKind.REPLY)
        return True

    def has_room(self, operation: Outgoing | Bring, limit: int) -> bool:
        """Whether a message or an event finds room in its stream, or needs none."""
        shard = self.shard(operation.shard)
        if isinstance(operation, Bring):
            return len(shard.events.entries) < limit
        return operation.invocation in shard.ids or len(shard.inbox.entries) < limit

    def is_refused(self, message: Outgoing) -> bool:
        """Whether a message must be of a new invocation, or of the same request, and is not."""
        shard = self.shard(message.shard)
        if message.refusal is None or message.invocation not in shard.ids:
            return False
        kept = shard.digests.get(message.invocation)
        is_same = message.is_trusted if kept is None else message.digest == kept
        return not (message.digest and is_same)

    def asks(self, operation: Outgoing | Attach | Bring) -> bool:
        """Whether an operation may ask for an outcome, and nothing else."""
        if isinstance(operation, Attach):
            return True
        is_message = isinstance(operation, Outgoing) and not self.is_refused(operation)
        return is_message and operation.invocation in self.shard(operation.shard).ids

    def accept(self, message: Outgoing) -> None:
        """Put a message into its inbox, or attach to the invocation if it is known."""
        shard = self.shard(message.shard)
        if not self.attach(shard, message.invocation, message.caller):
            id_ = shard.inbox.add(self.now, message.data)
            shard.ids[message.invocation] = IdEntry("i", id_, [message.caller] if message.caller else [])
            if message.digest:
                shard.digests[message.invocation] = message.digest

    # As `commit.lua`

    def commit(self, part: Part) -> Answer:
        """Apply a part if its owner and number are right."""
        shard = self.shard(part.shard)
        head = shard.head
        if not head.is_of(part.epoch, part.incarnation) or part.number not in (head.number, head.number + 1):
            return Fenced(str(head))
        if part.number == head.number:
            return Committed.parse(head.answer)
        try:
            first = self._apply_part(shard, part)
        except LookupError as error:
            head.damage = repr(error)
            return Damaged(head.damage)
        shard.is_torn = shard.is_torn or self._is_torn
        head.number, head.answer = part.number, ("!" if self._is_torn else "") + " ".join([first, *self._known])
        return Committed.parse(head.answer)

    def _apply_part(self, shard: ShardData, part: Part) -> str:
        first, written = "", dict[str, list[str]]()
        self._known.clear()
        self._is_torn = False
        for progress in part.progress:
            added = self._apply(shard, progress, written)
            first = first or added
        shard.events.discard(part.stray)
        added = sum(isinstance(progress.end, Finish) for progress in part.progress)
        self._forget(shard, 2 * added, self.limits.retention_ms())
        return first

    def _apply(self, shard: ShardData, progress: Progress, written: dict[str, list[str]]) -> str:
        added = ""
        if progress.record:
            added = shard.journal.add(self.now, (progress.invocation, progress.record))
            written.setdefault(progress.invocation, []).append(added)
        shard.events.discard(progress.events)
        if progress.writes or progress.clears:
            fields = shard.state.setdefault(progress.target, {})
            fields.update(progress.writes)
            for name in progress.clears:
                fields.pop(name, None)
        for due_ms, member in progress.timers:
            shard.timers[member] = due_ms
        for member in progress.untimers:
            shard.timers.pop(member, None)
        if not isinstance(progress.end, Expire) or self._expire(shard, progress.target, progress.end.field):
            for message in progress.messages:
                self._send(message)
        if progress.notice:
            self._notify(shard, progress.invocation, progress.notice)
        if progress.end is not None:
            journal = [*progress.journal, *written.pop(progress.invocation, [])]
            if isinstance(progress.end, Finish):
                self._finish(shard, progress, progress.end, journal)
            elif isinstance(progress.end, Sleep):
                self._lay_to_sleep(shard, progress, progress.end, journal)
        return added

    def _send(self, message: Leaving) -> None:
        # A send has nobody who could be told that there is no room, so only calls are refused.
        if isinstance(message, Bring):
            self.bring(message)
        elif isinstance(message, Attach):
            if not self.attach(self.shard(message.shard), message.invocation, message.caller):
                self.tell(message.caller, message.invocation, message.data, EventKind.REPLY)
        elif self.is_refused(message):
            if message.caller:
                self.tell(message.caller, message.invocation, message.refusal or b"", EventKind.REPLY)
            else:
                self._known.append(message.invocation)
        elif message.caller and not self.has_room(message, self.limits.inbox_max * 10):
            self.tell(message.caller, message.invocation, INBOX_FULL, EventKind.REPLY)
        else:
            self.accept(message)

    def _notify(self, shard: ShardData, invocation: str, notice: bytes) -> None:
        place = shard.ids.get(invocation)
        for teller in place.tellers if place and place.is_open else ():
            self.tell(teller, invocation, (b"N" if teller.startswith("w:") else b"") + notice, EventKind.NOTICE)

    def _finish(self, shard: ShardData, progress: Progress, end: Finish, journal: Sequence[str]) -> None:
        invocation = progress.invocation
        place = shard.ids.get(invocation)
        self._is_torn = self._is_torn or place is None
        for teller in place.tellers if place else ():
            self.tell(teller, invocation, end.outcome, EventKind.REPLY)
        if progress.asleep:
            shard.asleep.pop(invocation, None)
            shard.resumed.discard(invocation)
            if shard.held.get(progress.target) == invocation:
                del shard.held[progress.target]
        else:
            shard.inbox.discard([progress.inbox_id])
        shard.journal.discard(journal)
        id_ = shard.done.add(self.now, (invocation, b"" if end.keep_ms else end.outcome, end.summary))
        shard.ids[invocation] = IdEntry("o" if end.keep_ms else "d", id_, [])
        if end.keep_ms:
            shard.outcomes[invocation] = end.outcome
            shard.forget[invocation] = self.now + end.keep_ms

    def _lay_to_sleep(self, shard: ShardData, progress: Progress, end: Sleep, journal: Sequence[str]) -> None:
        invocation = progress.invocation
        if not progress.asleep:
            message = shard.inbox.entries.pop(progress.inbox_id, None)
            if message is None:
                self._is_torn = True
                return
            shard.asleep[invocation] = Dormant(progress.inbox_id, message, [], "")
            self._is_torn = self._is_torn or invocation not in shard.ids
            shard.ids.setdefault(invocation, IdEntry("a", progress.inbox_id, [])).kind = "a"
            if end.holds:
                shard.held[progress.target] = invocation
        dormant = shard.asleep.get(invocation)
        if dormant is None:
            self._is_torn = True
            return
        found = {id_: shard.journal.entries.pop(id_, None) for id_ in journal}
        self._is_torn = self._is_torn or None in found.values()
        records = dict(dormant.records) | {id_: entry[1] for id_, entry in found.items() if entry is not None}
        dormant.records = sorted(records.items(), key=lambda record: order_of(record[0]))
        dormant.paused = end.paused
        (shard.resumed.add if end.resumed else shard.resumed.discard)(invocation)

    def _expire(self, shard: ShardData, target: str, field: str) -> bool:
        timer = timer_of_field(target, field) if field else timer_of_object(target)
        if timer in shard.timers:
            return False
        fields = shard.state.get(target, {})
        for name in [field] if field else list(fields):
            fields.pop(name, None)
            shard.timers.pop(timer_of_field(target, name), None)
        if not fields:
            shard.timers.pop(timer_of_object(target), None)
        return True

    # As `forget.lua` and `trim.lua`

    def trim(self, shard: ShardData, count: int) -> int:
        """Forget finished invocations beyond count and time, at most `count` of each kind; return how many."""
        return self._forget(shard, count, self.limits.retention_ms(is_full=self.is_full))

    def _forget(self, shard: ShardData, most: int, retention_ms: int) -> int:
        excess, old, forgotten = len(shard.done.entries) - self.limits.done_max, self.now - retention_ms, 0
        for place, (id_, (invocation, *_)) in enumerate(list(islice(shard.done.entries.items(), most))):
            if place >= excess and order_of(id_)[0] > old:
                break
            del shard.done.entries[id_]
            forgotten += 1
            where = shard.ids.get(invocation)
            if where is not None and where.kind == "d" and where.id == id_:
                del shard.ids[invocation]
        due = sorted((until, invocation) for invocation, until in shard.forget.items() if until <= self.now)
        for _, invocation in due[:most]:
            del shard.outcomes[invocation], shard.forget[invocation]
            shard.ids.pop(invocation, None)
            shard.digests.pop(invocation, None)
        return forgotten + len(due[:most])

    # As `mend.lua`

    def mend(self, shard: ShardData) -> list[str]:
        """Make `ids` anew from the data that is there; end the invocations in it that are gone, and return them."""
        if shard.is_untimed:
            self._set_again(shard)
        there = [(data, "i", id_) for id_, data in shard.inbox.entries.items()]
        there += [(dormant.message, "a", dormant.inbox_id) for dormant in shard.asleep.values()]
        for data, kind, id_ in there:
            message = Message.parse(data)
            shard.ids.setdefault(message.id, IdEntry(kind, id_, [message.caller] if message.caller else []))
        for id_, (invocation, outcome, _) in shard.done.entries.items():
            if outcome:
                shard.ids.setdefault(invocation, IdEntry("d", id_, []))
        for invocation in shard.outcomes:
            shard.ids.setdefault(invocation, IdEntry("o", "", []))
        lost = [
            invocation
            for invocation, place in shard.ids.items()
            if (place.kind == "i" and place.id not in shard.inbox.entries)
            or (place.kind == "a" and invocation not in shard.asleep)
        ]
        for invocation in lost:
            for teller in shard.ids.pop(invocation).tellers:
                self.tell(teller, invocation, GONE, EventKind.REPLY)
        for target, invocation in list(shard.held.items()):
            if invocation not in shard.ids:
                del shard.held[target]
        shard.is_torn = shard.is_untimed = False
        self.wake()
        return lost

    def _set_again(self, shard: ShardData) -> None:
        begun = dict.fromkeys(invocation for invocation, _ in shard.journal.entries.values())
        for invocation, dormant in shard.asleep.items():
            due_ms = Message.parse(dormant.message).due_ms
            if due_ms and not (dormant.records or dormant.paused):
                shard.timers.setdefault(timer_of("0" * 20, invocation, "d"), due_ms)
            else:
                begun[invocation] = None
        for invocation in begun:
            self.bring(Bring(shard_in(invocation), invocation, EventKind.RETIME, 0, b""))

    # As `move_due.lua`

    def move_due(self, shard: ShardData, count: int) -> tuple[int, int]:
        """Move due timers; return how many, and when the next one is due."""
        due = sorted((due_ms, member) for member, due_ms in shard.timers.items() if due_ms <= self.now)[:count]
        for _, member in due:
            del shard.timers[member]
            self._wake(shard, member)
        return len(due), min(shard.timers.values(), default=0)

    def _wake(self, shard: ShardData, member: str) -> None:
        _, _, rest = member.partition(":")
        invocation, _, what = rest.rpartition(":")
        if what in ("e", "f"):
            target, _, field = invocation.rpartition("\0") if what == "f" else (invocation, "", "")
            shard.events.add(self.now, (target, EventKind.EXPIRE, 0, field.encode("utf-8", "surrogatepass")))
            return
        place = shard.ids.get(invocation)
        if place is None or not place.is_open:
            return
        if what == "d":
            if place.kind == "a" and not (shard.asleep[invocation].records or shard.asleep[invocation].paused):
                place.kind, place.id = "i", shard.inbox.add(self.now, shard.asleep.pop(invocation).message)
            return
        kind = EventKind.ATTEMPT if what == "a" else EventKind.TIMER
        shard.events.add(self.now, (invocation, kind, 0 if what == "a" else int(what), b""))
