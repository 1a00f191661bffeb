"""Programs on a real Valkey and real host processes, which are killed: `python -m tests.programs --real 200`.

Programs run at once, on hosts of two kinds: one keeps what waits in memory, for the other's every wait ends there.
At the end, when nobody is killed any more, every hostility is asked for once, and good ones must not be late for it.
"""

import asyncio
import json
import os
import random
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from actors import NotFoundError, Policy, TerminalError, reject, resolve
from actors.client.client import Client
from actors.host.local import LocalHost
from actors.requests import current, request
from journal.clock import boot_seconds
from journal.ids import new_id
from journal.redis.store import RedisStore
from journal.store import SHARDS
from tests.chaos import hostile
from tests.chaos.audit import LATE_S
from tests.chaos.evidence import is_under_way, keys_of
from tests.host_process import EFFECTS, Fleet, connected
from tests.servers import Server, valkey_binary

from . import pests, plays
from .audit import audit, runs_kept, undone
from .grammar import Root, program
from .model import Expected, expected

AT_ONCE: Final = 12
WITHIN_S: Final = 120.0
KILLS_EVERY_S: Final = (0.3, 2.0)
ALONE_S: Final = 3.0
PESTS_AT_ONCE: Final = 4


class File:
    """The outside as a file: a line for everything that is done to it (`plays.Outside`)."""

    def __init__(self) -> None:
        self._path = os.environ[EFFECTS]
        self._file = os.open(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600)

    def _write(self, **facts: Any) -> None:
        os.write(self._file, f"{json.dumps(facts)}\n".encode())

    def _count(self, what: str) -> int:
        return Path(self._path).read_text().count(what)

    async def act(self, step_id: str, fails: int) -> str:
        run = new_id()
        self._write(step=step_id, run=run)
        count = self._count(f'"step": "{step_id}"')
        if count <= fails:
            raise ConnectionError(f"{count} of {fails} that fail")
        return f"{step_id} {run}"

    async def undo(self, step_id: str, path: str, thread: str, n: int) -> None:
        self._write(undone=path, by=step_id, thread=thread, n=n)

    async def complete(self, id_: str, value: Any, refuses: bool) -> None:
        self._write(complete=id_, value=value, refuses=refuses)


def serve(url: str, namespace: str, name: str) -> None:
    """Be a host until the standard input ends; say its incarnation."""
    plays.outside.outside = File()
    idle = timedelta(0) if name == "a" else timedelta(seconds=60)
    host = LocalHost(lambda: RedisStore(url, namespace), name=name, policy=Policy(idle_timeout=idle))
    host.start()
    sys.stdout.write(f"{host.incarnation}\n")
    sys.stdout.flush()
    sys.stdin.read()
    host.kill()


class Outdoors:
    """Completes awakeables, as steps ask for it in the file, and tells what else stands there."""

    def __init__(self, path: Path) -> None:
        self._path, self._read, self._over = path, 0, threading.Event()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def close(self) -> None:
        self._over.set()
        self._thread.join()

    def _serve(self) -> None:
        while not self._over.wait(0.05):
            lines = self._path.read_bytes()[self._read :]
            whole = lines[: lines.rfind(b"\n") + 1]
            self._read += len(whole)
            for said in map(json.loads, whole.splitlines()):
                if "complete" in said:
                    self._complete(said["complete"], said["value"], refuses=said["refuses"])

    def _complete(self, id_: str, value: Any, *, refuses: bool) -> None:
        try:
            (reject(id_, f"{value}") if refuses else resolve(id_, value)).result()
        except NotFoundError:
            pass  # a step that was repeated after its invocation had ended and was forgotten

    def facts(self) -> list[dict[str, Any]]:
        """Return all that stands in the file."""
        return [json.loads(line) for line in self._path.read_text().splitlines()]


def play_real(count: int, seed: int) -> list[str]:
    """Play so many programs; return what was wrong, each with its seed."""
    with tempfile.TemporaryDirectory(prefix="perdure-") as directory:
        server = Server(valkey_binary(), Path(directory))
        try:
            return _on_server(server.url, Path(directory), range(seed, seed + count))
        finally:
            server.kill()


def _on_server(url: str, directory: Path, seeds: range) -> list[str]:
    namespace, over = new_id(), threading.Event()
    fleet = Fleet(url, namespace, directory, module="tests.programs.real")
    fleet.start("a")
    fleet.start("b")
    client = connected(url, namespace)
    current.set_driver(client)
    outdoors = Outdoors(fleet.effects)
    killing = threading.Thread(target=fleet.kill_at_random, args=(seeds.start, 1_000_000, KILLS_EVERY_S, over))
    killing.start()
    try:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = list(pool.map(_Played, [client] * len(seeds), seeds))
        over.set()
        killing.join()
        wrong = [*_until_right(found, outdoors), *asyncio.run(_late(seeds.start))]
        return [*wrong, *_left(url, namespace), *([] if fleet.kills else ["nobody was killed"])]
    finally:
        over.set()
        killing.join()
        outdoors.close()
        current.set_driver(None)
        client.close()
        fleet.close()


