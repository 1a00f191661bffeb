"""Objects as users write them: a class becomes a checked table of handlers and fields, and a typed address.

Owns: the base classes, addresses, and what may be wrong with a class. Does not own: fields (`state`), handlers and
calls (`handlers`).

Invariants:
    1. When a class is made, nothing is computed that an unpickled class would lack. cloudpickle makes an empty class
       first (`__init_subclass__` runs without keywords), then sets its attributes without `__set_name__`. So tables are
       read when first asked for, and what the keywords said lies in the class's own `__dict__`.
    2. An address pickles as type name and key, without its class.
    3. A wrong call raises in the caller, before anything is sent.
"""

# pyright: reportPrivateUsage=false
# Names on users' classes are private to keep every other name free; state, handlers and objects share them.

from __future__ import annotations

import difflib
import itertools
import re
from abc import ABCMeta
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, TypeVar, cast, overload

from .errors import UsageError
from .handlers import Handler
from .invocation import Invocation
from .place import EMPTY_OPTIONS, CallOptions, Request, caller
from .policy import Duration, Policy
from .state import Addressed, Fields, Options, State, Unkeyed

T = TypeVar("T")

TYPE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
HTTP_WORDS = frozenset({"awakeables", "console", "health", "invocations", "metrics"})
"""First parts of URLs that are not types."""
TAKEN = frozenset({"handle", "_fields", "_key", "_options", "_table"})
"""Names that the bases use themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """All that a class declares, its bases included."""

    name: str
    cls: type[Durable]
    handlers: Mapping[str, Handler[Any, Any]]
    fields: Mapping[str, State[Any]]
    options: Options
    is_service: bool
    """It has no key and no state."""

    def handler(self, name: str) -> Handler[Any, Any]:
        """Return the handler of this name.

        Raises:
            UsageError: there is none; it lists those that there are.
        """
        found = self.handlers.get(name)
        if found is None:
            raise UsageError(self.without(name))
        return found

    def without(self, name: str) -> str:
        """Return the sentence that there is no handler of this name, but others, and which is the nearest."""
        near = difflib.get_close_matches(name, self.handlers, 1)
        hint = f": did you mean {near[0]!r}?" if near else "."
        return f"{self.name} has no handler {name!r}{hint} It has: {', '.join(sorted(self.handlers)) or 'none'}"


_numbers = itertools.count()


class _Table:
    """A class's declaration, once it was read. It pickles empty, so that a class set anew in place is read anew."""

    __slots__ = ("declaration", "number")

    def __init__(self) -> None:
        self.declaration: Declaration | None = None
        self.number = next(_numbers)
        """Later classes have greater ones."""

    def __reduce__(self) -> tuple[type[_Table], tuple[()]]:
        return _Table, ()


def type_name(cls: type[Durable]) -> str:
    """Return the stable name of the type that the class declares."""
    return cls._options.name


def declaration(cls: type[Durable]) -> Declaration:
    """Return what the class declares; read once.

    Raises:
        UsageError: what it declares contradicts itself.
    """
    table = cls._table
    if table.declaration is None:
        handlers, fields = _declared(cls)
        table.declaration = Declaration(
            name=cls._options.name,
            cls=cls,
            handlers=handlers,
            fields=fields,
            options=cls._options,
            is_service=issubclass(cls, Service),
        )
    return table.declaration


def find_type(name: str) -> type[Durable] | None:
    """Return the class of this type in this process, the latest definition of it, or None.

    A walk over the subclasses: it finds a class that was never used, and keeps none alive.

    Raises:
        UsageError: two modules define it.
    """
    found: type[Durable] | None = None
    for cls in _types(name):
        _check_place(found, cls)
        found = cls
    return found


def _types(name: str) -> list[type[Durable]]:
    """Return the classes of this name that have handlers, older before newer."""
    named = (cls for cls in _subclasses(Durable) if cls._options.name == name)
    return sorted((cls for cls in named if declaration(cls).handlers), key=lambda cls: cls._table.number)


def _subclasses(cls: type[Durable]) -> Iterator[type[Durable]]:
    for below in cls.__subclasses__():
        if "_table" in vars(below):
            yield below
        yield from _subclasses(below)


def _check_class(cls: type[Durable], name: str, *, is_said: bool) -> None:
    mixins = [base for base in cls.__mro__ if Addressed not in base.__mro__ and base not in (Unkeyed, object)]
    for base in (cls, *mixins):
        if "__init__" in vars(base):
            raise UsageError(f"{base.__name__}.__init__ would never run: declare fields, `n: int = state(0)`")
        if taken := TAKEN & vars(base).keys():
            raise UsageError(f"{base.__name__}.{min(taken)}: the name is taken")
    _declared(cls)
    # A class that is being unpickled has no handlers of its own yet, and its name may not be the one that counts.
    is_whole = any(isinstance(value, Handler) for value in vars(cls).values())
    if is_said or is_whole:
        _check_type_name(name)
    if is_whole:
        for other in _types(name):
            _check_place(other, cls)


