"""What handlers may rely on, one sentence a test, each run twice: in memory, and with every wait turned into
suspend-and-replay (`Policy(idle_timeout=0)`), where the journal is all that a handler is resumed from.

The numbered promises are those of the design: 2 order and exclusivity, 3 one outcome, 4 steps, 6 fencing, 7 failures,
8 what is stuck stays local.
"""

import asyncio
import contextvars
import functools
import itertools
import logging
import operator
import random
import threading
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pytest
from simulation import LATENCY_S, SUSPEND, Faults, FaultyStore, VirtualLoop, World, virtual_loop
from test_crash_everywhere import SCENARIOS, effects

from actors import (
    Context,
    Invocation,
    NondeterminismError,
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
from actors.code.code import UNSENT
from actors.host.host import Host, Identity
from actors.loop import closing
from actors.requests import current
from actors.requests.invocation import Accepted
from actors.requests.message import arguments_of, fingerprint_of, message_of, outgoing_of, started_id
from actors.requests.request import EMPTY_OPTIONS, Request
from actors.values import outcomes
from journal.codec import MISSING
from journal.ids import ObjectId, shard_in
from journal.memory.store import MemoryStore
from journal.records import ReplyKind, teller_of_driver
from journal.store import Attach, Bring, Fenced, NamespaceLimits, Outgoing, Settled

WEATHERS = 20
"""Seeds of hosts that come and go."""
IN_TIME = 900.0
"""Virtual seconds after which a scenario that has not ended never will."""


# ------------------------------------------------------------------------------------------------- the simulated world


class Program:
    """A driver that starts invocations as users do, through addresses (`place.Caller`, `invocation.Waiter`)."""

    def __init__(self, store: MemoryStore, now_ms: Callable[[], int], shards: int) -> None:
        self._store, self._now_ms, self._shards = store, now_ms, shards
        self._queue: list[Outgoing | Attach | Bring] = []
        self._wanted = asyncio.Event()
        self._returns: dict[str, Any] = {}
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self._count = 0
        self.asked: dict[str, int] = {}
        self.replies: dict[str, int] = {}
        self.notices: list[str] = []

    async def open(self) -> None:
        self._writer = await self._store.open_writer()
        self._tasks = [asyncio.ensure_future(self._send()), asyncio.ensure_future(self._receive())]
        current.set_driver(self)

    async def close(self) -> None:
        current.set_driver(None)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def start(self, request: Request, /) -> Invocation[Any]:
        self._count += 1
        address = str(ObjectId(request.type_name, request.key))
        id_ = started_id(request, address, f"{self._writer}{self._count:x}", self._shards)
        caller = "" if request.one_way else teller_of_driver(self._writer)
        arguments = arguments_of(request, address, NamespaceLimits().payload_max)
        code = "" if request.owner is None else UNSENT
        message = message_of(request, id_, address, arguments, caller, code, self._now_ms)
        self._returns[id_] = request.declared.returns if request.declared is not None else MISSING
        if not request.one_way:
            self._expect(id_)
        self._put(outgoing_of(request, id_, caller, message, fingerprint_of(request)))
        return Invocation(id_, self)

    def _expect(self, id_: str) -> None:
        self.asked[id_] = self.asked.get(id_, 0) + 1
        if id_ not in self._waiting:
            self._waiting[id_] = asyncio.get_running_loop().create_future()

    def wait(self, invocation: Invocation[Any], /) -> Generator[Any, Any, Any]:
        id_ = invocation.id
        if id_ not in self._waiting:
            self._expect(id_)
            self._put(Attach(shard_in(id_), id_))
        payload = yield from asyncio.shield(self._waiting[id_]).__await__()
        return outcomes.decoded(payload, self._returns.get(id_, MISSING))

    def wait_accepted(self, invocation: Invocation[Any], /) -> Generator[Any, Any, None]:
        while self._queue:
            yield from asyncio.sleep(0.001).__await__()

    def bring(self, event: Bring, entry: str, /) -> Accepted:
        self._put(event)
        return Invocation(entry, self).accepted()

    def _put(self, operation: Outgoing | Attach | Bring) -> None:
        self._queue.append(operation)
        self._wanted.set()

    async def _send(self) -> None:
        number = 0
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            taken, self._queue = self._queue, []
            for operation in taken:
                number += 1
                assert await self._store.submit(self._writer, number, [operation], "0-0") is Settled.APPLIED

    async def _receive(self) -> None:
        seen = "0-0"
        while True:
            for reply in await self._store.replies(self._writer, seen, 1_000):
                seen = reply.id
                kind = reply.payload[:1].decode()
                assert kind != ReplyKind.UNKNOWN, f"{reply.invocation} is unknown"
                if kind == ReplyKind.NOTICE:
                    self.notices.append(reply.payload[1:].decode())
                    continue
                self.replies[reply.invocation] = self.replies.get(reply.invocation, 0) + 1
                if not self._waiting[reply.invocation].done():
                    self._waiting[reply.invocation].set_result(reply.payload)


@dataclass(frozen=True, slots=True)
class Late:
    """A call of a host that was asked for while its calls were stopped."""

    name: str
    asked_at: float
    args: Any
    answer: Any


class PausingStore(FaultyStore):
    """A connection on which calls stop while `running` is not set; they take effect when it is set again."""

    def __init__(
        self,
        store: MemoryStore,
        running: asyncio.Event,
        late: list[Late],
        latency: random.Random | None,
    ) -> None:
        super().__init__(store, Faults(latency=latency))
        self._inner, self._running, self._late = store, running, late

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        method: Callable[..., Coroutine[Any, Any, Any]] = getattr(self._inner, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            if name == "aclose":
                return None
            await self._travel()
            assert outside.world is not None
            is_late, asked_at = not self._running.is_set(), outside.world.elapsed
            await self._running.wait()
            answer = await method(*args, **kwargs)
            if is_late:
                self._late.append(Late(name, asked_at, args, answer))
            await self._travel()
            await self._running.wait()
            return answer

        return call

    async def _travel(self) -> None:
        if self._faults.latency is not None:
            await asyncio.sleep(self._faults.latency.random() * LATENCY_S)


class Named(Executor):
    """Runs sync steps at once, and says which host does so."""

    def __init__(self, name: str) -> None:
        self._name = name

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        outside.host = self._name
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        finally:
            outside.host = ""
        return future


class Member:
    """One of several hosts; its store calls can be stopped."""

    def __init__(self, world: "Simulation", name: str, *, live: bool = True) -> None:
        self.running = asyncio.Event()
        self.running.set()
        self.late: list[Late] = []
        self.host = Host(
            lambda: PausingStore(world.store.connect(), self.running, self.late, world.latency),  # pyright: ignore[reportArgumentType]  # by delegation
            Identity(id=name),
            live=live,
            policy=world.policy,
            now=world.loop.time,
            own_thread=False,
            executor=Named(name),
        )
        self.task = asyncio.ensure_future(self.host.run())


class Simulation(World):
    """One host without faults, or several named ones, and a program."""

    def __init__(self, loop: VirtualLoop, policy: Policy | None) -> None:
        super().__init__(loop, policy=policy)
        self.program = Program(self.store.connect(), loop.now_ms, 4)
        self.members: dict[str, Member] = {}
        self.latency: random.Random | None = None
        """With it, calls of hosts and their answers take a while."""
        self.began = loop.time()
        self.expected_leftovers = False

    @property
    def elapsed(self) -> float:
        """Virtual seconds since the beginning."""
        return round(self.loop.time() - self.began, 3)

    async def join(self, name: str, *, live: bool = True) -> Member:
        """Add a host, and wait until it has taken its share."""
        member = self.members[name] = Member(self, name, live=live)
        await asyncio.sleep(5)
        return member

    async def status(self, invocation: Invocation[Any]) -> str:
        return await self.store.status(invocation.id)

    async def until_status(self, invocation: Invocation[Any], beginning: str) -> str:
        for _ in range(1_000):
            found = await self.status(invocation)
            if found.startswith(beginning):
                return found
            await asyncio.sleep(0.1)
        raise AssertionError(f"{invocation.id} did not become {beginning}")

    async def play(self, scenario: "Scenario", hosts: Sequence[str]) -> None:
        await self.store.open_namespace(NamespaceLimits(shards=4))
        await self.program.open()
        try:
            async with asyncio.timeout(IN_TIME):
                await asyncio.gather(*(self.join(name) for name in hosts))
                self.began = self.loop.time()
                await scenario(self)
                await asyncio.sleep(5)  # what was sent without waiting ends
        finally:
            for member in self.members.values():
                member.task.cancel()
            await asyncio.gather(*(member.task for member in self.members.values()), return_exceptions=True)
            await self.program.close()
        asked = self.program.asked
        assert all(count <= asked[id_] for id_, count in self.program.replies.items()), "a reply came twice"
        assert self.violations == []
        if not self.expected_leftovers:
            assert self.leftovers() == []


Scenario = Callable[[Simulation], Coroutine[Any, Any, None]]


def played(scenario: Scenario, policy: Policy | None, hosts: Sequence[str]) -> None:
    outside.reset()
    with virtual_loop() as loop:
        world = outside.world = Simulation(loop, policy)
        loop.run_until_complete(world.play(scenario, hosts))


def simulated(scenario: Scenario) -> Callable[[Policy | None], None]:
    """Make a test of a scenario: one host, virtual time."""

    def test(mode: Policy | None) -> None:
        played(scenario, mode, ["a"])

    return test


@pytest.fixture(params=[None, SUSPEND], ids=["in memory", "suspend and replay"])
def mode(request: pytest.FixtureRequest) -> Policy | None:
    return request.param


class Outside:
    """What lies outside of the durable world: what was done to it, and switches that tests turn."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.world: Simulation | None = None
        self.seen: list[Any] = []
        self.host = ""
        self.switch = False
        self.gate = asyncio.Event()
        self.count = 0

    def act(self, step_id: str, what: Any) -> Any:
        """Do something as a step: promise 4 is looked at here."""
        assert self.world is not None
        self.world.acting(step_id)
        self.seen.append(what)
        return what

    async def act_for(self, step_id: str, what: Any, duration_s: float) -> Any:
        self.act(step_id, what)
        await asyncio.sleep(duration_s)
        return what

    def fail(self, failures: int, result: str) -> str:
        """Fail so many times."""
        self.count += 1
        if self.count <= failures:
            raise ConnectionError(f"failure {self.count}")
        return result


outside = Outside()


class Broke(TerminalError):
    """A terminal error of a user's."""


class Broken(Exception):
    """An error that is worth another attempt."""


async def failure_of(awaited: Any) -> TerminalError:
    with pytest.raises(TerminalError) as caught:
        await awaited
    return caught.value


# -------------------------------------------------------------------------------- order and exclusivity (promise 2)


class Notes(VirtualObject):
    lines: list[str] = state(default_factory=list)

    @handler
    async def append(self, ctx: Context, line: str) -> int:
        self.lines.append(line)
        return len(self.lines)

    @handler
    async def around(self, ctx: Context, line: str, pause_s: float) -> None:
        """Writes before and after waits of each kind."""
        self.lines.append(f"{line} begins")
        await asyncio.sleep(pause_s)
        await ctx.run("step", lambda: outside.act_for(ctx.step_id, line, pause_s))
        await Notes["elsewhere"].append.remote(line)
        self.lines.append(f"{line} ends")

    @handler(policy=Policy(retry=Retry(initial=3)))
    async def at_third(self, ctx: Context, line: str) -> None:
        if ctx.attempt < 3:
            raise Broken(line)
        self.lines.append(line)

    @shared
    async def read(self, ctx: Context) -> list[str]:
        return self.lines

    @shared
    async def read_twice(self, ctx: Context) -> list[int]:
        before = len(self.lines)
        await asyncio.sleep(2)
        return [before, len(self.lines)]

    @shared
    async def read_in_between(self, ctx: Context) -> list[int]:
        before = len(self.lines)
        await Notes[ctx.key].append.remote("by the reader")
        return [before, len(self.lines)]

    @shared
    async def write(self, ctx: Context) -> None:
        self.lines = []


class Mixer(Service):
    @handler
    async def mix(self, ctx: Context, key: str, count: int) -> list[int]:
        calls: list[Invocation[int]] = []
        for number in range(count):
            if number % 3:
                Notes[key].append.send(str(number))
            else:
                calls.append(Notes[key].append.remote(str(number)))
        return [await call for call in calls]

    @handler
    async def delayed(self, ctx: Context, key: str) -> None:
        _send_delayed(key)
        await asyncio.sleep(6)


def _send_delayed(key: str) -> None:
    append = Notes[key].append
    append.options(delay="3s").send("third")
    append.options(delay="1s").send("first")
    append.options(delay="2s").send("second a")
    append.options(delay="2s").send("second b")
    append.send("at once")


@simulated
async def test_calls_and_sends_of_one_driver_arrive_in_the_order_made(world: Simulation) -> None:
    calls: list[Invocation[int]] = []
    for number in range(60):
        if number % 3:
            Notes["n"].append.send(str(number))
        else:
            calls.append(Notes["n"].append.remote(str(number)))
    assert [await call for call in calls] == [number + 1 for number in range(0, 60, 3)]
    assert await Notes["n"].read.remote() == [str(number) for number in range(60)]


@simulated
async def test_calls_and_sends_of_one_handler_arrive_in_the_order_made(world: Simulation) -> None:
    assert await Mixer.mix.remote("n", 30) == [number + 1 for number in range(0, 30, 3)]
    assert await Notes["n"].read.remote() == [str(number) for number in range(30)]


@simulated
async def test_a_delayed_message_counts_as_sent_when_it_is_due(world: Simulation) -> None:
    _send_delayed("driver")
    await Mixer.delayed.remote("handler")
    await asyncio.sleep(1)
    for key in ("driver", "handler"):
        assert await Notes[key].read.remote() == ["at once", "first", "second a", "second b", "third"]


@simulated
async def test_a_delayed_message_does_not_overtake_what_was_sent_before_it_is_due(world: Simulation) -> None:
    Notes["n"].append.options(delay="2s").send("late")
    held = Notes["n"].around.remote("held", 4)
    await asyncio.sleep(1)
    Notes["n"].append.send("before")
    await asyncio.sleep(2)
    Notes["n"].append.send("after")
    await held
    assert await Notes["n"].read.remote() == ["held begins", "held ends", "before", "late", "after"]


@simulated
async def test_one_exclusive_handler_is_under_way_through_all_its_waits(world: Simulation) -> None:
    await asyncio.gather(*(Notes["n"].around.remote(line, 2) for line in "abc"))
    assert await Notes["n"].read.remote() == [f"{line} {what}" for line in "abc" for what in ("begins", "ends")]


@simulated
async def test_the_back_off_of_a_failed_attempt_holds_the_key(world: Simulation) -> None:
    first = Notes["n"].at_third.remote("first")
    others = [Notes["n"].append.remote(str(number)) for number in range(5)]
    await asyncio.gather(first, *others)
    assert await Notes["n"].read.remote() == ["first", *"01234"]
    assert world.elapsed >= 9


@simulated
async def test_shared_handlers_run_beside_and_see_the_last_commit(world: Simulation) -> None:
    held = Notes["n"].around.remote("held", 20)
    await asyncio.sleep(1)
    assert await Notes["n"].read.remote() == ["held begins"]
    assert world.elapsed < 2
    await held
    assert await Notes["n"].read.remote() == ["held begins", "held ends"]


@simulated
async def test_a_shared_handler_sees_what_is_committed_after_each_wait(world: Simulation) -> None:
    await Notes["n"].append.remote("one")
    reading = Notes["n"].read_twice.remote()
    await asyncio.sleep(1)
    await Notes["n"].append.remote("two")
    assert await reading == [1, 2]
    assert await Notes["n"].read_in_between.remote() == [2, 3]
    assert await Notes["n"].read.remote() == ["one", "two", "by the reader"]


@simulated
async def test_a_shared_handler_that_writes_fails_for_good(world: Simulation) -> None:
    await Notes["n"].append.remote("one")
    assert (await failure_of(Notes["n"].write.remote())).code == 400
    assert await Notes["n"].read.remote() == ["one"]


@simulated
async def test_invocations_of_a_service_run_at_once(world: Simulation) -> None:
    meetings = [Meeting.come.remote(name) for name in "abc"]
    assert await asyncio.gather(*meetings) == ["a", "b", "c"]
    assert world.elapsed < 7
    assert sorted(outside.seen) == ["a", "b", "c"]


class Meeting(Service):
    @handler
    async def come(self, ctx: Context, name: str) -> str:
        assert ctx.key == ""
        await ctx.run("meet", self._met, name)
        await asyncio.sleep(5)
        return name

    @staticmethod
    async def _met(name: str) -> None:
        outside.seen.append(name)
        if len(outside.seen) == 3:
            outside.gate.set()
        await outside.gate.wait()


# ---------------------------------------------------------------------------------------------- state (promises 3, 7)


class Crate(VirtualObject):
    number: int = state(7)
    label: str | None = state(None)
    items: dict[str, list[int]] = state(default_factory=dict)

    @handler
    async def defaults(self, ctx: Context) -> list[Any]:
        return [
            *(self.number, self.label, self.items, ctx.keys()),
            *(ctx.get("number"), ctx.get("label", "other"), ctx.get("unknown"), ctx.get("unknown", 3)),
        ]

    @handler
    async def mutate(self, ctx: Context, pause_s: float) -> None:
        self.items["a"] = [1]
        await asyncio.sleep(pause_s)
        self.items["a"].append(2)
        ctx.get("items")["b"] = []
        await asyncio.sleep(pause_s)
        self.items["b"].append(3)

    @handler
    async def names(self, ctx: Context) -> list[Any]:
        """Set, clear and keys, declared and not, across waits."""
        seen: list[Any] = []
        ctx.set("free", {"x": (1, 2)})
        self.number = 8
        await asyncio.sleep(1)
        seen.append((ctx.keys(), ctx.get("free"), ctx.get("number")))
        ctx.clear("number")
        ctx.clear("never set")
        seen.append((self.number, ctx.get("number"), ctx.keys()))
        await asyncio.sleep(1)
        ctx.set("number", 9)
        seen.append((self.number, ctx.keys()))
        await asyncio.sleep(1)
        ctx.clear_all()
        seen.append((self.number, ctx.get("free", "gone"), ctx.keys()))
        await asyncio.sleep(1)
        self.label = "last"
        seen.append(ctx.keys())
        return seen

    @handler
    async def write_then_fail(self, ctx: Context, pause_s: float) -> None:
        self.number = 10
        if pause_s:
            await asyncio.sleep(pause_s)
        self.items["kept"] = []
        raise Broke("no", 418, {"why": "tea"})

    @handler
    async def write_then_break(self, ctx: Context, pause_s: float) -> list[int]:
        """Discarded what a failed attempt wrote; a replay and a next attempt see the state as found."""
        seen = [self.number]
        self.number += 1
        if pause_s:
            await asyncio.sleep(pause_s)
        self.number += 1
        seen.append(self.number)
        if ctx.attempt < 3:
            self.number += 1_000
            self.items["attempt"] = []
            ctx.clear("label")
            raise Broken
        return seen

    @handler
    async def as_found(self, ctx: Context) -> list[Any]:
        seen: list[Any] = []
        for _ in range(4):
            self.number += 1
            seen.append(self.number)
            ctx.clear("label")
            seen.append(self.label)
            await asyncio.sleep(1)
            self.label = f"{seen[-2]}"
        return seen

    @handler
    async def undeclared(self, ctx: Context) -> None:
        self.nubmer = 3  # pyright: ignore[reportAttributeAccessIssue]  # the mistake under test

    @handler
    async def from_a_step(self, ctx: Context) -> int:
        return await ctx.run("read", lambda: self.number)

    @handler
    async def put(self, ctx: Context, items: dict[str, list[int]]) -> dict[str, list[int]]:
        self.items = items
        items["after"] = [1]
        return self.items

    @handler
    async def plain(self, ctx: Context, number: int) -> None:
        self.number = number

    @handler
    async def unstorable(self, ctx: Context) -> None:
        ctx.set("lock", threading.Lock())

    @shared
    async def all(self, ctx: Context) -> dict[str, Any]:
        return {name: ctx.get(name) for name in ctx.keys()}  # noqa: SIM118  # not a dict


@simulated
async def test_fields_begin_with_their_defaults_and_reading_writes_nothing(world: Simulation) -> None:
    assert await Crate["b"].defaults.remote() == [7, None, {}, [], 7, None, None, 3]
    assert world.state("Crate/b") == {}


@pytest.mark.parametrize("pause_s", [0, 1])
def test_a_field_mutated_in_place_is_noticed(mode: Policy | None, pause_s: float) -> None:
    async def scenario(world: Simulation) -> None:
        await Crate["b"].mutate.remote(pause_s)
        assert world.state("Crate/b") == {"items": {"a": [1, 2], "b": [3]}}
        assert await Crate["other"].defaults.remote() == [7, None, {}, [], 7, None, None, 3]

    played(scenario, mode, ["a"])


@simulated
async def test_fields_can_be_set_and_cleared_by_name(world: Simulation) -> None:
    assert await Crate["b"].names.remote() == [
        (["free", "number"], {"x": (1, 2)}, 8),
        (7, 7, ["free"]),
        (9, ["free", "number"]),
        (7, "gone", []),
        ["label"],
    ]
    assert world.state("Crate/b") == {"label": "last"}


@pytest.mark.parametrize("pause_s", [0, 1])
def test_state_written_before_a_terminal_error_is_kept(mode: Policy | None, pause_s: float) -> None:
    """Promise 7."""

    async def scenario(world: Simulation) -> None:
        error = await failure_of(Crate["b"].write_then_fail.remote(pause_s))
        assert (type(error), str(error), error.code, error.metadata) == (Broke, "no", 418, {"why": "tea"})
        assert await Crate["b"].all.remote() == {"number": 10, "items": {"kept": []}}

    played(scenario, mode, ["a"])


@pytest.mark.parametrize("pause_s", [0, 1])
def test_what_a_failed_attempt_wrote_is_discarded(mode: Policy | None, pause_s: float) -> None:
    """Promise 7."""

    async def scenario(world: Simulation) -> None:
        assert await Crate["b"].write_then_break.remote(pause_s) == [7, 9]
        assert await Crate["b"].all.remote() == {"number": 9}

    played(scenario, mode, ["a"])


@simulated
async def test_a_replay_sees_the_state_as_its_invocation_found_it(world: Simulation) -> None:
    await Crate["b"].plain.remote(20)
    assert await Crate["b"].as_found.remote() == [21, None, 22, None, 23, None, 24, None]
    assert await Crate["b"].all.remote() == {"number": 24, "label": "24"}


@simulated
async def test_the_next_invocation_sees_what_the_one_before_wrote(world: Simulation) -> None:
    waiting = [Crate["b"].as_found.remote() for _ in range(3)]
    assert [(await each)[0] for each in waiting] == [8, 12, 16]


@simulated
async def test_setting_an_undeclared_attribute_fails_for_good(world: Simulation) -> None:
    error = await failure_of(Crate["b"].undeclared.remote())
    assert error.code == 400
    assert "nubmer" in str(error)


@simulated
async def test_state_that_cannot_be_stored_fails_for_good_and_holds_nobody(world: Simulation) -> None:
    """Promise 8."""
    error = await failure_of(Crate["b"].unstorable.remote())
    assert error.code == 400
    await Crate["b"].plain.remote(1)
    assert await Crate["b"].all.remote() == {"number": 1}


@simulated
async def test_state_cannot_be_read_from_a_step(world: Simulation) -> None:
    assert (await failure_of(Crate["b"].from_a_step.remote())).code == 400


@simulated
async def test_nothing_mutable_is_shared_between_callers_state_and_results(world: Simulation) -> None:
    given: dict[str, list[int]] = {"a": [1]}
    first = await Crate["b"].put.remote(given)
    first["a"].append(99)
    assert given == {"a": [1]}
    assert (await Crate["b"].all.remote())["items"] == {"a": [1], "after": [1]}


# ------------------------------------------------------------------------------------------------------- the context


class Clock(VirtualObject):
    @handler
    async def times(self, ctx: Context) -> list[datetime]:
        found = [ctx.now()]
        outside.seen.append(found)
        for _ in range(4):
            await asyncio.sleep(10)
            found.append(ctx.now())
            await ctx.run("step", lambda: outside.act_for(ctx.step_id, [], 5))
            found.append(ctx.now())
        return found

    @handler
    async def chance(self, ctx: Context) -> list[Any]:
        found: list[Any] = []
        outside.seen.append(found)
        for _ in range(4):
            found.append((ctx.random.random(), ctx.uuid4(), ctx.random.randrange(10**9)))
            await asyncio.sleep(1)
        return found

    @handler
    async def logs(self, ctx: Context) -> None:
        for number in range(5):
            ctx.log.warning("line %d", number)
            await asyncio.sleep(1)
            await ctx.run("step", asyncio.sleep, 0.1)
        ctx.log.warning("the end")

    @handler(policy=Policy(retry=Retry(initial=1, factor=2)))
    async def attempts(self, ctx: Context) -> list[Any]:
        await asyncio.sleep(0.1)
        outside.seen.append((ctx.attempt, ctx.id))
        if ctx.attempt < 4:
            raise Broken
        return [ctx.attempt, ctx.id, ctx.key, dict(ctx.headers)]

    @handler
    async def step_ids(self, ctx: Context) -> list[str]:
        with pytest.raises(UsageError):
            _ = ctx.step_id
        found = await asyncio.gather(*(ctx.run(f"{n}", lambda: ctx.step_id) for n in range(3)))
        await asyncio.sleep(1)
        found += [await ctx.run("again", lambda: ctx.step_id)]
        return [ctx.id, *found]

    @handler
    async def headers(self, ctx: Context) -> dict[str, str]:
        await asyncio.sleep(1)
        return dict(ctx.headers)

    @handler
    async def headers_sent(self, ctx: Context) -> list[dict[str, str]]:
        call = Clock["callee"].headers
        return [await call.remote(), await call.options(headers={"b": "2"}).remote(), dict(ctx.headers)]


@simulated
async def test_now_never_goes_back_and_is_the_same_on_replay(world: Simulation) -> None:
    found = await Clock["c"].times.remote()
    assert found == sorted(found)
    assert all(
        later - earlier >= timedelta(seconds=10) for earlier, later in zip(found[::2], found[1::2], strict=False)
    )
    assert found[-1] - found[0] >= timedelta(seconds=60)
    for replayed in (seen for seen in outside.seen if seen):
        assert replayed == found[: len(replayed)]


@simulated
async def test_random_numbers_are_the_same_on_replay(world: Simulation) -> None:
    found = await Clock["c"].chance.remote()
    assert all(isinstance(each[1], uuid.UUID) and each[1].version == 4 for each in found)
    assert len(set(found)) == 4
    assert all(replayed == found[: len(replayed)] for replayed in outside.seen)
    assert await Clock["c"].chance.remote() != found


def test_the_log_is_silent_while_replaying(mode: Policy | None, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(world: Simulation) -> None:
        await Clock["c"].logs.remote()

    with caplog.at_level(logging.INFO, "actors.handler"):
        played(scenario, mode, ["a"])
    said = [record.getMessage() for record in caplog.records if record.name == "actors.handler"]
    assert said == [*(f"line {number}" for number in range(5)), "the end"]


@simulated
async def test_attempts_are_counted_and_the_id_stays(world: Simulation) -> None:
    call = Clock["c"].attempts.options(headers={"a": "1"}).remote()
    assert await call == [4, call.id, "c", {"a": "1"}]
    assert [attempt for attempt, _ in dict.fromkeys(outside.seen)] == [1, 2, 3, 4]
    assert {id_ for _, id_ in outside.seen} == {call.id}
    assert world.elapsed >= 7


@simulated
async def test_who_waits_is_told_of_each_failed_attempt_once(world: Simulation) -> None:
    await Clock["c"].attempts.remote()
    assert len(world.program.notices) == 3
    assert all("Broken" in notice for notice in world.program.notices)


@simulated
async def test_a_step_has_an_id_of_its_own_that_begins_with_the_invocation_s(world: Simulation) -> None:
    id_, *steps = await Clock["c"].step_ids.remote()
    assert len(set(steps)) == 4
    assert all(step.startswith(f"{id_}:") for step in steps)


@simulated
async def test_headers_reach_the_handler_they_were_given_for(world: Simulation) -> None:
    call = Clock["c"].headers_sent.options(headers={"a": "1"})
    assert await call.remote() == [{}, {"b": "2"}, {"a": "1"}]


# ------------------------------------------------------------------------------------------------- steps (promise 4)


class Steps(Service):
    @handler
    async def kinds(self, ctx: Context) -> list[Any]:
        act = outside.act

        def sync(a: int, *, b: int = 0) -> int:
            act(ctx.step_id, "sync")
            return a + b

        async def asynchronous(a: int, *, b: int = 0) -> int:
            act(ctx.step_id, "async")
            await asyncio.sleep(0.1)
            return a * b

        return [
            await ctx.run("sync", sync, 1, b=2),
            await ctx.run("sync", sync, 1),
            await ctx.run("async", asynchronous, 3, b=4),
            await ctx.run("lambda", lambda: asynchronous(5, b=6)),
            await ctx.run("partial", functools.partial(sync, 7), b=8),
            await ctx.run("builtin", operator.add, 1, 1),
            await ctx.run("class", int, "12", base=3),
            await ctx.run("none", lambda: None),
            await ctx.run("tuple", lambda: (1, {2, 3}, b"4")),
        ]

    @handler
    async def retried(self, ctx: Context, failures: int) -> list[Any]:
        retry = Retry(initial=1, factor=1, max_attempts=3)
        try:
            found = await ctx.run("flaky", self._flaky, ctx, failures, retry=retry)
        except TerminalError as error:
            found = f"{error} ({error.code})"
        await asyncio.sleep(1)
        return [found, *await asyncio.gather(ctx.run("after", str, 1), ctx.run("after", str, 2))]

    @staticmethod
    def _flaky(ctx: Context, failures: int) -> str:
        outside.act(ctx.step_id, ctx.step_id)
        return outside.fail(failures, "done")

    @handler
    async def beside(self, ctx: Context) -> list[Any]:
        """A step that is retried in place does not hold its siblings."""
        flaky = ctx.run("flaky", outside.fail, 3, "done", retry=Retry(initial=5, factor=1))
        first = await ctx.run("sibling", lambda: outside.act_for(ctx.step_id, "sibling", 1))
        seen = ctx.now()
        return [first, await flaky, (ctx.now() - seen).total_seconds() > 10]

    @handler
    async def too_slow(self, ctx: Context) -> str:
        step = ctx.run("slow", asyncio.sleep, 100, timeout="2s", retry=Retry(initial=1, max_attempts=2))
        with pytest.raises(TerminalError):
            await step
        await asyncio.sleep(0.1)
        return "given up"

    @handler
    async def terminal(self, ctx: Context) -> list[Any]:
        found: list[Any] = []
        for kind in (TerminalError, Broke):
            try:
                await ctx.run("fails", self._fail, kind)
            except TerminalError as error:
                found.append((type(error).__name__, str(error), error.code, error.metadata))
            await asyncio.sleep(1)
        return found

    @staticmethod
    def _fail(kind: type[TerminalError]) -> None:
        outside.seen.append(kind)
        raise kind("no", 418, {"why": "tea"})

    @staticmethod
    async def _known(ctx: Context, what: int, duration_s: float) -> int:
        return await outside.act_for(ctx.step_id, what, duration_s)

    @handler
    async def parallel(self, ctx: Context) -> list[Any]:
        steps = [ctx.run(f"{n}", functools.partial(self._known, ctx, n, 10 - n)) for n in range(5)]
        return await asyncio.gather(*steps)

    @handler
    async def abandoned(self, ctx: Context) -> list[Any]:
        """A late outcome of a step that was given up is dropped, and it is not begun again."""
        found: list[Any] = []
        for number in range(3):
            try:
                step = ctx.run("slow", self._known, ctx, number, 5)
                found.append(await asyncio.wait_for(step, 1))
            except TimeoutError:
                found.append("late")
            await asyncio.sleep(10)
        found.append(await ctx.run("last", lambda: outside.act(ctx.step_id, "last")))
        return found

    @handler
    async def given_up_for_another(self, ctx: Context) -> list[int]:
        """The outcomes of the second and the third come together; the second makes the handler give the third up."""
        first, second, third = (ctx.run(str(n), functools.partial(self._known, ctx, n, 1)) for n in range(3))
        found = [await first, await second]
        third.cancel()
        await asyncio.sleep(1)
        return found

    @handler
    async def not_awaited(self, ctx: Context) -> str:
        ctx.run("alone", lambda: outside.act_for(ctx.step_id, "alone", 50))
        await asyncio.sleep(1)
        return "ended"

    @handler
    async def awaited_late(self, ctx: Context) -> list[Any]:
        step = ctx.run("early", lambda: outside.act_for(ctx.step_id, "early", 1))
        await asyncio.sleep(5)
        return [await step, await step]

    @handler
    async def mutated(self, ctx: Context) -> list[int]:
        found = await ctx.run("list", lambda: outside.act(ctx.step_id, [1]))
        found.append(2)
        await asyncio.sleep(1)
        return found

    @handler
    async def unrecordable(self, ctx: Context) -> None:
        await ctx.run("lock", threading.Lock)

    @handler
    async def commands(self, ctx: Context) -> list[str]:
        """In a step, commands and calls are refused; what is known of the invocation is not."""
        refused = [
            lambda: ctx.sleep(1),
            lambda: ctx.run("inner", str),
            lambda: Notes["n"].append.send("from a step"),
            lambda: Notes["n"].append.remote("from a step"),
            ctx.now,
            ctx.uuid4,
            lambda: ctx.set("x", 1),
        ]
        found: list[str] = []
        for number, command in enumerate(refused):
            with pytest.raises(TerminalError) as caught:
                await ctx.run(f"refused {number}", command)
            assert caught.value.code == 400
        found.append(await ctx.run("allowed", lambda: f"{ctx.id == ''} {ctx.key} {ctx.attempt} {dict(ctx.headers)}"))
        return found


@simulated
async def test_steps_may_be_any_callable_with_any_arguments(world: Simulation) -> None:
    assert await Steps.kinds.remote() == [3, 1, 12, 30, 15, 2, 5, None, (1, {2, 3}, b"4")]
    assert outside.seen == ["sync", "sync", "async", "async", "sync"]


@simulated
async def test_a_failing_step_is_retried_in_place_under_its_own_id(world: Simulation) -> None:
    assert await Steps.retried.remote(2) == ["done", "1", "2"]
    assert len(outside.seen) == 3
    assert len(set(outside.seen)) == 1
    assert 3 <= world.elapsed < 5


@simulated
async def test_a_step_that_used_up_its_retries_raises_a_terminal_error_once_and_for_all(world: Simulation) -> None:
    assert await Steps.retried.remote(100) == ["failure 3 (500)", "1", "2"]
    assert len(outside.seen) == 3


@simulated
async def test_a_step_that_is_retried_does_not_hold_its_siblings(world: Simulation) -> None:
    assert await Steps.beside.remote() == ["sibling", "done", True]


@simulated
async def test_an_attempt_of_a_step_ends_with_its_timeout(world: Simulation) -> None:
    assert await Steps.too_slow.remote() == "given up"
    assert 5 <= world.elapsed < 7


@simulated
async def test_a_terminal_error_of_a_step_is_not_retried_and_arrives_as_itself(world: Simulation) -> None:
    rest = ("no", 418, {"why": "tea"})
    assert await Steps.terminal.remote() == [("TerminalError", *rest), ("Broke", *rest)]
    assert outside.seen == [TerminalError, Broke]


@simulated
async def test_steps_run_at_once(world: Simulation) -> None:
    assert await Steps.parallel.remote() == [0, 1, 2, 3, 4]
    assert 10 <= world.elapsed < 12


@simulated
async def test_a_step_that_was_given_up_is_over(world: Simulation) -> None:
    assert await Steps.abandoned.remote() == ["late", "late", "late", "last"]
    assert outside.seen == [0, 1, 2, "last"]


@simulated
async def test_a_step_can_be_given_up_for_another_whose_outcome_came_with_it(world: Simulation) -> None:
    assert await Steps.given_up_for_another.remote() == [0, 1]


@simulated
async def test_a_step_that_nobody_awaits_ends_with_its_handler(world: Simulation) -> None:
    assert await Steps.not_awaited.remote() == "ended"
    assert world.elapsed < 60


@simulated
async def test_a_step_may_be_awaited_long_after_it_ended_and_twice(world: Simulation) -> None:
    assert await Steps.awaited_late.remote() == ["early", "early"]
    assert outside.seen == ["early"]


@simulated
async def test_the_recorded_result_of_a_step_is_not_what_the_handler_made_of_it(world: Simulation) -> None:
    assert await Steps.mutated.remote() == [1, 2]
    assert outside.seen == [[1]]


@simulated
async def test_a_step_whose_result_cannot_be_recorded_fails_for_good(world: Simulation) -> None:
    error = await failure_of(Steps.unrecordable.remote())
    assert error.code == 400
    assert "lock" in str(error)


@simulated
async def test_a_step_may_not_command(world: Simulation) -> None:
    assert await Steps.commands.remote() == ["False  1 {}"]
    assert await Notes["n"].read.remote() == []


# ----------------------------------------------------------------------------------------------------------- asyncio

mark: contextvars.ContextVar[str] = contextvars.ContextVar("mark", default="unset")


class Shapes(Service):
    """Each handler returns what the table EXPECTED says, wherever it was suspended."""

    @handler
    async def gather(self, ctx: Context) -> list[Any]:
        call = Notes["n"].append.remote("d")
        return [*await asyncio.gather(_after(3, "a"), _after(1, "b"), ctx.run("c", str, "c"), call)]

    @handler
    async def gather_with_errors(self, ctx: Context) -> list[str]:
        failing = _fails_after(1, Broke("b"))
        found: list[Any] = [*await asyncio.gather(_after(2, "a"), failing, return_exceptions=True)]
        try:
            await asyncio.gather(_after(2, "a"), _fails_after(1, Broke("b")))
        except Broke as error:
            found.append(f"raised {error}")
        return [repr(each) for each in found]

    @handler
    async def wait_first(self, ctx: Context) -> list[Any]:
        tasks = [asyncio.create_task(_after(n, f"{n}")) for n in (3, 1, 2)]
        out: list[Any] = []
        while tasks:
            done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            out.append([task.result() for task in done])
            tasks = sorted(pending, key=tasks.index)
        return out

    @handler
    async def wait_first_exception(self, ctx: Context) -> list[Any]:
        tasks = [asyncio.create_task(each) for each in (_after(1, "a"), _fails_after(2, Broke("b")), _after(9, "c"))]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        return [len(done), len(pending), await tasks[2]]

    @handler
    async def wait_all_in_time(self, ctx: Context) -> list[Any]:
        tasks = [asyncio.create_task(_after(n, f"{n}")) for n in (1, 5)]
        done, pending = await asyncio.wait(tasks, timeout=3)
        first = [len(done), len(pending)]
        done, pending = await asyncio.wait(tasks)
        return [*first, len(done), len(pending)]

    @handler
    async def wait_for(self, ctx: Context) -> list[Any]:
        out: list[Any] = [await asyncio.wait_for(_after(1, "in time"), 5)]
        try:
            await asyncio.wait_for(_after(5, "never"), 1)
        except TimeoutError:
            out.append("late")
        call = Notes["slow"].around.remote("call", 2)
        try:
            await asyncio.wait_for(call, 1)
        except TimeoutError:
            out.append("late call")
        await call  # it went on
        return [*out, await Notes["slow"].read.remote()]

    @handler
    async def timeout(self, ctx: Context) -> list[Any]:
        out: list[Any] = []
        outer = asyncio.timeout(2)
        try:
            async with outer:
                try:
                    async with asyncio.timeout(1):
                        await asyncio.sleep(9)
                except TimeoutError:
                    out.append("inner")
                await asyncio.sleep(9)
        except TimeoutError:
            out.append(f"outer {outer.expired()}")
        async with asyncio.timeout(None) as never:
            never.reschedule(asyncio.get_running_loop().time() + 5)
            await asyncio.sleep(1)
        return out

    @handler
    async def group(self, ctx: Context) -> list[Any]:
        out: list[Any] = []
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_fails_after(1, Broke("one")))
                tasks.create_task(_fails_when_cancelled(KeyError("two")))
                tasks.create_task(_noting(out, 5))
        except* Broke as group:
            out.append([str(error) for error in group.exceptions])
        except* KeyError as group:
            out.append([repr(error) for error in group.exceptions])
        return out

    @handler
    async def shield(self, ctx: Context) -> list[Any]:
        inner = asyncio.create_task(_after(3, "inner"))
        try:
            await asyncio.wait_for(asyncio.shield(inner), 1)
        except TimeoutError:
            return ["outer ended", await inner]
        return []

    @handler
    async def cancelled(self, ctx: Context) -> list[Any]:
        out: list[Any] = []
        task = asyncio.create_task(_noting(out, 9))
        await asyncio.sleep(1)
        task.cancel("why")
        try:
            await task
        except asyncio.CancelledError as error:
            out.append(f"cancelled {error.args}")
        return out

    @handler
    async def queue(self, ctx: Context) -> list[Any]:
        queue: asyncio.Queue[int] = asyncio.Queue(2)

        async def produce(first: int) -> None:
            for number in range(first, first + 4):
                await asyncio.sleep(0.5)
                await queue.put(number)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(produce(0))
            tasks.create_task(produce(10))
            found: list[int] = []
            for _ in range(8):
                found.append(await queue.get())
                await ctx.run("take", asyncio.sleep, 0.3)
        return found

    @handler
    async def locks(self, ctx: Context) -> list[Any]:
        lock, two, go = asyncio.Lock(), asyncio.Semaphore(2), asyncio.Event()
        out: list[Any] = []

        async def enter(name: str) -> None:
            await go.wait()
            async with two, lock:
                out.append(f"{name} in")
                await asyncio.sleep(1)
                out.append(f"{name} out")

        async with asyncio.TaskGroup() as tasks:
            for name in "abc":
                tasks.create_task(enter(name))
            await asyncio.sleep(1)
            go.set()
        return out

    @handler
    async def condition(self, ctx: Context) -> list[Any]:
        condition, barrier = asyncio.Condition(), asyncio.Barrier(3)
        out: list[Any] = []

        async def waits(name: str) -> None:
            async with condition:
                await condition.wait()
                out.append(name)
            await barrier.wait()
            out.append(f"{name} passed")

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(waits("a"))
            tasks.create_task(waits("b"))
            await asyncio.sleep(1)
            async with condition:
                condition.notify_all()
            await asyncio.sleep(1)
            await barrier.wait()
        return [*sorted(out[:2]), *sorted(out[2:])]

    @handler
    async def generator(self, ctx: Context) -> list[Any]:
        out: list[Any] = []

        async def numbers() -> AsyncIterator[int]:
            try:
                for number in range(9):
                    yield await ctx.run("number", operator.add, number, 0)
                    await asyncio.sleep(1)
            finally:
                await asyncio.sleep(1)
                out.append("closed")

        source = numbers()
        async for number in source:
            out.append(number)
            if number == 2:
                break
        await source.aclose()  # pyright: ignore[reportAttributeAccessIssue]  # it is a generator
        return [*out, [number async for number in numbers() if number > 6]]

    @handler
    async def variables(self, ctx: Context) -> list[Any]:
        before = mark.get()
        mark.set("handler")

        async def task(name: str) -> list[str]:
            inherited = mark.get()
            mark.set(name)
            await asyncio.sleep(1)
            return [inherited, mark.get()]

        found = await asyncio.gather(task("a"), task("b"))
        step = await ctx.run("step", mark.get)
        return [before, *found, mark.get(), step]

    @handler
    async def sets(self, ctx: Context) -> list[Any]:
        """A set of tasks, or of calls, has one order on every replay."""
        out: list[list[Any]] = []
        tasks = {asyncio.create_task(_after(1, n)) for n in range(20)}
        calls = {Crate[f"{n}"].defaults.remote() for n in range(20)}
        await asyncio.sleep(2)
        out += [[await task for task in tasks]]
        await asyncio.gather(*calls)
        for task in tasks:
            await ctx.run("task", str, task.result())
        for call in calls:
            await ctx.run(f"call {call.id}", str)
        return [sorted(out[0])]

    @handler
    async def tasks_left(self, ctx: Context) -> list[Any]:
        out: list[Any] = []
        asyncio.create_task(_noting(out, 1_000))
        await asyncio.sleep(1)
        return out


async def _after(delay_s: float, result: Any) -> Any:
    await asyncio.sleep(delay_s)
    return result


async def _fails_after(delay_s: float, error: Exception) -> None:
    await asyncio.sleep(delay_s)
    raise error


async def _fails_when_cancelled(error: Exception) -> None:
    try:
        await asyncio.sleep(100)
    finally:
        raise error


async def _noting(out: list[Any], delay_s: float) -> None:
    try:
        await asyncio.sleep(delay_s)
    finally:
        out.append("ended")


EXPECTED: dict[str, Any] = {
    "gather": ["a", "b", "c", 1],
    "gather_with_errors": ["'a'", "Broke('b')", "'raised b'"],
    "wait_first": [["1"], ["2"], ["3"]],
    "wait_first_exception": [2, 1, "c"],
    "wait_all_in_time": [1, 1, 2, 0],
    "wait_for": ["in time", "late", "late call", ["call begins", "call ends"]],
    "timeout": ["inner", "outer True"],
    "group": ["ended", ["one"], ["KeyError('two')"]],
    "shield": ["outer ended", "inner"],
    "cancelled": ["ended", "cancelled ('why',)"],
    "queue": [0, 10, 1, 11, 2, 12, 3, 13],
    "locks": ["a in", "a out", "b in", "b out", "c in", "c out"],
    "condition": ["a", "b", "a passed", "b passed"],
    "generator": [0, 1, 2, "closed", [7, 8]],
    "variables": ["unset", ["handler", "a"], ["handler", "b"], "handler", "handler"],
    "sets": [list(range(20))],
    "tasks_left": ["ended"],
}


@pytest.mark.parametrize("shape", EXPECTED)
def test_plain_asyncio_is_durable(mode: Policy | None, shape: str) -> None:
    async def scenario(world: Simulation) -> None:
        assert await Shapes.handle.remote(shape) == EXPECTED[shape]

    played(scenario, mode, ["a"])


# ------------------------------------------------------------------------------------------------------------- calls


class Callee(VirtualObject):
    count: int = state(0)

    @handler
    async def add(self, ctx: Context, amount: int, *, pause_s: float = 0) -> int:
        self.count += amount
        if pause_s:
            await asyncio.sleep(pause_s)
        return self.count

    @handler
    async def listed(self, ctx: Context) -> list[int]:
        self.count += 1
        return [self.count]

    @handler
    async def fail(self, ctx: Context, known: bool) -> None:
        self.count += 1
        await asyncio.sleep(1)
        raise (Broke if known else TerminalError)("no", 418, {"why": "tea"})

    @handler
    def plain(self, ctx: Context, amount: int) -> int:
        """A handler that is not async: state and sends."""
        self.count += amount
        Notes["plain"].append.send(f"{self.count}")
        return self.count

    @handler
    async def in_place(self, ctx: Context) -> list[int]:
        first = await self.add(ctx, 1, pause_s=1)
        self.count += 10
        return [first, await self.add(ctx, 1, pause_s=1), self.count]

    @handler
    async def in_place_failing(self, ctx: Context) -> str:
        try:
            await self.fail(ctx, True)
        except Broke as error:
            return f"{error} {self.count}"
        return ""

    @handler
    async def to_itself(self, ctx: Context) -> int:
        self.add.send(100)
        await asyncio.sleep(5)
        self.count += 1
        return self.count

    @shared
    async def look(self, ctx: Context) -> int:
        return self.count


class Caller(Service):
    @handler
    async def results(self, ctx: Context) -> list[Any]:
        call = Callee["a"].listed.remote()
        first = await call
        first.append(99)
        await asyncio.sleep(1)
        second = await call
        return [first, second, await Callee["a"].handle.remote("add", 5), await Callee["a"].plain.remote(3)]

    @handler
    async def failures(self, ctx: Context) -> list[Any]:
        found: list[Any] = []
        for known in (False, True):
            call = Callee["a"].fail.remote(known)
            for _ in range(2):
                try:
                    await call
                except TerminalError as error:
                    found.append((type(error).__name__, str(error), error.code, error.metadata))
        return found

    @handler
    async def uncaught(self, ctx: Context) -> None:
        await Callee["a"].fail.remote(True)

    @handler
    async def never_awaited(self, ctx: Context) -> str:
        Callee["a"].add.remote(1)
        Callee["a"].add.send(2)
        return "ended"

    @handler
    async def gathered(self, ctx: Context) -> list[Any]:
        calls = [Callee[f"{n}"].add.remote(n, pause_s=5 - n) for n in range(5)]
        return await asyncio.gather(*calls, Callee["f"].fail.remote(True), return_exceptions=True)

    @handler
    async def wrong(self, ctx: Context) -> list[str]:
        found: list[str] = []
        wrong_calls: list[Callable[[], Any]] = [
            lambda: Callee["a"].handle.remote("add"),
            lambda: Callee["a"].handle.send("nothing"),
            lambda: Callee["a"].handle.send("add", threading.Lock()),
            lambda: Callee[""].add.send(1),
        ]
        for wrong in wrong_calls:
            try:
                wrong()
            except (TypeError, UsageError) as error:
                found.append(type(error).__name__)
        return found

    @handler
    async def keyed(self, ctx: Context) -> list[Any]:
        add = Callee["k"].add.options(idempotency_key="same")
        first, second = add.remote(1, pause_s=2), add.remote(1, pause_s=2)
        found: list[Any] = [first.id == second.id, first == second, await asyncio.gather(first, second)]
        await asyncio.sleep(1)
        third = add.remote(1, pause_s=2)
        return [*found, await third, await Callee["k"].add.options(idempotency_key="other").remote(7)]

    @handler
    async def delayed(self, ctx: Context) -> list[Any]:
        began = ctx.now()
        call = Callee["d"].add.options(delay="10s").remote(1)
        first = await Callee["d"].add.remote(10)
        return [first, await call, (ctx.now() - began).total_seconds() >= 10]


@simulated
async def test_a_call_may_be_awaited_twice_and_its_result_is_a_new_value_each_time(world: Simulation) -> None:
    assert await Caller.results.remote() == [[1, 99], [1], 6, 9]
    assert await Notes["plain"].read.remote() == ["9"]


@simulated
async def test_a_terminal_error_reaches_the_caller_as_itself(world: Simulation) -> None:
    rest = ("no", 418, {"why": "tea"})
    assert await Caller.failures.remote() == [("TerminalError", *rest)] * 2 + [("Broke", *rest)] * 2
    error = await failure_of(Caller.uncaught.remote())
    assert (type(error), str(error), error.code, error.metadata) == (Broke, *rest)
    assert await Callee["a"].look.remote() == 3


@simulated
async def test_a_call_that_is_never_awaited_is_made_all_the_same(world: Simulation) -> None:
    assert await Caller.never_awaited.remote() == "ended"
    assert await Callee["a"].add.remote(0) == 3


@simulated
async def test_calls_can_be_gathered(world: Simulation) -> None:
    *found, failed = await Caller.gathered.remote()
    assert found == [0, 1, 2, 3, 4]
    assert isinstance(failed, Broke)
    assert world.elapsed < 7


@simulated
async def test_a_wrong_call_fails_in_the_caller(world: Simulation) -> None:
    assert await Caller.wrong.remote() == ["TypeError", "UsageError", "UsageError", "UsageError"]


@simulated
async def test_a_call_to_itself_in_place_is_a_method_of_the_same_invocation(world: Simulation) -> None:
    assert await Callee["a"].in_place.remote() == [1, 12, 12]
    assert await Callee["b"].in_place_failing.remote() == "no 1"
    assert world.state("Callee/b") == {"count": 1}


@simulated
async def test_a_message_to_itself_comes_after_its_sender(world: Simulation) -> None:
    assert await Callee["a"].to_itself.remote() == 1
    assert await Callee["a"].add.remote(0) == 101


@simulated
async def test_an_idempotency_key_names_one_invocation(world: Simulation) -> None:
    add = Callee["k"].add.options(idempotency_key="same")
    first, second = add.remote(1, pause_s=2), add.remote(1, pause_s=2)
    add.send(1, pause_s=2)
    assert first.id == second.id
    assert await asyncio.gather(first, second) == [1, 1]
    assert await add.remote(1, pause_s=2) == 1
    assert await Callee["k"].plain.options(idempotency_key="same").remote(2) == 3
    assert await Callee["other"].add.options(idempotency_key="same").remote(4) == 4
    assert await Callee["k"].look.remote() == 3


@simulated
async def test_an_idempotency_key_names_one_invocation_for_handlers_too(world: Simulation) -> None:
    assert await Caller.keyed.remote() == [True, True, [1, 1], 1, 8]
    assert await Callee["k"].add.options(idempotency_key="same").remote(1, pause_s=2) == 1


@simulated
async def test_a_delayed_call_is_answered_after_its_delay(world: Simulation) -> None:
    assert await Caller.delayed.remote() == [10, 11, True]
    began = world.elapsed
    call = Callee["d"].add.options(delay=timedelta(seconds=20)).remote(1)
    assert await call == 12
    assert 20 <= world.elapsed - began < 22


# -------------------------------------------------------------------------------------- policies, errors, divergence


class Ends(VirtualObject):
    count: int = state(0)

    @handler
    async def time_out(self, ctx: Context) -> None:
        async with asyncio.timeout(1):
            await asyncio.sleep(9)

    @handler
    async def own_time_out(self, ctx: Context) -> None:
        raise TimeoutError("too late")

    @handler
    async def does_io(self, ctx: Context) -> None:
        await asyncio.open_connection("127.0.0.1", 1)

    @handler
    async def returns_a_lock(self, ctx: Context) -> Any:
        self.count += 1
        return threading.Lock()

    @handler
    async def group(self, ctx: Context) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_fails_after(1, KeyError("one")))
            tasks.create_task(_fails_when_cancelled(Broke("two", 418)))

    @handler
    async def nested(self, ctx: Context) -> None:
        raise ExceptionGroup("outer", [KeyError(1), ExceptionGroup("inner", [Broke("deep", 418)])])

    @handler(policy=Policy(retry=Retry(initial=1, max_attempts=3)))
    async def repeated(self, ctx: Context, what: str) -> int:
        self.count += 1
        await asyncio.sleep(0.5)
        outside.seen.append(ctx.attempt)
        if ctx.attempt == 1:
            self.count += 100
            match what:
                case "group":
                    raise ExceptionGroup("no terminal one", [KeyError(1), Broken()])
                case "system exit":
                    raise SystemExit(3)
                case "cancelled":
                    raise asyncio.CancelledError
                case "interrupt":
                    raise KeyboardInterrupt
                case "base":
                    raise BaseException("bare")
                case "generator exit":
                    raise GeneratorExit
                case "stop":
                    raise StopAsyncIteration
                case _:
                    raise Broken(what)
        return self.count

    @handler(policy=Policy(retry=Retry(initial=2, factor=2, max_attempts=2)))
    async def gives_up(self, ctx: Context, pause_s: float) -> None:
        self.count += 1
        await asyncio.sleep(pause_s)
        self.count += 1
        raise Broken(f"attempt {ctx.attempt}")

    @handler(policy=Policy(idle_timeout=5))
    async def idles(self, ctx: Context, pause_s: float) -> str:
        outside.seen.append("executed")
        await asyncio.sleep(pause_s)
        return "ended"

    @handler(policy=Policy(idle_timeout=0))
    async def changed(self, ctx: Context, how: str) -> str:
        """Asks for something else after it was resumed, once the switch is turned."""
        after = outside.switch
        self.count += 1
        await ctx.run("first", lambda: outside.act(ctx.step_id, "first"))
        if how == "other name":
            await ctx.run("renamed" if after else "second", lambda: outside.act(ctx.step_id, "second"))
        elif how == "other kind" and after:
            await Notes["other"].append.remote("called")
        elif how == "other target":
            await Notes["there" if after else "here"].append.remote("called")
        elif how == "other handler" and not after:
            await Notes["here"].append.remote("called")
        elif how == "other handler":
            await Notes["here"].read.remote()
        elif how == "ends" and after:
            return "ended early"
        elif how == "one less" and after:
            pass
        else:
            await ctx.run("second", lambda: outside.act(ctx.step_id, "second"))
        await ctx.sleep("10s", name="gone" if how == "other timer" and after else "pause")
        return "ended"

    @handler
    async def touch(self, ctx: Context) -> int:
        self.count += 1
        return self.count


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("time_out", 408, ""),
        ("own_time_out", 408, "too late"),
        ("does_io", 400, "ctx.run"),
        ("returns_a_lock", 400, "lock"),
        ("group", 418, "two"),
        ("nested", 418, "deep"),
    ],
)
def test_what_a_replay_could_only_raise_again_is_terminal(mode: Policy | None, name: str, code: int, said: str) -> None:
    async def scenario(world: Simulation) -> None:
        error = await failure_of(Ends["e"].handle.remote(name))
        assert error.code == code
        assert said in str(error)
        assert await Ends["e"].touch.remote() >= 1

    played(scenario, mode, ["a"])


