"""A crash before and after every single store call: the same result, state and messages every time (promises 1 to 7).

Each scenario runs once without a fault, to learn how many store calls it makes; then once for every call with a crash
before it took effect, and once with a crash after; then with up to three crashes at seeded random calls. All of it a
second time with every wait turned into suspend-and-replay.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from simulation import SUSPEND, Faults, World, at_random, everywhere, simulate

import actors
from actors import (
    Context,
    Invocation,
    Policy,
    Retry,
    Service,
    TerminalError,
    VirtualObject,
    handler,
    outcomes,
    shared,
    state,
)
from actors.awakeables import completion

SEEDS = 150


class Effects:
    """What steps did outside, by their id; the world is told of each action."""

    def __init__(self) -> None:
        self.world: World | None = None
        self.done: list[tuple[str, str]] = []

    async def act(self, step_id: str, what: str, delay_s: float = 0.0) -> str:
        assert self.world is not None
        self.world.acting(step_id)
        self.done.append((step_id, what))
        await asyncio.sleep(delay_s)
        return f"{what}!"

    async def leak(self, target: str, field: str, seen: int) -> int:
        assert self.world is not None
        stored = self.world.state(target).get(field, 0)
        if stored < seen:
            self.world.violations.append(f"{target} leaked {field}={seen} before it was durable ({stored})")
        return seen

    async def complete(self, step_id: str, id_: str, value: Any) -> None:
        """Complete an awakeable from a step, with no more than its id."""
        await self.act(step_id, "complete")
        assert self.world is not None
        await self.world.driver.bring(completion(id_, outcomes.encoded_value(value)))


effects = Effects()


async def slow(ctx: Context, takes_s: float) -> str:
    return await effects.act(ctx.step_id, f"slow {takes_s}", takes_s)


async def numbered(ctx: Context, number: int) -> str:
    return await effects.act(ctx.step_id, f"s{number}", 0.1 * number)


class Scroll(VirtualObject):
    lines: list[str] = state(default_factory=list)

    @handler
    async def append(self, ctx: Context, line: str) -> int:
        self.lines.append(line)
        return len(self.lines)

    @shared
    async def read(self, ctx: Context) -> list[str]:
        return self.lines


class Purse(VirtualObject):
    balance: int = state(100)
    history: list[str] = state(default_factory=list)

    @handler
    async def take(self, ctx: Context, amount: int) -> int:
        if amount > self.balance:
            raise TerminalError(f"only {self.balance} left", 409)
        self.balance -= amount
        self.history.append(f"-{amount}")
        return self.balance

    @handler
    async def overwrite(self, ctx: Context) -> list[int]:
        """Reads, writes and overwrites across waits: a replay must see what the first attempt found."""
        seen = [self.balance]
        self.balance += 1
        await ctx.run("one", lambda: effects.act(ctx.step_id, "one"))
        seen.append(self.balance)
        self.balance *= 2
        await asyncio.sleep(0.5)
        seen.append(self.balance)
        ctx.set("extra", self.balance)
        await Scroll["overwrite"].append.remote(f"balance {self.balance}")
        self.balance += 5
        ctx.clear("extra")
        await ctx.run("two", lambda: effects.act(ctx.step_id, "two"))
        seen.append(self.balance)
        return seen


class Errand(Service):
    @handler
    async def whole(self, ctx: Context, key: str) -> dict[str, Any]:
        """Three steps, a call to another object, a send, a sleep and state writes (of the objects called)."""
        first = await ctx.run("first", lambda: effects.act(ctx.step_id, "first"))
        left = await Purse[key].take.remote(30)
        Scroll[key].append.send(f"left {left}")
        second = await ctx.run("second", lambda: effects.act(ctx.step_id, "second", 0.2))
        await ctx.sleep("2s", name="pause")
        refused = ""
        try:
            await Purse[key].take.remote(1_000)
        except TerminalError as error:
            refused = f"{error} ({error.code})"
        third = await ctx.run("third", lambda: effects.act(ctx.step_id, "third"))
        Scroll[key].append.send("end")
        return {"steps": [first, second, third], "left": left, "refused": refused, "random": ctx.random.random()}

    @handler
    async def race(self, ctx: Context, key: str) -> list[str]:
        """Whoever wins must win in every replay: the winner leaks to a send, a call and the result."""
        out: list[str] = []
        for turn in range(3):
            entrants = {
                "step": asyncio.ensure_future(ctx.run("run", lambda: effects.act(ctx.step_id, "run", 0.3))),
                "timer": asyncio.ensure_future(asyncio.sleep(0.3)),
                "call": asyncio.ensure_future(Scroll[f"{key}-entrant"].append.remote(str(turn))),
            }
            done, _ = await asyncio.wait(entrants.values(), return_when=asyncio.FIRST_COMPLETED)
            winner = ",".join(name for name, entrant in entrants.items() if entrant in done)
            out.append(winner)
            Scroll[key].append.send(winner)
            await asyncio.wait(entrants.values())
        return out

    @handler
    async def give_up(self, ctx: Context, key: str) -> list[str]:
        """A step that is given up by `wait_for` stays given up; what comes after it is not confused with it."""
        out: list[str] = []
        for timeout_s, takes_s in ((0.1, 5.0), (5.0, 0.1), (0.2, 0.2)):
            step = ctx.run("slow", slow, ctx, takes_s)
            try:
                out.append(await asyncio.wait_for(step, timeout_s))
            except TimeoutError:
                out.append("given up")
            await Scroll[key].append.remote(out[-1])
        return out

    @handler
    async def gathered(self, ctx: Context, key: str) -> list[Any]:
        """Tasks, a group, a time-out around a call, and steps at once."""
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._part(ctx, key, number)) for number in range(3)]
        results: list[Any] = [task.result() for task in tasks]
        results += await asyncio.gather(*(ctx.run(f"s{number}", numbered, ctx, number) for number in range(3)))
        async with asyncio.timeout(30):
            results.append(await Scroll[key].append.remote("last"))
        return results

    async def _part(self, ctx: Context, key: str, number: int) -> str:
        await asyncio.sleep(0.1 * (3 - number))
        made = await ctx.run(f"part {number}", lambda: effects.act(ctx.step_id, f"part {number}"))
        await Purse[f"{key}{number}"].take.remote(number)
        return made


class Gates(VirtualObject):
    ids: list[str] = state(default_factory=list)

    @handler
    async def keep(self, ctx: Context, ids: list[str]) -> None:
        self.ids = ids

    @handler
    async def resolve(self, ctx: Context, id: str, value: Any) -> str:
        """Completes from a handler, before and after a wait: twice, of which the first counts."""
        actors.resolve(id, value)
        done = await ctx.run("resolved", lambda: effects.act(ctx.step_id, "resolved"))
        actors.reject(id, "too late")
        return done

    @handler
    async def wait(self, ctx: Context, keep: str) -> list[Any]:
        """Gives one id away by a step whose entries no record holds yet, and all of them by a send."""
        early, gate, refused = ctx.awakeable(int), ctx.awakeable(dict[str, int]), ctx.awakeable(str)
        await ctx.run("early", lambda: effects.complete(ctx.step_id, early.id, 7))
        Gates[keep].keep.send([early.id, gate.id, refused.id])
        out: list[Any] = []
        try:
            await asyncio.wait_for(gate, 0.2)
        except TimeoutError:
            Scroll[keep].append.send("reminded")
            out.append("reminded")
        out += [await gate, await early]
        try:
            await refused
        except TerminalError as error:
            out.append(str(error))
        return [*out, await gate]


class Ear(VirtualObject):
    heard: list[int] = state(default_factory=list)

    @handler
    async def doze(self, ctx: Context) -> None:
        await asyncio.sleep(0.5)

    @handler
    async def listen(self, ctx: Context, count: int) -> str:
        for _ in range(count):
            self.heard.append(await ctx.signal("number", int))
            if self.heard[-1] == 1:
                await ctx.run("one", lambda: effects.act(ctx.step_id, "one"))
            Scroll[ctx.key].append.send(f"heard {self.heard[-1]}")
        try:
            await asyncio.wait_for(ctx.signal("never"), 0.1)
        except TimeoutError:
            return await ctx.signal("end", str)
        return "never"

    @handler
    async def tell(self, ctx: Context, ref: Invocation[str], numbers: list[int]) -> None:
        for number in numbers:
            ref.signal("number", number)
            if number % 2:
                await ctx.run("odd", lambda: effects.act(ctx.step_id, "odd"))
        ref.signal("end", "ended")


class Till(VirtualObject):
    total: int = state(0)

    @handler
    async def add(self, ctx: Context, amount: int) -> int:
        """Never waits: the next invocation starts before this one's commit is acknowledged."""
        self.total += amount
        return self.total

    @handler
    async def tell(self, ctx: Context) -> int:
        """Its step must not start before the state that it saw is durable (promise 5)."""
        await ctx.run("tell", effects.leak, f"Till/{ctx.key}", "total", self.total)
        return self.total

    @shared
    async def told(self, ctx: Context) -> int:
        told = await ctx.run("told", effects.leak, f"Till/{ctx.key}", "total", self.total)
        await asyncio.sleep(0.3)
        return self.total - told


