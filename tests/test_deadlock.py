"""What is promised of calls that wait for each other: each in memory and with every wait turned into
suspend-and-replay. `test_crash_everywhere.py` has circles under crashes before and after each store call.
"""

import asyncio
from typing import Any

import pytest
from test_semantics import Simulation, failure_of, mode, outside, played, simulated

from actors import Context, DeadlockError, Policy, Retry, Service, TerminalError, VirtualObject, handler, shared, state
from actors.blocks.calls import CHAIN_MAX
from journal.records import Message

__all__ = ["mode"]


class Ring(VirtualObject):
    visits: int = state(0)

    @handler
    async def through(self, ctx: Context, path: list[str], pause_s: float = 0) -> str:
        """Call along the path, and wait; as the path says: a key, `@` a service or `+` a shared handler in between."""
        self.visits += 1
        if pause_s:
            await ctx.sleep(pause_s)
        if not path:
            return ctx.key
        return ctx.key + await following(path)

    @shared
    async def beside(self, ctx: Context, path: list[str]) -> str:
        return "+" + await following(path)

    @handler
    async def aside(self, ctx: Context, path: list[str]) -> str:
        """Call along the path, and do not wait for it."""
        Ring[path[0]].through.remote(path[1:])
        await ctx.run("work", lambda: outside.act_for(ctx.step_id, "work", 5))
        return "done"

    @handler
    async def limited(self, ctx: Context, path: list[str]) -> str:
        """Wait for a while only."""
        try:
            return await asyncio.wait_for(Ring[path[0]].through.remote(path[1:]), 5)
        except TimeoutError:
            return "too late"

    @handler
    async def mended(self, ctx: Context, path: list[str]) -> str:
        """Go on after a refusal."""
        try:
            return await following(path)
        except DeadlockError as error:
            return f"mended: {error.code}"

    @handler
    async def both(self, ctx: Context, paths: list[list[str]]) -> list[Any]:
        return await asyncio.gather(*(following(path) for path in paths), return_exceptions=True)

    @handler
    async def work(self, ctx: Context, duration_s: float) -> str:
        return await ctx.run("work", lambda: outside.act_for(ctx.step_id, "work", duration_s))

    @handler(policy=Policy(retry=Retry(max_attempts=1, on_exhausted="pause")))
    async def paused(self, ctx: Context) -> None:
        raise ValueError("once")

    @handler
    async def deep(self, ctx: Context, depth: int) -> int:
        return 1 + await Ring[f"deep{depth}"].deep.remote(depth - 1) if depth else 0


async def following(path: list[str]) -> str:
    if path[0] == "@":
        return await Relay.through.remote(path[1:])
    if path[0] == "+":
        return await Ring[path[1]].beside.remote(path[2:])
    return await Ring[path[0]].through.remote(path[1:])


class Relay(Service):
    @handler
    async def through(self, ctx: Context, path: list[str]) -> str:
        return "@" + await following(path)


PATHS = {
    "oneself": (["a"], "Ring/a.through → Ring/a.through"),
    "two": (["b", "a"], "Ring/a.through → Ring/b.through → Ring/a.through"),
    "three": (["b", "c", "a"], "Ring/a.through → Ring/b.through → Ring/c.through → Ring/a.through"),
    "not the first": (["b", "c", "b"], "Ring/b.through → Ring/c.through → Ring/b.through"),
    "by a service": (["@", "a"], "Ring/a.through → Relay.through → Ring/a.through"),
    "by a shared handler": (["+", "b", "a"], "Ring/a.through → Ring/b.beside → Ring/a.through"),
}


@pytest.mark.parametrize("hosts", [["a"], ["a", "b", "c"]], ids=["one host", "three hosts"])
@pytest.mark.parametrize("path", PATHS)
def test_a_call_to_a_key_that_waits_for_it_is_refused_at_once(mode: Policy | None, path: str, hosts: list[str]) -> None:
    keys, names = PATHS[path]

    async def scenario(world: Simulation) -> None:
        began = world.elapsed
        error = await failure_of(Ring["a"].through.remote(keys))

        assert (type(error), error.code) == (DeadlockError, 409)
        assert f": {names}. " in str(error)
        assert world.elapsed - began < 1
        assert await Ring["a"].through.remote([]) == "a", "the key is free again"

    played(scenario, mode, hosts)


