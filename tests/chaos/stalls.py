"""Stalls: when the machine itself stood, so that nobody's lateness says anything of the product."""

import threading
from collections.abc import Generator
from contextlib import contextmanager

from journal.clock import boot_seconds

LOOK_EVERY_S = 0.05
STALL_S = 0.3
"""A thread that wakes so much too late was not let run, and so may others have been."""


class Stalls:
    """A thread that only wakes again and again, and notes when it woke too late."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self.found: list[tuple[float, float]] = []

    @contextmanager
    def watching(self) -> Generator[None]:
        """Note all stalls meanwhile."""
        watch = threading.Thread(target=self._watch)
        watch.start()
        try:
            yield
        finally:
            self._over.set()
            watch.join()

    def _watch(self) -> None:
        before = boot_seconds()
        while not self._over.wait(LOOK_EVERY_S):
            now = boot_seconds()
            if now - before > LOOK_EVERY_S + STALL_S:
                self.found.append((before, now))
            before = now
