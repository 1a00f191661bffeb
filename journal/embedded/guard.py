"""The guard: the process that starts the embedded server of a directory, and stops it after its last user.

It is run by path with `-I -S` and uses the standard library alone, so that it is up in milliseconds and owes nothing to
the user's environment. `server.py` starts it and shares the small things below with it.

The files of a directory (locks are `flock`s: they end with the last process that holds the descriptor, however it
ends):

    users     every program that uses the server holds it shared; the guard takes it exclusive before it stops anything
    guard     held by the guard from before its birth (inherited from the program that started it); holds its pid
    lock      held by the server, inherited from the guard: two servers on one directory lose what they acknowledge
    socket    where the server listens
    address   URL of that, written before the server starts; a reader asks the server whether it is the right one
    keep      if there, the server stays when its last user has gone

Access. The store holds pickles, which run code where they are read: so no other user of the machine may write to it,
and nothing may be read from a server that another user put in its place. A password in a file would prevent the first;
but a client sends it to any process that listens, and a port that is free for a moment may be taken by any user. So the
server has no port and no password: it listens on a socket (mode 0600) in a directory of mode 0700 that is ours, and the
kernel vouches for both ends: a user who cannot enter the directory cannot connect, and a client asks the kernel, before
it sends or reads a byte, whether the listening process belongs to its own user (`is_ours`). There is no secret to leak,
and no port that is taken while the server is away. Hosts of a Ray on this machine reach it; those of others need a
Redis or Valkey of their own, as ever. `redis-cli -s .perdure/socket` looks inside.

A socket's path has at most about 100 bytes. Where the directory's is longer, or lies where no socket can be made, the
socket lies in a directory of its own, of mode 0700, under the machine's one for temporary files; `address` says where.

Invariants:

1. While `lock` is held, `address` is the address of its holder: only a process that has just taken `lock` writes it.
2. The server is never stopped under a program that holds `users` shared: the guard holds `users` exclusive from before
   the shutdown until it ends. So a program takes `users` first and reads `address` then.
3. While a program holds `users`, a server that dies is started again, at its old address, so that clients find it by
   reconnecting. After `FAILURES_MAX` starts in a row that never answered the guard gives up and ends; the programs
   start another one (a disk that was full has room again).
4. No death leaves anything held: of the program that started the guard (the guard is nobody's child), of the guard
   (a program starts one, which adopts the server), of the server.
5. No file here is opened through a link, and none that is not ours.
"""

import contextlib
import errno
import fcntl
import os
import select
import signal
import socket
import stat
import struct
import sys
from enum import Enum
from typing import BinaryIO, NamedTuple
from urllib.parse import quote, unquote

POLL_SECONDS = 0.05
FAILURES_MAX = 3
STOP_POLLS = 200
REST_POLLS_MAX = 40
"""Polls between two starts of a server that dies again and again; a server that has lived longer is started at once."""
LOG_BYTES_MAX = 4_000_000
PING_SECONDS = 2.0
PATH_BYTES_MAX = 100
"""Of a socket: Linux takes 107, macOS 103."""

LOG = "valkey.log"
SOCKET = "socket"
SETTINGS = (
    *("--port", "0", "--unixsocketperm", "600"),
    *("--appendonly", "yes", "--appendfsync", "always", "--no-appendfsync-on-rewrite", "no", "--save", ""),
    # A small hash is searched from its start: `ids` with its hundreds of fields is no small one.
    *("--hash-max-listpack-entries", "64"),
    # No log file: the server would open it by its name. It inherits the one that we have opened.
    *("--maxmemory-policy", "noeviction", "--dir", ".", "--logfile", "", "--daemonize", "no"),
)


class Health(Enum):
    """How a server is, by its answer to PING."""

    GONE = "nothing of ours answers"
    LOADING = "it reads its data"
    READY = "it answers"


class Answer(NamedTuple):
    """The health of a server, and its process if one answered."""

    health: Health
    pid: int = 0


# --- files and locks -------------------------------------------------------------------------------------------------


def opened(name: str, directory: int | None = None, flags: int = os.O_RDWR | os.O_CREAT) -> int:
    """Return a new descriptor of a file of ours, which child processes do not inherit; no link is followed."""
    safe = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # a pipe in its place must not hold us
    descriptor = os.open(name, flags | safe, 0o600, dir_fd=directory)
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink > 1:
        os.close(descriptor)
        raise PermissionError(errno.EPERM, "it is no file, or another's, or has another name elsewhere", name)
    return descriptor


