"""Writer: one grouped commit at a time, of all shards of a host, in the order staged.

Owns the repetition of a commit whose answer was lost: it is sent again, unchanged, until the store answers (numbers
make that harmless). While one is under way the next is gathered: group commit without a timer.
"""

import asyncio
from collections.abc import Callable, Iterable

from journal.store import Committed, Damaged, Fenced, Store

from .patience import Patience
from .shard import OwnedShard
from .staging import Unwritten


class Writer:
    """Commits for a host until it is cancelled."""

    def __init__(
        self,
        store: Store,
        host: str,
        incarnation: str,
        shards: Callable[[], Iterable[OwnedShard]],
        lost: Callable[[OwnedShard, str], None],
    ) -> None:
        self._store, self._incarnation, self._shards, self._lost = store, incarnation, shards, lost
        self._patience = Patience(f"host {host}")
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
            if not shard.leased():
                self._lost(shard, "its lease has lapsed")
                continue
            unwritten = shard.take(self._incarnation)
            if unwritten is not None:
                taken.append((shard, unwritten))
            if not shard.staging.is_empty:
                self._wanted.set()
        if not taken:
            return
        parts = [unwritten.part for _, unwritten in taken]
        answers = await self._patience.until_answered(lambda: self._store.commit(parts))
        for (shard, unwritten), answer in zip(taken, answers, strict=True):
            if shard.is_lost:
                continue
            match answer:
                case Committed():
                    shard.settled(unwritten, answer)
                case Fenced(head):
                    self._lost(shard, f"its commit was refused: another host owns it (head: {head})")
                case Damaged(reason):
                    self._lost(shard, f"the store failed half way through a commit: {reason}")
