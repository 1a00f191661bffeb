"""Real processes for tests that kill: a host without Ray, and programs with many clients; and the objects they use.

`launch` starts either as a child that prints one line when it is ready, and ends when its standard input does, so that
nothing outlives the test.
"""

import asyncio
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from actors import Context, VirtualObject, handler, shared, state
from actors.client.client import Client
from actors.host.local import LocalHost
from actors.requests.request import EMPTY_OPTIONS, Request
from journal.redis.store import RedisStore

HERE = Path(__file__).resolve().parent
EFFECTS = "TEST_EFFECTS"
"""The variable that names the file in which steps leave their effects."""
ANSWER_WITHIN_S = 90.0

_numbers = itertools.count()


def effect(step_id: str) -> str:
    """Append one line to the file outside, at once and whole; return what makes this very run of the step known."""
    run = f"{os.getpid()}.{next(_numbers)}"
    file = os.open(os.environ[EFFECTS], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, f"{step_id} {run}\n".encode())
    finally:
        os.close(file)
    return run


class Ledger(VirtualObject):
    added: list[str] = state(default_factory=list)
    noted: list[str] = state(default_factory=list)

    @handler
    async def add(self, ctx: Context, saga: str) -> int:
        self.added.append(saga)
        return len(self.added)

    @handler
    async def note(self, ctx: Context, saga: str) -> None:
        self.noted.append(saga)

    @shared
    async def read(self, ctx: Context) -> list[list[str]]:
        return [self.added, self.noted]


class Saga(VirtualObject):
    stages: list[str] = state(default_factory=list)
    total: int = state(0)

    @handler
    async def run(self, ctx: Context, ledger: str, name: str) -> list[str | int]:
        """Three steps, a call, sends before and after it, a sleep, and state written before and after each wait."""
        self.stages.append(f"{name} begins")
        before = self.total
        first = await ctx.run("first", lambda: effect(ctx.step_id))
        self.total += 1
        Ledger[ledger].note.send(f"{name} first")
        place = await Ledger[ledger].add.remote(name)
        self.total += 1
        second = await ctx.run("second", lambda: effect(ctx.step_id))
        Ledger[ledger].note.send(f"{name} second")
        await asyncio.sleep(0.05)
        self.total += 1
        third = await ctx.run("third", lambda: effect(ctx.step_id))
        self.stages.append(f"{name} ends")
        return [ctx.id, first, second, third, place, self.total - before]

    @shared
    async def read(self, ctx: Context) -> list[str]:
        return self.stages


class Line(VirtualObject):
    """Takes numbers that are to arrive in order; keeps those that did not."""

    length: int = state(0)
    wrong: list[tuple[int, int]] = state(default_factory=list)

    @handler
    async def append(self, ctx: Context, number: int) -> int:
        if number != self.length:
            self.wrong.append((self.length, number))
        self.length += 1
        return self.length

    @shared
    async def read(self, ctx: Context) -> tuple[int, list[tuple[int, int]]]:
        return self.length, self.wrong


class Meter(VirtualObject):
    total: int = state(0)

    @handler
    async def add(self, ctx: Context, amount: int) -> int:
        self.total += amount
        return self.total

    @shared
    async def read(self, ctx: Context) -> int:
        return self.total


def connected(url: str, namespace: str) -> Client:
    """Return an open client: a writer of its own."""
    client = Client(lambda: RedisStore(url, namespace), sends_code=False)
    client.open()
    return client


def launch(
    role: str, *arguments: str, errors: Path, effects: Path | None = None, module: str = "host_process"
) -> "subprocess.Popen[str]":
    """Start `serve`, `drive` or a role of another module as a child; what it says of errors goes to a file."""
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    if effects is not None:
        environment[EFFECTS] = str(effects)
    with errors.open("a") as log:
        return subprocess.Popen(
            # Not as a script: its classes would be those of `__main__`.
            [sys.executable, "-c", f"import {module}; {module}.{role}(*{arguments!r})"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            text=True,
        )


def serve(url: str, namespace: str, name: str) -> None:
    """Be a host until the standard input ends; say its incarnation."""
    host = LocalHost(lambda: RedisStore(url, namespace), name=name)
    host.start()
    _say(host.incarnation)
    sys.stdin.read()
    host.kill()


def drive(url: str, namespace: str, first: str, clients: str, keys: str, calls: str) -> None:
    """Be so many clients that increment so many counters so many times in all; say the keys and the replies."""

    def work(client: Client, number: int, count: int) -> list[tuple[int, int]]:
        choose = random.Random(number)
        found: list[tuple[int, int]] = []
        for _ in range(count):
            key = choose.randrange(int(keys))
            request = Request("Meter", f"{key}", "add", (1,), {}, False, EMPTY_OPTIONS, None, None)
            found.append((key, client.start(request).result(timeout=ANSWER_WITHIN_S)))
        return found

    opened = [connected(url, namespace) for _ in range(int(clients))]
    _say("ready")
    sys.stdin.readline()
    shares = [int(calls) // len(opened) + (number < int(calls) % len(opened)) for number in range(len(opened))]
    with ThreadPoolExecutor(len(opened)) as pool:
        tasks = [
            pool.submit(work, client, int(first) + number, share)
            for number, (client, share) in enumerate(zip(opened, shares, strict=True))
        ]
        replies = [reply for task in tasks for reply in task.result()]
    for client in opened:
        client.close()
    _say(json.dumps(replies))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Fleet:
    """Host processes by name; who is killed is started again at once."""

    def __init__(self, url: str, namespace: str, directory: Path, module: str = "host_process") -> None:
        self._url, self._namespace, self._module = url, namespace, module
        self.errors, self.effects = directory / "errors", directory / "effects"
        self.effects.touch()
        self._processes: dict[str, subprocess.Popen[str]] = {}
        self.kills = 0

    def start(self, name: str) -> None:
        self._processes[name] = launch(
            *("serve", self._url, self._namespace, name),
            errors=self.errors,
            effects=self.effects,
            module=self._module,
        )

    def kill(self, name: str) -> None:
        """Kill, reap, start another one, and free what the dead one owned, as the supervisor does."""
        incarnation = _ended(self._processes[name])
        self.kills += 1
        self.start(name)
        if incarnation:
            asyncio.run(self._bury(incarnation))

    def stop_for(self, name: str, seconds: float) -> None:
        """Stop a host in the middle of what it does, and let it go on after a while."""
        process = self._processes[name]
        process.send_signal(signal.SIGSTOP)
        threading.Event().wait(seconds)
        process.send_signal(signal.SIGCONT)
        threading.Event().wait(1.0)

    async def _bury(self, incarnation: str) -> None:
        store = RedisStore(self._url, self._namespace)
        try:
            await store.bury(incarnation)
        finally:
            await store.aclose()

    def kill_at_random(
        self,
        seed: int,
        kills: int,
        pause_s: tuple[float, float],
        over: threading.Event,
        done: Callable[[], int] = lambda: sys.maxsize,
    ) -> None:
        """Kill so many times, or until it is over; each time one by chance, also one that has only begun.

        There are never more kills than what is `done`: a slow machine gets under a load, too.
        """
        choose = random.Random(seed)
        for number in range(kills):
            if over.wait(choose.uniform(*pause_s)):
                return
            while done() < number and not over.wait(0.05):
                pass
            self.kill(choose.choice(sorted(self._processes)))

    def close(self) -> None:
        for process in self._processes.values():
            _ended(process)


def _ended(process: "subprocess.Popen[str]") -> str:
    """Kill a child and return the line that it had said, if it had."""
    process.kill()
    said, _ = process.communicate()
    return said.strip()
