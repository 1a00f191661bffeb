"""The guard: the process that starts the embedded server of a directory, and stops it after its last user.

Run by path with `-I -S` and the standard library alone, so that it is up in milliseconds and owes nothing to the
user's environment. `journal/server.py` starts it and shares the small things below with it.

The files of a directory (locks are `flock`s: they end with the last process that holds the descriptor, however it
ends):

    users     every program that uses the server holds it shared; the guard takes it exclusive before it stops anything
    guard     held by the guard from before its birth (inherited from who started it); holds its pid
    lock      held by the server, inherited from the guard: two servers on one directory lose what they acknowledge
    address   URL of the server, written before it starts; who reads it asks the server whether it is the right one
    keep      if there, the server stays when its last user has gone

Invariants:

1. While `lock` is held, `address` is the address of its holder: only who has just taken `lock` writes it.
2. Who holds `users` shared never has the server stopped under it: the guard holds `users` exclusive from before the
   shutdown until it ends. So a program takes `users` first and reads `address` then.
3. While a program holds `users`, a server that dies is started again, at its old port if that is free, so that clients
   find it by reconnecting; after `FAILURES_MAX` starts in a row that never answered the guard gives up and ends.
4. No death leaves anything held: of the program that started the guard (the guard is nobody's child), of the guard
   (the next program starts one, which adopts the server), of the server.
"""

import contextlib
import fcntl
import os
import select
import signal
import socket
import sys
from enum import Enum
from typing import BinaryIO, NamedTuple

POLL_SECONDS = 0.05
FAILURES_MAX = 3
STOP_POLLS = 200
LOG_BYTES_MAX = 4_000_000
PING_SECONDS = 2.0

LOG = "valkey.log"
SETTINGS = (
    *("--bind", "127.0.0.1"),
    *("--appendonly", "yes", "--appendfsync", "always", "--no-appendfsync-on-rewrite", "no", "--save", ""),
    # A small hash is searched from its start: `ids` with its hundreds of fields is no small one.
    *("--hash-max-listpack-entries", "64"),
    *("--maxmemory-policy", "noeviction", "--dir", ".", "--logfile", LOG, "--daemonize", "no"),
)


class Health(Enum):
    """What a server says when it is asked."""

    GONE = "nothing of ours answers"
    LOADING = "it reads its data"
    READY = "it answers"


class Answer(NamedTuple):
    """The health of a server, and its process if one answered."""

    health: Health
    pid: int = 0


# --- locks -----------------------------------------------------------------------------------------------------------


