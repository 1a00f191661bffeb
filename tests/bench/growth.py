"""Costs that grow: `python -m tests.bench.growth`, one table for each thing that a program may have more of.

W1 (64 clients that count) with more hosts, drivers and keys; calls to objects whose state is larger; handlers with
longer journals, run and replayed; and one key with a longer queue. Hosts are plain processes, without Ray.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

from journal.ids import shard_of

from .ground import NAMESPACE, Ground, ground, time_passes
from .load import Window, percentile
from .meter import Measurement, Meter, measured
from .workloads import BenchBlob, BenchCounter, BenchJournal, BenchQueue

Row = dict[str, Any]
CLIENTS: Final = 64
KEYS: Final = 1_000
WARM_S: Final = 0.7
STATE_MAX: Final = 16_000_000
"""Bytes of all large fields together: the fewer objects, the larger they are."""
BATCH: Final = 2_000
PRELOADED: Final = 5_000
"""Objects that one script writes."""
QUEUED_MAX: Final = 99_999
"""With the one that holds the key: `inbox_max`."""
REPEATS: Final = 3

_WRITE = "for i = 2, #ARGV do redis.call('HSET', ARGV[i], 'n', ARGV[1]) end"


@dataclass(frozen=True, slots=True)
class Asked:
    """What was asked for."""

    directory: Path
    seconds: float
    tries: int
    largest: float
    """Leaves out what is larger than this part of the largest."""


async def _measured(ready: Ground, said: Asked, operation: Callable[[int], Awaitable[object]], **facts: object) -> Row:
    taken = await measured(
        operation, CLIENTS, seconds=said.seconds, warm=WARM_S, components=ready.components, tries=said.tries
    )
    return {**facts, **taken.row("W1")}


def _adding(keys: int) -> Callable[[int], Awaitable[object]]:
    chance = random.Random(7)

    async def add(_: int) -> None:
        await BenchCounter[f"k{chance.randrange(keys)}"].add.remote(1)

    return add


def hosts(said: Asked) -> Iterator[Row]:
    """More hosts."""
    for count in (1, 2, 4):
        with ground(said.directory) as ready:
            ready.start_hosts(count)
            yield asyncio.run(_measured(ready, said, _adding(KEYS), hosts=count))


def drivers(said: Asked) -> Iterator[Row]:
    """The same clients in more driver processes."""
    for count in (1, 8):
        with ground(said.directory) as ready:
            ready.start_hosts(1)
            ready.start_drivers(count, CLIENTS, KEYS, said.seconds, WARM_S)
            meter = Meter(ready.components)
            ready.go()
            time_passes(WARM_S)
            meter.begin()
            time_passes(said.seconds)
            meter.end()
            found = ready.latencies()
            window = Window(CLIENTS, said.seconds, found, len(found))
            yield {"drivers": count, **Measurement(window, meter.usage, 1).row("W1")}


def keys(said: Asked) -> Iterator[Row]:
    """More keys, all of which have state in the store; most are not in the host's memory."""
    with ground(said.directory) as ready:
        ready.start_hosts(1)
        written = 0
        for count in _upto((1_000, 10_000, 100_000, 1_000_000), said):
            began = time.monotonic()
            _preload(ready, written, count)
            written, preload_s = count, round(time.monotonic() - began, 1)
            row = asyncio.run(_measured(ready, said, _adding(count), keys=count, preload_s=preload_s))
            yield {**row, "activations": ready.activations(), "store_mb": round(ready.store_mb(), 1)}


def _preload(ready: Ground, first: int, end: int) -> None:
    """Write the state of objects straight into the store, as their commits would; sending would take minutes."""
    for begin in range(first, end, PRELOADED):
        targets = [f"BenchCounter/k{i}" for i in range(begin, min(begin + PRELOADED, end))]
        names = [f"{NAMESPACE}:{shard_of(target, 16)}:state:{target}" for target in targets]
        ready.store.eval(_WRITE, 0, b"J0", *names)


