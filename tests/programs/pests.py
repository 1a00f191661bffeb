"""Pests: hostilities of a share of all programs, among their nodes and as guests beside them, and who is to be on time.

A node asks for a hostility and returns what is wrong with its end; it stands only where nothing measures its time. A
guest comes from outside while the program is played. Probes are good: on each shard somebody is asked again and again,
and is to answer within `hostile.LATE_S` of the time that it takes alone, which is none.
"""

import random
from dataclasses import dataclass
from typing import Final

from journal.ids import ObjectId, shard_of
from tests.chaos import hostile

from .plays import Node

SHARE: Final = 0.25
"""Of so many programs some nodes and guests are hostile."""
GUESTS: Final = 12
GUESTS_DO: Final = ("text", "deed", "error", "unfit")
GUESTS_WITHIN_S: Final = 3.0
KEYS: Final = 8
OPENED: Final = ("call", "send")
"""Nodes whose parts may take any time, if they themselves may."""


@dataclass(frozen=True)
class Guest:
    """Who comes from outside."""

    at_s: float
    name: str
    key: str


def is_hostile(seed: int) -> bool:
    """Whether the program of a seed has pests."""
    return random.Random(f"hostile {seed}").random() < SHARE


def _drawn(choose: random.Random, kinds: tuple[str, ...]) -> tuple[str, str]:
    names = [name for name in hostile.of_kind(choose.choice(kinds)) if name not in NOT_HERE]
    if kinds is GUESTS_DO:
        names = [name for name in names if not name.startswith(NEVER_LEAVES)]
    return choose.choice(names), hostile.hostile_key(choose.randrange(KEYS), choose.randrange(len(hostile.TEXTS)))


NOT_HERE: Final = frozenset({*(f"deed.{name}" for name in hostile.HANGING), "deed.leaves undying"})
"""What would hold the thread of simulated hosts, and what the collector says of this very process."""
NEVER_LEAVES: Final = "unfit.argument."
"""What is refused at the call is none of a guest, whose driver has no addresses."""


def with_pests(parts: list[Node], choose: random.Random, count: int) -> tuple[list[Node], int]:
    """Return the nodes with pests among them, and the last number of a node that was given."""
    found: list[Node] = []
    for node in parts:
        if choose.random() < 0.4:
            count += 1
            name, key = _drawn(choose, hostile.KINDS)
            found.append({"do": "pest", "n": count, "name": name, "key": key})
        if node["do"] in OPENED:
            inner, count = with_pests(node["parts"], choose, count)
            node = node | {"parts": inner}
        found.append(node)
    return found, count


def guests(seed: int) -> list[Guest]:
    """Return who comes beside the program of a seed, in order."""
    choose = random.Random(f"guests {seed}")
    times = sorted(choose.uniform(0, GUESTS_WITHIN_S) for _ in range(GUESTS if is_hostile(seed) else 0))
    return [Guest(at_s, *_drawn(choose, GUESTS_DO)) for at_s in times]


def probes(shards: int) -> list[str]:
    """Return a key of a mirror on each shard."""
    found = {shard_of(str(ObjectId("Mirror", f"probe {number}")), shards): f"probe {number}" for number in range(99)}
    assert len(found) == shards
    return [found[shard] for shard in sorted(found)]
