"""Codec: values to bytes and back, type-exact: a program reads a value equal to the one that it stored.

The first byte says how:

    J   JSON, because the value is one that JSON gives back exactly
    P   pickle, for everything else
    T   JSON, made a value by the annotation: of earlier versions, read and not written (`annotated`)

Invariants:

1. The value decides, never an annotation: a `1` returned as `float` stays an int.
2. Reading follows the first byte. J and P need no annotation, so that the id of an invocation suffices to read its
   result.
3. Stored bytes are read as data: no validator and no default of the day takes part. That is why dataclasses and models
   are pickled, and how they are is the pickler's (`actors.values.records`).

Not kept is identity inside a value written as JSON: `[a, a]` comes back as two equal lists.

Why a walk over types and not a trial reading: orjson with the options below refuses wide ints, lone surrogates,
subclasses, dataclasses, datetimes, keys that are not str, cycles and depths over 254; the values that it would change
silently (tuple, Enum, UUID, Fragment, NaN, infinities) are found by type, whole lists at once. Both are right on all
values tried, and the walk is faster.
"""

from collections.abc import Callable
from enum import Enum
from math import isfinite
from threading import current_thread, main_thread
from typing import Any, Final, cast

import cloudpickle
import orjson

from .annotated import rebuilt
from .errors import DecodeError, DurableError, UsageError
from .texts import error_text, full_name, str_of


class _Missing(Enum):
    # An enum member, because it pickles as itself.
    MISSING = "no annotation"


MISSING: Final = _Missing.MISSING
"""Stands for the annotation of a value that has none (or one that does not resolve)."""

_OPTIONS: Final = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
_PICKLE_PROTOCOL: Final = 5  # of all Pythons we run on; stored bytes must outlive an upgrade
_TOLD_MAX: Final = 2_000
"""Most characters of a user's error in one of ours."""

_SAFE: Final = frozenset({str, int, bool, type(None)})
_FAITHFUL: Final = _SAFE | {float, list, dict}
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


def encode(value: Any, *, dumps: Callable[[Any], bytes] = pickled) -> bytes:
    """Return the bytes from which `decode` makes an equal value of the same types.

    `dumps` writes the values that JSON cannot hold; a caller with a register of classes passes a function that pickles
    them by name.

    Raises:
        UsageError: the value, or something in it, cannot be stored (a socket, a lock, a generator).
    """
    return in_json(value) or encode_pickle(value, dumps)


def in_json(value: Any) -> bytes | None:
    """Return what `encode` returns for a value that JSON gives back exactly; None for any other."""
    try:
        data = _to_json(value, None, _OPTIONS)
    except TypeError:
        return None
    if type(value) in _SAFE or (isfinite(value) if type(value) is float else _is_faithful(value)):
        return b"J" + data
    return None


_NAMED_NONE: Final[dict[str, Any]] = {}


def plain_arguments(args: tuple[Any, ...]) -> bytes | None:
    """Return what `encode` returns for the list of these and of no named ones; None unless all are plain."""
    try:
        if _SAFE.issuperset(map(type, args)):
            return b"J" + _to_json((args, _NAMED_NONE), None, _OPTIONS)
    except Exception:  # noqa: BLE001 - a wide int, a lone surrogate; or a class that cannot be hashed
        pass
    return None


def decode(data: bytes, annotation: Any = MISSING, *, loads: Callable[[bytes], Any] = unpickled) -> Any:
    """Return the value that `encode` was given; `annotation` is looked at only if an earlier version needed it.

    Raises:
        DecodeError: this process lacks something that the value needs (a module, a class, the annotation).
    """
    mark = data[:1]
    try:
        if mark == b"J":
            return _from_json(data[1:])
        if mark == b"P":
            return loads(data[1:])
    except DurableError:  # of `loads`, which may have to ask a store
        raise
    except BaseException as exc:  # unpickling runs code of users, which may raise anything
        _let_through(exc)
        raise DecodeError(
            f"a stored value cannot be read in this process: {error_text(exc, _TOLD_MAX)}. Are its module and class "
            "here, as they were when it was written?"
        ) from exc
    if mark == b"T":
        return rebuilt(data[1:], None if _is_no_hint(annotation) else annotation)
    raise DecodeError(f"a stored value begins with {mark!r}: not written by this codec, or by a newer version of it")


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


def _is_no_hint(annotation: Any) -> bool:
    return any(annotation is each for each in _NO_HINT)  # `in` would ask a user's metaclass


def _let_through(error: BaseException) -> None:
    """Raise an error that is no fault of a value: Ctrl-C, which comes to the main thread alone."""
    if isinstance(error, KeyboardInterrupt) and current_thread() is main_thread():
        raise error


def encode_pickle(value: Any, dumps: Callable[[Any], bytes]) -> bytes:
    """Return what `encode` returns for a value that JSON cannot hold; raises what `encode` raises."""
    try:
        return b"P" + dumps(value)
    except DurableError:
        raise
    except BaseException as exc:  # pickling runs code of users, which may raise anything
        _let_through(exc)
        kind = cast("type[object]", type(value))
        raise UsageError(
            f"a value of type {'.'.join(full_name(kind))} cannot be stored: {str_of(exc, _TOLD_MAX)}. "
            "Arguments, results and state are plain data: make sockets, locks, files, generators and clients inside a "
            "step, and store what they give; or tell pickle how to rebuild the class (__reduce__)."
        ) from exc
