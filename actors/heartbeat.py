"""Heartbeat: what a driver asks the store once a second, whether it has something to send or not.

A driver may have no hosts beside it, which ask the same: whether the store still keeps what it acknowledges, and what
time it is there.
"""

import asyncio
from typing import Final

from journal.clock import StoreClock
from journal.store import Store

from .errors import DamagedError, UnavailableError
from .patience import Patience

EVERY: Final = 1.0
"""Seconds between two; so long what is delayed may be due at another time, should the store's clock step."""


class Heartbeat:
    """The questions of one driver."""

    def __init__(self, store: Store, clock: StoreClock) -> None:
        self._store, self._clock = store, clock
        self._patience = Patience("driver")

    async def run(self) -> None:
        """Ask for ever."""
        while True:
            await asyncio.sleep(EVERY)
            try:
                await self._clock.ask(self._store.now_ms)
                await self._store.check()
                self._patience.renew()
            except (UnavailableError, DamagedError) as error:
                self._patience.say(error)