def _check_type_name(name: object) -> None:
    if not isinstance(name, str) or TYPE_NAME.fullmatch(name) is None:
        raise UsageError(f"{name!r} cannot name a type: say name=, letters, digits, '_', '.', '-', not a digit first")
    if name in HTTP_WORDS:
        raise UsageError(f"{name!r} cannot name a type: URLs begin with it; say another name=")


def _check_place(one: type | None, other: type) -> None:
    """Refuse two classes of one name, unless the second replaces the first.

    What a function defines lasts as long as the collector lets it: there the latest counts, wherever the first was.
    """
    if one is None or "<locals>" in one.__qualname__ + other.__qualname__:
        return
    places = [f"{cls.__module__}.{cls.__qualname__}" for cls in (one, other)]
    if places[0] != places[1]:
        raise UsageError(f"{places[0]} and {places[1]} are one type by name: give one of them another, name=...")


def _declared(cls: type[Durable]) -> tuple[dict[str, Handler[Any, Any]], dict[str, State[Any]]]:
    handlers: dict[str, Handler[Any, Any]] = {}
    fields: dict[str, State[Any]] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            if isinstance(value, Handler):
                handlers[name] = cast("Handler[Any, Any]", value)
                _check_member(base, name, handlers[name], fields)
            elif isinstance(value, State):
                fields[name] = cast("State[Any]", value)
                _check_member(base, name, fields[name], handlers)
            elif name in handlers or name in fields:
                raise UsageError(f"{base.__name__}.{name} hides a handler or field: decorate it too, or rename it")
    if fields and issubclass(cls, Service):
        raise UsageError(f"{cls.__name__}.{next(iter(fields))}: a service has no state; make it a VirtualObject")
    return handlers, fields


def _check_member(base: type, name: str, value: Handler[Any, Any] | State[Any], others: Mapping[str, object]) -> None:
    where = f"{base.__name__}.{name}"
    if name.startswith("_"):
        raise UsageError(f"{where}: handlers and fields do not begin with '_', helpers do")
    if name in TAKEN:
        raise UsageError(f"{where}: the name is taken")
    if name in others:
        raise UsageError(f"{where} is declared twice: a name is a handler or a field, in all bases")
    if value.name != name:
        raise UsageError(f"{where} is also called {value.name!r}: declare it once")


class ByName:
    """An address whose handlers are called by their names: `handle.remote("reserve", "alice")`.

    Where the class is known in this process, calls are checked as on the class.
    """

    __slots__ = ("_key", "_options", "_owner", "_type_name")

    def __init__(
        self,
        type_name: str,
        key: str | None,
        owner: type[Durable] | None = None,
        options: CallOptions = EMPTY_OPTIONS,
    ) -> None:
        self._type_name = type_name
        self._key = key
        self._owner = owner
        self._options = options

    def remote(self, handler: str, /, *args: Any, **kwargs: Any) -> Invocation[Any]:
        """Start an invocation of the handler of this name.

        Raises:
            TypeError: the arguments are not the handler's.
            UsageError: the class is known and has no such handler; or as with every call.
        """
        return self._start(handler, args, kwargs, one_way=False)

    def send(self, handler: str, /, *args: Any, **kwargs: Any) -> Invocation[Any]:
        """Start an invocation whose result nobody waits for; else as `remote`."""
        return self._start(handler, args, kwargs, one_way=True)

    def options(
        self,
        *,
        delay: Duration | None = None,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> ByName:
        """Return a copy with these options; what is not given stays."""
        changed = self._options.changed(delay, idempotency_key, headers)
        return ByName(self._type_name, self._key, self._owner, changed)

    def _start(self, handler: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, one_way: bool) -> Any:
        owner = self._owner or find_type(self._type_name)
        declared = None
        if owner is not None:
            declared = self._declared(owner, handler)
            declared.check(args, kwargs)
        return caller().start(
            Request(self._type_name, self._key, handler, args, kwargs, one_way, self._options, declared, owner)
        )

    def _declared(self, owner: type[Durable], handler: str) -> Handler[Any, Any]:
        if issubclass(owner, Service) and self._key is not None:
            raise UsageError(f"{owner.__name__} is a service, it has no key: {owner.__name__}.handle")
        return declaration(owner).handler(handler)

    def __repr__(self) -> str:
        return self._type_name if self._key is None else f"{self._type_name}[{self._key!r}]"

    def __reduce__(self) -> tuple[type[ByName], tuple[str, str | None, None, CallOptions]]:
        return ByName, (self._type_name, self._key, None, self._options)


def object_handle(type_name: str, key: str) -> ByName:
    """Return the address of an object whose class need not be known here.

    Raises:
        UsageError: no type has this name, or no object this key.
    """
    _check_type_name(type_name)
    if not isinstance(key, str) or not key:  # pyright: ignore[reportUnnecessaryIsInstance]  # users without a checker
        raise UsageError(f"the key of a {type_name} is a str that is not empty, not {key!r}")
    return ByName(type_name, key)


class _Handle:
    """`Ticket["A1"].handle`, `Checkout.handle`: the same address, by name."""

    @overload
    def __get__(self, instance: None, owner: type[Service]) -> ByName: ...
    @overload
    def __get__(self, instance: None, owner: type[object]) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type[object]) -> ByName: ...
    def __get__(self, instance: object | None, owner: type[Any]) -> ByName | Self:
        if issubclass(owner, Service):
            return ByName(type_name(owner), None, owner)
        return self if instance is None else ByName(type_name(owner), cast("Durable", instance)._key, owner)


