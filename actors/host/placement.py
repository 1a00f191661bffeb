"""Placement: the rule which host should own which shard. No coordinator: all hosts compute the same."""

from collections.abc import Iterable
from hashlib import blake2b

from journal.ids import Shard


def placed(hosts: Iterable[str], shards: int) -> dict[Shard, str]:
    """Return the host of each shard: rendezvous hashing, with no host above its even share.

    The same hosts give the same placement in every process, and a host that comes or goes moves few shards. (Rendezvous
    hashing is by Thaler and Ravishankar; the bound on the load is after Mirrokni, Thorup and Zadimoghaddam.)
    """
    names = sorted(set(hosts))
    if not names:
        return {}
    share = -(-shards // len(names))
    load = dict.fromkeys(names, 0)
    out: dict[Shard, str] = {}
    for number in range(shards):
        best = max((name for name in names if load[name] < share), key=lambda name: _score(name, number))
        load[best] += 1
        out[Shard(number)] = best
    return out


def _score(host: str, shard: int) -> bytes:
    return blake2b(f"{host}\0{shard}".encode(), digest_size=8).digest()
