"""Code hash: the hash of a program's classes and of the values that they refer to, the same in every process.

A pickle does not serve: its bytes differ from process to process (sets, cloudpickle's numbers of classes, which strings
are one object). So the graph of classes, functions and values is walked here, in an order of its own.

Owns which modules travel by value, and the walk. Does not own: the pickle (`bundles`).

Invariants:
    1. The walk always ends: in depth at `DEPTH_MAX`, in number at `VISITS_MAX`, and once in each object.
    2. Of an object whose content differs from process to process (a lock, a client, a logger), only the class counts.
"""

import copyreg
import enum
import sys
import sysconfig
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from hashlib import blake2b
from itertools import count
from operator import is_
from pathlib import Path
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any, Final, cast

import cloudpickle

from actors.objects.handlers import Handler
from actors.objects.state import State

DEPTH_MAX: Final = 50
"""Greatest depth of nested values; deeper ones count with their class alone."""
VISITS_MAX: Final = 500_000
"""How many objects count, the first ones that the walk meets."""

_OURS: Final = ("actors", "journal")
_INSTALLED: Final = tuple(
    {str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)
_PLAIN: Final = (type(None), bool, int, float, complex, str, bytes, type(...), type(NotImplemented))
_CODE: Final[tuple[type[Any], ...]] = (
    FunctionType,
    BuiltinFunctionType,
    MethodType,
    ModuleType,
    type,
    property,
    staticmethod,
    classmethod,
    partial,
    Handler,
    State,
)
_VOLATILE: Final = frozenset(
    {"_io", "asyncio", "concurrent", "logging", "random", "ray", "socket", "threading", "weakref"}
)
"""Packages whose objects differ from process to process."""
_OF_CLASSES: Final = frozenset({"__annotations__", "__dataclass_fields__", "__pydantic_fields__"})
"""Attributes of a class that count beside its functions and its names without underscores."""


def goes_by_value(name: str | None) -> bool:
    """Whether a module goes by value: its source is a file of the user's own, or it is the program itself."""
    module = sys.modules.get(name or "")
    if name == "__main__":
        return True
    if not isinstance(module, ModuleType) or module.__name__.partition(".")[0] in _OURS:
        return False
    path = getattr(module, "__file__", None)
    if not isinstance(path, str) or not path.endswith(".py"):
        return False
    resolved = Path(path).resolve()
    return "site-packages" not in resolved.parts and not str(resolved).startswith(_INSTALLED)


class Globals:
    """The globals that functions refer to, as they were: `are_unchanged` says whether one was bound anew since."""

    def __init__(self) -> None:
        self._names: dict[int, tuple[Mapping[str, Any], set[str]]] = {}
        self._kept: list[tuple[Callable[[str], Any], tuple[str, ...], list[Any]]] | None = None

    def note(self, namespace: Mapping[str, Any], names: Iterable[str]) -> None:
        """Add names that are looked up in this namespace."""
        self._names.setdefault(id(namespace), (namespace, set()))[1].update(names)

    def keep(self) -> None:
        """Remember the objects that they are bound to now."""
        kept = [(namespace.get, tuple(sorted(names))) for namespace, names in self._names.values() if names]
        self._kept = [(get, names, list(map(get, names))) for get, names in kept]

    def are_unchanged(self) -> bool:
        """Whether each is still bound to the same object; a change in place is not noticed."""
        assert self._kept is not None
        return all(all(map(is_, map(get, names), values)) for get, names, values in self._kept)


class CodeHash:
    """A walk over classes and all that they reach: their code, and with `values` constants, defaults, closures."""

    def __init__(self, has_source: Callable[[str], bool], *, values: bool) -> None:
        self._has_source, self._values = has_source, values
        self._hash = blake2b(digest_size=16)
        self._seen: dict[int, tuple[int, object]] = {}
        """By id, the number and the object itself, so that no other one gets its id meanwhile."""
        self._numbers, self._visits = count(), count()
        self._depth = 0
        self.modules: set[str] = set()
        """Names of the travelling modules that were met."""
        self.globals = Globals()

    @property
    def digest(self) -> bytes:
        """Return the hash of all that was added."""
        return self._hash.digest()

    def add(self, value: Any) -> None:
        """Walk over a value and all that it reaches."""
        counts = self._values or issubclass(type(value), _CODE)  # of a proxy, `isinstance` would ask the object
        kind = cast("type[Any]", type(value))
        if kind in _PLAIN:
            if counts:
                self._put(kind.__name__, repr(value))
        elif (known := self._seen.get(id(value))) is not None:
            if counts:
                self._put("again", str(known[0]))
        else:
            if kind is not tuple and kind is not frozenset:  # a compiler may make one of equal constants
                # Data has no number where it does not count: there may be more of it the next time.
                self._seen[id(value)] = next(self._numbers) if counts else -1, value
            if self._depth >= DEPTH_MAX or next(self._visits) > VISITS_MAX:
                self._put("beyond")
                return
            self._depth += 1
            if counts:
                self._enter(value)
            else:
                self._search(value)
            self._depth -= 1

    def _put(self, *words: str) -> None:
        for word in words:
            data = word.encode("utf-8", "surrogatepass")
            self._hash.update(b"%d:" % len(data) + data)

    def _all(self, tag: str, values: Iterable[Any]) -> None:
        self._put(tag)
        for value in values:
            self.add(value)
        self._put("end")

    def _search(self, value: Any) -> None:
        """Look for code in a collection that does not count itself."""
        kind = cast("type[Any]", type(value))
        if kind is dict:
            value = list(value.values())
        if kind in (dict, list, tuple):
            for each in value:
                self.add(each)

    def _enter(self, value: Any) -> None:
        kind = cast("type[Any]", type(value))
        if kind is list or kind is tuple:
            self._all(kind.__name__, value)
        elif kind is dict or kind is MappingProxyType:
            self._all("dict", (each for item in list(value.items()) for each in item))
        elif kind is set or kind is frozenset:
            self._put(kind.__name__, *sorted(self._hash_of_member(each) for each in value))
        elif issubclass(kind, ModuleType):
            self._module(value)
        elif kind is FunctionType:
            self._function(value)
        elif issubclass(kind, type):
            self._class(value)
        else:
            self._object(value)

    def _hash_of_member(self, value: Any) -> str:
        """Return the hash of one member of a set: sets have no order."""
        other = CodeHash(self._has_source, values=self._values)
        other._depth, other._visits, other.modules, other.globals = (
            self._depth,
            self._visits,
            self.modules,
            self.globals,
        )
        other.add(value)
        return other.digest.hex()

    def _module(self, module: ModuleType) -> None:
        self._put("module", module.__name__)
        if goes_by_value(module.__name__):
            self.modules.add(module.__name__)
            names = sorted(name for name in vars(module) if not name.startswith("__"))
            self.globals.note(vars(module), names)
            self._named(vars(module), names)

    def _named(self, namespace: Mapping[str, Any], names: Iterable[str]) -> None:
        for name in names:
            if name in namespace:
                self._put("name", name)
                self.add(namespace[name])

    def _function(self, fn: FunctionType) -> None:
        self._put("function", str(fn.__module__), fn.__qualname__)
        if not goes_by_value(fn.__module__):
            return
        self.modules.add(fn.__module__)
        if not self._has_source(fn.__module__):
            self._code(fn.__code__)
        for part in (fn.__defaults__, fn.__kwdefaults__, vars(fn)):
            self.add(part)
        self._all("closure", [_content(cell) for cell in fn.__closure__ or ()])
        names = sorted(cast("Any", cloudpickle).cloudpickle._extract_code_globals(fn.__code__))
        if goes_by_value(fn.__globals__.get("__name__")):
            self.globals.note(fn.__globals__, names)
        self._named(fn.__globals__, names)

    def _code(self, code: CodeType) -> None:
        self._put("code", code.co_name, code.co_code.hex(), *code.co_names, *code.co_varnames, *code.co_freevars)
        self._constant(code.co_consts)

    def _constant(self, value: object) -> None:
        if isinstance(value, CodeType):
            self._code(value)
        elif isinstance(value, tuple):
            self._put("tuple")
            for each in cast("tuple[object, ...]", value):
                self._constant(each)
        elif isinstance(value, frozenset):
            self._put("frozenset", *sorted(map(repr, cast("frozenset[object]", value))))
        else:
            self._put(type(value).__name__, repr(value))

    def _class(self, cls: type) -> None:
        self._put("class", cls.__module__, cls.__qualname__)
        if not goes_by_value(cls.__module__):
            return
        self.modules.add(cls.__module__)
        self._all("bases", cls.__bases__)
        for name, value in sorted(vars(cls).items()):
            is_inner = name.startswith(("__", "_abc_", "_table")) and not isinstance(value, FunctionType)
            if not is_inner or name in _OF_CLASSES:
                self._put("attribute", name)
                self.add(value)

    def _object(self, value: Any) -> None:
        """Walk over an object by the content of its pickle, if its class defines that."""
        kind = cast("type[Any]", type(value))
        self._put("object", f"{kind.__module__}.{kind.__qualname__}")
        if issubclass(kind, Handler):
            found = cast("Handler[Any, Any]", value)
            self._put(found.name, str(found.exclusive), str(found.reentrant))
            self._all("handler", (found.fn, found.policy))
        elif issubclass(kind, State):
            field = cast("State[Any]", value)
            self._all("state", (field.factory, field.default, field.ttl_ms))
        elif issubclass(kind, property):
            self._all("property", (value.fget, value.fset, value.fdel))
        elif issubclass(kind, staticmethod | classmethod | MethodType):
            self._all("method", (value.__func__, getattr(value, "__self__", None)))
        elif issubclass(kind, partial):
            part = cast("partial[Any]", value)
            self._all("partial", (part.func, part.args, part.keywords))
        elif issubclass(kind, BuiltinFunctionType):
            self._put(str(value.__module__), value.__qualname__)
        elif kind.__module__.partition(".")[0] == "ray":
            # A result of `ray.remote`; the object around the function has a random number.
            self.add(getattr(value, "_function", None))
        else:
            self._content(value)

    def _content(self, value: Any) -> None:
        if issubclass(type(value), enum.Enum):
            self._put(value.name)
            return
        if type(value).__module__.partition(".")[0] in _VOLATILE:
            return
        reduce = cast("Mapping[type, Callable[[Any], Any]]", copyreg.dispatch_table).get(type(value))  # pyright: ignore[reportUnknownArgumentType]
        try:
            reduced: Any = reduce(value) if reduce is not None else value.__reduce_ex__(4)
        except KeyboardInterrupt:
            raise
        except BaseException:  # noqa: BLE001 - runs code of the user, and most objects without a pickle raise
            return
        if isinstance(reduced, str):
            self._put(reduced)
        elif isinstance(reduced, tuple):
            parts = [list(part) if hasattr(part, "__next__") else part for part in cast("tuple[Any, ...]", reduced)]
            self._all("reduced", parts)


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # a variable that was not bound yet
        return None
