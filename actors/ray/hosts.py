"""Hosts on Ray: the actors in Ray's processes: hosts, their supervisor, and the one that waits for outcomes.

Ray makes recovery fast, the store makes it correct: if the supervisor or Ray's own control service is gone, the leases
of a dead host still expire. Nothing on the path of an invocation talks to either.

Invariants:
    1. The leases of a host are freed early only when its process is known to be gone from its node; a host that merely
       cannot be reached may still act on them.
    2. No call with an effect is repeated by Ray; a host's constructor cannot fail, for that would end it for good.
    3. The numbers of a cluster's hosts have no gap, except while a host is moved: a supervisor that finds a gap fills
       it.
"""

import asyncio
import contextlib
import logging
import os
import sys
import threading
from functools import lru_cache
from hashlib import blake2b, pbkdf2_hmac
from typing import Any, Final, NamedTuple

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.activation.black_box import BlackBox
from actors.client.client import Client
from actors.code.bundles import portable
from actors.errors import DamagedError, UnavailableError
from actors.host.local import LocalHost, bury_ended, collect_seldom
from actors.limits import DEFAULT, Limits
from actors.policy import Policy
from actors.processes import has_ended, this_process, until_ended
from actors.requests.current import set_validates
from actors.values import outcomes, seal
from actors.values.seal import Secrets
from actors.values.values import Name, living, note_sent
from journal.codec import MISSING
from journal.redis.store import Durability, RedisStore
from journal.redis.url import shown
from journal.store import Store
from journal.texts import error_text

logger = logging.getLogger("actors")
api: Final[Any] = ray
"""Ray without its annotations, which are partial."""

RAY_NAMESPACE: Final = "perdure"
HOSTS_DEFAULT: Final = 2
"""Default number of hosts, of which one can be lost without a pause."""
ANSWER_MAX: Final = 5.0
"""Seconds within which a node must say whether a process is gone."""
AGAIN_FIRST, AGAIN_MAX = 0.02, 1.0
"""Seconds between two questions to a host that is being restarted."""
SPREAD_EVERY: Final = 1.0
"""Seconds between two looks at how the hosts are spread over the nodes."""
HEAD: Final = "node:__internal_head__"
"""The resource by which Ray marks its head."""


Classes = dict[Name, bytes]
"""Pickles of classes, by name."""


ANNOTATIONS_MAX: Final = 1_000


class StoreAddress(NamedTuple):
    """The address of the store of a cluster's hosts, with the secrets of its pickles."""

    url: str
    namespace: str
    durability: Durability
    is_ours: bool = False
    """Whether it is the embedded server of this user."""
    secrets: Secrets = Secrets()
    """Secrets with which hosts sign and check pickles."""

    def __repr__(self) -> str:
        return f"<StoreAddress {shown(self.url)}, namespace {self.namespace!r}>"

    def connect(self) -> Store:
        """Return a new connection."""
        return RedisStore(self.url, self.namespace, durability=self.durability, is_ours=self.is_ours)

    @property
    def name(self) -> str:
        """The name of its actors in Ray; it shows no password, and does not allow to find one by trying many."""
        return f"{self.namespace}:{_mark_of(self.url)}"


@lru_cache
def _mark_of(url: str) -> str:
    if shown(url) == url:
        return blake2b(url.encode(), digest_size=5).hexdigest()
    return pbkdf2_hmac("sha256", url.encode(), b"perdure", 200_000, 5).hex()


class About(NamedTuple):
    """A host, as it describes itself."""

    id: str
    node: str
    pid: int
    process: str
    incarnation: str
    limits: Limits = DEFAULT
    """With which it was started."""


def nodes_alive(resource: str = "") -> list[str]:
    """Return the nodes that Ray believes to live and that have this resource."""
    found: list[dict[str, Any]] = api.nodes()
    return sorted(node["NodeID"] for node in found if node["Alive"] and (not resource or resource in node["Resources"]))


def on_node(node: str) -> dict[str, Any]:
    """Return the options that place an actor there; when that node is lost, anywhere."""
    # One byte, since Ray places an actor without needs at random, whatever the strategy.
    strategy = NodeAffinitySchedulingStrategy(node, soft=True)
    return {"num_cpus": 0, "memory": 1, "scheduling_strategy": strategy}


class _LogFormatter(logging.Formatter):
    """Escapes invalid UTF-8, which keys may hold: the file that Ray keeps of a process does not take it."""

    def format(self, record: logging.LogRecord) -> str:
        return super().format(record).encode("utf-8", "backslashreplace").decode()


