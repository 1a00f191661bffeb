"""MemorySurvey: the reads of operators on a `World`, as `RedisSurvey` has them on a server."""

from collections.abc import Callable, Sequence
from itertools import islice

from journal.ids import Shard, shard_in
from journal.records import order_of
from journal.store import Dormant
from journal.survey import PAGE, Account, Facts, Listed, Page, Place, Sizes, first_line, in_json, in_short

from .scripts import ShardData, World


class MemorySurvey:
    """See `Survey` for what each method promises."""

    def __init__(self, world: Callable[[], World]) -> None:
        self._world = world

    async def page(
        self, shard: Shard, place: Place, begins: str, cursor: str, count: int = PAGE, *, are_paused: bool = False
    ) -> Page:
        source = self._world().shard(shard)
        match place:
            case Place.INBOX:
                looked = source.inbox.after(cursor, count)
                found = [Listed("", place, id_, first_line(data)) for id_, data in looked if _begins(data, begins)]
            case Place.ENDED:
                looked = _before(source, cursor, count)
                found = [_ended(source, id_, entry) for id_, entry in looked if text_of(entry[2]).startswith(begins)]
            case Place.ASLEEP:
                at = int(cursor or 0)
                some = list(islice(source.asleep.items(), at, at + count))
                found = [self._asleep(source, *each) for each in some if _begins(each[1].message, begins)]
                found = [each for each in found if each.paused or not are_paused]
                return Page(found, str(at + count) if len(some) == count else "")
        return Page(found, looked[-1][0] if len(looked) == count else "")

    def _asleep(self, source: ShardData, invocation: str, dormant: Dormant) -> Listed:
        paused, has_begun = _paused(source, invocation, dormant)
        line = first_line(dormant.message)
        return Listed(invocation, Place.ASLEEP, dormant.inbox_id, line, paused, has_begun=has_begun)

    async def account(self, invocation: str) -> Account | None:
        source = self._world().shard(shard_in(invocation))
        entry = source.ids.get(invocation)
        if entry is None:
            return None
        tellers = tuple(entry.tellers)
        if entry.kind == "i":
            return Account(Place.INBOX, entry.id, tellers, source.inbox.entries[entry.id])
        if entry.kind == "a":
            dormant = source.asleep[invocation]
            paused, has_begun = _paused(source, invocation, dormant)
            return Account(Place.ASLEEP, entry.id, tellers, dormant.message, paused, has_begun=has_begun)
        outcome = source.outcome(invocation, entry) or b""
        if entry.kind == "o":
            return Account(Place.ENDED, "", outcome=outcome)
        ended = source.done.entries[entry.id]
        return Account(Place.ENDED, entry.id, name=text_of(ended[2]), outcome=outcome)

    async def records(self, invocation: str, cursor: str) -> tuple[list[tuple[str, bytes]], str]:
        looked = self._world().shard(shard_in(invocation)).journal.after(cursor, PAGE)
        found = [(id_, record) for id_, (whose, record) in looked if whose == invocation]
        return found, looked[-1][0] if len(looked) == PAGE else ""

    async def due(self, shard: Shard, timers: Sequence[str]) -> list[int]:
        known = self._world().shard(shard).timers
        return [known.get(timer, 0) for timer in timers]

    async def objects(self, begins: str, cursor: str, count: int = PAGE) -> tuple[list[str], str]:
        at = int(cursor or 0)
        every = [target for shard in self._world().shards for target, fields in shard.state.items() if fields]
        found = [target for target in every[at : at + count] if target.startswith(begins)]
        return found, str(at + count) if len(every) > at + count else ""

    async def sizes(self, shards: int) -> list[Sizes]:
        return [
            Sizes(
                inbox=len(shard.inbox.entries),
                events=len(shard.events.entries),
                journal=len(shard.journal.entries),
                timers=len(shard.timers),
                held=len(shard.held),
                done=len(shard.done.entries),
                known=len(shard.ids),
            )
            for shard in self._world().shards[:shards]
        ]

    async def is_open(self) -> bool:
        return bool(self._world().shards)

    async def facts(self) -> Facts:
        return Facts(version="memory")


Ended = tuple[str, bytes, bytes]
"""Invocation, outcome, and target with handler."""


def _before(source: ShardData, cursor: str, count: int) -> list[tuple[str, Ended]]:
    older = [
        (id_, entry)
        for id_, entry in reversed(source.done.entries.items())
        if not cursor or order_of(id_) < order_of(cursor)
    ]
    return older[:count]


def _ended(source: ShardData, id_: str, entry: Ended) -> Listed:
    invocation, outcome, name = entry
    outcome = outcome or source.outcomes.get(invocation, b"")
    return Listed(invocation, Place.ENDED, id_, name=text_of(name), outcome=in_short(outcome))


def text_of(data: bytes) -> str:
    """Return text that the store holds."""
    return data.decode("utf-8", "surrogatepass")


def _begins(message: bytes, begins: str) -> bool:
    _, found, rest = first_line(message).partition(b'","')
    return not begins or bool(found and rest.startswith(in_json(begins)))


def _paused(source: ShardData, invocation: str, dormant: Dormant) -> tuple[str | None, bool]:
    paused = dormant.paused or ("" if invocation in source.resumed else None)
    return paused, bool(dormant.records) or paused is not None
