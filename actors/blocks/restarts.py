"""Restarts: the part of a journal that remains when an operator restarts its invocation from one of its entries.

Owns this rule only. A journal is append-only: a restart is a record that names the entry from which the invocation
begins again, and the generation of the entries made from there on. Earlier records are read as if the dropped entries
had never existed.

A name that is derived from an entry's index (of a call, a step, an awakeable, a timer) would be reused by the next
entry of that index, so it is derived from the entry's mark: its index and its generation in one number. A mark of an
old generation names no entry: an event for it is ignored.

Invariants:
    1. In an invocation that was never restarted, marks equal indices.
    2. Entries before the restart keep their marks, and with them the calls, timers and awakeables they made.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from journal.records import AT_AN_ENTRY, Delivered, EventKind, Record

GENERATION: Final = 1_000_000_000
"""The mark of an entry is its index plus this number for each generation."""

Restarts = Sequence[tuple[int, int]]
"""The restarts of an invocation in order: each with its first entry, and its generation."""


def mark_of(index: int, restarts: Restarts) -> int:
    """Return the mark of an entry."""
    for first, generation in reversed(restarts):
        if first <= index:
            return generation * GENERATION + index
    return index


def at_its_entry(event: Delivered, restarts: Restarts) -> Delivered | None:
    """Return an event with the index of its mark's entry, None if that entry was dropped."""
    if event.kind not in AT_AN_ENTRY:
        return event
    index = event.index % GENERATION
    return replace(event, index=index) if mark_of(index, restarts) == event.index else None


def kept(records: list[tuple[str, Record]]) -> list[tuple[str, Record]]:
    """Return a journal whose records are without the parts that later restarts have dropped."""
    out: list[tuple[str, Record]] = []
    for id_, record in records:
        first, generation = record.restart
        if generation:
            out = _before(first, out)
        out.append((id_, record))
    return out


def _before(first: int, records: list[tuple[str, Record]]) -> list[tuple[str, Record]]:
    """Return the records with the parts that stay: entries before `first`, their completions, signals, former values.

    Writes of inner invocations stay too. Signals are handed out again. Events for the invocation as a whole stay if no
    dropped entry had been made by then.
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
