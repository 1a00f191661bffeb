"""Annotations: checks that a value is of its annotated type; the value itself is not changed.

The rules: an instance of a subclass is fine, as is an int for a float; nothing is converted, so a str is no int and a
dict no model. The items of lists, tuples, sets and dicts are checked too, of all other values the class alone. Limits
in `Annotated` (`Field(gt=0)`) are checked by pydantic. If an annotation cannot be resolved, or cannot be checked, every
value fits: an annotation never makes a handler unusable.
"""

import collections.abc
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from actors.errors import UsageError
from actors.requests import current
from actors.stored import pinned
from actors.values.values import encode
from journal.codec import MISSING

Fits = Callable[[Any], bool]

_DEPTH_MAX: Final = 12
"""Annotations that nest deeper are recursive: from there on everything fits."""
_ITEMS: Final = (list, tuple, set, frozenset)
"""Types whose items are checked: iterating over them runs no code of users."""
_LIMITING: Final = ("annotated_types", "pydantic")
_WIDER: Final[dict[type, tuple[type, ...]]] = {float: (float, int), complex: (complex, float, int)}


@pinned("WrongTypeError")
class WrongTypeError(UsageError, TypeError):
    """A value is not of its annotated type."""


def exact(annotation: Any) -> frozenset[type] | None:
    """Return the types whose own instances all fit, for a first quick check; None if every value fits."""
    if fits(annotation) is None:
        return None
    if isinstance(annotation, type) and typing.get_origin(annotation) is None and not typing.is_typeddict(annotation):
        return frozenset(_WIDER.get(annotation, (annotation,)))
    if annotation is None:
        return frozenset({type(None)})
    if _is_union(annotation):
        return frozenset[type]().union(*(exact(each) or () for each in typing.get_args(annotation)))
    return frozenset()


def fits(annotation: Any, depth: int = 0) -> Fits | None:
    """Return a predicate whether a value fits, None if every value does."""
    if depth > _DEPTH_MAX:
        return None
    try:
        return _fits(annotation, depth + 1)
    except Exception:  # noqa: BLE001 - reading an annotation may run code of users, which may raise anything
        return None


def check(name: str, value: Any, annotation: Any, accepts: Fits | None) -> None:
    """Refuse a value that does not fit.

    Raises:
        WrongTypeError: the value does not fit; the message names the type, never the value, which may be a secret.
    """
    if accepts is None or value is ABSENT or not current.validates():
        return
    try:
        is_fine = accepts(value)
    except Exception:  # noqa: BLE001 - users' metaclasses and validators may raise anything, which is no refusal
        return
    if not is_fine and _is_data(value):
        kind = cast("type[object]", type(value))
        wanted = getattr(annotation, "__name__", None) if isinstance(annotation, type) else None
        inside = " that holds another type" if wanted is None and _is_outside_fine(annotation, value) else ""
        raise WrongTypeError(
            f"{name}: {wanted or str(annotation).replace('typing.', '')} is wanted, not {kind.__qualname__}{inside}; "
            "nothing is converted. Policy(validate=False) lets it pass"
        )


def _is_data(value: Any) -> bool:
    """Whether a value can be stored; if not, the encoder refuses it later with a better message."""
    try:
        encode(value)
    except UsageError:
        return False
    return True


def _is_outside_fine(annotation: Any, value: Any) -> bool:
    origin = typing.get_origin(annotation)
    return isinstance(origin, type) and _is_a(value, origin)


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _fits(annotation: Any, depth: int) -> Fits | None:
    if annotation is MISSING or annotation in (Any, object):
        return None
    if annotation is None:
        return lambda value: value is None
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if _is_union(annotation):
        return _any_of([fits(each, depth) for each in args])
    if origin is typing.Literal:
        return lambda value: any(type(value) is type(each) and value == each for each in args)
    if origin is typing.Annotated:
        return _limited(annotation, fits(args[0], depth))
    if origin in (typing.Final, typing.ClassVar, typing.Required, typing.NotRequired):
        return fits(args[0], depth)
    if (supertype := getattr(annotation, "__supertype__", None)) is not None:
        return fits(supertype, depth)
    if type(annotation).__name__ == "TypeAliasType" and not args:
        return fits(annotation.__value__, depth)
    if origin is None:
        return _of_class(annotation, depth) if isinstance(annotation, type) else None
    return _of_generic(origin, args, depth) if isinstance(origin, type) else None


def _any_of(those: list[Fits | None]) -> Fits | None:
    found = [each for each in those if each is not None]
    return (lambda value: any(each(value) for each in found)) if len(found) == len(those) else None


