"""Simulation: drivers and hosts in one process, on the memory store and a virtual clock, with crashes at will.

A simulated crash cancels everything that the host does, at a store call that was or was not applied, and answers it
nothing any more. What remains is what the store holds: the next host starts from that alone. A `Survey` of a run
without a crash tells which calls leave the same behind, so that each difference that a crash can make is tried once.
"""

import asyncio
import pickle
import random
import selectors
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from actors.blocks.restarts import kept, mark_of
from actors.host.host import Host, Identity
from actors.policy import Policy
from actors.requests.run_ids import run_id
from actors.values import outcomes
from journal.codec import encode
from journal.ids import Shard, invocation_id, shard_in
from journal.keys import OWN
from journal.memory.store import MemoryStore
from journal.records import EventKind, Message, Record, pack, teller_of_driver
from journal.store import Attach, Bring, NamespaceLimits, Outgoing, Settled

START_S = 1_700_000_000.0
SHARDS = 4
"""Fewer than usual: taking over each one is a store call."""
SUSPEND = Policy(idle_timeout=timedelta(0))
"""Every wait leaves memory: the journal is all that a handler is resumed from."""
LATENCY_S = 0.05
DYING = 12
"""Turns of the loop within which a host is gone that has crashed."""
TAIL_S = 5.0
"""How long a host is watched that has not crashed when all has ended; it may crash then, too."""
QUIET_WITHIN_S = 60.0
STUCK_AFTER_S = 600.0
"""Virtual seconds after which a schedule that has not ended never will."""


class _Selector(selectors.SelectSelector):
    """Never waits: where asyncio would, time passes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = START_S
        self.turns = 0
        self.before_turn: Callable[[], None] | None = None

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        self.turns += 1
        if self.before_turn is not None:
            self.before_turn()
        found = super().select(0)  # while it asks, a thread of an executor may run
        if not found and timeout is None:
            raise RuntimeError("nothing is left to happen")
        if not found and timeout:
            self.now += timeout
        return found


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time passes only while everybody waits."""

    def __init__(self) -> None:
        self.selector = _Selector()
        super().__init__(self.selector)
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return self.selector.now

    def now_ms(self) -> int:
        return int(self.selector.now * 1000)


@contextmanager
def virtual_loop() -> Generator[VirtualLoop]:
    loop = VirtualLoop()
    try:
        yield loop
    finally:
        rest = asyncio.all_tasks(loop)
        while rest := {task for task in rest if not task.done()}:
            for task in rest:
                task.cancel()
            loop.run_until_complete(asyncio.wait(rest, timeout=1))
        loop.close()


@dataclass
class Faults:
    """When a host crashes: at its nth store call, before or after that call took effect."""

    at: int = 0
    applied: bool = True
    latency: random.Random | None = None
    """With it, calls and answers take up to `LATENCY_S` each."""
    calls: int = 0
    crashed: asyncio.Event = field(default_factory=asyncio.Event)
    survey: "Survey | None" = None
    """With it, the host does not crash: it is noted what a crash at each place would leave behind."""
    left: set[bytes] | None = None
    """With it, the run ends with the host if what it leaves behind is among these; it is added otherwise."""


@dataclass(frozen=True)
class Crash:
    """A place for a crash: before or after a store call took effect."""

    at: int
    applied: bool


class Survey:
    """The places for a crash in a run, and which of them come to the same.

    The next host starts from what outlives this one, and nothing else: the store, the program, what steps did outside,
    and the time. Where all of that is the same at two places, all that follows is, too. But a host does not die at
    once: it may go on for `DYING` turns of the loop, unanswered. A place is like no other if a step acts in these.
    """

    def __init__(self) -> None:
        self._found: list[tuple[Crash, int, bytes]] = []
        self._acted: list[int] = []
        self._outside: Any = None

    def begin(self, world: "World") -> None:
        """Begin, in a world in which nothing has happened yet."""
        self._world, self._selector = world, world.loop.selector
        self._selector.before_turn = self._look

    def _look(self) -> None:
        """Note whether a step has acted in this turn."""
        if self._outside != (outside := self._world.outside()):
            self._outside = outside
            self._acted.append(self._selector.turns)

    def note(self, crash: Crash) -> None:
        """Note what outlives the host at this place."""
        self._found.append((crash, self._selector.turns, self._world.outliving()))

    def places(self) -> list[list[Crash]]:
        """Return the places, those together that come to the same."""
        out: dict[bytes | Crash, list[Crash]] = {}
        for crash, turn, outliving in self._found:
            is_acting = any(turn < acted <= turn + DYING for acted in self._acted)
            out.setdefault(crash if is_acting else outliving, []).append(crash)
        return list(out.values())


