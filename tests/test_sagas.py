"""What compensations promise, one sentence a test: each in memory and with every wait turned into suspend-and-replay.

`test_crash_everywhere.py` has the same under crashes before and after each store call.
"""

import asyncio
import functools
import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest
from test_semantics import Broke, Broken, Simulation, failure_of, mode, outside, played, simulated

from actors import (
    Cancelled,
    Context,
    Policy,
    Retry,
    Service,
    TerminalError,
    UsageError,
    VirtualObject,
    handler,
    shared,
    state,
)

__all__ = ["mode"]


async def refuse(message: str) -> None:
    raise TerminalError(message, 402)


class Voyage(VirtualObject):
    written: list[str] = state(default_factory=list)

    @handler
    async def book(self, ctx: Context, ending: str) -> str:
        """Defers by both forms, and ends as it is told."""
        ctx.defer("note", lambda: outside.act(ctx.step_id, "note"))
        await ctx.run("flight", lambda: outside.act(ctx.step_id, "flight"), undo=self._cancelled(ctx))
        self.written.append("flight")
        await asyncio.sleep(1)
        ctx.defer("car", self._act, ctx, "no car")
        await self._end(ctx, ending)
        return "booked"

    def _cancelled(self, ctx: Context) -> Callable[[str], object]:
        return lambda result: outside.act(ctx.step_id, f"no {result}")

    async def _act(self, ctx: Context, what: str, delay_s: float = 0.0) -> str:
        return await outside.act_for(ctx.step_id, what, delay_s)

    async def _end(self, ctx: Context, ending: str) -> None:
        match ending:
            case "terminal":
                raise Broke("no hotel", 409, {"hotel": "Ritz"})
            case "step":
                await ctx.run("hotel", refuse, "no hotel")
            case "exhausted":
                await ctx.run("hotel", outside.fail, 9, "", retry=Retry(max_attempts=2, initial=0.1))
            case "timeout":
                async with asyncio.timeout(1):
                    await asyncio.sleep(100)
            case "usage":
                ctx.run("", refuse, "no name")
            case "group":
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._raise(Broke("no hotel", 409)))
                    group.create_task(asyncio.sleep(100))
            case "value":
                return
            case _:
                raise AssertionError(ending)

    async def _raise(self, error: Exception) -> None:
        await asyncio.sleep(1)
        raise error

    @handler(policy=Policy(retry=Retry(initial=1)))
    async def at_third(self, ctx: Context) -> str:
        """Fails twice: nothing is undone for that."""
        ctx.defer("undone", self._act, ctx, "undone")
        await ctx.run("done", self._act, ctx, "done")
        if ctx.attempt < 3:
            raise Broken("again")
        return "done"

    @handler(policy=Policy(retry=Retry(initial=1, max_attempts=2)))
    async def never(self, ctx: Context, key: str) -> None:
        """Uses its attempts up; what it had not committed is discarded, its messages too."""
        self.written.append("committed")
        ctx.defer("undone", self._act, ctx, "undone")
        await ctx.run("done", self._act, ctx, "done")
        self.written.append("never")
        ctx.defer("again", self._act, ctx, "again")
        Voyage[key].book.send("terminal")
        raise Broken("again")

    @handler(policy=Policy(retry=Retry(max_attempts=1, on_exhausted="pause")))
    async def pausing(self, ctx: Context) -> None:
        ctx.defer("undone", self._act, ctx, "undone")
        raise Broken("paused")

    @handler
    async def slowly(self, ctx: Context, delay_s: float) -> None:
        """Is cancelled, as the rest of its time is spent on undoing what it did."""
        ctx.defer("undone", self._act, ctx, "undone", delay_s)
        ctx.defer("slow", self._act, ctx, "slow", delay_s)
        await Voyage["callee"].wait.remote()

    @handler
    async def wait(self, ctx: Context) -> None:
        await ctx.sleep("1h")

    @handler(policy=Policy(retry=Retry(initial=100)))
    async def cancelled_as_it_fails(self, ctx: Context) -> None:
        ctx.defer("undone", self._act, ctx, "undone", 2)
        ctx.defer("first", self._act, ctx, "first")
        Voyage["callee"].wait.remote()
        await ctx.run("done", self._act, ctx, "done")
        raise Broken("at last")

    @handler
    async def failing(self, ctx: Context) -> None:
        ctx.defer("first", self._act, ctx, "first")
        ctx.defer("second", refuse, "no")
        ctx.defer("third", self._act, ctx, "third")
        raise Broke("all", 409, {"of": "three"})

    @handler
    async def leaves(self, ctx: Context) -> None:
        """Leaves a task that defers as it is cut off, a step that is under way, and one that had ended."""
        ctx.run("ended", self._act, ctx, "ended", undo=self._cancelled(ctx))
        ctx.run("slow", self._act, ctx, "slow", 50, undo=self._cancelled(ctx))
        cut = asyncio.create_task(self._cut(ctx))
        await asyncio.sleep(5)
        assert not cut.done()
        raise Broke("left")

    async def _cut(self, ctx: Context) -> None:
        try:
            await ctx.sleep(100)
        finally:
            ctx.defer("cut", self._act, ctx, "cut")

    @handler
    async def parallel(self, ctx: Context) -> None:
        """The order of success decides, not the order of starting."""
        undo = self._cancelled(ctx)
        steps = [ctx.run(f"{delay}", self._act, ctx, f"{delay}", delay, undo=undo) for delay in (3, 1, 2)]
        await asyncio.gather(*steps)
        raise Broke("late")

    @handler
    async def unsendable(self, ctx: Context) -> Any:
        ctx.defer("undone", self._act, ctx, "undone")
        return threading.Lock()

    @handler
    async def mistaken(self, ctx: Context) -> list[str]:
        said: list[str] = []
        for args in (("", print), ("one", 1), ("call", Voyage["a"].book)):
            with pytest.raises(UsageError) as caught:
                ctx.defer(*args)  # pyright: ignore[reportArgumentType, reportCallIssue]  # the mistake
            said.append(str(caught.value))
        with pytest.raises(UsageError) as caught:
            ctx.run("one", len, [], undo=1)  # pyright: ignore[reportArgumentType, reportCallIssue]  # the mistake
        return [*said, str(caught.value), *await ctx.run("in a step", self._in_a_step, ctx)]

    def _in_a_step(self, ctx: Context) -> list[str]:
        with pytest.raises(UsageError) as caught:
            ctx.defer("x", print)
        return [str(caught.value)]


