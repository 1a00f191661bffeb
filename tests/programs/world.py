"""The simulated world of programs: hosts whose calls of the store are lost, late, the last ones, or without an answer.

Everything comes from one seed. Faults end after a while, so that every program ends.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final

from actors import Policy, TerminalError, UnavailableError
from actors.blocks.awakeables import completion
from actors.host.host import Host, Identity
from actors.values import outcomes
from journal.memory.store import MemoryStore
from journal.records import EventKind
from tests.chaos import hostile
from tests.chaos.audit import LATE_S
from tests.simulation import SHARDS, VirtualLoop, World, virtual_loop

from . import pests, plays
from .audit import audit, runs_kept, undone
from .grammar import Root
from .model import expected

MODES: Final[dict[str, Policy | None]] = {
    "as usual": None,
    "suspend and replay": Policy(idle_timeout=timedelta(0)),
    "a little idle": Policy(idle_timeout=0.2),
    "never idle": Policy(idle_timeout=timedelta(days=1_000)),
}
"""When an invocation leaves memory."""
STUCK_AFTER_S: Final = 1_500.0
"""Virtual seconds after which a program that has not ended never will."""
LATENCY_S: Final = 0.02


@dataclass
class Weather:
    """How much goes wrong."""

    choose: random.Random
    crashes: int
    """So many hosts may die."""

    each: float
    """Of so many calls of the store something becomes."""

    slow: bool
    """Whether calls take time."""

    def draw(self) -> str:
        """Return what becomes of a call; nothing, mostly."""
        if not self.each or self.choose.random() >= self.each:
            return ""
        found = self.choose.choice(["dies before", "dies after", "lost", "lost answer", "lost answer", "pauses"])
        if found.startswith("dies"):
            if not self.crashes:
                return ""
            self.crashes -= 1
        return found


def weather(seed: int) -> Weather:
    """Return the weather of a seed; every eighth is fair."""
    choose = random.Random(f"weather {seed}")
    if seed % 8 == 0:
        return Weather(choose, 0, 0.0, slow=False)
    return Weather(choose, choose.randint(0, 5), choose.choice([0.01, 0.03, 0.1]), slow=choose.random() < 0.5)


class RoughStore:
    """A host's connection in such weather; after its host's death it answers nothing any more."""

    def __init__(self, store: MemoryStore, weather: Weather, member: "Member") -> None:
        self._store, self._weather, self._member = store, weather, member

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        method: Callable[..., Coroutine[Any, Any, Any]] = getattr(self._store, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            if name == "aclose":
                return None
            await self._travel()
            what = self._weather.draw()
            if what == "pauses":
                self._member.pause(self._weather.choose.uniform(0.1, 6.0))
                await self._travel()
            if what == "dies before":
                self._member.die()
            if what == "lost":
                raise UnavailableError("the request was lost")
            await self._alive()
            answer = await method(*args, **kwargs)
            if what == "dies after":
                self._member.die()
            await self._travel()
            if what == "lost answer":
                raise UnavailableError("the answer was lost")
            return answer

        return call

    async def _travel(self) -> None:
        if self._weather.slow:
            await asyncio.sleep(self._weather.choose.random() * LATENCY_S)
        while (rest := self._member.until - asyncio.get_running_loop().time()) > 0:  # noqa: ASYNC110  # it may grow
            await asyncio.sleep(rest)
        await self._alive()

    async def _alive(self) -> None:
        if self._member.dead.is_set():
            await asyncio.Event().wait()


class AtOnce(Executor):
    """Runs sync steps at once."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except BaseException as error:
            future.set_exception(error)
        return future


class Member:
    """One host; when it dies, another one of its name follows."""

    def __init__(self, world: "ProgramWorld", name: str) -> None:
        self._world, self._name = world, name
        self.dead = asyncio.Event()
        self.until = 0.0
        """Its calls of the store are stopped until then."""
        self.task = asyncio.ensure_future(self._live())

    def pause(self, seconds: float) -> None:
        self.until = asyncio.get_running_loop().time() + seconds

    def die(self) -> None:
        self.dead.set()

    async def _live(self) -> None:
        while True:
            self.dead.clear()
            serving = asyncio.ensure_future(self._host().run())
            dying = asyncio.ensure_future(self.dead.wait())
            try:
                await asyncio.wait({serving, dying}, return_when=asyncio.FIRST_COMPLETED)
                if serving.done():
                    serving.result()
            finally:
                for task in (serving, dying):
                    task.cancel()
                await asyncio.gather(serving, dying, return_exceptions=True)
            await asyncio.sleep(self._world.weather.choose.uniform(0.0, 3.0))

    def _host(self) -> Host:
        world = self._world
        return Host(
            lambda: RoughStore(world.store.connect(), world.weather, self),  # pyright: ignore[reportArgumentType]  # by delegation
            Identity(id=self._name),
            live=True,
            policy=world.policy,
            executor=AtOnce(),
            now=world.loop.time,
            own_thread=False,
        )


@dataclass
class Outcome:
    """What became of a program."""

    wrong: list[str] = field(default_factory=list[str])
    acts: int = 0
    """So many actions of steps took place."""
    deaths: int = 0


