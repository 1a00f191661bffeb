"""Pauses: invocations that wait for an operator, and the commands RESUME and RESTART that make them go on.

An invocation is paused when its replay diverged, or when its attempts are used up and its policy says so. It is asleep
with a reason: its key is held, its callers go on waiting, and its events lie in `events`. The two commands are events
too. RESUME: it goes on by replay of its journal, with the code of its type that is current then, and a new count of
attempts. RESTART: the same, from one of its entries on (`restarts`); the journal from there on is dropped.

The owner answers a command with one commit: a record of the command, and no reason to wait any more. Nothing is
executed before that commit is durable; then the invocation is read again and goes on like any that was asleep. The
command's event stays until a commit of the invocation deletes it, so that it wakes the invocation again if the owner
dies in between.

A death between two store calls. Before the answer is durable: the invocation is paused, and the next owner finds the
command. After it: the invocation is no longer paused; the command's event is still there and brings it into memory,
where the event does nothing more, since the invocation is not paused. Events that came meanwhile lie in `events`; the
owner has kept none of a paused invocation in memory, so it reads them again from the beginning, and they are delivered
in their order before anything starts.

Invariants:
    1. A command for an invocation that is not paused does nothing.
    2. Everything derived for a resumed invocation (its code, its count, its generation) stands in its journal.
"""

from collections.abc import Iterable
from typing import Final

from journal.records import Event, EventKind, Record
from journal.store import Dormant, Sleep

from .open_invocation import OpenInvocation
from .staging import Staging

COMMANDS: Final = (EventKind.RESUME, EventKind.RESTART)
_BEFORE: Final = "; before that: "


def command_in(events: Iterable[Event]) -> Event | None:
    """Return the first command among events."""
    return next((event for event in events if event.kind in COMMANDS), None)


def answer(run: OpenInvocation, events: list[Event], dormant: Dormant, code: str, staging: Staging) -> list[Event]:
    """Stage the answer to the first command; return the events that wait until the answer is durable.

    `run` has adopted its journal; `code` is the hash of the current code of its type.
    """
    command = command_in(events)
    assert command is not None
    record, end = _answer_to(command, dormant, run, code)
    spent = [command.id] if end.paused else []  # if the invocation goes on, the event stays, to wake it
    staging.answered(run.message, run.inbox_id, record, end, spent)
    return [event for event in events if event.id not in spent]


def _answer_to(command: Event, dormant: Dormant, run: OpenInvocation, code: str) -> tuple[Record, Sleep]:
    """Return the answer to a command: the next record of the invocation, and its standing in the store."""
    if command.kind is EventKind.RESUME:
        return Record(code=code), Sleep(holds=False, resumed=True)
    first, entries = command.index, len(run.recorded)
    if first > entries:
        why = f"restart(from_entry={first}) was refused: the journal holds {entries} entries, counted from 0"
        reason = why + _BEFORE + dormant.paused.rpartition(_BEFORE)[2]
        return Record(error=reason), Sleep(holds=False, paused=reason)
    return Record(code=code, restart=(first, len(run.restarts) + 1)), Sleep(holds=False, resumed=True)
