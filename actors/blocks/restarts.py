"""Restarts: what of a journal still holds where an operator has let the invocation begin again from one of its entries.

Owns the rule, and nothing else. A journal is only ever added to: a restart is a record that says from which entry, and
which generation the entries made from there on are of. What stands before it is read as if what it drops had never
been.

A name that is derived from an entry's index (of a call, a step, an awakeable, a timer) would name the same thing again
for the entry that takes the index next, so it is derived from the entry's mark: its index and its generation in one
number. A mark of an old generation names nothing here: what comes for it finds nobody.

Invariants:
    1. An invocation that was never restarted has marks that are its indices.
    2. Entries before the one restarted from keep their marks, and with them the calls, timers and awakeables they made.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from journal.records import AT_AN_ENTRY, Delivered, EventKind, Record

GENERATION: Final = 1_000_000_000
"""The mark of an entry is its index and so many for each generation."""

Restarts = Sequence[tuple[int, int]]
"""Of each restart, in order: the entry that it began from, and its generation."""


def mark_of(index: int, restarts: Restarts) -> int:
    """Return the mark of an entry."""
    for first, generation in reversed(restarts):
        if first <= index:
            return generation * GENERATION + index
    return index


def at_its_entry(event: Delivered, restarts: Restarts) -> Delivered | None:
    """Return an event with the index that its mark names, None if the entry of that mark was dropped."""
    if event.kind not in AT_AN_ENTRY:
        return event
    index = event.index % GENERATION
    return replace(event, index=index) if mark_of(index, restarts) == event.index else None


def kept(records: list[tuple[str, Record]]) -> list[tuple[str, Record]]:
    """Return a journal in which each record is without what later restarts have dropped."""
    out: list[tuple[str, Record]] = []
    for id_, record in records:
        first, generation = record.restart
        if generation:
            out = _before(first, out)
        out.append((id_, record))
    return out


def _before(first: int, records: list[tuple[str, Record]]) -> list[tuple[str, Record]]:
    """Return what stays: entries before this one, what completed them, signals, and former values of fields.

    So does what others wrote that were let in. Signals are handed out again. What came for the invocation as a whole
    stays if no dropped entry was made by then.
    """
    out: list[tuple[str, Record]] = []
    made, count, places = 0, 0, dict[int, int]()
    for id_, record in records:
        if record.entries:
            made = record.first + len(record.entries)

        def stays(event: Delivered, made: int = made) -> bool:
            if event.kind in AT_AN_ENTRY:
                return event.index < first
            return event.kind in (EventKind.SIGNAL, EventKind.STATE) or made <= first

        for keeps in (*map(stays, record.events), *(index < first for index, _ in record.steps)):
            count += 1
            if keeps:
                places[count] = len(places) + 1
        trimmed = replace(
            record,
            events=[event for event in record.events if stays(event)],
            entries=record.entries[: max(first - record.first, 0)],
            seen=[(places[at], fields) for at, fields in record.seen if at in places],
            steps=[(index, outcome) for index, outcome in record.steps if index < first],
            answers=[(index, answer) for index, answer in record.answers if index < first],
            tries=[],
        )
        out.append((id_, trimmed))
    return out
