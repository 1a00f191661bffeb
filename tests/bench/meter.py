"""The meter: CPU time and memory of each component in a window, and what the machine's other users took meanwhile.

A component is a name and the processes that make it up. All is read from /proc. A machine that is shared moves by a
factor of two within an hour, so that each window says how much of the machine the hypervisor stole or other processes
used; `measured` repeats a window in which that was much and keeps the fastest, for disturbance only slows.
"""

import os
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .load import Gauge, Window, closed_loop

DISTURBED_MAX_PCT: Final = 15.0
"""A window in which others took more of the machine is repeated."""
TRIES: Final = 3
_HERTZ: Final = os.sysconf("SC_CLK_TCK")
_CORES: Final = os.cpu_count() or 1
_GONE: Final = (FileNotFoundError, ProcessLookupError)

Components = Mapping[str, Callable[[], Iterable[int]]]
"""Name → what returns the pids of the component's processes. They are asked when a window opens and when it closes."""


def descendants(pid: int) -> Iterator[int]:
    """Yield the processes that this one has started, and those that they have started."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with suppress(*_GONE):  # it has ended since it was listed
                children.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    yield from found[1:]


def tree(pid: int) -> list[int]:
    """Return the process and its descendants."""
    return [pid, *descendants(pid)]


def runs(pid: int) -> bool:
    """Whether there is such a process and it has not ended."""
    try:
        return _stat(pid)[0] not in "ZX"
    except _GONE:
        return False


def cpu_s(pids: Iterable[int]) -> float:
    """Return the CPU seconds, user and system, of these processes and of their children that have ended."""
    ticks = 0
    for pid in pids:
        with suppress(*_GONE):
            ticks += sum(map(int, _stat(pid)[11:15]))
    return ticks / _HERTZ


def rss_mib(pids: Iterable[int]) -> float:
    """Return the memory of these processes in MiB; pages that they share count once for each."""
    return sum(_status_kib(pid, "VmRSS") for pid in pids) / 1024


def _peak_mib(pids: Iterable[int]) -> float:
    return sum(_status_kib(pid, "VmHWM") for pid in pids) / 1024


def _forget_peak(pids: Iterable[int]) -> None:
    for pid in pids:
        with suppress(*_GONE):
            Path(f"/proc/{pid}/clear_refs").write_text("5")


def _stat(pid: int) -> list[str]:
    """Return the fields of a process's `stat` from its state on."""
    return Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()


def _status_kib(pid: int, field: str) -> int:
    with suppress(*_GONE):
        for line in Path(f"/proc/{pid}/status").read_text("utf-8", "replace").splitlines():
            if line.startswith(field):
                return int(line.split()[1])
    return 0  # it has ended


def _machine() -> tuple[int, int, int]:
    """Return how many ticks the machine was busy, how many were stolen, and all of them."""
    with open("/proc/stat", encoding="ascii") as file:
        ticks = [int(field) for field in file.readline().split()[1:9]]
    user, nice, system, _idle, _iowait, irq, softirq, steal = ticks
    return user + nice + system + irq + softirq, steal, sum(ticks)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a window took."""

    seconds: float
    cpu_s: Mapping[str, float]
    rss_mib: Mapping[str, float]
    """At the window's end."""
    peak_rss_mib: Mapping[str, float]
    """The highest inside the window."""
    others_cores: float
    """Cores that processes used which belong to no component."""
    stolen_pct: float
    """Part of the machine that the hypervisor gave to others."""

    @property
    def disturbed_pct(self) -> float:
        """Part of the machine that was stolen or used by others."""
        return self.stolen_pct + 100 * self.others_cores / _CORES

    def row(self, ops: int) -> dict[str, Any]:
        """Return it as fields of a row, per 1,000 operations where that makes sense."""
        per_1k = {name: round(used * 1000 / max(ops, 1), 4) for name, used in self.cpu_s.items()}
        return {
            "cpu_s_per_1k": per_1k,
            "cpu_s": _rounded(self.cpu_s, 3),
            "rss_mib": _rounded(self.rss_mib, 1),
            "peak_rss_mib": _rounded(self.peak_rss_mib, 1),
            "other_processes_cores": round(self.others_cores, 2),
            "machine_steal_pct": round(self.stolen_pct, 1),
            "disturbed_pct": round(self.disturbed_pct, 1),
        }


