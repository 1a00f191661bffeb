"""Hand-over: the moment in which a shard goes to the host that is to have it, to share the load.

Owns when a shard is held and drained for that. Does not own: who is to have it (`placement`), nor its lease
(`ownership`). A host that leaves drains by itself.

A step is never interrupted for it (promise 4), and nobody waits for a step of somebody else (promise 8): a shard is
drained in a moment in which none of its steps is under way. Where short ones follow each other without such a moment,
the shard is held: for `HELD_MAX` at most no other step starts, while everything else goes on. Where a step turns out
to be longer, those that were held back start, and the shard stays where it is until the next try.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from actors.shard.shard import OwnedShard
from journal.ids import Shard

STEP_IS_LONG: Final = 0.5
"""A shard with a step that has been under way for so many seconds is not held."""
HELD_MAX: Final = 0.4
"""Seconds for which a shard is held."""
HOLD_AGAIN: Final = 2.0
"""Seconds after which it is held once more, for the first time; each time twice as many."""
HOLD_AGAIN_MAX: Final = 60.0
DRAIN_MAX: Final = 30.0
"""Seconds after which a shard that drains is released, written or not."""


@dataclass(slots=True)
class _Going:
    """A shard that is to have another owner."""

    owned: OwnedShard
    since: float = 0.0
    """Since when it is held, or drains; 0 if neither."""
    again_at: float = 0.0
    pause: float = HOLD_AGAIN


class HandOver:
    """The shards of one host that others are to have."""

    def __init__(self, now: Callable[[], float], now_ms: Callable[[], int]) -> None:
        self._now, self._now_ms = now, now_ms
        self._going: dict[Shard, _Going] = {}

    def ready(self, extra: Iterable[OwnedShard]) -> list[OwnedShard]:
        """Return those of the shards that may be released; what is not among these any more stays."""
        going = {owned.shard: self._known(owned) for owned in extra}
        for shard, each in self._going.items():
            if going.get(shard) is not each and not each.owned.is_lost:
                each.owned.hold(False)
        self._going = going
        for each in going.values():
            if not each.owned.is_draining:
                self._approach(each)
        return [each.owned for each in going.values() if self._is_ready(each)]

    @property
    def is_near(self) -> bool:
        """Whether it is to be asked again at once."""
        return any(each.since for each in self._going.values())

    def _known(self, owned: OwnedShard) -> _Going:
        known = self._going.get(owned.shard)
        return known if known is not None and known.owned is owned else _Going(owned)

    def _approach(self, each: _Going) -> None:
        now = self._now()
        if not each.owned.is_acting:
            each.owned.drain()
            each.since = now
            return
        since_ms = each.owned.acting_since_ms
        is_long = since_ms > 0 and self._now_ms() - since_ms >= STEP_IS_LONG * 1000
        if each.since and (is_long or now - each.since >= HELD_MAX):
            each.owned.hold(False)
            each.since, each.again_at = 0.0, now + each.pause
            each.pause = min(2 * each.pause, HOLD_AGAIN_MAX)
        elif not (each.since or is_long) and now >= each.again_at:
            each.owned.hold(True)
            each.since = now

    def _is_ready(self, each: _Going) -> bool:
        return each.owned.is_draining and (each.owned.is_drained or self._now() - each.since >= DRAIN_MAX)
