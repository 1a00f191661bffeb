"""Slots: what a driver knows of each invocation that it started or asked for, and who waits for it.

Why waits are futures and not callbacks: each call into another thread's loop is a write to its socket, at which the two
threads may trade the interpreter's lock. So those who wait are gathered, and each loop is woken once for all of them.
"""

import asyncio
import threading
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

from journal.codec import MISSING

from . import outcomes

Waiting = Callable[[], None] | asyncio.Future[None]
"""Who is told: a future on its own loop, or a function in the thread that tells."""


@dataclass(slots=True, eq=False)
class Slot:
    """What is known here of one invocation, and who waits for it."""

    returns: Any = MISSING
    """The annotation of the result."""
    outcome: bytes | None = None
    error: Exception | None = None
    is_own: bool = False
    """This client has started it."""
    is_accepted: bool = False
    is_attached: bool = False
    asked_at: float = 0.0
    waiting: list[Waiting] = field(default_factory=list[Waiting])
    accepting: list[Waiting] = field(default_factory=list[Waiting])

    @property
    def has_ended(self) -> bool:
        return self.outcome is not None or self.error is not None

    def settle(self, outcome: bytes | None, error: Exception | None) -> list[Waiting]:
        """Note the end; return who is to be told, nobody if it was known."""
        if self.has_ended:
            return []
        self.outcome, self.error, self.is_accepted = outcome, error, True
        told = self.waiting + self.accepting if self.accepting else self.waiting
        self.waiting, self.accepting = [], []
        return told

    def result(self) -> Any:
        if self.error is not None:
            raise self.error.with_traceback(None)
        assert self.outcome is not None
        return outcomes.decoded(self.outcome, self.returns)


def tell(those: Iterable[Waiting]) -> None:
    """Tell those who wait, each loop in one call."""
    futures: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
    for one in those:
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


def on_this_loop(
    waiting: list[Waiting], is_over: Callable[[], bool], lock: threading.Lock
) -> Generator[Any, Any, None]:
    """Wait on the running loop; one future for each wait, so that a cancelled one leaves the others alone."""
    future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    with lock:
        if is_over():
            return
        waiting.append(future)
    yield from future


class Wait:
    """Awaits what a generator waits for."""

    def __init__(self, wait: Generator[Any, Any, None]) -> None:
        self._wait = wait

    def __await__(self) -> Generator[Any, Any, None]:
        return self._wait
