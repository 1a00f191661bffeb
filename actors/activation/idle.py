"""Idle: the executions of a host that wait in memory, and the time when each leaves it.

Owns the time since when each waits. Does not own the work of leaving memory (`attempts`).

Why not a timer of the event loop for each: a hundred thousand handlers that began to wait together would leave in one
turn of the loop, which takes so long that the host loses its leases. Here at most `AT_ONCE` leave in a turn.

Invariants:
    1. An execution that has waited for its idle time-out leaves as soon as the executions before it have left.
    2. Beyond `most` the executions that have waited longest leave before their time: memory is bounded (promise 9).
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from typing import Final, Generic, Protocol, TypeVar

AT_ONCE: Final = 100
"""How many leave in one turn of the loop, in some milliseconds."""


class Waiting(Protocol):
    """An open invocation that may wait in memory."""

    idle: bool
    """Whether it is listed in `Idle`."""


W = TypeVar("W", bound=Waiting)


@dataclass(slots=True)
class _Since(Generic[W]):
    began: float
    leave: Callable[[W], None]


class Idle(Generic[W]):
    """The waiting invocations: `add` when a wait begins, `remove` when it ends; `leave` is called at the time-out."""

    def __init__(self, loop: asyncio.AbstractEventLoop, most: int) -> None:
        self._loop, self._most = loop, most
        self._by_timeout: dict[float, dict[W, _Since[W]]] = {}
        """A dict for each time-out: it keeps the order of insertion, so its first member has waited longest."""
        self._count = 0
        self._timer: asyncio.Handle | None = None
        self._looks_at = 0.0

    def add(self, one: W, timeout_s: float, leave: Callable[[W], None]) -> None:
        """Add an invocation that begins to wait; `leave` is called when it has waited for `timeout_s`."""
        one.idle = True
        now = self._loop.time()
        self._by_timeout.setdefault(timeout_s, {})[one] = _Since(now, leave)
        self._count += 1
        self._look_at(now if self._count > self._most else now + timeout_s)

    def remove(self, one: W) -> None:
        """Remove an invocation that goes on or has ended, if it is listed."""
        if not one.idle:
            return
        one.idle = False
        for waiting in self._by_timeout.values():
            if waiting.pop(one, None) is not None:
                self._count -= 1
                return

    def _look_at(self, when: float) -> None:
        if self._timer is not None:
            if self._looks_at <= when:
                return
            self._timer.cancel()
        self._looks_at = when
        self._timer = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        self._timer, now = None, self._loop.time()
        for timeout_s, waiting in list(self._by_timeout.items()):  # `leave` may add another time-out
            over = now - timeout_s
            for one, since in list(islice(waiting.items(), AT_ONCE)):
                if since.began > over and self._count <= self._most:
                    break
                self.remove(one)
                since.leave(one)
        following = [next(iter(waiting.values())).began + s for s, waiting in self._by_timeout.items() if waiting]
        if following:
            self._look_at(now if self._count > self._most else min(following))
