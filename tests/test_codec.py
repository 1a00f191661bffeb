"""What a program put in is what it gets back, in every type."""

import contextlib
import dataclasses
import datetime as dt
import decimal
import fractions
import math
import socket
import subprocess
import sys
import threading
import uuid
from collections import OrderedDict, defaultdict, deque
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict, cast
from zoneinfo import ZoneInfo

import orjson
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from actors.values import values
from journal.codec import MISSING, decode, encode, pickled
from journal.errors import DecodeError, UnavailableError, UsageError


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    LOW = 1


class Word(StrEnum):
    YES = "yes"


class Text(str):
    __slots__ = ()


class Number(int):
    pass


class Names(list[str]):
    pass


class Table(dict[str, int]):
    pass


class Point(NamedTuple):
    x: int
    y: float


class Movie(TypedDict):
    year: int
    seen: set[int]


@dataclasses.dataclass
class Item:
    name: str
    price: decimal.Decimal
    tags: tuple[str, ...] = ()


@dataclasses.dataclass
class Special(Item):
    discount: float = 0.5


@dataclasses.dataclass(frozen=True, slots=True)
class Loose:
    count: int
    anything: Any = None


class Patch(pydantic.BaseModel):
    title: str | None = None
    when: dt.datetime | None = None
    tags: set[str] = pydantic.Field(default_factory=set[str])


class Aliased(pydantic.BaseModel):
    user_id: int = pydantic.Field(alias="userId")

    @pydantic.computed_field
    @property
    def double(self) -> int:
        return self.user_id * 2


class Rounded(pydantic.BaseModel):
    """Reading it back changes it."""

    price: float

    @pydantic.field_validator("price")
    @classmethod
    def _round(cls, value: float) -> float:
        return round(value, 0)


class Node:
    """A class that JSON knows nothing of."""

    def __init__(self, value: object, children: Sequence["Node"] = ()) -> None:
        self.value = value
        self.children = list(children)


def shape(value: Any) -> Any:
    """Return something that is equal for two values exactly if they are alike in every type."""
    kind = cast("type[object]", type(value))
    if isinstance(value, Mapping):
        table = cast("Mapping[Any, Any]", value)
        factory = table.default_factory if isinstance(table, defaultdict) else None
        return kind, [(shape(key), shape(item)) for key, item in table.items()], factory
    if isinstance(value, AbstractSet):
        return kind, sorted(repr(shape(item)) for item in cast("AbstractSet[Any]", value))
    if isinstance(value, list | tuple | deque):
        return kind, [shape(item) for item in cast("Sequence[Any]", value)]
    if isinstance(value, dt.datetime):
        return kind, repr(value), value.fold, type(value.tzinfo)
    if isinstance(value, uuid.UUID):
        return kind, value.int, value.is_safe
    if isinstance(value, Enum):
        return kind, value.name
    if isinstance(value, pydantic.BaseModel):
        return kind, shape(value.__dict__), sorted(value.model_fields_set)
    if dataclasses.is_dataclass(value):
        return kind, [shape(getattr(value, field.name)) for field in dataclasses.fields(value)]
    if isinstance(value, Node):
        return kind, shape(value.__dict__)
    return kind, repr(value)


def assert_exact(value: Any, annotation: Any = MISSING) -> bytes:
    data = encode(value)
    assert shape(decode(data, annotation)) == shape(value)
    assert shape(decode(data)) == shape(value)
    return data


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


UTC = dt.UTC
MOMENT = dt.datetime(2026, 5, 17, 9, 30, 12, 345678)

J_EXACT: list[Any] = [
    *(None, True, False, 0, 1, -1, 2**53 + 1, 2**63, 2**64 - 1, -(2**63), 0.0, -0.0, 1.0, 0.1, 5e-324, 1.7e308, 1e23),
    *("", "a", "ü€😀", "\x00\x1f\x7f\u2028", "\ud7ff\ue000", '"\\/', [], {}, [[]], [{}], {"": None}, {"b": 1, "a": 2}),
    *([1, 1.0, True, "1", None], {"a": [1, {"b": [2.5, {"c": []}]}]}, nested(200), list(range(1000))),
]

