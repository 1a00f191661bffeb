"""Users' classes, calls, invocations, policies and the context, without anything that executes them."""

# pyright: reportUnusedClass=false, reportCallIssue=false, reportUnknownLambdaType=false
# Much here is wrong on purpose: classes that are refused, calls that raise.

from __future__ import annotations

import asyncio
import functools
import logging
import pickle
import random
import re
import subprocess
import sys
import uuid
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import cloudpickle
import pytest

import actors
from actors import (
    Awakeable,
    CallTimeout,
    Cancelled,
    Context,
    Invocation,
    NondeterminismError,
    Policy,
    Promise,
    Retry,
    Service,
    TerminalError,
    UsageError,
    VirtualObject,
    Workflow,
    handler,
    shared,
    state,
)
from actors.blocks.awakeables import MadeAwakeable
from actors.blocks.sagas import Sagas
from actors.loop.coroutines import HandlerWait
from actors.loop.loop import DeterministicLoop
from actors.objects.objects import ByName, Handler, declaration, find_type, instance, object_handle
from actors.policy import ResolvedPolicy, resolve, seconds
from actors.requests import current as places
from actors.requests.invocation import Accepted
from actors.requests.request import EMPTY_OPTIONS, Request
from actors.values.values import LIVE
from journal.codec import MISSING
from journal.records import Message
from journal.store import Bring

ROOT = Path(__file__).resolve().parent.parent
T = TypeVar("T")


# --- Fakes


class Driver:
    """A client whose requests end when the test says so."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.brought: list[tuple[Bring, str]] = []
        self.ended: dict[str, Any] = {}
        self.timeouts: list[float | None] = []

    def start(self, request: Request, /) -> Invocation[Any]:
        self.requests.append(request)
        return Invocation(f"inv{len(self.requests)}-0", self)

    def wait(self, invocation: Invocation[Any], /) -> Generator[Any, Any, Any]:
        yield from asyncio.sleep(0).__await__()
        return self.ended[invocation.id]

    def wait_accepted(self, invocation: Invocation[Any], /) -> Generator[Any, Any, None]:
        yield from asyncio.sleep(0).__await__()

    def ready(self, invocations: Sequence[Invocation[Any]], count: int, timeout_s: float | None, /) -> set[str]:
        self.timeouts.append(timeout_s)
        return {one.id for one in invocations if one.id in self.ended}

    def result(self, invocation: Invocation[Any], /) -> Any:
        return self.ended[invocation.id]

    def accepted(self, invocation: Invocation[Any], timeout_s: float | None, /) -> bool:
        return invocation.id in self.ended

    def status(self, invocation: Invocation[Any], /) -> str:
        return "asleep"

    def object_ref(self, invocation: Invocation[Any], /) -> Any:
        return ("ref", invocation.id)

    def bring(self, event: Bring, entry: str, /) -> Accepted:
        self.brought.append((event, entry))
        return Invocation(entry, self).accepted()


class Fields:
    """An object's fields, of which none is declared."""

    def __init__(self) -> None:
        self.set: dict[str, Any] = {}

    def read(self, name: str, /) -> Any:
        return self.set.get(name, MISSING)

    def write(self, name: str, value: Any, /) -> None:
        self.set[name] = value

    def clear(self, name: str, /) -> None:
        self.set.pop(name, None)

    def names(self) -> list[str]:
        return sorted(self.set)


class Steps:
    """Steps that are done at once."""

    def __init__(self, loop: DeterministicLoop, commands: list[tuple[Any, ...]]) -> None:
        self._loop, self._commands = loop, commands

    def run(self, *command: Any) -> HandlerWait[Any]:
        self._commands.append(command)
        future = self._loop.entry_future()
        future.set_result("outcome")
        return future


class Execution(Driver):
    """Runs one coroutine on a deterministic loop and records its commands."""

    key, id, attempt = "k", "inv-7-0", 2
    headers: Mapping[str, str] = {"who": "test"}

    def __init__(self) -> None:
        super().__init__()
        self.loop = DeterministicLoop(self, 0.0)
        self.is_replaying = False
        self.commands: list[tuple[Any, ...]] = []
        self.state = Fields()
        self.steps = Steps(self.loop, self.commands)
        self.sagas = Sagas(
            Message(self.id, "", "", b""), self.steps.run, lambda: False, lambda _: False, lambda _: False
        )
        self._random = random.Random(7)

    def run(self, coroutine: Any) -> Any:
        task = self.loop.start(coroutine)
        self.loop.drain()
        return task.result()

    def _done(self, value: Any) -> HandlerWait[Any]:
        future = self.loop.entry_future()
        future.set_result(value)
        return future

    def sleep(self, duration_s: float, name: str, /) -> HandlerWait[None]:
        self.commands.append((duration_s, name))
        return self._done(None)

    def awakeable(self, annotation: Any, /) -> Awakeable[Any]:
        self.commands.append(("awakeable", annotation))
        return MadeAwakeable("awakeable.inv-7-0.0", annotation, self.loop, LIVE)

    def changed(self, names: tuple[str, ...], /) -> Awakeable[None]:
        self.commands.append(("changed", *names))
        return MadeAwakeable("awakeable.inv-7-0.1", None, self.loop, LIVE)

    def signal(self, name: str, annotation: Any, /) -> HandlerWait[Any]:
        self.commands.append(("signal", name, annotation))
        return self._done("signalled")

    def promise(self, name: str, annotation: Any, /) -> Promise[Any]:
        raise UsageError(f"{name} is no promise of a workflow")

    def now_ms(self) -> int:
        return 1_700_000_000_123

    def random(self) -> random.Random:
        return self._random

    def set_timer(self, when: float, handle: asyncio.TimerHandle, /) -> None: ...
    def clear_timer(self, handle: asyncio.TimerHandle, /) -> None: ...
    def foreign_call(self) -> None: ...
    def entry_cancelled(self, future: asyncio.Future[Any], /) -> None: ...
    def warn(self, message: str, exception: BaseException | None, /) -> None: ...


class Values:
    """The fields of one object."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def get(self, field: Any, /) -> Any:
        return self.values.setdefault(field.name, field.made())

    def set(self, field: Any, value: Any, /) -> None:
        self.values[field.name] = value


@pytest.fixture
def driver() -> Iterator[Driver]:
    client = Driver()
    places.set_driver(client)
    yield client
    places.set_driver(None)


def in_a_step(fn: Callable[[], T]) -> T:
    token = places.in_step.set("inv-7-0:3")
    try:
        return fn()
    finally:
        places.in_step.reset(token)


# --- Users' classes


@dataclass
class Item:
    """Named in annotations only."""

    name: str


class Cart(VirtualObject, policy=Policy(idle_timeout=1)):
    items: list[Item] = state(default_factory=list)
    status: str = state("OPEN")

    @handler
    async def add(self, ctx: Context, item: str, *, quantity: int = 1) -> int:
        self.status = item
        return quantity + await self._two(ctx)

    @handler(policy=Policy(retention="1h"))
    def fill(self, ctx: Context, /, *items: str, **more: int) -> Item:
        return Item(items[0])

    @shared
    async def view(self, ctx: Context, full: bool, /, page: int = 1) -> list[Item]:
        return self.items

    async def _two(self, ctx: Context) -> int:
        return 2


class Vip(Cart):
    @handler
    async def add(self, ctx: Context, item: str, *, quantity: int = 1, gift: bool = False) -> int:
        return 10 * await super().add(ctx, item, quantity=quantity)


class Mailer(Service, name="mail.v1"):
    @handler
    async def post(self, ctx: Context, to: str) -> str:
        return await self.sign(ctx, to)

    @shared
    async def sign(self, ctx: Context, to: str) -> str:
        return to


class Audited:
    @handler
    async def audit(self, ctx: Context, what: str) -> None: ...


class Account(Audited, VirtualObject):
    @handler
    async def pay(self, ctx: Context) -> None:
        await self.audit(ctx, "pay")


class Box(VirtualObject, Generic[T]):
    value: list[T] = state(default_factory=list)

    @handler
    async def put(self, ctx: Context, v: T) -> list[T]:
        self.value.append(v)
        return self.value


class IntBox(Box[int]):
    pass


# --- Declarations


def test_a_declaration_holds_what_the_bases_declare() -> None:
    declared = declaration(Vip)

    assert declared.name == "Vip"
    assert list(declared.handlers) == ["add", "fill", "view"]
    assert list(declared.fields) == ["items", "status"]
    assert declared.handlers["add"].fn.__qualname__ == "Vip.add"
    assert declared.options.policy is None, "options are not inherited"
    assert not declared.is_service
    assert declaration(Mailer).is_service


def test_a_handler_knows_its_kind() -> None:
    handlers = declaration(Cart).handlers

    assert {name: (one.exclusive, one.is_async) for name, one in handlers.items()} == {
        "add": (True, True),
        "fill": (True, False),
        "view": (False, True),
    }
    assert handlers["fill"].policy == Policy(retention="1h")
    assert declaration(Cart).options.policy == Policy(idle_timeout=1)


def test_annotations_are_resolved() -> None:
    declared = declaration(Cart)

    assert declared.handlers["view"].returns == list[Item]
    assert declared.handlers["fill"].hints == {"ctx": Context, "items": str, "more": int, "return": Item}
    assert declared.fields["items"].annotation == list[Item]


def test_an_annotation_that_does_not_resolve_is_missing() -> None:
    @dataclass
    class Local:
        n: int

    class Uses(VirtualObject):
        one: Local = state(Local(1).n)  # pyright: ignore[reportAssignmentType]

        @handler
        async def get(self, ctx: Context, n: int) -> Local: ...  # pyright: ignore[reportReturnType]

    assert declaration(Uses).fields["one"].annotation is MISSING
    assert declaration(Uses).handlers["get"].returns is MISSING
    assert declaration(Uses).handlers["get"].hints["n"] is int


def test_a_default_is_shared_and_a_factory_makes_anew() -> None:
    fields = declaration(Cart).fields

    assert fields["status"].made() == "OPEN"
    assert fields["items"].made() is not fields["items"].made()


def with_init() -> None:
    class Wrong(VirtualObject):
        def __init__(self) -> None: ...


def with_a_mixins_init() -> None:
    class Mixin:
        def __init__(self) -> None: ...

    class Wrong(Mixin, VirtualObject): ...


def with_a_mutable_default() -> None:
    state([])


def with_two_defaults() -> None:
    cast("Any", state)(1, default_factory=int)


def with_no_default() -> None:
    cast("Any", state)()


def with_a_field_that_is_a_handler_in_a_base() -> None:
    class Wrong(Cart):
        add: int = state(0)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]


def with_a_hidden_handler() -> None:
    class Wrong(Cart):
        async def add(self, ctx: Context, item: str) -> int:  # type: ignore[override]  # pyright: ignore[reportIncompatibleVariableOverride]
            return 1


def with_a_hidden_field() -> None:
    class Wrong(Cart):
        status = "OPEN"


def with_handle() -> None:
    type("Wrong", (VirtualObject,), {"handle": handler(_answer)})


def with_the_bases_names() -> None:
    type("Wrong", (VirtualObject,), {"_fields": 1})


def with_a_private_handler() -> None:
    class Wrong(VirtualObject):
        @handler
        async def _add(self, ctx: Context) -> None: ...


def with_a_private_field() -> None:
    class Wrong(VirtualObject):
        _n: int = state(0)


def with_a_second_name() -> None:
    class Wrong(Cart):
        other = Cart.add


def with_a_url_word() -> None:
    class Wrong(VirtualObject, name="invocations"): ...


def with_a_slash() -> None:
    class Wrong(VirtualObject, name="a/b"): ...


def with_an_empty_name() -> None:
    class Wrong(VirtualObject, name=""): ...


def with_a_foreign_name() -> None:
    class Käse(VirtualObject):
        @handler
        async def eat(self, ctx: Context) -> None: ...


def with_state_in_a_service() -> None:
    class Wrong(Service):
        n: int = state(0)


def with_no_run() -> None:
    class Wrong(Workflow):
        @shared
        async def look(self, ctx: Context) -> None: ...


def with_a_shared_run() -> None:
    class Wrong(Workflow):
        @shared
        async def run(self, ctx: Context) -> None: ...


def with_a_second_exclusive_handler() -> None:
    class Wrong(Workflow):
        @handler
        async def run(self, ctx: Context) -> None: ...

        @handler
        async def approve(self, ctx: Context) -> None: ...


def with_a_mixins_exclusive_handler() -> None:
    class Wrong(Audited, Workflow):
        async def run(self, ctx: Context) -> None: ...


def with_no_run_at_all() -> None:
    class Runless(Workflow): ...

    declaration(Runless)


def with_a_generator() -> None:
    class Wrong(Service):
        @handler
        async def pages(self, ctx: Context) -> Any:
            yield 1


def without_ctx() -> None:
    cast("Any", handler)(lambda self: 1)


def with_a_class_method() -> None:
    cast("Any", handler)(classmethod(_answer))


async def _answer(self: object, ctx: Context) -> int:
    return 42


@pytest.mark.parametrize(
    ("define", "message"),
    [
        (with_init, "Wrong.__init__ would never run"),
        (with_a_mixins_init, "Mixin.__init__ would never run"),
        (with_a_mutable_default, "use state(default_factory=...)"),
        (with_two_defaults, "takes a default or a default_factory"),
        (with_no_default, "takes a default or a default_factory"),
        (with_a_field_that_is_a_handler_in_a_base, "Wrong.add is declared twice"),
        (with_a_hidden_handler, "Wrong.add hides a handler or field: decorate it too"),
        (with_a_hidden_field, "Wrong.status hides a handler or field"),
        (with_handle, "Wrong.handle: the name is taken"),
        (with_the_bases_names, "Wrong._fields: the name is taken"),
        (with_a_private_handler, "Wrong._add: handlers and fields do not begin with '_'"),
        (with_a_private_field, "Wrong._n: handlers and fields do not begin with '_'"),
        (with_a_second_name, "Wrong.other is also called 'add'"),
        (with_a_url_word, "'invocations' cannot name a type: URLs begin with it"),
        (with_a_slash, "'a/b' cannot name a type"),
        (with_an_empty_name, "'' cannot name a type"),
        (with_a_foreign_name, "'Käse' cannot name a type: say name="),
        (with_state_in_a_service, "Wrong.n: a service has no state"),
        (with_no_run, "Wrong is a Workflow: it needs `@handler async def run"),
        (with_no_run_at_all, "Runless is a Workflow: it needs `@handler async def run"),
        (with_a_shared_run, "Wrong.run is the workflow itself"),
        (with_a_second_exclusive_handler, "Wrong.approve: run is the only @handler of a Workflow"),
        (with_a_mixins_exclusive_handler, "run is the only @handler of a Workflow; make this one @shared"),
        (with_a_generator, "pages yields"),
        (without_ctx, "a handler takes self and ctx first"),
        (with_a_class_method, "a handler is a function of the class body"),
    ],
)
def test_a_wrong_class_is_refused_when_it_is_made(define: Callable[[], None], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        define()


def test_a_refused_class_leaves_its_base_as_it_was() -> None:
    with pytest.raises(UsageError):
        with_a_second_name()

    assert declaration(Cart).handlers["add"].name == "add"


def test_a_refused_class_is_not_found() -> None:
    with pytest.raises(UsageError) as caught:
        with_a_hidden_handler()

    assert find_type("Wrong") is None, caught


def test_every_other_name_is_free() -> None:
    names = ("get", "key", "name", "send", "remote", "options", "mro", "register", "state", "instance", "objects")
    body = {name: handler(_answer) for name in names}

    declared = declaration(type("Free", (VirtualObject,), body))

    assert list(declared.handlers) == list(names)


# --- Types by name


def defined_in(module: str, *, qualname: str = "Shop", type_name: str = "Shop") -> type[VirtualObject]:
    body = {"__module__": module, "__qualname__": qualname, "answer": handler(_answer)}
    return cast("type[VirtualObject]", type("Shop", (VirtualObject,), body, name=type_name))  # type: ignore[call-overload]


def test_a_class_is_found_that_was_never_used() -> None:
    assert find_type("mail.v1") is Mailer
    assert find_type("Mailer") is None


def test_a_class_defined_again_replaces_the_first() -> None:
    first, second = (defined_in("again", type_name="Again") for _ in range(2))

    assert first is not second
    assert find_type("Again") is second


def test_two_places_for_one_name_are_refused_and_named() -> None:
    first = defined_in("shop_a", type_name="TwoPlaces")

    with pytest.raises(UsageError, match=r"shop_a\.Shop and shop_b\.Shop are one type by name"):
        defined_in("shop_b", type_name="TwoPlaces")
    assert find_type("TwoPlaces") is first


def test_what_functions_define_may_share_a_name() -> None:
    kept = [defined_in("shop", qualname=f"test_{n}.<locals>.Shop", type_name="Local") for n in range(2)]

    assert find_type("Local") is kept[1]


# --- Addresses


def test_an_address_is_equal_to_itself_only() -> None:
    assert Cart["a"] == Cart["a"]
    assert Cart["a"] != Cart["b"]
    assert Cart["a"] != Vip["a"]
    assert {Cart["a"], Cart["a"], Cart["b"]} == {Cart["b"], Cart["a"]}
    assert repr(Cart["a"]) == "Cart['a']"
    assert repr(Cart["a"].add) == "Cart['a'].add"
    assert repr(Mailer.post) == "Mailer.post"


def test_a_key_is_a_str_that_is_not_empty() -> None:
    class Colour(StrEnum):
        RED = "red"

    assert type(Cart[Colour.RED]._key) is str
    assert Cart[Colour.RED] == Cart["red"]
    with pytest.raises(TypeError, match="the key of a Cart is a str, not 12"):
        cast("Any", Cart)[12]
    with pytest.raises(UsageError, match="not empty"):
        Cart[""]


def test_an_address_has_no_state() -> None:
    with pytest.raises(UsageError, match=r"Cart\['a'\].status is state: it can be read only inside a handler"):
        _ = Cart["a"].status
    with pytest.raises(UsageError, match=r"Cart\['a'\].status is state: it can be written only inside a handler"):
        Cart["a"].status = "x"


def test_an_address_is_not_called_plainly() -> None:
    with pytest.raises(UsageError, match=r"Cart\['a'\].add is at an address: use .remote\(...\)"):
        cast("Any", Cart["a"]).add(None, "x")


def test_a_class_has_no_instances_of_its_own() -> None:
    with pytest.raises(UsageError, match=r"use Cart\[key\]"):
        Cart()
    with pytest.raises(UsageError, match=r"use Mailer\.<handler>"):
        Mailer()


def test_an_abstract_class_has_no_addresses() -> None:
    class Abstract(VirtualObject, ABC):
        @handler
        @abstractmethod
        async def put(self, ctx: Context, v: int) -> int: ...

    with pytest.raises(TypeError, match="abstract"):
        Abstract["a"]


# --- In a handler


def test_self_reads_and_writes_its_fields() -> None:
    values = Values()
    cart = cast("Cart", instance(Cart, "a", values))

    assert cart.status == "OPEN"
    cart.status = "PAID"
    cart.items.append(Item("x"))

    assert values.values == {"status": "PAID", "items": [Item("x")]}


@pytest.mark.parametrize("name", ["undeclared", "add", "handle"])
def test_self_takes_no_other_attribute(name: str) -> None:
    cart = instance(Cart, "a", Values())

    with pytest.raises(UsageError, match=rf"Cart.{name} is not declared: declare it, `{name}: T = state\(...\)`"):
        setattr(cart, name, 1)


def test_a_handler_is_called_in_place_as_a_method() -> None:
    vip = cast("Vip", instance(Vip, "a", Values()))

    assert Execution().run(vip.add(cast("Any", None), "x", quantity=3)) == 50
    assert vip.status == "x"


def test_self_sends_to_its_own_key(driver: Driver) -> None:
    cart = cast("Cart", instance(Cart, "a", Values()))

    cart.add.send("x")

    assert (driver.requests[0].type_name, driver.requests[0].key) == ("Cart", "a")


# --- Calls


def test_a_call_is_a_request(driver: Driver) -> None:
    Cart["a"].add.remote("x", quantity=2)

    (request,) = driver.requests
    assert (request.type_name, request.key, request.handler) == ("Cart", "a", "add")
    assert (request.args, request.kwargs, request.one_way) == (("x",), {"quantity": 2}, False)
    assert request.options is EMPTY_OPTIONS
    assert request.declared is declaration(Cart).handlers["add"]
    assert request.owner is Cart


def test_a_send_is_one_way(driver: Driver) -> None:
    Mailer.post.send("x")

    (request,) = driver.requests
    assert (request.type_name, request.key, request.one_way) == ("mail.v1", None, True)


def test_a_call_of_an_inherited_handler_goes_to_the_class_that_was_addressed(driver: Driver) -> None:
    Account["a"].audit.remote("x")
    IntBox["a"].put.remote(1)

    assert [request.type_name for request in driver.requests] == ["Account", "IntBox"]


def test_options_add_up(driver: Driver) -> None:
    call = Cart["a"].add.options(delay="10m", headers={"a": "b"})

    call.options(idempotency_key="k").send("x")
    call.send("y")

    first, second = (request.options for request in driver.requests)
    assert (first.delay, first.idempotency_key, first.headers) == (timedelta(minutes=10), "k", {"a": "b"})
    assert second.idempotency_key is None


@pytest.mark.parametrize("options", [{"delay": "soon"}, {"idempotency_key": ""}, {"headers": {"a": 1}}])
def test_wrong_options_are_refused(options: Any) -> None:
    with pytest.raises(UsageError):
        Cart["a"].add.options(**options)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Cart["a"].add.remote(), "Cart.add() missing 1 required positional argument: 'item'"),
        (lambda: Cart["a"].add.send("x", 2), "Cart.add() takes 1 positional argument but 2 were given"),
        (lambda: Cart["a"].add.remote("x", n=1), "Cart.add() got an unexpected keyword argument 'n'"),
        (lambda: Cart["a"].view.remote(full=True), "Cart.view() got some positional-only arguments passed"),
        (lambda: Cart["a"].handle.remote("add"), "Cart.add() missing 1 required positional argument: 'item'"),
        (lambda: Account["a"].audit.remote(), "Audited.audit() missing 1 required positional argument: 'what'"),
        (lambda: Mailer.post.remote(), "Mailer.post() missing 1 required positional argument: 'to'"),
    ],
)
def test_a_wrong_call_raises_in_the_caller(driver: Driver, call: Any, message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        call()
    assert driver.requests == []


def test_any_signature_can_be_called(driver: Driver) -> None:
    Cart["a"].fill.remote("x", "y", z=1)
    Cart["a"].view.remote(True, page=2)
    Vip["a"].add.remote("x", gift=True)

    assert [request.args for request in driver.requests] == [("x", "y"), (True,), ("x",)]


def test_a_handler_is_called_by_name(driver: Driver) -> None:
    Cart["a"].handle.remote("add", "x")
    Mailer.handle.send("post", "x")
    object_handle("Cart", "b").options(delay=1).remote("add", "x")

    assert [(one.type_name, one.key, one.handler) for one in driver.requests] == [
        ("Cart", "a", "add"),
        ("mail.v1", None, "post"),
        ("Cart", "b", "add"),
    ]
    assert driver.requests[2].owner is Cart
    assert driver.requests[2].options.delay == timedelta(seconds=1)


def test_an_unknown_handler_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(UsageError, match=r"Cart has no handler 'ad': did you mean 'add'\? It has: add, fill, view"):
        object_handle("Cart", "a").remote("ad", "x")
    with pytest.raises(UsageError, match=r"Cart has no handler 'zzz'\. It has: add"):
        Cart["a"].handle.remote("zzz")


def test_a_class_that_is_not_known_here_is_not_checked(driver: Driver) -> None:
    object_handle("Elsewhere", "a").remote("anything", 1)

    assert (driver.requests[0].declared, driver.requests[0].owner) == (None, None)


def test_an_address_by_name_names_an_object() -> None:
    with pytest.raises(UsageError, match="Mailer is a service"):
        object_handle("mail.v1", "a").remote("post", "x")
    with pytest.raises(UsageError, match="cannot name a type"):
        object_handle("a/b", "a")
    with pytest.raises(UsageError, match="not empty"):
        object_handle("Cart", "")


# --- Where code runs


def test_without_a_driver_a_call_says_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"call actors.init\(\) first"):
        Cart["a"].add.remote("x")


def test_a_step_makes_no_calls(driver: Driver) -> None:
    with pytest.raises(UsageError, match="a step may repeat"):
        in_a_step(lambda: Cart["a"].add.remote("x"))
    assert driver.requests == []


def test_a_call_in_a_handler_goes_to_its_execution(driver: Driver) -> None:
    execution = Execution()

    async def body() -> None:
        Cart["a"].add.remote("x")

    execution.run(body())

    assert (len(execution.requests), len(driver.requests)) == (1, 0)


# --- Pickles


def elsewhere(fn: Callable[[], Any]) -> Any:
    """Return what the function returns in a second process, which gets this module's code by value."""
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    try:
        payload = cloudpickle.dumps(fn)
    finally:
        cloudpickle.unregister_pickle_by_value(module)
    program = "import sys, cloudpickle as c; sys.stdout.buffer.write(c.dumps(c.load(sys.stdin.buffer)()))"
    done = subprocess.run(
        [sys.executable, "-c", program], input=payload, capture_output=True, check=False, cwd=ROOT, timeout=60
    )
    assert done.returncode == 0, done.stderr.decode()
    return cloudpickle.loads(done.stdout)


def test_a_class_travels_by_value_into_another_process() -> None:
    def there() -> Any:
        declared = declaration(Vip)
        vip = cast("Any", instance(Vip, "a", Values()))
        coroutine = vip.add(None, "x", quantity=3)
        with pytest.raises(StopIteration) as stopped:
            coroutine.send(None)
        return [
            list(declared.handlers),
            list(declared.fields),
            stopped.value.value,
            declaration(Cart).options,
            [one.name for one in declared.handlers.values()],
            find_type("mail.v1") is Mailer,
            Mailer.post.remote is not None,
            "test_objects" in sys.modules,
        ]

    names, fields, result, options, own_names, *facts = elsewhere(there)

    assert names == own_names == ["add", "fill", "view"]
    assert fields == ["items", "status"]
    assert result == 50
    assert options == declaration(Cart).options
    assert facts == [True, True, False]


def test_annotations_travel_resolved() -> None:
    def there() -> Any:
        declared = declaration(Cart)
        returns = declared.handlers["fill"].returns
        return returns.__name__, returns("x").name, str(declared.fields["items"].annotation), Item("x") == returns("x")

    name, value, annotation, is_the_same_class = elsewhere(there)

    assert (name, value, is_the_same_class) == ("Item", "x", True)
    assert annotation.startswith("list[")


def test_a_call_is_checked_in_another_process() -> None:
    def there() -> str:
        with pytest.raises(TypeError) as caught:
            cast("Any", Cart["a"]).add.remote()
        return str(caught.value)

    assert elsewhere(there) == "Cart.add() missing 1 required positional argument: 'item'"


def test_a_workflow_whose_run_is_undecorated_travels() -> None:
    class Trip(Workflow, name="trip-v1"):
        async def run(self, ctx: Context, to: str) -> str:
            return to

        @shared
        async def where(self, ctx: Context) -> str:
            return ""

    class Voyage(Trip, name="voyage-v1"):
        async def run(self, ctx: Context, to: str, by: str = "ship") -> str:
            return f"{to} by {by}"

    def there() -> Any:
        declared = declaration(Voyage)
        run = declared.handlers["run"]
        with pytest.raises(StopIteration) as stopped:
            cast("Any", instance(Voyage, "a", Values())).run(None, "Rome").send(None)
        return [*declared.handlers, run.exclusive, run.name, run.returns, declared.is_workflow, stopped.value.value]

    assert there() == elsewhere(there) == ["run", "where", True, "run", str, True, "Rome by ship"]


def test_a_local_class_with_a_cell_travels() -> None:
    bonus = 5

    class Local(Vip, name="local-v1"):
        @handler
        async def score(self, ctx: Context) -> int:
            return bonus

    def there() -> Any:
        with pytest.raises(StopIteration) as stopped:
            cast("Any", instance(Local, "a", Values())).score(None).send(None)
        return stopped.value.value, declaration(Local).name, find_type("local-v1") is Local

    assert elsewhere(there) == (5, "local-v1", True)


def test_an_address_pickles_without_its_class() -> None:
    payload = pickle.dumps(Cart["a"])

    assert b"test_objects" not in payload
    assert pickle.loads(payload) == Cart["a"]


def test_an_address_of_a_class_that_is_not_here_is_one_by_name() -> None:
    there = type("Gone", (VirtualObject,), {"__qualname__": "f.<locals>.Gone", "answer": handler(_answer)})
    payload = pickle.dumps(there["a"])  # type: ignore[index]
    cast("Any", there)._options = cast("Any", Cart)._options  # nobody is called Gone any more

    assert repr(pickle.loads(payload)) == "Gone['a']"
    assert isinstance(pickle.loads(payload), ByName)
    del there


def test_a_handler_pickles_without_its_caches() -> None:
    declared = declaration(Cart).handlers["add"]
    declared.check(("x",), {})

    copy = cast("Handler[Any, Any]", cloudpickle.loads(cloudpickle.dumps(declared)))

    assert (copy.name, copy.exclusive, copy._binder) == ("add", True, None)


# --- Invocations


def test_invocations_of_one_id_are_equal() -> None:
    one, other = Invocation[int]("a-1"), Invocation[int]("a-1", cast("Any", object()))

    assert one == other
    assert hash(one) == hash(other) == 3349160656, "the same in every process"
    assert one != Invocation[int]("a-2")
    assert pickle.loads(pickle.dumps(other)) == one
    assert repr(one) == "<Invocation a-1>"


