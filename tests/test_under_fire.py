"""Under fire: real processes that are stopped, killed and cut off under load, and stores that go away.

Asserts what must be right, never how fast; `python -m tests.recovery` prints that.
"""

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import orjson
import pytest
from host_process import Fleet
from servers import Server, valkey_binary
from simulation import SHARDS, virtual_loop
from wire import Monitor, Wire, Write

import actors
from actors.client.client import Client
from actors.errors import UnavailableError
from actors.host.host import Host, Identity
from actors.host.leases import LEASE_TTL
from actors.requests import current
from journal.clock import boot_seconds
from journal.ids import new_id
from journal.memory.store import MemoryStore
from journal.redis.store import RedisStore
from journal.store import NamespaceLimits
from tests.recovery import (
    WITHIN_S,
    Gauge,
    Load,
    end_embedded,
    even_hosts,
    kill_host,
    measured,
    until,
    wait_s,
)

pytestmark = pytest.mark.slow


class Member(NamedTuple):
    """A host as the store has it."""

    incarnation: str
    pid: int
    shards: frozenset[int]


class Scene:
    """A server, a client of this program, and two hosts, one of them behind a wire, all without Ray."""

    def __init__(self, directory: Path) -> None:
        self.server = Server(valkey_binary(), directory)
        self.namespace = new_id()
        self.wire = Wire(self.server.port)
        self.behind = Fleet(self.wire.url, self.namespace, directory)
        self.beside = Fleet(self.server.url, self.namespace, directory)
        self.behind.start("a")
        self.beside.start("b")
        self.client = Client(lambda: RedisStore(self.server.url, self.namespace), sends_code=True)
        self.client.open()
        self.monitor = Monitor(self.server.port, self.namespace)
        current.set_driver(self.client)

    def close(self) -> None:
        current.set_driver(None)
        self.behind.close()
        self.monitor.close()
        self.wire.close()
        self.client.close()
        self.beside.close()
        self.server.kill()

    def members(self) -> dict[str, Member]:
        look = self.client.call(lambda store: store.membership(16))
        said = {each: orjson.loads(about.partition(b" ")[2]) for each, about in look.hosts.items()}
        return {about["id"]: Member(each, about["pid"], frozenset(about["shards"])) for each, about in said.items()}

    def even(self) -> dict[str, Member]:
        """Return the hosts once they share the shards evenly."""

        def found() -> dict[str, Member]:
            members = self.members()
            return members if [len(each.shards) for each in members.values()] == [8, 8] else {}

        return until(found)

    def said(self, shards: frozenset[int]) -> bool:
        """Whether host a has said that it steps down from each of these shards."""
        errors = self.behind.errors.read_text()
        return all(f"shard {shard}: host a steps down: " in errors for shard in shards)

    def taken(self, stopped: Member) -> dict[int, int]:
        """Wait until another host has all shards of one that is stopped; return the epochs."""

        def epochs() -> dict[int, int]:
            applied = [write for write in self.monitor.applied() if write.shard in stopped.shards]
            last = {write.shard: write for write in applied}
            others = {shard: write.epoch for shard, write in last.items() if write.incarnation != stopped.incarnation}
            return others if len(others) == len(stopped.shards) else {}

        return until(epochs)


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    scene = Scene(tmp_path)
    yield scene
    scene.close()


def test_a_host_stopped_beyond_its_lease_writes_nothing_afterwards_and_says_that_it_steps_down(scene: Scene) -> None:
    """Promise 6, twice: by a host that is stopped under load, whose shards another one takes."""
    with Load() as load:
        for _ in range(2):
            stopped = scene.even()["a"]
            wait_s(0.5)
            os.kill(stopped.pid, signal.SIGSTOP)
            epochs = scene.taken(stopped)
            woken_at = scene.monitor.now()
            os.kill(stopped.pid, signal.SIGCONT)
            until(lambda stopped=stopped: scene.said(stopped.shards))
            scene.even()  # it has come back as any other host does, with new epochs
            assert not _of_the_past(scene.monitor.applied(woken_at), stopped, epochs)
    load.check()


@pytest.mark.parametrize("lost", ["requests", "answers"])
def test_a_commit_that_is_asked_again_after_the_lease_has_passed_on_is_refused(scene: Scene, lost: Any) -> None:
    """Promises 3 and 6: whether it was applied before its host was stopped, or never came to the store."""
    with Load() as load:
        stopped = scene.even()["a"]
        wait_s(0.5)
        scene.wire.loses = lost
        wait_s(0.2)
        os.kill(stopped.pid, signal.SIGSTOP)
        epochs = scene.taken(stopped)
        before = {write for write in scene.monitor.applied() if write.incarnation == stopped.incarnation}
        woken_at = scene.monitor.now()
        scene.wire.loses = ""
        scene.wire.cut()
        os.kill(stopped.pid, signal.SIGCONT)
        until(lambda: scene.said(stopped.shards))
        again = until(lambda: _of_the_past(scene.monitor.asked(woken_at), stopped, epochs))
        assert not _of_the_past(scene.monitor.applied(woken_at), stopped, epochs)
        assert all((write in before) == (lost == "answers") for write in again)
        scene.even()
    load.check()


def _of_the_past(writes: list[Write], stopped: Member, epochs: dict[int, int]) -> list[Write]:
    """Return those of a host under the epochs that it had before others took its shards."""
    return [
        write
        for write in writes
        if write.incarnation == stopped.incarnation and write.epoch < epochs.get(write.shard, 0)
    ]


