"""What is promised of invocations that are paused, one sentence a test: each in memory and with every wait turned into
suspend-and-replay.

`test_crash_everywhere.py` has the same under crashes before and after each store call, `test_store.py` the transitions.
"""

import asyncio
from collections.abc import Callable
from typing import Any, cast

import cloudpickle
import pytest
from test_semantics import Broken, Simulation, failure_of, mode, outside, played, simulated

import actors
from actors import (
    Context,
    Invocation,
    Policy,
    Retry,
    Service,
    UsageError,
    VirtualObject,
    Workflow,
    handler,
    shared,
    state,
)
from actors.activation.open_invocation import OpenInvocation
from actors.blocks.restarts import GENERATION, at_its_entry, kept, mark_of
from actors.code.bundles import bundle_of
from actors.host.host import Host, Identity
from journal.ids import Shard
from journal.records import Delivered, EventKind, Message, Record, Tries

__all__ = ["mode"]

PAUSING = Retry(initial=1, max_attempts=2, on_exhausted="pause")


def until_mended(what: str) -> str:
    """Fail until the switch is turned."""
    outside.seen.append(what)
    if not outside.switch:
        raise Broken(what)
    return f"{what}!"


class Pausing(VirtualObject):
    lines: list[str] = state(default_factory=list)

    @handler(policy=Policy(retry=PAUSING))
    async def fails(self, ctx: Context) -> list[str]:
        self.lines.append("begun")
        await ctx.run("noted", lambda: outside.act(ctx.step_id, "noted"))
        until_mended(f"attempt {ctx.attempt}")
        return self.lines

    @handler
    async def step_fails(self, ctx: Context) -> list[str]:
        self.lines.append(await ctx.run("step", until_mended, "step", retry=PAUSING))
        return self.lines

    @handler
    async def touch(self, ctx: Context) -> int:
        return len(self.lines)

    @handler(policy=Policy(retry=PAUSING))
    async def listens(self, ctx: Context) -> list[Any]:
        """Is paused between two waits; what comes meanwhile is of each kind."""
        out: list[Any] = [await ctx.signal("number")]
        gate, pause = ctx.awakeable(str), asyncio.ensure_future(asyncio.sleep(30))
        call = Pausing[f"{ctx.key}-called"].naps.remote(20)
        self.lines = [gate.id]
        await ctx.run("step", lambda: outside.act(ctx.step_id, "step"))
        if not outside.switch:
            raise Broken("not yet")
        others: list[asyncio.Future[Any]] = [asyncio.ensure_future(_awaited(each)) for each in (gate, call)]
        others += [pause, *(ctx.signal("number") for _ in range(3))]
        for each in others:
            each.add_done_callback(lambda done: out.append(done.result()))
        await asyncio.wait(others)
        return out

    @handler
    async def counted(self, ctx: Context, what: str, gate: str = "") -> str:
        """Says how often it was called, and keeps the id of the caller's awakeable."""
        self.lines.append(gate)
        return f"{what}: {len(self.lines)}"

    @handler
    async def naps(self, ctx: Context, pause_s: float) -> str:
        await asyncio.sleep(pause_s)
        return "called"

    @handler(policy=Policy(retry=PAUSING))
    async def beside_a_failing_step(self, ctx: Context) -> list[str]:
        """One step ends while the other one uses its attempts up, and one later: both are kept."""
        steps = [
            ctx.run("soon", lambda: outside.act_for(ctx.step_id, "soon", 0.5)),
            ctx.run("failing", until_mended, "failing", retry=PAUSING),
        ]
        return list(await asyncio.gather(*steps))

    @shared
    async def shared_fails(self, ctx: Context) -> int:
        before = len(self.lines)
        await ctx.run("step", until_mended, "step", retry=PAUSING)
        return before

    @handler(policy=Policy(idle_timeout=0))
    async def diverges(self, ctx: Context) -> list[str]:
        """Asks for another step while the switch is off, once it has slept."""
        self.lines.append(await ctx.run("first", lambda: outside.act(ctx.step_id, "first")))
        name = "second" if outside.switch or len(outside.seen) < 2 else "renamed"
        self.lines.append(await ctx.run(name, lambda: outside.act(ctx.step_id, "second")))
        self.lines.append(await ctx.signal("go"))
        return self.lines


async def _awaited(awaited: Any) -> Any:
    return await awaited


