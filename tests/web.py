"""Web: a real server of HTTP in this process, on a free port of the loopback, and requests as a client sends them."""

import asyncio
import http.client
import json
import threading
from dataclasses import dataclass
from typing import Any

import uvicorn

from actors.http.door import Door, app


@dataclass(frozen=True, slots=True)
class Got:
    """An answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def id(self) -> str:
        return self.headers["perdure-invocation"]


class Web:
    """A server of HTTP for the classes of this process."""

    def __init__(self, door: Door | None = None, **opens: Any) -> None:
        self.door = door or app(**opens)
        config = uvicorn.Config(self.door, port=0, http="httptools", loop="uvloop", log_level="error", lifespan="on")
        self.server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self.server.serve()), daemon=True)
        self._thread.start()
        while not self.server.started:
            assert self._thread.is_alive(), "the server has ended"
            threading.Event().wait(0.01)
        self.port: int = self.server.servers[0].sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> None:
        self.server.should_exit = True
        self._thread.join(20)
        assert not self._thread.is_alive()

    def ask(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None, timeout: float = 20
    ) -> Got:
        """Send a request and return its answer; a body that is no bytes is sent as JSON."""
        sent = dict(headers or {})
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent.setdefault("content-type", "application/json")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.putrequest(method, path)
            if body is not None or method == "POST":
                connection.putheader("content-length", str(len(body or b"")))
            for name, value in sent.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            return Got(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def post(self, path: str, body: Any = None, **headers: str) -> Got:
        return self.ask("POST", path, body, {name.replace("_", "-"): value for name, value in headers.items()})

    def get(self, path: str, **headers: str) -> Got:
        return self.ask("GET", path, None, {name.replace("_", "-"): value for name, value in headers.items()})
