"""The store's time as a process knows it: what is delayed or sleeps may end late by a round trip, never early.

No step of a clock changes how long something takes that begins after it (issue 16.1): hosts and programs count by a
clock that never goes back, and ask the store for its time again and again.
"""

import asyncio
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import pytest
from test_semantics import Simulation, mode, outside, played

from actors import CallTimeout, Context, Policy, Retry, RetryAfter, VirtualObject, handler, state
from journal import clock
from journal.clock import CUT_MS, StoreClock

__all__ = ["mode"]

AHEAD_MS = 1_000_000
"""The store's clock is ahead of the process's by so much."""


@pytest.mark.parametrize(
    ("ways", "expected"),
    [
        ([(0, 0)] * 3, AHEAD_MS),
        ([(0, 40)] * 3, AHEAD_MS),
        ([(40, 0)] * 3, AHEAD_MS + 40),
        ([(0, 5_000), (1, 2), (2, 9)], AHEAD_MS),
        ([(5_000, 0), (2, 9), (0, 3)], AHEAD_MS),
    ],
)
async def test_the_offset_is_never_too_small_and_a_pause_does_not_spoil_it(
    ways: Iterable[tuple[int, int]], expected: int
) -> None:
    now, trips = 500, iter(ways)

    async def ask() -> int:
        nonlocal now
        there, back = next(trips)
        now += there
        told = now + AHEAD_MS
        now += back
        return told

    store = StoreClock(lambda: now / 1000)
    await store.open(ask)

    assert 0 <= store.now_ms() - now - expected - CUT_MS <= clock.SLACK_MS


@pytest.mark.parametrize(("here", "there"), [(0.0, 0.0), (0.999, 0.0), (0.0, 0.999), (0.5, 0.6), (0.999, 0.999)])
async def test_clocks_that_are_cut_to_milliseconds_end_nothing_early(here: float, there: float) -> None:
    now = here

    async def ask() -> int:
        return int(AHEAD_MS + there + here)

    store = StoreClock(lambda: now / 1000)
    await store.open(ask)

    for later in (0.0, 0.3, 0.999):
        now = here + later
        assert store.now_ms() >= AHEAD_MS + there + here + later


def test_a_step_is_learned_from_one_answer_and_a_process_that_was_stopped_learns_nothing() -> None:
    """Issue 16.1."""
    now = 500
    store = StoreClock(lambda: now / 1000)
    assert not store.learn(500, 1_000)

    now = 60_500  # stopped for a minute while it waited
    assert not store.learn(500, 1_000)
    assert store.now_ms() == 61_000 + CUT_MS

    for stepped in (361_000, 61_000, 1_000):
        assert store.learn(60_500, stepped)
        assert store.now_ms() == stepped + CUT_MS


# --------------------------------------------------------------------------------------------------- steps of the store


class Timed(VirtualObject):
    """Waits in every way that has a duration."""

    note: str = state("", ttl="3s")

    @handler
    async def sleep(self, ctx: Context) -> None:
        await ctx.sleep(3)

    @handler
    async def sleep_of_asyncio(self, ctx: Context) -> None:
        began = asyncio.get_running_loop().time()
        await asyncio.sleep(3)
        assert asyncio.get_running_loop().time() - began >= 3, "time goes on for who has slept"

    @handler
    async def nothing(self, ctx: Context) -> None:
        pass

    @handler
    async def block(self, ctx: Context) -> None:
        try:
            async with asyncio.timeout(3):
                await ctx.awakeable()
        except TimeoutError:
            pass

    @handler
    async def call(self, ctx: Context) -> None:
        with pytest.raises(CallTimeout):
            await Timed[f"{ctx.key}-callee"].never.options(timeout=3).remote()

    @handler
    async def send(self, ctx: Context) -> None:
        ref = Timed[f"{ctx.key}-late"].nothing.options(delay=3).remote()
        await ref

    @handler
    async def never(self, ctx: Context) -> None:
        await ctx.awakeable()

    @handler(policy=Policy(retry=Retry(initial=3, max_interval=3)))
    async def back_off(self, ctx: Context) -> None:
        if ctx.attempt == 1:
            raise ConnectionError

    @handler
    async def asks(self, ctx: Context) -> None:
        if ctx.attempt == 1:
            raise RetryAfter(3)

    @handler
    async def step(self, ctx: Context) -> None:
        await ctx.run("step", _failing_once, ctx.id, retry=Retry(initial=3, max_interval=3))

    @handler
    async def write(self, ctx: Context) -> None:
        self.note = "there"


def _failing_once(id_: str) -> None:
    outside.seen.append(id_)
    if outside.seen.count(id_) == 1:
        raise ConnectionError


WAITS: dict[str, Callable[[], Any]] = {
    "a sleep": lambda: Timed["a"].sleep.remote(),
    "a sleep of asyncio": lambda: Timed["b"].sleep_of_asyncio.remote(),
    "a delay": lambda: Timed["c"].nothing.options(delay=3).remote(),
    "a delay in a handler": lambda: Timed["d"].send.remote(),
    "a time-out": lambda: Timed["e"].block.remote(),
    "a call's time-out": lambda: Timed["f"].call.remote(),
    "a back-off": lambda: Timed["g"].back_off.remote(),
    "what an error asks for": lambda: Timed["h"].asks.remote(),
    "a step's back-off": lambda: Timed["i"].step.remote(),
}


@pytest.mark.parametrize("step_s", [300, -300])
def test_no_step_of_the_stores_clock_changes_how_long_something_takes(mode: Policy | None, step_s: int) -> None:
    """Issue 16.1: 1 s had not come after 12 s, or came at once."""
    took: dict[str, float] = {}

    async def measured(world: Simulation, what: str, start: Callable[[], Any]) -> None:
        began = world.elapsed
        await start()
        took[what] = world.elapsed - began

    async def scenario(world: Simulation) -> None:
        stepped_ms, inner = 0, world.store._world  # pyright: ignore[reportPrivateUsage]  # its clock is the test's
        inner.clock = world.program._now_ms = lambda: world.loop.now_ms() + stepped_ms  # pyright: ignore[reportPrivateUsage]
        # So that each stream has an id of the time before.
        await asyncio.gather(*(Timed[f"x{number}"].sleep.remote() for number in range(16)))
        stepped_ms = step_s * 1000
        await asyncio.sleep(2)
        await asyncio.gather(*(measured(world, *wait) for wait in WAITS.items()))
        await Timed["t"].write.remote()
        await asyncio.sleep(2.9)
        assert world.state("Timed/t") == {"note": "there"}
        await asyncio.sleep(0.2)
        assert world.state("Timed/t") == {}
        world.expected_leftovers = True

    played(scenario, mode, ["a"])
    assert {what: round(seconds) for what, seconds in took.items()} == dict.fromkeys(WAITS, 3)
    assert min(took.values()) >= 3


def test_nothing_that_decides_reads_the_time_of_day(monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 16.1: a program whose time of day steps counts on as before."""
    here = StoreClock()
    here.learn(here.steady_ms(), 1_000)
    monkeypatch.setattr(clock.time, "time_ns", lambda: 0)
    assert 1_000 <= here.now_ms() <= 1_000 + timedelta(minutes=1) / timedelta(milliseconds=1)
