"""Tasks of whatever a handler can wait for: each in memory and with every wait turned into suspend-and-replay."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest
from test_semantics import Simulation, failure_of, mode, outside, played, simulated

from actors import Cancelled, Context, Invocation, Policy, VirtualObject, Workflow, handler, resolve, shared, state

__all__ = ["mode"]

NEVER = 100_000.0


class Wrapped:
    """An awaitable of a library's own."""

    def __init__(self, inner: Awaitable[Any]) -> None:
        self._inner = inner

    def __await__(self) -> Any:
        return self._inner.__await__()


def started(ctx: Context, what: str) -> Any:
    """Return a wait that ends after a second, or with a word."""
    waits: dict[str, Callable[[], Any]] = {
        "sleep": lambda: ctx.sleep(1),
        "step": lambda: ctx.run("step", lambda: outside.act_for(ctx.step_id, "step", 1)),
        "sync step": lambda: ctx.run("step", outside.act, f"{ctx.id}:0", "step"),
        "call": lambda: Other[ctx.key].wait.remote(1),
        "accepted": lambda: Other[ctx.key].wait.remote(1).accepted(),
        "awakeable": lambda: opened(ctx),
        "signal": lambda: ctx.signal("go"),
        "gathered": lambda: asyncio.gather(ctx.sleep(1), ctx.sleep(0.5)),
        "shielded": lambda: asyncio.shield(ctx.sleep(1)),
        "wrapped": lambda: Wrapped(ctx.sleep(1)),
        "wrapped call": lambda: Wrapped(Other[ctx.key].wait.remote(1)),
        "task": lambda: asyncio.get_running_loop().create_task(ctx.sleep(1)),
        "coroutine": lambda: asyncio.sleep(1),
    }
    return waits[what]()


def opened(ctx: Context) -> Any:
    gate = ctx.awakeable(int)
    Other[ctx.key].open.send(gate.id)
    return gate


ALL = [
    *("sleep", "step", "sync step", "call", "accepted", "awakeable", "signal"),
    *("gathered", "shielded", "wrapped", "wrapped call", "task", "coroutine"),
]

AT_ONCE = ("accepted", "sync step", "awakeable")
"""These may have ended before they are given up."""

OUTCOMES = {"call": 1, "wrapped call": 1, "step": "step", "sync step": "step", "awakeable": 7, "signal": "went"}
OUTCOMES["gathered"] = cast("Any", [None, None])


async def in_a_group(ctx: Context, what: str) -> Any:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(started(ctx, what), name="named")
    assert task.get_name() == "named"
    return await task


async def as_the_first(ctx: Context, what: str) -> Any:
    done, _ = await asyncio.wait(
        [asyncio.create_task(started(ctx, what)), asyncio.ensure_future(asyncio.sleep(60))],
        return_when=asyncio.FIRST_COMPLETED,
    )
    return await done.pop()


async def as_completed(ctx: Context, what: str) -> Any:
    tasks: list[asyncio.Future[Any]] = [asyncio.ensure_future(started(ctx, what))]
    return await next(iter(asyncio.as_completed(tasks)))


HOW: dict[str, Callable[[Context, str], Any]] = {
    "create_task": lambda ctx, what: asyncio.create_task(started(ctx, what)),
    "loop.create_task": lambda ctx, what: asyncio.get_running_loop().create_task(started(ctx, what)),
    "group": in_a_group,
    "ensure_future": lambda ctx, what: asyncio.ensure_future(started(ctx, what)),
    "wait_for": lambda ctx, what: asyncio.wait_for(started(ctx, what), 60),
    "shield": lambda ctx, what: asyncio.shield(started(ctx, what)),
    "wait": as_the_first,
    "as_completed": as_completed,
}


class Other(VirtualObject):
    ended: int = state(0)

    @handler
    async def wait(self, ctx: Context, seconds: float) -> int:
        await ctx.sleep(seconds)
        self.ended += 1
        return self.ended

    @handler
    async def open(self, ctx: Context, gate: str) -> None:
        await resolve(gate, 7)


