"""The contract of `Survey`, for the memory store, Valkey and Redis 7: what operators read, in pages."""

from collections.abc import Sequence

import pytest
from store_bench import Driver, Engine, Owner
from test_store import engine, store

from journal.ids import Shard, shard_in
from journal.records import Failure, Message, failure, timer_of
from journal.store import Outgoing, Progress, Store
from journal.survey import Account, Listed, Place, Survey

SHARD = Shard(0)
__all__ = ["engine", "store"]

ODD = 'Ticket/a/b:c d\n"é漢😀{x}*[?]\\\r\0|'


def asked(invocation: str, target: str, caller: str = "", arguments: bytes = b'J[["x"],{}]') -> Outgoing:
    message = Message(invocation, target, "reserve", arguments, caller)
    return Outgoing(shard_in(invocation), invocation, caller, message.encoded())


async def every(survey: Survey, place: Place, begins: str = "", count: int = 1_000) -> list[Listed]:
    """Return all pages of shard 0."""
    found: list[Listed] = []
    cursor, pages = "", 0
    while cursor or not pages:
        page = await survey.page(SHARD, place, begins, cursor, count)
        found += page.found
        cursor, pages = page.cursor, pages + 1
        assert pages < 100
    return found


def targets(found: Sequence[Listed]) -> list[tuple[str, str]]:
    messages = [Message.parse(each.message) for each in found]
    return [(message.id, message.target) for message in messages]


async def progress(store: Store, owner: Owner, **what: object) -> Progress:
    """Return the progress of the first message in the inbox."""
    id_, data = (await store.inbox(SHARD, "", 1))[0]
    message = Message.parse(data)
    owner.inbox_ids[message.id] = id_
    return await owner.progress(message.id, message.target, **what)


@pytest.mark.parametrize("count", [1, 3, 8, 9, 1_000])
async def test_the_inbox_is_listed_in_its_order_by_what_targets_begin_with(store: Store, count: int) -> None:
    driver = await Driver.open(store)
    named = [(f"{n:x}1-0", f"Ticket/{'ab'[n % 2]}{n}") for n in range(20)]
    await driver.submit(*(asked(*each) for each in named), asked("o1-0", ODD), asked("s1-0", "Mail"))
    survey = store.survey()

    assert targets(await every(survey, Place.INBOX, count=count)) == [*named, ("o1-0", ODD), ("s1-0", "Mail")]
    assert targets(await every(survey, Place.INBOX, "Ticket/a", count)) == [*named[::2], ("o1-0", ODD)]
    assert targets(await every(survey, Place.INBOX, ODD, count)) == [("o1-0", ODD)]
    assert await every(survey, Place.INBOX, "Tick*", count) == []
    first = (await every(survey, Place.INBOX, count=count))[0]
    assert Message.parse(first.message).arguments == b""
    assert first.id == (await store.inbox(SHARD, "", 1))[0][0]


