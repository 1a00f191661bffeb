"""What signals promise, one sentence a test: each in memory and with every wait turned into suspend-and-replay.

`test_crash_everywhere.py` has the same under crashes before and after each store call, `test_store.py` the transitions.
"""

import asyncio
import logging
import random
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from test_semantics import Broken, Simulation, mode, played, simulated

from actors import (
    Context,
    Invocation,
    NotFoundError,
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
from actors.client.client import Client
from actors.client.slots import Brought, EarlyEvents, Operation
from actors.host.reader import READ_COUNT
from actors.limits import Limits
from actors.requests import current as places
from journal.ids import Shard, new_id, shard_in
from journal.records import EventKind, unpack
from journal.redis.store import RedisStore
from journal.store import Attach

__all__ = ["mode"]


@dataclass
class Order:
    items: tuple[str, ...]
    price: float


class Listener(VirtualObject):
    heard: list[Any] = state(default_factory=list)

    @handler
    async def hear(self, ctx: Context, count: int, pause_s: float = 0, name: str = "number") -> list[Any]:
        """Asks for so many, with a pause before each."""
        for _ in range(count):
            await asyncio.sleep(pause_s)
            self.heard.append(await ctx.signal(name))
        return self.heard

    @handler
    async def doze(self, ctx: Context, pause_s: float) -> None:
        await asyncio.sleep(pause_s)

    @handler
    async def two_names(self, ctx: Context) -> list[Any]:
        first = await ctx.signal("b", str)
        return [first, await ctx.signal("a", str), await ctx.signal("a", str)]

    @handler
    async def at_once(self, ctx: Context) -> list[int]:
        return list(await asyncio.gather(*(ctx.signal("number", int) for _ in range(3))))

    @handler
    async def gives_up(self, ctx: Context) -> list[Any]:
        """A wait that was given up takes none; so does one that was given up among others."""
        out: list[Any] = []
        try:
            await asyncio.wait_for(ctx.signal("number"), 5)
        except TimeoutError:
            out.append("late")
        second, third = ctx.signal("number"), ctx.signal("number")
        second.cancel()
        return [*out, await third, await ctx.signal("number")]

    @handler
    async def typed(self, ctx: Context) -> list[Any]:
        return [await ctx.signal("v"), await ctx.signal("v", Order), await ctx.signal("v", str)]

    @handler(policy=Policy(retry=Retry(initial=1)))
    async def stumbles(self, ctx: Context) -> list[Any]:
        """Each attempt gets the same signals, at the same places."""
        found = [await ctx.signal("number"), await ctx.signal("number")]
        if ctx.attempt < 3:
            raise Broken("not yet")
        return [*found, await ctx.signal("number")]

    @shared
    async def beside(self, ctx: Context) -> int:
        return await ctx.signal("number", int)

    @handler
    async def wrongly(self, ctx: Context) -> list[str]:
        ref = Listener["never"].hear.remote(0)
        wrong: list[Callable[[], object]] = [
            lambda: ctx.signal(""),
            lambda: ref.signal("", 1),
            lambda: ref.signal("x", threading.Lock()),
            lambda: Invocation[Any]("nonsense").signal("x", 1),
        ]
        out: list[str] = []
        for each in wrong:
            try:
                each()
            except UsageError as error:
                out.append(str(error))
        await ref
        return out

    @handler
    async def in_a_step(self, ctx: Context) -> str:
        ref = Listener["never"].hear.remote(0)
        try:
            await ctx.run("step", lambda: ref.signal("x", 1))
        except TerminalError as error:
            return str(error)
        return ""


class Teller(Service):
    @handler
    async def hear(self, ctx: Context) -> str:
        return await ctx.signal("word", str)

    @handler
    async def tell(self, ctx: Context, ref: Invocation[Any], count: int) -> None:
        for number in range(count):
            await ref.signal("number", number)  # at once: it is durable with the next commit
            await ctx.sleep(0.1 * (number % 2))

    @handler
    async def at_third(self, ctx: Context, ref: Invocation[Any]) -> None:
        ref.signal("number", ctx.attempt)
        if ctx.attempt < 3:
            raise Broken("not yet")

    @handler
    async def its_own(self, ctx: Context) -> list[Any]:
        """Calls and tells in one commit: the call is known before its signals come."""
        call = Listener["own"].hear.remote(3)
        for number in range(3):
            call.signal("number", number)
        return await call


@simulated
async def test_signals_are_handed_out_each_once_in_the_order_sent(world: Simulation) -> None:
    ref = Listener["a"].hear.remote(6)
    for number in range(3):
        ref.signal("number", number)
    await asyncio.sleep(1)
    for number in range(3, 6):
        await ref.signal("number", number)
    assert await ref == list(range(6))


@simulated
async def test_signals_that_come_early_are_kept_until_they_are_asked_for(world: Simulation) -> None:
    ref = Listener["a"].hear.remote(5, 2.0)
    for number in range(5):
        ref.signal("number", number)
    assert await ref == list(range(5))


@simulated
async def test_signals_are_kept_for_one_that_has_not_had_its_turn(world: Simulation) -> None:
    Listener["a"].doze.send(30)
    ref = Listener["a"].hear.remote(2)
    await ref.signal("number", 0)
    await asyncio.sleep(20)
    await ref.signal("number", 1)
    assert await ref == [0, 1]
    assert world.elapsed >= 30


@simulated
async def test_a_signal_wakes_who_is_asleep(world: Simulation) -> None:
    ref = Listener["a"].hear.remote(2)
    for number in range(2):
        await asyncio.sleep(300)
        assert await world.status(ref) == "asleep"
        ref.signal("number", number)
    assert await ref == [0, 1]


@simulated
async def test_signals_are_kept_for_a_delayed_one_which_they_do_not_begin(world: Simulation) -> None:
    ref = Listener["a"].hear.options(delay="20s").remote(3)
    ref.signal("number", 0)
    await asyncio.sleep(10)
    for number in (1, 2):
        await ref.signal("number", number)
    assert world.state("Listener/a") == {}
    assert await ref == [0, 1, 2]
    assert world.elapsed >= 20


@pytest.mark.parametrize("backlog", [READ_COUNT, 2 * READ_COUNT + 100])
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_signals_are_kept_for_one_that_no_host_has_read_yet(
    mode: Policy | None, backlog: int, seed: int | None
) -> None:
    """With a seed, the host learns that the message is unread before it is, or long after it was."""

    async def scenario(world: Simulation) -> None:
        world.latency = None if seed is None else random.Random(seed)
        host = await world.join("a")
        host.running.clear()
        for _ in range(backlog):
            Listener["a"].hear.send(0)
        ref = Listener["a"].hear.remote(2)
        for number in range(2):
            ref.signal("number", number)
        await ref.accepted()
        host.running.set()
        assert await ref == [0, 1]

    played(scenario, mode, [])


@simulated
async def test_names_are_kept_apart(world: Simulation) -> None:
    ref = Listener["a"].two_names.remote()
    for name, value in (("a", "1"), ("other", "2"), ("a", "3"), ("b", "4")):
        ref.signal(name, value)
        await asyncio.sleep(1)
    assert await ref == ["4", "1", "3"]


@simulated
async def test_of_many_waits_the_first_gets_the_first(world: Simulation) -> None:
    ref = Listener["a"].at_once.remote()
    for number in range(3):
        await asyncio.sleep(1)
        ref.signal("number", number)
    assert await ref == [0, 1, 2]


@simulated
async def test_a_wait_that_was_given_up_takes_none(world: Simulation) -> None:
    ref = Listener["a"].gives_up.remote()
    await asyncio.sleep(10)
    ref.signal("number", 0)
    ref.signal("number", 1)
    assert await ref == ["late", 0, 1]


@simulated
async def test_values_arrive_as_they_were_whatever_the_annotation(world: Simulation) -> None:
    ref = Listener["a"].typed.remote()
    values = [(1, {2}), Order(("pen",), 2.0), None]
    for value in values:
        ref.signal("v", value)
    assert await ref == values


@simulated
async def test_each_attempt_gets_the_same_signals(world: Simulation) -> None:
    ref = Listener["a"].stumbles.remote()
    for number in range(3):
        ref.signal("number", number)
        await asyncio.sleep(0.7)
    assert await ref == [0, 1, 2]


@simulated
async def test_any_invocation_takes_signals(world: Simulation) -> None:
    dozing = Listener["a"].doze.remote(30)
    beside, service = Listener["a"].beside.remote(), Teller.hear.remote()
    beside.signal("number", 7)
    service.signal("word", "hello")
    assert [await beside, await service] == [7, "hello"]
    assert world.elapsed < 30
    await dozing


@simulated
async def test_handlers_send_signals_in_order(world: Simulation) -> None:
    ref = Listener["a"].hear.remote(6)
    await Teller.tell.remote(ref, 6)
    assert await ref == list(range(6))
    assert await Teller.its_own.remote() == [0, 1, 2]


@simulated
async def test_a_signal_leaves_with_the_commit_of_its_handler_or_not_at_all(world: Simulation) -> None:
    # Promises 3 and 7.
    ref = Listener["a"].hear.remote(1)
    await Teller.at_third.remote(ref)
    assert await ref == [3]


@simulated
async def test_a_signal_to_one_that_has_ended_does_nothing_and_what_was_not_asked_for_goes(world: Simulation) -> None:
    ref = Listener["a"].hear.remote(1)
    for number in range(5):
        ref.signal("number", number)
    assert await ref == [0]
    await ref.signal("number", 9)
    await Teller.tell.remote(ref, 2)
    again = Listener["a"].hear.remote(1)
    again.signal("number", 10)
    assert await again == [0, 10]


@simulated
async def test_a_mistake_fails_in_the_handler(world: Simulation) -> None:
    asked, sent, unsendable, nonsense = await Listener["a"].wrongly.remote()
    assert "a signal has a name: ctx.signal" in asked
    assert "a signal has a name: ref.signal" in sent
    assert "lock" in unsendable
    assert "'nonsense' is not the id of an invocation" in nonsense
    assert await Listener["a"].in_a_step.remote() == places.NOT_IN_A_STEP


def test_signals_survive_the_host(mode: Policy | None) -> None:
    async def scenario(world: Simulation) -> None:
        refs = [Listener[key].hear.remote(4, 1.0) for key in "abcdef"]
        Listener["d"].doze.send(20)
        refs.append(Listener["d"].hear.options(delay="9s").remote(2))
        for ref in refs:
            for number in range(2):
                await ref.signal("number", number)
        world.members["a"].running.clear()
        await asyncio.sleep(15)
        for ref in refs:
            for number in range(2, 4):
                await ref.signal("number", number)
        assert await asyncio.gather(*refs[:6]) == [list(range(4))] * 6
        assert await refs[6] == [0, 1, 2, 3, 0, 1]

    played(scenario, mode, ["a", "b"])


# ---------------------------------------------------------------------------------------------------- a real driver


def connected(url: str, namespace: str) -> Client:
    client = Client(lambda: RedisStore(url, namespace), sends_code=False, limits=Limits(payload_max=1_000))
    client.open()
    return client


@pytest.fixture
def client(valkey_url: str) -> Iterator[Client]:
    """A client in a namespace without hosts."""
    client = connected(valkey_url, new_id())
    places.set_driver(client)
    yield client
    places.set_driver(None)
    client.close()


def brought(client: Client, invocation: str) -> list[str]:
    """Return the names of the signals that lie in `events`."""
    events: Any = client.call(lambda store: store.events(shard_in(invocation), "", 100))
    return [unpack(event.payload)[0][0] for event in events if event.invocation == invocation]


def test_a_driver_is_told_that_the_store_has_it(client: Client) -> None:
    ref = Listener["a"].hear.remote(3)

    assert ref.signal("first", 1).result(timeout=10) is None
    asyncio.run(_accepted(ref))
    assert brought(client, ref.id) == ["first", "second"]


async def _accepted(ref: Invocation[Any]) -> None:
    await ref.signal("second", 2)


def test_signals_to_an_id_that_is_on_its_way_wait_for_it_in_their_order(client: Client, valkey_url: str) -> None:
    start = Listener["a"].hear.options(idempotency_key="k").remote
    elsewhere = connected(valkey_url, new_id())
    places.set_driver(elsewhere)
    id_ = start(3).id  # the same in every namespace
    elsewhere.close()
    places.set_driver(client)

    ref = Invocation[Any](id_, client)
    ref.signal("first", 1)
    second = ref.signal("second", 2)
    Listener["b"].hear.remote(0).accepted().result(timeout=10)
    third = ref.signal("third", 3)
    assert brought(client, id_) == []
    start(3)
    ref.signal("fourth", 4).result(timeout=10)

    for each in (second, third):
        each.result(timeout=10)
    assert brought(client, id_) == ["first", "second", "third", "fourth"]


async def test_what_follows_a_signal_that_is_asked_for_again_waits_behind_it() -> None:
    queue = deque[Operation]()
    asked = asyncio.Event()
    held = EarlyEvents(queue, asked.set)
    first, second, third = (_signal(name) for name in ("first", "second", "third"))
    other = Attach(Shard(3), "other-3")

    assert held.hold(first, asyncio.get_running_loop())
    assert held.without([second, other]) == [other]
    queue += [third, other]
    await asked.wait()

    assert list(queue) == [first, second, third, other]
    assert not held


def _signal(name: str) -> Brought:
    until = asyncio.get_running_loop().time() + 30
    return Brought(Shard(3), "abc-3", EventKind.SIGNAL, 0, name.encode(), name, until)


def test_an_unknown_id_is_an_error_where_it_is_waited_for_and_in_the_log_elsewhere(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    ref = Invocation[Any]("abc-3", client)

    with caplog.at_level(logging.ERROR, "actors"):
        ref.signal("first", 1)
        with pytest.raises(NotFoundError, match="abc-3 is not known"):
            ref.signal("second", 1).result(timeout=10)
    assert "abc-3 is not known" in caplog.text


def test_a_wrong_id_or_name_and_what_cannot_be_sent_are_refused_at_once(client: Client) -> None:
    ref = Listener["a"].hear.remote(0)
    for name in ("", 7):
        with pytest.raises(UsageError, match="a signal has a name"):
            ref.signal(name, 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="payload_max"):
        ref.signal("long", "x" * 2_000)
    with pytest.raises(UsageError, match="is not the id of an invocation"):
        Invocation[Any]("nonsense", client).signal("name", 1)
