"""Cluster: starts or joins a Ray and its hosts for a program, and for `python -m actors.ray up`.

Invariant: a cluster that was joined by its address keeps its hosts; a program ends those that it alone started.
"""

import argparse
import contextlib
import logging
import os
import sys
import sysconfig
import threading
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import ray
from ray.exceptions import RayError

from actors.aside import hidden_by
from actors.client.client import Client
from actors.code.bundles import portable
from actors.errors import DurableError, UnavailableError, UsageError
from actors.limits import DEFAULT, Limits, limits_in
from actors.policy import Policy
from actors.startup import LastingThread, handlers_put_back, interrupted_later
from actors.values import seal
from actors.values.values import Name, sent
from journal.ids import new_id
from journal.redis.url import shown
from journal.texts import error_text

from .hosts import HEAD, RAY_NAMESPACE, About, StoreAddress, nodes_alive, on_node
from .references import Outcomes, keep_annotation
from .supervisor import Supervisor

logger = logging.getLogger("actors")
api: Final[Any] = ray
"""Ray without its annotations, which are partial."""

_ELSEWHERE: Final = (
    "Ray's processes look first where the program was started, so start it in another directory, or give yours another "
    "name"
)
_IS_INSTALLED: Final = "Is perdure installed on every node, for the same Python?"

READY_MAX: Final = 120.0
"""Seconds within which the hosts must have started."""
LEAVE_MAX: Final = 45.0
"""Seconds that hosts have to hand over."""
REFERENCES_MAX: Final = 10_000
"""Ray references of one program that wait at once; more wait for their turn."""
NO_STORE: Final = "say where the store is: --redis redis://HOST:PORT/0, or PERDURE_REDIS"


def _portable(classes: Mapping[Name, type]) -> Iterator[tuple[Name, bytes]]:
    """Yield the pickles of classes; a class that cannot be pickled is left out, and reading a value of it says so."""
    for name, cls in classes.items():
        try:
            yield name, portable(cls, api.cloudpickle)
        except Exception as error:  # noqa: BLE001  # a user's globals may hold anything
            logger.info("%s.%s is not sent along with references: %s", *name, error_text(error))


class Cluster:
    """The Ray that a program uses, and the hosts in it."""

    def __init__(
        self, address: str | None, store: StoreAddress, policy: Policy | None, limits: Limits = DEFAULT
    ) -> None:
        self._address = address or os.environ.get("RAY_ADDRESS") or None
        self._store, self._policy, self._limits = store, policy, limits
        self._started_ray = self._joined_ray = self._made_hosts = False
        self._supervisor: Any = None
        self._outcomes: Any = None
        self._classes: tuple[dict[Name, type], Any] = {}, None
        self._lock = threading.Lock()
        self._thread = LastingThread()

    def open(self, count: int | None) -> list[About]:
        """Join or start Ray, and see that there are hosts.

        Raises:
            UsageError: hosts of other machines could not reach the store.
            UnavailableError: there is no such cluster, or the hosts do not start.
        """
        self.join()
        self._check_reach()
        name = f"supervisor:{self._store.name}"
        try:
            self._supervisor = api.get_actor(name, namespace=RAY_NAMESPACE)
        except ValueError:
            made: Any = api.remote(Supervisor)
            self._made_hosts = True
            self._supervisor = made.options(
                name=name,
                namespace=RAY_NAMESPACE,
                lifetime="detached",
                get_if_exists=True,
                max_restarts=-1,
                max_task_retries=0,
                **on_node(nodes_alive(HEAD)[0]),  # without the head nobody could restart anything
            ).remote(
                new_id(), self._store, self._policy, self._limits, {} if self._started_ray else {"PYTHONHASHSEED": "0"}
            )
        asked = [] if self._limits.of_host() == DEFAULT.of_host() else [self._limits]
        try:
            hosts: list[About] = self._got(self._supervisor.ensure.remote(count, *asked), READY_MAX)
        except RayError as error:
            raise UnavailableError(
                f"the hosts do not start on Ray: {error}\n{_hidden_in_workers() or _IS_INSTALLED}"
            ) from error
        if asked:
            self._say_others(hosts)
        return hosts

    def _say_others(self, hosts: list[About]) -> None:
        other = [host.id for host in hosts if host.limits.of_host() != self._limits.of_host()]
        if other:
            logger.warning(
                "%s ran before with other limits than %r, and keep theirs until they end: `perdure down`, "
                "then start them again",
                *(", ".join(other), self._limits),
            )

    def _got(self, reference: Any, timeout_s: float) -> Any:
        return api.get(reference, timeout=timeout_s)

    def join(self) -> None:
        """Join or start Ray, unless the program has done so.

        Raises:
            UnavailableError: there is no such cluster, or Ray does not start.
            UsageError: a module of the program hides ours in the processes that are to be started.
        """
        if api.is_initialized():
            return
        if self._address is None and (hidden := _hidden_in_workers()):
            raise UsageError(f"{hidden}: {_ELSEWHERE}")
        # "local": without an address, Ray joins the cluster that was started here last, or waits for one that is gone.
        options: dict[str, Any] = {"address": self._address or "local"}
        if self._address is None:
            options["include_dashboard"] = False
        with contextlib.nullcontext() if self._address else _as_environment(_of_own_processes()):
            try:
                with handlers_put_back(), interrupted_later(), _without_warning("SIGTERM handler is not set"):
                    self._thread.call(
                        lambda: api.init(logging_level=logging.WARNING, namespace=RAY_NAMESPACE, **options)
                    )
                    self._joined_ray, self._started_ray = True, self._address is None
            except (ConnectionError, RuntimeError, ValueError) as error:
                where = f"at {self._address!r}" if self._address else "on this machine"
                raise UnavailableError(f"Ray cannot be used {where}: {error}") from error

    def _check_reach(self) -> None:
        where = urlsplit(self._store.url)
        if where.scheme != "unix" and where.hostname not in ("127.0.0.1", "::1", "localhost"):
            return
        nodes: list[dict[str, Any]] = api.nodes()
        if len({node["NodeManagerAddress"] for node in nodes if node["Alive"]}) > 1:
            raise UsageError(
                f"this Ray cluster has several machines, and only this one reaches {shown(self._store.url)}: give a "
                "Redis or Valkey that all of them reach, init(redis=...)"
            )

    def object_ref(self, id_: str, returns: Any) -> Any:
        """Return a Ray reference to an invocation's outcome."""
        with self._lock:
            if self._outcomes is None:
                made: Any = api.remote(Outcomes)
                # Asking again for an outcome is harmless, unlike every other call here.
                options: dict[str, Any] = {"max_restarts": -1, "max_task_retries": -1}
                self._outcomes = made.options(num_cpus=0, max_concurrency=REFERENCES_MAX, **options).remote(self._store)
            classes = sent()
            if self._classes[1] is None or self._classes[0] != classes:
                self._classes = classes, api.put(dict(_portable(classes)))
            return self._outcomes.outcome.remote(id_, keep_annotation(returns), self._classes[1])

    def close(self, *, keep_hosts: bool) -> None:
        """Leave Ray; first end the hosts, unless they are kept or somebody else started them."""
        try:
            if api.is_initialized():
                self._end_actors(keep_hosts=keep_hosts)
        finally:
            if self._joined_ray:
                api.shutdown()
                self._thread.end()

    def end_hosts(self) -> bool:
        """End the supervisor and its hosts, also those of other programs; return whether there were any."""
        try:
            self._supervisor = api.get_actor(f"supervisor:{self._store.name}", namespace=RAY_NAMESPACE)
        except ValueError:
            return False
        self._made_hosts = True
        self._end_actors(keep_hosts=False)
        self._supervisor = None
        return True

    def _end_actors(self, *, keep_hosts: bool) -> None:
        if self._outcomes is not None:
            api.kill(self._outcomes)
        if self._supervisor is None or keep_hosts or not self._made_hosts:
            return
        try:
            self._got(self._supervisor.leave.remote(), LEAVE_MAX)
        except RayError as error:
            logger.warning("hosts did not hand over: %s", error)
        api.kill(self._supervisor)