def _rounded(values: Mapping[str, float], digits: int) -> dict[str, float]:
    return {name: round(value, digits) for name, value in values.items()}


class Meter(Gauge):
    """Reads the components when a window opens and when it closes."""

    def __init__(self, components: Components) -> None:
        self._components = components
        self._usage: Usage | None = None

    def begin(self) -> None:
        """Begin to measure."""
        for pids in self._components.values():
            _forget_peak(pids())
        self._cpu, self._ticks, self._at = self._cpu_s(), _machine(), time.perf_counter()

    def end(self) -> None:
        """End the measurement; `usage` has it."""
        seconds = time.perf_counter() - self._at
        busy, stolen, total = (now - then for now, then in zip(_machine(), self._ticks, strict=True))
        used = {name: now - self._cpu[name] for name, now in self._cpu_s().items()}
        self._usage = Usage(
            seconds,
            used,
            self.rss_mib(),
            {name: _peak_mib(pids()) for name, pids in self._components.items()},
            max(0.0, busy / _HERTZ - sum(used.values())) / seconds,
            100 * stolen / max(total, 1),
        )

    @property
    def usage(self) -> Usage:
        """What was measured last."""
        assert self._usage is not None, "nothing was measured yet"
        return self._usage

    def rss_mib(self) -> dict[str, float]:
        """Return each component's memory as it is now, in MiB."""
        return {name: rss_mib(pids()) for name, pids in self._components.items()}

    def _cpu_s(self) -> dict[str, float]:
        return {name: cpu_s(pids()) for name, pids in self._components.items()}


@dataclass(frozen=True, slots=True)
class Measurement:
    """A window, what it took, and after how many tries it was taken."""

    window: Window
    usage: Usage
    tries: int

    def row(self, workload: str) -> dict[str, Any]:
        """Return it as a row of the table, of numbers and names alone."""
        window = self.window
        return {
            "workload": workload,
            "clients": window.clients,
            "seconds": window.seconds,
            "ops": window.ops,
            "ops_per_s": round(window.ops_per_s, 1),
            "p50_ms": round(window.p50_ms, 3),
            "p95_ms": round(window.p95_ms, 3),
            "p99_ms": round(window.p99_ms, 3),
            "max_ms": round(window.max_ms, 3),
            **self.usage.row(window.ops),
            "tries": self.tries,
        }


async def measured(
    operation: Callable[[int], Awaitable[object]],
    clients: int,
    *,
    seconds: float,
    warm: float,
    components: Components,
    tries: int = TRIES,
) -> Measurement:
    """Return a window of a closed loop; repeat a disturbed one, and keep the fastest."""

    async def once(gauge: Gauge) -> Window:
        return await closed_loop(operation, clients, seconds=seconds, warm=warm, gauge=gauge)

    return await fastest(once, components, tries=tries)


async def fastest(once: Callable[[Gauge], Awaitable[Window]], components: Components, *, tries: int) -> Measurement:
    """Return the first window that is not disturbed, or of so many tries the fastest."""
    taken: list[Measurement] = []
    while len(taken) < tries:
        meter = Meter(components)
        taken.append(Measurement(await once(meter), meter.usage, len(taken) + 1))
        if taken[-1].usage.disturbed_pct <= DISTURBED_MAX_PCT:
            break
    best = max(taken, key=lambda one: one.window.ops_per_s)
    return Measurement(best.window, best.usage, len(taken))