async def test_those_asleep_are_listed_with_the_reason_of_their_pause(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    why = {"a1-0": "", "b1-0": "it diverged\n\0é"}
    for id_, paused in why.items():
        await driver.submit(asked(id_, f"Ticket/{id_}"))
        await progress(store, owner)
        await owner.sleep(id_, target=f"Ticket/{id_}", paused=paused, record=b"{}\n")

    found = await every(store.survey(), Place.ASLEEP, "Ticket/")

    said = {each.invocation: (each.place, each.paused, each.has_begun) for each in found}
    assert said == {"a1-0": (Place.ASLEEP, None, True), "b1-0": (Place.ASLEEP, why["b1-0"], True)}
    assert sorted(targets(found)) == [(id_, f"Ticket/{id_}") for id_ in why]
    assert targets(await every(store.survey(), Place.ASLEEP, "Ticket/b")) == [("b1-0", "Ticket/b1-0")]
    paused = await store.survey().page(SHARD, Place.ASLEEP, "Ticket/", "", are_paused=True)
    assert [each.invocation for each in paused.found] == ["b1-0"]
    assert [each.held for each in await store.survey().sizes(1)] == [2]


async def test_a_delayed_one_has_not_begun(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.submit(asked("a1-0", "Ticket/A"))
    await progress(store, owner)
    timer = timer_of("0" * 20, "a1-0", "d")
    await owner.sleep("a1-0", holds=False, timers=[(1_900_000_000_000, timer)])

    (found,) = await every(store.survey(), Place.ASLEEP)

    account = await store.survey().account("a1-0")
    assert account is not None
    assert (found.has_begun, account.has_begun, account.place) == (False, False, Place.ASLEEP)
    assert await store.survey().due(SHARD, [timer, "other"]) == [1_900_000_000_000, 0]


@pytest.mark.parametrize("count", [1, 2, 9])
async def test_the_newest_end_comes_first_without_its_value(store: Store, count: int) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    error = failure(Failure(409, "taken", {}, "TerminalError", b"pickle"))
    outcomes = {"a1-0": b"Vlong", "b1-0": error, "c1-0": b"Vother"}
    await driver.submit(*(asked(id_, "Ticket/A") for id_ in outcomes))
    for id_, outcome in outcomes.items():
        await progress(store, owner)
        await owner.finish(id_, outcome, keep_ms=60_000 if id_ == "c1-0" else 0)

    found = await every(store.survey(), Place.ENDED, count=count)

    short = error.removesuffix(b"pickle")
    assert [(each.invocation, each.name, each.outcome) for each in found] == [
        ("c1-0", "summary", b"V"),
        ("b1-0", "summary", short),
        ("a1-0", "summary", b"V"),
    ]
    assert await every(store.survey(), Place.ENDED, "Ticket") == []


async def test_an_account_has_the_message_and_the_waiting(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.submit(asked("a1-0", "Ticket/A", "i:f1-0:3"))
    survey = store.survey()
    message = Message("a1-0", "Ticket/A", "reserve", b'J[["x"],{}]', "i:f1-0:3").encoded()

    queued = await survey.account("a1-0")
    part = await progress(store, owner)
    assert queued == Account(Place.INBOX, part.inbox_id, ("i:f1-0:3",), message)

    await owner.sleep("a1-0", record=b"{}\n")
    assert await survey.account("a1-0") == Account(Place.ASLEEP, part.inbox_id, ("i:f1-0:3",), message)

    await owner.finish("a1-0", b"Vvalue", asleep=True)
    ended = await survey.account("a1-0")
    assert ended is not None
    assert (ended.place, ended.name, ended.outcome) == (Place.ENDED, "summary", b"Vvalue")
    assert await survey.account("b1-0") is None


async def test_the_records_of_one_in_memory_are_found_among_others(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.submit(asked("a1-0", "Ticket/A"), asked("b1-0", "Ticket/B"))
    for id_, data in await store.inbox(SHARD, "", 10):
        owner.inbox_ids[Message.parse(data).id] = id_
    for n in range(20):
        await owner.commit(await owner.progress(f"{'ab'[n % 2]}1-0", record=b"%d\n" % n))

    records, cursor = await store.survey().records("b1-0", "")

    assert ([record for _, record in records], cursor) == ([b"%d\n" % n for n in range(1, 20, 2)], "")


async def test_objects_with_state_are_found_by_prefix(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    names = ["Ticket/a1", "Ticket/a2", "Ticket/b1", "Ticket2/a1", ODD]
    await driver.submit(*(asked(f"{n}1-0", name) for n, name in enumerate(names)))
    for n, name in enumerate(names):
        await progress(store, owner)
        await owner.finish(f"{n}1-0", target=name, writes={"field": b"J1"})

    async def found(begins: str) -> list[str]:
        survey, (some, cursor) = store.survey(), await store.survey().objects(begins, "", 2)
        while cursor:
            more, cursor = await survey.objects(begins, cursor, 2)
            some += more
        return sorted(some)

    assert await found("Ticket/a") == sorted([ODD, "Ticket/a1", "Ticket/a2"])
    assert await found(ODD) == [ODD]
    assert await found("Ticket?/") == []


async def test_a_namespace_is_open_once_a_program_has_opened_it(engine: Engine) -> None:
    unopened = engine.connected()
    assert not await unopened.survey().is_open()

    await engine.open()

    assert await unopened.survey().is_open()


async def test_sizes_and_facts_are_told(store: Store) -> None:
    driver = await Driver.open(store)
    await driver.submit(asked("a1-0", "Ticket/A"), asked("b1-1", "Ticket/B"))

    sizes, facts = await store.survey().sizes(2), await store.survey().facts()

    assert [(size.inbox, size.known, size.done) for size in sizes] == [(1, 1, 0), (1, 1, 0)]
    assert facts.version
    assert facts.settings.get("appendfsync", "always") == "always"