class Stumbler(VirtualObject):
    attempts: int = state(0)

    @handler(policy=Policy(retry=Retry(initial=0.2)))
    async def go(self, ctx: Context, failures: int) -> int:
        """Fails until its attempt is high enough; state written by a failed attempt is discarded."""
        self.attempts += 1
        await ctx.run("noted", lambda: effects.act(ctx.step_id, "noted"))
        if ctx.attempt <= failures:
            self.attempts += 100
            raise ConnectionError("not yet")
        return self.attempts


async def whole(world: World) -> Any:
    results = await asyncio.gather(*(world.driver.call("Errand", "whole", key) for key in ("a", "b")))
    return [(result["steps"], result["left"], result["refused"]) for result in results]


def check_whole(world: World, result: Any) -> None:
    assert result == [(["first!", "second!", "third!"], 70, "only 70 left (409)")] * 2
    for key in ("a", "b"):
        assert world.state(f"Purse/{key}") == {"balance": 70, "history": ["-30"]}
        assert world.state(f"Scroll/{key}") == {"lines": ["left 70", "end"]}


async def overwrite(world: World) -> Any:
    first = await world.driver.start("Purse/o", "overwrite")
    second = await world.driver.start("Purse/o", "take", 7)
    return [await world.driver.result(first), await world.driver.result(second)]