class ProgramWorld(World):
    """A store, hosts in rough weather, a driver, and what lies outside of all that."""

    def __init__(self, loop: VirtualLoop, policy: Policy | None, weather: Weather) -> None:
        super().__init__(loop, policy=policy)
        self.weather = weather
        self._acts: dict[str, int] = {}
        self._undone: dict[str, dict[str, tuple[str, int]]] = {}
        """By path and step."""

    # Outside

    async def act(self, step_id: str, fails: int) -> str:
        self.acting(step_id)
        count = self._acts[step_id] = self._acts.get(step_id, 0) + 1
        if count <= fails:
            raise ConnectionError(f"{count} of {fails} that fail")
        return f"{step_id} {count}"

    async def undo(self, step_id: str, path: str, thread: str, n: int) -> None:
        self.acting(step_id)
        self._undone.setdefault(path, {}).setdefault(step_id, (thread, n))

    async def complete(self, id_: str, value: Any, refuses: bool) -> None:
        error = TerminalError(f"{value}")
        outcome = outcomes.encoded_error(error) if refuses else outcomes.encoded_value(value)
        await self.driver.bring(completion(id_, outcome))

    # Playing

    async def play(self, roots: list[Root], guests: list[pests.Guest], hosts: int) -> Outcome:
        """Play the roots at once, beside guests; return what was wrong."""
        crashes, is_fair = self.weather.crashes, not self.weather.each
        await self.driver.open()
        members = [Member(self, f"host{number}") for number in range(hosts)]
        results: dict[str, Any] = {}
        try:
            async with asyncio.timeout(STUCK_AFTER_S):
                playing = [self._root(root, results) for root in roots] + [self._guest(each) for each in guests]
                if guests and is_fair:
                    playing += [self._probe(key) for key in pests.probes(SHARDS)]
                await asyncio.gather(*playing)
        except TimeoutError:
            self.violations.append("it did not end")
        self.weather.each = 0.0
        self.weather.crashes, deaths = 0, crashes - self.weather.crashes
        await self.until_quiet()
        for member in members:
            member.task.cancel()
        await asyncio.gather(*(member.task for member in members), return_exceptions=True)
        await self.driver.close()
        return Outcome(self._wrong(roots, results), sum(self._acts.values()), deaths)

    async def _root(self, root: Root, results: dict[str, Any]) -> None:
        target = "Chore" if root.key is None else f"Book/{root.key}"
        id_ = await self.driver.start(target, "play", root.path, root.parts, {})
        try:
            results[root.path] = await self.driver.result(id_)
        except TerminalError as error:
            results[root.path] = plays.told(error)

    async def _guest(self, guest: pests.Guest) -> None:
        await asyncio.sleep(guest.at_s)
        handler, args, _ = hostile.asked(guest.name)
        id_ = await self.driver.start(f"Pest/{guest.key}", handler, *args)
        if how := hostile.hurries(guest.name):
            await self.driver.end(id_, EventKind.KILL if how == "kill" else EventKind.CANCEL)
        end = await hostile.end_of(guest.name, self.driver.result(id_))
        if end not in hostile.HOSTILITIES[guest.name]:
            self.violations.append(f"{guest.name} of {guest.key!a} came to {end}")

    async def _probe(self, key: str) -> None:
        """Ask somebody good while the guests come; without faults there is nothing to wait for."""
        await self.driver.call(f"Mirror/{key}", "say", 0)  # the hosts begin
        began = self.loop.time()
        while (asked_at := self.loop.time()) < began + 2 * pests.GUESTS_WITHIN_S:
            assert await self.driver.call(f"Mirror/{key}", "say", key) == key
            if (late_s := self.loop.time() - asked_at) > LATE_S:
                self.violations.append(f"{key} was answered {late_s:.2f} s late")
            await asyncio.sleep(0.1)

    def _wrong(self, roots: list[Root], results: dict[str, Any]) -> list[str]:
        objects = {
            target.removeprefix("Book/"): self.state(target)
            for shard in self.store._world.shards
            for target in shard.state
            if target.startswith("Book/")
        }
        due = {root.path: expected(root.path, root.key, root.parts) for root in roots}
        wrong = audit(due, results, objects)
        wrong += undone(due, {path: list(steps.values()) for path, steps in self._undone.items()})
        for id_, run in runs_kept(objects):
            step_id, _, count = run.rpartition(" ")
            if not step_id.startswith(f"{id_}:") or self._acts.get(step_id) != int(count):
                wrong.append(f"{run} was recorded, and another action followed it")
        wrong += self.violations
        wrong += [f"{id_} was answered {count} times" for id_, count in self.driver.replies.items() if count > 1]
        return wrong + [f"left in the store: {left}" for left in self.leftovers()]


def play(roots: list[Root], seed: int, *, mode: str | None = None) -> Outcome:
    """Play a program in the weather of a seed, beside its guests, in a mode of that seed or in this one."""
    choose = random.Random(f"mode {seed}")
    policy = MODES[mode or choose.choice(list(MODES))]
    with virtual_loop() as loop:
        world = plays.outside.outside = ProgramWorld(loop, policy, weather(seed))
        try:
            return loop.run_until_complete(world.play(roots, pests.guests(seed), choose.choice([1, 1, 2])))
        finally:
            plays.outside.outside = None


__all__ = ["MODES", "SHARDS", "Outcome", "ProgramWorld", "play"]
