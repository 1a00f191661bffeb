"""Execution: one attempt at one invocation. Events in, commands out; it does no I/O.

Owns the handler's coroutine on its deterministic loop, and what it asked for that its host has not taken yet. Does not
own: the journal, the commit, timers and actions; the host takes the commands and brings the events.

Invariants:
    1. The handler advances only in `begin` and `deliver*`, one event at a time, run dry in between.
    2. What a handler asks for that the journal holds already asks for nothing again.
    3. A step whose wait the handler gave up is over: a late outcome finds nobody.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Generator, Mapping
from functools import cached_property
from typing import Any, Final

from journal.entries import Delivered, EventKind, Message
from journal.names import ObjectId
from journal.store import Bring, Outgoing

from . import outcomes
from .awakeables import Awakeables, MadeAwakeable
from .calls import Calls, Surroundings
from .context import Context
from .errors import NondeterminismError, TerminalError, UsageError
from .fields import StateView
from .handlers import Handler
from .invocation import Accepted, Invocation
from .loop import DeterministicLoop, EntryFuture
from .objects import Declaration, instance
from .outgoing import bounded
from .place import NOT_IN_A_STEP, Request, in_step
from .policy import Retry
from .replay import Entries, Happening, Phase, advance
from .signals import Signals
from .steps import Step
from .timers import Timers
from .values import decode, scope_of

logger = logging.getLogger("actors")
NO_HEADERS: Final[Mapping[str, str]] = {}


class Execution:
    """One attempt: `begin` it, deliver events, and take what it asks for until `phase` says that it has ended."""

    def __init__(
        self,
        surroundings: Surroundings,
        declared: Declaration,
        handler: Handler[Any, Any],
        message: Message,
        attempt: int,
        recorded: list[str],
        started_ms: int,
    ) -> None:
        self._surroundings, self._declared, self._handler, self._message = surroundings, declared, handler, message
        self._target = ObjectId.parse(message.target)
        self._scope = scope_of(declared.cls)
        self._attempt = attempt
        self._now_ms = started_ms
        self._loop = DeterministicLoop(self, started_ms / 1000)
        self._entries = Entries(message.id, recorded)
        self._root: asyncio.Task[Any] | None = None
        self._random: random.Random | None = None
        self._calls = Calls(message.id, surroundings, self._loop, self._scope)
        self.timers = Timers(self._loop, self._make, self._entries.is_new)
        self._steps: dict[int, Step] = {}
        self._step_of: dict[int, int] = {}
        self._divergence: NondeterminismError | None = None
        self._foreign = False
        self.view: StateView | None = None
        self.phase = Phase.REPLAYING
        self.outcome: bytes = b""
        """With COMPLETED: the encoded result or terminal error."""
        self.error: BaseException | None = None
        """With FAILED and DIVERGED: why."""
        self.unstarted: dict[int, Step] = {}
        """Steps without an outcome whose action has not started."""
        self.on_foreign_call: Callable[[], object] = lambda: None
        """Told, from any thread, that this attempt must fail."""

    # What the host asks

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will be asked for."""
        return self.phase not in (Phase.REPLAYING, Phase.PROCESSING)

    @property
    def entries(self) -> list[str]:
        """All entries made so far."""
        return self._entries.made

    def take_messages(self) -> list[Outgoing | Bring]:
        """Return what leaves with the next commit, in order, and forget it here."""
        messages, self._calls.messages = self._calls.messages, []
        return messages

    @property
    def has_messages(self) -> bool:
        """Whether something is to leave."""
        return bool(self._calls.messages)

    @property
    def recorded(self) -> list[str]:
        """The entries that the journal held when this attempt began."""
        return self._entries.recorded

    def begin(self, fields: Mapping[str, bytes], refusal: str) -> None:
        """Begin the handler on this state; `refusal` says why it may not write, if it may not."""
        self.view = StateView(fields, self._loop, refusal, self._scope)
        try:
            # The root is the handler's own coroutine: one that awaited it would hide that it refuses to be closed.
            self._root = self._loop.start(self._called())
        except Exception as error:  # noqa: BLE001  # arguments run code of the user as they are decoded
            self._decide(error)
            return
        self._drain()

    def _called(self) -> Coroutine[Any, Any, Any]:
        args, kwargs = decode(self._message.arguments, scope=self._scope)
        me, ctx = instance(self._declared.cls, self._target.key, self._state()), Context(self)
        try:
            self._handler.check(args, kwargs)
        except TypeError as error:
            raise UsageError(str(error)) from None
        fn = self._handler.fn
        return fn(me, ctx, *args, **kwargs) if self._handler.is_async else _plain(fn, me, ctx, *args, **kwargs)

    def deliver(self, event: Delivered) -> bool:
        """Deliver a durable event and run dry; return False if it changed nothing, not even the time."""
        if event.kind is EventKind.SIGNAL:
            self._set_time(event.time_ms)
            self._signals.take(event.payload)
        elif event.kind is EventKind.AWAKEABLE:
            if not self._awakeables.expects(event.index, len(self._entries.made)):
                return False
            self._set_time(event.time_ms)
            self._awakeables.complete(event.index, event.payload)
        elif event.index >= len(self._entries.made):
            self._diverge(self._entries.unexpected(event.index, f"the event {event.kind.name} of `{event.index}`"))
            return True
        elif event.kind is EventKind.TIMER:
            handle = self.timers.due(event.index)
            if handle is None:
                return False
            self._set_time(event.time_ms)
            self._loop.fire(handle)
        else:
            expected = self._calls.expects(event.index)
            if expected is None:
                self._diverge(self._entries.unexpected(event.index, "a reply"))
                return True
            if not expected:
                return False
            self._set_time(event.time_ms)
            self._calls.reply(event.index, event.payload)
        self._drain()
        return True

    def deliver_outcome(self, index: int, outcome: bytes, time_ms: int) -> None:
        """Deliver the recorded outcome of a step and run dry."""
        step = self._steps.pop(index, None)
        if step is None:
            self._diverge(self._entries.unexpected(index, "the outcome of a step"))
            return
        self.unstarted.pop(index, None)
        self._set_time(time_ms)
        if not step.future.done():
            try:
                step.future.set_result(outcomes.decoded(outcome, scope=self._scope))
            except Exception as error:  # noqa: BLE001  # the step's own failure, or one of reading its result
                step.future.set_exception(error)
        self._drain()

    def holds(self, index: int) -> bool:
        """Whether the handler still wants the outcome of a step."""
        step = self._steps.get(index)
        return step is not None and not step.future.done()

    def drained(self) -> None:
        """Say that everything durable was delivered: from here on actions start."""
        if self.phase is Phase.REPLAYING:
            if (short := self._entries.missing("nothing: it waits")) is not None:
                self._diverge(short)
            else:
                self.phase = advance(self.phase, Happening.DRAINED)

    def drop(self) -> None:
        """Leave memory: coroutines are closed, and nothing that they ask for happens."""
        if not self.has_ended:
            self.phase = advance(self.phase, Happening.DROPPED)
        self._loop.drop()

    # Driving

    def _set_time(self, time_ms: int) -> None:
        if time_ms > self._now_ms:
            self._now_ms = time_ms
            self._loop.advance(time_ms / 1000)

    def _drain(self) -> None:
        self._loop.drain()
        if self._divergence is not None:
            self._diverge(self._divergence)
        elif self._loop.escaped is not None:
            self._fail(self._loop.escaped)
        elif self._foreign:
            self._fail(RuntimeError("a thread called into the handler's event loop: that belongs in ctx.run()"))
        elif self._root is not None and self._root.done():
            self._end(self._root)

    def _end(self, root: "asyncio.Task[Any]") -> None:
        error = asyncio.CancelledError() if root.cancelled() else root.exception()
        self._loop.finish()
        if self._divergence is not None:
            self._diverge(self._divergence)
        elif error is not None:
            self._decide(error)
        elif (short := self._entries.missing("nothing: it ended")) is not None:
            self._diverge(short)
        else:
            self._complete(root.result())

    def _decide(self, error: BaseException) -> None:
        """The handler has raised: that is its outcome, or the end of this attempt."""
        found = outcomes.terminal(error)
        if found is None:
            self._fail(error)
        elif (short := self._entries.missing("nothing: it failed")) is not None:
            self._diverge(short)
        else:
            self._warn_of_leftovers()
            self.outcome, self.error = outcomes.encoded_error(found), error
            self.phase = advance(self.phase, Happening.RETURNED)

    def _complete(self, result: Any) -> None:
        self._warn_of_leftovers()
        try:
            self.outcome = bounded(
                outcomes.encoded_value(result, self._handler.returns), "result", self._surroundings.payload_max
            )
        except UsageError as error:
            where = f"{self._message.target}.{self._handler.name}"
            self.outcome = outcomes.encoded_error(TerminalError(f"{where} returned what cannot be sent: {error}", 400))
            self.error = error
        self.phase = advance(self.phase, Happening.RETURNED)

    def _fail(self, error: BaseException) -> None:
        self.error = error
        self.phase = advance(self.phase, Happening.RAISED)
        self._loop.drop()

    def _diverge(self, error: NondeterminismError) -> None:
        if self.phase is not Phase.DIVERGED:
            self.error = error
            self.phase = advance(self.phase, Happening.DIFFERED)
            self._loop.drop()

    def _warn_of_leftovers(self) -> None:
        if not self._entries.made and not self._loop.unfinished():
            return
        for name in self._calls.unawaited():
            self.warn(f"`{name}` was never awaited: its result is lost. Use .send() if nobody waits", None)
        for step in self._steps.values():
            if not step.future.done():
                self.warn(f"the step {step.name!r} was never awaited: it is given up with its handler", None)
        for index in self.timers:
            self.warn(f"`{self.entries[index]}` had not ended when the handler did: is an await missing?", None)
        for name in self._loop.unfinished():
            self.warn(f"{name} had not ended when the handler did: it was cancelled", None)

    def _make(self, entry: str) -> int:
        try:
            return self._entries.make(entry)
        except NondeterminismError as error:
            self._divergence = self._divergence or error
            raise

    # What the loop asks (`loop.Owner`)

    def set_timer(self, when: float, handle: asyncio.TimerHandle, /) -> None:
        """Make the entry of a timer that asyncio asked for."""
        self.timers.add(when, handle, "sleep")

    def clear_timer(self, handle: asyncio.TimerHandle, /) -> None:
        """Forget a timer."""
        self.timers.clear(handle)

    def foreign_call(self) -> None:
        """Fail the attempt: another thread called into the loop."""
        self._foreign = True
        self.on_foreign_call()

    def check_foreign(self) -> None:
        """Fail the attempt if another thread called into the loop; in the host's thread."""
        if self._foreign and not self.has_ended:
            self._drain()

    def entry_cancelled(self, future: EntryFuture, /) -> None:
        """Give up a step whose wait was cancelled."""
        index = self._step_of.pop(future.number, None)
        if index is not None:
            self._steps.pop(index, None)
            self.unstarted.pop(index, None)

    def warn(self, message: str, exception: BaseException | None, /) -> None:
        """Log what asyncio or the end of the handler has to say, unless it was said before."""
        if not self.is_replaying:
            where = f"{self._message.target}.{self._message.handler} ({self.id})"
            logger.warning("%s: %s", where, message, exc_info=exception)

    # What the context asks (`context.Commands`)

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop that the handler runs on."""
        return self._loop

    @property
    def key(self) -> str:
        """The object's key; empty for a service."""
        return self._target.key or ""

    @property
    def id(self) -> str:
        """The invocation's id."""
        return self._message.id

    @property
    def attempt(self) -> int:
        """Which attempt this is, from 1."""
        return self._attempt

    @property
    def headers(self) -> Mapping[str, str]:
        """What the caller sent along."""
        return self._message.headers or NO_HEADERS

    @property
    def is_replaying(self) -> bool:
        """Whether durable events remain to be delivered."""
        return self.phase is Phase.REPLAYING and bool(self._entries.recorded)

    def run_step(
        self,
        name: str,
        fn: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        retry: Retry | None,
        timeout_s: float | None,
        /,
    ) -> "asyncio.Future[Any]":
        """Make the entry of a step; its action starts when the host finds that it may."""
        index = self._make(f"run {name}")
        future = self._loop.entry_future()
        step = Step(index, name, fn, args, kwargs, retry, timeout_s, future)
        self._steps[index] = self.unstarted[index] = step
        self._step_of[future.number] = index
        return future

    def sleep(self, duration_s: float, name: str, /) -> "asyncio.Future[None]":
        """Make the entry of a timer."""
        return self.timers.sleep(duration_s, name)

    def awakeable(self, annotation: Any, /) -> MadeAwakeable:
        """Make the entry of an awakeable."""
        return self._awakeables.make(self._make("awakeable"), annotation)

    @cached_property
    def _awakeables(self) -> Awakeables:
        return Awakeables(self.id, self._loop, self._scope)

    def signal(self, name: str, annotation: Any, /) -> "asyncio.Future[Any]":
        """Make the entry of the wait for a signal."""
        self._make(f"signal {name}")
        return self._signals.ask(name, annotation)

    @cached_property
    def _signals(self) -> Signals:
        return Signals(self._loop, self._scope)

    def now_ms(self) -> int:
        """Return the time of the last delivered event."""
        return self._now_ms

    def random(self) -> random.Random:
        """Return the invocation's own generator."""
        if self._random is None:
            self._random = random.Random(self.id)
        return self._random

    def read_field(self, name: str, /) -> Any:
        """Return a field's value."""
        return self._state().read(name, self._declared.fields.get(name))

    def write_field(self, name: str, value: Any, /) -> None:
        """Set a field."""
        field = self._declared.fields.get(name)
        if field is None:
            self._state().write(name, value)
        else:
            self._state().set(field, value)

    def clear_field(self, name: str, /) -> None:
        """Make a field absent."""
        self._state().clear(name)

    def field_names(self) -> list[str]:
        """Return the names of the fields that are set."""
        return self._state().names()

    def _state(self) -> StateView:
        assert self.view is not None
        return self.view

    # Calls and sends (`place.Caller`, `invocation.Waiter`)

    def start(self, request: Request, /) -> Invocation[Any]:
        """Make the entry of a call or a send; the message leaves with the next commit."""
        if in_step.get() is not None:
            raise UsageError(NOT_IN_A_STEP)
        if not (request.one_way or self._handler.is_async):
            raise UsageError(f"{self._handler.name} is not async, so it cannot wait: use .send(), or make it async")
        return self._calls.start(request, self._make, self._entries.is_new, self)

    def bring(self, event: Bring, entry: str, /) -> Accepted:
        """Make the entry of an event for another invocation; it leaves with the next commit."""
        if in_step.get() is not None:
            raise UsageError(NOT_IN_A_STEP)
        bounded(event.data, f"value of `{entry}`", self._surroundings.payload_max)
        if self._entries.is_new(self._make(entry)):
            self._calls.messages.append(event)
        return Invocation(entry, self).accepted()

    def wait(self, invocation: Invocation[Any], /) -> Generator[Any, Any, Any]:
        """Wait for a call of this handler."""
        return self._calls.wait(invocation)

    def wait_accepted(self, invocation: Invocation[Any], /) -> Generator[Any, Any, None]:
        """Return at once: what a handler starts is durable with its own next commit."""
        yield from ()


async def _plain(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return fn(*args, **kwargs)
