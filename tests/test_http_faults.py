"""HTTP where something is wrong: no store, no host, an app that is mounted elsewhere, a server that ends."""

import asyncio
import signal
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from servers import Server, valkey_binary
from starlette.applications import Starlette
from starlette.routing import Mount
from web import Web

import actors
from actors import Context, Service, VirtualObject, handler, shared, state
from actors.http import app
from actors.http.door import Door


class FaultyCounter(VirtualObject):
    n: int = state(0)

    @handler
    async def add(self, ctx: Context) -> int:
        self.n += 1
        return self.n

    @shared(http_get=True)
    async def key(self, ctx: Context) -> str:
        assert ctx.key is not None
        return ctx.key


class FaultyWait(Service):
    @handler
    async def wait(self, ctx: Context, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "rested"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Server]:
    server = Server(valkey_binary(), tmp_path)
    yield server
    server.kill()


def test_a_store_that_is_away_is_503_and_the_id_tells_later(store: Server) -> None:
    """No outcome is unresolvable: the answer has the id of what may have been accepted."""
    with actors.init(store.url, namespace="faults", hosts="local"):
        web = Web(app(patience=0.4))
        web.post("/FaultyCounter/a/add")
        store.kill()

        called = web.post("/FaultyCounter/a/add")
        sent = web.post("/FaultyCounter/a/add/send")
        keyed = web.post("/FaultyCounter/a/add", idempotency_key="k")
        batched = web.post("/batch", b'{"target": "FaultyCounter/a/add"}\n' * 20, content_type="application/x-ndjson")
        asked = [web.get(f"/invocations/{called.id}{verb}") for verb in ("", "/output")]
        ready, alive = web.get("/ready"), web.get("/health")

        assert [one.status for one in (called, sent, keyed, *asked, ready)] == [503] * 6
        assert called.headers["retry-after"] == "1"
        assert (called.json["source"], called.json["id"]) == ("store", called.id)
        assert "unknown" in called.json["message"]
        assert len({b'"code":503' in line for line in batched.body.splitlines()}) == 1
        assert alive.status == 200

        store.start()
        ids = [called.id, sent.id, keyed.id]
        found = [web.get(f"/invocations/{id_}/attach") for id_ in ids]
        assert [one.json for one in found] == [2, 3, 4]  # each happened once, in the order of the requests
        web.stop()


def test_a_namespace_without_hosts_is_not_ready_and_accepts(valkey_url: str) -> None:
    with actors.init(valkey_url, namespace="hostless", hosts=0):
        web = Web()
        got = web.get("/ready")
        sent = web.post("/FaultyCounter/a/add/send")
        shown = web.get(f"/invocations/{sent.id}")
        waited = web.post("/FaultyCounter/a/add", prefer="wait=0.1")
        web.stop()

    assert (got.status, got.json["source"]) == (503, "store")
    assert (sent.status, waited.status) == (202, 202)
    assert (shown.json["target"], shown.json["handler"], shown.json["status"]) == ("FaultyCounter/a", "add", "open")


