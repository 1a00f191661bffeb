"""Values are of the types that annotations say, or are refused where they are put; they pass as they are."""

import asyncio
import collections
import dataclasses
import datetime as dt
import enum
import timeit
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import (
    Annotated,
    Any,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    NotRequired,
    Protocol,
    TypedDict,
    TypeVar,
    cast,
)
from uuid import UUID

import pydantic
import pytest
from test_semantics import Simulation, failure_of, mode, simulated

from actors import Context, Invocation, Policy, Service, UsageError, VirtualObject, handler, state
from actors.objects.annotations import WrongTypeError, check, exact, fits
from actors.objects.handlers import Handler
from actors.objects.objects import Declaration, declaration, object_handle
from actors.requests.current import caller
from actors.requests.request import EMPTY_OPTIONS, CallOptions, Request
from actors.session import init

__all__ = ["mode"]

T = TypeVar("T")
Sku = NewType("Sku", str)


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Point(NamedTuple):
    x: int


class Movie(TypedDict):
    year: int
    title: NotRequired[str]


class Order(pydantic.BaseModel):
    sku: str


class Page(pydantic.BaseModel, Generic[T]):
    item: T


@dataclasses.dataclass
class Item:
    name: str


class Special(Item):
    pass


class Speaks(Protocol):
    def speak(self) -> None: ...


class Strange(type):
    def __instancecheck__(cls, instance: object) -> bool:
        raise RuntimeError("asked")


class Odd(metaclass=Strange):
    pass


NOW = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)

FITS: list[tuple[Any, Any]] = [
    *((1, int), (True, int), (Level.LOW, int), (1, float), (1.5, float), (1, complex), ("a", str), (b"a", bytes)),
    *((None, None), (None, int | None), (1, int | None), ("a", int | str), (NOW, dt.datetime), (NOW, dt.date)),
    *((Decimal(1), Decimal), (UUID(int=1), UUID), (Colour.RED, Colour), (Point(1), Point), (Point(1), tuple[int])),
    *((Item("a"), Item), (Special("a"), Item), (Order(sku="a"), Order), (Page[int](item=1), Page[int])),
    *(([1], list[int]), ([], list[int]), ([True], list[int]), ([1, 2.0], list[float]), ((1, 2), tuple[int, ...])),
    *(((), tuple[()]), ((1, "a"), tuple[int, str]), ({1}, set[int]), ({"a": 1}, dict[str, int])),
    *(([1], Sequence[int]), ((1,), Sequence[int]), ("abc", Sequence[str]), ({"a": 1}, Mapping[str, int])),
    *((collections.OrderedDict(a=1), dict[str, int]), ("a", Literal["a", 1]), (1, Literal["a", 1]), ("a", Sku)),
    *((5, Annotated[int, pydantic.Field(gt=0)]), ({"year": 1}, Movie), ({"year": 1, "title": "a"}, Movie)),
    *((print, Callable[[int], int]), (int, type[int]), ({"a": [{"b": (1,)}]}, dict[str, list[dict[str, tuple[int]]]])),
    # what says nothing that can be looked at
    *((1, Any), (1, object), (1, T), (1, "Nothing"), (1, Speaks), (1, 17), (1, []), (1, Odd), (1, Annotated[Any, 1])),
]

REFUSED: list[tuple[Any, Any]] = [
    *(("3", int), (3.0, int), (None, int), ("1.5", float), (1, str), (1, bytes), ("a", bytes), (1, bool), (1, None)),
    *((1.5, int | None), (1.5, int | str), ("2026-01-01", dt.date), (1, Decimal), ("red", Colour), ((1,), Point)),
    *(({"name": "a"}, Item), ({"sku": "a"}, Order), (["1"], list[int]), ((1,), list[int]), ([1], tuple[int, ...])),
    *(((1,), tuple[int, int]), ((1, 2), tuple[int, str]), ({"1"}, set[int]), ({"a": "1"}, dict[str, int])),
    *(({1: 1}, dict[str, int]), (["a", 1], Sequence[str]), ("b", Literal["a", 1]), (True, Literal[1]), (1, Sku)),
    *((0, Annotated[int, pydantic.Field(gt=0)]), ({"title": "a"}, Movie), ({"year": "1"}, Movie), ([], Movie)),
    *((1, Callable[[], None]), ({"a": [{"b": ("1",)}]}, dict[str, list[dict[str, tuple[int]]]])),
]


