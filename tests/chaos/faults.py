"""Faults: what is done to hosts, to the store and to drivers, and how long it takes until work goes on.

Recovery is measured by requests that are sent right after the fault, to an object on each shard that it concerns; after
a driver's death by what its successor notes. Only processes of the campaign are ever signalled: a host is one that its
namespace lists, and whose command line is that of a host on Ray.
"""

import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import actors
from actors.errors import UnavailableError
from actors.session import HostStatus
from journal.clock import boot_seconds
from journal.ids import ObjectId, shard_of
from journal.store import SHARDS
from tests.servers import Server

from .fleet import Fleet
from .objects import Probe
from .schedule import Fault, Kind

RECOVERED_WITHIN_S = 60.0
HOST_WITHIN_S = 30.0
LOOK_EVERY_S = 0.25


@dataclass(frozen=True, slots=True)
class Stop:
    """A host that was stopped for a while."""

    pid: int
    since: float


@dataclass(slots=True)
class Suffered:
    """A fault that has happened, and how long it took."""

    fault: Fault
    at: float
    victim: str
    shards: frozenset[int] = frozenset()
    first_s: float | None = None
    """To the first answer of an affected shard; after a driver's death, to its successor's first answer."""
    all_s: float | None = None
    """To an answer of each affected shard; after a driver's death, until all that it had left open was settled."""

    def is_disturbed_by(self, other: "Suffered") -> bool:
        """Whether the other one, of hosts or of the store, fell into this one's time, or this one into its."""
        is_other = other is not self and other.fault.kind is not Kind.DRIVER_KILLED
        return is_other and self.at < other.over_at and other.at < self.over_at

    @property
    def over_at(self) -> float:
        return self.at + max(self.fault.lasts_s, self.all_s or 0.0)


class Faults:
    """Does what a schedule says."""

    def __init__(self, server: Server, fleet: Fleet) -> None:
        self._server, self._fleet = server, fleet
        self._over = threading.Event()
        self._pool = ThreadPoolExecutor(32)
        self._tasks: list[Future[None]] = []
        self._start: Future[None] = self._pool.submit(lambda: None)
        self._hosts: Sequence[HostStatus] = ()
        self._probes = {shard_of(str(ObjectId("Probe", f"{key}")), SHARDS): f"{key}" for key in range(50 * SHARDS)}
        assert len(self._probes) == SHARDS
        self.suffered: list[Suffered] = []
        self.stops: list[Stop] = []

    @contextmanager
    def watching(self) -> Generator[None]:
        """Look who the hosts are, again and again, from when every shard answers; at the end, wait for all tasks."""
        # The first call of a class stores its code, and fails where the store is away.
        actors.get([Probe[key].ask.remote() for key in self._probes.values()], timeout=RECOVERED_WITHIN_S)
        watch = threading.Thread(target=self._watch)
        watch.start()
        try:
            yield
        finally:
            self._over.set()
            watch.join()
            self._pool.shutdown()

    def _watch(self) -> None:
        while not self._over.wait(LOOK_EVERY_S):
            try:
                self._hosts = actors.status().hosts
            except UnavailableError:
                continue  # while the store is away, they are who they were

    def pids(self) -> list[int]:
        """Return the processes of hosts."""
        return [host.pid for host in self._hosts]

    def happen(self, schedule: Sequence[Fault], began: float) -> None:
        """Do all faults, each at its time; return when all are over and recovered from.

        Raises:
            TimeoutError: some shard does not answer any more.
        """
        for fault in schedule:
            pause(began + fault.at_s - boot_seconds())
            self._do(fault)
        for task in self._tasks:
            task.result()

    def _do(self, fault: Fault) -> None:
        match fault.kind:
            case Kind.HOST_KILLED:
                self._strike(fault, self._living(fault.rank)[:1], self._kill)
            case Kind.HOSTS_KILLED:  # those that own nothing yet, too
                self._strike(fault, self._living(fault.rank), self._kill)
            case Kind.HOST_STOPPED:
                self._strike(fault, self._living(fault.rank)[:1], self._stop)
            case Kind.STORE_ENDED | Kind.STORE_KILLED:
                suffered = Suffered(fault, boot_seconds(), "the store", frozenset(range(SHARDS)))
                self._end_store(signal.SIGTERM if fault.kind is Kind.STORE_ENDED else signal.SIGKILL)
                self._start = self._later(lambda: self._start_store(fault.lasts_s))
                self._recover(suffered)
            case Kind.DRIVER_KILLED:
                at = boot_seconds()
                self.suffered.append(Suffered(fault, at, self._fleet.kill(fault.rank)))

    def _living(self, rank: int) -> list[HostStatus]:
        """Return the hosts that live, the owner of shards that the rank chooses first; wait until there is one."""
        deadline = boot_seconds() + HOST_WITHIN_S
        while boot_seconds() < deadline:
            living = [host for host in self._hosts if _is_host(host.pid)]
            owners = [host for host in living if host.shards]
            if owners:
                first = owners[rank % len(owners)]
                return [first, *(host for host in living if host is not first)]
            pause(LOOK_EVERY_S)
        raise TimeoutError("no host owns a shard")

    def _strike(self, fault: Fault, hosts: Sequence[HostStatus], strike: Callable[[int, float], None]) -> None:
        shards = frozenset(shard for host in hosts for shard in host.shards)
        suffered = Suffered(fault, boot_seconds(), ", ".join(f"pid {host.pid}" for host in hosts), shards)
        for host in hosts:
            strike(host.pid, fault.lasts_s)
        self._recover(suffered)

    def _kill(self, pid: int, lasts_s: float) -> None:
        os.kill(pid, signal.SIGKILL)

    def _stop(self, pid: int, lasts_s: float) -> None:
        self.stops.append(Stop(pid, boot_seconds()))
        os.kill(pid, signal.SIGSTOP)

        def go_on() -> None:
            pause(lasts_s)
            if _is_host(pid):  # else a later fault has killed it
                os.kill(pid, signal.SIGCONT)

        self._later(go_on)

    def _end_store(self, how: signal.Signals) -> None:
        self._start.result()  # that of the fault before
        self._server.kill(how)

    def _start_store(self, after_s: float) -> None:
        pause(after_s)
        self._server.start()

    def _recover(self, suffered: Suffered) -> None:
        """Ask each shard, and note when the first and the last one has answered."""
        self.suffered.append(suffered)
        asked = [Probe[key].ask.remote() for shard, key in self._probes.items() if shard in suffered.shards]

        def wait() -> None:
            actors.wait(asked, timeout=RECOVERED_WITHIN_S)
            suffered.first_s = boot_seconds() - suffered.at
            actors.get(asked, timeout=RECOVERED_WITHIN_S)
            suffered.all_s = boot_seconds() - suffered.at

        self._later(wait)

    def _later(self, task: Callable[[], None]) -> Future[None]:
        self._tasks.append(self._pool.submit(task))
        return self._tasks[-1]


def _is_host(pid: int) -> bool:
    try:
        return b"HostProcess" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return False


def pause(seconds: float) -> None:
    """Wait."""
    threading.Event().wait(max(0.0, seconds))