@pytest.mark.parametrize(
    "what", ["error", "group", "system exit", "cancelled", "interrupt", "base", "generator exit", "stop"]
)
def test_every_other_error_means_another_attempt(mode: Policy | None, what: str) -> None:
    async def scenario(world: Simulation) -> None:
        assert await Ends["e"].repeated.remote(what) == 1
        assert outside.seen == [1, 2]
        assert world.state("Ends/e") == {"count": 1}

    played(scenario, mode, ["a"])


@pytest.mark.parametrize("pause_s", [0, 1])
def test_a_failure_becomes_terminal_when_the_policy_s_attempts_are_used_up(mode: Policy | None, pause_s: float) -> None:
    async def scenario(world: Simulation) -> None:
        error = await failure_of(Ends["e"].gives_up.remote(pause_s))
        assert type(error) is TerminalError
        assert "attempt 2" in str(error)
        assert 2 + pause_s <= world.elapsed < 3 + pause_s, "what was recorded is not waited for again"
        assert len(world.program.notices) == 1
        assert await Ends["e"].touch.remote() >= 1

    played(scenario, mode, ["a"])


@simulated
async def test_what_a_failing_last_attempt_wrote_and_did_not_commit_is_discarded(world: Simulation) -> None:
    """Promise 7: a failure that became terminal was not raised as one."""
    await failure_of(Ends["e"].gives_up.remote(0))
    assert world.state("Ends/e").get("count", 0) <= 1