async def test_an_app_that_cannot_connect_says_so(tmp_path: Path) -> None:
    transport = httpx.ASGITransport(app(redis="redis://127.0.0.1:1/0", hosts=0), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://x", timeout=30) as web:
        got = await web.post("/FaultyCounter/a/add")
        assert (await web.get("/health")).status_code == 200

    assert (got.status_code, got.json()["source"]) == (503, "store")


# ------------------------------------------------------------------------------------------------------------ mounted


@asynccontextmanager
async def living(it: Any) -> AsyncGenerator[None]:
    """Run the lifespan of an app around the block."""
    heard, said = asyncio.Queue[dict[str, Any]](), asyncio.Queue[dict[str, Any]]()
    task = asyncio.ensure_future(it({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, heard.get, said.put))
    await heard.put({"type": "lifespan.startup"})
    assert (await said.get())["type"] == "lifespan.startup.complete"
    yield
    await heard.put({"type": "lifespan.shutdown"})
    assert (await said.get())["type"] == "lifespan.shutdown.complete"
    await task


async def ask(it: Any, path: str, method: str = "POST") -> httpx.Response:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(it), base_url="http://x", timeout=30) as web:
        return await web.request(method, path)


async def test_its_lifespan_opens_and_closes_the_connection(valkey_url: str) -> None:
    door = app(redis=valkey_url, namespace="living", hosts="local")
    signals = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    async with living(door):
        assert actors.status().namespace == "living"
        assert (await ask(door, "/FaultyCounter/l/add")).json() == 1
    with pytest.raises(actors.UsageError):
        actors.status()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == signals


@pytest.mark.parametrize("prefix", ["", "/api", "/a%20b/c"])
async def test_it_is_mounted_under_a_prefix_without_its_lifespan(valkey_url: str, prefix: str) -> None:
    """It opens at the first request, and paths are read from behind the prefix."""
    door = app(redis=valkey_url, namespace="mounted", hosts="local")
    outer = Starlette(routes=[Mount(prefix.replace("%20", " "), app=door)])
    try:
        async with living(outer):
            key = (await ask(outer, f"{prefix}/FaultyCounter/x%2Fy/key", "GET")).json()
            again = (await ask(outer, f"{prefix}/FaultyCounter/x%2Fy/key")).json()
            api = (await ask(outer, f"{prefix}/openapi.json", "GET")).json()
            ready = await ask(outer, f"{prefix}/ready", "GET")
            missing = await ask(outer, f"{prefix}/Nothing/a/b")
    finally:
        await door.close()

    assert (key, again) == ("x/y", "x/y")
    assert api["servers"][0]["url"] in (prefix or "/", prefix.replace("%20", " "))
    assert (ready.status_code, missing.status_code) == (200, 404)


async def test_two_requests_at_once_open_one_connection(valkey_url: str) -> None:
    door = app(redis=valkey_url, namespace="twice", hosts="local")
    try:
        found = await asyncio.gather(*(ask(door, "/FaultyCounter/t/add") for _ in range(5)))
    finally:
        await door.close()

    assert sorted(one.json() for one in found) == [1, 2, 3, 4, 5]


async def test_a_web_socket_is_refused() -> None:
    said: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        said.append(message)

    await app()({"type": "websocket", "path": "/x", "headers": []}, receive, send)

    assert said == [{"type": "websocket.close", "code": 1000}]


# --------------------------------------------------------------------------------------------- clients, and the end


@pytest.fixture(scope="module")
def served(valkey_url: str) -> Iterator[Web]:
    with actors.init(valkey_url, namespace="ending", hosts="local"):
        web = Web()
        yield web
        web.stop()


def test_a_server_that_ends_closes_streams_at_once_and_waits_for_calls(served: Web) -> None:
    answers: list[Any] = []

    def ask_for(path: str, body: Any) -> threading.Thread:
        thread = threading.Thread(target=lambda: answers.append((path, served.ask("POST", path, body))))
        thread.start()
        return thread

    stream = threading.Thread(target=lambda: answers.append(("events", served.get("/FaultyCounter/s/events"))))
    stream.start()
    call = ask_for("/FaultyWait/wait", 0.6)
    threading.Event().wait(0.3)

    calls = served.door._calls
    assert calls is not None
    calls.waits.loop.call_soon_threadsafe(calls.waits.end_soon)
    stream.join(5)
    assert [path for path, _ in answers] == ["events"]
    call.join(5)

    assert answers[1][1].json == "rested"


async def left(door: Door, path: str, until: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Ask, and leave when `until` says so; return what was sent."""
    said: list[Any] = []
    first = True

    async def receive() -> dict[str, Any]:
        nonlocal first
        if first:
            first = False
            return {"type": "http.request", "body": b"30", "more_body": False}
        await until()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        said.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    await door({**scope, "headers": [], "root_path": ""}, receive, send)
    return said


async def test_a_client_that_has_left_is_not_waited_for(valkey_url: str) -> None:
    """Else each would keep its place until its handler ends, which may sleep for weeks."""
    door = app(redis=valkey_url, namespace="leaving", hosts="local")
    try:
        async with asyncio.timeout(20):
            said = await left(door, "/FaultyWait/wait", lambda: asyncio.sleep(0))
        calls = await door.calls()

        assert said == []
        assert not calls.waits._open
        assert calls.client._slots == {}  # nor is it pending, of which there are but so many
    finally:
        await door.close()
