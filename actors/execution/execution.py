"""Execution: a single attempt at an invocation. Events go in, commands come out; it does no I/O.

Owns the handler's coroutine on its deterministic loop, and the commands that the host has not taken yet. Does not own
the journal, the commit, timers and actions; the host takes the commands and delivers the events.

Invariants:
    1. The handler advances only in `begin` and `deliver*`, event by event; the loop runs until it is idle in between.
    2. A command that is in the journal already is not issued again.
    3. A step is over when the handler gives up its wait: a late outcome is ignored.
"""

import asyncio
import logging
import random
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any

from actors.blocks.awakeables import Awakeables, MadeAwakeable
from actors.blocks.calls import Calls, Surroundings
from actors.blocks.cancel import Unheeded, fail_waits
from actors.blocks.entries import Entries
from actors.blocks.promises import MadePromise, PromiseCommands, Promises
from actors.blocks.restarts import Restarts
from actors.blocks.sagas import CANCELLED, Sagas
from actors.blocks.signals import Signals, dropped
from actors.blocks.steps import Steps
from actors.blocks.timers import Timers
from actors.errors import Cancelled, NondeterminismError, Refusal, TerminalError, UsageError
from actors.loop.coroutines import HandlerWait
from actors.loop.loop import DeterministicLoop, EntryFuture
from actors.loop.refusals import outside_refusal
from actors.objects.context import Context
from actors.objects.handlers import Handler
from actors.objects.objects import Declaration, instance
from actors.requests.current import in_step, not_in_a_step
from actors.requests.invocation import Accepted, Invocation
from actors.requests.message import bounded, outcome_of_result
from actors.requests.request import Request
from actors.requests.schedule import SCHEDULED_AT
from actors.values import outcomes
from actors.values.values import decode, scope_of
from journal.codec import MISSING
from journal.ids import key_of
from journal.records import Delivered, EventKind, Message
from journal.store import Bring

from .leftovers import leftovers
from .phases import UNDER_WAY, Happening, Phase, advance
from .state_view import StateView

logger = logging.getLogger("actors")


