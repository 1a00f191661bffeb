"""Fingerprints: texts of requests' arguments, equal where two requests ask for the same.

Why not from their bytes: a pickle has the order of sets and the identity of objects in it, so that equal values of two
processes differ. A request that comes twice is refused where its arguments differ, so that equal arguments must never
seem to differ: opaque objects have no fingerprint, and count as equal.

Invariant: arguments by position and by keyword are the same where the handler is known.
"""

import hashlib
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, cast

DEPTH_MAX: Final = 100
PARTS_MAX: Final = 1_000_000
"""Beyond this depth or number of parts there is no fingerprint: it would take longer than the request is worth."""
_PLAIN: Final = frozenset({str, int, bool, float, complex, bytes, type(None)})
_UNORDERED: Final = frozenset({"__pydantic_fields_set__", "__pydantic_private__"})
"""Fields of a model's state that tell how it was made, not its contents."""


class _Unknown(Exception):
    """The arguments hold an opaque object."""


def fingerprint(fn: Callable[..., Any] | None, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
    """Return a text that is the same for the same arguments, in every process; empty where an object is opaque."""
    try:
        args, kwargs = _bound(fn, args, kwargs)
        digest = hashlib.blake2b(digest_size=12)
        for count, part in enumerate(_parts([list(args), dict(kwargs)], 0)):
            if count > PARTS_MAX:
                return ""
            digest.update(part)
        return digest.hexdigest()
    except Exception:  # noqa: BLE001  # it runs code of users' classes, which may raise anything
        return ""


def _bound(
    fn: Callable[..., Any] | None, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """Return the arguments, by position where they can be."""
    if fn is None or not kwargs:
        return args, kwargs
    bound = inspect.signature(fn).bind(None, None, *args, **kwargs)
    return bound.args[2:], bound.kwargs


def _parts(value: Any, depth: int) -> Iterator[bytes]:
    kind = cast("type[object]", type(value))
    if depth > DEPTH_MAX:
        raise _Unknown
    if kind in _PLAIN:
        yield f"{kind.__name__}:".encode()
        data = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
        yield f"{len(data)}:".encode()
        yield data
    elif kind is list or kind is tuple:
        yield from _all(kind.__name__, value, depth)
    elif kind is dict:
        yield from _all("dict", sorted(_joined(item, depth) for item in value.items()), depth)
    elif kind is set or kind is frozenset:
        yield from _all("set", sorted(_joined(item, depth) for item in value), depth)
    elif isinstance(value, type) or inspect.isroutine(value):
        yield from _parts(value.__qualname__, depth + 1)  # a module is called `__main__` where it is the program
    else:
        yield from _all(kind.__qualname__, _reduced(value), depth)


def _joined(value: Any, depth: int) -> bytes:
    return b"".join(_parts(value, depth + 1))


def _all(name: str, values: Sequence[Any], depth: int) -> Iterator[bytes]:
    yield f"{name}[{len(values)}:".encode()
    for value in values:
        yield from _parts(value, depth + 1)


def _reduced(value: Any) -> list[Any]:
    reduced = value.__reduce_ex__(4)
    if isinstance(reduced, str):
        return [reduced]
    made, given, *rest = reduced
    state, items, pairs = [*rest, None, None, None][:3]
    if isinstance(state, dict):
        state = {name: held for name, held in cast("dict[Any, Any]", state).items() if name not in _UNORDERED}
    return [
        made,
        given,
        state,
        None if items is None else list(items),
        None if pairs is None else dict(pairs),
    ]
