"""Errors that no host may trip over, whatever objects they are: each is an outcome, or a failed attempt, of its own
invocation, and others go on. Once in memory and once with every wait turned into suspend-and-replay.
"""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from decimal import Decimal
from http import HTTPStatus
from typing import Any, NoReturn, cast

import pytest
from simulation import SUSPEND
from test_semantics import Simulation, failure_of, mode, outside, played

from actors import Context, Policy, Retry, RetryAfter, TerminalError, VirtualObject, handler, state
from actors.activation.staging import REASON_MAX
from actors.requests import current
from actors.session import Session, init, shutdown
from actors.tracebacks import TRACEBACK_MAX, leaves, traced
from actors.values.outcomes import NOTICE_MAX, decoded, encoded_error, error_of, terminal
from actors.values.recorded import ATTRIBUTES_MAX, METADATA_MAX
from actors.values.values import decode, encode
from journal.records import Failure, outcome_of
from journal.texts import MESSAGE_MAX
from tests.chaos import hostile
from tests.chaos.hostile import Mute, chained, grouped, refuses

__all__ = ["mode"]


class OutOfStock(TerminalError):
    """Issue 15.9: an `__init__` of its own."""

    def __init__(self, item: str, left: int) -> None:
        super().__init__(f"{item}: {left} left", 409, {"item": item})
        self.item, self.left = item, left


class Spiteful(Exception):
    """Raises whatever is asked of it."""

    __str__ = __repr__ = __reduce__ = __reduce_ex__ = __eq__ = __hash__ = refuses  # pyright: ignore[reportAssignmentType]
    __notes__ = __class__ = __cause__ = __context__ = __traceback__ = property(refuses)  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride, reportIncompatibleMethodOverride]


class SpitefulMeta(type):
    __eq__ = refuses  # pyright: ignore[reportAssignmentType]
    __hash__ = type.__hash__


class SpitefulKind(Exception, metaclass=SpitefulMeta):
    """Whose class is equal to no other: asking raises."""


class SpitefulEnd(TerminalError):
    __str__ = __repr__ = __reduce__ = __reduce_ex__ = __setattr__ = refuses  # pyright: ignore[reportAssignmentType]
    code = metadata = __class__ = __cause__ = property(refuses)  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride, reportIncompatibleMethodOverride]

    def __init__(self) -> None:  # pyright: ignore[reportMissingSuperCall]
        pass


class Later(RetryAfter):
    def __init__(self) -> None:  # pyright: ignore[reportMissingSuperCall]
        pass


TERMINAL: dict[str, Callable[[], BaseException]] = {
    **{name: make for name, (make, _) in hostile.TERMINAL.items()},
    "spiteful metadata": lambda: hostile.odd(402, Spiteful()),
    "spiteful code": lambda: TerminalError("x", Spiteful()),  # pyright: ignore[reportArgumentType]
    "mute text": lambda: Mute("x"),
    "message": lambda: TerminalError(Spiteful()),  # pyright: ignore[reportArgumentType]
    "disguised end": SpitefulEnd,
}
OTHERS: dict[str, Callable[[], BaseException]] = {
    **{name: make for name, (make, _) in hostile.OTHERS.items()},
    "later": Later,
    "nameless": lambda: type("Nameless", (Exception,), {"__module__": 5})(),
    "spiteful chain": lambda: chained(1_500, Spiteful()),
    "spiteful kind": SpitefulKind,
    "group of others": lambda: grouped(ValueError("x"), 1_500),
    "time-out": TimeoutError,
}
"""Those of the campaign, and those whose classes would not travel to its hosts, or whose code it does not say."""


def throw(name: str) -> NoReturn:
    error = {**OTHERS, **TERMINAL}[name]()
    raise error


def throw_later(name: str) -> Awaitable[None]:
    """A sync function that returns something to await."""
    return throw_async(name)


def throw_once(name: str) -> None:
    """A compensation is tried again and again: a terminal error alone ends it."""
    outside.count += 1
    if outside.count == 1 or name in TERMINAL:
        throw(name)


async def throw_async(name: str) -> NoReturn:
    await asyncio.sleep(0)
    throw(name)


TWICE = Retry(initial=0.1, max_attempts=2)


class Hostile(VirtualObject):
    lines: list[str] = state(default_factory=list)

    @handler(policy=Policy(retry=TWICE))
    async def raises(self, ctx: Context, name: str) -> None:
        throw(name)

    @handler(policy=Policy(retry=TWICE))
    def raises_plainly(self, ctx: Context, name: str) -> None:
        throw(name)

    @handler(policy=Policy(retry=Retry(initial=0.1, max_attempts=2, on_exhausted="pause")))
    async def pauses(self, ctx: Context, name: str) -> None:
        throw(name)

    @handler(policy=Policy(retry=TWICE))
    async def steps(self, ctx: Context, name: str, how: str) -> None:
        fn: Any = {"sync": throw, "async": throw_async, "plain": throw_later}[how]
        await ctx.run("step", fn, name, retry=TWICE)

    @handler
    async def defers(self, ctx: Context, name: str) -> None:
        ctx.defer("last", outside.act, f"{ctx.id}:1", "last")
        ctx.defer("undo", throw_once, name)
        raise OutOfStock("pear", 3)

    @handler
    async def append(self, ctx: Context, line: str) -> list[str]:
        self.lines.append(line)
        return self.lines


