"""Supervisor: the Ray actor that keeps a cluster's hosts alive, spreads them, and frees the leases of dead ones.

Ray makes recovery fast, the store makes it correct: if the supervisor or Ray's own control service is gone, the leases
of a dead host still expire. Nothing on the path of an invocation talks to either.

Invariants:
    1. The leases of a host are freed early only when its process is known to be gone from its node; a host that merely
       cannot be reached may still act on them.
    2. The numbers of a cluster's hosts have no gap, except while a host is moved: a supervisor that finds a gap fills
       it.
"""

import asyncio
import contextlib
import logging
import threading
from typing import Any, Final

from ray.exceptions import ActorDiedError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.errors import DamagedError, UnavailableError
from actors.host.local import bury_ended
from actors.limits import Limits
from actors.policy import Policy
from actors.processes import has_ended, until_ended

from .hosts import (
    HOSTS_DEFAULT,
    RAY_NAMESPACE,
    About,
    HostProcess,
    StoreAddress,
    api,
    log_here,
    nodes_alive,
    on_node,
)

logger = logging.getLogger("actors")

AGAIN_FIRST, AGAIN_MAX = 0.02, 1.0
"""Seconds between two questions to a host that is being restarted."""
ANSWER_MAX: Final = 5.0
"""Seconds within which a node must say whether a process is gone."""


SPREAD_EVERY: Final = 1.0
"""Seconds between two looks at how the hosts are spread over the nodes."""


