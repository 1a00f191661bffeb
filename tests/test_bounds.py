"""Bounds: what one invocation may take of its journal, of a write, of the signals it has not asked for, of its state.

Each in memory and with every wait turned into suspend-and-replay, with limits that are small enough to reach.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from simulation import SHARDS, SUSPEND, Faults, World, at_random, simulate

from actors import Context, Policy, Service, TerminalError, UsageError, VirtualObject, handler, state
from actors.activation import staging
from actors.shard import step_tasks
from journal.store import NamespaceLimits

MODES = pytest.mark.parametrize("policy", [None, SUSPEND], ids=["in memory", "asleep"])
UNDONE: list[str] = []


class BoundBulk(VirtualObject):
    count: int = state(0)

    @handler
    async def many(self, ctx: Context, entries: int, size: int) -> int:
        ctx.defer("undo", UNDONE.append, ctx.key)
        for number in range(entries):
            await ctx.run(f"s{number}", lambda: "x" * size)
        return entries

    @handler
    async def stubborn(self, ctx: Context) -> None:
        while True:
            try:
                await ctx.sleep(0.01)
            except Exception:  # as people write it
                pass

    @handler
    async def wide(self, ctx: Context, entries: int, size: int) -> int:
        found = await asyncio.gather(*(ctx.run(f"s{number}", lambda: "x" * size) for number in range(entries)))
        return sum(map(len, found))

    @handler
    async def asks(self, ctx: Context) -> int:
        refs = [BoundGiver.give.remote(3_000) for _ in range(10)]
        return sum([len(await ref) for ref in refs])

    @handler
    async def sends(self, ctx: Context, count: int, size: int) -> list[str]:
        out: list[str] = []
        for _ in range(count):
            try:
                BoundBulk["sink"].keep.send("x" * size)
                out.append("sent")
            except UsageError as error:
                out.append("sent_max" if "sent_max" in str(error) else str(error))
        await ctx.sleep(1)
        BoundBulk["sink"].keep.send("")
        await ctx.sleep(1)
        return out

    @handler
    async def relays(self, ctx: Context, count: int, size: int) -> int:
        for _ in range(count):
            await ctx.signal("go", str)
            BoundBulk["sink"].keep.send("x" * size)
        return count

    @handler
    async def keep(self, ctx: Context, value: str) -> None:
        self.count += 1

    @handler
    async def late(self, ctx: Context, count: int) -> list[str]:
        await ctx.sleep(5)
        return [await ctx.signal("go", str) for _ in range(count)]

    @handler
    async def put(self, ctx: Context, name: str, size: int) -> None:
        ctx.set(name, "x" * size)

    @handler
    async def fill(self, ctx: Context, count: int, size: int, waits: bool) -> None:
        for number in range(count):
            ctx.set(f"f{number}", "x" * size)
            if waits:
                await ctx.sleep(1)

    @handler
    async def wait(self, ctx: Context) -> str:
        await ctx.run("once", lambda: 1)
        return await ctx.signal("go", str)


class BoundGiver(Service):
    @handler
    async def give(self, ctx: Context, size: int) -> str:
        return "x" * size


def run(
    scenario: Callable[[World], Coroutine[Any, Any, Any]], policy: Policy | None, *crashes: Faults, **limits: Any
) -> Any:
    bounded = NamespaceLimits(shards=SHARDS, **limits)
    world, result = simulate(scenario, iter(crashes), policy=policy, limits=bounded)
    assert not world.violations
    return result


async def refused(world: World, handler: str, *args: Any) -> str:
    with pytest.raises(TerminalError) as found:
        await world.driver.call("BoundBulk/a", handler, *args)
    assert found.value.code == 400
    return str(found.value)


def weathers() -> Iterator[list[Faults]]:
    yield []
    for seed in range(3):
        source = at_random(seed, 40)
        yield [next(source), next(source)]


@MODES
def test_a_journal_has_no_more_entries_than_its_limit(policy: Policy | None) -> None:
    """Issue 16.2: it grew for as long as the handler went on; what it deferred is done even so."""

    async def scenario(world: World) -> str:
        assert await world.driver.call("BoundBulk/a", "many", 20, 1) == 20
        return await refused(world, "many", 21, 1)

    for crashes in weathers():
        UNDONE.clear()
        said = run(scenario, policy, *crashes, journal_max=20)
        assert "holds 20 entries, the limit journal_max is 20" in said
        assert UNDONE


@MODES
def test_a_journal_takes_no_more_bytes_than_its_limit(policy: Policy | None) -> None:
    """Issue 16.2."""

    async def scenario(world: World) -> list[str]:
        assert await world.driver.call("BoundBulk/a", "many", 3, 3_000) == 3
        found = [await refused(world, "many", 9, 3_000), await refused(world, "wide", 9, 3_000)]
        return [*found, await refused(world, "asks")]

    for crashes in weathers():
        for said in run(scenario, policy, *crashes, journal_bytes_max=10_000):
            assert "the limit journal_bytes_max is 10,000" in said


@MODES
def test_who_does_not_heed_the_limit_of_its_journal_ends(policy: Policy | None) -> None:
    """Issue 16.2: else it would spin, and block its host."""
    assert "journal_max" in run(lambda world: refused(world, "stubborn"), policy, journal_max=20)


@MODES
def test_a_cancel_reaches_who_has_a_full_journal(policy: Policy | None) -> None:
    """Issue 16.2: the cancel of its calls has an entry, for which there is no room."""

    async def scenario(world: World) -> None:
        waiting = await world.driver.start("BoundCaller/a", "calls", 10)
        await asyncio.sleep(2)
        await world.driver.end(waiting)
        with pytest.raises(TerminalError, match="cancelled"):
            await world.driver.result(waiting)

    run(scenario, policy, journal_max=10)


class BoundCaller(VirtualObject):
    @handler
    async def calls(self, ctx: Context, count: int) -> None:
        await asyncio.gather(*(BoundBulk[f"callee{number}"].wait.remote() for number in range(count)))


@MODES
def test_outcomes_of_steps_are_recorded_in_writes_of_bounded_size(
    policy: Policy | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 16.2: a hundred steps that end at once were one write of all they had returned."""
    monkeypatch.setattr(step_tasks, "BYTES_MAX", 10_000)
    largest = watch_records(monkeypatch)

    async def scenario(world: World) -> Any:
        return await world.driver.call("BoundBulk/a", "wide", 20, 3_000)

    for crashes in weathers():
        assert run(scenario, policy, *crashes) == 60_000
    assert max(largest) < 14_000


