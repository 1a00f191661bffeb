"""Servers for tests: a real Redis or Valkey as a child process, on loopback and a free port, stopped by its pid."""

import shutil
import signal
import subprocess
from pathlib import Path

from journal import guard, server
from journal.clock import boot_seconds

START_SECONDS = 20

DURABLE = ("--appendonly", "yes", "--appendfsync", "always")


def valkey_binary() -> str:
    return server._binary()


def redis_binary() -> str | None:
    return shutil.which("redis-server")


class Server:
    """One server on one directory; what it has acknowledged outlives it."""

    def __init__(self, binary: str, directory: Path, *settings: str) -> None:
        self._binary, self._directory = binary, directory
        self._settings = settings or DURABLE
        self.port = guard.free_port(0)
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return guard.url_of(self.port)

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
            return guard.talk(self.port, b"PING\r\n", 1) in ([[b"+PONG"]], [[b"-NOAUTH Authentication required."]])
        except OSError:
            return False

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        """End it, unless it is told otherwise as a power cut would: nothing is flushed."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait()
            self._process = None
