"""Events: the changes of an object's state, as server-sent events.

One reader of the store looks at all objects that somebody watches, 33 times a second; changes between two looks are
one event. The first event is the state as it is. Each has an id, by which a client that comes back goes on where it
was: it gets the missing changes, once, as long as this worker remembers them. Otherwise an event `reset` says so,
with the state as it is.

A death of the worker ends its streams. A client that comes back to another worker, or after `REMEMBERED_S`, is reset.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field
from typing import Final

from pydantic_core import to_json

from actors.client.client import Client
from actors.errors import DamagedError, UnavailableError
from actors.values.values import decode
from journal.ids import Shard, new_id, shard_of
from journal.keys import OWN
from journal.store import Loaded, Store

from .answers import Receive, Scope, Send, json_of
from .calls import HttpCalls
from .waits import Waits, until_left

LOOK_EVERY: Final = 0.03
COMMENT_EVERY: Final = 15.0
STUCK_S: Final = 30.0
"""Seconds after which a reader that takes nothing is cut off without a word, for it would not read it."""
KEPT: Final = 1_000
"""Changes of one object that are kept for clients that come back, or read slowly."""
REMEMBERED_S: Final = 60.0
"""How long an object that nobody watches is remembered."""


@dataclass(eq=False)
class Watched:
    """An object that clients watch."""

    shard: Shard
    address: str
    name: str = field(default_factory=new_id)
    fields: dict[str, bytes] | None = None
    """Its state as it was seen last; None before."""
    count: int = 0
    changes: deque[bytes] = field(default_factory=lambda: deque[bytes](maxlen=KEPT))
    readers: dict[asyncio.Event, None] = field(default_factory=dict[asyncio.Event, None])
    newcomers: list[asyncio.Event] = field(default_factory=list[asyncio.Event])
    """Readers that wait for a look that begins after they came: a client sees what it has written before."""
    seen: int = 0
    """The number of the last look."""
    unwatched_since: float = 0.0

    def see(self, fields: dict[str, bytes], look: int) -> None:
        """Note the state at a look, and tell the readers if it has changed."""
        self.seen = look
        while self.newcomers:
            self.newcomers.pop().set()
        fields = {name: data for name, data in fields.items() if not name.startswith(OWN)}
        before, self.fields = self.fields, fields
        if before is not None:
            changed: dict[str, bytes | None] = {n: data for n, data in fields.items() if before.get(n) != data}
            changed |= dict.fromkeys(before.keys() - fields.keys())
            if not changed:
                return
            self.count += 1
            self.changes.append(self.event(self.count, shown(changed)))
        for reader in self.readers:
            reader.set()

    def event(self, number: int, data: bytes, kind: bytes = b"") -> bytes:
        """Return the text of an event."""
        return b"%sid: %s-%d\ndata: %s\n\n" % (kind, self.name.encode(), number, data)

    def since(self, number: int) -> list[bytes] | None:
        """Return the changes after one; None if they are not all known."""
        missing = self.count - number
        return None if not 0 <= missing <= len(self.changes) else [*self.changes][len(self.changes) - missing :]

    def number_of(self, event_id: str) -> int | None:
        """Return the number in an event's id; None if it is none of this object here."""
        name, _, number = event_id.rpartition("-")
        return int(number) if name == self.name and number.isascii() and number.isdecimal() else None


def shown(fields: dict[str, bytes | None]) -> bytes:
    """Return fields as JSON; a cleared one is null."""
    return b"{%s}" % b",".join(b"%s:%s" % (json_of(name), _value(data)) for name, data in fields.items())


def _value(data: bytes | None) -> bytes:
    if data is None:
        return b"null"
    if data[:1] == b"J":
        return data[1:]
    try:
        return to_json(decode(data), bytes_mode="base64", by_alias=True)
    except Exception as error:  # noqa: BLE001  # it may run code of a user's class, and the other fields are wanted
        return json_of({"unreadable": type(error).__name__})