def takes(value: Any, annotation: Any) -> bool:
    known = exact(annotation)
    try:
        check("it", value, annotation, fits(annotation))
    except WrongTypeError:
        assert known is not None
        assert type(value) not in known
        return False
    return True


@pytest.mark.parametrize(("value", "annotation"), FITS, ids=lambda each: repr(each)[:30])
def test_what_fits(value: Any, annotation: Any) -> None:
    """Issue 15.4."""
    assert takes(value, annotation)


@pytest.mark.parametrize(("value", "annotation"), REFUSED, ids=lambda each: repr(each)[:30])
def test_what_does_not(value: Any, annotation: Any) -> None:
    """Issue 15.4."""
    assert not takes(value, annotation)


def test_a_class_that_was_defined_again_is_the_same_by_name() -> None:
    older = Item("a")
    again = type("Item", (), {"__module__": Item.__module__})
    assert takes(older, again)


# ------------------------------------------------------------------------------------------------------------ arguments


class CheckedStock(VirtualObject):
    count: int = state(0)
    rate: float = state(1)
    names: list[str] | None = state(None)

    @handler
    async def add(self, ctx: Context, count: int, *more: int, note: str | None = None, **named: float) -> int:
        self.count += count + sum(more)
        return self.count

    @handler
    async def order(self, ctx: Context, order: Order, when: dt.date = NOW) -> str:
        return order.sku

    @handler
    async def set(self, ctx: Context, name: str, value: Any) -> Any:
        setattr(self, name, value)
        return getattr(self, name)

    @handler
    async def forward(self, ctx: Context, count: Any) -> int:
        return await CheckedStock["other"].add.remote(count)

    @handler
    async def exotic(self, ctx: Context, a: "Nowhere", b: Odd, c: "Any | Nowhere" = None) -> int:  # type: ignore[name-defined]  # noqa: F821
        return 1


class UncheckedStock(VirtualObject, policy=Policy(validate=False)):
    count: int = state(cast("Any", "a"))

    @handler
    async def add(self, ctx: Context, count: int) -> Any:
        self.count = count
        return count

    @handler(policy=Policy(validate=True))
    async def strict(self, ctx: Context, count: int) -> Any:
        return count


def binder(cls: type[VirtualObject], name: str) -> Callable[..., None]:
    found: Declaration = declaration(cls)
    return found.handlers[name].binder_of(cls)


@pytest.mark.parametrize(
    ("name", "args", "kwargs", "text"),
    [
        ("add", ("3",), {}, r"argument 'count' of CheckedStock.add: int is wanted, not str"),
        ("add", (3.0,), {}, "'count'.*not float"),
        ("add", (1, 2, "3"), {}, "'more'"),
        ("add", (1,), {"note": 5}, r"'note'.*str \| None is wanted, not int"),
        ("add", (1,), {"rate": "1"}, "'named'"),
        ("order", ({"sku": "a"},), {}, "'order'.*Order is wanted, not dict"),
        ("order", (Order(sku="a"), "2026"), {}, "'when'"),
    ],
)
def test_a_wrong_type_is_refused_in_the_caller(name: str, args: Any, kwargs: Any, text: str) -> None:
    """Issue 15.4: also by name, where the class is known; nothing is connected here, so nothing was sent."""
    for call in (lambda: getattr(CheckedStock["a"], name).remote(*args, **kwargs),):
        with pytest.raises(UsageError, match=text) as caught:
            call()
        assert isinstance(caught.value, TypeError)
    with pytest.raises(UsageError, match=text):
        CheckedStock["a"].handle.send(name, *args, **kwargs)
    with pytest.raises(UsageError, match=text):
        object_handle("CheckedStock", "a").remote(name, *args, **kwargs)


