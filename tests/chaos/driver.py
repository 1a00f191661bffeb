"""A driver of the campaign: one process, many clients, each with one operation at a time; it ends with its input.
A line of it ends the hostile clients.

`python -m tests.chaos.driver` is started by the campaign, killed at any moment, and started anew: the successor reads
the log and first settles what was left open: it submits again what has an idempotency key and attaches to ids.
"""

import argparse
import asyncio
import contextlib
import random
import sys
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import actors
from actors import Invocation, NotFoundError, TerminalError, UnavailableError, UsageError
from journal.clock import boot_seconds, wall_ms

from . import hostile
from .log import Log, Operation, read
from .objects import Napper, Tally, Transfer

COUNTING, MOVING, NAPPING = 12, 8, 4
"""Clients of each kind."""
PESTERING = 4
"""Clients that are hostile, where some are."""
TALLIES, VAULTS, NAPPERS, PESTS = 32, 16, 200, 64
AMOUNT_MAX = 60
CONNECT_WITHIN_S, AGAIN_S = 60.0, 0.2


class Load:
    """The clients of one driver."""

    def __init__(self, name: str, seed: int, log: Path, book: str, pestering: int) -> None:
        self._pestering = pestering
        self._name, self._seed, self._book = name, seed, book
        self._left, lives, _ = read(log)
        self._life = f"{name}.{len(lives)}"
        self._log = Log(log)
        self._count = 0
        self._over, self._calm = asyncio.Event(), asyncio.Event()

    async def run(self) -> None:
        """Settle what was left open, and go on with new operations until the input ends."""
        left = [operation for operation in self._left.values() if not operation.is_settled]
        self._log.note(began=self._life, left_open=len(left))
        async with asyncio.TaskGroup() as group:
            group.create_task(self._resume(left))
            good = (self._count_on, COUNTING), (self._move, MOVING), (self._nap, NAPPING)
            for kind, clients in (*good, (self._pester, self._pestering)):
                for number in range(clients):
                    group.create_task(kind(random.Random(f"{self._seed} {self._life} {kind.__name__} {number}")))
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            while await asyncio.to_thread(sys.stdin.readline):
                self._calm.set()  # there is but one thing that it can be told
            self._over.set()
        self._log.close()

    async def _resume(self, left: list[Operation]) -> None:
        async with asyncio.TaskGroup() as group:
            for operation in left:
                if operation.keyed:
                    group.create_task(self._do(operation))
                elif operation.ids:
                    group.create_task(self._settle(operation, actors.attach(operation.ids[0])))
        self._log.note(resumed=self._life)

    # What clients do, again and again

    async def _count_on(self, choose: random.Random) -> None:
        async for wish in self._wishes(choose, 0.06):
            wish.kind, wish.key = "count", f"{choose.randrange(TALLIES)}"
            await self._begin(wish)

    async def _move(self, choose: random.Random) -> None:
        async for wish in self._wishes(choose, 0.1):
            source, target = choose.sample(range(VAULTS), 2)
            wish.kind, wish.key, wish.target = "transfer", f"{source}", f"{target}"
            wish.amount, wish.pause_ms = choose.randint(1, AMOUNT_MAX), choose.randint(20, 500)
            await self._begin(wish)

    async def _nap(self, choose: random.Random) -> None:
        async for wish in self._wishes(choose, 0.6):
            wish.kind, wish.key = "nap", f"{choose.randrange(NAPPERS)}"
            wish.pause_ms = choose.choice((choose.randint(20, 500), choose.randint(500, 4_000)))
            wish.delay_ms = choose.choice((0, choose.randint(50, 2_000)))
            await self._begin(wish)

    async def _pester(self, choose: random.Random) -> None:
        async for wish in self._wishes(choose, 0.2):
            if self._calm.is_set():
                return
            wish.kind, wish.keyed = "pest", False
            wish.how = choose.choice(hostile.of_kind(choose.choice(hostile.KINDS)))
            wish.key = f"{choose.randrange(PESTS)} {choose.randrange(len(hostile.TEXTS))}"
            await self._begin(wish)

    async def _wishes(self, choose: random.Random, pause_s: float) -> AsyncGenerator[Operation]:
        while not self._over.is_set():
            self._count += 1
            yield Operation(f"{self._life}-{self._count}", self._life, "count", "", keyed=choose.random() < 0.5)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._over.wait(), choose.uniform(0, pause_s))

    # One operation

    async def _begin(self, wish: Operation) -> None:
        wish.asked_ms = wall_ms()
        told = ("name", "driver", "kind", "key", "target", "amount", "pause_ms", "delay_ms", "keyed", "how", "asked_ms")
        self._log.note(wish={name: getattr(wish, name) for name in told})
        await self._do(wish)

    async def _do(self, wish: Operation) -> None:
        try:
            while (invocation := self._started(wish)) is None:  # noqa: ASYNC110 - there is nothing to be woken by
                await asyncio.sleep(AGAIN_S)
        except (UsageError, TypeError):
            if wish.kind != "pest":
                raise
            self._log.note(name=wish.name, answer=hostile.REFUSED)
            return
        self._log.note(name=wish.name, id=invocation.id)
        await invocation.accepted()
        self._log.note(name=wish.name, accepted=True)
        if wish.kind != "nap":
            await self._settle(wish, invocation)

    def _started(self, wish: Operation) -> Invocation[Any] | None:
        """Submit it; None if its class has to be stored first, and the store is away: then nothing was submitted."""
        try:
            return self._submitted(wish)
        except UnavailableError:
            return None

    def _submitted(self, wish: Operation) -> Invocation[Any]:
        key = wish.name if wish.keyed else None
        if wish.kind == "pest":
            return hostile.begun(wish.how, hostile.hostile_key(*map(int, wish.key.split())))
        if wish.kind == "count":
            return Tally[wish.key].add.options(idempotency_key=key).remote(wish.name)
        if wish.kind == "transfer":
            move = Transfer.move.options(idempotency_key=key)
            return move.remote(wish.name, wish.key, wish.target, wish.amount, wish.pause_ms, self._book)
        delay = wish.delay_ms / 1_000 if wish.delay_ms else None
        return Napper[wish.key].nap.options(idempotency_key=key, delay=delay).send(wish.name, wish.pause_ms)

    async def _settle(self, wish: Operation, invocation: Invocation[Any]) -> None:
        try:
            if wish.kind == "pest":
                hostile.hurried(wish.how, invocation)
                self._log.note(name=wish.name, answer=await hostile.end_of(wish.how, invocation))
            else:
                self._log.note(name=wish.name, answer=await invocation)
        except TerminalError as error:
            self._log.note(name=wish.name, refusal=f"{error.code} {error}")
        except (NotFoundError, UnavailableError) as error:
            self._log.note(name=wish.name, unknown=f"{type(error).__name__}: {error}")


async def connected(url: str, namespace: str, address: str) -> None:
    """Join; a store that is away comes back."""
    deadline = boot_seconds() + CONNECT_WITHIN_S
    while True:
        try:
            actors.init(url, address=address, namespace=namespace)
            return
        except UnavailableError:
            if boot_seconds() > deadline:
                raise
            await asyncio.sleep(AGAIN_S)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.driver")
    for name in ("url", "namespace", "address", "name", "log", "book"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--hostile", action="store_true")
    said = parser.parse_args()
    asyncio.run(connected(said.url, said.namespace, said.address))
    try:
        pestering = PESTERING if said.hostile else 0
        asyncio.run(Load(said.name, said.seed, Path(said.log), said.book, pestering).run())
    except BaseException as error:
        log = Log(Path(said.log))
        log.note(trouble=repr(error))
        raise
    finally:
        actors.shutdown()


if __name__ == "__main__":
    main()
