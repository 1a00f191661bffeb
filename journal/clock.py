"""The clocks of the machine; the only module that reads them.

Everything else is handed a time or one of these functions, so that tests can own time.
"""

import functools
import time
from collections.abc import Callable, Coroutine
from typing import Any


def wall_ms() -> int:
    """Return the time of day in milliseconds since 1970; may jump, so nothing is decided by it."""
    return time.time_ns() // 1_000_000


def boot_seconds() -> float:
    """Return seconds that never go back and go on while the machine sleeps.

    Leases are counted by it: on a laptop that was shut for an hour a lease has lapsed. Where the system has no
    CLOCK_BOOTTIME (macOS) it is the monotonic clock, which may stand still during sleep.
    """
    return time.clock_gettime(_CLOCK)


async def offset_ms(ask: Callable[[], Coroutine[Any, Any, int]], wall: Callable[[], int] = wall_ms) -> int:
    """Return what to add to a time of day to have that of who is asked: too much by a round trip, never too little.

    Too little would end sleeps early, and either clock is cut to whole milliseconds. The shortest of a few round trips
    counts: a process that is stopped while it waits for an answer would be wrong for its whole life.
    """
    found: list[tuple[int, int]] = []
    for _ in range(_ASKS):
        before = wall()
        told = await ask()
        found.append((wall() - before, told + CUT_MS - before))
    return min(found)[1]


_ASKS = 3
CUT_MS = 2
"""What is lost where the time of day is read, and where who is asked reads his."""
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
sleep = time.sleep
"""As it was when this was imported."""


def watch_sleep(watch: Callable[[], None]) -> None:
    """Have `time.sleep` call `watch` first, for everyone in this process; what that raises, the sleeper gets."""

    @functools.wraps(sleep)
    def watched(seconds: float, /) -> None:
        watch()
        sleep(seconds)

    # Pickle names a built-in by its module, and looks whether that has it: who imported the old one can still send it.
    sleep.__module__ = __name__
    time.sleep = watched
