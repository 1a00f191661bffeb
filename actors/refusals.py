"""Refusals: what of asyncio a handler may not use, since a replay could not repeat it."""

from asyncio import tasks
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, cast

from .errors import UsageError

_ASYNCIO_TASKS: Final = cast("dict[str, Any]", vars(tasks))
_AS_COMPLETED: Final = {"as_completed", "_AsCompletedIterator.__init__"}


def is_called_by_as_completed(frame: FrameType | None) -> bool:
    """Whether asyncio's `as_completed` makes the task that is being made."""
    # From create_task up through asyncio's own frames; a call by the user's code ends the search at once or after one.
    while frame is not None and frame.f_globals is _ASYNCIO_TASKS:
        if frame.f_code.co_qualname in _AS_COMPLETED:
            return True
        frame = frame.f_back
    return False


def refusal(name: str) -> Callable[..., Any]:
    """Return a method of a loop that raises `UsageError`."""

    def refused(*_args: object, **_kwargs: object) -> Any:
        raise UsageError(f"{name} in a handler: I/O, threads and processes belong in ctx.run()")

    refused.__name__ = name
    return refused
