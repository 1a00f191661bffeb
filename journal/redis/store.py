"""RedisStore: the store on one Redis or Valkey primary.

Owns the translation of transitions into script calls; the scripts own the transitions, and `connection` the
connections.

Invariants:
    1. No write is repeated here: only the caller that numbers a write may send it again.
    2. Blocking reads have a connection of their own, so nothing waits behind them.
    3. Each connection asks whether the store's settings could lose what it has acknowledged (promise 10), and is of no
       use where they could; nothing is submitted or committed from when `check` has found them so until it finds them
       well.
"""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.resources import files
from typing import Any, Final, Literal

from journal.errors import DamagedError, SettingsError, UnavailableError
from journal.ids import Epoch, Shard, new_id, shard_in
from journal.keys import Keys
from journal.limits import kept_limits
from journal.losses import WENT_BACK, WriterStatus
from journal.records import Event, target_of, teller_of_driver
from journal.store import (
    NOTHING_READ,
    READ_BYTES,
    Answer,
    Arrivals,
    Attach,
    Bring,
    Cursor,
    Dormant,
    Granted,
    LeaseHeld,
    Loaded,
    Membership,
    NamespaceLimits,
    Outgoing,
    Part,
    PartlyApplied,
    Reply,
    Settled,
    Trimmed,
    Where,
    makes_room,
)

from .arguments import (
    commit_arguments,
    is_nearly_full,
    ms_of,
    pairs_in,
    parse_answer,
    parse_dormant,
    parse_event,
    parse_replies,
    parse_submitted,
    submit_arguments,
    text_of,
)
from .connection import Command, Connections, Forbidden, RefusedCommand, UnknownScript
from .mending import mended
from .settings import check_version
from .survey import RedisSurvey
from .trust import Trust

Durability = Literal["disk", "relaxed"]
"""`disk`: every acknowledged write is synced; `relaxed`: whatever the server is set to, said aloud."""

FORMAT: Final = 1
BLOCK_MAX_MS: Final = 5_000
"""How long a read blocks at most: well before it counts as lost."""

LONG_AGO: Final = 0.25
"""Seconds after a read from which much may have come meanwhile."""

Page = tuple[bytes, Any]
"""A stream, and entries of it."""

_PRELUDES: Final = {"submit": ("tell",), "commit": ("tell", "forget"), "trim": ("forget",), "mend": ("tell",)}
"""Files placed before a script: functions that several scripts use."""

PATROL: Final = 500
"""About so many entries of `ids` are searched at once for sleeping invocations that are gone."""
_FULL_FROM: Final = 0.9
"""The share of the server's `maxmemory` from which hosts forget outcomes before their time."""


def _script(name: str, *, refused_when_full: bool = False) -> str:
    """Return a script; a full store carries it out all the same, unless it is to be refused then."""
    folder = files("journal.redis") / "scripts"
    texts = [(folder / f"{each}.lua").read_text("utf-8") for each in (*_PRELUDES.get(name, ()), name)]
    flags = (
        "" if refused_when_full else " flags=no-writes,allow-oom" if name in ("read", "survey") else " flags=allow-oom"
    )
    return "\n".join((f"#!lua{flags}", *texts))