def _position(task: "asyncio.Future[Any] | None") -> list[Any]:
    """Return where the coroutine of a task waits."""
    coroutine, out = task.get_coro() if isinstance(task, asyncio.Task) else None, list[Any]()
    while frame := getattr(coroutine, "cr_frame", None):
        out.append((frame.f_code.co_qualname, frame.f_lasti))
        coroutine = getattr(coroutine, "cr_await", None)
    return out


class FaultyStore:
    """A store that stops answering a host at a chosen call, and for good."""

    def __init__(self, store: MemoryStore, faults: Faults) -> None:
        self._store, self._faults = store, faults

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        method: Callable[..., Awaitable[Any]] = getattr(self._store, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            faults = self._faults
            if name == "aclose":
                return None
            faults.calls += 1
            if faults.crashed.is_set():
                await asyncio.Event().wait()
            is_last = faults.calls == faults.at
            if is_last and not faults.applied:
                faults.crashed.set()
                await asyncio.Event().wait()
            number = faults.calls
            if faults.survey is not None:
                faults.survey.note(Crash(number, applied=False))
            if faults.latency is not None:
                await self._travel()
            answer = await method(*args, **kwargs)
            if faults.survey is not None:
                faults.survey.note(Crash(number, applied=True))
            if is_last:
                faults.crashed.set()
            if faults.latency is not None:
                await self._travel()
            if faults.crashed.is_set():
                await asyncio.Event().wait()
            return answer

        return call

    async def _travel(self) -> None:
        if self._faults.latency is not None:
            await asyncio.sleep(self._faults.latency.random() * LATENCY_S)


class Driver:
    """A program that starts invocations and takes each reply, once."""

    def __init__(self, store: MemoryStore, limits: NamespaceLimits) -> None:
        self._store, self._limits = store, limits
        self._number = 0
        self._started = 0
        self._seen = "0-0"
        self.writer = ""
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self.replies: dict[str, int] = {}
        self.notices: list[str] = []

    async def open(self) -> None:
        self._shards = (await self._store.open_namespace(self._limits)).shards
        self.writer = await self._store.open_writer()
        self._reader = asyncio.ensure_future(self._read())

    async def close(self) -> None:
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self) -> None:
        while True:
            for reply in await self._store.replies(self.writer, self._seen, 1_000):
                self._seen = reply.id
                if reply.payload[:1] == b"N":
                    self.notices.append(reply.payload[1:].decode())
                    continue
                self.replies[reply.invocation] = self.replies.get(reply.invocation, 0) + 1
                waiting = self._waiting[reply.invocation]
                if not waiting.done():
                    waiting.set_result(reply.payload)

    async def start(
        self, target: str, handler: str, *args: Any, send: bool = False, delay_s: int = 0, once: bool = False
    ) -> str:
        """Submit an invocation; return its id. With `once` it is the run of a workflow."""
        self._started += 1
        id_ = invocation_id(f"driver{self._started}", target, self._shards)
        if once:
            id_ = run_id(target, self._shards)
        caller = "" if send else teller_of_driver(self.writer)
        due_ms = await self._store.now_ms() + delay_s * 1000 if delay_s else 0
        message = Message(id_, target, handler, encode([list(args), {}]), caller, due_ms=due_ms)
        self._waiting[id_] = asyncio.get_running_loop().create_future()
        self._number += 1
        operation = Outgoing(shard_in(id_), id_, caller, message.encoded())
        assert await self._store.submit(self.writer, self._number, [operation], self._seen) is Settled.APPLIED
        return id_

    async def bring(self, event: Bring) -> None:
        """Submit an event for an invocation."""
        self._number += 1
        assert await self._store.submit(self.writer, self._number, [event], self._seen) is Settled.APPLIED

    async def signal(self, id_: str, name: str, value: Any) -> None:
        """Submit a signal."""
        data = pack([name], (outcomes.encoded_value(value),))
        await self.bring(Bring(shard_in(id_), id_, EventKind.SIGNAL, 0, data))

    async def end(self, id_: str, kind: EventKind = EventKind.CANCEL) -> None:
        """Submit a cancel or a kill."""
        await self.bring(Bring(shard_in(id_), id_, kind, 0, b""))

    def outliving(self) -> list[Any]:
        """Return all that it knows, and where it waits."""
        waiting = [(id_, future.done()) for id_, future in self._waiting.items()]
        known = [self._number, self._started, self._seen, list(self.replies.items()), list(self.notices), waiting]
        return [known, _position(self._reader)]

    async def result(self, id_: str) -> Any:
        return outcomes.decoded(await self._waiting[id_])

    async def call(self, target: str, handler: str, *args: Any) -> Any:
        return await self.result(await self.start(target, handler, *args))

    async def attach(self, id_: str) -> None:
        self._waiting.setdefault(id_, asyncio.get_running_loop().create_future())
        self._number += 1
        await self._store.submit(self.writer, self._number, [Attach(shard_in(id_), id_)], self._seen)


