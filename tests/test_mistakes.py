"""What newcomers do wrong, and what they are told: nothing hangs, nothing is silent, the text says what to do.

Through the public API, with a host in this process. Where the caller's own line is at fault, it raises there; in a
handler, the caller gets a `TerminalError` of code 400; a failure that another attempt may mend is a warning to whoever
waits, and the wait goes on.
"""

import asyncio
import logging
import os
import pickle
import queue
import re
import socket
import subprocess
import sys
import threading
import time as library  # what a library does inside: a test of its own never sleeps
import urllib.request
from collections.abc import Callable, Iterator
from logging.handlers import SysLogHandler
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
from servers import DURABLE, Server, valkey_binary

from actors import (
    Context,
    Invocation,
    Service,
    SettingsError,
    TerminalError,
    UnavailableError,
    UsageError,
    VirtualObject,
    handler,
    shared,
    state,
)
from actors.objects.objects import object_handle
from actors.requests.current import caller
from actors.requests.request import EMPTY_OPTIONS, Request
from actors.session import init, shutdown
from journal import clock
from journal.store import NamespaceLimits

SOON = 5.0
"""Seconds for what takes milliseconds on an idle machine."""

TOO_LARGE = "x" * (NamespaceLimits().payload_max + 1)

PLAIN_DATA = "Arguments, results and state are plain data: make sockets, locks, files"

charged: int
"""A typo: nobody gives it a value, until a test does."""


# -------------------------------------------------------------------------------------------------------------- objects


class Basket(VirtualObject):
    count: int = state(0)
    note: Any = state(None)

    @handler
    async def add(self, ctx: Context, item: str, *, quantity: int = 1) -> int:
        self.count += quantity
        return self.count

    @shared
    async def size(self, ctx: Context) -> int:
        return self.count

    @handler
    async def keep(self, ctx: Context, what: str) -> None:
        self.note = unsendable(what)

    @handler
    async def keep_and_wait(self, ctx: Context, what: str) -> None:
        self.note = unsendable(what)
        await asyncio.sleep(0)
        await ctx.sleep(0.001)

    @shared
    async def empty(self, ctx: Context) -> None:
        self.count = 0

    @shared
    async def empty_by_name(self, ctx: Context) -> None:
        ctx.clear("count")

    @handler
    async def rename(self, ctx: Context) -> None:
        cast("Any", self).title = "mine"


class Kiosk(Service):
    @handler
    async def block(self, ctx: Context, how: str) -> None:
        BLOCKING[how]()

    @handler
    def block_plainly(self, ctx: Context, how: str) -> None:
        BLOCKING[how]()

    @handler
    async def block_in_a_group(self, ctx: Context, how: str) -> None:
        async def child() -> None:
            BLOCKING[how]()

        async with asyncio.TaskGroup() as group:
            group.create_task(child())

    @handler
    async def connect(self, ctx: Context) -> None:
        await asyncio.open_connection("127.0.0.1", 1)

    @handler
    async def use_a_thread(self, ctx: Context) -> None:
        await asyncio.to_thread(print)

    @handler
    async def use_an_executor(self, ctx: Context) -> None:
        await asyncio.get_running_loop().run_in_executor(None, print)

    @handler
    async def start_a_process(self, ctx: Context) -> None:
        await asyncio.create_subprocess_exec("true")

    @handler
    async def block_in_a_step(self, ctx: Context) -> str:
        await ctx.run("sleep", library.sleep, 0.001)
        return await ctx.run("run", subprocess.getoutput, "echo done")

    @handler
    async def log(self, ctx: Context) -> str:
        ctx.log.warning("logged")
        return "logged"

    @handler
    async def greet(self, ctx: Context, name: str, *, twice: bool = False) -> str:
        return name

    @handler
    async def give(self, ctx: Context, what: str) -> Any:
        return unsendable(what)

    @handler
    async def give_from_a_step(self, ctx: Context, what: str) -> Any:
        return await ctx.run("charge", unsendable, what)

    @handler
    async def pass_on(self, ctx: Context, what: str) -> Any:
        return await Basket["a"].add.remote(unsendable(what))

    @handler
    async def pay(self, ctx: Context) -> int:
        return charged  # noqa: F821

    @handler
    async def pay_in_a_step(self, ctx: Context) -> int:
        return await ctx.run("charge", lambda: charged)  # noqa: F821

    @handler
    async def order(self, ctx: Context) -> int:
        return await Kiosk.pay.remote()

    @handler
    async def forget(self, ctx: Context, what: str) -> str:
        # Handed to nobody, as a statement of its own would be.
        forgotten: dict[str, Callable[[], object]] = {
            "call": lambda: Basket["a"].size.remote(),
            "step": lambda: ctx.run("charge", print),
            "sleep": lambda: ctx.sleep(60),
        }
        forgotten[what]()
        return "done"

    @handler
    async def misuse(self, ctx: Context, how: str) -> Any:
        return await MISUSED[how](ctx)

    @handler
    def call_without_async(self, ctx: Context) -> None:
        Basket["a"].size.remote()