def test_an_invocation_is_awaited_and_asked(driver: Driver) -> None:
    ref = Cart["a"].add.remote("x")
    driver.ended[ref.id] = 3

    async def main() -> tuple[int, int]:
        await ref.accepted()
        return await ref, await ref

    assert asyncio.run(main()) == (3, 3)
    assert ref.result() == ref.result(timeout="1s") == 3
    assert ref.accepted().result() is None
    assert ref.status() == "asleep"
    assert cast("Any", ref.to_object_ref()) == ("ref", ref.id)


def test_an_unpickled_invocation_asks_the_client_of_its_process(driver: Driver) -> None:
    ref = pickle.loads(pickle.dumps(Invocation[int]("a-1")))
    driver.ended["a-1"] = 3

    assert ref.result() == 3


def test_a_time_out_says_what_is_open(driver: Driver) -> None:
    refs = [Cart["a"].add.remote("x") for _ in range(3)]
    driver.ended[refs[0].id] = 1

    with pytest.raises(TimeoutError, match=r"inv2-0 has not ended within 0\.1"):
        refs[1].result(timeout=0.1)
    with pytest.raises(TimeoutError, match="inv2-0, inv3-0 have not ended within 1s"):
        actors.get(refs, timeout="1s")
    with pytest.raises(TimeoutError, match="was not acknowledged within 2"):
        refs[1].accepted().result(timeout=2)
    assert driver.timeouts == [0.1, 1.0]


