"""Hostility: pests, whose values, errors, deeds, texts and requests are such that nobody else may notice them.

`HOSTILITIES` is the table: of each by its name, how it may end. `begun` asks a pest for one, from a driver or in a
handler, and `end_of` says how it ended: `EQUAL` (what was put in came back as it was), `REFUSED` (at the call), or the
code of a terminal error. None may hang: what is retried has few attempts, and what waits for ever is ended.

`python -m tests.chaos --hostile` draws a share of all operations from it, `python -m tests.programs` nodes and guests
of a share of its programs. An entry here is all that a further hostility needs.
"""

import asyncio
import math
import os
import socket
import subprocess
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from datetime import timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Final, Literal, NoReturn, cast

from actors import (
    Context,
    Invocation,
    Policy,
    Retry,
    RetryAfter,
    TerminalError,
    UsageError,
    VirtualObject,
    handler,
    state,
)
from actors.requests.current import caller
from actors.requests.request import EMPTY_OPTIONS, Request

EQUAL: Final = "equal"
REFUSED: Final = "refused"
LOST: Final = "500"
"""The code of what has used up its attempts."""
ENDED: Final = "409"
"""The code of what was cancelled, killed, or waits for itself."""
MISUSE: Final = "400"
TWICE: Final = Retry(initial=0.05, max_attempts=2)
HANGS_S: Final = 30.0
"""So long hangs what hangs: a driver that waits for its end is late in any case."""

# ------------------------------------------------------------------------------------------------------------- values


def refuses(*_: Any) -> NoReturn:
    raise SystemExit("refused")


class Spiteful:
    """Raises whatever is asked of it; it can be stored."""

    def __init__(self) -> None:
        self.item = "\udce9"

    __str__ = __repr__ = __eq__ = __hash__ = __bool__ = __len__ = __iter__ = __format__ = refuses  # type: ignore[assignment]


class Unreducible:
    """Raises where it is to be stored."""

    __reduce_ex__ = refuses  # type: ignore[assignment]


class Undying:
    """Raises when it is collected."""

    __del__ = refuses


@dataclass
class Strict:
    """May be made, and never again."""

    item: str
    due: float

    def __post_init__(self) -> None:
        if not self.item.startswith("made"):
            raise ValueError("it was not made here")
        self.item = self.item.removeprefix("made ")


class Colour(Enum):
    RED = (1, "\udce9")


def circle() -> list[Any]:
    found: list[Any] = [1]
    found.append(found)
    return found


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


VALUES: Final[dict[str, Callable[[], Any]]] = {
    "surrogates": lambda: "caf\udce9\udce8 \ud83d\ude00.txt\0",
    "floats": lambda: [math.nan, math.inf, -math.inf, -0.0, 5e-324],
    "integers": lambda: [2**70, -(10**5_000), True, 1],
    "keys": lambda: {(1, None): {None: b"\xff\xfe"}, 1: "int", "1": "str"},
    "circle": circle,
    "deep": lambda: nested(200),
    "decimals": lambda: (Decimal("NaN"), Decimal("1e-999"), 1j, timedelta.max, frozenset({"x"})),
    "spiteful": Spiteful,
    "strict": lambda: Strict("made once", -1.0),
    "enumerated": lambda: [Colour.RED, Colour],
    "error": lambda: ValueError("\udce9", [b"\xff"]),
    "large": lambda: "\udce9" * 10_000,
    "patterns": lambda: ["{}", "%s", "{0.__class__}", "<ns>:<shard>", "$(", "J[]", '"\\u0000'],
}
"""What is sent, kept, returned by a step and by a handler, and comes back as it was."""
UNFIT: Final[dict[str, Callable[[], Any]]] = {
    "generator": lambda: (number for number in range(1)),
    "lock": threading.Lock,
    "loop's lock": asyncio.Lock,
    "unreducible": Unreducible,
    "unreducible within": lambda: {"deep": [Unreducible()]},
    "too deep": lambda: nested(50_000),
    "too large": lambda: bytes(9_000_000),
}
"""What cannot be stored."""