class Maker(VirtualObject):
    seen: list[str] = state(default_factory=list)

    @handler
    async def make(self, ctx: Context, how: str, what: str) -> Any:
        found = await HOW[how](ctx, what)
        await ctx.sleep(1)
        return found

    @handler
    async def race(self, ctx: Context, count: int) -> list[str]:
        """Many at once that end at the same time: their order is that of their making, in every replay."""
        out: list[str] = []

        async def note(name: str, wait: Any) -> None:
            await asyncio.create_task(wait)
            out.append(name)

        async with asyncio.TaskGroup() as group:
            for number in range(count):
                group.create_task(note(f"sleep {number}", ctx.sleep(1)))
                group.create_task(note(f"step {number}", ctx.run(f"step {number}", lambda: None)))
                group.create_task(note(f"call {number}", Other[f"{number}"].wait.remote(1)))
        await ctx.sleep(1)
        return out

    @handler
    async def give_up(self, ctx: Context, what: str, has_begun: bool) -> list[str]:
        task = asyncio.create_task(started(ctx, what))
        if has_begun:
            await ctx.sleep(0.2)
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            self.seen.append("cancelled")
        await ctx.sleep(3)
        return self.seen

    @handler
    async def hold(self, ctx: Context, what: str) -> None:
        waits: dict[str, Callable[[], Any]] = {
            "sleep": lambda: ctx.sleep(NEVER),
            "step": lambda: ctx.run("step", lambda: outside.act_for(ctx.step_id, "step", NEVER)),
            "call": lambda: Other[ctx.key].wait.remote(NEVER),
            "awakeable": ctx.awakeable,
            "signal": lambda: ctx.signal("never"),
        }
        await asyncio.create_task(waits[what]())

    @handler
    async def sets(self, ctx: Context) -> list[str]:
        gates = {ctx.awakeable(str) for _ in range(20)}
        for number, gate in enumerate(gates):
            await ctx.run(f"{gate.id} is {number}", lambda: None)
        return [gate.id for gate in gates]

    @handler
    async def wait_for_no_tasks(self, ctx: Context, what: str) -> None:
        await asyncio.wait([started(ctx, what)])

    @handler
    async def twice(self, ctx: Context) -> list[Any]:
        """Equal ones: one call, and the id of another that came back from the state."""
        call = Other["twice"].wait.remote(1)
        self.seen = [call.id]
        again = Invocation[int](self.seen[0])
        first = await asyncio.gather(call, call, again)
        call.signal("nobody asks", 1)
        ended = await asyncio.gather(again, call, asyncio.create_task(call), return_exceptions=True)
        return [*first, *ended, await call, call == again, len({call, again})]

    @handler
    async def keep(self, ctx: Context, what: str, where: str) -> Any:
        """Hand a wait over as if it were data."""
        kept: Any = {"step": lambda: ctx.run("step", lambda: 1)}.get(what, lambda: started(ctx, what))()
        if where == "argument":
            await Other["x"].wait.remote(kept)
        elif where == "state":
            ctx.set("kept", [kept])
        elif where == "step":
            await ctx.run("kept", lambda: {"kept": kept})
        return kept

    @handler
    async def run_a_loop(self, ctx: Context, how: str) -> None:
        if how == "run":
            asyncio.run(cast("Any", Other["x"].wait.remote(0)))
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(cast("Any", asyncio.Future(loop=loop)))
        finally:
            loop.close()

    @handler
    async def wrong(self, ctx: Context) -> str:
        try:
            asyncio.create_task(cast("Any", 5))
        except TypeError as error:
            return str(error)
        return "nothing was raised"


class Ballot(Workflow):
    @handler
    async def run(self, ctx: Context) -> str:
        both = [asyncio.create_task(ctx.promise(name, str)) for name in ("left", "right")]
        done, rest = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for task in rest:
            task.cancel()
        await ctx.sleep(1)
        return done.pop().result()

    @shared
    async def vote(self, ctx: Context, name: str) -> None:
        ctx.promise(name, str).resolve(name)


@pytest.mark.parametrize("how", HOW)
def test_whatever_can_be_awaited_becomes_a_task(mode: Policy | None, how: str) -> None:
    """Issue 15.13: asyncio's own loops take coroutines alone."""

    async def scenario(world: Simulation) -> None:
        refs = {what: Maker[what].make.remote(how, what) for what in ALL}
        await refs["signal"].signal("go", "went")
        for what, ref in refs.items():
            assert await ref == OUTCOMES.get(what), what
        assert world.elapsed < 10
        assert outside.seen == ["step", "step"], "once, whatever is replayed"

    played(scenario, mode, ["a"])


