"""RedisStore: the store on one Redis or Valkey primary.

Owns the connections and the translation of transitions into script calls; the scripts own the transitions. The only
importer of `redis`.

Invariants:
    1. The client library never repeats a write by itself: only who numbers a write may send it again.
    2. Blocking reads have a connection of their own, so nothing waits behind them.
    3. `open_namespace` refuses a store whose settings could lose what it has acknowledged (promise 10).
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.resources import files
from typing import Any, Literal, Never, TypeVar

import orjson
from redis import asyncio as redis
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from .entries import Event, EventKind, Failure, failure
from .errors import DamagedError, SettingsError, UnavailableError
from .keys import Keys
from .names import Epoch, Shard, new_id, shard_in
from .store import (
    Answer,
    Arrivals,
    Attach,
    Committed,
    Cursor,
    Damaged,
    Dormant,
    Fenced,
    Finish,
    Granted,
    Held,
    Limits,
    Loaded,
    Look,
    Outgoing,
    Part,
    Progress,
    Reply,
    Settled,
)

Durability = Literal["disk", "relaxed"]
"""`disk`: every acknowledged write is synced; `relaxed`: whatever the server is set to, said aloud."""

FORMAT = 1
ANSWER_MAX = 10.0
"""Seconds after which a command that is not answered counts as lost."""

_PRELUDED = ("submit", "commit")
_FULL = failure(
    Failure(503, "the inbox of the called object's shard is full: its hosts do not keep up", {}, "OverloadedError")
)
T = TypeVar("T")


def _script(name: str) -> str:
    folder = files(__package__) / "scripts"
    text = (folder / f"{name}.lua").read_text()
    return (folder / "tell.lua").read_text() + text if name in _PRELUDED else text


class RedisStore:
    """One namespace on one primary; see `Store` for what each method promises."""

    def __init__(
        self, url: str, namespace: str = "default", *, limits: Limits | None = None, durability: Durability = "disk"
    ) -> None:
        self._url, self._keys, self._durability = url, Keys(namespace), durability
        self._limits = limits or Limits()
        self._session_ms = int(self._limits.session.total_seconds() * 1000)
        self._redis = self._client(single=False)
        self._reader = self._client(single=True)
        self._reader_id: int | None = None
        self._shas: dict[str, str] = {}
        self._beats = 0

    def _client(self, *, single: bool) -> redis.Redis:
        return redis.Redis.from_url(  # pyright: ignore[reportUnknownMemberType]  # **kwargs are untyped
            self._url,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            retry_on_error=[],
            socket_timeout=ANSWER_MAX,
            socket_connect_timeout=ANSWER_MAX,
            single_connection_client=single,
        )

    async def aclose(self) -> None:
        await self._reader.aclose()
        await self._redis.aclose()

    # Sending

    async def _do(self, *command: Any) -> Any:
        return await _answered(self._redis.execute_command(*command))  # pyright: ignore[reportUnknownMemberType]

    async def _run(self, name: str, *arguments: Any) -> Any:
        sha = self._shas.get(name)
        if sha is None:
            sha = self._shas[name] = (await self._do("SCRIPT", "LOAD", _script(name))).decode()
        try:
            return await self._do("EVALSHA", sha, 0, self._keys.namespace, *arguments)
        except exceptions.NoScriptError:  # a restarted server has forgotten it, and ran nothing
            del self._shas[name]
            return await self._run(name, *arguments)

    # Namespace

    async def open_namespace(self, shards: int) -> int:
        await self._check_settings()
        key = self._keys.meta
        await self._do("HSETNX", key, "format", FORMAT)
        await self._do("HSETNX", key, "shards", shards)
        found, kept = await self._do("HMGET", key, "format", "shards")
        if int(found) != FORMAT:
            raise SettingsError(
                f"namespace {self._keys.namespace!r} has format {found.decode()}, this program writes {FORMAT}: "
                "use another namespace, or the version that wrote it"
            )
        return int(kept)

    async def _check_settings(self) -> None:
        if self._durability == "relaxed":
            return
        found: dict[str, str] = {}
        try:
            for name in ("appendonly", "appendfsync", "no-appendfsync-on-rewrite", "maxmemory-policy"):
                answer = await self._do("CONFIG", "GET", name)
                found[name] = answer[1].decode() if answer else "(hidden)"
            role = (await self._do("ROLE"))[0].decode()
        except exceptions.ResponseError as error:
            raise SettingsError(_refusal(f"its settings may not be read ({error})")) from error
        if found["appendonly"] != "yes":
            raise SettingsError(_refusal("it has no append-only file", "appendonly yes"))
        if found["appendfsync"] != "always":
            raise SettingsError(
                _refusal(f"it runs with appendfsync {found['appendfsync']}, which loses the last second", "appendfsync always")
            )
        if found["no-appendfsync-on-rewrite"] != "no":
            raise SettingsError(_refusal("it does not sync while it rewrites", "no-appendfsync-on-rewrite no"))
        if found["maxmemory-policy"] != "noeviction":
            raise SettingsError(
                _refusal(f"its eviction policy {found['maxmemory-policy']} may drop keys", "maxmemory-policy noeviction")
            )
        if role != "master":
            raise SettingsError(_refusal(f"it is a {role}: connect to its primary"))

    async def now_ms(self) -> int:
        seconds, micros = await self._do("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    # Drivers

    async def open_writer(self) -> str:
        writer = new_id()
        replies = self._keys.replies(writer)
        await self._do("SET", self._keys.writer(writer), 0, "PX", self._session_ms)
        # An empty stream: replies are appended only where it exists, so who is gone gets nothing.
        await self._do("XGROUP", "CREATE", replies, "none", "0", "MKSTREAM")
        await self._do("XGROUP", "DESTROY", replies, "none")
        await self._do("PEXPIRE", replies, self._session_ms)
        return writer

    async def submit(self, writer: str, number: int, operations: Sequence[Outgoing | Attach], seen: str) -> Settled:
        arguments: list[Any] = [writer, number, self._session_ms, seen, self._limits.inbox_max]
        for operation in operations:
            if isinstance(operation, Outgoing):
                arguments += ("m", operation.shard, operation.invocation, operation.caller, operation.data)
            else:
                arguments += ("a", operation.shard, operation.invocation)
        return Settled.APPLIED if await self._run("submit", *arguments) == 1 else Settled.REFUSED

    async def replies(self, writer: str, after: str, block_ms: int) -> list[Reply]:
        found = await self._blocking("XREAD", "COUNT", 1000, "BLOCK", block_ms, "STREAMS", self._keys.replies(writer), after)
        out: list[Reply] = []
        for id_, fields in found[0][1] if found else ():
            key = id_.decode()
            out += [Reply(key, fields[i].decode(), fields[i + 1]) for i in range(0, len(fields), 2)]
        return out

    async def status(self, invocation: str) -> str:
        shard = shard_in(invocation)
        entry = await self._do("HGET", f"{self._keys.namespace}:{shard}:ids", invocation)
        if entry is None:
            return ""
        place = entry.split(b" ", 1)[0].decode()
        if place[0] == "i":
            return "open"
        if place[0] == "a":
            paused = await self._do("HGET", self._keys.asleep(shard, invocation), "paused")
            return f"paused: {paused.decode()}" if paused else "asleep"
        if place[0] == "o":
            outcome = await self._do("HGET", f"{self._keys.namespace}:{shard}:outcomes", invocation)
        else:
            found = await self._do("XRANGE", f"{self._keys.namespace}:{shard}:done", place[1:], place[1:])
            outcome = found[0][1][3] if found else None
        return "" if outcome is None else "succeeded" if outcome[:1] == b"V" else "failed"

    # Hosts: ownership

    async def acquire(self, shard: Shard, incarnation: str, seen: str) -> Granted | Held:
        answer = await self._run("acquire", shard, incarnation, seen)
        if answer[0] == b"g":
            return Granted(Epoch(int(answer[1])), int(answer[2]), answer[3] == 1)
        if answer[0] == b"d":
            raise DamagedError(f"shard {shard}: {answer[1].decode()}; nobody serves it until its head is mended")
        return Held(answer[1].decode())

    async def renew(self, incarnation: str, owned: Mapping[Shard, Epoch], about: bytes) -> dict[Shard, int]:
        self._beats += 1
        pairs = [part for pair in owned.items() for part in pair]
        numbers = await self._run("renew", incarnation, about, self._beats, *pairs)
        return {shard: number for shard, number in zip(owned, numbers, strict=True) if number >= 0}

    async def release(self, incarnation: str, owned: Mapping[Shard, Epoch], *, leaving: bool) -> None:
        pairs = [part for pair in owned.items() for part in pair]
        await self._run("release", incarnation, int(leaving), *pairs)

    async def bury(self, incarnation: str) -> int:
        shards = await self._do("HGET", self._keys.meta, "shards")
        return await self._run("bury", incarnation, int(shards))

    async def look(self, shards: int) -> Look:
        pipe = self._redis.pipeline(transaction=False)
        pipe.hgetall(self._keys.hosts)
        pipe.mget([f"{self._keys.namespace}:{shard}:lease" for shard in range(shards)])
        hosts, leases = await _answered(pipe.execute())
        return Look({k.decode(): v for k, v in hosts.items()}, [(v or b"").decode() for v in leases])

    # Hosts: reading

    async def _blocking(self, *command: Any) -> Any:
        try:
            if self._reader_id is None:
                self._reader_id = await _answered(self._reader.execute_command("CLIENT", "ID"))  # pyright: ignore[reportUnknownMemberType]
                self._reader.response_callbacks.pop("XREAD", None)  # raw lists: half the time of dicts
            return await _answered(self._reader.execute_command(*command))  # pyright: ignore[reportUnknownMemberType]
        except BaseException:
            self._reader_id = None  # the next connection has another
            raise

    async def arrivals(self, cursors: Mapping[Shard, Cursor], control: str, block_ms: int, count: int) -> Arrivals:
        keys, names, after = self._keys, [self._keys.control], [control]
        for shard, cursor in cursors.items():
            names += (keys.inbox(shard), keys.events(shard))
            after += (cursor.inbox, cursor.events)
        found = await self._blocking("XREAD", "COUNT", count, "BLOCK", block_ms, "STREAMS", *names, *after)
        arrivals = Arrivals()
        for stream, entries in found or ():
            *_, middle, kind = stream.decode().rsplit(":", 2)
            if kind == "inbox":
                shard = Shard(int(middle))
                arrivals.messages += [(shard, id_.decode(), fields[1]) for id_, fields in entries]
            elif kind == "events":
                shard = Shard(int(middle))
                arrivals.events += [(shard, _event(entry)) for entry in entries]
            else:
                arrivals.control = entries[-1][0].decode()
        return arrivals

    async def interrupt(self) -> None:
        if self._reader_id is not None:
            await self._do("CLIENT", "UNBLOCK", self._reader_id)

    async def _page(self, key: str, after: str, count: int) -> list[Any]:
        return await _raw(self._redis, "XRANGE", key, f"({after}" if after else "-", "+", "COUNT", count)

    async def inbox(self, shard: Shard, after: str, count: int) -> list[tuple[str, bytes]]:
        return [(id_.decode(), fields[1]) for id_, fields in await self._page(self._keys.inbox(shard), after, count)]

    async def events(self, shard: Shard, after: str, count: int) -> list[Event]:
        return [_event(entry) for entry in await self._page(self._keys.events(shard), after, count)]

    async def journal(self, shard: Shard, after: str, count: int) -> list[tuple[str, str, bytes]]:
        page = await self._page(self._keys.journal(shard), after, count)
        return [(id_.decode(), fields[1].decode(), fields[3]) for id_, fields in page]

    async def messages(self, shard: Shard, ids: Sequence[str]) -> list[bytes | None]:
        pipe = self._redis.pipeline(transaction=False)
        for id_ in ids:
            pipe.xrange(self._keys.inbox(shard), id_, id_)
        found = await _answered(pipe.execute())
        return [entries[0][1][b"m"] if entries else None for entries in found]

    async def load(self, objects: Sequence[tuple[Shard, str]]) -> list[Loaded]:
        pipe = self._redis.pipeline(transaction=False)
        for shard, target in objects:
            pipe.hgetall(self._keys.state(shard, target))
            pipe.hget(self._keys.held(shard), target)
        found = await _answered(pipe.execute())
        return [
            Loaded({k.decode("utf-8", "surrogatepass"): v for k, v in found[i].items()}, (found[i + 1] or b"").decode())
            for i in range(0, len(found), 2)
        ]

    async def dormant(self, invocations: Sequence[tuple[Shard, str]]) -> list[Dormant | None]:
        pipe = self._redis.pipeline(transaction=False)
        for shard, invocation in invocations:
            pipe.hgetall(self._keys.asleep(shard, invocation))
        return [_dormant(fields) for fields in await _answered(pipe.execute())]

    # Hosts: writing

    async def commit(self, parts: Sequence[Part]) -> list[Answer]:
        limits = self._limits
        arguments: list[Any] = [
            limits.inbox_max * 10,
            limits.done_max,
            int(limits.retention.total_seconds() * 1000),
            _FULL,
            len(parts),
        ]
        for part in parts:
            flat: list[Any] = []
            for progress in part.progress:
                _flatten(progress, flat)
            if part.stray:
                flat += ("", "", "", 2, len(part.stray), *part.stray)
            arguments += (part.shard, f"{part.epoch} {part.incarnation}", part.number, len(flat))
            arguments += flat
        return [_answer(answer.decode()) for answer in await self._run("commit", *arguments)]

    async def move_due(self, shard: Shard, epoch: Epoch, incarnation: str, count: int) -> tuple[int, int]:
        moved, following = await self._run("move_due", shard, f"{epoch} {incarnation}", count)
        return moved, following

    # Code

    async def put_code(self, digest: str, code: bytes, types: Sequence[str]) -> None:
        if await self._do("SET", self._keys.code_of(digest), code, "NX") is not None:
            pairs = [part for name in types for part in (name, digest)]
            await self._do("HSET", self._keys.code, *pairs)

    async def code(self, digest: str) -> bytes | None:
        return await self._do("GET", self._keys.code_of(digest))

    async def current_code(self, type_name: str) -> str:
        return (await self._do("HGET", self._keys.code, type_name) or b"").decode()


async def _answered(command: Awaitable[T]) -> T:
    try:
        return await command
    except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as error:
        raise UnavailableError(f"the store does not answer: {error}") from error
    except (exceptions.ReadOnlyError, exceptions.OutOfMemoryError) as error:
        raise UnavailableError(f"the store takes no writes: {error}") from error


async def _raw(client: redis.Redis, *command: Any) -> Any:
    """Send a command past the library's own parsing of its answer."""
    connection = await _answered(client.connection_pool.get_connection())
    try:
        await _answered(connection.send_command(*command))
        return await _answered(connection.read_response())
    except BaseException:
        await connection.disconnect()
        raise
    finally:
        await client.connection_pool.release(connection)


