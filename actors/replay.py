"""Replay: the phases of an execution, and the comparison of what a handler asks for with what its journal holds.

Does no I/O and knows no event loop. An execution first replays what is durable, then goes on from there; what the
handler asks for is numbered in program order, and while the journal holds an entry of that number it must be the same.

Invariants:
    1. An action starts in PROCESSING only, that is after everything durable was delivered.
    2. Entry n of a replay is entry n of the journal, or the execution has DIVERGED.
    3. COMPLETED, FAILED, DIVERGED and SUSPENDED end the execution; the invocation lives on after the last three.
"""

from enum import Enum
from typing import Final

from .errors import NondeterminismError, UsageError


class Phase(Enum):
    """Where an execution stands."""

    __hash__ = object.__hash__  # members are singletons; Enum's own hashes their name, in Python

    REPLAYING = "replaying"
    PROCESSING = "processing"
    SUSPENDED = "suspended"
    COMPLETED = "completed"
    FAILED = "failed"
    DIVERGED = "diverged"


UNDER_WAY: Final = (Phase.REPLAYING, Phase.PROCESSING)
"""The phases of an execution that has not ended. (Python 3.11 takes long to look up a member of an enum.)"""


class Happening(Enum):
    """What moves an execution to another phase."""

    __hash__ = object.__hash__

    DRAINED = "everything durable was delivered"
    DROPPED = "it leaves memory"
    RETURNED = "the handler returned, or failed for good"
    RAISED = "the handler failed: another attempt follows"
    DIFFERED = "it asked for something other than the journal holds"


TRANSITIONS = {
    (Phase.REPLAYING, Happening.DRAINED): Phase.PROCESSING,
    (Phase.REPLAYING, Happening.DROPPED): Phase.SUSPENDED,
    (Phase.REPLAYING, Happening.RETURNED): Phase.COMPLETED,
    (Phase.REPLAYING, Happening.RAISED): Phase.FAILED,
    (Phase.REPLAYING, Happening.DIFFERED): Phase.DIVERGED,
    (Phase.PROCESSING, Happening.DRAINED): Phase.PROCESSING,
    (Phase.PROCESSING, Happening.DROPPED): Phase.SUSPENDED,
    (Phase.PROCESSING, Happening.RETURNED): Phase.COMPLETED,
    (Phase.PROCESSING, Happening.RAISED): Phase.FAILED,
    (Phase.PROCESSING, Happening.DIFFERED): Phase.DIVERGED,
}


def advance(phase: Phase, happening: Happening) -> Phase:
    """Return the phase after the happening; an execution that has ended stays ended.

    Raises:
        RuntimeError: this cannot happen in this phase: a defect of the runtime.
    """
    try:
        return TRANSITIONS[phase, happening]
    except KeyError:
        raise RuntimeError(f"{happening.name} is not possible while {phase.name}") from None


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