def watch_records(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note how many bytes each progress takes."""
    sizes, size_of = list[int](), staging._size  # pyright: ignore[reportPrivateUsage]

    def noted(progress: Any) -> int:
        sizes.append(size_of(progress))
        return sizes[-1]

    monkeypatch.setattr(staging, "_size", noted)
    return sizes


@MODES
def test_a_handler_sends_no_more_at_once_than_one_write_takes(policy: Policy | None) -> None:
    """Issue 16.2: refused where it sends, and alike on each replay."""

    async def scenario(world: World) -> Any:
        return await world.driver.call("BoundBulk/a", "sends", 5, 3_000)

    for crashes in weathers():
        assert run(scenario, policy, *crashes, sent_max=10_000) == ["sent"] * 3 + ["sent_max"] * 2


@MODES
def test_what_many_events_let_a_handler_send_leaves_in_several_writes(
    policy: Policy | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 16.2: events that are there together are delivered before anything leaves."""
    largest = watch_records(monkeypatch)

    async def scenario(world: World) -> Any:
        blocking = await world.driver.start("BoundBulk/a", "late", 1)
        waiting = await world.driver.start("BoundBulk/a", "relays", 20, 3_000)
        for number in range(20):
            await world.driver.signal(waiting, "go", f"{number}")
        await world.driver.signal(blocking, "go", "on")
        assert await world.driver.result(waiting) == 20
        await asyncio.sleep(1)
        return world.state("BoundBulk/sink")["count"]

    for crashes in weathers():
        assert run(scenario, policy, *crashes, sent_max=10_000) == 20
    assert max(largest) < 20_000


@pytest.mark.slow_after_first
@MODES
@pytest.mark.parametrize("bound", ["signals_max", "signals_bytes_max"])
@pytest.mark.parametrize("where", ["running", "queued", "delayed"])
def test_signals_that_nobody_asks_for_are_bounded(
    policy: Policy | None, caplog: pytest.LogCaptureFixture, bound: str, where: str
) -> None:
    """Issue 16.2: the newest is dropped, which the log says; those before are there."""
    limits = {bound: 3 if bound == "signals_max" else 3_200}

    async def scenario(world: World) -> Any:
        if where == "queued":
            await world.driver.start("BoundBulk/a", "late", 0)
        waiting = await world.driver.start("BoundBulk/a", "late", 4, delay_s=30 if where == "delayed" else 0)
        await asyncio.sleep(1)
        for number in range(6):
            await world.driver.signal(waiting, "go", f"{number}" + "x" * 1_000)
        await asyncio.sleep(60)
        await world.driver.signal(waiting, "go", "last")
        return [value[:1] for value in await world.driver.result(waiting)]

    assert run(scenario, policy, **limits) == ["0", "1", "2", "l"]
    assert caplog.text.count("was dropped") == 3
    for crashes in weathers():
        assert run(scenario, policy, *crashes, **limits) == ["0", "1", "2", "l"]


@MODES
def test_the_state_of_an_object_is_bounded(policy: Policy | None) -> None:
    """Issue 16.2: refused where it is written; what is there already may shrink."""

    async def scenario(world: World) -> str:
        for name in ("one", "two", "three"):
            await world.driver.call("BoundBulk/a", "put", name, 3_000)
        said = await refused(world, "put", "four", 3_000)
        assert "four" not in world.state("BoundBulk/a")
        object.__setattr__(world.limits, "state_max", 5_000)  # as where it was written before there was a limit
        await world.driver.call("BoundBulk/a", "put", "one", 2_000)
        return said

    assert "the limit state_max is 10,000" in run(scenario, policy, state_max=10_000)


@MODES
def test_a_handler_writes_no_more_at_once_than_one_write_takes(policy: Policy | None) -> None:
    """Issue 16.2: a write of many large fields was repeated for ever; in several it works."""

    async def scenario(world: World) -> str:
        await world.driver.call("BoundBulk/a", "fill", 6, 3_000, True)
        assert len(world.state("BoundBulk/a")) == 6
        await refused(world, "fill", 2, 3_001, False)
        return await refused(world, "fill", 4, 3_001, False)

    for crashes in weathers():
        assert "the limit written_max is 10,000" in run(scenario, policy, *crashes, written_max=10_000)


@MODES
def test_a_journal_that_cannot_be_read_sets_its_invocation_aside_and_no_other(
    policy: Policy | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Issue 15.1: the host stepped down from its shard each 10 s, and all others of it waited."""
    dies = Faults()

    async def scenario(world: World) -> str:
        waiting = await world.driver.start("BoundBulk/a", "wait")
        others = [await world.driver.start(f"BoundBulk/o{number}", "wait") for number in range(12)]
        await asyncio.sleep(2)
        _spoil(world, waiting)
        dies.crashed.set()
        await asyncio.sleep(15)  # another host has recovered it
        if policy is SUSPEND:
            await world.driver.signal(waiting, "go", "on")
        for other in others:
            await world.driver.signal(other, "go", "on")
        async with asyncio.timeout(1):
            assert [await world.driver.result(other) for other in others] == ["on"] * 12
        reason = await world.until_paused(waiting)
        behind = await world.driver.start("BoundBulk/a", "keep", "")
        await world.driver.end(waiting)
        with pytest.raises(TerminalError, match="while it was paused"):
            await world.driver.result(waiting)
        await world.driver.result(behind)
        return reason

    reason = run(scenario, policy, dies)
    assert "what the store holds of it cannot be read" in reason
    assert "what the store holds of it cannot be read" in caplog.text


def _spoil(world: World, invocation: str) -> None:
    """Make the records of an invocation unreadable."""
    for each in world.store._world.shards:  # pyright: ignore[reportPrivateUsage]
        for id_, (owner, _) in list(each.journal.entries.items()):
            if owner == invocation:
                each.journal.entries[id_] = (owner, b"\xff{not a record")
        if invocation in each.asleep:
            dormant = each.asleep[invocation]
            dormant.records = [(id_, b"\xff{not a record") for id_, _ in dormant.records]


def test_a_message_asleep_that_cannot_be_read_holds_no_other(caplog: pytest.LogCaptureFixture) -> None:
    """Issue 15.1."""

    async def scenario(world: World) -> None:
        waiting = await world.driver.start("BoundBulk/a", "wait")
        others = [await world.driver.start(f"BoundBulk/o{number}", "wait") for number in range(12)]
        await asyncio.sleep(2)
        for each in world.store._world.shards:  # pyright: ignore[reportPrivateUsage]
            if waiting in each.asleep:
                each.asleep[waiting].message = b"no message"
        for id_ in [waiting, *others]:
            await world.driver.signal(id_, "go", "on")
        async with asyncio.timeout(1):
            assert [await world.driver.result(other) for other in others] == ["on"] * 12

    run(scenario, SUSPEND)
    assert "what the store holds of it cannot be read" in caplog.text