@simulated
async def test_an_execution_that_waits_longer_than_idle_timeout_leaves_memory(world: Simulation) -> None:
    assert await Ends["e"].idles.remote(4) == "ended"
    assert len(outside.seen) == 1
    assert await Ends["e"].idles.remote(60) == "ended"
    assert len(outside.seen) == 3


class Hasty(VirtualObject):
    @handler
    async def ends(self, ctx: Context, pause_s: float) -> None:
        Notes["hasty"].read_twice.remote()  # answered after two seconds
        await asyncio.sleep(pause_s)
        Notes["ended"].append.send(ctx.key)


def test_what_comes_while_the_end_of_one_that_slept_is_written_does_not_begin_it_again(mode: Policy | None) -> None:
    """Promise 3: until the end is durable its hash still says that it is asleep."""

    async def scenario(world: Simulation) -> None:
        world.latency = random.Random(1)
        await world.join("a")
        keys = [f"{number:02}" for number in range(40)]
        await asyncio.gather(*(Hasty[key].ends.remote(1.9 + int(key) / 100) for key in keys))
        await asyncio.sleep(5)
        assert sorted(await Notes["ended"].read.remote()) == keys

    played(scenario, mode, [])


SIDES = {
    "other name": ("second", "renamed"),
    "other kind": ("second", "Notes/other"),
    "other target": ("Notes/here", "Notes/there"),
    "other handler": ("append", "read"),
    "other timer": ("pause", "gone"),
    "one less": ("second", "pause"),
    "ends": ("second", "nothing"),
}


