"""Heartbeat: a driver's questions to the store once a second, whether it has something to send or not.

A driver may have no hosts beside it, which ask the same: whether the store still keeps acknowledged writes, its time,
and whether it still has the writes of this driver and the replies that it has read. A store that went back (a failover
that lost its tail, a file that was cut, keys that somebody deleted) tells nobody: a driver that merely waits would wait
for ever.
"""

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple

from actors.backoff import Patience
from actors.errors import DamagedError, UnavailableError
from journal.clock import StoreClock
from journal.records import order_of
from journal.store import Store

EVERY: Final = 1.0
"""Seconds between two heartbeats; so long may delays be wrong, should the store's clock step."""


class Written(NamedTuple):
    """The last number that the store has acknowledged to a driver, and the last reply that the driver has read."""

    writer: str
    number: int
    seen: str


class Heartbeat:
    """The questions of one driver."""

    def __init__(
        self, store: Store, clock: StoreClock, written: Callable[[], Written], astray: Callable[[str, str], None]
    ) -> None:
        self._store, self._clock, self._written, self._astray = store, clock, written, astray
        self._losses: str | None = None
        self._patience = Patience("driver")

    async def run(self) -> None:
        """Ask for ever."""
        while True:
            await asyncio.sleep(EVERY)
            try:
                await self._clock.ask(self._store.now_ms)
                await self._compare()
                await self._store.check()
                self._patience.renew()
            except (UnavailableError, DamagedError) as error:
                self._patience.say(error)

    async def _compare(self) -> None:
        written = self._written()
        known = await self._store.writer_status(written.writer)
        if known is None:
            why = "it has forgotten this program"
        elif known.number < written.number:
            why = f"it lacks the last {written.number - known.number} writes of this program"
        elif known.last and order_of(known.last) < order_of(written.seen):
            why = "it lacks replies that this program has read"
        elif self._losses not in (None, known.losses):
            why = "its hosts found something to be gone"
        else:
            why = ""
        if known is not None:
            self._losses = known.losses
        if why:
            self._astray(written.writer, f"the store has lost something: {why}; asking anew for all that is waited for")
