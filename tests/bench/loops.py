"""W1 to W5 and the bare rows: closed loops, each with a check of what they did."""

import asyncio
import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence

from redis.asyncio import Redis

from actors import Invocation

from .bare import bare_ray, bare_xadd, remove_streams
from .bench import Bench
from .workloads import (
    FAN,
    KEYS,
    TEN,
    BenchCheckout,
    BenchCounter,
    BenchFan,
    BenchFlow,
    BenchOrder,
    BenchTicket,
)

FAN_CLIENTS_MAX = 16
TICKETS_ASKED = 1000


async def xadd(bench: Bench) -> None:
    """One client that appends to streams, on the server that the workloads use."""
    async with Redis.from_url(bench.stack.url, single_connection_client=True) as store:
        append, appended = bare_xadd(store), 0

        async def operation(i: int) -> None:
            nonlocal appended
            await append(i)
            appended += 1

        await bench.loop("xadd", operation, [1])
        entries = await remove_streams(store)
    bench.check("xadd", entries == appended, acknowledged=appended, entries=entries)


async def ray(bench: Bench) -> None:
    """One client and 64 that call plain Ray actors."""
    levels = [clients for clients in bench.options.clients if clients in (1, 64)]
    for count in (1, 2):
        workload = f"ray {count} actor" + "s" * (count > 1)
        with bare_ray(count) as bare:
            await bench.loop(workload, bare.add, levels)
            total = await bare.total()
        bench.check(workload, total == bare.answered, acknowledged=bare.answered, sum_of_counters=total)


async def many_keys(bench: Bench) -> None:
    """W1: counters on many keys."""
    chance = random.Random(7)
    await _counters(bench, "W1", [f"k{key}" for key in range(KEYS)], lambda: f"k{chance.randrange(KEYS)}")


async def one_key(bench: Bench) -> None:
    """W2: one hot counter."""
    await _counters(bench, "W2", ["hot"], lambda: "hot")


async def _counters(bench: Bench, workload: str, keys: Sequence[str], next_key: Callable[[], str]) -> None:
    answers = Counter[bool]()
    await bench.calls(
        workload, lambda: BenchCounter[next_key()].add.remote(1), lambda value: answers.update([value > 0])
    )
    total = sum(await asyncio.gather(*(BenchCounter[key].value.remote() for key in keys)))
    bench.check(workload, total == answers[True], acknowledged=answers.total(), sum_of_counters=total)


async def ten_steps(bench: Bench) -> None:
    """W3: ten async steps, one after the other."""
    numbers, results = itertools.count(), Counter[int]()
    await bench.calls("W3", lambda: BenchFlow.ten.remote(f"w{next(numbers)}"), lambda result: results.update([result]))
    bench.check("W3", set(results) == {TEN}, results=dict(results))


async def checkout(bench: Bench) -> None:
    """W4: the checkout saga; every tenth payment is declined. In the end the latest tickets are sold or available."""
    orders, outcomes = list[BenchOrder](), Counter[str]()

    def call() -> Invocation[str]:
        orders.append(_order(len(orders)))
        return BenchCheckout.process.remote(orders[-1])

    await bench.calls("W4", call, lambda outcome: outcomes.update([outcome]))
    expected = Counter("declined" if order["decline"] else "confirmed" for order in orders)
    latest = orders[-TICKETS_ASKED:]
    statuses = await asyncio.gather(*(BenchTicket[order["ticket"]].get.remote() for order in latest))
    wrong = sum(
        status != (None if order["decline"] else "SOLD") for order, status in zip(latest, statuses, strict=True)
    )
    ok = outcomes == expected and not wrong
    bench.check("W4", ok, **outcomes, tickets_asked=len(latest), tickets_wrong=wrong)


def _order(i: int) -> BenchOrder:
    return {"ticket": f"t{i}", "map": f"m{i % 100}", "seat": f"s{i % 50}", "decline": i % 10 == 9}


async def fan(bench: Bench) -> None:
    """W5: one handler calls 100 objects at once and waits for all."""
    numbers, results = itertools.count(), Counter[int]()
    levels = [clients for clients in bench.options.clients if clients <= FAN_CLIENTS_MAX]
    await bench.calls(
        "W5",
        lambda: BenchFan.out.remote(next(numbers) * FAN % KEYS),
        lambda result: results.update([result]),
        levels,
    )
    total = sum(await asyncio.gather(*(BenchCounter[f"f{key}"].value.remote() for key in range(KEYS))))
    ok = set(results) == {FAN} and total == results.total() * FAN
    bench.check("W5", ok, fans=results.total(), sum_of_counters=total)