HOWS = ["raises", "raises_plainly", "sync", "async", "plain"]


@pytest.mark.parametrize("name", [*TERMINAL, *OTHERS])
def test_no_error_hurts_another_invocation(mode: Policy | None, name: str, caplog: pytest.LogCaptureFixture) -> None:
    """Issue 15.2, 15.3 and 16.3: it is the outcome, or a failed attempt, and no shard rests."""

    async def scenario(world: Simulation) -> None:
        calls = [
            getattr(Hostile[how], how).remote(name)
            if how.startswith("raises")
            else Hostile[how].steps.remote(name, how)
            for how in HOWS
        ]
        for how, call in zip(HOWS, calls, strict=True):
            failure = await failure_of(call)
            if name in OTHERS and not (name == "time-out" and how in HOWS[:2]):
                assert failure.metadata["attempts"] == "2", how
        for how in HOWS:
            assert await Hostile[how].append.remote("next") == ["next"]
        assert world.elapsed < 5
        failure = await failure_of(Hostile["a"].defers.remote(name))
        assert (type(failure), failure.metadata.get("compensation_failed")) == (
            OutOfStock,
            None if name in OTHERS else "undo",
        )
        assert outside.seen == ["last"]

    with caplog.at_level(logging.ERROR):
        played(scenario, mode, ["a"])
    assert "failed on it" not in caplog.text


# ---------------------------------------------------------------------------------------------- with threads (15.3)


async def cancels_itself(how: str) -> str:
    outside.count += 1
    if outside.count > 1:
        return "done"
    if how == "own task":
        task = asyncio.ensure_future(asyncio.sleep(5))
        task.cancel()
        await task
    elif how == "itself":
        asyncio.ensure_future(asyncio.sleep(0))
        this = asyncio.current_task()
        assert this is not None
        this.cancel()
        if outside.switch:
            raise ValueError("before the cancel has come")
        await asyncio.sleep(5)
    elif how == "exit of its task":
        await asyncio.ensure_future(throw_async("exit"))
    elif how == "interrupt of its task":
        asyncio.ensure_future(throw_async("interrupt"))
        await asyncio.sleep(0.05)
        raise ValueError("after it")
    return ""


def cancels_later(_: str) -> Awaitable[str]:
    return cancels_itself("own task")


class CancellerOfHostileErrors(VirtualObject):
    @handler
    async def act(self, ctx: Context, how: str, times_out: bool) -> str:
        fn: Any = cancels_later if how == "by another function" else cancels_itself
        if times_out:
            return await ctx.run("s", fn, how, retry=Retry(initial=0.05), timeout=3)
        return await ctx.run("s", fn, how, retry=Retry(initial=0.05))

    @handler
    async def exits(self, ctx: Context, name: str) -> str:
        try:
            await ctx.run("s", throw, name, retry=Retry(max_attempts=1))
        except TerminalError as error:
            return str(error)
        return ""


@pytest.mark.parametrize("times_out", [False, True])
@pytest.mark.parametrize("how", ["own task", "itself", "itself, failing", "by another function"])
def test_a_step_that_cancels_itself_has_failed(mode: Policy | None, how: str, times_out: bool) -> None:
    """Issue 15.3: it is tried again."""

    async def scenario(world: Simulation) -> None:
        outside.switch = how == "itself, failing"
        assert await CancellerOfHostileErrors["a"].act.remote(how.removesuffix(", failing"), times_out) == "done"
        assert outside.count == 2

    played(scenario, mode, ["a"])


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    yield init(hosts="local", directory=tmp_path_factory.mktemp("perdure"))
    shutdown()


@pytest.fixture
def connected(session: Session) -> None:
    current.set_driver(session.client)  # a simulation between two tests has another


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize("how", ["exit of its task", "interrupt of its task"])
def test_a_task_of_a_step_cannot_end_its_host(how: str) -> None:
    """Issue 15.3: `sys.exit()` in a task that a step has made."""
    outside.reset()
    assert CancellerOfHostileErrors["b"].act.remote(how, times_out=False).result(timeout=20) == "done"
    assert outside.count == 2


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize("name", ["exit", "interrupt", "stop", "closed", "base"])
def test_a_sync_step_may_raise_whatever_there_is(name: str) -> None:
    """Issue 15.3, 16.3 and 15.42: it is a failed attempt, and says its class."""
    said = CancellerOfHostileErrors["c"].exits.remote(name).result(timeout=20)
    assert said.partition(":")[0] == type(OTHERS[name]()).__name__


