"""Values of users' classes come back as they were put in, whatever their classes do, become, or say of today."""

import asyncio
import dataclasses
import datetime as dt
import enum
import io
import logging
import socket
import tempfile
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from typing import Any, Generic, Literal, NamedTuple, Self, TypeVar, cast

import pydantic
import pytest

from actors import UsageError
from actors.errors import DecodeError
from actors.values import values

T = TypeVar("T")

TODAY: list[str] = []
"""What classes do when code of theirs runs; it is to stay empty while values are read."""


def ran(what: str) -> None:
    TODAY.append(what)


class Line(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True, populate_by_name=True)

    sku: str = pydantic.Field(alias="SKU")
    count: int = 1
    tags: list[str] = pydantic.Field(default_factory=list)
    _note: str = pydantic.PrivateAttr("n")

    @pydantic.field_validator("sku")
    @classmethod
    def _checked(cls, value: str) -> str:
        ran("field_validator")
        return value

    @pydantic.model_validator(mode="after")
    def _whole(self) -> "Line":
        ran("model_validator")
        return self

    def model_post_init(self, context: Any, /) -> None:
        ran("model_post_init")
        super().model_post_init(context)

    @pydantic.computed_field
    @property
    def double(self) -> int:
        return self.count * 2


class Open(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")

    a: int = 1


class Page(pydantic.BaseModel, Generic[T]):
    items: list[T]


class Numbers(pydantic.RootModel[list[int]]):
    pass


class Card(pydantic.BaseModel):
    kind: Literal["card"] = "card"
    number: pydantic.SecretStr


class Cash(pydantic.BaseModel):
    kind: Literal["cash"] = "cash"


class Order(pydantic.BaseModel):
    paid: Card | Cash = pydantic.Field(discriminator="kind")
    lines: dict[str, Line] = {}


@pydantic.dataclasses.dataclass
class Checked:
    a: int = 1

    def __post_init__(self) -> None:
        ran("pydantic __post_init__")


@dataclasses.dataclass
class Item:
    name: str
    more: dataclasses.InitVar[int] = 0
    tags: list[str] = dataclasses.field(default_factory=list)
    total: int = dataclasses.field(init=False, default=7)

    def __post_init__(self, more: int) -> None:
        ran("__post_init__")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Slotted:
    a: int
    b: str = "x"

    def __post_init__(self) -> None:
        ran("frozen __post_init__")


@dataclasses.dataclass
class Special(Item):
    extra: tuple[int, ...] = ()


class Point(NamedTuple):
    x: int
    y: float = 0.0


class Far(Point):
    def __new__(cls, x: int) -> Self:
        ran("NamedTuple __new__")
        return super().__new__(cls, x, 9.0)


class Mail(str):
    __slots__ = ()

    def __new__(cls, text: str) -> Self:
        ran("str __new__")
        return super().__new__(cls, text)


class Age(int):
    def __new__(cls, number: int) -> Self:
        ran("int __new__")
        return super().__new__(cls, number)


class Names(list[str]):
    def append(self, item: str, /) -> None:
        ran("append")
        super().append(item)

    def extend(self, items: Any, /) -> None:
        ran("extend")
        super().extend(items)


class Table(dict[str, int]):
    def __setitem__(self, key: str, value: int, /) -> None:
        ran("__setitem__")
        super().__setitem__(key, value)


class Few(set[int]):
    def __init__(self, items: Any = ()) -> None:
        ran("set __init__")
        super().__init__(items)


class Fixed(frozenset[int]):
    def __new__(cls, items: Any = ()) -> Self:
        ran("frozenset __new__")
        return super().__new__(cls, items)


class Plain:
    __slots__ = ("x",)

    def __init__(self, x: int) -> None:
        self.x = x

    def __setattr__(self, name: str, value: object) -> None:
        ran("__setattr__")
        object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plain) and self.x == other.x

    def __hash__(self) -> int:
        return self.x


class Level(enum.IntEnum):
    LOW = 1


class Own:
    """Says itself how it is pickled."""

    def __init__(self, x: int) -> None:
        self.x = x

    def __reduce__(self) -> tuple[Any, ...]:
        return Own, (self.x,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Own) and self.x == other.x

    def __hash__(self) -> int:
        return self.x


