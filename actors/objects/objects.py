"""Objects as users write them: a class becomes a checked table of handlers and fields, and a typed address.

Owns the base classes, addresses, and the checks of a class. Does not own fields (`state`), handlers and calls
(`handlers`).

Invariants:
    1. When a class is made, nothing is computed that an unpickled class would lack. cloudpickle makes an empty class
       first (`__init_subclass__` runs without keywords), then sets its attributes without `__set_name__`. So tables are
       made at first use, and the class's keywords lie in its own `__dict__`.
    2. An address pickles as type name and key, without its class.
    3. A wrong call raises in the caller, before anything is sent.
"""

# pyright: reportPrivateUsage=false
# Names on users' classes are private to keep every other name free; state, handlers and objects share them.

from __future__ import annotations

import difflib
import inspect
import itertools
import re
from abc import ABCMeta
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, TypeVar, cast, overload

from actors.errors import UsageError
from actors.policy import Duration, Policy, check_policy
from actors.requests.current import caller
from actors.requests.invocation import Invocation
from actors.requests.request import EMPTY_OPTIONS, CallOptions, Request
from actors.requests.run_ids import RUN
from actors.requests.schedule import INTERNAL, Schedule, ScheduleOptions, declared, handler_keywords
from actors.requests.timing import Missed
from actors.stored import pinned, public
from actors.values.values import LIVE, scope_of
from journal.codec import MISSING

from . import edits
from .declarations import TAKEN, check_run, members
from .handlers import Handler, handler
from .lifetimes import Lifetimes, ttl_ms
from .state import Addressed, Fields, Options, State, Unkeyed

T = TypeVar("T")

TYPE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
HTTP_WORDS = frozenset({"awakeables", "console", "health", "invocations", "metrics", "restate"})
"""First segments of URLs that cannot be type names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Declaration:
    """Everything that a class declares, its bases included."""

    name: str
    cls: type[Durable]
    handlers: Mapping[str, Handler[Any, Any]]
    fields: Mapping[str, State[Any]]
    options: Options
    is_service: bool
    """Whether it has no key and no state."""
    lifetimes: Lifetimes | None
    """The ttl of its state; None if it has none."""
    is_workflow: bool
    """Whether its `run` happens once for each key, and it has promises."""

    def handler(self, name: str) -> Handler[Any, Any]:
        """Return the handler of this name.

        Raises:
            UsageError: there is none; the message lists the handlers of the class.
        """
        found = self.handlers.get(name) or self.built_in(name)
        if found is None:
            raise UsageError(self.without(name))
        return found

    def built_in(self, name: str) -> Handler[Any, Any] | None:
        """Return the handler of this name that every object has without declaring it; None if there is none."""
        return edits.EDIT if name == edits.NAME and not (self.is_service or self.is_workflow) else None

    def without(self, name: str) -> str:
        """Return the error text for a missing handler: the handlers of the class, and the name that is nearest."""
        near = difflib.get_close_matches(name, self.handlers, 1)
        hint = f": did you mean {near[0]!r}?" if near else "."
        return f"{self.name} has no handler {name!r}{hint} It has: {', '.join(sorted(self.handlers)) or 'none'}"


def without(cls: type[Durable], name: str) -> str:
    """Return the error text for a missing handler or field of a class, with the name that is nearest."""
    said = f"{cls.__name__!r} object has no attribute {name!r}"
    if name.startswith("_"):  # no typing error: a library looks for a protocol of Python
        return said
    handlers, fields = members(cls)
    near = difflib.get_close_matches(name, (*handlers, *fields), 1)
    hint = f"did you mean {near[0]!r}?" if near else f"it has: {', '.join(sorted((*handlers, *fields))) or 'none'}"
    return f"{said}: {hint}"


_numbers = itertools.count()


@pinned("_Table")
class _Table:
    """A class's declaration, made at first use. It pickles empty, so that a class changed in place is read anew."""

    __slots__ = ("declaration", "number")
    changed: ClassVar[int] = 0

    def __init__(self) -> None:
        self.declaration: Declaration | None = None
        self.number = _Table.changed = next(_numbers)
        """Grows with each new class."""

    def __reduce__(self) -> tuple[type[_Table], tuple[()]]:
        return _Table, ()


