"""Context: the `ctx` argument of every handler, with its commands.

Owns the names, types and refusals of commands. Does not own their effects, which are the execution's, behind
`Commands`.

A command is accepted on the execution's own loop only. From a step it would be lost, or repeated with the step; from
another thread, another handler or a callback its place in the journal would be random.
"""

from __future__ import annotations

import functools
import inspect
import logging
import random
import uuid
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from datetime import UTC, datetime, timedelta
from typing import Any, ParamSpec, Protocol, TypeVar, TypeVarTuple, overload

from actors.errors import UsageError
from actors.loop.coroutines import HandlerWait, Taskable
from actors.loop.loop import running_loop
from actors.policy import Duration, Retry, seconds
from actors.requests import current
from actors.stored import public
from journal.codec import MISSING
from journal.keys import OWN

from .annotations import ABSENT
from .commands import Awakeable, Commands, Promise

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
V = TypeVar("V")
D = TypeVar("D")
Ts = TypeVarTuple("Ts")

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)

_logger = logging.getLogger("actors.handler")


class RayFunction(Protocol[P, T_co]):
    """The result of `ray.remote(function)`. Structural, so that this imports no Ray; our own calls have no `bind`."""

    @property
    def bind(self) -> Callable[..., Any]: ...
    def remote(self, *args: P.args, **kwargs: P.kwargs) -> Awaitable[T_co]: ...


class RayPositional(Protocol[*Ts, T_co]):
    """The same, for steps with options: a ParamSpec cannot stand beside keywords of ours (PEP 612)."""

    @property
    def bind(self) -> Callable[..., Any]: ...
    def remote(self, *args: *Ts) -> Awaitable[T_co]: ...


class _Log(logging.LoggerAdapter[logging.Logger]):
    """The handler's logger; silent while a replay repeats lines that were logged before."""

    def __init__(self, commands: Commands) -> None:
        super().__init__(_logger, {"invocation": commands.id, "key": commands.key, "attempt": commands.attempt})
        self._commands = commands

    def isEnabledFor(self, level: int) -> bool:  # noqa: N802  # logging's name
        return not self._commands.is_replaying and super().isEnabledFor(level)

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        # LoggerAdapter's own (before 3.13, by default after) drops the `extra` of the call.
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


