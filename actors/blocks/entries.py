"""Entries: the commands of a handler in program order, compared with its journal.

Invariants:
    1. Entry n of a replay is entry n of the journal, or the execution has diverged.
    2. The limits of a journal count only data that a replay has too (entries, deliveries), so that a replay decides
       alike: beyond a limit nothing new is recorded, and the journal so far is replayed whatever its size.
"""

from asyncio import CancelledError
from typing import Final

from actors.errors import NondeterminismError, Refusal, UsageError
from journal.store import NamespaceLimits

ENTRY_MAX: Final = 10_000
"""Most characters of an entry: its kind, and the name of a step or a wait, or the target of a call."""
ASK_AGAIN: Final = "end this invocation before its limit: let it .send() the rest of its work to a new invocation"


class Entries:
    """The entries that the handler has made so far, in program order, compared with the journal."""

    __slots__ = ("_limits", "_most", "divergence", "full", "invocation", "made", "recorded", "size")

    def __init__(self, invocation: str, recorded: list[str], limits: NamespaceLimits) -> None:
        self.invocation, self._limits = invocation, limits
        self.recorded = recorded
        self.made: list[str] = []
        self.divergence: NondeterminismError | None = None
        """The first entry that differed; a handler may have caught the error."""
        self.size = 0
        """Bytes of entries made, and of deliveries."""
        self.full: Refusal | None = None
        """The error that the journal is full; a handler may have caught it."""
        self._most = 1

    def unbind(self) -> None:
        """Double the limits for compensations, which may run because a limit ended the handler."""
        self._most, self.full = 2, None

    @property
    def are_too_large(self) -> bool:
        """Whether entries and deliveries take more bytes than a journal may."""
        return self.size > self._limits.journal_bytes_max * self._most

    def refused(self) -> Refusal:
        """Return the error that the journal is full.

        Raises:
            CancelledError: the error was raised before, and the handler went on: it ends here.
        """
        if self.full is not None:
            raise CancelledError(*self.full.args)
        what, found, name, most = f"{len(self.made):,} entries", len(self.made), "journal_max", self._limits.journal_max
        if found < most * self._most:
            what, name, most = f"{self.size:,} bytes", "journal_bytes_max", self._limits.journal_bytes_max
        self.full = Refusal(f"the journal holds {what}, the limit {name} is {most * self._most:,}: {ASK_AGAIN}")
        return self.full

    def make(self, entry: str) -> int:
        """Return the index of a new entry.

        Raises:
            NondeterminismError: the journal holds another entry at this index.
            UsageError: its name is too long, or the journal is full.
        """
        index = len(self.made)
        self.size += len(entry)
        if index >= len(self.recorded):
            if len(entry) > ENTRY_MAX:
                raise UsageError(
                    f"`{entry[:60]}…` has {len(entry):,} characters, the limit name_max is {ENTRY_MAX:,}: names of "
                    "steps and waits say what they are for, data is for arguments"
                )
            if index >= self._limits.journal_max * self._most or self.are_too_large:
                raise self.refused()
        elif self.recorded[index] != entry:
            error = NondeterminismError(self.invocation, index, f"`{self.recorded[index]}`", f"`{entry}`")
            self.divergence = self.divergence or error
            raise error
        self.made.append(entry)
        return index

    def has_made(self, index: int, beginning: str) -> bool:
        """Whether the handler has made an entry at this index that begins so."""
        return index < len(self.made) and self.made[index].startswith(beginning)

    def is_new(self, index: int) -> bool:
        """Whether the journal does not hold this entry: its message or timer was never sent."""
        return index >= len(self.recorded)

    def next_recorded(self) -> str:
        """Return the recorded entry at the index of the next new entry; empty if there is none."""
        index = len(self.made)
        return self.recorded[index] if index < len(self.recorded) else ""

    def missing(self, instead: str) -> NondeterminismError | None:
        """Return the error of a handler that stopped (`instead` says how) before the end of its journal, if it did."""
        index = len(self.made)
        if index >= len(self.recorded):
            return None
        return NondeterminismError(self.invocation, index, f"`{self.recorded[index]}`", instead)

    def unexpected(self, index: int, event: str) -> NondeterminismError:
        """Return the error of an event for an entry that the handler has not made."""
        attempted = f"`{self.made[index]}`" if index < len(self.made) else "nothing"
        return NondeterminismError(self.invocation, index, event, attempted)
