"""Handlers and calls: a method that others may invoke, typed at its address and in place.

Owns the decorators, the descriptor, and the check of a call in its caller. Does not own the way of a call
(`current.caller`).

A pickle of a handler carries its name and its resolved annotations, and no cache.

Why `Handler` has two callables for parameters and not a ParamSpec: a ParamSpec is invariant, so a subclass could not
add an optional argument; two covariant callables let compatible overrides pass, and only those.
"""

# pyright: reportPrivateUsage=false
# Names on users' classes are private to keep every other name free; state, handlers and objects share them.

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Mapping
from functools import partial
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Final,
    Generic,
    ParamSpec,
    Protocol,
    Self,
    TypeVar,
    cast,
    get_origin,
    overload,
)

from actors.errors import UsageError
from actors.policy import Duration, Policy, check_policy
from actors.requests.current import caller
from actors.requests.invocation import Invocation
from actors.requests.request import EMPTY_OPTIONS, CallOptions, Request
from actors.requests.run_ids import RUN, run_id
from actors.requests.schedule import Schedule, ScheduleOptions, declared, handler_keywords
from actors.requests.timing import Missed
from actors.stored import pinned
from journal.codec import MISSING
from journal.ids import address_of

from .annotations import checking
from .context import Context
from .methods import awaited, check_method, is_async
from .methods import short as _short
from .state import Addressed, Unkeyed, resolved

P = ParamSpec("P")
R = TypeVar("R")
Remote = TypeVar("Remote", covariant=True)
"""The signature of a handler at its address: `(item: str) -> Invocation[int]`."""
Plain = TypeVar("Plain", covariant=True)
"""The signature of a handler called in place: `(ctx, item: str) -> Coroutine[Any, Any, int]`."""