class PlainVoyage(Service):
    @handler
    def book(self, ctx: Context) -> None:
        """A `def` handler cannot wait, and needs not to."""
        ctx.defer("plain", outside.act, f"{ctx.id}:0", "plain")
        raise Broke("plain")


ENDINGS: dict[str, tuple[type[TerminalError], str | None, int, dict[str, str] | None]] = {
    "terminal": (Broke, "no hotel", 409, {"hotel": "Ritz"}),
    "step": (TerminalError, "no hotel", 402, {}),
    "exhausted": (TerminalError, "failure 2", 500, None),
    "timeout": (TerminalError, "timed out", 408, None),
    "usage": (TerminalError, None, 400, None),
    "group": (Broke, "no hotel", 409, {}),
}


@pytest.mark.parametrize("ending", ENDINGS)
def test_an_end_in_an_error_undoes_the_newest_first_and_goes_on_unchanged(mode: Policy | None, ending: str) -> None:
    kind, message, code, metadata = ENDINGS[ending]

    async def scenario(world: Simulation) -> None:
        error = await failure_of(Voyage["t"].book.remote(ending))

        assert (type(error), error.code) == (kind, code)
        assert message in (None, str(error))
        assert metadata in (None, error.metadata)
        assert outside.seen == ["flight", "no car", "no flight", "note"]
        assert world.state("Voyage/t") == {"written": ["flight"]}, "state written before the error is kept"

    played(scenario, mode, ["a"])


@simulated
async def test_nothing_is_undone_after_a_handler_that_returns(world: Simulation) -> None:
    assert await Voyage["t"].book.remote("value") == "booked"

    assert outside.seen == ["flight"]


@simulated
async def test_nothing_is_undone_while_another_attempt_follows(world: Simulation) -> None:
    assert await Voyage["t"].at_third.remote() == "done"

    assert outside.seen == ["done"]