BASKET, KIOSK = cast("Any", Basket), cast("Any", Kiosk)
"""As a program without a type checker has them."""


def unsendable(what: str) -> Any:
    return threading.Lock() if what == "lock" else TOO_LARGE


def connect_a_socket() -> None:
    with socket.socket() as one:
        one.connect(("127.0.0.1", 1))


BLOCKING: dict[str, Callable[[], object]] = {
    "time.sleep": lambda: library.sleep(60),
    "socket.connect": connect_a_socket,
    "socket.getaddrinfo": lambda: urllib.request.urlopen("http://localhost:1/"),
    "socket.gethostbyname": lambda: socket.gethostbyname("localhost"),
    "subprocess.Popen": lambda: subprocess.run(["true"], check=True),
    "os.system": lambda: os.system("true"),  # pyright: ignore[reportDeprecated]
    "os.posix_spawn": lambda: os.posix_spawn("/bin/true", ["true"], {}),
}
"""By the audit event that tells of it."""


async def count(up_to: int) -> int:
    return up_to


async def iterate_as_completed(ctx: Context) -> None:
    counting = [count(1), count(2)]
    try:
        for first in asyncio.as_completed(counting):
            await first
    finally:
        for one in counting:
            one.close()


async def call_plainly(ctx: Context) -> int:
    return await Basket["a"].add(ctx, "pen")


async def read_an_address(ctx: Context) -> int:
    return Basket["a"].count


async def await_a_send(ctx: Context) -> int:
    return await Basket["a"].size.send()


async def ask_for_the_result(ctx: Context) -> int:
    return Basket["a"].size.remote().result()


async def use_the_context_in_a_step(ctx: Context) -> None:
    await ctx.run("charge", lambda: ctx.sleep(1))


async def call_in_a_step(ctx: Context) -> None:
    await ctx.run("charge", lambda: Basket["a"].size.remote())


async def call_in_an_async_step(ctx: Context) -> None:
    async def charge() -> int:
        return await Basket["a"].size.remote()

    await ctx.run("charge", charge)


async def run_the_result(ctx: Context) -> None:
    await ctx.run("charge", cast("Any", len("abc")))


MISUSED: dict[str, Callable[[Context], Any]] = {
    misuse.__name__: misuse
    for misuse in (
        iterate_as_completed,
        call_plainly,
        read_an_address,
        await_a_send,
        ask_for_the_result,
        use_the_context_in_a_step,
        call_in_a_step,
        call_in_an_async_step,
        run_the_result,
    )
}


# ------------------------------------------------------------------------------------------------------------- fixtures


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("perdure")
    shutdown()


@pytest.fixture
def connected(directory: Path) -> None:
    init(hosts="local", directory=directory)  # again does nothing


@pytest.fixture
def unconnected() -> None:
    shutdown()


