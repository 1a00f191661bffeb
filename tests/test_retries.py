"""What retries promise, one sentence a test: each in memory and with every wait turned into suspend-and-replay.

`test_crash_everywhere.py` has the counts under crashes before and after each store call.
"""

import asyncio
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from test_semantics import Broken, Simulation, failure_of, mode, outside, played, simulated

from actors import Context, Policy, Retry, RetryAfter, TerminalError, UsageError, VirtualObject, handler, state
from actors.blocks.steps import Step, StepRunner
from journal.records import Record, Tries

__all__ = ["mode"]


def broken(what: str) -> None:
    """Fail always, and note when."""
    assert outside.world is not None
    outside.seen.append((what, round(outside.world.elapsed, 2)))
    raise Broken(what)


def comes_again(delays: list[float], done: str) -> str:
    assert outside.world is not None
    outside.seen.append(round(outside.world.elapsed, 2))
    if len(outside.seen) <= len(delays):
        raise RetryAfter(delays[len(outside.seen) - 1])
    return done


def times(what: str) -> list[float]:
    """Return when attempts of a step were made, the first one at 0."""
    found = [at for name, at in outside.seen if name == what]
    return [round(at - found[0], 1) for at in found]


class Tried(VirtualObject):
    count: int = state(0)

    @handler
    async def step_asks(self, ctx: Context, delays: list[float], attempts: int | None) -> str:
        return await ctx.run("asks", comes_again, delays, "done", retry=Retry(initial=1, max_attempts=attempts))

    @handler(policy=Policy(retry=Retry(initial=1, max_attempts=3)))
    async def asks(self, ctx: Context, failures: int, how: str) -> int:
        self.count += 1
        if ctx.attempt <= failures:
            error = RetryAfter("20s", "busy")
            raise ExceptionGroup("group", [ValueError(), error]) if how == "group" else error
        return self.count

    @handler
    async def parallel(self, ctx: Context) -> list[str]:
        """Two steps that fail side by side, each with a count of its own, and one that is given up."""
        given_up = ctx.run("given up", broken, "given up", retry=Retry(initial=2, factor=1))
        steps = [
            ctx.run(name, broken, name, retry=Retry(initial=delay, factor=1, max_attempts=attempts))
            for name, delay, attempts in (("a", 1, 5), ("b", 3, 4))
        ]
        await ctx.sleep("5s")
        given_up.cancel()
        found = await asyncio.gather(*steps, return_exceptions=True)
        return [str(each.metadata["attempts"]) for each in found if isinstance(each, TerminalError)]

    @handler
    async def long(self, ctx: Context, name: str, retry: dict[str, Any]) -> str:
        try:
            await ctx.run(name, broken, name, retry=Retry(**retry))
        except TerminalError as error:
            return error.metadata["attempts"]
        return "done"

    @handler(policy=Policy(retry=Retry(initial=10, factor=1, max_duration=35)))
    async def in_all(self, ctx: Context) -> None:
        self.count += 1
        await ctx.run("step", lambda: outside.seen.append(ctx.attempt))
        raise Broken(f"attempt {ctx.attempt}")

    @handler(policy=Policy(retry=Retry(initial=1)))
    async def around_a_timer(self, ctx: Context) -> str:
        """Its timer is recorded before it fails, and waited for by the next attempt."""
        pause = asyncio.ensure_future(asyncio.sleep(10))
        await ctx.run("step", lambda: outside.act(ctx.step_id, "step"))
        if ctx.attempt < 3:
            raise Broken("not yet")
        await pause
        return "done"

    @handler
    async def hangs(self, ctx: Context) -> dict[str, str]:
        try:
            await ctx.run("hang", asyncio.sleep, 100, timeout="2s", retry=Retry(initial=1, max_attempts=2))
        except TerminalError as error:
            return {**error.metadata, "message": str(error)}
        return {}

    @handler
    async def own_time_out(self, ctx: Context) -> str:
        try:
            await ctx.run("late", _late, timeout="2s", retry=Retry(max_attempts=1))
        except TerminalError as error:
            return str(error)
        return ""


async def _late() -> None:
    raise TimeoutError("the gateway says so")


@simulated
async def test_a_step_says_when_it_is_to_be_tried_again(world: Simulation) -> None:
    assert await Tried["a"].step_asks.remote([20, 0, 3], None) == "done"
    assert [round(at - outside.seen[0], 1) for at in outside.seen] == [0, 20, 20, 23]


@simulated
async def test_an_attempt_that_asks_for_time_counts(world: Simulation) -> None:
    error = await failure_of(Tried["a"].step_asks.remote([5, 5, 5, 5], 2))
    assert error.metadata["attempts"] == "2"
    assert len(outside.seen) == 2
    assert "after 5" in str(error)


@pytest.mark.parametrize("how", ["alone", "group"])
def test_a_handler_says_when_it_is_to_be_tried_again(mode: Policy | None, how: str) -> None:
    async def scenario(world: Simulation) -> None:
        assert await Tried["a"].asks.remote(2, how) == 1
        assert 40 <= world.elapsed < 41
        assert [notice for notice in world.program.notices if "in 20 s" in notice] == world.program.notices
        error = await failure_of(Tried["a"].asks.remote(3, how))
        assert error.metadata["attempts"] == "3"

    played(scenario, mode, ["a"])


@simulated
async def test_parallel_steps_have_their_own_counts_and_one_that_is_given_up_is_not_tried_again(
    world: Simulation,
) -> None:
    assert await Tried["a"].parallel.remote() == ["5", "4"]
    assert times("a") == [0, 1, 2, 3, 4]
    assert times("b") == [0, 3, 6, 9]
    assert times("given up") == [0, 2, 4]


