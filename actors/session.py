"""Session: `init`, `shutdown`, `status` and `attach`.

Owns the one session of a process: the embedded server if there is one, the client, the hosts that it started. The
variable that holds it is one of the package's three globals (`current` and `seal` have the others): handles must find
their client from any line of a program.

Ray is imported when it is first used: a program that runs without it never waits for it.
"""

import asyncio
import atexit
import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, overload

import orjson

from journal.ids import shard_in
from journal.redis.store import Durability, RedisStore
from journal.redis.url import shown
from journal.store import Store

from .activation.suspects import Fault
from .client.client import Client
from .client.slots import Slot
from .errors import UsageError
from .host.local import LocalHost, bury_ended
from .limits import Limits, limits_of
from .objects.handlers import Call, run_of
from .policy import Policy
from .requests import current
from .requests.invocation import Invocation, R
from .startup import handlers_put_back, is_entered
from .stored import pinned, public
from .values import seal

if TYPE_CHECKING:
    from journal.embedded.server import EmbeddedServer

    from .ray.cluster import Cluster

logger = logging.getLogger("actors")
LISTED_MAX: Final = 5.0
"""Seconds for which `init` waits until the hosts that it started are listed."""

OWNED_MAX: Final = 1.0
"""Seconds for which `init` waits until each shard has an owner: a lease of another machine's dead host may stand."""

_INSIDE = "actors.init() is for programs: handlers and steps run in hosts, which are connected already"


