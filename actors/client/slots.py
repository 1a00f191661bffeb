"""Slots: a driver's knowledge of each invocation that it has started or asked for, with the waits for it.

Why waits are futures and not callbacks: each call into another thread's loop is a write to its socket, at which the two
threads may trade the interpreter's lock. So waits are gathered, and each loop is woken once for all of its waits.
"""

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterable
from contextlib import suppress
from contextvars import Context, copy_context
from dataclasses import dataclass
from typing import Any, Final

from actors.values import outcomes
from journal.clock import boot_seconds
from journal.codec import MISSING
from journal.records import EventKind, ReplyKind
from journal.store import Attach, Bring, Outgoing
from journal.texts import shortened

logger = logging.getLogger("actors")

KNOWN_WITHIN: Final = 0.1
"""Seconds after which an id that the store does not know is asked for again, once: the start of an invocation by this
program reaches the store before the program's questions about it."""
COMES_WITHIN: Final = 10.0
"""The same in seconds for an invocation from another program: its id may be here before its start is in the store."""

FAILURE_MAX: Final = 1_000
"""Most characters of a failed attempt in a time-out."""


def unknown_until(loop: asyncio.AbstractEventLoop, *, is_foreign: bool) -> float:
    """Return the time until which the store need not know an id that it is asked for now."""
    return loop.time() + (COMES_WITHIN if is_foreign else KNOWN_WITHIN)


Waiting = Callable[[], None] | asyncio.Future[None]
"""A wait: a future on its own loop, or a function that is called in the client's thread."""


@dataclass(slots=True)
class Brought(Bring):
    """An event from this driver, with the name of its slot, and the time until which the invocation may be unknown."""

    slot: str
    until: float


@dataclass(slots=True)
class Started(Outgoing):
    """The start of an invocation that must be new, with the name of its slot."""

    slot: str = ""


Operation = Outgoing | Attach | Brought


def slot_of(operation: Operation) -> str:
    """Return the name of the slot that gets the result of an operation."""
    return operation.slot if isinstance(operation, Brought | Started) else operation.invocation


class EarlyEvents:
    """Events for invocations that the store does not know yet: an id may be here before its invocation is there.

    They are sent again; later operations for the same invocation wait behind them.
    """

    def __init__(self, queue: deque[Operation], ask: Callable[[], object]) -> None:
        self._queue, self._ask = queue, ask
        self._held: dict[str, list[Brought]] = {}

    def __bool__(self) -> bool:
        return bool(self._held)

    def hold(self, operation: Operation, loop: asyncio.AbstractEventLoop) -> bool:
        """Keep an event for an unknown invocation for a moment; return False if it is not to be sent again."""
        if not (isinstance(operation, Brought) and operation.kind is not EventKind.AWAKEABLE):
            return False
        if loop.time() > operation.until:
            return False
        if operation.invocation not in self._held:
            self._held[operation.invocation] = []
            loop.call_later(KNOWN_WITHIN, self._release, operation.invocation)
        self._held[operation.invocation].append(operation)
        return True

    def without(self, operations: list[Operation]) -> list[Operation]:
        """Return the operations that do not wait behind a kept event; keep the others."""
        out: list[Operation] = []
        for operation in operations:
            if isinstance(operation, Brought) and operation.invocation in self._held:
                self._held[operation.invocation].append(operation)
            else:
                out.append(operation)
        return out

    def _release(self, invocation: str) -> None:
        self._queue.extendleft(reversed(self._held.pop(invocation)))  # before all that was sent since
        self._ask()


