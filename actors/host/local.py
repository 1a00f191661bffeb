"""Local: a host on a thread of this process: a driver may start it, and on Ray each host process has it."""

import asyncio
import contextlib
import gc
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

import orjson

from actors.activation.black_box import BlackBox
from actors.activation.suspects import WHOLE_HOST, Suspects
from actors.backoff import Patience
from actors.blocks.step_threads import Threads
from actors.errors import DamagedError
from actors.limits import DEFAULT, Limits
from actors.policy import Policy
from actors.processes import has_ended, this_process, until_ended
from actors.threads import close, new_loop, run_on
from journal.clock import wall_ms
from journal.ids import new_id
from journal.store import Membership, Store

from .host import Host, Identity

logger = logging.getLogger("actors")

SAY_AFTER: Final = 1.0
"""Seconds of waiting after which a program logs the reason."""
END_MAX: Final = 5.0
"""Seconds in which a host's thread has to end."""
CANCEL_AGAIN: Final = 0.5

LOOK_EVERY: Final = 1.0
"""Seconds between two looks at the list of hosts."""

BEGIN_AGAIN_AFTER: Final = 1.0
"""Seconds until a host that failed begins again, as a new incarnation."""


def _processes(look: Membership) -> list[tuple[str, str]]:
    """Return the incarnation and the process of each host."""
    return [(name, orjson.loads(about.partition(b" ")[2]).get("process", "")) for name, about in look.hosts.items()]


async def bury_ended(store: Store) -> int:
    """Free the leases of hosts whose processes, on this machine, have ended; return how many hosts there were.

    So a program that is started again after a kill does not wait for its own former leases.
    """
    buried = 0
    for incarnation, process in _processes(await store.membership()):
        if has_ended(process):
            await store.bury(incarnation)
            buried += 1
    return buried


class Neighbours:
    """Watches the other hosts of this machine, and frees a host's leases at once when its process ends.

    Each host watches the others, so that neither Ray nor a supervisor is needed; Ray takes a second or two to notice.
    """

    def __init__(self, connect: Callable[[], Store]) -> None:
        self._store, self._me = connect(), this_process()
        self._watches: dict[str, asyncio.Task[None]] = {}

    async def watch(self) -> None:
        """Watch until cancelled."""
        patience = Patience("neighbours")
        try:
            while True:
                look = await patience.until_answered(lambda: self._store.membership(), DamagedError)
                for incarnation, process in _processes(look):
                    if incarnation not in self._watches and process != self._me and has_ended(process) is not None:
                        self._watches[incarnation] = asyncio.ensure_future(self._bury_when_ended(incarnation, process))
                for incarnation in self._watches.keys() - look.hosts.keys():
                    self._watches.pop(incarnation).cancel()
                await asyncio.sleep(LOOK_EVERY)
        finally:
            for task in self._watches.values():
                task.cancel()
            await self._store.aclose()

    async def _bury_when_ended(self, incarnation: str, process: str) -> None:
        await until_ended(process)
        freed = await Patience("neighbours").until_answered(lambda: self._store.bury(incarnation), DamagedError)
        if freed:
            logger.warning("a host has died: freed its leases of %d shards", freed)


def collect_seldom() -> None:
    """Let the cycle collector of a host's own process run less often, and never over imported modules.

    Waiting handlers live long, and ended handlers leave no cycles: with 10,000 waiting handlers a full collection stops
    the process for tenths of a second, again and again while their number grows.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 5, 50)


class LocalHost:
    """A host in this process; with `live`, handlers use the classes of this process."""

    def __init__(
        self,
        connect: Callable[[], Store],
        *,
        name: str = "",
        node: str = "",
        live: bool = True,
        policy: Policy | None = None,
        limits: Limits = DEFAULT,
        stuck: Callable[[str], None] | None = None,
        box: BlackBox | None = None,
    ) -> None:
        self._executor = Threads()
        self._connect = connect
        self._loop = new_loop()
        identity = Identity(id=name or f"local-{new_id()}", node=node, pid=os.getpid(), process=this_process())
        self._host: Host | None = None
        suspects = Suspects()
        self._make = lambda: Host(
            connect,
            identity,
            live=live,
            policy=policy,
            limits=limits,
            executor=self._executor,
            stuck=stuck,
            box=box,
            suspects=suspects,
        )
        self._suspects = suspects
        self._task: asyncio.Task[None] | None = None
        self._made = threading.Event()
        self._thread = threading.Thread(target=self._serve, name="perdure-host", daemon=True)

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()
        self._made.wait()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            run_on(self._loop, self._loop.create_task(self._run()))
        finally:
            self._made.set()
            close(self._loop)

    async def _run(self) -> None:
        self._task = asyncio.current_task()
        neighbours = asyncio.ensure_future(Neighbours(self._connect).watch())
        try:
            await self._serve_on()
        finally:
            neighbours.cancel()
            await asyncio.gather(neighbours, return_exceptions=True)

    async def _serve_on(self) -> None:
        while True:
            self._host = self._make()
            self._made.set()
            try:
                await self._host.run()
            except asyncio.CancelledError:
                return
            except BaseException as error:  # noqa: BLE001  # of any error: the other invocations go on
                self._suspects.note(WHOLE_HOST, error, wall_ms())
            await asyncio.sleep(BEGIN_AGAIN_AFTER)

    @property
    def incarnation(self) -> str:
        """The id of its present incarnation as a host."""
        assert self._host is not None
        return self._host.incarnation

    def stop(self, patience_s: float = 30.0) -> None:
        """Hand the shards over, then end."""
        if self._thread.is_alive() and self._host is not None:
            leaving = asyncio.run_coroutine_threadsafe(self._host.leave(patience_s), self._loop)
            try:
                self._wait(leaving, patience_s)
            finally:
                leaving.cancel()
                self.kill()

    def _wait(self, leaving: Future[None], patience_s: float) -> None:
        try:
            leaving.result(SAY_AFTER)
        except TimeoutError:
            logger.warning("steps are under way: waiting for them, at most %g s (Ctrl-C ends the wait)", patience_s)
        else:
            return
        try:
            leaving.result(patience_s + SAY_AFTER)
        except TimeoutError:
            logger.error("the host does not answer: its leases must expire")

    def kill(self) -> None:
        """End at once; open invocations go on at the next owner."""
        for _ in range(int(END_MAX / CANCEL_AGAIN)):
            if self._task is None or not self._thread.is_alive():
                break
            # Repeated: before Python 3.12 a time-out that ends now can take a cancellation for its own.
            with contextlib.suppress(RuntimeError):  # the loop has just been closed
                self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join(CANCEL_AGAIN)
        self._executor.shutdown()