@pytest.mark.parametrize("left_at", [4, 7])
def test_another_host_counts_on_and_waits_for_the_rest_of_a_back_off(mode: Policy | None, left_at: int) -> None:
    async def scenario(world: Simulation) -> None:
        await world.join("a")
        refs = [
            Tried["a"].long.remote("a", {"initial": 10, "factor": 2, "max_interval": 60, "max_attempts": 4}),
            Tried["b"].long.remote("b", {"initial": 10, "factor": 1, "max_duration": 25}),
        ]
        await asyncio.sleep(left_at)
        world.members["a"].running.clear()
        await world.join("b")
        assert await asyncio.gather(*refs) == ["4", "4"]
        assert times("a") == pytest.approx([0, 10, 30, 70], abs=1)
        assert times("b") == pytest.approx([0, 10, 20, 30], abs=1)

    played(scenario, mode, [])


@pytest.mark.parametrize("moves", [False, True])
def test_the_time_of_all_attempts_is_measured_from_the_first_whoever_makes_them(
    mode: Policy | None, moves: bool
) -> None:
    async def scenario(world: Simulation) -> None:
        ref = Tried["a"].in_all.remote()
        await asyncio.sleep(15)
        if moves:
            world.members["a"].running.clear()
            await world.join("b")
        error = await failure_of(ref)
        assert error.metadata["attempts"] == "5"
        assert str(error) == "attempt 5"
        assert 40 <= world.elapsed < 42

    played(scenario, mode, ["a"])


@simulated
async def test_a_recorded_timer_goes_on_for_the_next_attempt(world: Simulation) -> None:
    assert await Tried["a"].around_a_timer.remote() == "done"
    assert 10 <= world.elapsed < 11


@simulated
async def test_each_attempt_of_a_step_has_its_own_time_and_says_when_it_was_over(world: Simulation) -> None:
    said = await Tried["a"].hangs.remote()
    assert said == {
        "message": "the step 'hang' took longer than 2 s",
        "attempts": "2",
        "step": "hang",
        "error": "builtins:TimeoutError",
    }
    assert 5 <= world.elapsed < 6
    assert "took longer than 2 s" in world.program.notices[0]
    assert await Tried["a"].own_time_out.remote() == "the gateway says so"


def runner(executor: ThreadPoolExecutor) -> StepRunner:
    return StepRunner(executor, Retry(), 1_000, lambda: 0)


async def test_a_thread_that_takes_longer_is_given_up_and_goes_on() -> None:
    ends, ended = threading.Event(), threading.Event()

    def hang() -> None:
        ends.wait(30)
        ended.set()

    async def failed(error: BaseException, delay_s: float, tries: Tries) -> None:
        assert str(error) == "the step 'hang' took longer than 0.05 s"
        future.cancel()

    future: Any = asyncio.get_running_loop().create_future()
    with ThreadPoolExecutor(1) as executor:
        step = Step(0, "hang", hang, (), {}, None, 0.05, future)
        assert await runner(executor).run(step, "i-0:0", lambda: True, failed, None) == b""
        assert not ended.is_set()
        ends.set()
    assert ended.is_set()


async def test_a_ray_function_has_the_same_time() -> None:
    class Remote:
        """Quacks like what `ray.remote` returns."""

        def bind(self) -> None: ...

        def remote(self) -> "asyncio.Future[None]":
            return asyncio.get_running_loop().create_future()

    said: list[str] = []

    async def failed(error: BaseException, delay_s: float, tries: Tries) -> None:
        said.append(str(error))
        if len(said) == 2:
            future.cancel()

    future: Any = asyncio.get_running_loop().create_future()
    step = Step(0, "train", Remote(), (), {}, Retry(initial=0), 0.02, future)
    with ThreadPoolExecutor(1) as executor:
        assert await runner(executor).run(step, "i-0:0", lambda: True, failed, None) == b""
    assert said == ["the step 'train' took longer than 0.02 s"] * 2


async def test_an_action_that_is_ended_before_it_has_begun_leaves_nothing_unawaited() -> None:
    """A warning would be an error here."""

    async def work() -> None:
        raise AssertionError("it has begun")

    def prepare() -> Any:
        step.is_stopped = True  # as its host does
        running.cancel()
        return work()

    async def failed(error: BaseException, delay_s: float, tries: Tries) -> None:
        raise AssertionError(error)

    future: Any = asyncio.get_running_loop().create_future()
    step = Step(0, "work", prepare, (), {}, None, None, future)
    on_loop = StepRunner(None, Retry(), 1_000, lambda: 0)
    running = asyncio.ensure_future(on_loop.run(step, "i-0:0", lambda: True, failed, None))
    with pytest.raises(asyncio.CancelledError):
        await running


def test_what_is_no_delay_is_refused_where_it_is_said() -> None:
    with pytest.raises(UsageError, match="write a number and a unit"):
        RetryAfter("soon")
    with pytest.raises(UsageError, match="'fail' or 'pause'"):
        Retry(on_exhausted="stop")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def test_a_wish_for_time_survives_pickling() -> None:
    found = pickle.loads(pickle.dumps(RetryAfter("2m", "busy")))
    assert (type(found), found.delay_s, str(found)) == (RetryAfter, 120.0, "busy")


def test_a_record_keeps_failed_attempts_and_leaves_out_what_is_empty() -> None:
    record = Record(tries=[Tries(3, 2, 1_000, 2_000), Tries(4, 1, 1_500, 1_600)], began_ms=7)
    assert Record.parse(record.encoded()) == record
    assert Record().encoded() == b"{}\n"
