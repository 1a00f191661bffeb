"""Ends of a program whose store is gone, and what it is told: issue 16.6. Ids that nobody guesses: issue 16.8."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from servers import Server, valkey_binary

import actors
from actors import Context, UnavailableError, VirtualObject, handler
from actors import session as driver
from actors.client.client import Client
from actors.requests import current
from journal.embedded import guard
from journal.ids import new_id, unique_ids
from journal.redis.store import RedisStore


class Asked(VirtualObject):
    @handler
    async def add(self, ctx: Context) -> str:
        return ctx.id


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(valkey_binary(), tmp_path)
    yield server
    server.kill()


def test_a_program_is_told_how_many_of_its_requests_may_be_lost(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Issue 16.6: "0 were not acknowledged" where 50 were lost; those of the write under way were not counted."""
    client = Client(lambda: RedisStore(server.url, new_id()), sends_code=False)
    client.open()
    current.set_driver(client)
    try:
        first = Asked["a"].add.send()
        first.accepted().result(timeout=10)
        server.kill()
        for _ in range(49):
            Asked["a"].add.send()
        called = Asked["a"].add.remote()
    finally:
        current.set_driver(None)
        client.close(0.2)
    assert [record.getMessage() for record in caplog.records if "acknowledged" in record.getMessage()] == [
        "50 requests of this program were not acknowledged: whether they happen is unknown"
    ]
    with pytest.raises(UnavailableError, match="shut down"):
        called.result(timeout=1)


def test_what_was_acknowledged_is_not_said_to_be_lost(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    """Issue 16.6: open calls are no lost ones."""
    client = Client(lambda: RedisStore(server.url, new_id()), sends_code=False)
    client.open()
    current.set_driver(client)
    try:
        Asked["a"].add.remote().accepted().result(timeout=10)
    finally:
        current.set_driver(None)
        client.close()
    assert "acknowledged" not in caplog.text


@pytest.mark.parametrize("part", ["_close_client", "_close_local", "_close_server"])
def test_what_fails_at_the_end_does_not_replace_the_error_of_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, part: str
) -> None:
    """Issue 16.6: with `with`, with `finally: shutdown()`, and at its own end; all else is ended nevertheless."""
    whole = getattr(driver.Session, part)

    def broken(session: actors.Session) -> None:
        whole(session)
        raise UnavailableError("the store is gone")

    monkeypatch.setattr(driver.Session, part, broken)
    with pytest.raises(KeyError, match="mine"), actors.init(hosts="local", directory=tmp_path / "a"):
        raise KeyError("mine")
    with pytest.raises(KeyError, match="mine"):
        try:
            actors.init(hosts="local", directory=tmp_path / "b")
            raise KeyError("mine")
        finally:
            actors.shutdown()
    assert caplog.text.count("UnavailableError: the store is gone") == 2  # said, with its traceback
    assert all(record.levelno < logging.ERROR or "shut down" in record.message for record in caplog.records)


def test_an_interruption_that_a_lock_hides_is_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in the moment in which a wait gives its lock back shows as an error of the lock."""
    session = actors.init(hosts="local", directory=tmp_path)
    end = session._close_local

    def interrupted() -> None:
        end()
        try:
            raise KeyboardInterrupt
        finally:
            threading.Lock().release()

    monkeypatch.setattr(session, "_close_local", interrupted)
    with pytest.raises(KeyboardInterrupt):
        actors.shutdown()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_a_program_goes_on_when_guard_and_server_are_killed_together(tmp_path: Path) -> None:
    """Issue 15.12, 16.6: client and host find the server again, which the program has started."""
    with actors.init(hosts="local", directory=tmp_path):
        before = Asked["a"].add.remote().result(timeout=10)
        for pid in (int((tmp_path / "guard").read_text()), guard.ask(str(tmp_path)).pid):
            os.kill(pid, signal.SIGKILL)
        called, sent = Asked["a"].add.remote(), Asked["a"].add.send()
        assert called.result(timeout=30) != before
        assert sent.result(timeout=30)


def test_ids_are_not_guessed_from_others(tmp_path: Path) -> None:
    """Issue 16.8: they counted up from one prefix."""
    with actors.init(hosts="local", directory=tmp_path / "data"):
        ids = [Asked["a"].add.remote().result(timeout=10) for _ in range(40)]
    assert len({id_[:6] for id_ in ids}) > 30
    assert len({id_.rpartition("-")[0][-6:] for id_ in ids}) > 30
    assert {len(id_.rpartition("-")[0]) for id_ in ids} == {24}


def test_no_id_is_given_twice() -> None:
    """Issue 16.8: they are drawn in blocks."""
    one, other = unique_ids(), unique_ids()
    drawn = [next(one) for _ in range(2_000)] + [next(other) for _ in range(2_000)]
    assert len(set(drawn)) == 4_000
    assert all(len(bytes.fromhex(each)) == 12 for each in drawn)