class RedisStore:
    """One namespace on one primary; see `Store` for what each method promises.

    With `is_ours` it is the embedded server, and a server of another user at its address is not believed.
    """

    def __init__(
        self,
        url: str,
        namespace: str = "default",
        *,
        durability: Durability = "disk",
        is_ours: bool = False,
    ) -> None:
        self._keys, self._durability = Keys(namespace), durability
        self._goes_by(NamespaceLimits())
        self._trust = Trust()
        self._connections = Connections(url, None if durability == "relaxed" else self._trust.ask, is_ours=is_ours)
        self._reader, self._reading = self._connections.open(), asyncio.Lock()
        self._reader_id: int | None = None
        self._interrupted = False
        self._is_behind, self._read_at, self._first = False, 0.0, 0
        self._followed: set[Shard] = set()
        """Shards whose streams the last read was of."""
        self._streams: dict[Shard, tuple[str, str]] = {}
        self._places: dict[bytes, tuple[Shard, bool]] = {}
        self._shas: dict[tuple[str, bool], str] = {}
        self._beats = 0
        self._compared = -1
        """How many connections there had been when the ends of streams were compared last."""

    async def aclose(self) -> None:
        await self._connections.aclose()

    # Sending

    async def _do(self, *command: Any) -> Any:
        return await self._connections.ask(*command)

    async def _run(self, name: str, *arguments: Any, refused_when_full: bool = False) -> Any:
        sha = self._shas.get((name, refused_when_full))
        if sha is None:
            script = _script(name, refused_when_full=refused_when_full)
            sha = self._shas[name, refused_when_full] = (await self._do("SCRIPT", "LOAD", script)).decode()
        try:
            return await self._do("EVALSHA", sha, 0, self._keys.namespace, *arguments)
        except UnknownScript:
            self._shas.pop((name, refused_when_full), None)
            return await self._run(name, *arguments, refused_when_full=refused_when_full)
        except RefusedCommand as error:
            raise DamagedError(f"{name} failed in namespace {self._keys.namespace!r}: {error}") from error

    # Namespace

    async def open_namespace(self, limits: NamespaceLimits) -> NamespaceLimits:
        key = self._keys.meta
        try:
            await self._check_version()
            await self.check()
            found, shards, kept = await self._do("HMGET", key, "format", "shards", "limits")
            if found is None or shards is None:  # asked first: it is seldom new
                made = FORMAT, limits.shards, limits.encoded()
                found, shards, kept = await self._run("open_namespace", *made)
        except UnavailableError:
            if self._trust.verdict is not None:
                raise self._trust.verdict from None
            raise
        if int(found) != FORMAT:
            raise SettingsError(
                f"namespace {self._keys.namespace!r} has format {found.decode()}, this program writes {FORMAT}: "
                "use another namespace, or the version that wrote it"
            )
        return self._goes_by(kept_limits(shards, kept))

    def _goes_by(self, limits: NamespaceLimits) -> NamespaceLimits:
        self._limits, self._session_ms = limits, limits.session_ms
        return limits

    async def _check_version(self) -> None:
        try:
            info = await self._do("INFO", "server")
        except (Forbidden, RefusedCommand):  # a user without the right to ask finds out when the scripts are loaded
            return
        check_version(info.partition(b"redis_version:")[2].split(b"\r\n")[0].decode())

    async def check(self) -> None:
        if self._durability != "relaxed":
            await self._trust.ask(self._connections.answers)

    async def now_ms(self) -> int:
        return ms_of(await self._do("TIME"))

    def survey(self) -> RedisSurvey:
        return RedisSurvey(self._connections, self._keys, self._run)

    # Drivers

    async def open_writer(self) -> str:
        writer = new_id()
        await self._run("open_writer", writer, self._session_ms)
        return writer

    async def close_writer(self, writer: str) -> None:
        await self._do("DEL", self._keys.writer(writer), self._keys.replies(writer))

    async def submit(
        self, writer: str, number: int, operations: Sequence[Outgoing | Attach | Bring], seen: str
    ) -> Settled | PartlyApplied:
        self._trust.check()
        head = (writer, number, self._session_ms, seen, self._limits.inbox_max)
        arguments = submit_arguments(teller_of_driver(writer), operations)
        is_new = not all(map(makes_room, operations))
        return parse_submitted(await self._run("submit", *head, *arguments, refused_when_full=is_new))

    async def replies(self, writer: str, after: str, block_ms: int) -> list[Reply]:
        return parse_replies(await self._read(1000, block_ms, (self._keys.replies(writer),), (after,), is_new=False))

    async def writer_status(self, writer: str) -> WriterStatus | None:
        key, opened = self._keys.replies(writer), self._connections.opened
        looks = opened != self._compared
        look = ("XINFO", "STREAM", key) if looks else ("EXISTS", key)
        number, losses, stream = await self._connections.answers(
            ("GET", self._keys.writer(writer)), ("HGET", self._keys.meta, "losses"), look
        )
        for answer in (number, losses):
            if isinstance(answer, Exception):
                raise answer
        if number is None or not stream or isinstance(stream, RefusedCommand):
            return None
        if isinstance(stream, Exception):
            raise stream
        self._compared = opened
        last = dict(pairs_in(stream))[b"last-generated-id"].decode() if looks else ""
        return WriterStatus(int(number.split(b" ")[0]), last, text_of(losses))

    async def status(self, invocation: str) -> str:
        place = await self._place(invocation)
        if place[:1] == "i":
            return "open"
        if place[:1] == "a":
            paused = await self._do("HGET", self._keys.asleep(shard_in(invocation), invocation), "paused")
            return "asleep" if paused is None else f"paused: {text_of(paused)}" if paused else "open"
        outcome = await self._outcome(invocation, place)
        return "" if outcome is None else "succeeded" if outcome[:1] == b"V" else "failed"

    async def latest(self, shard: Shard, count: int) -> list[tuple[str, str, bytes]]:
        page = await self._do("XREVRANGE", self._keys.journal(shard), "+", "-", "COUNT", count)
        return [(id_.decode(), fields[1].decode(), fields[3]) for id_, fields in page]

    async def holder(self, invocation: str) -> str:
        shard, place = shard_in(invocation), await self._place(invocation)
        message = (await self.messages(shard, [place[1:]]))[0] if place[:1] == "i" else None
        return text_of(await self._do("HGET", self._keys.held(shard), target_of(message)))

    async def outcome(self, invocation: str) -> bytes | None:
        place = await self._place(invocation)
        return b"" if place[:1] in ("i", "a") else await self._outcome(invocation, place)

    async def _place(self, invocation: str) -> str:
        entry = await self._do("HGET", self._keys.ids(shard_in(invocation)), invocation)
        return "" if entry is None else entry.split(b" ", 1)[0].decode()

    async def _outcome(self, invocation: str, place: str) -> bytes | None:
        shard = shard_in(invocation)
        if place == "o":
            return await self._do("HGET", self._keys.outcomes(shard), invocation)
        found = place and await self._do("XRANGE", self._keys.done(shard), place[1:], place[1:])
        return found[0][1][3] if found else None

    # Hosts: ownership

    async def acquire(self, shard: Shard, incarnation: str, seen: str) -> Granted | LeaseHeld:
        answer = await self._run("acquire", shard, incarnation, seen)
        if answer[0] == b"g":
            return Granted(Epoch(int(answer[1])), int(answer[2]), answer[3] == 1, answer[4] == 1, answer[4] == 2)
        if answer[0] == b"d":
            raise DamagedError(
                f"shard {shard}: {answer[1].decode('utf-8', 'replace')}; nobody serves it until its head is mended"
            )
        return LeaseHeld(answer[1].decode())

    async def renew(
        self, incarnation: str, owned: Mapping[Shard, Epoch], about: bytes, read: Mapping[Shard, Cursor] = NOTHING_READ
    ) -> dict[Shard, int]:
        self._beats += 1
        parts: list[Any] = []
        for shard, epoch in owned.items():
            cursor = read.get(shard) or Cursor("0-0", "0-0")
            parts += (shard, epoch, cursor.inbox, cursor.events)
        opened = self._connections.opened
        looks = int(opened != self._compared)
        numbers = await self._run("renew", incarnation, about, self._beats, looks, *parts)
        self._compared = opened
        found = zip(owned, numbers, strict=True)
        return {shard: number for shard, number in found if number >= 0 or number == WENT_BACK}

    async def mend(self, shard: Shard, epoch: Epoch, incarnation: str) -> list[str]:
        return await mended(self._connections, partial(self._run, "mend"), self._keys, shard, f"{epoch} {incarnation}")

    async def has_gone(self, shard: Shard, cursor: int) -> tuple[int, bool]:
        following, found = await self._do("HSCAN", self._keys.ids(shard), cursor, "COUNT", PATROL)
        ids = [text_of(name) for name, place in pairs_in(found) if place[:1] == b"a"]
        gone = await self._not_there(shard, ids)
        asleep = await self.where(gone) if gone else []  # an invocation that has ended meanwhile is not asleep any more
        gone = [id_ for id_, where in zip(gone, asleep, strict=True) if where is Where.ASLEEP]
        return int(following), bool(gone and await self._not_there(shard, gone))

    async def _not_there(self, shard: Shard, ids: list[str]) -> list[str]:
        found = (
            await self._connections.ask_all(*(("EXISTS", self._keys.asleep(shard, id_)) for id_ in ids)) if ids else []
        )
        return [id_ for id_, is_there in zip(ids, found, strict=True) if not is_there]

    async def lose(self) -> None:
        await self._do("HINCRBY", self._keys.meta, "losses", 1)

    async def release(self, incarnation: str, owned: Mapping[Shard, Epoch], *, leaving: bool) -> None:
        pairs = [part for pair in owned.items() for part in pair]
        await self._run("release", incarnation, int(leaving), *pairs)

    async def bury(self, incarnation: str) -> int:
        return int(await self._run("bury", incarnation))

    async def membership(self, shards: int = 0) -> Membership:
        names = [self._keys.lease(Shard(shard)) for shard in range(shards)]
        asked: tuple[Command, ...] = (("TIME",), ("HGETALL", self._keys.hosts))
        time, hosts, *leases = await self._connections.ask_all(*asked, *([("MGET", *names)] if names else []))
        found = [text_of(lease) for lease in leases[0]] if names else []
        return Membership({k.decode(): v for k, v in pairs_in(hosts)}, found, ms_of(time))

    # Hosts: reading

    async def _blocking(self, count: int, block_ms: int, names: Sequence[str], after: Sequence[str]) -> Any:
        if self._interrupted:
            block_ms, self._interrupted = 0, False
        wait = ("BLOCK", min(block_ms, BLOCK_MAX_MS)) if block_ms > 0 else ()  # BLOCK 0 would be for ever
        async with self._reading:
            try:
                if self._reader_id is None:
                    (self._reader_id,) = await self._reader.ask(("CLIENT", "ID"))
                return (await self._reader.ask(("XREAD", "COUNT", count, *wait, "STREAMS", *names, *after)))[0]
            except BaseException:
                self._reader_id = None  # the next connection has another
                raise

    async def _read(
        self, count: int, block_ms: int, names: Sequence[str], after: Sequence[str], *, is_new: bool
    ) -> list[Page]:
        """Return the new entries of streams: without a wait and bounded where there may be many, else as they come."""
        time = asyncio.get_running_loop().time
        found: list[Page] = []
        if is_new or self._is_behind or time() - self._read_at > LONG_AGO:
            found = await self._bounded_read(count, names, after)
        if not found:
            found = await self._blocking(count, block_ms, names, after) or []
            self._is_behind = self._reader.received >= READ_BYTES // 8
            for _, page in found:
                if len(page) >= count:
                    self._is_behind = True
        self._read_at = time()
        return found

    async def _bounded_read(self, count: int, names: Sequence[str], after: Sequence[str]) -> list[Page]:
        # The first stream stands alone, the others belong together by twos. From another group each time, so that none
        # waits for ever behind those that bring much.
        streams = list(zip(names, after, strict=True))
        groups = [streams[:1], *(streams[at : at + 2] for at in range(1, len(streams), 2))]
        self._first = (self._first + 1) % len(groups)
        turned = (*groups[self._first :], *groups[: self._first])
        streams = [stream for group in turned for stream in group if stream[1] != "$"]
        is_cut, *pages = await self._asked(*(("XRANGE", name, f"({after}", count) for name, after in streams))
        self._is_behind = bool(is_cut) or any(len(page) >= count for page in pages)
        found = zip(streams, pages, strict=False)
        return [(name.encode("utf-8", "surrogatepass"), page) for (name, _), page in found if page]

    async def _bounded(self, *commands: Command) -> list[Any]:
        """Return the answers to the first of these, as many as one read brings."""
        return (await self._asked(*commands))[1:]

    async def _asked(self, *commands: Command) -> list[Any]:
        words = [word for command in commands for word in (len(command), *command)]
        return await self._run("read", READ_BYTES, *words) if commands else [0]

    async def arrivals(self, cursors: Mapping[Shard, Cursor], control: str, block_ms: int, count: int) -> Arrivals:
        arrivals, places = Arrivals(), self._places
        names, after = [self._keys.control], [control]
        for shard, cursor in cursors.items():
            names += self._streams.get(shard) or self._name_streams(shard)
            after += (cursor.events, cursor.inbox)
        is_new = not cursors.keys() <= self._followed
        found = await self._read(count, block_ms, names, after, is_new=is_new)
        if is_new or len(cursors) < len(self._followed):
            self._followed = set(cursors)
        for stream, entries in found:
            if stream not in places:
                arrivals.control = entries[-1][0].decode()
                continue
            shard, is_inbox = places[stream]
            if is_inbox:
                arrivals.messages += [(shard, id_.decode(), fields[1]) for id_, fields in entries]
            else:
                arrivals.events += [(shard, parse_event(entry)) for entry in entries]
                if len(entries) >= count:
                    arrivals.unread.add(shard)
        return arrivals

    def _name_streams(self, shard: Shard) -> tuple[str, str]:
        # Events first, so that no message is ahead of them.
        events, inbox = self._streams[shard] = self._keys.events(shard), self._keys.inbox(shard)
        self._places[inbox.encode("utf-8", "surrogatepass")] = (shard, True)
        self._places[events.encode("utf-8", "surrogatepass")] = (shard, False)
        return events, inbox

    async def interrupt(self) -> None:
        if self._reader_id is None or not await self._do("CLIENT", "UNBLOCK", self._reader_id):
            self._interrupted = True

    async def _page(self, key: str, after: str, count: int) -> list[Any]:
        return (await self._bounded(("XRANGE", key, f"({after}" if after else "-", count)))[0]

    async def inbox(self, shard: Shard, after: str, count: int) -> list[tuple[str, bytes]]:
        return [(id_.decode(), fields[1]) for id_, fields in await self._page(self._keys.inbox(shard), after, count)]

    async def events(self, shard: Shard, after: str, count: int) -> list[Event]:
        return [parse_event(entry) for entry in await self._page(self._keys.events(shard), after, count)]

    async def journal(self, shard: Shard, after: str, count: int) -> list[tuple[str, str, bytes]]:
        page = await self._page(self._keys.journal(shard), after, count)
        return [(id_.decode(), fields[1].decode(), fields[3]) for id_, fields in page]

    async def messages(self, shard: Shard, ids: Sequence[str]) -> list[bytes | None]:
        key = self._keys.inbox(shard)
        found = await self._bounded(*(("XRANGE", key, id_, 1) for id_ in ids))
        return [
            page[0][1][1] if page and page[0][0].decode() == id_ else None
            for page, id_ in zip(found, ids, strict=False)
        ]

    async def load(self, objects: Sequence[tuple[Shard, str]]) -> list[Loaded]:
        commands: list[Command] = []
        for shard, target in objects:
            commands += ("HGET", self._keys.held(shard), target), ("HGETALL", self._keys.state(shard, target))
        # A single object is read without the bound: nothing of it could be left for the next time.
        found = await (self._connections.ask_all(*commands) if len(objects) == 1 else self._bounded(*commands))
        found = found[: len(found) // 2 * 2]
        return [
            Loaded({text_of(name): value for name, value in pairs_in(fields)}, text_of(held))
            for held, fields in pairs_in(found)
        ]

    async def where(self, invocations: Sequence[str]) -> list[Where]:
        asked = (("HGET", self._keys.ids(shard_in(invocation)), invocation) for invocation in invocations)
        found = [(entry or b"")[:1].decode() for entry in await self._connections.ask_all(*asked)]
        return [Where(kind) if kind in ("i", "a") else Where.GONE for kind in found]

    async def dormant(self, invocations: Sequence[tuple[Shard, str]]) -> list[Dormant | None]:
        keys = (self._keys.asleep(shard, invocation) for shard, invocation in invocations)
        found = await self._bounded(*(("HGETALL", key) for key in keys))
        return [parse_dormant(dict(pairs_in(fields))) for fields in found]

    # Hosts: writing

    async def commit(self, parts: Sequence[Part]) -> list[Answer]:
        self._trust.check()
        answers = await self._run("commit", *commit_arguments(parts, self._limits))
        return [parse_answer(answer) for answer in answers]

    async def move_due(self, shard: Shard, epoch: Epoch, incarnation: str, count: int) -> tuple[int, int]:
        moved, following = await self._run("move_due", shard, f"{epoch} {incarnation}", count)
        return moved, following

    async def trim(self, incarnation: str, owned: Mapping[Shard, Epoch], count: int) -> Trimmed:
        try:
            is_full = is_nearly_full(await self._do("INFO", "memory"), _FULL_FROM)
        except (Forbidden, RefusedCommand):  # a user without the right to ask forgets by time and count alone
            is_full = False
        owners = [part for shard, epoch in owned.items() for part in (shard, f"{epoch} {incarnation}")]
        limits = self._limits.done_max, self._limits.retention_ms(is_full=is_full)
        return Trimmed(int(await self._run("trim", *limits, count, *owners)), is_full)

    # Code

    async def put_code(self, digest: str, code: bytes, types: Sequence[str], *, instead_of: bytes = b"") -> None:
        await self._run("put_code", digest, code, instead_of, *types)

    async def code(self, digest: str) -> bytes | None:
        return await self._do("GET", self._keys.code_of(digest))

    async def current_code(self, type_name: str) -> str:
        return text_of(await self._do("HGET", self._keys.code, type_name))