@pytest.mark.parametrize("how", SIDES)
def test_a_replay_that_differs_pauses_its_invocation_and_its_key_alone(mode: Policy | None, how: str) -> None:
    """Promise 8: it names both sides, holds its key, and nobody else's."""

    async def scenario(world: Simulation) -> None:
        world.expected_leftovers = True
        diverging = Ends["e"].changed.remote(how)
        await asyncio.sleep(5)
        outside.switch = True
        paused = await world.until_status(diverging, "paused")
        assert paused.startswith("paused: ")
        assert all(side in paused for side in SIDES[how])
        assert NondeterminismError.__name__ in paused or "diverged" in paused
        behind = Ends["e"].touch.remote()
        assert await Ends["other"].touch.remote() == 1
        await asyncio.sleep(100)
        assert await world.status(behind) == "open"
        assert await world.status(diverging) == paused
        assert "first" in outside.seen
        assert outside.seen.count("first") == 1

    played(scenario, mode, ["a"])


# ------------------------------------------------------------------------------------------ two hosts (promises 3, 6)


class Trip(VirtualObject):
    stages: list[str] = state(default_factory=list)

    @handler
    async def go(self, ctx: Context, number: int) -> list[Any]:
        found: list[Any] = []
        for stage in range(4):
            self.stages.append(f"{number}.{stage}")
            step_id = await ctx.run("step", lambda: outside.act_for(ctx.step_id, ctx.step_id, 0.7))
            assert step_id
            await asyncio.sleep(0.4)
            found.append(await Callee["trips"].add.remote(1))
            Notes[ctx.key].append.send(f"{number}.{stage}")
        return found

    @handler
    async def knock(self, ctx: Context) -> str:
        """Fails in place for 20 s; each attempt is noted with its host and its time."""
        return await ctx.run("knock", self._knock, retry=Retry(initial=0.5, factor=1))

    @staticmethod
    def _knock() -> str:
        assert outside.world is not None
        outside.seen.append((outside.host, outside.world.elapsed))
        if outside.world.elapsed < 20:
            raise ConnectionError
        return "opened"

    @handler
    async def slow(self, ctx: Context) -> int:
        self.stages.append("slow")
        await ctx.run("slow", lambda: outside.act_for(ctx.step_id, "slow", 5))
        return len(self.stages)


