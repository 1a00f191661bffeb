"""Hand-over: picks the moment in which a shard moves to another host, to share the load.

Owns the time at which a shard is held and drained for the move. Does not own the choice of the host (`placement`), nor
the lease (`ownership`). A host that leaves drains its shards without this module.

A step is never interrupted for a hand-over (promise 4), and no invocation waits for a step of another (promise 8): a
shard is drained in a moment in which none of its steps is under way. If short steps follow each other without such a
moment, the shard is held: for `HELD_MAX` at most no further step starts, while everything else goes on. If a step turns
out to be longer, the steps that were held back start, and the shard stays with its host until the next try.
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
"""Seconds until a shard is held a second time; doubled for each further time."""
HOLD_AGAIN_MAX: Final = 60.0
DRAIN_MAX: Final = 30.0
"""Seconds after which a draining shard is released, although commits may be unwritten."""


@dataclass(slots=True)
class _MovingShard:
    """A shard that the placement gives to another host."""

    owned: OwnedShard
    since: float = 0.0
    """The time since which it is held or drains; 0 if neither."""
    again_at: float = 0.0
    pause: float = HOLD_AGAIN


class HandOver:
    """The shards of one host that the placement gives to other hosts."""

    def __init__(self, now: Callable[[], float], now_ms: Callable[[], int]) -> None:
        self._now, self._now_ms = now, now_ms
        self._moving: dict[Shard, _MovingShard] = {}

    def ready(self, extra: Iterable[OwnedShard]) -> list[OwnedShard]:
        """Return the shards of `extra` that may be released; a shard that is no longer in `extra` stays here."""
        moving = {owned.shard: self._known(owned) for owned in extra}
        for shard, each in self._moving.items():
            if moving.get(shard) is not each and not each.owned.is_lost:
                each.owned.hold(False)
        self._moving = moving
        for each in moving.values():
            if not each.owned.is_draining:
                self._approach(each)
        return [each.owned for each in moving.values() if self._is_ready(each)]

    @property
    def is_under_way(self) -> bool:
        """Whether `ready` should be called again at once."""
        return any(each.since for each in self._moving.values())

    def _known(self, owned: OwnedShard) -> _MovingShard:
        known = self._moving.get(owned.shard)
        return known if known is not None and known.owned is owned else _MovingShard(owned)

    def _approach(self, each: _MovingShard) -> None:
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

    def _is_ready(self, each: _MovingShard) -> bool:
        return each.owned.is_draining and (each.owned.is_drained or self._now() - each.since >= DRAIN_MAX)