def classes_changed() -> int:
    """Return a number that differs after each change of the classes in this process."""
    return _Table.changed


def type_name(cls: type[Durable]) -> str:
    """Return the stable name of the type that the class declares."""
    return cls._options.name


def declaration(cls: type[Durable]) -> Declaration:
    """Return the declaration of a class, which is read once.

    Raises:
        UsageError: the declaration contradicts itself.
    """
    table = cls._table
    if table.declaration is None:
        handlers, fields = _members(cls, is_whole=True)
        table.declaration = Declaration(
            name=cls._options.name,
            cls=cls,
            handlers=handlers,
            fields=fields,
            options=cls._options,
            is_service=issubclass(cls, Service),
            lifetimes=_lifetimes(cls, fields),
            is_workflow=issubclass(cls, Workflow),
        )
    return table.declaration


def _members(cls: type[Durable], *, is_whole: bool) -> tuple[dict[str, Handler[Any, Any]], dict[str, State[Any]]]:
    handlers, fields = members(cls)
    if fields and issubclass(cls, Service):
        raise UsageError(f"{cls.__name__}.{next(iter(fields))}: a service has no state; make it a VirtualObject")
    if is_whole and issubclass(cls, Workflow):
        check_run(cls, handlers)
    return handlers, fields


def _lifetimes(cls: type[Durable], fields: Mapping[str, State[Any]]) -> Lifetimes | None:
    found = {name: field.ttl_ms for name, field in fields.items() if field.ttl_ms}
    return Lifetimes(cls._options.ttl_ms, found) if found or cls._options.ttl_ms else None


def find_type(name: str) -> type[Durable] | None:
    """Return the class of this type in this process, the latest definition of it, or None.

    A class that was loaded as code of another process counts only if no class of this process has the name. A walk over
    the subclasses finds a class that was never used, and keeps none alive.

    Raises:
        UsageError: two modules define it.
    """
    found: type[Durable] | None = None
    types = _types(name)
    for cls in [cls for cls in types if scope_of(cls) is LIVE] or types:
        _check_place(found, cls)
        found = cls
    return found


def types_of_programs() -> dict[str, type[Durable]]:
    """Return the classes that were defined in this process, by name: not those of Perdure itself, nor loaded ones."""
    names = {cls._options.name for cls in _subclasses(Durable) if scope_of(cls) is LIVE}
    found = {name: find_type(name) for name in sorted(names) if not name.startswith(INTERNAL)}
    return {name: cls for name, cls in found.items() if cls is not None}


def _types(name: str) -> list[type[Durable]]:
    """Return the classes of this name that have handlers, older before newer."""
    named = (cls for cls in _subclasses(Durable) if cls._options.name == name)
    # A workflow without `run` is refused when it is used: another class of its name must not suffer from it.
    whole = (cls for cls in named if not issubclass(cls, Workflow) or RUN in members(cls)[0])
    return sorted((cls for cls in whole if declaration(cls).handlers), key=lambda cls: cls._table.number)


def _subclasses(cls: type[Durable]) -> Iterator[type[Durable]]:
    for below in cls.__subclasses__():
        if "_table" in vars(below):
            yield below
        yield from _subclasses(below)