class Operator(Service):
    @handler
    async def resume(self, ctx: Context, ref: Invocation[Any]) -> None:
        await ref.resume()

    @handler
    async def restart(self, ctx: Context, ref: Invocation[Any], first: int) -> None:
        await ref.restart(first)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("fails", "Pausing/a.fails ({id}): the last of 2 attempts failed: Broken: attempt 2"),
        ("step_fails", "Pausing/a.step_fails ({id}): step 'step': the last of 2 attempts failed: Broken: step"),
    ],
)
def test_what_has_used_its_attempts_up_is_paused_with_its_failure(mode: Policy | None, name: str, why: str) -> None:
    async def scenario(world: Simulation) -> None:
        world.expected_leftovers = True
        ref = Pausing["a"].handle.remote(name)
        waiting = Pausing["a"].touch.remote()
        assert await world.until_status(ref, "paused") == "paused: " + why.format(id=ref.id)
        assert await world.status(waiting) == "open", "its key waits"
        assert "it is paused until it is resumed" in world.program.notices[-1]

    played(scenario, mode, ["a"])


@pytest.mark.parametrize("by_handler", [False, True])
@pytest.mark.parametrize("name", ["fails", "step_fails", "shared_fails"])
def test_a_resumed_one_goes_on_with_a_new_count(mode: Policy | None, name: str, by_handler: bool) -> None:
    async def scenario(world: Simulation) -> None:
        ref = Pausing["a"].handle.remote(name)
        for _ in range(2):
            await world.until_status(ref, "paused")
            if by_handler:
                await Operator.resume.remote(ref)
            else:
                await ref.resume()
            await asyncio.sleep(0.5)
            assert await world.status(ref) in (("open", "asleep") if mode else ("open",))
        await world.until_status(ref, "paused")
        outside.switch = True
        ref.resume()
        result = await ref
        expected = {
            "fails": (["begun"], ["noted", *["attempt 1", "attempt 2"] * 3, "attempt 1"]),
            "step_fails": (["step!"], ["step"] * 7),
            "shared_fails": (0, ["step"] * 7),
        }
        assert (result, outside.seen) == expected[name]
        assert await Pausing["a"].touch.remote() == (0 if name == "shared_fails" else 1)

    played(scenario, mode, ["a"])


@simulated
async def test_steps_that_ended_beside_the_one_that_paused_are_not_run_again(world: Simulation) -> None:
    ref = Pausing["a"].beside_a_failing_step.remote()
    await world.until_status(ref, "paused")
    outside.switch = True
    ref.resume()
    assert await ref == ["soon", "failing!"]
    assert outside.seen.count("soon") == 1


@pytest.mark.parametrize("hosts", [["a"], ["a", "b"]])
def test_what_comes_to_a_paused_one_waits_and_is_delivered_in_order(mode: Policy | None, hosts: list[str]) -> None:
    async def scenario(world: Simulation) -> None:
        ref = Pausing["a"].listens.remote()
        ref.signal("number", 0)
        await world.until_status(ref, "paused")
        ref.signal("number", 1)
        await asyncio.sleep(25)
        (gate,) = world.state("Pausing/a")["lines"]
        await actors.resolve(gate, "opened")
        if len(hosts) > 1:
            world.members["a"].running.clear()
            await asyncio.sleep(10)
        await ref.signal("number", 2)
        await asyncio.sleep(10)
        assert (await world.status(ref)).startswith("paused"), "nothing but a command wakes it"
        outside.switch = True
        ref.resume()
        ref.signal("number", 3)
        assert await ref == [0, 1, "called", "opened", *([2, None] if len(hosts) == 1 else [None, 2]), 3]
        assert outside.seen == ["step"]

    played(scenario, mode, hosts)


@pytest.mark.parametrize("event", ["signal", "resume", "restart"])
@pytest.mark.parametrize("seed", range(6))
def test_commands_race_with_events_and_each_other(mode: Policy | None, event: str, seed: int) -> None:
    import random

    async def scenario(world: Simulation) -> None:
        world.latency = random.Random(seed)
        await world.join("a")
        ref = Pausing["a"].listens.remote()
        ref.signal("number", 0)
        await world.until_status(ref, "paused")
        outside.switch = True
        for number in (1, 2, 3):
            if event == "resume" or number == 2:
                ref.resume()
            elif event == "restart":
                ref.restart(1)
            await ref.signal("number", number)
            await asyncio.sleep(world.latency.random() * 0.1)
        (gate,) = await asyncio.wait_for(_gate_of(world, ref), 100)
        actors.resolve(gate, "opened")
        result = await ref
        assert [item for item in result if isinstance(item, int)] == [0, 1, 2, 3]
        assert {item for item in result if not isinstance(item, int)} == {"called", "opened", None}

    played(scenario, mode, [])


