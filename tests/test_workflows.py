"""What workflows and their promises promise, one sentence a test: in memory and with suspend-and-replay at every wait.

`test_crash_everywhere.py` has the same under crashes before and after each store call, `test_store.py` the transitions.
"""

import asyncio
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import pytest
from simulation import World, simulate
from test_semantics import Broken, Notes, Simulation, failure_of, mode, outside, played, simulated

import actors
from actors import (
    Context,
    Invocation,
    Policy,
    Service,
    TerminalError,
    UnavailableError,
    UsageError,
    VirtualObject,
    Workflow,
    handler,
    shared,
    state,
)
from actors.client.slots import Started
from journal.store import Settled

__all__ = ["mode"]


@dataclass
class Answer:
    ok: bool
    by: tuple[str, ...] = ()


def saw(ctx: Context, what: str) -> Any:
    return outside.act(ctx.step_id, what)


class Enrol(Workflow):
    status: str = state("new")

    @handler
    async def run(self, ctx: Context, email: str) -> list[Any]:
        """Reminds until the answer is there."""
        self.status = f"asked {email}"
        approved, out = ctx.promise("approved", Answer), list[Any]()
        await ctx.run("mail", lambda: outside.act(ctx.step_id, email))
        while True:
            try:
                out.append(await asyncio.wait_for(approved, 10))
                break
            except TimeoutError:
                out.append("reminded")
                Notes[ctx.key].append.send("reminded")
            except TerminalError as error:
                out.append(str(error))
                break
        self.status = "done"
        return out

    @shared
    async def approve(self, ctx: Context, by: str) -> str:
        try:
            ctx.promise("approved", Answer).resolve(Answer(True, (by,)))
        except TerminalError as error:
            return f"{error} ({error.code})"
        return "first"

    @shared
    def decline(self, ctx: Context, why: str) -> None:
        """Not async: it completes all the same."""
        ctx.promise("approved", Answer).reject(why)

    @shared
    async def joined(self, ctx: Context) -> list[Any]:
        """Waits as `run` does, twice, and changes what it got."""
        first = await ctx.promise("approved", Answer)
        first.ok = False
        await asyncio.sleep(1)
        return [first, await ctx.promise("approved", Answer), ctx.promise("approved", Answer).peek()]

    @shared
    async def look(self, ctx: Context) -> list[Any]:
        return [self.status, ctx.promise("approved", Answer).peek("nothing"), ctx.keys()]


