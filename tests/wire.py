"""Wires: what lies between a process and its store, cut and overheard from outside.

A `Wire` is a relay on loopback that can lose what passes; a `Monitor` tells what a server was asked and what its
scripts wrote.
"""

import re
import socket
import threading
from contextlib import suppress
from hashlib import sha1
from typing import Literal, NamedTuple

from servers import url_of

from journal.clock import sleep
from journal.redis.store import _script


class Wire:
    """A relay to a server: `loses` says what it swallows, `cut` ends its connections, whose clients come anew."""

    def __init__(self, port: int) -> None:
        self._far_port = port
        self.loses: Literal["", "requests", "answers"] = ""
        self.bytes_per_second = 0
        """How much passes in each direction; 0 is as much as there is."""
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return url_of(self._listening.getsockname()[1])

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._far_port))
            except ConnectionRefusedError:  # as the server would do it
                near.close()
                continue
            self._open += (near, far)
            for pump in ((near, far, "requests"), (far, near, "answers")):
                self._threads.append(threading.Thread(target=self._pump, args=pump))
                self._threads[-1].start()

    def _pump(self, source: socket.socket, target: socket.socket, what: str) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                if self.bytes_per_second:
                    sleep(len(data) / self.bytes_per_second)
                if self.loses != what:
                    target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """End all connections."""
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._threads[0].join()
        self.cut()
        for thread in self._threads:
            thread.join()
        for end in self._open:
            end.close()


class Write(NamedTuple):
    """A host's commit of one shard: asked for, or applied."""

    shard: int
    epoch: int
    incarnation: str
    number: int


class Monitor:
    """What a server is asked in a namespace, from now on."""

    def __init__(self, port: int, namespace: str) -> None:
        name = re.escape(namespace)
        self._applied = re.compile(r'\[\d+ lua\] "M?SET" ')
        self._head = re.compile(rf'"{name}:(\d+):head" "(\d+) (\S+) (\d+)')
        self._part = re.compile(r' "(\d+)" "(\d+) ([^" ]+)" "(\d+)"')
        self._commit = f'"EVALSHA" "{sha1(_script("commit").encode(), usedforsecurity=False).hexdigest()}" "0" '
        self._commit += f'"{namespace}"'
        self._socket = socket.create_connection(("127.0.0.1", port))
        self._socket.sendall(b"MONITOR\r\n")
        self._stream = self._socket.makefile("rb")
        assert self._stream.readline() == b"+OK\r\n"
        self._lines: list[str] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with suppress(OSError):
            for line in self._stream:
                self._lines.append(line.decode())

    def now(self) -> int:
        """Return a place from which to read on."""
        return len(self._lines)

    def applied(self, since: int = 0) -> list[Write]:
        """Return the heads that scripts wrote."""
        lines = [line for line in self._lines[since:] if self._applied.search(line)]
        return [_write(found.groups()) for line in lines for found in self._head.finditer(line)]

    def asked(self, since: int = 0) -> list[Write]:
        """Return the parts of all commits that were asked for."""
        lines = [line for line in self._lines[since:] if self._commit in line]
        return [_write(part.groups()) for line in lines for part in self._part.finditer(line)]

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self._stream.close()
        self._socket.close()


def _write(parts: tuple[str, ...]) -> Write:
    return Write(int(parts[0]), int(parts[1]), parts[2], int(parts[3]))
