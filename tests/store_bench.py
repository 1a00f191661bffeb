"""A bench for stores: what a driver and a host do with one, in few words, and time that the test owns or waits for."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from journal.ids import Epoch, Shard, new_id, shard_in
from journal.memory.store import MemoryStore
from journal.records import EventKind, Failure, failure, teller_of_driver
from journal.redis.store import RedisStore
from journal.store import (
    Answer,
    Attach,
    Bring,
    Committed,
    Finish,
    Granted,
    NamespaceLimits,
    Outgoing,
    Part,
    PartlyApplied,
    Progress,
    Settled,
    Sleep,
    Store,
)

SHARDS = 4
TARGET = "Ticket/A"


class Engine:
    """Where a contract is tried: connections to one new namespace, and its time."""

    def __init__(self, connect: Callable[[], Store], advance: Callable[[int], None] | None) -> None:
        self._connect, self._advance = connect, advance
        self._stores: list[Store] = []

    async def open(self, **limits: Any) -> Store:
        """Return a new connection; the first one's limits count."""
        store = self.connected()
        await store.open_namespace(NamespaceLimits(shards=SHARDS, **limits))
        return store

    def connected(self) -> Store:
        """Return a new connection that has opened nothing."""
        store = self._connect()
        self._stores.append(store)
        return store

    async def aclose(self) -> None:
        for store in self._stores:
            await store.aclose()

    async def elapse(self, store: Store, ms: int) -> None:
        """Let the store's time pass."""
        if self._advance is not None:
            self._advance(ms)
            return
        until = await store.now_ms() + ms
        while await store.now_ms() < until:
            pass


def memory_engine() -> Engine:
    now = [1_700_000_000_000]
    first: list[MemoryStore] = []

    def connect() -> Store:
        first.append(first[0].connect() if first else MemoryStore(lambda: now[0]))
        return first[-1]

    def advance(ms: int) -> None:
        now[0] += ms

    return Engine(connect, advance)


def redis_engine(url: str, namespace: str | None = None) -> Engine:
    name = namespace or f"test-{new_id()}"
    return Engine(lambda: RedisStore(url, name), None)


REFUSAL = failure(Failure(409, "known\n", {}, "TerminalError"))


def data_of(invocation: str) -> bytes:
    return b"\xff\x00\r\n message of " + invocation.encode()


def message(invocation: str, caller: str = "") -> Outgoing:
    return Outgoing(shard_in(invocation), invocation, caller, data_of(invocation))


def new(invocation: str, caller: str = "", digest: str = "", *, is_trusted: bool = False) -> Outgoing:
    """Return a message of an invocation that must be new."""
    return Outgoing(shard_in(invocation), invocation, caller, data_of(invocation), REFUSAL, digest, is_trusted)


def event(invocation: str, data: bytes = b"Vvalue", index: int = 3) -> Bring:
    return Bring(shard_in(invocation), invocation, EventKind.AWAKEABLE, index, data)


@dataclass
class Driver:
    """A program with a writer of its own."""

    store: Store
    writer: str
    number: int = 0
    seen: str = "0-0"

    @classmethod
    async def open(cls, store: Store) -> "Driver":
        return cls(store, await store.open_writer())

    @property
    def teller(self) -> str:
        return teller_of_driver(self.writer)

    async def submit(self, *operations: Outgoing | Attach | Bring) -> Settled | PartlyApplied:
        self.number += 1
        return await self.store.submit(self.writer, self.number, operations, self.seen)

    async def call(self, *invocations: str) -> Settled | PartlyApplied:
        return await self.submit(*(message(invocation, self.teller) for invocation in invocations))

    async def send(self, *invocations: str) -> Settled | PartlyApplied:
        return await self.submit(*(message(invocation) for invocation in invocations))

    async def attach(self, *invocations: str) -> Settled | PartlyApplied:
        return await self.submit(*(Attach(shard_in(invocation), invocation) for invocation in invocations))

    async def told(self) -> list[tuple[str, bytes]]:
        """Return the replies since the last time."""
        replies = await self.store.replies(self.writer, self.seen, 0)
        self.seen = replies[-1].id if replies else self.seen
        return [(reply.invocation, reply.payload) for reply in replies]


@dataclass
class Owner:
    """A host, as far as one shard is concerned."""

    store: Store
    shard: Shard
    incarnation: str
    epoch: Epoch
    number: int
    clean: bool
    inbox_ids: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    async def acquire(cls, store: Store, shard: int = 0, seen: str = "", incarnation: str = "") -> "Owner":
        incarnation = incarnation or new_id()
        granted = await store.acquire(Shard(shard), incarnation, seen)
        assert isinstance(granted, Granted), granted
        return cls(store, Shard(shard), incarnation, granted.epoch, granted.number, granted.clean)

    @property
    def owned(self) -> dict[Shard, Epoch]:
        return {self.shard: self.epoch}

    def part(self, *progress: Progress, stray: Iterable[str] = ()) -> Part:
        return Part(self.shard, self.epoch, self.incarnation, self.number, list(progress), list(stray))

    async def commit(self, *progress: Progress, stray: Iterable[str] = ()) -> Answer:
        self.number += 1
        return (await self.store.commit([self.part(*progress, stray=stray)]))[0]

    async def committed(self, *progress: Progress) -> str:
        """Commit and return the id of the first record."""
        answer = await self.commit(*progress)
        assert isinstance(answer, Committed), answer
        return answer.first

    async def inbox(self) -> list[str]:
        """Return what lies in the inbox, as the ids of the invocations."""
        page = await self.store.inbox(self.shard, "", 100_000)
        start = len(data_of(""))
        self.inbox_ids |= {data[start:].decode(): id_ for id_, data in page}
        return [data[start:].decode() for _, data in page]

    async def progress(self, invocation: str, target: str = TARGET, **what: Any) -> Progress:
        """Return a progress of an invocation that lies, or lay, in the inbox."""
        if invocation not in self.inbox_ids:
            await self.inbox()
        return Progress(invocation, target, self.inbox_ids[invocation], **what)

    async def finish(self, invocation: str, outcome: bytes = b"Vdone", *, keep_ms: int = 0, **what: Any) -> Answer:
        end = Finish(outcome, b"summary", keep_ms)
        return await self.commit(await self.progress(invocation, end=end, **what))

    async def sleep(self, invocation: str, *, holds: bool = True, paused: str = "", **what: Any) -> Answer:
        return await self.commit(await self.progress(invocation, end=Sleep(holds, paused), **what))

    async def events(self) -> list[tuple[str, str, int, bytes]]:
        page = await self.store.events(self.shard, "", 100_000)
        return [(event.invocation, event.kind.value, event.index, event.payload) for event in page]

    async def event_ids(self) -> list[str]:
        return [event.id for event in await self.store.events(self.shard, "", 100_000)]

    async def journal(self) -> list[tuple[str, bytes]]:
        page = await self.store.journal(self.shard, "", 100_000)
        return [(invocation, record) for _, invocation, record in page]

    async def move_due(self, count: int = 100) -> tuple[int, int]:
        return await self.store.move_due(self.shard, self.epoch, self.incarnation, count)