async def _trips(world: Simulation, keys: Sequence[str], disturb: Callable[[], Coroutine[Any, Any, None]]) -> None:
    trips = [Trip[key].go.remote(number) for key in keys for number in range(2)]
    await disturb()
    found = [count for each in await asyncio.gather(*trips) for count in each]
    assert sorted(found) == list(range(1, 8 * len(keys) + 1))
    in_order = [f"{number}.{stage}" for number in range(2) for stage in range(4)]
    for key in keys:
        assert world.state(f"Trip/{key}") == {"stages": in_order}
        assert await Notes[key].append.remote("all") == len(in_order) + 1  # behind what was sent, which may be queued
        assert await Notes[key].read.remote() == [*in_order, "all"]


@pytest.mark.parametrize("after_s", [0.1, 0.65, 0.75, 1.15, 2.0, 3.3])
def test_a_shard_handed_over_in_the_middle_of_handlers_loses_and_repeats_nothing(
    mode: Policy | None, after_s: float
) -> None:
    """Promises 2 and 3; steps under way end and are recorded, so that none runs twice (promise 4)."""

    async def scenario(world: Simulation) -> None:
        async def hand_over() -> None:
            await asyncio.sleep(after_s)
            leaving = world.members["a"]
            await leaving.host.leave()
            assert world.elapsed - after_s < 3, "a hand-over that waits for a lease to lapse is none"
            leaving.task.cancel()
            await asyncio.gather(leaving.task, return_exceptions=True)

        await _trips(world, "uvwxyz", hand_over)
        assert len(outside.seen) == len(set(outside.seen)) == 48

    played(scenario, mode, ["a", "b"])