def shown(value: Any, seen: frozenset[int] = frozenset()) -> Any:
    """Return what two values have in common if one is the other come back; it asks nothing of the values themselves."""
    kind = type(value).__qualname__
    if id(value) in seen:
        return "again"
    seen |= {id(value)}
    match value:
        case list() | tuple():
            return [kind, *(shown(each, seen) for each in cast("list[Any]", value))]
        case dict():
            return [
                kind,
                *((shown(key, seen), shown(each, seen)) for key, each in cast("dict[Any, Any]", value).items()),
            ]
        case BaseException():
            return [kind, shown(value.args, seen)]
        case Spiteful():
            return [kind, shown(vars(value), seen)]
        case int() if not isinstance(value, bool):
            return hex(value)
        case _ if is_dataclass(value):
            return [kind, *(shown(getattr(value, each.name), seen) for each in fields(value))]
        case _:
            return [kind, ascii(value)]


# ------------------------------------------------------------------------------------------------------------- errors


class Mute(TerminalError):
    """Never calls the `__init__` of its base."""

    def __init__(self, what: Any) -> None:  # pyright: ignore[reportMissingSuperCall]
        self.what = what


class OwnEnd(TerminalError):
    """Has an `__init__` of its own."""

    def __init__(self, item: str, left: int) -> None:
        super().__init__(f"{item}: {left} left", 402, {"item": item})


class SpitefulEnd(TerminalError):
    """A terminal error that raises whatever is asked of it."""

    __str__ = __repr__ = __reduce_ex__ = __setattr__ = refuses  # type: ignore[assignment]
    code = metadata = __cause__ = property(refuses)  # type: ignore[assignment]

    def __init__(self) -> None:  # pyright: ignore[reportMissingSuperCall]
        pass


class SpitefulError(Exception):
    """Raises whatever is asked of it."""

    __str__ = __repr__ = __reduce_ex__ = __eq__ = __hash__ = refuses  # type: ignore[assignment]
    __notes__ = __cause__ = __context__ = property(refuses)  # type: ignore[assignment]


class Never(RetryAfter):
    """Does not say when."""

    delay_s = property(refuses)  # type: ignore[assignment]

    def __init__(self) -> None:  # pyright: ignore[reportMissingSuperCall]
        pass


class OwnBase(BaseException):
    pass


def disguised() -> BaseException:
    """Return an error whose `__class__` raises: its class is made here, as none such travels to a host."""
    return type("Disguised", (SpitefulError,), {"__class__": property(refuses)})()


def grouped(leaf: Exception, depth: int, width: int = 1) -> Exception:
    for _ in range(depth):
        leaf = ExceptionGroup("group", [leaf] * width)
    return leaf


def chained(depth: int, first: BaseException) -> BaseException:
    found = first
    for number in range(depth):
        error = KeyError(number)
        if number % 2:
            error.__cause__ = found
        else:
            error.__context__ = found
        found = error
    return found


def round_about() -> BaseException:
    one, other = KeyError("a"), KeyError("b")
    one.__cause__, other.__cause__ = other, one
    return one


def odd(code: Any, metadata: Any = None) -> TerminalError:
    error = TerminalError("odd")
    error.code, error.metadata = code, metadata
    return error


TERMINAL: Final[dict[str, tuple[Callable[[], BaseException], str]]] = {
    "decimal": (lambda: odd(402, {"price": Decimal("1.5")}), "402"),
    "set": (lambda: odd(402, {"seats": {1}, (1, 2): b"\xff", "error": SpitefulError()}), "402"),
    "no mapping": (lambda: odd(402, 5), "402"),
    "surrogates": (lambda: TerminalError("caf\udce9", 409, {"\udce9": "\udce9"}), "409"),
    "code": (lambda: odd("odd"), LOST),
    "huge code": (lambda: odd(10**5_000), LOST),
    "mute": (lambda: Mute(threading.Lock()), LOST),
    "own": (lambda: OwnEnd("pear", 3), "402"),
    "spiteful end": (SpitefulEnd, LOST),
    "terminal group": (lambda: grouped(TerminalError("x", 402), 1_500), "402"),
    "wide group": (lambda: grouped(TerminalError("x", 402), 60, 2), "402"),
    "huge end": (lambda: TerminalError("x" * 1_000_000, 402, {"y" * 1_000_000: "z" * 1_000_000}), "402"),
    "local": (lambda: type("Local", (TerminalError,), {})("x", 402), "402"),
}
OTHERS: Final[dict[str, tuple[Callable[[], BaseException], str]]] = {
    "spiteful": (SpitefulError, LOST),
    "disguised": (disguised, LOST),
    "never": (Never, LOST),
    "chain": (lambda: chained(1_500, SpitefulError()), LOST),
    "circle": (round_about, LOST),
    "group": (lambda: grouped(SpitefulError(), 60, 2), LOST),
    "base": (OwnBase, LOST),
    "exit": (SystemExit, LOST),
    "interrupt": (KeyboardInterrupt, LOST),
    "closed": (GeneratorExit, LOST),
    "stop": (lambda: StopIteration(5), LOST),
    "stop async": (StopAsyncIteration, LOST),
    "cancelled": (asyncio.CancelledError, LOST),
    "huge": (lambda: ValueError("x" * 1_000_000), LOST),
    "nested": (lambda: ValueError(nested(50_000)), LOST),
}
ERRORS: Final = TERMINAL | OTHERS
"""Each with the code that it has at its caller."""