@pytest.mark.parametrize("hosts", [["a"], ["a", "b", "c"]], ids=["one host", "three hosts"])
@pytest.mark.parametrize("count", [2, 3])
def test_callers_that_meet_are_found_within_two_seconds_and_one_goes_on(
    mode: Policy | None, count: int, hosts: list[str]
) -> None:
    async def scenario(world: Simulation) -> None:
        keys = [f"k{number}" for number in range(count)]
        refs = [Ring[key].through.remote([keys[(at + 1) % count]], 1) for at, key in enumerate(keys)]
        began = world.elapsed
        done = await asyncio.gather(*refs, return_exceptions=True)

        refused = [result for result in done if isinstance(result, DeadlockError)]
        assert len(refused) == 1
        assert str(refused[0]).count("→") == 2 * count - 1
        assert len([result for result in done if isinstance(result, str)]) == count - 1
        assert world.elapsed - began < 1 + 2.5

    played(scenario, mode, hosts)


@simulated
async def test_a_holder_that_does_not_wait_is_no_alarm(world: Simulation) -> None:
    assert await Ring["a"].aside.remote(["b", "a"]) == "done"
    await asyncio.sleep(5)

    assert world.state("Ring/a") == {"visits": 1}, "the call was executed when the holder had returned"
    assert world.state("Ring/b") == {"visits": 1}


@simulated
async def test_a_wait_that_ends_by_itself_is_no_alarm(world: Simulation) -> None:
    assert await Ring["a"].limited.remote(["b", "a"]) == "too late"
    await asyncio.sleep(5)

    assert world.state("Ring/a") == {"visits": 1}


@simulated
async def test_a_long_queue_is_no_alarm(world: Simulation) -> None:
    busy = Ring["c"].work.remote(100)
    await asyncio.sleep(1)
    refs = [Ring[key].through.remote(["c"]) for key in ("a", "b")]

    assert await asyncio.gather(*refs) == ["ac", "bc"]
    assert await busy == "work"


@simulated
async def test_nothing_is_left_of_what_a_paused_holder_was_asked(world: Simulation) -> None:
    paused = Ring["a"].paused.remote()
    await world.until_status(paused, "paused")
    waiting = Ring["b"].through.remote(["a"])
    await asyncio.sleep(60)

    assert [shard.events.entries for shard in world.store._world.shards] == [{}] * 4  # pyright: ignore[reportPrivateUsage]
    paused.kill()
    assert await waiting == "ba"


@simulated
async def test_who_was_refused_may_go_on(world: Simulation) -> None:
    assert await Ring["a"].mended.remote(["b", "a"]) == "mended: 409"


@simulated
async def test_a_circle_is_found_beside_other_calls(world: Simulation) -> None:
    circle, plain = await Ring["a"].both.remote([["b", "a"], ["c"]])

    assert (type(circle), plain) == (DeadlockError, "c")


@simulated
async def test_a_chain_has_an_end(world: Simulation) -> None:
    assert await Ring["top"].deep.remote(CHAIN_MAX) == CHAIN_MAX

    error = await failure_of(Ring["top"].deep.remote(CHAIN_MAX + 1))
    assert (type(error), error.code) == (TerminalError, 508)
    assert f"{CHAIN_MAX} exclusive handlers already wait" in str(error)


def test_a_message_without_a_chain_is_as_it_was() -> None:
    plain = Message("id-1", "Ring/a", "through", b"x", headers={"a": "b"})
    chained = Message("id-1", "Ring/a", "through", b"x", chain=["id-2", "id-3"])

    assert plain.encoded() == b'["id-1","Ring/a","through","","",0,0,{"a":"b"}]\nx'
    assert (Message.parse(plain.encoded()), Message.parse(chained.encoded())) == (plain, chained)
