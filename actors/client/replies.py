"""Replies: the answers to a program's calls, read from the stream of its writer.

Each wait is told once. A notice is logged, or kept for the time-out of its call; an answer that the store does not know
an invocation is believed after a moment only, since its start may be on its way.
"""

import asyncio
import logging
from typing import Final

from actors.backoff import Patience
from actors.errors import DamagedError, NotFoundError, UnavailableError
from journal.records import ReplyKind, order_of
from journal.store import UNKNOWN, Reply, Store

from . import slots
from .slots import Slot, SlotTable, Waiting, notice_text, wake
from .submits import Submits

logger = logging.getLogger("actors")

OUTCOMES: Final = (ReplyKind.VALUE.encode(), ReplyKind.ERROR.encode())


class Replies:
    """The replies to one program; they are read on the client's loop."""

    def __init__(self, store: Store, table: SlotTable, submits: Submits, loop: asyncio.AbstractEventLoop) -> None:
        self._store, self._table, self._submits, self._loop = store, table, submits, loop

    async def run(self) -> None:
        """Read, for ever."""
        patience = Patience("replies")
        while True:
            writer = self._submits.writer
            try:
                replies = await self._store.replies(writer, self._submits.seen, 1_000)
                patience.renew()
            except UnavailableError as error:
                await patience.wait(error)
                continue
            except DamagedError as error:  # its stream is none any more
                self._submits.reopen(writer, f"replies: {error}")
                await patience.wait(error)
                continue
            if writer != self._submits.writer:
                continue
            self._take(replies)
            if replies:
                self._submits.seen = replies[-1].id

    def _take(self, replies: list[Reply]) -> None:
        if replies and order_of(replies[0].id) < order_of(self._submits.seen):  # an answer to an earlier question
            replies = [reply for reply in replies if order_of(reply.id) >= order_of(self._submits.seen)]
        told: list[Waiting] = []
        with self._table.lock:
            others = [reply for reply in replies if not self._ended(reply, told)]
        for reply in others:  # first: a failed attempt is logged before its invocation's end
            self._take_other(reply)
        wake(told)

    def _ended(self, reply: Reply, told: list[Waiting]) -> bool:
        if reply.payload[:1] not in OUTCOMES:
            return slots.hand_notice(self._table.slots.get(reply.invocation), reply.payload)
        slot = self._table.slots.pop(reply.invocation, None)
        if slot is not None:
            told += slot.settle(reply.payload, None)
        return True

    def _take_other(self, reply: Reply) -> None:
        id_, slot = reply.invocation, self._table.slots.get(reply.invocation)
        if reply.payload[:1].decode() == ReplyKind.NOTICE:
            logger.warning("%s", notice_text(slot, reply.payload))
        elif slot is not None and slot.is_own:
            why = "the store had forgotten this program, and does not know it: its outcome is unknown"
            self._table.forget(slot, id_, UnavailableError(f"{id_}: {why}"))
        elif slot is not None:
            self._ask_again(slot, id_)

    def _ask_again(self, slot: Slot, id_: str) -> None:
        if self._loop.time() > slot.unknown_until:
            self._table.forget(slot, id_, NotFoundError(f"{id_} {UNKNOWN}, or it was lost on its way"))
            return
        self._loop.call_later(slots.KNOWN_WITHIN, self._submits.attach, id_)
