"""Failures: what a host's log says of attempts that fail and that nobody waits for.

Whoever waits is told of each (notices). A send, a schedule, or a call whose program has ended has nobody: the first
failure of each type, handler and class of error is said with its traceback, then at most one a minute.
"""

import logging
from collections.abc import Callable
from typing import Final

from actors.values.outcomes import name_of
from journal.records import teller_of_driver

from .activation import InFlight

logger = logging.getLogger("actors")

SAY_EVERY: Final = 60.0
"""Seconds between two lines of one kind."""
KINDS_MAX: Final = 1_000
"""Kinds of failures that are told apart; beyond it the one that was said longest ago is forgotten."""
UNHEARD_AFTER: Final = 6
"""From so many failures on it is said too where a driver waits: that program may have ended long ago."""

_DRIVER: Final = teller_of_driver("")


class Failures:
    """The failures that one host has said."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._said: dict[tuple[str, ...], tuple[float, int]] = {}
        """When each kind was said last, and how many were not since."""

    def note(self, run: InFlight, error: BaseException, failed: int, text: str, what: str = "") -> None:
        """Say that an attempt has failed, the so-manieth, unless somebody is told or it was said a moment ago."""
        if run.message.caller.startswith(_DRIVER) and failed < UNHEARD_AFTER:
            return
        kind, now = (run.type_name, run.message.handler, what, name_of(type(error))), self._now()
        said_at, unsaid = self._said.pop(kind, (now - SAY_EVERY, 0))
        if now - said_at < SAY_EVERY:
            self._said[kind] = said_at, unsaid + 1
            return
        self._said[kind] = now, 0
        if len(self._said) > KINDS_MAX:
            del self._said[next(iter(self._said))]
        more = f"\n({unsaid} more like this since the last line of this kind)" if unsaid else ""
        logger.warning("%s%s", text, more)
