"""Hosts on Ray: the actors that run a host in a process of Ray's, and where they find their store.

Invariant: no call with an effect is repeated by Ray; a host's constructor cannot fail, for that would end it for good.
"""

import logging
import os
import sys
import threading
from functools import lru_cache
from hashlib import blake2b, pbkdf2_hmac
from typing import Any, Final, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.activation.black_box import BlackBox
from actors.host.local import LocalHost, collect_seldom
from actors.limits import DEFAULT, Limits
from actors.policy import Policy
from actors.processes import this_process
from actors.requests.current import set_validates
from actors.values import seal
from actors.values.seal import Secrets
from journal.redis.store import Durability, RedisStore
from journal.redis.url import shown
from journal.store import Store

logger = logging.getLogger("actors")
api: Final[Any] = ray
"""Ray without its annotations, which are partial."""

RAY_NAMESPACE: Final = "perdure"
HOSTS_DEFAULT: Final = 2
"""Default number of hosts, of which one can be lost without a pause."""
HEAD: Final = "node:__internal_head__"
"""The resource by which Ray marks its head."""


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


def log_here() -> None:
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
        log_here()
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