class Flow(Workflow):
    """What one handler does with its promises alone."""

    total: int = state(0)

    @handler
    async def run(self, ctx: Context, how: str) -> Any:
        return await getattr(self, f"_{how}")(ctx)

    async def _itself(self, ctx: Context) -> list[Any]:
        """Completes before and while it waits itself."""
        first, second = ctx.promise("first", int), ctx.promise("second", int)
        first.resolve(1)
        task = asyncio.ensure_future(self._waited(ctx, "second"))
        await asyncio.sleep(0)
        second.resolve(2)
        return [await first, await task, await second, first.peek(), ctx.promise("third").peek()]

    async def _waited(self, ctx: Context, name: str) -> Any:
        return await ctx.promise(name)

    async def _then_fails(self, ctx: Context) -> list[Any]:
        """An attempt that fails has completed what it has completed."""
        self.total += 1
        one = ctx.promise("one", int)
        one.resolve(ctx.attempt)
        ctx.promise("two", int).reject(f"no {ctx.attempt}")
        if ctx.attempt < 3:
            raise Broken("after")
        await asyncio.sleep(1)
        return [one.peek(), await one, str(await failure_of(ctx.promise("two"))), self.total]

    async def _race(self, ctx: Context) -> list[str]:
        """Whoever is completed first wins in every replay."""
        waits = {name: asyncio.ensure_future(self._waited(ctx, name)) for name in "abc"}
        out: list[str] = []
        while waits:
            await asyncio.wait(waits.values(), return_when=asyncio.FIRST_COMPLETED)
            ended = [name for name, task in waits.items() if task.done()]
            out.append("+".join(ended))
            for name in ended:
                del waits[name]
            await asyncio.sleep(0.1)
        return out

    async def _peeks(self, ctx: Context) -> list[Any]:
        """What a peek led to stays so: a step is named by it."""
        out: list[Any] = []
        for _ in range(4):
            seen = ctx.promise("a", str).peek("none")
            await ctx.run(f"saw {seen}", saw, ctx, seen)
            out.append(seen)
            await asyncio.sleep(1)
        return out

    async def _wrongly(self, ctx: Context) -> list[str]:
        out: list[str] = []
        gate: Any = ctx.promise("gate")
        ctx.set("x", 1)
        tries: list[Any] = [
            lambda: ctx.promise(""),
            lambda: ctx.promise(3),  # pyright: ignore[reportArgumentType, reportCallIssue]  # users without a checker
            lambda: gate.resolve(threading.Lock()),
            lambda: gate.resolve(b"x" * 9_000_000),
            lambda: ctx.get("@promise gate"),
            lambda: ctx.set("@wait x", 1),
            lambda: ctx.clear("@mine"),
        ]
        for wrong in tries:
            try:
                wrong()
            except UsageError as error:
                out.append(str(error))
        gate.resolve("right")
        ctx.clear_all()
        return [*out, gate.peek(), *ctx.keys()]

    async def _unwritable(self, ctx: Context) -> list[Any]:
        """State that cannot be written is said where a completion would write it."""
        ctx.set("lock", threading.Lock())
        error = await failure_of(self._resolved(ctx))
        ctx.clear("lock")
        ctx.promise("a").resolve(2)
        return [error.code, "lock" in str(error), ctx.promise("a").peek()]

    async def _resolved(self, ctx: Context) -> None:
        ctx.promise("a").resolve(1)

    async def _stolen(self, ctx: Context) -> list[str]:
        gate, out = ctx.promise("gate"), list[str]()
        for step in (gate.peek, lambda: gate.resolve(1), lambda: gate.reject("no"), gate.__await__().__next__):
            out.append(str(await failure_of(ctx.run("step", step))))
        return out

    @shared
    async def put(self, ctx: Context, name: str, value: Any) -> None:
        ctx.promise(name).resolve(value)

    @shared
    async def wait(self, ctx: Context, name: str, at_most: float) -> Any:
        try:
            return await asyncio.wait_for(ctx.promise(name), at_most)
        except TimeoutError:
            return "gave up"


class Unpromising(VirtualObject):
    @handler
    async def promise(self, ctx: Context) -> None:
        ctx.promise("x")


class Promiseless(Service):
    @handler
    async def promise(self, ctx: Context) -> None:
        await ctx.promise("x", int)


class Once(Workflow):
    """What happens once, and who starts it."""

    count: int = state(0)

    async def run(self, ctx: Context, who: str) -> Answer:  # undecorated works too
        self.count += 1
        await asyncio.sleep(1)
        return Answer(True, (who,))

    @shared
    async def look(self, ctx: Context) -> int:
        return self.count


class Brief(Workflow, policy=Policy(retention=30)):
    count: int = state(0)

    @handler
    async def run(self, ctx: Context) -> int:
        self.count += 1
        ctx.promise("done", int).resolve(self.count)
        return self.count

    @shared
    async def look(self, ctx: Context) -> list[Any]:
        return [self.count, ctx.promise("done", int).peek()]


class Starter(Service):
    @handler
    async def twice(self, ctx: Context, key: str) -> list[Any]:
        """The second call fails, at once or when it is awaited; who waits for the first does not mind."""
        first, second = Once[key].handle.remote("run", "first"), Once[key].handle.remote("run", "second")
        third = Once[key].handle.send("run", "third")
        assert first == second == third
        error = await failure_of(second)
        return [str(error), error.code, await first]

    @handler
    async def joins(self, ctx: Context, key: str) -> list[Any]:
        """Joins what another has started, after its own start was refused."""
        error = await failure_of(Once[key].handle.remote("run", "late"))
        joined = actors.attach(cast("Any", Once[key]).run)
        return [error.code, await joined, await joined]

    @handler
    async def joins_nobody(self, ctx: Context, key: str) -> int:
        return (await failure_of(actors.attach(cast("Any", Once[key]).run))).code

    @handler
    async def sends(self, ctx: Context, key: str) -> None:
        Once[key].handle.send("run", "sent")


