"""Sagas: the compensations of an execution, which run when its handler ends for good in an error.

Where it lies. Nothing is stored when a compensation is deferred: a replay defers the same compensations again, at the
same places. When the handler and its tasks have ended, and the steps that it held are given up, a second root task on
the same loop runs the compensations one after the other, newest first. Each is a step like any other: its entry
`run <name>` comes after the handler's entries, and its start, retries and record are those of a step (`steps`,
`attempts`).

Calls in compensations. The `.remote` or `.send` of an address makes the entry of a call or a send instead of a step.
For a function it is unknown before it runs whether it calls: it begins as a step; if it uses a command that only its
handler may use, this is the outcome of the step, and the function runs once more as code of the handler, with its calls
and steps journaled like the handler's. An error of such code that is not terminal ends the attempt, as an error of the
handler does; in the last attempt the compensation has failed for good.

A death between two store calls. The next owner replays the handler to the same error, from the same events, and then
the compensations, which get their recorded outcomes; the first without an outcome starts, perhaps once more, as any
step does. An error that ends the invocation only because the attempts are used up, or because a cancel waits behind it,
is marked by an entry: a replay that finds the entry compensates, whatever is left of its attempts by then. Uncommitted
progress of such an attempt (state, messages) is discarded, as for every failed attempt.

Invariants:
    1. No compensation runs after a handler that returned, nor when another attempt follows.
    2. A compensation that fails for good stops no other, and the handler's error stays the outcome.
    3. A step whose wait was given up before its outcome came defers nothing: a compensation that must run in any case
       has to be deferred before the step.
    4. A cancel that comes while an execution compensates changes nothing; a kill ends it.
"""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context, copy_context
from typing import Any, Final, cast

from actors.errors import DecodeError, TerminalError
from actors.requests.current import address_in, refused_in_step
from actors.requests.invocation import Invocation
from actors.stored import pinned
from actors.values import outcomes
from journal.records import Message

logger = logging.getLogger("actors")

GIVE_UP: Final = "give up"
"""The entry of an attempt that failed, had compensations, and was the last."""
CANCELLED: Final = "give up cancelled"
"""The entry of an attempt that failed before its cancel was delivered."""


@pinned("AsHandler")
class AsHandler(TerminalError):
    """The outcome of a step that used a command of its handler: its function has to run as code of the handler."""


class Sagas:
    """The compensations of one execution."""

    def __init__(
        self,
        message: Message,
        run: Callable[..., "asyncio.Future[Any]"],
        is_replaying: Callable[[], bool],
        is_sent: Callable[[Invocation[Any]], bool],
        is_last: Callable[[BaseException], bool],
    ) -> None:
        self._message, self._run, self._is_replaying = message, run, is_replaying
        self._is_sent, self._is_last = is_sent, is_last
        self._deferred: list[tuple[Context, str, Any, tuple[Any, ...], dict[str, Any]]] = []
        self._failed: list[str] = []
        self.error: BaseException | None = None
        """The handler's error, once its compensations have begun."""

    def __bool__(self) -> bool:
        """Whether there are compensations."""
        return bool(self._deferred)

    def defer(self, name: str, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Add a compensation."""
        self._deferred.append((copy_context(), name, fn, args, kwargs))

    def defer_undo(self, name: str, undo: Any, step: "asyncio.Future[Any]") -> None:
        """Add a compensation with the result of a step, as soon as the step has succeeded."""

        def succeeded(done: "asyncio.Future[Any]") -> None:
            if not done.cancelled() and done.exception() is None:
                self.defer(f"undo {name}", undo, (done.result(),), {})

        # The first callback of the future: it runs before any code that awaits the future goes on.
        step.add_done_callback(succeeded)

    def begin(self, error: BaseException) -> Coroutine[Any, Any, None]:
        """Return a coroutine that runs the compensations, for this error."""
        self.error = error
        return self._compensate()

    async def _compensate(self) -> None:
        while self._deferred:
            context, name, fn, args, kwargs = self._deferred.pop()
            try:
                await self._undo(context, name, fn, args, kwargs)
            except DecodeError:
                pass  # it is done; its result is not used
            except Exception as error:  # code that runs as the handler's may raise any error
                if outcomes.terminal(error) is None and not self._is_last(error):
                    raise
                self._failed.append(name)
                if not self._is_replaying():
                    where = f"{self._message.target}.{self._message.handler} ({self._message.id})"
                    logger.error("%s: the compensation %r failed: %s", where, name, outcomes.traced(error))

    async def _undo(self, context: Context, name: str, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if address_in(fn) is None:
            try:
                await context.run(self._run, name, _noting(fn), args, kwargs, None, None)
            except AsHandler:
                pass
            else:
                return
        await asyncio.get_running_loop().create_task(self._called(fn, args, kwargs), context=context)

    async def _called(self, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value = fn(*args, **kwargs)
        if inspect.isawaitable(value) and not (isinstance(value, Invocation) and self._is_sent(cast("Any", value))):
            await value

    def encoded(self, error: TerminalError) -> bytes:
        """Return the encoded outcome of an error, which names the compensations that failed."""
        return outcomes.encoded_error(error, ", ".join(self._failed))


def _noting(fn: Any) -> Any:
    """Return an action that raises `AsHandler` if a command was refused to it, whether it caught that or not."""
    if hasattr(fn, "remote"):
        return fn  # a Ray function: it runs elsewhere
    if not inspect.iscoroutinefunction(fn):

        def act(*args: Any, **kwargs: Any) -> Any:
            with _noted():
                value = fn(*args, **kwargs)
            return _awaited(value) if inspect.isawaitable(value) else value

        return act

    async def act_async(*args: Any, **kwargs: Any) -> Any:
        with _noted():
            return await fn(*args, **kwargs)

    return act_async


async def _awaited(value: Awaitable[Any]) -> Any:
    with _noted():
        return await value


class _noted:  # noqa: N801  # as a function of contextlib's would be, which sets attributes of a user's error
    """Notes a command that is refused within its block, and then raises `AsHandler`."""

    def __enter__(self) -> None:
        self._refused: list[str] = []
        self._token = refused_in_step.set(self._refused)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        refused_in_step.reset(self._token)
        if self._refused and (kind is None or issubclass(kind, Exception)):
            raise AsHandler(self._refused[0])
