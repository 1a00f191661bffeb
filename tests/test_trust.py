"""Trust: a server whose settings become weak, or that stops being a primary, while programs are connected to it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import DURABLE, Server, ask, redis_binary, valkey_binary

import actors
from actors import Context, SettingsError, VirtualObject, handler, state
from journal import clock
from journal.embedded import guard
from journal.ids import new_id

SOON = 30.0


class Kept(VirtualObject):
    count: int = state(0)

    @handler
    async def add(self, ctx: Context) -> int:
        self.count += 1
        return self.count


@pytest.fixture(params=["valkey", "redis7"], scope="module")
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    binary = valkey_binary() if request.param == "valkey" else redis_binary()
    if binary is None:
        pytest.skip("there is no redis-server here")
    server = Server(binary, tmp_path_factory.mktemp(request.param))
    yield server
    server.kill()


@pytest.fixture
def session(server: Server) -> Iterator[actors.Session]:
    with actors.init(redis=server.url, namespace=new_id(), hosts="local") as session:
        assert Kept["a"].add.remote().result(SOON) == 1
        yield session


def tell(server: Server, *words: str) -> None:
    """Send a command past every program."""
    answer = ask(server.url, " ".join(words))
    assert not answer[0].startswith(b"-"), answer


def wait_until(is_so: Callable[[], bool]) -> None:
    until = clock.boot_seconds() + SOON
    while not is_so():
        assert clock.boot_seconds() < until
        guard.pause()


def who_say(why: str, caplog: pytest.LogCaptureFixture) -> set[str]:
    return {line.split()[0].rstrip(":") for line in caplog.messages if why in line}


WEAK = [
    (("CONFIG", "SET", "appendfsync", "everysec"), ("CONFIG", "SET", "appendfsync", "always"), "appendfsync everysec"),
    (("CONFIG", "SET", "appendonly", "no"), ("CONFIG", "SET", "appendonly", "yes"), "no append-only file"),
    (
        ("CONFIG", "SET", "no-appendfsync-on-rewrite", "yes"),
        ("CONFIG", "SET", "no-appendfsync-on-rewrite", "no"),
        "while it rewrites",
    ),
    (
        ("CONFIG", "SET", "maxmemory-policy", "allkeys-lru"),
        ("CONFIG", "SET", "maxmemory-policy", "noeviction"),
        "allkeys-lru may drop keys",
    ),
    (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"), "it is a slave"),
    (("ACL", "SETUSER", "default", "-config"), ("ACL", "SETUSER", "default", "+config"), "may not be read"),
]


@pytest.mark.slow_after_first
@pytest.mark.parametrize(("harm", "mend", "why"), WEAK, ids=[" ".join(harm) for harm, _, _ in WEAK])
def test_a_store_that_becomes_weak_is_given_no_new_work_until_it_is_well(
    session: actors.Session,
    server: Server,
    caplog: pytest.LogCaptureFixture,
    harm: tuple[str, ...],
    mend: tuple[str, ...],
    why: str,
) -> None:
    """Issues 15.32 and 15.33: it went on acknowledging what it could lose, or ended the client for good."""
    tell(server, *harm)
    try:
        wait_until(lambda: {"driver", "host"} <= who_say(why, caplog))
        ref = Kept["a"].add.remote()
        with pytest.raises(TimeoutError):
            ref.accepted().result(0.2)
    finally:
        tell(server, *mend)

    assert ref.result(SOON) == 2
    assert Kept["a"].add.remote().result(SOON) == 3
    said = [line for line in caplog.messages if why in line]
    assert len(said) == len(set(said)), said


@pytest.mark.slow
def test_a_server_that_comes_back_with_weaker_settings_is_given_no_work(tmp_path: Path) -> None:
    """Issue 15.32: a restart without the settings went unnoticed."""
    server = Server(valkey_binary(), tmp_path)
    try:
        with actors.init(redis=server.url, hosts="local"):
            assert Kept["a"].add.remote().result(SOON) == 1
            server.kill()
            server._settings = ("--appendonly", "yes", "--appendfsync", "everysec")
            server.start()
            ref = Kept["a"].add.remote()
            with pytest.raises(TimeoutError):
                ref.accepted().result(1.5)
            server.kill()
            server._settings = DURABLE
            server.start()
            assert ref.result(SOON) == 2
    finally:
        server.kill()


@pytest.mark.slow
def test_a_primary_that_has_a_replica_is_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Issue 16.5, promise 10: it may fail over to one that lacks the last writes."""
    (tmp_path / "primary").mkdir()
    (tmp_path / "replica").mkdir()
    server = Server(valkey_binary(), tmp_path / "primary")
    replica = Server(valkey_binary(), tmp_path / "replica")
    try:
        with actors.init(redis=server.url, hosts="local"):
            assert Kept["a"].add.remote().result(SOON) == 1
            tell(replica, "REPLICAOF", "127.0.0.1", str(server.port))
            wait_until(lambda: {"driver", "host"} <= who_say("it has a replica", caplog))
            ref = Kept["a"].add.remote()
            with pytest.raises(TimeoutError):
                ref.accepted().result(0.2)
            tell(replica, "REPLICAOF", "NO", "ONE")
            assert ref.result(SOON) == 2
        tell(replica, "REPLICAOF", "127.0.0.1", str(server.port))
        wait_until(lambda: b"state=online" in b"".join(ask(server.url, "INFO replication")))
        with pytest.raises(SettingsError, match="it has a replica"):
            actors.init(redis=server.url, hosts="local")
        with actors.init(redis=server.url, hosts="local", durability="relaxed"):
            assert Kept["a"].add.remote().result(SOON) == 3
    finally:
        server.kill()
        replica.kill()


@pytest.mark.slow_after_first
@pytest.mark.parametrize("rights", [("-xadd",), ("-hset",), ("-@write",), ("-evalsha",), ("resetkeys",), ("-@all",)])
def test_rights_that_are_taken_away_are_waited_for(
    session: actors.Session, server: Server, rights: tuple[str, ...]
) -> None:
    """Issue 15.11: in the middle of a script they left half a write, and a shard that was damaged for good."""
    tell(server, "ACL", "SETUSER", "admin", "on", ">admin", "~*", "&*", "+@all")
    tell(server, "ACL", "SETUSER", "default", *rights, "+acl")
    try:
        ref = Kept["a"].add.remote()
        with pytest.raises(TimeoutError):
            ref.result(0.5)
    finally:
        tell(server, "ACL", "SETUSER", "default", "~*", "+@all")

    assert ref.result(SOON) == 2
