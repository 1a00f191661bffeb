"""What cancel and kill promise, one sentence a test: each in memory and with every wait turned into suspend-and-replay.

`test_crash_everywhere.py` has the same under crashes before and after each store call, `test_store.py` the transitions.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from hostless import hostless
from test_semantics import Broken, Simulation, failure_of, mode, outside, played, simulated

from actors import (
    Cancelled,
    Context,
    Invocation,
    NotFoundError,
    Policy,
    Retry,
    Service,
    UsageError,
    VirtualObject,
    handler,
    resolve,
    shared,
    state,
)
from actors.client.client import Client
from actors.code.code import CodeBook
from journal.ids import shard_in
from journal.records import EventKind, Message
from journal.store import Arrivals

__all__ = ["mode"]

NEVER = 100_000.0
"""Seconds that are not waited for."""


def failing() -> None:
    outside.count += 1
    raise ConnectionError("down")


async def acting(ctx: Context, what: str, duration_s: float) -> str:
    try:
        return await outside.act_for(ctx.step_id, what, duration_s)
    except asyncio.CancelledError:
        outside.seen.append(f"{what} was stopped")
        raise


class Held(VirtualObject):
    """Waits in every way there is, and says what it saw."""

    lines: list[str] = state(default_factory=list)

    async def _wait(self, ctx: Context, how: str) -> Any:
        waits: dict[str, Callable[[], Awaitable[Any]]] = {
            "sleep": lambda: ctx.sleep(NEVER),
            "asyncio": lambda: asyncio.sleep(NEVER),
            "step": lambda: ctx.run("step", acting, ctx, "step", NEVER),
            "retrying": lambda: ctx.run("step", failing, retry=Retry(initial=NEVER, max_interval=NEVER)),
            "call": lambda: Held[f"{ctx.key}-callee"].hold.remote("sleep"),
            "awakeable": lambda: ctx.awakeable(),
            "signal": lambda: ctx.signal("never"),
            "timeout": lambda: asyncio.wait_for(ctx.signal("never"), NEVER),
            "shield": lambda: asyncio.shield(ctx.sleep(NEVER)),
            "lock": asyncio.Event().wait,
            "task": lambda: asyncio.create_task(self._wait(ctx, "signal")),
            "gather": lambda: asyncio.gather(ctx.sleep(NEVER), ctx.signal("never")),
        }
        return await waits[how]()

    @handler
    async def hold(self, ctx: Context, how: str) -> None:
        self.lines.append("began")
        await self._wait(ctx, how)

    @handler
    async def compensate(self, ctx: Context, how: str, undone: str = "undone") -> str:
        """Whatever it starts after the cancel works."""
        try:
            await self._wait(ctx, how)
        except (Cancelled, asyncio.CancelledError) as error:
            await ctx.run("undo", outside.act, f"{ctx.id}:{ctx.key}", undone)
            await asyncio.sleep(1)
            self.lines.append(await Held[f"{ctx.key}-log"].add.remote(undone))
            return f"{type(error).__name__}, {undone}"
        return "not cancelled"

    @handler
    async def add(self, ctx: Context, line: str) -> str:
        self.lines.append(line)
        return line

    @shared
    async def read(self, ctx: Context) -> list[str]:
        return self.lines

    @handler
    async def grouped(self, ctx: Context) -> int:
        found = 0
        try:
            async with asyncio.TaskGroup() as group:
                for how in ("sleep", "signal", "awakeable"):
                    group.create_task(self._wait(ctx, how))
        except* Cancelled as errors:
            found = len(errors.exceptions)
        return found

    @handler
    async def again(self, ctx: Context) -> list[Any]:
        """What was waited for goes on, and can be awaited again; a step is over."""
        call, gate = Held[f"{ctx.key}-slow"].slow.remote(), ctx.awakeable(str)
        step = ctx.run("step", acting, ctx, "step", 3)
        out: list[Any] = [gate.id]
        for wait in (asyncio.gather(call, gate, step, return_exceptions=True), step):
            try:
                found: Any = await wait
                out += [type(each).__name__ for each in found]
            except Cancelled:
                out.append("over")
        Held[f"{ctx.key}-log"].add.send(gate.id)
        return [*out[1:], await gate, await call]

    @handler
    async def slow(self, ctx: Context) -> str:
        """Does not heed a cancel."""
        try:
            await asyncio.sleep(5)
        except Cancelled:
            await asyncio.sleep(5)
        return "slow"

    @handler
    async def twice(self, ctx: Context) -> list[str]:
        out: list[str] = []
        for how in ("sleep", "signal"):
            try:
                await self._wait(ctx, how)
            except Cancelled:
                out.append(how)
        return out

    @handler
    async def sends(self, ctx: Context) -> None:
        Held[f"{ctx.key}-sent"].slow.send()
        await ctx.sleep(NEVER)

    @handler(policy=Policy(retry=Retry(initial=1_000, max_interval=1_000)))
    async def broken(self, ctx: Context, attempts: int = 10) -> str:
        outside.count += 1
        if ctx.attempt <= attempts:
            raise Broken("broken")
        await ctx.sleep(NEVER)
        return "not cancelled"

    @handler
    async def wayward(self, ctx: Context) -> None:
        Held[f"{ctx.key}-callee"].hold.remote("sleep")
        if outside.switch:
            await ctx.awakeable()
        await ctx.sleep(1)
        outside.switch = True
        raise Broken("once more")


class Tree(VirtualObject):
    """Three deep, with a sleep, an awakeable and a retrying step at its ends; each undoes what it did."""

    @handler
    async def grow(self, ctx: Context, depth: int, keyed: bool = False) -> None:
        try:
            match depth, ctx.key[-1:]:
                case 0, "a":
                    await ctx.sleep(NEVER)
                case 0, "b":
                    await ctx.awakeable()
                case 0, _:
                    await ctx.run("retrying", failing, retry=Retry(initial=NEVER, max_interval=NEVER))
                case _:
                    keys = [f"{ctx.key}{end}" for end in "abc"]
                    calls = [
                        Tree[key].grow.options(idempotency_key=key if keyed else None).remote(depth - 1, keyed)
                        for key in keys
                    ]
                    await asyncio.gather(*calls)
        except Cancelled:
            await ctx.run("undo", outside.act, f"{ctx.id}:{len(ctx.key)}", f"undo {ctx.key}")
            raise

    @handler
    async def is_free(self, ctx: Context) -> bool:
        return True


TREE = sorted({f"t{root}{end}" for root in ("", "a", "b", "c") for end in ("", "a", "b", "c")})


class Told(Service):
    @handler
    async def tell(self, ctx: Context, what: str) -> None:
        outside.seen.append(what)


class Canceller(Service):
    @handler
    async def cancel(self, ctx: Context, ref: Invocation[Any], kill: bool = False) -> None:
        (ref.kill if kill else ref.cancel)()

    @handler
    async def own(self, ctx: Context, kill: bool = False) -> str:
        ref = Held["own"].hold.remote("sleep")
        await ctx.sleep(1)
        await (ref.kill() if kill else ref.cancel())
        try:
            await ref
        except Cancelled as error:
            return str(error)
        return "not cancelled"

    @handler
    async def at_third(self, ctx: Context, ref: Invocation[Any]) -> None:
        ref.cancel()
        if ctx.attempt < 3:
            raise Broken("not yet")

    @handler
    async def itself(self, ctx: Context) -> None:
        Invocation[Any](ctx.id).cancel()
        await ctx.sleep(NEVER)


WAYS = ["sleep", "asyncio", "step", "retrying", "call", "awakeable", "signal", "timeout", "shield", "task", "gather"]


async def is_free(key: str) -> None:
    """The key's next invocation runs within a second."""
    assert outside.world is not None
    before = outside.world.elapsed
    await Held[key].add.remote("next")
    assert outside.world.elapsed - before < 1