@simulated
async def test_a_host_that_joins_takes_its_share_and_nothing_is_lost(world: Simulation) -> None:
    async def joined() -> None:
        await asyncio.sleep(1)
        await world.join("b")

    await _trips(world, "uvwxyz", joined)
    assert len(outside.seen) == len(set(outside.seen)) == 48


PAUSE_S = 10.0
LEASE_S = 3.0


async def _paused(world: Simulation, name: str, after_s: float) -> None:
    await asyncio.sleep(after_s)
    world.members[name].running.clear()
    await asyncio.sleep(PAUSE_S)
    world.members[name].running.set()


@pytest.mark.parametrize("after_s", [0.1, 0.4, 0.8])
def test_the_shards_of_a_silent_host_are_taken_when_its_leases_have_lapsed(mode: Policy | None, after_s: float) -> None:
    """Once, not twice the lease: who takes them has looked at the leases for as long as at the host."""

    async def scenario(world: Simulation) -> None:
        await asyncio.sleep(after_s)
        world.members["a"].running.clear()
        await asyncio.gather(*(Notes[key].read.remote() for key in "uvwxyz"))
        assert world.elapsed - after_s < LEASE_S + 1
        world.members["a"].running.set()

    played(scenario, mode, ["a", "b"])


@pytest.mark.parametrize("after_s", [0.3, 0.6, 1.5])
def test_a_paused_host_commits_nothing_afterwards(mode: Policy | None, after_s: float) -> None:
    """Promise 6: whatever it asked for while it was away is refused, and the work went on elsewhere."""

    async def scenario(world: Simulation) -> None:
        member = world.members["a"]
        await _trips(world, "uvwxyz", functools.partial(_paused, world, "a", after_s))
        commits = [late for late in member.late if late.name == "commit"]
        answers = [answer for late in commits for answer in late.answer]
        assert answers, "it had nothing to commit: the test shows nothing"
        assert all(isinstance(answer, Fenced) for answer in answers)

    played(scenario, mode, ["a", "b"])


