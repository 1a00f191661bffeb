"""Context variables of handlers: what their steps see of them, and what nobody else does."""

import asyncio
import decimal
from collections.abc import AsyncIterator, Awaitable
from contextvars import ContextVar, Token

from test_semantics import Broken, Simulation, failure_of, mode, outside, simulated

from actors import Context, Policy, Retry, Service, TerminalError, VirtualObject, handler, state

__all__ = ["mode"]

trace: ContextVar[str] = ContextVar("trace", default="")


def seen() -> str:
    """Return what is seen, and set something else."""
    found = trace.get()
    trace.set(f"{found}, set by a step")
    return found


async def seen_later() -> str:
    await asyncio.sleep(1)
    return seen()


def prepared() -> Awaitable[str]:
    found = trace.get()

    async def work() -> str:
        return f"{found}, {seen()}"

    return work()


def failing() -> str:
    found = seen()
    outside.count += 1
    if outside.count % 3:
        raise ConnectionError(found)
    return found


async def failing_later() -> str:
    await asyncio.sleep(0)
    return failing()


class Traced(VirtualObject):
    wrong: list[str] = state(default_factory=list)

    @handler
    async def look(self, ctx: Context) -> list[str]:
        out = [trace.get()]
        trace.set(ctx.key)
        out += [await ctx.run("sync", seen), await ctx.run("async", seen_later)]
        out += [await ctx.run("both", prepared)]
        step = ctx.run("before", seen_later)
        trace.set("after")
        out += [await step, await asyncio.create_task(self._child(ctx)), trace.get()]
        return out

    async def _child(self, ctx: Context) -> str:
        trace.set("child")
        return await ctx.run("of the child", seen)

    @handler
    async def retried(self, ctx: Context) -> list[str]:
        trace.set("retried")
        retry = Retry(initial=1, max_interval=1)
        sync = await ctx.run("sync", failing, retry=retry)
        return [sync, await ctx.run("async", failing_later, retry=retry)]

    @handler
    async def reset(self, ctx: Context) -> list[str]:
        """Leaves memory in each of these blocks; what is wrong there shows in the state that is written last."""
        token = trace.set("outer")
        try:
            await asyncio.gather(self._reset(ctx, "a"), asyncio.create_task(self._reset(ctx, "b")))
            async for _ in self._generated(ctx):
                await ctx.sleep(1)
        finally:
            self._undo(token)
        return [trace.get(), *outside.seen]

    async def _reset(self, ctx: Context, name: str) -> None:
        token = trace.set(name)
        try:
            await ctx.sleep(10)
            assert trace.get() == name
        finally:
            self._undo(token)

    async def _generated(self, ctx: Context) -> AsyncIterator[int]:
        token = trace.set("generated")
        try:
            await ctx.sleep(10)
            yield 1
        finally:
            self._undo(token)

    def _undo(self, token: Token[str]) -> None:
        try:
            trace.reset(token)
        except ValueError as error:
            outside.seen.append(str(error))
            raise

    @handler(policy=Policy(retry=Retry(initial=1, max_interval=1)))
    async def attempts(self, ctx: Context) -> str:
        found = trace.get()
        trace.set("an attempt before")
        await ctx.sleep(1)
        if ctx.attempt < 3:
            raise Broken("not yet")
        return found

    @handler
    async def undone(self, ctx: Context) -> None:
        token = trace.set("deferred")
        ctx.defer("undo", lambda: outside.seen.append(trace.get()))
        await ctx.run("step", seen, undo=lambda _: outside.seen.append(f"{trace.get()} by a step"))  # pyright: ignore[reportUnknownLambdaType]
        trace.reset(token)
        raise TerminalError("no")

    @handler
    async def exact(self, ctx: Context) -> list[int]:
        decimal.getcontext().prec = 10

        def compute() -> int:
            found = decimal.getcontext().prec
            decimal.getcontext().prec = 50
            return found

        return [await ctx.run("compute", compute), decimal.getcontext().prec]


class Untraced(Service):
    @handler
    async def look(self, ctx: Context) -> list[str]:
        await ctx.sleep(1)
        return [trace.get(), await ctx.run("sync", seen), await ctx.run("async", seen_later)]


@simulated
async def test_steps_see_what_their_handler_had_set(world: Simulation) -> None:
    """Issue 15.14: as it was at ctx.run, in sync and async ones, and nothing comes back."""
    trace.set("the driver's")
    refs = [Traced[key].look.remote() for key in ("a", "b", "c")]
    for key, ref in zip("abc", refs, strict=True):
        assert await ref == ["", key, key, f"{key}, {key}", key, "child", "after"]


@simulated
async def test_each_attempt_of_a_step_sees_the_same(world: Simulation) -> None:
    """Issue 15.14."""
    assert await Traced["a"].retried.remote() == ["retried", "retried"]


@simulated
async def test_nothing_of_one_invocation_reaches_another(world: Simulation) -> None:
    """Issue 15.14: nor one attempt the next."""
    refs = [Traced["a"].look.remote(), Traced["b"].attempts.remote()]
    untraced = [Untraced.look.remote() for _ in range(3)]
    for ref in untraced:
        assert await ref == ["", "", ""]
    assert await refs[1] == ""
    await refs[0]


@simulated
async def test_a_variable_can_be_reset_when_the_handler_leaves_memory(world: Simulation) -> None:
    """Issue 15.14: its `finally` blocks run in the context in which they were begun."""
    assert await Traced["a"].reset.remote() == [""]


@simulated
async def test_a_compensation_sees_what_was_set_when_it_was_deferred(world: Simulation) -> None:
    """Issue 15.14."""
    assert str(await failure_of(Traced["a"].undone.remote())) == "no"
    assert outside.seen == ["deferred by a step", "deferred"]


@simulated
async def test_the_decimal_context_of_a_step_is_its_own(world: Simulation) -> None:
    """Issue 15.14: it is a variable's value that is changed in place."""
    assert await Traced["a"].exact.remote() == [10, 10]