# ------------------------------------------------------------------------------------------------------------- cancel


@pytest.mark.parametrize("how", [*WAYS, "lock"])
def test_a_cancel_ends_every_kind_of_wait(mode: Policy | None, how: str) -> None:
    async def scenario(world: Simulation) -> None:
        ref = Held["a"].hold.remote(how)
        await asyncio.sleep(1)
        await ref.cancel()
        error = await failure_of(ref)
        assert (type(error), error.code) == (Cancelled, 409)
        assert world.elapsed < 2
        assert world.state("Held/a") == {"lines": ["began"]}, "what was written before is kept"
        await is_free("a")
        await is_free("a-callee")

    played(scenario, mode, ["a"])


@pytest.mark.parametrize("how", [*WAYS, "lock"])
def test_what_the_handler_starts_after_a_cancel_works(mode: Policy | None, how: str) -> None:
    async def scenario(world: Simulation) -> None:
        ref = Held["a"].compensate.remote(how)
        await asyncio.sleep(1)
        await ref.cancel()
        assert await ref == f"{'CancelledError' if how == 'lock' else 'Cancelled'}, undone"
        assert outside.seen.count("undone") == 1
        assert world.state("Held/a") == {"lines": ["undone"]}

    played(scenario, mode, ["a"])


@simulated
async def test_in_a_task_group_a_cancel_arrives_as_a_group(world: Simulation) -> None:
    ref = Held["a"].grouped.remote()
    await asyncio.sleep(1)
    await ref.cancel()
    assert await ref == 3