@public
class Context:
    """Journaled commands, and facts about this invocation.

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
        """The number of this attempt, from 1: for logs, not for decisions, since a replay has another number."""
        return self._commands.attempt

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers that the caller gave by `.options(headers=...)`."""
        return self._commands.headers

    @property
    def step_id(self) -> str:
        """Inside a step: the invocation's id and the entry's index, the same whenever the step repeats.

        Give it to external services as idempotency key.

        Raises:
            UsageError: this is not a step.
        """
        step_id = current.in_step.get()
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
        """A random generator; a replay gets the same numbers."""
        return self._here().random()

    def uuid4(self) -> uuid.UUID:
        """Return a random UUID; a replay gets the same."""
        return uuid.UUID(int=self._here().random().getrandbits(128), version=4)

    def now(self) -> datetime:
        """Return the time of the last event delivered to this invocation, in UTC; a replay gets the same."""
        return EPOCH + timedelta(milliseconds=self._here().now_ms())

    @overload
    def run(self, name: str, fn: RayFunction[P, T], /, *args: P.args, **kwargs: P.kwargs) -> HandlerWait[T]: ...
    @overload
    def run(self, name: str, fn: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> HandlerWait[T]: ...
    @overload
    def run(self, name: str, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> HandlerWait[T]: ...
    @overload
    def run(
        self,
        name: str,
        fn: RayPositional[*Ts, T],
        /,
        *args: *Ts,
        retry: Retry = ...,
        timeout: Duration = ...,
        undo: Callable[[T], object] = ...,
    ) -> HandlerWait[T]: ...
    @overload
    def run(
        self,
        name: str,
        fn: Callable[[*Ts], Awaitable[T]],
        /,
        *args: *Ts,
        retry: Retry = ...,
        timeout: Duration = ...,
        undo: Callable[[T], object] = ...,
    ) -> HandlerWait[T]: ...
    @overload
    def run(
        self,
        name: str,
        fn: Callable[[*Ts], T],
        /,
        *args: *Ts,
        retry: Retry = ...,
        timeout: Duration = ...,
        undo: Callable[[T], object] = ...,
    ) -> HandlerWait[T]: ...
    def run(self, name: str, fn: Any, /, *args: Any, **kwargs: Any) -> HandlerWait[Any]:
        """Start a step: call `fn` now and record its outcome; a replay gets the outcome without the call.

        `fn` is sync (run in a thread), async (run on the host's loop) or a Ray remote function (run on the cluster).
        A crash between its effect and the record repeats it: give `ctx.step_id` to the external service. A failure is
        retried in place by `retry`, then raised as `TerminalError`. With `undo`, `ctx.defer("undo <name>", undo,
        result)` follows when the step has succeeded. A step that is given up before has no result: defer a compensation
        that must run in any case before the step. `retry`, `timeout` and `undo` are options of `run`, and refused if
        `fn` has a parameter of that name: bind it by `functools.partial`.

        Raises:
            UsageError: this is not the handler's own loop, or `fn` cannot be called as a step.
        """
        commands = self._here()
        if kwargs:
            _check_options(name, fn, len(args), kwargs)
        retry = kwargs.pop("retry", None)
        timeout = kwargs.pop("timeout", None)
        undo = kwargs.pop("undo", None)
        _check_step(name, fn, retry)
        if undo is not None:
            _check_step(f"undo {name}", undo, verb="defer")
            _check_call(f"undo {name}", undo, (ABSENT,), {}, "the result of its step")
        step = commands.steps.run(name, fn, args, kwargs, retry, None if timeout is None else seconds(timeout))
        if undo is not None:
            commands.sagas.defer_undo(name, undo, step)
        return step

    @overload
    def defer(self, name: str, fn: RayFunction[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> None: ...
    @overload
    def defer(self, name: str, fn: Callable[P, object], /, *args: P.args, **kwargs: P.kwargs) -> None: ...
    def defer(self, name: str, fn: Any, /, *args: Any, **kwargs: Any) -> None:
        """Defer a compensation: a step that runs if the handler ends for good in an error, a cancel included.

        The `.remote` of an address is a call instead, journaled, awaited: `ctx.defer("refund", Account[a].add.remote,
        10)`; its `.send` is a send. A function may call, too, and use the context: it then runs as code of the handler,
        so its external effects belong in `ctx.run`.

        Compensations run in sequence, newest first, with the default retry; then the error becomes the outcome. A
        compensation that fails for good is logged and named in the outcome's metadata (`compensation_failed`); the
        others still run. None runs when the handler returns, or while another attempt follows.

        Raises:
            UsageError: this is not the handler's own loop, or `fn` cannot be called with these arguments.
        """
        commands = self._here()
        _check_step(name, fn, verb="defer")
        _check_call(name, fn, args, kwargs, "these arguments")
        commands.sagas.defer(name, fn, args, kwargs)

    def sleep(self, duration: Duration, *, name: str = "") -> HandlerWait[None]:
        """Return a wait that ends after `duration`, by a durable timer, on whatever host the invocation then is."""
        return self._here().sleep(seconds(duration), name)

    @overload
    def awakeable(self, type: type[T], /) -> Awakeable[T]: ...
    @overload
    def awakeable(self, type: object = ..., /) -> Awakeable[Any]: ...
    def awakeable(self, type: object = MISSING, /) -> Awakeable[Any]:
        """Return an awakeable, which a program outside completes by its `id`; `type` is the type of the value.

        The `id` is the same in every attempt. Pass it on in a step, a call, a send, or the state.
        """
        return self._here().awakeable(type)

    @overload
    def signal(self, name: str, type: type[T], /) -> HandlerWait[T]: ...
    @overload
    def signal(self, name: str, type: object = ..., /) -> HandlerWait[Any]: ...
    def signal(self, name: str, type: object = MISSING, /) -> HandlerWait[Any]:
        """Return a wait for the next signal of this name, as `ref.signal(name, value)` sends it.

        Signals that come early are kept; each is handed out once, in order, to the wait that began first. A wait that
        is given up (`wait_for`) takes none.
        """
        if not isinstance(name, str) or not name:  # pyright: ignore[reportUnnecessaryIsInstance]  # users without a checker
            raise UsageError(f"a signal has a name: ctx.signal('paid', int), not ctx.signal({name!r})")
        return self._here().signal(name, type)

    @overload
    def promise(self, name: str, type: type[T], /) -> Promise[T]: ...
    @overload
    def promise(self, name: str, type: object = ..., /) -> Promise[Any]: ...
    def promise(self, name: str, type: object = MISSING, /) -> Promise[Any]:
        """Return the workflow's durable promise of this name: `await` it, `peek()`, `resolve(v)` or `reject(m)` it.

        Raises:
            UsageError: this is no handler of a workflow.
        """
        if not isinstance(name, str) or not name:  # pyright: ignore[reportUnnecessaryIsInstance]  # users without a checker
            raise UsageError(f"a promise has a name: ctx.promise('approved', bool), not ctx.promise({name!r})")
        return self._here().promise(name, type)

    def changed(self, *fields: str) -> Taskable[None]:
        """Return a wait, in a shared handler, that ends when one of these fields differs from the value last read.

        The comparison is with this handler's last reads, so that no change between reading and waiting is missed:
        `while len(self.log) <= n: await ctx.changed("log")`. After a wait, of any kind, a shared handler sees the state
        that is committed then; fast changes may be seen as a single change. The values read are recorded, so watch
        small fields, such as a counter. A wait that is given up (`wait_for`) has no effect.

        Raises:
            UsageError: no field is named, or the handler is exclusive or a service's, so that no change can come.
        """
        for name in fields:
            if not isinstance(name, str) or not name or "\0" in name:  # pyright: ignore[reportUnnecessaryIsInstance]  # users without a checker
                raise UsageError(f"fields are named: ctx.changed('log'), not ctx.changed({name!r})")
        if not fields:
            raise UsageError("say which fields to watch: ctx.changed('log')")
        return self._here().changed(tuple(sorted({_users(name) for name in fields})))

    def get(self, name: str, default: Any = None) -> Any:
        """Return the field's value, or `default` if it is not set and has no declared default."""
        value = self._here().state.read(_users(name))
        return default if value is MISSING else value

    def set(self, name: str, value: Any) -> None:
        """Set the field, declared or not; durable with the next commit.

        Raises:
            UsageError: the handler is shared, or belongs to a service.
        """
        self._here().state.write(_users(name), value)

    def clear(self, name: str) -> None:
        """Make the field absent; a declared field then has its default again."""
        self._here().state.clear(_users(name))

    def clear_all(self) -> None:
        """Make every field absent."""
        fields = self._here().state
        for name in fields.names():
            fields.clear(name)

    def keys(self) -> list[str]:
        """Return the names of the fields that are set, sorted."""
        return self._here().state.names()

    def _here(self) -> Commands:
        commands = self._commands
        if running_loop() is commands.loop:
            return commands
        if current.in_step.get() is not None:
            raise current.not_in_a_step()
        raise UsageError(f"the context of {commands.id} belongs to its handler: it cannot be used from elsewhere")

    def __repr__(self) -> str:
        return f"<Context of {self._commands.id}>"


def _users(name: str) -> str:
    if name.startswith(OWN):
        raise UsageError(f"the field {name!r} cannot be used: names that begin with {OWN!r} are Perdure's own")
    return name


def _check_step(name: object, fn: object, retry: object = None, verb: str = "run") -> None:
    if not isinstance(name, str) or not name:
        raise UsageError(f"a step begins with its name: ctx.{verb}('charge', fn, ...), not ctx.{verb}({name!r}, ...)")
    is_remote, is_bound_by_ray = hasattr(fn, "remote"), hasattr(fn, "bind")
    if is_remote and not is_bound_by_ray and verb == "defer":
        raise UsageError(f"step {name!r}: {fn!r} may be called or sent to: pass its .remote or its .send")
    if (is_remote and not is_bound_by_ray) or (verb == "run" and current.address_in(fn) is not None):
        raise UsageError(f"step {name!r}: {fn!r} is a call, which is durable by itself: await its .remote(...)")
    if not callable(fn) and not is_remote:
        raise UsageError(f"step {name!r}: {fn!r} cannot be called; pass the function and its arguments, not its result")
    if retry is not None and not isinstance(retry, Retry):
        raise UsageError(f"step {name!r}: retry={retry!r} is no Retry; bind keywords of fn by functools.partial")


def _check_options(name: object, fn: Any, given: int, kwargs: dict[str, Any]) -> None:
    """Refuse an option that is also an unbound keyword of a step's function, which would never get it."""
    for option in ("retry", "timeout", "undo"):
        if kwargs.get(option) is not None and option in _named(fn, given):
            raise UsageError(
                f"step {name!r}: {fn!r} takes an argument {option!r} itself, and ctx.run() has an option of this name: "
                f"bind it, functools.partial(fn, {option}=...), or wrap the call in a lambda if the option is meant"
            )


def _named(fn: Any, given: int) -> Collection[str]:
    """Return the names of a function's parameters after the first `given`."""
    if inspect.isfunction(fn) and not hasattr(fn, "__wrapped__"):  # computing a signature is slow
        code = fn.__code__
        return code.co_varnames[max(given, code.co_posonlyargcount) : code.co_argcount + code.co_kwonlyargcount]
    try:
        parameters = list(inspect.signature(getattr(fn, "remote", fn)).parameters.values())[given:]  # Ray wraps, too
    except (TypeError, ValueError):  # some builtins have none
        return ()
    bound = fn.keywords if isinstance(fn, functools.partial) else ()
    return [one.name for one in parameters if one.kind in _BY_NAME and one.name not in bound]


def _check_call(name: str, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], what: str) -> None:
    # Checked at once: a wrong compensation would otherwise fail only when it is needed.
    if current.address_in(fn) is not None:
        try:
            current.check_start(fn, args, kwargs)
        except (TypeError, UsageError) as error:
            raise UsageError(f"step {name!r}: {error}") from None
        return
    try:
        signature = inspect.signature(fn)
    except (TypeError, ValueError):  # some builtins, and Ray's remote functions, have none
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise UsageError(f"step {name!r}: {fn!r} does not take {what}: {error}") from None
