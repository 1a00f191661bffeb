"""MemoryStore is RedisStore: the same random transitions on both bring the same answers and leave the same behind.

Stream ids and epochs differ, since the clocks do; each is replaced by its place in the order in which it was met.
"""

import random
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
from store_bench import SHARDS, Driver, Engine, Owner, data_of, event, memory_engine, message, new, redis_engine

from journal.ids import Shard, shard_in
from journal.records import teller_of_entry, timer_of_field, timer_of_object
from journal.store import Attach, Bring, Committed, Cursor, Expire, Finish, Granted, Outgoing, Progress, Sleep, Store

TARGETS = ("Ticket/A", "Ticket/B", "Mail/x:y z")
OPERATIONS = ("call", "send", "attach", "event", "new")
STEPS = 80
LOOK_EVERY = 6
"""Steps between two looks at everything, which cost most of the time."""
SEEDS = 15
LIMITS = {"inbox_max": 4, "done_max": 3, "retention": timedelta(hours=1)}


class Side:
    """One store, and everything that its answers are made of."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.drivers: list[Driver] = []
        self.owners: dict[int, Owner] = {}
        self.past: list[Owner] = []
        self._names: dict[tuple[str, int, str], str] = {}

    def id(self, stream: str, shard: int, id_: str) -> str:
        """Return the place of an id among those met in its stream."""
        return id_ and self._names.setdefault((stream, shard, id_), f"#{len(self._names)}")

    # Transitions, each with what it answered

    async def submit(self, driver: int, again: bool, operations: list[tuple[str, str]]) -> Any:
        one = self.drivers[driver]
        made = [_made(kind, id_, one.teller) for kind, id_ in operations]
        one.number += not again
        return await self.store.submit(one.writer, one.number, made, one.seen)

    async def told(self, driver: int) -> Any:
        return await self.drivers[driver].told()

    async def acquire(self, shard: int, steal: bool) -> Any:
        held = await self.store.acquire(Shard(shard), f"host{len(self.past)}", "")
        if steal and not isinstance(held, Granted):
            held = await self.store.acquire(Shard(shard), f"host{len(self.past)}", held.value)
        if isinstance(held, Granted):
            old = self.owners.get(shard)
            self.past += [old] if old else []
            owner = Owner(self.store, Shard(shard), f"host{len(self.past)}", held.epoch, held.number, held.clean)
            owner.inbox_ids = old.inbox_ids if old else {}
            self.owners[shard] = owner
            return held.number, held.clean
        return "held"

    async def release(self, shard: int, leaving: bool) -> Any:
        owner = self.owners[shard]
        return await self.store.release(owner.incarnation, owner.owned, leaving=leaving)

    async def bury(self, shard: int) -> Any:
        return await self.store.bury(self.owners[shard].incarnation)

    async def renew(self, shard: int) -> Any:
        owner = self.owners[shard]
        return await self.store.renew(owner.incarnation, owner.owned, b"about")

    async def move_due(self, shard: int, count: int) -> Any:
        return await self.owners[shard].move_due(count)

    async def commit(self, shard: int, again: bool, late: bool, plans: list[dict[str, Any]]) -> Any:
        owner = self.past[-1] if late and self.past else self.owners[shard]
        owner.number += not again
        progress = [await self._progress(owner, plan) for plan in plans]
        answer = (await self.store.commit([owner.part(*progress)]))[0]
        first, known = (answer.first, answer.known) if isinstance(answer, Committed) else ("", ())
        return type(answer).__name__, self.id("journal", shard, first), known

    async def _progress(self, owner: Owner, plan: dict[str, Any]) -> Progress:
        id_, end = plan["invocation"], plan["end"]
        inbox_id, asleep = "", (await self.store.dormant([(shard_in(id_), id_)]))[0] is not None
        page = await self.store.inbox(owner.shard, "", 100)
        for found, data in page:
            inbox_id = found if data == data_of(id_) else inbox_id
        is_open = asleep or bool(inbox_id)
        journal = await self.store.journal(owner.shard, "", 1000)
        events = await self.store.events(owner.shard, "", 1000)
        progress = Progress(id_, plan["target"], inbox_id, asleep, **plan["what"])
        progress.messages = [_sent(to, teller) for to, teller in plan["messages"]]
        if isinstance(end, Expire):
            progress.end = end
        elif end is not None and is_open:
            progress.end = end
            progress.journal = [record for record, invocation, _ in journal if invocation == id_]
            progress.events = [event.id for event in events if event.invocation == id_]
        return progress

    # What is left behind

    async def picture(self, ids: list[str]) -> Any:
        store, shards = self.store, [Shard(n) for n in range(SHARDS)]
        cursors = {shard: Cursor("0-0", "0-0") for shard in shards}
        arrivals = await store.arrivals(cursors, "0-0", 0, 1000)
        return [
            [await store.status(id_) for id_ in ids],
            [(s, self.id("inbox", s, id_), data) for s in shards for id_, data in await store.inbox(s, "", 1000)],
            [(s, replace(e, id=self.id("events", s, e.id))) for s in shards for e in await store.events(s, "", 1000)],
            [(s, self.id("journal", s, id_), *r) for s in shards for id_, *r in await store.journal(s, "", 1000)],
            await store.load([(shard, target) for shard in shards for target in TARGETS]),
            [await self._dormant(id_) for id_ in ids],
            sorted((shard, data) for shard, _, data in arrivals.messages),
            sorted((shard, event.invocation, event.kind, event.index) for shard, event in arrivals.events),
            [bool(lease) for lease in (await store.membership(SHARDS)).leases],
        ]

    async def _dormant(self, invocation: str) -> Any:
        shard = shard_in(invocation)
        found = (await self.store.dormant([(shard, invocation)]))[0]
        if found is None:
            return None
        records = [(self.id("journal", shard, id_), record) for id_, record in found.records]
        return replace(found, inbox_id=self.id("inbox", shard, found.inbox_id), records=records)


def _sent(to: str, teller: str) -> Outgoing | Bring:
    if teller == "event":
        return event(to)
    return new(to, teller[4:]) if teller.startswith("new ") else message(to, teller)


def _made(kind: str, id_: str, teller: str) -> Outgoing | Attach | Bring:
    match kind:
        case "attach":
            return Attach(shard_in(id_), id_)
        case "event":
            return event(id_)
        case "new":
            return new(id_, teller)
        case _:
            return message(id_, teller if kind == "call" else "")


def steps_of(rng: random.Random, ids: list[str]) -> list[tuple[str, tuple[Any, ...]]]:
    """Return a random sequence of transitions, that any store can be asked for."""
    out: list[tuple[str, tuple[Any, ...]]] = [("acquire", (shard, False)) for shard in range(SHARDS)]
    for step in range(STEPS):
        shard = rng.randrange(SHARDS)
        kind = rng.choices(
            ("commit", "submit", "told", "move_due", "acquire", "release", "bury", "renew"), (12, 8, 3, 3, 2, 1, 1, 1)
        )[0]
        arguments: tuple[Any, ...] = (shard,)
        if kind == "submit":
            operations = [(rng.choice(OPERATIONS), rng.choice(ids)) for _ in range(rng.randrange(5))]
            arguments = (rng.randrange(2), rng.random() < 0.1, operations)
        elif kind == "told":
            arguments = (rng.randrange(2),)
        elif kind == "move_due":
            arguments = (shard, rng.choice((1, 100)))
        elif kind == "acquire" or kind == "release":
            arguments = (shard, rng.random() < 0.5)
        elif kind == "commit":
            mine = [id_ for id_ in ids if shard_in(id_) == shard]
            chosen = rng.sample(mine, rng.randrange(1, 4))
            plans = [plan_of(rng, id_, ids, step) for id_ in chosen]
            arguments = (shard, rng.random() < 0.1, rng.random() < 0.05, plans)
        out.append((kind, arguments))
    return out


def plan_of(rng: random.Random, id_: str, ids: list[str], step: int) -> dict[str, Any]:
    """Return what a commit does for one invocation."""

    def some(value: Any, nothing: Any) -> Any:
        return value if rng.random() < 0.4 else nothing

    ends = (
        Finish(b"V%d" % step, b"s"),
        Finish(b"E", b"s", 10**9),
        Sleep(rng.random() < 0.5),
        Sleep(True, "why"),
        Sleep(False, resumed=True),
    )
    expire = Expire(rng.choice(("", "a", "x")))
    target = rng.choice(TARGETS)
    timer = rng.choice(
        (f"{step:04}:{id_}:{rng.choice(('a', 'd', '7'))}", timer_of_object(target), _of_a_field(rng, target))
    )
    untimer = rng.choice((f"{rng.randrange(STEPS):04}:{id_}:7", timer_of_object(target), _of_a_field(rng, target)))
    what = {
        "record": some(b"record %d" % step, b""),
        "writes": some({rng.choice("abc"): b"%d" % step, "x": b""}, {}),
        "clears": some(["x", rng.choice("abc")], []),
        "timers": some([(rng.choice((1, 2, 10**15)), timer)], []),
        "untimers": some([untimer], []),
        "notice": some(b"notice", b""),
    }
    entry = teller_of_entry(rng.choice(ids), step)
    tellers = "event", entry, f"new {entry}", "new "
    messages = [(rng.choice(ids), some(rng.choice(tellers), "")) for _ in range(rng.randrange(3))]
    return {
        "invocation": id_,
        "target": target,
        "messages": messages,
        "end": rng.choice((None, None, *ends, expire)),
        "what": what,
    }


def _of_a_field(rng: random.Random, target: str) -> str:
    return timer_of_field(target, rng.choice("abcx"))


@pytest_asyncio.fixture
async def engines(valkey_url: str) -> AsyncIterator[tuple[Engine, Engine]]:
    engines = memory_engine(), redis_engine(valkey_url)
    yield engines
    for engine in engines:
        await engine.aclose()


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_both_stores_do_the_same(engines: tuple[Engine, Engine], seed: int) -> None:
    # Promises 1 to 3, 6 and 9 hold in simulation only as far as its store does what the real one does.
    ids = [f"i{n}-{n % SHARDS}" for n in range(SHARDS * 5)]
    sides = [Side(await engine.open(**LIMITS)) for engine in engines]
    for side in sides:
        side.drivers = [await Driver.open(side.store) for _ in range(2)]

    steps = steps_of(random.Random(seed), ids)
    for number, (kind, arguments) in enumerate(steps):
        answers = [await getattr(side, kind)(*arguments) for side in sides]
        assert answers[0] == answers[1], (number, kind, arguments)

        if number % LOOK_EVERY == 0 or number == len(steps) - 1:
            pictures = [await side.picture(ids) for side in sides]
            assert pictures[0] == pictures[1], (number, kind, arguments)
