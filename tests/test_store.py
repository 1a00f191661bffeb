"""The contract of `Store`, one suite for all who keep it: MemoryStore, and RedisStore on Valkey and on Redis 7.

What a sentence here says holds for each of them; numbers of promises are those of the design.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any, cast

import pytest
import pytest_asyncio
from store_bench import (
    REFUSAL,
    SHARDS,
    TARGET,
    Driver,
    Engine,
    Owner,
    data_of,
    event,
    memory_engine,
    message,
    new,
    redis_engine,
)

from journal.errors import DamagedError
from journal.ids import Epoch, Shard
from journal.losses import WENT_BACK
from journal.memory.store import MemoryStore
from journal.records import EventKind, Message, order_of, teller_of_entry, timer_of_field, timer_of_object
from journal.redis.store import RedisStore
from journal.store import (
    INBOX_FULL,
    READ_BYTES,
    Attach,
    Committed,
    Cursor,
    Damaged,
    Expire,
    Fenced,
    Finish,
    Granted,
    LeaseHeld,
    Loaded,
    NamespaceLimits,
    Outgoing,
    PartlyApplied,
    Progress,
    Settled,
    Sleep,
    Store,
    Trimmed,
)

A, B, C = "a1-0", "b2-0", "c3-0"
FAR = "f9-1"
"""An invocation of another shard."""

ODD = 'Ti:cket/a/b:c d\n"é漢😀{x}*\r\0|'
"""A target whose key holds what keys of the store, lines and words are made of."""


@pytest_asyncio.fixture(params=["memory", "valkey", "redis7"])
async def engine(request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    name: str = request.param
    engine = memory_engine() if name == "memory" else redis_engine(request.getfixturevalue(f"{name}_url"))
    yield engine
    await engine.aclose()


@pytest_asyncio.fixture
async def store(engine: Engine) -> Store:
    return await engine.open()


# ---------------------------------------------------------------------------------------------------------- namespace


async def test_the_number_of_shards_is_chosen_once(engine: Engine) -> None:
    store = await engine.open()

    for other in (store, await engine.open()):
        assert (await other.open_namespace(NamespaceLimits(shards=SHARDS + 3))).shards == SHARDS


# ------------------------------------------------------------------------------------------------- drivers and numbers


async def test_a_submitted_message_lies_in_its_inbox_as_it_was_given(store: Store) -> None:
    # Promise 1.
    driver = await Driver.open(store)

    assert await driver.call(A) is Settled.APPLIED
    assert await driver.send(FAR) is Settled.APPLIED

    assert [data for _, data in await store.inbox(Shard(0), "", 10)] == [data_of(A)]
    assert [data for _, data in await store.inbox(Shard(1), "", 10)] == [data_of(FAR)]
    assert await driver.told() == []


async def test_a_numbered_write_has_its_effect_once(store: Store) -> None:
    # Promises 1 and 2: the answer was lost, the same is sent again.
    driver = await Driver.open(store)
    await driver.call(A)

    again = await store.submit(driver.writer, 1, [message(B, driver.teller)], "")

    assert again is Settled.APPLIED
    assert [data for _, data in await store.inbox(Shard(0), "", 10)] == [data_of(A)]


@pytest.mark.parametrize("number", [0, 1, 4, 5, 99])
async def test_a_number_that_is_not_the_next_is_refused(store: Store, number: int) -> None:
    driver = await Driver.open(store)
    await driver.send(A)
    await driver.send(B)

    settled = await store.submit(driver.writer, number, [message(C)], "")

    assert settled is Settled.REFUSED
    assert await store.status(C) == ""


async def test_an_unknown_writer_is_refused(store: Store) -> None:
    assert await store.submit("nobody", 1, [message(A)], "") is Settled.REFUSED
    assert await store.status(A) == ""


async def test_a_new_writer_may_ask_for_its_number_before_it_has_written(store: Store) -> None:
    driver = await Driver.open(store)

    assert await store.submit(driver.writer, 0, [], "") is Settled.APPLIED


async def test_a_silent_writer_is_forgotten_and_a_repeated_number_keeps_it(engine: Engine) -> None:
    store = await engine.open(session=timedelta(milliseconds=1_500))
    driver, silent = await Driver.open(store), await Driver.open(store)

    for _ in range(3):
        await engine.elapse(store, 600)
        assert await store.submit(driver.writer, 0, [], "") is Settled.APPLIED

    assert await silent.send(A) is Settled.REFUSED
    assert await store.status(A) == ""


async def test_messages_of_one_writer_keep_their_order(store: Store) -> None:
    # Promise 2, calls and sends mixed, within one write and over several.
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    ids = [f"i{n}-0" for n in range(60)]

    for first in range(0, 60, 20):
        await driver.submit(*(message(id_, driver.teller if first % 3 else "") for id_ in ids[first : first + 20]))

    assert await owner.inbox() == ids


async def test_two_writers_never_have_the_same_name(store: Store) -> None:
    assert len({await store.open_writer() for _ in range(20)}) == 20


# ------------------------------------------------------------------------------------------------- idempotence, attach


async def test_a_known_invocation_is_attached_to_and_not_accepted_again(store: Store) -> None:
    one, other, owner = await Driver.open(store), await Driver.open(store), await Owner.acquire(store)
    await one.call(A)

    await other.call(A)

    assert await owner.inbox() == [A]
    await owner.finish(A, b"Vonce")
    assert await one.told() == [(A, b"Vonce")]
    assert await other.told() == [(A, b"Vonce")]


async def test_who_asks_twice_is_told_once(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A, A)
    await driver.attach(A, A)

    await owner.finish(A)

    assert await driver.told() == [(A, b"Vdone")]


async def test_a_send_tells_nobody_until_somebody_attaches(store: Store) -> None:
    driver, late, owner = await Driver.open(store), await Driver.open(store), await Owner.acquire(store)
    await driver.send(A)
    await late.attach(A)

    await owner.finish(A)

    assert await driver.told() == []
    assert await late.told() == [(A, b"Vdone")]


async def test_attaching_to_a_finished_invocation_tells_its_outcome_at_once(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.send(A, B)
    await owner.finish(A, b"Vvalue\0\n")
    await owner.finish(B, b"E[]", keep_ms=60_000)

    await driver.attach(B, A)

    assert await driver.told() == [(B, b"E[]"), (A, b"Vvalue\0\n")]


async def test_a_message_of_a_finished_invocation_is_answered_with_its_outcome(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.send(A)
    await owner.finish(A, keep_ms=60_000)

    await driver.call(A)

    assert await driver.told() == [(A, b"Vdone")]
    assert await owner.inbox() == []


async def test_attaching_to_an_invocation_asleep_tells_its_outcome_later(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.send(A)
    await owner.sleep(A)

    await driver.attach(A)
    assert await driver.told() == []
    await owner.finish(A, asleep=True)

    assert await driver.told() == [(A, b"Vdone")]


@pytest.mark.parametrize("unknown", ["x-0", "x-99999", "tom's \n:id é-1"])
async def test_attaching_to_the_unknown_says_so(store: Store, unknown: str) -> None:
    driver = await Driver.open(store)

    await driver.attach(unknown)

    assert await driver.told() == [(unknown, b"U")]
    assert await store.status(unknown) == ""


@pytest.mark.parametrize("end", ["open", "asleep", "finished", "unknown"])
async def test_a_commit_attaches_an_entry_which_is_told_the_outcome_once(store: Store, end: str) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.send(A, B)
    if end == "asleep":
        await owner.sleep(B)
    elif end == "finished":
        await owner.finish(B)
    waited = "nobody-0" if end == "unknown" else B

    wish = Attach(Shard(0), waited, teller_of_entry(A, 3), b"Eunknown")
    part = await owner.progress(A, messages=[wish])
    for _ in range(2):  # a second wish of the same entry adds nothing while it is open
        assert isinstance(await owner.commit(part), Committed)
        if end in ("finished", "unknown"):
            break
        part = await owner.progress(A, messages=[wish])
    if end in ("open", "asleep"):
        assert await owner.events() == []
        await owner.finish(B, asleep=end == "asleep")

    assert await owner.events() == [(A, "r", 3, b"Eunknown" if end == "unknown" else b"Vdone")]


@pytest.mark.parametrize("keep_ms", [0, 10**9])
async def test_the_outcome_can_be_read(store: Store, keep_ms: int) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.send(A, B)
    await owner.sleep(B)

    assert [await store.outcome(each) for each in (A, B, C)] == [b"", b"", None]
    await owner.finish(A, keep_ms=keep_ms)
    await owner.finish(B, asleep=True, keep_ms=keep_ms)

    assert [await store.outcome(each) for each in (A, B, C)] == [b"Vdone", b"Vdone", None]


# --------------------------------------------------------------------------------------------------------------- events


async def test_an_event_comes_to_an_open_invocation_once_and_in_the_order_sent(store: Store) -> None:
    # Numbered like a message; one that was sent in the same write before it is known.
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    data = b"\xff\0\r\n"

    sent = message(A), event(A, b"1"), message(B), event(B, data, 999_999_999), event(A, b"2")
    assert await driver.submit(*sent) is Settled.APPLIED
    assert await store.submit(driver.writer, 1, sent, "") is Settled.APPLIED

    assert await owner.inbox() == [A, B]
    assert await owner.events() == [(A, "w", 3, b"1"), (B, "w", 999_999_999, data), (A, "w", 3, b"2")]
    assert await driver.told() == []


async def test_an_event_comes_to_one_that_is_asleep(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.send(A)
    await owner.sleep(A)

    assert await driver.submit(event(A)) is Settled.APPLIED

    assert await owner.events() == [(A, "w", 3, b"Vvalue")]


@pytest.mark.parametrize("keep_ms", [0, 10**9])
async def test_an_event_of_a_finished_invocation_is_nothing(store: Store, keep_ms: int) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.send(A, B)
    await owner.finish(A, keep_ms=keep_ms)

    assert await driver.submit(event(A)) is Settled.APPLIED
    assert isinstance(await owner.commit(await owner.progress(B, messages=[event(A)])), Committed)

    assert await owner.events() == []


async def test_who_brings_an_event_to_the_unknown_is_told_which(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)

    operations = message(A), event(B), event(A), event("x-99999"), event("tom's \n:id é-1")
    settled = await driver.submit(*operations)

    assert settled == PartlyApplied(unknown=(1, 3, 4))
    assert await store.submit(driver.writer, 1, [], "") == settled, "the last one again gets its answer again"
    assert await owner.events() == [(A, "w", 3, b"Vvalue")]


async def test_a_commit_brings_events_in_order_with_its_messages(store: Store) -> None:
    # Promise 3: they appear with what caused them, or not at all.
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    far = await Owner.acquire(store, 1)
    await driver.send(A)

    sent = [event(FAR, b"early"), message(FAR), event(FAR, b"1"), event("x-99999"), event(A, b"own"), event(FAR, b"2")]
    assert isinstance(await owner.commit(await owner.progress(A, messages=sent)), Committed)
    owner.number -= 1
    await owner.commit(await owner.progress(A, messages=sent))
    stale = Owner(store, Shard(0), "another", owner.epoch, owner.number, True, owner.inbox_ids)
    assert isinstance(await stale.commit(await stale.progress(A, messages=sent)), Fenced)

    assert await far.events() == [(FAR, "w", 3, b"1"), (FAR, "w", 3, b"2")]
    assert await owner.events() == [(A, "w", 3, b"own")]


async def test_an_end_and_the_events_that_leave_with_it_stand_in_order(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.send(A, B)

    first = await owner.progress(A, end=Finish(b"Vdone", b"s"), messages=[event(A, b"own"), event(B)])
    second = await owner.progress(B, messages=[event(A, b"late")])
    assert isinstance(await owner.commit(first, second), Committed)

    assert await owner.events() == [(A, "w", 3, b"own"), (B, "w", 3, b"Vvalue")]


# ---------------------------------------------------------------------------------------------------- what must be new


async def test_who_must_be_new_and_is_known_is_left_alone_and_the_answer_says_so(store: Store) -> None:
    driver, other, owner = await Driver.open(store), await Driver.open(store), await Owner.acquire(store)
    await driver.call(A)

    operations = new(A, other.teller), new(B), event(B), new(B, other.teller), Attach(Shard(0), B), new(FAR), new(FAR)
    settled = await other.submit(*operations)

    assert settled == PartlyApplied(known=(0, 3, 6))
    assert await other.store.submit(other.writer, 1, [new(C)], "") == settled, "the last one again gets its answer"
    assert await owner.inbox() == [A, B]
    await owner.finish(A)
    await owner.finish(B)
    assert await other.told() == [(B, b"Vdone")], "who was refused waits for nothing"
    assert await driver.told() == [(A, b"Vdone")]
    assert await other.submit(new(A), new(B)) == PartlyApplied(known=(0, 1)), "known is also who has finished"


async def test_a_call_that_must_be_new_is_told_its_refusal_and_a_send_stands_in_the_answer(store: Store) -> None:
    # Promise 3: what was known is decided once, with the commit.
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A)
    calls = [new(FAR, teller_of_entry(A, index)) for index in (1, 2)]
    sends = [new("s-1"), new("s-1"), new(FAR), message(FAR), event("s-1"), new("s-1")]

    answer = await owner.commit(await owner.progress(A, record=b"r", messages=[*calls, *sends]))
    again = await store.commit([owner.part(await owner.progress(A, messages=[new(B)]))])

    assert isinstance(answer, Committed)
    assert answer.known == ("s-1", FAR, "s-1")
    assert again == [answer]
    assert await owner.events() == [(A, "r", 2, REFUSAL)]
    far = await Owner.acquire(store, 1)
    assert await far.inbox() == [FAR, "s-1"]
    assert [id_ for id_, *_ in await far.events()] == ["s-1"]
    await far.finish(FAR)
    assert await owner.events() == [(A, "r", 2, REFUSAL), (A, "r", 1, b"Vdone")]
    assert await owner.commit(await owner.progress(A, messages=[new("s-1")])) == Committed("", ("s-1",))
    assert await owner.commit() == Committed("")


async def test_who_must_be_new_and_is_the_same_request_joins(store: Store) -> None:
    """Issues 15.17, 16.7: today, and when it has ended; what was kept of none is another's, or trusted."""
    driver, other, owner = await Driver.open(store), await Driver.open(store), await Owner.acquire(store)
    await driver.submit(new(A, "", "one"), new(B, "", "one", is_trusted=True), new(A, "", "one"), new(A, "", "two"))
    await driver.send(C)

    def asked(*, ended: bool) -> list[Outgoing]:
        teller = "" if ended else other.teller
        return [
            *(new(A, teller, "one"), new(A, teller, "two"), new(A, teller), new(B, teller, "one", is_trusted=True)),
            *(new(B, teller, "two", is_trusted=True), new(C, teller, "one"), new(C, teller, "one", is_trusted=True)),
        ]

    assert await other.submit(*asked(ended=False)) == PartlyApplied(known=(1, 2, 4, 5))
    assert await owner.inbox() == [A, B, C]
    for one in (A, B, C):
        await owner.finish(one, keep_ms=1_000)
    assert await other.told() == [(A, b"Vdone"), (B, b"Vdone"), (C, b"Vdone")]
    assert await other.submit(*asked(ended=True)) == PartlyApplied(known=(1, 2, 4, 5))