HARD: list[tuple[Any, Any, str]] = [
    # value, annotation, how it is written
    (2**64, MISSING, "P"),
    (-(2**63) - 1, MISSING, "P"),
    (2**70, int, "P"),
    ([2**70], list[int], "P"),
    ("\ud800", str, "P"),
    ({"\ud800": 1}, MISSING, "P"),
    (math.nan, float, "P"),
    ([math.inf], list[float], "P"),
    ({"a": [-math.inf]}, MISSING, "P"),
    ((1, 2), MISSING, "P"),
    ((1, 2), tuple[int, int], "P"),
    ((1, 2), list[int], "P"),
    (((1,),), tuple, "P"),
    ([(1,)], list[tuple[int]], "P"),
    ({1: "a"}, MISSING, "P"),
    ({1: "a"}, dict[int, str], "P"),
    ({True: "a"}, dict[int, str], "P"),
    ({(1, 2): 3}, dict[tuple[int, int], int], "P"),
    ({None: 1}, MISSING, "P"),
    ({Text("a"): 1}, dict[str, int], "P"),
    (Text("a"), str, "P"),
    ([Text("a")], list[str], "P"),
    (Number(1), int, "P"),
    (Names(["a"]), list[str], "P"),
    (Table(a=1), dict[str, int], "P"),
    (OrderedDict(a=1), MISSING, "P"),
    (OrderedDict(a=1), OrderedDict[str, int], "P"),
    (defaultdict(list, a=[1]), defaultdict[str, list[int]], "P"),
    (deque([1], maxlen=3), deque[int], "P"),
    (True, int, "J"),
    (1, float, "J"),
    (1, bool, "J"),
    ("6f2d1f3e-2b1c-4b8e-9d0a-3f0c1b2a4d5e", uuid.UUID | str, "J"),
    (uuid.UUID(int=7), MISSING, "P"),
    (uuid.UUID(int=7), uuid.UUID, "P"),
    (uuid.UUID(int=7), uuid.UUID | str, "P"),
    (uuid.UUID(int=7, is_safe=uuid.SafeUUID.safe), uuid.UUID, "P"),
    (Colour.RED, MISSING, "P"),
    (Colour.RED, Colour, "P"),
    ([Colour.RED], list[Colour], "P"),
    (Level.LOW, MISSING, "P"),
    (Level.LOW, Level, "P"),
    (Level.LOW, int, "P"),
    (Word.YES, MISSING, "P"),
    (Word.YES, Word, "P"),
    ({Word.YES: 1}, dict[str, int], "P"),
    (decimal.Decimal("1.10"), MISSING, "P"),
    (decimal.Decimal("1.10"), decimal.Decimal, "P"),
    (decimal.Decimal("1E+5"), decimal.Decimal, "P"),
    (decimal.Decimal("NaN"), decimal.Decimal, "P"),
    (fractions.Fraction(1, 3), fractions.Fraction, "P"),
    (1 + 2j, complex, "P"),
    (MOMENT, MISSING, "P"),
    (MOMENT, dt.datetime, "P"),
    (MOMENT.replace(fold=1), dt.datetime, "P"),
    (MOMENT.replace(tzinfo=UTC), dt.datetime, "P"),
    (MOMENT.replace(tzinfo=ZoneInfo("Europe/Berlin")), dt.datetime, "P"),
    (MOMENT.date(), dt.date, "P"),
    (MOMENT, dt.date, "P"),
    (MOMENT.time(), dt.time, "P"),
    (dt.timedelta(days=-1, microseconds=1), dt.timedelta, "P"),
    (b"abc", bytes, "P"),
    (b"\xff", bytes, "P"),
    (bytearray(b"abc"), bytes, "P"),
    ({1, 2}, set[int], "P"),
    ({True}, set[int], "P"),
    (frozenset({Point(1, 2.0)}), frozenset[Point], "P"),
    (Point(1, 2.0), MISSING, "P"),
    (Point(1, 2.0), Point, "P"),
    (Point(1, 2), Point, "P"),
    (Movie(year=1999, seen={1}), Movie, "P"),
    (Item("a", decimal.Decimal("1.0")), MISSING, "P"),
    (Item("a", decimal.Decimal("1.0"), ("x", "y")), Item, "P"),
    ([Item("a", decimal.Decimal("1.0"))], list[Item], "P"),
    ({"k": Item("a", decimal.Decimal("1.0"))}, dict[str, Item], "P"),
    (Special("a", decimal.Decimal("1.0")), Item, "P"),
    (Special("a", decimal.Decimal("1.0")), Special, "P"),
    (Special("a", decimal.Decimal("1.0")), Item | Special, "P"),
    (Item("a", cast("Any", "1.0")), Item, "P"),
    (Loose(cast("Any", True)), Loose, "P"),
    (Loose(1, [1, "a"]), Loose, "P"),
    (Loose(1, (1, "a")), Loose, "P"),
    (Patch(), Patch, "P"),
    (Patch(title="x"), Patch, "P"),
    (Patch(title=None), Patch, "P"),
    (Patch(title=None, when=MOMENT, tags={"a"}), Patch, "P"),
    (Patch.model_construct(title=cast("Any", 5)), Patch, "P"),
    (Aliased(userId=4), Aliased, "P"),
    (Rounded.model_construct(price=1.5), Rounded, "P"),
    (Rounded.model_construct(price=1.0), Rounded, "P"),
    (Path("/a/b"), Path, "P"),
    (Node(1, [Node((2,))]), Node, "P"),
    (range(3), MISSING, "P"),
    (orjson.JSONDecodeError, MISSING, "P"),
    (int, type, "P"),
    (None, str, "J"),
    ((1,), "tuple[int]", "P"),
    ((1,), Any, "P"),
    ((1,), object, "P"),
    ((1,), None, "P"),
    ((1,), Annotated[tuple[int], []], "P"),
    ((1,), 17, "P"),
]


