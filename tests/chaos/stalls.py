"""Stalls: when the machine itself let nobody run, so that lateness says nothing of the product.

Linux counts how long each thread was ready to run and waited for a processor (the second number of its `schedstat`).
Who blocks a thread of the product, or waits in it, adds nothing to that: such lateness is the product's.
"""

import threading
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path

from journal.clock import boot_seconds

LOOK_EVERY_S = 0.25
SHARE = 0.5
"""A thread that waited for a processor for so much of the time was not let run, and so were others."""


class Stalls:
    """A thread that looks, again and again, how long the threads of these processes waited for a processor."""

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        self._pids = pids
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
        at, waited = boot_seconds(), _waited_s(self._pids())
        while not self._over.wait(LOOK_EVERY_S):
            now, now_waited = boot_seconds(), _waited_s(self._pids())
            most_s = max(
                (found - waited[thread] for thread, found in now_waited.items() if thread in waited), default=0
            )
            if most_s > SHARE * (now - at) or now - at > 2 * LOOK_EVERY_S:
                self.found.append((at, now))
            at, waited = now, now_waited


def _waited_s(pids: Iterable[int]) -> dict[str, float]:
    found: dict[str, float] = {}
    for pid in pids:
        for thread in Path(f"/proc/{pid}/task").glob("*"):
            with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
                found[thread.name] = int((thread / "schedstat").read_text().split()[1]) / 1e9
    return found
