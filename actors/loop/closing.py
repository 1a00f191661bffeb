"""Closing: the end of users' coroutines and generators for good, resisting ones too.

Owns nothing but the unwinding itself. A coroutine that will not end is kept for ever: the collector would let it run
on, anywhere, at any time.
"""

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import suppress
from contextvars import Context
from typing import Any, Final, cast

CLOSE_ATTEMPTS: Final = 100
"""How often a coroutine that awaits again after `GeneratorExit` is closed before it is given up."""

_undying: Final[list[object]] = []


def close_task(task: asyncio.Task[Any], within: Context | None) -> bool:
    """Close the task's coroutine where it stands, in its own context; return False if it awaits again and again.

    A token that `ContextVar.set` has returned there is valid there alone, and `finally` is the place of its reset.
    """
    task._log_destroy_pending = False  # pyright: ignore[reportAttributeAccessIssue]
    coro = cast("Coroutine[Any, Any, Any]", task.get_coro())
    for _ in range(CLOSE_ATTEMPTS):
        try:
            if within is None:
                coro.close()
            else:
                within.run(coro.close)
        except BaseException:  # noqa: BLE001 -- its `finally` failed, or awaited: the next close tells which
            continue
        _let_go(task)
        return True
    _undying.append(coro)
    return False


def _let_go(task: asyncio.Task[Any]) -> None:
    """Remove all callbacks between a closed task and others: such pairs would keep each other alive.

    On a loop that does not run any more a cancel calls nobody back: it only empties the list.
    """
    closed = cast("Any", task)
    for callback, _ in closed._callbacks or ():
        task.remove_done_callback(callback)
    waits_for = closed._fut_waiter
    if waits_for is not None:
        waits_for.cancel()
        cast("Any", asyncio.Future).cancel(waits_for)  # that of `gather` only passes a cancel on


def unwind(generator: AsyncGenerator[Any, Any]) -> None:
    """Close an asynchronous generator where it stands, without a loop."""
    closing = generator.aclose()
    with suppress(BaseException):  # also the StopIteration of a generator that has ended
        closing.send(None)
        for _ in range(CLOSE_ATTEMPTS):
            closing.throw(GeneratorExit)