def fields(world: Simulation, target: str) -> list[str]:
    """Return what lies in the state of promises and waits."""
    return world.own_fields(target)


@simulated
async def test_run_gets_what_a_shared_handler_resolves(world: Simulation) -> None:
    ref = Enrol["a"].run.remote("a@x")
    await asyncio.sleep(25)
    assert await Enrol["a"].look.remote() == ["asked a@x", "nothing", ["status"]]
    assert await Enrol["a"].approve.remote("ann") == "first"
    assert await ref == ["reminded", "reminded", Answer(True, ("ann",))]
    assert await Enrol["a"].look.remote() == ["done", Answer(True, ("ann",)), ["status"]]
    assert await Notes["a"].read.remote() == ["reminded", "reminded"]
    assert fields(world, "Enrol/a") == ["@promise approved"]


@simulated
async def test_run_gets_a_terminal_error_when_it_is_rejected(world: Simulation) -> None:
    ref = Enrol["a"].run.remote("a@x")
    await asyncio.sleep(1)
    await Enrol["a"].decline.remote("no seat")
    assert await ref == ["no seat"]
    assert str(await failure_of(Enrol["a"].look.remote())) == "no seat"
    assert str(await failure_of(Enrol["a"].joined.remote())) == "no seat"


@simulated
async def test_the_first_completion_counts_and_the_second_is_a_409(world: Simulation) -> None:
    ref = Enrol["a"].run.remote("a@x")
    answers = await asyncio.gather(*(Enrol["a"].approve.remote(by) for by in "xyz"))
    late = await failure_of(Enrol["a"].decline.remote("late"))
    assert sorted(answers)[:2] == ["first", "the promise 'approved' of Enrol/a has its value already (409)"]
    assert (late.code, str(late)) == (409, "the promise 'approved' of Enrol/a has its value already")
    winner = "xyz"[answers.index("first")]
    assert (await ref)[-1] == Answer(True, (winner,))


@simulated
async def test_what_is_completed_before_it_is_awaited_is_there_before_and_after_the_run(world: Simulation) -> None:
    assert await Enrol["a"].approve.remote("early") == "first"
    joined = Enrol["a"].joined.remote()
    ref = Enrol["a"].run.remote("a@x")
    value = Answer(True, ("early",))
    assert await ref == [value]
    assert await joined == [Answer(False, ("early",)), value, value]
    assert await Enrol["a"].joined.remote() == [Answer(False, ("early",)), value, value]


@simulated
async def test_all_who_wait_are_told_and_their_waits_are_gone(world: Simulation) -> None:
    waiting = [Enrol["a"].joined.remote() for _ in range(20)]
    ref = Enrol["a"].run.remote("a@x")
    await asyncio.sleep(5)
    assert len(fields(world, "Enrol/a")) == 21
    await Enrol["a"].approve.remote("ann")
    for found in await asyncio.gather(*waiting):
        assert found[1:] == [Answer(True, ("ann",))] * 2
    assert (await ref)[-1].ok
    assert fields(world, "Enrol/a") == ["@promise approved"]


@simulated
async def test_a_handler_completes_what_it_awaits_itself(world: Simulation) -> None:
    assert await Flow["a"].run.remote("itself") == [1, 2, 2, 1, None]


@simulated
async def test_what_an_attempt_has_completed_stays_completed_when_it_fails(world: Simulation) -> None:
    assert await Flow["a"].run.remote("then_fails") == [1, 1, "no 1", 1]
    assert world.state("Flow/a") == {"total": 1}


@simulated
async def test_of_several_the_order_of_completion_is_the_same_in_every_replay(world: Simulation) -> None:
    ref = Flow["a"].run.remote("race")
    for name in "cab":
        await asyncio.sleep(1)
        await Flow["a"].put.remote(name, name)
    assert await ref == ["c", "a", "b"]


