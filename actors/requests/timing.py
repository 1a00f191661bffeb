"""Timing: the ticks of a schedule, from a cron expression in a time zone, or from a fixed distance.

Pure. An instant is milliseconds since 1970, UTC. A cron expression is read in the local time of its zone: a tick whose
local time does not exist (a clock that was put forward) is at the next one that does, and a tick whose local time comes
twice is at the first. Several ticks at one instant are one.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, cast
from zoneinfo import ZoneInfo

from actors.errors import UsageError
from actors.policy import Duration, seconds
from actors.stored import pinned

Missed = Literal["skip", "last", "all"]
EVERY_MIN: Final = 1.0
"""Fewest seconds between two ticks."""
_RANDOM: Final = re.compile(r"(?<![a-z])[rh](?![a-z])", re.IGNORECASE)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@pinned("Timing")
@dataclass(frozen=True, slots=True)
class Timing:
    """When a schedule fires: `cron` in `timezone`, or each `every_ms` from when it was declared."""

    cron: str = ""
    timezone: str = "UTC"
    every_ms: int = 0
    missed: Missed = "last"

    def after(self, instant_ms: int, anchor_ms: int) -> int:
        """Return the first tick after an instant, 0 if there is none any more."""
        if self.every_ms:
            return anchor_ms + ((instant_ms - anchor_ms) // self.every_ms + 1) * self.every_ms
        zone = ZoneInfo(self.timezone)
        start = _local(instant_ms, zone).replace(tzinfo=None)
        for tick in _iterated(self.cron, start, "get_next"):
            found = _instant(tick, zone)
            if found > instant_ms:
                return found
        return 0

    def latest(self, since_ms: int, until_ms: int, anchor_ms: int, most: int) -> list[int]:
        """Return the ticks from `since_ms` to `until_ms`, both included; of more than `most` the latest."""
        found: list[int] = []
        for tick in self._back_from(until_ms, anchor_ms):
            if tick < since_ms or len(found) == most:
                break
            if not found or tick != found[-1]:
                found.append(tick)
        return found[::-1]

    def _back_from(self, until_ms: int, anchor_ms: int) -> Iterator[int]:
        if self.every_ms:
            tick = anchor_ms + (until_ms - anchor_ms) // self.every_ms * self.every_ms
            while tick > anchor_ms:
                yield tick
                tick -= self.every_ms
            return
        zone = ZoneInfo(self.timezone)
        now = _local(until_ms, zone)
        # In an hour that comes again, local times up to the end of the first one are past.
        repeated = (now.replace(fold=0).utcoffset() or timedelta()) - (now.utcoffset() or timedelta())
        start = now.replace(tzinfo=None, microsecond=0) + repeated + timedelta(seconds=1)
        for tick in _iterated(self.cron, start, "get_prev"):
            if (found := _instant(tick, zone)) <= until_ms:
                yield found


def timing_of(cron: str | None, every: Duration | None, timezone: str | None, missed: str, now_ms: int) -> Timing:
    """Return the timing that a program asks for.

    Raises:
        UsageError: it is invalid, or it never fires.
    """
    if (cron is None) == (every is None):
        raise UsageError("a schedule has cron='0 9 * * *' or every='10m': say one of them")
    if missed not in ("skip", "last", "all"):
        raise UsageError(f"missed is 'skip', 'last' or 'all', not {missed!r}")
    if every is not None:
        if timezone is not None:
            raise UsageError("timezone= is for cron=: the distance of every= is the same everywhere")
        if seconds(every) < EVERY_MIN:
            raise UsageError(f"every={every!r}: ticks are at least {EVERY_MIN:g} s apart")
        return Timing(every_ms=int(seconds(every) * 1000), missed=missed)
    assert cron is not None
    timing = Timing(_checked(cron), _zone("UTC" if timezone is None else timezone), missed=missed)
    if not timing.after(now_ms, 0):
        raise UsageError(f"cron={cron!r} never fires: no date is as it says")
    return timing


def _checked(cron: object) -> str:
    """Return a cron expression that can be read."""
    how = "five fields (minute hour day month weekday), as in '0 9 * * mon-fri'; a sixth one counts seconds"
    if not isinstance(cron, str):
        raise UsageError(f"cron={cron!r}: it is text of {how}")
    if _RANDOM.search(cron):
        raise UsageError(f"cron={cron!r}: fields R and H would differ from host to host; say a time")
    try:
        next(_iterated(cron, _EPOCH.replace(tzinfo=None), "get_next"), None)
    except (ValueError, KeyError, IndexError, OverflowError) as error:
        raise UsageError(f"cron={cron!r} cannot be read: {error}; it is {how}") from error
    return cron


def _zone(name: object) -> str:
    try:
        return ZoneInfo(cast("str", name)).key
    except (ValueError, OSError, TypeError, AttributeError, LookupError) as error:
        raise UsageError(f"timezone={name!r} is not known: say a name such as 'Europe/Berlin' or 'UTC'") from error


def _iterated(cron: str, start: datetime, step: str) -> Iterator[datetime]:
    """Yield the local times of an expression, after or before a start, until there is none."""
    from croniter import CroniterBadDateError, croniter  # it takes 50 ms, and few programs have schedules

    iterator: Any = cast("Any", croniter)(cron, start, ret_type=datetime)
    while True:
        try:
            yield getattr(iterator, step)()
        except CroniterBadDateError:
            return


def instant_of(time: datetime) -> int:
    """Return a time as an instant."""
    return (time - _EPOCH) // timedelta(milliseconds=1)


def time_of(instant_ms: int, timezone: str) -> datetime:
    """Return an instant as a time in a zone."""
    return _local(instant_ms, UTC if timezone == "UTC" else ZoneInfo(timezone))


def _local(instant_ms: int, zone: Any) -> datetime:
    return (_EPOCH + timedelta(milliseconds=instant_ms)).astimezone(zone)


def _instant(local: datetime, zone: ZoneInfo) -> int:
    """Return the instant of a local time without zone."""
    found = instant_of(local.replace(tzinfo=zone))
    if _local(found, zone).replace(tzinfo=None) == local:
        return found
    # It does not exist: read by the clock before and the one after, it lies around the instant of the change.
    low, high = instant_of(local.replace(tzinfo=zone, fold=1)), found
    offset = _local(high, zone).utcoffset()
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _local(middle, zone).utcoffset() == offset else (middle, high)
    return high
