"""The context: what a handler is given besides its arguments.

Owns: how commands are spelled, typed and refused. Does not own: what they do; that is the execution's, behind
`Commands`.

A command is accepted on the execution's own loop only. From a step it would be lost or doubled when the step repeats;
from another thread, another handler or a callback its place in the journal would be a matter of chance.
"""

from __future__ import annotations

import asyncio
import logging
import random
import uuid
from collections.abc import Awaitable, Callable, Generator, Mapping, MutableMapping
from datetime import UTC, datetime, timedelta
from typing import Any, ParamSpec, Protocol, TypeVar, TypeVarTuple, overload

from journal.codec import MISSING

from . import place
from .errors import UsageError
from .policy import Duration, Retry, seconds

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Ts = TypeVarTuple("Ts")

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_logger = logging.getLogger("actors.handler")


class RayFunction(Protocol[P, T_co]):
    """What `ray.remote` makes of a function. Structural, so that this imports no Ray; our own calls have no `bind`."""

    @property
    def bind(self) -> Callable[..., Any]: ...
    def remote(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T_co]: ...


class RayPositional(Protocol[*Ts, T_co]):
    """The same, for steps that carry options: no ParamSpec may stand beside keywords of ours (PEP 612)."""

    @property
    def bind(self) -> Callable[..., Any]: ...
    def remote(self, *args: *Ts) -> Awaitable[T_co]: ...


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

    def run_step(
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

    def sleep(self, duration_s: float, name: str, /) -> asyncio.Future[None]:
        """Make the entry of a timer."""
        ...

    def awakeable(self, annotation: Any, /) -> Awakeable[Any]:
        """Make the entry of an awakeable."""
        ...

    def signal(self, name: str, annotation: Any, /) -> asyncio.Future[Any]:
        """Make the entry of the wait for a signal."""
        ...

    def now_ms(self) -> int:
        """Return the time of the last delivered event, in ms since 1970."""
        ...

    def random(self) -> random.Random:
        """Return the invocation's own generator, the same object each time, seeded by its id."""
        ...

    def read_field(self, name: str, /) -> Any:
        """Return the field's value, the default of a declared one that is not set, or MISSING."""
        ...

    def write_field(self, name: str, value: Any, /) -> None:
        """Set the field; raise `UsageError` in a shared handler or a service."""
        ...

    def clear_field(self, name: str, /) -> None:
        """Make the field absent; raise `UsageError` in a shared handler or a service."""
        ...

    def field_names(self) -> list[str]:
        """Return the names of the fields that are set, sorted."""
        ...


class _Log(logging.LoggerAdapter[logging.Logger]):
    """The handler's logger; silent while what it says has been said before."""

    def __init__(self, commands: Commands) -> None:
        super().__init__(_logger, {"invocation": commands.id, "key": commands.key, "attempt": commands.attempt})
        self._commands = commands

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802  # logging's name
        return not self._commands.is_replaying and super().isEnabledFor(level)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        # LoggerAdapter's own (before 3.13, by default after) drops the `extra` of the call.
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


class Context:
    """Commands that are journaled, and what is known of this invocation.

    Everything but `key`, `id`, `attempt`, `headers`, `step_id` and `log` is for the handler itself and the tasks it
    made; in a step, a thread or another handler it raises `UsageError`.
    """

    __slots__ = ("_commands", "_log")

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._log: _Log | None = None

    @property
    def key(self) -> str:
        """The object's key; empty in a service."""
        return self._commands.key

    @property
    def id(self) -> str:
        """The invocation's id, the same in every attempt."""
        return self._commands.id

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1: for logs, not for decisions, since a replay has another."""
        return self._commands.attempt

    @property
    def headers(self) -> Mapping[str, str]:
        """What the caller gave as `.options(headers=...)`."""
        return self._commands.headers

    @property
    def step_id(self) -> str:
        """Inside a step: the invocation's id and the entry's index, the same whenever the step repeats.

        Hand it to the outside as idempotency key.

        Raises:
            UsageError: this is not a step.
        """
        step_id = place.in_step.get()
        if step_id is None:
            raise UsageError("ctx.step_id exists inside a step only: read it in the function that ctx.run() is given")
        return step_id

    @property
    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        """A logger, `actors.handler`, that is silent while replaying. Allowed in steps."""
        if self._log is None:
            self._log = _Log(self._commands)
        return self._log

    @property
    def random(self) -> random.Random:
        """A generator that gives a replay the same numbers."""
        return self._here().random()

    def uuid4(self) -> uuid.UUID:
        """Return a random UUID; a replay gets the same."""
        return uuid.UUID(int=self._here().random().getrandbits(128), version=4)

    def now(self) -> datetime:
        """Return the time of the last event delivered to this invocation, in UTC; a replay gets the same."""
        return EPOCH + timedelta(milliseconds=self._here().now_ms())

    @overload
    def run(self, name: str, fn: RayFunction[P, T], /, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]: ...
    @overload
    def run(
        self, name: str, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> asyncio.Future[T]: ...
    @overload
    def run(self, name: str, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]: ...
    @overload
    def run(
        self,
        name: str,
        fn: RayPositional[*Ts, T],
        /,
        *args: *Ts,
        retry: Retry = ...,
        timeout: Duration = ...,
    ) -> asyncio.Future[T]: ...
    @overload
    def run(
        self,
        name: str,
        fn: Callable[[*Ts], Awaitable[T]],
        /,
        *args: *Ts,
        retry: Retry = ...,
        timeout: Duration = ...,
    ) -> asyncio.Future[T]: ...
    @overload
    def run(
        self,
        name: str,
        fn: Callable[[*Ts], T],
        /,
        *args: *Ts,
        retry: Retry = ...,
        timeout: Duration = ...,
    ) -> asyncio.Future[T]: ...
    def run(self, name: str, fn: Any, /, *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
        """Start a step: call `fn` now and record its outcome; a replay gets the outcome without the call.

        `fn` is sync (run in a thread), async (run on the host's loop) or a Ray remote function (run on the cluster).
        A crash between its effect and the record repeats it: hand `ctx.step_id` to the outside. A failure is retried
        in place by `retry`, then raised as `TerminalError`. `retry` and `timeout` are taken here: to give `fn`
        keywords of these names, use `functools.partial`.

        Raises:
            UsageError: this is not the handler's own loop, or `fn` is nothing that can be called as a step.
        """
        commands = self._here()
        retry = kwargs.pop("retry", None)
        timeout = kwargs.pop("timeout", None)
        _check_step(name, fn, retry)
        return commands.run_step(name, fn, args, kwargs, retry, None if timeout is None else seconds(timeout))

    def sleep(self, duration: Duration, *, name: str = "") -> asyncio.Future[None]:
        """Return a wait that ends after `duration`, by a durable timer, wherever the invocation then is."""
        return self._here().sleep(seconds(duration), name)

    @overload
    def awakeable(self, type: type[T], /) -> Awakeable[T]: ...
    @overload
    def awakeable(self, type: object = ..., /) -> Awakeable[Any]: ...
    def awakeable(self, type: object = MISSING, /) -> Awakeable[Any]:
        """Return something to await that the outside completes, by its `id`; `type` is that of the value.

        The `id` is the same in every attempt. Give it away in a step, a call, a send, or the state.
        """
        return self._here().awakeable(type)

    @overload
    def signal(self, name: str, type: type[T], /) -> asyncio.Future[T]: ...
    @overload
    def signal(self, name: str, type: object = ..., /) -> asyncio.Future[Any]: ...
    def signal(self, name: str, type: object = MISSING, /) -> asyncio.Future[Any]:
        """Return a wait for the next signal of this name, as `ref.signal(name, value)` sends it.

        Signals that come early are kept; each is handed out once, in order, to whoever asked first. A wait that is
        given up (`wait_for`) takes none.
        """
        if not isinstance(name, str) or not name:  # pyright: ignore[reportUnnecessaryIsInstance]  # users without a checker
            raise UsageError(f"a signal has a name: ctx.signal('paid', int), not ctx.signal({name!r})")
        return self._here().signal(name, type)

    def get(self, name: str, default: Any = None) -> Any:
        """Return the field's value, or `default` where it is not set and no declared default stands in."""
        value = self._here().read_field(name)
        return default if value is MISSING else value

    def set(self, name: str, value: Any) -> None:
        """Set the field, declared or not; durable with the next commit.

        Raises:
            UsageError: the handler is shared, or belongs to a service.
        """
        self._here().write_field(name, value)

    def clear(self, name: str) -> None:
        """Make the field absent; a declared one then has its default again."""
        self._here().clear_field(name)

    def clear_all(self) -> None:
        """Make every field absent."""
        commands = self._here()
        for name in commands.field_names():
            commands.clear_field(name)

    def keys(self) -> list[str]:
        """Return the names of the fields that are set, sorted."""
        return self._here().field_names()

    def _here(self) -> Commands:
        commands = self._commands
        if place.running_loop() is commands.loop:
            return commands
        if place.in_step.get() is not None:
            raise UsageError(place.NOT_IN_A_STEP)
        raise UsageError(f"the context of {commands.id} belongs to its handler: it cannot be used from elsewhere")

    def __repr__(self) -> str:
        return f"<Context of {self._commands.id}>"


def _check_step(name: object, fn: object, retry: object) -> None:
    if not isinstance(name, str) or not name:
        raise UsageError(f"a step begins with its name: ctx.run('charge', fn, ...), not ctx.run({name!r}, ...)")
    is_remote, is_bound_by_ray = hasattr(fn, "remote"), hasattr(fn, "bind")
    if is_remote and not is_bound_by_ray:
        raise UsageError(f"step {name!r}: {fn!r} is a call, which is durable by itself: await its .remote(...)")
    if not callable(fn) and not is_remote:
        raise UsageError(f"step {name!r}: {fn!r} cannot be called; pass the function and its arguments, not its result")
    if retry is not None and not isinstance(retry, Retry):
        raise UsageError(f"step {name!r}: retry={retry!r} is no Retry; bind keywords of fn by functools.partial")