def test_a_host_whose_lease_has_lapsed_asks_for_no_commit_even_if_nobody_took_the_shard(mode: Policy | None) -> None:
    """Promise 2: a lease that lapsed is lost; who wakes commits and sends nothing until it has the shard anew."""

    async def scenario(world: Simulation) -> None:
        slow = [Trip[key].slow.remote() for key in "uvwxyz"]
        await _paused(world, "a", 1)
        assert await asyncio.gather(*slow) == [1] * 6
        commits = [late.asked_at for late in world.members["a"].late if late.name == "commit"]
        assert [at for at in commits if at > 1 + LEASE_S] == []

    played(scenario, mode, ["a"])


def test_a_paused_host_starts_nothing_once_its_lease_has_lapsed(mode: Policy | None) -> None:
    """Promise 2: no attempt of a step begins at a host that lost the shard, while another one has it."""

    async def scenario(world: Simulation) -> None:
        keys = "uvwxyz"
        knocks = [Trip[key].knock.remote() for key in keys]
        await _paused(world, "a", 2)
        assert await asyncio.gather(*knocks) == ["opened"] * len(keys)
        of_a = [at for host, at in outside.seen if host == "a"]
        assert any(at < 2 for at in of_a), "it had no step: the test shows nothing"
        assert not [at for at in of_a if 2 + LEASE_S < at < 2 + PAUSE_S]

    played(scenario, mode, ["a", "b"])


def test_of_two_hosts_one_at_a_time_acts_for_a_key(mode: Policy | None) -> None:
    """Promise 2."""

    async def scenario(world: Simulation) -> None:
        for key in "uvwxyz":
            outside.seen.clear()
            world.began = world.loop.time()
            knock = Trip[key].knock.remote()
            await _paused(world, "a", 2)
            assert await knock == "opened"
            hosts = [host for host, _ in outside.seen]
            changes = sum(one != other for one, other in itertools.pairwise(hosts))
            assert changes <= 2, hosts
            times = [at for _, at in outside.seen]
            assert all(later - earlier > 0.4 for earlier, later in itertools.pairwise(times)), outside.seen

    played(scenario, mode, ["a", "b"])


@pytest.mark.parametrize("after_s", [0.2, 3.0])
def test_a_step_that_ends_while_its_host_is_cut_off_has_one_outcome(mode: Policy | None, after_s: float) -> None:
    """Promises 3 and 4: it may repeat, since it was not recorded; state and reply come once."""

    async def scenario(world: Simulation) -> None:
        slow = [Trip[key].slow.remote() for key in "uvwxyz"]
        await _paused(world, "a", after_s)
        assert await asyncio.gather(*slow) == [1] * 6
        for key in "uvwxyz":
            assert world.state(f"Trip/{key}") == {"stages": ["slow"]}

    played(scenario, mode, ["a", "b"])


# -------------------------------------------------------------------------------------------------- on purpose awkward


