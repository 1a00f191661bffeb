"""Holding back: invocations that wait because the processes that executed them have ended.

The black box says which, why, and for how long (`actors.activation.black_box`). They stay in the memory of their host,
each with its turn, and hold their own key alone; a cancel, a kill and a loss of the shard find them there. Nothing of
the wait is durable: whoever owns the shard next asks its own black box.
"""

import logging
from collections.abc import Callable
from typing import Final

from actors.activation.black_box import BlackBox
from actors.activation.endings import named
from actors.activation.open_invocation import OpenInvocation
from actors.activation.services import Services
from actors.activation.staging import Staging

from .turns import Turns

logger = logging.getLogger("actors")

LOOK_EVERY: Final = 0.25
"""Seconds between two looks whether an invocation still has to wait."""
TOLD_AT: Final = 12
"""After so many looks those who wait are told: a process is started again sooner, most often."""


class HoldingBack:
    """The invocations of a shard that are held back."""

    def __init__(
        self, services: Services, staging: Staging, turns: Turns, try_again: Callable[[OpenInvocation], None]
    ) -> None:
        self._services, self._staging, self._turns, self._try_again = services, staging, turns, try_again

    def hold(self, run: OpenInvocation, box: BlackBox, looks: int = 0) -> None:
        """Begin an attempt later: the last attempt may have ended its process. Tell who waits, if it takes long."""
        run.backing_off = True
        if looks in (0, TOLD_AT):
            text = f"{named(run)} waits: {box.held().get(run.id) or 'the process that executed it has ended'}"
            if looks:
                self._staging.notice(run.id, text.encode(errors="backslashreplace"), [])
            else:
                logger.warning("%s", text)
        self._services.loop.call_later(LOOK_EVERY, self._look, run, box, looks + 1)

    def _look(self, run: OpenInvocation, box: BlackBox, looks: int) -> None:
        if run.ended or not run.backing_off or self._turns.in_flight.get(run.id) is not run:
            return
        if box.holds(run.id) or run.unsettled:
            self.hold(run, box, looks)
            return
        run.backing_off = False
        self._try_again(run)
