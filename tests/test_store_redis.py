"""What only a server can do to a store: settings that lose data, death and return, no memory, foreign keys."""

import asyncio
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio
from redis.asyncio.connection import Connection as RedisConnection
from servers import DURABLE, Server, redis_binary, valkey_binary
from store_bench import SHARDS, TARGET, Driver, Engine, Owner, message, new, redis_engine
from wire import Wire

from journal.errors import DamagedError, FullError, SettingsError, UnavailableError
from journal.ids import Shard, new_id
from journal.keys import TABLE, Keys
from journal.records import EventKind
from journal.redis import connection as line
from journal.redis.connection import Connection, Connections, RefusedCommand
from journal.redis.settings import check_settings, check_version
from journal.redis.store import Durability, RedisStore
from journal.store import (
    Bring,
    Committed,
    Cursor,
    Damaged,
    Finish,
    NamespaceLimits,
    Progress,
    Settled,
    Sleep,
    Store,
    Trimmed,
)

A, B, FAR = "a1-0", "b2-0", "f9-1"

OPEN = ("--user", "default", "on", "nopass", "~*", "&*", "+@all")
"""Everybody may do everything; what is taken away again follows."""


def binary_of(kind: str) -> str:
    binary = valkey_binary() if kind == "valkey" else redis_binary()
    if binary is None:
        pytest.skip("there is no redis-server here")
    return binary


@pytest.fixture(params=["valkey", "redis7"])
def start(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """Return what starts a server of one's own with these settings."""
    servers: list[Server] = []

    def start(*settings: str) -> Server:
        servers.append(Server(binary_of(request.param), tmp_path, *settings))
        return servers[-1]

    yield start
    for server in servers:
        server.kill()


@pytest.fixture(params=["valkey", "redis7"])
def url(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(f"{request.param}_url")


@pytest_asyncio.fixture
async def engine(url: str) -> AsyncIterator[Engine]:
    engine = redis_engine(url, f"test-{new_id()}")
    yield engine
    await engine.aclose()


@pytest_asyncio.fixture
async def store(engine: Engine) -> Store:
    return await engine.open()


async def ask(store: Store, *command: Any) -> Any:
    """Send a command past the store."""
    return await cast("RedisStore", store)._do(*command)


def keys_of(store: Store) -> Keys:
    return cast("RedisStore", store)._keys


@asynccontextmanager
async def opened(url: str, durability: Durability = "disk") -> AsyncGenerator[RedisStore]:
    store = RedisStore(url, durability=durability)
    try:
        await store.open_namespace(NamespaceLimits(shards=SHARDS))
        yield store
    finally:
        await store.aclose()


# ------------------------------------------------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "remedy"),
    [
        (("--appendonly", "no"), "appendonly yes"),
        (("--appendonly", "yes", "--appendfsync", "everysec"), "appendfsync always"),
        ((*DURABLE, "--no-appendfsync-on-rewrite", "yes"), "no-appendfsync-on-rewrite no"),
        ((*DURABLE, "--maxmemory-policy", "allkeys-lru"), "maxmemory-policy noeviction"),
        ((*DURABLE, "--replicaof", "127.0.0.1 1"), "it is a slave: connect to its primary"),
        ((*DURABLE, *OPEN, "-config"), "its settings may not be read"),
        ((*DURABLE, *OPEN, "-role"), "its settings may not be read"),
        ((*DURABLE, "--rename-command", "CONFIG", ""), "its settings may not be read"),
    ],
)
async def test_a_store_that_could_lose_data_is_refused(
    start: Callable[..., Server], settings: tuple[str, ...], remedy: str
) -> None:
    # Promise 10.
    server = start(*settings)

    with pytest.raises(SettingsError, match=remedy) as error:
        async with opened(server.url):
            pass

    assert 'durability="relaxed"' in str(error.value)
    if "replicaof" not in " ".join(settings):  # which takes no writes at all
        async with opened(server.url, "relaxed") as store:
            assert (await store.open_namespace(NamespaceLimits())).shards == SHARDS


async def test_a_setting_that_is_hidden_counts_as_wrong() -> None:
    # Promise 10: some services answer CONFIG GET with nothing.
    with pytest.raises(SettingsError, match="appendonly may not be read"):
        check_settings({}, "master")


def test_a_server_that_does_not_know_flags_of_scripts_is_refused() -> None:
    for version in ("6.2.14", "5.0"):
        with pytest.raises(SettingsError, match="use Redis 7 or newer"):
            check_version(version)
    for version in ("7.0.15", "7.2.4", "8.0-rc1", "10.1"):
        check_version(version)


async def test_a_namespace_of_another_format_is_refused(engine: Engine, store: Store) -> None:
    await ask(store, "HSET", keys_of(store).meta, "format", 99)

    with pytest.raises(SettingsError, match="has format 99"):
        await engine.open()


# ----------------------------------------------------------------------------------------------------- death and return


async def test_a_server_that_is_killed_keeps_what_it_acknowledged_and_forgets_its_scripts(
    start: Callable[..., Server],
) -> None:
    # Promise 1.
    server = start()
    engine = redis_engine(server.url, "ns")
    store = await engine.open()
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A, B)
    first = await owner.committed(await owner.progress(A, record=b"r", writes={"x": b"1"}))
    server.kill()

    for attempt in (
        lambda: driver.store.submit(driver.writer, 2, [message(FAR)], ""),
        lambda: store.commit([owner.part()]),
        lambda: store.arrivals({Shard(0): Cursor("0-0", "0-0")}, "0-0", 1_000, 10),
        lambda: store.replies(driver.writer, "0-0", 1_000),
        lambda: store.events(Shard(0), "", 10),
        lambda: store.load([(Shard(0), TARGET)]),
        lambda: store.now_ms(),
        lambda: store.open_writer(),
    ):
        with pytest.raises(UnavailableError):
            async with asyncio.timeout(5):
                await attempt()
    server.start()

    assert await store.commit([owner.part()]) == [Committed(first)], "its last commit, asked again"
    assert await store.submit(driver.writer, 1, [], "") is Settled.APPLIED
    assert await owner.inbox() == [A, B]
    assert await owner.journal() == [(A, b"r")]
    assert isinstance(await owner.finish(A), Committed)
    assert await driver.told() == [(A, b"Vdone")]
    await engine.aclose()


