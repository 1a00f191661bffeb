"""Servers for tests: a real Redis or Valkey as a child process, on loopback and a free port, stopped by its pid."""

import shutil
import signal
import socket
import subprocess
from pathlib import Path

from journal.clock import boot_seconds
from journal.embedded import guard, server

START_SECONDS = 20

DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


def valkey_binary() -> str:
    return server._binary()


def redis_binary() -> str | None:
    return shutil.which("redis-server")


def free_port() -> int:
    """Return a port of loopback that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def url_of(port: int) -> str:
    """Return the URL of a server on loopback."""
    return f"redis://127.0.0.1:{port}/0"


def ask(url: str, command: str) -> list[bytes]:
    """Send an inline command and return its reply, as its flat list of values."""
    port = int(url.rpartition(":")[2].partition("/")[0])
    with socket.create_connection(("127.0.0.1", port), guard.PING_SECONDS) as sock, sock.makefile("rb") as stream:
        sock.sendall(command.encode() + b"\r\n")
        return guard.read_reply(stream)


class Server:
    """One server on one directory; what it has acknowledged outlives it."""

    def __init__(self, binary: str, directory: Path, *settings: str) -> None:
        self._binary, self._directory = binary, directory
        self._settings = settings or DURABLE
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return url_of(self.port)

    def start(self) -> None:
        self._process = subprocess.Popen(
            [
                *(self._binary, "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._directory)),
                *("--save", "", "--logfile", str(self._directory / "log")),
                *self._settings,
            ],
            stdin=subprocess.DEVNULL,
        )
        deadline = boot_seconds() + START_SECONDS
        while not self.answers():
            assert self._process.poll() is None, (self._directory / "log").read_text()
            assert boot_seconds() < deadline, "the server does not answer"
            guard.pause()

    def answers(self) -> bool:
        try:
            return ask(self.url, "PING") in ([b"+PONG"], [b"-NOAUTH Authentication required."])
        except OSError:
            return False

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End it, unless it is told otherwise as a power cut would: nothing is flushed."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None
