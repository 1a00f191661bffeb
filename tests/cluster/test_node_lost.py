"""A node lost: all its processes die at once, and what it owned goes on elsewhere when its leases have expired.

Three nodes of one Ray cluster, each as on a machine of its own, a store outside, and two programs that joined. Nobody
is told of the loss: no process of another machine can be seen to end, and Ray is set to take about 8 s until it notices
(by itself 12 to 18 s). The head is never the node that is lost: supervisor and programs live there, and without it
Ray starts and restarts nothing.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter as Tally
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import program
import pytest

from journal.clock import boot_seconds
from journal.embedded import guard
from journal.ids import new_id

pytestmark = pytest.mark.slow

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
ENVIRONMENT = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)])}
HOSTS = 3
SHARE = -(-program.SHARDS // HOSTS)
"""The most shards that one of the hosts has when they are even."""
LOAD_S = 2.0
"""Load before the loss, and after the recovery."""
WITHIN_S = 60.0


class Child:
    """A program of `program.py`."""

    def __init__(self, role: str, *arguments: str, environment: dict[str, str], errors: Path) -> None:
        # Not as a script: its classes would be those of `__main__`.
        code = f"import os, program; os.dup2(2, 1); program.{role}(*{arguments!r})"
        with errors.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
                text=True,
                start_new_session=True,
            )
        self._errors = errors

    def tell(self, *words: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(words) + "\n")
        self._process.stdin.flush()

    def hear(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, self._errors.read_text()[-5_000:]
        return json.loads(line)

    def ask(self, *words: str) -> Any:
        self.tell(*words)
        return self.hear()

    def close(self) -> None:
        """Let it end by itself."""
        try:
            self._process.communicate(timeout=WITHIN_S)
        finally:
            self._process.kill()


class Lab:
    """The cluster, and programs for it."""

    def __init__(self, url: str, directory: Path) -> None:
        self.url, self.namespace = url, new_id()
        self.errors = directory / "errors"
        # Ray notes its newest cluster there, for any program that asks for none; a socket's path must be short.
        self._rays = tempfile.mkdtemp(prefix="perdure-")
        self._environment = {**ENVIRONMENT, "RAY_TMPDIR": self._rays}
        self._children: list[Child] = []

    def open(self) -> None:
        """Start the nodes, and the hosts as an operator does."""
        self.cluster = self._child("nodes")
        self.address, self.head = self.cluster.hear()
        command = ("-m", "actors.ray", "up", "--redis", self.url, "--namespace", self.namespace)
        with self.errors.open("a") as log:
            subprocess.run(
                [sys.executable, *command, "--hosts", f"{HOSTS}", "--address", self.address],
                env=self._environment,
                stdout=log,
                stderr=log,
                check=True,
                timeout=WITHIN_S,
            )

    def _child(self, role: str, *arguments: str) -> Child:
        child = Child(role, *arguments, environment=self._environment, errors=self.errors)
        self._children.append(child)
        return child

    def drivers(self, run: str) -> list[Child]:
        """Start two programs that join."""
        arguments = self.url, self.namespace, self.address, run
        drivers = [self._child("drive", *arguments, name) for name in "ab"]
        for driver in drivers:
            assert driver.hear() == self.head, "its own node is not the one that is lost"
        return drivers

    def close(self) -> None:
        """Let all end, and kill what does not."""
        mark = f"RAY_TMPDIR={self._rays}"
        try:
            for child in reversed(self._children):
                child.close()
            until(lambda: marked(mark), lambda left: not left)
        finally:
            for pid in marked(mark):
                os.kill(pid, signal.SIGKILL)
            shutil.rmtree(self._rays)


def marked(mark: str) -> dict[int, str]:
    """Return the processes that have this in their environment."""
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdecimal() and mark in (entry / "environ").read_text("utf-8", "replace").split("\0"):
                found[int(entry.name)] = (entry / "cmdline").read_text("utf-8", "replace")[:200]
        except OSError:
            continue  # it has ended, or is somebody else's
    return found


@pytest.fixture(scope="session")
def lab(valkey_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    directory = tmp_path_factory.mktemp("cluster")
    lab = Lab(valkey_url, directory)
    try:
        lab.open()
        yield lab
    finally:
        lab.close()


def until(ask: Callable[[], Any], is_right: Callable[[Any], bool]) -> Any:
    deadline = boot_seconds() + WITHIN_S
    while not is_right(found := ask()):
        assert boot_seconds() < deadline, found
        guard.pause()
    return found


def pause(seconds: float) -> None:
    end = boot_seconds() + seconds
    until(boot_seconds, lambda now: now >= end)


def are_even(hosts: list[Any], nodes: list[str]) -> bool:
    """Whether there are all hosts, spread over these nodes as evenly as can be, and the shards over the hosts."""
    by_node = Tally(dict.fromkeys(nodes, 0))
    by_node.update(node for _, node, _, _ in hosts)
    shards = [shard for host in hosts for shard in host[3]]
    return (
        len(hosts) == HOSTS
        and by_node.keys() == set(nodes)
        and max(by_node.values()) - min(by_node.values()) <= 1
        and sorted(shards) == list(range(program.SHARDS))
        and max(len(host[3]) for host in hosts) <= SHARE
    )


@pytest.mark.timeout(170)
@pytest.mark.parametrize("first", ["nothing", "supervisor"])
def test_what_a_lost_node_owned_goes_on_when_its_leases_have_expired(lab: Lab, first: str) -> None:
    drivers = lab.drivers(first)
    nodes = lab.cluster.ask("alive")
    hosts = until(lambda: drivers[0].ask("hosts"), lambda found: are_even(found, nodes))
    lost = next(host for host in hosts if host[1] == nodes[1])
    for driver in drivers:
        driver.ask("go")
    pause(LOAD_S)
    if first == "supervisor":
        lab.cluster.ask("kill_supervisor")
    fault = lab.cluster.ask("kill", lost[1])
    lab.cluster.tell("noticed", lost[1])
    noticed = lab.cluster.hear() - fault
    left = lab.cluster.ask("alive")
    if first == "nothing":  # else Ray restarts the host when the new node is there already
        until(lambda: drivers[0].ask("hosts"), lambda found: are_even(found, left))
    joins = boot_seconds() - fault
    joined = lab.cluster.ask("add")
    until(lambda: drivers[0].ask("hosts"), lambda found: are_even(found, [*left, joined]))
    even = boot_seconds() - fault
    pause(LOAD_S)
    replies = [driver.ask("stop") for driver in drivers]

    check(replies, drivers[0].ask("read"))
    firsts = first_completions(replies, lost[3], fault)
    print(  # noqa: T201
        f"{first} killed first; lost shards {lost[3]}: first completions after "
        f"{', '.join(f'{seconds:.2f}' for seconds in sorted(firsts.values()))} s; Ray noticed after {noticed:.2f} s, "
        f"a node began to join after {joins:.2f} s, hosts and shards were even after {even:.2f} s"
    )
    assert firsts.keys() == set(lost[3])
    assert max(firsts.values()) < noticed, "what recovers before Ray has noticed does not wait for Ray"
    for driver in drivers:
        driver.close()


def first_completions(replies: list[Any], shards: list[int], fault: float) -> dict[int, float]:
    """Return how long after the fault each shard answered what was asked of it after the fault."""
    firsts: dict[int, float] = {}
    for shard, _, began, ended in (count for reply in replies for count in reply["counts"]):
        if shard in shards and began > fault:
            firsts[shard] = min(firsts.get(shard, ended), ended)
    return {shard: ended - fault for shard, ended in firsts.items()}


def check(replies: list[Any], held: dict[str, list[int]]) -> None:
    """Compare all replies with what the objects hold: everything accepted was done, once."""
    counts, sagas, sleeps = (
        [each for reply in replies for each in reply[kind]] for kind in ("counts", "sagas", "sleeps")
    )
    for shard, total in enumerate(held["counts"]):
        assert sorted(value for at, value, _, _ in counts if at == shard) == list(range(1, total + 1))
    purses = [program.MONEY] * program.PURSES
    for source, target, amount, fee in sagas:
        if amount % 3 == 0:
            assert fee == f"{amount} is refused"
        else:
            assert fee == amount * 2
            purses[source] -= amount
            purses[target] += amount
    assert held["purses"] == purses
    assert set(sleeps) == {1}
    assert held["bell"] == [len(sleeps)]
