"""Waits: requests that wait for the end of an invocation, and what ends a wait before.

One timer looks at all waits of a worker, twice a second: at the clients that have left, at requests that the store has
not taken for too long, and at the end of the worker. So that a wait that is short, as most are, costs a future alone.

A death of the worker ends its waits, and no invocation: each client has the id, or can repeat its idempotency key.
"""

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Literal

from actors.client.client import Client
from actors.client.slots import Slot
from actors.errors import DurableError
from actors.requests.invocation import Invocation

from .answers import HttpError, Receive, refused

LOOK_EVERY: Final = 0.5
WATCHED_AFTER: Final = 1.0
"""Seconds after which a waiting client is watched for its leaving: most are answered before."""
PATIENCE: Final = 10.0
"""Seconds for which the store may not take a request."""

GRACE: Final = 10.0
"""Seconds for which a server that ends waits for the handlers of the requests that it has accepted."""

Why = Literal["", "late", "left", "closing", "silent"]


class ClientLeft(Exception):
    """The client has left: there is nobody to answer."""


class OpenWait:
    """One request that waits."""

    __slots__ = ("future", "receive", "since", "slot", "watcher", "why")

    def __init__(self, future: asyncio.Future[None], slot: Slot, receive: Receive | None, since: float) -> None:
        self.future, self.slot, self.receive, self.since = future, slot, receive, since
        self.why: Why = ""
        self.watcher: asyncio.Task[None] | None = None

    def end(self, why: Why) -> None:
        """End the wait."""
        if not self.future.done():
            self.why = why
            self.future.set_result(None)


class Waits:
    """The waits of one client on one loop."""

    def __init__(self, client: Client, loop: asyncio.AbstractEventLoop, patience_s: float) -> None:
        self.client, self.loop, self._patience_s = client, loop, patience_s
        self._open: dict[OpenWait, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._is_closing = False
        self.is_ending = False
        self.streams: dict[Callable[[], object], None] = {}
        """Functions that end the event streams."""

    async def until_ended(
        self,
        invocation: Invocation[Any],
        receive: Receive,
        wait_s: float | None = None,
        *,
        cancels: bool = False,
    ) -> Slot | None:
        """Wait for the end; None if `wait_s` was over before.

        Raises:
            HttpError: the store has not taken the request, or this worker ends.
            ClientLeft: nobody waits any more.
        """
        future = self.loop.create_future()
        slot = self.client.ended(invocation, future)
        if future.done():
            return slot
        one = OpenWait(future, slot, receive, self.loop.time())
        return await self._waited(one, invocation, wait_s, cancels=cancels)

    async def until_taken(self, invocation: Invocation[Any]) -> Slot:
        """Wait until the store has the request.

        Raises:
            HttpError: it has not taken it within the patience.
        """
        future = self.loop.create_future()
        slot = self.client.taken(invocation, future)
        if not future.done():
            await self._waited(OpenWait(future, slot, None, self.loop.time()), invocation, None, cancels=False)
        return slot

    async def _waited(
        self, one: OpenWait, invocation: Invocation[Any], wait_s: float | None, *, cancels: bool
    ) -> Slot | None:
        self._open[one] = None
        late = None if wait_s is None else self.loop.call_later(wait_s, one.end, "late")
        if cancels:
            self._watch(one)
        if self._timer is None:
            self._timer = self.loop.call_later(LOOK_EVERY, self._look)
        try:
            await one.future
        finally:
            del self._open[one]
            if late is not None:
                late.cancel()
            if one.watcher is not None:
                one.watcher.cancel()
            if one.why or not one.future.done() or one.future.cancelled():
                self.client.leave(invocation, one.slot, one.future)
        if not one.why:
            return one.slot
        if one.why == "late":
            return None
        if one.why == "left":
            if cancels:
                invocation.cancel()
            raise ClientLeft
        raise _over(one, invocation.id)

    def _look(self) -> None:
        self._timer = self.loop.call_later(LOOK_EVERY, self._look) if self._open else None
        now = self.loop.time()
        for one in [*self._open]:
            age = now - one.since
            if self._is_closing:
                one.end("closing")
            elif not one.slot.is_accepted and age > self._patience_s:
                one.end("silent")
            elif one.watcher is None and age > WATCHED_AFTER:
                self._watch(one)

    def _watch(self, one: OpenWait) -> None:
        if one.receive is not None:
            one.watcher = self.loop.create_task(until_left(one.receive, lambda: one.end("left")))

    def end_soon(self) -> None:
        """This server ends: end event streams at once, and what waits for longer than `GRACE` then."""
        if not self.is_ending:
            self.is_ending = True
            for then in [*self.streams]:
                then()
            self.loop.call_later(GRACE, self._close)

    def _close(self) -> None:
        self._is_closing = True
        self._look()


def _over(one: OpenWait, id_: str) -> HttpError:
    if one.slot.is_accepted:
        why = f"this server ends; {id_} goes on: GET /invocations/{id_}/attach waits for its outcome"
    elif one.why == "closing":
        why = f"this server ends, and whether {id_} was accepted is unknown: GET /invocations/{id_}/output tells"
    else:
        why = f"the store does not answer: whether {id_} was accepted is unknown: GET /invocations/{id_}/output tells"
    return HttpError(503, why, "store", id_=id_)


async def until_left(receive: Receive, then: Callable[[], object]) -> None:
    """Call `then` when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
    then()


async def within(work: Awaitable[Any], patience_s: float) -> Any:
    """Return what the store answers.

    Raises:
        HttpError: it does not within the patience.
    """
    try:
        async with asyncio.timeout(patience_s):
            return await work
    except TimeoutError:
        raise HttpError(503, f"the store does not answer within {patience_s:g} s", "store") from None
    except DurableError as error:
        raise refused(error) from error


def when_ending(loop: asyncio.AbstractEventLoop, then: Callable[[], object]) -> Callable[[], None]:
    """Call `then` on the loop where a signal ends the server, which does not tell its app before all is answered.

    Returns a function that gives the signals back.
    """
    given: dict[int, tuple[Any, Any]] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            before = signal.getsignal(number)
            if callable(before):
                given[number] = before, partial(_heard, loop, then, before)
                signal.signal(number, given[number][1])

    def give_back() -> None:
        for number, (before, ours) in given.items():
            if signal.getsignal(number) is ours:  # else another has taken it over, and calls ours
                signal.signal(number, before)

    return give_back


def _heard(loop: asyncio.AbstractEventLoop, then: Callable[[], object], before: Any, number: int, frame: Any) -> None:
    try:
        loop.call_soon_threadsafe(then)
    except RuntimeError:
        pass  # the loop has ended
    before(number, frame)
