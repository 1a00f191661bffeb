"""Writer: one grouped commit at a time, of all shards of a host, in the order staged.

Owns the repetition of a commit whose answer was lost: it is sent again, unchanged, until the store answers (numbers make
that harmless). While one is under way the next is gathered: group commit without a timer.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable

from journal.store import Answer, Committed, Damaged, Fenced, Store

from .errors import UnavailableError
from .shard import OwnedShard
from .staging import Unwritten

logger = logging.getLogger("actors")

RETRY_FIRST, RETRY_MAX = 0.02, 1.0
"""Seconds between two tries while the store does not answer."""


class Writer:
    """Commits for a host until it is cancelled."""

    def __init__(
        self, store: Store, incarnation: str, shards: Callable[[], Iterable[OwnedShard]], lost: Callable[[OwnedShard, str], None]
    ) -> None:
        self._store, self._incarnation, self._shards, self._lost = store, incarnation, shards, lost
        self._wanted = asyncio.Event()

    def wake(self) -> None:
        """Say that something was staged."""
        self._wanted.set()

    async def run(self) -> None:
        """Write what is staged, for ever."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await self._flush()

    async def _flush(self) -> None:
        taken: list[tuple[OwnedShard, Unwritten]] = []
        for shard in list(self._shards()):
            found = shard.take(self._incarnation)
            if found is not None:
                taken.append((shard, Unwritten(*found)))
            if shard.queue.staged:
                self._wanted.set()
        if not taken:
            return
        answers = await self._commit([unwritten for _, unwritten in taken])
        for (shard, unwritten), answer in zip(taken, answers, strict=True):
            if shard.is_lost:
                continue
            match answer:
                case Committed():
                    shard.settled(unwritten.items, unwritten.part.number, answer)
                case Fenced(head):
                    self._lost(shard, f"its commit was refused: another host owns it (head: {head})")
                case Damaged(reason):
                    self._lost(shard, f"the store failed half way through a commit: {reason}")

    async def _commit(self, unwritten: list[Unwritten]) -> list[Answer]:
        delay = RETRY_FIRST
        while True:
            try:
                return await self._store.commit([each.part for each in unwritten])
            except UnavailableError as error:
                logger.warning("commit: %s; asking again in %g s", error, delay)
            await asyncio.sleep(delay)
            delay = min(2 * delay, RETRY_MAX)
