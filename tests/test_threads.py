"""Threads of steps: who gets one when some never end, and what a program hears of it (promise 8)."""

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from actors import Context, Retry, Service, VirtualObject, handler, status
from actors.blocks import step_threads
from actors.blocks.step_threads import Holder, Threads
from actors.errors import TerminalError
from actors.host import timekeeper
from actors.session import init, shutdown
from journal.embedded import guard

SOON = 10.0
"""Seconds for what takes milliseconds on an idle machine."""


class Hanging:
    """Calls that hang until they are let go, of objects by name, in a pool."""

    def __init__(self, **shares: int) -> None:
        self.pool = Threads(**shares)
        self.gate = threading.Event()
        self.begun: list[str] = []

    def hang(self, target: str, count: int = 1) -> list[Future[Any]]:
        return [self.put(target, lambda: self.gate.wait(60)) for _ in range(count)]

    def put(self, target: str, work: Callable[[], Any]) -> Future[Any]:
        holder = Holder(target.partition("/")[0], target, target, "fetch")

        def begin() -> Any:
            self.begun.append(target)
            return work()

        return self.pool.of(holder).submit(begin)

    def answers(self, target: str) -> bool:
        """Whether a call of an object is made, and not behind what hangs."""
        try:
            return self.put(target, lambda: True).result(0.3)
        except TimeoutError:
            return False


@pytest.fixture
def hanging() -> Iterator[Hanging]:
    hanging = Hanging(count=8, of_an_object=4, of_a_type=6)
    yield hanging
    hanging.gate.set()
    hanging.pool.shutdown()


def test_an_object_has_its_share_and_no_more(hanging: Hanging) -> None:
    """Issue 15.29: and so has a type."""
    hanging.hang("Page/a", 20)
    assert hanging.answers("Page/b")
    hanging.hang("Page/b", 20)
    assert not hanging.answers("Page/c")
    assert hanging.answers("Other/a")


def test_what_waits_goes_on_in_turn(hanging: Hanging) -> None:
    """Issue 15.29: thousands of one object are not all before the first of another."""
    calls = [*hanging.hang("Page/a", 50), *hanging.hang("Page/b", 50), *hanging.hang("Other/a", 50)]
    hanging.gate.set()
    for call in calls:
        assert call.result(SOON)
    assert max(hanging.begun.index(target) for target in ("Page/a", "Page/b", "Other/a")) < 10
    assert len(hanging.begun) == 150


