"""Ray: host processes as Ray actors, and the supervisor that shortens their recovery. The only importer of `ray`.

Ray makes recovery fast, the store makes it correct: if the supervisor or Ray's own control service is gone, the leases
of a dead host still expire. Nothing on the path of an invocation talks to either.

Invariants:
    1. The leases of a host are freed early only when its process is known to be gone from its node; a host that merely
       cannot be reached may still act on them.
    2. No call that does something is repeated by Ray; a host's constructor cannot fail, for that would end it for good.
    3. A cluster that was joined keeps its hosts; a program ends those that it alone started.
"""

import argparse
import asyncio
import contextlib
import importlib
import logging
import os
import sys
import sysconfig
import threading
from collections.abc import Callable, Iterator
from hashlib import blake2b
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import ray
from ray import cloudpickle
from ray.exceptions import ActorDiedError, GetTimeoutError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from journal.names import new_id
from journal.redis import Durability, RedisStore
from journal.store import Store

from .client import Client
from .errors import DurableError, UnavailableError, UsageError
from .invocation import Invocation
from .local import LocalHost, bury_ended
from .policy import Policy
from .processes import has_ended, this_process, until_ended
from .values import Name, note_sent, sent

logger = logging.getLogger("actors")

RAY_NAMESPACE: Final = "perdure"
HOSTS_DEFAULT: Final = 2
"""Hosts where nobody says how many: one can be lost without a pause."""
READY_MAX: Final = 120.0
"""Seconds within which the hosts must have started."""
LEAVE_MAX: Final = 45.0
"""Seconds that hosts have to hand over."""
ANSWER_MAX: Final = 5.0
"""Seconds within which a node must say whether a process is gone."""
AGAIN_FIRST, AGAIN_MAX = 0.02, 1.0
"""Seconds between two questions to a host that is being restarted."""
REFERENCES_MAX: Final = 10_000
"""Ray references of one program that wait at once; more wait for their turn."""


class Place(NamedTuple):
    """The store of a cluster's hosts."""

    url: str
    namespace: str
    durability: Durability

    def connect(self) -> Store:
        """Return a new connection."""
        return RedisStore(self.url, self.namespace, durability=self.durability)

    @property
    def name(self) -> str:
        """The name that Ray knows it by; it shows no password."""
        return f"{self.namespace}:{blake2b(self.url.encode(), digest_size=5).hexdigest()}"


class About(NamedTuple):
    """A host, as it describes itself."""

    id: str
    node: str
    pid: int
    process: str
    incarnation: str