@simulated
async def test_used_up_attempts_are_compensated_and_what_they_had_not_committed_is_discarded(world: Simulation) -> None:
    error = await failure_of(Voyage["t"].never.remote("other"))

    assert (str(error), error.metadata["attempts"]) == ("again", "2")
    assert outside.seen == ["done", "again", "undone"]
    assert world.state("Voyage/t") == {"written": ["committed"]}
    assert world.state("Voyage/other") == {}


@simulated
async def test_nothing_is_undone_while_an_operator_may_resume_it(world: Simulation) -> None:
    world.expected_leftovers = True
    await world.until_status(Voyage["t"].pausing.remote(), "paused")

    assert outside.seen == []


@simulated
async def test_a_cancel_compensates_and_another_one_changes_nothing(world: Simulation) -> None:
    ref = Voyage["t"].slowly.remote(5)
    await asyncio.sleep(1)
    ref.cancel()
    await asyncio.sleep(2)
    ref.cancel()
    error = await failure_of(ref)

    assert (type(error), outside.seen) == (Cancelled, ["slow", "undone"])


@simulated
async def test_an_attempt_that_fails_before_it_could_be_told_of_a_cancel_compensates(world: Simulation) -> None:
    ref = Voyage["t"].cancelled_as_it_fails.remote()
    await asyncio.sleep(1)
    ref.cancel()
    error = await failure_of(ref)

    assert isinstance(error, Cancelled)
    assert "Broken('at last')" in str(error)
    assert outside.seen == ["done", "first", "undone"]
    assert world.elapsed < 10


@simulated
async def test_a_kill_ends_compensations(world: Simulation) -> None:
    ref = Voyage["t"].slowly.remote(5)
    await asyncio.sleep(1)
    ref.cancel()
    await asyncio.sleep(2)
    ref.kill()
    error = await failure_of(ref)

    assert (str(error), outside.seen) == ("killed: nothing was compensated", ["slow"])


@simulated
async def test_a_compensation_that_fails_stops_no_other(world: Simulation) -> None:
    error = await failure_of(Voyage["t"].failing.remote())

    assert (type(error), str(error), error.code) == (Broke, "all", 409)
    assert error.metadata == {"of": "three", "compensation_failed": "second"}
    assert outside.seen == ["third", "first"]


def test_a_failed_compensation_is_logged_once_with_its_name(
    mode: Policy | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: Simulation) -> None:
        await failure_of(Voyage["t"].failing.remote())

    with caplog.at_level(logging.ERROR, "actors"):
        played(scenario, mode, ["a"])

    said = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(said) == 1
    assert said[0].startswith("Voyage/t.failing (")
    assert "): the compensation 'second' failed: " in said[0]


@simulated
async def test_what_the_handler_left_ends_before_it_is_undone(world: Simulation) -> None:
    await failure_of(Voyage["t"].leaves.remote())

    assert [what for what in outside.seen if what != "slow"] == ["ended", "cut", "no ended"]


@simulated
async def test_steps_are_undone_against_the_order_of_their_success(world: Simulation) -> None:
    await failure_of(Voyage["t"].parallel.remote())

    assert outside.seen[3:] == ["no 3", "no 2", "no 1"]


@simulated
async def test_a_result_that_cannot_be_sent_is_an_end_in_an_error(world: Simulation) -> None:
    assert (await failure_of(Voyage["t"].unsendable.remote())).code == 400

    assert outside.seen == ["undone"]


@simulated
async def test_a_plain_handler_may_defer(world: Simulation) -> None:
    await failure_of(PlainVoyage.book.remote())

    assert outside.seen == ["plain"]


@simulated
async def test_mistakes_are_refused_where_they_are_made(world: Simulation) -> None:
    said = await Voyage["t"].mistaken.remote()

    assert said[0] == "a step begins with its name: ctx.defer('charge', fn, ...), not ctx.defer('', ...)"
    assert said[1] == "step 'one': 1 cannot be called; pass the function and its arguments, not its result"
    assert said[2].startswith("step 'call': ")
    assert said[3].startswith("step 'undo one': 1 cannot be called")
    assert said[4] == "a step may repeat: return the value and call from the handler"


