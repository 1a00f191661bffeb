"""Answers: immediate results of entries that a replay could get differently, and that are therefore recorded.

Invariants:
    1. A replay gets the same answer: an answer is recorded with its entry, in one record.
    2. No message or step that may depend on an answer begins before the answer is durable; the host ensures that.
"""

from collections.abc import Callable, Mapping


class Answers:
    """The answers of one execution."""

    def __init__(self, recorded: Mapping[int, bytes | None]) -> None:
        self._recorded = recorded
        self.new: list[tuple[int, bytes | None]] = []
        """Answers that no record holds yet."""

    def give(self, index: int, find: Callable[[], bytes | None]) -> bytes | None:
        """Return the answer of an entry: the recorded answer, or else the result of `find`."""
        if index in self._recorded:
            return self._recorded[index]
        answer = find()
        self.new.append((index, answer))
        return answer

    def take(self) -> list[tuple[int, bytes | None]]:
        """Remove and return the new answers, for the next record."""
        new, self.new = self.new, []
        return new