def test_a_store_that_dies_after_a_submit_and_before_its_answer_has_it_once(scene: Scene) -> None:
    """Promises 1 and 3: the driver that waits asks again, unchanged, and is given the answer that was kept."""
    wire = Wire(scene.server.port)
    driver = Client(lambda: RedisStore(wire.url, scene.namespace), sends_code=True)
    driver.open()
    current.set_driver(driver)
    try:
        assert Gauge["once"].add.remote().result(timeout=WITHIN_S) == 1
        wire.loses = "answers"
        refs = [Gauge["once"].add.remote() for _ in range(3)]
        until(lambda: scene.client.call(lambda store: store.status(refs[0].id)))
        scene.server.kill()
        wire.loses = ""
        with pytest.raises(TimeoutError):
            refs[0].result(timeout=0.2)
        scene.server.start()
        assert sorted(actors.get(refs, timeout=WITHIN_S)) == [2, 3, 4]
        assert Gauge["once"].read.remote().result(timeout=WITHIN_S) == 4
    finally:
        current.set_driver(scene.client)
        driver.close()
        wire.close()


# --- on Ray ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(own_ray: None, tmp_path: Path) -> Iterator[Server]:
    """A server of our own, and two Ray hosts that use it."""
    server = Server(valkey_binary(), tmp_path)
    try:
        with actors.init(server.url, hosts=2):
            yield server
    finally:
        server.kill()


def test_a_ray_host_that_is_killed_costs_time_and_nothing_else(server: Server) -> None:
    """Promises 1 to 3: also where the other one dies while it recovers, and then one that had only begun."""
    with Load() as load:
        assert kill_host(load).count > 0
        both = even_hosts()
        at = boot_seconds()
        for host in both:
            os.kill(host.pid, signal.SIGKILL)
        dead = {host.pid for host in both}
        os.kill(until(lambda: [host.pid for host in actors.status().hosts if host.pid not in dead])[0], signal.SIGKILL)
        assert measured(load, at, at, None).count > 0
        assert {host.id for host in even_hosts()} == {host.id for host in both}
    load.check()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_store_that_is_away_for_a_while_costs_time_and_nothing_else(server: Server, how: signal.Signals) -> None:
    """Promises 1 to 3: who waits waits longer; nobody is started anew, and all goes on by itself."""
    processes = {host.pid for host in even_hosts()}
    with Load() as load, ThreadPoolExecutor(1) as pool:
        later = Gauge["later"].add_later.remote(2.0)  # due while the store is away
        later.accepted().result(timeout=WITHIN_S)
        waiting = pool.submit(later.result)
        wait_s(0.5)
        server.kill(how)
        at = boot_seconds()
        meanwhile = Gauge["later"].add.remote()
        for ref in (later, meanwhile):
            with pytest.raises(TimeoutError):
                ref.result(timeout=1)
        wait_s(3.0)
        assert not waiting.done()
        server.start()
        assert measured(load, at, boot_seconds(), None).count > 0
        assert waiting.result(timeout=WITHIN_S) == later.result() == 1
        assert meanwhile.result(timeout=WITHIN_S) == 2
    load.check()
    assert {host.pid for host in even_hosts()} == processes


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_embedded_store_is_started_again_by_its_guard(tmp_path: Path, how: signal.Signals) -> None:
    """Promises 1 to 3: neither the program nor its host has to do anything."""
    with actors.init(directory=tmp_path, hosts="local"):
        with Load() as load:
            assert end_embedded(load, tmp_path, how).count > 0
        load.check()


# --- who owns what after a silence -----------------------------------------------------------------------------------


class Silence:
    """A store that answers nobody while it is silent."""

    def __init__(self, store: MemoryStore, silent: asyncio.Event) -> None:
        self._store, self._silent = store, silent

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            if self._silent.is_set():
                raise UnavailableError("silent")
            return await getattr(self._store, name)(*args, **kwargs)

        return call


@pytest.mark.parametrize("silent_s", [1.5, 5.0, 15.0])
def test_after_a_silence_of_the_store_each_host_has_its_shards_back_at_once(silent_s: float) -> None:
    """Promise 6: those that lapsed with a new epoch, once; nobody takes another's, or buries who could not speak."""
    with virtual_loop() as loop:
        store, silences = MemoryStore(loop.now_ms), [asyncio.Event(), asyncio.Event()]

        def owners() -> dict[int, tuple[str, int]]:
            return {
                number: (shard.head.incarnation, shard.head.epoch) for number, shard in enumerate(store._world.shards)
            }

        async def scenario() -> None:
            await store.open_namespace(NamespaceLimits(shards=SHARDS))
            hosts = [
                Host(
                    lambda silent=silent: Silence(store.connect(), silent),  # pyright: ignore[reportArgumentType]  # by delegation
                    Identity(id=name),
                    live=True,
                    now=loop.time,
                    own_thread=False,
                )
                for name, silent in zip("ab", silences, strict=True)
            ]
            running = [asyncio.ensure_future(host.run()) for host in hosts]
            await asyncio.sleep(20.5)  # each has seen what the other said last
            before = owners()
            assert {owner for owner, _ in before.values()} == {host.incarnation for host in hosts}
            for silent in silences:
                silent.set()
            await asyncio.sleep(silent_s)
            for silent in reversed(silences):  # who spoke last comes back a little earlier
                silent.clear()
                await asyncio.sleep(0.6)
                assert {shard: owner for shard, (owner, _) in owners().items()} == {
                    shard: owner for shard, (owner, _) in before.items()
                }
            after = owners()
            lapsed = silent_s > LEASE_TTL.total_seconds()
            assert all((after[shard][1] > epoch) == lapsed for shard, (_, epoch) in before.items())
            await asyncio.sleep(20)
            assert owners() == after
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

        loop.run_until_complete(scenario())
