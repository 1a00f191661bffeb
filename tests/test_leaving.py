"""Leaving and sharing: a host that has handed its shards over is off the list, so that the others share them at once;
one that shares them with another keeps those with long steps, and nobody waits for these.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextvars import ContextVar
from typing import Any

import pytest
from test_semantics import Simulation, outside, played

from actors import Context, VirtualObject, handler, ownership
from actors.host import Host, Identity
from journal.clock import wall_ms
from journal.memory import MemoryStore
from journal.names import Epoch, Shard
from journal.store import NOTHING_READ, SHARDS, Cursor, Look


class Trainer(VirtualObject):
    @handler
    async def train(self, ctx: Context, seconds: float) -> str:
        return await ctx.run("train", lambda: outside.act_for(ctx.step_id, ctx.key, seconds))

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
        if name not in ("look", "acquire", "journal", "events", "where", "inbox", "renew", "open_namespace", "now_ms"):
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


async def seen(store: MemoryStore, holds: Callable[[Look], bool]) -> bool:
    return holds(await store.look(SHARDS))


def serves_all(look: Look) -> bool:
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

    look = await store.look(SHARDS)
    assert (look.hosts, any(look.leases)) == ({}, False)


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

        look = await store.look(SHARDS)
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
