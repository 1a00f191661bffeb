"""A cancel that a handler catches and does not heed: said in the host's log, once, whatever is replayed."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from test_semantics import Simulation, failure_of, mode, outside, played

from actors import Cancelled, Context, Policy, TerminalError, VirtualObject, handler, shared, state

__all__ = ["mode"]

NEVER = 100_000.0

WAITS: dict[str, Callable[[Context], Awaitable[Any]]] = {
    "sleep": lambda ctx: ctx.sleep(NEVER),
    "asyncio": lambda ctx: asyncio.sleep(NEVER),
    "step": lambda ctx: ctx.run("step", lambda: outside.act_for(ctx.step_id, "step", NEVER)),
    "call": lambda ctx: Heedless[f"{ctx.key}-callee"].wait.remote(),
    "awakeable": lambda ctx: ctx.awakeable(),
    "signal": lambda ctx: ctx.signal("never"),
    "lock": lambda ctx: asyncio.Event().wait(),
    "task": lambda ctx: asyncio.ensure_future(asyncio.gather(ctx.signal("never"))),
    "shield": lambda ctx: asyncio.shield(ctx.sleep(NEVER)),
    "timeout": lambda ctx: asyncio.wait_for(ctx.signal("never"), NEVER),
}


class Heedless(VirtualObject):
    lines: list[str] = state(default_factory=list)

    @handler
    async def swallow(self, ctx: Context, how: str) -> str:
        try:
            await WAITS[how](ctx)
        except BaseException:
            pass
        return "went on"

    @shared
    async def swallow_shared(self, ctx: Context, how: str) -> str:
        with suppress(BaseException):
            await WAITS[how](ctx)
        return "went on"

    @handler
    async def swallow_and_wait(self, ctx: Context, how: str) -> str:
        with suppress(BaseException):
            await WAITS[how](ctx)
        await ctx.sleep(1)
        await ctx.sleep(1)
        return "went on"

    @handler
    async def gather(self, ctx: Context) -> list[str]:
        found = await asyncio.gather(
            *(wait(ctx) for how, wait in WAITS.items() if how != "lock"), return_exceptions=True
        )
        await ctx.sleep(1)
        return sorted({type(each).__name__ for each in found})

    @handler
    async def forever(self, ctx: Context) -> None:
        while True:
            try:
                await ctx.sleep(10)
            except BaseException:
                await ctx.sleep(1)  # within the block it could be compensating

    @handler
    async def wait(self, ctx: Context) -> None:
        await ctx.sleep(NEVER)

    @handler
    async def clean_up(self, ctx: Context, how: str) -> None:
        """Heeds it, in every way."""
        try:
            try:
                await WAITS[how](ctx)
            finally:
                await ctx.sleep(1)
                await ctx.run("clean", lambda: None)
        except (Cancelled, asyncio.CancelledError):
            await self._undo(ctx)
            await asyncio.gather(ctx.sleep(1), self._undo(ctx))
            raise

    async def _undo(self, ctx: Context) -> None:
        try:
            raise ValueError("while it compensates")
        except ValueError:
            await ctx.sleep(1)

    @handler
    async def grouped(self, ctx: Context) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.clean_up(ctx, "sleep"))
            group.create_task(self.clean_up(ctx, "signal"))

    @handler
    async def deferred(self, ctx: Context) -> None:
        ctx.defer("undo", outside.seen.append, "undone")
        with suppress(Cancelled):
            await ctx.sleep(NEVER)
        raise TerminalError("given up")


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    """Return what the log says of cancels that are not heeded, by how the handler went on."""

    def found() -> list[str]:
        texts = [record.getMessage() for record in caplog.records]
        return [text.partition("has caught that, and ")[2].partition(".")[0] for text in texts if "caught that" in text]

    return found


async def cancelled(world: Simulation, ref: Any) -> None:
    await asyncio.sleep(1)
    await ref.cancel()


def test_who_catches_a_cancel_and_returns_is_named(mode: Policy | None, said: Callable[[], list[str]]) -> None:
    """Issue 15.20: for each kind of wait, in exclusive and shared handlers."""

    async def scenario(world: Simulation) -> None:
        refs = [Heedless[how].swallow.remote(how) for how in WAITS]
        refs += [Heedless[how].swallow_shared.remote(how) for how in WAITS]
        await asyncio.sleep(1)
        for ref in refs:
            await ref.cancel()
        assert [await ref for ref in refs] == ["went on"] * len(refs)

    played(scenario, mode, ["a"])
    assert said() == ["has returned a result"] * (2 * len(WAITS))


def test_who_catches_a_cancel_and_waits_again_is_named_once(mode: Policy | None, said: Callable[[], list[str]]) -> None:
    """Issue 15.20."""

    async def scenario(world: Simulation) -> None:
        refs = [Heedless[how].swallow_and_wait.remote(how) for how in WAITS]
        await asyncio.sleep(1)
        for ref in refs:
            await ref.cancel()
        assert [await ref for ref in refs] == ["went on"] * len(refs)
        ref = Heedless["gather"].gather.remote()
        await cancelled(world, ref)
        assert await ref == ["Cancelled"]

    played(scenario, mode, ["a"])
    assert said() == ["goes on"] * (len(WAITS) + 1)


def test_one_that_never_ends_is_named_once(mode: Policy | None, said: Callable[[], list[str]]) -> None:
    """Issue 15.20: `except BaseException` in a loop; a kill ends it."""

    async def scenario(world: Simulation) -> None:
        ref = Heedless["a"].forever.remote()
        await cancelled(world, ref)
        await asyncio.sleep(100)
        ref.kill()
        assert isinstance(await failure_of(ref), Cancelled)

    played(scenario, mode, ["a"])
    assert said() == ["goes on"]


def test_who_cleans_up_and_ends_is_not_named(mode: Policy | None, said: Callable[[], list[str]]) -> None:
    """Issue 15.20: waits in `finally` and `except`, of tasks, of a group, and what was deferred."""

    async def scenario(world: Simulation) -> None:
        refs: list[Any] = [Heedless[how].clean_up.remote(how) for how in WAITS]
        refs += [Heedless["group"].grouped.remote(), Heedless["deferred"].deferred.remote()]
        await asyncio.sleep(1)
        for ref in refs:
            await ref.cancel()
        for ref in refs:
            await failure_of(ref)
        assert outside.seen.count("undone") == 1

    played(scenario, mode, ["a"])
    assert said() == []
