"""Leaving and sharing: a host that has handed its shards over is off the list, so that the others share them at once;
one that shares them with another keeps those with long steps, and nobody waits for these.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import pytest
from test_semantics import Simulation, outside, played

from actors import Context, VirtualObject, handler, ownership
from actors.host import Host, Identity
from journal.clock import wall_ms
from journal.memory import MemoryStore
from journal.names import Epoch, Shard
from journal.store import SHARDS, Look


class Trainer(VirtualObject):
    @handler
    async def train(self, ctx: Context, seconds: float) -> str:
        return await ctx.run("train", lambda: outside.act_for(ctx.step_id, ctx.key, seconds))

    @handler
    async def nap(self, ctx: Context) -> float:
        await asyncio.sleep(1)
        return ctx.now().timestamp()


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


def test_while_a_step_takes_ten_minutes_a_host_that_joins_holds_nobody_up() -> None:
    """Promises 4 and 8: its shard stays where it is; others start there, and a cancel arrives."""

    async def scenario(world: Simulation) -> None:
        training = [Trainer[f"{number}"].train.remote(600.0) for number in range(8)]
        await asyncio.sleep(5)
        await world.join("b")
        naps = [Trainer[f"nap{number}"].nap.remote() for number in range(24)]
        async with asyncio.timeout(3):
            await asyncio.gather(*naps)
        training[0].cancel()
        async with asyncio.timeout(1):
            await asyncio.gather(training[0], return_exceptions=True)
        assert await asyncio.gather(*training[1:]) == [f"{number}" for number in range(1, 8)]
        assert len(outside.seen) == 8, "a step was interrupted, and done again"

    played(scenario, None, ["a"])


def test_a_step_that_turns_out_to_be_long_holds_a_hand_over_up_for_half_a_minute(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Promise 8: it is done again by the next owner."""
    monkeypatch.setattr(ownership, "STEP_IS_LONG", 1_000.0)  # as if each had just begun when the other host joined

    async def scenario(world: Simulation) -> None:
        training = [Trainer[f"{number}"].train.remote(600.0) for number in range(8)]
        await asyncio.sleep(1)
        await world.join("b")
        naps = [Trainer[f"nap{number}"].nap.remote() for number in range(24)]
        async with asyncio.timeout(30):
            await asyncio.gather(*naps)
        assert await asyncio.gather(*training) == [f"{number}" for number in range(8)]
        assert 8 < len(outside.seen) <= 16

    played(scenario, None, ["a"])