class Warned(logging.Handler):
    """What the logger `actors` says, for a test to wait for."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: queue.Queue[str] = queue.Queue()

    def emit(self, record: logging.LogRecord) -> None:
        self._said.put(record.getMessage())

    def of(self, words: str) -> str:
        """Return the next message with these words; fail if there is none soon."""
        while words not in (said := self._said.get(timeout=SOON)):
            pass
        return said


@pytest.fixture
def warned() -> Iterator[Warned]:
    handler, logger = Warned(), logging.getLogger("actors")
    logger.addHandler(handler)
    yield handler
    logger.removeHandler(handler)


def failure(ref: Invocation[Any]) -> TerminalError:
    with pytest.raises(TerminalError) as caught:
        ref.result(timeout=SOON)
    return caught.value


def refusal(ref: Invocation[Any]) -> str:
    """Return what the caller is told of a mistake in a handler."""
    error = failure(ref)
    assert (type(error), error.code) == (TerminalError, 400)
    return str(error)


def without_the_class(handler: str, *args: Any) -> Invocation[Any]:
    """Call as a program does that has no class `Basket`: nothing is checked before a host does."""
    return caller().start(Request("Basket", "a", handler, args, {}, False, EMPTY_OPTIONS, None, None))


# ------------------------------------------------------------------------------------------------- blocking and threads


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize("how", ["socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen"])
def test_what_blocks_is_refused_in_a_handler(how: str) -> None:
    assert refusal(Kiosk.block.remote(how)) == f"{how} in a handler: I/O, threads and processes belong in ctx.run()"


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize("how", ["os.system", "os.posix_spawn"])
def test_what_starts_a_process_is_refused_in_a_handler(how: str) -> None:
    assert refusal(Kiosk.block.remote(how)) == f"{how} in a handler: I/O, threads and processes belong in ctx.run()"


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize("where", [Kiosk.block, Kiosk.block_plainly, Kiosk.block_in_a_group])
def test_a_sleep_that_blocks_is_refused_with_the_one_that_does_not(where: Any) -> None:
    assert refusal(where.remote("time.sleep")) == (
        "time.sleep in a handler: await asyncio.sleep(), which is durable; what blocks belongs in ctx.run()"
    )


@pytest.mark.usefixtures("connected")
def test_what_waits_for_a_ray_that_was_imported_is_refused_in_a_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 15.40: also where the program imported it after its first host began, and by its other name."""
    Basket["before ray"].add.remote("a").result(timeout=SOON)
    ray, worker = ModuleType("ray"), ModuleType("ray._private.worker")
    names = vars(ray), vars(worker)
    for module in names:
        module.update(get=lambda ref: ref, wait=lambda ref, timeout: ref)  # pyright: ignore[reportUnknownLambdaType]
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray._private.worker", worker)

    class AsksRay(VirtualObject):
        @handler
        async def get(self, ctx: Context) -> int:
            return names[0]["get"](1)

        @handler
        async def wait(self, ctx: Context) -> int:
            return names[1]["wait"](1, timeout=5)

        @handler
        async def get_in_a_step(self, ctx: Context) -> int:
            return await ctx.run("step", lambda: names[0]["get"](1))

    assert refusal(AsksRay["a"].get.remote()).startswith("ray.get in a handler stops its whole host")
    assert refusal(AsksRay["a"].wait.remote()).startswith("ray.wait in a handler stops its whole host")
    assert AsksRay["a"].get_in_a_step.remote().result(timeout=SOON) == 1
    assert names[0]["get"](1) == 1


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize(
    ("handler", "what"),
    [
        (Kiosk.connect, "create_connection"),
        (Kiosk.use_a_thread, "run_in_executor"),
        (Kiosk.use_an_executor, "run_in_executor"),
        (Kiosk.start_a_process, "subprocess_exec"),
    ],
)
def test_what_asyncio_does_outside_is_refused_in_a_handler(handler: Any, what: str) -> None:
    assert refusal(handler.remote()) == f"{what} in a handler: I/O, threads and processes belong in ctx.run()"