class Odd(TerminalError):
    """A terminal error that no pickle can rebuild: it takes more than its message."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}", 409, {"one": one})


class Awkward(VirtualObject):
    count: int = state(0)
    other: int = state(0)
    text: str = state("")

    @handler
    async def closed(self, ctx: Context) -> int:
        """What `finally` does when the execution leaves memory is forgotten; what it does at the end is not."""
        try:
            await asyncio.sleep(1)
            await ctx.run("step", lambda: outside.act(ctx.step_id, "step"))
            await asyncio.sleep(1)
        finally:
            self.count += 1
            Notes["closed"].append.send("finally")
        return self.count

    @handler
    async def stubborn(self, ctx: Context) -> str:
        """Lets nothing end its wait, not even the end of its execution, until the switch is turned."""
        for _ in range(3):
            while True:
                try:
                    await asyncio.sleep(1)
                    break
                except BaseException:
                    if outside.switch:
                        raise
                    self.count += 1_000
        return f"through {self.count}"

    @handler
    async def sends_then_breaks(self, ctx: Context) -> None:
        Notes["sent"].append.send(f"{ctx.attempt}")
        Notes[f"attempt {ctx.attempt}"].append.remote("called")
        ctx.run(f"attempt {ctx.attempt}", lambda: outside.act(ctx.step_id, ctx.attempt))
        if ctx.attempt < 3:
            raise Broken
        raise Broke("for good")

    @handler
    async def same_moment(self, ctx: Context) -> list[int]:
        out: list[int] = []

        async def one(number: int) -> None:
            await asyncio.sleep(1)
            out.append(number)

        await asyncio.gather(*(one(number) for number in range(30)))
        return out

    @handler
    async def by_due_time(self, ctx: Context) -> list[float]:
        out: list[float] = []

        async def one(delay_s: float) -> None:
            await asyncio.sleep(delay_s)
            out.append(delay_s)

        await asyncio.gather(*(one((number * 7) % 20 + 1) for number in range(20)))
        return out

    @handler
    async def at_once(self, ctx: Context) -> list[str]:
        await asyncio.sleep(0)
        await ctx.sleep(0)
        await ctx.sleep("0s", name="named")
        async with asyncio.timeout(5):
            await asyncio.sleep(-1)
        return ["through"]

    @handler
    async def too_large(self, ctx: Context, what: str) -> Any:
        large = "x" * 9_000_000
        match what:
            case "result":
                return large
            case "state":
                self.text = large
                await asyncio.sleep(1)
            case "state at the end":
                self.text = large
            case "step":
                return await ctx.run("large", lambda: large)
            case "argument":
                Notes["n"].append.send(large)
            case _:
                raise TerminalError(large)
        return None

    @handler
    async def odd(self, ctx: Context) -> None:
        raise Odd("a", "b")

    @handler
    async def catches_odd(self, ctx: Context) -> list[Any]:
        try:
            await Awkward["raises"].odd.remote()
        except TerminalError as error:
            return [str(error), error.code, error.metadata]
        return []

    @handler
    async def reminded(self, ctx: Context) -> list[str]:
        """A call is asked again and again, each time for a while: one call."""
        call = Notes["slow"].around.remote("asked", 3)
        out: list[str] = []
        while True:
            try:
                await asyncio.wait_for(call, 1)
                return out
            except TimeoutError:
                out.append("not yet")

    @handler(policy=Policy(retry=Retry(initial=1, factor=1, max_duration=5)))
    async def for_a_while(self, ctx: Context) -> None:
        outside.seen.append(ctx.attempt)
        raise Broken

    @handler
    def plain_call(self, ctx: Context) -> None:
        Notes["n"].append.remote("from a def handler")

    @handler
    async def bump(self, ctx: Context) -> int:
        self.count += 1
        self.other += 1
        return self.count

    @shared
    async def reads_late(self, ctx: Context) -> list[int]:
        """What it reads between waits is recorded: a replay decides alike."""
        await asyncio.sleep(1)
        first = self.count
        Notes["late"].append.send(f"{first}")
        await asyncio.sleep(2)
        second = self.count
        if first == second:
            await ctx.run("same", lambda: outside.act(ctx.step_id, "same"))
        else:
            await asyncio.sleep(1)
        await asyncio.sleep(1)
        return [first, second, self.count]


@simulated
async def test_what_finally_does_while_an_execution_leaves_memory_is_forgotten(world: Simulation) -> None:
    assert await Awkward["a"].closed.remote() == 1
    await asyncio.sleep(1)
    assert world.state("Awkward/a") == {"count": 1}
    assert await Notes["closed"].read.remote() == ["finally"]
    assert outside.seen == ["step"]


@simulated
async def test_a_handler_that_refuses_to_be_closed_goes_on_where_it_was(world: Simulation) -> None:
    known = len(closing._undying)
    assert await Awkward["a"].stubborn.remote() == "through 0"
    assert await Awkward["a"].bump.remote() == 1
    outside.switch = True
    left: list[Any] = closing._undying[known:]
    assert len(left) == (3 if world.policy is SUSPEND else 0)
    for coroutine in left:  # else the interpreter closes them when it exits, and complains
        coroutine.close()
    del closing._undying[known:]


@simulated
async def test_what_a_failed_attempt_had_not_committed_was_not_sent(world: Simulation) -> None:
    """Promise 7, and 3: a later attempt may ask for something else, since nothing was recorded."""
    assert isinstance(await failure_of(Awkward["a"].sends_then_breaks.remote()), Broke)
    await asyncio.sleep(1)
    assert await Notes["sent"].read.remote() == ["3"]
    assert [await Notes[f"attempt {number}"].read.remote() for number in (1, 2, 3)] == [[], [], ["called"]]
    assert outside.seen in ([], [3])


@simulated
async def test_timers_that_are_due_at_once_come_in_the_order_made(world: Simulation) -> None:
    assert await Awkward["a"].same_moment.remote() == list(range(30))


@simulated
async def test_timers_come_in_the_order_of_their_due_times(world: Simulation) -> None:
    found = await Awkward["a"].by_due_time.remote()
    assert found == sorted(found)
    assert 20 <= world.elapsed < 21


@simulated
async def test_waits_of_no_time_end(world: Simulation) -> None:
    assert await Awkward["a"].at_once.remote() == ["through"]
    assert world.elapsed < 1


@pytest.mark.parametrize("what", ["result", "state", "state at the end", "step", "argument", "error"])
def test_what_is_too_large_is_a_clear_error_and_holds_nobody(mode: Policy | None, what: str) -> None:
    """Promises 8 and 9."""

    async def scenario(world: Simulation) -> None:
        async with asyncio.timeout(60):
            error = await failure_of(Awkward["a"].too_large.remote(what))
        assert len(str(error)) < 8_000_000
        assert "payload_max" in str(error) or what == "error"
        assert await Awkward["a"].bump.remote() == 1

    played(scenario, mode, ["a"])


@simulated
async def test_a_terminal_error_that_cannot_be_rebuilt_keeps_message_code_and_metadata(world: Simulation) -> None:
    assert await Awkward["a"].catches_odd.remote() == ["a b", 409, {"one": "a"}]
    error = await failure_of(Awkward["a"].odd.remote())
    assert (str(error), error.code, error.metadata) == ("a b", 409, {"one": "a"})


@simulated
async def test_a_call_can_be_waited_for_again_and_again(world: Simulation) -> None:
    found = await Awkward["a"].reminded.remote()
    assert found == ["not yet"] * len(found)
    assert 5 <= len(found) <= 7
    assert await Notes["slow"].read.remote() == ["asked begins", "asked ends"]


@simulated
async def test_a_failure_becomes_terminal_when_the_policy_s_time_is_over(world: Simulation) -> None:
    await failure_of(Awkward["a"].for_a_while.remote())
    assert outside.seen in (list(range(1, 7)), list(range(1, 6)))
    assert 4 <= world.elapsed < 7


@simulated
async def test_a_handler_that_is_not_async_cannot_call(world: Simulation) -> None:
    assert (await failure_of(Awkward["a"].plain_call.remote())).code == 400
    assert await Notes["n"].read.remote() == []


@simulated
async def test_what_a_shared_handler_reads_after_each_wait_is_the_same_in_a_replay(world: Simulation) -> None:
    reading = Awkward["a"].reads_late.remote()
    for at in (0.5, 2.0, 3.5):
        await asyncio.sleep(at - world.elapsed)
        await Awkward["a"].bump.remote()
    assert await reading == [1, 2, 3]
    assert await Notes["late"].read.remote() == ["1"]
    assert outside.seen == []


@simulated
async def test_a_key_may_hold_any_character(world: Simulation) -> None:
    for key in ("a/b", "a:b|{c}", " ", "line\nfeed", "\x00", "ünï", "*", "x" * 1_000):
        assert await Callee[key].add.remote(1, pause_s=1) == 1
        assert await Callee[key].look.remote() == 1
        await Notes[key].around.remote(key, 1)
        assert await Notes[key].read.remote() == [f"{key} begins", f"{key} ends"]


@simulated
async def test_a_delayed_invocation_is_known_by_its_idempotency_key_before_it_is_due(world: Simulation) -> None:
    add = Callee["k"].add.options(idempotency_key="later")
    add.options(delay="10s").send(1)
    await asyncio.sleep(1)
    assert await add.remote(1) == 1
    assert 10 <= world.elapsed < 12
    assert await Callee["k"].look.remote() == 1


def _request(type_name: str, key: str | None, name: str, *args: Any) -> Request:
    """A call from a program that does not have the class, so that nothing is checked there."""
    return Request(type_name, key, name, args, {}, False, EMPTY_OPTIONS, None, None)


@pytest.mark.parametrize(
    ("type_name", "name", "args"),
    [("Callee", "add", ()), ("Callee", "add", (1, 2, 3)), ("Callee", "nothing", ()), ("Callee", "add", ("text",))],
)
def test_a_call_that_no_handler_takes_holds_its_key_at_most(
    mode: Policy | None, type_name: str, name: str, args: tuple[Any, ...]
) -> None:
    """Promise 8. Which error it is, and whether it is terminal, is not promised."""

    async def scenario(world: Simulation) -> None:
        world.expected_leftovers = True
        world.program.start(_request(type_name, "bad", name, *args))
        world.program.start(_request("Unknown", "bad", "nothing"))
        for key in "abcdefgh":
            assert await Callee[key].add.remote(1, pause_s=0.1) == 1

    played(scenario, mode, ["a"])


def test_a_host_that_cannot_wait_for_a_step_leaves_without_it(mode: Policy | None) -> None:
    """Promise 4: the step was not recorded, so it runs again at the next owner; its first run changes nothing."""

    async def scenario(world: Simulation) -> None:
        trips = [Trip[key].slow.remote() for key in "uvwxyz"]
        await asyncio.sleep(1)
        leaving = world.members["a"]
        await leaving.host.leave(2)
        leaving.task.cancel()
        assert await asyncio.gather(*trips) == [1] * 6
        assert 6 < outside.seen.count("slow") <= 12
        assert all(world.state(f"Trip/{key}") == {"stages": ["slow"]} for key in "uvwxyz")

    played(scenario, mode, ["a", "b"])


class Weather:
    """Pauses, kills, sends away and brings in hosts, as a seed says."""

    def __init__(self, world: Simulation, seed: int) -> None:
        self._world, self._source = world, random.Random(seed)
        world.latency = self._source
        self._away: set[str] = set()
        self._tasks: list[asyncio.Task[None]] = []

    async def blow(self) -> None:
        for _ in range(self._source.randint(3, 8)):
            await asyncio.sleep(self._source.uniform(0, 2.5))
            here = sorted(set(self._world.members) - self._away)
            if here:
                name = self._source.choice(here)
                self._away.add(name)
                self._tasks.append(asyncio.ensure_future(self._trouble(name)))
        await asyncio.gather(*self._tasks)

    async def _trouble(self, name: str) -> None:
        member = self._world.members[name]
        match self._source.choice(["pause", "pause", "die", "leave"]):
            case "pause":
                member.running.clear()
                await asyncio.sleep(self._source.choice([0.3, 2.9, 3.1, 6.0]))
                member.running.set()
            case "die":
                member.running.clear()
                member.task.cancel()
                await asyncio.gather(member.task, return_exceptions=True)
                await self._world.join(name)
            case _:
                await member.host.leave(self._source.choice([0.0, 30.0]))
                member.task.cancel()
                await asyncio.gather(member.task, return_exceptions=True)
                await self._world.join(name)
        self._away.discard(name)


@pytest.mark.slow_after_first
@pytest.mark.parametrize("first_seed", range(0, WEATHERS, 10))
def test_hosts_that_sleep_leave_and_die_at_any_moment_change_nothing(mode: Policy | None, first_seed: int) -> None:
    """Promises 1 to 7, on a network that takes its time."""
    for seed in range(first_seed, first_seed + 10):
        try:
            played(lambda world, seed=seed: _trips(world, "uvw", Weather(world, seed).blow), mode, ["a", "b", "c"])
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise


@pytest.mark.slow_after_first
@pytest.mark.parametrize("name", SCENARIOS)
def test_what_no_crash_changes_hosts_that_come_and_go_do_not_change_either(mode: Policy | None, name: str) -> None:
    """Promises 1 to 7, on the scenarios of the crashes."""
    scenario, check = SCENARIOS[name]

    async def in_the_weather(world: Simulation, seed: int) -> None:
        effects.world = world
        effects.done.clear()
        await world.driver.open()
        try:
            working = asyncio.ensure_future(scenario(world))
            await Weather(world, seed).blow()
            result = await working
            await asyncio.sleep(5)
        finally:
            await world.driver.close()
        if name == "give_up":  # there a pause makes a step late that is in time without, and the other way round
            assert world.state("Scroll/g") == {"lines": result}
        else:
            check(world, result)
        assert set(world.driver.replies.values()) <= {1}, "a reply came twice"

    for seed in range(WEATHERS // 5):
        try:
            played(functools.partial(in_the_weather, seed=seed), mode, ["a", "b", "c"])
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise
