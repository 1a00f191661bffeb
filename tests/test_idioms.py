"""Idioms at the API that people type: decorated handlers, handles by name, arguments that are named as options are."""

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from test_semantics import Simulation, failure_of, mode, simulated

from actors import Context, Invocation, Service, TerminalError, UsageError, VirtualObject, handler, shared, state
from actors.objects.objects import object_handle
from actors.requests import current as places
from actors.requests.request import Request
from actors.requests.schedule import Schedule, Spec

__all__ = ["mode"]


# ------------------------------------------------------------------------------------------------- decorated handlers


def awaiting(fn: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """Make a coroutine function of whatever it wraps."""

    @functools.wraps(fn)
    async def wrapper(self: Any, ctx: Context, /, *args: Any, **kwargs: Any) -> Any:
        await asyncio.sleep(0)
        found = fn(self, ctx, *args, **kwargs)
        return [await found if asyncio.iscoroutine(found) else found]

    return wrapper


def passing(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Call what it wraps, and use state and context before."""

    @functools.wraps(fn)
    def wrapper(self: Any, ctx: Context, /, *args: Any, **kwargs: Any) -> Any:
        assert self.n >= 0
        assert ctx.now()
        return fn(self, ctx, *args, **kwargs)

    return wrapper


def unwrapped(fn: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    async def wrapper(self: Any, ctx: Context, *args: Any, **kwargs: Any) -> Any:
        return fn(self, ctx, *args, **kwargs)

    return wrapper


def hidden(fn: Callable[..., Any]) -> Callable[..., Any]:
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return wrapper


def exact(fn: Callable[..., Any]) -> Callable[..., Any]:
    async def wrapper(self: Any, ctx: Context) -> Any:
        return fn(self, ctx)

    return wrapper


class Decorated(VirtualObject):
    n: int = state(0)

    @handler
    @awaiting
    def plain(self, ctx: Context, by: int) -> int:
        self.n += by
        return self.n

    @handler
    @awaiting
    async def waits(self, ctx: Context, by: int) -> int:
        await ctx.sleep(1)
        self.n += by
        return self.n

    @handler
    @passing
    async def passed(self, ctx: Context, by: int) -> int:
        await ctx.sleep(1)
        self.n += by
        return self.n

    @handler
    @passing
    def passed_plainly(self, ctx: Context, by: int) -> int:
        self.n += by
        return self.n

    @handler
    @awaiting
    @passing
    def both(self, ctx: Context, by: int) -> int:
        self.n += by
        return self.n

    @handler
    @passing
    @awaiting
    def both_turned(self, ctx: Context, by: int) -> int:
        self.n += by
        return self.n

    @handler
    @awaiting
    def calls(self, ctx: Context, fn: str) -> Any:
        """Could not wait itself: its wrapper can."""
        return Decorated["other"].plain.remote(2).id and fn

    @handler
    def named(self, ctx: Context, fn: str, *, handler: str) -> str:
        """Takes arguments of names that stand on the way to it."""
        return fn + handler


async def decorated(world: Simulation) -> None:
    """Issue 15.16: an async `functools.wraps` wrapper around a `def`, and all the other orders."""
    address: Any = Decorated["a"]
    assert await address.plain.remote(1) == [1]
    assert await address.waits.remote(1) == [2]
    assert await address.passed.remote(1) == 3
    assert await address.passed_plainly.remote(1) == 4
    assert await address.both.remote(1) == [5]
    assert await address.both_turned.remote(1) == [6]
    assert await address.calls.remote("x") == ["x"]


test_a_decorated_handler_is_what_its_decorator_makes_of_it = simulated(decorated)


async def _method(self: Any, ctx: Context) -> None:
    """Do nothing."""


class Called:
    async def __call__(self, ctx: Context) -> None:
        """Do nothing."""


@pytest.mark.parametrize(
    ("fn", "says"),
    [
        (classmethod(_method), "classmethod"),
        (staticmethod(_method), "staticmethod"),
        (property(cast("Any", _method)), "property"),
        (functools.cached_property(cast("Any", _method)), "property"),
        (functools.partial(_method), "partial"),
        (functools.partialmethod(_method), "partial"),
        (functools.lru_cache(_method), "functools.wraps"),
        (Called(), "Called"),
        (Called, "class"),
        (print, "def"),
        (3, "def"),
        (hidden(_method), "functools.wraps"),
        (handler(_method), "already"),
        (shared(_method), "already"),
    ],
)
def test_what_is_no_method_is_refused_with_what_to_do(fn: Any, says: str) -> None:
    """Issue 15.16: classmethods, staticmethods, partials and all others say what to do."""
    for make in (handler, shared):
        with pytest.raises(UsageError, match=says) as caught:
            make(fn)
        assert "def " in str(caught.value) or "wraps" in str(caught.value) or "@handler" in str(caught.value)


def test_a_decorator_without_wraps_is_refused_where_the_class_is_made() -> None:
    """Issue 15.16: it would run, and hide the handler's arguments and their annotations."""
    for decorator in (unwrapped, exact):
        with pytest.raises(UsageError, match=r"Made\.add.*functools\.wraps"):

            class Made(VirtualObject):  # pyright: ignore[reportUnusedClass]
                @handler
                @decorator
                def add(self, ctx: Context) -> int:
                    return 1


@pytest.mark.parametrize(
    "outer",
    [awaiting, hidden, unwrapped, classmethod, staticmethod, property, functools.partialmethod],
)
def test_a_decorator_over_a_handler_is_refused(outer: Any) -> None:
    """Issue 15.16: what it makes is no handler any more, in silence."""
    with pytest.raises(UsageError, match=r"Made\.add.*@handler.*first"):

        class Made(VirtualObject):  # pyright: ignore[reportUnusedClass]
            @outer
            @handler
            async def add(self, ctx: Context) -> int:
                return 1


def test_a_factory_of_handlers_is_no_decorator() -> None:
    def counting(by: int) -> Any:
        async def count(self: Any, ctx: Context, *args: int, **kwargs: int) -> int:
            return by

        return count

    class Factory(VirtualObject):
        one = handler(counting(1))
        two = handler(counting(2))

    assert Factory["a"].two.remote


# ---------------------------------------------------------------------------------------------------- handles by name


class Recorder:
    """A driver that keeps what it is asked for."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def start(self, request: Request, /) -> Invocation[Any]:
        self.requests.append(request)
        return Invocation("x-0")

    def bring(self, event: Any, entry: str, /) -> Any:
        raise AssertionError(event)


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    made = Recorder()
    places.set_driver(made)
    yield made
    places.set_driver(None)


class Hamper(VirtualObject):
    @handler
    async def add(self, ctx: Context, item: str) -> int:
        return 1


class TellerByName(Service):
    @handler
    async def tell(self, ctx: Context, what: str) -> str:
        return what


def test_a_handle_by_name_has_a_handle_as_a_typed_one(recorder: Recorder) -> None:
    """Issue 15.18: `actors.object("Cart", "a").handle.remote("add", "pear")`, and with options in any order."""
    by_name = object_handle("Hamper", "a")
    by_name.handle.remote("add", "pear")
    by_name.handle.options(delay=1).handle.send("add", "pear")
    by_name.options(delay=1).handle.send("add", "pear")
    Hamper["a"].handle.handle.remote("add", "pear")
    object_handle("Elsewhere", "k").handle.remote("any")
    asked = [(each.type_name, each.key, each.handler, each.args) for each in recorder.requests]
    assert asked == [("Hamper", "a", "add", ("pear",))] * 4 + [("Elsewhere", "k", "any", ())]


def test_an_object_without_a_key_is_a_service(recorder: Recorder) -> None:
    """Issue 15.18: `actors.object("Service")`, known here or not; a key that is None by mistake is none of it."""
    object_handle("TellerByName").remote("tell", "x")
    object_handle("TellerByName").handle.send("tell", what="x")
    object_handle("Unknown").remote("tell", "x")
    assert [each.key for each in recorder.requests] == [None, None, None]
    with pytest.raises(TypeError):
        object_handle("TellerByName").remote("tell")
    with pytest.raises(UsageError, match=r"Hamper.*key.*object\('Hamper', key\)"):
        object_handle("Hamper").remote("add", "x")
    with pytest.raises(UsageError, match="no key"):
        object_handle("TellerByName", "a").remote("tell", "x")
    for key in (None, "", 3):
        with pytest.raises(UsageError, match="key"):
            object_handle("Hamper", cast("str", key))


# ------------------------------------------------------------------------------ arguments that are named as options are


class Bulletin(VirtualObject):
    @handler
    async def build(self, ctx: Context, name: str = "", *, every: int = 0, arguments: str = "") -> str:
        return f"{name} {every} {arguments}"

    @handler
    async def plain(self, ctx: Context, title: str) -> str:
        return title

    @handler
    async def titled(self, ctx: Context, name: str = "") -> str:
        return name

    @handler
    async def any(self, ctx: Context, **kwargs: str) -> str:
        return f"{kwargs}"


def _declared(recorder: Recorder, schedule: Schedule) -> tuple[str, Any]:
    from actors.values.values import decode

    spec = next(arg for arg in recorder.requests.pop().args if isinstance(arg, Spec))
    recorder.requests.clear()
    return schedule.name, tuple(decode(spec.arguments))


def test_a_schedule_takes_no_argument_of_the_handler_for_an_option(recorder: Recorder) -> None:
    """Issue 15.19: what could be either is refused; each can be said."""
    build = Bulletin["a"].build
    for by in (build.schedule, functools.partial(Bulletin["a"].handle.schedule, "build")):
        schedule = cast("Any", by)
        for options in ({"name": "x", "cron": "0 9 * * *"}, {"every": 5}, {"arguments": "x", "cron": "0 9 * * *"}):
            with pytest.raises(UsageError, match=r"build\(\).*(name|every|arguments).*arguments="):
                schedule(**options)
        assert _declared(recorder, schedule("x", name="mine", cron="0 9 * * *")) == ("mine", (["x"], {}))
        made = schedule(arguments={"name": "x", "every": 3}, every="5s", name="mine")
        assert _declared(recorder, made) == ("mine", ([], {"name": "x", "every": 3}))
        made = schedule("x", arguments={"arguments": "y", "every": 1}, every="5s")
        assert _declared(recorder, made) == ("Bulletin/a.build", (["x"], {"arguments": "y", "every": 1}))
        with pytest.raises(UsageError, match="by name"):
            Bulletin["a"].plain.schedule("x", every="5s", arguments=cast("Any", [1]))
    plain = Bulletin["a"].plain
    assert _declared(recorder, plain.schedule(title="x", cron="0 9 * * *", name="n")) == ("n", ([], {"title": "x"}))
    with pytest.raises(UsageError, match="twice"):
        plain.schedule(title="x", arguments={"title": "y"}, cron="0 9 * * *")
    titled = Bulletin["a"].titled
    with pytest.raises(TypeError):
        titled.schedule(arguments={"nome": "x"}, cron="0 9 * * *")
    with pytest.raises(UsageError, match="name"):
        titled.schedule(cron="0 9 * * *", name="n")
    assert _declared(recorder, titled.schedule(arguments={}, cron="0 9 * * *", name="n")) == ("n", ([], {}))
    anything = Bulletin["a"].any
    assert _declared(recorder, anything.schedule(cron="0 9 * * *", name="n", x="y")) == ("n", ([], {"x": "y"}))


def test_names_on_the_way_to_a_handler_are_free(recorder: Recorder) -> None:
    """Issue 15.19: `fn`, `self`, `handler` and all others reach it."""

    class Greedy(VirtualObject):
        @handler
        async def take(me, c: Context, *, self: int, handler: int, fn: int, name: int) -> int:  # noqa: N805
            return self + handler + fn + name

    take = cast("Any", Greedy["a"].take)
    names = {"self": 1, "handler": 2, "fn": 3, "name": 4}
    take.remote(**names)
    take.send(**names)
    object_handle("Greedy", "a").remote("take", **names)
    assert [each.kwargs for each in recorder.requests] == [names] * 3


async def free_names(world: Simulation) -> None:
    """Issue 15.19: on the host too, also of a `def`."""
    assert await Decorated["a"].named.remote(fn="f", handler="h") == "fh"
    assert await object_handle("Decorated", "a").remote("named", fn="f", handler="h") == "fh"


test_names_on_the_way_to_a_handler_are_free_on_the_host = simulated(free_names)


class Stepping(VirtualObject):
    @handler
    async def ask(self, ctx: Context, how: str) -> Any:
        match how:
            case "timeout":
                return await ctx.run("get", fetch, "x", timeout=5)
            case "retry":
                return await ctx.run("get", cast("Any", again), "x", retry=3)
            case "wrapped":
                return await ctx.run("get", cast("Any", hiding(fetch)), "x", timeout=5)
            case "bound":
                return await ctx.run("get", functools.partial(fetch, timeout=7), "x", timeout=5)
            case "given":
                return await ctx.run("get", fetch, "x", 8, timeout=5)
            case "ray":
                return await ctx.run("get", cast("Any", SimpleNamespace(remote=fetch, bind=fetch)), "x", timeout=5)
            case _:
                return await ctx.run("get", lambda: fetch("x"), timeout=5)


def hiding(fn: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return wrapper


def fetch(url: str, timeout: float = 0) -> str:
    return f"{url} {timeout:g}"


def again(url: str, retry: int) -> str:
    return f"{url} {retry}"


async def options_of_steps(world: Simulation) -> None:
    """Issue 15.19: a step whose function takes `timeout` itself gets it, or a word, and never loses it in silence."""
    for how in ("timeout", "retry", "wrapped", "ray"):
        refused: TerminalError = await failure_of(Stepping["a"].ask.remote(how))
        assert refused.code == 400
        assert "functools.partial" in str(refused)
    assert await Stepping["a"].ask.remote("bound") == "x 7"
    assert await Stepping["a"].ask.remote("given") == "x 8"
    assert await Stepping["a"].ask.remote("lambda") == "x 0"


test_a_step_takes_no_argument_of_its_function_for_an_option = simulated(options_of_steps)


# ------------------------------------------------------------------------------------------------------------ addresses


def test_an_address_in_a_variable_has_a_form_that_all_checkers_take() -> None:
    """Issue 15.38: mypy takes `cart = Cart["alice"]` for a type alias; `at` is no name that users lose."""

    class Seat(VirtualObject):
        @handler
        async def at(self, ctx: Context, row: int) -> int:
            return row

    assert Hamper.at("a") == Hamper["a"]
    assert Seat["a"].at.remote
    with pytest.raises(UsageError, match="empty"):
        Hamper.at("")
    assert not hasattr(TellerByName, "at")
