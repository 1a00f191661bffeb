"""The ground for what grows: a server, hosts and drivers, each a plain process of its own, without Ray.

Hosts here take limits and a policy that the command line of a cluster does not, and say how many objects they hold. A
child ends when its standard input does, so that nothing outlives the command.
"""

import argparse
import asyncio
import json
import logging
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import orjson
from redis import Redis

from actors import Policy
from actors.client.client import Client
from actors.host.local import LocalHost, collect_seldom
from actors.limits import Limits
from actors.requests import current
from journal.embedded.server import EmbeddedServer
from journal.redis.store import RedisStore

from . import load, workloads
from .meter import Components, runs

ROOT: Final = Path(__file__).resolve().parents[2]
READY_MAX_S: Final = 30.0
NAMESPACE: Final = "default"


@dataclass(slots=True)
class Ground:
    """A server, the hosts on it, and this program as a driver."""

    directory: Path
    url: str
    store: Redis
    store_pid: int
    hosts: "list[subprocess.Popen[str]]" = field(default_factory=list[Any])
    drivers: "list[subprocess.Popen[str]]" = field(default_factory=list[Any])

    @property
    def components(self) -> Components:
        """Driver, host, store."""
        drivers = [child.pid for child in self.drivers] or [os.getpid()]
        hosts = [child.pid for child in self.hosts]
        return {"driver": lambda: drivers, "host": lambda: hosts, "store": lambda: [self.store_pid]}

    def start_hosts(self, count: int, *, idle_timeout_s: float = 60.0, activation_idle_s: float = 60.0) -> None:
        """Start hosts and wait until the shards are spread over them."""
        for number in range(count):
            self.launch_host(number, idle_timeout_s=idle_timeout_s, activation_idle_s=activation_idle_s)
        for host in self.hosts:
            _line(host)
        until = time.monotonic() + READY_MAX_S
        while not self._is_spread(count):
            if time.monotonic() > until:
                raise TimeoutError(f"the shards are not spread over {count} hosts")
            time_passes(0.05)

    def launch_host(self, number: int = 0, *, idle_timeout_s: float = 60.0, activation_idle_s: float = 60.0) -> None:
        """Start a host, and wait for nothing."""
        self.hosts.append(_child("serve", self.url, str(idle_timeout_s), str(activation_idle_s), str(number)))

    def _is_spread(self, count: int) -> bool:
        found: Any = self.store.hgetall(f"{NAMESPACE}:hosts")
        owned = [len(orjson.loads(about.partition(b" ")[2])["shards"]) for about in found.values()]
        return len(owned) == count and sum(owned) == 16 and all(owned)

    def start_drivers(self, count: int, clients: int, keys: int, seconds: float, warm: float) -> None:
        """Start drivers that share the clients; they wait for `go`."""
        share = str(clients // count)
        said = ("drive", self.url, share, str(keys), str(seconds), str(warm))
        self.drivers += [_child(*said, str(number)) for number in range(count)]
        for driver in self.drivers:
            _line(driver)

    def go(self) -> None:
        """Let the drivers begin."""
        for driver in self.drivers:
            _say(driver, "go")

    def latencies(self) -> list[float]:
        """Return all that the drivers measured, sorted, when they have ended."""
        found = sorted(latency for driver in self.drivers for latency in json.loads(_line(driver)))
        for driver in self.drivers:
            driver.communicate()
        self.drivers.clear()
        return found

    def activations(self) -> int:
        """Return how many objects the hosts hold in memory."""
        for host in self.hosts:
            _say(host, "count")
        return sum(int(_line(host)) for host in self.hosts)

    def store_mb(self) -> float:
        """Return what the store's data takes."""
        info: Any = self.store.info("memory")
        return info["used_memory"] / 1e6


def time_passes(seconds: float) -> None:
    """Wait in a program without an event loop."""
    threading.Event().wait(seconds)


@contextmanager
def ground(directory: Path) -> Generator[Ground]:
    """Start a server in a new directory and connect this program to it; afterwards end everything."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix="bench-") as name:
        server = EmbeddedServer.open(Path(name))
        ready = Ground(Path(name).resolve(), server.url, Redis.from_url(server.url), server.pid)
        client = _connected(server.url)
        try:
            yield ready
        finally:
            current.set_driver(None)
            client.close()
            for child in (*ready.drivers, *ready.hosts):
                child.kill()
                child.communicate()
            ready.store.close()
            server.close()
            until = time.monotonic() + READY_MAX_S
            while runs(server.pid) and time.monotonic() < until:  # it writes to its log as it ends
                time_passes(0.02)


def _connected(url: str) -> Client:
    client = Client(lambda: RedisStore(url, NAMESPACE), sends_code=False)
    client.open()
    current.set_driver(client)
    return client


def _child(*arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tests.bench.ground", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _line(child: "subprocess.Popen[str]") -> str:
    assert child.stdout is not None
    line = child.stdout.readline()
    if not line:
        raise RuntimeError(f"a child ended with {child.wait()}")
    return line


def _say(child: "subprocess.Popen[str]", word: str) -> None:
    assert child.stdin is not None
    child.stdin.write(f"{word}\n")
    child.stdin.flush()


def _answer(text: object) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def serve(url: str, idle_timeout_s: str, activation_idle_s: str, name: str) -> None:
    """Be a host until the standard input ends; say how many objects it holds when asked."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    limits = Limits(activation_idle=timedelta(seconds=float(activation_idle_s)))
    host = LocalHost(
        lambda: RedisStore(url, NAMESPACE), name=name, policy=Policy(idle_timeout=float(idle_timeout_s)), limits=limits
    )
    collect_seldom()
    host.start()
    _answer("ready")
    for _ in sys.stdin:
        shards: Any = host._host._shards  # pyright: ignore[reportPrivateUsage, reportOptionalMemberAccess]  # nothing else tells
        _answer(sum(len(shard.activations) for shard in shards.values()))
    host.kill()


def drive(url: str, clients: str, keys: str, seconds: str, warm: str, number: str) -> None:
    """Be a driver with so many clients in closed loops; say the latencies."""
    client = _connected(url)
    chance = random.Random(int(number))

    async def add(_: int) -> None:
        await workloads.BenchCounter[f"k{chance.randrange(int(keys))}"].add.remote(1)

    _answer("ready")
    sys.stdin.readline()
    window = asyncio.run(load.closed_loop(add, int(clients), seconds=float(seconds), warm=float(warm)))
    _answer(json.dumps(window.latencies))
    client.close()


def main(arguments: Sequence[str] | None = None) -> None:
    """Be the child that was asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["serve", "drive"])
    parser.add_argument("rest", nargs="*")
    said = parser.parse_args(arguments)
    {"serve": serve, "drive": drive}[said.role](*said.rest)


if __name__ == "__main__":
    main()
