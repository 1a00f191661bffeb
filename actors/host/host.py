"""Host: owns shards under leases, reads them, and serves them, on one event loop.

Owns the tasks of a host process: reader, writer, fetcher, timekeeper, ownership, renewal. Does not own the life inside
a shard (`shard`), nor durable data (the store).

Invariants:
    1. A shard is served from the end of its recovery until its lease lapses, a commit of it is refused, or it is
       released; then all its memory is dropped at once.
    2. A kill of the process between any two lines here loses nothing: the next owner of a shard finds all of it.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from contextvars import Context
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any, Final, TypeVar

import orjson

from actors.activation.activation import Activation
from actors.activation.black_box import BlackBox
from actors.activation.failures import Failures
from actors.activation.idle import Idle
from actors.activation.pauses import command_in
from actors.activation.services import Services
from actors.activation.suspects import Suspects
from actors.backoff import Patience, end
from actors.blocks.calls import Surroundings
from actors.blocks.cancel import ENDING
from actors.blocks.step_threads import Threads
from actors.blocks.steps import StepRunner
from actors.code.code import CodeBook
from actors.errors import DamagedError, SettingsError, UnavailableError, UsageError
from actors.limits import DEFAULT, Limits, opened
from actors.loop.blocking import refuse_blocking, refuse_ray
from actors.policy import Policy, resolve, seconds
from actors.shard.shard import OwnedShard
from journal.clock import StoreClock, boot_seconds
from journal.ids import Shard, new_id
from journal.records import Event, EventKind, order_of, target_of, time_of
from journal.store import Arrivals, Cursor, Dormant, NamespaceLimits, Store, Trimmed, Where

from .leases import RENEW_EVERY, Leases, RenewalThread
from .ownership import NAMED_MAX, PAGE, REST, Ownership, pages
from .writer import Writer

logger = logging.getLogger("actors")
N = TypeVar("N")
T = TypeVar("T")

READ_COUNT: Final = 500
"""Most entries of each stream in one read."""
YIELD_AFTER: Final = 32
"""How many entries of a read are executed before the loop turns, so that the writer, timers and other tasks can run.

Of 64 messages in one read the first half is written while the second is executed: 6 to 14 % more messages a second than
with all in one commit; with 16 or 100 the gain is smaller.
"""
FEW: Final = 4
"""A read of at most so many entries is committed before the next read is sent."""
READ_AHEAD: Final = 5_000
"""The limit of objects to load, and of commits to write, beyond which nothing is read: a burst waits in the store, not
in memory."""
READ_MS: Final = 1_000
"""The longest time of a blocking read, so that the host is seen to turn."""
LOOK_AGAIN: Final = 0.002
"""Seconds between two checks whether the reader may go on."""
TIMERS_AT_ONCE: Final = 1_000
"""Most timers moved in one script call."""
TRIM_EVERY: Final = 5.0
"""Seconds between two looks for finished invocations beyond `done_max` and `retention`."""
FORGOTTEN_AT_ONCE: Final = 500
"""Most finished invocations of a shard that one script removes: the store does nothing else meanwhile."""
COLLECT_EVERY: Final = 5.0
"""Seconds between two looks for idle objects."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The names of a host: its id outlives its process, so that a restarted host gets the same shards."""

    id: str
    node: str = ""
    pid: int = 0
    process: str = ""
    """The name of the process, by which its end can be proved (`processes`)."""


