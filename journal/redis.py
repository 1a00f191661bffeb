"""RedisStore: the store on one Redis or Valkey primary.

Owns the connections and the translation of transitions into script calls; the scripts own the transitions. The only
importer of `redis`.

Invariants:
    1. The client library never repeats a write by itself: only who numbers a write may send it again.
    2. Blocking reads have a connection of their own, so nothing waits behind them.
    3. `open_namespace` refuses a store whose settings could lose what it has acknowledged (promise 10).
"""

from collections.abc import Awaitable, Mapping, Sequence
from importlib.resources import files
from typing import Any, Final, Literal, TypeVar, cast

from redis import asyncio as redis
from redis import exceptions
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from .entries import Event
from .errors import DamagedError, SettingsError, UnavailableError, UsageError
from .keys import Keys
from .names import Epoch, Shard, new_id, shard_in
from .settings import WANTED, check_settings, check_version, refusal
from .store import (
    Answer,
    Arrivals,
    Attach,
    Cursor,
    Dormant,
    Granted,
    Held,
    Limits,
    Loaded,
    Look,
    Outgoing,
    Overloaded,
    Part,
    Reply,
    Settled,
)
from .wire import (
    commit_arguments,
    parse_answer,
    parse_dormant,
    parse_event,
    parse_replies,
    submit_arguments,
    text_of,
)

Durability = Literal["disk", "relaxed"]
"""`disk`: every acknowledged write is synced; `relaxed`: whatever the server is set to, said aloud."""

FORMAT: Final = 1
ANSWER_MAX: Final = 10.0
"""Seconds after which a command that is not answered counts as lost."""

BLOCK_MAX_MS: Final = 5_000
"""How long a read blocks at most: well before it counts as lost."""

_PRELUDED: Final = ("submit", "commit")
"""Scripts that begin with `tell.lua`."""

_REFUSED_WHEN_FULL: Final = ("submit",)
"""Scripts that a store without memory refuses; what is there goes on, and makes room."""

_TAKES_NO_WRITES: Final = ("BUSY ", "MISCONF ", "NOREPLICAS ", "MASTERDOWN ", "CLUSTERDOWN ", "TRYAGAIN ")
"""Errors that pass; the server finds them before a script that says its flags begins."""

T = TypeVar("T")


def _script(name: str) -> str:
    folder = files("journal") / "scripts"
    text = (folder / f"{name}.lua").read_text("utf-8")
    prelude = (folder / "tell.lua").read_text("utf-8") if name in _PRELUDED else ""
    flags = "#!lua" if name in _REFUSED_WHEN_FULL else "#!lua flags=allow-oom"
    return f"{flags}\n{prelude}{text}"


