"""MemoryStore: the store in this process, for simulation and tests; it forgets everything with its last reference.

Owns a faithful copy of what the scripts do, in plain Python and on a clock that its maker owns. Several `MemoryStore`
objects made by `connect` share one namespace, as several processes share one server.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Generic, TypeVar

from .entries import Event, EventKind, Failure, failure, order_of
from .names import Epoch, Shard, new_id, shard_in
from .store import (
    SHARDS,
    Answer,
    Arrivals,
    Attach,
    Committed,
    Cursor,
    Dormant,
    Fenced,
    Finish,
    Granted,
    Held,
    Limits,
    Loaded,
    Look,
    Outgoing,
    Part,
    Progress,
    Reply,
    Settled,
    Sleep,
)

_FULL = failure(
    Failure(503, "the inbox of the called object's shard is full: its hosts do not keep up", {}, "OverloadedError")
)
T = TypeVar("T")


class _Stream(Generic[T]):
    """Entries by id, in order; an id is never given twice."""

    def __init__(self) -> None:
        self.entries: dict[str, T] = {}
        self._last = (0, 0)

    def add(self, now: int, entry: T) -> str:
        ms, sequence = self._last
        self._last = (now, 0) if now > ms else (ms, sequence + 1)
        id_ = f"{self._last[0]}-{self._last[1]}"
        self.entries[id_] = entry
        return id_

    def after(self, id_: str, count: int) -> list[tuple[str, T]]:
        floor = order_of(id_) if id_ else (-1, 0)
        if floor >= self._last:
            return []
        return list(islice(((key, entry) for key, entry in self.entries.items() if order_of(key) > floor), count))


@dataclass(slots=True)
class _Head:
    epoch: int = 0
    incarnation: str = "-"
    number: int = 0
    answer: str = ""

    def __str__(self) -> str:
        return f"{self.epoch} {self.incarnation} {self.number} {self.answer}"


@dataclass(slots=True)
class _Place:
    """An entry of `ids`: open, asleep, or finished (`done` id, or kept in `outcomes`)."""

    kind: str
    id: str
    tellers: list[str]

    @property
    def is_open(self) -> bool:
        return self.kind in "ia"


class _Shard:
    def __init__(self) -> None:
        self.inbox: _Stream[bytes] = _Stream()
        self.events: _Stream[tuple[str, EventKind, int, bytes]] = _Stream()
        self.journal: _Stream[tuple[str, bytes]] = _Stream()
        self.done: _Stream[tuple[str, bytes]] = _Stream()
        self.asleep: dict[str, Dormant] = {}
        self.held: dict[str, str] = {}
        self.ids: dict[str, _Place] = {}
        self.state: dict[str, dict[str, bytes]] = {}
        self.timers: dict[str, int] = {}
        self.outcomes: dict[str, bytes] = {}
        self.forget: dict[str, int] = {}
        self.head = _Head()
        self.lease = ""


@dataclass(slots=True)
class _Writer:
    number: int = 0
    replies: _Stream[list[tuple[str, bytes]]] = field(default_factory=_Stream[list[tuple[str, bytes]]])


class _World:
    """What a server would hold."""

    def __init__(self, clock: Callable[[], int], limits: Limits) -> None:
        self.clock, self.limits = clock, limits
        self.shards: list[_Shard] = []
        self.writers: dict[str, _Writer] = {}
        self.hosts: dict[str, bytes] = {}
        self.control: _Stream[str] = _Stream()
        self.code: dict[str, bytes] = {}
        self.current: dict[str, str] = {}
        self.changed = asyncio.Event()

    def wake(self) -> None:
        """Let every blocking read look again."""
        self.changed.set()
        self.changed = asyncio.Event()

    # What `tell.lua` does

    def tell(self, teller: str, invocation: str, payload: bytes, kind: EventKind) -> None:
        if teller.startswith("w:"):
            writer = self.writers.get(teller[2:])
            if writer is not None:
                writer.replies.add(self.clock(), [(invocation, payload)])
            return
        waiting, _, index = teller[2:].rpartition(":")
        shard = self.shards[shard_in(waiting)]
        place = shard.ids.get(waiting)
        if place is not None and place.is_open:
            shard.events.add(self.clock(), (waiting, kind, int(index), payload))

    def attach(self, shard: _Shard, invocation: str, teller: str) -> bool:
        place = shard.ids.get(invocation)
        if place is None:
            return False
        if not teller:
            return True
        if place.is_open:
            if teller not in place.tellers:
                place.tellers.append(teller)
        else:
            self.tell(teller, invocation, self.outcome(shard, invocation, place) or b"U", EventKind.REPLY)
        return True

    def outcome(self, shard: _Shard, invocation: str, place: _Place) -> bytes | None:
        if place.kind == "o":
            return shard.outcomes.get(invocation)
        entry = shard.done.entries.get(place.id)
        return entry and entry[1]

    def accept(self, message: Outgoing, limit: int, refusal: bytes) -> None:
        shard = self.shards[message.shard]
        if self.attach(shard, message.invocation, message.caller):
            return
        if len(shard.inbox.entries) >= limit and (message.caller or refusal == b"O"):
            if message.caller:
                self.tell(message.caller, message.invocation, refusal, EventKind.REPLY)
            return
        id_ = shard.inbox.add(self.clock(), message.data)
        shard.ids[message.invocation] = _Place("i", id_, [message.caller] if message.caller else [])


class MemoryStore:
    """One namespace in memory; see `Store` for what each method promises."""

    def __init__(self, clock: Callable[[], int], *, limits: Limits | None = None) -> None:
        self._world = _World(clock, limits or Limits())
        self._interrupted = False
        self._beats = 0

    def connect(self) -> "MemoryStore":
        """Return another connection to the same data."""
        other = MemoryStore.__new__(MemoryStore)
        other._world, other._interrupted, other._beats = self._world, False, 0
        return other

    async def aclose(self) -> None:
        return

    async def open_namespace(self, shards: int = SHARDS) -> int:
        if not self._world.shards:
            self._world.shards = [_Shard() for _ in range(shards)]
        return len(self._world.shards)

    async def now_ms(self) -> int:
        return self._world.clock()

    # Drivers

    async def open_writer(self) -> str:
        writer = new_id()
        self._world.writers[writer] = _Writer()
        return writer

    async def submit(self, writer: str, number: int, operations: Sequence[Outgoing | Attach], seen: str) -> Settled:
        world, known = self._world, self._world.writers.get(writer)
        if known is None or number not in (known.number, known.number + 1):
            return Settled.REFUSED
        if number == known.number:
            return Settled.APPLIED
        known.number = number
        for operation in operations:
            if isinstance(operation, Outgoing):
                world.accept(operation, world.limits.inbox_max, b"O")
            elif not world.attach(world.shards[operation.shard], operation.invocation, f"w:{writer}"):
                world.tell(f"w:{writer}", operation.invocation, b"U", EventKind.REPLY)
        for id_ in [key for key in known.replies.entries if seen and order_of(key) < order_of(seen)]:
            del known.replies.entries[id_]
        world.wake()
        return Settled.APPLIED

    async def replies(self, writer: str, after: str, block_ms: int) -> list[Reply]:
        def read() -> list[Reply]:
            known = self._world.writers.get(writer)
            found = known.replies.after(after, 1000) if known else []
            return [Reply(id_, invocation, payload) for id_, pairs in found for invocation, payload in pairs]

        return await self._blocking(read, block_ms)

    async def status(self, invocation: str) -> str:
        shard = self._world.shards[shard_in(invocation)]
        place = shard.ids.get(invocation)
        if place is None:
            return ""
        if place.kind == "i":
            return "open"
        if place.kind == "a":
            paused = shard.asleep[invocation].paused
            return f"paused: {paused}" if paused else "asleep"
        outcome = self._world.outcome(shard, invocation, place)
        return "" if outcome is None else "succeeded" if outcome[:1] == b"V" else "failed"

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

    async def acquire(self, shard: Shard, incarnation: str, seen: str) -> Granted | Held:
        target = self._world.shards[shard]
        if target.lease and target.lease != seen:
            return Held(target.lease)
        head = target.head
        clean = head.incarnation == "-"
        target.head = _Head(max(head.epoch + 1, self._world.clock()), incarnation, head.number)
        target.lease = f"{incarnation} {target.head.epoch} 0"
        return Granted(Epoch(target.head.epoch), head.number, clean)

    def _owned(self, shard: Shard, epoch: Epoch, incarnation: str) -> _Shard | None:
        target = self._world.shards[shard]
        return target if (target.head.epoch, target.head.incarnation) == (epoch, incarnation) else None

    async def renew(self, incarnation: str, owned: Mapping[Shard, Epoch], about: bytes) -> dict[Shard, int]:
        self._beats += 1
        self._world.hosts[incarnation] = b"%d %s" % (self._beats, about)
        numbers: dict[Shard, int] = {}
        for shard, epoch in owned.items():
            target = self._owned(shard, epoch, incarnation)
            if target is not None:
                target.lease = f"{incarnation} {epoch} {self._beats}"
                numbers[shard] = target.head.number
        return numbers

    async def release(self, incarnation: str, owned: Mapping[Shard, Epoch], *, leaving: bool) -> None:
        for shard, epoch in owned.items():
            target = self._owned(shard, epoch, incarnation)
            if target is not None:
                target.head = _Head(epoch, "-", target.head.number)
                target.lease = ""
        if leaving:
            self._world.hosts.pop(incarnation, None)
        self._world.control.add(self._world.clock(), incarnation)
        self._world.wake()

    async def bury(self, incarnation: str) -> int:
        freed = [shard for shard in self._world.shards if shard.lease.startswith(f"{incarnation} ")]
        for shard in freed:
            shard.lease = ""
        self._world.hosts.pop(incarnation, None)
        self._world.control.add(self._world.clock(), incarnation)
        self._world.wake()
        return len(freed)

    async def look(self, shards: int) -> Look:
        return Look(dict(self._world.hosts), [shard.lease for shard in self._world.shards[:shards]])

    # Hosts: reading

    async def arrivals(self, cursors: Mapping[Shard, Cursor], control: str, block_ms: int, count: int) -> Arrivals:
        def read() -> Arrivals | None:
            arrivals = Arrivals()
            for shard, cursor in cursors.items():
                source = self._world.shards[shard]
                arrivals.messages += [(shard, id_, data) for id_, data in source.inbox.after(cursor.inbox, count)]
                arrivals.events += [(shard, Event(id_, *entry)) for id_, entry in source.events.after(cursor.events, count)]
            news = self._world.control.after(control, count)
            arrivals.control = news[-1][0] if news else ""
            return arrivals if arrivals.messages or arrivals.events or news else None

        return await self._blocking(read, block_ms) or Arrivals()

    async def interrupt(self) -> None:
        self._interrupted = True
        self._world.wake()

    async def inbox(self, shard: Shard, after: str, count: int) -> list[tuple[str, bytes]]:
        return self._world.shards[shard].inbox.after(after, count)

    async def events(self, shard: Shard, after: str, count: int) -> list[Event]:
        return [Event(id_, *entry) for id_, entry in self._world.shards[shard].events.after(after, count)]

    async def journal(self, shard: Shard, after: str, count: int) -> list[tuple[str, str, bytes]]:
        return [(id_, *entry) for id_, entry in self._world.shards[shard].journal.after(after, count)]

    async def messages(self, shard: Shard, ids: Sequence[str]) -> list[bytes | None]:
        return [self._world.shards[shard].inbox.entries.get(id_) for id_ in ids]

    async def load(self, objects: Sequence[tuple[Shard, str]]) -> list[Loaded]:
        shards = self._world.shards
        return [Loaded(dict(shards[s].state.get(target, {})), shards[s].held.get(target, "")) for s, target in objects]

    async def dormant(self, invocations: Sequence[tuple[Shard, str]]) -> list[Dormant | None]:
        found = [self._world.shards[shard].asleep.get(invocation) for shard, invocation in invocations]
        return [d and Dormant(d.inbox_id, d.message, list(d.records), d.paused) for d in found]

    # Hosts: writing

    async def commit(self, parts: Sequence[Part]) -> list[Answer]:
        answers = [self._commit(part) for part in parts]
        self._world.wake()
        return answers

    def _commit(self, part: Part) -> Answer:
        shard = self._owned(part.shard, part.epoch, part.incarnation)
        if shard is None or part.number not in (shard.head.number, shard.head.number + 1):
            return Fenced(str(self._world.shards[part.shard].head))
        if part.number == shard.head.number:
            return Committed(shard.head.answer)
        first, written = "", dict[str, list[str]]()
        for progress in part.progress:
            added = self._apply(shard, progress, written)
            first = first or added
        for id_ in part.stray:
            shard.events.entries.pop(id_, None)
        self._trim(shard, sum(isinstance(progress.end, Finish) for progress in part.progress))
        shard.head.number, shard.head.answer = part.number, first
        return Committed(first)

    def _apply(self, shard: _Shard, progress: Progress, written: dict[str, list[str]]) -> str:
        world, added = self._world, ""
        if progress.record:
            added = shard.journal.add(world.clock(), (progress.invocation, progress.record))
            written.setdefault(progress.invocation, []).append(added)
        for id_ in progress.events:
            shard.events.entries.pop(id_, None)
        if progress.writes or progress.clears:
            fields = shard.state.setdefault(progress.target, {})
            fields.update(progress.writes)
            for name in progress.clears:
                fields.pop(name, None)
        for due_ms, member in progress.timers:
            shard.timers[member] = due_ms
        for member in progress.untimers:
            shard.timers.pop(member, None)
        for message in progress.messages:
            world.accept(message, world.limits.inbox_max * 10, _FULL)
        if progress.notice:
            place = shard.ids.get(progress.invocation)
            for teller in place.tellers if place and place.is_open else ():
                prefix = b"N" if teller.startswith("w:") else b""
                world.tell(teller, progress.invocation, prefix + progress.notice, EventKind.NOTICE)
        journal = progress.journal
        if progress.end is not None:
            journal = [*progress.journal, *written.pop(progress.invocation, [])]
        match progress.end:
            case Finish() as end:
                self._finish(shard, progress, end, journal)
            case Sleep() as end:
                self._lay_to_sleep(shard, progress, end, journal)
            case None:
                pass
        return added

    def _finish(self, shard: _Shard, progress: Progress, end: Finish, journal: Sequence[str]) -> None:
        invocation = progress.invocation
        for teller in shard.ids[invocation].tellers:
            self._world.tell(teller, invocation, end.outcome, EventKind.REPLY)
        if progress.asleep:
            del shard.asleep[invocation]
            if shard.held.get(progress.target) == invocation:
                del shard.held[progress.target]
        else:
            shard.inbox.entries.pop(progress.inbox_id, None)
        for id_ in journal:
            shard.journal.entries.pop(id_, None)
        now = self._world.clock()
        id_ = shard.done.add(now, (invocation, b"" if end.keep_ms else end.outcome))
        shard.ids[invocation] = _Place("o" if end.keep_ms else "d", id_, [])
        if end.keep_ms:
            shard.outcomes[invocation] = end.outcome
            shard.forget[invocation] = now + end.keep_ms

    def _lay_to_sleep(self, shard: _Shard, progress: Progress, end: Sleep, journal: Sequence[str]) -> None:
        invocation = progress.invocation
        if not progress.asleep:
            message = shard.inbox.entries.pop(progress.inbox_id)
            shard.asleep[invocation] = Dormant(progress.inbox_id, message, [], "")
            shard.ids[invocation].kind = "a"
            if end.holds:
                shard.held[progress.target] = invocation
        shard.asleep[invocation].records += [(id_, shard.journal.entries.pop(id_)[1]) for id_ in journal]
        shard.asleep[invocation].paused = end.paused or shard.asleep[invocation].paused

    def _trim(self, shard: _Shard, added: int) -> None:
        now, limits = self._world.clock(), self._world.limits
        old = now - limits.retention.total_seconds() * 1000
        for id_, (invocation, _) in list(islice(shard.done.entries.items(), 2 * added)):
            if len(shard.done.entries) <= limits.done_max and order_of(id_)[0] > old:
                break
            del shard.done.entries[id_]
            place = shard.ids.get(invocation)
            if place is not None and place.kind == "d" and place.id == id_:
                del shard.ids[invocation]
        for invocation in [key for key, until in shard.forget.items() if until <= now][: 2 * added]:
            del shard.outcomes[invocation], shard.ids[invocation], shard.forget[invocation]

    async def move_due(self, shard: Shard, epoch: Epoch, incarnation: str, count: int) -> tuple[int, int]:
        target, now = self._owned(shard, epoch, incarnation), self._world.clock()
        if target is None:
            return -1, 0
        due = sorted((due_ms, member) for member, due_ms in target.timers.items() if due_ms <= now)[:count]
        for _, member in due:
            del target.timers[member]
            self._wake(target, member)
        if due:
            self._world.wake()
        return len(due), min(target.timers.values(), default=0)

    def _wake(self, shard: _Shard, member: str) -> None:
        _, _, rest = member.partition(":")
        invocation, _, what = rest.rpartition(":")
        place = shard.ids.get(invocation)
        if place is None or not place.is_open:
            return
        if what == "d":
            if place.kind == "a":
                place.kind, place.id = "i", shard.inbox.add(self._world.clock(), shard.asleep.pop(invocation).message)
            return
        kind = EventKind.ATTEMPT if what == "a" else EventKind.TIMER
        shard.events.add(self._world.clock(), (invocation, kind, 0 if what == "a" else int(what), b""))

    # Code

    async def put_code(self, digest: str, code: bytes, types: Sequence[str]) -> None:
        if digest not in self._world.code:
            self._world.code[digest] = code
            self._world.current.update(dict.fromkeys(types, digest))

    async def code(self, digest: str) -> bytes | None:
        return self._world.code.get(digest)

    async def current_code(self, type_name: str) -> str:
        return self._world.current.get(type_name, "")
