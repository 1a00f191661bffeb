"""Ray: host processes as Ray actors, and the supervisor that shortens their recovery. The only importer of `ray`.

Ray makes recovery fast, the store makes it correct: if the supervisor or Ray's own control service is gone, the leases
of a dead host still expire. Nothing on the path of an invocation talks to either.

Invariants:
    1. The leases of a host are freed early only when its process is known to be gone from its node; a host that merely
       cannot be reached may still act on them.
    2. No call to an actor is repeated by Ray; a host's constructor cannot fail, for that would end it for good.
"""

import asyncio
import logging
import os
import threading
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from journal.names import new_id
from journal.redis import Durability, RedisStore

from .client import Client
from .errors import UnavailableError
from .invocation import Invocation
from .local import LocalHost
from .policy import Policy

logger = logging.getLogger("actors")

RAY_NAMESPACE = "perdure"
READY_MAX = 120.0
"""Seconds within which a host must have started."""
ANSWER_MAX = 5.0
"""Seconds within which a node must say whether a process is gone."""


def started_at(pid: int) -> str | None:
    """Return when a process of this machine started, in the kernel's ticks; None if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None if Path("/proc/self/stat").exists() else _signalled(pid)
    return None if fields[0] in "ZX" else fields[19]


def _signalled(pid: int) -> str | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return "?"
    return "?"


class HostProcess:
    """One host, alone in its process, from its start until the process ends."""

    def __init__(
        self, name: str, url: str, namespace: str, durability: Durability, policy: Policy | None
    ) -> None:
        logging.basicConfig(level=os.environ.get("PERDURE_LOG", "WARNING"))
        node = ray.get_runtime_context().get_node_id()
        self._host = LocalHost(
            lambda: RedisStore(url, namespace, durability=durability), name=name, node=node, live=False, policy=policy
        )
        self._host.start()
        self._never = threading.Event()

    def about(self) -> tuple[str, str, int, str | None]:
        """Return incarnation, node, pid, and when the process started."""
        node = ray.get_runtime_context().get_node_id()
        return self._host.incarnation, node, os.getpid(), started_at(os.getpid())

    def watch(self) -> None:
        """Never return: who waits for this call learns of the process's end at once."""
        self._never.wait()

    def leave(self) -> None:
        """Hand the shards over."""
        self._host.stop()


