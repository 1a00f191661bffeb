"""Promotion: the primary dies with writes that its replica never got, and the replica takes its place."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import DURABLE, Server, ask, valkey_binary
from test_losses import Lossy, lost, tell, wait_until, works

import actors

pytestmark = pytest.mark.slow
SOON = 60.0
AT_ONCE = ("--repl-diskless-sync-delay", "0")


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[list[Server]]:
    running = list[Server]()
    try:
        for name in ("primary", "replica"):
            (tmp_path / name).mkdir()
            running.append(Server(valkey_binary(), tmp_path / name, *DURABLE, *AT_ONCE))
        yield running
    finally:
        for each in running:
            each.kill()


def follow(replica: Server, primary: Server) -> None:
    """Let one be a replica of the other, and wait until it has all of it."""
    tell(replica, "REPLICAOF", "127.0.0.1", port_of(primary))
    wait_until(lambda: b"master_link_status:up" in b"".join(ask(replica.url, "INFO replication")))


def port_of(server: Server) -> str:
    return server.url.rpartition(":")[2].partition("/")[0]


def test_what_a_promotion_loses_is_said_and_all_else_goes_on(
    servers: list[Server], caplog: pytest.LogCaptureFixture
) -> None:
    """Issue 15.31: `durability="relaxed"`, the only one that lets a primary with a replica in."""
    primary, replica = servers
    follow(replica, primary)
    with actors.init(redis=primary.url, hosts="local", durability="relaxed"):
        assert [Lossy["a"].add.remote().result(SOON) for _ in range(5)] == [1, 2, 3, 4, 5]
        waits, relayed = Lossy["w"].wait.remote(), Lossy["r"].relay.remote("callee")
        wait_until(lambda: waits.status() in ("open", "asleep") and relayed.status() in ("open", "asleep"))
        wait_until(lambda: behind(primary) == 0)

        tell(replica, "REPLICAOF", "NO", "ONE")  # from here on no write of the primary is on the other's disk
        assert [Lossy[f"k{number}"].add.remote().result(SOON) for number in range(20)] == [1] * 20
        late = [Lossy[f"l{number}"].wait.remote() for number in range(20)]
        for ref in late:
            ref.accepted().result(SOON)
        port = port_of(primary)
        primary.kill()
        tell(replica, "CONFIG", "SET", "port", port)

        for ref in late:
            assert lost(ref)
        assert Lossy["a"].add.remote().result(SOON) == 6, "what was on both is there"
        waits.signal("go", "on")
        assert waits.result(SOON) == "on"
        assert relayed.status() in ("open", "asleep")
        assert Lossy["k0"].add.remote().result(SOON) == 1, "its state is lost as well"
        works()
        assert "the store has lost" in caplog.text
        assert "damaged" not in caplog.text
        relayed.cancel().result(SOON)


def behind(primary: Server) -> int:
    """Return how many bytes of what the primary has its replica lacks."""
    said = b"".join(ask(primary.url, "INFO replication"))
    offsets = [int(found) for found in re.findall(rb"(?:master_repl_offset:|,offset=)(\d+)", said)]
    return max(offsets) - min(offsets)
