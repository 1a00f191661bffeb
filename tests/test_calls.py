"""What calls promise besides their results: time-outs, keys, delays, headers, and waits for what others have started.

One sentence a test: each in memory and with every wait turned into suspend-and-replay.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from test_semantics import Broken, Simulation, failure_of, mode, played, simulated

import actors
from actors import (
    CallTimeout,
    Cancelled,
    Context,
    Invocation,
    Policy,
    Retry,
    Service,
    TerminalError,
    UsageError,
    VirtualObject,
    handler,
    state,
)

__all__ = ["mode"]

NEVER = 100_000.0


class Slow(VirtualObject):
    lines: list[str] = state(default_factory=list)

    @handler
    async def answer(self, ctx: Context, after_s: float, heedless: bool = False) -> str:
        """Undoes what it did, if it is cancelled; heedless, it answers all the same."""
        try:
            await ctx.sleep(after_s)
        except Cancelled:
            self.lines.append("cancelled")
            await ctx.sleep(1)
            if not heedless:
                raise
        return "answer"

    @handler
    async def note(self, ctx: Context, line: str) -> list[str]:
        self.lines.append(line)
        return self.lines

    @handler
    async def names(self, ctx: Context, how: str, length: int) -> None:
        if how == "step":
            await ctx.run("n" * length, str)
        else:
            await ctx.sleep(0, name="n" * length)

    @handler(policy=Policy(retention="60s"))
    async def kept(self, ctx: Context) -> None:
        pass

    @handler
    async def fails(self, ctx: Context) -> None:
        raise TerminalError("no", 418)

    @handler
    async def headed(self, ctx: Context) -> dict[str, str]:
        return {**ctx.headers, "attempt": str(ctx.attempt)}


class Asker(Service):
    @handler
    async def ask(self, ctx: Context, key: str, after_s: float, timeout_s: float, heedless: bool = False) -> list[str]:
        call = Slow[key].answer.options(timeout=timeout_s).remote(after_s, heedless)
        out: list[str] = []
        for _ in range(2):  # what it is told stays
            try:
                out.append(await call)
            except CallTimeout as error:
                out.append(str(error))
        await ctx.sleep(after_s)  # a reply that comes later finds nobody
        return out

    @handler
    async def uncaught(self, ctx: Context) -> str:
        return await Slow["a"].answer.options(timeout="2s").remote(NEVER)

    @handler
    async def many(self, ctx: Context) -> list[str]:
        calls = [Slow[str(n)].answer.options(timeout=5).remote(float(n)) for n in (1, 3, 7, 9)]
        return [type(each).__name__ for each in await asyncio.gather(*calls, return_exceptions=True)]

    @handler(policy=Policy(retry=Retry(initial=1)))
    async def stumbles(self, ctx: Context) -> str:
        """The time-out goes on through attempts: it is a timer like any other."""
        call = Slow["a"].answer.options(timeout=5).remote(NEVER)
        await ctx.sleep(1)
        if ctx.attempt < 3:
            raise Broken("not yet")
        try:
            return await call
        except CallTimeout:
            return f"{ctx.now().timestamp():.0f}"

    @handler
    async def wait_for(self, ctx: Context, refs: list[Invocation[Any]]) -> list[Any]:
        """Each twice: the second time it is known."""
        out: list[Any] = []
        for ref in [*refs, *refs]:
            try:
                out.append(await ref)
            except TerminalError as error:
                out.append(error.code)
        return out

    @handler
    async def attach(self, ctx: Context, id: str) -> Any:
        return await actors.attach(id)

    @handler
    async def wrongly(self, ctx: Context, what: str) -> Any:
        match what:
            case "peek":
                return Slow["a"].note.remote("x").peek()
            case "itself":
                return await actors.attach(ctx.id)
            case "id":
                return actors.attach("nonsense")
            case _:
                return Slow["a"].note.options(timeout=1).send("x")


# ---------------------------------------------------------------------------------------------------------- time-outs


@simulated
async def test_a_call_that_takes_too_long_fails_and_is_cancelled(world: Simulation) -> None:
    late = "Slow/a.answer took longer than 2 s; it is cancelled"
    assert await Asker.ask.remote("a", 50.0, 2.0) == [late] * 2
    assert world.state("Slow/a") == {"lines": ["cancelled"]}
    await Slow["a"].note.remote("free")


@simulated
async def test_a_late_answer_finds_nobody(world: Simulation) -> None:
    assert (await Asker.ask.remote("a", 50.0, 2.0, heedless=True))[0].startswith("Slow/a.answer took longer")


@simulated
async def test_a_call_in_time_is_not_cancelled(world: Simulation) -> None:
    assert await Asker.ask.remote("a", 2.0, 50.0) == ["answer"] * 2
    assert world.state("Slow/a") == {}
    assert world.elapsed < 10
    if world.policy is None:  # who has left memory knows its timers no more: they come to nothing when they are due
        assert not any(shard.timers for shard in world.store._world.shards)  # pyright: ignore[reportPrivateUsage]


@simulated
async def test_an_uncaught_time_out_is_the_outcome(world: Simulation) -> None:
    error = await failure_of(Asker.uncaught.remote())
    assert (type(error), error.code) == (CallTimeout, 408)
    assert isinstance(error, TimeoutError)


@simulated
async def test_each_call_has_its_own_time(world: Simulation) -> None:
    assert await Asker.many.remote() == ["str", "str", "CallTimeout", "CallTimeout"]
    assert world.elapsed < 7


@simulated
async def test_a_time_out_goes_on_through_attempts(world: Simulation) -> None:
    began = world.loop.time()
    assert abs(float(await Asker.stumbles.remote()) - began - 5) < 1.5


@simulated
async def test_a_cancel_leaves_the_time_outs_of_calls_alone(world: Simulation) -> None:
    ref = Asker.ask.remote("a", 50.0, 20.0, heedless=True)
    await asyncio.sleep(1)
    await ref.cancel()
    await failure_of(ref)
    await asyncio.sleep(30)
    assert world.state("Slow/a") == {"lines": ["cancelled"]}


# -------------------------------------------------------------------------------------------------------------- attach


@simulated
async def test_a_handler_waits_for_what_others_have_started(world: Simulation) -> None:
    ended, failed = Slow["a"].note.remote("x"), Slow["a"].fails.remote()
    assert await ended == ["x"]
    await failure_of(failed)
    slow, sent = Slow["b"].answer.remote(5.0), Slow["c"].answer.send(100.0)
    assert await Asker.wait_for.remote([ended, failed, slow, sent]) == [["x"], 418, "answer", "answer"] * 2
    assert await Asker.attach.remote(slow.id) == "answer"


@simulated
async def test_an_unknown_one_is_a_terminal_error(world: Simulation) -> None:
    error = await failure_of(Asker.attach.remote("nobody-1"))
    assert error.code == 404
    assert str(error) == (
        "nobody-1 is not known: it never was, or its outcome is forgotten, by age (retention) or by count (done_max)"
    )


@simulated
async def test_no_cancel_follows_what_was_attached_to(world: Simulation) -> None:
    slow = Slow["a"].answer.remote(20.0)
    waiting = Asker.attach.remote(slow.id)
    await asyncio.sleep(1)
    await waiting.cancel()
    assert isinstance(await failure_of(waiting), Cancelled)
    again = Asker.attach.remote(slow.id)
    await asyncio.sleep(1)
    await again.kill()
    assert isinstance(await failure_of(again), Cancelled)
    assert await slow == "answer"


def test_who_waits_for_others_survives_its_host(mode: Policy | None) -> None:
    async def scenario(world: Simulation) -> None:
        slow = [Slow[key].answer.remote(20.0) for key in "abcdef"]
        waiting = [Asker.attach.remote(ref.id) for ref in slow]
        await asyncio.sleep(5)
        world.members["a"].running.clear()
        assert await asyncio.gather(*waiting) == ["answer"] * 6

    played(scenario, mode, ["a", "b"])


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("peek", "peek() is not replayed, so it has no place in a handler: await the invocation instead"),
        ("itself", " cannot wait for its own end"),
        ("id", "'nonsense' is not the id of an invocation"),
        ("send", "Slow/a.note: nobody waits for a send, so it has no timeout; use .remote(), or cancel() what .send()"),
    ],
)
def test_a_mistake_fails_in_the_handler(mode: Policy | None, what: str, said: str) -> None:
    async def scenario(world: Simulation) -> None:
        error = await failure_of(Asker.wrongly.remote(what))
        assert error.code == 400
        assert said in str(error)

    played(scenario, mode, ["a"])


# -------------------------------------------------------------------------------------------- keys, delays and headers


@simulated
async def test_calls_with_one_idempotency_key_share_one_execution(world: Simulation) -> None:
    start = Slow["a"].note.options(idempotency_key="k").remote
    refs = [start("0") for _ in range(10)]
    assert {ref.id for ref in refs} == {refs[0].id}
    assert await asyncio.gather(*refs) == [["0"]] * 10
    assert await start("0") == ["0"], "its outcome is kept"
    assert world.state("Slow/a") == {"lines": ["0"]}


@simulated
async def test_a_retention_that_is_said_holds_with_and_without_an_idempotency_key(world: Simulation) -> None:
    """Issue 15.26: it held for workflows alone, and a key's was a day whatever the policy."""
    world.store._world.limits = replace(world.store._world.limits, done_max=1)  # pyright: ignore[reportPrivateUsage]
    refs = [
        Slow["a"].kept.remote(),
        Slow["a"].kept.options(idempotency_key="k").remote(),
        Slow["a"].note.options(idempotency_key="k").remote("said nothing"),
        Slow["a"].note.remote("nor this"),
    ]
    await asyncio.gather(*refs)
    for number in range(5):
        await Slow["a"].note.remote(str(number))
    assert [await world.status(ref) for ref in refs] == [*["succeeded"] * 3, ""]
    await asyncio.sleep(50)
    assert [await world.status(ref) for ref in refs] == [*["succeeded"] * 3, ""]
    await asyncio.sleep(20)
    assert [await world.status(ref) for ref in refs] == ["", "", "succeeded", ""]


