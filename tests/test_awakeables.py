"""What awakeables promise, one sentence a test: each in memory and with every wait turned into suspend-and-replay.

`test_crash_everywhere.py` has the same under crashes before and after each store call, `test_store.py` the transitions.
"""

import asyncio
import logging
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hostless import hostless
from test_semantics import Broken, Notes, Simulation, failure_of, mode, outside, played, simulated

import actors
from actors import (
    Context,
    Invocation,
    NotFoundError,
    OverloadedError,
    Policy,
    Service,
    TerminalError,
    UsageError,
    VirtualObject,
    handler,
    state,
)
from actors.client.client import Client
from actors.requests import current as places

__all__ = ["mode"]


@dataclass
class Parcel:
    weight: int
    labels: tuple[str, ...]


class Waits(VirtualObject):
    ends: int = state(0)

    @handler
    async def once(self, ctx: Context, parts: int = 1) -> Any:
        """Waits for one, and gives its id away by a step."""
        gate = ctx.awakeable()
        await ctx.run("give", lambda: outside.act(ctx.step_id, gate.id))
        found = await gate
        self.ends += parts
        return found

    @handler
    async def late(self, ctx: Context) -> list[Any]:
        """Awaits what was completed long before, twice, and changes what it got."""
        gate = ctx.awakeable(list[int])
        await ctx.run("give", lambda: outside.act(ctx.step_id, gate.id))
        await asyncio.sleep(10)
        first = await gate
        first.append(99)
        await asyncio.sleep(1)
        return [first, await gate]

    @handler
    async def remind(self, ctx: Context) -> list[str]:
        """The loop around `wait_for`."""
        gate, out = ctx.awakeable(str), list[str]()
        await ctx.run("give", lambda: outside.act(ctx.step_id, gate.id))
        while True:
            try:
                return [*out, await asyncio.wait_for(gate, 10)]
            except TimeoutError:
                out.append("reminded")

    @handler
    async def typed(self, ctx: Context) -> list[Any]:
        plain, parcel, nothing = ctx.awakeable(), ctx.awakeable(Parcel), ctx.awakeable(str)
        await ctx.run("give", lambda: outside.act(ctx.step_id, [plain.id, parcel.id, nothing.id]))
        return list(await asyncio.gather(plain, parcel, nothing))

    @handler
    async def race(self, ctx: Context) -> list[str]:
        """Whoever is completed first wins in every replay."""
        gates = {name: ctx.awakeable(str) for name in ("a", "b", "c")}
        await ctx.run("give", lambda: outside.act(ctx.step_id, {name: gate.id for name, gate in gates.items()}))
        tasks = {name: asyncio.ensure_future(gate) for name, gate in gates.items()}
        out: list[str] = []
        while tasks:
            await asyncio.wait(tasks.values(), return_when=asyncio.FIRST_COMPLETED)
            ended = [name for name, task in tasks.items() if task.done()]
            out.append("+".join(ended))
            for name in ended:
                del tasks[name]
            await asyncio.sleep(0.1)
        return out

    @handler
    async def after_a_step(self, ctx: Context) -> Any:
        """Makes its awakeable after something else was awaited."""
        await ctx.run("first", lambda: outside.act(ctx.step_id, ctx.id))
        await asyncio.sleep(5)
        gate = ctx.awakeable()
        return await gate

    @handler
    async def ends_at_once(self, ctx: Context) -> str:
        return ctx.awakeable(int).id

    @handler
    async def stolen(self, ctx: Context) -> str:
        gate = ctx.awakeable(int)

        async def step() -> None:
            await gate

        try:
            await ctx.run("step", step)
        except TerminalError as error:
            return str(error)
        return ""


class Completes(Service):
    @handler
    async def resolve(self, ctx: Context, id: str, value: Any) -> None:
        accepted = actors.resolve(id, value)
        await accepted  # at once: it is durable with the next commit

    @handler
    async def reject(self, ctx: Context, id: str, message: str) -> None:
        actors.reject(id, message)

    @handler
    def plainly(self, ctx: Context, id: str, value: Any) -> None:
        """Not async: it completes all the same."""
        actors.resolve(id, value)

    @handler
    async def at_third(self, ctx: Context, id: str) -> None:
        actors.resolve(id, ctx.attempt)
        if ctx.attempt < 3:
            raise Broken("not yet")

    @handler
    async def many(self, ctx: Context, ids: list[str]) -> None:
        """Completions and sends leave in the order made, with waits in between."""
        for number, id_ in enumerate(ids):
            actors.resolve(id_, number)
            Notes["order"].append.send(str(number))
            await ctx.sleep(0.2 * (number % 2))

    @handler
    async def wrongly(self, ctx: Context) -> list[str]:
        out: list[str] = []
        for id_, value in (("awakeable.x-1", 1), (ctx.id, 1), ("awakeable.x-1.0", threading.Lock())):
            try:
                actors.resolve(id_, value)
            except UsageError as error:
                out.append(str(error))
        return out

    @handler
    async def in_a_step(self, ctx: Context) -> str:
        try:
            await ctx.run("step", lambda: actors.resolve("awakeable.x-1.0", 1))
        except TerminalError as error:
            return str(error)
        return ""