def throw(name: str) -> NoReturn:
    make, _ = ERRORS[name]
    error = make()
    raise error


async def throw_later(name: str) -> NoReturn:
    await asyncio.sleep(0)
    throw(name)


def throw_awaited(name: str) -> Awaitable[NoReturn]:
    return throw_later(name)


# -------------------------------------------------------------------------------------------------------------- deeds


async def leaves_tasks(pest: "Pest", ctx: Context) -> str:
    async def resists() -> None:
        for _ in range(3):
            try:
                await asyncio.sleep(HANGS_S)
            except GeneratorExit:
                continue

    tasks = [asyncio.create_task(resists()) for _ in range(3)]
    await ctx.sleep(0.05)
    return EQUAL if len(tasks) == 3 else ""


async def leaves_a_generator(pest: "Pest", ctx: Context) -> str:
    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            refuses()

    async for _ in numbers():
        await ctx.sleep(0.05)
        break
    return EQUAL


async def fails_when_closed(pest: "Pest", ctx: Context) -> NoReturn:
    try:
        await ctx.sleep(0.1)
    finally:
        refuses()


async def leaves_undying(pest: "Pest", ctx: Context) -> str:
    pest.lines.append("x")
    kept = [Undying()]
    kept.append(cast("Any", kept))
    await ctx.sleep(0.01)
    return EQUAL


async def recurses(pest: "Pest", ctx: Context) -> int:
    def deeper(number: int) -> int:
        return deeper(number + 1) + 1

    return deeper(0)


async def asks_itself(pest: "Pest", ctx: Context) -> Any:
    return await Pest[ctx.key].say.remote("x")


async def undeclared(pest: "Pest", ctx: Context) -> None:
    pest.other = 5  # type: ignore[attr-defined]


async def step_in_step(pest: "Pest", ctx: Context) -> Any:
    return await ctx.run("outer", lambda: ctx.run("inner", int), retry=TWICE)


async def cancels_its_step(pest: "Pest", ctx: Context) -> Any:
    async def itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(HANGS_S)

    return await ctx.run("itself", itself, retry=TWICE)


async def hangs_in_a_step(pest: "Pest", ctx: Context) -> Any:
    return await ctx.run("hangs", threading.Event().wait, 2.0, timeout=0.2, retry=TWICE)


async def hangs_in_async_step(pest: "Pest", ctx: Context) -> Any:
    return await ctx.run("hangs", asyncio.sleep, HANGS_S, timeout=0.2, retry=TWICE)


async def compensates_in_vain(pest: "Pest", ctx: Context) -> NoReturn:
    ctx.defer("undo", throw, "set")
    raise TerminalError("x", 402)


async def swallows(pest: "Pest", ctx: Context) -> str:
    for _ in range(3):
        try:
            await ctx.sleep(HANGS_S)
        except Exception:
            return EQUAL
    return "nobody has cancelled it"


async def waits_for_ever(pest: "Pest", ctx: Context) -> NoReturn:
    while True:
        try:
            await ctx.sleep(HANGS_S)
        except Exception:
            pass


def doing(what: Callable[[], Any]) -> Callable[["Pest", Context], Awaitable[Any]]:
    async def deed(pest: "Pest", ctx: Context) -> Any:
        return what()

    return deed


