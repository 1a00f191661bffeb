"""The processes of a cluster under test: `nodes` holds Ray's nodes, `drive` is a program with clients at work.

Both are told what to do by lines on their standard input, answer each with one line of JSON, and end when the input
does, so that nothing outlives the test.
"""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import actors
from actors import Context, Service, TerminalError, VirtualObject, handler, shared, state
from journal.clock import boot_seconds
from journal.embedded import guard
from journal.ids import shard_of

HERE = Path(__file__).resolve().parent
SHARDS = 16
PURSES = 10
MONEY = 1_000
CLIENTS = 6
"""Clients of one program that run sagas, and as many that sleep."""
NOTICED_MAX_S = 60.0

_answers = os.dup(1)
"""Where answers go; Ray prints on the standard output what it likes."""


class NodeCount(VirtualObject):
    n: int = state(0)

    @handler
    async def add(self, ctx: Context) -> int:
        self.n += 1
        return self.n

    @shared
    async def read(self, ctx: Context) -> int:
        return self.n


class NodePurse(VirtualObject):
    money: int = state(MONEY)

    @handler
    async def add(self, ctx: Context, amount: int) -> int:
        self.money += amount
        return self.money

    @shared
    async def read(self, ctx: Context) -> int:
        return self.money


class NodeTransfer(Service):
    @handler
    async def move(self, ctx: Context, source: str, target: str, amount: int) -> int:
        """A saga: a step, a call, a sleep, a call, or, for one amount in three, a compensation and a refusal."""
        fee = await ctx.run("fee", lambda: amount * 2)
        await NodePurse[source].add.remote(-amount)
        await asyncio.sleep(0.1)
        if amount % 3 == 0:
            await NodePurse[source].add.remote(amount)
            raise TerminalError(f"{amount} is refused", code=409)
        await NodePurse[target].add.remote(amount)
        return fee


class NodeSleep(VirtualObject):
    woken: int = state(0)

    @handler
    async def sleep(self, ctx: Context, seconds: float, bell: str) -> int:
        await asyncio.sleep(seconds)
        self.woken += 1
        NodeCount[bell].add.send()
        return self.woken


@cache
def counter_in(shard: int, run: str) -> str:
    """Return the key of a run's counter in this shard."""
    keys = (f"{run}.{number}" for number in range(10_000))
    return next(key for key in keys if shard_of(f"NodeCount/{key}", SHARDS) == shard)


# --- nodes -----------------------------------------------------------------------------------------------------------


def nodes() -> None:
    """Hold a head and two more nodes, each as on a machine of its own."""
    from ray.cluster_utils import Cluster

    system = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 1_000,
        "health_check_timeout_ms": 1_000,
        # Late enough: what recovers earlier has not waited for Ray.
        "health_check_failure_threshold": 8,
    }
    cluster: Any = Cluster()
    for number in range(3):
        _added(cluster, number, {"_system_config": system} if number == 0 else {})
    held = _Nodes(cluster)
    _say([cluster.gcs_address, *held.alive()[:1]])
    for word, *arguments in _told():
        _say(getattr(held, word)(*arguments))
    cluster.shutdown()


def _added(cluster: Any, number: int, more: dict[str, Any]) -> Any:
    paths = [str(HERE / "machine"), os.environ["PYTHONPATH"]]
    machine = {"TEST_MACHINE": f"node-{number}", "PYTHONPATH": os.pathsep.join(paths)}
    return cluster.add_node(num_cpus=1, include_dashboard=False, env_vars=machine, **more)


class _Nodes:
    """What may be told to `nodes`."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self._added = len(cluster.list_all_nodes())

    def alive(self) -> list[str]:
        """Return the nodes that Ray believes to live, the head first."""
        living: set[str] = {node["NodeID"] for node in self._cluster.global_state.node_table() if node["Alive"]}
        return [node.node_id for node in self._cluster.list_all_nodes() if node.node_id in living]

    def add(self) -> str:
        """Let one more node join; return it."""
        self._added += 1
        return _added(self._cluster, self._added - 1, {}).node_id

    def kill(self, node_id: str) -> float:
        """Kill every process of a node at once; return when."""
        (node,) = [node for node in self._cluster.worker_nodes if node.node_id == node_id]
        (raylet,) = [info.process for info in node.all_processes["raylet"]]
        pids = [raylet.pid, *_below(raylet.pid)]
        began = boot_seconds()
        for pid in pids:  # the raylet first: it reports nothing and starts nothing
            os.kill(pid, signal.SIGKILL)
        raylet.wait()
        return began

    def noticed(self, node_id: str) -> float:
        """Return when Ray took a node for dead."""
        deadline = boot_seconds() + NOTICED_MAX_S
        while node_id in self.alive():
            assert boot_seconds() < deadline, "Ray does not notice"
            guard.pause()
        return boot_seconds()

    def kill_supervisor(self) -> int:
        """Kill the supervisor's process; return its pid."""
        (raylet,) = [info.process for info in self._cluster.head_node.all_processes["raylet"]]
        (pid,) = [pid for pid in _below(raylet.pid) if _command(pid).startswith("ray::Supervisor")]
        os.kill(pid, signal.SIGKILL)
        return pid


