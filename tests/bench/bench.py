"""One run of the benchmark: what was asked for, the stack it runs on, and the rows that it has taken."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from actors import Invocation

from .load import Gauge, Window, blocking_loop
from .meter import TRIES, fastest, measured
from .stack import Stack
from .table import Row

R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What was asked for."""

    clients: Sequence[int] = (1, 16, 64)
    seconds: float = 4.0
    warm: float = 1.0
    tries: int = TRIES
    sleepers: int = 10_000
    hosts: int | Literal["local"] = 1
    directory: Path = Path(".perdure")


@dataclass(slots=True)
class Bench:
    """Takes rows on a stack."""

    options: Options
    stack: Stack
    rows: list[Row] = field(default_factory=list[Row])

    def add(self, row: Row) -> None:
        """Keep a row, and say so to who waits."""
        self.rows.append(row)
        shown = ("clients", "ops_per_s", "p50_ms", "p99_ms", "disturbed_pct", "ok")
        said = " ".join(f"{name}={row[name]}" for name in shown if name in row)
        print(f"  {row['workload']}: {said}", file=sys.stderr, flush=True)  # noqa: T201 - for who waits

    def check(self, workload: str, ok: bool, **facts: object) -> None:
        """Keep what a check of results found."""
        self.add({"workload": f"{workload} check", "ok": ok, **facts})

    async def loop(self, workload: str, operation: Callable[[int], Awaitable[object]], levels: Sequence[int]) -> None:
        """Take a row of a closed loop for each number of clients."""
        said = self.options
        for clients in levels:
            taken = await measured(
                operation,
                clients,
                seconds=said.seconds,
                warm=said.warm,
                components=self.stack.components,
                tries=said.tries,
            )
            self.add(_with_total(taken.row(workload)))

    async def calls(
        self,
        workload: str,
        call: Callable[[], Invocation[R]],
        answered: Callable[[R], object],
        levels: Sequence[int] | None = None,
    ) -> None:
        """Take rows of awaited invocations, and with one client one of invocations that a blocked thread waits for.

        `answered` is given each result.
        """

        async def operation(_: int) -> None:
            answered(await call())

        def blocking(_: int) -> None:
            answered(call().result())

        async def once(gauge: Gauge) -> Window:
            said = self.options
            return await asyncio.to_thread(blocking_loop, blocking, seconds=said.seconds, warm=said.warm, gauge=gauge)

        levels = self.options.clients if levels is None else levels
        await self.loop(workload, operation, levels)
        if 1 in levels:
            taken = await fastest(once, self.stack.components, tries=self.options.tries)
            self.add(_with_total(taken.row(f"{workload} sync")))


def _with_total(row: Row) -> Row:
    """Add the CPU time of the system, which is its host and its store: the driver belongs to the load."""
    per_1k: dict[str, float] = row["cpu_s_per_1k"]
    if "host" in per_1k:
        row["cpu_s_per_1k_total"] = round(per_1k["host"] + per_1k["store"], 4)
    return row