class Supervisor:
    """Starts hosts, spreads them over the nodes, notices their deaths, and frees the leases of dead ones."""

    def __init__(
        self, cluster: str, address: StoreAddress, policy: Policy | None, limits: Limits, env: dict[str, str]
    ) -> None:
        log_here()
        self._cluster, self._address, self._env = cluster, address, env
        self._policy, self._limits = policy, limits
        self._hosts: dict[str, Any] = {}
        self._nodes: dict[str, str] = {}
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._lock = asyncio.Lock()
        self._adopted = asyncio.ensure_future(self._adopt())  # at once: Ray may have restarted this process
        self._spreading = asyncio.ensure_future(self._keep_spread())

    async def ensure(self, count: int | None, limits: Limits | None = None) -> list[About]:
        """See that there are `count` hosts, or, without a count, keep the present ones; return their descriptions.

        With limits, hosts that are started from now on go by these.

        Raises:
            RayActorError: one cannot start.
        """
        await self._adopted
        async with self._lock:
            self._limits = limits or self._limits
            wanted = count if count is not None else (len(self._hosts) or HOSTS_DEFAULT)
            for name in sorted(self._hosts, key=_number)[wanted:]:
                await self._end_host(name)
            numbers = {_number(name) for name in self._hosts}
            for number in [number for number in range(wanted) if number not in numbers][: wanted - len(numbers)]:
                await self._start(f"{self._cluster}-{number}")
            abouts = await asyncio.gather(*(self._about(host) for host in self._hosts.values()))
            for about in abouts:
                self._watch(about.id)
        return sorted(abouts, key=lambda about: _number(about.id))

    async def _adopt(self) -> None:
        """Take over the hosts that an earlier process of this supervisor started, and note deaths meanwhile."""
        prefix = f"host:{self._address.name}:"
        for entry in api.util.list_named_actors(all_namespaces=True):
            name = str(entry["name"])
            if entry["namespace"] == RAY_NAMESPACE and name.startswith(prefix):
                host = name.removeprefix(prefix)
                self._hosts[host] = api.get_actor(name, namespace=RAY_NAMESPACE)
                self._watch(host)
        numbers = {_number(host) for host in self._hosts}
        for number in sorted(set(range(max(numbers, default=0))) - numbers):
            await self._start(f"{self._cluster}-{number}")
            self._watch(f"{self._cluster}-{number}")
        store = self._address.connect()
        try:
            await bury_ended(store)
        except (UnavailableError, DamagedError) as error:
            logger.warning("leases of dead hosts are left to expire: %s", error)
        await store.aclose()

    async def _start(self, name: str) -> None:
        """Start a host on a node that has as few as any."""
        alive = await asyncio.to_thread(nodes_alive)
        self._nodes.pop(name, None)
        node = min(alive, key=list(self._nodes.values()).count)
        made: Any = api.remote(HostProcess)
        self._hosts[name] = made.options(
            name=f"host:{self._address.name}:{name}",
            namespace=RAY_NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=8,
            runtime_env={"env_vars": self._env} if self._env else {},
            **on_node(node),
        ).remote(name, self._address, self._policy, self._limits)
        self._nodes[name] = node

    async def _keep_spread(self) -> None:
        """Look again and again, since nodes join, and Ray restarts the hosts of a lost one wherever it likes."""
        await self._adopted
        while True:
            await asyncio.sleep(SPREAD_EVERY)
            try:
                async with self._lock:
                    await self._spread()
            except Exception:
                logger.exception("hosts could not be spread over the nodes")

    async def _spread(self) -> None:
        """Move one host, if a node has at least two more than another."""
        by_node = {node: list[str]() for node in await asyncio.to_thread(nodes_alive)}
        if self._nodes.keys() != self._hosts.keys() or not by_node.keys() >= set(self._nodes.values()):
            return  # some are being started, or restarted elsewhere
        for name, node in self._nodes.items():
            by_node[node].append(name)
        fullest, emptiest = max(by_node.values(), key=len), min(by_node.values(), key=len)
        if len(fullest) - len(emptiest) > 1:
            # Not the last one: should this process die now, the gap shows that there was another.
            await self._move(min(fullest, key=_number))

    async def _move(self, name: str) -> None:
        logger.warning("host %s moves, from a node with too many to one with few", name)
        host = self._hosts[name]
        await self._end_host(name)
        with contextlib.suppress(ActorDiedError):  # from then on its name is free
            while True:
                await self._about(host)
                await asyncio.sleep(AGAIN_FIRST)
        await self._start(name)
        self._watch(name)
        await self._about(self._hosts[name])

    async def _about(self, host: Any) -> About:
        """Return a host's description, as soon as its process is there."""
        delay = AGAIN_FIRST
        while True:
            try:
                return await host.about.remote()
            except ActorDiedError:
                raise
            except RayActorError:
                await asyncio.sleep(delay)  # it is being restarted
            delay = min(delay * 2, AGAIN_MAX)

    def _watch(self, name: str) -> None:
        if name not in self._watches:
            self._watches[name] = asyncio.ensure_future(self._watched(name))

    async def _watched(self, name: str) -> None:
        while True:
            try:
                about = await self._about(self._hosts[name])
                self._nodes[name] = about.node
                await self._until_ended(about)
                await self._bury(about)
            except ActorDiedError:  # somebody has ended it for good
                await asyncio.sleep(AGAIN_MAX)
                await self._start(name)

    async def _until_ended(self, about: About) -> None:
        """Return when a host's process has ended, or when Ray reports it, a second or two later."""

        async def tells() -> None:
            try:
                await self._hosts[about.id].watch.remote()
            except RayActorError as error:
                logger.info("host %s: %s", about.id, str(error).partition("\n")[0])

        waits = [asyncio.ensure_future(tells())]
        if has_ended(about.process) is not None:
            waits.append(asyncio.ensure_future(until_ended(about.process)))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    async def _bury(self, about: About) -> None:
        try:
            if not await self._is_gone(about):
                logger.warning("process %d cannot be reached, but lives: its leases must expire", about.pid)
                return
            store = self._address.connect()
            freed = await store.bury(about.incarnation)
            await store.aclose()
            logger.warning(
                "the process %d of host %s is gone: freed its leases of %d shards", about.pid, about.id, freed
            )
        except (UnavailableError, DamagedError, RayError, TimeoutError) as error:
            logger.warning("leases of process %d are left to expire: %s", about.pid, error)

    async def _is_gone(self, about: About) -> bool:
        gone = _has_ended(about.process)
        if gone is None:
            asked: Any = api.remote(_has_ended)
            strategy = NodeAffinitySchedulingStrategy(about.node, soft=False)
            async with asyncio.timeout(ANSWER_MAX):
                gone = await asked.options(num_cpus=0, max_retries=0, scheduling_strategy=strategy).remote(
                    about.process
                )
        return bool(gone)

    async def _end_host(self, name: str) -> None:
        """Let one host hand its shards over, and end it."""
        watch, host = self._watches.pop(name, None), self._hosts.pop(name)
        self._nodes.pop(name, None)
        if watch is not None:
            watch.cancel()
        try:
            await host.leave.remote()
        except RayError as error:
            logger.warning("host %s did not hand over: %s", name, str(error).partition("\n")[0])
        api.kill(host)

    async def leave(self) -> None:
        """Let all hosts hand their shards over, and end them."""
        async with self._lock:
            await asyncio.gather(*(self._end_host(name) for name in list(self._hosts)))


def _has_ended(process: str) -> bool | None:
    """Whether a process has ended; a killed one answers nobody a little before it is gone."""
    pause = threading.Event()
    for _ in range(50):
        if has_ended(process) is not False:
            break
        pause.wait(0.005)
    return has_ended(process)


def _number(name: str) -> int:
    return int(name.rpartition("-")[2])