async def given(count: int = 1) -> Any:
    """Return what a handler has given away, as soon as it has."""
    while len(outside.seen) < count:  # noqa: ASYNC110  # nothing says it: it looks from outside
        await asyncio.sleep(0.01)
    return outside.seen[count - 1]


@simulated
async def test_who_waits_gets_what_a_driver_resolves_it_with(world: Simulation) -> None:
    ref = Waits["a"].once.remote()
    await actors.resolve(await given(), {"by": ["ann"]})
    assert await ref == {"by": ["ann"]}
    assert world.state("Waits/a") == {"ends": 1}


@simulated
async def test_who_waits_gets_a_terminal_error_when_it_is_rejected(world: Simulation) -> None:
    ref = Waits["a"].once.remote()
    await actors.reject(await given(), "no parcel")
    error = await failure_of(ref)
    assert (type(error), str(error), error.code) == (TerminalError, "no parcel", 500)


@simulated
async def test_it_waits_for_days_asleep(world: Simulation) -> None:
    ref = Waits["a"].once.remote()
    id_ = await given()
    await asyncio.sleep(600)
    assert await world.status(ref) == "asleep"
    actors.resolve(id_, 1)
    assert await ref == 1


@simulated
async def test_what_is_completed_before_it_is_awaited_is_there_and_a_new_value_each_time(world: Simulation) -> None:
    ref = Waits["a"].late.remote()
    actors.resolve(await given(), [1, 2])
    assert await ref == [[1, 2, 99], [1, 2]]


@simulated
async def test_the_first_completion_counts(world: Simulation) -> None:
    ref = Waits["a"].late.remote()
    id_ = await given()
    for value in ([1], [2], "three"):
        actors.resolve(id_, value)
    actors.reject(id_, "too late")
    await Completes.resolve.remote(id_, [4])
    assert await ref == [[1, 99], [1]]


@simulated
async def test_it_can_be_awaited_again_after_a_wait_was_given_up(world: Simulation) -> None:
    ref = Waits["a"].remind.remote()
    id_ = await given()
    await asyncio.sleep(25)
    actors.resolve(id_, "done")
    assert await ref == ["reminded", "reminded", "done"]


@simulated
async def test_values_arrive_as_they_were_whatever_the_annotation(world: Simulation) -> None:
    ref = Waits["a"].typed.remote()
    plain, parcel, nothing = await given()
    actors.resolve(nothing, None)
    actors.resolve(parcel, Parcel(3, ("fragile",)))
    actors.resolve(plain, (1, {2}, 3.0))
    found = await ref
    assert found == [(1, {2}, 3.0), Parcel(3, ("fragile",)), None]
    assert type(found[0][2]) is float


@simulated
async def test_of_several_the_order_of_completion_is_the_same_in_every_replay(world: Simulation) -> None:
    ref = Waits["a"].race.remote()
    gates = await given()
    for name in ("c", "a", "b"):
        await actors.resolve(gates[name], name)
        await asyncio.sleep(1)
    assert await ref == ["c", "a", "b"]


@simulated
async def test_handlers_complete_too_also_plain_ones(world: Simulation) -> None:
    refs = [Waits[key].once.remote() for key in "abc"]
    await given(3)
    ids = sorted(outside.seen, key=lambda id_: [ref.id in id_ for ref in refs].index(True))
    Completes.resolve.send(ids[0], "resolved")
    Completes.reject.send(ids[1], "rejected")
    Completes.plainly.send(ids[2], "plainly")
    assert await refs[0] == "resolved"
    assert str(await failure_of(refs[1])) == "rejected"
    assert await refs[2] == "plainly"


@simulated
async def test_a_completion_leaves_with_the_commit_of_its_handler_or_not_at_all(world: Simulation) -> None:
    # Promises 3 and 7.
    ref = Waits["a"].once.remote()
    await Completes.at_third.remote(await given())
    assert await ref == 3


@simulated
async def test_completions_and_sends_of_one_handler_leave_in_the_order_made(world: Simulation) -> None:
    refs = [Waits[f"{number}"].once.remote() for number in range(6)]
    await given(6)
    ids = [next(id_ for id_ in outside.seen if ref.id in id_) for ref in refs]
    await Completes.many.remote(ids)
    assert await asyncio.gather(*refs) == list(range(6))
    assert await Notes["order"].read.remote() == [str(number) for number in range(6)]


@simulated
async def test_completing_one_that_has_ended_does_nothing(world: Simulation) -> None:
    id_ = await Waits["a"].ends_at_once.remote()
    await actors.resolve(id_, 1)
    await Completes.resolve.remote(id_, 2)
    assert await Waits["a"].ends_at_once.remote() != id_