class Execution:
    """A single attempt: `begin` it, deliver events, and take its commands until `phase` says that it has ended."""

    _root_is_cancelled: Cancelled | Refusal | None = None  # the outcome if the root task obeys the cancel
    board: PromiseCommands | None = None  # holds the promises of a workflow
    restarts: Restarts = ()  # the entries from which its invocation was restarted
    _unheeded: Unheeded | None = None
    _watched: dict[int, tuple[str, ...]] = {}  # noqa: RUF012  # names of the fields of each watch, by entry
    watching: dict[int, dict[str, bytes | None]] = {}  # noqa: RUF012  # new watches: values seen, by entry
    _steps: Steps | None = None
    _sagas: Sagas | None = None
    repeats = False
    """Recorded events are being delivered: the handler repeats an earlier attempt."""
    has_given_up = False
    """It failed as the last attempt and compensates: its uncommitted changes are discarded."""
    final_failure: Callable[["Execution", BaseException, str], tuple[str, TerminalError] | None]
    """Returns the entry and the error that end the invocation, or None if another attempt follows.

    Its last argument is the entry that the journal holds at this place.
    """

    on_foreign_call: Callable[["Execution"], object]
    """Called, from any thread, when this attempt must fail."""

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
        self._key = key_of(message.target)
        self._scope = scope_of(declared.cls)
        self.attempt = attempt
        self._now_ms = started_ms
        self.loop = DeterministicLoop(self, started_ms / 1000)
        self._entries = Entries(message.id, recorded, surroundings.limits)
        self._root: asyncio.Task[Any] | None = None
        self._random: random.Random | None = None
        self.calls = Calls(message, surroundings, self.loop, self._scope, holds=handler.exclusive)
        self.timers = Timers(self.loop, self._entries)
        self._foreign = False
        self.view: StateView | None = None
        self.phase = Phase.REPLAYING
        self.outcome: bytes = b""
        """With COMPLETED: the encoded result or terminal error."""
        self.error: BaseException | None = None
        """With FAILED and DIVERGED: the reason."""

    # For the host

    @property
    def has_ended(self) -> bool:
        """Whether the attempt is over, so that no further command follows."""
        return self.phase not in UNDER_WAY

    @property
    def entries(self) -> list[str]:
        """All entries made so far."""
        return self._entries.made

    def begin(self, fields: Mapping[str, bytes], refusal: str) -> None:
        """Begin the handler on this state; a `refusal` is the reason why the handler may not write."""
        message, declared, scope = self._message, self._declared, self._scope
        target = message.target
        self.view = view = StateView(fields, declared.fields, self.loop, refusal, scope, declared.cls, target)
        try:
            args, kwargs = decode(message.arguments, MISSING, scope, ("arguments", target, message.handler))
            me = instance(declared.cls, self._key, view)
            # A sender without the class could not check the types, and a schedule may come from such a sender.
            looked = message.code and not (message.headers and SCHEDULED_AT in message.headers)
            called = self._handler.called(me, Context(self), args, kwargs, are_checked=bool(looked))
            self._root = self.loop.start(called)
        except BaseException as error:  # noqa: BLE001  # arguments run code of the user as they are decoded
            self._decide(error)
            return
        self._drain()

    def deliver(self, event: Delivered) -> bool:
        """Deliver a durable event and run until idle; return False if it changed nothing, not even the time."""
        if event.kind is EventKind.SIGNAL:
            if not (self.repeats or self._signals.has_room(event.payload)):
                self._say_dropped(event)
                return False
            self._take_in(event)
            self._signals.take(event.payload)
        elif event.kind is EventKind.CANCEL:
            if self.is_compensating:
                return False
            self._set_time(event.time_ms)
            self._cancel()
        elif event.kind is EventKind.AWAKEABLE:
            if not self._awakeables.expects(event.index, len(self._entries.made)):
                return False
            self._take_in(event)
            if event.index in self._watched and self._awakeables.is_awaited(event.index):
                self.state.read_all(self._watched[event.index])  # the event counts as a read of these fields
            self._awakeables.complete(event.index, event.payload)
        elif event.index >= len(self._entries.made):
            self._diverge(self._entries.unexpected(event.index, f"the event {event.kind.name} of `{event.index}`"))
            return True
        elif event.kind is EventKind.PROMISE:
            if not self._promises.expects(event.index):
                return False
            self._take_in(event)
            self._promises.deliver(event.index, event.payload)
        elif event.kind is EventKind.TIMER:
            handle = self.timers.due(event.index)
            if handle is None:
                return False
            # Where the store's clock was set back, ids of events stand still until it has caught up: timers go on.
            self._set_time(max(event.time_ms, int(handle.when() * 1000)))
            self.loop.fire(handle)
            self._pass_on(self.calls.time_out(event.index))
        else:
            expected = self.calls.expects(event.index)
            if expected is None:
                self._diverge(self._entries.unexpected(event.index, "a reply"))
                return True
            if not expected:
                return False
            self._take_in(event)
            self.calls.reply(event.index, event.payload)
        self._drain()
        return True

    def _take_in(self, event: Delivered) -> None:
        self._set_time(event.time_ms)
        self._entries.size += len(event.payload)

    def _cancel(self) -> None:
        """Raise `Cancelled` from every open wait, and ask the same of the calls without an outcome."""
        self._pass_on(self.calls.cancels())
        self._unheeded = Unheeded(self.loop, self._say)
        if not fail_waits(self.loop, self.steps, self.timers):  # it waits for a lock or a queue, which cannot fail
            assert self._root is not None
            self._root.cancel()
            self._root_is_cancelled = Cancelled()

    def _pass_on(self, cancels: list[Bring]) -> None:
        for event in cancels:
            try:
                self._tell(event, f"cancel {event.invocation}")
            except NondeterminismError:
                return  # it is noted, and ends the attempt
            except (Refusal, asyncio.CancelledError):  # the journal is full: a replay sends it again, without harm
                self.calls.tell(event)

    def deliver_outcome(self, index: int, outcome: bytes, time_ms: int) -> None:
        """Deliver the recorded outcome of a step and run until idle."""
        step = self.steps.take(index)
        if step is None:
            if not self._entries.has_made(index, "run "):
                self._diverge(self._entries.unexpected(index, "the outcome of a step"))
            return  # otherwise an outcome of the same record has made the handler give the step up
        self._set_time(time_ms)
        self._entries.size += len(outcome)
        self.steps.complete(step, outcome)
        self._drain()

    def drained(self) -> None:
        """Note that everything durable was delivered: from here on actions start."""
        if self.phase is Phase.REPLAYING:
            if (short := self._entries.missing("nothing: it waits")) is not None:
                self._diverge(short)
                return
            self.phase = advance(self.phase, Happening.DRAINED)
            self._end_if_too_large()

    def drop(self) -> None:
        """Leave memory: coroutines are closed, and commands that they issue meanwhile are ignored."""
        if not self.has_ended:
            self.phase = advance(self.phase, Happening.DROPPED)
        self.loop.drop()

    @property
    def is_compensating(self) -> bool:
        """Whether the handler has ended and its compensations run."""
        return self._sagas is not None and self._sagas.error is not None

    def forget(self) -> None:
        """Drop errors: their tracebacks hold the handler's frames, which hold the context and so this execution."""
        self._root = self.error = self._sagas = self._unheeded = None

    # Driving

    def _set_time(self, time_ms: int) -> None:
        if time_ms > self._now_ms:
            self._now_ms = time_ms
            self.loop.advance(time_ms / 1000)

    def _drain(self) -> None:
        self.calls.sent = 0
        self.loop.drain()
        if self._entries.divergence is not None:
            self._diverge(self._entries.divergence, self._raised())
        elif self.loop.escaped is not None:
            self._fail(self.loop.escaped)
        elif self._root is not None and self._root.done():
            self._end(self._root)
        elif self._foreign and not self.is_compensating:
            self._foreign = False
            self._end_wait(outside_refusal("a thread called into its event loop, which is done"))
        elif not self.repeats:
            self._end_if_too_large()

    def _end_if_too_large(self) -> None:
        """End a handler that waits while its journal is full; a running handler gets the error at its next command."""
        if self._entries.are_too_large and not self.is_compensating:
            self._end_wait(self._entries.full or self._entries.refused())

    def _end_wait(self, error: Refusal) -> None:
        """Cancel the handler's wait, and end the handler with this error."""
        assert self._root is not None
        self._root_is_cancelled = error
        self._root.cancel()
        self.loop.drain()
        if self._root.done():
            self._end(self._root)
        else:
            self.loop.drop()
            self._decide(error)

    def _raised(self) -> BaseException | None:
        """Return the error that the handler has ended with, if any."""
        root = self._root
        return None if root is None or not root.done() or root.cancelled() else root.exception()

    def _end(self, root: "asyncio.Task[Any]") -> None:
        error = root.exception() if not root.cancelled() else self._why_cancelled()
        sagas = self._sagas
        if sagas is not None and sagas.error is not None:
            error = sagas.error if error is None else error
        else:
            if error is None and sagas:
                _, error = self._outcome_of(root.result())
            if error is not None and self._compensates(error):
                return
        self.loop.finish()
        if self._entries.divergence is not None:
            self._diverge(self._entries.divergence, error)
        elif error is not None:
            self._decide(error)
        elif (short := self._entries.missing("nothing: it ended")) is not None:
            self._diverge(short)
        else:
            self._complete(root.result())

    def _why_cancelled(self) -> BaseException:
        return self._root_is_cancelled or self._entries.full or asyncio.CancelledError()

    def _compensates(self, error: BaseException) -> bool:
        """Begin the compensations, if there are any and no other attempt follows."""
        self.loop.settle()  # tasks may defer compensations too while they end
        if not self._sagas or self._entries.divergence is not None:
            return False
        self._entries.unbind()
        if outcomes.terminal(error) is None:
            found = self.final_failure(self, error, self._entries.next_recorded())
            if found is None:
                return False
            entry, error = found
            self.has_given_up, self.calls.messages, self.timers.set = True, [], {}
            with suppress(NondeterminismError):  # it is noted, and ends the attempt
                self._entries.make(entry)
                self._pass_on(self.calls.cancels() if entry == CANCELLED else [])
            if self._entries.divergence is not None:
                return False
        self._warn_of_leftovers()
        self.steps.end()
        self.loop.watch = None
        self._root = self.loop.start(self._sagas.begin(error))
        self._drain()
        return True

    def _is_final(self, error: BaseException) -> bool:
        """Whether no attempt follows after this failure of a compensation; an entry notes it for replays."""
        found = self.final_failure(self, error, self._entries.next_recorded())
        if found is not None:
            self._entries.make(found[0])
        return found is not None

    def _decide(self, error: BaseException) -> None:
        """End after the handler's error: it is the outcome, or it ends this attempt."""
        found = outcomes.terminal(error)
        if found is None:
            self._fail(error)
        elif (short := self._entries.missing("nothing: it failed")) is not None:
            self._diverge(short, error)
        else:
            self._warn_of_leftovers()
            self.outcome = self._sagas.encoded(found) if self._sagas is not None else outcomes.encoded_error(found)
            self.error = error
            self.phase = advance(self.phase, Happening.RETURNED)

    def _complete(self, result: Any) -> None:
        self._warn_of_leftovers()
        if self._unheeded is not None:
            self._unheeded.returned()
        self.outcome, self.error = self._outcome_of(result)
        self.phase = advance(self.phase, Happening.RETURNED)

    def _outcome_of(self, result: Any) -> tuple[bytes, TerminalError | None]:
        return outcome_of_result(result, self._message, self._surroundings.limits.payload_max)

    def _fail(self, error: BaseException) -> None:
        self.error = error
        self.phase = advance(self.phase, Happening.RAISED)
        self.loop.drop()

    def _diverge(self, error: NondeterminismError, raised: BaseException | None = None) -> None:
        """End as DIVERGED; an error that the handler had raised is the likely reason, and is added to the message."""
        if self.phase is not Phase.DIVERGED:
            reason = raised if raised is not None and raised is not error else error.__context__
            if reason is not None:
                error.explain(reason)
            self.error = error
            self.phase = advance(self.phase, Happening.DIFFERED)
            self.loop.drop()

    def _warn_of_leftovers(self) -> None:
        if not (self._entries.made or self.loop.unfinished()) or self.is_compensating:
            return
        for left in leftovers(self.calls, self.steps, self.timers, self.loop, self.entries):
            self.warn(left, None)

    # For the loop (`loop.Owner`)

    def set_timer(self, when: float, handle: asyncio.TimerHandle, /) -> None:
        """Make the entry of a timer that asyncio asked for."""
        self.timers.add(when, handle, "sleep")

    def clear_timer(self, handle: asyncio.TimerHandle, /) -> None:
        """Forget a timer."""
        self.timers.clear(handle)

    def foreign_call(self) -> None:
        """Fail the attempt: another thread called into the loop."""
        self._foreign = True
        self.on_foreign_call(self)

    def check_foreign(self) -> None:
        """Fail the attempt if another thread called into the loop; in the host's thread."""
        if self._foreign and not self.has_ended:
            self._drain()

    def entry_cancelled(self, future: EntryFuture, /) -> None:
        """Give up a step whose wait was cancelled."""
        self.steps.give_up(future)

    def warn(self, message: str, exception: BaseException | None, /) -> None:
        """Log a warning of asyncio or of the handler's end; a replay does not log it again."""
        if not self.is_replaying:
            where = f"{self._message.target}.{self._message.handler}"
            trace = "" if exception is None else f"\n{outcomes.traced(exception)}"
            logger.warning("%s (%s): %s%s", where, self.id, message, trace)

    def _say_dropped(self, signal: Delivered) -> None:
        where = f"{self._message.target}.{self._message.handler} ({self.id})"
        dropped(where, signal.payload, self._surroundings.limits)

    def _say(self, message: str) -> None:
        if not self.repeats:
            logger.warning("%s.%s (%s): %s", self._message.target, self._message.handler, self.id, message)

    # For the context (`commands.Commands`)

    @property
    def key(self) -> str:
        """The object's key; empty for a service."""
        return self._key or ""

    @property
    def id(self) -> str:
        """The invocation's id."""
        return self._message.id

    @property
    def headers(self) -> Mapping[str, str]:
        """The headers that the caller sent."""
        return self._message.headers or {}

    @property
    def is_replaying(self) -> bool:
        """Whether durable events remain to be delivered."""
        return self.phase is Phase.REPLAYING and bool(self._entries.recorded)

    @property
    def steps(self) -> Steps:
        """Its steps."""
        if self._steps is None:
            self._steps = Steps(self._entries.make, self.loop, self._scope)
        return self._steps

    @property
    def sagas(self) -> Sagas:
        """Its compensations."""
        if self._sagas is None:
            self._sagas = Sagas(
                self._message, self.steps.run, lambda: self.is_replaying, self.calls.is_sent, self._is_final
            )
        return self._sagas

    def sleep(self, duration_s: float, name: str, /) -> HandlerWait[None]:
        """Make the entry of a timer."""
        return self.timers.sleep(duration_s, name)

    def awakeable(self, annotation: Any, /) -> MadeAwakeable:
        """Make the entry of an awakeable."""
        return self._awakeables.make(self._entries.make("awakeable"), annotation)

    @cached_property
    def _awakeables(self) -> Awakeables:
        return Awakeables(self.id, self.loop, self._scope, self.restarts)

    def changed(self, names: tuple[str, ...], /) -> MadeAwakeable:
        """Make the entry of a watch; while it waits and its fields are unchanged, return the same watch."""
        if self._handler.exclusive or self._key is None:
            what = "has no state" if self._key is None else "holds the object, so that nothing changes meanwhile"
            raise UsageError(f"{self._handler.name} {what}: wait for changes in a @shared handler of the object")
        seen = self.state.last_read(names)
        found = self._watches.get(names)
        if found is None or found[0] != seen or found[1].outcome is not None:
            index = self._entries.make(f"changed {', '.join(names)}")
            found = self._watches[names] = seen, self._awakeables.make(index, MISSING)
            self._watched = {**self._watched, index: names}
            if self._entries.is_new(index):
                self.watching = {**self.watching, index: seen}
        return found[1]

    @cached_property
    def _watches(self) -> dict[tuple[str, ...], tuple[dict[str, bytes | None], MadeAwakeable]]:
        return {}

    def signal(self, name: str, annotation: Any, /) -> HandlerWait[Any]:
        """Make the entry of the wait for a signal."""
        self._entries.make(f"signal {name}")
        return self._signals.ask(name, annotation)

    @cached_property
    def _signals(self) -> Signals:
        return Signals(self.loop, self._scope, self._surroundings.limits)

    def promise(self, name: str, annotation: Any, /) -> MadePromise:
        """Return a promise of this workflow."""
        return MadePromise(name, annotation, self._promises)

    @cached_property
    def _promises(self) -> Promises:
        whose, entries, outcome_max = self._message.target, self._entries, self._surroundings.limits.payload_max
        return Promises(whose, self.board, entries.make, entries.is_new, self.loop, self._scope, outcome_max)

    def now_ms(self) -> int:
        """Return the time of the last delivered event."""
        return self._now_ms

    def random(self) -> random.Random:
        """Return the invocation's own generator."""
        if self._random is None:
            self._random = random.Random(self.id)
        return self._random

    @property
    def state(self) -> StateView:
        """The object's fields."""
        assert self.view is not None
        return self.view

    # Calls and sends (`current.Caller`, `invocation.Waiter`)

    def start(self, request: Request, /) -> Invocation[Any]:
        """Make the entry of a call or a send; the message leaves with the next commit."""
        if in_step.get() is not None:
            raise not_in_a_step()
        if not (request.one_way or self._handler.is_async or self.is_compensating):
            raise UsageError(f"{self._handler.name} is not async, so it cannot wait: use .send(), or make it async")
        started = self.calls.start(request, self._entries.make, self._entries.is_new, self)
        if request.options.timeout_s is not None:
            self.calls.limit(started.id, request.options.timeout_s, self.timers, len(self._entries.made))
        return started

    def bring(self, event: Bring, entry: str, /) -> Accepted:
        """Make the entry of an event for another invocation; it leaves with the next commit."""
        if in_step.get() is not None:
            raise not_in_a_step()
        self.calls.count_sent(event.data)
        bounded(event.data, f"value of `{entry}`", self._surroundings.limits.payload_max)
        self._tell(event, entry)
        return Invocation(entry, self).accepted()

    def _tell(self, event: Bring, entry: str) -> None:
        if self._entries.is_new(self._entries.make(entry)):
            self.calls.tell(event)

    def wait(self, invocation: Invocation[Any], /) -> Generator[Any, Any, Any]:
        """Wait for a call of this handler, or for an invocation that was started elsewhere."""
        return self.calls.wait(invocation, self._entries.make, self._entries.is_new)

    def wait_accepted(self, invocation: Invocation[Any], /) -> Generator[Any, Any, None]:
        """Return at once: an invocation that a handler starts is durable with the handler's next commit."""
        yield from ()
