"""Values to bytes and back, type-exact: what a program put in is what it gets out.

The first byte says how:

    J   JSON, because the value is one that JSON gives back exactly
    T   JSON, rebuilt by the annotation (dataclass, pydantic model, datetime, UUID, Enum, Decimal, tuple …)
    P   pickle, for everything else

Invariants:

1. The value decides, then the annotation. An annotation never converts: a `1` returned as `float` stays an int.
2. T is written only after it was read back and found to be the same: same types and same state all the way down. So a
   subclass, a time zone, the unset fields of a model, the exponent of a Decimal survive, or the value is pickled.
3. Reading follows the first byte. J and P need no annotation; T needs the one it was written with.

Not kept is identity inside a value written as JSON: `[a, a]` comes back as two equal lists.

Why a walk over types and not a trial reading: orjson with the options below refuses wide ints, lone surrogates,
subclasses, dataclasses, datetimes, keys that are not str, cycles and depths over 254; what it would change silently
(tuple, Enum, UUID, Fragment, NaN, infinities) is found by type, whole lists at once. Both are right on all values
tried, and the walk is faster.
"""

from collections.abc import Callable
from enum import Enum
from functools import lru_cache
from math import isfinite
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final, cast

import cloudpickle
import orjson

from .errors import DecodeError, DurableError, UsageError

if TYPE_CHECKING:
    from pydantic import TypeAdapter


class _Missing(Enum):
    # An enum member, because it pickles as itself.
    MISSING = "no annotation"


MISSING: Final = _Missing.MISSING
"""Stands for the annotation of a value that has none (or one that does not resolve)."""

_OPTIONS: Final = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
_PICKLE_PROTOCOL: Final = 5  # of all Pythons we run on; what is written must outlive an upgrade
_ADAPTERS_MAX: Final = 1024

_SAFE: Final = frozenset({str, int, bool, type(None)})
_FAITHFUL: Final = _SAFE | {float, list, dict}
_PLAIN: Final = _SAFE | {bytes}
_BY_REFERENCE: Final = (type, FunctionType, BuiltinFunctionType, MethodType)
_NO_HINT: Final = (MISSING, Any, object)

_cloudpickle = cast("Callable[[Any, int], bytes]", cloudpickle.dumps)  # it ships no types
_to_json = orjson.dumps
_from_json = orjson.loads


def pickled(value: Any) -> bytes:
    """Return the pickle of a value: classes that can be imported go by reference, others by value."""
    return _cloudpickle(value, _PICKLE_PROTOCOL)


def unpickled(data: bytes) -> Any:
    """Return the value of a pickle."""
    return cloudpickle.loads(data)


def encode(value: Any, annotation: Any = MISSING, *, dumps: Callable[[Any], bytes] = pickled) -> bytes:
    """Return the bytes from which `decode` makes an equal value of the same types.

    `dumps` writes what JSON cannot hold; who keeps a register of classes gives one that pickles them by name.

    Raises:
        UsageError: the value, or something in it, cannot be stored (a socket, a lock, a generator).
    """
    try:
        data = _to_json(value, None, _OPTIONS)
    except TypeError:
        pass
    else:
        if type(value) in _SAFE or (isfinite(value) if type(value) is float else _is_faithful(value)):
            return b"J" + data
    text = None if annotation in _NO_HINT else _rebuildable(value, annotation)
    return b"P" + _pickle(value, dumps) if text is None else b"T" + text


def encode_arguments(
    args: tuple[Any, ...], kwargs: dict[str, Any], *, dumps: Callable[[Any], bytes] = pickled
) -> bytes:
    """Return what `encode` returns for the list of both; what is plain alone is seen at a glance.

    Raises:
        UsageError: one of them cannot be stored.
    """
    if not kwargs and _SAFE.issuperset(map(type, args)):
        try:
            return b"J" + _to_json((args, kwargs), None, _OPTIONS)
        except TypeError:
            pass  # a wide int, a lone surrogate
    return encode([list(args), kwargs], dumps=dumps)


def decode(data: bytes, annotation: Any = MISSING, *, loads: Callable[[bytes], Any] = unpickled) -> Any:
    """Return the value that `encode` was given; `annotation` is looked at only if it was needed to write.

    Raises:
        DecodeError: this process lacks what the value needs (a module, a class, the annotation).
    """
    mark = data[:1]
    try:
        if mark == b"J":
            return _from_json(data[1:])
        if mark == b"P":
            return loads(data[1:])
    except DurableError:  # of `loads`, which may have to ask a store
        raise
    except Exception as exc:  # unpickling runs code of users, which may raise anything
        raise DecodeError(
            f"a stored value cannot be read in this process: {type(exc).__name__}: {exc}. Are its module and class "
            "here, as they were when it was written?"
        ) from exc
    if mark == b"T":
        return _rebuilt(data[1:], annotation)
    raise DecodeError(f"a stored value begins with {mark!r}: not written by this codec, or by a newer version of it")


def is_json(data: bytes) -> bool:
    """Tell whether everything after the first byte is JSON, so that a reader without the code can show it."""
    return data[:1] in (b"J", b"T")