@simulated
async def test_tasks_go_on_in_the_same_order_in_every_replay(world: Simulation) -> None:
    """Issue 15.13: a divergence would pause it."""
    count = 5
    assert sorted(await Maker["a"].race.remote(count)) == sorted(
        f"{what} {number}" for number in range(count) for what in ("sleep", "step", "call")
    )


@pytest.mark.parametrize("has_begun", [False, True])
def test_a_cancel_of_the_task_cancels_its_wait(mode: Policy | None, has_begun: bool) -> None:
    """Issue 15.13: a step is given up, a call and an awakeable are left alone."""

    async def scenario(world: Simulation) -> None:
        refs = {what: Maker[what].give_up.remote(what, has_begun) for what in ALL if what not in AT_ONCE}
        for what, ref in refs.items():
            assert await ref == ["cancelled"], what
        assert world.elapsed < 6
        assert world.state("Other/call") == world.state("Other/wrapped call") == {"ended": 1}
        if not has_begun:
            assert outside.seen == [], "a step that was given up before it began"

    played(scenario, mode, ["a"])


def test_a_cancel_of_the_invocation_reaches_into_the_task(mode: Policy | None) -> None:
    """Issue 15.13."""

    async def scenario(world: Simulation) -> None:
        refs = [Maker[what].hold.remote(what) for what in ("sleep", "step", "call", "awakeable", "signal")]
        await asyncio.sleep(1)
        for ref in refs:
            await ref.cancel()
        for ref in refs:
            assert isinstance(await failure_of(ref), Cancelled)

    played(scenario, mode, ["a"])


@simulated
async def test_a_set_of_awakeables_has_one_order(world: Simulation) -> None:
    """Issue 15.13: by address it would differ from one replay to the next."""
    found = await Maker["a"].sets.remote()
    assert len(set(found)) == 20


@simulated
async def test_equal_invocations_that_are_gathered_have_equal_results(world: Simulation) -> None:
    """Issue 15.13: asyncio awaits them once, and gives the result to each."""
    assert await Maker["a"].twice.remote() == [1] * 7 + [True, 1]
    assert world.state("Other/twice") == {"ended": 1}


@pytest.mark.parametrize("where", ["argument", "state", "step", "result"])
def test_a_wait_is_no_value(mode: Policy | None, where: str) -> None:
    """Issue 15.13: an awakeable was stored with the loop of its handler."""

    async def scenario(world: Simulation) -> None:
        for what in ("awakeable", "accepted", "sleep", "step", "signal"):
            error = await failure_of(Maker[what].keep.remote(what, where))
            assert "something to wait for: await it, and hand over what it gives, or of an awakeable its id" in str(
                error
            )
            assert error.code in (400, 500 if where == "step" else 400)
        call = await Maker["call"].keep.remote("call", "state" if where == "argument" else where)
        assert await call == 1, "a call travels as its id"

    played(scenario, mode, ["a"])


@simulated
async def test_a_handler_that_runs_a_loop_is_told_to_await(world: Simulation) -> None:
    """Issue 15.21: it was tried again and again."""
    for how in ("run", "loop"):
        error = await failure_of(Maker["a"].run_a_loop.remote(how))
        assert error.code == 400
        assert "await the coroutine instead of asyncio.run()" in str(error)


@simulated
async def test_promises_become_tasks(world: Simulation) -> None:
    """Issue 15.13."""
    ref = Ballot["v"].run.remote()
    await asyncio.sleep(1)
    await Ballot["v"].vote.remote("right")
    assert await ref == "right"


@simulated
async def test_what_cannot_be_awaited_is_refused_as_asyncio_does(world: Simulation) -> None:
    """Issue 15.13."""
    assert "a coroutine was expected, got 5" in await Maker["a"].wrong.remote()


@simulated
async def test_what_asyncio_waits_for_is_a_task_and_that_is_said(world: Simulation) -> None:
    """Issue 15.13: not tried again and again; steps and sleeps are futures, which it takes."""
    for what in ("call", "awakeable", "accepted"):
        error = await failure_of(Maker[what].wait_for_no_tasks.remote(what))
        assert error.code == 400
        assert "asyncio.create_task" in str(error)
    for what in ("sleep", "step"):
        assert await Maker[what].wait_for_no_tasks.remote(what) is None
