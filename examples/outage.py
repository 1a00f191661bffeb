"""The outage: one host is killed, and its shards are asked until they answer again."""

import asyncio
import os
import signal
import time
from dataclasses import dataclass

import actors
from examples.hall import Progress
from examples.seat_map import Ticket
from journal.ids import shard_in

KEYS = 200
"""So many tickets are asked: enough that each shard has some."""
RECOVERY_MAX_S = 60.0


@dataclass(slots=True)
class Outage:
    """A host to be killed, and afterwards how long its shards were away."""

    pid: int
    shards: frozenset[int]
    first_s: float = 0.0
    """From the kill to the first answer of one of its shards to a request that was sent after the kill."""
    all_s: float = 0.0
    """The same until each of its shards has answered."""

    @classmethod
    def planned(cls, hosts: int) -> "Outage":
        """Choose the host that owns most, once so many share the shards evenly. It must run on this machine."""
        while True:
            status = actors.status()
            host = max(status.hosts, key=lambda host: len(host.shards), default=None)
            owned = sum(len(host.shards) for host in status.hosts)
            # While shards are handed over, one host may still list more than its share.
            if host is not None and owned == status.shards and len(host.shards) <= -(-status.shards // hosts):
                return cls(host.pid, frozenset(host.shards))
            time.sleep(0.1)

    async def happen(self, when: asyncio.Event, progress: Progress) -> None:
        """Wait for the moment, kill the host, and measure.

        Raises:
            TimeoutError: some of its shards do not come back.
        """
        await when.wait()
        os.kill(self.pid, signal.SIGKILL)
        killed_at = time.monotonic()
        progress.tell(f"host process {self.pid} killed, with {len(self.shards)} shards")
        asked = [Ticket[f"seat-{number}"].get.remote() for number in range(1, KEYS + 1)]
        # An invocation's id ends in the shard of its key.
        lost = {asyncio.ensure_future(ref) for ref in asked if shard_in(ref.id) in self.shards}
        async with asyncio.timeout(RECOVERY_MAX_S):
            await asyncio.wait(lost, return_when=asyncio.FIRST_COMPLETED)
            self.first_s = time.monotonic() - killed_at
            progress.tell(f"the first of its shards answers again, {self.first_s:.2f} s after the kill")
            await asyncio.gather(*lost)
            self.all_s = time.monotonic() - killed_at
            progress.tell(f"all of its shards answer again, {self.all_s:.2f} s after the kill")