async def test_scripts_that_were_forgotten_are_sent_again_by_all_who_find_out_at_once(store: Store) -> None:
    owners = [await Owner.acquire(store, shard) for shard in range(SHARDS)]
    await owners[0].commit()
    await ask(store, "SCRIPT", "FLUSH")

    answers = await asyncio.gather(*(owner.commit() for owner in owners))

    assert answers == [Committed("")] * SHARDS


async def test_a_reader_whose_connection_was_cut_reads_on(store: Store) -> None:
    driver = await Driver.open(store)
    cursors = {Shard(0): Cursor("0-0", "0-0")}
    await store.arrivals(cursors, "0-0", 0, 10)
    reader = cast("RedisStore", store)._reader_id
    reading = asyncio.ensure_future(store.arrivals(cursors, "0-0", 5_000, 10))
    while await ask(store, "CLIENT", "KILL", "ID", reader) != 1:
        pass

    with pytest.raises(UnavailableError):
        await reading
    await driver.send(A)

    assert len((await store.arrivals(cursors, "0-0", 1_000, 10)).messages) == 1


# ------------------------------------------------------------------------------------------------------------ no writes


async def test_a_store_without_memory_refuses_drivers_whole_and_lets_hosts_make_room(store: Store) -> None:
    # Promises 3, 8 and 9: nothing is half done, and what is there can end.
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A, B)
    await ask(store, "CONFIG", "SET", "maxmemory", 1_000_000)
    try:
        with pytest.raises(UnavailableError, match="takes no writes"):
            await driver.send(FAR)
        assert await store.renew(owner.incarnation, owner.owned, b"") == {0: 0}
        assert isinstance(await owner.sleep(A, record=b"r"), Committed)
        assert isinstance(await owner.finish(A, asleep=True), Committed)
        await store.release(owner.incarnation, owner.owned, leaving=False)
        owner = await Owner.acquire(store)
        # Issue 15.34: another program comes, asks and cancels; a host trims.
        await ask(store, "SCRIPT", "FLUSH")
        assert (await store.open_namespace(NamespaceLimits())).shards == SHARDS
        other = await Driver.open(store)
        await other.attach(A)
        end = Bring(Shard(0), B, EventKind.KILL, 0, b"")
        assert await other.submit(end) is Settled.APPLIED
        assert await owner.events() == [(B, "k", 0, b"")]
        with pytest.raises(FullError):
            await store.submit(other.writer, 3, [end, message(FAR)], "")
        assert await other.told() == [(A, b"Vdone")]
        assert await store.trim(owner.incarnation, owner.owned, 100) == Trimmed(0, is_full=True)
    finally:
        await ask(store, "CONFIG", "SET", "maxmemory", 0)

    assert await store.submit(driver.writer, 2, [message(FAR)], "") is Settled.APPLIED
    assert await store.status(FAR) == "open"
    assert await driver.told() == [(A, b"Vdone")]


