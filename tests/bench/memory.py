"""What objects and sleepers cost in memory: `python -m tests.bench.memory`.

A host in a process of its own holds many activations of a small object, then lets the idle ones go; another is given
many handlers that sleep, which leave its memory, and wake them at a steady rate.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from .ground import Ground, ground, time_passes
from .load import percentile
from .meter import Meter, rss_mib
from .workloads import BenchAlarm, BenchCounter

Row = dict[str, Any]
BATCH: Final = 2_000
"""Sends between two waits for their acceptance: below `pending_max`."""
COLLECTED_MAX_S: Final = 60.0
STARTS_PER_S: Final = 1_500
"""Allowed for before the first wakes: each is started, waits, and leaves memory."""
WOKEN_MAX_S: Final = 30.0


def activations(place: Path, count: int, idle_s: float) -> Row:
    """Touch so many objects; then wait until the host has let them go."""
    with ground(place) as ready:
        ready.start_hosts(1, activation_idle_s=idle_s)
        asyncio.run(_touch(1))
        before, began = _rss_mb(ready), time.monotonic()
        meter = Meter(ready.components)
        meter.begin()
        asyncio.run(_touch(count))
        took_s, held, full = time.monotonic() - began, ready.activations(), _rss_mb(ready)
        meter.end()
        until = time.monotonic() + idle_s + COLLECTED_MAX_S
        while ready.activations() > 1 and time.monotonic() < until:
            time_passes(0.2)
        gone_s, left = time.monotonic() - began - took_s, ready.activations()
        time_passes(0.5)
        after = _rss_mb(ready)
        began = time.monotonic()
        asyncio.run(_touch(count))
        again_s = time.monotonic() - began
        return {
            "what": "activations",
            "objects": count,
            "held": held,
            "rss_mb_before": round(before, 1),
            "rss_mb": round(full, 1),
            "bytes_each": round((full - before) * 1e6 / max(held, 1)),
            "touched_s": round(took_s, 1),
            "activation_idle_s": idle_s,
            "gone_after_s": round(gone_s, 1),
            "left": left,
            "rss_mb_when_gone": round(after, 1),
            "touched_again_s": round(again_s, 1),
            "rss_mb_again": round(_rss_mb(ready), 1),
            "disturbed_pct": round(meter.usage.disturbed_pct, 1),
        }


async def _touch(count: int) -> None:
    for first in range(0, count, BATCH):
        end = min(first + BATCH, count)
        for i in range(first, end - 1):
            BenchCounter[f"m{i}"].add.send(1)
        await BenchCounter[f"m{end - 1}"].add.remote(1)


def _rss_mb(ready: Ground) -> float:
    return rss_mib(ready.components["host"]()) * 2**20 / 1e6


def sleepers(place: Path, count: int, rate: float, idle_timeout_s: float, settle_s: float) -> Row:
    """Lay so many handlers to sleep, then let them wake one by one at this rate."""
    with ground(place) as ready:
        ready.start_hosts(1, idle_timeout_s=idle_timeout_s, activation_idle_s=idle_timeout_s)
        log = ready.directory / "alarms.log"
        log.touch()
        asyncio.run(_touch(1))
        empty_mb, before = ready.store_mb(), _rss_mb(ready)
        began = time.time()
        first = began + count / STARTS_PER_S + idle_timeout_s + settle_s
        asyncio.run(_lay(log, count, first, rate))
        sent_s = time.time() - began
        while ready.activations() > 1 and time.time() < first - 1:
            time_passes(0.2)
        asleep, asleep_mb, store_mb = ready.activations(), _rss_mb(ready), ready.store_mb()
        spare_s = first - time.time()
        meter = Meter(ready.components)
        time_passes(max(spare_s, 0))
        meter.begin()
        time_passes(max(first + count / rate - time.time(), 0))
        meter.end()
        late = _lateness(log, count, first + count / rate + WOKEN_MAX_S)
        return {
            "what": "sleepers",
            "sleepers": count,
            "idle_timeout_s": idle_timeout_s,
            "sent_s": round(sent_s, 1),
            "spare_s": round(spare_s, 1),
            "activations_while_asleep": asleep,
            "rss_mb_before": round(before, 1),
            "rss_mb_while_asleep": round(asleep_mb, 1),
            "store_bytes_each": round((store_mb - empty_mb) * 1e6 / count),
            "wakes_per_s": rate,
            "woken": len(late),
            "p50_ms": round(percentile(late, 0.50) * 1e3, 1),
            "p99_ms": round(percentile(late, 0.99) * 1e3, 1),
            "max_ms": round(percentile(late, 1.0) * 1e3, 1),
            "earliest_ms": round(percentile(late, 0.0) * 1e3, 1),
            **meter.usage.row(count),
        }


async def _lay(log: Path, count: int, first: float, rate: float) -> None:
    """Send them in an order that is not that of their times."""
    order = [i * 7919 % count for i in range(count)] if count % 7919 else list(range(count))
    for begin in range(0, count, BATCH):
        sent = [BenchAlarm[f"z{i}"].until.send(str(log), first + i / rate) for i in order[begin : begin + BATCH]]
        await sent[-1].accepted()


def _lateness(log: Path, count: int, until: float) -> list[float]:
    """Return by how much each woke too late, sorted, once all have."""
    while log.read_bytes().count(b"\n") < count and time.time() < until:
        time_passes(0.25)
    return sorted(float(line.split()[2]) for line in log.read_text("ascii").splitlines())


def show(row: Row) -> None:
    """Print a row."""
    width = max(map(len, row))
    print(f"\n{row['what']}")  # noqa: T201 - it is what was asked for
    for name, value in row.items():
        if name != "what":
            print(f"  {name:{width}}  {value}")  # noqa: T201


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what was asked for; return 0 if all idle objects went and all sleepers woke, once and not early."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.memory", description="What objects and sleepers cost in memory."
    )
    add = parser.add_argument
    add("--only", default="activations,sleepers", help="some of %(default)s")
    add("--activations", type=int, default=100_000, help="of a small object (%(default)s)")
    add("--activation-idle", type=float, default=30.0, help="seconds; Limits.activation_idle is 60 (%(default)s)")
    add("--sleepers", type=int, default=100_000, help="(%(default)s)")
    add("--rate", type=float, default=1_000.0, help="wakes a second (%(default)s)")
    add("--idle-timeout", type=float, default=2.0, help="seconds; the policy's is 60 (%(default)s)")
    add("--settle", type=float, default=8.0, help="seconds to leave memory, before the first wakes (%(default)s)")
    add("--directory", type=Path, default=Path(".perdure"), help="where the stores write (%(default)s)")
    add("--json", metavar="FILE", help="write the rows here")
    said = parser.parse_args(arguments)
    rows, only = list[Row](), said.only.split(",")
    if "activations" in only:
        rows.append(activations(said.directory, said.activations, said.activation_idle))
        show(rows[-1])
    if "sleepers" in only:
        rows.append(sleepers(said.directory, said.sleepers, said.rate, said.idle_timeout, said.settle))
        show(rows[-1])
    if said.json:
        Path(said.json).write_text(json.dumps({"rows": rows}, indent=1), "utf-8")
    went = all(row["left"] <= 1 for row in rows if row["what"] == "activations")
    woke = all(row["woken"] == row["sleepers"] and row["earliest_ms"] >= 0 for row in rows if row["what"] == "sleepers")
    return 0 if went and woke else 1


if __name__ == "__main__":
    sys.exit(main())
