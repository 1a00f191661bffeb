"""Slots: what a driver knows of each invocation that it started or asked for, and who waits for it."""

import asyncio
import threading
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any

from journal.codec import MISSING

from . import outcomes


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
    waiting: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    accepting: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])

    @property
    def has_ended(self) -> bool:
        return self.outcome is not None or self.error is not None

    def result(self) -> Any:
        if self.error is not None:
            raise self.error.with_traceback(None)
        assert self.outcome is not None
        return outcomes.decoded(self.outcome, self.returns)


def on_this_loop(
    waiting: list[Callable[[], None]], is_over: Callable[[], bool], lock: threading.Lock
) -> Generator[Any, Any, None]:
    """Wait on the running loop; one future for each wait, so that a cancelled one leaves the others alone."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        try:
            loop.call_soon_threadsafe(lambda: future.done() or future.set_result(None))
        except RuntimeError:
            pass  # that loop is closed: nobody waits there any more

    with lock:
        if is_over():
            return
        waiting.append(wake)
    yield from future


class Wait:
    """Awaits what a generator waits for."""

    def __init__(self, wait: Generator[Any, Any, None]) -> None:
        self._wait = wait

    def __await__(self) -> Generator[Any, Any, None]:
        return self._wait
