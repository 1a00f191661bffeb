"""Fetcher: reads state, dormant invocations and arguments into memory, many in one read.

Owns the requests that are not answered yet. Does not own what becomes of an answer (`shard`). An item that cannot be
read is asked for again after a rest; only that item waits.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextvars import Context
from functools import partial
from itertools import islice
from typing import Any, TypeVar

from actors.activation.activation import Activation
from actors.activation.pauses import command_in
from actors.backoff import Patience
from actors.code.code import CodeBook
from actors.errors import DamagedError
from actors.shard.shard import OwnedShard
from journal.records import Event, EventKind, order_of, target_of
from journal.store import Dormant, Store, Where

from .ownership import NAMED_MAX, PAGE, REST, Ownership, pages
from .pace import Pace

logger = logging.getLogger("actors")
N = TypeVar("N")
T = TypeVar("T")


class BatchFetcher:
    """The fetcher of a host (`services.Fetcher`)."""

    def __init__(
        self,
        store: Store,
        patience: Patience,
        incarnation: str,
        code: CodeBook,
        ownership: Ownership,
        pace: Pace,
        queue_in_memory: int,
        spawn: Callable[[Coroutine[Any, Any, None], Context], object],
    ) -> None:
        self._store, self._patience, self._incarnation, self._code = store, patience, incarnation, code
        self._ownership, self._pace = ownership, pace
        self._queue_in_memory, self._spawn = queue_in_memory, spawn
        self._fetch = asyncio.Event()
        self._to_load: list[tuple[OwnedShard, Activation]] = []
        self._loading = 0
        self._to_wake: list[tuple[OwnedShard, str, list[Event]]] = []

    @property
    def backlog(self) -> int:
        """How many objects are to be loaded."""
        return len(self._to_load) + self._loading

    def load(self, shard: OwnedShard, activation: Activation, /) -> None:
        """Read an object's state, in one read with other objects that are requested meanwhile."""
        self._to_load.append((shard, activation))
        self._fetch.set()

    def wake(self, shard: OwnedShard, invocation: str, events: list[Event], /) -> None:
        """Read an invocation that has left memory."""
        self._to_wake.append((shard, invocation, events))
        self._fetch.set()

    def refill(self, shard: OwnedShard, activation: Activation, /) -> None:
        """Read the arguments of messages that wait without them."""
        self._spawn(self._refill(shard, activation), Context())

    async def _refill(self, shard: OwnedShard, activation: Activation) -> None:
        ids = [run.inbox_id for run in islice(activation.mailbox or (), self._queue_in_memory)]
        try:
            found = await self._patience.until_answered(lambda: self._store.messages(shard.shard, ids))
        except DamagedError as error:
            shard.failed(error)
            return
        if not shard.is_lost:
            shard.refilled(activation, {id_: data for id_, data in zip(ids, found, strict=False) if data is not None})

    async def run(self) -> None:
        """Read what was asked for, for ever."""
        while True:
            await self._fetch.wait()
            self._fetch.clear()
            loading, self._to_load = self._to_load, []
            waking, self._to_wake = self._to_wake, []
            if loading:
                await self._load_all(loading)
            if waking:
                await self._wake_each(waking)

    async def _load_all(self, loading: list[tuple[OwnedShard, Activation]]) -> None:
        while loading:  # as many as fit into one read
            self._loading = len(loading)
            objects = [(shard.shard, activation.target) for shard, activation in loading]
            states = await self._each(objects, self._store.load)
            for number, ((shard, activation), state) in enumerate(zip(loading, states, strict=False)):
                await self._pace.turn(number)
                if isinstance(state, DamagedError):
                    self._later(shard, partial(self.load, shard, activation), state)
                elif not shard.is_lost:
                    shard.loaded(activation, state)
            loading = loading[len(states) :]
        self._loading = 0

    async def _each(
        self, names: list[N], read: Callable[[list[N]], Coroutine[Any, Any, list[T]]]
    ) -> list[T] | list[T | DamagedError]:
        """Read the items of these names; an item that cannot be read even alone gets its error as the answer."""
        try:
            return await self._patience.until_answered(lambda: read(names))
        except DamagedError as error:
            return [error] if len(names) == 1 else [(await self._each([name], read))[0] for name in names]

    def _later(self, shard: OwnedShard, ask: Callable[[], None], error: DamagedError) -> None:
        """Repeat a request for an item that cannot be read; only this item waits."""
        if not shard.is_lost:
            logger.error("shard %d: %s; asking again in %g s", shard.shard, error, REST)
            asyncio.get_running_loop().call_later(REST, ask)

    async def _wake_each(self, waking: list[tuple[OwnedShard, str, list[Event]]]) -> None:
        try:
            await self._wake_all(waking)
        except DamagedError as error:
            for one in waking if len(waking) > 1 else ():
                await self._wake_each([one])
            if len(waking) == 1:
                waking[0][0].failed(error)

    async def _wake_all(self, waking: list[tuple[OwnedShard, str, list[Event]]]) -> None:
        names = [(shard.shard, id_) for shard, id_, _ in waking]
        dormants = await self._each(names, self._store.dormant)
        if len(dormants) < len(waking):  # as many as fit into one read; the next read takes the others
            self._to_wake[:0] = waking[len(dormants) :]
            self._fetch.set()
            waking = waking[: len(dormants)]
        missing = [(shard, id_) for (shard, id_, _), found in zip(waking, dormants, strict=True) if found is None]
        places = await self._patience.until_answered(lambda: self._store.where([id_ for _, id_ in missing]))
        unread = {id_ for (_, id_), where in zip(missing, places, strict=True) if where is Where.INBOX}
        for shard in {shard for (shard, _), where in zip(missing, places, strict=True) if where is Where.ASLEEP}:
            await self.mend(shard)
        for number, ((shard, id_, events), dormant) in enumerate(zip(waking, dormants, strict=True)):
            await self._pace.turn(number)
            if isinstance(dormant, DamagedError):
                self._later(shard, partial(self.wake, shard, id_, events), dormant)
                continue
            code = ""
            if dormant is not None and dormant.paused and command_in(events) is not None:
                try:
                    code = await self._reread(shard, id_, events, dormant)
                except Exception as error:  # noqa: BLE001  # for example bytes that this version cannot read
                    self._ownership.failed(shard, error)
            if not shard.is_lost:
                shard.woken(id_, events, dormant, is_unread=id_ in unread, code=code)

    async def _reread(self, shard: OwnedShard, id_: str, events: list[Event], dormant: Dormant) -> str:
        """Add the events read before to those of a paused invocation; return the hash of its type's current code."""
        type_ = target_of(dormant.message).partition("/")[0]
        code = await self._patience.until_answered(lambda: self._code.current(type_))
        found = await pages(self._patience, lambda after: self._store.events(shard.shard, after, PAGE))
        known, read = {event.id for event in events}, order_of(shard.cursor.events)
        events += [
            event
            for event in found
            if event.invocation == id_
            and event.kind is not EventKind.NOTICE
            and event.id not in known
            and order_of(event.id) <= read
        ]
        events.sort(key=lambda event: order_of(event.id))
        return code

    async def mend(self, shard: OwnedShard) -> None:
        """End the invocations that should be asleep but are lost, and recover the shard."""
        if not shard.is_lost:
            ask = partial(self._store.mend, shard.shard, shard.epoch, self._incarnation)
            lost = await self._patience.until_answered(ask)
            self._ownership.went_back(shard, ", ".join(lost[:NAMED_MAX]) or "invocations that are known to be lost")
