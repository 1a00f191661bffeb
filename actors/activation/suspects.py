"""Suspects: failures of a host itself, by a defect of Perdure, and the invocations that they are due to.

The frames of a failure's traceback hold the invocation that the host was busy with, so a warm invocation has nothing
to note. The host steps down from the shard and takes it again at once, since the cause may pass. An invocation at which
it fails twice is set aside: it is paused with that reason as soon as it would begin, which needs no code of the user,
and an operator may resume, cancel or kill it. Where the host fails even so, or where no frame names an invocation, the
shard rests between two attempts. An invocation whose journal cannot be read is set aside at once; nothing of it is
lost, and a version that can read it goes on.

These notes die with the process: another version of Perdure may do better. A paused invocation stays paused.

Invariant: the last few failures are kept, for `actors.status()`.
"""

import logging
from collections import deque
from typing import Any, Final, NamedTuple

from actors.tracebacks import frames_of, traced
from journal.ids import Shard
from journal.records import Event, Message
from journal.texts import error_text

from .open_invocation import OpenInvocation

logger = logging.getLogger("actors")

KEPT: Final = 5
"""How many failures `actors.status()` lists."""
KNOWN_MAX: Final = 1_000
"""For how many invocations the failures of their host are counted."""
WHOLE_HOST: Final = Shard(-1)
SET_ASIDE_AT: Final = 2
"""How many failures of the host set an invocation aside."""


class Fault(NamedTuple):
    """A failure of a host itself, which is a defect of Perdure."""

    shard: int
    """-1: the whole host failed, and began again."""
    invocation: str
    """The invocation that the host was busy with; empty if that is not known."""
    error: str
    at_ms: int
    """The time of the failure, by the clock of its machine."""


class Suspects:
    """The failures of one process's host."""

    def __init__(self) -> None:
        self.faults: deque[Fault] = deque(maxlen=KEPT)
        self.set_aside: dict[str, str] = {}
        """Invocations that are not executed, with the reason."""
        self._counts: dict[str, int] = {}

    def note(self, shard: Shard, error: BaseException, at_ms: int) -> bool:
        """Note a failure; return whether its invocation is known and has not failed the host too often."""
        invocation = _invocation_in(error)
        logger.error(
            "a defect of Perdure, please report it: %s%s\n%s",
            "the host failed" if shard == WHOLE_HOST else f"shard {shard}: the host failed on it",
            f", at {invocation}" if invocation else "",
            traced(error, whole=True),
        )
        said = error_text(error, 500)
        self._keep(shard, invocation, said, at_ms)
        if not invocation:
            return False
        count = self._counts[invocation] = self._counts.pop(invocation, 0) + 1
        while len(self._counts) > KNOWN_MAX:
            del self._counts[next(iter(self._counts))]
        if count >= SET_ASIDE_AT:
            self.set_aside[invocation] = f"its host failed on it {count} times, a defect of Perdure: {said}"
        return count <= SET_ASIDE_AT

    def cannot_read(self, shard: Shard, invocation: str, error: Exception, at_ms: int) -> None:
        """Set an invocation aside whose journal or message cannot be read."""
        why = f"what the store holds of it cannot be read: {error_text(error, 500)}"
        logger.error("shard %d: %s: %s", shard, invocation, why)
        self._keep(shard, invocation, why, at_ms)
        self.set_aside[invocation] = f"{why}. It is left as it is: resume it with a version that can, or end it"

    def _keep(self, shard: Shard, invocation: str, said: str, at_ms: int) -> None:
        said = said.encode(errors="backslashreplace").decode()  # it goes through JSON
        self.faults.append(Fault(shard, invocation, said, at_ms))

    def release(self, invocation: str) -> str:
        """Return why an invocation is set aside, and forget it: an operator who resumes it wants it executed."""
        self._counts.pop(invocation, None)
        return self.set_aside.pop(invocation)


def shard_in_frames(error: BaseException) -> Shard:
    """Return the shard of the invocation that was under way; -1 if there was none."""
    return next((found.shard for found in _locals_of(error) if isinstance(found, OpenInvocation)), WHOLE_HOST)


def _invocation_in(error: BaseException) -> str:
    for found in _locals_of(error):
        if isinstance(found, OpenInvocation | Message):
            return found.id
        if isinstance(found, Event):
            return found.invocation
    return ""


def _locals_of(error: BaseException) -> list[Any]:
    """Return the locals of a failure's frames under the names that Perdure uses, the innermost first."""
    frames = frames_of(error)
    return [frame.f_locals[name] for frame in frames for name in ("run", "message", "event") if name in frame.f_locals]
