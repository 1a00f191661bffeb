"""What holds where two building blocks meet, one sentence a test: in memory and with suspend-and-replay at every wait.

`test_crash_everywhere.py` has the same under crashes before and after each store call.
"""

import asyncio
import random
from contextlib import suppress
from typing import Any

import pytest
from test_semantics import Simulation, failure_of, mode, outside, played, simulated

from actors import (
    Cancelled,
    Context,
    Policy,
    Retry,
    RetryAfter,
    TerminalError,
    VirtualObject,
    Workflow,
    handler,
    shared,
    state,
)
from actors.host.reader import READ_COUNT

__all__ = ["mode"]


class Rendezvous(Workflow):
    """All its handlers wait for promises."""

    @handler(policy=Policy(retention="10s"))
    async def run(self, ctx: Context) -> str:
        return await ctx.promise("end", str)

    @shared
    async def wait(self, ctx: Context, name: str) -> str:
        return await ctx.promise(name, str)

    @shared
    async def complete(self, ctx: Context, name: str, by: str = "done", after: float = 0.0) -> str:
        await asyncio.sleep(after)
        try:
            ctx.promise(name, str).resolve(by)
        except TerminalError as error:
            return str(error.code)
        return by


ENDS = ["cancel", "kill"]


@pytest.mark.parametrize("how", ENDS)
def test_who_waits_for_a_promise_can_be_ended_and_the_others_go_on(mode: Policy | None, how: str) -> None:
    async def scenario(world: Simulation) -> None:
        run, ended, other = (
            Rendezvous["m"].run.remote(),
            Rendezvous["m"].wait.remote("end"),
            Rendezvous["m"].wait.remote("end"),
        )
        await asyncio.sleep(1)
        await getattr(ended, how)()
        assert isinstance(await failure_of(ended), Cancelled)
        await Rendezvous["m"].complete.remote("end")
        assert [await run, await other] == ["done", "done"]
        await asyncio.sleep(1)
        assert world.own_fields("Rendezvous/m") == ["@promise end"]

    played(scenario, mode, ["a"])


@pytest.mark.parametrize("delay", [None, "1h"])
@pytest.mark.parametrize("how", ENDS)
def test_a_run_that_was_ended_is_kept_as_long_as_any_and_leaves_nothing(
    mode: Policy | None, how: str, delay: str | None
) -> None:
    """Asleep or delayed, it ends without its class, which says how long."""

    async def scenario(world: Simulation) -> None:
        run: Any = Rendezvous["m"].run
        ref = run.options(delay=delay).remote()
        await asyncio.sleep(1)
        await getattr(ref, how)()
        assert isinstance(await failure_of(ref), Cancelled)
        await Rendezvous["m"].complete.remote("end")
        await asyncio.sleep(8)
        assert world.own_fields("Rendezvous/m") == ["@promise end"]
        await asyncio.sleep(8)
        assert world.own_fields("Rendezvous/m") == []
        assert await world.status(ref) == "failed"

    played(scenario, mode, ["a"])


@simulated
async def test_who_still_waits_when_the_retention_ends_is_told_so(world: Simulation) -> None:
    waits = [Rendezvous["m"].wait.remote("other") for _ in range(2)]
    run = Rendezvous["m"].run.remote()
    await Rendezvous["m"].complete.remote("end")
    assert await run == "done"
    assert [(await failure_of(wait)).code for wait in waits] == [410, 410]
    assert 10 <= world.elapsed < 12
    assert world.own_fields("Rendezvous/m") == []
    again = Rendezvous["m"].wait.remote("other")
    await Rendezvous["m"].complete.remote("other")
    assert await again == "done"