class _Played:
    """A program that was played, and what its roots returned."""

    def __init__(self, client: Client, seed: int) -> None:
        self.seed = seed
        self.roots = program(seed, f"p{seed}")
        self.results: dict[str, Any] = {}
        self.due: dict[str, Expected] = {root.path: expected(root.path, root.key, root.parts) for root in self.roots}
        self.wrong: list[str] = []
        """Of its guests."""
        started = [(root.path, client.start(_request(root))) for root in self.roots]
        for path, ref in started:
            try:
                self.results[path] = ref.result(timeout=WITHIN_S)
            except TerminalError as error:
                self.results[path] = plays.told(error)
            except TimeoutError as error:
                self.results[path] = str(error)
        self.wrong += asyncio.run(_pestered((guest.name, guest.key) for guest in pests.guests(seed)))

    def objects(self) -> dict[str, Mapping[str, Any]]:
        """Return what its objects hold."""
        keys = {block.key for each in self.due.values() for block in each.blocks.values()} - {""}
        return {key: plays.Book[key].held.remote().result(timeout=WITHIN_S) for key in sorted(keys)}


def _request(root: Root) -> current.Request:
    arguments = root.path, root.parts, dict[str, Any]()
    where = ("Chore", None) if root.key is None else ("Book", root.key)
    return request.Request(*where, "play", arguments, {}, False, request.EMPTY_OPTIONS, None, None)


def _until_right(found: list[_Played], outdoors: Outdoors) -> list[str]:
    """Return what is wrong once all that was sent has ended, or should have."""
    deadline = boot_seconds() + WITHIN_S
    wrong: list[str] = []
    for played in found:
        while mine := _wrong(played, outdoors):
            if boot_seconds() > deadline:
                break
            threading.Event().wait(0.5)
        wrong += [f"seed {played.seed}: {what}" for what in mine]
    return wrong


def _wrong(played: _Played, outdoors: Outdoors) -> list[str]:
    objects, facts = played.objects(), outdoors.facts()
    wrong = [*played.wrong, *audit(played.due, played.results, objects)]
    undo: dict[str, dict[str, tuple[str, int]]] = {}
    for said in facts:
        if "undone" in said and said["undone"].split(".")[0] == f"p{played.seed}":
            undo.setdefault(said["undone"], {}).setdefault(said["by"], (said["thread"], said["n"]))
    wrong += undone(played.due, {path: list(steps.values()) for path, steps in undo.items()})
    last = {said["step"]: said["run"] for said in facts if "step" in said}
    for id_, run in runs_kept(objects):
        step_id, _, this = run.rpartition(" ")
        if not step_id.startswith(f"{id_}:") or last.get(step_id) != this:
            wrong.append(f"{run} was recorded, and another action followed it")
    return wrong


async def _pestered(asked: Iterable[tuple[str, str]]) -> list[str]:
    """Ask pests for all that, at once; return what is wrong with how it ended."""
    try:
        async with asyncio.timeout(WITHIN_S):
            ended = await asyncio.gather(*(hostile.wrong_with(name, key) for name, key in asked))
    except TimeoutError:
        return ["a pest did not end"]
    return [wrong for wrong in ended if wrong]


async def _slowest_s(until: asyncio.Future[Any]) -> float:
    """Ask somebody good on each shard, again and again; return how long the slowest answer took."""

    async def ask(key: str) -> float:
        slowest_s = 0.0
        while not until.done():
            asked_at = boot_seconds()
            assert await hostile.Mirror[key].say.remote(key) == key
            slowest_s = max(slowest_s, boot_seconds() - asked_at)
            await asyncio.sleep(0.05)
        return slowest_s

    return max(await asyncio.gather(*(ask(key) for key in pests.probes(SHARDS))))


async def _late(seed: int) -> list[str]:
    """Compare, when nobody is killed any more, how long good ones take alone and beside all hostilities."""
    await _slowest_s(asyncio.ensure_future(asyncio.sleep(ALONE_S)))  # until shards have been shared out
    alone_s = await _slowest_s(asyncio.ensure_future(asyncio.sleep(ALONE_S)))
    names = random.Random(seed).sample(list(hostile.HOSTILITIES), len(hostile.HOSTILITIES))
    wrong: list[str] = []

    async def pester() -> None:
        for first in range(0, len(names), PESTS_AT_ONCE):
            some = enumerate(names[first : first + PESTS_AT_ONCE], first)
            wrong.extend(await _pestered((name, hostile.hostile_key(number, number)) for number, name in some))

    pestering = asyncio.ensure_future(pester())
    beside_s = await _slowest_s(pestering)
    await pestering
    if beside_s > alone_s + LATE_S:
        wrong.append(f"good ones took {beside_s:.2f} s beside pests, {alone_s:.2f} s alone")
    return wrong


def _left(url: str, namespace: str) -> list[str]:
    deadline = boot_seconds() + WITHIN_S
    while (left := _under_way(url, namespace)) and boot_seconds() < deadline:
        threading.Event().wait(0.2)
    return left


def _under_way(url: str, namespace: str) -> list[str]:
    # A timer that its host had forgotten lies there until it is due.
    found = (key for key in keys_of(url, namespace) if not key.row.endswith(":timers"))
    return [f"left in the store: {key}" for key in found if is_under_way(key)]
