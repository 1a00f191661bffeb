"""Batch: many sends in one request, a line each, and a line of answer for each, in order, as they are accepted.

A line is an object: `target`, the path of a handler as it stands in a URL (`Cart/alice/add`), and what a send may have
besides: `body`, `delay`, `idempotency_key`, `headers`. A line that is refused has an error for an answer, and the next
ones go on. A client that does not read its answers is not read from either.

A death of the worker in the middle: the lines that were answered are accepted; for others the client repeats the batch,
with idempotency keys if a repetition would do harm.
"""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final, cast

from pydantic_core import from_json, to_json

from actors.requests.invocation import Invocation

from .answers import HttpError, Receive, Scope, Send, answer_error, json_of
from .calls import Called, HttpCalls, check_taken, sent_answer
from .preferences import Preferences, duration, preferences_of
from .targets import Targets, text_of
from .waits import ClientLeft

OPEN_MAX: Final = 10_000
"""Most lines of one batch that are not answered; the client waits with further ones."""
_KINDS: Final = ("application/x-ndjson", "application/ndjson", "application/jsonl", "application/json", "")
_FIELDS: Final = frozenset({"target", "body", "delay", "idempotency_key", "headers"})


@dataclass(slots=True)
class Line:
    """One request of a batch, on its way."""

    called: Called
    invocation: Invocation[Any]
    wishes: Preferences
    due_ms: int
    is_known: bool


@dataclass(slots=True)
class Batch:
    """One batch."""

    calls: HttpCalls
    targets: Targets
    most: int
    lines: deque[Line | HttpError] = field(default_factory=deque[Line | HttpError])
    is_read: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    has_room: asyncio.Event = field(default_factory=asyncio.Event)
    keyed: set[str] = field(default_factory=set[str])
    """Ids of its lines with an idempotency key."""
    silence: HttpError | None = None
    """The store has not taken a line: the rest does not wait for as long again."""

    async def read(self, receive: Receive) -> None:
        """Start what the lines ask for, as they come."""
        rest, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            more = message.get("more_body", False)
            *lines, rest = (rest + message.get("body", b"")).split(b"\n")
            if len(rest) > self.most:
                self.lines.append(HttpError(413, f"a line is larger than {self.most:,} bytes, the limit payload_max"))
                break
            for line in lines if more else [*lines, rest]:
                if line and not line.isspace():
                    self.lines.append(await self._started(line))
            self.changed.set()
            while len(self.lines) > OPEN_MAX:
                self.has_room.clear()
                await self.has_room.wait()
        self.is_read = True
        self.changed.set()

    async def _started(self, line: bytes) -> Line | HttpError:
        try:
            said = _parsed(line)
            called = _called(self.targets, said.get("target"))
            wishes = _wishes(said)
            args = called.target.parameters.read(to_json(said["body"]) if "body" in said else b"")
            is_known = wishes.idempotency_key is not None and await self.calls.is_known(
                called, args, wishes, self.keyed
            )
            due_ms = self.calls.due_ms(wishes)
            return Line(called, self.calls.start(called, args, wishes, due_ms), wishes, due_ms, is_known)
        except HttpError as error:
            return error

    async def write(self, send: Send) -> None:
        """Answer the lines, as they are accepted."""
        headers = [(b"content-type", b"application/x-ndjson")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        while self.lines or not self.is_read:
            await self.changed.wait()
            self.changed.clear()
            while self.lines:
                some = [self.lines.popleft() for _ in range(min(len(self.lines), 500))]
                self.has_room.set()
                said = [json_of(await self._answer(one)) for one in some]
                await send({"type": "http.response.body", "body": b"\n".join(said) + b"\n", "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _answer(self, line: Line | HttpError) -> dict[str, Any]:
        if isinstance(line, HttpError):
            return line.body()
        slot = line.invocation.kept
        try:
            if not (slot.is_accepted or slot.has_ended):
                if self.silence is not None:
                    raise HttpError(503, self.silence.message, "store", id_=line.invocation.id)
                slot = await self.calls.waits.until_taken(line.invocation)
            check_taken(line.called, slot, line.invocation.id, line.wishes)
        except HttpError as error:
            if error.code == 503:
                self.silence = self.silence or error
            return error.body()
        return sent_answer(line.called, line.invocation.id, line.due_ms, is_known=line.is_known)


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        said = from_json(line, allow_inf_nan=False)
    except ValueError as error:
        raise HttpError(400, f"the line is no JSON: {error}") from None
    if not isinstance(said, dict):
        raise HttpError(400, 'a line is an object: {"target": "Cart/alice/add", "body": ...}')
    found = cast("dict[str, Any]", said)
    if unknown := found.keys() - _FIELDS:
        raise HttpError(400, f"a line has no `{min(unknown)}`: it has {', '.join(sorted(_FIELDS))}")
    return found


def _called(targets: Targets, target: Any) -> Called:
    if not isinstance(target, str) or not target:
        raise HttpError(400, '`target` is the path of a handler, as in "Cart/alice/add"')
    parts = [text_of(part) for part in target.strip("/").encode("utf-8", "surrogatepass").split(b"/")]
    if len(parts) not in (2, 3) or not parts[1]:
        raise HttpError(400, f'`target` is the path of a handler, as in "Cart/alice/add", not {target[:200]!r}')
    found = targets.find(parts[0], parts[-1], has_key=len(parts) == 3)
    if found.parameters.is_bytes:
        raise HttpError(415, f"{found.name} takes bytes, which a line cannot hold")
    return Called(found, parts[1] if len(parts) == 3 else None, is_send=True)


def _wishes(said: dict[str, Any]) -> Preferences:
    key, delay = said.get("idempotency_key"), said.get("delay")
    if key is not None and (not isinstance(key, str) or not key):
        raise HttpError(400, "`idempotency_key` is a text that is not empty")
    headers: Any = said.get("headers") or {}
    if not isinstance(headers, dict):
        raise HttpError(400, "`headers` is an object of texts")
    raw = [_header(name, value) for name, value in cast("dict[str, Any]", headers).items()]
    found = preferences_of({"headers": raw, "query_string": b""}) if raw else Preferences()
    found.idempotency_key = key or found.idempotency_key
    found.timeout_s = None
    found.delay_s = 0.0 if delay is None else duration(str(delay), "`delay`")
    return found


def _header(name: str, value: Any) -> tuple[bytes, bytes]:
    if not isinstance(value, str) or not name:
        raise HttpError(400, "`headers` is an object of texts")
    return name.lower().encode("latin-1", "replace"), value.encode("latin-1", "replace")


async def serve_batch(calls: HttpCalls, targets: Targets, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer a batch.

    Raises:
        ClientLeft: the client has left; its sends go on.
    """
    kind = preferences_of(scope).content_type
    if kind not in _KINDS:
        await answer_error(send, HttpError(415, f"a batch is application/x-ndjson, not {kind[:100]!r}"))
        return
    batch = Batch(calls, targets, calls.client.limits.payload_max)
    reading = asyncio.ensure_future(batch.read(receive))
    writing = asyncio.ensure_future(batch.write(send))
    try:
        await asyncio.wait((reading, writing), return_when=asyncio.FIRST_EXCEPTION)
    finally:
        for task in (reading, writing):
            task.cancel()
        await asyncio.gather(reading, writing, return_exceptions=True)
        calls.on_their_way -= batch.keyed
    for task in (reading, writing):
        if not task.cancelled():
            task.result()
