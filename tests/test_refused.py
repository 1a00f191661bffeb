"""Whatever a server says instead of an answer: programs and hosts wait, say it once, and go on when it changes."""

import logging
import pickle
import socket
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from refusing import Refusing

import actors
from actors import Context, DamagedError, NotFoundError, VirtualObject, handler, state
from journal import clock
from journal.embedded.guard import pause
from journal.ids import new_id

SOON = 30.0

ERRORS = [
    "UNBLOCKED force unblock from blocking operation, instance state changed (master -> replica?)",
    "NOPERM this user has no permissions to run it",
    "NOAUTH Authentication required.",
    "WRONGPASS invalid username-password pair or user is disabled.",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "LOADING Redis is loading the dataset in memory",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "BUSY Redis is busy running a script. You can only call SCRIPT KILL or SHUTDOWN NOSAVE.",
    "READONLY You can't write against a read only replica.",
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist to disk.",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "CLUSTERDOWN The cluster is down",
    "MOVED 3999 127.0.0.1:6381",
    "NOREPLICAS Not enough good replicas to write.",
    "ERR max number of clients reached",
    "ERR ACL failure in script: User default has no permissions to run the 'xadd' command",
    "NEVERHEARD of this",
    "ERR something new",
]


class RefusedTally(VirtualObject):
    count: int = state(0)

    @handler
    async def add(self, ctx: Context) -> int:
        self.count += 1
        await ctx.run("noted", int)
        return self.count


def port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port is not None
    return port


@pytest.fixture
def relay(valkey_url: str) -> Iterator[Refusing]:
    relay = Refusing(port_of(valkey_url))
    yield relay
    relay.close()


@pytest.fixture
def session(relay: Refusing) -> Iterator[actors.Session]:
    with actors.init(redis=relay.url, namespace=new_id(), hosts="local") as session:
        assert RefusedTally["warm"].add.remote().result(SOON) == 1
        yield session
        relay.relent()


def wait_for_refusals(relay: Refusing, count: int) -> None:
    until = clock.boot_seconds() + SOON
    while relay.refused < count:
        assert clock.boot_seconds() < until, relay.refused
        pause()


def test_whatever_the_server_says_programs_and_hosts_wait_and_go_on(
    session: actors.Session, relay: Refusing, caplog: pytest.LogCaptureFixture
) -> None:
    """Issue 15.11: a client died for good of an error that nobody had listed, and a host began again and again."""
    for number, error in enumerate(ERRORS):
        caplog.clear()
        relay.refused = 0
        relay.refuse(error, "*")
        ref = RefusedTally["a"].add.remote()
        wait_for_refusals(relay, 8)
        relay.relent()

        assert ref.result(SOON) == number + 1, error
        said = [line for line in caplog.messages if error in line]
        assert said, error
        assert len(said) == len(set(said)), said
        assert not [record for record in caplog.records if record.levelno >= logging.ERROR], caplog.text


@pytest.mark.slow_after_first
@pytest.mark.parametrize(
    "command", ["EVALSHA", "XREAD", "SCRIPT", "HGETALL", "HMGET", "CLIENT", "CONFIG", "ROLE", "MULTI"]
)
def test_one_command_that_is_refused_is_waited_for(session: actors.Session, relay: Refusing, command: str) -> None:
    """Issue 15.11: each place apart, since each has a reader of its own."""
    relay.refuse("NOPERM this user has no permissions to run it", command, times=6)

    ref = RefusedTally[command].add.remote()

    assert ref.result(SOON) == 1


@pytest.mark.slow
def test_a_program_that_connects_waits_for_a_server_that_is_not_ready(relay: Refusing) -> None:
    """Issue 15.11: `init` gave up at the first `-LOADING`."""
    relay.refuse("LOADING Redis is loading the dataset in memory", "*", times=20)
    with actors.init(redis=relay.url, namespace=new_id(), hosts="local"):
        assert RefusedTally["a"].add.remote().result(SOON) == 1


def test_what_the_store_refuses_for_good_fails_alone(
    session: actors.Session, valkey_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Issue 15.11: of what travels in one write only what can never be had is an error."""
    namespace, port = session.settings.namespace, port_of(valkey_url)
    refs = [RefusedTally[f"k{number}"].add.remote() for number in range(64)]
    shard = next(ref.id.rpartition("-")[2] for ref in refs)
    assert [ref.result(SOON) for ref in refs] == [1] * 64
    ask(port, "DEL", f"{namespace}:{shard}:ids")
    ask(port, "SET", f"{namespace}:{shard}:ids", "foreign")

    again = [RefusedTally[f"k{number}"].add.remote() for number in range(64)]

    for ref in again:
        if ref.id.rpartition("-")[2] == shard:
            with pytest.raises(DamagedError, match="WRONGTYPE"):
                ref.accepted().result(SOON)
        else:
            assert ref.result(SOON) == 2
    assert "a defect" not in caplog.text


@pytest.mark.slow_after_first
@pytest.mark.parametrize("key", ["writer", "replies"])
def test_a_writer_that_is_none_any_more_is_replaced(
    session: actors.Session, valkey_url: str, key: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Issue 15.11: a foreign value under a key of the program's own ended it for good."""
    assert session.client is not None
    name = f"{session.settings.namespace}:{key}:{session.client._submits.writer}"
    ask(port_of(valkey_url), "DEL", name)
    ask(port_of(valkey_url), "SET", name, "foreign")

    ref = RefusedTally["a"].add.remote()

    assert ref.result(SOON) == 1
    assert "a defect" not in caplog.text


def ask(port: int, *words: str) -> Any:
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.sendall(f"*{len(words)}\r\n".encode() + b"".join(f"${len(w)}\r\n{w}\r\n".encode() for w in words))
        return line.recv(65_536)


def test_an_unknown_id_is_said_at_once(session: actors.Session) -> None:
    """Issue 15.25: it took ten seconds."""
    asks: list[Callable[[actors.Invocation[Any]], object]] = [
        lambda ref: ref.result(SOON),
        lambda ref: ref.cancel().result(SOON),
        lambda ref: ref.kill().result(SOON),
        lambda ref: ref.signal("a", 1).result(SOON),
    ]
    for asked in asks:
        began = clock.boot_seconds()
        with pytest.raises(NotFoundError, match="is not known"):
            asked(actors.attach(f"{new_id()}-3"))
        assert clock.boot_seconds() - began < 2.0  # 0.1 s; a machine under load


@pytest.mark.slow
def test_an_invocation_that_came_from_another_program_may_be_on_its_way(session: actors.Session) -> None:
    """Issue 15.25: what came as a pickle may be here before its start is."""
    sent = actors.attach(f"{new_id()}-3")
    came: actors.Invocation[Any] = pickle.loads(pickle.dumps(sent))
    with pytest.raises(TimeoutError):
        came.result(0.5)
    with pytest.raises(TimeoutError):
        came.cancel().result(0.5)
