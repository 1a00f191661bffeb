"""Client: a driver's side of an invocation, from `.remote()` to the reply.

Owns the driver's writer: the order of its submits and their number, and the waits of this process. It runs on a thread
and an event loop of its own, so that it serves sync and async programs alike.

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
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar

from actors.backoff import Patience, end
from actors.code.code import UNSENT, LivingSender, Sender
from actors.errors import (
    DamagedError,
    FullError,
    NotFoundError,
    OverloadedError,
    SettingsError,
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
from journal.records import ReplyKind, order_of, teller_of_driver
from journal.store import UNKNOWN, Attach, Bring, NamespaceLimits, Outgoing, PartlyApplied, Reply, Settled, Store

from . import slots
from .batches import freeing_batch, next_batch, submit_until_answered
from .heartbeat import Heartbeat, Written
from .run_starts import Start, Starts, refusals
from .slots import Brought, EarlyEvents, Operation, Slot, Started, Wait, Waiting, notice_text, slot_of, wake
from .timeouts import Deadlines
from .uploads import Uploads
from .watch import Watch, described

logger = logging.getLogger("actors")
T = TypeVar("T")

RENEW_EVERY: Final = 3_600.0
CLOSE_MAX: Final = 1.0
"""Seconds for which a program that ends waits for its replies to be forgotten; else they expire."""
OUTCOMES: Final = (ReplyKind.VALUE.encode(), ReplyKind.ERROR.encode())


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
        self._lock = threading.Lock()
        self._slots: dict[str, Slot] = {}
        self._queue: deque[Operation] = deque()
        self._uploads = Uploads(Patience("code"))
        self._code = LivingSender(self._uploads.put) if live else Sender(self._uploads.put)
        self.failure = ""  # why nothing can be started any more
        self._is_woken = False
        self._ids, self._count, self._clock = unique_ids().__next__, 0, StoreClock()
        self.limits = NamespaceLimits()
        self._writer, self._number, self._seen = "", 0, "0-0"
        self._is_astray = False  # the store has lost our writer
        self._wanted, self._idle = asyncio.Event(), asyncio.Event()
        self._held = EarlyEvents(self._queue, self._wanted.set)
        self._tasks: list[asyncio.Task[None]] = []
        self._patience = Patience("submit")
        self._starts = Starts(self._slots, self._lock, self._put, self._loop.time)
        self._deadlines = Deadlines(self._loop, self._forget, self.bring)

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
            slots.log_unacknowledged(list(self._slots.values()), len(self._queue))
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
        await ask(self._open_writer)
        await self._clock.open(lambda: ask(self._store.now_ms))
        watch = Watch(self._store, self._slots, self._lock)
        beat = Heartbeat(self._store, self._clock, self._written, self._reopen_writer)
        loops = (self._send, self._receive, self._renew, beat.run, watch.run)
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
            self._settle(slot, UnavailableError(f"{self.failure}; the outcome is not known here"))

    def _written(self) -> Written:
        return Written(self._writer, self._number, self._seen)

    async def _open_writer(self) -> None:
        self._writer, self._number, self._seen = await self._store.open_writer(), 0, "0-0"
        self._teller = teller_of_driver(self._writer)

    async def _open_anew(self) -> None:
        # Nothing of the namespace may be left: it is to be again as it was, unless another program was first.
        self.limits = await self._store.open_namespace(self.limits)
        await self._open_writer()

    async def _drained(self, patience_s: float) -> None:
        self.failure = self.failure or "this client was shut down: call actors.init() again"
        with suppress(TimeoutError):
            async with asyncio.timeout(patience_s):
                while (self._queue or self._held or not self._idle.is_set()) and not self._tasks[0].done():
                    self._wanted.set()
                    await asyncio.sleep(0.005)

    def _stop(self) -> None:
        async def stop() -> None:
            await end(self._tasks)
            with suppress(UnavailableError, DamagedError, TimeoutError):  # it expires
                async with asyncio.timeout(CLOSE_MAX):
                    await self._store.close_writer(self._writer)
            await self._store.aclose()

        self._call(stop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        for slot in list(self._slots.values()):
            self._settle(slot, UnavailableError("the client was shut down: the outcome is not known here"))

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
            caller = "" if request.one_way or is_named else self._teller
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

    def _put(self, operation: Operation) -> None:
        self._queue.append(operation)
        if not self._is_woken:
            self._loop.call_soon_threadsafe(self._wanted.set)
            self._is_woken = True  # in this order: Ctrl-C between the two costs a second call, not all later ones

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

    def leave(self, slot: Slot, future: asyncio.Future[None]) -> None:
        """Let a future wait no more."""
        slots.leave(future, (slot,), self._lock)

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

    def _settle(self, slot: Slot, error: Exception) -> None:
        with self._lock:
            told = slot.settle(None, error)
        wake(told)

    # Sending and receiving, on the client's loop

    async def _send(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            self._idle.clear()
            if self._is_astray:
                await self._start_over([])
            while self._queue:
                with self._lock:
                    taken = next_batch(self._queue)
                    self._is_woken = bool(self._queue)
                if self._uploads.waiting:
                    await self._uploads.store(self._store)
                await self._submit(self._held.without(taken) if self._held else taken)
            with self._lock:
                self._is_woken = bool(self._queue)
            self._idle.set()

    async def _put_off(self, operations: list[Operation], error: FullError) -> None:
        """The store is full: send the operations that it takes, and wait with the rest until it has room."""
        with self._lock:
            self._queue.extendleft(reversed(operations))
            freeing = freeing_batch(self._queue)
        if freeing:
            await self._submit(freeing)
        await self._patience.wait(error)

    async def _submit(self, operations: list[Operation]) -> None:
        number = self._number + 1
        try:
            settled = await submit_until_answered(
                lambda: self._store.submit(self._writer, number, operations, self._seen), self._patience
            )
        except DamagedError as error:
            await self._refused(operations, error)
            return
        if isinstance(settled, FullError):
            await self._put_off(operations, settled)
            return
        self._number = number
        if settled is Settled.REFUSED:
            await self._start_over(operations)
            return
        missed = settled if isinstance(settled, PartlyApplied) else PartlyApplied()
        for operation, error in refusals(operations, missed):
            if not (isinstance(error, NotFoundError) and self._held.hold(operation, self._loop)):
                self._refuse(operation, error)
        self._starts.accepted(operations, missed)
        if missed.later:
            self._queue.extendleft(operations[at] for at in reversed(missed.later))

    async def _refused(self, operations: list[Operation], error: DamagedError) -> None:
        """Fail the operation that the store refuses: it has changed nothing, and the next write takes this number."""
        if not operations:  # then it is the writer that the store refuses
            self._is_astray = True
        elif len(operations) > 1:
            half = len(operations) // 2
            await self._submit(operations[:half])
            await self._submit(operations[half:])
        else:
            await self._submit([])
            if self._is_astray:
                self._queue.extendleft(operations)
                await self._start_over([])
            else:
                logger.error("submit: %s", error)
                self._refuse(operations[0], error)

    async def _start_over(self, refused: list[Operation]) -> None:
        """The store refused our number: open another writer and attach to all invocations that are waited for."""
        # With a wait, which grows: a store that refuses every writer is not asked in a circle.
        await self._patience.wait(UnavailableError("the store refuses this client's number: attaching anew"))
        await self._patience.until_answered(self._open_anew, DamagedError, SettingsError)
        self._is_astray = False
        self._uploads.again()
        with self._lock:
            waiting = [id_ for id_, slot in self._slots.items() if slot.gets_outcome and not slot.has_ended]
            for id_ in waiting:
                self._slots[id_].unknown_until = slots.unknown_until(self._loop, is_foreign=False)
            unsent: set[str] = set()
            for operation in self._queue:
                if isinstance(operation, Outgoing) and operation.caller:
                    unsent.add(operation.invocation)
                    operation.caller = self._teller
            self._queue.extendleft(Attach(shard_in(id_), id_) for id_ in waiting if id_ not in unsent)
        for operation in refused:
            if isinstance(operation, Started) and self._starts.start_over(operation):
                continue
            slot = self._slots.get(slot_of(operation))
            if slot is not None and not slot.is_attached:
                self._refuse(operation, UnavailableError(f"{slot_of(operation)}: whether it was accepted is unknown"))
        self._wanted.set()

    async def _receive(self) -> None:
        patience = Patience("replies")
        while True:
            writer = self._writer
            try:
                replies = await self._store.replies(writer, self._seen, 1_000)
                patience.renew()
            except UnavailableError as error:
                await patience.wait(error)
                continue
            except DamagedError as error:  # its stream is none any more
                self._reopen_writer(writer, f"replies: {error}")
                await patience.wait(error)
                continue
            if writer != self._writer:
                continue
            self._take(replies)
            if replies:
                self._seen = replies[-1].id

    def _reopen_writer(self, writer: str, why: str) -> None:
        """Let the sending task open another writer, if this is still the one."""
        if writer == self._writer and not self._is_astray:
            logger.error("%s", why)
            self._is_astray = True
            self._wanted.set()

    def _take(self, replies: list[Reply]) -> None:
        if replies and order_of(replies[0].id) < order_of(self._seen):  # an answer to an earlier question
            replies = [reply for reply in replies if order_of(reply.id) >= order_of(self._seen)]
        told: list[Waiting] = []
        with self._lock:
            others = [reply for reply in replies if not self._ended(reply, told)]
        for reply in others:  # first: a failed attempt is logged before its invocation's end
            self._take_other(reply)
        wake(told)

    def _ended(self, reply: Reply, told: list[Waiting]) -> bool:
        if reply.payload[:1] not in OUTCOMES:
            return slots.hand_notice(self._slots.get(reply.invocation), reply.payload)
        slot = self._slots.pop(reply.invocation, None)
        if slot is not None:
            told += slot.settle(reply.payload, None)
        return True

    def _take_other(self, reply: Reply) -> None:
        id_, slot = reply.invocation, self._slots.get(reply.invocation)
        if reply.payload[:1].decode() == ReplyKind.NOTICE:
            logger.warning("%s", notice_text(slot, reply.payload))
        elif slot is not None and slot.is_own:
            why = "the store had forgotten this program, and does not know it: its outcome is unknown"
            self._forget(slot, id_, UnavailableError(f"{id_}: {why}"))
        elif slot is not None:
            self._ask_again(slot, id_)

    def _forget(self, slot: Slot, id_: str, error: Exception) -> None:
        self._settle(slot, error)
        with self._lock:
            if self._slots.get(id_) is slot:
                del self._slots[id_]

    def _refuse(self, operation: Operation, error: Exception) -> None:
        slot = self._slots.get(slot_of(operation))
        if slot is not None:
            if isinstance(operation, Brought | Started) and not (slot.accepting or slot.is_attached):
                logger.error("%s", error)  # nobody waits for it to be accepted
            self._forget(slot, slot_of(operation), error)

    def _ask_again(self, slot: Slot, id_: str) -> None:
        if self._loop.time() > slot.unknown_until:
            self._forget(slot, id_, NotFoundError(f"{id_} {UNKNOWN}, or it was lost on its way"))
            return
        self._loop.call_later(slots.KNOWN_WITHIN, self._attach, id_)

    def _attach(self, id_: str) -> None:
        self._queue.append(Attach(shard_in(id_), id_))
        self._wanted.set()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(RENEW_EVERY)
            self._attach(f"{self._writer}-0")  # without operations: a write renews the store's data of this program