@simulated
async def test_what_was_seen_by_a_peek_is_seen_again_by_a_replay(world: Simulation) -> None:
    ref = Flow["a"].run.remote("peeks")
    await asyncio.sleep(1.5)
    await Flow["a"].put.remote("a", "some")
    assert await ref == outside.seen == ["none", "none", "some", "some"]


@simulated
async def test_a_wait_that_was_given_up_ends_with_its_invocation(world: Simulation) -> None:
    waiting = [Flow["a"].wait.remote("a", at_most) for at_most in (1, 2, 30)]
    await asyncio.sleep(5)
    assert [field.endswith(" a") for field in fields(world, "Flow/a")] == [True]
    await Flow["a"].put.remote("a", "it")
    assert await asyncio.gather(*waiting) == ["gave up", "gave up", "it"]
    assert fields(world, "Flow/a") == ["@promise a"]


@simulated
async def test_mistakes_are_said_where_they_are_made(world: Simulation) -> None:
    unnamed, number, lock, long, *own, found = await Flow["a"].run.remote("wrongly")
    assert "a promise has a name" in unnamed
    assert "a promise has a name" in number
    assert "cannot be" in lock
    assert "payload_max" in long
    assert len(own) == 3
    assert all("begin with '@'" in error for error in own)
    assert found == "right"


@simulated
async def test_state_that_cannot_be_written_fails_the_completion(world: Simulation) -> None:
    assert await Flow["a"].run.remote("unwritable") == [400, True, 2]


@simulated
async def test_a_step_has_no_promises(world: Simulation) -> None:
    errors = await Flow["a"].run.remote("stolen")
    assert len(errors) == 4
    assert all("a step may repeat" in error for error in errors)


@simulated
async def test_only_workflows_have_promises(world: Simulation) -> None:
    for ref in (Unpromising["a"].promise.remote(), Promiseless.promise.remote()):
        error = await failure_of(ref)
        assert error.code == 400
        assert "is no Workflow, so it has no promises" in str(error)


def test_it_survives_the_hosts_that_wait(mode: Policy | None) -> None:
    async def scenario(world: Simulation) -> None:
        refs = [Enrol[key].run.remote(key) for key in "abcdef"]
        joined = [Enrol[key].joined.remote() for key in "abcdef"]
        await asyncio.sleep(15)
        for key in "abc":
            await Enrol[key].approve.remote("early")
        world.members["a"].running.clear()
        await asyncio.sleep(20)
        for key in "def":
            await Enrol[key].approve.remote("late")
        assert [found[-1].by[0] for found in await asyncio.gather(*refs)] == ["early"] * 3 + ["late"] * 3
        assert [found[-1].by[0] for found in await asyncio.gather(*joined)] == ["early"] * 3 + ["late"] * 3

    played(scenario, mode, ["a", "b"])


# ---------------------------------------------------------------------------------------------------- once for each key


@simulated
async def test_a_second_call_of_a_handler_is_a_409_and_the_first_goes_on(world: Simulation) -> None:
    why = "Once/a was started already: actors.attach(Once['a'].run) joins it"
    why += ", as does the same start with its idempotency key"
    assert await Starter.twice.remote("a") == [why, 409, Answer(True, ("first",))]
    assert world.state("Once/a") == {"count": 1}
    assert await Once["a"].look.remote() == 1


@simulated
async def test_a_handler_joins_what_another_has_started(world: Simulation) -> None:
    assert await Starter.joins_nobody.remote("a") == 404
    ref = Once["a"].handle.remote("run", "program")
    await asyncio.sleep(0.5)
    joined = await Starter.joins.remote("a")
    assert joined == [409, Answer(True, ("program",)), Answer(True, ("program",))]
    assert await Starter.joins.remote("a") == joined, "also when it has ended"
    assert await ref == joined[1]


