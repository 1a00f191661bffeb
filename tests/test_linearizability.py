"""Objects are linearizable, whatever is killed (promises 1 to 3, 5 and 6); and the checker that says so can tell.

Programs get, put, swap and append on a few cells at once, while hosts and the programs themselves are killed, a host
is stopped beyond its lease, and the store forgets a client, whose operations under way are then unknown.
"""

import subprocess
import threading
from collections import Counter as Tally
from pathlib import Path
from typing import Any

import pytest
from cells import history
from host_process import Fleet, launch
from linearizability import Operation, broken
from servers import ask

from journal.embedded import guard
from journal.ids import new_id

PROGRAMS, CLIENTS_EACH, CELLS = 3, 4, 8
OPERATIONS = 2_000
"""So many at least, however slow the machine is."""


def ran(*operations: tuple[Any, ...]) -> list[Operation]:
    """Return a history of one key from (called, returned, kind, arguments..., result); returned None: never."""
    return [
        Operation("k", kind, arguments, called)
        if returned is None
        else Operation("k", kind, tuple(rest[:-1]), called, returned, rest[-1])
        for called, returned, kind, *rest in operations
        for arguments in [tuple(rest)]
    ]


RIGHT: dict[str, list[Operation]] = {
    "one after the other": ran((1, 2, "put", "a", None), (3, 4, "append", "b", 2), (5, 6, "get", "ab")),
    "a read beside a write sees the old": ran((1, 4, "put", "a", None), (2, 3, "get", "")),
    "a read beside a write sees the new": ran((1, 4, "put", "a", None), (2, 3, "get", "a")),
    "what touches in time is concurrent": ran((1, 2, "put", "a", None), (2, 3, "get", "")),
    "appends at once, in either order": ran((1, 9, "append", "a", 2), (1, 9, "append", "b", 1), (10, 11, "get", "ba")),
    "of swaps at once one wins": ran(
        (1, 9, "swap", "", "a", False), (1, 9, "swap", "", "b", True), (10, 11, "get", "b")
    ),
    "an unknown that happened": ran((1, None, "put", "a"), (2, 3, "get", ""), (4, 5, "get", "a")),
    "an unknown that did not": ran((1, None, "put", "a"), (2, 3, "get", ""), (4, 5, "append", "b", 1)),
    "an unknown that happened much later": ran(
        (1, None, "append", "a"), (2, 3, "put", "b", None), (4, 5, "get", "b"), (6, 7, "get", "ba")
    ),
    "unknowns in the order that fits": ran(
        (1, None, "append", "a"), (2, None, "append", "b"), (3, None, "append", "c"), (4, 5, "get", "ca")
    ),
}
WRONG: dict[str, list[Operation]] = {
    "a stale read": ran((1, 2, "put", "a", None), (3, 4, "get", "")),
    "a read that goes back": ran((1, 9, "put", "a", None), (2, 3, "get", "a"), (4, 5, "get", "")),
    "a lost update": ran((1, 2, "append", "a", 1), (3, 4, "append", "b", 1)),
    "a lost update at once": ran((1, 9, "append", "a", 1), (1, 9, "append", "b", 1)),
    "reordered appends": ran((1, 2, "append", "a", 1), (3, 4, "append", "b", 2), (5, 6, "get", "ba")),
    "appends that two saw in two orders": ran(
        *((1, 9, "append", "a", 1), (1, 9, "append", "b", 2)),
        *((2, 3, "get", "ab"), (4, 5, "put", "", None), (6, 7, "get", "ba")),
    ),
    "two winners": ran((1, 9, "swap", "", "a", True), (1, 9, "swap", "", "b", True)),
    "a swap of what was not there": ran((1, 2, "put", "a", None), (3, 4, "swap", "", "b", True)),
    "an unknown that was taken back": ran((1, None, "put", "a"), (2, 3, "get", "a"), (4, 5, "get", "")),
    "an unknown that happened twice": ran((1, None, "append", "a"), (2, 3, "get", "aa")),
    "an unknown that happened before its call": ran((1, 2, "get", "a"), (3, None, "put", "a")),
    "a value from nowhere": ran((1, None, "put", "a"), (2, 3, "get", "b")),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_linearizable_history_is_accepted(name: str) -> None:
    assert broken(RIGHT[name]) == []


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_linearizable_is_found(name: str) -> None:
    assert len(broken(WRONG[name])) == 1


def test_keys_are_told_apart() -> None:
    read = Operation("other", "get", (), 3, 4, "")
    assert broken([*ran((1, 2, "put", "a", None)), read]) == []


class Programs:
    """Processes of clients, each with a log; who is killed has a successor at once."""

    def __init__(self, url: str, namespace: str, directory: Path) -> None:
        self._url, self._namespace, self._directory = url, namespace, directory
        self.logs: list[Path] = []
        self._running: list[subprocess.Popen[str]] = []

    def start(self) -> None:
        number = len(self.logs)
        self.logs.append(self._directory / f"log{number}")
        program = launch(
            *("operate", self._url, self._namespace, f"{number}", f"{CLIENTS_EACH}", f"{CELLS}"),
            f"{self.logs[-1]}",
            errors=self._directory / "errors",
            module="cells",
        )
        self._running.append(program)

    def kill_first(self) -> None:
        log = self.logs[-len(self._running)]
        while not (log.exists() and log.stat().st_size):  # it has only begun
            guard.pause()
        program = self._running.pop(0)
        program.kill()
        program.communicate()
        self.start()

    def wait_for(self, operations: int) -> None:
        """Wait until so many have ended."""
        while sum(log.read_text().count("returned_at") for log in self.logs if log.exists()) < operations:
            guard.pause()

    def end(self) -> None:
        """Let all end what they have under way."""
        for program in self._running:
            program.communicate(timeout=60)
            assert program.returncode == 0, (self._directory / "errors").read_text()[-2_000:]
        self._running = []

    def close(self) -> None:
        for program in self._running:
            program.kill()
            program.communicate()


def forget_a_writer(url: str, namespace: str) -> None:
    """Delete what the store has of one client: it opens another writer, and what it cannot know is unknown."""
    lua = f"local w = redis.call('KEYS', '{namespace}:writer:*')[1] return w and redis.call('DEL', w) or 0"
    while (deleted := ask(url, f'EVAL "{lua}" 0')) == [b":0"]:  # the programs have only begun
        guard.pause()
    assert deleted == [b":1"]


@pytest.mark.slow
def test_cells_are_linearizable_whatever_is_killed(valkey_url: str, tmp_path: Path) -> None:
    namespace, never = new_id(), threading.Event()
    fleet = Fleet(valkey_url, namespace, tmp_path, module="cells")
    programs = Programs(valkey_url, namespace, tmp_path)
    try:
        fleet.start("a")
        fleet.start("b")
        for _ in range(PROGRAMS):
            programs.start()
        for turn in range(3):
            fleet.kill_at_random(turn, 4, (0.3, 1.2), never)
            programs.kill_first()
            forget_a_writer(valkey_url, namespace)
        fleet.stop_for("a", 4.0)
        programs.wait_for(OPERATIONS)
        programs.end()
    finally:
        programs.close()
        fleet.close()
    operations = [operation for log in programs.logs for operation in history(log)]
    tally = Tally(operation.kind for operation in operations if operation.is_known)
    assert min(tally[kind] for kind in ("get", "put", "swap", "append")) > 100, f"there was hardly any load: {tally}"
    assert any(not operation.is_known for operation in operations)
    assert broken(operations) == []
