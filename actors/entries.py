"""Entries: what a handler asks for in program order, compared with what its journal holds.

Invariant: entry n of a replay is entry n of the journal, or the execution has diverged.
"""

from typing import Final

from .errors import NondeterminismError, UsageError

ENTRY_MAX: Final = 10_000
"""Most characters of an entry: its kind, and the name of a step or a wait, or whom a call is for."""


class Entries:
    """What the handler has asked for so far, in program order, compared with what the journal holds."""

    __slots__ = ("divergence", "invocation", "made", "recorded")

    def __init__(self, invocation: str, recorded: list[str]) -> None:
        self.invocation = invocation
        self.recorded = recorded
        self.made: list[str] = []
        self.divergence: NondeterminismError | None = None
        """The first entry that differed; a handler may have caught the error."""

    def make(self, entry: str) -> int:
        """Return the index of a new entry.

        Raises:
            NondeterminismError: the journal holds another one there.
            UsageError: its name is too long.
        """
        index = len(self.made)
        if len(entry) > ENTRY_MAX and index >= len(self.recorded):
            raise UsageError(
                f"`{entry[:60]}…` has {len(entry):,} characters, the limit name_max is {ENTRY_MAX:,}: names of steps "
                "and waits say what they are for, data is for arguments"
            )
        if index < len(self.recorded) and self.recorded[index] != entry:
            error = NondeterminismError(self.invocation, index, f"`{self.recorded[index]}`", f"`{entry}`")
            self.divergence = self.divergence or error
            raise error
        self.made.append(entry)
        return index

    def has_made(self, index: int, beginning: str) -> bool:
        """Whether the handler has asked for an entry that begins so."""
        return index < len(self.made) and self.made[index].startswith(beginning)

    def is_new(self, index: int) -> bool:
        """Whether the journal does not hold this entry: what it asks for has not left yet."""
        return index >= len(self.recorded)

    def next_recorded(self) -> str:
        """Return the entry that the journal holds where the next one will be; empty if it holds none."""
        index = len(self.made)
        return self.recorded[index] if index < len(self.recorded) else ""

    def missing(self, instead: str) -> NondeterminismError | None:
        """Return the error of a handler that stopped (`instead` says how) short of what the journal holds."""
        index = len(self.made)
        if index >= len(self.recorded):
            return None
        return NondeterminismError(self.invocation, index, f"`{self.recorded[index]}`", instead)

    def unexpected(self, index: int, event: str) -> NondeterminismError:
        """Return the error of an event for an entry that the handler has not asked for."""
        attempted = f"`{self.made[index]}`" if index < len(self.made) else "nothing"
        return NondeterminismError(self.invocation, index, event, attempted)