@pinned("Call")
class Call(Generic[Remote]):
    """A handler at an address."""

    __slots__ = ("_handler", "_options", "_owner", "_target")

    def __init__(
        self,
        handler: Handler[Any, Any],
        owner: type[Addressed],
        target: Addressed | None,
        options: CallOptions = EMPTY_OPTIONS,
    ) -> None:
        self._handler = handler
        self._owner = owner
        self._target = target
        self._options = options

    @property
    def remote(self) -> Remote:
        """Start an invocation: take the handler's arguments, return the `Invocation` at once.

        Requests of one sender to one key arrive in the order made. In a driver the request is durable once it is
        acknowledged (`.accepted()`); in a handler it leaves with the next commit, and a replay does not send it again.

        Raises:
            TypeError: the arguments are not the handler's.
            UsageError: this is a step, or a process without `actors.init()`.
        """
        call: Any = self._call
        return call

    @property
    def send(self) -> Remote:
        """Start an invocation without waiting for its result; otherwise as `remote`."""
        send: Any = self._send
        return send

    def options(
        self,
        *,
        delay: Duration | None = None,
        idempotency_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: Duration | None = None,
    ) -> Call[Remote]:
        """Return a copy with these options; omitted options stay.

        `delay`: the request counts as sent after this time. `idempotency_key`: the same key is the same invocation, as
        long as its outcome is kept. `headers`: the contents of the handler's `ctx.headers`. `timeout`, for `.remote`
        only: after this time every wait for the call raises `CallTimeout`, and the called invocation is cancelled; in a
        handler by a durable timer, in a driver by this program, so that the time-out ends with the program.
        """
        changed = self._options.changed(delay, idempotency_key, headers, timeout)
        return type(self)(self._handler, self._owner, self._target, changed)

    def schedule(
        self,
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
        """Declare a durable schedule that sends this request at each tick, and return it.

        Declaring it again changes nothing, so a program may do so at every start. With other arguments it goes on with
        these; with another timing it begins anew. A tick is fired once, through failures too; the handler finds its
        time in the header `perdure-scheduled-at`.

        Args:
            cron: five fields, as in "0 9 * * mon-fri"; a sixth field counts seconds.
            every: instead of cron, the interval of the ticks, from now on; at least one second.
            timezone: the time zone of cron, as "Europe/Berlin"; "UTC" by default.
            missed: the treatment of ticks that come at least a minute late, because everything was down, or that were
                due while the schedule was paused: "skip" fires none of them, "last" (the default) a single one if no
                tick is in time, "all" each (at most 1,000, the latest).
            name: the name of the schedule, by default target and handler; the same name is the same schedule.
            arguments: arguments of the handler, by name, for parameters that are named as one of these options.

        Raises:
            TypeError: the arguments are not the handler's.
            UsageError: the timing is invalid, a name may be an option or an argument, or as with every call.
        """
        handler, owner, target = self._handler, self._owner, self._target
        options = ScheduleOptions(cron, every, timezone, missed, name)
        kwargs = handler_keywords(handler.name, handler.fn, args, kwargs, options, arguments)
        handler.check(args, kwargs, owner)
        if handler.exclusive and owner._runs_once:
            raise UsageError(f"{self!r} happens once for each key: schedule a handler that starts it with a new key")
        key = None if target is None else target._key
        request = Request(owner._options.name, key, handler.name, args, kwargs, True, self._options, handler, owner)
        return declared(request, options)

    def _call(self, /, *args: Any, **kwargs: Any) -> Any:
        return self._start(args, kwargs, one_way=False)

    def _send(self, /, *args: Any, **kwargs: Any) -> Any:
        return self._start(args, kwargs, one_way=True)

    def _check_start(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, one_way: bool) -> None:
        self._handler.check(args, kwargs, self._owner)
        self._options.check(one_way=one_way)

    def _start(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, one_way: bool) -> Any:
        handler, owner, target = self._handler, self._owner, self._target
        (handler._binder or handler._compiled() if owner._validates else handler.binder_of(owner))(*args, **kwargs)
        key = None if target is None else target._key
        return caller().start(
            Request(owner._options.name, key, handler.name, args, kwargs, one_way, self._options, handler, owner)
        )

    if not TYPE_CHECKING:  # type checkers find this themselves

        def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
            raise _not_in_place(self)

    def __repr__(self) -> str:
        at = self._owner.__name__ if self._target is None else repr(self._target)
        return f"{at}.{self._handler.name}"


def called(call: Call[Any]) -> tuple[type[Addressed], str | None, Handler[Any, Any]]:
    """Return the target of a call: class, key and handler."""
    return call._owner, None if call._target is None else call._target._key, call._handler


def run_of(call: Call[Any], shards: int) -> tuple[str, Handler[Any, Any]]:
    """Return the id of the only invocation of a workflow's `run`, and its handler.

    Raises:
        UsageError: this is another handler.
    """
    if not isinstance(call, Call):  # pyright: ignore[reportUnnecessaryIsInstance]  # users without a checker
        raise UsageError(f"actors.attach() takes the id of an invocation, or a workflow's Type[key].run, not {call!r}")
    owner, key, handler = called(call)
    if handler.name != RUN or not owner._runs_once:
        raise UsageError(f"{call!r} may have many invocations: attach to the id of one; a workflow's run has but one")
    return run_id(address_of(owner._options.name, key), shards), handler


def _not_in_place(call: Call[Any]) -> UsageError:
    return UsageError(f"{call!r} is at an address: use .remote(...) or .send(...)")


@pinned("BoundHandler")
class BoundHandler(Call[Remote], Generic[Remote, Plain]):
    """A handler of an object; inside another handler of it, it may also be called in place."""

    __slots__ = ()

    @property
    def __call__(self) -> Plain:
        """Run the handler as a method, in the same invocation.

        Raises:
            UsageError: this is an address.
        """
        target = self._target
        if target is None or target._fields is None:
            raise _not_in_place(self)
        return cast("Plain", self._handler.fn.__get__(target))


@pinned("Handler")
class Handler(Generic[Remote, Plain]):
    """A method that others may invoke."""

    __slots__ = (
        "_bare",
        "_binder",
        "_hints",
        "_is_named",
        "_is_native",
        "exclusive",
        "fn",
        "http_get",
        "is_async",
        "name",
        "policy",
        "private",
        "reentrant",
    )

    def __init__(
        self,
        fn: Callable[..., Any],
        *,
        exclusive: bool,
        policy: Policy | None = None,
        reentrant: bool = False,
        private: bool = False,
        http_get: bool = False,
    ) -> None:
        self.fn = fn
        self._is_native = inspect.iscoroutinefunction(fn)
        self.is_async = is_async(fn)
        """Whether a call of it is awaited."""
        self.name = fn.__name__
        self.exclusive = exclusive
        self.policy = policy
        self.reentrant = reentrant
        """Whether a call of it is let in that returns to a key whose holder waits for it."""
        self.private, self.http_get = private, http_get
        """Whether HTTP refuses a call of it, and whether GET calls it; not pickled, for only programs serve HTTP."""
        self._is_named = False
        self._bare: Callable[..., None] | None = None
        self._binder: Callable[..., None] | None = None
        self._hints: dict[str, Any] | None = None

    def __set_name__(self, owner: type, name: str) -> None:
        if not self._is_named:  # a second name is refused by _check_member; it must not undo the first
            self._is_named, self.name = True, name

    @overload
    def __get__(self, instance: None, owner: type[Unkeyed]) -> Call[Remote]: ...
    @overload
    def __get__(self, instance: None, owner: type[object]) -> Self: ...
    @overload
    def __get__(self, instance: object, owner: type[object]) -> BoundHandler[Remote, Plain]: ...
    def __get__(self, instance: object | None, owner: type[Any]) -> Call[Remote] | Self:
        if instance is not None:
            return BoundHandler(self, owner, instance)  # pyright: ignore[reportArgumentType, reportUnknownVariableType]  # a cast costs
        # Not issubclass(): through ABCMeta it costs as much as the rest.
        return Call(self, owner, None) if Unkeyed in owner.__mro__ else self

    if not TYPE_CHECKING:  # type checkers find this themselves

        def __getattr__(self, name: str) -> Any:
            if name in ("remote", "send", "options"):
                owner, _, handler = _short(self.fn).rpartition(".")
                raise AttributeError(f"{owner}.{handler} is called on an object: {owner}[key].{handler}.{name}(...)")
            raise AttributeError(f"a handler has no attribute {name!r}")

    @property
    def hints(self) -> Mapping[str, Any]:
        """The resolved annotations of its parameters and of `return`, without those that cannot be resolved."""
        if self._hints is None:
            fn = inspect.unwrap(self.fn)
            annotations = fn.__annotations__
            self._hints = {
                name: hint
                for name in annotations
                if (hint := resolved(annotations[name], fn.__globals__, {})) is not MISSING
            }
        return self._hints

    @property
    def returns(self) -> Any:
        """The resolved annotation of its result, or MISSING."""
        return self.hints.get("return", MISSING)

    def check(self, args: tuple[Any, ...], kwargs: dict[str, Any], owner: type[Addressed] = Addressed, /) -> None:
        """Raise the `TypeError` of a call with these arguments, naming this handler.

        It is Python's own error, or also a `UsageError` if an argument is not of its annotated type.
        """
        self.binder_of(owner)(*args, **kwargs)

    def called(
        self, me: Addressed, ctx: Context, args: tuple[Any, ...], kwargs: dict[str, Any], /, *, are_checked: bool = True
    ) -> Coroutine[Any, Any, Any]:
        """Return the coroutine of a call: the method's own, since a wrapper would hide that it resists its end.

        Raises:
            UsageError: the method does not take these arguments or, unless `are_checked`, arguments of these types.
        """
        try:
            (self._bare or self._compiled_bare() if are_checked else self.binder_of(type(me)))(*args, **kwargs)
        except UsageError:
            raise
        except TypeError as error:
            raise UsageError(str(error)) from None
        if self._is_native:
            return self.fn(me, ctx, *args, **kwargs)
        return awaited(self.fn, me, ctx, args, kwargs, is_async=self.is_async)

    def binder_of(self, owner: type[Addressed], /) -> Callable[..., None]:
        """Return a function that checks the arguments of a call; their types too, unless handler or class refuse it."""
        said = None if self.policy is None else self.policy.validate
        if owner._validates if said is None else said:
            return self._binder or self._compiled()
        return self._bare or self._compiled_bare()

    def _compiled(self) -> Callable[..., None]:
        is_off = self.policy is not None and self.policy.validate is False
        self._binder = _binder(self.fn, {} if is_off else self.hints)
        return self._binder

    def _compiled_bare(self) -> Callable[..., None]:
        self._bare = _binder(self.fn, {})
        return self._bare

    @property
    def __isabstractmethod__(self) -> bool:
        return getattr(self.fn, "__isabstractmethod__", False)

    def __repr__(self) -> str:
        return f"<handler {_short(self.fn)}>"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _restored_handler, (self.fn, self.name, self.exclusive, self.policy, dict(self.hints), self.reentrant)


@pinned("_restored_handler")
def _restored_handler(
    fn: Callable[..., Any],
    name: str,
    exclusive: bool,
    policy: Policy | None,
    hints: dict[str, Any],
    reentrant: bool = False,
) -> Handler[Any, Any]:
    restored = Handler[Any, Any](fn, exclusive=exclusive, policy=policy, reentrant=reentrant)
    restored.__set_name__(Unkeyed, name)
    restored._hints = hints
    return restored


def _binder(fn: Callable[..., Any], hints: Mapping[str, Any]) -> Callable[..., None]:
    """Return a function with the parameters of `fn` after self and ctx: Python checks the call, its body the types.

    Compiled once (70 µs); then 0.2 µs for a call, where `inspect.Signature.bind` takes 4.3.
    """
    parts: list[str] = []
    named: dict[str, tuple[Any, Any]] = {}
    last = None
    for parameter in list(inspect.signature(fn).parameters.values())[2:]:
        kind = parameter.kind
        if last is parameter.POSITIONAL_ONLY and kind is not last:
            parts.append("/")
        if kind is parameter.KEYWORD_ONLY and last not in (kind, parameter.VAR_POSITIONAL):
            parts.append("*")
        star = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}.get(kind, "")
        parts.append(f"{star}{parameter.name}{'' if parameter.default is parameter.empty else '=_absent'}")
        if parameter.name in hints:
            named[star + parameter.name] = hints[parameter.name], parameter.default
        last = kind
    if last is inspect.Parameter.POSITIONAL_ONLY:
        parts.append("/")
    lines, scope = checking(named, _short(fn))
    exec("\n".join((f"def check({', '.join(parts)}):", *(lines or ["    pass"]))), scope)
    check = scope["check"]
    check.__qualname__ = _short(fn)
    return check