def opened(path: str) -> int:
    """Return a new descriptor of a lock file, which child processes do not inherit."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def locked(descriptor: int, mode: int = fcntl.LOCK_EX) -> bool:
    """Take the lock if it is free, and tell whether we hold it.

    It is given back by closing, never by LOCK_UN: that would take it from everyone who inherited the descriptor.
    """
    try:
        fcntl.flock(descriptor, mode | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def pause() -> None:
    """Wait for one poll."""
    select.select([], [], [], POLL_SECONDS)


# --- the address -----------------------------------------------------------------------------------------------------


def url_of(port: int) -> str:
    """Return the URL of an embedded server."""
    return f"redis://127.0.0.1:{port}/0"


def read_port(directory: str) -> int:
    """Return the port of the server that a directory has or had last; 0 if it never had one."""
    try:
        with open(os.path.join(directory, "address"), encoding="ascii") as file:
            return int(file.read().strip().removesuffix("/0").rpartition(":")[2])
    except (OSError, ValueError):
        return 0


def write_port(port: int) -> None:
    """Note the server's address in the current directory, whole or not at all."""
    with open("address.new", "w", encoding="ascii") as file:
        file.write(url_of(port) + "\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace("address.new", "address")


def free_port(preferred: int) -> int:
    """Return the preferred port if nobody has it, else any free one."""
    for port in (preferred, 0):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return sock.getsockname()[1]
    raise OSError("no free port on 127.0.0.1")


# --- talking to a server ---------------------------------------------------------------------------------------------


def ask(port: int, directory: str) -> Answer:
    """Return how the server of this directory is, if it is what listens on the port.

    A port may have passed to another program's server meanwhile, which must not be taken for ours.
    """
    if not port:
        return Answer(Health.GONE)
    try:
        alive, info, where = talk(port, b"PING\r\nINFO server\r\nCONFIG GET dir\r\n", 3)
        if where[-1:] != [os.fsencode(os.path.realpath(directory))]:
            return Answer(Health.GONE)
        pid = int(info[0].partition(b"process_id:")[2].split(None, 1)[0])
    except (OSError, ValueError, IndexError):
        return Answer(Health.GONE)
    if alive == [b"+PONG"]:
        return Answer(Health.READY, pid)
    return Answer(Health.LOADING if alive[0].startswith(b"-LOADING") else Health.GONE, pid)


def talk(port: int, commands: bytes, replies: int) -> list[list[bytes]]:
    """Send inline commands and return that many replies, each as its flat list of values."""
    with socket.create_connection(("127.0.0.1", port), PING_SECONDS) as sock:
        sock.sendall(commands)
        with sock.makefile("rb") as stream:
            return [read_reply(stream) for _ in range(replies)]


def read_reply(stream: BinaryIO) -> list[bytes]:
    """Return one RESP2 reply; status and error lines keep their sign."""
    line = stream.readline()
    if not line.endswith(b"\r\n"):
        raise OSError("the connection ended")
    kind, rest = line[:1], line[1:-2]
    if kind == b"*":
        return [value for _ in range(int(rest)) for value in read_reply(stream)]
    if kind == b"$":
        return [stream.read(int(rest) + 2)[:-2]]
    return [line[:-2]]


# --- the guard's life ------------------------------------------------------------------------------------------------


def start_server(binary: str, lock: int, port: int) -> int:
    """Start the server with the held lock, and return its pid. Our descriptor of the lock is closed."""
    write_port(port)
    if os.path.exists(LOG) and os.path.getsize(LOG) > LOG_BYTES_MAX:
        os.replace(LOG, LOG + ".old")
    os.set_inheritable(lock, True)
    try:
        return os.posix_spawn(
            binary,
            [binary, "--port", str(port), *SETTINGS],
            os.environ,
            setsigmask=(),
            setsigdef=(signal.SIGCHLD, signal.SIGINT, signal.SIGTERM),  # whatever the user's program does with them
        )
    finally:
        os.close(lock)


def watch(binary: str, users: int, lock: int) -> str:
    """Keep a server running until nobody uses it; return why that ended."""
    port, pid, failures, has_started = read_port("."), 0, 0, False
    while True:
        reap()
        if locked(lock):  # no server runs
            if failures == FAILURES_MAX:
                return f"the server did not start in {FAILURES_MAX} attempts"
            if not has_started and os.path.exists("keep"):
                os.unlink("keep")  # it was said of a server that is no more
            port = free_port(port)
            pid, has_started, failures = start_server(binary, lock, port), True, failures + 1
            lock = opened("lock")
        elif failures and ask(port, ".").health is Health.READY:
            failures = 0
        if locked(users):
            return "kept" if os.path.exists("keep") else stop_server(port, pid, lock)
        pause()


def stop_server(port: int, pid: int, lock: int) -> str:
    """Return when the server has ended; `pid` is not 0 if we started it."""
    for poll in range(STOP_POLLS):
        if poll % 20 == 0:
            ask_to_end(port, pid)
        reap()
        if locked(lock):
            return "the last user has gone"
        pause()
    if is_child(pid):
        os.kill(pid, signal.SIGKILL)  # loses nothing: what was acknowledged is on the disk
    return "the server did not shut down in time"


def ask_to_end(port: int, pid: int) -> None:
    """Ask the server to end, whatever it is doing; one that we adopted gets a command, since its pid may be stale."""
    if is_child(pid):
        os.kill(pid, signal.SIGTERM)
    elif ask(port, ".").health is not Health.GONE:
        with contextlib.suppress(OSError):  # it ends without a reply
            talk(port, b"SHUTDOWN NOSAVE NOW FORCE\r\n", 1)


def is_child(pid: int) -> bool:
    """Tell whether this is our child and has not ended, so that the number cannot mean another process."""
    try:
        return pid > 0 and os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return False


def reap() -> None:
    """Bury a child that has ended."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def main(directory: str, binary: str, guard: int) -> None:
    """Leave the family of the program that started us, watch over the server, end."""
    if os.fork():
        os._exit(0)  # who started us waits for this one; the guard itself is nobody's child
    os.umask(0o077)
    os.chdir(directory)
    os.set_inheritable(guard, False)  # it must not outlive us in the server
    os.ftruncate(guard, 0)
    os.pwrite(guard, b"%d\n" % os.getpid(), 0)
    users, lock = opened("users"), opened("lock")
    try:
        reason = watch(binary, users, lock)
    except OSError as exc:
        reason = f"{type(exc).__name__}: {exc}"
    sys.stderr.write(f"{os.getpid()}:guard {reason}\n")  # which is the log
    # Before `users` is free, so that who gets `users` finds no guard that is about to end.
    os.close(guard)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