async def test_the_same_request_of_a_handler_joins_and_another_is_told_its_refusal(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A)
    tellers = [teller_of_entry(A, index) for index in range(4)]
    first, same, another, none = (new(FAR, tellers[at], digest) for at, digest in enumerate(("1", "1", "2", "")))
    sends = [new(FAR, "", "1"), new(FAR, "", "2")]

    answer = await owner.commit(await owner.progress(A, record=b"r", messages=[first, same, another, none, *sends]))

    assert isinstance(answer, Committed)
    assert answer.known == (FAR,)
    assert await owner.events() == [(A, "r", 2, REFUSAL), (A, "r", 3, REFUSAL)]
    far = await Owner.acquire(store, 1)
    await far.finish(FAR)
    assert sorted(await owner.events())[:2] == [(A, "r", 0, b"Vdone"), (A, "r", 1, b"Vdone")]


# --------------------------------------------------------------------------------------------------------------- limits


async def test_full_events_refuse_drivers_and_no_commit(engine: Engine) -> None:
    # Promise 9.
    store = await engine.open(inbox_max=2)
    driver, owner = await Driver.open(store), await Owner.acquire(store)

    settled = await driver.submit(message(A), event(A), event(B), event(A), event(A), event(FAR), message(B))

    assert settled == PartlyApplied(overloaded=(4,), unknown=(2, 5))
    assert await owner.inbox() == [A, B]
    await owner.committed(await owner.progress(A, record=b"r", messages=[event(B), event(B)]))
    assert len(await owner.events()) == 4


async def test_a_full_inbox_refuses_drivers_and_says_which_messages(engine: Engine) -> None:
    # Promise 9; and promise 1: a send that was refused must not count as accepted.
    store = await engine.open(inbox_max=2)
    driver, owner = await Driver.open(store), await Owner.acquire(store)

    settled = await driver.submit(
        message("s1-0"), message(A, driver.teller), message("s2-0"), message(B, driver.teller)
    )

    assert settled == PartlyApplied(overloaded=(2, 3))
    assert await store.submit(driver.writer, 1, [], "") == settled, "the last one again gets its answer again"
    assert await owner.inbox() == ["s1-0", A]
    assert await driver.told() == []
    assert await store.status(B) == ""


