"""Phases: the state machine of an execution, from replay to its end.

Does no I/O and knows no event loop. An execution first replays everything durable, then goes on from there. Its
commands are numbered in program order; while the journal holds an entry of that number, both must be the same.

Invariants:
    1. An action starts in PROCESSING only, that is after everything durable was delivered.
    2. Entry n of a replay is entry n of the journal, or the execution has DIVERGED.
    3. COMPLETED, FAILED, DIVERGED and SUSPENDED end the execution; the invocation lives on after the last three.
"""

from enum import Enum
from typing import Final


class Phase(Enum):
    """A phase of an execution."""

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
    """An occurrence that moves an execution to another phase."""

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
        RuntimeError: the happening is impossible in this phase: a defect of the runtime.
    """
    try:
        return TRANSITIONS[phase, happening]
    except KeyError:
        raise RuntimeError(f"{happening.name} is not possible while {phase.name}") from None
