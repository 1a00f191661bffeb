"""Requests with an idempotency key: the same one joins, another one is refused, of programs and of handlers."""

import asyncio
import enum
import functools
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pydantic
import pytest
from test_semantics import Simulation, mode, simulated

import actors
from actors import Context, Service, TerminalError, VirtualObject, Workflow, handler, shared, state
from actors.requests import fingerprints
from actors.requests.fingerprints import fingerprint

__all__ = ["mode"]


@dataclass
class Item:
    name: str
    tags: frozenset[str]


class Size(pydantic.BaseModel):
    width: int = 1


class Colour(enum.Enum):
    RED = 1


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a: Any, b: Any) -> None:
        self.a, self.b = a, b


class Unspeakable:
    def __reduce_ex__(self, protocol: Any) -> Any:
        raise RuntimeError("no")


VALUES: list[Any] = [
    *(None, True, 1, 1.0, "1", b"1", float("nan"), -0.0, 2**70, "\udce9", [1], (1,), {1}, {"1": 1}, {1: 1}, []),
    *(Decimal(1), datetime(2026, 1, 1, tzinfo=UTC), Item("a", frozenset("ab")), Item("a", frozenset("abc"))),
    *(
        Size(width=2),
        Size(),
        Colour.RED,
        Slotted(1, 2),
        Slotted(2, 1),
        int,
        Item,
        len,
        [[1], [2]],
        [[1, 2]],
        [[], 1, 2],
    ),
    *(functools.partial(int, base=2), functools.partial(int, base=3), ValueError("a"), ValueError("b"), 1j),
]


def test_different_arguments_have_different_fingerprints_and_equal_ones_the_same() -> None:
    found = [fingerprint(None, (value,), {}) for value in VALUES]
    assert "" not in found
    assert len(set(found)) == len(VALUES)
    for value, expected in zip(VALUES, found, strict=True):
        assert fingerprint(None, (pickle.loads(pickle.dumps(value)),), {}) == expected
    assert fingerprint(None, (Size(width=1),), {}) == fingerprint(None, (Size(),), {})
    assert fingerprint(None, ({"a": 1, "b": 2},), {}) == fingerprint(None, ({"b": 2, "a": 1},), {})
    a, b = str(10**9), str(10**9)
    assert a is not b
    assert fingerprint(None, ([a, a],), {}) == fingerprint(None, ([a, b],), {})


def test_what_nobody_can_look_into_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprints, "PARTS_MAX", 1_000)
    circle: list[Any] = []
    circle.append(circle)
    for value in (circle, Unspeakable(), list(range(2_000))):
        assert fingerprint(None, (value,), {}) == ""


def test_position_and_keyword_are_the_same_where_the_handler_is_known() -> None:
    fn = RequestAccount.add.fn
    assert len({fingerprint(fn, (1, 2), {}), fingerprint(fn, (1,), {"pause_s": 2}), fingerprint(None, (1, 2), {})}) == 1
    assert fingerprint(fn, (), {"pause_s": 2, "amount": 1}) == fingerprint(fn, (1, 2), {})
    assert fingerprint(fn, (1,), {}) != fingerprint(fn, (2,), {})


PRINTS = """
from actors.requests.fingerprints import fingerprint
print(fingerprint(None, ({"x", "y", "z", "w"}, frozenset(map(str, range(50)))), {}))
"""