@simulated
async def test_an_id_is_known_before_its_entry_is_made_again(world: Simulation) -> None:
    # The id of an entry that no record holds may have been given away: what completes it is kept for it.
    ref = Waits["a"].after_a_step.remote()
    invocation = await given()
    for index in (0, 1, 2, 2, 3):
        await actors.resolve(f"awakeable.{invocation}.{index}", index)
    assert await ref == 2


@simulated
async def test_what_is_no_awakeable_of_an_invocation_is_left_alone(world: Simulation) -> None:
    ref = Waits["a"].once.remote()
    id_ = await given()
    for index in (1, 7, 999_999_999):
        await actors.resolve(f"{id_.rpartition('.')[0]}.{index}", "another")
    await asyncio.sleep(1)
    actors.resolve(id_, "it")
    assert await ref == "it"


@simulated
async def test_a_wrong_id_and_a_value_that_cannot_be_sent_fail_in_the_handler(world: Simulation) -> None:
    malformed, other, unsendable = await Completes.wrongly.remote()
    assert "'awakeable.x-1' is not the id of an awakeable" in malformed
    assert "is not the id of an awakeable" in other
    assert "lock" in unsendable


@simulated
async def test_a_step_neither_completes_nor_awaits(world: Simulation) -> None:
    assert await Completes.in_a_step.remote() == places.NOT_IN_A_STEP
    assert "belongs to its handler" in await Waits["a"].stolen.remote()


def test_it_survives_the_host_that_waits(mode: Policy | None) -> None:
    async def scenario(world: Simulation) -> None:
        refs = [Waits[key].late.remote() for key in "abcdef"]
        await given(6)
        for id_ in outside.seen[:3]:
            await actors.resolve(id_, [1])
        world.members["a"].running.clear()
        await asyncio.sleep(20)
        for id_ in outside.seen[3:]:
            await actors.resolve(id_, [1])
        assert await asyncio.gather(*refs) == [[[1, 99], [1]]] * 6

    played(scenario, mode, ["a", "b"])


# ---------------------------------------------------------------------------------------------------- a real driver


@pytest.fixture
def client(valkey_url: str) -> Iterator[Client]:
    """A client in a namespace without hosts, whose streams hold two entries."""
    with hostless(valkey_url, inbox_max=2) as client:
        yield client


def test_a_driver_is_told_that_the_store_has_it(client: Client) -> None:
    ref = Waits["a"].once.remote()

    assert actors.resolve(f"awakeable.{ref.id}.0", 1).result(timeout=10) is None
    asyncio.run(_accepted(ref))
    with pytest.raises(OverloadedError, match="inbox_max"):
        actors.reject(f"awakeable.{ref.id}.0", "full").result(timeout=10)


async def _accepted(ref: Invocation[Any]) -> None:
    await actors.resolve(f"awakeable.{ref.id}.0", 2)


def test_an_unknown_id_is_an_error_where_it_is_waited_for_and_in_the_log_elsewhere(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    unknown = "awakeable.abc-3.0"

    with pytest.raises(NotFoundError, match="abc-3 is not known"):
        actors.resolve(unknown, 1).result(timeout=10)
    with pytest.raises(NotFoundError, match="abc-3 is not known"):
        asyncio.run(_rejected(unknown))
    with caplog.at_level(logging.ERROR, "actors"):
        actors.resolve(unknown, 1)
        Waits["a"].once.remote().accepted().result(timeout=10)
    assert "abc-3 is not known" in caplog.text


async def _rejected(id_: str) -> None:
    await actors.reject(id_, "no")


@pytest.mark.parametrize("wrong", ["", "abc-3", "awakeable.abc-3", "awakeable.abc.0", "awakeable.a b-3.0", "7.abc-3.0"])
def test_a_malformed_id_is_refused_at_once(client: Client, wrong: str) -> None:
    with pytest.raises(UsageError, match="is not the id of an awakeable"):
        actors.resolve(wrong, 1)


def test_what_cannot_be_sent_is_refused_at_once(client: Client) -> None:
    with pytest.raises(UsageError, match="payload_max"):
        actors.resolve("awakeable.abc-3.0", "x" * 2_000)
    with pytest.raises(UsageError, match="lock"):
        actors.resolve("awakeable.abc-3.0", threading.Lock())


def test_without_a_connection_it_says_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"actors\.init"):
        actors.resolve("awakeable.abc-3.0", 1)


def test_a_driver_completes_what_a_real_host_waits_for(tmp_path: Path) -> None:
    with actors.init(hosts="local", directory=str(tmp_path)):
        ref = Approval.ask.remote()
        while not (found := Desk["d"].last.remote().result(timeout=30)):
            pass
        actors.resolve(found, {"ok": True})
        assert ref.result(timeout=30) == {"ok": True}


class Desk(VirtualObject):
    id: str = state("")

    @handler
    async def put(self, ctx: Context, id: str) -> None:
        self.id = id

    @handler
    async def last(self, ctx: Context) -> str:
        return self.id


class Approval(Service):
    @handler
    async def ask(self, ctx: Context) -> dict[str, bool]:
        gate = ctx.awakeable(dict[str, bool])
        await Desk["d"].put.remote(gate.id)
        return await gate
