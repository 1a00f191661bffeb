"""W6: many handlers that sleep; when they started, when they woke, and what memory they took meanwhile.

Both times are taken by the host's clock, in the handler, and the start of the whole by the driver's, on one machine.
"""

import asyncio
import time
from pathlib import Path
from typing import Final

from .bench import Bench
from .load import percentile
from .meter import Meter
from .workloads import BenchSleeper

SLEEP_S: Final = 5.0
SENDERS: Final = 32
LOOK_EVERY_S: Final = 0.25
ALL_MAX_S: Final = 85.0


def lines_of(log: Path) -> list[list[str]]:
    """Return the words of each line that is complete."""
    return [line.split() for line in log.read_text("ascii").splitlines(keepends=True) if line.endswith("\n")]


async def naps(bench: Bench) -> None:
    """Send them, each sender the next one when its last was accepted; wait until the last has woken.

    Raises:
        TimeoutError: some have not woken within `ALL_MAX_S`.
    """
    count = bench.options.sleepers
    log, numbers = bench.stack.directory / "naps.log", iter(range(count))
    log.touch()
    submitted_s, asleep_most, memory = 0.0, 0, dict[str, float]()
    meter, began = Meter(bench.stack.components), time.time()
    meter.begin()

    async def send() -> None:
        nonlocal submitted_s
        for i in numbers:
            await BenchSleeper[f"z{i}"].nap.send(str(log), SLEEP_S).accepted()
        submitted_s = time.time() - began

    async def watch() -> None:
        nonlocal asleep_most, memory
        woken = 0
        while woken < count:
            await asyncio.sleep(LOOK_EVERY_S)
            text = log.read_bytes()
            woken = text.count(b"E z")
            asleep = text.count(b"S z") - woken
            if asleep > asleep_most:
                asleep_most, memory = asleep, meter.rss_mib()

    async with asyncio.timeout(ALL_MAX_S), asyncio.TaskGroup() as group:
        group.create_task(watch())
        for _ in range(SENDERS):
            group.create_task(send())
    meter.end()
    starts, wakes, started = dict[str, float](), dict[str, float](), 0
    for tag, key, at in lines_of(log):
        if tag == "S":
            started += 1
            starts.setdefault(key, float(at))
        else:
            wakes[key] = float(at)
    late = sorted(wakes[key] - starts[key] - SLEEP_S for key in wakes)
    bench.add(
        {
            "workload": "W6",
            "sleepers": count,
            "sleep_s": SLEEP_S,
            "submit_s": round(submitted_s, 2),
            "all_started_s": round(max(starts.values()) - began, 2),
            "all_done_s": round(max(wakes.values()) - began, 2),
            "longest_nap_s": round(SLEEP_S + late[-1], 3),
            "most_asleep_at_once": asleep_most,
            "p50_ms": round(percentile(late, 0.50) * 1e3, 1),
            "p95_ms": round(percentile(late, 0.95) * 1e3, 1),
            "p99_ms": round(percentile(late, 0.99) * 1e3, 1),
            "handler_starts_incl_replays": started,
            "rss_mib_while_asleep": {name: round(mib, 1) for name, mib in memory.items()},
            "rss_mb_while_asleep_total": round(sum(memory.get(name, 0) for name in ("host", "store")) * 2**20 / 1e6, 1),
            **meter.usage.row(count),
        }
    )
    bench.check("W6", len(wakes) == count and late[0] >= 0, woken=len(wakes), earliest_ms=round(late[0] * 1e3, 1))
