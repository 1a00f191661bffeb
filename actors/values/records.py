"""Records: instances of users' classes as data, by the names of their fields.

Unlike with plain pickle, no code of the day takes part: no `__init__`, `__post_init__`, `__new__` or `__setstate__` of
a dataclass, a pydantic model, an attrs class, a named tuple or a subclass of a builtin, no validator, no `append` or
`__setitem__` of a subclass. A class that defines how it is pickled is asked, as ever.

Invariants:
    1. A value is read as it was stored: all fields, set by the user or not, whatever the class declares today.
    2. A field that the class has got since has its default of today; without a default the value cannot be read.
    3. A field that the class has lost stays with the instance and is written again; this is logged once.
    4. `made` and `restore` are named in stored bytes: they keep their names, and read everything that they ever wrote.
"""

import asyncio
import copyreg
import dataclasses
import io
import logging
import sys
import types
import typing
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Final, NamedTuple, cast
from weakref import WeakKeyDictionary

from actors.errors import DecodeError
from actors.stored import pinned

logger = logging.getLogger("actors")

_NATIVE: Final[tuple[type[Any], ...]] = (str, int, float, complex, bytes, tuple, frozenset)
"""Builtins whose instances are made with their content."""
_FILLED: Final[tuple[type[Any], ...]] = (list, dict, set)
"""Builtins that are made empty and then filled."""
_DATACLASS_STATE: Final = frozenset({"_dataclass_getstate", "_dataclass_setstate"})


class _One(NamedTuple):
    it: int


_NAMED_TUPLE: Final = vars(_One)["__getnewargs__"].__code__


class Shape(NamedTuple):
    """How the instances of one class are written."""

    base: type[Any]
    """The builtin that makes them."""
    is_model: bool
    is_named_tuple: bool


_shapes: Final[WeakKeyDictionary[type, Shape | str | None]] = WeakKeyDictionary()
_said: Final[WeakKeyDictionary[type, set[str]]] = WeakKeyDictionary()


def reduced(value: Any) -> tuple[Any, ...] | None:
    """Return how pickle is to write an instance; None where its class defines that, or where pickle's own way is right.

    Raises:
        TypeError: this is no data; the message says what to do.
    """
    cls = cast("type[Any]", type(value))
    try:
        shape = _shapes[cls]
    except KeyError:
        shape = _shapes[cls] = _refusal(cls) or _shape_of(cls)
    if shape is None:
        return None
    if isinstance(shape, str):
        raise TypeError(shape)
    if shape.is_named_tuple:
        return made_tuple, (cls, cls._fields, *_content(value, tuple)), getattr(value, "__dict__", None)
    return made, (cls, *_content(value, shape.base)), _state_of(value, cls, shape), None, None, restore


def check(value: Any) -> None:
    """Refuse a value that is no data, looking at the value alone and not into it.

    Raises:
        TypeError: it is no data; the message says what to do.
    """
    cls = cast("type[Any]", type(value))
    shape = _shapes[cls] if cls in _shapes else _refusal(cls)
    if isinstance(shape, str):
        raise TypeError(shape)


def _base_of(cls: type[Any]) -> Any:
    return next((base for base in (*_NATIVE, *_FILLED) if issubclass(cls, base)), object)


# Values that are no data


def _refusal(cls: type[Any]) -> str | None:
    """Return why instances of a class are no data."""
    name = f"{cls.__module__}.{cls.__qualname__}"
    if any(_is_of_ray(base) for base in cls.__mro__):
        return f"a {name} stands for a value of Ray's, and ends with its cluster: await it, and hand over the value"
    if issubclass(cls, io.IOBase) and not issubclass(cls, io.BytesIO | io.StringIO):
        return f"a {name} is an open file: read it inside a step, and hand over what it holds, or its path"
    if issubclass(cls, types.GeneratorType | types.AsyncGeneratorType):
        return f"a {name} gives its values once: hand over a list of them"
    if cls is memoryview:
        return "a memoryview shows the bytes of another object: hand over bytes(...) of it"
    travels: Any = cls.__reduce__ is not object.__reduce__  # as an Invocation does
    if (issubclass(cls, Coroutine) and not travels) or issubclass(cls, asyncio.Future):
        return f"a {name} is something to wait for: await it, and hand over what it gives, or of an awakeable its id"
    if cls.__module__.partition(".")[0] == "asyncio" and not issubclass(cls, BaseException):
        return f"a {name} belongs to one event loop: make it where it is used"
    return None


