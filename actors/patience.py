"""Patience: going on asking a store that does not answer, and going on ending tasks that do not end.

Nothing is lost while a store is silent; callers see it take longer.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, TypeVar

from .errors import UnavailableError

logger = logging.getLogger("actors")

WAIT_FIRST: Final = 0.02
WAIT_MAX: Final = 0.5
"""Seconds between two tries: the first wait, doubled each time up to the last. So long may work wait for nothing once
the store is back; half of it, on average."""
CANCEL_AGAIN: Final = 0.1
"""Seconds after which a task that has not ended is cancelled again."""
T = TypeVar("T")


async def end(tasks: Iterable["asyncio.Task[Any]"]) -> None:
    """Cancel tasks until they have ended.

    Once is not enough before Python 3.12: `asyncio.wait_for`, with which the client library sends, takes a cancellation
    for its own when what it waited for is done at that moment (bpo-37658), and the task goes on.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN)


class Patience:
    """Waits longer each time, until renewed. Says why each time that it waits longer, then only what is new."""

    def __init__(self, who: str) -> None:
        self._who, self._delay, self._said = who, WAIT_FIRST, ""

    def renew(self) -> None:
        """Begin with short waits again: the store has answered."""
        if self._said:
            logger.warning("%s: the store answers again", self._who)
        self._delay, self._said = WAIT_FIRST, ""

    async def wait(self, error: UnavailableError) -> None:
        """Say why, and wait."""
        if self._said != str(error):
            is_last = self._delay == WAIT_MAX
            self._said = str(error) if is_last else ""
            every = "every" if is_last else "in"
            logger.warning("%s: %s; trying again %s %g s", self._who, error, every, self._delay)
        await asyncio.sleep(self._delay)
        self._delay = min(2 * self._delay, WAIT_MAX)

    async def until_answered(self, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return what the store answers, asking again, unchanged, while it does not."""
        while True:
            try:
                answer = await ask()
            except UnavailableError as error:
                await self.wait(error)
            else:
                self.renew()
                return answer