def check_overwrite(world: World, result: Any) -> None:
    assert result == [[100, 101, 202, 207], 200]
    assert world.state("Purse/o") == {"balance": 200, "history": ["-7"]}
    assert world.state("Scroll/overwrite") == {"lines": ["balance 202"]}


async def race(world: World) -> Any:
    return await world.driver.call("Errand", "race", "r")


def check_race(world: World, result: Any) -> None:
    assert world.state("Scroll/r") == {"lines": result}
    assert world.state("Scroll/r-entrant") == {"lines": ["0", "1", "2"]}


async def give_up(world: World) -> Any:
    return await world.driver.call("Errand", "give_up", "g")


def check_give_up(world: World, result: Any) -> None:
    assert world.state("Scroll/g") == {"lines": result}
    assert result[0] == "given up"
    assert result[1] in ("slow 0.1!", "given up")


async def gathered(world: World) -> Any:
    return await world.driver.call("Errand", "gathered", "t")


def check_gathered(world: World, result: Any) -> None:
    assert result == ["part 0!", "part 1!", "part 2!", "s0!", "s1!", "s2!", 1]
    assert [world.state(f"Purse/t{number}")["balance"] for number in range(1, 3)] == [99, 98]
    assert world.state("Scroll/t") == {"lines": ["last"]}


async def flaky(world: World) -> Any:
    return [await world.driver.call("Stumbler/f", "go", 2), await world.driver.call("Stumbler/f", "go", 0)]


def check_flaky(world: World, result: Any) -> None:
    assert result == [1, 2]
    assert world.state("Stumbler/f") == {"attempts": 2}


async def ahead(world: World) -> Any:
    """Work ahead of the disk: what is not durable yet is seen, but does not leave."""
    ids: list[str] = []
    for turn in range(6):
        ids.append(await world.driver.start("Till/t", "add", 1))
        ids.append(await world.driver.start("Till/t", "told" if turn % 2 else "tell"))
    return [await world.driver.result(id_) for id_ in ids]


