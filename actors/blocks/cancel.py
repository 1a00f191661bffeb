"""Cancel and kill: events that end an invocation from outside, and the calls below it.

A cancel is an event like any other: delivered in order, recorded, replayed. Every wait that is open then raises
`Cancelled`, once; waits that the handler starts afterwards work, so it can compensate. A kill acts when it is received:
without a replay, without compensation. Both go on to the calls without an outcome, not to sends.

Where it lies. In `events`, from the write that brings it until a commit has recorded it, or has ended the invocation.
For the calls, a cancel makes entries of the caller, `cancel <id>`; a kill needs none: the ids of callees follow from
the entries of their calls.

A death between two store calls. Of a driver, before its write is applied: nothing was cancelled, and no call reported
success. Of the host, before the commit that follows: the event is still in `events`, and the next owner delivers it
again, after the same events. That commit holds the handler's reaction together with the cancels of its calls; a failed
attempt may record the event without these entries, and then the replay makes them, and sends them. A kill's commit
holds the end and the kills of the calls, or nothing.
A delayed invocation is made due by a timer, and ended when its message is in the inbox: if it were ended in its hash,
it could be moved to the inbox at the same time, and run. The event stays until the end is durable, so any owner ends
the invocation, also an owner that finds it due: an event older than the message came before the beginning. To know
this when it takes a message, a host reads no message of a shard that is younger than the last event read of the shard.

A handler that catches `Cancelled` may go on: this is the way to compensate. But `except Exception` catches it too, and
`gather(return_exceptions=True)` keeps it, by mistake. If the next wait raised it again, it would end a compensation
that has begun; so it is raised once, and a handler that goes on, outside of an `except` or `finally` block of it and
without ending in an error, is named in the host's log, once.

Invariants:
    1. The first commit of an outcome wins: an event that finds it does nothing.
    2. A cancelled invocation that is known not to have begun never begins: a delayed or a queued invocation.
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
from journal.texts import repr_of

from .steps import Steps
from .timers import Timers

ENDING: Final = (EventKind.CANCEL, EventKind.KILL)
"""The events that end a paused, a delayed or a queued invocation at once."""


def ending_in(events: Iterable[Event]) -> EventKind | None:
    """Return the kind of the event that ends an invocation, if any of these does; a kill comes before a cancel."""
    found = {event.kind for event in events}
    return next((kind for kind in reversed(ENDING) if kind in found), None)


def ended_before(inbox_id: str, due_ms: int, events: Iterable[Event]) -> EventKind | None:
    """Return the kind of the event that ended a delayed invocation before its message was in the inbox, or due."""
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
        wait.exception()  # marks it as seen, so that asyncio does not warn if it is never awaited
    return bool(waits)


class Unheeded:
    """Notices a cancelled handler that goes on as if nothing had happened, and logs that once."""

    def __init__(self, loop: DeterministicLoop, say: Callable[[str], None]) -> None:
        self._loop, self._say, self._is_said = loop, say, False
        self._newest = loop.newest
        loop.watch = self._waits

    def _waits(self) -> None:
        task = asyncio.current_task(self._loop)
        if task is None or self._loop.is_closed() or _is_called_by_a_group(sys._getframe(1)):  # pyright: ignore[reportPrivateUsage]
            return
        # A task that was made since may be part of a compensation, which its own stack does not show.
        if not (isinstance(task, Task) and task.number > self._newest) and not _is_of_cancel(sys.exception()):
            self._tell("goes on")

    def returned(self) -> None:
        """Log that the handler has returned, unless a warning was logged before."""
        if not self._is_said:
            self._tell("has returned a result")

    def _tell(self, what: str) -> None:
        self._is_said, self._loop.watch = True, None
        self._say(
            f"it was cancelled, has caught that, and {what}. `except Exception` and gather(return_exceptions=True) "
            "catch `Cancelled` too: to end with it, write `except Cancelled: raise` before; ref.kill() needs no handler"
        )


def _is_called_by_a_group(frame: FrameType | None) -> bool:
    # A task group waits for its tasks, and these may be compensating.
    while frame is not None and frame.f_globals.get("__name__") in (__name__, DeterministicLoop.__module__):
        frame = frame.f_back
    return frame is not None and frame.f_globals.get("__name__") == "asyncio.taskgroups"


def _is_of_cancel(error: BaseException | None) -> bool:
    """Whether an error that is being handled is a cancel, contains a cancel, or was caused by a cancel."""
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
    """Return the outcome of an invocation that had not begun."""
    return Cancelled(f"{'killed' if kind is EventKind.KILL else 'cancelled'} before it began")


def while_paused(kind: EventKind, reason: str) -> Cancelled:
    """Return the outcome of a paused invocation."""
    how = "killed" if kind is EventKind.KILL else "cancelled"
    return Cancelled(f"{how} while it was paused: nothing was compensated; it was paused because {reason}")


def after_failure(error: BaseException, kind: EventKind) -> Cancelled:
    """Return the outcome of an invocation whose attempt failed before the cancel was delivered."""
    if kind is EventKind.KILL:
        return killed()
    found = Cancelled(f"cancelled after a failed attempt, with no further one: {repr_of(error)}")
    caused(found, error)
    return found