class World:
    """A store, hosts that crash, and one driver."""

    def __init__(
        self, loop: VirtualLoop, *, policy: Policy | None = None, limits: NamespaceLimits | None = None
    ) -> None:
        self.loop, self.policy = loop, policy
        self.store = MemoryStore(loop.now_ms)
        self.limits = limits or NamespaceLimits(shards=SHARDS)
        self.driver = Driver(self.store.connect(), self.limits)
        self.violations: list[str] = []
        self.crashes = 0
        self.calls = 0
        self.dying = 0
        """Turns of the loop that hosts took to be gone, at most."""
        self.is_known = False
        """Whether it ended where another run has gone on."""
        self.outside: Callable[[], Any] = lambda: None
        """Return a copy of what steps did outside."""
        self._work: asyncio.Future[Any] | None = None

    def outliving(self) -> bytes:
        """Return all that outlives a host, as bytes; names that are drawn by chance are numbered."""
        store = {name: value for name, value in vars(self.store._world).items() if name not in ("clock", "changed")}  # pyright: ignore[reportPrivateUsage]
        program = [self.driver.outliving(), _position(self._work), self.violations]
        found = pickle.dumps([self.loop.time(), store, program, self.outside()])
        heads = [shard.head.incarnation for shard in self.store._world.shards]  # pyright: ignore[reportPrivateUsage]
        drawn = [self.driver.writer, *heads, *self.store._world.hosts]  # pyright: ignore[reportPrivateUsage]
        for number, name in enumerate(dict.fromkeys(drawn)):
            found = found.replace(name.encode(), f"{number:0{len(name)}}".encode())
        return found

    def recorded(self, step_id: str) -> bool:
        """Whether the store holds the outcome of a step."""
        id_, _, index = step_id.rpartition(":")
        shard = self.store._world.shards[shard_in(id_)]  # pyright: ignore[reportPrivateUsage]  # looks from outside
        records = list(shard.asleep[id_].records) if id_ in shard.asleep else []
        records += [(at, data) for at, (owner, data) in shard.journal.entries.items() if owner == id_]
        journal = kept([(at, Record.parse(data)) for at, data in records])
        restarts = [record.restart for _, record in journal if record.restart[1]]
        return any(int(index) == mark_of(done, restarts) for _, record in journal for done, _ in record.steps)

    def acting(self, step_id: str) -> None:
        """Called by every step: one that is recorded must not run again (promise 4)."""
        if self.recorded(step_id):
            self.violations.append(f"the recorded step {step_id} ran again")

    def state(self, target: str) -> dict[str, Any]:
        """Return an object's stored state, decoded."""
        from journal.codec import decode

        shards = self.store._world.shards  # pyright: ignore[reportPrivateUsage]  # looks from outside
        found = [shard.state[target] for shard in shards if target in shard.state]
        return {name: decode(value) for fields in found for name, value in fields.items() if name[0] != OWN}

    def own_fields(self, target: str) -> list[str]:
        """Return the names of an object's fields that are not the user's."""
        shards = self.store._world.shards  # pyright: ignore[reportPrivateUsage]  # looks from outside
        return sorted(name for shard in shards for name in shard.state.get(target, ()) if name[0] == OWN)

    async def until_state(self, target: str, field: str) -> Any:
        """Return a field's stored value, when there is one."""
        while field not in (found := self.state(target)):  # noqa: ASYNC110  # nothing says it: it looks from outside
            await asyncio.sleep(0.01)
        return found[field]

    async def until_paused(self, id_: str) -> str:
        """Return why an invocation is paused, when it is."""
        while not (found := await self.store.status(id_)).startswith("paused"):  # noqa: ASYNC110  # as above
            await asyncio.sleep(0.01)
        return found

    def leftovers(self) -> list[str]:
        """Return what finished invocations have left behind in the store, beyond state and history."""
        left: list[str] = []
        for number, shard in enumerate(self.store._world.shards):  # pyright: ignore[reportPrivateUsage]
            for name in ("inbox", "events", "journal"):
                entries = getattr(shard, name).entries
                left += [f"{number}:{name}:{entry}" for entry in entries.items()]
            left += [f"{number}:asleep:{id_}" for id_ in shard.asleep]
            left += [f"{number}:held:{pair}" for pair in shard.held.items()]
            # Those of state outlive what has set them, and that of a delayed message whoever has ended it before.
            left += [f"{number}:timers:{member}" for member in shard.timers if member[-2:] not in (":e", ":f", ":d")]
        return left

    def host(self, faults: Faults, name: str = "host") -> "asyncio.Task[None]":
        host = Host(
            lambda: FaultyStore(self.store.connect(), faults),  # pyright: ignore[reportArgumentType]  # by delegation
            Identity(id=name),
            live=True,
            policy=self.policy,
            now=self.loop.time,
            own_thread=False,
        )
        return asyncio.ensure_future(host.run())

    async def run(self, scenario: Callable[["World"], Coroutine[Any, Any, Any]], crashes: Iterator[Faults]) -> Any:
        """Run a scenario while hosts crash, one after the other, as the iterator says; then without."""
        await self.driver.open()
        work = self._work = asyncio.ensure_future(scenario(self))
        async with asyncio.timeout(STUCK_AFTER_S):
            while not work.done():
                faults = next(crashes, Faults())
                if faults.survey is not None:
                    faults.survey.begin(self)
                serving = self.host(faults)
                crashed = asyncio.ensure_future(faults.crashed.wait())
                await asyncio.wait({work, crashed, serving}, return_when=asyncio.FIRST_COMPLETED)
                if serving.done():
                    serving.result()
                if work.done() and self.crashes and not faults.at:
                    await self.until_quiet()
                elif work.done():
                    await asyncio.wait({crashed}, timeout=TAIL_S)
                self.calls += faults.calls
                self.crashes += faults.crashed.is_set()
                faults.survey = None
                turns = self.loop.selector.turns
                crashed.cancel()
                serving.cancel()
                await asyncio.gather(serving, crashed, return_exceptions=True)
                self.dying = max(self.dying, self.loop.selector.turns - turns + 3)  # three tasks have passed it on
                if faults.left is not None and self._is_among(faults.left):
                    self.is_known = True
                    work.cancel()
                    await asyncio.wait([work])
                    break
                if faults.crashed.is_set() and work.done():
                    await self._run_dry()
        await self.driver.close()
        return None if self.is_known else work.result()

    def _is_among(self, left: set[bytes]) -> bool:
        """Whether what outlives the host is among these; add it."""
        known, outliving = len(left), self.outliving()
        left.add(outliving)
        return len(left) == known

    async def _run_dry(self) -> None:
        serving = self.host(Faults())
        await self.until_quiet()
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)

    async def until_quiet(self) -> None:
        """Wait until nothing is left to be done: what was sent ends too. Then a second more."""
        with suppress(TimeoutError):
            async with asyncio.timeout(QUIET_WITHIN_S):
                while self.leftovers():  # noqa: ASYNC110  # nothing says it: it looks from outside
                    await asyncio.sleep(0.1)
        await asyncio.sleep(1)


def simulate(
    scenario: Callable[[World], Coroutine[Any, Any, Any]],
    crashes: Iterator[Faults],
    *,
    policy: Policy | None = None,
    limits: NamespaceLimits | None = None,
) -> tuple[World, Any]:
    """Return the world after a scenario, and what the scenario returned."""
    with virtual_loop() as loop:
        world = World(loop, policy=policy, limits=limits)
        result = loop.run_until_complete(world.run(scenario, crashes))
        return world, result


def at_random(seed: int, calls: int) -> Iterator[Faults]:
    """Up to three crashes at random calls, on a network that takes its time; then the same network for good."""
    source = random.Random(seed)
    for _ in range(source.randint(1, 3)):
        yield Faults(at=source.randint(calls // 4, calls), applied=source.random() < 0.5, latency=source)
    while True:
        yield Faults(latency=source)


__all__ = [
    "DYING",
    "LATENCY_S",
    "START_S",
    "SUSPEND",
    "Crash",
    "Driver",
    "Faults",
    "Shard",
    "Survey",
    "World",
    "at_random",
    "simulate",
    "virtual_loop",
]
