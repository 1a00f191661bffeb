"""Views: an invocation as the store knows it, for programs and people that ask.

The parts are read one after the other, so that a view of an invocation that moves on is not of one instant.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from journal.ids import shard_in
from journal.records import AT_AN_ENTRY, EventKind, Message, Record, time_of
from journal.store import Store
from journal.survey import Place

from .watch import RECORDS_MAX, status_and_holder

WAITS_MAX: Final = 10
"""Most waits that a view names."""
PAGE: Final = 1_000


@dataclass(frozen=True, slots=True)
class Attempt:
    """A failed attempt."""

    number: int
    error: str
    next: datetime | None


@dataclass(frozen=True, slots=True)
class View:
    """An invocation."""

    id: str
    status: str
    """`open`, `asleep`, `paused`, `succeeded` or `failed`."""
    detail: str = ""
    """Why it is paused, or who holds its key."""
    target: str = ""
    """`Type/key`; empty where it is not known any more."""
    handler: str = ""
    accepted: datetime | None = None
    due: datetime | None = None
    begun: datetime | None = None
    """The time of the first record of its journal."""
    attempts: int = 0
    """The number of the attempt that is under way or follows."""
    failure: Attempt | None = None
    """The last failed attempt."""
    waits_for: tuple[str, ...] = ()
    """Entries of its journal without an outcome, the newest last."""
    ended: datetime | None = None


async def view_of(store: Store, id_: str) -> View | None:
    """Return the view of an invocation; None if it is not known."""
    said = await status_and_holder(store, id_)
    if not said:
        return None
    status, _, detail = said.partition(": ")
    account = await store.survey().account(id_)
    if account is None or account.place is Place.ENDED:
        target, _, handler = ("" if account is None else account.name).rpartition(".")
        ended = None if account is None or not account.id else _time(time_of(account.id))
        return View(id_, status, detail, target, handler, ended=ended)
    message = Message.parse(account.message)
    records = await _records(store, id_)
    last = next((record for _, record in reversed(records) if record.attempt or record.error), None)
    return View(
        id_,
        status,
        detail,
        message.target,
        message.handler,
        _time(time_of(account.id)),
        _time(message.due_ms),
        _time(time_of(records[0][0])) if records else None,
        max((record.attempt for _, record in records), default=0) or (1 if records else 0),
        None if last is None or not last.error else Attempt(max(last.attempt - 1, 1), last.error, _time(last.next_ms)),
        _waits([record for _, record in records]),
    )


async def completion_of(store: Store, id_: str, mark: int) -> bytes | None:
    """Return the first completion of an awakeable of an open invocation, delivered or not; None if there is none."""
    for _, record in await _records(store, id_):
        for event in record.events:
            if event.kind is EventKind.AWAKEABLE and event.index == mark:
                return event.payload
    after = ""
    while page := await store.events(shard_in(id_), after, PAGE):
        for one in page:
            if one.invocation == id_ and one.kind is EventKind.AWAKEABLE and one.index == mark:
                return one.payload
        after = page[-1].id
    return None


async def _records(store: Store, id_: str) -> list[tuple[str, Record]]:
    dormant = (await store.dormant([(shard_in(id_), id_)]))[0]
    records = [] if dormant is None else [(at, Record.parse(data)) for at, data in dormant.records]
    lately = await store.latest(shard_in(id_), RECORDS_MAX)
    return records + [(at, Record.parse(data)) for at, whose, data in reversed(lately) if whose == id_]


def _waits(records: list[Record]) -> tuple[str, ...]:
    entries: dict[int, str] = {}
    for record in records:
        if record.restart[1]:
            entries = {at: entry for at, entry in entries.items() if at < record.restart[0]}
        entries.update({record.first + at: entry for at, entry in enumerate(record.entries)})
        for event in record.events:
            if event.kind in AT_AN_ENTRY:
                entries.pop(event.index, None)
        for index, _ in record.steps:
            entries.pop(index, None)
        for index, _ in record.answers:
            entries.pop(index, None)
    return tuple([*entries.values()][-WAITS_MAX:])


def _time(ms: int) -> datetime | None:
    return datetime.fromtimestamp(ms / 1000, UTC) if ms else None