Deed = Callable[["Pest", Context], Awaitable[Any]]
DEEDS: Final[dict[str, tuple[Deed, str]]] = {
    "leaves tasks": (leaves_tasks, EQUAL),
    "leaves a generator": (leaves_a_generator, LOST),
    "fails when closed": (fails_when_closed, LOST),
    "leaves undying": (leaves_undying, EQUAL),
    "recurses": (recurses, LOST),
    "asks itself": (asks_itself, ENDED),
    "undeclared": (undeclared, MISUSE),
    "opens": (doing(lambda: os.listdir("/")), MISUSE),
    "connects": (doing(lambda: socket.create_connection(("127.0.0.1", 9))), MISUSE),
    "begins a thread": (doing(lambda: threading.Thread(target=int).start()), MISUSE),
    "begins a process": (doing(lambda: subprocess.run(["true"], check=True)), MISUSE),
    "step in step": (step_in_step, MISUSE),
    "cancels its step": (cancels_its_step, LOST),
    "hangs in an async step": (hangs_in_async_step, LOST),
    "compensates in vain": (compensates_in_vain, "402"),
}
HANGING: Final[dict[str, tuple[Deed, str]]] = {"hangs in a step": (hangs_in_a_step, LOST)}
"""What holds a thread: not for hosts that run steps in the thread of their loop."""
CANCELLED: Final[dict[str, tuple[Deed, str]]] = {"swallows": (swallows, EQUAL)}
KILLED: Final[dict[str, tuple[Deed, str]]] = {"waits for ever": (waits_for_ever, ENDED)}
"""What ends by nothing else than this of its caller's."""
ALL_DEEDS: Final = DEEDS | HANGING | CANCELLED | KILLED

# -------------------------------------------------------------------------------------------------------------- texts

TEXTS: Final = ("caf\udce9.txt", "\ud83d\ude00", "a\0b\r\n", "/../{}:<>/%s", "日本 ", "-" * 500, "None", "__class__")
"""Keys, names, headers and idempotency keys that work as all others do."""


class Pest(VirtualObject, policy=Policy(retry=TWICE)):
    """Does what nobody else may notice."""

    lines: list[str] = state(default_factory=list)
    held: Any = state(None)

    @handler
    async def keep(self, ctx: Context, value: Any) -> list[Any]:
        """Let a value go every way that there is."""
        self.held = value
        of_step = await ctx.run("step", lambda: value, retry=TWICE)
        await ctx.sleep(0.01)
        of_call = await Mirror[ctx.key].say.remote(self.held)
        return [value, self.held, of_step, of_call]

    @handler
    async def act(self, ctx: Context, name: str) -> Any:
        return await ALL_DEEDS[name][0](self, ctx)

    @handler
    async def fail(self, ctx: Context, where: str, name: str) -> None:
        if where == "handler":
            throw(name)
        fn: Any = {"step": throw, "async step": throw_later, "awaited step": throw_awaited}[where]
        await ctx.run("step", fn, name, retry=TWICE)

    @handler
    async def give(self, ctx: Context, where: str, name: str) -> Any:
        """Let what cannot be stored come from here."""
        value = UNFIT[name]()
        match where:
            case "state":
                self.held = value
            case "step":
                await ctx.run("step", UNFIT[name], retry=TWICE)
            case "call":
                await Mirror[ctx.key].say.remote(value)
            case _:
                return value
        return None

    @handler
    async def say(self, ctx: Context, text: str) -> list[Any]:
        """Use a text wherever there is one."""
        ctx.set(text, text)
        of_step = await ctx.run(text, lambda: text)
        await ctx.sleep(0.01, name=text)
        of_call = (
            await Mirror[ctx.key].say.options(headers={text: text}, idempotency_key=f"{ctx.id}{text}").remote(text)
        )
        return [ctx.get(text), of_step, of_call, text]

    @handler
    async def count(self, ctx: Context, number: int) -> int:
        return number


class Mirror(VirtualObject, policy=Policy(retry=TWICE)):
    """Returns what it is told."""

    @handler
    async def say(self, ctx: Context, value: Any) -> Any:
        return value


# -------------------------------------------------------------------------------------------------------- the table

REQUESTS: Final[dict[str, tuple[str, tuple[Any, ...], dict[str, Any], frozenset[str]]]] = {
    "few": ("count", (), {}, frozenset({MISUSE})),
    "many": ("count", (1, 2, 3), {}, frozenset({MISUSE})),
    "unknown": ("count", (1,), {"\udce9": 1}, frozenset({MISUSE})),
    "type": ("count", ("3",), {}, frozenset({MISUSE, EQUAL})),
    "nothing": ("c\udce9", (), {}, frozenset({"404"})),
    "private": ("__init__", (), {}, frozenset({"404"})),
    "helper": ("held", (), {}, frozenset({"404"})),
}
"""Requests of a program that does not know the class: handler, arguments and how each ends."""
WHERE_ERRORS: Final = ("handler", "step", "async step", "awaited step")
WHERE_UNFIT: Final = ("state", "step", "call", "result")