def test_what_fits_or_says_nothing_passes() -> None:
    binder(CheckedStock, "add")(1, 2, 3, note=None, x=1, y=1.5)
    binder(CheckedStock, "add")(True)
    binder(CheckedStock, "order")(Order(sku="a"))
    binder(CheckedStock, "exotic")(1, 2)
    binder(UncheckedStock, "add")("3")
    with pytest.raises(UsageError):
        binder(UncheckedStock, "strict")("3")
    with pytest.raises(TypeError, match=r"CheckedStock.add\(\) missing 1 required"):
        binder(CheckedStock, "add")()


def test_a_check_of_simple_types_costs_less_than_a_microsecond() -> None:
    found: Handler[Any, Any] = declaration(CheckedStock).handlers["add"]
    bare, checked = found._compiled_bare(), found._compiled()  # pyright: ignore[reportPrivateUsage]

    def cost(call: Callable[..., None]) -> float:
        return min(timeit.repeat(lambda: call(1, note="a"), number=1000, repeat=7)) / 1000

    assert cost(checked) - cost(bare) < 1e-6


def unknown(handler: str, *args: Any, options: CallOptions = EMPTY_OPTIONS) -> Any:
    """Start an invocation as a program that has not the class."""
    return caller().start(Request("CheckedStock", "a", handler, args, {}, False, options, None, None))


@simulated
async def test_what_comes_without_the_class_is_refused_on_the_host(world: Simulation) -> None:
    """Issue 15.4: a terminal 400, and the key goes on."""
    error = await failure_of(unknown("add", "3"))

    assert error.code == 400
    assert "argument 'count' of CheckedStock.add: int is wanted, not str" in str(error)
    assert await unknown("add", 3) == 3
    assert await unknown("order", Order(sku="a")) == "a"
    assert (await failure_of(unknown("order", {"sku": "a"}))).code == 400
    assert await unknown("exotic", 1, 2) == 1


@simulated
async def test_a_wrong_type_that_a_handler_passes_on_ends_it(world: Simulation) -> None:
    """Issue 15.4."""
    assert (await failure_of(CheckedStock["a"].forward.remote("3"))).code == 400
    assert await CheckedStock["a"].forward.remote(3) == 3


@simulated
async def test_a_field_takes_its_type_alone(world: Simulation) -> None:
    """Issue 15.4: a float in a field of type int is refused where it is written."""
    for name, value in (("count", 1.5), ("count", "1"), ("rate", "1"), ("names", [1]), ("count", None)):
        error = await failure_of(CheckedStock["a"].set.remote(name, value))
        assert error.code == 400
        assert f"state {name!r}" in str(error)
    for name, value in (("count", 2), ("rate", 2), ("rate", 2.5), ("names", ["a"]), ("names", None)):
        back = await CheckedStock["a"].set.remote(name, value)
        assert (back, type(back)) == (value, type(value))
    assert await cast("Any", UncheckedStock["a"]).add.remote("3") == "3"


class MakerOfValues(VirtualObject):
    kept: Any = state(None)

    @handler
    async def make(self, ctx: Context, kind: str) -> Any:
        return {"tuple": (1, (2,)), "model": Order(sku="a"), "item": Item("a"), "set": {1}, "point": Point(3)}[kind]

    @handler
    async def make_item(self, ctx: Context) -> Item:
        return Item("typed")

    @handler
    async def look(self, ctx: Context, ref: Any) -> Any:
        return await ref


