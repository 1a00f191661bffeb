"""Mending: what a shard that has lost its timers gets back, in both stores, however often its host dies meanwhile.

And the patrol that finds what has been lost from it, where nothing else would ever notice.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from store_bench import TARGET, Driver, Engine, Owner, memory_engine, redis_engine
from test_semantics import Simulation, played

from actors.host import timekeeper
from journal.ids import Epoch, Shard, new_id
from journal.losses import WENT_BACK
from journal.memory.store import MemoryStore
from journal.records import Message, timer_of
from journal.redis import mending
from journal.redis import store as redis_store
from journal.redis.store import RedisStore
from journal.store import Granted, LeaseHeld, Outgoing, Store

FAR_OFF_MS = 10**15
SHARD = Shard(0)
BEGUN = ("in-0", "asleep-0", "paused-0")
"""One in memory, one asleep and one that is paused: each has an entry."""


@pytest_asyncio.fixture(params=["memory", "valkey", "redis7"])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    name: str = request.param
    namespace = f"test-{new_id()}"
    engine = memory_engine() if name == "memory" else redis_engine(request.getfixturevalue(f"{name}_url"), namespace)
    yield engine
    await engine.aclose()


async def lose_timers(store: Store) -> None:
    if isinstance(store, MemoryStore):
        shard = store._world.shards[SHARD]
        shard.timers.clear()
        shard.is_timed = False
    else:
        assert isinstance(store, RedisStore)
        await store._connections.ask("DEL", store._keys.timers(SHARD))


async def timers(store: Store) -> dict[str, int]:
    if isinstance(store, MemoryStore):
        return dict(store._world.shards[SHARD].timers)
    assert isinstance(store, RedisStore)
    found = await store._connections.ask("ZRANGE", store._keys.timers(SHARD), "0", "-1", "WITHSCORES")
    pairs = zip(found[::2], found[1::2], strict=True)
    return {member.decode(): int(float(due)) for member, due in pairs if member}


async def filled(store: Store) -> Owner:
    """Return the owner of a shard with something of each kind that may wait for a timer."""
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    for id_ in (*BEGUN, "queued-0", "delayed-0", "moved-0"):
        due_ms = FAR_OFF_MS if id_ in ("delayed-0", "moved-0") else 0
        made = Message(id_, TARGET, "wait", b"", driver.teller, due_ms=due_ms)
        await driver.submit(Outgoing(SHARD, id_, driver.teller, made.encoded()))
    owner.inbox_ids = {Message.parse(data).id: id_ for id_, data in await store.inbox(SHARD, "", 100)}
    await owner.commit(await owner.progress("in-0", record=b"r", timers=[(FAR_OFF_MS, timer_of("1", "in-0", "0"))]))
    await owner.sleep("asleep-0", record=b"r", timers=[(FAR_OFF_MS, timer_of("2", "asleep-0", "0"))])
    await owner.sleep("paused-0", record=b"r", paused="why")
    for id_ in ("delayed-0", "moved-0"):
        await owner.sleep(id_, holds=False, timers=[(FAR_OFF_MS, timer_of("3", id_, "d"))])
    return owner


async def taken_over(store: Store, former: Owner) -> tuple[Owner, Granted]:
    """Return the next owner, and the grant of its lease."""
    incarnation = new_id()
    held = await store.acquire(SHARD, incarnation, "")
    assert isinstance(held, LeaseHeld)
    granted = await store.acquire(SHARD, incarnation, held.value)
    assert isinstance(granted, Granted)
    return Owner(store, SHARD, incarnation, granted.epoch, granted.number, granted.clean), granted


async def check_mended(store: Store, owner: Owner) -> None:
    assert set(await owner.events()) == {(id_, "v", 0, b"") for id_ in BEGUN}
    again = {timer_of(mending.FIRST, id_, "d"): FAR_OFF_MS for id_ in ("delayed-0", "moved-0")}
    assert await timers(store) == again
    assert [await store.status(id_) for id_ in (*BEGUN, "queued-0", "delayed-0")] == [
        *("open", "asleep", "paused: why", "open", "asleep"),
    ]
    _, granted = await taken_over(store, owner)
    assert granted.is_whole
    assert not granted.is_untimed


async def test_lost_timers_are_noticed_by_a_renewal_and_set_again_by_the_next_owner(engine: Engine) -> None:
    """Issue 15.31: those of delayed messages; an owner sets those of entries itself, when it is told."""
    store = await engine.open()
    owner = await filled(store)
    assert await store.renew(owner.incarnation, owner.owned, b"") == {SHARD: owner.number}

    await lose_timers(store)

    assert await store.renew(owner.incarnation, owner.owned, b"") == {SHARD: WENT_BACK}
    owner, granted = await taken_over(store, owner)
    assert (granted.is_whole, granted.is_untimed) == (False, True)
    assert await store.mend(SHARD, owner.epoch, owner.incarnation) == []
    assert await store.renew(owner.incarnation, owner.owned, b"") == {SHARD: owner.number}
    await check_mended(store, owner)


async def test_an_owner_that_dies_before_it_mends_leaves_it_to_the_next(engine: Engine) -> None:
    """Issue 15.31: the timers themselves are there again as soon as a lease is granted."""
    store = await engine.open()
    owner = await filled(store)
    await lose_timers(store)

    for _ in range(2):
        owner, granted = await taken_over(store, owner)
        assert (granted.is_whole, granted.is_untimed) == (False, True)
    former, owner = owner, (await taken_over(store, owner))[0]

    assert await store.mend(SHARD, former.epoch, former.incarnation) == [], "it is the past: it mends nothing"
    assert await owner.events() == []
    assert await store.mend(SHARD, owner.epoch, owner.incarnation) == []
    assert await store.mend(SHARD, owner.epoch, owner.incarnation) == [], "nor does a repetition find anything"
    await check_mended(store, owner)


class DeadError(Exception):
    """The host has died."""


def dying(run: Callable[..., Any], at: int, *, applied: bool) -> Callable[..., Any]:
    """Return a run of scripts that ends before or after its nth call that brings something, or is the last one."""
    calls = 0

    async def call(name: str, *arguments: Any, **options: Any) -> Any:
        nonlocal calls
        counts = name == "mend" and any(arguments[3:])
        calls += counts
        is_its = counts and calls == at
        if is_its and not applied:
            raise DeadError
        answer = await run(name, *arguments, **options)
        if is_its:
            raise DeadError
        return answer

    return call


@pytest.mark.parametrize("applied", [False, True])
@pytest.mark.parametrize("kind", ["valkey", "redis7"])
async def test_an_owner_that_dies_while_it_mends_leaves_the_rest_to_the_next(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, kind: str, applied: bool
) -> None:
    """Issue 15.31: before and after each of its calls, of which there are many here."""
    monkeypatch.setattr(mending, "PAGE", 1)
    url: str = request.getfixturevalue(f"{kind}_url")
    at = deaths = 0
    while deaths == at:
        at += 1
        engine = redis_engine(url, f"test-{new_id()}")
        store = await engine.open()
        owner = await filled(store)
        await lose_timers(store)
        owner, _ = await taken_over(store, owner)
        assert isinstance(store, RedisStore)
        run = store._run
        monkeypatch.setattr(store, "_run", dying(run, at, applied=applied))
        try:
            await store.mend(SHARD, owner.epoch, owner.incarnation)
        except DeadError:
            deaths += 1
            monkeypatch.setattr(store, "_run", run)
            owner, granted = await taken_over(store, owner)
            is_mended = applied and granted.is_whole  # its last call was
            assert granted.is_untimed != is_mended
            await store.mend(SHARD, owner.epoch, owner.incarnation)
        await check_mended(store, owner)
        await engine.aclose()
    assert deaths > 6


# ------------------------------------------------------------------------------------------------------------- patrol


async def asleep(store: Store, *ids: str) -> Owner:
    """Return the owner of a shard in which these are asleep."""
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(*ids)
    for id_ in ids:
        await owner.sleep(id_)
    return owner


@pytest.fixture(params=["valkey", "redis7"])
def redis_url(request: pytest.FixtureRequest) -> str:
    return request.getfixturevalue(f"{request.param}_url")


async def test_the_patrol_looks_through_all_of_a_shard_in_parts(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 16.4: of each number of parts, whichever is gone."""
    monkeypatch.setattr(redis_store, "PATROL", 1)
    engine = redis_engine(redis_url, f"test-{new_id()}")
    store = await engine.open()
    assert isinstance(store, RedisStore)
    ids = [f"{number}{'x' * 70}-0" for number in range(20)]  # so long that the server keeps no list of them
    await asleep(store, *ids)

    async def parts() -> list[bool]:
        cursor, found = await store.has_gone(SHARD, 0)
        out = [found]
        while cursor:
            cursor, found = await store.has_gone(SHARD, cursor)
            out.append(found)
        return out

    assert len(await parts()) > 3
    for id_ in ids:
        assert not any(await parts())
        kept = await store._connections.ask("DUMP", store._keys.asleep(SHARD, id_))
        await store._connections.ask("DEL", store._keys.asleep(SHARD, id_))
        assert any(await parts())
        await store._connections.ask("RESTORE", store._keys.asleep(SHARD, id_), 0, kept)
    await engine.aclose()


