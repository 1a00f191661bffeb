"""Losses: the outcome, the number and the counter by which clients learn that the store has lost data.

A store goes back where a failover lost its tail or its file was cut; keys go where somebody deletes them.
"""

from dataclasses import dataclass

from .records import Failure, failure

GONE = failure(Failure(410, "the store has lost this invocation: what became of it is unknown", {}, "TerminalError"))
"""The outcome of an open invocation that is not in the store any more."""

WENT_BACK = -2
"""Instead of the number of a shard's last commit: the store lacks something of the shard that it had."""


@dataclass(frozen=True, slots=True)
class WriterStatus:
    """A writer as the store knows it."""

    number: int
    """The number of its last write."""
    last: str
    """The last id of its reply stream, where connections are new since this was last asked; else empty."""
    losses: str
    """A counter that changes when the store is found to have lost data."""
