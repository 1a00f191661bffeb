"""Serve: `perdure serve MODULE…`, a server of HTTP for the classes of these modules.

One worker is this process. More of them are processes of their own, each a driver, which a parent starts, starts again
and ends; then the hosts are the parent's.

SIGTERM: the server takes no new connection, answers what it has accepted, and ends. A request whose handler waits for
longer than `GRACE` is answered with 503 and the id of its invocation, which goes on.
"""

import importlib
import ipaddress
import json
import os
import signal
import socket
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, Final

import uvicorn
from uvicorn.supervisors import Multiprocess

from actors import session
from actors.errors import UsageError

from .door import Door, app
from .waits import GRACE

_HOW: Final[dict[str, Any]] = {
    "http": "httptools",
    "loop": "uvloop",
    "ws": "none",
    "lifespan": "on",
    "log_level": "warning",
    "access_log": False,
    "proxy_headers": False,
    "server_header": False,
    "timeout_graceful_shutdown": round(GRACE) + 5,  # for clients that do not end their requests, or do not read
}
_WORKER: Final = "PERDURE_SERVE"
"""The variable that tells a worker its modules, and how it connects."""


def serve(
    modules: Sequence[str], *, host: str = "127.0.0.1", port: int = 8080, workers: int = 1, opens: Mapping[str, Any]
) -> None:
    """Serve the classes of these modules until a signal ends it; `opens` are arguments of `actors.init`.

    Without `hosts`, the embedded server gets one host in this process; for a store of your own, hosts run elsewhere.

    Raises:
        UsageError: a module cannot be imported, the address is not of this machine, or is taken.
        UnavailableError: the store does not answer.
    """
    check_host(host)
    _import(modules)
    said = {**opens}
    if said.get("hosts") is None:
        said["hosts"] = 0 if said.get("redis") else "local"
    elif str(said["hosts"]).isdecimal():
        said["hosts"] = int(said["hosts"])
    if workers > 1:
        told = {"modules": [*modules], "opens": {**said, "hosts": 0}}
        with _listening(host, port) as bound, session.init(**said), _in_environment(told):
            config = uvicorn.Config("actors.http.serve:worker", factory=True, workers=workers, **_HOW)
            _say(host, bound)
            Multiprocess(config, [bound]).run()
        return
    with _listening(host, port) as bound, session.init(**said):
        server = uvicorn.Server(uvicorn.Config(app(), **_HOW))
        signal.signal(signal.SIGTERM, partial(_end, server))  # uvicorn raises it once more when all is answered
        _say(host, bound)
        server.run(sockets=[bound])


def _end(server: uvicorn.Server, number: int, frame: FrameType | None) -> None:
    server.should_exit = True


def _say(host: str, bound: socket.socket) -> None:
    sys.stderr.write(f"serving http://{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}\n")


def _listening(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise UsageError(f"nothing can listen at {host}:{port}: {error.strerror}") from error


def worker() -> Door:
    """Return the app of one of several workers."""
    said = json.loads(os.environ[_WORKER])
    sys.path.insert(0, os.getcwd())
    _import(said["modules"])
    return app(**said["opens"])


def check_host(host: str) -> None:
    """Refuse an address that other machines reach: every program there could call everything.

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


@contextmanager
def _in_environment(said: dict[str, Any]) -> Generator[None]:
    os.environ[_WORKER] = json.dumps(said)
    try:
        yield
    finally:
        del os.environ[_WORKER]