def _is_of_ray(cls: type[Any]) -> bool:
    return "ObjectRef" in cls.__name__ and cls.__module__.partition(".")[0] == "ray"


# Writing


def _content(value: Any, base: Any) -> tuple[Any, ...]:
    """Return the content of an instance for the builtin below its class, without asking the class."""
    if base not in _NATIVE:
        return ()
    ask: Any = getattr(base, "__getnewargs__", None)
    return (_items(value, base),) if ask is None else ask(value)


def _items(value: Any, base: Any) -> list[Any]:
    ask: Any = getattr(base, "items" if base is dict else "__iter__")
    return list(ask(value))


def _shape_of(cls: type[Any]) -> Shape | None:
    if cls.__module__ in sys.stdlib_module_names or cls.__reduce_ex__ is not object.__reduce_ex__:
        return None
    base = _base_of(cls)
    if cls.__reduce__ not in (object.__reduce__, getattr(base, "__reduce__", None)):
        return None
    if hasattr(cls, "__getnewargs_ex__"):
        return None
    new_args = getattr(cls, "__getnewargs__", None)
    if getattr(new_args, "__code__", None) is _NAMED_TUPLE:
        return Shape(tuple, is_model=False, is_named_tuple=True) if _is_stated_by_default(cls) else None
    if new_args is not getattr(base, "__getnewargs__", None):
        return None
    is_model = _is_model(cls)
    if not is_model and not _is_stated_by_default(cls):
        return None
    if base is object and not (is_model or _fields_of(cls) is not None or _runs_code(cls)):
        return None
    return Shape(base, is_model=is_model, is_named_tuple=False)


def _is_model(cls: type[Any]) -> bool:
    pydantic = sys.modules.get("pydantic")
    model = getattr(pydantic, "BaseModel", None)
    return (
        isinstance(model, type)
        and issubclass(cls, model)
        and all(getattr(cls, name) is getattr(model, name) for name in ("__getstate__", "__setstate__"))
    )


def _is_stated_by_default(cls: type[Any]) -> bool:
    """Whether a class leaves its state to pickle, or to the methods that `dataclass` and attrs have made for it."""
    found = [getattr(cls, name, None) for name in ("__getstate__", "__setstate__")]
    if found[0] is object.__getstate__ and found[1] is None:
        return True
    if all(getattr(each, "__name__", "") in _DATACLASS_STATE for each in found):
        return True
    return hasattr(cls, "__attrs_attrs__") and all("slots_" in getattr(each, "__name__", "") for each in found)


def _runs_code(cls: type[Any]) -> bool:
    """Whether pickle would run code of the class to make an instance or to set its slots."""
    return cls.__new__ is not object.__new__ or (cls.__setattr__ is not object.__setattr__ and bool(_slots(cls)))


def _slots(cls: type[Any]) -> list[str]:
    return cast("Any", copyreg)._slotnames(cls)


def _state_of(value: Any, cls: type[Any], shape: Shape) -> tuple[Any, ...]:
    attributes = dict[str, Any](getattr(value, "__dict__", ()))
    model = None
    if shape.is_model:
        found = value.__getstate__()
        # A set's order differs from process to process.
        model = tuple(sorted(found["__pydantic_fields_set__"])), found["__pydantic_extra__"], _private(found)
    else:
        for name in _slots(cls):
            try:
                attributes[name] = object.__getattribute__(value, name)
            except AttributeError:
                pass
    fields = _fields_of(cls) or {}
    odd = None
    if fields.keys() != attributes.keys():
        odd = [name for name in attributes if name not in fields], [name for name in fields if name not in attributes]
    content = _items(value, shape.base) if shape.base in _FILLED else None
    state = attributes, odd, content, model
    return state[: 4 if model is not None else 3 if content is not None else 2 if odd is not None else 1]


