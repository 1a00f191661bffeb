"""MemoryStore: the store in this process, for simulation and tests; it forgets everything with its last reference.

Owns the `Store` protocol over a `World`, on a clock that its maker owns. Several objects made by `connect` share one
namespace, as several processes share one server; they belong to one event loop.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar, cast

from journal.errors import DamagedError, FullError
from journal.ids import Epoch, Shard, new_id, shard_in
from journal.losses import WENT_BACK, WriterStatus
from journal.records import Event, EventKind, order_of, target_of
from journal.store import (
    NOTHING_READ,
    READ_BYTES,
    Answer,
    Arrivals,
    Attach,
    Bring,
    Cursor,
    Dormant,
    Granted,
    LeaseHeld,
    Loaded,
    Membership,
    NamespaceLimits,
    Outgoing,
    Part,
    PartlyApplied,
    Reply,
    Settled,
    Trimmed,
    Where,
    makes_room,
)

from .scripts import Head, ShardData, World, WriterData
from .survey import MemorySurvey

T = TypeVar("T")


class ReadBudget:
    """Bytes that one read may still bring."""

    def __init__(self) -> None:
        self._bytes = READ_BYTES

    def first(self, entries: Sequence[T]) -> list[T]:
        """Return the entries up to that which takes the last room."""
        out: list[T] = []
        for entry in entries:
            if self._bytes <= 0:
                break
            self._bytes -= _weight(entry)
            out.append(entry)
        return out


def _weight(value: Any) -> int:
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, Loaded):
        return sum(map(len, value.fields.values()))
    if isinstance(value, Dormant):
        return len(value.message) + _weight(value.records)
    return sum(map(_weight, cast("Sequence[Any]", value))) if isinstance(value, tuple | list) else 0


class MemoryStore:
    """One namespace in memory; see `Store` for what each method promises."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._world = World(clock, NamespaceLimits())
        self._interrupted = False
        self._beats = self._reads = 0

    def connect(self) -> "MemoryStore":
        """Return another connection to the same data."""
        other = MemoryStore(self._world.clock)
        other._world = self._world
        return other

    async def aclose(self) -> None:
        return

    async def open_namespace(self, limits: NamespaceLimits) -> NamespaceLimits:
        if not self._world.shards:
            self._world.limits, self._world.shards = limits, [ShardData() for _ in range(limits.shards)]
        return self._world.limits

    async def check(self) -> None:
        return

    async def now_ms(self) -> int:
        return self._world.clock()

    def survey(self) -> MemorySurvey:
        return MemorySurvey(lambda: self._world)

    # Drivers

    async def open_writer(self) -> str:
        writer, world = new_id(), self._world
        world.writers[writer] = WriterData(world.tick() + self._world.limits.session_ms)
        return writer

    async def close_writer(self, writer: str) -> None:
        self._world.writers.pop(writer, None)

    async def submit(
        self, writer: str, number: int, operations: Sequence[Outgoing | Attach | Bring], seen: str
    ) -> Settled | PartlyApplied:
        world = self._world
        now, known = world.tick(), world.writer(writer)
        if known is None or number not in (known.number, known.number + 1):
            return Settled.REFUSED
        if world.is_full and not all(map(makes_room, operations)):
            raise FullError("the store takes no writes: it is full")
        known.until = now + self._world.limits.session_ms
        if number == known.number + 1:
            overloaded: list[int] = []
            unknown: list[int] = []
            not_new: list[int] = []
            later: list[int] = []
            world.told = 0
            for place, operation in enumerate(operations):
                if world.told >= READ_BYTES and world.asks(operation):
                    later.append(place)
                elif isinstance(operation, Attach):
                    self._attach(operation, f"w:{writer}")
                elif isinstance(operation, Outgoing) and world.is_refused(operation):
                    not_new.append(place)
                elif not world.has_room(operation, world.limits.inbox_max):
                    overloaded.append(place)
                elif isinstance(operation, Bring):
                    if not world.bring(operation):
                        unknown.append(place)
                else:
                    world.accept(operation)
            known.replies.discard([id_ for id_ in known.replies.entries if seen and order_of(id_) < order_of(seen)])
            missed = PartlyApplied(tuple(overloaded), tuple(unknown), tuple(not_new), tuple(later))
            known.number, known.answer = number, Settled.APPLIED if missed == PartlyApplied() else missed
            world.wake()
        return known.answer

    def _attach(self, operation: Attach, teller: str) -> None:
        if not self._world.attach(self._world.shard(operation.shard), operation.invocation, teller):
            self._world.tell(teller, operation.invocation, b"U", EventKind.REPLY)

    async def replies(self, writer: str, after: str, block_ms: int) -> list[Reply]:
        def read() -> list[Reply]:
            self._world.tick()
            known = self._world.writer(writer)
            found = ReadBudget().first(known.replies.after(after, 1000)) if known else []
            return [Reply(id_, *entry) for id_, entry in found]

        return await self._blocking(read, block_ms)

    async def writer_status(self, writer: str) -> WriterStatus | None:
        self._world.tick()
        known = self._world.writer(writer)
        return None if known is None else WriterStatus(known.number, known.replies.last, str(self._world.losses))

    async def status(self, invocation: str) -> str:
        shard = self._world.shard(shard_in(invocation))
        place = shard.ids.get(invocation)
        if place is None:
            return ""
        if place.kind == "i":
            return "open"
        if place.kind == "a":
            paused = shard.asleep[invocation].paused
            return f"paused: {paused}" if paused else "open" if invocation in shard.resumed else "asleep"
        outcome = shard.outcome(invocation, place)
        return "" if outcome is None else "succeeded" if outcome[:1] == b"V" else "failed"

    async def latest(self, shard: Shard, count: int) -> list[tuple[str, str, bytes]]:
        entries = self._world.shard(shard).journal.entries
        return [(id_, *entries[id_]) for id_ in list(entries)[: -count - 1 : -1]]

    async def holder(self, invocation: str) -> str:
        shard = self._world.shard(shard_in(invocation))
        place = shard.ids.get(invocation)
        message = shard.inbox.entries.get(place.id) if place is not None and place.kind == "i" else None
        return shard.held.get(target_of(message), "")

    async def outcome(self, invocation: str) -> bytes | None:
        shard = self._world.shard(shard_in(invocation))
        place = shard.ids.get(invocation)
        return None if place is None else b"" if place.is_open else shard.outcome(invocation, place)

    async def _blocking(self, read: Callable[[], T], block_ms: int) -> T:
        found = read()
        if found or self._interrupted:
            self._interrupted = False
            return found
        try:
            async with asyncio.timeout(block_ms / 1000):
                while not found and not self._interrupted:
                    await self._world.changed.wait()
                    found = read()
        except TimeoutError:
            pass
        self._interrupted = False
        return found

    # Hosts: ownership

    async def acquire(self, shard: Shard, incarnation: str, seen: str) -> Granted | LeaseHeld:
        target = self._world.shards[shard]
        if target.lease and target.lease != seen:
            return LeaseHeld(target.lease)
        head = target.head
        if head.damage:
            raise DamagedError(f"shard {shard}: {head}; nobody serves it until its head is mended")
        if not target.is_timed:
            target.is_timed = target.is_torn = target.is_untimed = True
        target.head = Head(max(head.epoch + 1, self._world.tick()), incarnation, head.number)
        target.lease = f"{incarnation} {target.head.epoch} 0"
        return Granted(
            Epoch(target.head.epoch), head.number, head.incarnation == "-", not target.is_torn, target.is_untimed
        )

    def _owned(self, shard: Shard, epoch: Epoch, incarnation: str) -> ShardData | None:
        target = self._world.shard(shard)
        return target if target.head.is_of(epoch, incarnation) else None

    async def renew(
        self, incarnation: str, owned: Mapping[Shard, Epoch], about: bytes, read: Mapping[Shard, Cursor] = NOTHING_READ
    ) -> dict[Shard, int]:
        self._beats += 1
        self._world.hosts[incarnation] = b"%d %s" % (self._beats, about)
        numbers: dict[Shard, int] = {}
        for shard, epoch in owned.items():
            target = self._owned(shard, epoch, incarnation)
            if target is not None:
                target.lease = f"{incarnation} {epoch} {self._beats}"
                cursor = read.get(shard)
                is_behind = not target.is_timed or (cursor is not None and target.ends_before(cursor))
                target.is_torn = target.is_torn or is_behind
                numbers[shard] = WENT_BACK if is_behind else target.head.number
            elif self._world.shard(shard).head.epoch < epoch:
                numbers[shard] = WENT_BACK
        return numbers

    async def mend(self, shard: Shard, epoch: Epoch, incarnation: str) -> list[str]:
        target = self._owned(shard, epoch, incarnation)
        return [] if target is None else self._world.mend(target)

    async def has_gone(self, shard: Shard, cursor: int) -> tuple[int, bool]:
        source = self._world.shard(shard)
        return 0, any(place.kind == "a" and id_ not in source.asleep for id_, place in source.ids.items())

    async def lose(self) -> None:
        self._world.losses += 1

    async def release(self, incarnation: str, owned: Mapping[Shard, Epoch], *, leaving: bool) -> None:
        for shard, epoch in owned.items():
            target = self._owned(shard, epoch, incarnation)
            if target is not None:
                target.head = Head(epoch, "-", target.head.number)
                target.lease = ""
        if leaving:
            self._world.hosts.pop(incarnation, None)
        self._world.control.add(self._world.tick(), incarnation)
        self._world.wake()

    async def bury(self, incarnation: str) -> int:
        freed = [shard for shard in self._world.shards if shard.lease.startswith(f"{incarnation} ")]
        for shard in freed:
            shard.lease = ""
        self._world.hosts.pop(incarnation, None)
        self._world.control.add(self._world.tick(), incarnation)
        self._world.wake()
        return len(freed)

    async def membership(self, shards: int = 0) -> Membership:
        leases = [shard.lease for shard in self._world.shards[:shards]]
        return Membership(dict(self._world.hosts), leases, self._world.clock())

    # Hosts: reading

    async def arrivals(self, cursors: Mapping[Shard, Cursor], control: str, block_ms: int, count: int) -> Arrivals:
        control = self._world.control.last if control == "$" else control

        def read() -> Arrivals | None:
            arrivals, room = Arrivals(), ReadBudget()
            self._reads += 1
            turn = self._reads % max(len(cursors), 1)
            for shard, cursor in [*cursors.items()][turn:] + [*cursors.items()][:turn]:
                source = self._world.shard(shard)
                events = room.first(source.events.after(cursor.events, count))
                arrivals.events += [(shard, Event(id_, *entry)) for id_, entry in events]
                messages = room.first(source.inbox.after(cursor.inbox, count))
                arrivals.messages += [(shard, id_, data) for id_, data in messages]
                if len(events) >= count:
                    arrivals.unread.add(shard)
            news = self._world.control.after(control, count)
            arrivals.control = news[-1][0] if news else ""
            return arrivals if arrivals.messages or arrivals.events or news else None

        return await self._blocking(read, block_ms) or Arrivals()

    async def interrupt(self) -> None:
        self._interrupted = True
        self._world.wake()

    async def inbox(self, shard: Shard, after: str, count: int) -> list[tuple[str, bytes]]:
        return ReadBudget().first(self._world.shard(shard).inbox.after(after, count))

    async def events(self, shard: Shard, after: str, count: int) -> list[Event]:
        return [
            Event(id_, *entry) for id_, entry in ReadBudget().first(self._world.shard(shard).events.after(after, count))
        ]

    async def journal(self, shard: Shard, after: str, count: int) -> list[tuple[str, str, bytes]]:
        return [
            (id_, *entry) for id_, entry in ReadBudget().first(self._world.shard(shard).journal.after(after, count))
        ]

    async def messages(self, shard: Shard, ids: Sequence[str]) -> list[bytes | None]:
        return ReadBudget().first([self._world.shard(shard).inbox.entries.get(id_) for id_ in ids])

    async def load(self, objects: Sequence[tuple[Shard, str]]) -> list[Loaded]:
        found = [(self._world.shard(shard), target) for shard, target in objects]
        loaded = [Loaded(dict(shard.state.get(target, {})), shard.held.get(target, "")) for shard, target in found]
        return ReadBudget().first(loaded)

    async def where(self, invocations: Sequence[str]) -> list[Where]:
        places = [self._world.shard(shard_in(invocation)).ids.get(invocation) for invocation in invocations]
        return [Where(place.kind) if place is not None and place.is_open else Where.GONE for place in places]

    async def dormant(self, invocations: Sequence[tuple[Shard, str]]) -> list[Dormant | None]:
        found = [self._world.shard(shard).asleep.get(invocation) for shard, invocation in invocations]
        return ReadBudget().first([d and Dormant(d.inbox_id, d.message, list(d.records), d.paused) for d in found])

    # Hosts: writing

    async def commit(self, parts: Sequence[Part]) -> list[Answer]:
        self._world.tick()
        answers = [self._world.commit(part) for part in parts]
        self._world.wake()
        return answers

    async def move_due(self, shard: Shard, epoch: Epoch, incarnation: str, count: int) -> tuple[int, int]:
        target = self._owned(shard, epoch, incarnation)
        if target is None:
            return -1, 0
        self._world.tick()
        moved, following = self._world.move_due(target, count)
        if moved:
            self._world.wake()
        return moved, following

    async def trim(self, incarnation: str, owned: Mapping[Shard, Epoch], count: int) -> Trimmed:
        self._world.tick()
        found = [self._owned(shard, epoch, incarnation) for shard, epoch in owned.items()]
        forgotten = sum(self._world.trim(shard, count) for shard in found if shard is not None)
        return Trimmed(forgotten, self._world.is_full)

    # Code

    async def put_code(self, digest: str, code: bytes, types: Sequence[str], *, instead_of: bytes = b"") -> None:
        if instead_of and self._world.code.get(digest) == instead_of:
            self._world.code[digest] = code
        elif digest not in self._world.code:
            self._world.code[digest] = code
            self._world.current.update(dict.fromkeys(types, digest))

    async def code(self, digest: str) -> bytes | None:
        return self._world.code.get(digest)

    async def current_code(self, type_name: str) -> str:
        return self._world.current.get(type_name, "")
