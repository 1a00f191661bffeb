"""Waits: a handler's waits for an outcome that comes once.

Invariants:
    1. An outcome is decoded anew for each wait; it can be awaited again, also after a wait for it was given up.
"""

from collections.abc import Generator
from typing import Any

from actors.loop.loop import DeterministicLoop, EntryFuture
from actors.values import outcomes
from actors.values.values import Scope


class Awaited:
    """The outcome that an entry waits for."""

    __slots__ = ("_annotation", "_loop", "_scope", "_waits", "outcome")

    def __init__(self, annotation: Any, loop: DeterministicLoop, scope: Scope) -> None:
        self._annotation, self._loop, self._scope = annotation, loop, scope
        self.outcome: bytes | None = None
        self._waits: list[EntryFuture] = []

    def is_of(self, loop: DeterministicLoop) -> bool:
        """Whether it belongs to the handler of this loop."""
        return self._loop is loop

    def complete(self, outcome: bytes) -> None:
        """Take the outcome; its waits are ready."""
        self.outcome = outcome
        for wait in self._waits:
            if not wait.done():
                wait.set_result(None)
        self._waits.clear()

    @property
    def waits(self) -> int:
        """The number of waits for it."""
        return sum(not wait.done() for wait in self._waits)

    def wait(self) -> Generator[Any, Any, Any]:
        """Wait for the outcome; return its value, or raise its failure."""
        return outcomes.decoded((yield from self.wait_undecoded()), self._annotation, self._scope)

    def wait_undecoded(self) -> Generator[Any, Any, bytes]:
        """Wait for the outcome and return it as it is."""
        if self.outcome is None:
            wait = self._loop.entry_future()
            self._waits.append(wait)
            yield from wait
        assert self.outcome is not None
        return self.outcome
