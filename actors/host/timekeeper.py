"""Timekeeper: the work of a host that its clock begins: due timers, outcomes beyond their retention, idle objects.

Does not own the time at which anything is due: the store tells it.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from typing import Final

from actors.backoff import Patience
from actors.blocks.step_threads import Threads
from actors.errors import DamagedError, UnavailableError
from actors.limits import Limits
from actors.policy import seconds
from actors.shard.shard import OwnedShard
from journal.clock import StoreClock
from journal.ids import Shard
from journal.store import Store, Trimmed

from .fetcher import BatchFetcher

logger = logging.getLogger("actors")

TIMERS_AT_ONCE: Final = 1_000
"""Most timers moved in one script call."""
TRIM_EVERY: Final = 5.0
"""Seconds between two looks for finished invocations beyond `done_max` and `retention`."""
FORGOTTEN_AT_ONCE: Final = 500
"""Most finished invocations of a shard that one script removes: the store does nothing else meanwhile."""
COLLECT_EVERY: Final = 5.0
"""Seconds between two looks for idle objects."""


class Timekeeper:
    """The timekeeper of a host."""

    def __init__(
        self,
        store: Store,
        patience: Patience,
        name: str,
        incarnation: str,
        shards: Mapping[Shard, OwnedShard],
        fetcher: BatchFetcher,
        clock: StoreClock,
        changed: asyncio.Event,
        limits: Limits,
        executor: Executor | None,
        now: Callable[[], float],
    ) -> None:
        self._store, self._name, self._incarnation, self._shards = store, name, incarnation, shards
        self._fetcher, self._clock, self._changed = fetcher, clock, changed
        self._limits, self._executor, self._now, self._patience = limits, executor, now, patience

    async def move_timers(self) -> None:
        """Move due timers to their shards, for ever."""
        while True:
            self._changed.clear()
            now_ms = self._clock.now_ms()
            due = [shard for shard in self._shards.values() if shard.next_due_ms and shard.next_due_ms <= now_ms]
            for shard in due:
                await self._move_due(shard)
            if due:
                continue
            following = min((s.next_due_ms for s in self._shards.values() if s.next_due_ms), default=0)
            try:
                async with asyncio.timeout(max(following - now_ms, 1) / 1000 if following else None):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def _move_due(self, shard: OwnedShard) -> None:
        asked, shard.next_due_ms = shard.next_due_ms, 0
        try:
            moved, following = await self._store.move_due(shard.shard, shard.epoch, self._incarnation, TIMERS_AT_ONCE)
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

    async def trim(self) -> None:
        """Remove outcomes beyond their retention, for ever, also while none ends: a full store would stay full."""
        while True:
            await asyncio.sleep(TRIM_EVERY)
            forgotten, early, trimmed = 0, False, Trimmed(1, is_full=False)
            while trimmed.count:
                owned = {shard.shard: shard.epoch for shard in self._shards.values()}
                trimmed = await self._patience.until_answered(
                    lambda owned=owned: self._store.trim(self._incarnation, owned, FORGOTTEN_AT_ONCE), DamagedError
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
                await self._fetcher.mend(shard)
        except (UnavailableError, DamagedError):
            return  # other tasks of the shard report it

    async def collect(self) -> None:
        """Let idle objects leave memory, for ever."""
        while True:
            await asyncio.sleep(COLLECT_EVERY)
            count = sum(len(shard.activations) for shard in self._shards.values())
            idle = 0.0 if count > self._limits.activations_max else seconds(self._limits.activation_idle)
            for shard in self._shards.values():
                shard.collect(self._now() - idle)
            if isinstance(self._executor, Threads):
                for shortage in self._executor.look():
                    logger.warning("%s: %s", self._name, shortage)
