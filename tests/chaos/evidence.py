"""The evidence of a campaign: everything that the audit looks at, and how it is gathered."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis

import actors
from journal.clock import boot_seconds
from journal.keys import TABLE
from journal.store import SHARDS

from .driver import NAPPERS, TALLIES, VAULTS
from .faults import Stop, pause
from .log import Operation
from .objects import Napper, Tally, Vault

QUIET_WITHIN_S = 30.0
ANSWER_WITHIN_S = 60.0


@dataclass(frozen=True, slots=True)
class Effect:
    """One run of a transfer's step, as it stands in the file outside."""

    operation: str
    step_id: str
    run: str
    """Process and time: `pid@seconds`."""

    @property
    def pid(self) -> int:
        return int(self.run.partition("@")[0])

    @property
    def at(self) -> float:
        return float(self.run.partition("@")[2])


@dataclass(frozen=True, slots=True)
class Left:
    """A key of the store."""

    key: str
    row: str
    """Which row of the table of keys it is of; empty if of none."""
    type: str
    size: int
    """Entries, or characters of a string."""
    expires: bool
    open: int = 0
    """Of `ids`: invocations that have not ended."""


@dataclass(frozen=True, slots=True)
class Disturbed:
    """When replies may be late: a fault and its recovery, or a machine that stood."""

    since: float
    until: float
    driver: str = ""
    """Whose replies; empty: everybody's."""

    def has_met(self, operation: Operation) -> bool:
        """Whether it may have made the answer of this one late."""
        is_his = operation.driver.startswith(f"{self.driver}.") if self.driver else True
        return is_his and operation.asked_at < self.until and self.since < operation.answered_at


@dataclass(frozen=True, slots=True)
class Evidence:
    """What there is when all has come to rest."""

    operations: Mapping[str, Operation]
    killed: frozenset[str]
    """The lives of drivers that were killed."""
    tallies: Mapping[str, Sequence[str]]
    vaults: Mapping[str, tuple[int, Sequence[tuple[str, int]]]]
    naps: Mapping[str, Sequence[tuple[str, int, int]]]
    effects: Sequence[Effect]
    stops: Sequence[Stop]
    left: Sequence[Left]
    hosts: int
    """How many there are to be."""
    troubles: Sequence[str]
    disturbed: Sequence[Disturbed] = ()
    calm_from: float = math.inf
    """From then on nothing hostile and no fault came: so long as then good operations take on this machine."""


def effects_in(book: Path) -> list[Effect]:
    """Return what transfers' steps have left outside, in order."""
    return [Effect(*line.split(" ")) for line in book.read_text("utf-8").splitlines()]


def states() -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Ask every object what it holds."""
    tallies = {f"{key}": Tally[f"{key}"].read.remote() for key in range(TALLIES)}
    vaults = {f"{key}": Vault[f"{key}"].read.remote() for key in range(VAULTS)}
    naps = {f"{key}": Napper[f"{key}"].read.remote() for key in range(NAPPERS)}
    return _results(tallies), _results(vaults), _results(naps)


def _results(asked: Mapping[str, actors.Invocation[Any]]) -> dict[str, Any]:
    return dict(zip(asked, actors.get(list(asked.values()), timeout=ANSWER_WITHIN_S), strict=True))


# ---------------------------------------------------------------------------------------------------------- the store

_SIZES = {"hash": "HLEN", "stream": "XLEN", "zset": "ZCARD", "string": "STRLEN", "list": "LLEN", "set": "SCARD"}
EMPTY_AT_REST = frozenset({"inbox", "events", "journal", "held", "timers"})
"""Rows of a shard of which nothing is left when all has come to rest; the keys may be there."""


def keys_of(url: str, namespace: str) -> list[Left]:
    """Return every key of the server."""
    with Redis.from_url(url, decode_responses=False) as client:
        talk: Any = client
        keys = [(key, talk.type(key).decode()) for key in sorted(set(talk.scan_iter("*", count=1_000)))]
        return [_looked_at(talk, key, kind, namespace) for key, kind in keys if kind in _SIZES]  # else it has gone


def _looked_at(talk: Any, key: bytes, kind: str, namespace: str) -> Left:
    name = key.decode("utf-8", "surrogatepass")
    row = row_of(name, namespace)
    places: list[bytes] = talk.hvals(key) if row == "<ns>:<shard>:ids" else []
    still_open = sum(place[:1] in (b"i", b"a") for place in places)
    size = talk.execute_command(_SIZES[kind], key)
    if row == "<ns>:<shard>:timers":
        size = talk.zcount(key, "-inf", "(inf")  # what is never due is the mark that the key is there
    return Left(name, row, kind, size, talk.ttl(key) >= 0, still_open)


def row_of(key: str, namespace: str) -> str:
    """Return the name of the row of `journal.keys.TABLE` that a key is of."""
    return next((row for row, pattern in _patterns(namespace) if pattern.fullmatch(key)), "")


def _patterns(namespace: str) -> list[tuple[str, re.Pattern[str]]]:
    found: list[tuple[str, re.Pattern[str]]] = []
    for row, _, _ in TABLE:
        pattern = re.escape(row.replace("<ns>", namespace)).replace("<shard>", r"\d+")
        found.append((row, re.compile(re.sub("<[A-Za-z]+>", ".+", pattern), re.DOTALL)))
    return found


def is_at_rest(left: Sequence[Left]) -> bool:
    """Whether nothing is under way any more, and every shard has an owner."""
    leases = sum(key.row.endswith(":lease") for key in left)
    return leases == SHARDS and not any(is_under_way(key) for key in left)


def is_under_way(key: Left) -> bool:
    """Whether a key holds something of an invocation that has not ended."""
    name = key.row.removeprefix("<ns>:<shard>:")
    return key.open > 0 or name.startswith("asleep:") or (name in EMPTY_AT_REST and key.size > 0)


def keys_at_rest(url: str, namespace: str) -> list[Left]:
    """Return every key as soon as all is at rest, or as they are when it does not come to rest."""
    deadline = boot_seconds() + QUIET_WITHIN_S
    while not is_at_rest(found := keys_of(url, namespace)) and boot_seconds() < deadline:
        pause(0.2)
    return found
