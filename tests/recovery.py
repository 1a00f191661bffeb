"""Recovery: how long users wait when a host or the store dies under load: `python -m tests.recovery` prints it.

Owns the load, the faults and their measure; what must be right meanwhile is checked here too, and asserted by
`test_under_fire.py`, which asserts no speed.
"""

import argparse
import asyncio
import logging
import os
import signal
import statistics
import sys
import tempfile
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

os.environ["RAY_AUTH_MODE"] = "disabled"  # before Ray is imported: it wants a token otherwise

import ray

import actors
from actors import Context, Service, VirtualObject, handler, shared, state
from journal.clock import boot_seconds
from journal.embedded import guard
from journal.ids import shard_in
from tests.servers import Server, valkey_binary

CLIENTS, KEYS = 64, 128
WITHIN_S = 60.0
api: Any = ray
SETTLE_S = 3.0
"""Seconds of load before a fault: the process that replaced the last one has started, and has its shards."""


class Gauge(VirtualObject):
    total: int = state(0)

    @handler
    async def add(self, ctx: Context) -> int:
        self.total += 1
        return self.total

    @handler
    async def add_later(self, ctx: Context, seconds: float) -> int:
        await asyncio.sleep(seconds)
        self.total += 1
        return self.total

    @shared
    async def read(self, ctx: Context) -> int:
        return self.total


class Outing(Service):
    @handler
    async def run(self, ctx: Context, key: str) -> int:
        """A step, a sleep, and a call whose reply is the result."""
        chosen = await ctx.run("choose", lambda: key)
        await asyncio.sleep(0.02)
        return await Gauge[chosen].add.remote()


@dataclass(slots=True)
class Call:
    shard: int
    key: str
    began: float
    ended: float = 0.0
    value: int = 0


@dataclass(slots=True)
class Load:
    """Clients in closed loops, on a thread of their own, until it is left: half of them count, half run errands."""

    calls: list[Call] = field(default_factory=list[Call])
    _over: bool = False
    _thread: threading.Thread | None = None
    _error: BaseException | None = None

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._over = True
        assert self._thread is not None
        self._thread.join()
        if self._error is not None and error is None:
            raise self._error

    def _run(self) -> None:
        try:
            asyncio.run(self._all())
        except BaseException as error:  # raised where the load is left
            self._error = error

    async def _all(self) -> None:
        await asyncio.gather(*(self._client(number) for number in range(CLIENTS)))

    async def _client(self, number: int) -> None:
        turn = number
        while not self._over:
            turn += 7
            key, began = f"{turn % KEYS}", boot_seconds()
            ref = Gauge[key].add.remote() if number % 2 else Outing.run.remote(key)
            call = Call(shard_in(ref.id), key, began)
            self.calls.append(call)
            async with asyncio.timeout(WITHIN_S):
                call.value = await ref
            call.ended = boot_seconds()

    def check(self) -> None:
        """Once it was left: every call was answered, each key counted from 1 on without a gap or a repetition."""
        replies: dict[str, list[int]] = {}
        for call in self.calls:
            replies.setdefault(call.key, []).append(call.value)
        for key, values in replies.items():
            assert sorted(values) == list(range(1, len(values) + 1)), key
            assert Gauge[key].read.remote().result(timeout=WITHIN_S) == len(values), key


@dataclass(frozen=True, slots=True)
class Recovery:
    """What users saw of one fault, in seconds from the moment that is named where it was measured."""

    first_s: float
    """Until the first end of an invocation that was started after the fault, on a shard that it hit."""
    all_s: float
    """Until the last end of those that were under way."""
    count: int
    """How many were under way."""

    def __str__(self) -> str:
        return f"first new completion {self.first_s:.2f} s, all {self.count} in flight {self.all_s:.2f} s"


def until(ask: Callable[[], Any]) -> Any:
    """Ask again and again until the answer is true; return it."""
    deadline = boot_seconds() + WITHIN_S
    while not (found := ask()):
        assert boot_seconds() < deadline, "it does not come to pass"
        guard.pause()
    return found


def wait_s(seconds: float) -> None:
    """Let the load go on for a while."""
    threading.Event().wait(seconds)