@simulated
async def test_what_was_waited_for_can_be_awaited_again_but_for_a_step(world: Simulation) -> None:
    ref = Held["a"].again.remote()
    await asyncio.sleep(1)
    await ref.cancel()
    gate = (await world.until_state("Held/a-log", "lines"))[0]
    await asyncio.sleep(1)
    resolve(gate, "open")
    assert await ref == ["Cancelled", "Cancelled", "Cancelled", "over", "open", "slow"]
    assert outside.seen == ["step", "step was stopped"]


@simulated
async def test_a_second_cancel_raises_again(world: Simulation) -> None:
    ref = Held["a"].twice.remote()
    for _ in range(2):
        await asyncio.sleep(1)
        await ref.cancel()
    assert await ref == ["sleep", "signal"]


@simulated
async def test_a_cancel_reaches_calls_and_not_sends(world: Simulation) -> None:
    sends, calls = Held["a"].sends.remote(), Held["b"].compensate.remote("call")
    await asyncio.sleep(1)
    await sends.cancel()
    await calls.cancel()
    assert await calls == "Cancelled, undone"
    await failure_of(sends)
    assert world.elapsed < 4
    await Held["a-sent"].add.remote("after")
    assert world.elapsed > 4


@simulated
async def test_a_cancel_of_one_asleep_wakes_it(world: Simulation) -> None:
    ref = Held["a"].compensate.remote("sleep")
    await asyncio.sleep(300)
    assert await world.status(ref) == "asleep"
    await ref.cancel()
    assert await ref == "Cancelled, undone"
    assert world.elapsed < 303


@simulated
async def test_one_that_waits_for_anothers_turn_never_begins(world: Simulation) -> None:
    first = Held["a"].hold.remote("sleep")
    queued = [Held["a"].add.remote(str(number)) for number in range(4)]
    await asyncio.sleep(1)
    await queued[1].cancel()
    await queued[2].kill()
    assert "cancelled before it began" in str(await failure_of(queued[1]))
    assert "killed" in str(await failure_of(queued[2]))
    assert world.elapsed < 2
    await first.cancel()
    await queued[3]
    assert world.state("Held/a") == {"lines": ["began", "0", "3"]}
    await failure_of(first)


@simulated
async def test_one_that_is_cancelled_before_a_host_reads_it_does_not_wait(world: Simulation) -> None:
    """It may have had its turn, as far as a host can know: it begins, and ends at its first wait."""
    world.members["a"].running.clear()
    first, second = Held["a"].hold.remote("sleep"), Held["a"].hold.remote("sleep")
    first.cancel()
    second.cancel()
    await second.accepted()
    world.members["a"].running.set()
    await failure_of(first)
    assert "before it began" in str(await failure_of(second))
    assert world.state("Held/a") == {"lines": ["began"]}


