"""Commands: what the context asks of the execution behind it, and what handlers get for it. Shapes only."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Generator, Mapping
from typing import Any, Protocol, TypeVar, overload

from actors.policy import Retry
from actors.stored import public

T_co = TypeVar("T_co", covariant=True)
V = TypeVar("V")
D = TypeVar("D")


@public
class Awakeable(Protocol[T_co]):
    """What is completed from outside: hand its `id` to whoever is to complete it, and `await` it.

    `actors.resolve(id, value)` and `actors.reject(id, message)` complete it, once: the first counts. It may be awaited
    any number of times; ending a wait leaves it as it is.
    """

    @property
    def id(self) -> str:
        """The public id, unique in the namespace, the same in every attempt."""
        ...

    def __await__(self) -> Generator[Any, Any, T_co]: ...


class Compensations(Protocol):
    """What is to be undone if the handler ends for good in an error."""

    def defer(self, name: str, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], /) -> None:
        """Add a compensation: the step that it becomes, if it comes to that."""
        ...

    def defer_undo(self, name: str, undo: Any, step: asyncio.Future[Any], /) -> None:
        """Add one with the result of a step, when it has one."""
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
class Promise(Protocol[V]):
    """A durable promise of a workflow: a named value, written once, that all handlers of the key share.

    Whoever awaits it waits until one of them has completed it, and may await it again; ending a wait leaves it as it
    is. It can be read until the workflow's retention is over.
    """

    def __await__(self) -> Generator[Any, Any, V]: ...

    @overload
    def peek(self) -> V | None: ...
    @overload
    def peek(self, default: D) -> V | D: ...
    def peek(self, default: Any = None) -> Any:
        """Return the value if there is one, else `default`; raise `TerminalError` if it was rejected."""
        ...

    def resolve(self, value: V) -> None:
        """Give it its value, durable from here on, whatever becomes of this attempt.

        Raises:
            TerminalError: it was completed already (409); who was first counts.
            UsageError: the value cannot be stored.
        """
        ...

    def reject(self, message: str) -> None:
        """Let whoever awaits it get a `TerminalError` with this message. Otherwise as `resolve`."""
        ...


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
    ) -> asyncio.Future[Any]:
        """Make the entry of a step: `fn` is a callable or a Ray remote function."""
        ...


class Commands(Protocol):
    """What the context asks of the execution; called on its own loop, but for the properties."""

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
        """Which attempt this is, from 1."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """What the caller sent along."""
        ...

    @property
    def is_replaying(self) -> bool:
        """Durable events remain to be delivered. Read from any thread."""
        ...

    @property
    def steps(self) -> StepCommands:
        """The handler's steps."""
        ...

    @property
    def sagas(self) -> Compensations:
        """What the handler defers."""
        ...

    def sleep(self, duration_s: float, name: str, /) -> asyncio.Future[None]:
        """Make the entry of a timer."""
        ...

    def awakeable(self, annotation: Any, /) -> Awakeable[Any]:
        """Make the entry of an awakeable."""
        ...

    def changed(self, names: tuple[str, ...], /) -> Awakeable[None]:
        """Make the entry of a wait for a change of fields; raise `UsageError` where none can come."""
        ...

    def signal(self, name: str, annotation: Any, /) -> asyncio.Future[Any]:
        """Make the entry of the wait for a signal."""
        ...

    def promise(self, name: str, annotation: Any, /) -> Promise[Any]:
        """Return a durable promise; raise `UsageError` where this is no workflow."""
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
