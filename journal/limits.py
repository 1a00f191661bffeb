"""Limits: the bounds of a namespace, which the store itself keeps."""

from dataclasses import dataclass
from datetime import timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """The bounds of one namespace."""

    inbox_max: int = 100_000
    """Messages of unfinished invocations in one shard; beyond it drivers are refused, calls at ten times that. The same
    number bounds the events of drivers."""
    done_max: int = 10_000
    """Finished invocations that one shard remembers."""
    retention: timedelta = timedelta(days=1)
    """How long a finished invocation is remembered, if the count allows."""
    session: timedelta = timedelta(days=1)
    """How long a silent driver keeps its number and its replies."""
    retention_when_full: timedelta = timedelta(seconds=10)
    """How long a finished invocation is remembered while the store has hardly any memory left."""

    def retention_ms(self, *, is_full: bool = False) -> int:
        """Return how long a finished invocation is remembered, in ms."""
        kept = min(self.retention, self.retention_when_full) if is_full else self.retention
        return int(kept.total_seconds() * 1000)