def _table() -> dict[str, frozenset[str]]:
    found = {f"value.{name}": frozenset({EQUAL}) for name in VALUES}
    found |= {f"text.{number}": frozenset({EQUAL}) for number in range(len(TEXTS))}
    found |= {f"deed.{name}": frozenset({end}) for name, (_, end) in ALL_DEEDS.items()}
    found |= {f"deed.{name}": frozenset({end, ENDED}) for name, (_, end) in CANCELLED.items()}  # before it began
    found |= {f"error.{where}.{name}": frozenset({end}) for where in WHERE_ERRORS for name, (_, end) in ERRORS.items()}
    found |= {f"unfit.argument.{name}": frozenset({REFUSED}) for name in UNFIT}
    found |= {f"unfit.{where}.{name}": frozenset({MISUSE}) for where in WHERE_UNFIT for name in UNFIT}
    return found | {f"request.{name}": ends for name, (_, _, _, ends) in REQUESTS.items()}


HOSTILITIES: Final[Mapping[str, frozenset[str]]] = _table()
"""By name, how each may end."""
KINDS: Final = ("value", "text", "deed", "error", "unfit", "request")


def of_kind(kind: str) -> list[str]:
    """Return the names of all that are of this kind."""
    return [name for name in HOSTILITIES if name.startswith(f"{kind}.")]


def hostile_key(number: int, text: int) -> str:
    """Return a key of a pest: each with a text of its own in it."""
    return f"{number} {TEXTS[text % len(TEXTS)]}"


def asked(name: str) -> tuple[str, tuple[Any, ...], dict[str, Any]]:
    """Return the handler of a pest that is to be asked for a hostility, and the arguments."""
    kind, _, rest = name.partition(".")
    where, _, what = rest.partition(".")
    match kind, where:
        case "value", _:
            return "keep", (VALUES[rest](),), {}
        case "text", _:
            return "say", (TEXTS[int(rest)],), {}
        case "error", _:
            return "fail", (where, what), {}
        case "unfit", "argument":
            return "keep", (UNFIT[what](),), {}
        case "unfit", _:
            return "give", (where, what), {}
        case "request", _:
            return REQUESTS[rest][:3]
        case _:
            return "act", (rest,), {}


def begun(name: str, key: str) -> Invocation[Any]:
    """Ask a pest for a hostility.

    Raises:
        UsageError, TypeError: it is refused at the call.
    """
    handler_name, args, kwargs = asked(name)
    if name.startswith("request."):
        return caller().start(Request("Pest", key, handler_name, args, kwargs, False, EMPTY_OPTIONS, None, None))
    call = getattr(Pest[key], handler_name)
    if name.startswith("text."):
        call = call.options(headers={args[0]: args[0]})
    return call.remote(*args)


def hurries(name: str) -> Literal["", "cancel", "kill"]:
    """Return what ends it, if it does not end by itself."""
    deed = name.partition(".")[2]
    return "cancel" if deed in CANCELLED else "kill" if deed in KILLED else ""


def hurried(name: str, invocation: Invocation[Any]) -> None:
    """End what does not end by itself."""
    if how := hurries(name):
        getattr(invocation, how)()


def is_as_put_in(name: str, found: Any) -> bool:
    """Whether what came back is what was put in."""
    kind, _, rest = name.partition(".")
    if kind == "value":
        due: Any = [shown(VALUES[rest]())] * 4
        return [shown(each) for each in found] == due
    if kind == "text":
        return found == [TEXTS[int(rest)]] * 4
    return found in (EQUAL, "3")


async def end_of(name: str, awaited: Awaitable[Any]) -> str:
    """Return how it ended, when it has.

    Raises:
        UnavailableError, NotFoundError: nobody knows.
    """
    try:
        found = await awaited
    except TerminalError as error:
        return code_of(error)
    return EQUAL if is_as_put_in(name, found) else f"another value: {ascii(shown(found))[:500]}"


async def wrong_with(name: str, key: str) -> str:
    """Ask a pest for a hostility, and return what is wrong with its end; nothing, if it is one of its ends."""
    try:
        invocation = begun(name, key)
    except (UsageError, TypeError):
        end = REFUSED
    else:
        hurried(name, invocation)
        end = await end_of(name, invocation)
    return "" if end in HOSTILITIES[name] else f"{name} of {key!a} came to {end}"


def code_of(error: TerminalError) -> str:
    """Return the code of an error, of which nothing can be expected."""
    try:
        return f"{error.code}"
    except BaseException:
        return LOST
