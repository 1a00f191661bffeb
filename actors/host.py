"""Host: owns shards under leases, reads them, and serves them, on one event loop.

Owns the tasks of a host process: reader, writer, timekeeper, fetcher, ownership. What happens inside a shard is the
shard's; what is durable is the store's.

Invariants:
    1. A shard is served from the end of its recovery until its lease lapses, a commit of it is refused, or it is
       released; then everything of it in memory is dropped at once.
    2. Recovery delivers what the journal and `events` hold before anything new is read.
    3. Killing the process between any two lines here loses nothing: whoever takes the shard over finds all of it.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import orjson

from journal.clock import boot_seconds, wall_ms
from journal.entries import Event, Record
from journal.names import Shard, new_id
from journal.store import SHARDS, Granted, Store

from .activation import Activation
from .code import CodeBook
from .errors import DamagedError, UnavailableError
from .execution import Surroundings
from .leases import LEASE_TTL, RENEW_EVERY, Leases, RenewalThread
from .placement import placed
from .policy import Policy, resolve
from .shard import Limits, OwnedShard, Services
from .steps import StepRunner
from .writer import RETRY_FIRST, RETRY_MAX, Writer

logger = logging.getLogger("actors")

READ_COUNT = 500
"""Most entries of each stream in one read."""
PAGE = 1_000
"""Most entries of a stream in one page of a recovery."""
TIMERS_AT_ONCE = 1_000
COLLECT_EVERY = 5.0
BURY_AFTER = 10.0
"""Seconds of silence after which any host takes a dead one off the list."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who a host is: its id outlives its process, so that a restarted one gets the same shards."""

    id: str
    node: str = ""
    pid: int = 0


