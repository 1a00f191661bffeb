"""Shared handlers: after a wait they see what is committed then, and may wait for a change of it."""

import asyncio
from typing import Any

import pytest
from test_semantics import Broken, Simulation, failure_of, mode, outside, played, simulated

from actors import Context, Policy, Retry, Service, UsageError, VirtualObject, handler, shared, state

__all__ = ["mode"]


class Chat(VirtualObject):
    log: list[str] = state(default_factory=list)
    topic: str = state("")
    brief: str = state("", ttl=20)

    @handler
    async def say(self, ctx: Context, *what: str) -> None:
        self.log.extend(what)

    @handler
    async def say_slowly(self, ctx: Context, what: str) -> None:
        self.log.append(what)
        await ctx.sleep(5)
        self.topic = what

    @handler
    async def put(self, ctx: Context, name: str, value: Any) -> None:
        ctx.set(name, value)

    @shared
    async def polls(self, ctx: Context, n: int) -> list[str]:
        while len(self.log) < n:
            await ctx.sleep(1)
        return self.log

    @shared
    async def watches(self, ctx: Context, n: int) -> list[str]:
        while len(self.log) < n:
            await ctx.changed("log")
        return self.log

    @shared
    async def follows(self, ctx: Context, n: int) -> list[list[str]]:
        """Says what it saw, in steps: a replay sees the same."""
        seen: list[list[str]] = []
        while len(self.log) < n:
            seen.append(list(self.log))
            await ctx.run("told", lambda: outside.act(ctx.step_id, len(seen)))
            assert seen[-1] == self.log[: len(seen[-1])]
            await ctx.changed("log")
        return [*seen, self.log]

    @shared
    async def names(self, ctx: Context, n: int) -> list[list[str]]:
        seen = [ctx.keys()]
        while len(seen[-1]) < n:
            await ctx.sleep(1)
            seen.append(ctx.keys())
        return seen

    @shared
    async def in_time(self, ctx: Context, n: int) -> int:
        """Gives its waits up, again and again."""
        tries = 0
        while len(self.log) < n:
            tries += 1
            try:
                await asyncio.wait_for(ctx.changed("log"), 1)
            except TimeoutError:
                continue
        return tries

    @shared
    async def brief_is_over(self, ctx: Context) -> str:
        before = self.brief
        await ctx.changed("brief")
        return f"{before}{self.brief}."

    @shared
    async def after_a_step(self, ctx: Context) -> list[list[str]]:
        before = list(self.log)
        await ctx.run("slow", asyncio.sleep, 5)
        between = list(self.log)
        await ctx.sleep(5)
        return [before, between, self.log]

    @shared(policy=Policy(retry=Retry(initial=3)))
    async def fails_on_what_it_sees(self, ctx: Context) -> str:
        """Another attempt sees what is committed then."""
        await ctx.sleep(1)
        if self.topic != "good":
            raise Broken(self.topic)
        await ctx.run("noted", lambda: outside.act(ctx.step_id, "noted"))
        return self.topic

    @handler
    async def exclusive(self, ctx: Context) -> None:
        await ctx.changed("log")

    @shared
    async def mistaken(self, ctx: Context) -> list[str]:
        said: list[str] = []
        for names in ((), ("",), (1,), ("@wait",)):
            try:
                ctx.changed(*names)  # type: ignore[arg-type]
            except UsageError as error:
                said.append(str(error))
        return said


class Stateless(Service):
    @handler
    async def go(self, ctx: Context) -> None:
        await ctx.changed("log")


async def polling(world: Simulation) -> None:
    """Issue 15.41: `while len(self.log) <= n: await ctx.sleep(...)` sees a change."""
    ref, names = Chat["a"].polls.remote(2), Chat["a"].names.remote(3)
    await asyncio.sleep(2.5)
    await Chat["a"].say.remote("one")
    await asyncio.sleep(2)
    await Chat["a"].put.remote("topic", "t")
    await Chat["a"].say.remote("two")
    assert await ref == ["one", "two"]
    await Chat["a"].put.remote("more", 1)
    found = await names
    assert found[0] == []
    assert found[-1] == ["log", "more", "topic"]


test_a_shared_handler_that_polls_sees_what_is_committed = simulated(polling)


async def watching(world: Simulation) -> None:
    """Issue 15.41: many wait for one, and for none that they do not watch."""
    refs = [Chat["w"].watches.remote(n) for n in (1, 2, 3) for _ in range(10)]
    followed = Chat["w"].follows.remote(3)
    await asyncio.sleep(1)
    await Chat["w"].put.remote("topic", "t")
    for what in ("one", "two", "three"):
        await Chat["w"].say.remote(what)
        await asyncio.sleep(1)
    assert await asyncio.gather(*refs) == [["one", "two", "three"][:n] for n in (1, 2, 3) for _ in range(10)]
    assert await followed == [[], ["one"], ["one", "two"], ["one", "two", "three"]]
    assert world.own_fields("Chat/w") == [], "nothing is left of them"
    slow = Chat["w"].watches.remote(4)
    await asyncio.sleep(1)
    Chat["w"].say_slowly.send("four")
    assert len(await slow) == 4, "state is seen where its handler waits"
    await asyncio.sleep(10)


test_many_wait_for_a_change = simulated(watching)


async def odd(world: Simulation) -> None:
    ref = Chat["o"].in_time.remote(1)
    await asyncio.sleep(4.5)
    assert len(world.own_fields("Chat/o")) == 1, "a wait that was given up is taken up again"
    await Chat["o"].say.remote("one")
    assert await ref == 5
    await Chat["o"].put.remote("brief", "soon over")
    assert await Chat["o"].brief_is_over.remote() == "soon over."
    step = Chat["o"].after_a_step.remote()
    await asyncio.sleep(2)
    await Chat["o"].say.remote("two")
    await asyncio.sleep(4)
    await Chat["o"].say.remote("three")
    assert [len(each) for each in await step] == [1, 2, 3]
    fails = Chat["o"].fails_on_what_it_sees.remote()
    await asyncio.sleep(2)
    await Chat["o"].put.remote("topic", "good")
    assert await fails == "good"
    killed = Chat["o"].watches.remote(100)
    await asyncio.sleep(1)
    killed.cancel()
    await failure_of(killed)
    await Chat["o"].say.remote("four")
    for ref in (Chat["o"].exclusive.remote(), Stateless.go.remote()):
        error = await failure_of(ref)
        assert error.code == 400
        assert "@shared" in str(error)
    assert len(await Chat["o"].mistaken.remote()) == 4
    assert world.own_fields("Chat/o") == []


test_a_wait_for_a_change_may_be_given_up_and_state_may_end = simulated(odd)


@pytest.mark.parametrize("n", [1, 30])
def test_who_waits_is_told_when_the_host_has_died(mode: Policy | None, n: int) -> None:
    async def scenario(world: Simulation) -> None:
        refs = [Chat["d"].follows.remote(2) for _ in range(n)]
        await Chat["d"].say.remote("one")
        await asyncio.sleep(5)
        world.members["a"].task.cancel()
        await world.join("b")
        await Chat["d"].say.remote("two")
        for ref in refs:
            assert (await ref)[-1] == ["one", "two"]

    played(scenario, mode, ["a"])
