"""The schedule of faults: what happens when, from the seed alone."""

import random
from dataclasses import dataclass
from enum import Enum

FIRST_S, LAST_S = 2.0, 6.0
"""The first fault comes so long after the beginning, the last one so long before the end."""
GAPS_S = (1.0, 4.0), (1.0, 4.0), (8.0, 10.0)
"""Most faults fall into the recovery from another; after some there is time to see how long it takes alone."""
LEASE_S = 3.0


class Kind(Enum):
    """What a fault does."""

    HOST_KILLED = "host: SIGKILL"
    HOSTS_KILLED = "all hosts: SIGKILL"
    HOST_STOPPED = "host: SIGSTOP, SIGCONT"
    STORE_ENDED = "store: SIGTERM, started"
    STORE_KILLED = "store: SIGKILL, started"
    DRIVER_KILLED = "driver: SIGKILL"


ON_STORE = frozenset({Kind.STORE_ENDED, Kind.STORE_KILLED})
LASTS_S = {
    Kind.HOST_STOPPED: (LEASE_S + 0.5, LEASE_S + 4.0),
    Kind.STORE_ENDED: (0.2, 5.0),
    Kind.STORE_KILLED: (0.2, 5.0),
}
"""How long those last that are ended."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault; `rank` chooses among the hosts or drivers that there are."""

    at_s: float
    kind: Kind
    rank: int
    lasts_s: float


def schedule(seed: int, seconds: float) -> list[Fault]:
    """Return the faults of a campaign: every kind once before any comes again, the store down once at a time."""
    choose = random.Random(seed)
    found: list[Fault] = []
    bag: list[Kind] = []
    at_s, store_back_s = FIRST_S, 0.0
    while True:
        if not bag:
            bag = choose.sample(list(Kind), len(Kind))
        kind = bag.pop()
        if kind in ON_STORE:
            at_s = max(at_s, store_back_s)
        if at_s > seconds - LAST_S:
            return found
        lasts_s = round(choose.uniform(*LASTS_S.get(kind, (0.0, 0.0))), 2)
        found.append(Fault(round(at_s, 2), kind, choose.randrange(1_000), lasts_s))
        if kind in ON_STORE:
            store_back_s = at_s + lasts_s + 1.0
        at_s += choose.uniform(*choose.choice(GAPS_S))