def _check_class(cls: type[Durable], name: str, *, is_said: bool, is_checked: bool) -> None:
    mixins = [base for base in cls.__mro__ if Addressed not in base.__mro__ and base not in (Unkeyed, object)]
    for base in (cls, *mixins):
        if "__init__" in vars(base):
            raise UsageError(f"{base.__name__}.__init__ would never run: declare fields, `n: int = state(0)`")
        if taken := TAKEN & vars(base).keys():
            raise UsageError(f"{base.__name__}.{min(taken)}: the name is taken")
    # A class that is being unpickled has no handlers of its own yet, and its name may not be the type's.
    is_whole = any(isinstance(value, Handler) for value in vars(cls).values())
    _members(cls, is_whole=is_whole)
    for value in vars(cls).values() if is_checked else ():
        if isinstance(value, State):
            cast("State[Any]", value).check_default(cls)
    if is_said or is_whole:
        _check_type_name(name, is_ours=cls.__module__.startswith("actors."))
    if is_whole:
        for other in _types(name):
            if scope_of(other) is LIVE:
                _check_place(other, cls)


def _check_type_name(name: object, *, is_ours: bool = False) -> None:
    if not isinstance(name, str) or TYPE_NAME.fullmatch(name) is None:
        raise UsageError(f"{name!r} cannot name a type: say name=, letters, digits, '_', '.', '-', not a digit first")
    if name in HTTP_WORDS:
        raise UsageError(f"{name!r} cannot name a type: URLs begin with it; say another name=")
    if name.startswith(INTERNAL) and not is_ours:
        raise UsageError(
            f"{name!r} cannot name a type: names with {INTERNAL!r} are of Perdure itself; say another name="
        )


def _check_place(one: type | None, other: type) -> None:
    """Refuse two classes of one name, unless the second replaces the first.

    Classes defined in functions live until the collector takes them, so the latest of them counts, in whatever module.
    """
    if one is None or "<locals>" in one.__qualname__ + other.__qualname__:
        return
    places = [f"{cls.__module__}.{cls.__qualname__}" for cls in (one, other)]
    if places[0] != places[1]:
        raise UsageError(f"{places[0]} and {places[1]} are one type by name: give one of them another, name=...")


