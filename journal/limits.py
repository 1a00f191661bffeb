"""Limits: the bounds of a namespace, for all its hosts and programs.

They lie in `<ns>:meta` with the number of shards. The first program writes all of them in one script, and they never
change: hosts and programs refuse by them, and a replay must decide as the attempt before it did. Of two programs that
open a new namespace at once, one writes them, and the other finds them.

Owns the values and their encoding. Does not own: the refusals (`RedisStore` and its scripts, the runtime above), and
the wishes of a program (`actors.limits`).
"""

from dataclasses import asdict, dataclass, fields, replace
from datetime import timedelta
from typing import Any

import orjson

from .errors import DamagedError

SHARDS = 16
"""How many shards a new namespace gets, unless its first program says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceLimits:
    """The bounds of one namespace.

    The defaults are also the bounds of a namespace that version 0.1.0 opened: it stored none, and went by these. If a
    later version has other defaults, they are for new namespaces alone.
    """

    shards: int = SHARDS
    """Slices of the key space; an id names its shard."""
    inbox_max: int = 100_000
    """Messages of unfinished invocations in one shard; beyond it drivers are refused, calls at ten times that. The same
    number bounds the events of drivers."""
    done_max: int = 10_000
    """Finished invocations that one shard remembers."""
    retention: timedelta = timedelta(days=1)
    """How long a finished invocation is remembered, if the count allows."""
    session: timedelta = timedelta(days=1)
    """How long a silent driver keeps its number and its replies."""
    retention_when_full: timedelta = timedelta(seconds=10)
    """How long a finished invocation is remembered while the store has hardly any memory left."""
    payload_max: int = 8_000_000
    """Most bytes of a message's arguments, a result, a step's result, or a field."""
    journal_max: int = 100_000
    """Most entries of one invocation, but for those that compensate: as many again."""
    journal_bytes_max: int = 64_000_000
    """Most bytes of entries and of what was delivered to one invocation, but for what compensates: as many again."""
    signals_max: int = 10_000
    """Most signals of one invocation that nobody has asked for."""
    signals_bytes_max: int = 16_000_000
    """Most bytes that they take."""
    sent_max: int = 32_000_000
    """Most bytes that one handler sends, calls and brings before it waits again: they leave in one write."""
    written_max: int = 32_000_000
    """Most bytes of state in one write of one handler, with the values before: of many more the store makes a pause in
    which leases lapse."""
    state_max: int = 64_000_000
    """Most bytes of all fields of one object: so much is written, and read, at once."""

    def retention_ms(self, *, is_full: bool = False) -> int:
        """Return how long a finished invocation is remembered, in ms."""
        kept = min(self.retention, self.retention_when_full) if is_full else self.retention
        return _ms(kept)

    @property
    def session_ms(self) -> int:
        """How long a silent driver keeps its number, in ms."""
        return _ms(self.session)

    def encoded(self) -> bytes:
        """Return what the store keeps, but for the number of shards, which has a place of its own."""
        kept = {name: _ms(value) if isinstance(value, timedelta) else value for name, value in asdict(self).items()}
        return orjson.dumps({name: value for name, value in kept.items() if name != "shards"})


def kept_limits(shards: bytes, data: bytes | None) -> NamespaceLimits:
    """Return the limits that a store keeps; version 0.1.0 kept the number of shards alone, a later one may keep more.

    Raises:
        DamagedError: no version has written this.
    """
    try:
        found: dict[str, Any] = orjson.loads(data or b"{}")
        times = {field.name for field in fields(NamespaceLimits) if isinstance(field.default, timedelta)}
        known = {name: found[name] for name in NamespaceLimits.__slots__ if name in found}
        if any(type(value) is not int or value < 1 for value in known.values()):
            raise ValueError(f"{known}")
        if int(shards) < 1:
            raise ValueError(f"{shards!r} shards")
        read = {name: timedelta(milliseconds=value) if name in times else value for name, value in known.items()}
        return replace(NamespaceLimits(), **read, shards=int(shards))
    except (ValueError, TypeError, OverflowError) as error:
        raise DamagedError(f"the limits that the namespace keeps (in its `meta`) cannot be read: {error}") from error


def _ms(time: timedelta) -> int:
    return int(time.total_seconds() * 1000)
