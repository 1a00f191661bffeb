"""Sagas: what one execution undoes when its handler ends for good in an error.

Where it lies. Nothing is stored when a compensation is deferred: a replay defers the same ones again, at the same
places. When the handler has ended, its tasks have, and the steps that it held are given up, a second root task on the
same loop runs what was deferred, newest first, one at a time. Each is a step like any other, its entry `run <name>`
behind those of the handler; so are its start, its retries and its record (`steps`, `attempts`).

What a death between two store calls does. The next owner replays the handler to the same error, from the same events,
and then the compensations, which get what is recorded; the first one without an outcome starts, perhaps once more, as
any step does. An error that is final only because the attempts are used up, or because a cancel waits behind it, is
marked by an entry: a replay that finds it there compensates, whatever is left of its attempts by then. What such an
attempt had not committed (state, messages) is discarded, as for every attempt that fails so.

Invariants:
    1. Nothing is undone after a handler that returned, nor when another attempt follows.
    2. A compensation that fails for good stops no other, and the error that all are for stays the outcome.
    3. A step whose wait was given up before its outcome came defers nothing: what must be undone in any case is
       deferred before.
    4. A cancel that comes while it compensates changes nothing; a kill ends it.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any, Final

from journal.entries import Message

from . import outcomes
from .errors import TerminalError

logger = logging.getLogger("actors")

GIVE_UP: Final = "give up"
"""The entry of an attempt that failed, had something to undo, and was the last."""
CANCELLED: Final = "give up cancelled"
"""The entry of one that failed before it could be told that it was cancelled."""
FAILED: Final = "compensation_failed"
"""Metadata of the outcome: names of compensations that failed for good."""


class Sagas:
    """The compensations of one execution."""

    def __init__(
        self, message: Message, run: Callable[..., "asyncio.Future[Any]"], is_replaying: Callable[[], bool]
    ) -> None:
        self._message, self._run, self._is_replaying = message, run, is_replaying
        self._deferred: list[tuple[Context, str, Any, tuple[Any, ...], dict[str, Any]]] = []
        self._failed: list[str] = []
        self.error: BaseException | None = None
        """With compensations under way or done: what they are for."""

    def __bool__(self) -> bool:
        """Whether there is something to undo."""
        return bool(self._deferred)

    def defer(self, name: str, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Add a compensation."""
        self._deferred.append((copy_context(), name, fn, args, kwargs))

    def defer_undo(self, name: str, undo: Any, step: "asyncio.Future[Any]") -> None:
        """Add a compensation with the result of a step, when it has one."""

        def succeeded(done: "asyncio.Future[Any]") -> None:
            if not done.cancelled() and done.exception() is None:
                self.defer(f"undo {name}", undo, (done.result(),), {})

        # The first callback of its future: it runs before whoever awaits it goes on.
        step.add_done_callback(succeeded)

    def begin(self, error: BaseException) -> Coroutine[Any, Any, None]:
        """Return what runs the compensations, for this error."""
        self.error = error
        return self._compensate()

    async def _compensate(self) -> None:
        while self._deferred:
            context, name, fn, args, kwargs = self._deferred.pop()
            try:
                await context.run(self._run, name, fn, args, kwargs, None, None)
            except TerminalError as error:
                self._failed.append(name)
                if not self._is_replaying():
                    where = f"{self._message.target}.{self._message.handler} ({self._message.id})"
                    logger.error("%s: the compensation %r failed: %s", where, name, outcomes.traced(error))

    def encoded(self, error: TerminalError) -> bytes:
        """Return the outcome of an error; it says which compensations failed."""
        if not self._failed:
            return outcomes.encoded_error(error)
        metadata = error.metadata
        error.metadata = {**metadata, FAILED: ", ".join(self._failed)}
        try:
            return outcomes.encoded_error(error)
        finally:
            error.metadata = metadata  # it may be one that the program raises again, elsewhere