@pinned("ByName")
class ByName:
    """An address whose handlers are called by their names: `handle.remote("reserve", "alice")`.

    If the class is known in this process, calls are checked as on the class.
    """

    __slots__ = ("_key", "_options", "_owner", "_type_name")

    @property
    def handle(self) -> ByName:
        """The same address; typed addresses have this attribute too."""
        return self

    def __init__(
        self, type_name: str, key: str | None, owner: type[Durable] | None = None, options: CallOptions = EMPTY_OPTIONS
    ) -> None:
        self._type_name, self._key, self._owner, self._options = type_name, key, owner, options

    def remote(self, handler: str, /, *args: Any, **kwargs: Any) -> Invocation[Any]:
        """Start an invocation of the handler of this name.

        Raises:
            TypeError: the arguments are not the handler's.
            UsageError: the class is known and has no such handler; or as with every call.
        """
        return self._start(handler, args, kwargs, one_way=False)

    def send(self, handler: str, /, *args: Any, **kwargs: Any) -> Invocation[Any]:
        """Start an invocation without waiting for its result; otherwise as `remote`."""
        return self._start(handler, args, kwargs, one_way=True)

    def options(
        self,
        *,
        delay: Duration | None = None,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: Duration | None = None,
    ) -> ByName:
        """Return a copy with these options, as a handler's `options`; omitted options stay."""
        changed = self._options.changed(delay, idempotency_key, headers, timeout)
        return ByName(self._type_name, self._key, self._owner, changed)

    def schedule(
        self,
        handler: str,
        /,
        *args: Any,
        cron: str | None = None,
        every: Duration | None = None,
        timezone: str | None = None,
        missed: Missed | None = None,
        name: str | None = None,
        arguments: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> Schedule:
        """Declare a durable schedule that sends a request to the handler of this name; otherwise as `handler.schedule`.

        If the class is not known here, an argument of the handler that is named as an option goes in `arguments`.
        """
        options = ScheduleOptions(cron, every, timezone, missed, name)
        owner = self._owner or find_type(self._type_name)
        found = self._declared(owner, handler).fn if owner is not None else None
        kwargs = handler_keywords(handler, found, args, kwargs, options, arguments)
        return declared(self._request(handler, args, kwargs, one_way=True), options)

    def _check_start(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, one_way: bool) -> None:
        if not args or not isinstance(args[0], str):
            raise TypeError("the first argument is the handler's name")
        self._request(args[0], args[1:], kwargs, one_way=one_way)
        self._options.check(one_way=one_way)

    def _start(self, handler: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, one_way: bool) -> Any:
        request = self._request(handler, args, kwargs, one_way=one_way)  # first: it refuses a wrong call
        return caller().start(request)

    def _request(self, handler: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, one_way: bool) -> Request:
        owner = self._owner or find_type(self._type_name)
        found = None
        if owner is not None:
            found = self._declared(owner, handler)
            found.check(args, kwargs, owner)
        return Request(self._type_name, self._key, handler, args, kwargs, one_way, self._options, found, owner)

    def _declared(self, owner: type[Durable], handler: str) -> Handler[Any, Any]:
        if issubclass(owner, Service) and self._key is not None:
            raise UsageError(f"{owner.__name__} is a service, it has no key: {owner.__name__}.handle")
        if self._key is None and not issubclass(owner, Service):
            name = self._type_name
            raise UsageError(f"every {name} has a key: actors.object({name!r}, key).remote({handler!r}, ...)")
        return declaration(owner).handler(handler)

    def __repr__(self) -> str:
        return self._type_name if self._key is None else f"{self._type_name}[{self._key!r}]"

    def __reduce__(self) -> tuple[type[ByName], tuple[str, str | None, None, CallOptions]]:
        return ByName, (self._type_name, self._key, None, self._options)


@overload
def object_handle(type_name: str, /) -> ByName: ...
@overload
def object_handle(type_name: str, key: str, /) -> ByName: ...
@pinned("object_handle")
def object_handle(type_name: str, key: Any = MISSING, /) -> ByName:
    """Return the address of an object, or of a service if there is no key; its class need not be known here.

    Raises:
        UsageError: this is no name of a type, or no key of an object.
    """
    _check_type_name(type_name)
    if key is MISSING:
        return ByName(type_name, None)
    if not isinstance(key, str) or not key:
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


@pinned("Keyed")
class Keyed(ABCMeta):
    """The metaclass that makes `Ticket["A1"]` an address. An ABCMeta, so that users may mix in abstract classes."""

    def __getitem__(cls: type[T], key: str, /) -> T:
        if type(key) is not str:
            if not isinstance(key, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # users without a checker
                return cast("T", _specialised(cls, key))
            key = str.__str__(key)  # for example a StrEnum's member
        if not key:
            raise UsageError(f"the key of a {cls.__name__} is not empty")
        return _made(cls, key, None)

    def at(cls: type[T], key: str, /) -> T:
        """Return the address of a key, as `Ticket[key]` does: `ticket = Ticket.at("A1")`.

        For addresses that get a name of their own: mypy takes `ticket = Ticket["A1"]` for the alias of a type. A class
        may still have a handler `at`, since a handler is called on an address.
        """
        return Keyed.__getitem__(cls, key)


def _specialised(cls: type, parameters: object) -> object:
    """`Box[int]`: a metaclass that subscripts comes before the class's own `__class_getitem__`."""
    if not getattr(cls, "__parameters__", ()):
        raise TypeError(f"the key of a {cls.__name__} is a str, not {parameters!r}")
    return cast("Any", cls).__class_getitem__(parameters)


@pinned("Durable")
class Durable(Addressed):
    """The base of objects, workflows and services."""

    __slots__ = ()

    handle: Final = _Handle()
    """The same address, its handlers called by name: `Ticket["A1"].handle.remote("reserve", "alice")`."""

    _table: ClassVar[_Table]

    def __init_subclass__(
        cls, *, name: str | None = None, policy: Policy | None = None, ttl: Duration | None = None
    ) -> None:
        super().__init_subclass__()
        check_policy(cls.__name__, policy)
        if ttl is not None and issubclass(cls, Service):
            raise UsageError(f"{cls.__name__}: a service has no state that could expire; ttl= is for a VirtualObject")
        options = Options(name=cls.__name__ if name is None else name, policy=policy, ttl_ms=ttl_ms(ttl, cls.__name__))
        validates = policy is None or policy.validate is not False
        _check_class(cls, options.name, is_said=name is not None, is_checked=validates)
        # Last: a refused class lives on in its traceback, and must not be found.
        cls._options, cls._table, cls._validates = options, _Table(), validates
        _Table.changed = next(_numbers)  # a second time: only from here on the class is found

    if not TYPE_CHECKING:  # type checkers know the fields already, and would allow every name because of these

        def __new__(cls, *args: object, **kwargs: object) -> Self:
            how = f"{cls.__name__}.<handler>" if issubclass(cls, Service) else f"{cls.__name__}[key]"
            raise UsageError(f"{cls.__name__} has no instances of its own: use {how}")

        def __setattr__(self, name: str, value: object) -> None:
            field = declaration(type(self)).fields.get(name)
            if field is not None:
                field.__set__(self, value)
            elif hasattr(getattr(type(self), name, None), "__set__"):  # the user's own property
                object.__setattr__(self, name, value)
            else:
                raise UsageError(f"{type(self).__name__}.{name} is not declared: declare it, `{name}: T = state(...)`")

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(without(type(self), name), name=name, obj=self)

    def __eq__(self, other: object) -> bool:
        return self._key == other._key if isinstance(other, Durable) and type(other) is type(self) else NotImplemented

    def __hash__(self) -> int:
        return hash((self._options.name, self._key))

    def __repr__(self) -> str:
        return type(self).__name__ if self._key is None else f"{type(self).__name__}[{self._key!r}]"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str | None]]:
        return _restored_address, (self._options.name, self._key)