async def test_a_full_inbox_still_attaches_and_takes_other_shards_and_empties(engine: Engine) -> None:
    store = await engine.open(inbox_max=1)
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.send(A)

    assert await driver.call(A, FAR) is Settled.APPLIED
    await owner.finish(A)
    assert await driver.call(B) is Settled.APPLIED

    assert await driver.told() == [(A, b"Vdone")]


async def test_calls_of_handlers_may_fill_an_inbox_to_ten_times_its_limit(engine: Engine) -> None:
    store = await engine.open(inbox_max=2)
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.send(A)
    calls = [message(f"call{n}-1", teller_of_entry(A, n)) for n in range(21)]

    answer = await owner.commit(await owner.progress(A, messages=[*calls, message("send-1")]))

    assert isinstance(answer, Committed), "a full inbox never refuses a commit"
    assert len(await store.inbox(Shard(1), "", 100)) == 21, "a send of a handler has nobody who could be told"
    assert await owner.events() == [(A, "r", 20, INBOX_FULL)]
    assert await store.status("call20-1") == ""


# ------------------------------------------------------------------------------------------------------------- replies


async def test_who_is_gone_gets_no_reply(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.submit(message(A, "w:gone"), message(B, driver.teller))

    await owner.finish(A)
    await owner.finish(B)

    assert await store.replies("gone", "0-0", 0) == []
    assert await driver.told() == [(B, b"Vdone")]


async def test_replies_that_were_seen_are_trimmed_with_the_next_write(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A, B, C)
    for invocation in (A, B):
        await owner.finish(invocation)
    assert [invocation for invocation, _ in await driver.told()] == [A, B]

    await driver.submit()
    await owner.finish(C)

    kept = await store.replies(driver.writer, "0-0", 0)
    assert [reply.invocation for reply in kept] == [B, C], "the last one seen stays"
    assert await driver.told() == [(C, b"Vdone")]


async def test_replies_come_in_the_order_of_the_ends(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    ids = [f"i{n}-0" for n in range(30)]
    await driver.call(*ids)
    await owner.inbox()

    for invocation in reversed(ids):
        await owner.finish(invocation)

    assert [invocation for invocation, _ in await driver.told()] == ids[::-1]


async def test_reading_replies_waits_for_the_first_one(engine: Engine) -> None:
    store, other = await engine.open(), await engine.open()
    driver, owner = await Driver.open(store), await Owner.acquire(other)
    await driver.call(A)
    await owner.inbox()

    reading = asyncio.ensure_future(store.replies(driver.writer, "0-0", 20_000))
    await owner.finish(A)

    async with asyncio.timeout(10):
        assert [reply.payload for reply in await reading] == [b"Vdone"]


# --------------------------------------------------------------------------------------------------------------- leases


async def test_a_free_shard_is_granted_clean(store: Store) -> None:
    owner = await Owner.acquire(store)

    assert (owner.number, owner.clean) == (0, True)
    assert owner.epoch >= await store.now_ms() - 60_000, "an epoch is never smaller than the time, whatever was lost"


async def test_a_held_shard_is_refused_with_the_value_to_watch(store: Store) -> None:
    owner = await Owner.acquire(store, incarnation="one")

    first = await store.acquire(Shard(0), "two", "")
    await store.renew("one", owner.owned, b"")
    second = await store.acquire(Shard(0), "two", "")

    assert isinstance(first, LeaseHeld)
    assert isinstance(second, LeaseHeld)
    assert first != second, "each renewal changes it"


async def test_a_lease_that_was_renewed_meanwhile_is_not_taken(store: Store) -> None:
    owner = await Owner.acquire(store, incarnation="one")
    held = await store.acquire(Shard(0), "two", "")
    assert isinstance(held, LeaseHeld)
    await store.renew("one", owner.owned, b"")

    assert isinstance(await store.acquire(Shard(0), "two", held.value), LeaseHeld)
    assert await store.renew("one", owner.owned, b"") == {0: 0}


async def test_a_lease_that_stood_still_is_taken_and_the_past_cannot_write(store: Store) -> None:
    # Promise 6.
    driver, past = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A)
    await past.commit(await past.progress(A, record=b"one"))
    held = await store.acquire(Shard(0), "two", "")
    assert isinstance(held, LeaseHeld)

    owner = await Owner.acquire(store, seen=held.value, incarnation="two")

    assert owner.epoch > past.epoch
    assert (owner.number, owner.clean) == (1, False)
    assert await store.renew(past.incarnation, past.owned, b"") == {}
    assert isinstance(await past.finish(A), Fenced)
    past.number = 1
    assert isinstance((await store.commit([past.part()]))[0], Fenced), "its last number again is refused too"
    assert await past.move_due() == (-1, 0)
    await store.release(past.incarnation, past.owned, leaving=False)
    assert await store.renew("two", owner.owned, b"") == {0: 1}, "and what it releases is not its own"
    assert await owner.journal() == [(A, b"one")]
    assert await driver.told() == []


async def test_the_same_incarnation_with_an_older_epoch_is_the_past(store: Store) -> None:
    # Promise 6.
    past = await Owner.acquire(store, incarnation="one")
    held = await store.acquire(Shard(0), "one", "")
    assert isinstance(held, LeaseHeld)

    owner = await Owner.acquire(store, seen=held.value, incarnation="one")

    assert owner.epoch > past.epoch
    assert isinstance(await past.commit(), Fenced)
    assert await store.renew("one", past.owned, b"") == {}


async def test_epochs_grow_within_one_millisecond(store: Store) -> None:
    epochs: list[Epoch] = []
    for _ in range(20):
        owner = await Owner.acquire(store)
        epochs.append(owner.epoch)
        await store.release(owner.incarnation, owner.owned, leaving=False)

    assert epochs == sorted(set(epochs))


async def test_a_released_shard_is_free_and_clean_and_its_last_owner_is_the_past(store: Store) -> None:
    past = await Owner.acquire(store)
    await past.commit()
    await store.release(past.incarnation, past.owned, leaving=False)

    assert isinstance(await past.commit(), Fenced)
    assert await store.renew(past.incarnation, past.owned, b"") == {}
    owner = await Owner.acquire(store)
    assert (owner.number, owner.clean) == (1, True)


async def test_releasing_again_takes_nothing_from_the_next_owner(store: Store) -> None:
    past = await Owner.acquire(store)
    await store.release(past.incarnation, past.owned, leaving=False)
    owner = await Owner.acquire(store)

    await store.release(past.incarnation, past.owned, leaving=True)

    assert await store.renew(owner.incarnation, owner.owned, b"") == {0: 0}
    assert isinstance(await store.acquire(Shard(0), "else", ""), LeaseHeld)


async def test_burying_frees_the_leases_of_the_dead_alone_and_they_are_not_clean(store: Store) -> None:
    dead, living = (
        await Owner.acquire(store, 0, incarnation="dead"),
        await Owner.acquire(store, 1, incarnation="deadly"),
    )
    other = await store.acquire(Shard(2), "dead", "")
    assert isinstance(other, Granted)
    await store.renew("dead", {**dead.owned, Shard(2): other.epoch}, b"about")

    assert await store.bury("dead") == 2
    assert await store.bury("dead") == 0

    look = await store.membership(SHARDS)
    assert look.hosts == {}
    assert [bool(lease) for lease in look.leases] == [False, True, False, False]
    assert await store.renew("deadly", living.owned, b"") == {1: 0}
    assert not (await Owner.acquire(store, 0)).clean
    assert isinstance(await dead.commit(), Fenced)


async def test_hosts_and_leases_can_be_seen(store: Store) -> None:
    owner = await Owner.acquire(store, 1, incarnation="one")
    held = await store.acquire(Shard(1), "x", "")
    assert isinstance(held, LeaseHeld)

    await store.renew("one", {}, b"about \xff")

    look = await store.membership(SHARDS)
    assert look.hosts == {"one": b"1 about \xff"}
    assert look.leases == ["", held.value, "", ""]
    await store.release("one", owner.owned, leaving=True)
    assert (await store.membership(SHARDS)).hosts == {}


async def test_renewal_tells_the_numbers_of_what_is_still_owned(store: Store) -> None:
    owner, lost = await Owner.acquire(store, 0, incarnation="one"), await Owner.acquire(store, 1, incarnation="one")
    await owner.commit()
    await store.release("one", lost.owned, leaving=False)

    numbers = await store.renew("one", {Shard(0): owner.epoch, Shard(1): lost.epoch, Shard(3): Epoch(1)}, b"")

    assert numbers == {0: 1, 3: WENT_BACK}, "nobody has owned the last one: the store has forgotten it"


# -------------------------------------------------------------------------------------------------------------- commits


async def test_a_commit_appears_as_a_whole(store: Store) -> None:
    # Promise 3.
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A)
    progress = await owner.progress(
        A,
        record=b"record\0",
        writes={"status": b"J1", "": b"", "holder": b"\xff\xfe"},
        timers=[(1, f"01:{A}:3")],
        messages=[message(FAR, teller_of_entry(A, 0)), message(B)],
    )

    await owner.committed(progress)

    assert await owner.journal() == [(A, b"record\0")]
    assert await store.load([(Shard(0), TARGET)]) == [Loaded({"status": b"J1", "": b"", "holder": b"\xff\xfe"}, "")]
    assert [data for _, data in await store.inbox(Shard(1), "", 10)] == [data_of(FAR)]
    assert await owner.inbox() == [A, B]
    assert await owner.move_due() == (1, 0)