def test_get_takes_one_or_many(driver: Driver) -> None:
    refs = [Cart["a"].add.remote("x") for _ in range(2)]
    driver.ended = {refs[0].id: 1, refs[1].id: 2}

    assert actors.get(refs[0]) == 1
    assert actors.get(refs, timeout=1) == [1, 2]
    assert actors.get(list[Invocation[int]]()) == []
    with pytest.raises(UsageError, match="an Invocation is wanted"):
        actors.get(cast("Any", [1]))


def test_wait_splits_and_keeps_the_order(driver: Driver) -> None:
    refs = [Cart["a"].add.remote("x") for _ in range(4)]
    driver.ended = {refs[3].id: 1, refs[1].id: 2}

    assert actors.wait(refs) == ([refs[1]], [refs[0], refs[2], refs[3]])
    assert actors.wait(refs, num_returns=3, timeout=0) == ([refs[1], refs[3]], [refs[0], refs[2]])
    with pytest.raises(UsageError, match="num_returns=5"):
        actors.wait(refs, num_returns=5)
    with pytest.raises(UsageError, match="once"):
        actors.wait([refs[0], refs[0]])


def test_what_blocks_is_refused_under_a_running_loop(driver: Driver) -> None:
    ref = Cart["a"].add.remote("x")

    async def main() -> None:
        for block in (ref.result, ref.accepted().result, lambda: actors.get(ref), lambda: actors.wait([ref])):
            with pytest.raises(UsageError, match="await the invocation instead"):
                block()

    asyncio.run(main())
    Execution().run(main())


def test_what_is_not_replayed_is_refused_in_a_handler(driver: Driver) -> None:
    ref = Cart["a"].add.remote("x")

    async def body() -> None:
        for ask in (ref.status, ref.to_object_ref):
            with pytest.raises(UsageError, match="has no place in a handler"):
                ask()

    Execution().run(body())


def test_a_wait_in_a_handler_is_the_executions_wherever_the_invocation_came_from(driver: Driver) -> None:
    ref = Cart["a"].add.remote("x")
    execution = Execution()
    execution.ended[ref.id] = "from the execution"

    async def body() -> Any:
        return await ref

    assert execution.run(body()) == "from the execution"


# --- The context


def in_handler(execution: Execution, fn: Callable[[Context], Awaitable[Any]]) -> Any:
    async def body() -> Any:
        return await fn(Context(execution))

    return execution.run(body())


def charge(card: str) -> str:
    return card


def test_a_step_takes_its_options_and_leaves_the_rest_to_the_function() -> None:
    execution = Execution()

    async def body(ctx: Context) -> None:
        assert await ctx.run("a", charge, card="c") == "outcome"
        await ctx.run("b", charge, "c", retry=Retry(max_attempts=2), timeout="1m")

    in_handler(execution, body)

    assert execution.commands == [
        ("a", charge, (), {"card": "c"}, None, None),
        ("b", charge, ("c",), {}, Retry(max_attempts=2), 60.0),
    ]


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (("", charge), "a step begins with its name"),
        ((charge, "c"), "a step begins with its name"),
        (("a", "c"), "'c' cannot be called"),
        (("a", Cart["a"].add), "is a call, which is durable by itself: await its .remote(...)"),
    ],
)
def test_what_cannot_be_a_step_is_refused(step: Any, message: str) -> None:
    async def body(ctx: Context) -> None:
        with pytest.raises(UsageError, match=re.escape(message)):
            ctx.run(*step)
        with pytest.raises(UsageError, match=r"functools\.partial"):
            cast("Any", ctx).run("a", charge, "c", retry=3)

    in_handler(Execution(), body)


def test_time_chance_and_sleep_are_the_executions() -> None:
    async def body(ctx: Context) -> tuple[Any, ...]:
        await ctx.sleep("1.5s", name="nap")
        return ctx.now(), ctx.uuid4(), ctx.random.random()

    execution = Execution()
    now, one_id, number = in_handler(execution, body)

    assert now == datetime(2023, 11, 14, 22, 13, 20, 123000, tzinfo=UTC)
    assert isinstance(one_id, uuid.UUID)
    assert one_id.version == 4
    assert execution.commands == [(1.5, "nap")]
    assert in_handler(Execution(), body) == (now, one_id, number)


def test_fields_are_read_and_written_by_name() -> None:
    async def body(ctx: Context) -> None:
        ctx.set("a", None)
        ctx.set("b", 2)
        assert (ctx.get("a", 1), ctx.get("b"), ctx.get("c"), ctx.get("c", 3)) == (None, 2, None, 3)
        ctx.clear("a")
        assert ctx.keys() == ["b"]
        ctx.clear_all()
        assert ctx.keys() == []

    in_handler(Execution(), body)