class RedisStore:
    """One namespace on one primary; see `Store` for what each method promises."""

    def __init__(
        self, url: str, namespace: str = "default", *, limits: Limits | None = None, durability: Durability = "disk"
    ) -> None:
        self._url, self._keys, self._durability = url, Keys(namespace), durability
        self._limits = limits or Limits()
        self._session_ms = int(self._limits.session.total_seconds() * 1000)
        try:
            self._redis = self._client(single=False)
        except ValueError as error:
            raise UsageError(f"{url!r} is no URL of a Redis or Valkey, redis://host:port/0 for one: {error}") from error
        self._reader = self._client(single=True)
        self._reader_id: int | None = None
        self._interrupted = False
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
            encoding_errors="surrogatepass",  # a user's text may hold what is no valid UTF-8
        )

    async def aclose(self) -> None:
        await self._reader.aclose()
        await self._redis.aclose()

    # Sending

    async def _do(self, *command: Any) -> Any:
        return await _sent(self._redis, *command)

    async def _run(self, name: str, *arguments: Any) -> Any:
        sha = self._shas.get(name)
        if sha is None:
            sha = self._shas[name] = (await self._do("SCRIPT", "LOAD", _script(name))).decode()
        try:
            return await self._do("EVALSHA", sha, 0, self._keys.namespace, *arguments)
        except exceptions.NoScriptError:  # a restarted server has forgotten it, and ran nothing
            self._shas.pop(name, None)
            return await self._run(name, *arguments)
        except exceptions.ResponseError as error:
            raise DamagedError(f"{name} failed in namespace {self._keys.namespace!r}: {error}") from error

    # Namespace

    async def open_namespace(self, shards: int) -> int:
        await self._check_version()
        if self._durability != "relaxed":
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

    async def _check_version(self) -> None:
        try:
            info = await self._do("INFO", "server")
        except exceptions.ResponseError:  # who may not ask finds out when the scripts are loaded
            return
        check_version(str(info["redis_version"]))

    async def _check_settings(self) -> None:
        found: dict[str, str] = {}
        try:
            for name in WANTED:
                answer = await self._do("CONFIG", "GET", name)
                found |= {name: answer[1].decode()} if answer else {}
            role = (await self._do("ROLE"))[0].decode()
        except exceptions.ResponseError as error:
            raise refusal(f"its settings may not be read ({error})") from error
        check_settings(found, role)

    async def now_ms(self) -> int:
        seconds, micros = await self._do("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    # Drivers

    async def open_writer(self) -> str:
        writer = new_id()
        replies = self._keys.replies(writer)
        pipe = self._redis.pipeline(transaction=True)
        pipe.set(self._keys.writer(writer), 0, px=self._session_ms)
        # An empty stream: replies are appended only where it exists, so who is gone gets nothing.
        pipe.xgroup_create(replies, "none", "0", mkstream=True)
        pipe.xgroup_destroy(replies, "none")
        pipe.pexpire(replies, self._session_ms)
        await _answered(pipe.execute())
        return writer

    async def submit(
        self, writer: str, number: int, operations: Sequence[Outgoing | Attach], seen: str
    ) -> Settled | Overloaded:
        head = (writer, number, self._session_ms, seen, self._limits.inbox_max)
        refused = await self._run("submit", *head, *submit_arguments(operations))
        if refused is None:
            return Settled.REFUSED
        return Overloaded(tuple(text_of(invocation) for invocation in refused)) if refused else Settled.APPLIED

    async def replies(self, writer: str, after: str, block_ms: int) -> list[Reply]:
        return parse_replies(await self._blocking(1000, block_ms, (self._keys.replies(writer), after)))

    async def status(self, invocation: str) -> str:
        shard = shard_in(invocation)
        entry = await self._do("HGET", self._keys.ids(shard), invocation)
        if entry is None:
            return ""
        place = entry.split(b" ", 1)[0].decode()
        if place[0] == "i":
            return "open"
        if place[0] == "a":
            paused = await self._do("HGET", self._keys.asleep(shard, invocation), "paused")
            return f"paused: {text_of(paused)}" if paused else "asleep"
        if place[0] == "o":
            outcome = await self._do("HGET", self._keys.outcomes(shard), invocation)
        else:
            found = await self._do("XRANGE", self._keys.done(shard), place[1:], place[1:])
            outcome = found[0][1][b"o"] if found else None
        return "" if outcome is None else "succeeded" if outcome[:1] == b"V" else "failed"

    # Hosts: ownership

    async def acquire(self, shard: Shard, incarnation: str, seen: str) -> Granted | Held:
        answer = await self._run("acquire", shard, incarnation, seen)
        if answer[0] == b"g":
            return Granted(Epoch(int(answer[1])), int(answer[2]), answer[3] == 1)
        if answer[0] == b"d":
            raise DamagedError(
                f"shard {shard}: {answer[1].decode('utf-8', 'replace')}; nobody serves it until its head is mended"
            )
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
        return int(await self._run("bury", incarnation))

    async def look(self, shards: int) -> Look:
        pipe = self._redis.pipeline(transaction=False)
        pipe.hgetall(self._keys.hosts)
        pipe.mget([self._keys.lease(Shard(shard)) for shard in range(shards)])
        hosts, leases = await _answered(pipe.execute())
        return Look({k.decode(): v for k, v in hosts.items()}, [text_of(lease) for lease in leases])

    # Hosts: reading

    async def _blocking(self, count: int, block_ms: int, *streams: tuple[str, str]) -> Any:
        if self._interrupted:
            block_ms, self._interrupted = 0, False
        wait = ("BLOCK", min(block_ms, BLOCK_MAX_MS)) if block_ms > 0 else ()  # BLOCK 0 would be for ever
        names, after = zip(*streams, strict=True)
        try:
            if self._reader_id is None:
                self._reader_id = await _sent(self._reader, "CLIENT", "ID")
                self._reader.response_callbacks.pop("XREAD", None)  # raw lists: half the time of dicts
            return await _sent(self._reader, "XREAD", "COUNT", count, *wait, "STREAMS", *names, *after)
        except BaseException:
            self._reader_id = None  # the next connection has another
            raise

    async def arrivals(self, cursors: Mapping[Shard, Cursor], control: str, block_ms: int, count: int) -> Arrivals:
        keys, arrivals = self._keys, Arrivals()
        places: dict[bytes, tuple[Shard, bool]] = {}
        streams = [(keys.control, control)]
        for shard, cursor in cursors.items():
            inbox, events = keys.inbox(shard), keys.events(shard)
            streams += ((inbox, cursor.inbox), (events, cursor.events))
            places[inbox.encode("utf-8", "surrogatepass")] = (shard, True)
            places[events.encode("utf-8", "surrogatepass")] = (shard, False)
        for stream, entries in await self._blocking(count, block_ms, *streams) or ():
            if stream not in places:
                arrivals.control = entries[-1][0].decode()
                continue
            shard, is_inbox = places[stream]
            if is_inbox:
                arrivals.messages += [(shard, id_.decode(), fields[1]) for id_, fields in entries]
            else:
                arrivals.events += [(shard, parse_event(entry)) for entry in entries]
        return arrivals

    async def interrupt(self) -> None:
        if self._reader_id is None or not await self._do("CLIENT", "UNBLOCK", self._reader_id):
            self._interrupted = True

    async def _page(self, key: str, after: str, count: int) -> list[Any]:
        return await _raw(self._redis, "XRANGE", key, f"({after}" if after else "-", "+", "COUNT", count)

    async def inbox(self, shard: Shard, after: str, count: int) -> list[tuple[str, bytes]]:
        return [(id_.decode(), fields[1]) for id_, fields in await self._page(self._keys.inbox(shard), after, count)]

    async def events(self, shard: Shard, after: str, count: int) -> list[Event]:
        return [parse_event(entry) for entry in await self._page(self._keys.events(shard), after, count)]

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
            Loaded({text_of(name): value for name, value in found[i].items()}, text_of(found[i + 1]))
            for i in range(0, len(found), 2)
        ]

    async def dormant(self, invocations: Sequence[tuple[Shard, str]]) -> list[Dormant | None]:
        pipe = self._redis.pipeline(transaction=False)
        for shard, invocation in invocations:
            pipe.hgetall(self._keys.asleep(shard, invocation))
        return [parse_dormant(fields) for fields in await _answered(pipe.execute())]

    # Hosts: writing

    async def commit(self, parts: Sequence[Part]) -> list[Answer]:
        answers = await self._run("commit", *commit_arguments(parts, self._limits))
        return [parse_answer(answer) for answer in answers]

    async def move_due(self, shard: Shard, epoch: Epoch, incarnation: str, count: int) -> tuple[int, int]:
        moved, following = await self._run("move_due", shard, f"{epoch} {incarnation}", count)
        return moved, following

    # Code

    async def put_code(self, digest: str, code: bytes, types: Sequence[str]) -> None:
        await self._run("put_code", digest, code, *types)

    async def code(self, digest: str) -> bytes | None:
        return await self._do("GET", self._keys.code_of(digest))

    async def current_code(self, type_name: str) -> str:
        return text_of(await self._do("HGET", self._keys.code, type_name))


async def _answered(command: Awaitable[T]) -> T:
    try:
        return await command
    except exceptions.AuthenticationError as error:
        raise UnavailableError(
            f"the store does not let us in: {error} Name and password belong in the URL, redis://name:password@host"
        ) from error
    except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as error:
        raise UnavailableError(f"the store does not answer: {error}") from error
    except (exceptions.ReadOnlyError, exceptions.OutOfMemoryError) as error:
        raise UnavailableError(f"the store takes no writes: {error}") from error
    except exceptions.ResponseError as error:
        if str(error).startswith(_TAKES_NO_WRITES):
            raise UnavailableError(f"the store takes no writes: {error}") from error
        raise


async def _sent(client: redis.Redis, *command: Any) -> Any:
    sent = client.execute_command(*command)  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
    return await _answered(cast("Awaitable[Any]", sent))


async def _raw(client: redis.Redis, *command: Any) -> Any:
    """Send a command past the library's own parsing of its answer."""
    connection = await _answered(client.connection_pool.get_connection())
    try:
        await _answered(connection.send_command(*command))
        return await _answered(cast("Awaitable[Any]", connection.read_response()))
    except BaseException:
        await connection.disconnect()
        raise
    finally:
        await client.connection_pool.release(connection)