def _log_here() -> None:
    logging.basicConfig(
        level=os.environ.get("PERDURE_LOG", "WARNING"), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


class HostProcess:
    """One host, alone in its process, from its start until the process ends."""

    def __init__(self, name: str, place: Place, policy: Policy | None) -> None:
        _log_here()
        self._name, self._node = name, ray.get_runtime_context().get_node_id()
        if sys.flags.hash_randomization:
            logger.warning("host %s runs without PYTHONHASHSEED=0: sets of str differ from attempt to attempt", name)
        self._host = LocalHost(place.connect, name=name, node=self._node, live=False, policy=policy, stuck=_ended_by)
        self._host.start()
        self._never = threading.Event()

    def about(self) -> About:
        """Return who it is."""
        return About(self._name, self._node, os.getpid(), this_process(), self._host.incarnation)

    def watch(self) -> None:
        """Never return: who waits for this call learns of the process's end at once."""
        self._never.wait()

    def leave(self) -> None:
        """Hand the shards over."""
        self._host.stop()


def _ended_by(stack: str) -> None:
    """End the process whose handler blocks it: nothing else can, and its other objects go on elsewhere."""
    logger.error("a handler blocked this host too long: long computing and blocking I/O belong in ctx.run()\n%s", stack)
    os._exit(70)


class Supervisor:
    """Starts hosts, notices their deaths, and frees the leases of dead ones."""

    def __init__(self, cluster: str, place: Place, policy: Policy | None, env: dict[str, str]) -> None:
        _log_here()
        self._cluster, self._place, self._policy, self._env = cluster, place, policy, env
        self._hosts: dict[str, Any] = {}
        self._watches: dict[str, asyncio.Task[None]] = {}
        self._lock = asyncio.Lock()
        self._adopted = asyncio.ensure_future(self._adopt())  # at once: Ray may have restarted this process

    async def ensure(self, count: int | None) -> list[About]:
        """See that there are `count` hosts, or, unsaid, those that there are; return who they are.

        Raises:
            RayActorError: one cannot start.
        """
        await self._adopted
        async with self._lock:
            wanted = count if count is not None else (len(self._hosts) or HOSTS_DEFAULT)
            for name in sorted(self._hosts, key=_number)[wanted:]:
                await self._ended(name)
            numbers = {_number(name) for name in self._hosts}
            for number in [number for number in range(wanted) if number not in numbers][: wanted - len(numbers)]:
                name = f"{self._cluster}-{number}"
                self._hosts[name] = self._started(name)
            abouts = await asyncio.gather(*(self._about(host) for host in self._hosts.values()))
            for about in abouts:
                self._watch(about.id)
        return sorted(abouts, key=lambda about: _number(about.id))

    async def _adopt(self) -> None:
        """Take over the hosts that an earlier process of this supervisor started, and see who died meanwhile."""
        prefix = f"host:{self._place.name}:"
        for entry in ray.util.list_named_actors(all_namespaces=True):  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
            name = str(entry["name"])  # pyright: ignore[reportUnknownArgumentType]
            if entry["namespace"] == RAY_NAMESPACE and name.startswith(prefix):
                host = name.removeprefix(prefix)
                self._hosts[host] = ray.get_actor(name, namespace=RAY_NAMESPACE)
                self._watch(host)
        store = self._place.connect()
        try:
            await bury_ended(store)
        except UnavailableError as error:
            logger.warning("leases of dead hosts are left to expire: %s", error)
        await store.aclose()

    def _started(self, name: str) -> Any:
        made: Any = ray.remote(HostProcess)
        return made.options(
            name=f"host:{self._place.name}:{name}",
            namespace=RAY_NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=8,
            num_cpus=0,
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": self._env} if self._env else {},
        ).remote(name, self._place, self._policy)

    async def _about(self, host: Any) -> About:
        """Return who a host is, as soon as its process is there."""
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
                await self._until_ended(about)
                await self._bury(about)
            except ActorDiedError:  # somebody has ended it for good
                await asyncio.sleep(AGAIN_MAX)
                self._hosts[name] = self._started(name)

    async def _until_ended(self, about: About) -> None:
        """Return when a host's process has ended, or when Ray says so, which it does a second or two later."""

        async def told() -> None:
            try:
                await self._hosts[about.id].watch.remote()
            except RayActorError as error:
                logger.info("host %s: %s", about.id, str(error).partition("\n")[0])

        waits = [asyncio.ensure_future(told())]
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
            store = self._place.connect()
            freed = await store.bury(about.incarnation)
            await store.aclose()
            logger.warning("the process %d of host %s is gone: freed its leases of %d shards", about.pid, about.id, freed)
        except (UnavailableError, RayError, TimeoutError) as error:
            logger.warning("leases of process %d are left to expire: %s", about.pid, error)

    async def _is_gone(self, about: About) -> bool:
        gone = _is_over(about.process)
        if gone is None:
            asked: Any = ray.remote(_is_over)
            strategy = NodeAffinitySchedulingStrategy(about.node, soft=False)
            async with asyncio.timeout(ANSWER_MAX):
                gone = await asked.options(num_cpus=0, max_retries=0, scheduling_strategy=strategy).remote(
                    about.process
                )
        return bool(gone)

    async def _ended(self, name: str) -> None:
        """Let one host hand its shards over, and end it."""
        watch, host = self._watches.pop(name, None), self._hosts.pop(name)
        if watch is not None:
            watch.cancel()
        try:
            await host.leave.remote()
        except RayError as error:
            logger.warning("host %s did not hand over: %s", name, str(error).partition("\n")[0])
        ray.kill(host)

    async def leave(self) -> None:
        """Let all hosts hand their shards over, and end them."""
        async with self._lock:
            await asyncio.gather(*(self._ended(name) for name in list(self._hosts)))


def _is_over(process: str) -> bool | None:
    """Whether a process has ended; a killed one answers nobody a little before it is gone."""
    pause = threading.Event()
    for _ in range(50):
        if has_ended(process) is not False:
            break
        pause.wait(0.005)
    return has_ended(process)


def _number(name: str) -> int:
    return int(name.rpartition("-")[2])


class Outcomes:
    """Waits for invocations on behalf of Ray's object references; one for each program that asks for any."""

    def __init__(self, place: Place) -> None:
        self._client = Client(place.connect, sends_code=False, payload_max=0)
        self._opening: asyncio.Future[None] | None = None
        self._classes: dict[Name, type] = {}

    async def outcome(self, id_: str, returns: Any, classes: dict[Name, bytes]) -> Any:
        """Return the result of an invocation, or raise its failure."""
        for name in classes.keys() - self._classes.keys():
            self._classes[name] = cloudpickle.loads(classes[name])
            note_sent(self._classes[name])
        if self._opening is None:
            self._opening = asyncio.ensure_future(asyncio.to_thread(self._client.open))
        await asyncio.shield(self._opening)
        return await self._client.expecting(Invocation(id_, self._client), returns)


class Cluster:
    """The Ray that a program uses, and the hosts in it."""

    def __init__(self, address: str | None, place: Place, policy: Policy | None) -> None:
        self._address = address or os.environ.get("RAY_ADDRESS") or None
        self._place, self._policy = place, policy
        self._started_ray = self._joined_ray = self._made_hosts = False
        self._supervisor: Any = None
        self._outcomes: Any = None
        self._classes: tuple[dict[Name, type], Any] = {}, None
        self._lock = threading.Lock()

    def open(self, count: int | None) -> list[About]:
        """Join or start Ray, and see that there are hosts.

        Raises:
            UsageError: hosts of other machines could not reach the store.
            UnavailableError: there is no such cluster, or the hosts do not start.
        """
        self._join()
        self._check_reach()
        name = f"supervisor:{self._place.name}"
        try:
            self._supervisor = ray.get_actor(name, namespace=RAY_NAMESPACE)
        except ValueError:
            made: Any = ray.remote(Supervisor)
            self._made_hosts = True
            self._supervisor = made.options(
                name=name,
                namespace=RAY_NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                max_restarts=-1,
                max_task_retries=0,
                num_cpus=0,
            ).remote(new_id(), self._place, self._policy, {} if self._started_ray else {"PYTHONHASHSEED": "0"})
        try:
            return self._got(self._supervisor.ensure.remote(count), READY_MAX)
        except RayError as error:
            raise UnavailableError(
                f"the hosts do not start on Ray: {error}\nIs perdure installed on every node, for the same Python?"
            ) from error

    def _got(self, reference: Any, timeout_s: float) -> Any:
        return ray.get(reference, timeout=timeout_s)  # pyright: ignore[reportUnknownMemberType]

    def _join(self) -> None:
        if ray.is_initialized():
            return
        options: dict[str, Any] = {"address": self._address} if self._address else {"include_dashboard": False}
        with contextlib.nullcontext() if self._address else _as_environment(_of_own_processes()):
            try:
                ray.init(logging_level=logging.WARNING, namespace=RAY_NAMESPACE, **options)  # pyright: ignore[reportUnknownMemberType]
            except (ConnectionError, RuntimeError, ValueError) as error:
                where = f"at {self._address!r}" if self._address else "on this machine"
                raise UnavailableError(f"Ray cannot be used {where}: {error}") from error
        self._joined_ray, self._started_ray = True, self._address is None

    def _check_reach(self) -> None:
        if urlsplit(self._place.url).hostname not in ("127.0.0.1", "::1", "localhost"):
            return
        nodes: list[dict[str, Any]] = ray.nodes()  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        if len({node["NodeManagerAddress"] for node in nodes if node["Alive"]}) > 1:  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]
            raise UsageError(
                f"this Ray cluster has several machines, and only this one reaches {self._place.url}: give a Redis or "
                "Valkey that all of them reach, init(redis=...)"
            )

    def object_ref(self, id_: str, returns: Any) -> Any:
        """Return a Ray reference to an invocation's outcome."""
        with self._lock:
            if self._outcomes is None:
                made: Any = ray.remote(Outcomes)
                # Asking again for an outcome is harmless, unlike every other call here.
                options: dict[str, Any] = {"max_restarts": -1, "max_task_retries": -1}
                self._outcomes = made.options(num_cpus=0, max_concurrency=REFERENCES_MAX, **options).remote(self._place)
            classes = {name: cls for name, cls in sent().items() if name[0] == "__main__" or "<locals>" in name[1]}
            if self._classes[1] is None or self._classes[0] != classes:
                self._classes = classes, ray.put({name: cloudpickle.dumps(cls) for name, cls in classes.items()})
            return self._outcomes.outcome.remote(id_, returns, self._classes[1])

    def close(self, *, keep_hosts: bool) -> None:
        """Leave Ray; first end the hosts, unless they are kept or somebody else started them."""
        try:
            if ray.is_initialized():
                self._end_actors(keep_hosts=keep_hosts)
        finally:
            if self._joined_ray:
                ray.shutdown()  # pyright: ignore[reportUnknownMemberType]

    def _end_actors(self, *, keep_hosts: bool) -> None:
        if self._outcomes is not None:
            ray.kill(self._outcomes)
        if self._supervisor is None or keep_hosts or not self._made_hosts:
            return
        try:
            self._got(self._supervisor.leave.remote(), LEAVE_MAX)
        except (RayError, GetTimeoutError) as error:
            logger.warning("hosts did not hand over: %s", error)
        ray.kill(self._supervisor)


