"""Lifetimes: the time to live (ttl) of an object's state, or of a field, after its last change; and its timers.

Where it lies. A commit that changes a field with a `ttl`, or any field of an object with a `ttl`, sets a timer in the
shard's `timers`, under a name that is always the same: a later change moves it, and nothing accumulates. When it is
due, a script removes the timer and puts an event into `events`, which stays there until the commit that clears the
state. The module `expiries` tells the rest.

A death between two store calls. The timer is part of the commit that changes the state: both are there, or neither. A
host that dies before or after a timer became an event leaves the timer or the event to the next owner.

Invariants:
    1. State that was not changed for its ttl is cleared as soon as no exclusive invocation is under way; no other state
       is.
    2. If no class has a ttl, nothing is written, and a commit reads only one attribute more.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from actors.errors import UsageError
from actors.policy import Duration, seconds
from journal.records import timer_of_field, timer_of_object


def ttl_ms(ttl: Duration | None, where: str) -> int:
    """Return a ttl in milliseconds, 0 if none is given.

    Raises:
        UsageError: it is no duration, or is not positive.
    """
    if ttl is None:
        return 0
    found = int(seconds(ttl) * 1000)
    if not found:
        raise UsageError(
            f"{where}: ttl={ttl!r} is over at once. Say how long state is kept after its last change: '30d'"
        )
    return found


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """The ttl of a class and of its fields, in milliseconds."""

    object_ms: int
    """The ttl of all state; 0 means for ever."""
    fields_ms: Mapping[str, int]
    """The ttl of each field that has its own."""

    def timers(
        self, target: str, changes: Mapping[str, bytes | None], stored: Mapping[str, bytes], now_ms: int
    ) -> tuple[list[tuple[int, str]], list[str]]:
        """Return the timers that a commit with these changes sets, and those that it clears."""
        timers: list[tuple[int, str]] = []
        untimers: list[str] = []
        for name in changes.keys() & self.fields_ms.keys():
            if changes[name] is None:
                untimers.append(timer_of_field(target, name))
            else:
                timers.append((now_ms + self.fields_ms[name], timer_of_field(target, name)))
        if self.object_ms and any(value is not None for value in ({**stored, **changes}).values()):
            timers.append((now_ms + self.object_ms, timer_of_object(target)))
        elif self.object_ms:
            untimers.append(timer_of_object(target))
        return timers, untimers