# --------------------------------------------------------------------------------------------- as itself (15.9, 35)


class Wrong(TerminalError, FileNotFoundError):
    """Of two trees, with a slot, arguments of its own, and what cannot be pickled."""

    __slots__ = ("place",)

    def __init__(self, *, where: str, lock: Any = None) -> None:
        super().__init__("gone", 404)
        self.place, self.where, self.lock, self.errno = where, where, lock, 2


class Pickled(TerminalError):
    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)
        self.parts = one, two

    def __reduce__(self) -> tuple[Any, ...]:
        return Pickled, self.parts


def returned(error: TerminalError) -> Any:
    outcome = encoded_error(error)
    assert len(outcome) < 2 * MESSAGE_MAX + 3 * ATTRIBUTES_MAX
    with pytest.raises(TerminalError) as caught:
        decoded(outcome)
    return caught.value


def test_an_error_comes_as_itself_whatever_its_init_takes() -> None:
    """Issue 15.9."""
    found = returned(OutOfStock("pear", 3))
    assert (type(found), found.args, vars(found)) == (OutOfStock, ("pear: 3 left",), vars(OutOfStock("pear", 3)))
    gone = returned(Wrong(where="here", lock=threading.Lock()))
    assert (type(gone), gone.place, gone.where, gone.errno, gone.code) == (Wrong, "here", "here", 2, 404)
    assert str(gone) == str(Wrong(where="here"))
    assert "lock" in gone.lock
    pickled = returned(Pickled("a", "b"))
    assert (type(pickled), pickled.parts, str(pickled)) == (Pickled, ("a", "b"), "ab")
    mute = returned(Mute("x"))
    assert (type(mute), mute.what, mute.code, mute.metadata) == (Mute, "x", 500, {})


def test_errors_are_values_too() -> None:
    """Issue 15.9: in state, results and arguments."""
    found = decode(encode([OutOfStock("pear", 3), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), KeyError("a")]))
    assert [str(each) for each in found] == [
        "pear: 3 left",
        "'utf-8' codec can't decode byte 0xff in position 0: no",
        "'a'",
    ]
    assert found[0].left == 3


def test_where_its_class_is_not_there_it_comes_with_its_name() -> None:
    """Issue 15.9."""
    outcome = encoded_error(OutOfStock("pear", 3))
    found = outcome_of(outcome)
    assert isinstance(found, Failure)
    error: Any = error_of(replace(found, pickled=b"\x80\x05cnowhere\nOutOfStock\n."))
    assert (type(error), str(error), error.code) == (TerminalError, "OutOfStock: pear: 3 left", 409)
    assert error.metadata == {"error": f"{__name__}:OutOfStock", "item": "pear"}
    plain = error_of(Failure(404, "not known", {}, "TerminalError"))
    assert (type(plain), str(plain)) == (TerminalError, "not known"), "the store's own has no module"


def test_what_json_does_not_hold_is_said() -> None:
    """Issue 15.2."""
    metadata: Any = {"price": Decimal("1.5"), "n": 3, "list": [1], 5: None, "set": {1}, "at": Spiteful(), "big": 2**70}
    found = returned(TerminalError("x", 402, metadata))
    assert found.metadata == {
        "price": "1.5",
        "n": 3,
        "list": [1],
        "5": None,
        "set": "{1}",
        "big": str(2**70),
        "at": "<Spiteful, whose str() raised SystemExit>",
    }
    odd = returned(TerminalError("x", cast("Any", "odd")))
    assert (odd.code, odd.metadata) == (500, {"code": "'odd'"})
    assert returned(TerminalError("x", HTTPStatus.CONFLICT)).code == 409


def test_errors_are_payloads() -> None:
    """Issue 15.35: whatever is large in an error is cut, or described."""
    many = {f"name {number}": "x" * 1_000 for number in range(100_000)}
    assert len(str(returned(TerminalError("x", 500, many)).metadata)) < 2 * METADATA_MAX
    found = returned(Wrong(where="x" * 8_000_000))
    assert (type(found), len(found.where) < 2_000) == (Wrong, True)
    assert len(str(returned(TerminalError("x" * 8_000_000)))) < MESSAGE_MAX + 100
    assert len(traced(ValueError("x" * 8_000_000))) < TRACEBACK_MAX + 100


async def raise_huge() -> None:
    raise ValueError("x" * 8_000_000)


