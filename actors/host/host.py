"""Host: owns shards under leases, reads them, and serves them, on one event loop.

Owns the tasks of a host process: `reader`, `writer`, `fetcher`, `timekeeper`, `ownership`, renewal (`leases`). Does not
own the life inside a shard (`shard`), nor durable data (the store).

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
from typing import Any

import orjson

from actors.activation.black_box import BlackBox
from actors.activation.failures import Failures
from actors.activation.idle import Idle
from actors.activation.services import Services
from actors.activation.suspects import Suspects
from actors.backoff import Patience, end
from actors.blocks.calls import Surroundings
from actors.blocks.step_threads import Threads
from actors.blocks.steps import StepRunner
from actors.code.code import CodeBook
from actors.errors import DamagedError, SettingsError, UnavailableError, UsageError
from actors.limits import DEFAULT, Limits, opened
from actors.loop.blocking import refuse_blocking, refuse_ray
from actors.policy import Policy, resolve, seconds
from journal.clock import StoreClock, boot_seconds
from journal.ids import new_id
from journal.store import NamespaceLimits, Store

from .fetcher import BatchFetcher
from .leases import RENEW_EVERY, Leases, RenewalThread
from .ownership import Ownership
from .pace import Pace
from .reader import StreamReader
from .timekeeper import Timekeeper
from .writer import Writer

logger = logging.getLogger("actors")


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
        self._name = f"host {identity.id}"
        self._patience = Patience(self._name)
        self._pace = Pace()
        self._tasks: set[asyncio.Task[Any]] = set()
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
        ownership, shards, pace, limits = self._ownership, self._shards, self._pace, self._limits
        told = self._store, self._patience
        fetcher = BatchFetcher(
            *told, self.incarnation, self._code, ownership, pace, limits.queue_in_memory, self._spawn
        )
        reader = StreamReader(*told, self._name, shards, fetcher, pace, ownership.look_again)
        about = self._name, self.incarnation, shards, fetcher
        time = Timekeeper(*told, *about, self._clock, self._timers, limits, self._executor, self._now)
        services = await self._open(fetcher)
        asked = self._store.now_ms
        await self._clock.open(lambda: self._patience.until_answered(asked, DamagedError))
        owning = ownership.run(services, services.surroundings.limits.shards)
        working = reader.run(), self._writer.run(), fetcher.run(), owning
        keeping = time.move_timers(), time.collect(), time.trim()
        tasks = [self._spawn(loop) for loop in (*working, *keeping)]
        if self._own_thread:
            self._renewal = RenewalThread(
                self._leases, self._connect, self._now, self._stuck, seconds(self._limits.block_limit)
            )
            self._pace.turned = self._renewal.turned
            self._renewal.start()
        else:
            tasks.append(self._spawn(self._renew()))
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()

    async def _open(self, fetcher: BatchFetcher) -> Services:
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
            fetcher=fetcher,
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
        if error is not None:
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
