"""Serve: `perdure serve MODULE…`, a server of HTTP for the classes of these modules.

One worker is this process. More of them are processes of their own, each a driver, which a parent starts, starts again
and ends; then the hosts are the parent's.

SIGTERM: the server takes no new connection, answers what it has accepted, and ends. A request whose handler waits for
longer than `GRACE` is answered with 503 and the id of its invocation, which goes on.
"""

import argparse
import importlib
import ipaddress
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any, Final, Literal

import uvicorn

from actors import session
from actors.errors import DurableError, UsageError

from .door import Door, app

logger = logging.getLogger("actors")

GRACE: Final = 10.0
"""Seconds for which a server that ends waits for the handlers of the requests that it has accepted."""
_WORKER: Final = "PERDURE_SERVE"
"""The variable that tells a worker its modules, and how it connects."""


class GracefulServer(uvicorn.Server):
    """A server that lets its app know when it ends."""

    def __init__(self, config: uvicorn.Config, door: Door) -> None:
        super().__init__(config)
        self._door = door

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._door.end_within(GRACE)
        await super().shutdown(sockets)


def serve(
    modules: Sequence[str],
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    workers: int = 1,
    redis: str | None = None,
    directory: str = ".perdure",
    namespace: str | None = None,
    hosts: int | Literal["local"] | None = None,
) -> None:
    """Serve the classes of these modules until a signal ends it.

    Without `hosts`, an embedded server gets one host in this process; with a store of your own, hosts run elsewhere.

    Raises:
        UsageError: a module cannot be imported, or the address is not of this machine.
        UnavailableError: the store does not answer.
    """
    check_host(host)
    _import(modules)
    if hosts is None and "PERDURE_HOSTS" not in os.environ:
        hosts = 0 if redis or os.environ.get("PERDURE_REDIS") else "local"
    opens: dict[str, Any] = {"redis": redis, "directory": directory, "namespace": namespace, "hosts": hosts}
    if workers == 1:
        door = app(**opens)
        GracefulServer(_config(door, host, port), door).run()
        return
    with session.init(**opens), _in_environment({"modules": [*modules], "opens": {**opens, "hosts": 0}}):
        uvicorn.run(**_arguments("actors.http.serve:worker", host, port), factory=True, workers=workers)


def worker() -> Door:
    """Return the app of one of several workers."""
    said = json.loads(os.environ[_WORKER])
    sys.path.insert(0, os.getcwd())
    _import(said["modules"])
    return app(**said["opens"])


def check_host(host: str) -> None:
    """Refuse an address that other machines reach: whoever reaches it may call everything.

    Raises:
        UsageError: it is not of the loopback.
    """
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not is_loopback:
        raise UsageError(
            f"--host {host}: other machines would reach every handler, and there are no tokens yet that tell who may. "
            "Serve on 127.0.0.1, and put a proxy that authenticates before it"
        )


def _import(modules: Sequence[str]) -> None:
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for name in modules:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise UsageError(f"{name} cannot be imported: {error}") from error


def _config(door: Any, host: str, port: int) -> uvicorn.Config:
    return uvicorn.Config(**_arguments(door, host, port))


def _arguments(door: Any, host: str, port: int) -> dict[str, Any]:
    said = {"host": host, "port": port, "http": "httptools", "loop": "uvloop", "log_level": "warning"}
    return {"app": door, **said, "lifespan": "on", "server_header": False}


@contextmanager
def _in_environment(said: dict[str, Any]) -> Any:
    os.environ[_WORKER] = json.dumps(said)
    try:
        yield
    finally:
        del os.environ[_WORKER]


def parser() -> argparse.ArgumentParser:
    """Return the arguments of `perdure serve`."""
    made = argparse.ArgumentParser("perdure serve", description="Serve the handlers of these modules over HTTP.")
    made.add_argument("modules", nargs="+", metavar="MODULE", help="as it is imported, for example examples.seat_map")
    made.add_argument("--host", default="127.0.0.1", help="the address to listen at (127.0.0.1)")
    made.add_argument("--port", type=int, default=8080, help="the port to listen at (8080)")
    made.add_argument("--workers", type=int, default=1, help="the number of processes that answer (1)")
    made.add_argument("--redis", help="the URL of the store; without it, an embedded server")
    made.add_argument("--directory", default=".perdure", help="of the embedded server (.perdure)")
    made.add_argument("--namespace", help="the namespace in the store (default)")
    made.add_argument("--hosts", type=_hosts, help='a number of hosts on Ray, or "local" for one in this process')
    return made


def _hosts(text: str) -> int | str:
    return text if text == "local" else int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `perdure serve`; return the exit code."""
    said = parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        serve(**vars(said))
    except DurableError as error:
        sys.stderr.write(f"perdure serve: {error}\n")
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


def command() -> None:
    """Run the command `perdure`, which has one word so far."""
    word, *arguments = sys.argv[1:] or ["--help"]
    if word != "serve":
        sys.stderr.write("usage: perdure serve MODULE... [--port 8080] [--help]\n")
        sys.exit(0 if word in ("-h", "--help") else 2)
    sys.exit(main(arguments))


if __name__ == "__main__":
    command()
