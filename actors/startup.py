"""Startup: shields the program from the side effects of the start of a session, and of a Ray in it.

Owns the program's signals, threads and event loop while that goes on. Does not own: the start itself (`session`,
`ray`).

Ray replaces the handler of SIGTERM, in Python and below it, so that a web server would end without its clean-up; and
its processes end with the thread that started them (`PR_SET_PDEATHSIG`), not with the process.
"""

import asyncio
import contextlib
import dis
import inspect
import logging
import signal
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future
from types import FrameType
from typing import Final, TypeVar

logger = logging.getLogger("actors")

PUT_BACK: Final = (signal.SIGTERM, signal.SIGINT)
T = TypeVar("T")


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def interrupted_later() -> Generator[None]:
    """Let the first Ctrl-C wait for the end of the block: a Ray that is left half started leaves processes behind."""
    before = signal.getsignal(signal.SIGINT)
    if not _is_main_thread() or not callable(before):
        yield
        return
    noted: list[FrameType | None] = []

    def note(number: int, frame: FrameType | None) -> None:
        if noted:  # again: a second Ctrl-C does not wait
            before(number, frame)
        logger.warning("interrupted while Ray starts: ending when it has started")
        noted.append(frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if noted:
            before(signal.SIGINT, noted[0])


@contextlib.contextmanager
def handlers_put_back() -> Generator[None]:
    """Put the program's signal handlers back after the block, in Python and below it."""
    before = {number: signal.getsignal(number) for number in PUT_BACK}
    try:
        yield
    finally:
        if _is_main_thread():  # only there signals have handlers, and can be given any
            for number, handler in before.items():
                if handler is not None:  # a handler that is not of Python cannot be put back from here
                    signal.signal(number, handler)


class LastingThread:
    """Calls a function once, in the main thread or in one that lives on until it is ended, or the process ends."""

    def __init__(self) -> None:
        self._over = threading.Event()

    def call(self, function: Callable[[], T]) -> T:
        """Return the function's result, or raise its error."""
        if _is_main_thread():
            return function()
        called: Future[T] = Future()

        def run() -> None:
            try:
                called.set_result(function())
            except BaseException as error:  # noqa: BLE001 - it is the caller's
                called.set_exception(error)
            else:
                self._over.wait()

        threading.Thread(target=run, name="perdure-ray", daemon=True).start()
        return called.result()

    def end(self) -> None:
        """Let the thread end."""
        self._over.set()


def is_entered(caller: FrameType | None) -> bool:
    """Whether the caller's result goes straight into an `async with` of a coroutine.

    Its bytecode tells: nothing else distinguishes `async with init()` from an `init()` that is to be done when it
    returns.
    """
    if caller is None or asyncio._get_running_loop() is None:  # pyright: ignore[reportPrivateUsage]  # never raises
        return False
    if not caller.f_code.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR):
        return False
    following = [found for found in dis.get_instructions(caller.f_code) if found.offset > caller.f_lasti][:3]
    # Until Python 3.13 one instruction does it, from 3.14 on one loads each of its methods.
    return any(
        found.opname == "BEFORE_ASYNC_WITH" if number == 0 else found.argrepr == "__aexit__"
        for number, found in enumerate(following)
    )