def _hidden_in_workers() -> str:
    # Ray lets its processes look into the directory where the program was started first, then into that of its script.
    script = os.path.dirname(os.path.realpath(sys.argv[0]))
    return hidden_by([os.getcwd(), *([script] if script in sys.path else [])])


def _of_own_processes() -> dict[str, str]:
    """Return the environment of a Ray of our own: its workers import what this program can, and hash alike."""
    installed = sysconfig.get_path("purelib"), sysconfig.get_path("stdlib")
    paths = [path for path in sys.path if path and os.path.isdir(path) and not path.startswith(installed)]
    return {"PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(paths)}


@contextlib.contextmanager
def _without_warning(text: str) -> Generator[None]:
    """Suppress a warning of Ray's that is of no use here."""

    def is_news(record: logging.LogRecord) -> bool:
        return text not in record.getMessage()

    rays = logging.getLogger("ray._private.worker")
    rays.addFilter(is_news)
    try:
        yield
    finally:
        rays.removeFilter(is_news)


@contextlib.contextmanager
def _as_environment(variables: dict[str, str]) -> Generator[None]:
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
    up.add_argument("--limit", action="append", default=[], metavar="NAME=VALUE", help="as in actors.Limits; repeat it")
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
        raise UsageError(NO_STORE)
    store = StoreAddress(asked.redis, asked.namespace, asked.durability, secrets=seal.secrets_in_environment())
    for about in start_hosts(store, asked.address, asked.hosts, limits_in(asked.limit)):
        print(f"host {about.id} on node {about.node[:12]}, pid {about.pid}")
    return 0


def start_hosts(store: StoreAddress, address: str | None, count: int | None, limits: Limits) -> list[About]:
    """Start the supervisor and the hosts of a Ray cluster, or change how many there are; they outlive this program.

    Raises:
        UsageError: hosts of other machines could not reach the store, or the namespace has other limits.
        SettingsError: the store could lose what it acknowledges.
        UnavailableError: the store or the cluster does not answer, or the hosts do not start.
    """
    client = Client(store.connect, sends_code=False, limits=limits)
    client.open()  # refuses a store that could lose what it acknowledges, and other limits, before anything starts
    client.close()
    cluster = Cluster(address, store, None, limits)
    try:
        return cluster.open(count)
    finally:
        cluster.close(keep_hosts=True)


def nodes_of(address: str) -> list[dict[str, Any]]:
    """Return the living nodes of a Ray cluster.

    Raises:
        UnavailableError: the cluster does not answer.
    """
    cluster = Cluster(address, StoreAddress("", "", "relaxed"), None)
    cluster.join()
    try:
        return [node for node in api.nodes() if node["Alive"]]
    finally:
        cluster.close(keep_hosts=True)


def end_hosts(store: StoreAddress, address: str | None) -> bool:
    """Let all hosts of a namespace hand over and end, started by this program or not; return whether there were any.

    Raises:
        UnavailableError: the cluster does not answer.
    """
    cluster = Cluster(address, store, None)
    cluster.join()
    try:
        return cluster.end_hosts()
    finally:
        cluster.close(keep_hosts=True)