class Supervisor:
    """Starts hosts, notices their deaths, and frees the leases of dead ones."""

    def __init__(
        self, cluster: str, url: str, namespace: str, durability: Durability, policy: Policy | None
    ) -> None:
        self._cluster, self._url, self._namespace = cluster, url, namespace
        self._durability: Durability = durability
        self._policy = policy
        self._hosts: dict[str, Any] = {}
        self._watches: set[asyncio.Task[None]] = set()
        self._client: Client | None = None
        self._lock = asyncio.Lock()
        self._is_leaving = False

    async def ensure(self, count: int | None, default: int) -> list[tuple[str, str, int, str | None]]:
        """Start hosts until there are `count` (or, unsaid, at least one, else `default`); return who they are."""
        async with self._lock:
            self._adopt()
            wanted = count if count is not None else (len(self._hosts) or default)
            for number in range(wanted):
                name = f"{self._cluster}-{number}"
                if name not in self._hosts:
                    self._hosts[name] = self._started(name)
                    self._watch(name)
        return list(await asyncio.gather(*(host.about.remote() for host in self._hosts.values())))

    def _adopt(self) -> None:
        """Find the hosts that an earlier process of this supervisor started."""
        prefix = f"host:{self._namespace}:"
        for entry in ray.util.list_named_actors(all_namespaces=True):  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            name = str(entry["name"])  # pyright: ignore[reportUnknownArgumentType]
            if entry["namespace"] == RAY_NAMESPACE and name.startswith(prefix):
                host = name.removeprefix(prefix)
                if host not in self._hosts:
                    self._hosts[host] = ray.get_actor(name, namespace=RAY_NAMESPACE)
                    self._watch(host)

    def _started(self, name: str) -> Any:
        made: Any = ray.remote(HostProcess)
        return made.options(
            name=f"host:{self._namespace}:{name}",
            namespace=RAY_NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=8,
            num_cpus=0,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": {"PYTHONHASHSEED": "0"}},
        ).remote(name, self._url, self._namespace, self._durability, self._policy)

    def _watch(self, name: str) -> None:
        task = asyncio.ensure_future(self._watched(name))
        self._watches.add(task)
        task.add_done_callback(self._watches.discard)

    async def _watched(self, name: str) -> None:
        host, delay = self._hosts[name], 0.05
        while not self._is_leaving:
            try:
                about = await host.about.remote()
            except RayActorError:
                await asyncio.sleep(delay)  # it is being restarted
                delay = min(delay * 2, 1.0)
                continue
            delay = 0.05
            try:
                await host.watch.remote()
            except RayActorError as error:
                if not self._is_leaving:
                    logger.warning("host %s has ended: %s", name, str(error).partition("\n")[0])
                    await self._bury(*about)

    async def _bury(self, incarnation: str, node: str, pid: int, started: str | None) -> None:
        try:
            if not await self._is_gone(node, pid, started):
                logger.warning("process %d cannot be reached, but lives: its leases must expire", pid)
                return
            store = RedisStore(self._url, self._namespace, durability=self._durability)
            freed = await store.bury(incarnation)
            await store.aclose()
            logger.warning("process %d is gone: freed its leases of %d shards", pid, freed)
        except (UnavailableError, RayError, TimeoutError) as error:
            logger.warning("leases of process %d are left to expire: %s", pid, error)

    async def _is_gone(self, node: str, pid: int, started: str | None) -> bool:
        if node == ray.get_runtime_context().get_node_id():
            for _ in range(20):  # a killed process answers nobody a little before it is gone
                if started_at(pid) != started:
                    return True
                await asyncio.sleep(0.01)
            return False
        asked: Any = ray.remote(started_at)
        there = asked.options(
            num_cpus=0, max_retries=0, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
        )
        async with asyncio.timeout(ANSWER_MAX):
            return await there.remote(pid) != started

    async def leave(self) -> None:
        """Let all hosts hand their shards over, and end them."""
        self._is_leaving = True
        await asyncio.gather(*(host.leave.remote() for host in self._hosts.values()), return_exceptions=True)
        for host in self._hosts.values():
            ray.kill(host)

    async def outcome(self, id: str, returns: Any) -> Any:
        """Return the result of an invocation, or raise its failure."""
        if self._client is None:
            client = Client(
                lambda: RedisStore(self._url, self._namespace, durability=self._durability), sends_code=False, payload_max=0
            )
            await asyncio.to_thread(client.open)
            self._client = client
        return await self._client.expecting(Invocation(id, self._client), returns)


class Cluster:
    """The Ray that a driver uses, and the hosts in it."""

    def __init__(
        self, address: str | None, url: str, namespace: str, durability: Durability, policy: Policy | None
    ) -> None:
        self._address, self._url, self._namespace = address, url, namespace
        self._durability: Durability = durability
        self._policy = policy
        self._started_ray = False
        self._supervisor: Any = None

    def open(self, count: int | None, default: int) -> None:
        """Join or start Ray, and see that there are hosts.

        Raises:
            UnavailableError: the hosts do not start.
        """
        if not ray.is_initialized():
            options: dict[str, Any] = {"address": self._address} if self._address else {"include_dashboard": False}
            ray.init(logging_level=logging.WARNING, namespace=RAY_NAMESPACE, **options)  # pyright: ignore[reportUnknownMemberType]
            self._started_ray = self._address is None
        made: Any = ray.remote(Supervisor)
        self._supervisor = made.options(
            name=f"supervisor:{self._namespace}",
            namespace=RAY_NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=0,
            num_cpus=0,
        ).remote(new_id(), self._url, self._namespace, self._durability, self._policy)
        try:
            ray.get(self._supervisor.ensure.remote(count, default), timeout=READY_MAX)  # pyright: ignore[reportUnknownMemberType]
        except RayError as error:
            raise UnavailableError(f"the hosts do not start on Ray: {error}") from error

    def object_ref(self, id_: str, returns: Any) -> Any:
        """Return a Ray reference to an invocation's outcome."""
        return self._supervisor.outcome.remote(id_, returns)

    def close(self) -> None:
        """End the hosts of a Ray that is this program's own; leave those of a cluster that it joined."""
        if self._address is None and self._supervisor is not None and ray.is_initialized():
            try:
                ray.get(self._supervisor.leave.remote(), timeout=45)  # pyright: ignore[reportUnknownMemberType]
                ray.kill(self._supervisor)
            except RayError as error:
                logger.warning("hosts did not hand over: %s", error)
        if self._started_ray:
            ray.shutdown()  # pyright: ignore[reportUnknownMemberType]