async def test_a_repeated_commit_gets_its_answer_and_has_no_effect(store: Store) -> None:
    # Promise 3.
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A)
    first = await owner.committed(await owner.progress(A, record=b"once", messages=[message(B)]))

    again = await store.commit([owner.part(await owner.progress(A, record=b"twice", messages=[message(C)]))])

    assert again == [Committed(first)]
    assert first
    assert await owner.journal() == [(A, b"once")]
    assert await owner.inbox() == [A, B]


@pytest.mark.parametrize("gap", [-2, -1, 1, 50])
async def test_a_commit_with_a_wrong_number_is_refused(store: Store, gap: int) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A)
    for _ in range(3):
        await owner.commit()
    owner.number += gap

    answer = await owner.finish(A) if gap > 0 else (await store.commit([owner.part(Progress(A, TARGET, ""))]))[0]

    assert isinstance(answer, Fenced)
    assert await store.status(A) == "open"


async def test_each_part_stands_alone(store: Store) -> None:
    # Promise 6: of one call one part is applied, one repeated, one refused, one of a shard that nobody owns.
    driver = await Driver.open(store)
    applied, repeated, refused = [await Owner.acquire(store, shard, incarnation="one") for shard in range(3)]
    await driver.call(*(f"x-{shard}" for shard in range(3)))
    first = await repeated.committed(await repeated.progress("x-1", record=b"r"))
    await store.release("one", refused.owned, leaving=False)
    applied.number += 1
    refused.number += 1
    nobody = Owner(store, Shard(3), "one", applied.epoch, 1, True)

    answers = await store.commit(
        [
            refused.part(await refused.progress("x-2", record=b"no")),
            repeated.part(),
            nobody.part(),
            applied.part(await applied.progress("x-0", record=b"yes")),
        ]
    )

    assert isinstance(answers[0], Fenced)
    assert answers[0].head.startswith(f"{refused.epoch} - 0"), "the refusal says who owns it now"
    assert answers[1] == Committed(first)
    assert isinstance(answers[2], Fenced)
    assert isinstance(answers[3], Committed)
    assert await applied.journal() == [("x-0", b"yes")]
    assert await refused.journal() == []


async def test_a_commit_of_nothing_is_a_commit(store: Store) -> None:
    owner = await Owner.acquire(store)

    assert await owner.commit() == Committed("")
    assert await store.commit([]) == []
    assert await store.renew(owner.incarnation, owner.owned, b"") == {0: 1}


async def test_writes_and_clears_change_the_fields_they_name(store: Store) -> None:
    owner = await Owner.acquire(store)

    await owner.commit(Progress(A, TARGET, "", writes={"a": b"1", "b": b"2", "c": b"3"}))
    await owner.commit(Progress(A, TARGET, "", writes={"b": b"", "d": b"4"}, clears=["a", "none"]))
    await owner.commit(Progress(A, "Ticket/B", "", writes={"x": b"1"}), Progress(A, "Ticket/B", "", clears=["x"]))

    loaded = await store.load([(Shard(0), TARGET), (Shard(0), "Ticket/B"), (Shard(1), TARGET)])
    assert loaded == [Loaded({"b": b"", "c": b"3", "d": b"4"}, ""), Loaded({}, ""), Loaded({}, "")]


async def test_any_character_may_stand_in_keys_fields_and_reasons(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A)

    await owner.sleep(A, target=ODD, writes={ODD: b"1", "\ud800": b"2"}, paused=ODD + "\ud800")

    state, other = await store.load([(Shard(0), ODD), (Shard(0), ODD + " ")])
    assert state == Loaded({ODD: b"1", "\ud800": b"2"}, A)
    assert other == Loaded({}, "")
    assert await store.status(A) == f"paused: {ODD}\ud800"
    await owner.finish(A, target=ODD, asleep=True)
    assert (await store.load([(Shard(0), ODD)]))[0].held_by == ""


# -------------------------------------------------------------------------------------------------------------- journal


async def test_the_records_of_a_commit_follow_each_other(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A, B)
    one, other = await owner.progress(A, record=b"r"), await owner.progress(B, record=b"s")

    first = await owner.committed(Progress(C, TARGET, "", writes={"x": b"1"}), one, other, one)

    page = await store.journal(Shard(0), "", 10)
    ms, sequence = order_of(first)
    assert [order_of(id_) for id_, _, _ in page] == [(ms, sequence + n) for n in range(3)]
    assert [record for _, _, record in page] == [b"r", b"s", b"r"]
    second = await owner.committed(one)
    assert order_of(second) > order_of(page[-1][0])


async def test_records_go_with_the_end_of_their_invocation(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A, B)
    first = await owner.committed(await owner.progress(A, record=b"1"), await owner.progress(B, record=b"other"))

    # Two of its records were written before, or stand in the very part that ends it.
    await owner.commit(
        await owner.progress(A, record=b"2"),
        await owner.progress(A, record=b"3", journal=[first], end=Finish(b"Vdone", b"s")),
    )

    assert await owner.journal() == [(B, b"other")]


# --------------------------------------------------------------------------------------------------------------- finish


async def test_the_end_empties_what_the_invocation_had(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A, B)

    await owner.finish(A)

    assert await owner.inbox() == [B]
    assert await store.messages(Shard(0), [owner.inbox_ids[A], owner.inbox_ids[B]]) == [None, data_of(B)]
    assert await store.status(A) == "succeeded"


async def test_the_end_tells_calls_and_drivers(store: Store) -> None:
    # Promise 3: the caller lives in another shard.
    driver, owner, other = await Driver.open(store), await Owner.acquire(store), await Owner.acquire(store, 1)
    await driver.send(A)
    await owner.commit(await owner.progress(A, messages=[message(FAR, teller_of_entry(A, 7))]))
    await driver.attach(FAR)

    await other.finish(FAR, b"Vreply\0")

    assert await owner.events() == [(A, "r", 7, b"Vreply\0")]
    assert await driver.told() == [(FAR, b"Vreply\0")]


async def test_a_reply_to_an_invocation_that_has_ended_is_dropped(store: Store) -> None:
    driver, owner, other = await Driver.open(store), await Owner.acquire(store), await Owner.acquire(store, 1)
    await driver.send(A)
    await owner.commit(await owner.progress(A, messages=[message(FAR, teller_of_entry(A, 0))]))
    await owner.finish(A)

    assert isinstance(await other.finish(FAR), Committed)

    assert await owner.events() == []


async def test_the_end_of_one_asleep_frees_its_object(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A)
    await owner.sleep(A, record=b"r")
    first = await owner.committed(await owner.progress(A, asleep=True, record=b"after"))

    await owner.finish(A, asleep=True, journal=[first])

    assert await store.load([(Shard(0), TARGET)]) == [Loaded({}, "")]
    assert await store.dormant([(Shard(0), A)]) == [None]
    assert await owner.journal() == []
    assert await driver.told() == [(A, b"Vdone")]


async def test_the_end_of_one_that_does_not_hold_its_object_leaves_the_holder(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A, B)
    await owner.sleep(A, holds=True)
    await owner.sleep(B, holds=False)

    await owner.finish(B, asleep=True)

    assert await store.load([(Shard(0), TARGET)]) == [Loaded({}, A)]


async def test_the_end_removes_its_events(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A)
    await owner.commit(await owner.progress(A, timers=[(1, f"1:{A}:0"), (2, f"2:{A}:1")]))
    await owner.move_due()

    await owner.finish(A, events=await owner.event_ids())

    assert await owner.events() == []


async def test_events_of_finished_invocations_are_deleted_as_strays(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A)
    await owner.commit(await owner.progress(A, timers=[(1, f"1:{A}:0")]))
    await owner.move_due()
    await owner.finish(A)

    await owner.commit(stray=[*await owner.event_ids(), "1-1"])

    assert await owner.events() == []


