"""Leaving: a host that has handed its shards over is off the list, so that the others share them at once."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from actors.host import Host, Identity
from journal.clock import wall_ms
from journal.memory import MemoryStore
from journal.names import Epoch, Shard
from journal.store import SHARDS, Look


class LateRenewals(MemoryStore):
    """A store to which renewals come late, while `late` is clear."""

    late: asyncio.Event
    waiting: int = 0

    async def renew(self, incarnation: str, owned: Mapping[Shard, Epoch], about: bytes) -> dict[Shard, int]:
        self.waiting += 1
        await self.late.wait()
        return await super().renew(incarnation, owned, about)


async def seen(store: MemoryStore, holds: Callable[[Look], bool]) -> bool:
    return holds(await store.look(SHARDS))


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    while not await holds():  # noqa: ASYNC110  # no event says it
        await asyncio.sleep(0.01)


async def test_a_renewal_that_was_under_way_does_not_bring_a_host_back_that_has_left() -> None:
    store = LateRenewals(wall_ms)
    store.late = asyncio.Event()
    store.late.set()
    host = Host(lambda: store, Identity(id="a"), own_thread=False)
    running = asyncio.ensure_future(host.run())
    await until(lambda: seen(store, lambda look: all(look.leases)))

    store.late.clear()
    before = store.waiting
    await until(lambda: seen(store, lambda _: store.waiting > before))
    await host.leave()
    store.late.set()
    await until(lambda: seen(store, lambda look: bool(look.hosts)))  # the late renewal: it cannot know
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)

    look = await store.look(SHARDS)
    assert (look.hosts, any(look.leases)) == ({}, False)