def check_ahead(world: World, result: Any) -> None:
    assert result[0::2] == [1, 2, 3, 4, 5, 6]
    assert result[1::4] == [1, 3, 5]
    assert result[3::4] == [0, 0, 0], "a shared handler saw the state move"
    assert world.state("Till/t") == {"total": 6}


async def awakeables(world: World) -> Any:
    waiting = await world.driver.start("Gates/g", "wait", "g2")
    early, gate, refused = await world.until_state("Gates/g2", "ids")
    await asyncio.sleep(0.5)
    await world.driver.bring(completion(early, outcomes.encoded_value("another")))
    resolving = await world.driver.start("Gates/h", "resolve", gate, {"a": 1})
    await world.driver.result(resolving)
    await world.driver.bring(completion(gate, outcomes.encoded_value("later")))
    await world.driver.bring(completion(refused, outcomes.encoded_error(TerminalError("no"))))
    result = await world.driver.result(waiting)
    await world.driver.bring(completion(gate, outcomes.encoded_value("after the end")))
    return result


def check_awakeables(world: World, result: Any) -> None:
    reminded = result[:-4]
    assert result[-4:] == [{"a": 1}, 7, "no", {"a": 1}]
    assert reminded in ([], ["reminded"])
    assert world.state("Scroll/g2").get("lines", []) == reminded


async def signals(world: World) -> Any:
    """Some come before it has its turn, some from a handler, some after its end."""
    dozing = await world.driver.start("Ear/e", "doze")
    listening = await world.driver.start("Ear/e", "listen", 6)
    for number in range(3):
        await world.driver.signal(listening, "number", number)
    await world.driver.result(dozing)
    await world.driver.call("Ear/f", "tell", Invocation[str](listening), [3, 4, 5])
    result = await world.driver.result(listening)
    await world.driver.signal(listening, "number", 6)
    return result


def check_signals(world: World, result: Any) -> None:
    assert result == "ended"
    assert world.state("Ear/e") == {"heard": list(range(6))}
    assert world.state("Scroll/e") == {"lines": [f"heard {number}" for number in range(6)]}


SCENARIOS: dict[str, tuple[Callable[[World], Awaitable[Any]], Callable[[World, Any], None]]] = {
    "whole": (whole, check_whole),
    "overwrite": (overwrite, check_overwrite),
    "race": (race, check_race),
    "give_up": (give_up, check_give_up),
    "gathered": (gathered, check_gathered),
    "flaky": (flaky, check_flaky),
    "ahead": (ahead, check_ahead),
    "awakeables": (awakeables, check_awakeables),
    "signals": (signals, check_signals),
}


def schedule(name: str, crashes: Any, policy: Policy | None) -> World:
    """Run one schedule and check all that must hold after it."""
    scenario, check = SCENARIOS[name]
    effects.done.clear()

    async def with_effects(world: World) -> Any:
        effects.world = world
        return await scenario(world)

    world, result = simulate(with_effects, iter(crashes), policy=policy)
    check(world, result)
    assert world.violations == []
    assert set(world.driver.replies.values()) <= {1}, "a reply came twice"
    assert world.leftovers() == []
    return world


@pytest.mark.parametrize("policy", [None, SUSPEND], ids=["in memory", "suspend and replay"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_a_crash_at_any_store_call_changes_nothing(name: str, policy: Policy | None) -> None:
    calls = schedule(name, [], policy).calls
    for faults in everywhere(calls):
        try:
            schedule(name, [faults], policy)
        except BaseException as error:
            error.add_note(f"{name}: crash at call {faults.at}, applied: {faults.applied}")
            raise


@pytest.mark.parametrize("policy", [None, SUSPEND], ids=["in memory", "suspend and replay"])
@pytest.mark.parametrize("name", SCENARIOS)
def test_several_crashes_change_nothing(name: str, policy: Policy | None) -> None:
    calls = schedule(name, [], policy).calls
    for seed in range(SEEDS):
        try:
            schedule(name, at_random(seed, calls), policy)
        except BaseException as error:
            error.add_note(f"{name}: seed {seed}")
            raise


def test_the_simulation_sees_a_crash() -> None:
    assert schedule("whole", [Faults(at=60)], None).crashes == 1