class Host:
    """A host; `run` it on the loop that runs the handlers."""

    def __init__(
        self,
        connect: Callable[[], Store],
        identity: Identity,
        *,
        live: bool = False,
        policy: Policy | None = None,
        limits: Limits = DEFAULT,
        executor: Executor | None = None,
        now: Callable[[], float] = boot_seconds,
        own_thread: bool = True,
        stuck: Callable[[str], None] | None = None,
        box: BlackBox | None = None,
        suspects: Suspects | None = None,
    ) -> None:
        self._suspects = suspects or Suspects()
        self._connect, self._identity, self._policy, self._executor = connect, identity, policy, executor
        self._limits, self._now = limits, now
        self._own_thread, self._stuck = own_thread, stuck or _log_stuck
        self._store = connect()
        self.incarnation = new_id()
        self._leases = Leases(self.incarnation, now, self._about, lambda: self._ownership.acknowledged())
        self._timers = asyncio.Event()
        self._clock = StoreClock(now)
        self._ownership = Ownership(
            self._store, identity.id, self._leases, self._clock, now, self._timers.set, self._suspects
        )
        self._shards, self._box = self._ownership.shards, box
        if box is not None:
            box.is_left_alone, self._ownership.taken_over = lambda: self._ownership.is_left_alone, box.look
        ways_out = self._ownership.lose, self._ownership.went_back
        self._writer = Writer(self._store, identity.id, self.incarnation, self._shards.values, *ways_out)
        self._code = CodeBook(self._store, live=live, new_classes=refuse_ray)
        self._patience = Patience(f"host {identity.id}")
        self._fetch = asyncio.Event()
        self._to_load: list[tuple[OwnedShard, Activation]] = []
        self._loading = 0
        self._to_wake: list[tuple[OwnedShard, str, list[Event]]] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._loops: list[asyncio.Task[Any]] = []
        self._renewal: RenewalThread | None = None

    # Life

    async def run(self) -> None:
        """Serve until cancelled; wait for a store that does not answer."""
        refuse_blocking()
        refuse_ray()
        try:
            await self._serve()
        except Exception:
            self._ownership.resign()
            raise
        finally:  # also if it was cancelled during `_open`
            await self.aclose()

    async def _serve(self) -> None:
        services = await self._open()
        asked = self._store.now_ms
        await self._clock.open(lambda: self._patience.until_answered(asked, DamagedError))
        loops = (self._read(), self._writer.run(), self._keep_time(), self._fetch_all(), self._collect(), self._trim())
        tasks = [
            self._spawn(loop) for loop in (*loops, self._ownership.run(services, services.surroundings.limits.shards))
        ]
        if self._own_thread:
            self._renewal = RenewalThread(
                self._leases, self._connect, self._now, self._stuck, seconds(self._limits.block_limit)
            )
            self._renewal.start()
        else:
            tasks.append(self._spawn(self._renew()))
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()

    async def _open(self) -> Services:
        # A store that could lose data, or whose namespace is damaged, may be mended: wait for it as for a silent store.
        kept: NamespaceLimits = await self._patience.until_answered(
            lambda: opened(self._store, self._limits), SettingsError, UsageError, DamagedError
        )
        surroundings = Surroundings(limits=kept, code_of=self._code.code_of, now_ms=self._clock.now_ms)
        return Services(
            limits=self._limits,
            policy=self._policy,
            surroundings=surroundings,
            code=self._code,
            steps=StepRunner(self._executor, resolve(self._policy).retry, kept.payload_max, self._clock.now_ms),
            fetcher=self,
            idle=Idle(asyncio.get_running_loop(), self._limits.waiting_max),
            loop=asyncio.get_running_loop(),
            now=self._now,
            spawn=self._spawn,
            wake_writer=self._writer.wake,
            wake_timers=self._timers.set,
            failed=self._ownership.failed,
            failures=Failures(self._now),
            box=self._box,
            suspects=self._suspects,
        )

    def _spawn(self, coroutine: Coroutine[Any, Any, None], context: Context | None = None) -> "asyncio.Task[None]":
        task = asyncio.get_running_loop().create_task(coroutine, context=context)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and task not in self._loops:  # a failed loop ends the host
            self._ownership.broken(error)

    async def leave(self, patience_s: float = 30.0) -> None:
        """Hand all shards over: for at most `patience_s` let steps end and be recorded, then release the leases."""
        await self._ownership.leave(patience_s)

    async def aclose(self) -> None:
        """Stop at once like a crash, but close the connections."""
        if self._renewal is not None:
            await self._renewal.stop()
        self._ownership.drop()
        await end(self._tasks)
        await self._ownership.sign_off()
        await self._store.aclose()

    def _about(self) -> bytes:
        shards, lag = self._ownership.about()
        identity = self._identity
        who = {"id": identity.id, "node": identity.node, "pid": identity.pid, "process": identity.process}
        abandoned = self._executor.abandoned if isinstance(self._executor, Threads) else []
        faults = [tuple(fault) for fault in self._suspects.faults]
        said: dict[str, Any] = {**who, "shards": shards, "lag": lag, "abandoned": abandoned, "faults": faults}
        if self._box is not None and (held := self._box.held()):
            said["held_back"] = held
        return orjson.dumps(said)

    # Reading

    async def _read(self) -> None:
        patience, control = Patience(f"host {self._identity.id}, streams"), "0-0"
        while True:
            await self._catch_up()
            shards = {shard: owned for shard, owned in self._shards.items() if owned.is_recovered}
            cursors = {shard: owned.cursor for shard, owned in shards.items()}
            try:
                arrivals = await self._store.arrivals(cursors, control, READ_MS, READ_COUNT)
                patience.renew()
            except UnavailableError as error:
                await patience.wait(error)
                continue
            except DamagedError as error:
                if not await self._find_damaged(cursors):
                    await patience.wait(error)
                continue
            if arrivals.control:
                control = arrivals.control
                self._ownership.look_again()
            found = arrivals.events
            ending = [(shards[shard].cancels, event) for shard, event in found if event.kind in ENDING]
            for cancels, event in ending:
                cancels.announce(event)
            for number, (shard, id_, data) in enumerate(
                self._in_time(arrivals) if arrivals.unread else arrivals.messages
            ):
                await self._turn(number)
                owned = shards[shard]
                owned.cursor.inbox = id_
                if not owned.is_lost:
                    owned.accept(id_, data)
            early = {id(event) for cancels, event in ending if cancels.try_end_early(event)}
            for cancels, _ in ending:
                cancels.announced.clear()
            for number, (shard, event) in enumerate(found):
                await self._turn(number)
                owned = shards[shard]
                owned.cursor.events = event.id
                if not (owned.is_lost or id(event) in early):
                    owned.receive(event)
            if len(arrivals.messages) + len(found) <= FEW:
                await asyncio.sleep(0)  # their commits are written before the next read

    @staticmethod
    def _in_time(arrivals: Arrivals) -> list[tuple[Shard, str, bytes]]:
        """Return the messages that are older than the unread events, since these may hold a cancel of a message."""
        read = {shard: event.time_ms for shard, event in arrivals.events}
        return [
            (shard, id_, data)
            for shard, id_, data in arrivals.messages
            if shard not in arrivals.unread or time_of(id_) < read[shard]
        ]

    async def _find_damaged(self, cursors: dict[Shard, Cursor]) -> bool:
        """Step down from the shards whose streams are damaged, so that the others are read; return whether any is."""
        damaged: list[tuple[OwnedShard, DamagedError]] = []
        for shard, cursor in cursors.items():
            inbox = partial(self._store.inbox, shard, cursor.inbox, 1)
            events = partial(self._store.events, shard, cursor.events, 1)
            try:
                await self._patience.until_answered(inbox)
                await self._patience.until_answered(events)
            except DamagedError as error:
                if shard in self._shards:
                    damaged.append((self._shards[shard], error))
        for owned, error in damaged:
            owned.failed(error)
        return bool(damaged)

    async def _catch_up(self) -> None:
        """Note that the reader turns, and wait while too many entries that it has read wait for the store."""
        while True:
            if self._renewal is not None:
                self._renewal.turned()
            unwritten = sum(shard.staging.backlog for shard in self._shards.values())
            if unwritten < READ_AHEAD and len(self._to_load) + self._loading < READ_AHEAD:
                return
            await asyncio.sleep(LOOK_AGAIN)

    async def _turn(self, number: int) -> None:
        """Let the loop turn after every `YIELD_AFTER`: ended invocations are written while the next are executed."""
        if number % YIELD_AFTER == YIELD_AFTER - 1:
            if self._renewal is not None:
                self._renewal.turned()
            await asyncio.sleep(0)

    # Reading into memory (`services.Fetcher`)

    def load(self, shard: OwnedShard, activation: Activation, /) -> None:
        """Read an object's state, in one read with other objects that are requested meanwhile."""
        self._to_load.append((shard, activation))
        self._fetch.set()

    def wake(self, shard: OwnedShard, invocation: str, events: list[Event], /) -> None:
        """Read an invocation that has left memory."""
        self._to_wake.append((shard, invocation, events))
        self._fetch.set()

    def refill(self, shard: OwnedShard, activation: Activation, /) -> None:
        """Read the arguments of messages that wait without them."""
        self._spawn(self._refill(shard, activation))

    async def _refill(self, shard: OwnedShard, activation: Activation) -> None:
        ids = [run.inbox_id for run in islice(activation.mailbox or (), self._limits.queue_in_memory)]
        try:
            found = await self._patience.until_answered(lambda: self._store.messages(shard.shard, ids))
        except DamagedError as error:
            shard.failed(error)
            return
        if not shard.is_lost:
            shard.refilled(activation, {id_: data for id_, data in zip(ids, found, strict=False) if data is not None})

    async def _fetch_all(self) -> None:
        while True:
            await self._fetch.wait()
            self._fetch.clear()
            loading, self._to_load = self._to_load, []
            waking, self._to_wake = self._to_wake, []
            if loading:
                await self._load_all(loading)
            if waking:
                await self._wake_each(waking)

    async def _load_all(self, loading: list[tuple[OwnedShard, Activation]]) -> None:
        while loading:  # as many as fit into one read
            self._loading = len(loading)
            objects = [(shard.shard, activation.target) for shard, activation in loading]
            states = await self._each(objects, self._store.load)
            for number, ((shard, activation), state) in enumerate(zip(loading, states, strict=False)):
                await self._turn(number)
                if isinstance(state, DamagedError):
                    self._later(shard, partial(self.load, shard, activation), state)
                elif not shard.is_lost:
                    shard.loaded(activation, state)
            loading = loading[len(states) :]
        self._loading = 0

    async def _each(
        self, names: list[N], read: Callable[[list[N]], Coroutine[Any, Any, list[T]]]
    ) -> list[T] | list[T | DamagedError]:
        """Read the items of these names; an item that cannot be read even alone gets its error as the answer."""
        try:
            return await self._patience.until_answered(lambda: read(names))
        except DamagedError as error:
            return [error] if len(names) == 1 else [(await self._each([name], read))[0] for name in names]

    def _later(self, shard: OwnedShard, ask: Callable[[], None], error: DamagedError) -> None:
        """Repeat a request for an item that cannot be read; only this item waits."""
        if not shard.is_lost:
            logger.error("shard %d: %s; asking again in %g s", shard.shard, error, REST)
            asyncio.get_running_loop().call_later(REST, ask)

    async def _wake_each(self, waking: list[tuple[OwnedShard, str, list[Event]]]) -> None:
        try:
            await self._wake_all(waking)
        except DamagedError as error:
            for one in waking if len(waking) > 1 else ():
                await self._wake_each([one])
            if len(waking) == 1:
                waking[0][0].failed(error)

    async def _wake_all(self, waking: list[tuple[OwnedShard, str, list[Event]]]) -> None:
        names = [(shard.shard, id_) for shard, id_, _ in waking]
        dormants = await self._each(names, self._store.dormant)
        if len(dormants) < len(waking):  # as many as fit into one read; the next read takes the others
            self._to_wake[:0] = waking[len(dormants) :]
            self._fetch.set()
            waking = waking[: len(dormants)]
        missing = [(shard, id_) for (shard, id_, _), found in zip(waking, dormants, strict=True) if found is None]
        places = await self._patience.until_answered(lambda: self._store.where([id_ for _, id_ in missing]))
        unread = {id_ for (_, id_), where in zip(missing, places, strict=True) if where is Where.INBOX}
        for shard in {shard for (shard, _), where in zip(missing, places, strict=True) if where is Where.ASLEEP}:
            await self._mend(shard)
        for number, ((shard, id_, events), dormant) in enumerate(zip(waking, dormants, strict=True)):
            await self._turn(number)
            if isinstance(dormant, DamagedError):
                self._later(shard, partial(self.wake, shard, id_, events), dormant)
                continue
            code = ""
            if dormant is not None and dormant.paused and command_in(events) is not None:
                try:
                    code = await self._reread(shard, id_, events, dormant)
                except Exception as error:  # noqa: BLE001  # for example bytes that this version cannot read
                    self._ownership.failed(shard, error)
            if not shard.is_lost:
                shard.woken(id_, events, dormant, is_unread=id_ in unread, code=code)

    async def _reread(self, shard: OwnedShard, id_: str, events: list[Event], dormant: Dormant) -> str:
        """Add the events read before to those of a paused invocation; return the hash of its type's current code."""
        type_ = target_of(dormant.message).partition("/")[0]
        code = await self._patience.until_answered(lambda: self._code.current(type_))
        found = await pages(self._patience, lambda after: self._store.events(shard.shard, after, PAGE))
        known, read = {event.id for event in events}, order_of(shard.cursor.events)
        events += [
            event
            for event in found
            if event.invocation == id_
            and event.kind is not EventKind.NOTICE
            and event.id not in known
            and order_of(event.id) <= read
        ]
        events.sort(key=lambda event: order_of(event.id))
        return code

    async def _mend(self, shard: OwnedShard) -> None:
        """End the invocations that should be asleep but are lost, and recover the shard."""
        if not shard.is_lost:
            ask = partial(self._store.mend, shard.shard, shard.epoch, self.incarnation)
            lost = await self._patience.until_answered(ask)
            self._ownership.went_back(shard, ", ".join(lost[:NAMED_MAX]) or "invocations that are known to be lost")

    # Time

    async def _keep_time(self) -> None:
        while True:
            self._timers.clear()
            now_ms = self._clock.now_ms()
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
        asked, shard.next_due_ms = shard.next_due_ms, 0
        try:
            moved, following = await self._store.move_due(shard.shard, shard.epoch, self.incarnation, TIMERS_AT_ONCE)
            self._patience.renew()
        except UnavailableError as error:
            await self._patience.wait(error)
            moved, following = 0, asked
        except DamagedError as error:
            shard.failed(error)
            return
        if moved >= 0 and following and (not shard.next_due_ms or following < shard.next_due_ms):
            shard.next_due_ms = following
        if not moved and following and following <= self._clock.now_ms():
            await asyncio.sleep(0.001)  # the store's clock is a little behind

    async def _trim(self) -> None:
        """Remove outcomes beyond their retention, also while no invocation ends: a full store would stay full."""
        while True:
            await asyncio.sleep(TRIM_EVERY)
            forgotten, early, trimmed = 0, False, Trimmed(1, is_full=False)
            while trimmed.count:
                owned = {shard.shard: shard.epoch for shard in self._shards.values()}
                trimmed = await self._patience.until_answered(
                    lambda owned=owned: self._store.trim(self.incarnation, owned, FORGOTTEN_AT_ONCE), DamagedError
                )
                forgotten, early = forgotten + trimmed.count, early or trimmed.is_full
            for shard in list(self._shards.values()):
                await self._patrol(shard)
            if early and forgotten:
                logger.warning("%d outcomes were forgotten: the store is nearly full (its maxmemory)", forgotten)

    async def _patrol(self, shard: OwnedShard) -> None:
        """Look for lost invocations that should be asleep (no event may ever wake them), in a part of the shard."""
        try:
            shard.patrolled, has_gone = await self._store.has_gone(shard.shard, shard.patrolled)
            if has_gone:
                await self._mend(shard)
        except (UnavailableError, DamagedError):
            return  # other tasks of the shard report it

    async def _collect(self) -> None:
        while True:
            await asyncio.sleep(COLLECT_EVERY)
            count = sum(len(shard.activations) for shard in self._shards.values())
            idle = 0.0 if count > self._limits.activations_max else seconds(self._limits.activation_idle)
            for shard in self._shards.values():
                shard.collect(self._now() - idle)
            if isinstance(self._executor, Threads):
                for shortage in self._executor.look():
                    logger.warning("host %s: %s", self._identity.id, shortage)

    async def _renew(self) -> None:
        patience = Patience("leases")
        while True:
            try:
                await self._leases.renew(self._store)
                patience.renew()
            except (UnavailableError, DamagedError) as error:
                patience.say(error)
            await asyncio.sleep(RENEW_EVERY.total_seconds())


def _log_stuck(stack: str) -> None:
    logger.error(
        "a handler blocks the host's event loop: long computing and blocking I/O belong in ctx.run()\n%s", stack
    )