def read(name: str, directory: int | None = None) -> str:
    """Return the text of a file of ours, empty if there is none."""
    try:
        with open(opened(name, directory, os.O_RDONLY), encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""


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


def check_links() -> None:
    """Refuse links in the current directory, where the server would follow them."""
    for place in (".", "appendonlydir"):
        with contextlib.suppress(FileNotFoundError), os.scandir(place) as entries:
            for entry in entries:
                if entry.is_symlink():
                    raise OSError(errno.ELOOP, "it is a link, which the server would follow", entry.path)


# --- the address -----------------------------------------------------------------------------------------------------


def url_of(path: str) -> str:
    """Return the URL of a socket."""
    return f"unix://{quote(os.path.abspath(path))}"


def path_of(directory: str) -> str:
    """Return where the server of a directory listens, or listened last; a client checks whose process listens there."""
    inside = os.path.join(directory, SOCKET)
    if len(os.fsencode(inside)) <= PATH_BYTES_MAX and os.path.lexists(inside):
        return inside
    with contextlib.suppress(OSError):
        scheme, _, path = read(os.path.join(directory, "address")).strip().partition("://")
        if scheme == "unix":
            return unquote(path)
    return inside


def chosen_path() -> str:
    """Return where the server of the current directory is to listen; it does not run."""
    inside = os.path.join(os.getcwd(), SOCKET)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(SOCKET)
    if len(os.fsencode(inside)) <= PATH_BYTES_MAX and takes_sockets():
        return inside
    here = os.stat(".")
    prefix = f"perdure-{here.st_dev:x}-{here.st_ino:x}-"  # a copy of this directory has another
    before = path_of(".")
    if os.path.basename(os.path.dirname(before)).startswith(prefix) and is_private(os.path.dirname(before)):
        return before
    from tempfile import mkdtemp  # seldom wanted, and slow to import

    return os.path.join(mkdtemp(prefix=prefix), SOCKET)


def takes_sockets() -> bool:
    """Whether a socket can be made in the current directory: not all file systems have any."""
    with socket.socket(socket.AF_UNIX) as sock:
        try:
            sock.bind(SOCKET)
        except OSError:
            return False
        os.unlink(SOCKET)
        return True


def is_private(directory: str) -> bool:
    """Whether a directory is ours, and nobody else may enter it."""
    with contextlib.suppress(OSError):
        found = os.lstat(directory)
        return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077
    return False


def write_address(path: str) -> None:
    """Note the server's address in the current directory, whole or not at all."""
    text = url_of(path) + "\n"
    if read("address") == text:
        return
    with contextlib.suppress(FileNotFoundError):
        os.unlink("address.new")
    with open(opened("address.new", flags=os.O_WRONLY | os.O_CREAT | os.O_EXCL), "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace("address.new", "address")


# --- talking to a server ---------------------------------------------------------------------------------------------


def is_ours(sock: socket.socket) -> bool:
    """Whether the process that listens at the other end is of our user, as the kernel says."""
    if sys.platform == "linux":
        _, uid, _ = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    else:  # `struct xucred` of LOCAL_PEERCRED
        _, uid = struct.unpack_from("II", sock.getsockopt(0, 1, 76))
    return uid == os.geteuid()


def ask(directory: str) -> Answer:
    """Return the health of this directory's server, if that is the server which listens at its address.

    The address may have been copied with the directory, and be that of another.
    """
    try:
        alive, info, where = talk(path_of(directory), b"PING\r\nINFO server\r\nCONFIG GET dir\r\n", 3)
        if where[-1:] != [os.fsencode(os.path.realpath(directory))]:
            return Answer(Health.GONE)
        pid = int(info[0].partition(b"process_id:")[2].split(None, 1)[0])
    except (OSError, ValueError, IndexError):
        return Answer(Health.GONE)
    if alive == [b"+PONG"]:
        return Answer(Health.READY, pid)
    return Answer(Health.LOADING if alive[0].startswith(b"-LOADING") else Health.GONE, pid)


def talk(path: str, commands: bytes, replies: int) -> list[list[bytes]]:
    """Send inline commands and return that many replies, each as its flat list of values."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PING_SECONDS)
        sock.connect(path)
        if not is_ours(sock):
            raise PermissionError(errno.EPERM, "another user's process listens there", path)
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


def start_server(binary: str, jemalloc: str, lock: int) -> int:
    """Start the server with the held lock, and return its pid. Our descriptor of the lock is closed.

    A jemalloc that cannot be loaded is ignored by the dynamic linker, which says so in the log.
    """
    try:
        check_links()
        path = chosen_path()
        try:
            write_address(path)
        except OSError:  # a full disk; clients that find the socket in the directory need no address
            if not os.path.samefile(os.path.dirname(path), "."):
                raise
        write_log_anew()
        os.set_inheritable(lock, True)
        return os.posix_spawn(
            binary,
            # In its directory the socket has a short name, which stays right when the directory is moved.
            [binary, "--unixsocket", path if os.path.dirname(path) != os.getcwd() else SOCKET, *SETTINGS],
            {"LD_PRELOAD": jemalloc, **os.environ} if jemalloc else os.environ,
            setsigmask=(),
            setsigdef=(signal.SIGCHLD, signal.SIGINT, signal.SIGTERM),  # whatever the user's program does with them
        )
    finally:
        os.close(lock)


def write_log_anew() -> None:
    """Begin another log where it has become long: ours, and that of the server that is started next."""
    with contextlib.suppress(OSError):
        if os.fstat(2).st_size > LOG_BYTES_MAX:
            os.replace(LOG, LOG + ".old")
            log = opened(LOG, flags=os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.close(log)


def watch(binary: str, jemalloc: str, users: int, lock: int) -> str:
    """Keep a server running until nobody uses it; return why that ended."""
    pid, failures, deaths, age = 0, 0, 0, REST_POLLS_MAX
    while True:
        reap()
        age += 1
        if locked(lock):  # no server runs
            if failures == FAILURES_MAX:
                return f"the server did not start in {FAILURES_MAX} attempts"
            if age > REST_POLLS_MAX or age > 2**deaths:
                if not pid and os.path.lexists("keep"):
                    os.unlink("keep")  # it was meant for a server that has ended
                deaths = 0 if age > REST_POLLS_MAX else deaths + 1
                pid, failures, age = start_server(binary, jemalloc, lock), failures + 1, 0
                lock = opened("lock")
        elif failures and ask(".").health is Health.READY:
            failures = 0
        if locked(users):
            return "kept" if os.path.lexists("keep") else stop_server(pid, lock)
        pause()


def stop_server(pid: int, lock: int) -> str:
    """Return when the server has ended; `pid` is not 0 if we started it."""
    path = path_of(".")
    for poll in range(STOP_POLLS):
        if poll % 20 == 0:
            ask_to_end(pid)
        reap()
        if locked(lock):
            if os.path.dirname(path) != ".":
                with contextlib.suppress(OSError):
                    os.rmdir(os.path.dirname(path))
            return "the last user has gone"
        pause()
    if is_child(pid):
        os.kill(pid, signal.SIGKILL)  # loses nothing: acknowledged writes are on the disk
    return "the server did not shut down in time"


def ask_to_end(pid: int) -> None:
    """Ask the server to end, whatever it is doing; an adopted server gets a command, since its pid may be stale."""
    if is_child(pid):
        os.kill(pid, signal.SIGTERM)
    elif ask(".").health is not Health.GONE:
        with contextlib.suppress(OSError):  # it ends without a reply
            talk(path_of("."), b"SHUTDOWN NOSAVE NOW FORCE\r\n", 1)


def is_child(pid: int) -> bool:
    """Tell whether this is our child and has not ended, so that the number cannot mean another process."""
    try:
        return pid > 0 and os.waitpid(pid, os.WNOHANG) == (0, 0)
    except ChildProcessError:
        return False


def reap() -> None:
    """Reap a child that has ended."""
    with contextlib.suppress(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def main(directory: int, guard: int, binary: str, jemalloc: str) -> None:
    """Detach from the program that started us, keep the server running while it has users, end."""
    if os.fork():
        os._exit(0)  # the program that started us waits for this process; the guard itself is nobody's child
    os.umask(0o077)
    os.fchdir(directory)
    os.close(directory)
    os.set_inheritable(guard, False)  # it must not outlive us in the server
    with contextlib.suppress(OSError):  # a full disk
        os.ftruncate(guard, 0)
        os.pwrite(guard, b"%d\n" % os.getpid(), 0)
    try:
        reason = watch(binary, jemalloc, opened("users"), opened("lock"))
    except OSError as exc:
        reason = f"{type(exc).__name__}: {exc}"
    with contextlib.suppress(OSError):
        os.write(2, f"{os.getpid()}:guard {reason}\n".encode(errors="replace"))  # which is the log
    # Before `users` is free, so that a program that gets `users` finds no guard that is about to end.
    os.close(guard)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
