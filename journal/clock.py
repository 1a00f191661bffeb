"""Clocks: the machine's clocks, read by this module alone, and the store's clock as this process knows it.

Everything else is handed a time or one of these functions, so that tests can own time.
"""

import functools
import time
from collections.abc import Callable, Coroutine
from typing import Any


def wall_ms() -> int:
    """Return the time of day in milliseconds since 1970; may jump, so nothing is decided by it."""
    return time.time_ns() // 1_000_000


boot_seconds: Callable[[], float] = functools.partial(
    time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
)
"""Return seconds that never go back and go on while the machine sleeps.

Leases are counted by it: on a laptop that was shut for an hour a lease has lapsed. Where the system has no
CLOCK_BOOTTIME (macOS) it is the monotonic clock, which may stand still during sleep.
"""


class StoreClock:
    """The store's time as this process knows it: the last answer of the store, carried on by a steady clock.

    It is too much by a round trip, never too little, which would end sleeps early. Neither a step of this machine's
    time of day nor one of the store's keeps it wrong for longer than until the next answer.
    """

    def __init__(self, steady: Callable[[], float] = boot_seconds) -> None:
        self._steady = steady
        self._offset_ms: int | None = None

    def now_ms(self) -> int:
        """Return the store's time, about; 0 before the first answer."""
        return 0 if self._offset_ms is None else int(self._steady() * 1000) + self._offset_ms

    def steady_ms(self) -> int:
        """Return the time of the steady clock, to be noted when the store is asked."""
        return int(self._steady() * 1000)

    def learn(self, asked_ms: int, told_ms: int) -> bool:
        """Take an answer of the store that was asked for at that steady time; return whether its clock has stepped.

        The store read its clock between question and answer. An offset within these bounds is kept: a process that is
        stopped while it waits learns nothing from the answer, and two times that are close keep their order.
        """
        now_ms, known = self.steady_ms(), self._offset_ms
        highest, lowest = told_ms + CUT_MS - asked_ms, told_ms - now_ms - 1
        is_short = now_ms - asked_ms <= SHORT_MS
        if known is None or known < (highest if is_short else lowest) or known > highest + SLACK_MS:
            self._offset_ms = highest
        return known is not None and abs((self._offset_ms or 0) - known) > STEP_MS

    async def ask(self, ask: Callable[[], Coroutine[Any, Any, int]]) -> bool:
        """Ask for the time, and learn from the answer; raises what `ask` raises."""
        asked_ms = self.steady_ms()
        return self.learn(asked_ms, await ask())

    async def open(self, ask: Callable[[], Coroutine[Any, Any, int]]) -> None:
        """Ask a few times, of which the shortest round trip counts."""
        for _ in range(_ASKS):
            await self.ask(ask)


_ASKS = 3
CUT_MS = 2
"""Rounding error of the two clocks, in ms."""
SHORT_MS = 2
"""Round trips up to this many ms are all equally exact."""
SLACK_MS = 5
"""An offset that is too great by at most this many ms stays: time does not go back for it."""
STEP_MS = 50
"""A difference in ms that a round trip does not explain: a clock has stepped."""
sleep = time.sleep
"""As it was when this was imported."""


def watch_sleep(watch: Callable[[], None]) -> None:
    """Have `time.sleep` call `watch` first, in the whole process; errors of `watch` reach the caller of `sleep`."""

    @functools.wraps(sleep)
    def watched(seconds: float, /) -> None:
        watch()
        sleep(seconds)

    # Pickle names a built-in by its module, and checks that the module has it: an old reference to it can still be
    # sent.
    sleep.__module__ = __name__
    time.sleep = watched