async def test_status_says_where_an_invocation_is(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.send(A, B, C, "d4-0", "e5-0")
    await owner.sleep(B)
    await owner.sleep(C, paused="diverged at 3")
    await owner.finish("d4-0", b"V")
    await owner.finish("e5-0", b"E[404]", keep_ms=60_000)

    found = [await store.status(id_) for id_ in (A, B, C, "d4-0", "e5-0", "f6-0")]

    assert found == ["open", "asleep", "paused: diverged at 3", "succeeded", "failed", ""]


async def test_who_holds_the_key_of_one_in_the_inbox_is_known_while_it_is_asleep(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.send(A)  # a message that nobody can parse
    await driver.submit(Outgoing(Shard(0), B, "", Message(B, TARGET, "handler", b"").encoded()))
    ids = (A, B, C)

    before = [await store.holder(id_) for id_ in ids]
    await owner.sleep(A)
    asleep = [await store.holder(id_) for id_ in ids]
    await owner.finish(A, asleep=True)
    after = [await store.holder(id_) for id_ in ids]

    assert (before, asleep, after) == (["", "", ""], ["", A, ""], ["", "", ""])


# ---------------------------------------------------------------------------------------------------- bounded by bytes


BIG, MANY = 1_100_000, 7


async def test_every_read_is_bounded_by_bytes_as_well(store: Store) -> None:
    """Issue 16.2, promise 9: it ends with what exceeds `READ_BYTES`, and the next one goes on there."""
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    ids, targets = [f"i{n}-0" for n in range(MANY)], [f"Ticket/{n}" for n in range(MANY)]
    for id_ in ids:
        await driver.submit(Outgoing(Shard(0), id_, "", id_.encode() + b"x" * BIG), event(id_, b"x" * BIG))
    inbox = await _all(lambda after: store.inbox(Shard(0), after, 100), lambda entry: entry[0], lambda entry: entry[1])
    events = await _all(lambda after: store.events(Shard(0), after, 100), lambda e: e.id, lambda e: e.payload)
    for (inbox_id, data), target in zip(inbox, targets, strict=True):
        id_ = data.rstrip(b"x").decode()
        await owner.commit(Progress(id_, target, inbox_id, record=b"x" * BIG, writes={"a": b"x" * BIG}))
    journal = await _all(lambda after: store.journal(Shard(0), after, 100), lambda e: e[0], lambda e: e[2])
    loaded = await store.load([(Shard(0), target) for target in targets])
    messages = await store.messages(Shard(0), [id_ for id_, _ in inbox])
    for (inbox_id, data), target in zip(inbox, targets, strict=True):
        await owner.commit(Progress(data.rstrip(b"x").decode(), target, inbox_id, end=Sleep(holds=True)))
    dormant = await store.dormant([(Shard(0), id_) for id_ in ids])

    assert [data[:4] for _, data in inbox] == [id_.encode() for id_ in ids]
    assert [found.invocation for found in events] == ids
    assert [invocation for _, invocation, _ in journal] == ids
    assert [(len(found.fields["a"]), found.held_by) for found in loaded] == [(BIG, "")] * 4
    assert messages == [data for _, data in inbox][:4]
    assert [found is not None and len(found.message) for found in dormant] == [BIG + 4] * 4


async def _all(read: Callable[[str], Any], id_of: Callable[[Any], str], data_of: Callable[[Any], bytes]) -> list[Any]:
    out: list[Any] = []
    while page := await read(id_of(out[-1]) if out else ""):
        assert sum(len(data_of(entry)) for entry in page[:-1]) < READ_BYTES
        assert len(page) <= 4
        out += page
    return out


@pytest.mark.parametrize("where", [0, 1])
async def test_a_backlog_is_read_bit_by_bit_and_nobody_waits_behind_it(store: Store, where: int) -> None:
    """Issue 16.2: of each shard something is read in turn, and no message before the events that came before it."""
    driver = await Driver.open(store)
    for number in range(MANY):
        await driver.submit(
            Outgoing(Shard(where), f"i{number}-{where}", "", b"x" * BIG), event(f"i{number}-{where}", b"x" * BIG)
        )
    await driver.send(f"a-{1 - where}")
    cursors = {Shard(0): Cursor("0-0", "0-0"), Shard(1): Cursor("0-0", "0-0")}
    messages: dict[int, list[str]] = {0: [], 1: []}
    events: list[str] = []
    reads = 0
    while len(messages[where]) < MANY:
        found = await store.arrivals(cursors, "0-0", 1_000, 500)
        reads += 1
        size = sum(len(data) for _, _, data in found.messages) + sum(len(e.payload) for _, e in found.events)
        assert 0 < size < READ_BYTES + 2 * BIG
        for shard, each in found.events:
            events.append(each.invocation)
            cursors[shard].events = each.id
        for shard, id_, _ in found.messages:
            messages[shard].append(id_)
            cursors[shard].inbox = id_
        assert len(events) == MANY or not messages[where]
        assert messages[1 - where] or reads <= 3
    assert events == [f"i{number}-{where}" for number in range(MANY)]
    assert len(messages[1 - where]) == 1


async def test_outcomes_that_are_asked_for_together_are_told_bit_by_bit(store: Store) -> None:
    """Issue 16.2: what one write asks for after `READ_BYTES` is to be asked again."""
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    ids = [f"i{n}-0" for n in range(MANY)]
    await driver.send(*ids)
    for id_ in ids:
        await owner.finish(id_, b"V" + b"x" * BIG)

    first = await driver.submit(*(Attach(Shard(0), id_) for id_ in ids[:3]), message(ids[3], driver.teller))
    again = await store.submit(driver.writer, driver.number, [], "")
    second = await driver.submit(*(Attach(Shard(0), id_) for id_ in ids), message(ids[3], driver.teller), message(B))

    assert first is again is Settled.APPLIED
    assert second == PartlyApplied(later=(4, 5, 6, 7))
    assert await store.status(B) == "open"
    told = [id_ for _ in range(4) for id_, _ in await driver.told()]
    assert told == [*ids[:4], *ids[:4]]


async def test_the_replies_of_a_driver_are_read_bit_by_bit(store: Store) -> None:
    """Issue 16.2."""
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    ids = [f"i{n}-0" for n in range(MANY)]
    await driver.call(*ids)
    for id_ in ids:
        await owner.finish(id_, b"V" + b"x" * BIG)
    pages = [await driver.told() for _ in range(3)]

    assert [id_ for page in pages for id_, _ in page] == ids
    assert pages[0]


# ------------------------------------------------------------------------------------------------------------- trimming


async def test_the_finished_are_forgotten_beyond_their_count(engine: Engine) -> None:
    # Promise 9.
    store = await engine.open(done_max=3)
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    ids = [f"i{n}-0" for n in range(8)]
    await driver.send(*ids)

    for invocation in ids:
        await owner.finish(invocation)

    known = [id_ for id_ in ids if await store.status(id_)]
    assert known == ids[-3:]


async def test_the_finished_are_forgotten_with_age_two_for_each_that_is_added(engine: Engine) -> None:
    # Promise 9; at most two for each, so that no commit pays for all.
    store = await engine.open(retention=timedelta(milliseconds=200))
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    ids = [f"i{n}-0" for n in range(7)]
    await driver.send(*ids)
    await owner.commit(*[await owner.progress(id_, end=Finish(b"V", b"s")) for id_ in ids[:5]])
    assert [id_ for id_ in ids if await store.status(id_) == "succeeded"] == ids[:5]
    await engine.elapse(store, 250)

    await owner.finish(ids[5])
    after_one = [id_ for id_ in ids if await store.status(id_) == "succeeded"]
    await owner.finish(ids[6])

    assert after_one == ids[2:6]
    assert [id_ for id_ in ids if await store.status(id_) == "succeeded"] == ids[4:]


async def test_the_finished_are_forgotten_also_where_nothing_ends(engine: Engine) -> None:
    """Issue 15.34, promise 9: by age, at most so many at once, and by nobody but the owner."""
    store = await engine.open(retention=timedelta(milliseconds=200))
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    ids = [f"i{n}-0" for n in range(5)]
    await driver.send(*ids, A)
    await owner.commit(*[await owner.progress(id_, end=Finish(b"V", b"s")) for id_ in ids])
    await owner.finish(A, keep_ms=1)
    early = await store.trim(owner.incarnation, {Shard(1): owner.epoch}, 100)
    await engine.elapse(store, 250)

    foreign = await store.trim("another", owner.owned, 100)
    first = await store.trim(owner.incarnation, owner.owned, 3)
    known = [id_ for id_ in (*ids, A) if await store.status(id_)]
    rest = [(await store.trim(owner.incarnation, owner.owned, 3)).count for _ in range(2)]

    assert (early, foreign, first) == (Trimmed(0, False), Trimmed(0, False), Trimmed(4, False))
    assert known == ids[3:]
    assert rest == [3, 0], "what is in `done` of one whose outcome was kept counts too"
    assert [id_ for id_ in (*ids, A) if await store.status(id_)] == []


async def test_the_finished_are_forgotten_by_count_where_nothing_ends(engine: Engine) -> None:
    """Issue 15.34: the limit was lowered, and nothing ends any more."""
    store = await engine.open(done_max=3)
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    ids = [f"i{n}-0" for n in range(4)]
    await driver.send(*ids)
    for id_ in ids[:3]:
        await owner.finish(id_)
    await owner.finish(ids[3], keep_ms=60_000)

    found = await store.trim(owner.incarnation, owner.owned, 100)

    assert found.count == 0
    assert [id_ for id_ in ids if await store.status(id_)] == ids[1:]


async def test_a_writer_that_is_closed_leaves_nothing(store: Store) -> None:
    """Issue 16.2: reply streams of ended programs go."""
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A)
    await store.close_writer(driver.writer)
    await owner.finish(A)

    assert await driver.told() == []
    assert await driver.send(B) is Settled.REFUSED


async def test_a_kept_outcome_outlives_the_count_and_not_its_time(engine: Engine) -> None:
    store = await engine.open(done_max=1)
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.send(A, B, C, "d4-0")
    await owner.finish(A, b"Vkept", keep_ms=300)
    await owner.finish(B, keep_ms=60_000)
    await owner.finish(C)
    await driver.attach(A)
    assert await driver.told() == [(A, b"Vkept")]
    await engine.elapse(store, 350)

    await owner.finish("d4-0")

    assert [await store.status(id_) for id_ in (A, B, C)] == ["", "succeeded", ""]
    assert await driver.send(A) is Settled.APPLIED, "what is forgotten may happen again"
    assert await store.status(A) == "open"


async def test_kept_outcomes_are_forgotten_the_oldest_first_two_for_each_that_is_added(engine: Engine) -> None:
    # Promise 9; at most two for each, so that no commit pays for all.
    store = await engine.open()
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    ids = [f"i{n}-0" for n in range(5)]
    await driver.send(*ids, A)
    await owner.commit(*[await owner.progress(id_, end=Finish(b"V", b"s", 9 - n)) for n, id_ in enumerate(ids)])
    await engine.elapse(store, 20)

    await owner.finish(A)

    assert [id_ for id_ in ids if await store.status(id_)] == ids[:3]


async def test_what_is_forgotten_and_happens_again_is_kept_again(engine: Engine) -> None:
    store = await engine.open()
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.send(A)
    await owner.finish(A, b"Vfirst", keep_ms=1)
    await engine.elapse(store, 5)
    await driver.send(B)
    await owner.finish(B)
    await driver.send(A)
    await owner.inbox()

    await owner.finish(A, b"Vsecond", keep_ms=60_000)
    await driver.attach(A)

    assert await driver.told() == [(A, b"Vsecond")]


# ---------------------------------------------------------------------------------------------------------------- sleep


async def test_sleep_moves_message_and_records_out_of_the_streams(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A, B)
    first = await owner.committed(await owner.progress(A, record=b"1"), await owner.progress(B, record=b"other"))

    await owner.sleep(A, record=b"2", journal=[first])

    inbox_id = owner.inbox_ids[A]
    assert await owner.inbox() == [B]
    assert await owner.journal() == [(B, b"other")]
    dormant = (await store.dormant([(Shard(0), B), (Shard(0), A)]))[1]
    assert dormant is not None
    assert (dormant.inbox_id, dormant.message, dormant.paused) == (inbox_id, data_of(A), "")
    assert [record for _, record in dormant.records] == [b"1", b"2"]
    assert dormant.records[0][0] == first
    assert await store.load([(Shard(0), TARGET)]) == [Loaded({}, A)]


async def test_a_second_sleep_adds_records_in_order(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A)
    await owner.sleep(A, record=b"0")
    ids = [await owner.committed(await owner.progress(A, asleep=True, record=b"%d" % n)) for n in range(1, 12)]

    await owner.sleep(A, asleep=True, record=b"12", journal=ids[::-1], paused="why")

    dormant = (await store.dormant([(Shard(0), A)]))[0]
    assert dormant is not None
    assert [record for _, record in dormant.records] == [b"%d" % n for n in range(13)]
    assert dormant.paused == "why"
    assert await owner.journal() == []


@pytest.mark.parametrize("then", ["sleeps", "is paused", "ends"])
async def test_one_that_goes_on_after_a_pause_counts_as_open_until_it_sleeps_again(store: Store, then: str) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A)
    await owner.sleep(A, record=b"0", paused="why")

    await owner.commit(await owner.progress(A, asleep=True, record=b"1", end=Sleep(holds=False, resumed=True)))

    dormant = (await store.dormant([(Shard(0), A)]))[0]
    assert dormant is not None
    assert ([record for _, record in dormant.records], dormant.paused) == ([b"0", b"1"], "")
    assert await store.status(A) == "open"
    assert (await store.load([(Shard(0), TARGET)]))[0].held_by == A, "it holds its object all the time"
    if then == "sleeps":
        await owner.sleep(A, asleep=True)
    elif then == "is paused":
        await owner.sleep(A, asleep=True, paused="again")
    else:
        await owner.finish(A, asleep=True)
    assert await store.status(A) == {"sleeps": "asleep", "is paused": "paused: again", "ends": "succeeded"}[then]


