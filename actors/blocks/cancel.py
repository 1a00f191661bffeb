"""Cancel and kill: how an invocation is ended from outside, and what reaches down the tree of its calls.

A cancel is an event like any other: delivered in order, recorded, replayed. Every wait that is open then raises
`Cancelled`, once; what the handler starts afterwards works, so it can compensate. A kill acts when it is received:
without a replay, without compensation. Each goes on to the calls without an outcome, not to sends.

Where it lies. In `events`, from the write that brings it until a commit has recorded it, or has ended the invocation.
For the calls, a cancel makes entries of the caller, `cancel <id>`; a kill needs none: the ids of callees follow from
the entries of their calls.

What a death between two store calls does. Of a driver, before its write is applied: nothing was cancelled, and nobody
was told so. Of the host, before the commit that follows: the event is still in `events`, and the next owner delivers
it again, after the same events. That commit holds what the handler did about it together with the cancels of its
calls; an attempt that fails may record the event without those entries, and then the replay makes them, and sends
them. A kill's commit holds the end and the kills of the calls, or nothing.
A delayed invocation is made due by a timer, and ended when its message is in the inbox: ended in its hash it could be
moved there at the same time, and run. Until its end is durable the event stays, so any owner ends it, also one that
finds it due: what came before its message did is older than its beginning. So that this is known when the message is
taken, a host reads no message of a shard that is younger than the last event that it has read of it.

Who catches `Cancelled` and goes on is let go on: that is how a handler compensates. But `except Exception` catches it
too, and `gather(return_exceptions=True)` keeps it, by mistake. Raised again by the next wait it would end what was
begun to compensate; so it is raised once, and a handler that goes on, neither within an `except` or `finally` block of
it nor by ending in an error, is named in the host's log, once.

Invariants:
    1. The first commit of an outcome wins: an event that finds it does nothing.
    2. Who is known not to have begun never begins: a delayed one, and one that waits for another's turn.
"""

import asyncio
import sys
from collections.abc import Callable, Iterable, Sequence
from types import FrameType
from typing import Final, cast

from actors.errors import Cancelled
from actors.loop.loop import DeterministicLoop, Task
from actors.tracebacks import caused
from journal.ids import shard_in
from journal.records import Event, EventKind, time_of
from journal.store import Bring
from journal.texts import shown

from .steps import Steps
from .timers import Timers

ENDING: Final = (EventKind.CANCEL, EventKind.KILL)
"""What ends a paused, a delayed or a queued invocation at once."""


def ending_in(events: Iterable[Event]) -> EventKind | None:
    """Return the kind of what ends an invocation, a kill before a cancel, if it is among these events."""
    found = {event.kind for event in events}
    return next((kind for kind in reversed(ENDING) if kind in found), None)


def ended_before(inbox_id: str, due_ms: int, events: Iterable[Event]) -> EventKind | None:
    """Return what ended a delayed invocation before it could begin: until then it was not in the inbox, or not due."""
    came_ms = time_of(inbox_id)
    return ending_in(events if due_ms > came_ms else (event for event in events if event.time_ms <= came_ms))


def brought(kind: EventKind, ids: Sequence[str]) -> list[Bring]:
    """Return the events that end these invocations."""
    return [Bring(shard_in(id_), id_, kind, 0, b"") for id_ in ids]


def fail_waits(loop: DeterministicLoop, steps: Steps, timers: Timers) -> bool:
    """Raise `Cancelled` from every wait of an execution that is open; return whether there was one."""
    entries = loop.open_waits()
    for wait in entries:
        steps.give_up(wait)
    waits = [*entries, *timers.sleeps()]
    for wait in waits:
        wait.set_exception(Cancelled())
        wait.exception()  # who does not await it misses nothing: asyncio need not say so
    return bool(waits)


class Unheeded:
    """Finds out whether a handler that was cancelled goes on as if nothing had been, and says so once."""

    def __init__(self, loop: DeterministicLoop, say: Callable[[str], None]) -> None:
        self._loop, self._say, self._is_said = loop, say, False
        self._newest = loop.newest
        loop.watch = self._waits

    def _waits(self) -> None:
        task = asyncio.current_task(self._loop)
        if task is None or self._loop.is_closed() or _is_called_by_a_group(sys._getframe(1)):  # pyright: ignore[reportPrivateUsage]
            return
        # A task that was made since may be part of compensating, which its own stack does not tell.
        if not (isinstance(task, Task) and task.number > self._newest) and not _is_of_cancel(sys.exception()):
            self._tell("goes on")

    def returned(self) -> None:
        """Say that it has returned, if nothing was said before."""
        if not self._is_said:
            self._tell("has returned a result")

    def _tell(self, what: str) -> None:
        self._is_said, self._loop.watch = True, None
        self._say(
            f"it was cancelled, has caught that, and {what}. `except Exception` and gather(return_exceptions=True) "
            "catch `Cancelled` too: to end with it, write `except Cancelled: raise` before; ref.kill() asks nobody"
        )


def _is_called_by_a_group(frame: FrameType | None) -> bool:
    # Which waits for its tasks, and these may be compensating.
    while frame is not None and frame.f_globals.get("__name__") in (__name__, DeterministicLoop.__module__):
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__") == "asyncio.taskgroups"


def _is_of_cancel(error: BaseException | None) -> bool:
    """Whether an error that is being handled is a cancel, holds one, or came of one."""
    found, seen = error, set[int]()
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        if isinstance(found, Cancelled | asyncio.CancelledError):
            return True
        if isinstance(found, BaseExceptionGroup):
            leaves = cast("BaseExceptionGroup[BaseException]", found).exceptions
            return any(map(_is_of_cancel, leaves))
        found = found.__context__
    return False


def killed() -> Cancelled:
    """Return the outcome of a killed invocation."""
    return Cancelled("killed: nothing was compensated")


def never_begun(kind: EventKind) -> Cancelled:
    """Return the outcome of one that had not begun."""
    return Cancelled(f"{'killed' if kind is EventKind.KILL else 'cancelled'} before it began")


def while_paused(kind: EventKind, reason: str) -> Cancelled:
    """Return the outcome of a paused one."""
    how = "killed" if kind is EventKind.KILL else "cancelled"
    return Cancelled(f"{how} while it was paused: nothing was compensated; it was paused because {reason}")


def after_failure(error: BaseException, kind: EventKind) -> Cancelled:
    """Return the outcome of one whose attempt failed before it could be told."""
    if kind is EventKind.KILL:
        return killed()
    found = Cancelled(f"cancelled after a failed attempt, with no further one: {shown(error)}")
    caused(found, error)
    return found
