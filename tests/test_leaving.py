"""Leaving and sharing: a host that has handed its shards over is off the list, so that the others share them at once;
one that shares them with another keeps those with long steps, and nobody waits for these.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import pytest
from test_semantics import Simulation, outside, played

from actors import Context, Invocation, Policy, VirtualObject, handler
from actors.host.host import Host, Identity
from journal.clock import wall_ms
from journal.ids import Epoch, Shard
from journal.memory.store import MemoryStore
from journal.store import NOTHING_READ, SHARDS, Cursor, Membership


async def drilled(ctx: Context, number: int, seconds: float) -> None:
    await outside.act_for(ctx.step_id, f"{ctx.key} {number}", seconds)


class Trainer(VirtualObject):
    @handler
    async def train(self, ctx: Context, seconds: float) -> str:
        return await ctx.run("train", lambda: outside.act_for(ctx.step_id, ctx.key, seconds))

    @handler
    async def drill(self, ctx: Context, count: int, seconds: float) -> str:
        for number in range(count):
            await ctx.run("drill", drilled, ctx, number, seconds)
        return ctx.key

    @handler
    async def look(self, ctx: Context) -> str:
        return ctx.key

    @handler
    async def nap(self, ctx: Context) -> float:
        await asyncio.sleep(1)
        return ctx.now().timestamp()


class Counted(MemoryStore):
    """A store that says when so many calls were made, at the last one: before or after it took effect."""

    def __init__(self, at: int, *, applied: bool) -> None:
        super().__init__(wall_ms)
        self.at, self.applied, self.reached = at, applied, asyncio.Event()

    def __getattribute__(self, name: str) -> Any:
        method = super().__getattribute__(name)
        if name not in (
            "membership",
            "acquire",
            "journal",
            "events",
            "where",
            "inbox",
            "renew",
            "open_namespace",
            "now_ms",
        ):
            return method

        async def call(*args: Any) -> Any:
            self.at -= 1
            if self.at:
                return await method(*args)
            answer = await method(*args) if self.applied else None
            self.reached.set()
            await asyncio.sleep(0.005)
            return answer if self.applied else await method(*args)

        return call if is_own_store.get() else method


is_own_store: ContextVar[bool] = ContextVar("is_own_store", default=False)
"""Whether it is the host that calls: the test looks from outside."""


class LateRenewals(MemoryStore):
    """A store to which renewals come late, while `late` is clear."""

    late: asyncio.Event
    waiting: int = 0

    async def renew(
        self, incarnation: str, owned: Mapping[Shard, Epoch], about: bytes, read: Mapping[Shard, Cursor] = NOTHING_READ
    ) -> dict[Shard, int]:
        self.waiting += 1
        await self.late.wait()
        return await super().renew(incarnation, owned, about, read)


async def seen(store: MemoryStore, holds: Callable[[Membership], bool]) -> bool:
    return holds(await store.membership(SHARDS))


def serves_all(look: Membership) -> bool:
    return all(look.leases)


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

    look = await store.membership(SHARDS)
    assert (look.hosts, any(look.leases)) == ({}, False)


@pytest.mark.slow_after_first
@pytest.mark.parametrize("cut_short", [False, True])
@pytest.mark.parametrize("applied", [False, True])
async def test_a_host_that_leaves_at_any_moment_of_its_start_leaves_no_lease_behind(
    applied: bool, cut_short: bool
) -> None:
    """Issue 15.22: the next program would wait until they expire; also where the leaving itself is interrupted."""
    is_over, at = False, 0
    while not is_over:
        at += 1
        store = Counted(at, applied=applied)
        is_own_store.set(True)
        host = Host(lambda store=store: store, Identity(id="a"), own_thread=False)
        running = asyncio.ensure_future(host.run())
        is_own_store.set(False)
        reached = asyncio.ensure_future(store.reached.wait())
        serves = asyncio.ensure_future(until(lambda store=store: seen(store, serves_all)))
        await asyncio.wait([reached, serves], return_when=asyncio.FIRST_COMPLETED)
        is_over = not store.reached.is_set()
        leaving = asyncio.ensure_future(host.leave(1.0))
        if cut_short:
            await asyncio.sleep(0)
            leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        for task in (running, reached, serves):
            task.cancel()
        await asyncio.gather(running, reached, serves, return_exceptions=True)

        look = await store.membership(SHARDS)
        assert (look.hosts, [lease for lease in look.leases if lease]) == ({}, []), f"left at call {at}"
    assert at > SHARDS


async def test_a_host_that_fails_frees_its_leases_for_its_next_life() -> None:
    """Issue 15.22: it begins again in the same process, and nobody else could tell that it is gone."""
    store = LateRenewals(wall_ms)
    store.late = asyncio.Event()
    store.late.set()
    host = Host(lambda: store, Identity(id="a"), own_thread=False)
    running = asyncio.ensure_future(host.run())
    await until(lambda: seen(store, lambda look: all(look.leases)))
    store.arrivals = None  # pyright: ignore[reportAttributeAccessIssue]  # reading fails

    with pytest.raises(TypeError):
        await running

    look = await store.membership(SHARDS)
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


@pytest.mark.parametrize("seconds", [0.2, 2.0])
@pytest.mark.parametrize("idle_timeout", [None, timedelta(0)])
def test_a_hand_over_waits_for_a_moment_without_steps_and_nobody_waits_for_it(
    idle_timeout: timedelta | None, seconds: float
) -> None:
    """Issue 15: a step of 2 s that had just begun kept all other keys of its shard; promise 8. None is done twice."""

    async def scenario(world: Simulation) -> None:
        loop, count = asyncio.get_running_loop(), int(4 / seconds)
        drills: list[Invocation[str]] = []
        for number in range(8):
            drills.append(Trainer[f"{number}"].drill.remote(count, seconds))
            await asyncio.sleep(0.07)
        joining = asyncio.ensure_future(world.join("b"))
        began = loop.time()
        while loop.time() < began + 4:
            async with asyncio.timeout(0.9):
                await asyncio.gather(*(Trainer[f"look{number}"].look.remote() for number in range(12)))
            await asyncio.sleep(0.1)
        assert await asyncio.gather(*drills) == [f"{number}" for number in range(8)]
        assert loop.time() < began + 7
        assert len(outside.seen) == 8 * count, "a step was interrupted, and done again"
        await joining
        owners = {lease.partition(" ")[0] for lease in (await world.store.membership(4)).leases}
        assert len(owners) == 2, "nothing was handed over"

    played(scenario, None if idle_timeout is None else Policy(idle_timeout=idle_timeout), ["a"])