@dataclass(frozen=True, slots=True)
class Settings:
    """The arguments with which a session was opened."""

    redis: str | None = field(repr=False)
    address: str | None
    hosts: int | Literal["local"] | None
    directory: str
    namespace: str
    durability: Durability
    policy: Policy | None
    limits: Limits
    store: str = field(init=False, compare=False)
    """The URL `redis` without its secrets."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "store", "embedded" if self.redis is None else shown(self.redis))


@pinned("HostStatus")
@dataclass(frozen=True, slots=True)
class HostStatus:
    """One host, as it last described itself."""

    id: str
    node: str
    pid: int
    shards: tuple[int, ...]
    lag: int
    """Staged progress that is not durable yet."""
    abandoned: tuple[str, ...] = ()
    """Sync steps that were given up, by a time-out or a cancel, and go on in their threads: object and duration."""
    faults: tuple[Fault, ...] = ()
    """Its own last failures: defects of Perdure, with the invocations in which they showed."""
    held_back: tuple[str, ...] = ()
    """Invocations that do not begin for now, since the processes that executed them have ended: ids and reasons."""


@public
@dataclass(frozen=True, slots=True)
class Status:
    """The result of `actors.status()`."""

    hosts: tuple[HostStatus, ...]
    store: str
    """The URL of the store, without its password."""
    namespace: str
    shards: int
    failure: str = ""
    """The reason why this program can start nothing any more: its client has failed, or was shut down."""
    allocator: str = ""
    """The allocator of the embedded server, `jemalloc` or `libc`; empty for any other store."""


@public
class Session:
    """The result of `init`; also a context manager, sync and async, that shuts it down."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.url = settings.redis or ""
        self.client: Client | None = None
        self._secrets = seal.secrets_in_environment()
        self._server: EmbeddedServer | None = None
        self._local: LocalHost | None = None
        self._cluster: Cluster | None = None
        self._entered: Session | None = None

    @property
    def allocator(self) -> str:
        """The allocator of the embedded server; empty for any other store."""
        return "" if self._server is None else self._server.allocator

    def open(self) -> None:
        """Start or join everything; on failure leave nothing behind."""
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        settings = self.settings
        seal.use(self._secrets, settings.namespace)
        if settings.redis is None:
            from journal.embedded.server import EmbeddedServer  # importable on Linux and macOS alone

            self._server = EmbeddedServer.open(Path(settings.directory))
            self.url = self._server.url
        is_local = settings.hosts == "local"
        self.client = Client(
            self.connect,
            sends_code=True,
            limits=settings.limits,
            live=is_local,
            object_ref=None if is_local else self.object_ref,
        )
        self.client.open()
        self.client.call(bury_ended)
        if settings.hosts == "local":
            self._local = LocalHost(self.connect, policy=settings.policy, limits=settings.limits)
            self._local.start()
            started = {self._local.incarnation}
        elif settings.hosts == 0:
            return  # they are elsewhere: neither Ray nor they are waited for
        else:
            self._cluster = self._made_cluster()
            started = {about.incarnation for about in self._cluster.open(settings.hosts)}
        shards = self.client.limits.shards
        self.client.call(lambda store: _listed(store, started, shards))

    def _made_cluster(self) -> "Cluster":
        from .ray.cluster import Cluster  # takes a second
        from .ray.hosts import StoreAddress

        settings = self.settings
        where = StoreAddress(self.url, settings.namespace, settings.durability, self._server is not None, self._secrets)
        return Cluster(settings.address, where, settings.policy, settings.limits)

    def connect(self) -> Store:
        """Return a new connection to the store."""
        return RedisStore(
            self.url,
            self.settings.namespace,
            durability=self.settings.durability,
            is_ours=self._server is not None,
        )

    def object_ref(self, invocation: Invocation[Any], returns: Any) -> Any:
        """Return a Ray reference to an invocation's outcome."""
        with _slot.lock:
            if self._cluster is None:  # with hosts=0 nothing else needs Ray
                cluster = self._made_cluster()
                cluster.join()
                self._cluster = cluster
        return self._cluster.object_ref(invocation.id, returns)

    def close(self) -> None:
        """Wait for unsent submits, then end what this program started; an interruption ends the present wait only.

        Failures are logged and not raised: they would take the place of the error with which the program ends.
        """
        interrupted: BaseException | None = None
        for end in (self._close_client, self._close_local, self._close_cluster, self._close_server):
            try:
                end()
            except Exception as error:
                # Ctrl-C in the moment in which a wait gives its lock back: the lock raises its own error over it.
                if isinstance(error.__context__, KeyboardInterrupt):
                    interrupted = interrupted or error.__context__
                else:
                    logger.exception("not all was shut down as it should be")
            except BaseException as error:  # noqa: BLE001 - raised below, when nothing is left behind
                interrupted = interrupted or error
        if interrupted is not None:
            raise interrupted

    def _close_client(self) -> None:
        if self.client is not None:
            self.client.close()

    def _close_local(self) -> None:
        if self._local is not None:
            self._local.stop()

    def _close_cluster(self) -> None:
        if self._cluster is not None:
            # Hosts of a cluster that was joined go on, unless their store ends with this program.
            self._cluster.close(keep_hosts=self.settings.address is not None and self._server is None)

    def _close_server(self) -> None:
        if self._server is not None:
            self._server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _end(self)

    async def __aenter__(self) -> "Session":  # noqa: PYI034  # of a second `init` it is the first one's
        opening = asyncio.ensure_future(asyncio.to_thread(_opened, self.settings))
        try:
            self._entered = entered = await asyncio.shield(opening)
        except asyncio.CancelledError:
            await asyncio.wait([opening])  # a cancelled caller leaves nothing behind
            if opening.exception() is None:
                await asyncio.to_thread(_end, opening.result())
            raise
        with handlers_put_back():  # below Python: a Ray that was started in another thread has replaced them
            return entered

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(_end, self._entered)


