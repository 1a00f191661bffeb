"""Threads: the event loops of a program's own threads, its client's and its host's.

Why uvloop: the cost of a call beside the handler is mostly waking up, reading and writing, which it does in C.
"""

import asyncio
import logging
from typing import Any, Final

import uvloop

from .tracebacks import traced

logger = logging.getLogger("actors")

TURNS_TO_CLOSE: Final = 3
"""A transport closes its socket in the next turn of its loop, a stream a turn later."""


def new_loop() -> asyncio.AbstractEventLoop:
    """Return a loop for a thread of our own; `close` it there."""
    return uvloop.new_event_loop()


def run_on(loop: asyncio.AbstractEventLoop, task: "asyncio.Task[Any]") -> None:
    """Run a task to its end, whatever others of its loop raise.

    A task or a callback that ends in SystemExit or KeyboardInterrupt ends the call that runs its loop, and none of
    these means a thread of our own: `sys.exit()` in a task that a step has made, for one. The task itself has failed
    with it.
    """
    while not task.done():
        try:
            loop.run_until_complete(task)
        except (SystemExit, KeyboardInterrupt) as error:
            if not task.done():
                logger.warning("%s in a task of a step: the host goes on\n%s", type(error).__name__, traced(error))


def close(loop: asyncio.AbstractEventLoop) -> None:
    """Close a loop that has stopped, once connections that were dropped on it have closed their sockets."""
    for _ in range(TURNS_TO_CLOSE):
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()
