"""Notices: where a program reads that an attempt has failed: a notebook shows it under the cell that waits."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar

import pytest

from actors import Context, Invocation, Policy, Retry, Service, get, handler
from actors.client.slots import Countdown
from actors.session import init, shutdown
from journal.embedded import guard

cell: ContextVar[str] = ContextVar("cell", default="none")
"""As a notebook has one for each cell."""

SOON = 10.0


class TypoSaid(Service):
    @handler(policy=Policy(retry=Retry(initial=0.05, max_interval=0.05)))
    async def mistake(self, ctx: Context, attempts: int) -> str:
        if ctx.attempt <= attempts:
            return totl  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore[reportUndefinedVariable]
        return "mended"


class Page(logging.Handler):
    """Notes under which cell each line is seen, and in which thread it was written."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.seen: list[tuple[str, bool]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "NameError: name 'totl' is not defined" in record.getMessage():
            self.seen.append((cell.get(), threading.current_thread() is threading.main_thread()))


@pytest.fixture
def page() -> Iterator[Page]:
    page, logger = Page(), logging.getLogger("actors")
    logger.addHandler(page)
    yield page
    logger.removeHandler(page)


@pytest.fixture(scope="module", autouse=True)
def connected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    init(hosts="local", directory=tmp_path_factory.mktemp("perdure"))
    yield
    shutdown()


def awaited(ref: Invocation[str], name: str) -> str:
    async def run() -> str:
        cell.set(name)
        return await ref

    return asyncio.run(run())


async def in_tasks(refs: list[Invocation[str]]) -> list[str]:
    async def one(number: int, ref: Invocation[str]) -> str:
        cell.set(f"cell {number}")
        return await ref

    return await asyncio.gather(*(one(number, ref) for number, ref in enumerate(refs)))


def test_an_error_is_seen_under_the_cell_that_awaits(page: Page) -> None:
    """Issue 15.43: in its context and its thread."""
    assert awaited(TypoSaid.mistake.remote(2), "cell 7") == "mended"
    assert page.seen == [("cell 7", True)] * 2


def test_each_error_is_seen_under_its_own_cell(page: Page) -> None:
    """Issue 15.43: cells that await at once."""
    refs = [TypoSaid.mistake.remote(1) for _ in range(3)]
    assert asyncio.run(in_tasks(refs)) == ["mended"] * 3
    assert sorted(page.seen) == [(f"cell {number}", True) for number in range(3)]


WAYS: dict[str, Callable[[Invocation[str]], str]] = {
    "result": lambda ref: ref.result(),
    "result in time": lambda ref: ref.result(timeout=SOON),
    "get": lambda ref: get(ref),
}


@pytest.mark.parametrize("how", WAYS)
def test_an_error_is_seen_under_the_cell_that_blocks(page: Page, how: str) -> None:
    """Issue 15.43: in its thread."""
    token = cell.set("cell 8")
    assert WAYS[how](TypoSaid.mistake.remote(3)) == "mended"
    cell.reset(token)
    assert page.seen == [("cell 8", True)] * 3


def test_a_wait_that_is_over_loses_nothing(page: Page) -> None:
    """Issue 15.43: what nobody waits for is said by the client, as before."""
    ref = TypoSaid.mistake.remote(1_000)
    with pytest.raises(TimeoutError):
        ref.result(timeout=0.3)
    waited = len(page.seen)
    for _ in range(200):
        if len(page.seen) > waited:
            break
        guard.pause()
    assert page.seen[-1] == ("none", False)
    ref.kill().result()


def test_what_is_said_wakes_and_does_not_end_a_wait() -> None:
    over = Countdown(2)
    over.say("first")
    over()
    over.say("second")
    assert not over.wait(0.01)
    over()
    assert over.wait(1)