class Agent(VirtualObject):
    told: list[str] = state(default_factory=list)

    @handler
    async def tell(self, ctx: Context, what: str, takes_s: float = 0.0) -> str:
        await ctx.sleep(takes_s)
        self.told.append(what)
        return what

    @handler(policy=Policy(retry=Retry(initial=1)))
    async def third_time(self, ctx: Context, what: str) -> str:
        """Is retried as its own invocation."""
        if ctx.attempt < 3:
            raise Broken(what)
        self.told.append(what)
        return what

    @handler
    async def fails(self, ctx: Context) -> None:
        raise Broke("cannot", 410)

    @shared
    async def all(self, ctx: Context) -> list[str]:
        return self.told


class Returning(VirtualObject):
    @handler
    async def go(self, ctx: Context, ending: str) -> None:
        """Issue 15.15: is undone by other objects, in all forms that people type."""
        agent = Agent["a"]
        ctx.defer("one", agent.tell.remote, "one")
        ctx.defer("two", agent.third_time.remote, "two")
        ctx.defer("three", agent.tell.send, "three")
        ctx.defer("four", agent.tell.options(headers={"a": "b"}).remote, what="four", takes_s=1)
        ctx.defer("five", functools.partial(agent.tell.remote, "five"))
        ctx.defer("six", functools.partial(functools.partial(agent.handle.remote, "tell"), "six"))
        ctx.defer("seven", lambda: agent.tell.remote("seven"))
        ctx.defer("eight", lambda: agent.tell.send("eight"))
        ctx.defer("nine", self._tell, "nine")
        ctx.defer("ten", self._tell_all, "ten", "eleven")
        ctx.defer("cannot", agent.fails.remote)
        ctx.defer("cannot either", self._swallow, ctx)
        await ctx.run("twelve", lambda: "twelve", undo=agent.tell.remote)
        if ending == "cancel":
            await ctx.sleep("1h")
        raise Broke("end", 409)

    async def _tell(self, what: str) -> None:
        await Agent["a"].tell.remote(what)

    async def _tell_all(self, *what: str) -> None:
        async with asyncio.TaskGroup() as group:
            for one in what:
                group.create_task(self._tell(one))

    async def _swallow(self, ctx: Context) -> None:
        """Catches whatever it is told: that it may not call here is heard all the same."""
        try:
            await Agent["b"].tell.remote("swallowed")
        except Exception:
            outside.act(ctx.id, "never seen")
        await ctx.run("noted", lambda: outside.act(ctx.step_id, "noted"))
        raise Broke("not this one", 500)

    @handler(policy=Policy(retry=Retry(initial=1)))
    async def fails_as_it_undoes(self, ctx: Context) -> None:
        ctx.defer("first", Agent["c"].tell.remote, "first")
        ctx.defer("second", self._fail_twice, ctx)
        raise Broke("end", 409)

    async def _fail_twice(self, ctx: Context) -> None:
        await Agent["c"].tell.remote("second")
        if ctx.attempt < 3:
            raise Broken("again")

    @handler(policy=Policy(retry=Retry(initial=1, max_attempts=2)))
    async def fails_for_good_as_it_undoes(self, ctx: Context) -> None:
        ctx.defer("first", Agent["d"].tell.remote, "first")
        ctx.defer("second", self._fail_always)
        raise Broken("end")

    async def _fail_always(self) -> None:
        await Agent["d"].tell.remote("second")
        raise Broken("always")

    @handler
    def plain(self, ctx: Context) -> None:
        ctx.defer("told", Agent["e"].tell.remote, "plain")
        raise Broke("end", 409)

    @handler
    async def itself(self, ctx: Context) -> None:
        """Waits for itself: refused as every cycle is, and nothing hangs."""
        ctx.defer("told", Agent["f"].tell.remote, "told")
        ctx.defer("itself", Returning[ctx.key].plain.remote)
        raise Broke("end", 409)

    @handler
    async def mistaken(self, ctx: Context) -> list[str]:
        said: list[str] = []
        agent: Any = Agent["a"]
        for fn, *args in (
            (agent.tell, "x"),
            (agent.tell.remote,),
            (agent.tell.send, 1, 2, 3),
            (functools.partial(agent.tell.remote, "x", 1), 2),
            (agent.tell.options(timeout=1).send, "x"),
            (agent.handle.remote, "tel", "x"),
            (agent.handle.remote,),
        ):
            try:
                ctx.defer("wrong", fn, *args)
            except UsageError as error:
                said.append(str(error))
        for fn in (agent.tell.remote, agent.tell):
            try:
                ctx.run("wrong", fn, "x")
            except UsageError as error:
                said.append(str(error))
        try:
            ctx.run("wrong", lambda: 1, undo=agent.fails.remote)
        except UsageError as error:
            said.append(str(error))
        return said