async def _gate_of(world: Simulation, ref: Invocation[Any]) -> list[str]:
    """Return the state once no more command can change it."""
    await asyncio.sleep(10)
    return world.state("Pausing/a")["lines"]


@simulated
async def test_a_diverged_one_goes_on_with_mended_code(world: Simulation) -> None:
    ref = Pausing["a"].diverges.remote()
    await asyncio.sleep(1)
    ref.signal("go", "gone")
    assert "diverged at entry 1" in await world.until_status(ref, "paused")
    ref.resume()
    await asyncio.sleep(5)
    assert "diverged at entry 1" in await world.status(ref), "the code is what it was"
    outside.switch = True
    ref.resume()
    assert await ref == ["first", "second", "gone"]
    assert outside.seen == ["first", "second"]


@pytest.mark.parametrize("how", ["cancel", "kill"])
def test_a_diverged_one_can_be_ended(mode: Policy | None, how: str) -> None:
    async def scenario(world: Simulation) -> None:
        ref = Pausing["a"].diverges.remote()
        await asyncio.sleep(1)
        ref.signal("go", "first")
        await world.until_status(ref, "paused")
        ref.signal("go", "unheard")
        await getattr(ref, how)()
        assert (await failure_of(ref)).code == 409

    played(scenario, mode, ["a"])


COMMANDS: list[Callable[[Invocation[Any]], Any]] = [lambda ref: ref.resume(), lambda ref: ref.restart()]


@pytest.mark.parametrize("command", COMMANDS, ids=["resume", "restart"])
def test_a_command_for_one_that_is_not_paused_does_nothing(
    mode: Policy | None, command: Callable[[Invocation[Any]], Any]
) -> None:
    async def scenario(world: Simulation) -> None:
        napping = Pausing["a"].naps.remote(10)
        queued = Pausing["a"].naps.remote(5)
        delayed = Pausing["b"].naps.options(delay="8s").remote(1)
        ended = Pausing["c"].naps.remote(0)
        await ended
        for _ in range(2):
            for ref in (napping, queued, delayed, ended):
                await command(ref)
            await asyncio.sleep(1)
        await asyncio.gather(napping, queued, delayed)
        assert 15 <= world.elapsed < 16

    played(scenario, mode, ["a"])


class Versioned(VirtualObject):
    @handler(policy=Policy(retry=Retry(max_attempts=1, on_exhausted="pause")))
    async def go(self, ctx: Context) -> str:
        version = "version one"
        await ctx.run("step", str, "done")
        if version.endswith("one"):
            raise ValueError(version)
        await ctx.signal("go")
        return version


@pytest.mark.parametrize("command", ["resume", "restart"])
def test_it_goes_on_with_the_code_that_is_current_then_in_all_later_replays(mode: Policy | None, command: str) -> None:
    data = bundle_of(Versioned).data
    trackers = list(cast("Any", cloudpickle).cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS.values())

    async def deploy(world: Simulation, number: str) -> None:
        code = data.replace(b"version one", b"version " + number.encode())
        for at, tracker in enumerate(trackers):  # else loading it would change the classes that live here
            code = code.replace(tracker.encode(), f"{number[0]}{at:031x}".encode())
        await world.store.put_code(number, code, ["Versioned"])

    async def scenario(world: Simulation) -> None:
        host = Host(
            world.store.connect,
            Identity(id="a"),
            policy=mode,
            now=world.loop.time,
            own_thread=False,
        )
        serving = asyncio.ensure_future(host.run())
        await deploy(world, "one")
        ref = Versioned["a"].go.remote()
        assert "version one" in await world.until_status(ref, "paused")
        await deploy(world, "two")
        await getattr(ref, command)()
        await asyncio.sleep(100)  # long enough to leave memory
        assert await world.status(ref) == "asleep"
        await deploy(world, "six")
        ref.signal("go", None)
        assert await ref == "version two"
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)

    played(scenario, mode, [])


# ------------------------------------------------------------------------------------------------------------ restarts


class Journey(VirtualObject):
    log: list[str] = state(default_factory=list)

    @handler(policy=Policy(retry=PAUSING))
    async def go(self, ctx: Context) -> list[str]:
        """Entries: 0 signal, 1 call, 2 step, 3 sleep, 4 awakeable, 5 call, 6 step, 7 sleep, 8 send."""
        self.log.append(await ctx.signal("who", str))
        self.log.append(await Pausing[f"{ctx.key}-1"].counted.remote("call 1"))
        self.log.append(await ctx.run("step 2", lambda: outside.act(ctx.step_id, "step 2")))
        await ctx.sleep(5)
        gate = ctx.awakeable(str)
        self.log.append(await Pausing[f"{ctx.key}-5"].counted.remote("call 5", gate.id))
        self.log.append(await ctx.run("step 6", lambda: outside.act(ctx.step_id, "step 6")))
        await ctx.sleep(7)
        Pausing[f"{ctx.key}-8"].counted.send("send 8")
        if not outside.switch:
            raise Broken("no")
        self.log.append(await gate)
        return self.log