@pytest.mark.slow
async def test_a_slow_link_is_waited_for_while_something_passes(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 16.2: a fixed time-out, repeated unchanged, never let a large answer through."""
    monkeypatch.setattr(line, "ANSWER_MAX", 0.8)
    wire = Wire(int(valkey_url.rpartition(":")[2].removesuffix("/0")))
    engine = redis_engine(wire.url)
    try:
        store, code = await engine.open(), b"x" * 1_500_000
        wire.bytes_per_second = 1_000_000
        await store.put_code("digest", code, [])
        assert await store.code("digest") == code
        wire.loses = "answers"
        with pytest.raises(UnavailableError, match="no answer"):
            await store.code("digest")
    finally:
        await engine.aclose()
        wire.close()


async def test_a_store_that_lacks_replicas_damages_nothing(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A)
    await owner.inbox()
    await ask(store, "CONFIG", "SET", "min-replicas-to-write", 1)
    try:
        with pytest.raises(UnavailableError, match="NOREPLICAS"):
            await owner.finish(A)
        with pytest.raises(UnavailableError, match="NOREPLICAS"):
            await driver.send(B)
    finally:
        await ask(store, "CONFIG", "SET", "min-replicas-to-write", 0)

    end = await owner.progress(A, end=Finish(b"Vdone", b"s"))
    assert await store.commit([owner.part(end)]) == [Committed("")]
    assert await driver.told() == [(A, b"Vdone")]


# --------------------------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize("name", ["done", "ids", "journal", "timers", "events"])
async def test_a_key_of_a_wrong_type_damages_its_shard_and_no_other(store: Store, name: str) -> None:
    driver = await Driver.open(store)
    broken, sound = await Owner.acquire(store, 0, incarnation="one"), await Owner.acquire(store, 1, incarnation="one")
    await driver.call(A, FAR)
    end = Finish(b"V", b"s")
    parts = [
        owner.part(
            await owner.progress(id_, record=b"r", writes={"x": b"1"}, timers=[(1, "1:x:0")], events=["1-1"], end=end)
        )
        for owner, id_ in ((broken, A), (sound, FAR))
    ]
    parts[0].number = parts[1].number = 1
    await ask(store, "DEL", f"{keys_of(store).namespace}:0:{name}")
    await ask(store, "SET", f"{keys_of(store).namespace}:0:{name}", "not ours")

    answers = await store.commit(parts)

    assert isinstance(answers[0], Damaged)
    assert "WRONGTYPE" in answers[0].reason
    assert isinstance(answers[1], Committed)
    assert (await ask(store, "GET", keys_of(store).head(Shard(0)))).startswith(b"damaged ")
    assert await store.status(FAR) == "succeeded"
    await store.bury("one")
    with pytest.raises(DamagedError, match="until its head is mended"):
        await store.acquire(Shard(0), "two", "")


async def test_a_commit_tells_drivers_what_its_sound_parts_have_done_and_nothing_else(store: Store) -> None:
    # Promise 3: replies of all parts are written together, in their order; those of a damaged part are not.
    driver, other = await Driver.open(store), await Driver.open(store)
    owners = [await Owner.acquire(store, Shard(shard), incarnation="one") for shard in (1, 0, 2)]
    ids = [FAR, A, "g2-2"]
    await driver.call(*ids)
    await other.call(A)
    parts = [
        owner.part(await owner.progress(id_, end=Finish(b"V", b"s"))) for owner, id_ in zip(owners, ids, strict=True)
    ]
    for part in parts:
        part.number = 1
    # It fails when it trims, after it has told who waits.
    await ask(store, "SET", f"{keys_of(store).namespace}:0:forget", "not ours")

    answers = await store.commit(parts)

    assert [type(answer) for answer in answers] == [Committed, Damaged, Committed]
    assert await driver.told() == [(FAR, b"V"), ("g2-2", b"V")]
    assert await other.told() == []


async def test_a_foreign_key_in_place_of_replies_harms_no_shard_and_no_other_driver(store: Store) -> None:
    driver, other, owner = await Driver.open(store), await Driver.open(store), await Owner.acquire(store)
    await driver.call(A, B)
    await other.call(A)
    await ask(store, "SET", keys_of(store).replies(driver.writer), "not ours")

    assert isinstance(await owner.finish(A), Committed)
    await ask(store, "DEL", keys_of(store).replies(driver.writer))

    assert isinstance(await owner.finish(B), Committed)
    assert await other.told() == [(A, b"Vdone")]


async def test_a_write_that_trips_over_a_foreign_key_is_not_acknowledged_and_goes_on_when_it_is_gone(
    store: Store,
) -> None:
    # Promise 1: its number stays, so the same write, sent again, does what it had not done, and nothing twice.
    driver = await Driver.open(store)
    foreign = keys_of(store).inbox(Shard(1))
    await ask(store, "SET", foreign, "not ours")

    for _ in range(2):
        with pytest.raises(DamagedError, match="submit failed"):
            await store.submit(driver.writer, 1, [message(A), message(FAR), message(B)], "")
    await ask(store, "DEL", foreign)
    settled = await store.submit(driver.writer, 1, [message(A), message(FAR), message(B)], "")

    assert settled is Settled.APPLIED
    assert len(await store.inbox(Shard(0), "", 10)) == 2
    assert len(await store.inbox(Shard(1), "", 10)) == 1


async def test_a_writer_without_its_reply_stream_is_refused(store: Store) -> None:
    driver = await Driver.open(store)
    await ask(store, "DEL", keys_of(store).replies(driver.writer))

    assert await driver.call(A) is Settled.REFUSED


# -------------------------------------------------------------------------------------------------------- house-keeping


async def test_what_a_driver_leaves_behind_expires(engine: Engine) -> None:
    # Promise 9.
    store = await engine.open(session=timedelta(minutes=5))
    driver = await Driver.open(store)
    await driver.call(A)

    for key in (keys_of(store).writer(driver.writer), keys_of(store).replies(driver.writer)):
        assert 290_000 < await ask(store, "PTTL", key) <= 300_000


async def test_nothing_is_left_of_invocations_but_their_outcomes_and_state(store: Store) -> None:
    # Promise 9: of everything that was written, only what `TABLE` says is kept.
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A, B)
    first = await owner.committed(await owner.progress(A, record=b"r", timers=[(1, f"1:{A}:0")]))
    await owner.move_due()
    await owner.sleep(B, record=b"r", holds=True)
    await owner.finish(B, asleep=True, keep_ms=1_000)
    await owner.finish(A, journal=[first], events=await owner.event_ids(), writes={"x": b"1"})
    await store.release(owner.incarnation, owner.owned, leaving=True)
    namespace = keys_of(store).namespace

    found = [key.decode().removeprefix(namespace + ":") for key in await ask(store, "KEYS", f"{namespace}:*")]
    filled = [key for key in found if not await is_empty_stream(store, f"{namespace}:{key}")]

    kept = ["0:done", "0:forget", "0:head", "0:ids", "0:outcomes", f"0:state:{TARGET}", "0:timers", "control", "meta"]
    assert sorted(filled) == [*kept, f"replies:{driver.writer}", f"writer:{driver.writer}"]


async def is_empty_stream(store: Store, key: str) -> bool:
    return await ask(store, "TYPE", key) == b"stream" and await ask(store, "XLEN", key) == 0


async def test_the_table_of_keys_names_every_key_with_its_type(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A, B)
    await store.put_code("h", b"code", ["Ticket"])
    await store.renew(owner.incarnation, owner.owned, b"")
    await store.bury("x")
    timers = [(1, f"1:{A}:0"), (1 << 50, f"2:{A}:0")]
    await owner.commit(await owner.progress(A, record=b"r", writes={"x": b"1"}, timers=timers))
    await owner.move_due()
    await driver.send("c3-0")
    await owner.finish("c3-0", keep_ms=9_000)
    await owner.sleep(B)
    await driver.submit(new("d4-0", "", "digest"))
    namespace = keys_of(store).namespace

    found: dict[str, str] = {}
    for key in await ask(store, "KEYS", f"{namespace}:*"):
        name = key.decode().removeprefix(namespace)
        for given, said in ((":0:", ":<shard>:"), (B, "<invocation>"), (TARGET, "<Type>/<key>"), (":h", ":<hash>")):
            name = name.replace(given, said) if given != ":h" or name.endswith(":h") else name
        found[f"<ns>{name.replace(driver.writer, '<id>')}"] = (await ask(store, "TYPE", key)).decode()

    assert found == {key: {"sorted set": "zset"}.get(kind, kind) for key, kind, _ in TABLE}


async def test_a_late_packet_of_an_old_connection_does_nothing(engine: Engine, store: Store) -> None:
    # Promises 3 and 6: every numbered or fenced script once more, as it was, after the world went on.
    driver, past = await Driver.open(store), await Owner.acquire(store, incarnation="past")
    await driver.call(A, B)
    sleeping = past.part(await past.progress(A, record=b"r", end=Sleep(holds=True), timers=[(1, f"1:{A}:0")]))
    sleeping.number = 1
    await store.commit([sleeping])
    await store.release("past", past.owned, leaving=False)
    owner = await Owner.acquire(store, incarnation="owner")
    owner.inbox_ids = past.inbox_ids
    await owner.finish(A, asleep=True)
    await driver.send("c3-0")
    before = await picture(store)

    late = await engine.open()
    await late.commit([sleeping])
    await late.submit(driver.writer, 1, [message(A), message("d4-0")], "9999999999999-0")
    await late.renew("past", past.owned, b"")
    await late.release("past", past.owned, leaving=False)
    await late.move_due(Shard(0), past.epoch, "past", 10)
    await late.commit([past.part(Progress(B, TARGET, "", writes={"late": b"1"}))])

    after = await picture(store)
    for key in ("hosts", "control"):
        before.pop(key, None)
        after.pop(key, None)
    assert after == before


async def picture(store: Store) -> dict[str, bytes]:
    """Return everything that lies in the namespace, dumped."""
    namespace = keys_of(store).namespace
    names = sorted(await ask(store, "KEYS", f"{namespace}:*"))
    return {name.decode().removeprefix(namespace + ":"): await ask(store, "DUMP", name) for name in names}


# ---------------------------------------------------------------------------------------------------------------- lines


async def test_an_answer_that_does_not_come_counts_as_lost_and_the_line_goes_on(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("journal.redis.connection.ANSWER_MAX", 0.2)
    lines = Connections(url)

    for _ in range(2):
        with pytest.raises(UnavailableError, match="no answer for"):
            await lines.ask("BLPOP", "nothing", 0)
        assert await lines.ask("PING") == b"PONG"

    await lines.aclose()


async def test_a_server_that_lets_a_line_in_and_says_nothing_counts_as_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("journal.redis.connection.ANSWER_MAX", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        lines = Connections(f"redis://127.0.0.1:{mute.getsockname()[1]}/0")

        with pytest.raises(UnavailableError, match="no answer for"):
            await lines.ask("PING")

        await lines.aclose()


class LateConnection(RedisConnection):
    """Returns from `connect` when the server has closed it again, as may be over TLS: one read brings both."""

    async def connect(self) -> None:
        await super().connect()
        assert await cast("asyncio.StreamReader", self._reader).read() == b""


async def test_a_server_that_closes_right_after_its_greeting_is_not_waited_for() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):  # the client says its name and its version
            await reader.readuntil(b"SETINFO")
            writer.write(b"+OK\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        line = Connection(LateConnection(port=server.sockets[0].getsockname()[1], protocol=2))

        with pytest.raises(UnavailableError, match="it has closed the connection"):
            await line.ask(("PING",))

        await line.aclose()


async def test_a_line_whose_command_was_cancelled_gives_nobody_its_answer(url: str) -> None:
    lines = Connections(url)
    asking = asyncio.ensure_future(lines.ask("BLPOP", "nothing", 0.3))
    while not asking.done():
        asking.cancel()
        await asyncio.sleep(0)

    assert asking.cancelled()
    assert await lines.ask("ECHO", "mine") == b"mine"

    await lines.aclose()


async def test_text_that_is_no_valid_utf_8_crosses_a_line(url: str) -> None:
    lines = Connections(url)

    assert await lines.ask("ECHO", "caf\udce9") == "caf\udce9".encode("utf-8", "surrogatepass")

    await lines.aclose()


async def test_a_command_that_is_refused_leaves_its_line_in_step(url: str) -> None:
    lines = Connections(url)

    with pytest.raises(RefusedCommand):
        await lines.ask("HGET", "too few")
    with pytest.raises(RefusedCommand):
        await lines.ask_all(("ECHO", "one"), ("HGET", "too few"), ("ECHO", "three"))

    assert await lines.ask("ECHO", "mine") == b"mine"
    await lines.aclose()


async def test_a_line_that_is_told_what_nobody_asked_for_is_closed(url: str) -> None:
    lines = Connections(url)

    with pytest.raises(UnavailableError):
        await lines.ask("SUBSCRIBE", "one", "two")  # one command, two answers

    assert await lines.ask("ECHO", "mine") == b"mine"
    await lines.aclose()


async def test_a_line_whose_connection_the_server_has_closed_opens_again(url: str) -> None:
    lines = Connections(url)
    id_ = await lines.ask("CLIENT", "ID")
    other = Connections(url)

    assert await other.ask("CLIENT", "KILL", "ID", id_) == 1
    found = await asyncio.gather(lines.ask("PING"), return_exceptions=True)  # at the latest this one finds it closed
    assert "no answer" not in str(found)  # and does not wait for what cannot come

    assert await lines.ask("CLIENT", "ID") != id_
    await lines.aclose()
    await other.aclose()