@pytest.mark.parametrize("kill", [False, True])
@pytest.mark.parametrize("after_s", [0, 1, 300])
def test_a_delayed_one_ends_at_once_and_never_runs(mode: Policy | None, kill: bool, after_s: float) -> None:
    async def scenario(world: Simulation) -> None:
        call = Held["a"].add.options(delay="350s").remote("late")
        send = Held["a"].add.options(delay="350s").send("late")
        await asyncio.sleep(after_s)
        for ref in (call, send):
            await (ref.kill() if kill else ref.cancel())
        for ref in (call, send):
            assert f"{'killed' if kill else 'cancelled'} before it began" in str(await failure_of(ref))
        assert world.elapsed < after_s + 1
        await asyncio.sleep(400 if not after_s else 0)
        assert world.state("Held/a") == {}

    played(scenario, mode, ["a"])


async def _end_when_nobody_looks(world: Simulation, kill: bool, after_s: float) -> None:
    """A host lays two to sleep and ends; they are ended, fall due, and the next host starts after so long."""
    former = await world.join("a")
    refs = [
        Held["a"].add.options(delay="20s").remote("late"),
        Held["a"].add.options(delay="20s").send("late"),
        Told.tell.options(delay="20s").remote("late"),
    ]
    await asyncio.sleep(5)
    former.task.cancel()
    await asyncio.gather(former.task, return_exceptions=True)
    for ref in refs:
        await (ref.kill() if kill else ref.cancel())
    await asyncio.sleep(after_s)
    await world.join("b")
    for ref in refs:
        assert f"{'killed' if kill else 'cancelled'} before it began" in str(await failure_of(ref))
    await asyncio.sleep(40)
    assert world.state("Held/a") == {}
    assert outside.seen == []


@pytest.mark.parametrize("kill", [False, True])
@pytest.mark.parametrize("after_s", [1, 10, 100])
def test_a_delayed_one_that_is_ended_while_no_host_is_there_never_runs(
    mode: Policy | None, kill: bool, after_s: float
) -> None:
    """Issue 15.10: 45 of 48 ran, where the next host started after they were due."""

    async def scenario(world: Simulation) -> None:
        await _end_when_nobody_looks(world, kill, after_s)

    played(scenario, mode, [])


@pytest.mark.slow_after_first
@pytest.mark.parametrize("others", [0, 3_000])
@pytest.mark.parametrize("kill", [False, True])
def test_a_delayed_one_that_is_ended_before_it_is_due_never_runs_however_late_its_host_reads(
    mode: Policy | None, kill: bool, others: int
) -> None:
    """Issue 15.10: one read brings the message, now due, and its end, or ends with events that came before that."""

    async def scenario(world: Simulation) -> None:
        ref = Held["a"].add.options(delay="20s").remote("late")
        shard = shard_in(ref.id)
        bystander = next(each for each in map(_holding, "bcdefghijkl") if shard_in(each.id) == shard)
        await asyncio.sleep(5)
        host = world.members["a"].host
        host._store.arrivals, read = _unread, host._store.arrivals  # type: ignore[method-assign]
        for number in range(others):
            bystander.signal("unheard", number)
        await (ref.kill() if kill else ref.cancel())
        while ref.id not in _inbox(world, shard):  # noqa: ASYNC110  # it looks from outside
            await asyncio.sleep(1)
        host._store.arrivals = read  # type: ignore[method-assign]
        assert f"{'killed' if kill else 'cancelled'} before it began" in str(await failure_of(ref))
        await asyncio.sleep(40)
        assert world.state("Held/a") == {}
        world.expected_leftovers = True

    played(scenario, mode, ["a"])


def _holding(key: str) -> Invocation[None]:
    return Held[key].hold.remote("sleep")


async def _unread(*_: object) -> Arrivals:
    await asyncio.sleep(1)
    return Arrivals()


def _inbox(world: Simulation, shard: int) -> list[str]:
    entries = world.store._world.shards[shard].inbox.entries  # pyright: ignore[reportPrivateUsage]  # looks from outside
    return [Message.parse(data).id for data in entries.values()]