async def test_a_delayed_message_comes_back_as_one_sent_when_it_is_due(store: Store) -> None:
    # Promise 2.
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A)
    await owner.sleep(A, holds=False, timers=[(1, f"0000000000000001:{A}:d")])
    assert await store.load([(Shard(0), TARGET)]) == [Loaded({}, "")]
    assert await owner.inbox() == []
    await driver.send(B)
    before = owner.inbox_ids[A]

    assert await owner.move_due() == (1, 0)

    assert await owner.inbox() == [B, A]
    assert order_of(owner.inbox_ids[A]) > order_of(before)
    assert await store.dormant([(Shard(0), A)]) == [None]
    assert await store.status(A) == "open"
    assert await owner.events() == []
    await owner.finish(A)
    assert await driver.told() == [(A, b"Vdone")], "who waited still waits"


async def test_what_has_begun_is_not_delayed_any_more_and_a_late_timer_leaves_its_journal_alone(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A)
    await owner.sleep(A, record=b"begun", timers=[(1, f"0000000000000001:{A}:d")])
    before = await store.dormant([(Shard(0), A)])

    assert await owner.move_due() == (1, 0)

    assert await owner.inbox() == []
    assert await store.dormant([(Shard(0), A)]) == before
    assert await store.status(A) == "asleep"


# --------------------------------------------------------------------------------------------------------------- timers


async def test_due_timers_become_events_in_the_order_of_their_times_and_counters(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A, B)
    timers = [(30, f"02:{A}:3"), (10, f"03:{B}:1"), (30, f"01:{A}:2"), (20, f"04:{A}:a")]
    await owner.commit(await owner.progress(A, timers=timers))

    assert await owner.move_due() == (4, 0)

    assert await owner.events() == [(B, "t", 1, b""), (A, "a", 0, b""), (A, "t", 2, b""), (A, "t", 3, b"")]


async def test_what_is_not_due_stays_and_its_time_is_told(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A)
    later = await store.now_ms() + 1_000_000
    timers = [(later + 5, f"1:{A}:1"), (1, f"2:{A}:2"), (2, f"3:{A}:3"), (later, f"4:{A}:4")]
    await owner.commit(await owner.progress(A, timers=timers))

    assert await owner.move_due(1) == (1, 2)
    assert await owner.move_due(1) == (1, later)
    assert await owner.move_due(1) == (0, later)
    assert [index for _, _, index, _ in await owner.events()] == [2, 3]


async def test_a_timer_becomes_due_by_the_clock_of_the_store(engine: Engine) -> None:
    store = await engine.open()
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A)
    due = await store.now_ms() + 200
    await owner.commit(await owner.progress(A, timers=[(due, f"1:{A}:0")]))
    assert await owner.move_due() == (0, due)

    await engine.elapse(store, 200)

    assert await owner.move_due() == (1, 0)


async def test_a_timer_that_was_cleared_never_comes(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A)
    await owner.commit(await owner.progress(A, timers=[(1, f"1:{A}:0"), (1, f"2:{A}:1")]))

    await owner.commit(await owner.progress(A, untimers=[f"1:{A}:0", f"9:{A}:9"]))

    assert await owner.move_due() == (1, 0)
    assert [index for _, _, index, _ in await owner.events()] == [1]


