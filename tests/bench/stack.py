"""The stack under measurement: an embedded server in a new directory, a Ray, its hosts; and who is which process."""

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from redis import Redis

import actors

from .meter import Components, descendants
from .workloads import BenchCounter

READY_MAX_S = 60


@dataclass(frozen=True, slots=True)
class Stack:
    """What a workload runs on."""

    directory: Path
    url: str
    store_version: str
    store_pid: int
    host_pids: frozenset[int]
    """Of hosts on Ray; none if the host lives in this process."""

    @property
    def components(self) -> Components:
        """The driver (with its load, and with a local host), the store, the hosts, and Ray's own processes."""
        me = os.getpid()
        found: dict[str, Any] = {"driver": lambda: [me], "store": lambda: [self.store_pid]}
        if self.host_pids:
            found["host"] = lambda: self.host_pids
            found["ray"] = lambda: set(descendants(me)) - self.host_pids
        return found


@contextmanager
def stack(hosts: int | Literal["local"], directory: Path) -> Generator[Stack]:
    """Start everything anew in a directory of its own; afterwards stop it and remove what it wrote."""
    directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=directory, prefix="bench-") as name, actors.init(hosts=hosts, directory=name):
        BenchCounter["ready"].add.remote(1).result(timeout=READY_MAX_S)
        status = actors.status()
        with Redis.from_url(status.store) as store:
            info: Any = store.info()
        version = info.get("valkey_version", info["redis_version"])
        pids = frozenset(host.pid for host in status.hosts) - {os.getpid()}
        yield Stack(Path(name).resolve(), status.store, version, info["process_id"], pids)
