"""What a handler does outside of the durable world: every form of it is refused, once and for good, with advice."""

import asyncio
import contextlib
import importlib
import importlib.metadata
import logging
import os
import queue
import socket
import sqlite3
import tempfile
import threading
import traceback
import zoneinfo
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from actors import Context, Invocation, Service, TerminalError, UsageError, handler
from actors.session import init, shutdown

SOON = 5.0
"""Seconds for what takes milliseconds on an idle machine."""


def connect() -> None:
    with socket.socket() as one:
        one.connect(("127.0.0.1", 1))


DONE: dict[str, Callable[[], object]] = {
    "socket.connect": connect,
    "open": lambda: Path(__file__).read_text(),
    "open, a file of the system": lambda: open("/etc/hostname", encoding="utf-8"),  # noqa: SIM115
    "open, to write": lambda: os.open(os.devnull, os.O_RDWR),
    "open, a temporary file": tempfile.TemporaryFile,
    "os.listdir": lambda: os.listdir("/"),
    "os.scandir": lambda: list(Path(__file__).parent.glob("*")),
    "os.mkdir": tempfile.mkdtemp,
    "os.rename": lambda: os.rename("/nowhere/x", "/nowhere/y"),
    "sqlite3.connect": lambda: sqlite3.connect("/nowhere/perdure.db"),
    "builtins.input": input,
    "a thread is started": lambda: threading.Thread(target=print).start(),
    "a thread is started, of a pool": lambda: ThreadPoolExecutor(1).submit(print).result(),
}
"""By what the refusal says, up to the comma."""

calls: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()


def work() -> None:
    while True:
        with contextlib.suppress(UsageError):
            calls.get()()


threading.Thread(target=work, daemon=True).start()


def called_back() -> "asyncio.Future[str]":
    """Return a future that a thread completes which was there before the handler."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[str] = loop.create_future()
    calls.put(lambda: loop.call_soon_threadsafe(future.set_result, "called"))
    return future


def nothing() -> str:
    return Path(os.devnull).read_text()


def thread_future() -> "asyncio.Future[str]":
    future: Future[str] = Future()
    return asyncio.wrap_future(future)


async def resists() -> None:
    with contextlib.suppress(asyncio.CancelledError):
        await called_back()
    await asyncio.get_running_loop().create_future()


AWAITED: dict[str, Callable[[], Any]] = {
    "a thread called into its event loop, which is done": called_back,
    "a thread called into its event loop, which is done, in a group": lambda: asyncio.gather(called_back()),
    "the future of a thread is awaited": thread_future,
}

undone: list[str] = []


class Careless(Service):
    @handler
    async def do(self, ctx: Context, what: str) -> None:
        DONE[what]()

    @handler
    def do_plainly(self, ctx: Context, what: str) -> None:
        DONE[what]()

    @handler
    async def wrap(self, ctx: Context, what: str) -> None:
        """As many libraries do."""
        try:
            DONE[what]()
        except ValueError as error:
            raise ConnectionError("no route to host") from error

    @handler
    async def go_on(self, ctx: Context) -> str:
        """Has caught a refusal, and fails of something else."""
        try:
            connect()
        except UsageError:
            await ctx.sleep(0)
        if ctx.attempt == 1:
            raise ConnectionError("once")
        return "went on"

    @handler
    async def wait(self, ctx: Context, what: str) -> str:
        ctx.defer("undo", undone.append, ctx.id)
        return await AWAITED[what]()

    @handler
    async def resist(self, ctx: Context) -> None:
        await resists()

    @handler
    async def log(self, ctx: Context) -> None:
        ctx.log.warning("logged")

    @handler
    async def read_what_is_installed(self, ctx: Context) -> list[str]:
        zone = zoneinfo.ZoneInfo.no_cache("Europe/Berlin")
        importlib.import_module("this_handler_imports")
        try:
            raise KeyError("shown")
        except KeyError:
            told = traceback.format_exc()
        version = importlib.metadata.version("pytest")
        sqlite3.connect(":memory:").close()
        assert nothing() == ""
        return [zone.key, told.splitlines()[-2].strip(), version]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("perdure")
    shutdown()


@pytest.fixture(autouse=True)
def connected(directory: Path) -> None:
    init(hosts="local", directory=directory)  # again does nothing


def refusal(ref: Invocation[Any]) -> str:
    with pytest.raises(TerminalError) as raised:
        ref.result(timeout=SOON)
    assert (raised.value.code, raised.value.metadata) == (400, {"error": "actors:UsageError"})
    return str(raised.value)


def advice(what: str) -> str:
    return f"{what} in a handler: I/O, threads and processes belong in ctx.run()"


@pytest.mark.parametrize("what", DONE)
def test_files_and_threads_are_refused_as_sockets_are(what: str) -> None:
    """Issues 15.21 and 15.40."""
    for handle in (Careless.do, Careless.do_plainly):
        assert refusal(handle.remote(what)) == advice(what.partition(",")[0])


@pytest.mark.parametrize("what", ["socket.connect", "open"])
def test_a_refusal_that_a_library_wraps_is_one_still(what: str) -> None:
    """Issue 15.21: else it would be tried again for ever."""
    assert refusal(Careless.wrap.remote(what)) == advice(what)


def test_who_has_caught_a_refusal_may_fail_of_something_else() -> None:
    assert Careless.go_on.remote().result(timeout=SOON) == "went on"


@pytest.mark.parametrize("what", AWAITED)
def test_what_a_thread_completes_is_refused_in_a_handler(what: str) -> None:
    """Issue 15.21: at once, not attempt by attempt, and what was deferred is undone."""
    ref = Careless.wait.remote(what)
    assert refusal(ref) == advice(what.removesuffix(", in a group"))
    assert undone.pop() == ref.id


def test_a_handler_that_goes_on_after_the_call_of_a_thread_is_ended() -> None:
    """Issue 15.21."""
    assert refusal(Careless.resist.remote()) == advice("a thread called into its event loop, which is done")


def test_what_is_installed_may_be_read_in_a_handler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 15.40: imports, tracebacks, time zones, the data of packages."""
    (tmp_path / "this_handler_imports.py").write_text("ANSWER = 42")
    monkeypatch.syspath_prepend(tmp_path)
    found = Careless.read_what_is_installed.remote().result(timeout=SOON)
    assert found == ["Europe/Berlin", 'raise KeyError("shown")', pytest.__version__]


def test_a_log_that_goes_to_a_file_works_in_a_handler(tmp_path: Path) -> None:
    """Issue 15.40: its file is opened with the first record."""
    file, logger = logging.FileHandler(tmp_path / "log", delay=True), logging.getLogger("actors.handler")
    logger.addHandler(file)
    try:
        Careless.log.remote().result(timeout=SOON)
        assert (tmp_path / "log").read_text() == "logged\n"
    finally:
        logger.removeHandler(file)
        file.close()