def test_a_call_that_is_given_up_gives_its_place_up(hanging: Hanging, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 15.29: so many at most; of those beyond each keeps its place until an abandoned one ends."""
    for call in hanging.hang("Page/a", 4):
        assert not call.cancel(), "it goes on"
    assert len(hanging.pool.abandoned) == 4
    assert hanging.pool.abandoned[0].startswith("'fetch' of Page/a, for ")
    assert hanging.answers("Page/a")
    for call in hanging.hang("Page/a", 8):
        call.cancel()
    assert len(hanging.pool.abandoned) == 4, "of an object no more than may work"
    assert hanging.answers("Page/b")
    monkeypatch.setattr(step_threads, "ABANDONED_OF_A_TYPE", 5)
    for call in [*hanging.hang("Page/b", 2), *hanging.hang("Page/c", 6)]:
        call.cancel()
    assert len(hanging.pool.abandoned) == 5
    assert hanging.answers("Other/a")


def test_so_many_threads_are_abandoned_and_no_more(hanging: Hanging, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 15.29."""
    monkeypatch.setattr(step_threads, "ABANDONED_MAX", 3)
    first = threading.Event()
    for target in ("Page/a", "Page/b", "Page/c"):
        hanging.put(target, lambda: first.wait(60)).cancel()
    for call in hanging.hang("Page/a", 4):
        call.cancel()
    assert len(hanging.pool.abandoned) == 3
    assert not hanging.answers("Page/a"), "four keep their places"
    first.set()
    assert hanging.put("Page/a", lambda: True).result(SOON)
    assert len(hanging.pool.abandoned) == 3


def test_what_was_given_up_before_it_began_never_does(hanging: Hanging) -> None:
    calls = hanging.hang("Page/a", 10)
    for call in calls[4:]:
        assert call.cancel()
    hanging.gate.set()
    assert [call.result(SOON) for call in calls[:4]] == [True] * 4
    assert hanging.answers("Page/a")
    assert hanging.begun.count("Page/a") == 5


def test_a_shortage_is_said_once_with_those_at_fault(hanging: Hanging, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 15.29: of the object, the type, the whole host; not of one that only has much to do."""
    hanging.hang("Page/a", 5)
    assert hanging.pool.look() == [], "it may be over in a moment"
    monkeypatch.setattr(step_threads, "SAY_AFTER", 0.0)
    said = "sync steps of Page/a wait for a thread: all 4 that it may have hang, 'fetch' of Page/a, for 0 s, "
    assert [sentence[: len(said)] for sentence in hanging.pool.look()] == [said]
    hanging.hang("Page/b", 3)
    assert [sentence.partition(" wait")[0] for sentence in hanging.pool.look()] == ["sync steps of Page"]
    hanging.hang("Other/a", 3)
    assert [sentence.partition(" wait")[0] for sentence in hanging.pool.look()] == ["sync steps of this host"]
    assert hanging.pool.look() == []


def test_a_pool_that_is_shut_takes_nothing() -> None:
    pool = Threads()
    assert pool.submit(lambda: 1).result(SOON) == 1
    pool.shutdown()
    with pytest.raises(RuntimeError, match="the host has ended"):
        pool.submit(lambda: 1)


# --------------------------------------------------------------------------------------------------- through the API

gate = threading.Event()


def hang() -> None:
    gate.wait(60)


class Page(VirtualObject):
    @handler
    async def fetch(self, ctx: Context, timeout: float | None) -> None:
        retry = Retry(initial=0, max_attempts=1)
        if timeout is None:
            await ctx.run("fetch", hang)
        else:
            await ctx.run("fetch", hang, timeout=timeout, retry=retry)

    @handler
    async def add(self, ctx: Context) -> int:
        return await ctx.run("add", lambda: 1)


class Crawler(Service):
    @handler
    async def crawl(self, ctx: Context) -> int:
        return await ctx.run("crawl", lambda: 1)


@pytest.fixture
def unconnected() -> Iterator[None]:
    gate.clear()
    yield
    gate.set()
    shutdown()


@pytest.mark.usefixtures("unconnected")
def test_steps_of_others_go_on_while_some_hang(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """Issue 15.29: with a time-out and without."""
    monkeypatch.setattr(step_threads, "SAY_AFTER", 0.0)
    monkeypatch.setattr(timekeeper, "COLLECT_EVERY", 0.2)
    init(hosts="local", directory=tmp_path)
    given_up = [Page[f"{number}"].fetch.remote(0.05) for number in range(40)]
    for ref in given_up:
        with pytest.raises(TerminalError, match="took longer than"):
            ref.result(timeout=SOON)
    hanging = [Page[f"{number}"].fetch.remote(None) for number in range(40)]
    assert Crawler.crawl.remote().result(timeout=SOON) == 1

    def told() -> list[str]:
        abandoned = [name for host in status().hosts for name in host.abandoned]
        return [name for name in abandoned if "'fetch' of Page/" in name]

    until(lambda: len(told()) >= 20)
    with caplog.at_level(logging.WARNING):
        until(lambda: any("sync steps of Page wait for a thread" in record.getMessage() for record in caplog.records))
    for ref in hanging:
        with suppress(TerminalError):
            ref.kill().result(timeout=SOON)
    assert Page["new"].add.remote().result(timeout=SOON) == 1, "who is killed gives its place up"


def until(is_over: Callable[[], bool]) -> None:
    for _ in range(200):
        if is_over():
            return
        guard.pause()
    raise AssertionError("it was waited for in vain")