@dataclass(slots=True, eq=False)
class Slot:
    """The knowledge of one invocation in this process, and the waits for it."""

    declared: Any = None
    """The handler as its class declares it, or None where that is not known: its result may need its annotation."""
    outcome: bytes | None = None
    error: Exception | None = None
    is_own: bool = False
    """This client has started it."""
    is_accepted: bool = False
    is_attached: bool = False
    unknown_until: float = 0.0
    """The time until which the store need not know it."""
    address: str = ""
    handler: str = ""
    """The handler's name, where this client has started the invocation."""
    last: str = ""
    """The last notice of a failed attempt."""
    waiting: tuple[Waiting, ...] = ()
    accepting: tuple[Waiting, ...] = ()
    """Tuples: most slots have one wait or none, and an empty tuple costs nothing."""

    @property
    def gets_outcome(self) -> bool:
        """Whether the store tells this client the outcome."""
        return self.is_attached

    @property
    def has_ended(self) -> bool:
        return self.outcome is not None or self.error is not None

    def settle(self, outcome: bytes | None, error: Exception | None) -> tuple[Waiting, ...]:
        """Note the end; return the waits that are to be told, none if the end was known."""
        if self.has_ended:
            return ()
        self.outcome, self.error = outcome, error
        self.is_accepted = self.is_accepted or outcome is not None
        told = self.waiting + self.accepting
        self.waiting = self.accepting = ()
        return told

    @property
    def returns(self) -> Any:
        """The annotation of the result."""
        return MISSING if self.declared is None else self.declared.returns

    def described(self, id_: str) -> tuple[str, str]:
        """Return its address and handler, or its id, and its last failure, empty where none is known."""
        return f"{self.address}.{self.handler} ({id_})" if self.address else id_, self.failure

    @property
    def failure(self) -> str:
        """The error of the last failed attempt, as far as it is known; else empty."""
        lines = [line.strip(" |+-") for line in self.last.splitlines()]
        said = [line for line in lines[1:] if line]
        return shortened(f"{lines[0]}: {said[-1]}" if said else lines[0], FAILURE_MAX) if lines else ""

    def check_accepted(self) -> None:
        """Raise the error of a request that has not reached the store, as far as it is known."""
        if not self.is_accepted and self.error is not None:
            raise self.error.with_traceback(None)

    def result(self) -> Any:
        if self.error is not None:
            raise self.error.with_traceback(None)
        assert self.outcome is not None
        return outcomes.decoded(self.outcome, self.returns)


def notice_text(slot: Slot | None, notice: bytes) -> str:
    """Return the text of a notice, which a wait shows once more when it times out."""
    text = notice[1:].decode(errors="replace")
    if slot is not None:
        slot.last = text
    return text


def log_unacknowledged(slots: Iterable[Slot], queued: int) -> None:
    """Log how many requests the store may not have: the waiting ones, and those of the write that is under way."""
    count = max(queued, sum(slot.is_own and not (slot.is_accepted or slot.has_ended) for slot in slots))
    if count:
        logger.error("%d requests of this program were not acknowledged: whether they happen is unknown", count)


def wake(waits: Iterable[Waiting]) -> None:
    """End waits, each loop's in one call."""
    futures: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for one in waits:
        if callable(one):
            one()
        else:
            futures.setdefault(one.get_loop(), []).append(one)
    for loop, its in futures.items():
        try:
            loop.call_soon_threadsafe(_told, its)
        except RuntimeError:
            pass  # that loop is closed: nobody waits there any more


