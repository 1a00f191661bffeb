"""State: durable fields as users declare them, `items: dict[str, int] = state(default_factory=dict)`.

Owns the descriptor of a field, and the facts about a class that its fields and handlers need. Does not own the values
of fields; these are an execution's, behind `Fields`.

A pickle of a field carries its name and its resolved annotation: names that occur only in annotations are not uploaded
with a class.
"""

# pyright: reportPrivateUsage=false
# Names on users' classes are private to keep every other name free; state, handlers and objects share them.

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar, Generic, Protocol, Self, TypeVar, cast, overload

from actors.errors import UsageError
from actors.policy import Duration, Policy
from actors.stored import pinned, public
from journal.codec import MISSING

from .annotations import check, exact, fits
from .lifetimes import ttl_ms

T = TypeVar("T")


class Fields(Protocol):
    """The state of an object, as an execution holds it."""

    def get(self, field: State[Any], /) -> Any: ...
    def set(self, field: State[Any], value: Any, /) -> None: ...


@pinned("State")
class State(Generic[T]):
    """A durable field."""

    __slots__ = ("_annotation", "_owner", "default", "factory", "known", "name", "ttl_ms")

    def __init__(self, default: Any, factory: Callable[[], T] | None, ttl_ms: int = 0) -> None:
        self.name = ""
        self.default = default
        """MISSING if a factory makes the default."""
        self.factory = factory
        self.ttl_ms = ttl_ms
        """How long the field outlives its last change; 0 is for ever."""
        self.known: frozenset[type] | None = frozenset()
        """Types whose own instances all fit; None if every value fits. Empty until first used."""
        self._owner: type | None = None
        self._annotation: Any = None

    def __set_name__(self, owner: type, name: str) -> None:
        if not self.name:
            self.name, self._owner = name, owner

    @property
    def annotation(self) -> Any:
        """The resolved annotation, or MISSING."""
        if self._owner is not None:
            self._annotation = _annotation_in(self._owner, self.name)
            self._owner = None
        return self._annotation

    def check(self, value: Any) -> None:
        """Refuse a value that is not of the field's type.

        Raises:
            WrongTypeError: the value does not fit; the message names the type.
        """
        annotation = self.annotation
        self.known = exact(annotation)
        check(f"state {self.name!r}", value, annotation, fits(annotation))

    def check_default(self, owner: type) -> None:
        """Refuse a default that is not of the type, as far as the annotation resolves when the class is made.

        Raises:
            WrongTypeError: the value does not fit; the message names the type.
        """
        value = self.factory() if self.factory in (list, dict, set) else self.default
        if value is not MISSING:
            found = _annotation_in(owner, self.name)
            where = f"{owner.__name__}.{self.name}: the default of the field"
            check(where, value, found, fits(found))

    def made(self) -> T:
        """Return the value of a field that was never set; a factory makes a new value each time."""
        return self.default if self.factory is None else self.factory()

    @overload
    def __get__(self, instance: None, owner: type) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type) -> T: ...
    def __get__(self, instance: Any, owner: type) -> Self | T:
        if instance is None:
            return self
        fields = instance._fields
        if fields is None:
            raise UsageError(f"{instance!r}.{self.name} is state: it can be read only inside a handler")
        return fields.get(self)

    def __set__(self, instance: Any, value: T) -> None:
        fields = instance._fields
        if fields is None:
            raise UsageError(f"{instance!r}.{self.name} is state: it can be written only inside a handler")
        fields.set(self, value)

    def __repr__(self) -> str:
        return f"<state {self.name}>"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _restored_state, (self.name, self.default, self.factory, self.annotation, self.ttl_ms)


def _annotation_in(owner: type, name: str) -> Any:
    module = sys.modules.get(owner.__module__)
    return resolved(inspect.get_annotations(owner).get(name, MISSING), vars(module) if module else {}, vars(owner))


@pinned("_restored_state")
def _restored_state(
    name: str, default: Any, factory: Callable[[], Any] | None, annotation: Any, ttl_ms: int
) -> State[Any]:
    restored = State[Any](default, factory, ttl_ms)
    restored.name = name
    restored._annotation = annotation
    return restored


@overload
def state(default: T, /, *, ttl: Duration | None = None) -> T: ...
@overload  # without it, a bare `dict` makes the field "partially unknown" to strict checkers
def state(*, default_factory: type[list[Any] | dict[Any, Any] | set[Any]], ttl: Duration | None = None) -> Any: ...
@overload
def state(*, default_factory: Callable[[], T], ttl: Duration | None = None) -> T: ...
@public
def state(
    default: Any = MISSING, /, *, default_factory: Callable[[], Any] | None = None, ttl: Duration | None = None
) -> Any:
    """Declare a durable field: `items: dict[str, int] = state(default_factory=dict)`.

    A value that a handler assigns, or changes in place, is durable with the invocation's next commit. With a `ttl`, the
    field is cleared this long after the last commit that changed it, and has its default again, but never while an
    exclusive handler is under way. Writing an equal value changes nothing.

    Raises:
        UsageError: the default could be changed in place, there is not exactly one of the two, or `ttl` is no time.
    """
    if (default is MISSING) == (default_factory is None):
        raise UsageError("state() takes a default or a default_factory")
    if isinstance(default, type) or inspect.isfunction(default):
        name = getattr(default, "__name__", "...")
        made = "..." if name == "<lambda>" else name
        raise UsageError(f"state({made}): the default is a value, not a function: use state(default_factory={made})")
    if type(default).__hash__ is None:
        raise UsageError(f"state({default!r}): every object would share one value; use state(default_factory=...)")
    return State[Any](default, default_factory, ttl_ms(ttl, "state()"))


def resolved(annotation: Any, names: Mapping[str, Any], local_names: Mapping[str, Any]) -> Any:
    """Return the annotation with the names in it looked up, or MISSING."""
    if annotation is MISSING:
        return MISSING
    holder = cast("Any", SimpleNamespace(__annotations__={"it": annotation}))
    try:
        return typing.get_type_hints(holder, dict(names), dict(local_names), include_extras=True)["it"]
    except Exception:  # noqa: BLE001  # evaluating the user's annotation may raise anything
        return MISSING


@pinned("Options")
@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The keywords of a class."""

    name: str
    policy: Policy | None = None
    ttl_ms: int = 0
    """How long all state outlives its last change; 0 is for ever."""


@pinned("Addressed")
class Addressed:
    """The base of all classes with handlers and fields: the facts that their handlers and fields need."""

    __slots__ = ("_fields", "_key")

    _options: ClassVar[Options]
    _validates: ClassVar[bool] = True
    """Whether arguments and fields are checked against their annotations, unless a handler's policy refuses it."""
    _runs_once: ClassVar[bool] = False
    """Whether the class is a workflow, whose exclusive handler happens once for each key."""
    _key: str | None
    _fields: Fields | None
    """None at an address."""


@pinned("Unkeyed")
class Unkeyed:
    """Marks classes that are their own address, so that `Checkout.process` is a call and `Ticket.reserve` is not."""

    __slots__ = ()