def _private(state: Mapping[str, Any]) -> dict[str, Any] | None:
    undefined = getattr(sys.modules.get("pydantic_core"), "PydanticUndefined", None)
    private: dict[str, Any] | None = state["__pydantic_private__"]
    return None if private is None else {name: found for name, found in private.items() if found is not undefined}


# Reading


@pinned("made")
def made(cls: type[Any], *content: Any) -> Any:
    """Return an instance as the builtin below its class makes it."""
    return _base_of(cls).__new__(cls, *content)


@pinned("made_tuple")
def made_tuple(cls: type[Any], names: tuple[str, ...], values: tuple[Any, ...]) -> Any:
    """Return a named tuple; its items go by their names.

    Raises:
        DecodeError: an item is not in the class, or one without a default is missing: a tuple has no place for others.
    """
    if names == cls._fields:
        return made(cls, values)
    found = dict(zip(names, values, strict=True))
    gone = [name for name in names if name not in cls._fields]
    if gone:
        raise DecodeError(
            f"a stored {_name(cls)} has the item {gone[0]!r}, for which the class has no place: give it back, at the "
            "end and with a default, for as long as such values are stored"
        )
    found = _evolved(cls, found, (), {name: _default(cls._field_defaults, name) for name in cls._fields})
    return made(cls, [found[name] for name in cls._fields])


def _default(defaults: Mapping[str, Any], name: str) -> Callable[[Mapping[str, Any]], Any] | None:
    return (lambda _: defaults[name]) if name in defaults else None


@pinned("restore")
def restore(value: Any, state: tuple[Any, ...]) -> None:
    """Give an instance its stored state.

    Raises:
        DecodeError: a field that its class has today was not stored, and has no default.
    """
    cls = cast("type[Any]", type(value))
    attributes: dict[str, Any]
    attributes, odd, content, model = cast("Any", (*state, None, None, None)[:4])
    if content is not None:
        _fill(value, content)
    fields = _fields_of(cls)
    if fields is not None and (odd is not None or fields.keys() != attributes.keys()):
        others, absent = odd or ((), ())
        attributes = _evolved(cls, attributes, absent, fields)
        _say(cls, [name for name in attributes if name not in fields and name not in others])
    if model is None:
        _set(value, cls, attributes)
    else:
        _set_model(value, cls, attributes, *model)


def _fill(value: Any, content: list[Any]) -> None:
    base = _base_of(cast("type[Any]", type(value)))
    if issubclass(base, list):
        cast("Any", base).extend(value, content)
    else:
        base.update(value, content)


def _set(value: Any, cls: type[Any], attributes: dict[str, Any]) -> None:
    slots = _slots(cls)
    kept = getattr(value, "__dict__", None)
    for name, found in attributes.items():
        if name in slots:
            object.__setattr__(value, name, found)
        elif kept is not None:
            kept[sys.intern(name)] = found
        else:
            raise DecodeError(
                f"a stored {_name(cls)} has the field {name!r}, for which the class has neither a slot nor a __dict__: "
                "give the field back, or declare the class without slots"
            )


def _set_model(
    value: Any,
    cls: type[Any],
    attributes: dict[str, Any],
    fields_set: Iterable[str],
    extra: dict[str, Any] | None,
    private: dict[str, Any] | None,
) -> None:
    declared = cast("Mapping[str, Any]", cls.__private_attributes__)
    if declared.keys() != (private or {}).keys():
        made = {name: each.get_default() for name, each in declared.items() if name not in (private or {})}
        undefined = getattr(sys.modules.get("pydantic_core"), "PydanticUndefined", None)
        private = {**(private or {}), **{name: each for name, each in made.items() if each is not undefined}}
    if extra is None and cls.model_config.get("extra") == "allow":
        extra = {}
    object.__setattr__(value, "__dict__", attributes)
    object.__setattr__(value, "__pydantic_fields_set__", set(fields_set))
    object.__setattr__(value, "__pydantic_extra__", extra)
    object.__setattr__(value, "__pydantic_private__", private)