def _of_own_processes() -> dict[str, str]:
    """Return the environment of a Ray of our own: its workers import what this program can, and hash alike."""
    installed = sysconfig.get_path("purelib"), sysconfig.get_path("stdlib")
    paths = [path for path in sys.path if path and os.path.isdir(path) and not path.startswith(installed)]
    return {"PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(paths)}


@contextlib.contextmanager
def _as_environment(variables: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m actors.ray", description="Perdure's hosts in a Ray cluster.")
    commands = parser.add_subparsers(required=True)
    up = commands.add_parser("up", help="start the supervisor and the hosts, or change how many there are")
    known = os.environ.get
    up.add_argument("--redis", default=known("PERDURE_REDIS"), help="URL of the store, as every machine reaches it")
    up.add_argument("--namespace", default=known("PERDURE_NAMESPACE", "default"), help="where programs meet")
    up.add_argument("--hosts", type=int, help="how many in the whole cluster (as there are, or 2)")
    up.add_argument("--address", default=known("RAY_ADDRESS", "auto"), help="of the Ray cluster (RAY_ADDRESS, or auto)")
    up.add_argument("--durability", default=known("PERDURE_DURABILITY", "disk"), choices=("disk", "relaxed"))
    up.set_defaults(run=_up)
    asked = parser.parse_args(arguments)
    run: Callable[[argparse.Namespace], int] = asked.run
    try:
        return run(asked)
    except DurableError as error:
        print(error, file=sys.stderr)
        return 1


def _up(asked: argparse.Namespace) -> int:
    if not asked.redis:
        raise UsageError("say where the store is: --redis redis://HOST:PORT/0, or PERDURE_REDIS")
    place = Place(asked.redis, asked.namespace, asked.durability)
    client = Client(place.connect, sends_code=False, payload_max=0)
    client.open()  # refuses a store that could lose what it acknowledges, before anything starts
    client.close()
    cluster = Cluster(asked.address, place, None)
    try:
        for about in cluster.open(asked.hosts):
            print(f"host {about.id} on node {about.node[:12]}, pid {about.pid}")
    finally:
        cluster.close(keep_hosts=True)
    return 0


if __name__ == "__main__":
    # Not this copy of the module: the classes of `__main__` would travel by value.
    sys.exit(importlib.import_module(f"{__package__}.ray").main())