@pytest.mark.slow_after_first
@pytest.mark.parametrize("seed", range(10))
def test_what_is_completed_while_a_retention_ends_is_known_to_memory_as_to_the_store(
    mode: Policy | None, seed: int
) -> None:
    async def scenario(world: Simulation) -> None:
        world.latency = random.Random(seed)
        await world.join("a")
        await Rendezvous["m"].complete.remote("end")
        await Rendezvous["m"].run.remote()
        pauses = {str(number): 10 + number / 30 for number in range(-45, 18)}
        first = [Rendezvous["m"].complete.remote(name, "first", pause) for name, pause in pauses.items()]
        late = [Rendezvous["m"].complete.remote(name, "late", pause + 4) for name, pause in pauses.items()]
        assert [await each for each in first] == ["first"] * len(pauses)
        await asyncio.sleep(1)
        kept = {f"@promise {name}" for name in pauses} & set(world.own_fields("Rendezvous/m"))
        assert 0 < len(kept) < len(pauses)
        assert [await each for each in late] == ["409" if f"@promise {name}" in kept else "late" for name in pauses]

    played(scenario, mode, [])


class Resolver(Workflow):
    @handler
    async def run(self, ctx: Context) -> str:
        ctx.promise("mine", str).resolve("value")
        pausing = Retry(max_attempts=1, on_exhausted="pause")
        return await ctx.run("sick", outside.fail, 1, "well", retry=pausing)


@pytest.mark.parametrize(("first", "found"), [(0, "409"), (1, "well")])
def test_what_dropped_entries_have_completed_stays_completed(mode: Policy | None, first: int, found: str) -> None:
    async def scenario(world: Simulation) -> None:
        ref = Resolver["r"].run.remote()
        await world.until_status(ref, "paused")
        await ref.restart(first)
        try:
            result = await ref
        except TerminalError as error:
            result = str(error.code)
        assert result == found
        assert world.own_fields("Resolver/r") == ["@promise mine"]

    played(scenario, mode, ["a"])


class Sleeper(VirtualObject, ttl="3s"):
    turns: int = state(0)

    @handler
    async def hold(self, ctx: Context, how: str) -> None:
        self.turns += 1
        match how:
            case "sleep":
                await ctx.sleep("1d")
            case "call":
                await Sleeper[f"{ctx.key}-callee"].hold.options(timeout="1d").remote("wait")
            case "given up":
                with suppress(TimeoutError):
                    await asyncio.wait_for(ctx.signal("word"), 86_400)
                await ctx.signal("never")
            case "back-off":
                raise RetryAfter("1d")
            case _:
                await ctx.signal("never")


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("wait", ["sleep", "call", "given up", "back-off"])
def test_who_is_ended_asleep_or_at_the_next_owner_takes_its_timers_along(
    mode: Policy | None, wait: str, how: str
) -> None:
    async def scenario(world: Simulation) -> None:
        ref = Sleeper["s"].hold.remote(wait)
        await asyncio.sleep(1)
        world.members["a"].running.clear()
        await asyncio.sleep(8)
        world.members["a"].running.set()
        await asyncio.sleep(8)
        ref.signal("word", "come")
        await asyncio.sleep(1)
        await getattr(ref, how)()
        await failure_of(ref)
        await asyncio.sleep(8)
        assert [shard.timers for shard in world.store._world.shards] == [{}] * 4  # pyright: ignore[reportPrivateUsage]
        assert world.state("Sleeper/s") == {}

    played(scenario, mode, ["a"])


@pytest.mark.parametrize("how", ENDS)
@pytest.mark.parametrize("is_reversed", [False, True])
def test_of_a_long_queue_that_is_ended_as_a_whole_few_begin(mode: Policy | None, how: str, is_reversed: bool) -> None:
    async def scenario(world: Simulation) -> None:
        refs = [Sleeper["q"].hold.send("wait") for _ in range(1_000)]
        await asyncio.sleep(1)
        for ref in reversed(refs) if is_reversed else refs:
            getattr(ref, how)()
        await asyncio.sleep(1)
        assert 1 <= world.state("Sleeper/q")["turns"] <= 1 + 1_000 // READ_COUNT
        assert world.leftovers() == []

    played(scenario, mode, ["a"])