def measured(load: Load, fault_at: float, from_: float, shards: frozenset[int] | None) -> Recovery:
    """Wait until all is well again, and return how long it took since `from_`; `shards` are those that were hit."""
    calls = list(load.calls)
    hit = [call for call in calls if call.began <= fault_at and not 0 < call.ended <= fault_at]

    def fresh() -> list[float]:
        return [
            call.ended
            for call in load.calls[len(calls) - CLIENTS :]
            if call.began > fault_at and call.ended > from_ and (shards is None or call.shard in shards)
        ]

    until(lambda: fresh() and all(call.ended for call in hit))
    return Recovery(min(fresh()) - from_, max(call.ended for call in hit) - from_, len(hit))


def even_hosts(count: int = 2) -> list[Any]:
    """Return the hosts once they share the shards evenly."""

    def found() -> list[Any]:
        status = actors.status()
        share = status.shards // count
        return [host for host in status.hosts if len(host.shards) == share]

    return until(lambda: hosts if len(hosts := found()) == count else [])


def kill_host(load: Load) -> Recovery:
    """Kill the process of a host; measure from then on."""
    victim = even_hosts()[0]
    wait_s(SETTLE_S)
    os.kill(victim.pid, signal.SIGKILL)
    at = boot_seconds()
    return measured(load, at, at, frozenset(victim.shards))


def restart_store(load: Load, server: Server, how: signal.Signals, down_s: float) -> Recovery:
    """End a store of our own and start it again after a while; measure from when it answers again."""
    wait_s(SETTLE_S)
    server.kill(how)
    at = boot_seconds()
    wait_s(down_s)
    server.start()
    return measured(load, at, boot_seconds(), None)


def end_embedded(load: Load, directory: Path, how: signal.Signals) -> Recovery:
    """End the embedded server, which its guard starts again; measure from when the new one is seen."""
    wait_s(SETTLE_S)
    pid = guard.ask(str(directory)).pid
    os.kill(pid, how)
    until(lambda: guard.ask(str(directory)).pid != pid)
    at = boot_seconds()
    return measured(load, at, at, None)


@contextmanager
def folder() -> Generator[Path]:
    """Make a directory for a server, and remove it."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def of_kills(runs: int) -> None:
    """Print what kills of a Ray host cost."""
    say(f"SIGKILL of one of two Ray hosts, {CLIENTS} clients; from the kill, on the shards of the dead host")
    with folder() as directory, actors.init(directory=directory, hosts=2):
        found: list[Recovery] = []
        with Load() as load:
            for run in range(runs):
                found.append(kill_host(load))
                say(f"  run {run + 1}: {found[-1]}")
        load.check()
    first, last = (
        statistics.median(times) for times in zip(*((each.first_s, each.all_s) for each in found), strict=True)
    )
    say(f"  median: first {first:.2f} s, all {last:.2f} s; {len(load.calls)} calls, each answered once and right")


def of_stores(down_s: float) -> None:
    """Print what a store that goes away for a while costs."""
    say(f"a Valkey outside, {down_s:g} s down, two Ray hosts, {CLIENTS} clients; from when it answers again")
    with folder() as directory:
        server = Server(valkey_binary(), directory)
        try:
            with actors.init(server.url, hosts=2):
                with Load() as load:
                    for how in (signal.SIGTERM, signal.SIGKILL):
                        even_hosts()
                        say(f"  {how.name}: {restart_store(load, server, how, down_s)}")
                load.check()
        finally:
            server.kill()
    say(f"  {len(load.calls)} calls, each answered once and right")


def of_embedded() -> None:
    """Print what an end of the embedded server costs."""
    say(f"the embedded server, which its guard starts again, two Ray hosts, {CLIENTS} clients; from its return")
    with folder() as directory, actors.init(directory=directory, hosts=2):
        with Load() as load:
            for how in (signal.SIGTERM, signal.SIGKILL):
                even_hosts()
                say(f"  {how.name}: {end_embedded(load, directory, how)}")
        load.check()
    say(f"  {len(load.calls)} calls, each answered once and right")


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.recovery", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="kills of a host")
    parser.add_argument("--down", type=float, default=5.0, help="seconds that the store is down")
    parser.add_argument("parts", nargs="*", choices=("kills", "store", "embedded", []), help="(all)")
    asked = parser.parse_args(arguments)
    parts: list[str] = asked.parts or ["kills", "store", "embedded"]
    api.init("local", include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    if "kills" in parts:
        of_kills(asked.runs)
    if "store" in parts:
        of_stores(asked.down)
    if "embedded" in parts:
        of_embedded()
    api.shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