@simulated
async def test_a_cancel_ends_a_back_off_and_begins_the_next_attempt_at_once(world: Simulation) -> None:
    ref = Held["a"].broken.remote(1)
    await asyncio.sleep(1)
    await ref.cancel()
    assert str(await failure_of(ref)) == "cancelled"
    assert world.elapsed < 2
    assert outside.count == 2
    await is_free("a")


@simulated
async def test_an_attempt_that_fails_before_it_could_be_told_is_the_last(world: Simulation) -> None:
    ref = Held["a"].broken.remote()
    await asyncio.sleep(1)
    await ref.cancel()
    error = await failure_of(ref)
    assert isinstance(error, Cancelled)
    assert "Broken('broken')" in str(error)
    assert world.elapsed < 2
    assert outside.count == 2


@pytest.mark.parametrize("kill", [False, True])
def test_a_paused_one_ends_at_once_and_its_calls_too(mode: Policy | None, kill: bool) -> None:
    async def scenario(world: Simulation) -> None:
        ref = Held["a"].wayward.remote()
        await world.until_status(ref, "paused")
        ref.signal("unheard", 1)
        await asyncio.sleep(1)
        before = world.elapsed
        await (ref.kill() if kill else ref.cancel())
        error = await failure_of(ref)
        assert isinstance(error, Cancelled)
        assert "paused: nothing was compensated" in str(error)
        await is_free("a")
        await is_free("a-callee")
        assert world.elapsed - before < 3

    played(scenario, mode, ["a"])


@simulated
async def test_a_cancel_loses_to_an_outcome(world: Simulation) -> None:
    ref = Held["a"].add.remote("x")
    await ref
    await ref.cancel()
    await ref.kill()
    assert await Invocation[str](ref.id) == "x"


@simulated
async def test_handlers_cancel_and_kill(world: Simulation) -> None:
    held = [Held[key].hold.remote("sleep") for key in "abc"]
    await Canceller.cancel.remote(held[0])
    await Canceller.cancel.remote(held[1], kill=True)
    await Canceller.at_third.remote(held[2])
    assert [str(await failure_of(each)) for each in held] == [
        "cancelled",
        "killed: nothing was compensated",
        "cancelled",
    ]
    assert await Canceller.own.remote() == "cancelled"
    assert await Canceller.own.remote(kill=True) == "killed: nothing was compensated"
    assert isinstance(await failure_of(Canceller.itself.remote()), Cancelled)


@pytest.mark.parametrize("after_s", [1, 300])
def test_a_cancel_of_a_tree_undoes_each_once_and_frees_every_key_within_a_second(
    mode: Policy | None, after_s: float
) -> None:
    async def scenario(world: Simulation) -> None:
        ref = Tree["t"].grow.remote(2)
        await asyncio.sleep(after_s)
        await ref.cancel()
        assert isinstance(await failure_of(ref), Cancelled)
        assert await asyncio.gather(*(Tree[key].is_free.remote() for key in TREE)) == [True] * 13
        assert world.elapsed < after_s + 1
        assert sorted(outside.seen) == [f"undo {key}" for key in TREE]

    played(scenario, mode, ["a"])


# --------------------------------------------------------------------------------------------------------------- kill


@pytest.mark.parametrize("keyed", [False, True])
@pytest.mark.parametrize("after_s", [1, 300])
def test_a_kill_of_a_tree_frees_every_key_within_a_second(mode: Policy | None, keyed: bool, after_s: float) -> None:
    async def scenario(world: Simulation) -> None:
        ref = Tree["t"].grow.remote(2, keyed)
        await asyncio.sleep(after_s)
        await ref.kill()
        assert "killed" in str(await failure_of(ref))
        assert await asyncio.gather(*(Tree[key].is_free.remote() for key in TREE)) == [True] * 13
        assert world.elapsed < after_s + 1
        assert outside.seen == []

    played(scenario, mode, ["a"])


