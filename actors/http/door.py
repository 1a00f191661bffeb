"""Door: the ASGI app. HttpCalls of handlers take the short way through one function, Starlette routes everything else.

The app is a driver. It opens the connection of its process when its lifespan begins, or at the first request where it
is mounted in an app that runs no lifespan, and closes what it has opened. Where the process is connected already, it
uses that connection and leaves it open.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, cast
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route

from actors import session
from actors.errors import DurableError
from actors.policy import Duration, seconds
from actors.startup import handlers_put_back
from journal.ids import address_of

from .answers import HttpError, Receive, Scope, Send, answer, answer_error, json_of, refused
from .batch import serve_batch
from .calls import RESTATE_ID, Called, HttpCalls
from .events import Watching, serve_events
from .invocations import Lookup, bring, complete, id_lookup, look, run_lookup, show
from .openapi import PAGE, POLICY, described
from .restate import serve_restate
from .targets import Targets, text_of
from .waits import PATIENCE, ClientLeft, Waits, when_ending, within

WORDS: Final = frozenset(
    {
        *(b"", b"awakeables", b"batch", b"console", b"docs", b"health", b"invocations", b"metrics", b"openapi.json"),
        b"ready",
    }
)
"""First segments of paths that name no type."""


class Door:
    """The ASGI app; `app()` makes it."""

    def __init__(self, patience_s: float, opens: dict[str, Any]) -> None:
        self.patience_s, self._opens = patience_s, opens
        self.targets = Targets()
        self._calls: HttpCalls | None = None
        self._watched: Watching | None = None
        self._described: tuple[str, bytes] | None = None
        self._opening = asyncio.Lock()
        self._give_back: Callable[[], object] = lambda: None
        self._is_ours = False
        self._rest = Starlette(
            routes=routes(self), exception_handlers=dict.fromkeys((HTTPException, HttpError, Exception), _refused)
        )
        self._rest.router.redirect_slashes = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "http":
            parts = path_of(scope)
            called = self._known(parts) if scope["method"] == "POST" else None
            if called is not None:
                await (self._calls_here() or await self.calls()).handle(called, scope, receive, send)
            elif parts[0] == b"restate":
                await self._restate(parts, scope, receive, send)
            elif parts[0] in WORDS:
                await self._rest(scope, receive, send)
            else:
                await self._address(parts, scope, receive, send)
        elif kind == "lifespan":
            await self._live(receive, send)
        else:  # a web socket: it is refused
            await receive()
            await send({"type": "websocket.close", "code": 1000})

    def _known(self, parts: list[bytes]) -> Called | None:
        """Return the handler of a path, if it was called before and the key stands in the path as it is."""
        targets = self.targets
        if not targets.is_current():
            return None
        if len(parts) == 3:
            target, key = targets.objects.get((parts[0], parts[2])), parts[1]
            is_plain = key.isascii() and key != b"" and b"%" not in key
            return Called(target, key.decode()) if target is not None and is_plain else None
        target = targets.services.get((parts[0], parts[1])) if len(parts) == 2 else None
        return None if target is None else Called(target, None)

    async def _address(self, parts: list[bytes], scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for `/Type/key/handler`, `/Service/handler` and what may follow."""
        try:
            calls = self._calls_here() or await self.calls()
            found = called_by(self.targets, parts, scope, calls.client.limits.shards)
            if isinstance(found, str):
                await serve_events(calls, self._watching(calls), found, scope, receive, send)
            elif isinstance(found, Called):
                await calls.handle(found, scope, receive, send)
            else:
                await look(calls, found, receive, send)
        except HttpError as error:
            await answer_error(send, error)
        except ClientLeft:
            pass

    def description(self, prefix: str) -> bytes:
        """Return the description of all handlers, made once for the classes that there are."""
        if not self.targets.is_current() or self._described is None or self._described[0] != prefix:
            self._described = prefix, json_of(described(self.targets, prefix))
        return self._described[1]

    def _watching(self, calls: HttpCalls) -> Watching:
        if self._watched is None or self._watched.waits is not calls.waits:
            self._watched = Watching(calls.waits)
        return self._watched

    async def _restate(self, parts: list[bytes], scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a client of Restate's."""
        try:
            await serve_restate(await self.calls(), self.targets, parts, scope, receive, send)
        except HttpError as error:
            await answer_error(send, error, RESTATE_ID)
        except ClientLeft:
            pass

    # The connection

    def _calls_here(self) -> HttpCalls | None:
        calls = self._calls
        if calls is not None and session.connected() is calls.client and calls.waits.loop is asyncio.get_running_loop():
            return calls
        return None

    async def calls(self) -> HttpCalls:
        """Return the calls of this process's client, which is opened unless it is.

        Raises:
            HttpError: it cannot be opened.
        """
        if session.connected() is None:
            async with self._opening:
                if session.connected() is None:
                    await self._open()
        client = session.connected()
        if client is None:
            raise HttpError(503, "this server is not connected", "store")
        if self._calls is None or self._calls_here() is None:
            waits = Waits(client, asyncio.get_running_loop(), self.patience_s)
            self._calls = HttpCalls(waits, self.patience_s)
            self._give_back()
            self._give_back = when_ending(waits.loop, waits.end_soon)
        return self._calls

    async def _open(self) -> None:
        try:
            with handlers_put_back():  # Ray replaces them
                await asyncio.to_thread(session.init, **self._opens)
        except DurableError as error:
            raise refused(error) from error
        self._is_ours = True

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self.calls()
        except Exception as error:
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            raise
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.close()
        await send({"type": "lifespan.shutdown.complete"})

    async def close(self) -> None:
        """Close the connection, if this app has opened it."""
        self._give_back()
        if self._is_ours:
            self._is_ours = False
            await asyncio.to_thread(session.shutdown)


def app(*, patience: Duration = PATIENCE, **opens: Any) -> Door:
    """Return an ASGI app that serves the handlers of all classes that are defined in this process.

    It may be served by itself, or mounted in another app, under a prefix too.

    Args:
        patience: a request that the store has not taken after this time is answered with 503.
        opens: arguments of `actors.init`, for a process that is not connected yet; the app undoes it at its end.
    """
    return Door(seconds(patience), opens)


def path_of(scope: Scope) -> list[bytes]:
    """Return the segments of a path as they came, without those of the prefix that the app is mounted under."""
    raw: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    prefix: str = scope.get("root_path") or ""
    parts = raw.split(b"/")
    return parts[1 + prefix.count("/") :] if prefix and scope["path"].startswith(prefix) else parts[1:]


def called_by(targets: Targets, parts: list[bytes], scope: Scope, shards: int) -> Called | Lookup | str:
    """Return what a path and a method ask for: a call, an outcome, or the events of the object of an address.

    Raises:
        HttpError: there is no such thing, or not by this method.
    """
    words = [text_of(part) for part in parts]
    method: str = scope["method"]
    about = targets.type(words[0])
    is_send = words[-1] == "send" and len(words) == (3 if about.is_service else 4)
    if is_send:
        words.pop()
    if len(words) != (2 if about.is_service else 3):
        form = f"/{about.name}/{{handler}}" if about.is_service else f"/{about.name}/{{key}}/{{handler}}"
        raise HttpError(404, f"there is no such path: {about.name} is called by POST {form}, or {form}/send")
    key = None if about.is_service else words[1]
    if key == "":
        raise HttpError(400, f"the key of a {about.name} is not empty")
    is_get = method in ("GET", "HEAD")
    if is_get and about.is_workflow and key is not None and words[-1] in ("attach", "output") and not is_send:
        return run_lookup(about, key, cast("Any", words[-1]), shards)
    if is_get and key is not None and words[-1] == "events" and not is_send:
        return address_of(about.name, key)
    target = targets.find(about.name, words[-1], has_key=key is not None)
    if method == "POST" or (is_get and target.http_get and not is_send):
        return Called(target, key, is_send)
    allowed = b"GET, POST" if target.http_get and not is_send else b"POST"
    raise HttpError(405, f"{target.name} is called by {allowed.decode()}", headers=((b"allow", allowed),))


async def _refused(request: Any, error: Exception) -> Any:
    """Return the answer of an error, as an app for Starlette."""
    if isinstance(error, HTTPException):
        code, path = error.status_code, request.scope["path"]
        why = f"{request.method} is no method of {path}" if code == 405 else f"there is no such path: {path}"
        found = [(name.lower().encode(), value.encode()) for name, value in (error.headers or {}).items()]
        return partial(_error_app, HttpError(code, why, headers=found))
    return partial(_error_app, refused(error))


async def _error_app(error: HttpError, scope: Scope, receive: Receive, send: Send) -> None:
    await answer_error(send, error)


Serve = Callable[..., Awaitable[None]]


class Endpoint:
    """An ASGI endpoint of a route; with a door, `serve` gets the calls of this process first."""

    def __init__(self, serve: Serve, door: Door | None = None) -> None:
        self._serve, self._door = serve, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        calls = () if self._door is None else (await self._door.calls(),)
        try:
            await self._serve(*calls, scope=scope, receive=receive, send=send, **scope["path_params"])
        except ClientLeft:
            pass


def routes(door: Door) -> list[Route]:
    """Return what is served beside the handlers."""

    async def docs(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, 200, PAGE, ((b"content-security-policy", POLICY),), b"text/html; charset=utf-8")

    async def openapi(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, 200, door.description(scope.get("root_path", "")))

    async def health(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, 200, b'{"status":"ok"}')

    gets: dict[str, Any] = {
        "/health": Endpoint(health),
        "/openapi.json": Endpoint(openapi),
        "/docs": Endpoint(docs),
        "/ready": Endpoint(_ready, door),
        "/invocations/{id_}": Endpoint(show, door),
        "/invocations/{id_}/attach": Endpoint(partial(_look, verb="attach"), door),
        "/invocations/{id_}/output": Endpoint(partial(_look, verb="output"), door),
    }
    posts: dict[str, Any] = {
        f"/invocations/{{id_}}/{verb}": Endpoint(partial(bring, what=verb), door)
        for verb in ("cancel", "kill", "resume", "restart")
    }
    posts["/batch"] = Endpoint(partial(_batch, door.targets), door)
    posts["/invocations/{id_}/signals/{name}"] = Endpoint(_signal, door)
    posts |= {
        f"/awakeables/{{id_}}/{verb}": Endpoint(partial(complete, verb=verb), door) for verb in ("resolve", "reject")
    }
    return [
        *(Route(path, endpoint, methods=["GET"]) for path, endpoint in gets.items()),
        *(Route(path, endpoint, methods=["POST"]) for path, endpoint in posts.items()),
    ]


async def _batch(targets: Targets, calls: HttpCalls, scope: Scope, receive: Receive, send: Send) -> None:
    await serve_batch(calls, targets, scope, receive, send)


async def _look(calls: HttpCalls, scope: Scope, receive: Receive, send: Send, id_: str, verb: Any) -> None:
    await look(calls, id_lookup(id_, verb), receive, send)


async def _signal(calls: HttpCalls, scope: Scope, receive: Receive, send: Send, id_: str, name: str) -> None:
    await bring(calls, scope, receive, send, id_, f"signals/{name}")


async def _ready(calls: HttpCalls, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer whether the store is reached and each shard has an owner."""
    shards = calls.client.limits.shards
    look = await within(calls.client.ask(lambda store: store.membership(shards)), calls.patience_s)
    unowned = [shard for shard, lease in enumerate(look.leases) if not lease]
    if unowned:
        listed = ", ".join(map(str, unowned))
        raise HttpError(503, f"not all of the {shards} shards have a host; without one: {listed}", "store")
    await answer(send, 200, json_of({"status": "ready", "hosts": len(look.hosts), "shards": shards}))