@pytest.mark.usefixtures("connected")
def test_everything_else_may_block() -> None:
    assert Kiosk.block_in_a_step.remote().result(timeout=SOON) == "done"
    library.sleep(0.001)  # a driver
    assert subprocess.getoutput("echo done") == "done"

    async def program() -> str:
        library.sleep(0.001)  # noqa: ASYNC251
        return await asyncio.to_thread(subprocess.getoutput, "echo done")

    assert asyncio.run(program()) == "done"


@pytest.mark.usefixtures("connected")
def test_a_log_that_goes_over_the_network_works_in_a_handler() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as collector:
        collector.bind(("127.0.0.1", 0))
        collector.settimeout(SOON)
        remote, logger = SysLogHandler(collector.getsockname()), logging.getLogger("actors.handler")
        logger.addHandler(remote)
        try:
            assert Kiosk.log.remote().result(timeout=SOON) == "logged"
            assert b"logged" in collector.recv(1000)
        finally:
            logger.removeHandler(remote)
            remote.close()


@pytest.mark.usefixtures("connected")
def test_both_sleeps_can_be_pickled() -> None:
    # Ray sends functions by value, with the sleep that their module imported before or after the host began.
    for sleep in (library.sleep, clock.sleep):
        assert pickle.loads(pickle.dumps(sleep)) is sleep


# ------------------------------------------------------------------------------------------- calls that cannot be right


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BASKET["a"].add.remote(), "Basket.add() missing 1 required positional argument: 'item'"),
        (lambda: BASKET["a"].add.send(), "Basket.add() missing 1 required positional argument: 'item'"),
        (lambda: BASKET["a"].add.remote("pen", amount=2), "Basket.add() got an unexpected keyword argument 'amount'"),
        (lambda: KIOSK.greet.remote("Ada", True), "Kiosk.greet() takes 1 positional argument but 2 were given"),
        (lambda: BASKET["a"].handle.remote("add"), "Basket.add() missing 1 required positional argument: 'item'"),
        (
            lambda: object_handle("Basket", "a").remote("add"),
            "Basket.add() missing 1 required positional argument: 'item'",
        ),
    ],
)
def test_wrong_arguments_raise_in_the_caller(call: Any, message: str) -> None:
    with pytest.raises(TypeError, match=f"^{re.escape(message)}$"):
        call()


@pytest.mark.usefixtures("connected")
def test_wrong_arguments_from_a_program_without_the_class_come_back() -> None:
    assert refusal(without_the_class("add")) == "Basket.add() missing 1 required positional argument: 'item'"


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize("call", [lambda: BASKET["a"].ad.remote("pen"), lambda: KIOSK.great.remote("Ada")])
def test_an_unknown_handler_is_an_attribute_that_is_not_there(call: Any) -> None:
    with pytest.raises(AttributeError, match=r"has no attribute '(ad|great)'"):
        call()


HANDLERS = "add, empty, empty_by_name, keep, keep_and_wait, rename, size"
UNKNOWN = f"Basket has no handler 'ad': did you mean 'add'? It has: {HANDLERS}"


@pytest.mark.usefixtures("connected")
def test_an_unknown_handler_by_name_is_refused_with_those_that_there_are() -> None:
    for handle in (Basket["a"].handle, object_handle("Basket", "a")):
        with pytest.raises(UsageError, match=f"^{re.escape(UNKNOWN)}$"):
            handle.remote("ad", "pen")


@pytest.mark.usefixtures("connected")
def test_an_unknown_handler_from_a_program_without_the_class_comes_back() -> None:
    error = failure(without_the_class("ad", "pen"))

    assert (str(error), error.code) == (UNKNOWN, 404)


@pytest.mark.usefixtures("connected")
def test_a_class_that_nobody_has_is_named() -> None:
    error = failure(object_handle("Bakset", "a").remote("add", "pen"))

    assert error.code == 404
    assert str(error).startswith("no class 'Bakset' is known to the hosts: a program that has it must use it once")


