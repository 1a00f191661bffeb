"""Nothing of an invocation waits for the cycle collector, whether it ends or leaves memory.

With many in memory a full collection stops a host's process for longer than its lease, so nothing may depend on one.
"""

import asyncio
import gc
from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

import pytest
from test_semantics import Simulation, played

from actors import CallTimeout, Context, Policy, TerminalError, VirtualObject, handler, state

COUNT = 20


class Litter(VirtualObject):
    n: int = state(0)

    @handler
    async def counts(self, ctx: Context) -> None:
        self.n += 1

    @handler
    async def fails(self, ctx: Context) -> None:
        raise TerminalError("no", 409)

    @handler
    async def stumbles(self, ctx: Context) -> None:
        if ctx.attempt < 3:
            raise ConnectionError("not yet")

    @handler
    async def compensates(self, ctx: Context) -> None:
        ctx.defer("undo", int)
        raise TerminalError("no", 409)

    @handler
    async def gives_up(self, ctx: Context) -> None:
        try:
            await Litter["given up" + ctx.key].naps.options(timeout=5).remote()
        except CallTimeout:
            self.n += 1

    @handler
    async def naps(self, ctx: Context) -> None:
        await ctx.sleep(30)

    @handler
    async def sleeps(self, ctx: Context) -> None:
        await asyncio.sleep(30)

    @handler
    async def gathers(self, ctx: Context) -> None:
        await asyncio.gather(asyncio.sleep(20), ctx.sleep(30), ctx.run("one", int))

    @handler
    async def is_late(self, ctx: Context) -> None:
        try:
            await asyncio.wait_for(ctx.signal("never"), 30)
        except TimeoutError:
            self.n += 1

    @handler
    async def has_tasks(self, ctx: Context) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.sleep(30))
            group.create_task(asyncio.sleep(20))

    @handler
    async def calls(self, ctx: Context) -> None:
        await Litter["called" + ctx.key].naps.remote()

    @handler
    async def steps(self, ctx: Context) -> None:
        await ctx.run("one", int)


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    gc.disable()
    yield
    gc.set_debug(0)
    gc.garbage.clear()
    gc.enable()


@pytest.mark.slow_after_first
@pytest.mark.parametrize("idle", [0, 2, 60], ids=["suspended at once", "asleep after a while", "in memory"])
@pytest.mark.parametrize(
    "name",
    [
        "counts",
        "fails",
        "stumbles",
        "compensates",
        "gives_up",
        "naps",
        "sleeps",
        "gathers",
        "is_late",
        "has_tasks",
        "calls",
        "steps",
    ],
)
def test_nothing_of_an_invocation_waits_for_the_cycle_collector(name: str, idle: int) -> None:
    async def scenario(_: Simulation) -> None:
        for i in range(COUNT):  # what is made once, such as compiled checks, is made here
            Litter[f"warm{i}"].handle.send(name)
        await asyncio.sleep(100)
        gc.collect()
        gc.set_debug(gc.DEBUG_SAVEALL)
        for i in range(COUNT):
            Litter[f"cold{i}"].handle.send(name)
        await asyncio.sleep(100)
        gc.collect()
        found = Counter(type(one).__name__ for one in gc.garbage)
        # What the simulation itself leaves does not grow with each invocation.
        assert [(kind, count) for kind, count in found.items() if count >= COUNT] == []

    gc.freeze()  # what the other tests hold is not looked through each time
    try:
        played(scenario, Policy(idle_timeout=timedelta(seconds=idle)), ["one"])
    finally:
        gc.unfreeze()
