"""Deadlines: the time-outs of a driver's calls. They live in the program: after its end no call times out.

Time-outs of a handler's calls are durable timers (`calls`).
"""

import asyncio
import logging
from collections.abc import Callable

from actors.errors import UnavailableError
from actors.requests.invocation import Accepted
from actors.requests.message import call_timeout
from journal.ids import shard_in
from journal.records import EventKind
from journal.store import Bring

from .slots import Slot

logger = logging.getLogger("actors")


class Deadlines:
    """The deadlines of one client: when a call has taken too long, its waits end, and the invocation is cancelled."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        forget: Callable[[Slot, str, Exception], None],
        bring: Callable[[Bring, str], Accepted],
    ) -> None:
        self._loop, self._forget, self._bring = loop, forget, bring

    def set(self, slot: Slot, id_: str, name: str, timeout_s: float) -> None:
        """Watch a call, from any thread."""
        self._loop.call_soon_threadsafe(self._loop.call_later, timeout_s, self._over, slot, id_, name, timeout_s)

    def _over(self, slot: Slot, id_: str, name: str, timeout_s: float) -> None:
        if slot.has_ended:
            return
        self._forget(slot, id_, call_timeout(name, timeout_s, slot.failure))
        try:
            self._bring(Bring(shard_in(id_), id_, EventKind.CANCEL, 0, b""), f"cancel {id_}")
        except UnavailableError as error:
            logger.error("%s took too long, and cannot be cancelled: %s", id_, error)