def test_a_second_send_of_a_handler_does_nothing_and_is_in_the_log(
    mode: Policy | None, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(world: Simulation) -> None:
        await Starter.sends.remote("a")
        await Starter.sends.remote("a")
        await asyncio.sleep(5)
        assert world.state("Once/a") == {"count": 1}

    with caplog.at_level(logging.WARNING, "actors"):
        played(scenario, mode, ["a"])
    assert "its run happens once" in caplog.text


@simulated
async def test_after_its_retention_nothing_is_left_and_the_key_may_be_started_again(world: Simulation) -> None:
    assert await Brief["a"].run.remote() == 1
    await asyncio.sleep(20)
    assert await Brief["a"].look.remote() == [1, 1]
    await asyncio.sleep(20)
    assert (world.state("Brief/a"), fields(world, "Brief/a")) == ({}, [])
    assert await Brief["a"].look.remote() == [0, None]
    await asyncio.sleep(60)
    assert await Brief["a"].look.remote() == [0, None]  # what ends here lets what is over be forgotten
    second = Brief["a"].run.options(headers={"second": "start"}).remote()
    await asyncio.sleep(1)
    assert await world.status(second) == "succeeded"
    assert await Brief["a"].look.remote() == [1, 1]


def test_a_run_that_was_started_as_one_of_many_is_refused() -> None:
    async def scenario(world: World) -> None:
        with pytest.raises(TerminalError, match="does not know the workflow") as caught:
            await world.driver.call("Once/a", "run", "x")
        assert caught.value.code == 400
        assert world.state("Once/a") == {}

    simulate(scenario, iter(()))


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[actors.Session]:
    with actors.init(hosts="local", directory=str(tmp_path_factory.mktemp("store"))) as session:
        yield session


def test_a_second_start_of_a_program_is_a_409_wherever_it_is_waited_for(session: actors.Session) -> None:
    run = cast("Any", Once["a"]).run
    early = actors.attach(run)
    first, second, third = run.remote("first"), run.remote("second"), run.send("third")
    for wait in (second.result, second.accepted().result, third.accepted().result, third.result):
        with pytest.raises(TerminalError, match=r"actors\.attach\(Once\['a'\]\.run\) joins it") as caught:
            wait(timeout=30)
        assert caught.value.code == 409
    first.accepted().result(timeout=30)
    assert first == second == early
    assert actors.get([first, early, actors.attach(run)], timeout=30) == [Answer(True, ("first",))] * 3
    with pytest.raises(TerminalError, match="joins it"):
        asyncio.run(_awaited(run.remote("after the end")))
    assert Once["a"].look.remote().result(timeout=30) == 1


async def _awaited(ref: Invocation[Any]) -> Any:
    return await ref


def test_who_sends_a_start_may_wait_for_it_later(session: actors.Session) -> None:
    sent = cast("Any", Once["b"]).run.send("sent")
    assert sent.result(timeout=30) == Answer(True, ("sent",))
    late = cast("Any", Once["b"]).run.send("late")
    with pytest.raises(TerminalError, match="joins it"):
        late.result(timeout=30)


@pytest.mark.parametrize("is_applied", [True, False])
def test_a_start_whose_writer_was_refused_is_no_second_one(session: actors.Session, is_applied: bool) -> None:
    assert session.client is not None
    store, key = session.client._store, f"refused {is_applied}"  # pyright: ignore[reportPrivateUsage]  # as if its answer was lost
    original, refused = store.submit, list[int]()

    async def submit(writer: str, number: int, operations: Any, seen: str) -> Any:
        if not refused and any(isinstance(operation, Started) for operation in operations):
            refused.append(number)
            if is_applied:
                await original(writer, number, operations, seen)
            return Settled.REFUSED
        return await original(writer, number, operations, seen)

    store.submit = submit  # type: ignore[method-assign]
    try:
        ref = cast("Any", Once[key]).run.remote("mine")
        if is_applied:
            assert ref.result(timeout=30) == Answer(True, ("mine",))
        else:
            with pytest.raises(UnavailableError, match="its outcome is unknown"):
                ref.result(timeout=30)
    finally:
        store.submit = original  # type: ignore[method-assign]
    assert refused


def test_what_is_no_run_of_a_workflow_cannot_be_joined(session: actors.Session) -> None:
    for call in (Once["a"].look, Starter.sends, Unpromising["a"].promise):
        with pytest.raises(UsageError, match="attach to the id of one"):
            actors.attach(cast("Any", call))