@pytest.mark.slow
def test_fingerprints_are_the_same_in_every_process() -> None:
    ran = [
        subprocess.run(
            [sys.executable, "-c", PRINTS], env={"PYTHONHASHSEED": seed}, cwd=Path(__file__).parent.parent,
            capture_output=True, check=True, text=True,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert ran[0] == ran[1] != ""


# ----------------------------------------------------------------------------------------------------------- programs


class RequestAccount(VirtualObject):
    balance: int = state(0)

    @handler
    async def add(self, ctx: Context, amount: int, pause_s: float = 0) -> int:
        await ctx.sleep(pause_s)
        self.balance += amount
        return self.balance

    @shared
    async def look(self, ctx: Context) -> int:
        return self.balance


class Once(Workflow, name="RequestedOnce"):
    runs: int = state(0)

    @handler
    async def run(self, ctx: Context, who: str, pause_s: float = 0) -> str:
        self.runs += 1
        await ctx.sleep(pause_s)
        return who

    @shared
    async def count(self, ctx: Context) -> int:
        return self.runs


class Teller(Service, name="RequestedTeller"):
    @handler
    async def tell(self, ctx: Context, what: Any) -> Any:
        return what


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[actors.Session]:
    with actors.init(hosts="local", directory=str(tmp_path_factory.mktemp("store"))) as session:
        yield session


def refused(ref: actors.Invocation[Any]) -> str:
    for wait in (ref.result, ref.accepted().result):
        with pytest.raises(TerminalError) as caught:
            wait(timeout=30)
        assert caught.value.code == 409
    return str(caught.value)


@pytest.mark.usefixtures("session")
def test_a_key_with_other_arguments_is_refused_and_with_the_same_joins() -> None:
    """Issue 16.7: while the first is under way, and when it has ended; nobody gets the old outcome for another."""
    add = RequestAccount["a"].add.options(idempotency_key="k")
    first, second, other = add.remote(1, 0.3), add.remote(amount=1, pause_s=0.3), add.remote(2, 0.3)
    sent, sent_other = add.send(1, 0.3), add.send(3)
    assert "idempotency key 'k'" in refused(other)
    assert "RequestAccount/a.add" in refused(other)
    refused(sent_other)
    assert actors.get([first, second], timeout=30) == [1, 1]
    assert sent.result(timeout=30) == 1
    assert first.id == second.id == other.id == sent.id
    assert actors.attach(other.id).result(timeout=30) == 1
    for _ in range(2):
        assert add.remote(1, 0.3).result(timeout=30) == 1
        refused(add.remote(1))
    assert (
        actors.object("RequestAccount", "a").options(idempotency_key="k").remote("add", 1, 0.3).result(timeout=30) == 1
    )
    assert RequestAccount["a"].look.remote().result(timeout=30) == 1
    tell = Teller.tell.options(idempotency_key="k")
    assert tell.remote("a").result(timeout=30) == tell.remote(what="a").result(timeout=30) == "a"
    assert "RequestedTeller.tell" in refused(tell.remote("b"))


@pytest.mark.usefixtures("session")
def test_a_workflow_is_joined_by_the_same_key_and_by_no_other_start() -> None:
    """Issue 15.17: a client that lost its answer asks again."""
    run = Once["a"].run
    first = run.options(idempotency_key="k").remote("ann", 0.3)
    joined = run.options(idempotency_key="k").remote("ann", pause_s=0.3)
    others = [
        run.remote("ann", 0.3),
        run.options(idempotency_key="l").remote("ann", 0.3),
        run.options(idempotency_key="k").remote("bob", 0.3),
    ]
    for other in others:
        assert "was started already" in refused(other)
    assert actors.get([first, joined], timeout=30) == ["ann", "ann"]
    assert run.options(idempotency_key="k").remote("ann", 0.3).result(timeout=30) == "ann"
    refused(run.options(idempotency_key="l").remote("ann", 0.3))
    refused(run.remote("ann", 0.3))
    assert Once["a"].count.remote().result(timeout=30) == 1
    assert Once["b"].run.remote("first").result(timeout=30) == "first"
    assert "was started already" in refused(Once["b"].run.options(idempotency_key="k").remote("first"))


@pytest.mark.usefixtures("session")
def test_arguments_that_nobody_can_compare_are_taken_as_equal() -> None:
    tell: Any = Teller.tell.options(idempotency_key="unspeakable")
    circle: list[Any] = []
    circle.append(circle)
    assert len(tell.remote(circle).result(timeout=30)) == 1
    assert len(tell.remote(circle).result(timeout=30)) == 1


# ----------------------------------------------------------------------------------------------------------- handlers


class Asking(VirtualObject):
    async def _of(self, ref: actors.Invocation[Any]) -> Any:
        return await ref  # gather() takes invocations of one id for one

    @handler
    async def ask(self, ctx: Context, who: str) -> list[Any]:
        """Asks for the same and for another, each as a call, and for another as a send."""
        add = RequestAccount["h"].add.options(idempotency_key="k")
        run = Once["h"].run.options(idempotency_key="k")
        refs: list[Any] = [add.remote(1, 1), add.remote(1, 1), add.remote(2, 1), run.remote("x"), run.remote("x")]
        refs += [run.remote("y"), Once["h"].run.options(idempotency_key=who).remote("x"), Once["h"].run.remote("x")]
        add.send(3)
        run.send("z")
        run.send("x")
        found = await asyncio.gather(*map(self._of, refs), return_exceptions=True)
        await ctx.sleep(1)
        refs = [add.remote(1, 1), add.remote(4), run.remote("x")]
        found += await asyncio.gather(*map(self._of, refs), return_exceptions=True)
        return [each.code if isinstance(each, TerminalError) else each for each in found]


async def asking(world: Simulation) -> None:
    expected = [1, 1, 409, "x", "x", 409, 409, 409, 1, 409, "x"]
    assert await asyncio.gather(Asking["a"].ask.remote("a"), Asking["b"].ask.remote("b")) == [expected, expected]
    assert await RequestAccount["h"].look.remote() == 1
    assert await Once["h"].count.remote() == 1


test_the_same_of_handlers = simulated(asking)
