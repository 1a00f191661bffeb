"""The floor: calls of a plain Ray actor and plain XADDs, with no durability or order above them.

The Ray actor is async, so that many calls are under way in it, as in a host; keys are hashed onto one such actor, and
in rows of their own onto two. The XADDs go to the same server with the same fsync, one at a time, with 200 bytes each.
"""

import random
from collections.abc import Awaitable, Callable, Generator
from contextlib import contextmanager
from typing import Any, Final

from redis.asyncio import Redis

from .workloads import KEYS

BODY: Final = b"x" * 200
UNDER_WAY_MAX: Final = 1000


class BareCounters:
    """Many counters in one Ray actor, in memory alone."""

    def __init__(self) -> None:
        self._counters: dict[int, int] = {}

    async def add(self, key: int, by: int) -> int:
        """Add to a counter and return it."""
        self._counters[key] = self._counters.get(key, 0) + by
        return self._counters[key]

    async def total(self) -> int:
        """Return the sum of all counters."""
        return sum(self._counters.values())


class BareRay:
    """Ray actors to which keys are hashed."""

    def __init__(self, actors: list[Any]) -> None:
        self._actors = actors
        self._random = random.Random(7)
        self.answered = 0

    async def add(self, _: int) -> None:
        """Call the actor of a random key."""
        key = self._random.randrange(KEYS)
        await self._actors[key % len(self._actors)].add.remote(key, 1)
        self.answered += 1

    async def total(self) -> int:
        """Return the sum of all counters."""
        return sum([await actor.total.remote() for actor in self._actors])


@contextmanager
def bare_ray(count: int) -> Generator[BareRay]:
    """Start so many actors on the Ray that runs; afterwards end them."""
    import ray  # a run with a local host goes without it

    api: Any = ray  # its annotations are partial
    made = api.remote(BareCounters).options(num_cpus=0, max_concurrency=UNDER_WAY_MAX)
    started = [made.remote() for _ in range(count)]
    try:
        api.get([actor.total.remote() for actor in started])
        yield BareRay(started)
    finally:
        for actor in started:
            api.kill(actor)


def bare_xadd(store: Redis) -> Callable[[int], Awaitable[object]]:
    """Return an operation that appends to one of many streams."""
    keys = random.Random(7)

    async def append(_: int) -> None:
        await store.xadd(f"bare:{keys.randrange(KEYS)}", {"d": BODY})

    return append


async def remove_streams(store: Redis) -> int:
    """Remove what `bare_xadd` appended to; return how many entries there were."""
    names = [f"bare:{key}" for key in range(KEYS)]
    entries = sum([await store.xlen(name) for name in names])
    await store.unlink(*names)
    return entries