@pytest.mark.parametrize("key", [1, None, b"a", ("a", "b")])
def test_a_key_is_text(key: Any) -> None:
    with pytest.raises(TypeError, match=f"^the key of a Basket is a str, not {re.escape(repr(key))}$"):
        Basket[key]


def test_a_key_is_not_empty() -> None:
    with pytest.raises(UsageError, match=r"^the key of a Basket is not empty$"):
        Basket[""]
    with pytest.raises(UsageError, match=r"^the key of a Basket is a str that is not empty, not ''$"):
        object_handle("Basket", "")


@pytest.mark.parametrize("verb", ["remote", "send", "options"])
def test_a_call_without_a_key_says_where_the_key_goes(verb: str) -> None:
    message = rf"^Basket\.add is called on an object: Basket\[key\]\.add\.{verb}\(\.\.\.\)$"
    with pytest.raises(AttributeError, match=message):
        getattr(Basket.add, verb)("pen")


def test_a_handler_is_not_called_plainly() -> None:
    with pytest.raises(
        UsageError, match=r"^Basket\['a'\]\.add is at an address: use \.remote\(\.\.\.\) or \.send\(\.\.\.\)$"
    ):
        BASKET["a"].add("pen")
    with pytest.raises(
        UsageError, match=r"^Kiosk\.greet is at an address: use \.remote\(\.\.\.\) or \.send\(\.\.\.\)$"
    ):
        KIOSK.greet("Ada")


@pytest.mark.usefixtures("unconnected")
def test_a_call_before_init_says_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"^nothing is connected in this process: call actors\.init\(\) first$"):
        Basket["a"].add.remote("pen")


@pytest.mark.usefixtures("connected")
def test_a_result_is_awaited_where_a_loop_runs() -> None:
    async def program() -> int:
        return Basket["a"].size.remote().result()

    with pytest.raises(
        UsageError, match=r"^result\(\) blocks, and an event loop runs here: await the invocation instead$"
    ):
        asyncio.run(program())


# ----------------------------------------------------------------------------------- values that cannot be or are large


@pytest.mark.usefixtures("connected")
def test_an_argument_that_cannot_be_sent_raises_at_the_call_and_is_named() -> None:
    lock = cast("Any", threading.Lock())
    with pytest.raises(
        UsageError, match=r"^argument 1 of Basket\.add cannot be sent: a value of type _thread\.lock cannot"
    ) as one:
        Basket["a"].add.remote(lock)
    with pytest.raises(
        UsageError, match=r"^argument 'quantity' of Basket\.add cannot be sent: a value of type _thread\.lock"
    ):
        Basket["a"].add.remote("pen", quantity=lock)

    assert PLAIN_DATA in str(one.value)


@pytest.mark.usefixtures("connected")
def test_a_large_argument_raises_at_the_call() -> None:
    with pytest.raises(UsageError) as caught:
        Basket["a"].add.remote(TOO_LARGE)

    assert str(caught.value).startswith("the message to Basket/a.add takes 8,000,0")
    assert str(caught.value).endswith(
        " bytes, the limit payload_max is 8,000,000: keep large data elsewhere and pass a reference"
    )


CANNOT = "a value of type _thread.lock cannot be stored: cannot pickle '_thread.lock' object. " + PLAIN_DATA
LIMIT = "the limit payload_max is 8,000,000: keep large data elsewhere"


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize(
    ("call", "beginning", "limit"),
    [
        (Kiosk.pass_on, "argument 1 of Basket.add cannot be sent: ", "the message to Basket/a.add takes 8,000,0"),
        (Kiosk.give, "Kiosk.give returned what cannot be sent: ", "the result takes 8,000,0"),
        (
            Kiosk.give_from_a_step,
            "the step 'charge' returned a value that cannot be recorded: ",
            "the result of the step 'charge' takes 8,000,0",
        ),
        (Basket["b"].keep, "state 'note': ", "state 'note' takes 8,000,0"),
        (Basket["c"].keep_and_wait, "state 'note': ", "state 'note' takes 8,000,0"),
    ],
)
def test_a_value_that_cannot_be_kept_says_where_it_was(call: Any, beginning: str, limit: str) -> None:
    unencodable, large = refusal(call.remote("lock")), refusal(call.remote("large"))

    assert unencodable.startswith(beginning + CANNOT)
    assert limit in large
    assert LIMIT in large