@public
class VirtualObject(Durable, metaclass=Keyed):
    """The base of classes whose every key is an object: it always exists, keeps its state, runs one handler at a time.

    Keywords of the class, none of which is inherited: `name` (the type's stable name, the class's own by default),
    `policy`, and `ttl`: all state is cleared this long after the last commit that changed any of it, but never while an
    exclusive handler is under way. A changed ttl counts from the next change of state on; a removed ttl leaves the
    timers that are set.
    """

    __slots__ = ()


@public
class Workflow(Durable, metaclass=Keyed):
    """The base of classes whose `run` happens once for each key; all other handlers are shared.

    Its handlers share durable promises: `ctx.promise(name, type)`. State, promises and outcome are kept until the
    policy's `retention` after the end of `run`. Keywords of the class: as of `VirtualObject`.
    """

    __slots__ = ()

    _runs_once = True

    def __init_subclass__(cls, *, name: str | None = None, policy: Policy | None = None) -> None:
        run = vars(cls).get(RUN)
        if inspect.isfunction(run):  # undecorated
            made = handler(run)
            made.__set_name__(cls, RUN)
            cls.run = made
        super().__init_subclass__(name=name, policy=policy)


if TYPE_CHECKING:
    Unindexed = ABCMeta  # pyright does not check the class keywords of another metaclass
else:

    @pinned("Unindexed")
    class Unindexed(ABCMeta):
        """The metaclass of services: a service is its own address, and has clear errors for missing names."""

        def __getattr__(cls, name: str) -> Any:
            raise AttributeError(without(cls, name), name=name, obj=cls)


@public
class Service(Durable, Unkeyed, metaclass=Unindexed):
    """The base of classes without key and state: any number of invocations at once.

    Keywords of the class: `name` and `policy`, as of `VirtualObject`.
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
    """Return the `self` of an execution's handler."""
    return _made(cls, key, fields)


@pinned("_restored_address")
def _restored_address(name: str, key: str | None) -> object:
    cls = find_type(name)
    return ByName(name, key) if cls is None else _made(cls, key, None)