class Keyed(ABCMeta):
    """What makes `Ticket["A1"]` an address. ABCMeta, so that users may mix in abstract classes."""

    def __getitem__(cls: type[T], key: str, /) -> T:
        if type(key) is not str:
            if not isinstance(key, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # users without a checker
                return cast("T", _specialised(cls, key))
            key = str.__str__(key)  # a StrEnum's member, for one
        if not key:
            raise UsageError(f"the key of a {cls.__name__} is not empty")
        return _made(cls, key, None)


def _specialised(cls: type, parameters: object) -> object:
    """`Box[int]`: a metaclass that subscripts comes before the class's own `__class_getitem__`."""
    if not getattr(cls, "__parameters__", ()):
        raise TypeError(f"the key of a {cls.__name__} is a str, not {parameters!r}")
    return cast("Any", cls).__class_getitem__(parameters)


class Durable(Addressed):
    """What objects and services share."""

    __slots__ = ()

    handle: Final = _Handle()
    """The same address, its handlers called by name: `Ticket["A1"].handle.remote("reserve", "alice")`."""

    _table: ClassVar[_Table]

    def __init_subclass__(cls, *, name: str | None = None, policy: Policy | None = None) -> None:
        super().__init_subclass__()
        options = Options(name=cls.__name__ if name is None else name, policy=policy)
        _check_class(cls, options.name, is_said=name is not None)
        # Last: a class that was refused lives on in its traceback, and must not be found.
        cls._options, cls._table = options, _Table()

    if not TYPE_CHECKING:  # a checker knows the fields already, and takes these for leave to do anything

        def __new__(cls, *args: object, **kwargs: object) -> Self:
            how = f"{cls.__name__}.<handler>" if issubclass(cls, Service) else f"{cls.__name__}[key]"
            raise UsageError(f"{cls.__name__} has no instances of its own: use {how}")

        def __setattr__(self, name: str, value: object) -> None:
            field = declaration(type(self)).fields.get(name)
            if field is not None:
                field.__set__(self, value)
            elif hasattr(getattr(type(self), name, None), "__set__"):  # a property of the user's
                object.__setattr__(self, name, value)
            else:
                raise UsageError(f"{type(self).__name__}.{name} is not declared: declare it, `{name}: T = state(...)`")

    def __eq__(self, other: object) -> bool:
        return self._key == other._key if isinstance(other, Durable) and type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash((self._options.name, self._key))

    def __repr__(self) -> str:
        return type(self).__name__ if self._key is None else f"{type(self).__name__}[{self._key!r}]"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str | None]]:
        return _restored_address, (self._options.name, self._key)


class VirtualObject(Durable, metaclass=Keyed):
    """The base of classes whose every key is an object: it always exists, keeps its state, runs one handler at a time.

    Keywords of the class: `name` (the type's stable name, the class's own by default) and `policy`.
    """

    __slots__ = ()


class Service(Durable, Unkeyed, metaclass=ABCMeta):
    """The base of classes without key and state: any number of invocations at once.

    Keywords of the class: as of `VirtualObject`.
    """

    __slots__ = ()


_new: Final = object.__new__
_set_key: Final = vars(Addressed)["_key"].__set__
_set_fields: Final = vars(Addressed)["_fields"].__set__


def _made(cls: type[T], key: str | None, fields: Fields | None) -> T:
    made = _new(cls)
    _set_key(made, key)
    _set_fields(made, fields)
    return made


def instance(cls: type[Durable], key: str | None, fields: Fields) -> Durable:
    """Return the `self` of one execution."""
    return _made(cls, key, fields)


def _restored_address(name: str, key: str | None) -> object:
    cls = find_type(name)
    return ByName(name, key) if cls is None else _made(cls, key, None)