@pytest.mark.parametrize("value", J_EXACT, ids=lambda value: repr(value)[:30])
def test_what_json_holds_exactly_is_json(value: Any) -> None:
    assert assert_exact(value)[:1] == b"J"


@pytest.mark.parametrize(("value", "annotation", "way"), HARD, ids=lambda part: repr(part).partition(" at 0x")[0][:40])
def test_hard_values_come_back_as_they_were(value: Any, annotation: Any, way: str) -> None:
    assert assert_exact(value, annotation)[:1] == way.encode()


SCALARS = some.none() | some.booleans() | some.integers() | some.floats() | some.text()
JSON_LIKE = some.recursive(
    SCALARS, lambda inner: some.lists(inner) | some.dictionaries(some.text(), inner), max_leaves=9
)
FIXED = (
    some.binary() | some.decimals() | some.uuids() | some.dates() | some.timedeltas() | some.complex_numbers()
) | some.sampled_from([*Colour, *Level, *Word, Text("t"), Number(3), 2**64 - 1, 2**64])
ZONES = some.none() | some.timezones() | some.just(UTC)
LEAVES = SCALARS | FIXED | some.datetimes(timezones=ZONES) | some.times()
KEYS = some.text() | some.integers() | some.booleans() | FIXED.filter(lambda key: not isinstance(key, decimal.Decimal))
ANYTHING = some.recursive(
    LEAVES,
    lambda inner: (
        some.lists(inner)
        | some.lists(inner).map(tuple)
        | some.dictionaries(KEYS, inner)
        | some.frozensets(KEYS)
        | some.builds(Item, some.text(), inner)
        | some.builds(Loose, inner, inner)
    ),
    max_leaves=9,
)
ANNOTATIONS = some.recursive(
    some.sampled_from(
        [
            *(MISSING, Any, int, float, bool, str, bytes, complex, tuple, list, dict, set, frozenset),
            *(decimal.Decimal, uuid.UUID, dt.datetime, dt.date, dt.time, dt.timedelta, Colour, Level, Word),
            *(Item, Loose, Point, Node, "Item"),
        ]
    ),
    lambda inner: (
        inner.map(lambda kind: list[kind])
        | inner.map(lambda kind: tuple[kind, ...])
        | inner.map(lambda kind: frozenset[kind])
        | some.tuples(inner, inner).map(lambda kinds: dict[kinds[0], kinds[1]])
        | inner.map(lambda kind: Annotated[kind, []])
    ),
    max_leaves=3,
)


@pytest.mark.slow
@given(JSON_LIKE)
def test_any_value_of_json_types_comes_back(value: Any) -> None:
    assert_exact(value)


@settings(deadline=None)  # the first use of an annotation builds its validator
@given(ANYTHING, ANNOTATIONS)
def test_any_value_comes_back_under_any_annotation(value: Any, annotation: Any) -> None:
    assert_exact(value, annotation)


@settings(deadline=None)
@given(
    some.data(), some.sampled_from([list[int], dict[int, float], Item, Point, tuple[int, str], set[dt.date], Colour])
)
def test_values_made_by_their_annotation_come_back(data: some.DataObject, annotation: Any) -> None:
    assert_exact(data.draw(some.from_type(annotation)), annotation)


@given(some.lists(JSON_LIKE | ANYTHING, max_size=3), some.dictionaries(some.text(), JSON_LIKE, max_size=2))
def test_arguments_are_written_as_the_list_of_both(args: list[Any], kwargs: dict[str, Any]) -> None:
    assert values.encode_arguments(tuple(args), kwargs) == values.encode([args, kwargs])


@pytest.mark.parametrize("argument", [2**70, "\ud800", Text("a"), Number(1), Level.LOW, math.nan, (1,), True, None])
def test_an_argument_is_written_as_in_a_list(argument: Any) -> None:
    assert values.encode_arguments((argument,), {}) == values.encode([[argument], {}])


def test_a_cycle_comes_back_as_a_cycle() -> None:
    value: list[Any] = []
    value.append(value)
    back = decode(encode(value))
    assert back[0] is back


def test_depth_that_json_refuses_is_pickled_or_refused_with_a_sentence() -> None:
    assert encode(nested(300))[:1] == b"P"
    with pytest.raises(UsageError, match=r"builtins\.list cannot be stored"):
        encode(nested(100_000))