class Huge(VirtualObject):
    @handler(policy=Policy(retry=Retry(initial=0.01, factor=1, max_attempts=20, on_exhausted="pause")))
    async def fails(self, ctx: Context) -> None:
        await raise_huge()

    @handler(policy=Policy(retry=Retry(max_attempts=1, on_exhausted="pause")))
    async def fails_in_a_step(self, ctx: Context) -> None:
        await ctx.run("s", raise_huge, retry=Retry(initial=0.01, factor=1, max_attempts=20))


@pytest.mark.slow_after_first
@pytest.mark.parametrize("how", ["fails", "fails_in_a_step"])
def test_an_error_that_comes_again_and_again_fills_no_store(mode: Policy | None, how: str) -> None:
    """Issue 15.35: its notices, records and the reason of its pause are bounded."""

    async def scenario(world: Simulation) -> None:
        ref = getattr(Huge["a"], how).remote()
        if how == "fails":
            assert len(await world.until_status(ref, "paused")) < 2 * REASON_MAX
        else:
            await failure_of(ref)
        shards = world.store._world.shards  # pyright: ignore[reportPrivateUsage]  # looks from outside
        dormant = [each for shard in shards for each in shard.asleep.values()]
        assert sum(len(data) for each in dormant for _, data in each.records) < 100_000
        assert max(map(len, world.program.notices)) < 2 * NOTICE_MAX
        ref.kill()

    played(scenario, mode, ["a"])


def test_a_walk_meets_each_error_once() -> None:
    """Issue 16.3: a group that holds itself twice, sixty times."""
    assert len(list(leaves(grouped(ValueError("x"), 60, 2)))) == 1
    assert terminal(grouped(TerminalError("x"), 60, 2)) is not None
    text = traced(chained(1_500, ValueError("the first")))
    assert ("ValueError: the first" in text, "errors between are left out" in text) == (True, True)


# -------------------------------------------------------------------------------------- what the caller is told (15.42)


class ToldOfHostileErrors(VirtualObject):
    steps: int = state(0)

    @handler(policy=Policy(retry=Retry(max_attempts=1)))
    async def fails(self, ctx: Context, how: str) -> None:
        if how == "key":
            {}["nope"]
        elif how == "assert":
            assert how == "other"
        elif how == "exit":
            raise SystemExit
        raise ValueError

    @handler(policy=Policy(retry=Retry(initial=30)))
    async def fails_for_ever(self, ctx: Context) -> None:
        {}["nope"]

    @handler
    async def changes(self, ctx: Context, how: str) -> None:
        """Its second run, after it has left memory, is another one: as if its code had changed."""
        outside.count += 1
        if outside.count == 1 or outside.switch:
            await ctx.run("charge", outside.act, f"{ctx.id}:0", "charge")
            await ctx.sleep(10)
            return
        try:
            len(cast("Any", 5))
        except TypeError:
            if how == "handles":
                await ctx.run("refund", outside.act, f"{ctx.id}:1", "refund")
            raise TerminalError("it failed") from None


def test_an_error_says_its_class_at_the_caller(mode: Policy | None) -> None:
    """Issue 15.42."""

    async def scenario(world: Simulation) -> None:
        said = {
            how: str(await failure_of(ToldOfHostileErrors["a"].fails.remote(how)))
            for how in ("key", "assert", "exit", "value")
        }
        assert said["key"] == "KeyError: 'nope'"
        assert said["assert"].startswith("AssertionError")
        assert (said["exit"], said["value"]) == ("SystemExit", "ValueError")

    played(scenario, mode, ["a"])


@pytest.mark.slow
@pytest.mark.usefixtures("connected")
def test_a_time_out_says_what_is_open_and_why() -> None:
    """Issue 15.42."""
    ref = ToldOfHostileErrors["t"].fails_for_ever.remote()
    with pytest.raises(TimeoutError) as caught:
        ref.result(timeout=3)
    assert str(caught.value).startswith(
        f"ToldOfHostileErrors/t.fails_for_ever ({ref.id}) has not ended within 3; waiting ended"
    )
    assert str(caught.value).endswith("attempt 1 failed, the next follows in 10 s: KeyError: 'nope'")
    ref.kill()


@pytest.mark.parametrize("how", ["handles", "fails"])
def test_a_divergence_says_what_the_handler_has_raised(how: str) -> None:
    """Issue 15.42: the TypeError is the fault, that its handler took another way is what comes of it."""

    async def scenario(world: Simulation) -> None:
        ref = ToldOfHostileErrors["a"].changes.remote(how)
        reason = await world.until_status(ref, "paused")
        raised = "TypeError: object of type 'int' has no len()" if how == "handles" else "TerminalError: it failed"
        assert reason.endswith(f"It raised {raised}")
        assert "TypeError: object of type 'int' has no len()" in world.program.notices[-1] or how == "fails"
        outside.switch = True
        ref.resume()
        await ref

    played(scenario, SUSPEND, ["a"])