@pytest.mark.parametrize("by_handler", [False, True])
@pytest.mark.parametrize("first", range(9))
def test_a_restart_keeps_what_came_before_its_entry_and_makes_the_rest_anew(
    mode: Policy | None, first: int, by_handler: bool
) -> None:
    async def scenario(world: Simulation) -> None:
        ref = Journey["t"].go.remote()
        ref.signal("who", "ann")
        await world.until_status(ref, "paused")
        before = world.elapsed
        outside.switch = True
        await (Operator.restart.remote(ref, first) if by_handler else ref.restart(first))
        anew = [1 + (first <= entry) for entry in range(9)]
        await asyncio.sleep(15)
        *_, gate = (gate for gate in world.state("Pausing/t-5")["lines"] if gate)
        old = f"awakeable.{ref.id}.4"
        if first <= 4:
            await actors.resolve(old, "the old one")
        assert (gate == old) is (first > 4)
        await actors.resolve(gate, "opened")
        assert await ref == ["ann", f"call 1: {anew[1]}", "step 2", f"call 5: {anew[5]}", "step 6", "opened"]
        assert outside.seen.count("step 2") == anew[2]
        assert outside.seen.count("step 6") == anew[6]
        slept = 5 * (first <= 3) + 7 * (first <= 7)
        assert slept <= world.elapsed - before < slept + 17
        await asyncio.sleep(1)
        assert len(world.state("Pausing/t-8")["lines"]) == 1, "what a failed attempt had not committed was not sent"
        assert world.state("Journey/t")["log"] == await ref, "it was written anew, on what the invocation had found"

    played(scenario, mode, ["a"])


@simulated
async def test_restarts_follow_each_other(world: Simulation) -> None:
    ref = Journey["t"].go.remote()
    ref.signal("who", "ann")
    for first in (5, 2, 6, 0):
        await world.until_status(ref, "paused")
        await ref.restart(first)
        await asyncio.sleep(0.5)
    await world.until_status(ref, "paused")
    outside.switch = True
    await ref.restart(8)
    await asyncio.sleep(2)
    gates = world.state("Pausing/t-5")["lines"]
    assert gates == [f"awakeable.{ref.id}.{mark}" for mark in (4, 4, 2_000_000_004, 4_000_000_004)]
    actors.resolve(gates[-1], "opened")
    assert await ref == ["ann", "call 1: 2", "step 2", "call 5: 4", "step 6", "opened"]
    assert [outside.seen.count(step) for step in ("step 2", "step 6")] == [3, 5]


@simulated
async def test_a_restart_beyond_the_journal_is_refused_and_says_so(world: Simulation) -> None:
    ref = Pausing["a"].fails.remote()
    await world.until_status(ref, "paused")
    for first in (7, 2):
        ref.signal("early", first)
        await ref.restart(first)
        why = f"restart(from_entry={first}) was refused: the journal holds 1 entries, counted from 0; before that: Paus"
        await world.until_status(ref, f"paused: {why}")
        assert (await world.status(ref)).count("refused") == 1
    outside.switch = True
    ref.restart(2)
    ref.resume()
    assert await ref == ["begun"]


@simulated
async def test_a_reply_to_a_dropped_call_finds_nobody(world: Simulation) -> None:
    ref = ImpatientCaller["c"].calls.remote()
    await world.until_status(ref, "paused")
    outside.switch = True
    ref.restart()
    assert await ref == ["called", "called"]
    assert 60 <= world.elapsed < 62
    assert world.program.notices[:1] != []


class ImpatientCaller(VirtualObject):
    @handler(policy=Policy(retry=Retry(initial=1, max_attempts=1, on_exhausted="pause")))
    async def calls(self, ctx: Context) -> list[str]:
        """The calls of the first generation end while those of the second are waited for, and those queue behind."""
        calls = [Pausing[key].naps.remote(30) for key in "ab"]
        await asyncio.sleep(1)
        if not outside.switch:
            raise Broken("no")
        return [await call for call in calls]


