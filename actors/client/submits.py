"""Submits: the numbered writes of a program, in the order of its calls.

Owns the writer in the store, the number of its last write, and the operations that are not written yet. A write whose
answer was lost is sent again, unchanged. A store that refuses the number has lost the writer, or was read by another:
then the program opens another writer, and attaches to all invocations that it waits for.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from contextlib import suppress

from actors.backoff import Patience
from actors.errors import DamagedError, FullError, NotFoundError, SettingsError, UnavailableError
from journal.ids import shard_in
from journal.records import teller_of_driver
from journal.store import Attach, Outgoing, PartlyApplied, Settled, Store

from . import slots
from .batches import freeing_batch, next_batch, submit_until_answered
from .heartbeat import Written
from .run_starts import Starts, refusals
from .slots import EarlyEvents, Operation, SlotTable, Started, slot_of
from .uploads import Uploads

logger = logging.getLogger("actors")


class Submits:
    """The writes of one program; they run on the client's loop."""

    def __init__(
        self,
        store: Store,
        table: SlotTable,
        loop: asyncio.AbstractEventLoop,
        patience: Patience,
        open_anew: Callable[[], Coroutine[None, None, None]],
    ) -> None:
        self._store, self._table, self._loop, self._patience = store, table, loop, patience
        self._open_anew = open_anew
        self.queue: deque[Operation] = deque()
        self._is_woken = False
        self.uploads = Uploads(Patience("code"))
        self.writer, self.number, self.seen = "", 0, "0-0"
        """The writer, the number of its last write, and the id of the last reply that was read."""
        self.teller = ""
        """The name by which the store tells this program outcomes."""
        self.is_astray = False
        """The store has lost the writer."""
        self._wanted, self._idle = asyncio.Event(), asyncio.Event()
        self.held = EarlyEvents(self.queue, self._wanted.set)
        self.starts = Starts(table.slots, table.lock, self.put, loop.time)

    def written(self) -> Written:
        """Return how far this program has written and read."""
        return Written(self.writer, self.number, self.seen)

    async def open(self) -> None:
        """Open a new writer in the store; its numbers begin anew."""
        self.writer, self.number, self.seen = await self._store.open_writer(), 0, "0-0"
        self.teller = teller_of_driver(self.writer)

    def put(self, operation: Operation) -> None:
        """Add an operation to the next write; callers hold the lock."""
        self.queue.append(operation)
        if not self._is_woken:
            self._loop.call_soon_threadsafe(self._wanted.set)
            self._is_woken = True  # in this order: Ctrl-C between the two costs a second call, not all later ones

    def attach(self, id_: str) -> None:
        """Ask the store for the outcome of an invocation; on the client's loop."""
        self.queue.append(Attach(shard_in(id_), id_))
        self._wanted.set()

    def reopen(self, writer: str, why: str) -> None:
        """Let the sending task open another writer, if this is still the one."""
        if writer == self.writer and not self.is_astray:
            logger.error("%s", why)
            self.is_astray = True
            self._wanted.set()

    async def drained(self, patience_s: float, is_over: Callable[[], bool]) -> None:
        """Wait until everything is written, or `is_over`, or the time is."""
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while (self.queue or self.held or not self._idle.is_set()) and not is_over():
                    self._wanted.set()
                    await asyncio.sleep(0.005)

    async def run(self) -> None:
        """Write, for ever."""
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            self._idle.clear()
            if self.is_astray:
                await self._start_over([])
            while self.queue:
                with self._table.lock:
                    taken = next_batch(self.queue)
                    self._is_woken = bool(self.queue)
                if self.uploads.waiting:
                    await self.uploads.store(self._store)
                await self._submit(self.held.without(taken) if self.held else taken)
            with self._table.lock:
                self._is_woken = bool(self.queue)
            self._idle.set()

    async def _put_off(self, operations: list[Operation], error: FullError) -> None:
        """The store is full: send the operations that it takes, and wait with the rest until it has room."""
        with self._table.lock:
            self.queue.extendleft(reversed(operations))
            freeing = freeing_batch(self.queue)
        if freeing:
            await self._submit(freeing)
        await self._patience.wait(error)

    async def _submit(self, operations: list[Operation]) -> None:
        number = self.number + 1
        try:
            settled = await submit_until_answered(
                lambda: self._store.submit(self.writer, number, operations, self.seen), self._patience
            )
        except DamagedError as error:
            await self._refused(operations, error)
            return
        if isinstance(settled, FullError):
            await self._put_off(operations, settled)
            return
        self.number = number
        if settled is Settled.REFUSED:
            await self._start_over(operations)
            return
        missed = settled if isinstance(settled, PartlyApplied) else PartlyApplied()
        for operation, error in refusals(operations, missed):
            if not (isinstance(error, NotFoundError) and self.held.hold(operation, self._loop)):
                self._table.refuse(operation, error)
        self.starts.accepted(operations, missed)
        if missed.later:
            self.queue.extendleft(operations[at] for at in reversed(missed.later))

    async def _refused(self, operations: list[Operation], error: DamagedError) -> None:
        """Fail the operation that the store refuses: it has changed nothing, and the next write takes this number."""
        if not operations:  # then it is the writer that the store refuses
            self.is_astray = True
        elif len(operations) > 1:
            half = len(operations) // 2
            await self._submit(operations[:half])
            await self._submit(operations[half:])
        else:
            await self._submit([])
            if self.is_astray:
                self.queue.extendleft(operations)
                await self._start_over([])
            else:
                logger.error("submit: %s", error)
                self._table.refuse(operations[0], error)

    async def _start_over(self, refused: list[Operation]) -> None:
        """The store refused our number: open another writer and attach to all invocations that are waited for."""
        # With a wait, which grows: a store that refuses every writer is not asked in a circle.
        await self._patience.wait(UnavailableError("the store refuses this client's number: attaching anew"))
        await self._patience.until_answered(self._open_anew, DamagedError, SettingsError)
        self.is_astray = False
        self.uploads.again()
        with self._table.lock:
            waiting = [id_ for id_, slot in self._table.slots.items() if slot.gets_outcome and not slot.has_ended]
            for id_ in waiting:
                self._table.slots[id_].unknown_until = slots.unknown_until(self._loop, is_foreign=False)
            unsent: set[str] = set()
            for operation in self.queue:
                if isinstance(operation, Outgoing) and operation.caller:
                    unsent.add(operation.invocation)
                    operation.caller = self.teller
            self.queue.extendleft(Attach(shard_in(id_), id_) for id_ in waiting if id_ not in unsent)
        for operation in refused:
            if isinstance(operation, Started) and self.starts.start_over(operation):
                continue
            slot = self._table.slots.get(slot_of(operation))
            if slot is not None and not slot.is_attached:
                self._table.refuse(
                    operation, UnavailableError(f"{slot_of(operation)}: whether it was accepted is unknown")
                )
        self._wanted.set()
