"""Client: a driver's side of an invocation, from `.remote()` to the reply.

Owns the thread and the event loop on which a program writes (`submits`) and reads its answers (`replies`), so that it
serves sync and async programs alike, and the waits of this process.

Invariants:
    1. Invocations are submitted in the order of `.remote()` and `.send()`, one numbered write at a time; a write whose
       answer was lost is sent again, unchanged (promises 1 and 2).
    2. A wait is told once, by the reply stream; after a refusal, or where nothing is known, the client attaches.
    3. Where the outcome cannot be known, `UnavailableError` says so; nothing is made up.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

from actors.backoff import Patience, end
from actors.code.code import UNSENT, LivingSender, Sender
from actors.errors import (
    DamagedError,
    NotFoundError,
    OverloadedError,
    UnavailableError,
    UsageError,
)
from actors.limits import DEFAULT, Limits, opened
from actors.requests.invocation import Accepted, Foreign, Invocation
from actors.requests.message import arguments_of, bounded, fingerprint_of, message_of, outgoing_of, started_id
from actors.requests.request import Request
from actors.requests.run_ids import RUN, happens_once
from actors.threads import close, new_loop
from actors.values import outcomes
from journal.clock import StoreClock
from journal.ids import address_of, shard_in, shard_of_own, unique_ids
from journal.store import UNKNOWN, Attach, Bring, NamespaceLimits, Outgoing, Store

from . import slots
from .heartbeat import Heartbeat
from .replies import Replies
from .run_starts import Start
from .slots import Brought, Slot, SlotTable, Wait
from .submits import Submits
from .timeouts import Deadlines
from .watch import Watch, described

logger = logging.getLogger("actors")
T = TypeVar("T")

RENEW_EVERY: Final = 3_600.0
CLOSE_MAX: Final = 1.0
"""Seconds for which a program that ends waits for its replies to be forgotten; else they expire."""


class Client:
    """A driver's connection; `open` it, start invocations from any thread, `close` it."""

    def __init__(
        self,
        connect: Callable[[], Store],
        *,
        sends_code: bool,
        limits: Limits = DEFAULT,
        live: bool = False,
        object_ref: Callable[[Invocation[Any], Any], Any] | None = None,
    ) -> None:
        self._sends_code, self._asked, self._object_ref = sends_code, limits, object_ref
        self._store: Store = connect()  # first: an error in the URL leaves no loop behind
        self._loop = new_loop()
        self._thread = threading.Thread(target=self._serve, name="perdure-client", daemon=True)
        self._process = os.getpid()
        self._table = SlotTable()
        self._lock, self._slots = self._table.lock, self._table.slots
        self._patience = Patience("submit")
        self._submits = Submits(self._store, self._table, self._loop, self._patience, self._open_anew)
        self._put, self._starts = self._submits.put, self._submits.starts
        self._code = LivingSender(self._submits.uploads.put) if live else Sender(self._submits.uploads.put)
        self.failure = ""  # why nothing can be started any more
        self._ids, self._count, self._clock = unique_ids().__next__, 0, StoreClock()
        self.limits = NamespaceLimits()
        self._tasks: list[asyncio.Task[None]] = []
        self._deadlines = Deadlines(self._loop, self._table.forget, self.bring)

    # Life

    def open(self) -> None:
        """Connect.

        Raises:
            SettingsError: the store could lose what it acknowledges.
            UnavailableError: the store does not answer.
            UsageError: the namespace has other limits.
        """
        self._thread.start()
        try:
            self._call(self._open())
        except BaseException:
            self._stop()
            raise

    def close(self, patience_s: float = 10.0) -> None:
        """Wait for unsent submits, then disconnect; invocations go on."""
        if not self._thread.is_alive():
            return
        try:
            self._call(self._drained(patience_s))
        finally:
            slots.log_unacknowledged(list(self._slots.values()), len(self._submits.queue))
            self._stop()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        close(self._loop)

    def _check_process(self) -> None:
        if os.getpid() != self._process:
            raise UsageError(
                "this process was forked from the one that is connected: call actors.init() here first, then ask "
                "actors.attach(ref.id)"
            )

    def _call(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def call(self, work: Callable[[Store], Coroutine[Any, Any, Any]]) -> Any:
        """Run a read of the store on the client's loop, and wait for it."""
        self._check_process()
        return self._call(work(self._store))

    async def _open(self) -> None:
        ask = self._patience.for_a_while
        self.limits = await ask(lambda: opened(self._store, self._asked))
        await ask(self._submits.open)
        await self._clock.open(lambda: ask(self._store.now_ms))
        watch = Watch(self._store, self._slots, self._lock)
        submits, replies = self._submits, Replies(self._store, self._table, self._submits, self._loop)
        beat = Heartbeat(self._store, self._clock, submits.written, submits.reopen)
        loops = (submits.run, replies.run, self._renew, beat.run, watch.run)
        self._tasks = [asyncio.ensure_future(loop()) for loop in loops]
        for task in self._tasks:
            task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        """A client that has lost a task answers nobody: fail all waits, now and from here on."""
        if task.cancelled() or (error := task.exception()) is None:
            return
        logger.error("the client failed: a defect of Perdure, please report it", exc_info=error)
        with self._lock:
            self.failure = f"the client failed ({error!r}): call actors.shutdown() and actors.init()"
            ended = list(self._slots.values())
            self._slots.clear()
        for slot in ended:
            self._table.settle(slot, UnavailableError(f"{self.failure}; the outcome is not known here"))

    async def _open_anew(self) -> None:
        # Nothing of the namespace may be left: it is to be again as it was, unless another program was first.
        self.limits = await self._store.open_namespace(self.limits)
        await self._submits.open()

    async def _drained(self, patience_s: float) -> None:
        self.failure = self.failure or "this client was shut down: call actors.init() again"
        await self._submits.drained(patience_s, self._tasks[0].done)

    def _stop(self) -> None:
        async def stop() -> None:
            await end(self._tasks)
            with suppress(UnavailableError, DamagedError, TimeoutError):  # it expires
                async with asyncio.timeout(CLOSE_MAX):
                    await self._store.close_writer(self._submits.writer)
            await self._store.aclose()

        self._call(stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        for slot in list(self._slots.values()):
            self._table.settle(slot, UnavailableError("the client was shut down: the outcome is not known here"))

    # Starting (`current.Caller`), in any thread

    def start(self, request: Request, /) -> Invocation[Any]:
        """Start an invocation; it leaves in the order of these calls."""
        address = address_of(request.type_name, request.key)
        arguments = arguments_of(request, address, self.limits.payload_max)
        found = fingerprint_of(request)
        code = "" if request.owner is None else self._code.digest_of(request.owner) if self._sends_code else UNSENT
        with self._lock:
            self._next()
            id_ = started_id(request, address, self._ids(), self.limits.shards)
            is_named = request.options.idempotency_key is not None or (request.handler == RUN and happens_once(request))
            caller = "" if request.one_way or is_named else self._submits.teller
            message = message_of(request, id_, address, arguments, caller, code, self._clock.now_ms)
            if is_named:
                slot = self._starts.start(request, outgoing_of(request, id_, "", message, found), self._count)
            else:
                slot = self._slots[id_] = Slot(request.declared, is_own=True, is_attached=not request.one_way)
                slot.address, slot.handler = address, request.handler
                self._put(Outgoing(shard_of_own(id_), id_, caller, message.encoded()))
            if request.options.timeout_s is not None:
                self._deadlines.set(slot, id_, f"{address}.{request.handler}", request.options.timeout_s)
        return Invocation(id_, self, slot)

    def bring(self, event: Bring, entry: str, /) -> Accepted:
        """Bring an event to an invocation; it leaves in the order of these calls."""
        bounded(event.data, f"value of `{entry}`", self.limits.payload_max)
        with self._lock:
            name = f"{entry} #{self._next()}"
            slot = self._slots[name] = Slot(is_own=True)
            what = event.shard, event.invocation, event.kind, event.index, event.data
            self._put(Brought(*what, name, slots.unknown_until(self._loop, is_foreign=isinstance(event, Foreign))))
        return Invocation(entry, self, slot).accepted()

    def _next(self) -> int:
        if self.failure:
            raise UnavailableError(self.failure)
        if len(self._slots) >= self._asked.pending_max:
            raise OverloadedError(
                f"{self._asked.pending_max:,} invocations of this program are not answered (pending_max): await some "
                "before you start more"
            )
        self._count += 1
        return self._count

    # Waiting (`invocation.Source`), in any thread

    def _slot(self, invocation: Invocation[Any], *, told: bool = True) -> Slot:
        """Return the slot of an invocation; with `told`, ask the store for its outcome."""
        self._check_process()
        kept: Slot | None = invocation.kept
        if kept is not None and (kept.is_attached or kept.has_ended or not told):
            return kept
        id_ = invocation.id
        with self._lock:
            found = None if isinstance(kept, Start) else self._slots.get(id_)
            slot = invocation.kept = found or kept or Slot(is_accepted=True)
            if told and self.failure and not slot.has_ended:
                slot.settle(None, UnavailableError(f"{self.failure}; the outcome is not known here"))
            if told and isinstance(slot, Start):
                self._starts.expect(slot, id_)
            elif told and not slot.is_attached and not slot.has_ended:
                self._slots[id_] = slot
                slot.is_attached = True
                slot.unknown_until = slots.unknown_until(self._loop, is_foreign=invocation.is_foreign)
                self._put(Attach(shard_in(id_), id_))
        return slot

    def wait(self, invocation: Invocation[Any], /) -> Generator[Any, Any, Any]:
        """Wait on the running loop for the outcome."""
        slot = self._slot(invocation)
        if not slot.has_ended:
            yield from slots.end_of(slot, self._lock)
        return slot.result()

    def ended(self, invocation: Invocation[Any], future: asyncio.Future[None]) -> Slot:
        """Return the slot of an invocation, and end this future of the running loop when the invocation has ended."""
        return slots.tell_end(self._slot(invocation), self._lock, future)

    def taken(self, invocation: Invocation[Any], future: asyncio.Future[None]) -> Slot:
        """Return the slot of an invocation, and end this future of the running loop when the store has it."""
        return slots.tell_acceptance(self._slot(invocation, told=False), self._lock, future)

    def leave(self, invocation: Invocation[Any], slot: Slot, future: asyncio.Future[None]) -> None:
        """Let a future wait no more. An accepted invocation for which nobody waits is not counted as pending either."""
        slots.leave(future, (slot,), self._lock)
        with self._lock:
            is_free = slot.is_accepted and not (slot.waiting or slot.has_ended)
            if is_free and self._slots.get(invocation.id) is slot:
                del self._slots[invocation.id]
                slot.is_attached = False  # who waits again asks the store

    async def ask(self, work: Callable[[Store], Coroutine[Any, Any, T]]) -> T:
        """Run a read of the store on the client's loop, and wait for it on the running one."""
        self._check_process()
        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work(self._store), self._loop))

    def now_ms(self) -> int:
        """Return the store's time."""
        return self._clock.now_ms()

    async def outcome(self, id_: str) -> bytes:
        """Return the outcome of an invocation that was started elsewhere, as it is stored."""
        slot = self._slot(Invocation(id_))
        await Wait(slots.end_of(slot, self._lock))
        if slot.error is not None:
            raise slot.error
        assert slot.outcome is not None
        return slot.outcome

    def wait_accepted(self, invocation: Invocation[Any], /) -> Generator[Any, Any, None]:
        """Wait on the running loop until the store has it."""
        slot = self._slot(invocation, told=False)
        if not slot.is_accepted:
            yield from slots.acceptance_of(slot, self._lock)

    def ready(self, invocations: Sequence[Invocation[Any]], count: int, timeout_s: float | None, /) -> set[str]:
        """Block until so many have ended or the time is over."""
        found = {invocation.id: self._slot(invocation) for invocation in invocations}
        slots.block_until(count, found.values(), timeout_s, self._lock)
        return {id_ for id_, slot in found.items() if slot.has_ended}

    def result(self, invocation: Invocation[Any], /) -> Any:
        """Block until it has ended."""
        slot = self._slot(invocation)
        if not slot.has_ended:
            slots.block_until(1, (slot,), None, self._lock)
        return slot.result()

    def accepted(self, invocation: Invocation[Any], timeout_s: float | None, /) -> bool:
        """Block until the store has it or the time is over."""
        return slots.accepted_within(self._slot(invocation, told=False), self._lock, timeout_s)

    def status(self, invocation: Invocation[Any], /) -> str:
        """Ask the store where it stands."""
        self._check_process()
        slot = self._slots.get(invocation.id)
        is_submitting = slot is not None and not slot.is_accepted  # before the store is asked: it may come meanwhile
        found = self._call(described(self._store, invocation.id))
        if found:
            return found
        if is_submitting:
            return "submitting"
        raise NotFoundError(f"{invocation.id} {UNKNOWN}")

    def peek(self, invocation: Invocation[Any], default: Any, /) -> Any:
        """Ask the store for the result."""
        outcome = self.call(lambda store: store.outcome(invocation.id))
        if outcome is None and self.status(invocation):
            return default  # it is on its way
        return outcomes.decoded(outcome, self._slot(invocation, told=False).returns) if outcome else default

    def object_ref(self, invocation: Invocation[Any], /) -> Any:
        """Return a Ray `ObjectRef` of the outcome."""
        if self._object_ref is None:
            raise UnavailableError("there is no Ray in this program: it runs with hosts='local'")
        return self._object_ref(invocation, self._slot(invocation, told=False).returns)

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_EVERY)
            self._submits.attach(
                f"{self._submits.writer}-0"
            )  # without operations: a write renews the store's data of this program