class Waited(Workflow):
    @handler(policy=Policy(retry=PAUSING))
    async def run(self, ctx: Context) -> list[Any]:
        """Entries: 0 a wait that ends, 1 a call, 2 its time-out, 3 a sleep, 4 an open wait, by turn of the tasks."""
        first = await ctx.promise("first", str)
        second = asyncio.ensure_future(_awaited(ctx.promise("second", str)))
        call = Pausing["approval"].naps.options(timeout=40).remote(20)
        await asyncio.sleep(1)
        if not outside.switch:
            raise Broken("no")
        return [first, await second, await call]

    @shared
    async def give(self, ctx: Context, name: str) -> None:
        ctx.promise(name, str).resolve(name)


@pytest.mark.parametrize("first", range(5))
def test_promises_and_time_outs_are_waited_for_anew(mode: Policy | None, first: int) -> None:
    async def scenario(world: Simulation) -> None:
        ref = Waited["k"].run.remote()
        await Waited["k"].give.remote("first")
        await world.until_status(ref, "paused")
        outside.switch = True
        await ref.restart(first)
        await asyncio.sleep(2)
        await Waited["k"].give.remote("second")
        assert await ref == ["first", "second", "called"]
        await asyncio.sleep(50)

    played(scenario, mode, ["a"])


@pytest.mark.parametrize("wrong", [-1, True, 1.5, "2", 10**9])
def test_what_is_no_entry_is_refused_at_once(wrong: Any) -> None:
    with pytest.raises(UsageError, match="it is the index of an entry, counted from 0"):
        Invocation[Any]("abc-3").restart(wrong)


# ------------------------------------------------------------------------------------------ what the journal says of it


def test_marks_name_the_newest_generation_of_an_entry_alone() -> None:
    restarts = [(5, 1), (3, 2), (7, 3)]
    assert [mark_of(index, restarts) for index in (2, 3, 6, 7, 9)] == [
        2,
        2 * GENERATION + 3,
        2 * GENERATION + 6,
        3 * GENERATION + 7,
        3 * GENERATION + 9,
    ]
    for index in range(10):
        for generation in range(4):
            event = Delivered(EventKind.REPLY, generation * GENERATION + index, 1, b"x")
            found = at_its_entry(event, restarts)
            if event.index == mark_of(index, restarts):
                assert found == Delivered(EventKind.REPLY, index, 1, b"x")
            else:
                assert found is None
    signal = Delivered(EventKind.SIGNAL, 0, 1, b"x")
    assert at_its_entry(signal, [(0, 1)]) is signal


def test_a_restart_drops_from_what_stood_before_it() -> None:
    def event(kind: EventKind, index: int) -> Delivered:
        return Delivered(kind, index, 1, b"")

    reply, signal, cancel = EventKind.REPLY, EventKind.SIGNAL, EventKind.CANCEL
    records = [
        ("1-0", Record(first=0, entries=["a", "b"], events=[event(signal, 0), event(cancel, 0)], steps=[(0, b"0")])),
        ("2-0", Record(first=2, entries=["c", "d"], events=[event(reply, 1), event(signal, 0)], olds={"f": b"old"})),
        ("3-0", Record(events=[event(reply, 3), event(cancel, 0)], steps=[(3, b"3")], tries=[Tries(3, 1, 1, 2)])),
        ("4-0", Record(code="hash", restart=(3, 1))),
        ("5-0", Record(first=3, entries=["e"], steps=[(3, b"new")])),
    ]

    run = OpenInvocation(Message("i-0", "T/k", "h", b""), Shard(0), "1-0", asleep=True)
    run.adopt(records)

    assert run.recorded == ["a", "b", "c", "e"]
    assert run.to_replay() == [
        event(signal, 0),
        event(cancel, 0),
        (0, b"0", 1),
        event(reply, 1),
        event(signal, 0),
        (3, b"new", 5),
    ]
    assert run.found({"f": b"now"}) == {"f": b"old"}
    assert (run.tries, run.attempt, run.message.code, run.restarts) == ({}, 1, "hash", [(3, 1)])
    assert kept(run.records) == run.records


def test_a_resumed_one_counts_anew_and_has_the_code_that_its_journal_names() -> None:
    records = [
        ("1000-0", Record(attempt=2, error="x", began_ms=900, tries=[Tries(0, 1, 950, 960)])),
        ("2000-0", Record(code="mended")),
    ]
    run = OpenInvocation(Message("i-0", "T/k", "h", b"", code="broken"), Shard(0), "1-0", asleep=True)

    run.adopt([(id_, Record.parse(record.encoded())) for id_, record in records])

    assert (run.message.code, run.attempt, run.began_ms, run.tries, run.backing_off) == ("mended", 1, 2000, {}, False)