def _of_class(cls: type[Any], depth: int) -> Fits | None:
    if typing.is_typeddict(cls):
        return _of_typed_dict(cls, depth)
    if hasattr(cls, "_runs_once"):  # an object: its address has no class in a program that does not know it
        return None
    if getattr(cls, "_is_protocol", False) and not getattr(cls, "_is_runtime_protocol", False):
        return None
    generic = cast("dict[str, Any]", getattr(cls, "__pydantic_generic_metadata__", None) or {})
    wanted = _WIDER.get(cls, (generic.get("origin") or cls,))
    return lambda value: any(_is_a(value, each) for each in wanted)


def _is_a(value: Any, cls: type[Any]) -> bool:
    if isinstance(value, cls):
        return True
    # A class that was defined again, for example in a notebook, is another object with the same name.
    return any(
        base.__qualname__ == cls.__qualname__ and base.__module__ == cls.__module__ for base in type(value).__mro__
    )


def _of_typed_dict(cls: Any, depth: int) -> Fits:
    hints = {name: fits(hint, depth) for name, hint in typing.get_type_hints(cls).items()}
    required: frozenset[str] = cls.__required_keys__

    def accepts(value: Any) -> bool:
        if not isinstance(value, dict):
            return False
        found = cast("dict[Any, Any]", value)
        return all(name in found for name in required) and all(
            each is None or name not in found or each(found[name]) for name, each in hints.items()
        )

    return accepts


def _of_generic(origin: type[Any], args: tuple[Any, ...], depth: int) -> Fits | None:
    if issubclass(origin, cast("Any", collections.abc.Callable)):
        return lambda value: callable(value)
    if origin is type:
        return lambda value: isinstance(value, type)
    outside = _of_class(origin, depth)
    if outside is None:
        return None
    if origin is tuple and args[-1:] != (...,):
        return _of_tuple([fits(each, depth) for each in args])
    if issubclass(origin, collections.abc.Mapping):
        return _of_mapping(outside, [fits(each, depth) for each in args[:2]])
    item = fits(args[0], depth) if issubclass(origin, collections.abc.Iterable) and args else None
    if item is None or not issubclass(origin, (*_ITEMS, collections.abc.Collection, collections.abc.Iterable)):
        return outside
    known = exact(args[0]) or frozenset[type]()
    return lambda value: (
        outside(value) and (type(value) not in _ITEMS or known.issuperset(map(type, value)) or all(map(item, value)))
    )


def _of_tuple(parts: list[Fits | None]) -> Fits:
    return lambda value: (
        isinstance(value, tuple)
        and len(cast("tuple[Any, ...]", value)) == len(parts)
        and all(each is None or each(item) for each, item in zip(parts, cast("tuple[Any, ...]", value), strict=True))
    )


def _of_mapping(outside: Fits, parts: list[Fits | None]) -> Fits:
    key, item = (*parts, None, None)[:2]

    def accepts(value: Any) -> bool:
        if not outside(value) or type(value) is not dict:
            return outside(value)
        found = cast("dict[Any, Any]", value)
        return (key is None or all(map(key, found))) and (item is None or all(map(item, found.values())))

    return accepts


def _limited(annotation: Any, inner: Fits | None) -> Fits | None:
    limits = [each for each in annotation.__metadata__ if type(each).__module__.partition(".")[0] in _LIMITING]
    if not limits:
        return inner
    from pydantic import TypeAdapter, ValidationError  # takes 0.2 s, and most programs never need it

    adapter: TypeAdapter[Any] = TypeAdapter(annotation)

    def accepts(value: Any) -> bool:
        if inner is not None and not inner(value):
            return False
        try:
            adapter.validate_python(value)
        except ValidationError:
            return False
        return True

    return accepts


ABSENT: Final = object()
"""A placeholder for an argument that was not given, or is not known yet."""


def checking(names: Mapping[str, tuple[Any, Any]], of: str) -> tuple[list[str], dict[str, Any]]:
    """Return lines of code that check arguments by name, and the names that the lines use.

    `names`: each with its annotation and its default. A value of an exact type costs one look at its type.
    """
    lines: list[str] = []
    scope: dict[str, Any] = {"_absent": ABSENT}
    for number, (name, (annotation, default)) in enumerate(names.items()):
        plain = name.lstrip("*")
        accepts = fits(annotation)
        if accepts is None:
            continue
        if default is None:
            accepts = _any_of([accepts, lambda value: value is None])
        scope[f"_check{number}"] = _check_of(f"argument {plain!r} of {of}", annotation, accepts)
        scope[f"_exact{number}"] = (exact(annotation) or frozenset()) | ({type(None)} if default is None else set())
        each = {1: f"for _each in {plain}:", 2: f"for _each in {plain}.values():"}.get(len(name) - len(plain))
        if each is None:
            lines.append(
                f"    if type({plain}) not in _exact{number} and {plain} is not _absent: _check{number}({plain})"
            )
        else:
            lines.append(f"    {each}\n        if type(_each) not in _exact{number}: _check{number}(_each)")
    return lines, scope


def _check_of(name: str, annotation: Any, accepts: Fits | None) -> Callable[[Any], None]:
    return lambda value: check(name, value, annotation, accepts)
