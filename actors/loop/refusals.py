"""Refusals: the errors of a handler that uses something that a replay could not repeat."""

from asyncio import tasks, wrap_future
from collections.abc import Callable
from types import FrameType
from typing import Any, Final, cast

from actors.errors import Refusal

_ASYNCIO_TASKS: Final = cast("dict[str, Any]", vars(tasks))
_WRAPS_A_FUTURE: Final = cast("Any", wrap_future).__code__
_AS_COMPLETED: Final = {"as_completed", "_AsCompletedIterator.__init__"}


def outside_refusal(what: str) -> Refusal:
    """Return the error of a handler that reaches outside."""
    return Refusal(f"{what} in a handler: I/O, threads and processes belong in ctx.run()")


def ray_refusal(what: str) -> Refusal:
    """Return the error of a handler that waits for the cluster, or acts on it."""
    return Refusal(
        f"{what} in a handler stops its whole host, and each replay would do it again: "
        'write `await ctx.run("x", f.remote, x)` for `ray.get(f.remote(x))`; all else of Ray belongs in ctx.run() too'
    )


def foreign_future(frame: FrameType) -> Refusal | None:
    """Return the error of a handler that awaits a thread, where the thread's future is made; else None."""
    if frame.f_code is not _WRAPS_A_FUTURE:
        return None
    if hasattr(frame.f_locals.get("future"), "object_ref"):  # Ray's future for an awaited ObjectRef
        return Refusal(
            "a Ray task or actor is awaited in a handler, and each replay would call it again: "
            'write `await ctx.run("x", f.remote, x)` for `await f.remote(x)`'
        )
    return outside_refusal("the future of a thread is awaited")


def is_called_by_as_completed(frame: FrameType | None) -> bool:
    """Whether asyncio's `as_completed` makes the task that is being made."""
    # From create_task up through asyncio's own frames; a call by the user's code ends the search at once or after one.
    while frame is not None and frame.f_globals is _ASYNCIO_TASKS:
        if frame.f_code.co_qualname in _AS_COMPLETED:
            return True
        frame = frame.f_back
    return False


def refusal(name: str) -> Callable[..., Any]:
    """Return a method of a loop that raises a `Refusal`."""

    def refused(*_args: object, **_kwargs: object) -> Any:
        raise outside_refusal(name)

    refused.__name__ = name
    return refused
