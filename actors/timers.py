"""Timers: what one execution waits for by time, its own sleeps and those that asyncio asks for.

Owns which entry a timer is, and what its host must still be told. Does not own: when it is due; the store says so, by
an event.
"""

import asyncio
from collections.abc import Callable, Iterator

from .loop import DeterministicLoop


class Timers:
    """The timers of one execution."""

    def __init__(self, loop: DeterministicLoop, make: Callable[[str], int], is_new: Callable[[int], bool]) -> None:
        self._loop, self._make, self._is_new = loop, make, is_new
        self._handles: dict[int, asyncio.TimerHandle] = {}
        self._index_of: dict[int, int] = {}
        self.set: dict[int, float] = {}
        """Timers to make durable: entry and duration in seconds from now."""
        self.cleared: list[int] = []
        """Timers that were made durable and are not wanted any more."""

    def __iter__(self) -> Iterator[int]:
        """Return the entries of those that have not fired."""
        return iter(self._handles)

    def add(self, when: float, handle: asyncio.TimerHandle, entry: str) -> None:
        """Make the entry of a timer; one that is never due has none."""
        if when == float("inf"):
            return
        index = self._make(entry)
        self._handles[index] = handle
        self._index_of[id(handle)] = index
        if self._is_new(index):
            self.set[index] = when - self._loop.time()

    def sleep(self, duration_s: float, name: str) -> "asyncio.Future[None]":
        """Make the entry of a sleep; the future is its wait."""
        future = self._loop.create_future()
        handle = asyncio.TimerHandle(self._loop.time() + duration_s, _settle, (future,), self._loop, None)
        handle._scheduled = True  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]  # as a loop does
        self.add(handle.when(), handle, f"sleep {name}" if name else "sleep")
        future.add_done_callback(lambda done: handle.cancel() if done.cancelled() else None)
        return future

    def clear(self, handle: asyncio.TimerHandle) -> None:
        """Forget a timer: unsent, it never leaves; sent, it is cleared."""
        index = self._index_of.pop(id(handle), None)
        if index is not None:
            del self._handles[index]
            if self.set.pop(index, None) is None:
                self.cleared.append(index)

    def due(self, index: int) -> asyncio.TimerHandle | None:
        """Take the timer of an entry, None if it was cleared."""
        handle = self._handles.pop(index, None)
        if handle is not None:
            self._index_of.pop(id(handle), None)
        return handle


def _settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
