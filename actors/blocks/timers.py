"""Timers: the durable timers of an execution: its sleeps, and the timers that asyncio sets.

Owns the entry of a timer, and the timers to set or clear with the next commit. Does not own the due time: an event of
the store tells it.
"""

import asyncio
from asyncio import futures
from collections.abc import Callable, Iterator
from typing import Any, Final

from actors.loop.coroutines import HandlerWait
from actors.loop.loop import DeterministicLoop

from .entries import Entries

_SLEEP_ENDS: Final[object] = vars(futures)["_set_result_unless_cancelled"]


class Timers:
    """The timers of one execution."""

    def __init__(self, loop: DeterministicLoop, entries: Entries) -> None:
        self._loop, self._entries = loop, entries
        self._handles: dict[int, asyncio.TimerHandle] = {}
        self._index_of: dict[int, int] = {}
        self.set: dict[int, float] = {}
        """Timers to make durable: entry and duration in seconds from now."""
        self.cleared: list[int] = []
        """Durable timers that the next commit clears."""

    def __iter__(self) -> Iterator[int]:
        """Return the entries of the timers that have not fired."""
        return iter(self._handles)

    def add(self, when: float, handle: asyncio.TimerHandle, entry: str) -> None:
        """Make the entry of a timer; a timer that is never due has none."""
        if when == float("inf"):
            return
        index = self._entries.make(entry)
        self._handles[index] = handle
        self._index_of[id(handle)] = index
        if self._entries.is_new(index):
            self.set[index] = when - self._loop.time()

    def sleep(self, duration_s: float, name: str) -> HandlerWait[None]:
        """Make the entry of a sleep; the future is its wait."""
        future = self._loop.entry_future()
        handle = self.call_later(duration_s, f"sleep {name}" if name else "sleep", _settle, future)
        future.add_done_callback(lambda _: handle.cancel())
        return future

    def call_later(
        self, delay_s: float, entry: str, callback: Callable[..., object], *args: Any
    ) -> asyncio.TimerHandle:
        """Make the entry of a timer that calls back."""
        handle = asyncio.TimerHandle(self._loop.time() + delay_s, callback, args, self._loop, None)
        handle._scheduled = True  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]  # as a loop does
        self.add(handle.when(), handle, entry)
        return handle

    def sleeps(self) -> "list[asyncio.Future[Any]]":
        """Return the open futures of `asyncio.sleep`, in the order of their entries."""
        found = (sleeper(handle) for handle in self._handles.values())
        return [future for future in found if future is not None and not future.done()]

    def clear(self, handle: asyncio.TimerHandle) -> None:
        """Drop a timer: it is not set with the next commit, or cleared if it is durable."""
        index = self._index_of.pop(id(handle), None)
        if index is not None:
            del self._handles[index]
            if self.set.pop(index, None) is None:
                self.cleared.append(index)

    def set_again(self, now: float) -> None:
        """Set all timers that have not fired once more: a replay knows the due time of each."""
        self.set |= {index: handle.when() - now for index, handle in self._handles.items()}

    def due(self, index: int) -> asyncio.TimerHandle | None:
        """Take the timer of an entry, None if it was cleared."""
        handle = self._handles.pop(index, None)
        if handle is not None:
            self._index_of.pop(id(handle), None)
        return handle


def sleeper(handle: asyncio.TimerHandle) -> "asyncio.Future[Any] | None":
    """Return the future that an `asyncio.sleep` waits for, if this is its timer, so that a cancel can fail it."""
    if handle._callback is _SLEEP_ENDS:  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue, reportUnknownMemberType]  # no public name
        return handle._args[0]  # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]
    return None


def _settle(future: "asyncio.Future[None]") -> None:
    if not future.done():
        future.set_result(None)
