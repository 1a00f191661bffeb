"""Commands: the interface from the context to its execution, and the types of its results. Nothing is done here."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar, overload

from actors.loop.coroutines import HandlerWait, Taskable
from actors.policy import Retry
from actors.stored import public

T_co = TypeVar("T_co", covariant=True)
V = TypeVar("V")
D = TypeVar("D")


@public
class Awakeable(Taskable[T_co], Generic[T_co]):
    """A durable promise that is completed from outside, by its `id`; `await` it.

    `actors.resolve(id, value)` and `actors.reject(id, message)` complete it, once: the first counts. It may be awaited
    any number of times; giving a wait up does not change it.
    """

    __slots__ = ()

    id: str
    """The public id, unique in the namespace, the same in every attempt."""


class Compensations(Protocol):
    """The compensations that run if the handler ends for good in an error."""

    def defer(self, name: str, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], /) -> None:
        """Add a compensation: a step that runs only in that case."""
        ...

    def defer_undo(self, name: str, undo: Any, step: asyncio.Future[Any], /) -> None:
        """Add a compensation with the result of a step, as soon as the step has succeeded."""
        ...


class FieldCommands(Protocol):
    """The fields of an object, by name."""

    def read(self, name: str, /) -> Any:
        """Return the field's value, the default of a declared one that is not set, or MISSING."""
        ...

    def write(self, name: str, value: Any, /) -> None:
        """Set the field; raise `UsageError` in a shared handler or a service."""
        ...

    def clear(self, name: str, /) -> None:
        """Make the field absent; raise `UsageError` in a shared handler or a service."""
        ...

    def names(self) -> list[str]:
        """Return the names of the fields that are set, sorted."""
        ...


@public
class Promise(Taskable[V], Generic[V]):
    """A durable promise of a workflow: a named value, written once, that all handlers of the key share.

    An `await` waits until one of them has completed it, and may be repeated; giving a wait up does not change the
    promise. It can be read until the workflow's retention is over.
    """

    __slots__ = ()

    @overload
    def peek(self) -> V | None: ...
    @overload
    def peek(self, default: D) -> V | D: ...
    def peek(self, default: Any = None) -> Any:
        """Return the value if there is one, otherwise `default`; raise `TerminalError` if it was rejected."""

    def resolve(self, value: V) -> None:
        """Complete the promise with a value, durable from here on, whatever happens to this attempt.

        Raises:
            TerminalError: it was completed already (409); the first completion counts.
            UsageError: the value cannot be stored.
        """

    def reject(self, message: str) -> None:
        """Complete the promise with a `TerminalError` of this message, raised by each await. Otherwise as `resolve`."""


class StepCommands(Protocol):
    """The steps of a handler."""

    def run(
        self,
        name: str,
        fn: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        retry: Retry | None,
        timeout_s: float | None,
        /,
    ) -> HandlerWait[Any]:
        """Make the entry of a step: `fn` is a callable or a Ray remote function."""
        ...


class Commands(Protocol):
    """The execution, as the context uses it; methods are called on its own loop, properties also elsewhere."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that the handler runs on."""
        ...

    @property
    def key(self) -> str:
        """The object's key; empty for a service."""
        ...

    @property
    def id(self) -> str:
        """The invocation's id."""
        ...

    @property
    def attempt(self) -> int:
        """The number of this attempt, from 1."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers that the caller sent."""
        ...

    @property
    def is_replaying(self) -> bool:
        """Whether durable events remain to be delivered. Any thread may read it."""
        ...

    @property
    def steps(self) -> StepCommands:
        """The handler's steps."""
        ...

    @property
    def sagas(self) -> Compensations:
        """The handler's compensations."""
        ...

    def sleep(self, duration_s: float, name: str, /) -> HandlerWait[None]:
        """Make the entry of a timer."""
        ...

    def awakeable(self, annotation: Any, /) -> Awakeable[Any]:
        """Make the entry of an awakeable."""
        ...

    def changed(self, names: tuple[str, ...], /) -> Awakeable[None]:
        """Make the entry of a wait for a change of fields; raise `UsageError` if none can come."""
        ...

    def signal(self, name: str, annotation: Any, /) -> HandlerWait[Any]:
        """Make the entry of the wait for a signal."""
        ...

    def promise(self, name: str, annotation: Any, /) -> Promise[Any]:
        """Return a durable promise; raise `UsageError` if this is no workflow."""
        ...

    def now_ms(self) -> int:
        """Return the time of the last delivered event, in ms since 1970."""
        ...

    def random(self) -> random.Random:
        """Return the invocation's own generator, the same object each time, seeded by its id."""
        ...

    @property
    def state(self) -> FieldCommands:
        """The object's fields."""
        ...