def _below(pid: int) -> list[int]:
    """Return the descendants of a process."""
    parents = {int(entry.name): _parent(entry) for entry in Path("/proc").iterdir() if entry.name.isdecimal()}
    found = [pid]
    for above in found:
        found += [child for child, parent in parents.items() if parent == above]
    return found[1:]


def _parent(entry: Path) -> int:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except (OSError, IndexError):
        return 0  # it has ended


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text("utf-8", "replace")
    except OSError:
        return ""


# --- drivers ---------------------------------------------------------------------------------------------------------


def drive(url: str, namespace: str, address: str, run: str, name: str) -> None:
    """Join the cluster, and work from `go` to `stop`, which answers with all replies."""
    actors.init(url, address=address, namespace=namespace)
    asyncio.run(_drive(_Load(run, name)))
    actors.shutdown()


async def _drive(load: "_Load") -> None:
    import ray

    _say(ray.get_runtime_context().get_node_id())
    lines = iter(_told())
    while (line := await asyncio.to_thread(next, lines, None)) is not None:
        _say(await getattr(load, line[0])(*line[1:]))


class _Load:
    """Counters, one for each shard, sagas and sleepers, until told to stop."""

    def __init__(self, run: str, name: str) -> None:
        self._run, self._name = run, name
        self._is_over = False
        self._tasks: list[asyncio.Task[None]] = []
        self.replies: dict[str, list[Any]] = {"counts": [], "sagas": [], "sleeps": []}

    async def go(self) -> None:
        """Begin."""
        for shard in range(SHARDS):
            self._begin(self._count, shard)
        for client in range(CLIENTS):
            self._begin(self._transfer, client)
            self._begin(self._sleep, client)

    def _begin(self, work: Callable[[int, int], Coroutine[Any, Any, None]], client: int) -> None:
        async def again_and_again() -> None:
            turn = 0
            while not self._is_over:
                await work(client, turn)
                turn += 1

        self._tasks.append(asyncio.ensure_future(again_and_again()))

    async def _count(self, shard: int, turn: int) -> None:
        began = boot_seconds()
        value = await NodeCount[counter_in(shard, self._run)].add.remote()
        self.replies["counts"].append((shard, value, began, boot_seconds()))

    async def _transfer(self, client: int, turn: int) -> None:
        source, target, amount = (client + turn) % PURSES, (client * 3 + turn * 7 + 1) % PURSES, turn % 7 + 1
        try:
            fee = await NodeTransfer.move.remote(f"{self._run}.{source}", f"{self._run}.{target}", amount)
        except TerminalError as error:
            fee = str(error)
        self.replies["sagas"].append((source, target, amount, fee))

    async def _sleep(self, client: int, turn: int) -> None:
        key = f"{self._run}.{self._name}.{client}.{turn}"
        woken = await NodeSleep[key].sleep.remote(0.1 + (client + turn) % CLIENTS * 0.5, f"{self._run}.bell")
        self.replies["sleeps"].append(woken)

    async def stop(self) -> dict[str, list[Any]]:
        """Let everything that was begun end; return the replies."""
        self._is_over = True
        await asyncio.gather(*self._tasks)
        return self.replies

    async def read(self) -> dict[str, list[int]]:
        """Return what the objects of the whole run hold."""
        counters = [NodeCount[counter_in(shard, self._run)].read.remote() for shard in range(SHARDS)]
        purses = [NodePurse[f"{self._run}.{number}"].read.remote() for number in range(PURSES)]
        bell = NodeCount[f"{self._run}.bell"].read.remote()
        return {
            "counts": [await each for each in counters],
            "purses": [await each for each in purses],
            "bell": [await bell],
        }

    async def hosts(self) -> list[tuple[str, str, int, tuple[int, ...]]]:
        """Return who has which shards."""
        found = await asyncio.to_thread(actors.status)
        return [(host.id, host.node, host.pid, host.shards) for host in found.hosts]


def _told() -> Iterator[list[str]]:
    for line in sys.stdin:
        yield line.split()


def _say(what: object) -> None:
    os.write(_answers, f"{json.dumps(what)}\n".encode())
