"""Driver: `init`, `shutdown`, and what a program asks of the whole.

Owns the one session of a process: the embedded server if there is one, the client, the hosts that it started. The slot
that holds it is the package's only global: handles must find their client from any line of a program.
"""

import atexit
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, cast

import orjson

from journal.redis import Durability, RedisStore
from journal.server import EmbeddedServer
from journal.store import SHARDS, Store

from . import place
from .client import Client
from .errors import UsageError
from .invocation import Invocation
from .local import LocalHost
from .policy import Policy
from .ray import Cluster
from .services import Limits

HOSTS_DEFAULT = 2
"""Ray hosts that `init()` starts where nobody says how many: one can be lost without a pause."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a session was opened with."""

    redis: str | None
    address: str | None
    hosts: int | Literal["local"] | None
    directory: str
    namespace: str
    durability: Durability
    policy: Policy | None


@dataclass(frozen=True, slots=True)
class HostStatus:
    """One host, as it last described itself."""

    id: str
    node: str
    pid: int
    shards: tuple[int, ...]
    lag: int
    """Progress that was staged and not durable."""


@dataclass(frozen=True, slots=True)
class Status:
    """What `actors.status()` tells."""

    hosts: tuple[HostStatus, ...]
    store: str
    namespace: str
    shards: int


class Session:
    """What `init` opened; also a context manager that shuts it down."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.server: EmbeddedServer | None = None
        self.url = settings.redis or ""
        self.client: Client | None = None
        self.local: LocalHost | None = None
        self.cluster: Cluster | None = None

    def open(self) -> None:
        """Start or join everything; on failure leave nothing behind."""
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        settings = self.settings
        if settings.redis is None:
            self.server = EmbeddedServer.open(Path(settings.directory))
            self.url = self.server.url
        connect = connector(self.url, settings)
        is_local = settings.hosts == "local"
        self.client = Client(
            connect, sends_code=not is_local, payload_max=Limits().payload_max, object_ref=None if is_local else _object_ref
        )
        self.client.open()
        if is_local:
            self.local = LocalHost(connect, policy=settings.policy)
            self.local.start()
        else:
            self.cluster = Cluster(settings.address, self.url, settings.namespace, settings.durability, settings.policy)
            self.cluster.open(cast("int | None", settings.hosts), HOSTS_DEFAULT)

    def close(self) -> None:
        """Wait for unsent submits, then end what this program started."""
        if self.client is not None:
            self.client.close()
        if self.local is not None:
            self.local.stop()
        if self.cluster is not None:
            self.cluster.close()
        if self.server is not None:
            self.server.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        shutdown()


class _Slot:
    """Holds the process's session."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.session: Session | None = None


_slot = _Slot()


def connector(url: str, settings: Settings) -> Callable[[], Store]:
    """Return what makes connections to the store."""
    return lambda: RedisStore(url, settings.namespace, durability=settings.durability)


def init(
    redis: str | None = None,
    *,
    address: str | None = None,
    hosts: int | Literal["local"] | None = None,
    directory: str | os.PathLike[str] = ".perdure",
    namespace: str | None = None,
    durability: Durability | None = None,
    policy: Policy | None = None,
) -> Session:
    """Connect this program, starting what is not there: a server in `directory`, Ray, hosts.

    Each argument that is not given is taken from the environment: `PERDURE_REDIS`, `PERDURE_ADDRESS`, `PERDURE_HOSTS`,
    `PERDURE_NAMESPACE`, `PERDURE_DURABILITY`. Calling it again with the same arguments does nothing. `shutdown()`, the
    end of the process, or leaving the `with` block undoes it.

    Args:
        redis: URL of a Redis or Valkey primary; without one, the embedded server of `directory`.
        address: of a Ray cluster; without one, a local Ray.
        hosts: how many Ray hosts there are to be, or "local" for one in this process, without Ray.
        durability: "disk" refuses a server that could lose what it acknowledged; "relaxed" takes any.
        policy: defaults for every class.

    Raises:
        UsageError: this program is connected otherwise already.
        SettingsError: the server could lose what it acknowledged.
        UnavailableError: the server does not answer.
    """
    settings = Settings(
        redis or os.environ.get("PERDURE_REDIS") or None,
        address or os.environ.get("PERDURE_ADDRESS") or None,
        _hosts(hosts),
        str(Path(directory).absolute()),
        namespace or os.environ.get("PERDURE_NAMESPACE") or "default",
        _durability(durability),
        policy,
    )
    with _slot.lock:
        session = _slot.session
        if session is not None:
            if session.settings != settings:
                raise UsageError(
                    f"this program is connected already, with {session.settings}: call actors.shutdown() before "
                    "actors.init() with other arguments"
                )
            return session
        session = Session(settings)
        session.open()
        _slot.session = session
        place.set_driver(session.client)
        return session


def _hosts(hosts: int | str | None) -> int | Literal["local"] | None:
    found = os.environ.get("PERDURE_HOSTS") if hosts is None else hosts
    if not found and found != 0:
        return None
    if found == "local":
        return "local"
    if isinstance(found, str) and found.isdigit():
        return int(found)
    if isinstance(found, int) and not isinstance(found, bool) and found >= 0:
        return found
    raise UsageError(f'hosts is a number of Ray hosts, or "local", not {found!r}')


def _durability(durability: str | None) -> Durability:
    found = durability or os.environ.get("PERDURE_DURABILITY") or "disk"
    if found == "disk" or found == "relaxed":
        return found
    raise UsageError(f'durability is "disk" or "relaxed", not {found!r}')


def shutdown() -> None:
    """Wait for unsent submits, disconnect, and stop what this program started; invocations go on where hosts remain."""
    with _slot.lock:
        session, _slot.session = _slot.session, None
        if session is not None:
            place.set_driver(None)
            session.close()


def _session() -> Session:
    session = _slot.session
    if session is None:
        raise UsageError("nothing is connected in this process: call actors.init() first")
    return session


def attach(id: str) -> Invocation[Any]:
    """Return the invocation with this id, started by whatever process: await it, or ask for its result."""
    return Invocation(id, _session().client)


def status() -> Status:
    """Return hosts, store and namespace, as they are now."""
    session = _session()
    assert session.client is not None
    look = session.client.call(lambda store: store.look(SHARDS))
    hosts: list[HostStatus] = []
    for about in look.hosts.values():
        said = orjson.loads(about.partition(b" ")[2])
        hosts.append(HostStatus(said["id"], said["node"], said["pid"], tuple(said["shards"]), said["lag"]))
    hosts.sort(key=lambda host: host.id)
    return Status(tuple(hosts), session.url, session.settings.namespace, len(look.leases))


def _object_ref(invocation: Invocation[Any], returns: Any) -> Any:
    session = _session()
    assert session.cluster is not None
    return session.cluster.object_ref(invocation.id, returns)


def _forked() -> None:
    # Threads do not survive a fork: the child has no connection of its own yet.
    _slot.session = None
    place.set_driver(None)


os.register_at_fork(after_in_child=_forked)
# Before `concurrent.futures` refuses new work, which hand-over and reconnection need; that is how it registers itself.
getattr(threading, "_register_atexit", atexit.register)(shutdown)
