"""Blocking: calls that stop a whole host, refused where a handler makes them.

Owns the watch over one process. The loop refuses what asks it (`loop.py`); a library that opens a socket by itself
does not, and holds up every other object of the host until the network answers; a replay would do it again.

Refused are connections, names looked up, processes, and `time.sleep`, on the thread and in the moment in which a
handler runs. Everywhere else (steps, drivers, the host itself) nothing changes. Not refused: `open` and what reads
and writes an open socket (importing reads files); threads; what an import does, which happens once; what `logging`
does with a record. Where a module said `from time import sleep` before the host began, only Python 3.13 tells.

Why audit events: they come before the effect, from C and Python alike, and cost 0.2 µs where nothing is refused. A hook
stays until the process ends, so there is one for all its hosts.
"""

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from journal.clock import watch_sleep

from .errors import UsageError
from .loop import DeterministicLoop
from .place import running_loop

REFUSED: Final = frozenset(
    {
        "os.exec",
        "os.fork",
        "os.forkpty",
        "os.posix_spawn",
        "os.spawn",
        "os.startfile",
        "os.system",
        "pty.spawn",
        "socket.bind",
        "socket.connect",
        "socket.getaddrinfo",
        "socket.gethostbyaddr",
        "socket.gethostbyname",
        "socket.getnameinfo",
        "socket.sendmsg",
        "socket.sendto",
        "subprocess.Popen",
        "time.sleep",
    }
)
"""Audit events, each named after the function that raises it."""

_ALLOWED_FROM: Final = frozenset({"importlib._bootstrap", "logging"})

_is_installed: Final = threading.Lock()
"""Taken by the first host of a process, for ever."""


def refuse_blocking() -> None:
    """Refuse blocking calls of handlers in this process from now on; calling it again does nothing."""
    if _is_installed.acquire(blocking=False):
        sys.addaudithook(_hook())
        if sys.version_info < (3, 13):  # from there on time.sleep is audited
            watch_sleep(lambda: _refuse_in_a_handler("time.sleep"))


def _hook() -> Callable[[str, tuple[Any, ...]], None]:
    # By closure: while the interpreter ends, events come when modules have lost their names.
    refused, refuse = REFUSED, _refuse_in_a_handler

    def hook(event: str, _arguments: tuple[Any, ...]) -> None:
        if event in refused:
            refuse(event)

    return hook


def _refuse_in_a_handler(call: str) -> None:
    if not isinstance(running_loop(), DeterministicLoop) or _is_allowed(sys._getframe(1)):  # pyright: ignore[reportPrivateUsage]
        return
    if call == "time.sleep":
        raise UsageError(
            "time.sleep in a handler: await asyncio.sleep(), which is durable; what blocks belongs in ctx.run()"
        )
    raise UsageError(f"{call} in a handler: I/O, threads and processes belong in ctx.run()")


def _is_allowed(frame: FrameType | None) -> bool:
    while frame is not None and (module := frame.f_globals.get("__name__")) != DeterministicLoop.__module__:
        if module in _ALLOWED_FROM:
            return True
        frame = frame.f_back
    return False