async def test_what_ends_or_wakes_while_the_patrol_looks_is_not_gone(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 16.4: it would be mended, and the whole shard read anew, for nothing."""
    engine = redis_engine(redis_url, f"test-{new_id()}")
    store = await engine.open()
    assert isinstance(store, RedisStore)
    owner = await asleep(store, "ends-0", "sleeps-0")
    look = store._not_there

    async def late(shard: Shard, ids: list[str]) -> list[str]:
        monkeypatch.setattr(store, "_not_there", look)
        await owner.finish("ends-0", asleep=True)
        return await look(shard, ids)

    monkeypatch.setattr(store, "_not_there", late)
    assert await store.has_gone(SHARD, 0) == (0, False)
    assert await store.status("ends-0") == "succeeded"
    await engine.aclose()


def test_a_host_goes_on_with_its_patrol_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 16.4: it would look at the first part of a large shard for ever."""
    monkeypatch.setattr(timekeeper, "TRIM_EVERY", 1.0)
    asked: list[int] = []
    mended = list[Shard]()

    async def has_gone(_: MemoryStore, shard: Shard, cursor: int) -> tuple[int, bool]:
        if shard != SHARD:
            return 0, False
        asked.append(cursor)
        return (cursor + 1, False) if cursor < 2 else (0, len(asked) < 6)

    async def mend(store: MemoryStore, shard: Shard, epoch: Epoch, incarnation: str) -> list[str]:
        mended.append(shard)
        return await mend_store(store, shard, epoch, incarnation)

    mend_store = MemoryStore.mend
    monkeypatch.setattr(MemoryStore, "has_gone", has_gone)
    monkeypatch.setattr(MemoryStore, "mend", mend)

    async def scenario(world: Simulation) -> None:
        await asyncio.sleep(20)

    played(scenario, None, ["a"])
    assert asked[:6] == [0, 1, 2] * 2
    assert mended == [SHARD]