def _told(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


def tell_end(slot: Slot, lock: threading.Lock, future: asyncio.Future[None]) -> Slot:
    """End a future of the running loop when the invocation has ended; return the slot."""
    with lock:
        if slot.has_ended:
            future.set_result(None)
        else:
            slot.waiting += (future,)
    return slot


def tell_acceptance(slot: Slot, lock: threading.Lock, future: asyncio.Future[None]) -> Slot:
    """End a future of the running loop when the store has the request; return the slot."""
    with lock:
        if slot.is_accepted or slot.has_ended:
            future.set_result(None)
        else:
            slot.accepting += (future,)
    return slot


def end_of(slot: Slot, lock: threading.Lock) -> Generator[Any, Any, None]:
    """Wait on the running loop for the end; one future for each wait, so that a cancelled one leaves others alone."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    with lock:
        if slot.has_ended:
            return
        slot.waiting += (future,)
    try:
        yield from future
    except asyncio.CancelledError:  # no more than that: the collector closes generators under whatever lock is held
        leave(future, (slot,), lock)
        raise


def acceptance_of(slot: Slot, lock: threading.Lock) -> Generator[Any, Any, None]:
    """Wait on the running loop until the store has it."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    tell_acceptance(slot, lock, future)
    yield from future
    slot.check_accepted()


def hand_notice(slot: Slot | None, payload: bytes) -> bool:
    """Let the threads that wait for an invocation log a notice of its host; return whether it is one and somebody
    waits.

    A notebook shows output from a cell's own context, or from the thread that a cell blocks, under that cell, and
    output of the client's thread under the cell of `init()`. With the client's lock.
    """
    if slot is None or payload[:1].decode() != ReplyKind.NOTICE:
        return False
    text = notice_text(slot, payload)
    for one in slot.waiting:
        if isinstance(one, Countdown):
            one.say(text)
            return True
        if not callable(one):
            with suppress(RuntimeError):  # that loop is closed
                one.get_loop().call_soon_threadsafe(_say, one, text)
                return True
    return False


def _say(future: Any, text: str) -> None:
    waiting: list[tuple[Any, Context]] = future._callbacks or []
    context = waiting[0][1] if waiting else copy_context()
    context.run(logger.warning, "%s", text)


class Countdown:
    """Blocks a thread until it was told so many times by one other thread, which may let it log texts meanwhile."""

    __slots__ = ("_left", "_said", "_wake")

    def __init__(self, count: int) -> None:
        self._left, self._wake = count, threading.Lock()
        self._said: deque[str] | None = None
        self._wake.acquire()

    def __call__(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._release()

    def say(self, text: str) -> None:
        """Let the waiting thread log this."""
        self._said = self._said or deque()
        self._said.append(text)
        self._release()

    def _release(self) -> None:
        if self._wake.locked():  # else it has been released, and not been heard yet
            self._wake.release()

    def wait(self, timeout_s: float | None) -> bool:
        """Return whether it was, within this time."""
        until = None if timeout_s is None else boot_seconds() + timeout_s
        while self._wake.acquire(timeout=-1 if until is None else max(0.0, until - boot_seconds())):
            if self._left <= 0:
                return True
            self.log()
        return False

    def log(self) -> None:
        """Log the texts that were given."""
        while self._said:
            logger.warning("%s", self._said.popleft())


def accepted_within(slot: Slot, lock: threading.Lock, timeout_s: float | None) -> bool:
    """Block until the store has it, and return whether it has in this time."""
    countdown = Countdown(1)
    with lock:
        if slot.is_accepted or slot.has_ended:
            countdown()
        else:
            slot.accepting += (countdown,)
    gets_outcome = countdown.wait(timeout_s)
    slot.check_accepted()
    return gets_outcome


def block_until(count: int, slots: Collection[Slot], timeout_s: float | None, lock: threading.Lock) -> None:
    """Block until so many of these have ended or the time is over."""
    with lock:
        missing = [slot for slot in slots if not slot.has_ended]
        needed = count - (len(slots) - len(missing))
        if needed <= 0:
            return
        countdown = Countdown(needed)
        for slot in missing:
            slot.waiting += (countdown,)
    try:
        countdown.wait(timeout_s)
    finally:
        leave(countdown, missing, lock)
        countdown.log()  # from here on nothing is logged here


def leave(who: Waiting, slots: Collection[Slot], lock: threading.Lock) -> None:
    """Let these slots tell it nothing any more."""
    with lock:
        for slot in slots:
            slot.waiting = tuple(one for one in slot.waiting if one is not who)
            slot.accepting = tuple(one for one in slot.accepting if one is not who)


class Wait:
    """An awaitable made of a generator."""

    def __init__(self, wait: Generator[Any, Any, None]) -> None:
        self._wait = wait

    def __await__(self) -> Generator[Any, Any, None]:
        return self._wait


class SlotTable:
    """The slots of a client by the names of their operations, and the lock that all who change them hold."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.slots: dict[str, Slot] = {}

    def settle(self, slot: Slot, error: Exception) -> None:
        """End the waits of a slot with an error."""
        with self.lock:
            told = slot.settle(None, error)
        wake(told)

    def forget(self, slot: Slot, id_: str, error: Exception) -> None:
        """End the waits of a slot with an error, and forget it."""
        self.settle(slot, error)
        with self.lock:
            if self.slots.get(id_) is slot:
                del self.slots[id_]

    def refuse(self, operation: Operation, error: Exception) -> None:
        """End the waits for an operation that the store has refused."""
        slot = self.slots.get(slot_of(operation))
        if slot is not None:
            if isinstance(operation, Brought | Started) and not (slot.accepting or slot.is_attached):
                logger.error("%s", error)  # nobody waits for it to be accepted
            self.forget(slot, slot_of(operation), error)