class Host:
    """One host; `run` it on the loop that is to run the handlers."""

    def __init__(
        self,
        connect: Callable[[], Store],
        identity: Identity,
        *,
        live: bool = False,
        policy: Policy | None = None,
        limits: Limits | None = None,
        executor: Executor | None = None,
        now: Callable[[], float] = boot_seconds,
        wall: Callable[[], int] = wall_ms,
        own_thread: bool = True,
        stuck: Callable[[str], None] | None = None,
    ) -> None:
        self._connect, self._identity, self._policy, self._executor = connect, identity, policy, executor
        self._limits, self._live, self._now, self._wall = limits or Limits(), live, now, wall
        self._own_thread, self._stuck = own_thread, stuck or _log_stuck
        self._store = connect()
        self.incarnation = new_id()
        self._leases = Leases(self.incarnation, now, self._about, self._acknowledged)
        self._offset_ms = 0
        self._shards: dict[Shard, OwnedShard] = {}
        self._count = SHARDS
        self._code = CodeBook(self._store, live=live)
        self._writer = Writer(self._store, self.incarnation, self._shards.values, self._lose)
        self._control = "$"
        self._look_again = asyncio.Event()
        self._timers = asyncio.Event()
        self._fetch = asyncio.Event()
        self._to_load: list[tuple[OwnedShard, Activation]] = []
        self._to_wake: list[tuple[OwnedShard, str]] = []
        self._seen_hosts: dict[str, tuple[bytes, float]] = {}
        self._seen_leases: dict[Shard, tuple[str, float]] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._renewal: RenewalThread | None = None
        self._services: Services | None = None
        self._is_leaving = False
        self.recovered = asyncio.Event()
        """Set when the host owns the shards that are its own for the first time."""

    # Life

    async def run(self) -> None:
        """Serve until cancelled; connection errors are waited out."""
        await self._open()
        loops = (self._read, self._writer.run, self._keep_time, self._fetch_all, self._own, self._collect)
        tasks = [self._spawn(loop()) for loop in loops]
        if self._own_thread:
            self._renewal = RenewalThread(self._leases, self._connect, self._now, self._stuck)
            self._renewal.start()
        else:
            tasks.append(self._spawn(self._renew()))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
        finally:
            await self.aclose()

    async def _open(self) -> None:
        delay = RETRY_FIRST
        while True:
            try:
                self._count = await self._store.open_namespace(SHARDS)
                self._offset_ms = await self._store.now_ms() - self._wall()
                self._control = "0-0"
                break
            except UnavailableError as error:
                logger.warning("host %s: %s; trying again in %g s", self._identity.id, error, delay)
            await asyncio.sleep(delay)
            delay = min(2 * delay, RETRY_MAX)
        payload_max = self._limits.payload_max
        self._services = Services(
            limits=self._limits,
            policy=self._policy,
            surroundings=Surroundings(
                shards=self._count,
                payload_max=payload_max,
                code_of=self._code.code_of,
                now_ms=lambda: self._wall() + self._offset_ms,
            ),
            code=self._code,
            steps=StepRunner(self._executor, resolve(self._policy).retry, payload_max),
            loop=asyncio.get_running_loop(),
            now=self._now,
            spawn=self._spawn,
            wake_writer=self._writer.wake,
            wake_timers=self._timers.set,
            load=self._load,
            wake=self._wake,
            refill=self._refill,
        )

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("host %s: a task failed", self._identity.id, exc_info=task.exception())

    async def aclose(self) -> None:
        """Stop at once, as a crash would, but for the connections."""
        if self._renewal is not None:
            await asyncio.to_thread(self._renewal.stop)
        for shard in list(self._shards.values()):
            shard.lose()
        self._shards.clear()
        pending = set(self._tasks)
        while pending:
            # Again and again: a time-out that ends at the same moment can take a cancellation for its own (before 3.12).
            for task in pending:
                task.cancel()
            _, pending = await asyncio.wait(pending, timeout=0.1)
        if self._is_leaving:
            await self._sign_off()
        await self._store.aclose()

    async def _sign_off(self) -> None:
        # Again, now that nothing renews: a renewal that was under way has put this host back on the list.
        try:
            await self._store.release(self.incarnation, {}, leaving=True)
        except UnavailableError as error:
            logger.warning("host %s: %s; it is taken off the list by another", self._identity.id, error)

    async def leave(self, patience_s: float = 30.0) -> None:
        """Hand all shards over: let steps end and be recorded, then release the leases."""
        self._is_leaving = True
        for shard in self._shards.values():
            shard.drain()
        deadline = self._now() + patience_s
        while self._now() < deadline and not all(shard.is_drained for shard in self._shards.values()):
            await asyncio.sleep(0.005)
        await self._release(list(self._shards.values()), leaving=True)

    # Reading

    async def _read(self) -> None:
        delay = RETRY_FIRST
        while True:
            if self._renewal is not None:
                self._renewal.turned()
            shards = {shard: owned for shard, owned in self._shards.items() if owned.is_recovered}
            try:
                cursors = {shard: owned.cursor for shard, owned in shards.items()}
                arrivals = await self._store.arrivals(cursors, self._control, 1_000, READ_COUNT)
                delay = RETRY_FIRST
            except UnavailableError as error:
                logger.warning("host %s: %s; reading again in %g s", self._identity.id, error, delay)
                await asyncio.sleep(delay)
                delay = min(2 * delay, RETRY_MAX)
                continue
            if arrivals.control:
                self._control = arrivals.control
                self._look_again.set()
            for shard, id_, data in arrivals.messages:
                owned = shards[shard]
                owned.cursor.inbox = id_
                if not owned.is_lost:
                    owned.accept(id_, data)
            for shard, event in arrivals.events:
                owned = shards[shard]
                owned.cursor.events = event.id
                if not owned.is_lost:
                    owned.receive(event)

    # Fetching what is not in memory

    def _load(self, shard: OwnedShard, activation: Activation) -> None:
        self._to_load.append((shard, activation))
        self._fetch.set()

    def _wake(self, shard: OwnedShard, id_: str) -> None:
        self._to_wake.append((shard, id_))
        self._fetch.set()

    def _refill(self, shard: OwnedShard, activation: Activation) -> None:
        self._spawn(self._refilled(shard, activation))

    async def _refilled(self, shard: OwnedShard, activation: Activation) -> None:
        ids = [run.inbox_id for run in list(activation.mailbox)[: self._limits.queue_in_memory]]
        found = await self._surely(lambda: self._store.messages(shard.shard, ids))
        if not shard.is_lost:
            shard.refilled(activation, {id_: data for id_, data in zip(ids, found, strict=True) if data is not None})

    async def _fetch_all(self) -> None:
        while True:
            await self._fetch.wait()
            self._fetch.clear()
            loading, self._to_load = self._to_load, []
            waking, self._to_wake = self._to_wake, []
            if loading:
                wanted = [(shard.shard, activation.target) for shard, activation in loading]
                states = await self._surely(lambda wanted=wanted: self._store.load(wanted))
                for (shard, activation), state in zip(loading, states, strict=True):
                    if not shard.is_lost:
                        shard.loaded(activation, state)
            if waking:
                names = [(shard.shard, id_) for shard, id_ in waking]
                dormants = await self._surely(lambda names=names: self._store.dormant(names))
                for (shard, id_), dormant in zip(waking, dormants, strict=True):
                    if not shard.is_lost:
                        shard.woken(id_, dormant)

    async def _surely(self, read: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """Return what a read gives, asking again while the store does not answer."""
        delay = RETRY_FIRST
        while True:
            try:
                return await read()
            except UnavailableError as error:
                logger.warning("host %s: %s; asking again in %g s", self._identity.id, error, delay)
            await asyncio.sleep(delay)
            delay = min(2 * delay, RETRY_MAX)

    # Time

    async def _keep_time(self) -> None:
        while True:
            self._timers.clear()
            now_ms = self._wall() + self._offset_ms
            due = [shard for shard in self._shards.values() if shard.next_due_ms and shard.next_due_ms <= now_ms]
            for shard in due:
                await self._move_due(shard)
            if due:
                continue
            following = min((s.next_due_ms for s in self._shards.values() if s.next_due_ms), default=0)
            try:
                async with asyncio.timeout(max(following - now_ms, 1) / 1000 if following else None):
                    await self._timers.wait()
            except TimeoutError:
                continue

    async def _move_due(self, shard: OwnedShard) -> None:
        asked = shard.next_due_ms
        shard.next_due_ms = 0
        try:
            moved, following = await self._store.move_due(shard.shard, shard.epoch, self.incarnation, TIMERS_AT_ONCE)
        except UnavailableError as error:
            logger.warning("timers of shard %d: %s", shard.shard, error)
            await asyncio.sleep(RETRY_FIRST)
            moved, following = 0, asked
        if moved >= 0 and following and (not shard.next_due_ms or following < shard.next_due_ms):
            shard.next_due_ms = following
        if not moved and following and following <= self._wall() + self._offset_ms:
            await asyncio.sleep(0.001)  # the store's clock is a little behind

    async def _collect(self) -> None:
        while True:
            await asyncio.sleep(COLLECT_EVERY)
            idle_since = self._now() - self._limits.activation_idle.total_seconds()
            count = sum(len(shard.activations) for shard in self._shards.values())
            for shard in self._shards.values():
                shard.collect(self._now() if count > self._limits.activations_max else idle_since)

    # Ownership

    async def _renew(self) -> None:
        while True:
            try:
                await self._leases.renew(self._store)
            except UnavailableError as error:
                logger.warning("leases cannot be renewed: %s", error)
            await asyncio.sleep(RENEW_EVERY.total_seconds())

    async def _own(self) -> None:
        delay = RETRY_FIRST
        while True:
            self._look_again.clear()
            try:
                await self._own_once()
                delay = RETRY_FIRST
            except UnavailableError as error:
                logger.warning("host %s: %s; looking again in %g s", self._identity.id, error, delay)
                await asyncio.sleep(delay)
                delay = min(2 * delay, RETRY_MAX)
                continue
            try:
                async with asyncio.timeout(RENEW_EVERY.total_seconds()):
                    await self._look_again.wait()
            except TimeoutError:
                continue

    async def _own_once(self) -> None:
        for shard in self._leases.lost():
            owned = self._shards.get(shard)
            if owned is not None:
                self._lose(owned, "its lease has lapsed")
            self._leases.remove(shard)
        self._check_numbers()
        await self._leases.renew(self._store)
        look = await self._store.look(self._count)
        hosts = await self._live_hosts(look.hosts)
        if self._is_leaving:
            return
        mine = {shard for shard, host in placed(hosts, self._count).items() if host == self._identity.id}
        await self._give_up([owned for shard, owned in self._shards.items() if shard not in mine])
        for shard in sorted(mine - set(self._shards)):
            await self._challenge(shard, look.leases[shard])
        if mine and mine <= set(self._shards):
            self.recovered.set()

    def _acknowledged(self) -> dict[Shard, int]:
        return {owned.shard: owned.acknowledged for owned in list(self._shards.values())}

    def _about(self) -> bytes:
        shards = list(self._shards.values())  # of another thread, perhaps
        return orjson.dumps(
            {
                "id": self._identity.id,
                "node": self._identity.node,
                "pid": self._identity.pid,
                "shards": sorted(owned.shard for owned in shards),
                "lag": sum(len(owned.queue.staged) for owned in shards),
            }
        )

    def _check_numbers(self) -> None:
        """Step down from a shard whose store has fallen behind: a fail-over lost its last writes."""
        for shard, lost in self._leases.behind().items():
            owned = self._shards.get(shard)
            if owned is not None:
                logger.error("shard %d: the store has lost its last %d commits; recovering from what it has", shard, lost)
                self._lose(owned, "the store is behind")

    async def _live_hosts(self, found: dict[str, bytes]) -> list[str]:
        now, hosts = self._now(), list[str]()
        for incarnation, about in found.items():
            seen, since = self._seen_hosts.get(incarnation, (b"", now))
            if seen != about:
                since = now
            self._seen_hosts[incarnation] = (about, since)
            if incarnation == self.incarnation or now - since <= LEASE_TTL.total_seconds():
                hosts.append(orjson.loads(about.partition(b" ")[2])["id"])
            elif now - since > BURY_AFTER:
                await self._store.bury(incarnation)
        for incarnation in set(self._seen_hosts) - set(found):
            del self._seen_hosts[incarnation]
        return hosts

    async def _challenge(self, shard: Shard, lease: str) -> None:
        now = self._now()
        seen, since = self._seen_leases.get(shard, ("", now))
        if lease and lease != seen:
            self._seen_leases[shard] = (lease, now)
            return
        if lease and now - since < LEASE_TTL.total_seconds():
            return
        try:
            answer = await self._store.acquire(shard, self.incarnation, lease)
        except DamagedError as error:
            logger.error("%s", error)
            return
        if isinstance(answer, Granted):
            self._leases.add(shard, answer.epoch, now)
            await self._recover(shard, answer)

    async def _recover(self, shard: Shard, granted: Granted) -> None:
        assert self._services is not None
        owned = OwnedShard(
            self._services, shard, granted.epoch, granted.number, lambda: self._leases.hold(shard) and not owned.is_lost
        )
        for id_, invocation, data in await self._pages(lambda after: self._store.journal(shard, after, PAGE)):
            owned.recovered.setdefault(invocation, []).append((id_, Record.parse(data)))
        events: dict[str, list[Event]] = {}
        for event in await self._pages(lambda after: self._store.events(shard, after, PAGE)):
            owned.cursor.events = event.id
            events.setdefault(event.invocation, []).append(event)
        self._shards[shard] = owned
        for id_, data in await self._pages(lambda after: self._store.inbox(shard, after, PAGE)):
            owned.cursor.inbox = id_
            owned.accept_recovered(id_, data, events)
        for waiting in events.values():
            for event in waiting:
                owned.receive(event)
        for invocation in list(owned.recovered):
            owned.wake(invocation)
        owned.is_recovered = True  # from here on the reader reads it: no message is seen twice
        owned.next_due_ms = 1
        self._timers.set()
        await self._store.interrupt()
        logger.info("shard %d: owned by %s with epoch %d", shard, self._identity.id, granted.epoch)

    async def _pages(self, read: Callable[[str], Coroutine[Any, Any, list[Any]]]) -> list[Any]:
        entries: list[Any] = []
        after = ""
        while True:
            page = await self._surely(lambda after=after: read(after))
            entries += page
            if len(page) < PAGE:
                return entries
            last = page[-1]
            after = last.id if isinstance(last, Event) else last[0]

    def _lose(self, owned: OwnedShard, why: str) -> None:
        if owned.is_lost:
            return
        logger.warning("shard %d: host %s steps down: %s", owned.shard, self._identity.id, why)
        owned.lose()
        if self._shards.get(owned.shard) is owned:
            del self._shards[owned.shard]
        self._leases.remove(owned.shard)
        self._look_again.set()

    async def _give_up(self, extra: list[OwnedShard]) -> None:
        for owned in extra:
            owned.drain()
        await self._release([owned for owned in extra if owned.is_drained], leaving=False)
        if any(not owned.is_drained for owned in extra):
            self._look_again.set()
            await asyncio.sleep(0.01)

    async def _release(self, shards: list[OwnedShard], *, leaving: bool) -> None:
        if not shards and not leaving:
            return
        epochs = {owned.shard: owned.epoch for owned in shards}
        for owned in shards:
            owned.lose()
            del self._shards[owned.shard]
            self._leases.remove(owned.shard)
        await self._store.release(self.incarnation, epochs, leaving=leaving)


def _log_stuck(stack: str) -> None:
    logger.error("a handler blocks the host's event loop: long computing and blocking I/O belong in ctx.run()\n%s", stack)