def _log_here() -> None:
    level = os.environ.get("PERDURE_LOG", "WARNING").upper()
    is_known = level in logging.getLevelNamesMapping()  # init() refuses another, but a node may have been given its own
    to_ray = logging.StreamHandler()
    to_ray.setFormatter(_LogFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level if is_known else "WARNING", handlers=[to_ray])
    if not is_known:
        logger.warning("PERDURE_LOG=%r is no level of logging: WARNING is taken", os.environ["PERDURE_LOG"])


class HostProcess:
    """One host, alone in its process, from its start until the process ends."""

    def __init__(self, name: str, address: StoreAddress, policy: Policy | None, limits: Limits) -> None:
        _log_here()
        self._limits = limits
        seal.use(address.secrets, address.namespace)
        self._name, self._node = name, api.get_runtime_context().get_node_id()
        if sys.flags.hash_randomization:
            logger.warning("host %s runs without PYTHONHASHSEED=0: sets of str differ from attempt to attempt", name)
        collect_seldom()
        set_validates(None if policy is None else policy.validate)
        self._box = BlackBox()
        self._box.look()  # the cause of another host's end may be handed over to this one
        self._host = LocalHost(
            address.connect,
            name=name,
            node=self._node,
            live=False,
            policy=policy,
            limits=limits,
            stuck=_end_blocked_process,
            box=self._box,
        )
        self._host.start()
        self._never = threading.Event()

    def about(self) -> About:
        """Return the host's description."""
        return About(self._name, self._node, os.getpid(), this_process(), self._host.incarnation, self._limits)

    def watch(self) -> None:
        """Never return: a waiting caller learns of the process's end at once."""
        self._never.wait()

    def leave(self) -> None:
        """Hand the shards over."""
        self._host.stop()
        self._box.close()


def _end_blocked_process(stack: str) -> None:
    """End the process whose handler blocks it: nothing else can, and its other objects go on elsewhere."""
    logger.error("a handler blocked this host too long: long computing and blocking I/O belong in ctx.run()\n%s", stack)
    os._exit(70)


class Supervisor:
    """Starts hosts, spreads them over the nodes, notices their deaths, and frees the leases of dead ones."""

    def __init__(
        self, cluster: str, address: StoreAddress, policy: Policy | None, limits: Limits, env: dict[str, str]
    ) -> None:
        _log_here()
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


class Outcomes:
    """Waits for invocations on behalf of Ray's object references; one for each program that asks for any."""

    def __init__(self, address: StoreAddress) -> None:
        seal.use(address.secrets, address.namespace)
        self._client = Client(address.connect, sends_code=False)
        self._opening: asyncio.Future[None] | None = None

    async def outcome(self, id_: str, returns: bytes, classes: Classes) -> Any:
        """Return the result of an invocation, to be read where it is wanted, or raise its failure."""
        if self._opening is None:
            self._opening = asyncio.ensure_future(asyncio.to_thread(self._client.open))
        await asyncio.shield(self._opening)
        outcome = outcomes.checked(await self._client.outcome(id_))
        if outcomes.is_failure(outcome):
            return _restored(outcome, returns, _named_in(outcome, classes))
        return Result(outcome, returns, classes)


class Result:
    """A result on its way: reading it gives the value, with the classes of the process that reads."""

    def __init__(self, outcome: bytes, returns: bytes, classes: Classes) -> None:
        self._parts = outcome, returns, _named_in(outcome, classes)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, self._parts


def _named_in(outcome: bytes, classes: Classes) -> Classes:
    return {name: code for name, code in classes.items() if name[1].encode() in outcome}


def _restored(outcome: bytes, returns: bytes, classes: Classes) -> Any:
    """Return a result or raise a failure; classes that cannot be imported here are made of the code that came along."""
    for name, code in classes.items():
        if living(*name, imports=True) is None:
            try:
                _kept[name] = api.cloudpickle.loads(code)
            except Exception as error:  # noqa: BLE001  # making a class runs code of users; its values say what is missing
                logger.info("%s.%s cannot be made of its code: %s", *name, error_text(error))
            else:
                note_sent(_kept[name], name)
    annotation = MISSING
    if outcomes.needs_annotation(outcome):
        annotation = _annotations[returns] if returns in _annotations else api.cloudpickle.loads(returns)
    with seal.trusting():  # the waiting actor has checked it, and Ray has brought it from there
        return outcomes.decoded(outcome, annotation)


def keep_annotation(returns: Any) -> bytes:
    """Return an annotation's pickle; this process reads it as the annotation itself, not as a copy."""
    data = portable(returns, api.cloudpickle)
    if len(_annotations) > ANNOTATIONS_MAX:
        _annotations.clear()
    _annotations[data] = returns
    return data


_kept: Final[dict[Name, type]] = {}
"""Classes that were made of code: nothing else references them until a value does."""
_annotations: Final[dict[bytes, Any]] = {}