def every_kind() -> list[Any]:
    line = Line(SKU="a")
    noted = Line(SKU="b", count=2, tags=["t"])
    object.__setattr__(noted, "_note", "mine")
    odd = Item("odd")
    odd.note = "no field"  # pyright: ignore[reportAttributeAccessIssue]
    return [
        *(
            line,
            noted,
            Line.model_construct(SKU="c", count="no int"),
            Open.model_validate({"a": 2, "z": [1]}),
            Page[int](items=[1]),
        ),
        *(
            Page[Line](items=[line]),
            Numbers([1, 2]),
            Order(paid=Card(number=pydantic.SecretStr("4")), lines={"a": line}),
        ),
        *(Order(paid=Cash()), Checked(2), Item("a", 3, ["t"]), odd, Slotted(a=1), Special("s", extra=(1,))),
        *(Point(1), Far(2), Mail("m"), Age(3), Names(["n"]), Table(a=1), Few([1, 2]), Fixed([3]), Plain(4), Level.LOW),
        *(Own(5), dt.datetime(2026, 10, 25, 2, 30, fold=1), {"k": [(Point(1), {Slotted(a=1)}, None)]}),
    ]


@pytest.mark.parametrize("number", range(len(every_kind())))
def test_no_code_of_a_class_runs_when_its_instances_are_read(number: int) -> None:
    """Issue 15.6 and 15.7: all fields, set or not, no validator, no `__post_init__`."""
    value = every_kind()[number]
    data = values.encode(value)
    TODAY.clear()
    back = values.decode(data)
    assert TODAY == []
    assert type(back) is type(value)
    assert back == value
    assert getattr(back, "__dict__", None) == getattr(value, "__dict__", None)
    if isinstance(value, pydantic.BaseModel):
        assert back.model_fields_set == value.model_fields_set
        assert back.__pydantic_private__ == value.__pydantic_private__
        assert back.__pydantic_extra__ == value.__pydantic_extra__
    assert values.encode(back) == values.encode(values.decode(data))


def test_what_refers_to_itself_comes_back_so() -> None:
    item = Item("a")
    item.tags.append(item)  # pyright: ignore[reportArgumentType]
    back = values.decode(values.encode(item))
    assert back.tags[0] is back


# -------------------------------------------------------------------------------------------- classes that have changed


def changed(monkeypatch: pytest.MonkeyPatch, old: type, new: type) -> None:
    """Let a class of this module be another one."""
    new.__qualname__ = old.__qualname__
    monkeypatch.setitem(globals(), old.__name__, new)


@dataclasses.dataclass
class Stock:
    name: str
    qty: int = 0
    made: str = dataclasses.field(default_factory=lambda: "then")


class Ware(pydantic.BaseModel):
    name: str
    qty: int = 0
    made: str = pydantic.Field(default_factory=lambda: "then")


