"""Ownership: takes shards over, recovers them, and gives them up. No coordinator: every host decides alike.

Owns the regular look at hosts and leases, and the decision to take, recover or release a shard. Does not own the time
for which a lease holds (`leases`), the rule of placement (`placement`), nor the serving of a shard (`shard`).

Invariants:
    1. Another host's lease is taken only when it is free, or when its value has not changed for a whole time to live on
       this host's clock: no wall clock decides. A lapsed lease of its own a host takes back at once, with a new epoch:
       no other host acts on it, and the host has dropped everything it held under it.
    2. A shard is served from the end of its recovery: the journal and `events` first, whole, then the inbox, and only
       then new entries, so that no message is seen twice.
    3. A hand-over that has begun is completed, whatever the placement says meanwhile.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, Final

import orjson

from actors.activation.services import Services
from actors.activation.suspects import Suspects, shard_in_frames
from actors.backoff import Patience
from actors.errors import DamagedError, UnavailableError
from actors.shard.shard import OwnedShard
from actors.values.outcomes import ERROR_MAX
from journal.clock import StoreClock
from journal.ids import Shard
from journal.records import Event, EventKind
from journal.store import READ_BYTES, Cursor, Granted, Store, Where
from journal.texts import error_text

from .handover import HandOver
from .leases import LEASE_TTL, Leases
from .placement import placed

logger = logging.getLogger("actors")

PAGE: Final = 1_000
"""Most entries of a stream in one page of a recovery."""
DRAIN_LOOK: Final = 0.005
"""Seconds between two checks whether shards have drained."""
LOOK_EVERY: Final = 0.5
"""Seconds between two looks at hosts and leases: the longest time from the lapse of a lease until it is taken."""
REST: Final = 10.0
"""Seconds before a shard that this host failed on is taken again: it may fail in the same way, and its other
invocations go on in between."""
NAMED_MAX: Final = 20
"""Most lost invocations that one log line names."""
BURY_AFTER: Final = 10.0
"""Seconds of silence after which any host takes a dead host off the list."""


class Ownership:
    """The shards of one host."""

    def __init__(
        self,
        store: Store,
        host: str,
        leases: Leases,
        clock: StoreClock,
        now: Callable[[], float],
        wake_timers: Callable[[], None],
        suspects: Suspects,
    ) -> None:
        self._suspects = suspects
        self._store, self._host, self._leases, self._clock = store, host, leases, clock
        self._now, self._wake_timers = now, wake_timers
        self.shards: dict[Shard, OwnedShard] = {}
        self._seen_hosts: dict[str, tuple[bytes, float]] = {}
        self._seen_leases: dict[Shard, tuple[str, float]] = {}
        self._hand_over = HandOver(now, clock.now_ms)
        self._resting: dict[Shard, float] = {}
        """The time until which a shard that this host failed on is not taken again."""
        self._looked_at = now()
        self._trust = Patience(f"host {host}, settings")
        self._again = asyncio.Event()
        self._is_leaving = False
        self._had_company = False
        self.is_left_alone = False
        """Whether there was no other host at the last look, though there had been one before."""
        self.taken_over: Callable[[], None] = lambda: None
        """Called when a shard was taken that its last owner had not handed over, before its recovery."""
        self._losses = 0
        """How many losses of the store were found and are not yet noted in it."""
        self._acquiring = 0
        """Requests for leases that are under way."""

    def look_again(self) -> None:
        """Look at once: leases or hosts have changed."""
        self._again.set()

    async def run(self, services: Services, count: int) -> None:
        """Look and act, for ever."""
        patience = Patience(f"host {self._host}, shards")
        while True:
            self._again.clear()
            try:
                await self._look(services, count)
                self._looked_at = self._now()
                patience.renew()
            except (UnavailableError, DamagedError) as error:
                await patience.wait(error)
                continue
            try:
                async with asyncio.timeout(LOOK_EVERY):
                    await self._again.wait()
            except TimeoutError:
                continue

    async def _look(self, services: Services, count: int) -> None:
        for shard in self._leases.lost():
            owned = self.shards.get(shard)
            if owned is not None:
                self.lose(owned, "its lease has lapsed")
            self._leases.remove(shard)
        for shard, lost in self._leases.behind().items():
            if shard in self.shards:
                self.went_back(self.shards[shard], lost)
            self._leases.remove(shard)
        if self._losses:
            await self._store.lose()
            self._losses = 0
        await self._check()
        await self._leases.renew(self._store)
        asked_ms = self._clock.steady_ms()
        look = await self._store.membership(count)
        if self._clock.learn(asked_ms, look.now_ms):
            self._wake_timers()
        if self._now() - self._looked_at > LEASE_TTL.total_seconds():
            # While this host could not look, it learned nothing about how long the others have been silent.
            self._seen_hosts.clear()
            self._seen_leases.clear()
        hosts = await self._live(look.hosts)
        self._had_company = self._had_company or len(hosts) > 1
        self.is_left_alone = self._had_company and len(hosts) <= 1
        self._note(look.leases)
        if self._is_leaving:
            return
        mine = {shard for shard, host in placed(hosts, count).items() if host == self._host}
        await self._give_up([owned for shard, owned in self.shards.items() if shard not in mine or owned.is_draining])
        rested = {shard for shard in mine if self._resting.get(shard, 0.0) <= self._now()}
        wanted = sorted(rested - set(self.shards))
        # In parallel: each takes a few round trips. All run to their end, also if one of them raises.
        challenges = (self._challenge(services, shard, look.leases[shard]) for shard in wanted)
        for failure in await asyncio.gather(*challenges, return_exceptions=True):
            if failure is not None:
                raise failure

    async def _check(self) -> None:
        """Check that the store keeps its acknowledged writes; while it does not, leases are renewed, commits wait."""
        try:
            await self._store.check()
        except UnavailableError as error:
            self._trust.say(error)
        else:
            self._trust.renew()

    async def _live(self, found: dict[str, bytes]) -> list[str]:
        now, hosts = self._now(), list[str]()
        for incarnation, about in found.items():
            seen, since = self._seen_hosts.get(incarnation, (b"", now))
            if seen != about:
                since = now
            self._seen_hosts[incarnation] = (about, since)
            if incarnation == self._leases.incarnation or now - since <= LEASE_TTL.total_seconds():
                hosts.append(orjson.loads(about.partition(b" ")[2])["id"])
            elif now - since > BURY_AFTER:
                await self._store.bury(incarnation)
        for incarnation in set(self._seen_hosts) - set(found):
            del self._seen_hosts[incarnation]
        return hosts

    def _note(self, leases: list[str]) -> None:
        """Note since when each lease is unchanged, also leases that this host does not want yet."""
        now = self._now()
        for number, lease in enumerate(leases):
            if self._seen_leases.get(Shard(number), ("", now))[0] != lease:
                self._seen_leases[Shard(number)] = (lease, now)

    async def _challenge(self, services: Services, shard: Shard, lease: str) -> None:
        now = self._now()
        if lease and not lease.startswith(f"{self._leases.incarnation} "):
            seen, since = self._seen_leases.get(shard, ("", now))
            if lease != seen:
                self._seen_leases[shard] = (lease, now)
                return
            if now - since < LEASE_TTL.total_seconds():
                return
        if self._is_leaving:
            return
        self._acquiring += 1
        try:
            answer = await self._store.acquire(shard, self._leases.incarnation, lease)
        except DamagedError as error:
            logger.error("%s", error)
            self._resting[shard] = now + REST
            return
        finally:
            self._acquiring -= 1
        if isinstance(answer, Granted):
            self._leases.add(shard, answer.epoch, now)
            if not answer.clean:
                self.taken_over()
            owned = OwnedShard(
                services, shard, answer.epoch, answer.number, lambda: not owned.is_lost and self._leases.hold(shard)
            )
            try:
                if not answer.is_whole:
                    await self._mend(shard, answer)
                await self._recover(owned)
            except UnavailableError:
                raise
            except Exception as error:  # noqa: BLE001  # any error is due to this shard, and is logged
                self.failed(owned, error)

    async def _mend(self, shard: Shard, granted: Granted) -> None:
        """Recover the remaining data of a shard that has lost data in the store, and end lost invocations."""
        logger.error("shard %d: data of it is missing in the store; recovering the rest", shard)
        if granted.is_untimed:
            logger.error(
                "shard %d: its timers are gone, and are set again; only state that was to expire (ttl, or after a "
                "workflow) stays until it is written again, since nothing else says when",
                shard,
            )
        lost = await self._store.mend(shard, granted.epoch, self._leases.incarnation)
        named = f": {', '.join(lost[:NAMED_MAX])}" if lost else ""
        logger.error("shard %d: %d of its invocations are lost%s", shard, len(lost), named)
        self._losses += 1

    async def _recover(self, owned: OwnedShard) -> None:
        shard, patience = owned.shard, Patience(f"host {self._host}, shard {owned.shard}")
        for id_, invocation, data in await pages(patience, lambda after: self._store.journal(shard, after, PAGE)):
            owned.recovered.setdefault(invocation, []).append((id_, data))
        events = await pages(patience, lambda after: self._store.events(shard, after, PAGE))
        of_objects = (EventKind.EXPIRE, EventKind.UNREADABLE)
        known = list({*owned.recovered, *(event.invocation for event in events if event.kind not in of_objects)})
        places = await patience.until_answered(lambda: self._store.where(known))
        if self._is_leaving:
            return  # its lease is released, or about to be
        self.shards[shard] = owned
        unread = {id_ for id_, where in zip(known, places, strict=True) if where is Where.INBOX}
        owned.expect(unread)
        if events:
            owned.cursor.events = events[-1].id
        await _in_turns(owned.receive, (event for event in events if event.invocation in unread))
        # A page of the inbox before the other events: a cancel then finds the order of the queue. Not the whole inbox:
        # a host that reads a million entries before it serves would not keep its lease.
        for id_, data in await patience.until_answered(lambda: self._store.inbox(shard, "0-0", PAGE)):
            owned.cursor.inbox = id_
            owned.accept(id_, data)
        await _in_turns(owned.receive, (event for event in events if event.invocation not in unread))
        for id_, where in zip(known, places, strict=True):
            if where is Where.ASLEEP and id_ in owned.recovered:
                owned.wake(id_)
        if owned.is_lost:
            return  # lost while events and inbox were read
        owned.is_recovered, owned.next_due_ms = True, 1
        self._wake_timers()
        await self._store.interrupt()
        logger.info("shard %d: owned by %s with epoch %d", shard, self._host, owned.epoch)

    def lose(self, owned: OwnedShard, why: str) -> None:
        """Step down from a shard at once: its open invocations go on at the next owner."""
        if owned.is_lost:
            return
        logger.warning("shard %d: host %s steps down: %s", owned.shard, self._host, why)
        owned.lose()
        if self.shards.get(owned.shard) is owned:
            del self.shards[owned.shard]
        self._leases.remove(owned.shard)
        self._again.set()

    def went_back(self, owned: OwnedShard, lost: str) -> None:
        """Log the loss of the store, and step down, so that the rest is recovered."""
        if owned.is_lost:
            return
        logger.error("shard %d: the store has lost %s; recovering the rest", owned.shard, lost)
        self._losses += 1
        self.lose(owned, "the store went back")

    def failed(self, owned: OwnedShard, error: BaseException) -> None:
        """Step down from a shard that this host failed on; it is taken again at once, or after a rest."""
        if owned.is_lost:
            return
        rest = 0.0 if self._suspects.note(owned.shard, error, self._clock.now_ms()) else REST
        logger.error("shard %d: host %s failed on it, and serves it again in %g s", owned.shard, self._host, rest)
        self._resting[owned.shard] = self._now() + rest
        self.lose(owned, error_text(error, ERROR_MAX))

    def broken(self, error: BaseException) -> None:
        """Step down from the shard of a failed task; from all shards, if it is unknown."""
        found = self.shards.get(shard_in_frames(error))
        for owned in list(self.shards.values()) if found is None else [found]:
            self.failed(owned, error)

    async def _give_up(self, extra: list[OwnedShard]) -> None:
        """Hand over shards that belong to other hosts, each as soon as none of its steps runs."""
        await self._release(self._hand_over.ready(extra), leaving=False)
        if self._hand_over.is_under_way:
            self._again.set()
            await asyncio.sleep(0.01)

    async def leave(self, patience_s: float) -> None:
        """Hand all shards over: for at most `patience_s` let steps end and be recorded, then release the leases."""
        self._is_leaving = True
        for owned in self.shards.values():
            owned.drain()
        deadline = self._now() + patience_s
        while self._now() < deadline and not self._is_drained():  # noqa: ASYNC110
            await asyncio.sleep(DRAIN_LOOK)  # no single event tells it: steps end, commits settle
        try:
            await self._release(list(self.shards.values()), leaving=True)
        except UnavailableError as error:
            logger.warning("host %s: %s; the leases that it had must expire", self._host, error)

    def _is_drained(self) -> bool:
        return not self._acquiring and all(owned.is_drained for owned in self.shards.values())

    def resign(self) -> None:
        """Let `sign_off` free the leases of this host: it has failed, which no other host could see."""
        self._is_leaving = True

    async def _release(self, shards: list[OwnedShard], *, leaving: bool) -> None:
        if not shards and not leaving:
            return
        epochs = {owned.shard: owned.epoch for owned in shards}
        if leaving:
            epochs |= self._leases.owned  # also shards that are being recovered
        for owned in shards:
            owned.lose()
            del self.shards[owned.shard]
        for shard in epochs:
            self._leases.remove(shard)
        await self._store.release(self._leases.incarnation, epochs, leaving=leaving)

    async def sign_off(self) -> None:
        """After `leave`, when no task of this host runs: free its remaining leases, and take it off the list for good.

        A renewal that was under way may have put it back on the list, and `leave` may have been cut short.
        """
        if self._is_leaving:
            try:
                await self._store.bury(self._leases.incarnation)
            except (UnavailableError, DamagedError) as error:
                logger.warning("host %s: %s; another host takes it off the list", self._host, error)

    def drop(self) -> None:
        """Forget all shards, as a crash would."""
        for owned in self.shards.values():
            owned.lose()
        self.shards.clear()

    def about(self) -> tuple[list[Shard], int]:
        """Return the shards and how much they have staged; any thread may ask."""
        owned = list(self.shards.values())
        return sorted(each.shard for each in owned), sum(each.staging.backlog for each in owned)

    def acknowledged(self) -> dict[Shard, tuple[int, Cursor]]:
        """Return each shard's last acknowledged commit and the position of its reads; any thread may ask."""
        return {
            owned.shard: (owned.staging.acknowledged, Cursor(owned.cursor.inbox, owned.cursor.events))
            for owned in list(self.shards.values())
        }


async def _in_turns(take: Callable[[Event], None], events: Iterable[Event]) -> None:
    for number, event in enumerate(events):
        if number % PAGE == PAGE - 1:
            await asyncio.sleep(0)
        take(event)


def _size_of(entry: Any) -> int:
    return len(entry.payload if isinstance(entry, Event) else entry[-1])


async def pages(patience: Patience, read: Callable[[str], Coroutine[Any, Any, list[Any]]]) -> list[Any]:
    """Return all of a stream, read page by page."""
    entries: list[Any] = []
    after = ""
    while True:
        page = await patience.until_answered(lambda after=after: read(after))
        entries += page
        # A page may end early for its bytes; ids and names, which the store counts too, take far less than half.
        if len(page) < PAGE and sum(map(_size_of, page)) < READ_BYTES // 2:
            return entries
        last = page[-1]
        after = last.id if isinstance(last, Event) else last[0]