async def test_a_timer_wakes_one_asleep_and_no_one_who_has_ended(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A, B)
    await owner.sleep(A, timers=[(1, f"1:{A}:4"), (1, f"2:{B}:5"), (1, "3:unknown-0:6"), (1, f"4:{B}:d")])
    await owner.finish(B)

    assert await owner.move_due() == (4, 0)

    assert await owner.events() == [(A, "t", 4, b"")]
    assert await owner.move_due() == (0, 0)


# -------------------------------------------------------------------------------------------------- state that expires


@pytest.mark.parametrize("target", [TARGET, ODD, "Ticket/\ud800:\0:e"])
async def test_a_due_timer_of_state_becomes_an_event_that_names_its_object(store: Store, target: str) -> None:
    owner = await Owner.acquire(store)
    timers = [(2, timer_of_field(target, "a")), (1, timer_of_object(target))]
    await owner.commit(Progress(A, target, "", writes={"a": b"1"}, timers=timers))

    assert await owner.move_due() == (2, 0)

    expire = EventKind.EXPIRE.value
    assert await owner.events() == [(target, expire, 0, b""), (target, expire, 0, b"a")]
    assert (await store.load([(Shard(0), target)]))[0].fields == {"a": b"1"}


async def test_a_timer_of_state_that_is_set_again_is_moved(store: Store) -> None:
    owner = await Owner.acquire(store)
    later = await store.now_ms() + 1_000_000
    await owner.commit(Progress(A, TARGET, "", timers=[(1, timer_of_object(TARGET)), (1, timer_of_object("Ticket/B"))]))
    await owner.commit(Progress(A, TARGET, "", timers=[(later, timer_of_object(TARGET))]))

    assert await owner.move_due() == (1, later)
    assert [target for target, *_ in await owner.events()] == ["Ticket/B"]


@pytest.mark.parametrize("target", [TARGET, ODD])
async def test_what_expires_is_cleared_with_its_event_and_timers(store: Store, target: str) -> None:
    # Promise 3: state, timers and event go together.
    owner = await Owner.acquire(store)
    later = await store.now_ms() + 1_000_000
    timers = [(1, timer_of_object(target)), (later, timer_of_field(target, "b"))]
    await owner.commit(Progress(A, target, "", writes={"a": b"1", "b": b"2"}, timers=timers))
    await owner.move_due()

    await owner.commit(Progress("", target, "", events=await owner.event_ids(), end=Expire("")))

    assert await store.load([(Shard(0), target)]) == [Loaded({}, "")]
    assert await owner.events() == []
    assert await owner.move_due() == (0, 0)


async def test_a_field_that_expires_goes_alone_and_the_last_one_takes_the_timer_of_its_object(store: Store) -> None:
    owner = await Owner.acquire(store)
    later = await store.now_ms() + 1_000_000
    timers = [(1, timer_of_field(TARGET, "a")), (1, timer_of_field(TARGET, "b")), (later, timer_of_object(TARGET))]
    await owner.commit(Progress(A, TARGET, "", writes={"a": b"1", "b": b"2"}, timers=timers))
    assert await owner.move_due() == (2, later)

    await owner.commit(Progress("", TARGET, "", end=Expire("a")))
    assert await store.load([(Shard(0), TARGET)]) == [Loaded({"b": b"2"}, "")]
    assert await owner.move_due() == (0, later)

    await owner.commit(Progress("", TARGET, "", end=Expire("b")))
    assert await store.load([(Shard(0), TARGET)]) == [Loaded({}, "")]
    assert await owner.move_due() == (0, 0)


@pytest.mark.parametrize("field", ["", "a"])
async def test_what_was_written_since_its_timer_came_due_stays(store: Store, field: str) -> None:
    owner = await Owner.acquire(store)
    later = await store.now_ms() + 1_000_000
    timer = timer_of_field(TARGET, "a") if field else timer_of_object(TARGET)
    await owner.commit(Progress(A, TARGET, "", writes={"a": b"1"}, timers=[(1, timer)]))
    await owner.move_due()
    await owner.commit(Progress(A, TARGET, "", writes={"a": b"2"}, timers=[(later, timer)]))

    await owner.commit(Progress("", TARGET, "", events=await owner.event_ids(), end=Expire(field)))

    assert await store.load([(Shard(0), TARGET)]) == [Loaded({"a": b"2"}, "")]
    assert await owner.events() == []
    assert await owner.move_due() == (0, later)


@pytest.mark.parametrize("is_written", [False, True])
async def test_who_is_told_that_state_has_expired_is_told_only_if_it_has(store: Store, is_written: bool) -> None:
    # Promise 3: what waits for fields of the state hears of their end with their end.
    owner, later = await Owner.acquire(store), await store.now_ms() + 1_000_000
    driver = await Driver.open(store)
    await driver.send(A)
    timers = [(later, timer_of_object(TARGET))] if is_written else []
    await owner.commit(Progress(A, TARGET, "", writes={"a": b"1"}, timers=timers))

    await owner.commit(Progress("", TARGET, "", messages=[event(A)], end=Expire("")))

    assert (await store.load([(Shard(0), TARGET)]))[0].fields == ({"a": b"1"} if is_written else {})
    assert await owner.events() == ([] if is_written else [(A, "w", 3, b"Vvalue")])


# -------------------------------------------------------------------------------------------------------------- notices


async def test_a_notice_reaches_all_who_wait_and_ends_nothing(store: Store) -> None:
    driver, owner, other = await Driver.open(store), await Owner.acquire(store), await Owner.acquire(store, 1)
    await driver.send(A)
    await owner.commit(await owner.progress(A, messages=[message(FAR, teller_of_entry(A, 2))]))
    await driver.attach(FAR)

    await other.commit(await other.progress(FAR, notice=b"attempt 1 failed\nTraceback \xff"))

    assert await owner.events() == [(A, "n", 2, b"attempt 1 failed\nTraceback \xff")]
    assert await driver.told() == [(FAR, b"Nattempt 1 failed\nTraceback \xff")]
    assert await store.status(FAR) == "open"


async def test_a_notice_of_one_that_has_ended_goes_nowhere(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A)
    await owner.finish(A)
    await driver.told()

    await owner.commit(Progress(A, "", "", notice=b"late"), Progress("x-0", "", "", notice=b"unknown"))

    assert await driver.told() == []


# -------------------------------------------------------------------------------------------------------------- reading


