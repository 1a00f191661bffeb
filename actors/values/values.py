"""Values: how arguments, results and state become bytes, with users' classes by name.

By value, each process would make a class of its own, and `isinstance` would fail where a value comes home. So a class
that pickle cannot import by itself goes as module and qualified name, and is looked up where it is read: in the `Scope`
of the code that an invocation runs with, else among the modules of this process.

Invariants:
    1. Writing needs no scope: a class knows the name under which it was sent.
    2. A class that cannot be found by name (a function's) carries its code along, used where the name is unknown.
    3. Instances of users' classes are written and read as `records`: no code of theirs runs.
"""

import io
import operator
import pickle
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from types import FunctionType
from typing import Any, Final, cast
from weakref import WeakKeyDictionary, WeakValueDictionary

import cloudpickle

from actors import stored
from actors.stored import pinned
from journal import codec
from journal.codec import MISSING

from . import records, seal
from .revived import is_revived, parts_of, revived

Name = tuple[str, str]
"""Module and qualified name."""

_PROTOCOL: Final = 5


@dataclass(frozen=True, slots=True)
class Scope:
    """The classes of one version of a program's code, by name."""

    digest: str = ""
    names: Mapping[Name, type] = field(default_factory=dict[Name, type])


LIVE: Final = Scope()
"""The scope of the classes that live in this process."""

_scopes: Final[WeakKeyDictionary[type, Scope]] = WeakKeyDictionary()
_sent: Final[WeakValueDictionary[Name, type]] = WeakValueDictionary()


def name_of(cls: type) -> Name:
    """Return the name of a class."""
    return cls.__module__, cls.__qualname__


def scope_of(cls: type) -> Scope:
    """Return the scope that a class was loaded with, `LIVE` for a class of this process."""
    return _scopes.get(cls, LIVE)


def adopt(cls: type, scope: Scope) -> None:
    """Note that a class was loaded as part of a scope."""
    _scopes[cls] = scope


def note_sent(cls: type, name: Name | None = None) -> None:
    """Note that the code of a class of this process was sent, or came: values find it by name."""
    _sent[name or name_of(cls)] = cls


def sent() -> dict[Name, type]:
    """Return the classes of this process that were sent, by name."""
    return dict(_sent)


def living(module: str, qualname: str, *, imports: bool = False) -> Any:
    """Return the object of this name in this process, or None; with `imports`, the module may be imported for it."""
    try:
        found: Any = sys.modules.get(module) or (import_module(module) if imports else None)
        for part in qualname.split("."):
            found = getattr(found, part)
    except Exception:  # noqa: BLE001 - importing runs code of users; a module that cannot be imported is not here
        return _sent.get((module, qualname))
    return found


def encode(value: Any, where: tuple[str, ...] = ()) -> bytes:
    """Return the bytes from which `decode` makes an equal value of the same types; `where` is its place (`seal`).

    Raises:
        UsageError: the value, or something in it, cannot be stored.
    """
    return codec.in_json(value) or codec.encode_pickle(value, partial(pickled, where=where))


def encode_arguments(args: tuple[Any, ...], kwargs: dict[str, Any], where: tuple[str, ...] = ()) -> bytes:
    """Return the bytes from which `decode` makes the list of both.

    Raises:
        UsageError: one of them cannot be stored.
    """
    if not kwargs and (plain := codec.plain_arguments(args)) is not None:
        return plain
    return encode([list(args), kwargs], where)


def decode(data: bytes, annotation: Any = MISSING, scope: Scope = LIVE, where: tuple[str, ...] = ()) -> Any:
    """Return the value that `encode` was given, with the classes of this scope.

    A class that is not where it was when the value was written is looked for in the annotation.

    Raises:
        DecodeError: this process lacks something that the value needs.
    """
    if data[:1] == b"J":
        return codec.decode(data)
    return codec.decode(data, annotation, loads=partial(unpickled, scope=scope, annotation=annotation, where=where))


def pickled(value: Any, most: int | None = None, where: tuple[str, ...] = ()) -> bytes:
    """Return the pickle of a value, with users' classes by name, sealed.

    Raises:
        ValueError: it takes more than `most` bytes; not all of them were made.
        Exception: any error of the user's code as it is pickled.
    """
    file = io.BytesIO() if most is None else _Bounded(most)
    cast("Any", _ValuePickler(file, _PROTOCOL)).dump(value)
    return seal.sealed(file.getvalue(), where)


def unpickled(data: bytes, scope: Scope = LIVE, annotation: Any = MISSING, where: tuple[str, ...] = ()) -> Any:
    """Return the value of a pickle, with the classes of this scope, if its seal is one of ours."""
    return _ValueUnpickler(io.BytesIO(seal.unsealed(data, where)), scope, annotation).load()


class _Bounded(io.BytesIO):
    """A file that takes so many bytes."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._left = most

    def write(self, data: Any, /) -> int:
        self._left -= len(data)
        if self._left < 0:
            raise ValueError("too large")
        return super().write(data)


class _ValuePickler(cloudpickle.Pickler):
    """Writes classes that cannot be imported as calls of `_named`, and exceptions with an `__init__` as their parts."""

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type):
            reduced = _reduced(obj)
            if reduced is not None:
                return reduced
        elif is_revived(type(obj)):  # pyright: ignore[reportUnknownArgumentType]  # of whatever class
            return revived, parts_of(obj)
        elif type(obj) is FunctionType and obj in records.READERS:
            return NotImplemented  # pickle's own way: cloudpickle's takes five times as long to find the same
        elif (record := records.reduced(obj)) is not None:
            return record
        return cast("Any", super()).reducer_override(obj)


def _reduced(cls: type) -> tuple[Any, ...] | None:
    """Return how pickle is to write a class, None for one that it knows how to import."""
    generic = cast("dict[str, Any]", getattr(cls, "__pydantic_generic_metadata__", None) or {})
    if generic.get("origin") is not None:  # `Page[Item]` is a class too, which pydantic makes where it is asked for
        return operator.getitem, (generic["origin"], generic["args"])
    name = name_of(cls)
    if cls in _scopes:
        return _named, name
    if name[0] == "builtins":
        return None
    if living(*name) is cls:
        return (_named, name) if name[0] == "__main__" or "<locals>" in name[1] else None
    _sent.setdefault(name, cls)
    return _named, (*name, cast("Any", cloudpickle).dumps(cls, _PROTOCOL))


@pinned("_named")
def _named(module: str, qualname: str, code: bytes = b"") -> type:
    """Return a class by its name; while a value is read, the method of its unpickler stands for this function."""
    raise pickle.UnpicklingError("a value of Perdure's is read by actors.values.values alone")


class _ValueUnpickler(pickle.Unpickler):
    """Looks classes up in a scope first."""

    def __init__(self, file: io.BytesIO, scope: Scope, annotation: Any) -> None:
        super().__init__(file)
        self._names, self._annotation = scope.names, annotation

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        name = module_name, global_name
        found = self._names.get(name) or stored.NAMES.get(name)
        if found is not None:
            return cast("Any", self._named if found is _named else found)
        try:
            return super().find_class(module_name, global_name)
        except (ImportError, AttributeError):
            moved = _sent.get(name) or records.class_in(self._annotation, global_name)
            if moved is None:
                raise
            return moved

    def _named(self, module: str, qualname: str, code: bytes = b"") -> Any:
        found = self._names.get((module, qualname)) or living(module, qualname, imports=True)
        if found is None and code:
            found = stored.loads(code)
        found = found or records.class_in(self._annotation, qualname)
        if found is None:
            raise AttributeError(f"there is no class {qualname} in {module} here")
        return found
