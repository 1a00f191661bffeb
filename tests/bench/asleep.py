"""What a million invocations asleep cost, and how fast they are taken over: `python -m tests.bench.asleep`.

Half of them sleep for a day, half wait for a signal. When all have left memory, the host that owns all shards is
killed, and another one is started at the same moment. Some are then signalled and some cancelled: they are there.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from actors import Cancelled, Invocation
from journal.ids import address_of, shard_of

from .ground import Ground, ground, time_passes
from .meter import Meter, rss_mib
from .workloads import BenchCounter, BenchDozer

BATCH: Final = 2_000
"""Sends between two waits for their acceptance: below `pending_max`."""
SHARDS: Final = 16
MB: Final = 2**20 / 1e6


def lay(count: int) -> list[Invocation[Any]]:
    """Start so many, the sleeping and the waiting in turn; return the last batch of them."""

    async def send() -> list[Invocation[Any]]:
        sent: list[Invocation[Any]] = []
        for first in range(0, count, BATCH):
            sent = [_one(i) for i in range(first, min(first + BATCH, count))]
            await sent[-1].accepted()
        return sent

    return asyncio.run(send())


def _one(i: int) -> Invocation[Any]:
    return BenchDozer[f"d{i}"].waits.send() if i % 2 else BenchDozer[f"d{i}"].sleeps.send()


def one_key_of_each_shard() -> list[str]:
    """Return keys of counters, the first of them in shard 0."""
    found: dict[int, str] = {}
    i = 0
    while len(found) < SHARDS:
        key = f"probe{i}"
        found.setdefault(shard_of(address_of("BenchCounter", key), SHARDS), key)
        i += 1
    return [found[shard] for shard in range(SHARDS)]


def take_over(ready: Ground) -> tuple[float, float]:
    """Kill the only host, start another; return the seconds to the first answer of a shard, and to those of all."""
    keys, began = one_key_of_each_shard(), time.monotonic()
    dead = ready.hosts.pop()
    dead.kill()

    async def answers() -> tuple[float, float]:
        refs = [BenchCounter[key].add.remote(1) for key in keys]
        at: list[float] = []
        for each in asyncio.as_completed([asyncio.ensure_future(ref) for ref in refs]):
            await each
            at.append(time.monotonic() - began)
        return at[0], at[-1]

    ready.launch_host(idle_timeout_s=2.0)
    found = asyncio.run(answers())
    dead.communicate()
    return found


def wake_some(sleep: Sequence[Invocation[Any]], wait: Sequence[Invocation[Any]]) -> tuple[int, float]:
    """Cancel those that sleep, signal those that wait; return how many ended as they ought to, and the seconds."""

    async def ends() -> int:
        for number, (sleeping, waiting) in enumerate(zip(sleep, wait, strict=True)):
            sleeping.cancel()
            waiting.signal("go", number)
        cancelled = await asyncio.gather(*sleep, return_exceptions=True)
        signalled = await asyncio.gather(*wait)
        right = sum(value == number for number, value in enumerate(signalled))
        return right + sum(isinstance(error, Cancelled) for error in cancelled)

    began = time.monotonic()
    return asyncio.run(ends()), time.monotonic() - began


def measure(directory: Path, count: int) -> dict[str, Any]:
    """Lay them to sleep, look, take over, wake some; return what was found."""
    with ground(directory) as ready:
        ready.start_hosts(1, idle_timeout_s=2.0, activation_idle_s=2.0)
        asyncio.run(_touch())
        empty_mb, before_mb, began = ready.store_mb(), _rss_mb(ready), time.monotonic()
        meter = Meter(ready.components)
        meter.begin()
        sent = lay(count)
        sent_s, most_mb = time.monotonic() - began, 0.0
        while ready.activations() > SHARDS + 1:
            most_mb = max(most_mb, _rss_mb(ready))
            time_passes(0.5)
        asleep_s = time.monotonic() - began
        meter.end()
        store_mb, host_mb = ready.store_mb(), _rss_mb(ready)
        first_s, all_s = take_over(ready)
        right, woken_s = wake_some(sent[::2], sent[1::2])
        return {
            "asleep": count,
            "sent_s": round(sent_s, 1),
            "all_out_of_memory_s": round(asleep_s, 1),
            "store_bytes_each": round((store_mb - empty_mb) * 1e6 / count),
            "host_rss_mb_before": round(before_mb, 1),
            "host_rss_mb_most": round(max(most_mb, host_mb), 1),
            "host_rss_mb_of_the_new_owner": round(_rss_mb(ready), 1),
            "takeover_first_shard_s": round(first_s, 2),
            "takeover_all_shards_s": round(all_s, 2),
            "woken": len(sent),
            "woken_right": right,
            "woken_s": round(woken_s, 2),
            "disturbed_pct": round(meter.usage.disturbed_pct, 1),
        }


async def _touch() -> None:
    await asyncio.gather(*(BenchCounter[key].add.remote(1) for key in one_key_of_each_shard()))


def _rss_mb(ready: Ground) -> float:
    return rss_mib(ready.components["host"]()) * MB


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; return 0 if those that were woken ended as they ought to."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.asleep", description="What a million asleep cost.")
    parser.add_argument("--count", type=int, default=1_000_000, help="invocations (%(default)s)")
    parser.add_argument("--directory", type=Path, default=Path(".perdure"), help="where the store writes (%(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the figures here")
    said = parser.parse_args(arguments)
    found = measure(said.directory, said.count)
    width = max(map(len, found))
    for name, value in found.items():
        print(f"{name:{width}}  {value}")  # noqa: T201 - it is what was asked for
    if said.json:
        Path(said.json).write_text(json.dumps(found, indent=1), "utf-8")
    return 0 if found["woken"] == found["woken_right"] else 1


if __name__ == "__main__":
    sys.exit(main())
