"""A relay that answers in a server's place: with any error, to whichever commands it is told.

Requests and answers are read whole, so that a client and its server stay in step whatever is put between them.
"""

import socket
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO

from servers import url_of


class Refusing:
    """A server behind a relay; `refuse` commands, by name or `*`, with an error, until `relent`."""

    def __init__(self, port: int) -> None:
        self._far_port, self._what, self._error, self._left = port, frozenset[str](), b"", 0
        self.refused = 0
        """How many commands it has refused."""
        self._open: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return url_of(self._listening.getsockname()[1])

    def refuse(self, error: str, *commands: str, times: int = 1 << 60) -> None:
        """Refuse these commands with this error from now on."""
        self._what, self._error, self._left = frozenset(commands), b"-" + error.encode() + b"\r\n", times

    def relent(self) -> None:
        """Let everything pass."""
        self._left = 0

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._far_port))
            self._open += (near, far)
            asked: deque[bytes] = deque()
            wanted = threading.Semaphore(0)
            for work in (self._requests, self._answers):
                self._threads.append(threading.Thread(target=work, args=(near, far, asked, wanted), daemon=True))
                self._threads[-1].start()

    def _requests(
        self, near: socket.socket, far: socket.socket, asked: deque[bytes], wanted: threading.Semaphore
    ) -> None:
        with suppress(OSError, ValueError):
            for raw, name in _commands(near):
                is_refused = self._left > 0 and bool({name, "*"} & self._what)
                if is_refused:
                    self._left -= 1
                    self.refused += 1
                else:
                    far.sendall(raw)
                asked.append(self._error if is_refused else b"")
                wanted.release()
        _end(far)
        asked.append(b"end")
        wanted.release()

    def _answers(
        self, near: socket.socket, far: socket.socket, asked: deque[bytes], wanted: threading.Semaphore
    ) -> None:
        stream = far.makefile("rb")
        with suppress(OSError, ValueError, EOFError):
            while True:
                wanted.acquire()
                error = asked.popleft()
                if error == b"end":
                    break
                near.sendall(error or _answer(stream))
        stream.close()
        _end(near)

    def close(self) -> None:
        _end(self._listening)
        self._listening.close()
        for end in self._open:
            _end(end)
        for thread in self._threads:
            thread.join(5)
        for end in self._open:
            end.close()


def _end(end: socket.socket) -> None:
    with suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


def _commands(source: socket.socket) -> Iterator[tuple[bytes, str]]:
    """Yield each command, as it came, and its name."""
    with source.makefile("rb") as stream:
        while head := stream.readline():
            raw, words = [head], list[bytes]()
            for _ in range(int(head[1:])):
                raw.append(stream.readline())
                words.append(stream.read(int(raw[-1][1:]) + 2))
                raw.append(words[-1])
            yield b"".join(raw), words[0].strip().decode().upper()


def _answer(stream: BinaryIO) -> bytes:
    """Return one answer, whole."""
    line = stream.readline()
    if not line:
        raise EOFError
    kind, rest = line[:1], line[1:].strip()
    if kind == b"$" and rest != b"-1":
        return line + stream.read(int(rest) + 2)
    if kind == b"*" and rest != b"-1":
        return line + b"".join(_answer(stream) for _ in range(int(rest)))
    return line
