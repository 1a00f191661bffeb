"""A store that is full: what makes room is taken all the same, and it recovers without being asked (issue 15.34)."""

from collections import deque
from collections.abc import Iterator
from datetime import timedelta

import pytest
from servers import ask, url_of

import actors
from actors import Cancelled, Context, VirtualObject, handler
from actors.client import batches
from actors.client.client import Client
from actors.client.slots import Brought, Operation
from actors.host import timekeeper
from journal.clock import boot_seconds
from journal.embedded import guard
from journal.ids import Shard, shard_in
from journal.records import EventKind
from journal.redis.store import RedisStore
from journal.store import Attach, NamespaceLimits, Outgoing

BYTES = 200_000
ROOM = 8_000_000


class Filler(VirtualObject):
    @handler
    async def fill(self, ctx: Context) -> bytes:
        return b"x" * BYTES

    @handler
    async def wait(self, ctx: Context) -> None:
        await ctx.awakeable()


def told(port: int, command: str) -> list[bytes]:
    return ask(url_of(port), command)


@pytest.fixture
def full(valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, int]]:
    """A server with little room, and hosts that look often."""
    port = int(valkey_url.rpartition(":")[2].removesuffix("/0"))
    used = next(line for line in told(port, "INFO memory")[0].splitlines() if line.startswith(b"used_memory:"))
    told(port, f"CONFIG SET maxmemory {int(used[12:]) + ROOM}")
    monkeypatch.setattr(timekeeper, "TRIM_EVERY", 0.1)
    yield valkey_url, port
    told(port, "CONFIG SET maxmemory 0")


def test_a_store_full_of_outcomes_recovers_by_itself(
    full: tuple[str, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody waits for them; meanwhile a cancel gets through, of a program that comes now as well."""
    url, port = full
    kept_ms = 3_600_000
    monkeypatch.setattr(NamespaceLimits, "retention_ms", lambda _, is_full=False: kept_ms if is_full else 3_600_000)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    with actors.init(redis=url, hosts="local", namespace="full"):
        waiting = [Filler[f"held{number}"].wait.remote() for number in range(2)]
        assert all(each.accepted().result() is None for each in waiting)
        for number in range(2 * ROOM // BYTES):
            Filler[f"k{number % 20}"].fill.send()
        while not told(port, "SET probe x")[0].startswith(b"-OOM"):
            guard.pause()
        waiting[0].cancel()
        with pytest.raises(Cancelled):
            waiting[0].result(timeout=60)
        client = Client(lambda: RedisStore(url, "full"), sends_code=False)
        client.open()
        client.bring(brought(waiting[1].id, EventKind.CANCEL), "cancel").result(timeout=60)
        client.close()
        with pytest.raises(Cancelled):
            waiting[1].result(timeout=60)

        kept_ms = 200
        assert len(Filler["last"].fill.remote().result(timeout=60)) == BYTES
        # A write on its way counts too: it may have been full for a moment only, with more outcomes to come.
        until = boot_seconds() + 60
        while "outcomes were forgotten: the store is nearly full" not in caplog.text:
            assert boot_seconds() < until
            guard.pause()


def outgoing(id_: str, size: int = 10) -> Outgoing:
    return Outgoing(Shard(0), id_, "", b"x" * size)


def brought(id_: str, kind: EventKind) -> Brought:
    return Brought(shard_in(id_) if "-" in id_ else Shard(0), id_, kind, 0, b"", f"{kind} {id_}", 0.0)


def test_what_makes_room_overtakes_only_what_is_for_others() -> None:
    ends, others = EventKind.KILL, EventKind.SIGNAL
    queue: deque[Operation] = deque(
        [
            outgoing("a"),
            brought("a", ends),  # would find nothing
            brought("b", others),
            brought("b", ends),  # behind its signal
            brought("c", ends),
            Attach(Shard(0), "d"),
            Attach(Shard(0), "a"),
        ]
    )
    left = [*[*queue][:4], queue[6]]
    assert [operation.invocation for operation in batches.freeing_batch(queue)] == ["c", "d"]
    assert [*queue] == left


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([], []),
        ([10] * 2_500, [1_000, 1_000, 500]),
        ([7_900_000] * 3, [1, 1, 1]),
        ([1_500_000] * 5, [2, 2, 1]),
        ([10, 8_000_000, 10, 10], [1, 1, 2]),
    ],
)
def test_a_write_is_bounded_by_count_and_by_bytes(sizes: list[int], expected: list[int]) -> None:
    """Issue 16.2."""
    queue: deque[Operation] = deque(outgoing(str(number), size) for number, size in enumerate(sizes))
    found: list[list[Operation]] = []
    while queue:
        found.append(batches.next_batch(queue))
    assert [len(batch) for batch in found] == expected
    assert [operation.invocation for batch in found for operation in batch] == [str(n) for n in range(len(sizes))]


def test_limits_shrink_only_while_the_store_is_full() -> None:
    limits = NamespaceLimits(retention=timedelta(hours=1), retention_when_full=timedelta(seconds=10))
    assert [limits.retention_ms(), limits.retention_ms(is_full=True)] == [3_600_000, 10_000]
    assert NamespaceLimits(retention=timedelta(seconds=1)).retention_ms(is_full=True) == 1_000
