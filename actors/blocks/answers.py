"""Answers: what entries of one execution are told at once, where a replay might be told otherwise.

Invariants:
    1. What a replay asks again is answered as it was: an answer is recorded with its entry, in one record.
    2. Nothing leaves that may depend on an answer before the answer is durable; its host sees to that.
"""

from collections.abc import Callable, Mapping


class Answers:
    """The answers of one execution."""

    def __init__(self, recorded: Mapping[int, bytes | None]) -> None:
        self._recorded = recorded
        self.new: list[tuple[int, bytes | None]] = []
        """Those that no record holds yet."""

    def give(self, index: int, find: Callable[[], bytes | None]) -> bytes | None:
        """Return the answer of an entry: the recorded one, or what is found."""
        if index in self._recorded:
            return self._recorded[index]
        answer = find()
        self.new.append((index, answer))
        return answer

    def take(self) -> list[tuple[int, bytes | None]]:
        """Return the new ones, which the next record holds."""
        new, self.new = self.new, []
        return new
