"""Reader: reads the inboxes and events of all shards of a host, in one read, and hands them to the shards.

Owns the position in the control stream. Does not own the position in the streams of a shard (`shard`), which moves when
the shard has taken an entry.
"""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from actors.backoff import Patience
from actors.blocks.cancel import ENDING
from actors.errors import DamagedError, UnavailableError
from actors.shard.shard import OwnedShard
from journal.ids import Shard
from journal.records import time_of
from journal.store import Arrivals, Cursor, Store

from .fetcher import BatchFetcher
from .pace import Pace

READ_COUNT: Final = 500
"""Most entries of each stream in one read."""
FEW: Final = 4
"""A read of at most so many entries is committed before the next read is sent."""
READ_AHEAD: Final = 5_000
"""The limit of objects to load, and of commits to write, beyond which nothing is read: a burst waits in the store, not
in memory."""
READ_MS: Final = 1_000
"""The longest time of a blocking read, so that the host is seen to turn."""
LOOK_AGAIN: Final = 0.002
"""Seconds between two checks whether the reader may go on."""


class StreamReader:
    """The reader of a host."""

    def __init__(
        self,
        store: Store,
        patience: Patience,
        name: str,
        shards: Mapping[Shard, OwnedShard],
        fetcher: BatchFetcher,
        pace: Pace,
        look_again: Callable[[], None],
    ) -> None:
        self._store, self._name, self._shards, self._fetcher, self._pace = store, name, shards, fetcher, pace
        self._look_again, self._patience = look_again, patience

    async def run(self) -> None:
        """Read and hand over, for ever."""
        patience, control = Patience(f"{self._name}, streams"), "0-0"
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
                self._look_again()
            found = arrivals.events
            ending = [(shards[shard].cancels, event) for shard, event in found if event.kind in ENDING]
            for cancels, event in ending:
                cancels.announce(event)
            for number, (shard, id_, data) in enumerate(
                self._in_time(arrivals) if arrivals.unread else arrivals.messages
            ):
                await self._pace.turn(number)
                owned = shards[shard]
                owned.cursor.inbox = id_
                if not owned.is_lost:
                    owned.accept(id_, data)
            early = {id(event) for cancels, event in ending if cancels.try_end_early(event)}
            for cancels, _ in ending:
                cancels.announced.clear()
            for number, (shard, event) in enumerate(found):
                await self._pace.turn(number)
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
            self._pace.turned()
            unwritten = sum(shard.staging.backlog for shard in self._shards.values())
            if unwritten < READ_AHEAD and self._fetcher.backlog < READ_AHEAD:
                return
            await asyncio.sleep(LOOK_AGAIN)