@simulated
async def test_delays_of_one_key_pass_at_once(world: Simulation) -> None:
    refs = [Slow["a"].note.options(delay=5).remote(str(number)) for number in range(10)]
    await asyncio.gather(*refs)
    assert 5 <= world.elapsed < 6
    assert len(world.state("Slow/a")["lines"]) == 10


@simulated
async def test_headers_arrive(world: Simulation) -> None:
    assert await Slow["a"].headed.options(headers={"user": "ann"}).remote() == {"user": "ann", "attempt": "1"}


# ------------------------------------------------------------------------------------------------------ a real program


@pytest.fixture(scope="module")
def program(valkey_url: str) -> Iterator[None]:
    actors.init(redis=valkey_url, hosts="local", namespace="calls")
    yield
    actors.shutdown()


@pytest.mark.usefixtures("program")
def test_a_programs_call_that_takes_too_long_fails_and_is_cancelled() -> None:
    ref = Slow["p"].answer.options(timeout="100ms").remote(NEVER)
    with pytest.raises(CallTimeout, match=r"Slow/p\.answer took longer than 0\.1 s; it is cancelled"):
        ref.result(timeout=10)
    assert Slow["p"].note.remote("free").result(timeout=10) == ["cancelled", "free"]
    with pytest.raises(CallTimeout):
        ref.result()
    with pytest.raises(Cancelled):
        Invocation[str](ref.id, actors.attach(ref.id)._source).result(timeout=10)  # pyright: ignore[reportPrivateUsage]


