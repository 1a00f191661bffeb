"""Failures: the log lines of a host about failed attempts that no caller waits for.

A waiting caller gets a notice of each failed attempt. A send, a schedule, or a call whose program has ended has no
waiting caller: the first failure of each type, handler and class of error is logged with its traceback, and then at
most one a minute.
"""

import logging
from collections.abc import Callable
from typing import Final

from actors.values.outcomes import name_of
from journal.records import teller_of_driver

from .open_invocation import OpenInvocation

logger = logging.getLogger("actors")

SAY_EVERY: Final = 60.0
"""Seconds between two lines of one kind."""
KINDS_MAX: Final = 1_000
"""Kinds of failures that are told apart; beyond it the kind that was logged longest ago is forgotten."""
LOG_ANYWAY_AFTER: Final = 6
"""From this many failures on a failure is logged although a driver waits: that program may have ended long ago."""

_DRIVER: Final = teller_of_driver("")


class Failures:
    """The failures that a host has logged."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._said: dict[tuple[str, ...], tuple[float, int]] = {}
        """When each kind was logged last, and how many failures were not logged since."""

    def note(self, run: OpenInvocation, error: BaseException, failed: int, text: str, what: str = "") -> None:
        """Log a failed attempt, the `failed`-th in a row, unless a caller waits or the kind was logged a moment ago."""
        if run.message.caller.startswith(_DRIVER) and failed < LOG_ANYWAY_AFTER:
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