def _is_faithful(value: Any) -> bool:
    """Tell whether JSON gives back exactly this, once orjson has accepted it with `_OPTIONS`."""
    levels: list[Any] = [(value,)]
    while levels:
        values = levels.pop()
        kinds = set(map(type, values))
        if kinds <= _SAFE:
            continue
        if not kinds <= _FAITHFUL:
            return False
        for item in values:
            if type(item) is list:
                levels.append(item)
            elif type(item) is dict:
                levels.append(item.values())
            elif type(item) is float and not isfinite(item):
                return False
    return True


def _rebuildable(value: Any, annotation: Any) -> bytes | None:
    """Return JSON that the annotation makes the same value again, or None."""
    adapter = _adapter(annotation)
    if adapter is None:
        return None
    try:
        # exclude_unset: which fields were set is part of a model ("change only these"), and reading sets what it finds.
        text = adapter.dump_json(value, by_alias=True, round_trip=True, exclude_unset=True, warnings="error")
        return text if _is_same(value, adapter.validate_json(text)) else None
    except Exception:  # noqa: BLE001 - validators of users may raise anything; then the value is pickled
        return None


def _rebuilt(text: bytes, annotation: Any) -> Any:
    adapter = None if annotation in _NO_HINT else _adapter(annotation)
    if adapter is None:
        raise DecodeError(
            "a stored value was written by the annotation of its handler or field, and is read without it "
            f"(annotation here: {annotation!r}). Read it where the class is defined."
        )
    try:
        return adapter.validate_json(text)
    except Exception as exc:  # validators of users may raise anything
        raise DecodeError(
            f"a stored value does not fit its annotation {annotation!r}: {exc}. Has the class changed since it was "
            "written? Give new fields a default, and keep old ones readable."
        ) from exc


def _adapter(annotation: Any) -> "TypeAdapter[Any] | None":
    try:
        # With its spelling: `A | B` equals `B | A`, and pydantic prefers the first.
        return _cached_adapter(annotation, repr(annotation))
    except TypeError:  # unhashable: Annotated[int, []]
        return _new_adapter(annotation)


@lru_cache(_ADAPTERS_MAX)
def _cached_adapter(annotation: Any, _spelling: str) -> "TypeAdapter[Any] | None":
    return _new_adapter(annotation)


def _new_adapter(annotation: Any) -> "TypeAdapter[Any] | None":
    if isinstance(annotation, str):  # pydantic would resolve the name here, in this module
        return None
    from pydantic import TypeAdapter  # takes 0.2 s, and most programs never need it

    try:
        return TypeAdapter(annotation)
    except Exception:  # noqa: BLE001 - nothing that pydantic knows; building it may run code of users
        return None


def _is_same(one: Any, other: Any) -> bool:
    """Tell whether two values are alike in every type and all state, which is to say: whether pickle sees none.

    `==` would not do: 1 == True, Decimal("1.0") == Decimal("1.00"), and users write their own.
    """
    kind = cast("type[object]", type(one))
    if kind is not type(other):
        return False
    if one is other:
        return True
    if kind in _PLAIN:
        return one == other
    if kind is float:
        return one.hex() == other.hex()  # tells 0.0 from -0.0
    if kind is list or kind is tuple:
        return len(one) == len(other) and all(map(_is_same, one, other))
    if kind is dict:
        return _is_same(list(one.items()), list(other.items()))  # their order counts
    if kind is set or kind is frozenset:
        return _is_same_set(one, other)
    if isinstance(one, _BY_REFERENCE):
        return one == other
    return _is_same_reduced(one.__reduce_ex__(_PICKLE_PROTOCOL), other.__reduce_ex__(_PICKLE_PROTOCOL))


def _is_same_set(one: frozenset[Any], other: frozenset[Any]) -> bool:
    twins = {item: item for item in other}
    return len(one) == len(other) and all(item in twins and _is_same(item, twins[item]) for item in one)


def _is_same_reduced(one: str | tuple[Any, ...], other: str | tuple[Any, ...]) -> bool:
    if isinstance(one, str) or isinstance(other, str):
        return one == other
    return _is_same(_parts(one), _parts(other))


def _parts(reduced: tuple[Any, ...]) -> list[Any]:
    # callable, arguments, state, then iterators over the items of lists and dicts
    return [*reduced[:3], *(None if items is None else list(items) for items in reduced[3:5]), *reduced[5:]]


def _pickle(value: Any, dumps: Callable[[Any], bytes]) -> bytes:
    try:
        return dumps(value)
    except DurableError:
        raise
    except Exception as exc:  # pickling runs code of users, which may raise anything
        kind = cast("type[object]", type(value))
        raise UsageError(
            f"a value of type {kind.__module__}.{kind.__qualname__} cannot be stored: {exc}. Arguments, results and "
            "state are plain data: make sockets, locks, files, generators and clients inside a step, and store what "
            "they give; or tell pickle how to rebuild the class (__reduce__)."
        ) from exc