@pytest.mark.usefixtures("program")
def test_an_outcome_is_peeked_at_without_waiting() -> None:
    open_, ended, failed = Slow["q"].answer.remote(NEVER), Slow["r"].note.remote("x"), Slow["r"].fails.remote()
    open_.accepted().result(timeout=10)
    assert open_.peek() is None
    assert open_.peek("not yet") == "not yet"
    assert ended.result(timeout=10) == ended.peek() == actors.attach(ended.id).peek() == ["x"]
    with pytest.raises(TerminalError, match="no"):
        failed.result(timeout=10)
    with pytest.raises(TerminalError, match="no"):
        failed.peek()
    open_.cancel().result(timeout=10)
    with pytest.raises(Cancelled):
        open_.result(timeout=10)
    with pytest.raises(actors.NotFoundError, match="nobody-1 is not known"):
        actors.attach("nobody-1").peek()


@pytest.mark.usefixtures("program")
def test_a_send_has_no_time_out() -> None:
    with pytest.raises(UsageError, match="nobody waits for a send"):
        Slow["a"].note.options(timeout=1).send("x")
    with pytest.raises(UsageError, match="duration"):
        Slow["a"].note.options(timeout="soon")


@simulated
async def test_keys_names_and_headers_are_bounded(world: Simulation) -> None:
    """Issue 16.2, promise 9: the error names the limit, in the caller."""
    with pytest.raises(UsageError, match="key_max"):
        Slow["k" * 8_000].note.remote("x")
    with pytest.raises(UsageError, match="headers_max"):
        Slow["a"].note.options(headers={"h": "x" * 64_000}).remote("x")
    for how in ("step", "sleep"):
        error = await failure_of(Slow["a"].names.remote(how, 10_000))
        assert error.code == 400
        assert "name_max" in str(error)
        await Slow["a"].names.remote(how, 9_000)
