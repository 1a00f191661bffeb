"""Local: a host on a thread of the driver's process, without Ray."""

import asyncio
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from journal.names import new_id
from journal.store import Store

from .host import Host, Identity
from .policy import Policy
from .shard import Limits

logger = logging.getLogger("actors")

STEP_THREADS: Final = 32
"""Sync steps that run at once in one host; more wait."""


class LocalHost:
    """One host of this process. Handlers use the classes that live here."""

    def __init__(
        self,
        connect: Callable[[], Store],
        *,
        name: str = "",
        node: str = "",
        live: bool = True,
        policy: Policy | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._executor = ThreadPoolExecutor(STEP_THREADS, thread_name_prefix="perdure-step")
        self._loop = asyncio.new_event_loop()
        identity = Identity(id=name or f"local-{new_id()}", node=node, pid=os.getpid())
        self._host: Host | None = None
        self._make = lambda: Host(
            connect, identity, live=live, policy=policy, limits=limits, executor=self._executor
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
            self._loop.close()

    async def _run(self) -> None:
        self._host = self._make()
        self._task = asyncio.ensure_future(self._host.run())
        self._made.set()
        try:
            await self._task
        except asyncio.CancelledError:
            logger.debug("host ended")
        except Exception:
            logger.exception("the host failed")

    @property
    def incarnation(self) -> str:
        """The id of this process's life as a host."""
        assert self._host is not None
        return self._host.incarnation

    def stop(self, patience_s: float = 30.0) -> None:
        """Hand the shards over, then end."""
        if self._thread.is_alive():
            assert self._host is not None
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