def test_equal_annotations_in_another_order_do_not_share_a_reader() -> None:
    @dataclasses.dataclass
    class One:
        x: tuple[int, ...]

    @dataclasses.dataclass
    class Two:
        x: tuple[int, ...]

    assert type(decode(b'T{"x": [1]}', One | Two)) is One
    assert type(decode(b'T{"x": [1]}', Two | One)) is Two


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (threading.Lock, "_thread.lock"),
        (lambda: (n for n in range(3)), "builtins.generator"),
        (lambda: [threading.Lock()], "_thread.lock"),
        (lambda: Node(threading.Lock()), "test_codec.Node"),
    ],
)
def test_what_cannot_be_stored_is_refused_with_its_type_and_advice(make: Any, name: str) -> None:
    with pytest.raises(UsageError, match=name) as caught:
        encode(make())
    assert "inside a step" in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_socket_is_refused() -> None:
    with contextlib.closing(socket.socket()) as sock, pytest.raises(UsageError, match=r"cannot pickle 'socket' object"):
        encode({"connection": sock})


OLDER: list[tuple[bytes, Any, Any]] = [
    (b'T{"name":"a","price":"1.0","tags":["x"]}', Item, Item("a", decimal.Decimal("1.0"), ("x",))),
    (b"T[[1,2.0],null]", list[Point | None], [Point(1, 2.0), None]),
    (b'T{"title":"x"}', Patch, Patch(title="x")),
    (b'T"2026-05-17T09:30:12.345678"', dt.datetime, MOMENT),
    (b"T[1,2]", set[int], {1, 2}),
    (b'T"red"', Colour, Colour.RED),
    (b'T{"userId":4}', Aliased, Aliased(userId=4)),
]


@pytest.mark.parametrize(("data", "annotation", "value"), OLDER, ids=lambda part: repr(part)[:30])
def test_what_earlier_versions_wrote_by_annotation_is_read_by_it(data: bytes, annotation: Any, value: Any) -> None:
    assert shape(decode(data, annotation)) == shape(value)
    with pytest.raises(DecodeError, match="read without it"):
        decode(data)


class Due(pydantic.BaseModel):
    """What it refuses depends on the day."""

    when: Annotated[dt.date, pydantic.Field(gt=dt.date(2030, 1, 1))]
    path: Path = Path("/")
    lines: list[Point] = []

    @pydantic.field_validator("when")
    @classmethod
    def _later(cls, value: dt.date) -> dt.date:
        raise ValueError("must lie in the future")

    @pydantic.model_validator(mode="after")
    def _whole(self) -> "Due":
        raise ValueError("never")


@dataclasses.dataclass
class Strict:
    due: Due

    def __post_init__(self) -> None:
        raise ValueError("not today")


def test_what_earlier_versions_wrote_is_read_as_data_where_the_class_refuses_it_today() -> None:
    """Issue 15.7: validators and `__post_init__` of the day have no say."""
    back = decode(b'T[{"due":{"when":"2026-01-01","path":"/a","lines":[[1,2.0]]}}]', tuple[Strict])
    assert back[0].due.when == dt.date(2026, 1, 1)
    assert (back[0].due.path, back[0].due.lines) == (Path("/a"), [Point(1, 2.0)])


def test_json_and_pickle_are_read_without_looking_at_the_annotation() -> None:
    assert decode(encode([1]), set[str]) == [1]
    assert decode(encode((1,)), set[str]) == (1,)


def test_a_value_that_no_longer_fits_says_so() -> None:
    with pytest.raises(DecodeError, match="Has the class changed"):
        decode(b'T{"name": 1}', Item)


@pytest.mark.parametrize("data", [b"", b"X1", b"J{", b"P\x80", b"Pcno_such_module\nX\n."])
def test_bytes_that_cannot_be_read_are_a_decode_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(data)


def test_the_pickler_is_the_callers_choice_and_its_errors_are_its_own() -> None:
    def refuse(_: object) -> Any:
        raise UnavailableError("no store")

    assert decode(encode((1,), dumps=lambda value: b"x" + pickled(value)), loads=lambda data: data[:1]) == b"x"
    with pytest.raises(UnavailableError):
        encode((1,), dumps=refuse)
    with pytest.raises(UnavailableError):
        decode(encode((1,)), loads=refuse)


def test_importable_classes_are_pickled_by_name() -> None:
    data = encode(Node(1))
    assert b"__init__" not in data
    assert type(decode(data)) is Node


def test_pydantic_is_not_imported_until_an_annotation_is_needed() -> None:
    code = (
        "import sys; from journal.codec import decode, encode;"
        "decode(encode([1])); decode(encode((1,)));"
        "assert 'pydantic' not in sys.modules;"
        "assert decode(b'T[1]', tuple[int]) == (1,)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])
