"""The load: clients in closed loops, and the window in which their operations count."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

DRAIN_MAX_S = 40.0
"""Seconds after the window within which the operations under way must end."""


class Gauge(Protocol):
    """What is read when the window opens and when it closes."""

    def begin(self) -> None:
        """The window opens."""
        ...

    def end(self) -> None:
        """The window has closed."""
        ...


def percentile(ordered: Sequence[float], part: float) -> float:
    """Return the value below which this part of the sorted values lies; not a number if there are none."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * part))] if ordered else float("nan")


@dataclass(frozen=True, slots=True)
class Window:
    """What clients did in a window of time."""

    clients: int
    seconds: float
    latencies: Sequence[float]
    """Seconds of each operation that completed inside the window, sorted."""
    completed: int
    """Operations that completed, those before and after the window included."""

    @property
    def ops(self) -> int:
        """Operations that completed inside the window."""
        return len(self.latencies)

    @property
    def ops_per_s(self) -> float:
        """Throughput."""
        return self.ops / self.seconds

    @property
    def p50_ms(self) -> float:
        """Median latency."""
        return percentile(self.latencies, 0.50) * 1e3

    @property
    def p95_ms(self) -> float:
        """Latency that 95 % do not exceed."""
        return percentile(self.latencies, 0.95) * 1e3

    @property
    def p99_ms(self) -> float:
        """Latency that 99 % do not exceed."""
        return percentile(self.latencies, 0.99) * 1e3

    @property
    def max_ms(self) -> float:
        """The longest latency."""
        return percentile(self.latencies, 1.0) * 1e3


async def closed_loop(
    operation: Callable[[int], Awaitable[object]],
    clients: int,
    *,
    seconds: float,
    warm: float,
    gauge: Gauge | None = None,
) -> Window:
    """Let each client begin its next operation when its last one has ended; count those that end inside the window.

    `operation(i)` is the i-th of all clients together. The window opens after `warm` seconds. An operation that fails
    ends the load, and its error is raised.

    Raises:
        TimeoutError: an operation did not end within `DRAIN_MAX_S` after the window.
    """
    numbers, latencies, completed = itertools.count(), list[float](), 0
    opens = time.perf_counter() + warm
    closes = opens + seconds

    async def client() -> None:
        nonlocal completed
        while (began := time.perf_counter()) < closes:
            await operation(next(numbers))
            ended = time.perf_counter()
            completed += 1
            if opens <= ended < closes:
                latencies.append(ended - began)

    async def measure(gauge: Gauge) -> None:
        await asyncio.sleep(opens - time.perf_counter())
        gauge.begin()
        await asyncio.sleep(closes - time.perf_counter())
        gauge.end()

    async with asyncio.timeout(warm + seconds + DRAIN_MAX_S), asyncio.TaskGroup() as group:
        if gauge is not None:
            group.create_task(measure(gauge))
        for _ in range(clients):
            group.create_task(client())
    return Window(clients, seconds, sorted(latencies), completed)


def blocking_loop(
    operation: Callable[[int], object], *, seconds: float, warm: float, gauge: Gauge | None = None
) -> Window:
    """Do the same with one client that has no event loop and blocks until each operation has ended."""
    latencies, completed = list[float](), 0
    opens = time.perf_counter() + warm
    closes, is_open = opens + seconds, False
    while (began := time.perf_counter()) < closes:
        if gauge is not None and not is_open and began >= opens:
            is_open = True
            gauge.begin()
            began = time.perf_counter()
        operation(completed)
        ended = time.perf_counter()
        completed += 1
        if opens <= ended < closes:
            latencies.append(ended - began)
    if gauge is not None:
        gauge.end()
    return Window(1, seconds, sorted(latencies), completed)