class Decorator(Protocol):
    """The decorator that `handler(policy=...)` returns."""

    @overload
    def __call__(
        self, fn: Callable[Concatenate[Any, Context, P], Coroutine[Any, Any, R]], /
    ) -> Handler[Callable[P, Invocation[R]], Callable[Concatenate[Context, P], Coroutine[Any, Any, R]]]: ...
    @overload
    def __call__(
        self, fn: Callable[Concatenate[Any, Context, P], R], /
    ) -> Handler[Callable[P, Invocation[R]], Callable[Concatenate[Context, P], R]]: ...


@pinned("_Maker")
class _Maker:
    """The type of `handler` and `shared`, which are used bare and with options; it states the signatures once."""

    def __init__(self, *, exclusive: bool) -> None:
        self._exclusive = exclusive

    @overload
    def __call__(
        self, fn: Callable[Concatenate[Any, Context, P], Coroutine[Any, Any, R]], /
    ) -> Handler[Callable[P, Invocation[R]], Callable[Concatenate[Context, P], Coroutine[Any, Any, R]]]: ...
    @overload
    def __call__(
        self, fn: Callable[Concatenate[Any, Context, P], R], /
    ) -> Handler[Callable[P, Invocation[R]], Callable[Concatenate[Context, P], R]]: ...
    @overload
    def __call__(
        self, /, *, policy: Policy, reentrant: bool = ..., private: bool = ..., http_get: bool = ...
    ) -> Decorator: ...
    @overload
    def __call__(self, /, *, reentrant: bool, private: bool = ..., http_get: bool = ...) -> Decorator: ...
    @overload
    def __call__(self, /, *, private: bool, http_get: bool = ...) -> Decorator: ...
    @overload
    def __call__(self, /, *, http_get: bool) -> Decorator: ...
    def __call__(
        self,
        fn: Callable[..., Any] | None = None,
        /,
        *,
        policy: Policy | None = None,
        reentrant: bool = False,
        private: bool = False,
        http_get: bool = False,
    ) -> Any:
        check_policy("a handler", policy)
        if reentrant and not self._exclusive:
            raise UsageError("@shared(reentrant=True): a shared handler runs beside all others anyway; leave it out")
        if http_get and self._exclusive:
            raise UsageError("@handler(http_get=True): GET changes nothing, so it is for @shared handlers alone")
        if http_get and private:
            raise UsageError("private=True refuses every call over HTTP, so it excludes http_get=True")
        options = {"policy": policy, "reentrant": reentrant, "private": private, "http_get": http_get}
        return self._made(fn, options) if fn is not None else partial(self._made, options=options)

    def _made(self, fn: Callable[..., Any], options: Mapping[str, Any]) -> Handler[Any, Any]:
        check_method(fn, is_handler=isinstance(fn, Handler))
        _check_context(fn)
        return Handler(fn, exclusive=self._exclusive, **options)


def _check_context(fn: Callable[..., Any]) -> None:
    inner = inspect.unwrap(fn)
    name = list(inspect.signature(fn).parameters)[1]
    hint = resolved(inner.__annotations__.get(name, MISSING), inner.__globals__, {})
    found: Any = get_origin(hint) or hint
    if not isinstance(found, type) or getattr(found, "_is_protocol", False):
        return
    if not (issubclass(Context, found) or issubclass(found, Context)):
        raise UsageError(
            f"{_short(fn)}: after self comes the context, not {name!r}: "
            f"def {fn.__name__}(self, ctx: Context, {name}, ...)"
        )


handler: Final = _Maker(exclusive=True)
"""Make a method an exclusive handler: it holds its key alone, and may write state.

`@handler(private=True)`: HTTP refuses its calls (403); programs and handlers call it as any other.
"""

shared: Final = _Maker(exclusive=False)
"""Make a method a shared handler: it runs beside others and reads the last committed state.

`@shared(http_get=True)`: over HTTP, GET calls it too, with the query as arguments. `private=True`: as of `handler`.
"""
