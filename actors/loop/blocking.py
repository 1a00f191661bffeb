"""Blocking: the refusal of a handler's calls that stop a whole host, and of reads that a replay may find changed.

Owns the watch over one process. The loop refuses calls that reach it (`loop.py`); a library that opens a socket by
itself does not ask the loop, and holds up every other object of the host until the network answers; a replay would do
it again.

Refused are connections, names looked up, processes, threads, files, and `time.sleep`, on the thread and in the moment
in which a handler runs. Everywhere else (steps, drivers, the host itself) nothing changes. Not refused: calls during an
import, which happens once; calls of `logging` and of a debugger; reading the sources that a traceback shows; reading
installed files (a library's data, time zones), which are as constant as its code; a thread that a library keeps for
itself. Not seen: reads and writes of an open socket or file; `os.stat`; libraries that connect in C. Where a module
said `from time import sleep` before the host began, only Python 3.13 tells; of threads Python 3.11 tells nothing, so
that `threading` is watched there.

Calls of Ray that ask the cluster (`RAY`) are refused, if Ray was imported when the class was first looked for.

Why audit events: they come before the effect, from C and Python alike, and cost 0.2 µs where nothing is refused. A hook
stays until the process ends, so there is one for all its hosts.
"""

import os
import sys
import sysconfig
import threading
from collections.abc import Callable
from functools import cache, wraps
from types import FrameType
from typing import Any, Final

from actors.errors import UsageError
from journal.clock import watch_sleep

from .loop import DeterministicLoop, running_loop
from .refusals import outside_refusal, ray_refusal

_FILES: Final = frozenset({"open", "os.listdir", "os.scandir"})
"""Events of reads that are allowed for installed files; their first argument is the path."""
_THREADS: Final = frozenset({"_thread.start_joinable_thread", "_thread.start_new_thread"})

REFUSED: Final = (
    frozenset(
        {
            "builtins.input",
            "os.chmod",
            "os.chown",
            "os.exec",
            "os.fork",
            "os.forkpty",
            "os.link",
            "os.mkdir",
            "os.posix_spawn",
            "os.remove",
            "os.rename",
            "os.rmdir",
            "os.spawn",
            "os.startfile",
            "os.symlink",
            "os.system",
            "os.truncate",
            "os.utime",
            "pty.spawn",
            "socket.bind",
            "socket.connect",
            "socket.getaddrinfo",
            "socket.gethostbyaddr",
            "socket.gethostbyname",
            "socket.getnameinfo",
            "socket.sendmsg",
            "socket.sendto",
            "sqlite3.connect",
            "subprocess.Popen",
            "time.sleep",
        }
    )
    | _FILES
    | _THREADS
)
"""Audit events, each named after the function that raises it."""

RAY: Final = ("cancel", "get", "get_actor", "init", "kill", "wait")
"""Functions of Ray that wait for the cluster, or act on it."""

_ALLOWED_FROM: Final = frozenset({"bdb", "importlib", "linecache", "logging", "pdb", "pydevd", "warnings", "zoneinfo"})
"""Packages on whose behalf anything is allowed."""
_OFFLOADING: Final = frozenset({"anyio", "asgiref", "asyncio", "concurrent"})
"""Packages whose threads do work that a handler waits for."""
_WRITING: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

_is_installed: Final = threading.Lock()
"""Locked by the first host of a process, for ever."""


def refuse_blocking() -> None:
    """Refuse blocking calls of handlers in this process from now on; calling it again does nothing."""
    if _is_installed.acquire(blocking=False):
        sys.addaudithook(_hook())
        if sys.version_info < (3, 13):  # from there on time.sleep is audited
            watch_sleep(lambda: _refuse_in_a_handler("time.sleep", ()))
        if sys.version_info < (3, 12):
            _watch_threads()


def refuse_ray() -> None:
    """Refuse calls of handlers that wait for Ray, if it was imported in this process; ask again when it may have been.

    A function of Ray is replaced in the modules that export it: a module that imported it by name before keeps it.
    """
    for module in (sys.modules.get("ray._private.worker"), sys.modules.get("ray")):
        names: dict[str, Any] = {} if module is None else vars(module)
        for name in RAY:
            if callable(found := names.get(name)) and not hasattr(found, "refuses_handlers"):
                names[name] = _refused_in_handlers(f"ray.{name}", found)


def _refused_in_handlers(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(call)
    def watched(*arguments: Any, **named: Any) -> Any:
        if isinstance(running_loop(), DeterministicLoop):
            raise ray_refusal(name)
        return call(*arguments, **named)

    watched.refuses_handlers = True  # pyright: ignore[reportAttributeAccessIssue]
    return watched


def _watch_threads() -> None:
    module: Any = threading
    start: Callable[..., int] = module._start_new_thread

    def watched(*arguments: Any) -> int:
        _refuse_in_a_handler("_thread.start_new_thread", ())
        return start(*arguments)

    module._start_new_thread = watched


def _hook() -> Callable[[str, tuple[Any, ...]], None]:
    # By closure: while the interpreter ends, events come when modules have lost their names.
    refused, refuse = REFUSED, _refuse_in_a_handler

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in refused:
            refuse(event, arguments)

    return hook


def _refuse_in_a_handler(call: str, arguments: tuple[Any, ...]) -> None:
    if not isinstance(running_loop(), DeterministicLoop):
        return
    frame = sys._getframe(1)  # pyright: ignore[reportPrivateUsage]
    if _is_allowed(frame) or (call in _FILES and _only_reads_what_is_installed(*arguments)):
        return
    if call in _THREADS:
        if not _is_a_librarys_own(frame):
            raise outside_refusal("a thread is started")
    elif call == "time.sleep":
        raise UsageError(
            "time.sleep in a handler: await asyncio.sleep(), which is durable; what blocks belongs in ctx.run()"
        )
    elif call != "sqlite3.connect" or arguments[:1] != (":memory:",):
        raise outside_refusal(call)


def _is_allowed(frame: FrameType | None) -> bool:
    while frame is not None and (module := frame.f_globals.get("__name__")) != DeterministicLoop.__module__:
        if _package(module) in _ALLOWED_FROM:
            return True
        frame = frame.f_back
    return False


def _package(module: object) -> str:
    return module.partition(".")[0] if isinstance(module, str) else ""


def _only_reads_what_is_installed(path: Any, mode: object = None, flags: object = 0) -> bool:
    if (isinstance(flags, int) and flags & _WRITING) or isinstance(path, int) or path is None:
        return False
    return _is_of_an_installation(os.path.abspath(os.fsdecode(path)))


def _is_a_librarys_own(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_globals.get("__name__") in (__name__, "threading"):
        frame = frame.f_back
    if frame is None or _package(frame.f_globals.get("__name__")) in _OFFLOADING:
        return False
    return _is_of_an_installation(frame.f_code.co_filename)


def _is_of_an_installation(path: str) -> bool:
    return path.startswith(_installations())


@cache
def _installations() -> tuple[str, ...]:
    import zoneinfo  # few handlers come here

    folders = (sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))
    return (os.devnull, "/dev/urandom", *(f"{folder}{os.sep}" for folder in (*folders, *zoneinfo.TZPATH)))
