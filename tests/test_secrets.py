"""No secret in any text: issue 15.28. A marked one goes through every error path, and all that is said is searched."""

import asyncio
import io
import logging
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from servers import DURABLE, Server, valkey_binary

import actors
from actors import Context, UnavailableError, UsageError, VirtualObject, handler
from actors.values import seal
from journal.errors import SettingsError
from journal.redis.connection import Connections
from journal.redis.store import RedisStore
from journal.redis.url import shown

MARK = "hunter2"
"""Part of each secret here."""

WRONG = [
    "{mark}",
    "{mark}@store:6379",
    "http://:{mark}@store:6379/0",
    "redis:/:{mark}@store/0",
    "redis://:{mark}",
    "redis://store:{mark}/0",
    "redis://:a/{mark}@store:6379/0",
    "redis://:12/{mark}@store:6379/0",
    "redis://:12/34{mark}@store:6379/0",
    "redis://:a#{mark}@store:6379/0",
    "redis://:{mark}#a@store:6379/0",
    "redis://:a?{mark}@store:6379/0",
    "redis://:12?{mark}@store:6379/0",
    "redis://:12?a={mark}@store:6379/0",
    "redis://:{mark}@store:port/0",
    "redis://:{mark}@store:99999/0",
    "redis://:{mark}@[store/0",
    "redis://:{mark}℀@store/0",
    "redis://store/0?password={mark}&no_such_option=1",
    "redis://store/0?no_such_option={mark}",
    "redis://store/0?socket_timeout={mark}",
    "redis://store/0?{mark}",
    "redis://store/0?password={mark}@x&db=a",
    "rediss://store/0?ssl_cert_reqs={mark}",
    "unix://:{mark}@/no/socket?db={mark}",
    "unix:///no/{mark}@#socket",
    "redis://:{mark}@store:6379/0#x",
]
"""URLs that nobody can use; each says so without its secret."""

RIGHT = [
    "redis://:{mark}@127.0.0.1:{port}/0",
    "redis://{mark}:{mark}@127.0.0.1:{port}/0",
    "redis://:a%{mark}@127.0.0.1:{port}/0",
    "redis://:a@{mark}@127.0.0.1:{port}/0",
    "redis://:{quoted}@127.0.0.1:{port}/0",
    "redis://127.0.0.1:{port}/0?password={mark}",
    "redis://127.0.0.1:{port}/0?password={mark}@x",
    "redis://127.0.0.1:{port}/0?username={mark}&password={quoted}&client_name=me",
    "rediss://:{mark}@127.0.0.1:{port}/0",
    "unix://me:{mark}@/no/such/socket",
    "unix:///no/such/socket?password={mark}",
]
"""URLs that could be right."""


def filled(url: str, port: int = 1) -> str:
    return url.format(mark=MARK, quoted=quote(f"#/@:%?{MARK}", safe=""), port=port)


def everything(error: BaseException | None) -> str:
    """Return all that an error says, its causes and what it was raised beside included."""
    found = io.StringIO()
    while error is not None:
        found.write("".join(traceback.TracebackException.from_exception(error, lookup_lines=False).format()))
        found.write(f"{error!r} {error.args!r} {vars(error)!r}")
        error = error.__cause__ or error.__context__
    return found.getvalue()


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Iterator[Callable[[], str]]:
    """Everything that was logged or printed."""
    with caplog.at_level(logging.DEBUG):
        yield lambda: caplog.text + "".join(capfd.readouterr())


def no_secret_in(*texts: str) -> None:
    for text in texts:
        assert MARK not in text, text[max(0, text.index(MARK) - 200) : text.index(MARK) + 100]


@pytest.mark.parametrize("url", WRONG)
def test_a_url_that_cannot_be_used_says_so_without_its_secret(url: str, said: Callable[[], str]) -> None:
    for use in (lambda: RedisStore(filled(url)), lambda: actors.init(filled(url), hosts="local")):
        with pytest.raises((UsageError, UnavailableError)) as caught:
            use()
        no_secret_in(everything(caught.value))
    no_secret_in(shown(filled(url)), said())


@pytest.mark.parametrize("url", RIGHT)
def test_a_store_that_does_not_answer_is_named_without_its_secret(url: str, said: Callable[[], str]) -> None:
    with pytest.raises(UnavailableError) as caught:
        actors.init(filled(url), hosts="local")
    no_secret_in(everything(caught.value), shown(filled(url)), said())


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379/0"),
        ("rediss://user:secret@store:6380/2", "rediss://store:6380/2"),
        ("redis://[::1]:6379/0?db=3", "redis://[::1]:6379/0?db=3"),
        ("redis://a:b@c@store", "redis://store"),
        ("redis://store?password=x&protocol=2", "redis://store?password=***&protocol=2"),
        ("redis://store?password=x@y", "redis://***"),
        ("redis://:a?b@store", "redis://***"),
        ("unix:///a%20b/.perdure/socket", "unix:///a%20b/.perdure/socket"),
        ("unix://me:secret@/a/socket?db=1", "unix:///a/socket?db=1"),
        ("", "***"),
    ],
)
def test_a_url_is_shown_as_far_as_it_is_harmless(url: str, expected: str) -> None:
    assert shown(url) == expected


class Unsaid(VirtualObject):
    @handler
    async def add(self, ctx: Context) -> int:
        return 1


@pytest.mark.slow_after_first
@pytest.mark.parametrize("url", ["redis://:{mark}@127.0.0.1:{port}/0", "redis://127.0.0.1:{port}/0?password={mark}"])
def test_a_program_in_use_shows_no_secret(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], str]
) -> None:
    """`repr`, `status()`, a second `init`, weak settings, a wrong password, a store that goes away."""
    monkeypatch.setenv("PERDURE_SECRET", f"{MARK}-and-so-on-for-the-seal")
    server = Server(valkey_binary(), tmp_path, *DURABLE, "--requirepass", MARK)
    url = filled(url, server.port)
    try:
        with actors.init(url, hosts="local") as session:
            assert Unsaid["a"].add.remote().result(timeout=10) == 1
            with pytest.raises(UsageError, match="connected already") as caught:
                actors.init(url, hosts="local", namespace="another")
            no_secret_in(everything(caught.value))
            client: Any = session.client
            for each in (session, session.settings, client, client._store, client._store._connections, actors.status()):
                no_secret_in(repr(each), str(each))
            for part in vars(session).values():
                no_secret_in(repr(part) if part is not session.url else "")
            server.kill()
            waiting = Unsaid["a"].add.remote()
            with pytest.raises(TimeoutError) as late:
                waiting.result(timeout=1.5)
            no_secret_in(everything(late.value))
            server.start()
            assert waiting.result(timeout=30) == 1
            with pytest.raises(UnavailableError, match="does not let us in") as refused:
                asyncio.run(_asked(url.replace(MARK, f"not-{MARK}")))
            no_secret_in(everything(refused.value))
    finally:
        server.kill()
        seal.use((), "")  # the tests that follow in this process have no secret
    no_secret_in(said())


async def _asked(url: str) -> None:
    lines = Connections(url)
    try:
        await lines.ask("PING")
    finally:
        await lines.aclose()


def test_weak_settings_are_refused_without_the_password(tmp_path: Path, said: Callable[[], str]) -> None:
    server = Server(valkey_binary(), tmp_path, "--appendonly", "no", "--requirepass", MARK)
    try:
        with pytest.raises(SettingsError) as caught:
            actors.init(f"redis://:{MARK}@127.0.0.1:{server.port}/0", hosts="local")
    finally:
        server.kill()
    no_secret_in(everything(caught.value), said())