UNDONE = ["twelve", "ten", "eleven", "nine", "seven", "six", "five", "four", "two", "one"]


async def returning(world: Simulation) -> None:
    error = await failure_of(Returning["r"].go.remote("raise"))
    assert (str(error), error.code) == ("end", 409)
    assert error.metadata["compensation_failed"] == "cannot either, cannot"
    told = await Agent["a"].all.remote()
    assert [what for what in told if what not in ("eight", "three")] == UNDONE
    assert sorted(told) == sorted([*UNDONE, "eight", "three"])
    assert await Agent["b"].all.remote() == ["swallowed"]
    assert outside.seen == ["noted"]


test_others_undo_what_was_done = simulated(returning)


async def returning_when_cancelled(world: Simulation) -> None:
    """A cancel while it compensates changes nothing; a kill ends it."""
    ref = Returning["r"].go.remote("cancel")
    await asyncio.sleep(1)
    ref.cancel()
    await asyncio.sleep(0.5)
    ref.cancel()
    assert (await failure_of(ref)).code == 409
    assert [what for what in await Agent["a"].all.remote() if what not in ("eight", "three")] == UNDONE

    second = Returning["k"].go.remote("raise")
    await asyncio.sleep(0.3)
    second.kill()
    await failure_of(second)
    told = await Agent["a"].all.remote()
    assert (told.count("twelve"), told.count("one")) == (2, 1)


test_a_cancel_while_others_undo_changes_nothing = simulated(returning_when_cancelled)


async def failing_as_they_undo(world: Simulation) -> None:
    """Code that calls is tried again as its handler is; what it has called it does not call again."""
    assert (await failure_of(Returning["s"].fails_as_it_undoes.remote())).metadata == {}
    assert await Agent["c"].all.remote() == ["second", "first"]
    error = await failure_of(Returning["s"].fails_for_good_as_it_undoes.remote())
    assert error.metadata["compensation_failed"] == "second"
    assert await Agent["d"].all.remote() == ["second", "first"]
    assert str(await failure_of(Returning["s"].plain.remote())) == "end"
    assert await Agent["e"].all.remote() == ["plain"]
    error = await failure_of(Returning["s"].itself.remote())
    assert error.metadata["compensation_failed"] == "itself"
    assert await Agent["f"].all.remote() == ["told"]


test_what_fails_as_it_undoes_is_tried_again = simulated(failing_as_they_undo)


@simulated
async def test_calls_that_undo_are_checked_where_they_are_deferred(world: Simulation) -> None:
    said = await Returning["t"].mistaken.remote()
    assert len(said) == 10
    assert said[0] == "step 'wrong': Agent['a'].tell may be called or sent to: pass its .remote or its .send"
    assert "missing 1 required positional argument: 'what'" in said[1]
    assert "no timeout" in said[4]
    assert "did you mean 'tell'" in said[5]
    assert "durable by itself" in said[7]
    assert "durable by itself" in said[8]


class Turncoat(VirtualObject):
    @handler
    async def go(self, ctx: Context) -> None:
        if not outside.switch:
            ctx.defer("one", lambda: outside.act_for(ctx.step_id, "one", 10))
            ctx.defer("two", lambda: outside.act(ctx.step_id, "two"))
        else:
            ctx.defer("three", lambda: outside.act(ctx.step_id, "three"))
        raise Broke("end")


def test_a_compensation_that_differs_from_its_journal_is_a_divergence() -> None:
    async def scenario(world: Simulation) -> None:
        world.expected_leftovers = True
        ref = Turncoat["t"].go.remote()
        await asyncio.sleep(1)
        world.members["a"].task.cancel()
        outside.switch = True
        await world.join("b")
        status = await world.until_status(ref, "paused")

        assert "the journal holds `run two`, the handler asked for `run three`" in status

    played(scenario, None, ["a"])
