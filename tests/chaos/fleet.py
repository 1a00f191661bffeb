"""The drivers' processes: each has a log, and a successor as soon as it is killed."""

import subprocess
import sys
from pathlib import Path

from .log import Life, Operation, read

END_WITHIN_S = 90.0


class Fleet:
    """So many drivers on one store and one Ray."""

    def __init__(
        self, directory: Path, url: str, namespace: str, address: str, seed: int, count: int, *, is_hostile: bool
    ) -> None:
        self._directory = directory
        self._place = ("--url", url, "--namespace", namespace, "--address", address, "--seed", f"{seed}")
        self._more = ("--hostile",) if is_hostile else ()
        self.book = directory / "book"
        """The file outside, in which transfers' steps leave their effects."""
        self.book.touch()
        self._processes: list[subprocess.Popen[str]] = []
        self.exits: list[int] = []
        for number in range(count):
            self._processes.append(self._started(f"d{number}"))

    def wait_ready(self) -> None:
        """Return when all have begun."""
        for process in self._processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n", "a driver did not begin: see its errors"

    def _started(self, name: str) -> "subprocess.Popen[str]":
        with self._path(name, "errors").open("a") as errors:
            return subprocess.Popen(
                [
                    *(sys.executable, "-m", "tests.chaos.driver", *self._place, *self._more, "--name", name),
                    *("--log", str(self._path(name, "log")), "--book", str(self.book)),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def _path(self, name: str, what: str) -> Path:
        return self._directory / f"{name}.{what}"

    def pids(self) -> list[int]:
        """Return the processes of drivers."""
        return [process.pid for process in self._processes]

    def kill(self, rank: int) -> str:
        """Kill a driver, start its successor, and return the name that both have."""
        number = rank % len(self._processes)
        name, process = f"d{number}", self._processes[number]
        _end(process)
        self._processes[number] = self._started(name)
        return name

    def calm(self) -> None:
        """Let all begin nothing hostile any more."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write("calm\n")
            process.stdin.flush()

    def finish(self) -> None:
        """Let all end by themselves, with an answer to everything that they had begun."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self._processes:
            try:
                self.exits.append(process.wait(END_WITHIN_S))
            except subprocess.TimeoutExpired:
                self.exits.append(-1)

    def close(self) -> None:
        """End what is left."""
        for process in self._processes:
            _end(process)

    def logs(self) -> tuple[dict[str, Operation], dict[str, list[Life]], list[str]]:
        """Return all operations, the lives of each driver, and what was not to happen."""
        operations: dict[str, Operation] = {}
        lives: dict[str, list[Life]] = {}
        troubles = [f"a driver ended with {code}" for code in self.exits if code]
        for number in range(len(self._processes)):
            found, lives[f"d{number}"], trouble = read(self._path(f"d{number}", "log"))
            operations |= found
            troubles += trouble
        return operations, lives, troubles


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        stream.close()
