"""Watch: warns a program whose invocation is blocked by a paused one or by a missing host.

A waiting program gets notices of failures and pauses as they happen. A later one has missed them: a program that calls
an object whose key an older, paused invocation holds, or that attaches to it, would wait without a word. So a client
looks up the invocations that have been waited for long.
"""

import asyncio
import logging
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import Final

import orjson

from actors.errors import DamagedError, UnavailableError
from journal.ids import shard_in
from journal.records import Record
from journal.store import Store

from .run_starts import Start
from .slots import Slot

logger = logging.getLogger("actors")

LOOK_EVERY: Final = 5.0
"""Seconds between two looks; an invocation that is waited for at two of them is looked up."""
LOOKED_MAX: Final = 100
"""Most invocations that are looked up, the oldest first."""

RECORDS_MAX: Final = 5_000
"""Newest records of a shard that are searched for those of one invocation."""

_PAUSED: Final = "paused: "
_WAYS_ON: Final = "actors.attach({id!r}) has resume(), restart(), cancel() and kill()"


async def status_and_holder(store: Store, id_: str) -> str:
    """Return an invocation's status, and the holder of its key where that has left memory; empty if it is unknown."""
    found = await store.status(id_)
    holder = await store.holder(id_) if found == "open" else ""
    held = await store.status(holder) if holder and holder != id_ else ""
    return f"open: its key is held by {holder}, {held}" if held in ("open", "asleep") or _PAUSED in held else found


async def described(store: Store, id_: str) -> str:
    """Return an invocation's status; after a failed attempt also which, why, and the time of the next."""
    found = await status_and_holder(store, id_)
    if found not in ("open", "asleep"):
        return found
    dormant = (await store.dormant([(shard_in(id_), id_)]))[0]
    lately = await store.latest(shard_in(id_), RECORDS_MAX)
    records = [Record.parse(data) for _, whose, data in reversed(lately) if whose == id_]
    if dormant is not None:
        records = [Record.parse(data) for _, data in dormant.records] + records
    last = next((record for record in reversed(records) if record.error and record.next_ms), None)
    if last is None:
        return f"{found}: {held}" if (held := await _held_back(store, id_)) else found
    what = f"attempt {last.attempt - 1}"
    if last.tries:
        entries = {record.first + at: entry for record in records for at, entry in enumerate(record.entries)}
        what = f"`{entries.get(last.tries[-1].entry, 'step')}`: attempt {last.tries[-1].attempts}"
    due = datetime.fromtimestamp(last.next_ms / 1000, UTC).isoformat(timespec="milliseconds")
    following = f"follows at {due}" if last.next_ms > await store.now_ms() else "is under way"
    return f"{found}: {what} failed: {last.error}; the next {following}"


async def _held_back(store: Store, id_: str) -> str:
    """Return why the host of an invocation does not begin it, as far as that is known."""
    described = (orjson.loads(about.partition(b" ")[2]) for about in (await store.membership()).hosts.values())
    return next((said["held_back"][id_] for said in described if id_ in said.get("held_back", ())), "")


class Watch:
    """Logs, once of each, which invocations that a client waits for need the help of an operator."""

    def __init__(self, store: Store, slots: Mapping[str, Slot], lock: threading.Lock) -> None:
        self._store, self._slots, self._lock = store, slots, lock
        self._before: set[str] = set()
        self._said: set[str] = set()
        self._missed_hosts = False

    async def run(self) -> None:
        """Look for ever."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            try:
                await self.look()
            except (UnavailableError, DamagedError):
                pass  # the reader of replies has logged it, and goes on asking

    async def look(self) -> None:
        """Look once: invocations that were waited for at the last look too are looked up."""
        with self._lock:
            oldest = islice(self._slots.items(), LOOKED_MAX)
            waiting = {
                id_ for id_, slot in oldest if slot.waiting and slot.gets_outcome and not isinstance(slot, Start)
            }
        long, self._before = sorted(waiting & self._before), waiting
        self._said &= waiting
        for id_ in long:
            if id_ not in self._said:
                await self._look_up(id_)
        has_hosts = not long or bool((await self._store.membership()).hosts)
        if not has_hosts and not self._missed_hosts:
            logger.warning("%s waits, and no host is there to execute it: start some, init(hosts=...)", long[0])
        self._missed_hosts = not has_hosts

    async def _look_up(self, id_: str) -> None:
        found = await status_and_holder(self._store, id_)
        if _PAUSED in found:
            holder = found.partition(", ")[0].rpartition(" ")[2] if found.startswith("open") else id_
            logger.warning("%s waits: %s. When that is mended: %s", id_, found, _WAYS_ON.format(id=holder))
            self._said.add(id_)
