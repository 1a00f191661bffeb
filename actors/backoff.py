"""Backoff: retries of a store that does not answer, and of the end of tasks that do not end.

Nothing is lost while a store is silent; callers see it take longer.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final, TypeVar

from journal.errors import NotNowError

from .errors import DurableError, UnavailableError

logger = logging.getLogger("actors")

WAIT_FIRST: Final = 0.02
WAIT_MAX: Final = 0.5
"""Seconds between two tries: the first wait, doubled each time up to the last. So long may work be idle once the store
is back; half of it, on average."""
NOT_NOW_MAX: Final = 10.0
"""Seconds for which a program that connects, or sends its code, waits for a store that is there and not ready."""
REASONS_MAX: Final = 10
"""Most different reasons that are logged before the store answers again."""
CANCEL_AGAIN: Final = 0.1
"""Seconds after which a task that has not ended is cancelled again."""
T = TypeVar("T")


async def end(tasks: Iterable["asyncio.Task[Any]"]) -> None:
    """Cancel tasks until they have ended.

    Once is not enough before Python 3.12: `asyncio.wait_for`, with which the client library sends, takes a cancellation
    for its own when the awaited future is done at that moment (bpo-37658), and the task goes on.
    """
    pending = set(tasks)
    while pending:
        for task in pending:
            task.cancel()
        _, pending = await asyncio.wait(pending, timeout=CANCEL_AGAIN)


class Patience:
    """Waits longer each time, until renewed. Logs each reason once, and then that the store answers again."""

    def __init__(self, who: str) -> None:
        self._who, self._delay, self._said = who, WAIT_FIRST, set[str]()

    def renew(self) -> None:
        """Begin with short waits again: the store has answered."""
        if self._said:
            logger.warning("%s: the store answers again", self._who)
            self._said.clear()
        self._delay = WAIT_FIRST

    def say(self, error: Exception) -> None:
        """Log the reason, unless it was logged."""
        text = str(error)
        if text not in self._said and len(self._said) < REASONS_MAX:
            self._said.add(text)
            logger.warning("%s: %s; asking again until it does", self._who, text)

    async def wait(self, error: Exception) -> None:
        """Log the reason, and wait."""
        self.say(error)
        await asyncio.sleep(self._delay)
        self._delay = min(2 * self._delay, WAIT_MAX)

    async def for_a_while(self, ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return the store's answer; ask a store that is not ready again, for at most `NOT_NOW_MAX`."""
        until = asyncio.get_running_loop().time() + NOT_NOW_MAX
        while True:
            try:
                answer = await ask()
            except NotNowError as error:
                if asyncio.get_running_loop().time() > until:
                    raise
                await self.wait(error)
            else:
                self.renew()
                return answer

    async def until_answered(self, ask: Callable[[], Coroutine[Any, Any, T]], *others: type[DurableError]) -> T:
        """Return the store's answer, asking again, unchanged, while there is none or it is one of these errors."""
        while True:
            try:
                answer = await ask()
            except (UnavailableError, *others) as error:
                await self.wait(error)
            else:
                self.renew()
                return answer