@pytest.mark.usefixtures("connected")
def test_an_object_goes_on_after_a_value_that_it_could_not_keep() -> None:
    refusal(Basket["d"].keep.remote("lock"))

    assert Basket["d"].add.remote("pen").result(timeout=SOON) == 1


# ---------------------------------------------------------------------------------------------------------------- typos


def line_of(text: str) -> int:
    """Return the number of the first line of this file with this text."""
    lines = Path(__file__).read_text("utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize(
    ("call", "failed", "line"),
    [
        (Kiosk.pay, r"Kiosk\.pay \(.+\): ", "return charged"),
        (Kiosk.order, r"Kiosk\.pay \(.+\): ", "return charged"),
        (Kiosk.pay_in_a_step, r"Kiosk\.pay_in_a_step \(.+\): step 'charge': ", "lambda: charged"),
    ],
)
def test_who_waits_is_told_of_a_typo_at_once_and_goes_on_waiting(
    call: Any, failed: str, line: str, warned: Warned, monkeypatch: pytest.MonkeyPatch
) -> None:
    ref = call.remote()

    said = warned.of("NameError")

    first = r"attempt 1 failed, the next follows in 0\.05 s\nTraceback \(most recent call last\):\n"
    assert re.match(failed + first, said)
    assert re.findall(r'File "(.*)", line (\d+)', said) == [(__file__, str(line_of(line)))]
    assert said.endswith("NameError: name 'charged' is not defined")
    # It goes on: with the typo mended, the next attempt gives the result.
    monkeypatch.setitem(globals(), "charged", 100)
    assert ref.result(timeout=SOON) == 100


# --------------------------------------------------------------------------------------------------------- in a handler


@pytest.mark.usefixtures("connected")
def test_a_step_that_fails_for_ever_does_not_hold_up_the_end_of_a_program(warned: Warned) -> None:
    Kiosk.pay_in_a_step.remote()
    warned.of("NameError")
    began = clock.boot_seconds()

    shutdown()

    assert clock.boot_seconds() - began < SOON


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("call", "`call Basket/a.size` was never awaited: its result is lost. Use .send() if nobody waits"),
        ("step", "the step 'charge' was never awaited: it is given up with its handler"),
        ("sleep", "`sleep` had not ended when the handler did: is an await missing?"),
    ],
)
def test_a_forgotten_await_is_a_warning(what: str, message: str, warned: Warned) -> None:
    assert Kiosk.forget.remote(what).result(timeout=SOON) == "done"

    assert re.fullmatch(r"Kiosk\.forget \(.+\): " + re.escape(message), warned.of("Kiosk.forget"))


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (Basket["e"].rename, "Basket.title is not declared: declare it, `title: T = state(...)`"),
        (
            Basket["e"].empty,
            "empty is a shared handler, which reads only (make it a @handler): 'count' cannot be written",
        ),
        (
            Basket["e"].empty_by_name,
            "empty_by_name is a shared handler, which reads only (make it a @handler): 'count' cannot be written",
        ),
        (Kiosk.call_without_async, "call_without_async is not async, so it cannot wait: use .send(), or make it async"),
    ],
)
def test_what_a_handler_may_not_do_is_refused(call: Any, message: str) -> None:
    assert refusal(call.remote()) == message


A_STEP_MAY_REPEAT = "a step may repeat: return the value and call from the handler"