COMMANDS: dict[str, Callable[[Context], object]] = {
    "run": lambda ctx: ctx.run("a", charge, "c"),
    "sleep": lambda ctx: ctx.sleep(1),
    "now": lambda ctx: ctx.now(),
    "random": lambda ctx: ctx.random,
    "uuid4": lambda ctx: ctx.uuid4(),
    "get": lambda ctx: ctx.get("a"),
    "set": lambda ctx: ctx.set("a", 1),
    "clear": lambda ctx: ctx.clear("a"),
    "clear_all": lambda ctx: ctx.clear_all(),
    "keys": lambda ctx: ctx.keys(),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_refused_outside_its_handler(command: str) -> None:
    mine = Context(Execution())

    async def in_another_handler() -> None:
        with pytest.raises(UsageError, match="the context of inv-7-0 belongs to its handler"):
            COMMANDS[command](mine)

    Execution().run(in_another_handler())
    with pytest.raises(UsageError, match="the context of inv-7-0 belongs to its handler"):
        COMMANDS[command](mine)
    with pytest.raises(UsageError, match="a step may repeat"):
        in_a_step(lambda: COMMANDS[command](mine))


def test_a_step_may_ask_who_it_is() -> None:
    ctx = Context(Execution())

    known = in_a_step(lambda: (ctx.id, ctx.key, ctx.attempt, ctx.headers, ctx.step_id))

    assert known == ("inv-7-0", "k", 2, {"who": "test"}, "inv-7-0:3")
    with pytest.raises(UsageError, match="inside a step only"):
        _ = ctx.step_id


def test_the_log_is_silent_while_replaying(caplog: pytest.LogCaptureFixture) -> None:
    execution = Execution()
    ctx = Context(execution)
    caplog.set_level(logging.INFO, "actors.handler")

    execution.is_replaying = True
    ctx.log.error("again")
    execution.is_replaying = False
    ctx.log.info("new", extra={"card": "c"})

    (record,) = caplog.records
    assert (record.message, record.__dict__["invocation"], record.__dict__["card"]) == ("new", "inv-7-0", "c")


# --- Policies


@pytest.mark.parametrize(
    ("duration", "expected"),
    [
        ("10ms", 0.01),
        ("1.5s", 1.5),
        ("15m", 900.0),
        ("2h", 7_200.0),
        ("1 d", 86_400.0),
        (0, 0.0),
        (2.5, 2.5),
        (timedelta(minutes=1), 60.0),
    ],
)
def test_a_duration_is_seconds(duration: Any, expected: float) -> None:
    assert seconds(duration) == pytest.approx(expected)


@pytest.mark.parametrize(
    "duration", ["", "10", "s", "1e3s", "-1s", "1w", "١s", -1, float("nan"), float("inf"), True, None, "9999999d"]
)
def test_what_is_no_duration_is_refused(duration: Any) -> None:
    with pytest.raises(UsageError, match="duration"):
        seconds(duration)


def test_waits_between_attempts_grow_to_a_limit() -> None:
    retry = Retry(initial="100ms", factor=3, max_interval=2)

    assert [retry.delay(attempt) for attempt in (1, 2, 3, 4, 10_000)] == pytest.approx([0.1, 0.3, 0.9, 2, 2])


@pytest.mark.parametrize("wrong", [{"factor": 0.5}, {"max_attempts": 0}, {"initial": "soon"}, {"max_duration": -1}])
def test_a_retry_that_makes_no_sense_is_refused(wrong: Any) -> None:
    with pytest.raises(UsageError):
        Retry(**wrong)


def test_a_policy_is_settled_field_by_field() -> None:
    settled = resolve(Policy(retention="1h"), None, Policy(retention=1, idle_timeout=0), Policy(retry=Retry(factor=3)))

    assert settled == ResolvedPolicy(
        retry=Retry(factor=3), idle_timeout=timedelta(0), retention=timedelta(hours=1), keeps=True
    )
    assert resolve() == ResolvedPolicy(retry=Retry(), idle_timeout=timedelta(seconds=60), retention=timedelta(days=1))


# --- Errors


@pytest.mark.parametrize(
    "error",
    [
        TerminalError("no", 409, {"a": "b"}),
        Cancelled(),
        CallTimeout("late"),
        NondeterminismError("inv-1", 3, "run 'a'", "run 'b'"),
    ],
)
def test_an_error_pickles_with_what_it_knows(error: Exception) -> None:
    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is type(error)
    assert (str(copy), vars(copy)) == (str(error), vars(error))


def test_an_error_is_also_what_python_calls_it() -> None:
    assert isinstance(CallTimeout("late"), TimeoutError)
    assert isinstance(UsageError("no"), ValueError)
    assert (Cancelled().code, CallTimeout().code, TerminalError("x").code) == (409, 408, 500)


def test_a_partial_is_a_step() -> None:
    execution = Execution()
    step = functools.partial(charge, card="c")

    async def body(ctx: Context) -> None:
        await ctx.run("a", step, retry=Retry())

    in_handler(execution, body)

    assert execution.commands == [("a", step, (), {}, Retry(), None)]