class Watching:
    """All objects that clients of this worker watch."""

    def __init__(self, waits: Waits) -> None:
        self.waits, self._client = waits, waits.client
        self._objects: dict[str, Watched] = {}
        self._comments_at = waits.loop.time() + COMMENT_EVERY
        self.looks = 0
        """How many looks have begun."""
        self._task: asyncio.Task[None] | None = None

    def enter(self, address: str, reader: asyncio.Event) -> Watched:
        """Watch an object."""
        found = self._objects.get(address)
        if found is None:
            shard = shard_of(address, self._client.limits.shards)
            found = self._objects[address] = Watched(shard, address)
        found.readers[reader] = None
        if self._task is None or self._task.done():
            self._task = self.waits.loop.create_task(self._look())
        return found

    def leave(self, watched: Watched, reader: asyncio.Event) -> None:
        """Watch it no more."""
        watched.readers.pop(reader, None)
        watched.unwatched_since = self.waits.loop.time()

    async def _look(self) -> None:
        while self._objects and not self.waits.is_ending:
            objects = [*self._objects.values()]
            self.looks += 1
            try:
                while objects:
                    asked = [(one.shard, one.address) for one in objects]
                    loaded = await asked_of(self._client, asked)
                    for one, state in zip(objects, loaded, strict=False):
                        one.see(state.fields, self.looks)
                    objects = objects[len(loaded) :]
            except (UnavailableError, DamagedError):
                pass  # the streams go on when the store does
            await asyncio.sleep(LOOK_EVERY)
            now = self.waits.loop.time()
            if now > self._comments_at:
                self._comments_at = now + COMMENT_EVERY
                for reader in [reader for one in self._objects.values() for reader in one.readers]:
                    reader.set()  # one timer for all of them: each wakes, and finds no change
            for one in [*self._objects.values()]:
                if not one.readers and now - one.unwatched_since > REMEMBERED_S:
                    del self._objects[one.address]


async def asked_of(client: Client, objects: list[tuple[Shard, str]]) -> list[Loaded]:
    """Return the state of objects, of at least one of them."""

    async def load(store: Store) -> list[Loaded]:
        return await store.load(objects)

    return await client.ask(load)


async def serve_events(
    calls: HttpCalls, watching: Watching, address: str, scope: Scope, receive: Receive, send: Send
) -> None:
    """Send the changes of an object's state until the client leaves, or this server ends."""
    last = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"last-event-id"), "")
    headers = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-store"), (b"x-accel-buffering", b"no")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    reader = asyncio.Event()
    has_left: list[bool] = []

    def end() -> None:
        has_left.append(True)
        reader.set()

    watched = watching.enter(address, reader)
    watcher = asyncio.ensure_future(until_left(receive, end))
    calls.waits.streams[end] = None
    try:
        async for said in _stream(watched, watching.looks, reader, has_left, last):
            async with asyncio.timeout(STUCK_S):
                await send({"type": "http.response.body", "body": said, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    except TimeoutError:
        pass  # the server closes the connection of an answer that is not whole
    finally:
        del calls.waits.streams[end]
        watching.leave(watched, reader)
        watcher.cancel()


async def _stream(
    watched: Watched, looks: int, reader: asyncio.Event, has_left: list[bool], last: str
) -> AsyncGenerator[bytes]:
    """Yield what one reader gets."""
    while watched.seen <= looks and not has_left:
        reader.clear()
        watched.newcomers.append(reader)
        await reader.wait()
        if watched.seen <= looks:
            yield b": waiting for the store\n\n"
    if has_left or watched.fields is None:
        return
    number = watched.number_of(last) if last else None
    missed = None if number is None else watched.since(number)
    if number is None or missed is None:
        number = watched.count
        yield watched.event(number, shown({**watched.fields}), b"event: reset\n" if last else b"")
    while not has_left:
        missed = watched.since(number)
        if missed is None:
            said = json_of({"message": f"this reader is more than {KEPT} changes behind, and is cut off", "code": 503})
            yield b"event: error\ndata: %s\n\n" % said
            return
        if missed:
            number += len(missed)
            yield b"".join(missed)
            continue
        reader.clear()
        await reader.wait()
        if number == watched.count and not has_left:
            yield b": alive\n\n"