def _refusal(why: str, remedy: str = "") -> str:
    setting = f"Set `{remedy}` on the server" if remedy else "Use a server of your own"
    return (
        f"this Redis could lose what it has acknowledged: {why}. {setting}, or say "
        'actors.init(durability="relaxed") if losing data is acceptable.'
    )


def _event(entry: Any) -> Event:
    id_, (_, invocation, _, kind, _, index, _, payload) = entry
    return Event(id_.decode(), invocation.decode(), EventKind(kind.decode()), int(index), payload)


def _dormant(fields: dict[bytes, bytes]) -> Dormant | None:
    if not fields:
        return None
    records = sorted((_order(key[1:]), key[1:].decode(), value) for key, value in fields.items() if key[:1] == b"j")
    return Dormant(
        fields[b"id"].decode(), fields[b"m"], [(id_, value) for _, id_, value in records], fields.get(b"paused", b"").decode()
    )


def _order(stream_id: bytes) -> tuple[int, int]:
    ms, _, sequence = stream_id.partition(b"-")
    return int(ms), int(sequence)


def _answer(text: str) -> Answer:
    match text[0]:
        case "c":
            return Committed(text[1:])
        case "f":
            return Fenced(text[1:])
        case _:
            return Damaged(text[1:])


def _flatten(progress: Progress, out: list[Any]) -> None:
    """Append a progress as `commit.lua` reads it: a section for each flag that is set, in order."""
    flags = 2048 if progress.asleep else 0
    sections: list[Any] = []
    if progress.record:
        flags |= 1
        sections.append(progress.record)
    if progress.events:
        flags |= 2
        sections += (len(progress.events), *progress.events)
    if progress.writes:
        flags |= 4
        sections.append(2 * len(progress.writes))
        for pair in progress.writes.items():
            sections += pair
    if progress.clears:
        flags |= 8
        sections += (len(progress.clears), *progress.clears)
    if progress.timers:
        flags |= 16
        sections.append(2 * len(progress.timers))
        for timer in progress.timers:
            sections += timer
    if progress.untimers:
        flags |= 32
        sections += (len(progress.untimers), *progress.untimers)
    if progress.messages:
        flags |= 64
        sections.append(len(progress.messages))
        for m in progress.messages:
            sections += (m.shard, m.invocation, m.caller, m.data)
    if progress.notice:
        flags |= 512
        sections.append(progress.notice)
    if progress.journal:
        flags |= 1024
        sections += (len(progress.journal), *progress.journal)
    if isinstance(progress.end, Finish):
        flags |= 128
        sections += (progress.end.outcome, progress.end.summary, progress.end.keep_ms)
    elif progress.end is not None:
        flags |= 256
        sections += (int(progress.end.holds), progress.end.paused)
    out += (progress.invocation, progress.target, progress.inbox_id, flags, *sections)