@pytest.mark.parametrize("kind", [Stock, Ware])
def test_a_default_of_today_changes_nothing_that_was_stored(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 15.6."""
    data = values.encode(kind(name="a"))
    if kind is Stock:

        @dataclasses.dataclass
        class New:  # pyright: ignore[reportRedeclaration]
            name: str
            qty: int = 5
            made: str = "now"
            added: list[int] = dataclasses.field(default_factory=lambda: [1])
    else:

        class New(pydantic.BaseModel):
            name: str
            qty: int = 5
            made: str = "now"
            added: list[int] = [1]
            _private: int = pydantic.PrivateAttr(3)

    changed(monkeypatch, kind, New)
    back = values.decode(data)
    assert isinstance(back, New)
    assert (back.name, back.qty, back.made, back.added) == ("a", 0, "then", [1])
    if kind is Ware:
        assert back._private == 3  # pyright: ignore[reportPrivateUsage, reportUnknownMemberType, reportAttributeAccessIssue]


@pytest.mark.parametrize("kind", [Stock, Ware])
def test_a_field_that_was_renamed_is_kept_and_said_once(
    kind: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Issue 15.46."""
    data = values.encode([kind(name="a", qty=4), kind(name="b")])
    original = globals()[kind.__name__]
    if kind is Stock:

        @dataclasses.dataclass
        class New:  # pyright: ignore[reportRedeclaration]
            name: str
            count: int = 0
    else:

        class New(pydantic.BaseModel):
            name: str
            count: int = 0

    changed(monkeypatch, kind, New)
    with caplog.at_level(logging.WARNING, "actors"):
        back = values.decode(data)
        back[0].count = 5
        again = values.encode(values.decode(values.encode(back)))
    assert [record.getMessage().count("qty") for record in caplog.records] == [1]
    assert "Stock hold" in caplog.text or "Ware hold" in caplog.text
    changed(monkeypatch, kind, original)
    assert [each.qty for each in values.decode(again)] == [4, 0]


def test_a_new_field_without_a_default_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    data = values.encode(Stock("a"))

    @dataclasses.dataclass
    class New:
        name: str
        owner: str

    changed(monkeypatch, Stock, New)
    with pytest.raises(DecodeError, match=r"lacks the field 'owner'.*give it one"):
        values.decode(data)


def test_the_fields_of_a_frozen_class_with_slots_go_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """`dataclass` itself has them go by their place."""
    data = values.encode(Slotted(a=1, b="b"))

    @dataclasses.dataclass(frozen=True, slots=True)
    class New:
        first: int = 0
        b: str = ""
        a: int = 0

    changed(monkeypatch, Slotted, New)
    assert values.decode(data) == New(0, "b", 1)


def test_the_items_of_a_named_tuple_go_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    data, point = values.encode(Point(1, 2.0)), Point

    class New(NamedTuple):
        y: float
        x: int
        z: int = 3

    changed(monkeypatch, Point, New)
    assert values.decode(data) == New(2.0, 1, 3)

    class Less(NamedTuple):
        x: int

    changed(monkeypatch, point, Less)
    with pytest.raises(DecodeError, match=r"the item 'y'.*give it back"):
        values.decode(data)


def test_a_class_that_has_moved_is_found_by_the_annotation(monkeypatch: pytest.MonkeyPatch) -> None:
    data = values.encode([Page[Item](items=[Item("a")])])
    item, page = Item, cast("Any", Page)
    item.__module__ = page.__module__ = "elsewhere"
    monkeypatch.setattr(item, "__module__", "elsewhere")
    monkeypatch.delitem(globals(), "Item")
    monkeypatch.delitem(globals(), "Page")
    with pytest.raises(DecodeError):
        values.decode(data)
    assert values.decode(data, list[page[item]])[0].items[0].name == "a"


# ------------------------------------------------------------------------------------------------------ what is no data


class ObjectRef:
    """Looks like Ray's."""

    __module__ = "ray._raylet"


async def coroutine() -> None:
    pass


async def generator() -> AsyncIterator[int]:
    yield 1


def no_data() -> Iterator[tuple[Any, str]]:
    yield ObjectRef(), "ray._raylet.ObjectRef stands for a value of Ray's.*await it"
    yield tempfile.TemporaryFile(), "is an open file: read it inside a step"  # noqa: SIM115
    yield tempfile.NamedTemporaryFile(), "is an open file"  # noqa: SIM115
    yield (n for n in range(3)), "hand over a list"
    yield generator(), "hand over a list"
    yield coroutine(), "await it, and hand over what it gives"
    loop = asyncio.new_event_loop()
    yield asyncio.Future[int](loop=loop), "await it"
    loop.close()
    yield asyncio.Lock(), "belongs to one event loop"
    yield asyncio.Queue[int](), "belongs to one event loop"
    yield threading.Lock(), "cannot pickle '_thread.lock'"
    yield threading.Event(), "cannot pickle '_thread.lock'"
    yield socket.socket(), "cannot pickle 'socket'"
    yield memoryview(b"x"), "hand over bytes"


def test_what_is_no_data_is_refused_with_what_to_do_instead() -> None:
    """Issue 15.40: wherever it lies in a value."""
    for value, advice in no_data():
        for wrapped in (value, [value], {"a": (value,)}, Item("a", tags=[value]), Open.model_construct(a=value)):
            with pytest.raises(UsageError, match=advice):
                values.encode(wrapped)
        if isinstance(value, AsyncGenerator):
            asyncio.run(value.aclose())
        elif hasattr(value, "close"):
            value.close()


def test_files_in_memory_are_data() -> None:
    assert values.decode(values.encode(io.BytesIO(b"abc"))).read() == b"abc"