@pytest.mark.parametrize("how", [*WAYS, "lock"])
@pytest.mark.parametrize("after_s", [1, 300])
def test_a_kill_ends_every_kind_of_wait_without_compensation(mode: Policy | None, how: str, after_s: float) -> None:
    async def scenario(world: Simulation) -> None:
        ref = Held["a"].compensate.remote(how)
        await asyncio.sleep(after_s)
        await ref.kill()
        error = await failure_of(ref)
        assert (type(error), error.code) == (Cancelled, 409)
        assert "killed" in str(error)
        assert "undone" not in outside.seen
        assert ("step was stopped" in outside.seen) == (how == "step")
        await is_free("a")
        await is_free("a-callee")
        assert world.elapsed < after_s + 3

    played(scenario, mode, ["a"])


@simulated
async def test_a_kill_ends_a_back_off(world: Simulation) -> None:
    ref = Held["a"].broken.remote()
    await asyncio.sleep(1)
    await ref.kill()
    assert "killed" in str(await failure_of(ref))
    assert outside.count == 1
    await is_free("a")


@pytest.mark.parametrize("kill", [False, True])
@pytest.mark.parametrize("loads", ["fails", "hangs"])
def test_one_whose_class_cannot_be_loaded_ends_all_the_same(
    mode: Policy | None, kill: bool, loads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fetch(self: CodeBook, type_: str, digest: str) -> Any:
        await asyncio.sleep(20 if loads == "hangs" else 0)
        raise ImportError("no module named tea")

    def find(self: CodeBook, type_: str, digest: str) -> None:
        return None

    async def scenario(world: Simulation) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(CodeBook, "find", find)
            patched.setattr(CodeBook, "fetch", fetch)
            refs = [Held["a"].add.remote(str(number)) for number in range(3)]
            await asyncio.sleep(1)
            for ref in refs:
                await (ref.kill() if kill else ref.cancel())
            for ref in refs:
                assert isinstance(await failure_of(ref), Cancelled)
            if kill:
                assert world.elapsed < 2
        await Held["a"].add.remote("next")
        assert world.state("Held/a") == {"lines": ["next"]}

    played(scenario, mode, ["a"])


@pytest.mark.parametrize("kill", [False, True])
def test_a_cancel_and_a_kill_survive_the_host(mode: Policy | None, kill: bool) -> None:
    async def scenario(world: Simulation) -> None:
        refs = [Held[key].hold.remote(how) for key, how in zip("abcdefgh", WAYS, strict=False)]
        queued = [Held[key].add.remote("never") for key in "abcdefgh"]
        await asyncio.sleep(5)
        world.members["a"].running.clear()
        for ref in [*queued, *refs]:
            await (ref.kill() if kill else ref.cancel())
        for ref in [*refs, *queued]:
            assert isinstance(await failure_of(ref), Cancelled)
        for key in "abcdefgh":
            await Held[key].add.remote("next")
            assert world.state(f"Held/{key}")["lines"][-1] == "next"

    played(scenario, mode, ["a", "b"])


# ----------------------------------------------------------------------------------------------------- a real program


@pytest.fixture
def client(valkey_url: str) -> Iterator[Client]:
    with hostless(valkey_url, inbox_max=100) as client:
        yield client


def test_an_unknown_id_is_an_error_where_it_is_waited_for(client: Client) -> None:
    ref = Invocation[Any]("abc-3", client)
    for asked in (ref.cancel(), ref.kill()):
        with pytest.raises(NotFoundError, match="abc-3 is not known"):
            asked.result(timeout=10)


def test_a_program_is_told_that_the_store_has_it(client: Client) -> None:
    ref = Held["a"].add.remote("x")
    ref.cancel()
    assert ref.kill().result(timeout=10) is None
    events: Any = client.call(lambda store: store.events(shard_in(ref.id), "", 100))
    assert [event.kind for event in events] == [EventKind.CANCEL, EventKind.KILL]


def test_what_is_no_id_cannot_be_cancelled(client: Client) -> None:
    with pytest.raises(UsageError, match="'nonsense' is not the id of an invocation"):
        Invocation[Any]("nonsense", client).cancel()