class _CurrentSession:
    """Holds the process's session."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.session: Session | None = None


_slot = _CurrentSession()


@public
def init(
    redis: str | None = None,
    *,
    address: str | None = None,
    hosts: int | Literal["local"] | None = None,
    directory: str | os.PathLike[str] = ".perdure",
    namespace: str | None = None,
    durability: Durability | None = None,
    policy: Policy | None = None,
    limits: Limits | None = None,
) -> Session:
    """Connect this program, and start what is missing: a server in `directory`, Ray, hosts.

    Each argument that is not given is taken from the environment: `PERDURE_REDIS`, `PERDURE_ADDRESS`, `PERDURE_HOSTS`,
    `PERDURE_NAMESPACE`, `PERDURE_DURABILITY`. Calling it again with the same arguments does nothing. `shutdown()`, the
    end of the process, or leaving the `with` block undoes it. `async with actors.init(...)` starts and ends in another
    thread, so that the event loop goes on meanwhile; nothing is connected before the block.

    Args:
        redis: URL of a Redis or Valkey primary; without one, the embedded server of `directory`.
        address: of a Ray cluster; without one, the Ray that the program has initialized, else a local one.
        hosts: how many Ray hosts there are to be, "local" for one in this process, without Ray, or 0 to connect only:
            hosts of other programs, or of a cluster, execute what this one starts.
        durability: "disk" refuses a server that could lose what it acknowledged; "relaxed" takes any.
        policy: defaults for every class, where this call starts the hosts.
        limits: bounds of the namespace, which the first program fixes; of this program; of the hosts, where this call
            starts them.

    Raises:
        UsageError: this program is connected otherwise already, an argument is invalid, or the namespace has other
            limits.
        SettingsError: the server could lose what it acknowledged.
        UnavailableError: the server does not answer, or the hosts do not start.
    """
    if current.execution() is not None or current.in_step.get() is not None:
        raise UsageError(_INSIDE)
    settings = Settings(
        redis or os.environ.get("PERDURE_REDIS") or None,
        address or os.environ.get("PERDURE_ADDRESS") or None,
        _hosts(hosts),
        str(Path(directory).absolute()),
        namespace or os.environ.get("PERDURE_NAMESPACE") or "default",
        _durability(durability),
        policy,
        limits_of(limits),
    )
    if settings.address is not None and settings.hosts == "local":
        raise UsageError('hosts="local" runs without Ray: leave out the address, or say how many hosts')
    if is_entered(sys._getframe(1)):  # pyright: ignore[reportPrivateUsage]  # there is no public way
        return Session(settings)
    return _opened(settings)


def _opened(settings: Settings) -> Session:
    """Return the session of this process, opened unless it is."""
    with _slot.lock:
        session = _slot.session
        if session is not None:
            if session.settings != settings:
                raise UsageError(
                    f"this program is connected already, with {session.settings}: call actors.shutdown() before "
                    "actors.init() with other arguments"
                )
            return session
        current.set_validates(None if settings.policy is None else settings.policy.validate)
        session = Session(settings)
        session.open()
        _slot.session = session
        current.set_driver(session.client)
        return session


def _check_log() -> None:
    """Refuse a level that the hosts would not know."""
    level = os.environ.get("PERDURE_LOG", "")
    if level and level.upper() not in logging.getLevelNamesMapping():
        raise UsageError(f"PERDURE_LOG={level!r} is no level of logging: say DEBUG, INFO, WARNING, ERROR or CRITICAL")


def _hosts(hosts: int | str | None) -> int | Literal["local"] | None:
    _check_log()
    found = os.environ.get("PERDURE_HOSTS") or None if hosts is None else hosts
    if found is None or found == "local":
        return found
    if isinstance(found, str) and found.isdecimal():
        found = int(found)
    if isinstance(found, int) and not isinstance(found, bool) and found >= 0:
        return found
    raise UsageError(f'hosts is a number of Ray hosts, or "local", not {found!r}')


def _durability(durability: str | None) -> Durability:
    found = durability or os.environ.get("PERDURE_DURABILITY") or "disk"
    if found == "disk" or found == "relaxed":
        return found
    raise UsageError(f'durability is "disk" or "relaxed", not {found!r}')


@public
def shutdown() -> None:
    """Wait for unsent submits, disconnect, and stop what this program started; invocations go on where hosts remain."""
    with _slot.lock:
        session, _slot.session = _slot.session, None
        if session is not None:
            current.set_driver(None)
            session.close()


def _end(session: Session | None) -> None:
    with _slot.lock:
        if session is not None and _slot.session is session:
            shutdown()


def connected() -> Client | None:
    """Return the client of this process, if it is connected."""
    session = _slot.session
    return None if session is None else session.client


def _session() -> tuple[Session, Client]:
    session = _slot.session
    if session is None or session.client is None:
        raise UsageError("nothing is connected in this process: call actors.init() first")
    return session, session.client


@overload
def attach(target: str) -> Invocation[Any]: ...
@overload
def attach(target: Call[Callable[..., Invocation[R]]]) -> Invocation[R]: ...
@public
def attach(target: str | Call[Any]) -> Invocation[Any]:
    """Return the invocation with this id, or that of a workflow's run (`Signup["k"].run`), started by any program.

    In a handler awaiting it is an entry of the journal; if it is not known, the wait raises a `TerminalError` (404).

    Raises:
        UsageError: this process is not connected, or this is neither the id of an invocation nor a workflow's run.
    """
    execution = current.execution()
    if execution is None:
        client = _session()[1]
        if isinstance(target, str):
            shard_in(target)
            return Invocation(target, client)
        id_, handler = run_of(target, client.limits.shards)
        return Invocation(id_, client, Slot(handler, is_accepted=True))
    if isinstance(target, str):
        shard_in(target)
        return Invocation(target, execution)
    id_, handler = run_of(target, execution.calls.shards)
    return Invocation(id_, execution, handler)


@public
def status() -> Status:
    """Return hosts, store and namespace, as they are now.

    Raises:
        UsageError: this process is not connected.
        UnavailableError: the store does not answer.
    """
    session, client = _session()
    look = client.call(lambda store: store.membership(client.limits.shards))
    hosts: list[HostStatus] = []
    for incarnation, about in look.hosts.items():
        said = orjson.loads(about.partition(b" ")[2])
        # A host's description of itself is a second old; its leases are not.
        shards = [shard for shard, lease in enumerate(look.leases) if lease.startswith(f"{incarnation} ")]
        abandoned = tuple(said.get("abandoned", ()))
        faults = tuple(Fault(*fault) for fault in said.get("faults", ()))
        held_back = tuple(f"{id_}: {why}" for id_, why in said.get("held_back", {}).items())
        who = said["id"], said["node"], said["pid"]
        hosts.append(HostStatus(*who, tuple(shards), said["lag"], abandoned, faults, held_back))
    hosts.sort(key=lambda host: host.id)
    return Status(
        tuple(hosts),
        shown(session.url),
        session.settings.namespace,
        len(look.leases),
        client.failure,
        session.allocator,
    )


async def _listed(store: Store, incarnations: set[str], shards: int) -> None:
    """Wait until `status()` would name these hosts, and the owner of each shard: a moment after their start."""
    try:
        async with asyncio.timeout(LISTED_MAX):
            while not incarnations <= (await store.membership()).hosts.keys():  # noqa: ASYNC110  # no event says it
                await asyncio.sleep(0.01)
    except TimeoutError:
        logger.warning("not all hosts are listed after %g s: one may be starting again", LISTED_MAX)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(OWNED_MAX):
            while not all((await store.membership(shards)).leases):  # noqa: ASYNC110  # as above
                await asyncio.sleep(0.01)


def _forked() -> None:
    # Threads do not survive a fork: the child has no connection of its own yet. Nor does the holder of the lock.
    _slot.lock, _slot.session = threading.RLock(), None
    current.set_driver(None)


def _at_exit() -> None:
    try:
        shutdown()
    except KeyboardInterrupt:
        pass  # a second Ctrl-C: the wait was ended, and so is the process


os.register_at_fork(after_in_child=_forked)
# Before `concurrent.futures` refuses new work, which hand-over and reconnection need; that is how it registers itself.
_register: Callable[[Callable[[], None]], object] = getattr(threading, "_register_atexit", atexit.register)
_register(_at_exit)