def states(said: Asked) -> Iterator[Row]:
    """Larger state: calls that read it and write a small field beside it, and calls that write all of it."""
    for size in _upto((100, 1_000, 10_000, 100_000, 1_000_000), said):
        with ground(said.directory) as ready:
            ready.start_hosts(1)
            count = min(KEYS, STATE_MAX // size)
            yield asyncio.run(_state(ready, said, size, count))


async def _state(ready: Ground, said: Asked, size: int, count: int) -> Row:
    for first in range(0, count, CLIENTS):
        await asyncio.gather(
            *(BenchBlob[f"b{i}"].fill.remote(size, 0) for i in range(first, min(first + CLIENTS, count)))
        )

    async def touch(i: int) -> None:
        await BenchBlob[f"b{i % count}"].touch.remote()

    async def fill(i: int) -> None:
        await BenchBlob[f"b{i % count}"].fill.remote(size, i)

    touched = await _measured(ready, said, touch)
    filled = await _measured(ready, said, fill)
    return {
        "state_bytes": size,
        "objects": count,
        "touch_ops_per_s": touched["ops_per_s"],
        "touch_p99_ms": touched["p99_ms"],
        "fill_ops_per_s": filled["ops_per_s"],
        "fill_p99_ms": filled["p99_ms"],
        "fill_mb_per_s": round(filled["ops_per_s"] * size / 1e6, 1),
        "disturbed_pct": max(touched["disturbed_pct"], filled["disturbed_pct"]),
    }


def journals(said: Asked) -> Iterator[Row]:
    """Longer journals: steps, then a sleep in which the handler leaves memory, and the replay when it wakes."""
    with ground(said.directory) as ready:
        ready.start_hosts(1, idle_timeout_s=0)
        for count in _upto((1, 10, 100, 1_000, 10_000), said):
            repeats = REPEATS if count < 10_000 else 1
            yield asyncio.run(_journal(ready, count, repeats))


async def _journal(ready: Ground, count: int, repeats: int) -> Row:
    runs, replays = list[float](), list[float]()
    wait_s = 0.3 + count * 1e-4
    meter = Meter(ready.components)
    meter.begin()
    for i in range(repeats):
        began = time.monotonic()
        late_s = await BenchJournal[f"j{count}-{i}"].steps.remote(count, wait_s)
        runs.append(time.monotonic() - began - wait_s - late_s)
        replays.append(late_s)
    meter.end()
    run_s, replay_s = (percentile(sorted(found), 0.5) for found in (runs, replays))
    return {
        "entries": count + 1,
        "run_ms": round(run_s * 1e3, 1),
        "run_ms_per_entry": round(run_s * 1e3 / (count + 1), 3),
        "replay_ms": round(replay_s * 1e3, 1),
        "replay_us_per_entry": round(replay_s * 1e6 / (count + 1), 1),
        "host_cpu_ms_per_entry": round(meter.usage.cpu_s["host"] * 1e3 / (count + 1) / repeats, 3),
        "disturbed_pct": round(meter.usage.disturbed_pct, 1),
    }


def queued(said: Asked) -> Iterator[Row]:
    """A longer queue of one key: how fast it drains."""
    for count in _upto((1, 100, 1_000, 10_000, QUEUED_MAX), said):
        with ground(said.directory) as ready:
            ready.start_hosts(1)
            yield asyncio.run(_queue(ready, count))


async def _queue(ready: Ground, count: int) -> Row:
    gate, hot = ready.directory / "gate", BenchQueue["hot"]
    held = hot.hold.remote(str(gate))
    began = time.monotonic()
    for first in range(0, count - 1, BATCH):
        sent = [hot.add.send() for _ in range(first, min(first + BATCH, count - 1))]
        await sent[-1].accepted()
    last = hot.add.remote()
    await last.accepted()
    sent_s = time.monotonic() - began
    await asyncio.sleep(0.3 + count * 1e-5)
    meter = Meter(ready.components)
    rss = meter.rss_mib()["host"]
    meter.begin()
    began = time.monotonic()
    gate.touch()
    await held
    found = await last
    drained_s = time.monotonic() - began
    meter.end()
    return {
        "queued": count,
        "ok": found == count,
        "sent_s": round(sent_s, 2),
        "drained_s": round(drained_s, 3),
        "ops_per_s": round(count / drained_s),
        "host_rss_mib": round(rss, 1),
        "host_cpu_ms_each": round(meter.usage.cpu_s["host"] * 1e3 / count, 3),
        "store_cpu_ms_each": round(meter.usage.cpu_s["store"] * 1e3 / count, 3),
        "disturbed_pct": round(meter.usage.disturbed_pct, 1),
    }


def _upto(counts: Sequence[int], said: Asked) -> list[int]:
    return [count for count in counts if count <= counts[-1] * said.largest]


TABLES: Final = {
    "hosts": hosts,
    "drivers": drivers,
    "keys": keys,
    "state": states,
    "journal": journals,
    "queue": queued,
}
HIDDEN: Final = {"workload", "clients", "seconds", "ops", "p95_ms", "max_ms", "cpu_s", "peak_rss_mib", "tries"}
HIDDEN_TOO: Final = {"other_processes_cores", "machine_steal_pct"}


def table(rows: Sequence[Row]) -> str:
    """Return rows as lines of columns."""
    flat = [{name: _shown(value) for name, value in row.items() if name not in HIDDEN | HIDDEN_TOO} for row in rows]
    widths = {name: max(len(name), *(len(row[name]) for row in flat)) for name in flat[0]}
    lines = [dict(zip(widths, widths, strict=True)), *flat]
    return "\n".join("  ".join(line[name].rjust(width) for name, width in widths.items()) for line in lines)


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name[0]} {number:g}" for name, number in cast("dict[str, float]", value).items())
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what was asked for; return 0 if every queue was emptied in full."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.growth", description="What grows, and how.")
    add = parser.add_argument
    add("--only", default=",".join(TABLES), help="some of %(default)s")
    add("--seconds", type=float, default=3.0, help="of each window (%(default)s)")
    add("--tries", type=int, default=1, help="at most, if others use the machine (%(default)s)")
    add("--largest", type=float, default=1.0, help="leave out what is larger than this part of the largest")
    add("--directory", type=Path, default=Path(".perdure"), help="where the stores write (%(default)s)")
    add("--json", metavar="FILE", help="write the rows here")
    said = parser.parse_args(arguments)
    asked = Asked(said.directory, said.seconds, said.tries, said.largest)
    found: dict[str, list[Row]] = {}
    for name in said.only.split(","):
        print(f"\n{name}: {(TABLES[name].__doc__ or '').partition('.')[0]}", flush=True)  # noqa: T201 - it was asked for
        found[name] = list(TABLES[name](asked))
        print(table(found[name]), flush=True)  # noqa: T201
    if said.json:
        Path(said.json).write_text(json.dumps(found, indent=1), "utf-8")
    return 0 if all(row.get("ok", True) for rows in found.values() for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