@simulated
async def test_a_result_is_read_by_whoever_has_its_id(world: Simulation) -> None:
    """Issue 15.8: a ref as an argument; attach, peek and pickles read with no annotation either."""
    for kind, value in (("tuple", (1, (2,))), ("model", Order(sku="a")), ("item", Item("a")), ("point", Point(3))):
        started = MakerOfValues["a"].make.remote(kind)
        assert await MakerOfValues["b"].look.remote(started) == value
        assert type(await MakerOfValues["b"].look.remote(started)) is type(value)
    assert await MakerOfValues["b"].look.remote(MakerOfValues["a"].make_item.remote()) == Item("typed")


# ----------------------------------------------------------------------------------------------- what the class is told


def test_a_context_that_was_forgotten_is_told_when_the_class_is_made() -> None:
    """Issue 15.44."""
    with pytest.raises(UsageError, match=r"after self comes the context, not 'x': def f\(self, ctx: Context, x, ...\)"):

        class Forgot(VirtualObject):  # pyright: ignore[reportUnusedClass]
            @cast("Any", handler)
            async def f(self, x: int) -> int:
                return x


def test_a_default_that_is_none_of_its_type_is_told_when_the_class_is_made() -> None:
    """Issue 15.44."""
    for annotation, made in (
        (int, state("a")),
        (str, state(None)),
        (list[int], state(default_factory=dict)),
        (int, state(1.5)),
    ):
        with pytest.raises(UsageError, match="the default of the field"):
            type("Wrong", (VirtualObject,), {"__annotations__": {"n": annotation}, "n": made, "__module__": __name__})
    for annotation, made in (
        (float, state(1)),
        (int | None, state(None)),
        ("Nowhere", state(1)),
        (list[int], state(default_factory=list)),
    ):
        type("Right", (VirtualObject,), {"__annotations__": {"n": annotation}, "n": made, "__module__": __name__})


@pytest.mark.parametrize("default", [list, dict, Item, lambda: 1])
def test_what_makes_a_default_is_no_default(default: Any) -> None:
    """Issue 15.44."""
    with pytest.raises(UsageError, match=r"state\(default_factory="):
        state(default)


class CheckedDesk(Service):
    @handler
    async def answer(self, ctx: Context) -> int:
        return 1


def test_a_handler_that_is_not_there_is_told_with_the_nearest() -> None:
    """Issue 15.44."""
    with pytest.raises(AttributeError, match="'CheckedStock' object has no attribute 'ad': did you mean 'add'"):
        _ = cast("Any", CheckedStock["a"]).ad
    with pytest.raises(AttributeError, match=r"'CheckedStock' object has no attribute 'zzz': it has: add, count"):
        _ = cast("Any", CheckedStock["a"]).zzz
    with pytest.raises(AttributeError, match="'CheckedDesk' object has no attribute 'anser': did you mean 'answer'"):
        _ = cast("Any", CheckedDesk).anser
    assert not hasattr(CheckedStock["a"], "__len__")


def test_what_is_no_future_says_what_to_do() -> None:
    """Issue 15.44: asyncio's waits; what Ray is told is in its errors, by the names of value and class."""
    ref = Invocation[int]("abc-1")

    async def misuse() -> None:
        with pytest.raises(TypeError, match="use tasks explicitly"):
            await asyncio.wait(cast("Any", [ref]))

    asyncio.run(misuse())
    with pytest.raises(UsageError, match=r"make a task of it, asyncio.create_task\(ref\)") as caught:
        cast("Any", ref).done()
    assert isinstance(caught.value, AttributeError)
    assert repr(ref) == "<Invocation abc-1>"
    assert not hasattr(ref, "anything")
    as_ray = {"__name__": "ray._private.worker", "ref": ref}
    assert eval("repr(ref), repr(type(ref))", as_ray)[1].endswith(": give Ray ref.to_object_ref()")


def test_a_level_of_the_log_that_is_none_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 15.44."""
    monkeypatch.setenv("PERDURE_LOG", "LOUD")
    with pytest.raises(UsageError, match="PERDURE_LOG='LOUD' is no level of logging: say DEBUG, INFO"):
        init(hosts="local")