async def test_arrivals_are_what_is_new_after_the_cursors(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.send(A, B, FAR)
    await owner.commit(await owner.progress(A, timers=[(1, f"1:{A}:0"), (2, f"2:{A}:1")]))
    await owner.move_due()
    first = (await store.inbox(Shard(0), "", 1))[0][0]
    event = (await store.events(Shard(0), "", 1))[0]

    found = await store.arrivals({Shard(0): Cursor(first, event.id), Shard(1): Cursor("0-0", "0-0")}, "0-0", 0, 10)

    assert sorted((shard, data) for shard, _, data in found.messages) == [(0, data_of(B)), (1, data_of(FAR))]
    assert [(shard, event.index) for shard, event in found.events] == [(0, 1)]
    assert found.control == ""
    some = await store.arrivals({Shard(0): Cursor("0-0", "0-0")}, "0-0", 0, 1)
    assert [data for _, _, data in some.messages] == [data_of(A)]
    assert len(some.events) == 1


async def test_a_change_of_leases_wakes_the_other_hosts(engine: Engine) -> None:
    store, other = await engine.open(), await engine.open()
    owner = await Owner.acquire(other)

    reading = asyncio.ensure_future(store.arrivals({Shard(0): Cursor("0-0", "0-0")}, "0-0", 20_000, 10))
    await other.release(owner.incarnation, owner.owned, leaving=False)

    async with asyncio.timeout(10):
        first = (await reading).control
    assert first
    assert (await store.arrivals({}, first, 0, 10)).control == ""
    await other.bury("x")
    second = (await store.arrivals({}, first, 0, 10)).control
    assert order_of(second) > order_of(first)
    assert (await store.arrivals({}, "$", 0, 10)).control == ""


async def test_a_blocking_read_returns_with_the_first_arrival(engine: Engine) -> None:
    store, other = await engine.open(), await engine.open()
    driver = await Driver.open(other)

    reading = asyncio.ensure_future(store.arrivals({Shard(0): Cursor("0-0", "0-0")}, "0-0", 20_000, 10))
    await driver.send(A)

    async with asyncio.timeout(10):
        assert [data for _, _, data in (await reading).messages] == [data_of(A)]


async def test_a_blocking_read_ends_after_its_time_with_nothing(store: Store) -> None:
    async with asyncio.timeout(10):
        found = await store.arrivals({Shard(0): Cursor("0-0", "0-0")}, "0-0", 20, 10)

    assert (found.messages, found.events, found.control) == ([], [], "")


async def test_an_interrupted_read_returns_at_once_also_if_it_begins_later(store: Store) -> None:
    cursors = {Shard(0): Cursor("0-0", "0-0")}
    await store.arrivals(cursors, "0-0", 0, 10)
    async with asyncio.timeout(4):
        await store.interrupt()
        await store.arrivals(cursors, "0-0", 60_000, 10)

        reading = asyncio.ensure_future(store.arrivals(cursors, "0-0", 60_000, 10))
        while not (await asyncio.wait([reading], timeout=0.05))[0]:
            await store.interrupt()
        assert (await reading).messages == []


async def test_pages_follow_each_other(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    ids = [f"i{n}-0" for n in range(5)]
    await driver.send(*ids)
    timers = [(1, f"{n}:{id_}:{n}") for n, id_ in enumerate(ids)]
    await owner.commit(
        *[await owner.progress(id_, record=id_.encode()) for id_ in ids], Progress("", "", "", timers=timers)
    )
    await owner.move_due()

    inbox, after = list[bytes](), ""
    while page := await store.inbox(Shard(0), after, 2):
        inbox += [data for _, data in page]
        after = page[-1][0]
    events, after = list[str](), ""
    while events_page := await store.events(Shard(0), after, 2):
        events += [event.invocation for event in events_page]
        after = events_page[-1].id
    journal, after = list[str](), ""
    while journal_page := await store.journal(Shard(0), after, 2):
        journal += [invocation for _, invocation, _ in journal_page]
        after = journal_page[-1][0]

    assert inbox == [data_of(id_) for id_ in ids]
    assert events == journal == ids


async def test_reading_nothing_brings_nothing(store: Store) -> None:
    assert await store.messages(Shard(0), []) == []
    assert await store.load([]) == []
    assert await store.dormant([]) == []
    assert await store.messages(Shard(0), ["5-5"]) == [None]


# ----------------------------------------------------------------------------------------------------------------- code


async def test_code_is_kept_under_its_hash_and_the_first_of_a_hash_becomes_current(store: Store) -> None:
    assert await store.code("h1") is None
    assert await store.current_code("Ticket") == ""

    await store.put_code("h1", b"\0one", ["Ticket", "Mail"])
    await store.put_code("h2", b"two", ["Ticket"])
    await store.put_code("h1", b"an old program starts again", ["Ticket"])
    await store.put_code("h3", b"none", [])
    await store.put_code("h1", b"not this", ["Ticket"], instead_of=b"another")

    assert [await store.code(digest) for digest in ("h1", "h2", "h3")] == [b"\0one", b"two", b"none"]
    assert await store.current_code("Ticket") == "h2"
    assert await store.current_code("Mail") == "h1"
    await store.put_code("h1", b"sealed anew", ["Ticket"], instead_of=b"\0one")
    assert await store.code("h1") == b"sealed anew"
    assert await store.current_code("Ticket") == "h2"


# --------------------------------------------------------------------------------------------------- scripts at limits


async def test_twenty_thousand_fields_in_one_write(store: Store) -> None:
    owner = await Owner.acquire(store)
    fields = {f"field:{n}": b"%d\0" % n for n in range(20_000)}

    assert isinstance(await owner.commit(Progress(A, ODD, "", writes=fields)), Committed)
    assert await store.load([(Shard(0), ODD)]) == [Loaded(fields, "")]
    assert isinstance(await owner.commit(Progress(A, ODD, "", clears=list(fields))), Committed)

    assert await store.load([(Shard(0), ODD)]) == [Loaded({}, "")]


@pytest.mark.slow_after_first
@pytest.mark.parametrize("end", [Finish(b"V", b"s"), Sleep(holds=True)])
async def test_twenty_thousand_records_of_one_invocation(store: Store, end: Finish | Sleep) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A)
    one = await owner.progress(A, record=b"r")

    first = await owner.committed(*[one] * 20_000)

    ids = [id_ for id_, _, _ in await store.journal(Shard(0), "", 100_000)]
    ms, sequence = order_of(first)
    assert [order_of(id_) for id_ in ids] == [(ms, sequence + n) for n in range(20_000)]
    assert isinstance(await owner.commit(await owner.progress(A, journal=ids, end=end)), Committed)
    assert await owner.journal() == []
    dormant = (await store.dormant([(Shard(0), A)]))[0]
    assert (len(dormant.records) if dormant else 0) == (20_000 if isinstance(end, Sleep) else 0)


async def test_five_thousand_messages_timers_and_events_in_one_commit(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    await driver.call(A)
    ids = [f"m{n}-1" for n in range(5_000)]
    timers = [(1, f"{n:06}:{A}:{n}") for n in range(5_000)]

    answer = await owner.commit(await owner.progress(A, messages=[message(id_) for id_ in ids], timers=timers))

    assert isinstance(answer, Committed)
    page = await store.inbox(Shard(1), "", 100_000)
    assert [data for _, data in page] == [data_of(id_) for id_ in ids]
    assert await owner.move_due(5_000) == (5_000, 0)
    assert [index for _, _, index, _ in await owner.events()] == list(range(5_000))
    gone = [f"x:{n}" for n in range(5_000)]
    assert isinstance(
        await owner.commit(await owner.progress(A, events=await owner.event_ids(), untimers=gone)), Committed
    )
    assert await owner.events() == []


async def test_five_thousand_replies_to_one_driver_in_one_commit(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    ids = [f"m{n}-0" for n in range(5_000)]
    await driver.call(*ids)
    await owner.inbox()

    await owner.commit(*[await owner.progress(id_, end=Finish(b"V", b"s")) for id_ in ids])

    told: list[str] = []
    while found := await driver.told():
        told += [invocation for invocation, _ in found]
    assert told == ids
    assert await owner.inbox() == []


async def test_a_payload_of_megabytes_comes_back_as_it_was(store: Store) -> None:
    driver, owner = await Driver.open(store), await Owner.acquire(store)
    data = bytes(range(256)) * 16_000
    await driver.submit(Outgoing(Shard(0), A, driver.teller, data))
    (inbox_id, found) = (await store.inbox(Shard(0), "", 1))[0]
    assert found == data

    await owner.commit(Progress(A, TARGET, inbox_id, writes={"x": data}, record=data, end=Finish(b"V" + data, b"")))

    assert (await store.load([(Shard(0), TARGET)]))[0].fields == {"x": data}
    assert await driver.told() == [(A, b"V" + data)]


# --------------------------------------------------------------------------------------------------------------- damage


class ForeignState(dict[str, dict[str, bytes]]):
    """What a server answers where the state of an object is something else."""

    def setdefault(self, key: str, default: Any = None) -> Any:
        raise LookupError("WRONGTYPE")


async def make_foreign(store: Store, shard: Shard, target: str) -> None:
    """Put something else where an object's state is."""
    if isinstance(store, RedisStore):
        await store._do("SET", store._keys.state(shard, target), "foreign")
    else:
        cast("MemoryStore", store)._world.shards[shard].state = ForeignState()


async def test_a_part_that_fails_half_way_damages_its_shard_and_no_other(store: Store) -> None:
    driver = await Driver.open(store)
    broken, sound = await Owner.acquire(store, 0, incarnation="one"), await Owner.acquire(store, 1, incarnation="one")
    await driver.call(A, FAR)
    broken.number = sound.number = 1
    await make_foreign(store, Shard(0), TARGET)
    wrong = Progress(A, TARGET, "1-1", record=b"half", writes={"x": b"1"})

    answers = await store.commit([broken.part(wrong), sound.part(await sound.progress(FAR, record=b"whole"))])

    assert isinstance(answers[0], Damaged)
    assert answers[0].reason
    assert isinstance(answers[1], Committed)
    assert await sound.journal() == [(FAR, b"whole")]
    again = (await store.commit([broken.part(wrong)]))[0]
    assert isinstance(again, Fenced)
    assert again.head.startswith("damaged ")
    assert await store.renew("one", {**broken.owned, **sound.owned}, b"") == {1: 1}
    assert await broken.move_due() == (-1, 0)
    assert isinstance(await store.acquire(Shard(0), "two", ""), LeaseHeld)
    await store.bury("one")
    with pytest.raises(DamagedError, match="shard 0: damaged"):
        await store.acquire(Shard(0), "two", "")
    assert isinstance(await store.acquire(Shard(1), "two", ""), Granted)
    assert await driver.send(B) is Settled.APPLIED, "its inbox still accepts: it waits until somebody has looked"
