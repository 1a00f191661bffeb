"""Loops: the event loops of a program's own threads, its client's and its host's.

Why uvloop: what a call costs beside the handler is mostly waking up, reading and writing, which it does in C.
"""

import asyncio
from typing import Final

import uvloop

TURNS_TO_CLOSE: Final = 3
"""A transport closes its socket in the next turn of its loop, a stream a turn later."""


def new_loop() -> asyncio.AbstractEventLoop:
    """Return a loop for a thread of our own; `close` it there."""
    return uvloop.new_event_loop()


def close(loop: asyncio.AbstractEventLoop) -> None:
    """Close a loop that has stopped, once connections that were dropped on it have closed their sockets."""
    for _ in range(TURNS_TO_CLOSE):
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()
