"""Local: a host on a thread of this process. In a driver it is the whole runtime; a Ray host is one with its own process."""

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import orjson

from journal.names import new_id
from journal.store import SHARDS, Store

from .host import Host, Identity
from .policy import Policy
from .processes import has_ended, this_process
from .services import Limits

logger = logging.getLogger("actors")

STEP_THREADS: Final = 32
"""Sync steps that run at once in one host; more wait."""
BEGIN_AGAIN_AFTER: Final = 1.0
"""Seconds after which a host that failed begins again, as a new incarnation."""


async def bury_ended(store: Store) -> int:
    """Free the leases of hosts whose processes, of this machine, are known to be gone; return how many hosts there were.

    Who starts a program again after it was killed does not wait for the leases of its former life.
    """
    look, buried = await store.look(SHARDS), 0
    for incarnation, about in look.hosts.items():
        if has_ended(orjson.loads(about.partition(b" ")[2]).get("process", "")):
            await store.bury(incarnation)
            buried += 1
    return buried


class LocalHost:
    """One host of this process; with `live`, handlers use the classes that live here."""

    def __init__(
        self,
        connect: Callable[[], Store],
        *,
        name: str = "",
        node: str = "",
        live: bool = True,
        policy: Policy | None = None,
        limits: Limits | None = None,
        stuck: Callable[[str], None] | None = None,
    ) -> None:
        self._executor = ThreadPoolExecutor(STEP_THREADS, thread_name_prefix="perdure-step")
        self._loop = asyncio.new_event_loop()
        identity = Identity(id=name or f"local-{new_id()}", node=node, pid=os.getpid(), process=this_process())
        self._host: Host | None = None
        self._make = lambda: Host(
            connect, identity, live=live, policy=policy, limits=limits, executor=self._executor, stuck=stuck
        )
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
            self._loop.run_until_complete(self._run())
        finally:
            self._made.set()
            self._loop.close()

    async def _run(self) -> None:
        self._task = asyncio.current_task()
        while True:
            self._host = self._make()
            self._made.set()
            try:
                await self._host.run()
            except asyncio.CancelledError:
                return
            except Exception:
                logger.exception("the host failed; it begins again")
            await asyncio.sleep(BEGIN_AGAIN_AFTER)

    @property
    def incarnation(self) -> str:
        """The id of its present life as a host."""
        assert self._host is not None
        return self._host.incarnation

    def stop(self, patience_s: float = 30.0) -> None:
        """Hand the shards over, then end."""
        if self._thread.is_alive() and self._host is not None:
            try:
                asyncio.run_coroutine_threadsafe(self._host.leave(patience_s), self._loop).result(patience_s + 10)
            finally:
                self.kill()

    def kill(self) -> None:
        """End at once; what was under way goes on at the next owner."""
        if self._thread.is_alive() and self._task is not None:
            self._loop.call_soon_threadsafe(self._task.cancel)
            self._thread.join()
        self._executor.shutdown(wait=False, cancel_futures=True)