@pytest.mark.usefixtures("connected")
@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (
            iterate_as_completed,
            (
                "as_completed starts coroutines in no certain order: give it tasks, "
                "as_completed([asyncio.ensure_future(x) for x in ...])"
            ),
        ),
        (call_plainly, "Basket['a'].add is at an address: use .remote(...) or .send(...)"),
        (read_an_address, "Basket['a'].count is state: it can be read only inside a handler"),
        (ask_for_the_result, "result() blocks, and an event loop runs here: await the invocation instead"),
        (use_the_context_in_a_step, A_STEP_MAY_REPEAT),
        (call_in_a_step, A_STEP_MAY_REPEAT),
        (call_in_an_async_step, A_STEP_MAY_REPEAT),
        (run_the_result, "step 'charge': 3 cannot be called; pass the function and its arguments, not its result"),
    ],
)
def test_a_misuse_is_refused_with_what_to_do_instead(misuse: Callable[..., Any], message: str) -> None:
    assert refusal(Kiosk.misuse.remote(misuse.__name__)) == message


@pytest.mark.usefixtures("connected")
def test_a_send_cannot_be_awaited_in_a_handler() -> None:
    said = refusal(Kiosk.misuse.remote(await_a_send.__name__))

    assert said.endswith(" was sent: nobody waits for a send, so start it with .remote()")


# ------------------------------------------------------------------------------------------------------------ the store


@pytest.mark.usefixtures("unconnected")
@pytest.mark.parametrize(
    ("settings", "why", "remedy"),
    [
        (("--appendonly", "no"), "it has no append-only file", "appendonly yes"),
        (
            ("--appendonly", "yes", "--appendfsync", "everysec"),
            "it answers before it has synced (appendfsync everysec)",
            "appendfsync always",
        ),
        (
            (*DURABLE, "--maxmemory-policy", "allkeys-lru"),
            "its eviction policy allkeys-lru may drop keys",
            "maxmemory-policy noeviction",
        ),
    ],
)
def test_a_server_that_could_lose_data_is_refused_with_the_setting_to_use(
    settings: tuple[str, ...], why: str, remedy: str, tmp_path: Path
) -> None:
    # Promise 10.
    server = Server(valkey_binary(), tmp_path, *settings)
    try:
        with pytest.raises(SettingsError) as caught:
            init(redis=server.url, hosts="local")
    finally:
        server.kill()

    assert str(caught.value) == (
        f"this Redis could lose what it has acknowledged: {why}. Set `{remedy}` on the server, or say "
        'actors.init(durability="relaxed") if losing data is acceptable.'
    )


@pytest.mark.usefixtures("unconnected")
def test_a_server_that_wants_a_password_says_where_it_goes(tmp_path: Path) -> None:
    server = Server(valkey_binary(), tmp_path, *DURABLE, "--requirepass", "secret")
    try:
        with pytest.raises(UnavailableError, match=r"belong in the URL, redis://name:password@host$"):
            init(redis=server.url, hosts="local")
    finally:
        server.kill()


@pytest.mark.usefixtures("unconnected")
@pytest.mark.parametrize("url", ["redis://127.0.0.1:1", "redis://localhost:1/3"])
def test_a_url_where_nobody_answers_is_no_hang(url: str) -> None:
    began = clock.boot_seconds()
    with pytest.raises(UnavailableError, match=r"^the store does not answer: Error -?[0-9]+ connecting to "):
        init(redis=url, hosts="local")

    assert clock.boot_seconds() - began < SOON


@pytest.mark.usefixtures("unconnected")
@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://localhost:6379", "***"),  # it may be anything, a password too
        ("localhost:6379", "***"),
        ("redis://localhost:port", "redis://localhost:***"),
    ],
)
def test_what_is_no_url_of_a_redis_is_refused(url: str, shown: str) -> None:
    with pytest.raises(UsageError) as caught:
        init(redis=url, hosts="local")
    assert str(caught.value).startswith(f"{shown} is no URL of a Redis or Valkey, redis://host:port/0 for one: ")
