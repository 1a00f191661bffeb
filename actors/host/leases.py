"""Leases: the shards that this host may serve, by its own clock.

Owns the time until which each lease holds, and its renewal. Does not own the placement (`placement`), or the effects
of a lost lease (`ownership`).

Invariants:
    1. A lease is counted from just before its renewal was sent, by a clock that goes on while the machine sleeps: the
       owner always believes it to end before a challenger may.
    2. A lease that lapsed is lost, even if no other host took the shard: it is never renewed again.
    3. A lease is renewed only while the host's reader turns: a host that is stuck gives its shards up. A handler is
       named only where the host's loop stands still: while the store is silent, no handler is at fault.

The renewal runs on a thread and a connection of its own, so that a handler that computes for a while does not cost the
host its shards; a handler that blocks the loop longer than `block_limit` does.
"""

import asyncio
import contextlib
import sys
import threading
import traceback
from collections.abc import Callable
from datetime import timedelta

from actors.backoff import Patience
from actors.errors import DamagedError, UnavailableError
from actors.threads import close, new_loop
from journal.ids import Epoch, Shard
from journal.losses import WENT_BACK
from journal.store import Cursor, Store

LEASE_TTL = timedelta(seconds=3)
"""How long a lease holds without renewal."""
RENEW_EVERY = timedelta(seconds=1)
STOP_MAX = 5.0
"""Seconds that `stop` waits for the end of the last renewal."""


class Leases:
    """The leases of one host."""

    def __init__(
        self,
        incarnation: str,
        now: Callable[[], float],
        about: Callable[[], bytes],
        acknowledged: Callable[[], dict[Shard, tuple[int, Cursor]]],
        ttl: timedelta = LEASE_TTL,
    ) -> None:
        self.incarnation, self._now, self._about, self._ttl = incarnation, now, about, ttl.total_seconds()
        self._epochs: dict[Shard, Epoch] = {}
        self._until: dict[Shard, float] = {}
        self._acknowledged = acknowledged
        self._behind: dict[Shard, str] = {}

    def add(self, shard: Shard, epoch: Epoch, asked_at: float) -> None:
        """Note a grant whose request was sent at that time."""
        self._until[shard] = asked_at + self._ttl
        self._epochs[shard] = epoch

    def remove(self, shard: Shard) -> None:
        """Remove a lease that is released or lost."""
        self._epochs.pop(shard, None)
        self._until.pop(shard, None)
        self._behind.pop(shard, None)

    def hold(self, shard: Shard) -> bool:
        """Whether the lease has not lapsed; checked immediately before each action."""
        return self._now() < self._until.get(shard, 0.0)

    def lost(self) -> list[Shard]:
        """Return the shards whose lease has lapsed, or was taken."""
        return [shard for shard in list(self._epochs) if not self.hold(shard)]

    def behind(self) -> dict[Shard, str]:
        """Return the shards for which the store lacks a commit that it had acknowledged, or entries already read.

        The values name the missing data.
        """
        return dict(self._behind)

    @property
    def owned(self) -> dict[Shard, Epoch]:
        """The epochs by shard."""
        return dict(self._epochs)

    async def renew(self, store: Store) -> None:
        """Renew the leases that have not lapsed; a lease that the store refuses is lost at once."""
        asked_at = self._now()
        owned = {shard: epoch for shard, epoch in self.owned.items() if self.hold(shard)}
        known = self._acknowledged()
        read = {shard: cursor for shard, (_, cursor) in known.items()}
        numbers = await store.renew(self.incarnation, owned, self._about(), read)
        for shard, epoch in owned.items():
            if self._epochs.get(shard) != epoch:
                continue
            if shard not in numbers:
                self._until[shard] = 0.0
            elif self.hold(shard):
                self._until[shard] = asked_at + self._ttl
                number = known[shard][0] if shard in known else 0
                if numbers[shard] == WENT_BACK:
                    self._behind[shard] = "some of its data"
                elif numbers[shard] < number:
                    self._behind[shard] = f"its last {number - numbers[shard]} commits"


class RenewalThread:
    """Renews leases on a thread of its own while the host's loop turns, and reports a handler that blocks the loop."""

    def __init__(
        self,
        leases: Leases,
        connect: Callable[[], Store],
        now: Callable[[], float],
        stuck: Callable[[str], None],
        block_limit_s: float,
    ) -> None:
        self._leases, self._connect, self._now, self._stuck = leases, connect, now, stuck
        self._block_limit = block_limit_s
        self._turned_at = self._beaten_at = now()
        self._host_loop = asyncio.get_running_loop()
        self._host_thread = threading.get_ident()
        self._loop = new_loop()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="perdure-leases", daemon=True)

    def start(self) -> None:
        """Begin to renew; to be called in the thread of the host's loop."""
        self._thread.start()

    def turned(self) -> None:
        """Note that the host's loop turns."""
        self._turned_at = self._now()

    def _beat(self) -> None:
        self._beaten_at = self._now()

    async def stop(self) -> None:
        """Renew no more."""
        with contextlib.suppress(RuntimeError):  # its loop has ended by itself
            self._loop.call_soon_threadsafe(self._stop.set)
        deadline = self._now() + STOP_MAX
        # No other thread waits for it: Python 3.12 starts no thread while a process ends.
        while self._thread.is_alive() and self._now() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.001)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._renew())
        finally:
            close(self._loop)

    async def _renew(self) -> None:
        store, patience = self._connect(), Patience("leases")
        named = False
        while not self._stop.is_set():
            if self._now() - self._turned_at > self._block_limit:
                if not named and self._now() - self._beaten_at > self._block_limit:
                    self._stuck(self._stack())
                    named = True
            else:
                named = False
                try:
                    await self._leases.renew(store)
                    patience.renew()
                except (UnavailableError, DamagedError) as error:
                    patience.say(error)
            with contextlib.suppress(RuntimeError):  # the host has ended
                self._host_loop.call_soon_threadsafe(self._beat)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RENEW_EVERY.total_seconds()):
                    await self._stop.wait()
        await store.aclose()

    def _stack(self) -> str:
        frame = sys._current_frames().get(self._host_thread)  # pyright: ignore[reportPrivateUsage]  # no public way
        return "".join(traceback.format_stack(frame)) if frame is not None else "(no stack)"