READERS: Final = {made, made_tuple, restore}
"""Functions that stored bytes name."""

# Classes that have moved


def class_in(annotation: Any, qualname: str) -> type[Any] | None:
    """Return the class of this qualified name in an annotation, or in the fields of a class in it."""
    seen = list[Any]()
    waiting = [annotation]
    while waiting:
        each = waiting.pop()
        if any(each is one for one in seen):
            continue
        seen.append(each)
        if isinstance(each, type) and each.__qualname__ == qualname:
            return each
        generic = cast("dict[str, Any]", getattr(each, "__pydantic_generic_metadata__", None) or {})
        waiting += (*typing.get_args(each), generic.get("origin"), *generic.get("args", ()))
        if isinstance(each, type) and _fields_of(each) is not None:
            try:
                waiting += typing.get_type_hints(each).values()
            except Exception:  # noqa: BLE001 - it evaluates the user's text, which may raise anything
                continue
    return None


# Fields of the class as it is today

Fields = Mapping[str, Callable[[Mapping[str, Any]], Any] | None]
"""Names, each with a function that makes its default from the other fields; None where there is no default."""

_fields: Final[WeakKeyDictionary[type, Fields | None]] = WeakKeyDictionary()


def _fields_of(cls: type[Any]) -> Fields | None:
    """Return the fields that a class declares, None for a class that declares none."""
    try:
        return _fields[cls]
    except KeyError:
        found = _fields[cls] = _declared(cls)
        return found


def _declared(cls: type[Any]) -> Fields | None:
    models = getattr(cls, "__pydantic_fields__", None)  # of models and of pydantic's dataclasses
    if isinstance(models, dict):
        return {name: _made_by_model(field) for name, field in cast("dict[str, Any]", models).items()}
    if dataclasses.is_dataclass(cls):
        return {field.name: _made_by_dataclass(field) for field in dataclasses.fields(cls)}
    attrs = getattr(cls, "__attrs_attrs__", None)
    if isinstance(attrs, tuple):
        return {each.name: _made_by_attrs(each.default) for each in cast("tuple[Any, ...]", attrs)}
    return None


def _made_by_model(field: Any) -> Callable[[Mapping[str, Any]], Any] | None:
    if field.is_required():
        return None
    return lambda found: field.get_default(call_default_factory=True, validated_data=dict(found))


def _made_by_dataclass(field: "dataclasses.Field[Any]") -> Callable[[Mapping[str, Any]], Any] | None:
    if field.default is not dataclasses.MISSING:
        return lambda _: field.default
    if field.default_factory is not dataclasses.MISSING:
        factory = field.default_factory
        return lambda _: factory()
    return None


def _made_by_attrs(default: Any) -> Callable[[Mapping[str, Any]], Any] | None:
    factory = getattr(default, "factory", None)
    if factory is not None and hasattr(default, "takes_self"):
        return lambda found: factory(types.SimpleNamespace(**found)) if default.takes_self else factory()
    if type(default).__name__ == "_Nothing":
        return None
    return lambda _: default


def _evolved(cls: type[Any], attributes: dict[str, Any], absent: Iterable[str], fields: Fields) -> dict[str, Any]:
    """Return the attributes with the defaults of fields that the class has got since."""
    for name, make in fields.items():
        if name in attributes or name in absent:
            continue
        if make is None:
            raise DecodeError(
                f"a stored {_name(cls)} lacks the field {name!r}, which the class has now and which has no default: "
                "give it one, for as long as such values are stored"
            )
        attributes = {**attributes, name: make(attributes)}
    return attributes


def _say(cls: type[Any], gone: list[str]) -> None:
    if not gone:
        return
    said = _said.setdefault(cls, set())
    new = [name for name in gone if name not in said]
    if new:
        said.update(new)
        logger.warning(
            "stored values of %s hold what is no field of the class any more: %s. It is kept as it is; give the field "
            "back, or copy it to its new name",
            _name(cls),
            ", ".join(sorted(new)),
        )


def _name(cls: type[Any]) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
