"""Shard: what a host does with one shard that it owns, from a message that comes in to the commit that ends it.

Owns: the invocations in memory, their turns, the delivery of events to them, and the start of their actions. Does not
own: reading and writing the store (the host brings what was read, the writer takes what was staged), nor the lease.

Invariants:
    1. Of a key's exclusive invocations one is under way, and they start in the order of their inbox ids (promise 2).
    2. Events are delivered one at a time, in the order journal, then `events`; while a commit with a step's outcome is
       under way nothing else is delivered to that invocation; actions start only when nothing durable remains to be
       delivered. (A search over all crashes breaks every weaker set of these rules.)
    3. An action starts only when every commit whose state its handler has seen is durable (promise 5).
    4. All methods are synchronous and run on the host's loop: a shard is never half way through something.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from journal.entries import Delivered, Event, EventKind, Message, Record, order_of, time_of
from journal.names import Epoch, Shard
from journal.store import Committed, Cursor, Dormant, Finish, Loaded, Part, Progress, Sleep

from . import outcomes
from .activation import Activation, InFlight
from .code import CodeBook
from .errors import TerminalError, UsageError
from .execution import Execution, Step, Surroundings
from .handlers import Handler
from .policy import Policy, Settled, resolve
from .staging import Queue, Staged, changes_of, is_empty, progress_of, record_of
from .steps import LeaseLapsed, StepRunner

logger = logging.getLogger("actors")


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one host bounds in memory."""

    payload_max: int = 8_000_000
    """Most bytes of a message's arguments, a result, a step's result, or a field."""
    queue_in_memory: int = 100
    """Messages of one key that wait in memory with their arguments; of the rest only the ids."""
    activations_max: int = 100_000
    """Objects in memory; beyond it those that are idle go, the longest idle first."""
    activation_idle: timedelta = timedelta(seconds=60)
    """An object that nobody has used for so long leaves memory."""


@dataclass(slots=True, kw_only=True)
class Services:
    """What a shard asks of its host."""

    limits: Limits
    policy: Policy | None
    surroundings: Surroundings
    code: CodeBook
    steps: StepRunner
    loop: asyncio.AbstractEventLoop
    now: Callable[[], float]
    """Seconds of a clock that never goes back."""
    spawn: Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]
    wake_writer: Callable[[], None]
    wake_timers: Callable[[], None]
    load: Callable[["OwnedShard", Activation], None]
    wake: Callable[["OwnedShard", str], None]
    refill: Callable[["OwnedShard", Activation], None]
    policies: dict[Handler[Any, Any], Settled] = field(default_factory=dict[Handler[Any, Any], Settled])


class OwnedShard:
    """One shard of this host, from the grant of its lease until it is lost or handed over."""

    def __init__(self, services: Services, shard: Shard, epoch: Epoch, number: int, leased: Callable[[], bool]) -> None:
        self._services, self.shard, self.epoch, self.number = services, shard, epoch, number
        self._leased = leased
        self.acknowledged = number
        """The number of the last commit that the store has answered."""
        self.cursor = Cursor("0-0", "0-0")
        self.queue = Queue()
        self.in_flight: dict[str, InFlight] = {}
        self.activations: dict[str, Activation] = {}
        self.recovered: dict[str, list[tuple[str, Record]]] = {}
        """What `journal` held when the shard was taken over, by invocation."""
        self.next_due_ms = 0
        """When a timer is due next, as far as is known; 0 if none is."""
        self.is_recovered = False
        """Whether everything that was there at the takeover is in memory."""
        self.is_draining = False
        self.is_lost = False
        self._timers_set = 0
        self._asleep: dict[str, list[Event]] = {}
        """Invocations whose sleep is being written, with the events that came since."""
        self._waking: dict[str, list[Event]] = {}
        """Invocations that are being read from their hashes, with the events that woke them."""
        self._runnable: deque[Activation] = deque()
        self._is_turning = False
        self._blocked: set[InFlight] = set()
        """Those whose actions wait for commits to be durable."""
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}

    # What came in

    def accept(self, inbox_id: str, data: bytes, events: Iterable[Event] = ()) -> None:
        """Take a message from the inbox, after a takeover with the events that wait for it."""
        message = Message.parse(data)
        if message.id in self.in_flight or self.is_draining:
            return
        if message.due_ms > time_of(inbox_id):
            self._delay(message, inbox_id)
            return
        run = InFlight(message, self.shard, inbox_id)
        run.adopt(self.recovered.pop(message.id, []))
        run.pending.extend(events)
        self._settle_back_off(run)
        self._admit(run)

    def accept_recovered(self, inbox_id: str, data: bytes, events: dict[str, list[Event]]) -> None:
        """Take a message that was there at the takeover, and from `events` what waits for it."""
        waiting = events.pop(Message.parse(data).id, [])
        notices = [event for event in waiting if event.kind is EventKind.NOTICE]
        self.accept(inbox_id, data, [event for event in waiting if event.kind is not EventKind.NOTICE])
        for notice in notices:
            self.receive(notice)

    def _delay(self, message: Message, inbox_id: str) -> None:
        timer = (message.due_ms, self._member(message.id, "d"))
        self._asleep[message.id] = []
        progress = Progress(message.id, message.target, inbox_id, timers=[timer], end=Sleep(holds=False))
        self._stage(progress)

    def _admit(self, run: InFlight, *, first: bool = False) -> None:
        self.in_flight[run.id] = run
        activation = self.activations.get(run.message.target)
        if activation is None:
            activation = Activation(self.shard, run.message.target, self._services.now())
            self.activations[run.message.target] = activation
        if first:
            activation.arrivals.appendleft(run)
        else:
            activation.arrivals.append(run)
        self._sort(activation)

    def receive(self, event: Event) -> None:
        """Take an event: deliver it, keep it for its time, or wake whom it is for."""
        if self.is_draining:
            return
        id_ = event.invocation
        if event.kind is EventKind.NOTICE:
            self._stage(Progress(id_, "", "", events=[event.id], notice=event.payload))
            return
        run = self.in_flight.get(id_)
        if run is not None:
            self._queue_event(run, event)
        elif id_ in self._asleep:
            self._asleep[id_].append(event)
        elif id_ in self._waking:
            self._waking[id_].append(event)
        else:
            self._waking[id_] = [event]
            self._services.wake(self, id_)

    def _queue_event(self, run: InFlight, event: Event) -> None:
        run.pending.append(event)
        if run.backing_off:
            self._try_again(run)
        elif run.execution is not None:
            self._pump(run)

    def woken(self, id_: str, dormant: Dormant | None) -> None:
        """Take an invocation that was read from its hash."""
        events = self._waking.pop(id_, [])
        if dormant is None:
            self.queue.stray += [event.id for event in events]
            self._services.wake_writer()
        elif not dormant.paused:
            run = InFlight(Message.parse(dormant.message), self.shard, dormant.inbox_id, asleep=True)
            run.adopt([(record_id, Record.parse(data)) for record_id, data in dormant.records])
            run.journal = []  # those lie in its hash
            run.adopt(self.recovered.pop(id_, []))
            run.pending.extend(events)
            self._settle_back_off(run)
            self._admit(run, first=True)

    def wake(self, id_: str) -> None:
        """Ask for an invocation asleep although no event names it: its journal does."""
        if id_ not in self._waking:
            self._waking[id_] = []
            self._services.wake(self, id_)

    def loaded(self, activation: Activation, found: Loaded) -> None:
        """Take an object's state."""
        activation.loading = False
        activation.fields, activation.held_by = found.fields, found.held_by
        self._sort(activation)

    # Sorting: whose class is known, who needs a turn

    def _sort(self, activation: Activation) -> None:
        activation.used_at = self._services.now()
        if activation.loading or self.is_lost:
            return
        if activation.fields is None:
            activation.loading = True
            self._services.load(self, activation)
            return
        while activation.arrivals and not activation.loading:
            run = activation.arrivals.popleft()
            found = self._services.code.find(_type_of(run), run.message.code)
            if found is None:
                activation.arrivals.appendleft(run)
                activation.loading = True
                self._services.spawn(self._fetch(activation, run))
                return
            run.declared, run.handler = found, found.handlers.get(run.message.handler)
            self._place(activation, run)
        self._turn(activation)

    async def _fetch(self, activation: Activation, run: InFlight) -> None:
        error: Exception | None = None
        try:
            await self._services.code.fetch(_type_of(run), run.message.code)
        except Exception as raised:  # the user's code may raise anything as it is loaded
            error = raised
        activation.loading = False
        if error is not None and not self.is_lost:
            activation.arrivals.popleft()
            activation.sharing.add(run)
            if isinstance(error, TerminalError):
                self._reject(activation, run, error)
            else:
                self._attempt_failed(run, activation, error)
        self._sort(activation)

    def _place(self, activation: Activation, run: InFlight) -> None:
        assert run.declared is not None
        handler = run.handler
        if handler is None or run.declared.is_service != (activation.key is None):
            activation.sharing.add(run)
            self._reject(activation, run, _unknown(run))
            return
        run.policy = self._services.policies.get(handler)
        if run.policy is None:
            run.policy = resolve(handler.policy, run.declared.options.policy, self._services.policy)
            self._services.policies[handler] = run.policy
        run.exclusive = handler.exclusive and activation.key is not None
        if not run.exclusive:
            activation.sharing.add(run)
            self._begin(run, activation)
        elif run.asleep:
            activation.held_by, activation.current = run.id, run
            self._begin(run, activation)
        else:
            if len(activation.mailbox) >= self._services.limits.queue_in_memory:
                run.message.arguments = b""
            activation.mailbox.append(run)

    def _reject(self, activation: Activation, run: InFlight, error: TerminalError) -> None:
        self._finish(run, activation, outcomes.encoded_error(error), {})

    # Turns

    def _turn(self, activation: Activation) -> None:
        """Give the turn to whoever is next, without recursion: a handler that never waits ends at once."""
        self._runnable.append(activation)
        if self._is_turning:
            return
        self._is_turning = True
        try:
            while self._runnable:
                self._next(self._runnable.popleft())
        finally:
            self._is_turning = False

    def _next(self, activation: Activation) -> None:
        while activation.mailbox and activation.is_free and not (self.is_draining or self.is_lost):
            run = activation.mailbox[0]
            if not run.message.arguments:
                if not activation.loading:
                    activation.loading = True
                    self._services.refill(self, activation)
                return
            activation.mailbox.popleft()
            activation.current = run
            self._begin(run, activation)

    def refilled(self, activation: Activation, messages: dict[str, bytes]) -> None:
        """Take the arguments of messages that had waited without them."""
        activation.loading = False
        for run in activation.mailbox:
            data = messages.get(run.inbox_id)
            if data is not None:
                run.message = Message.parse(data)
        self._sort(activation)

    def _begin(self, run: InFlight, activation: Activation) -> None:
        if run.backing_off or self.is_draining:
            return
        assert run.declared is not None and run.handler is not None and activation.fields is not None
        run.leave_after = activation.staged
        execution = Execution(
            self._services.surroundings,
            run.declared,
            run.handler,
            run.message,
            run.attempt,
            run.recorded,
            time_of(run.inbox_id),
        )
        run.staged = len(execution.recorded)
        execution.on_foreign_call = lambda: self._services.loop.call_soon_threadsafe(self._check_foreign, run)
        run.execution = execution
        execution.begin(run.found(activation.fields), _refusal(run))
        for item in run.history() if run.records else ():
            if execution.has_ended:
                break
            if isinstance(item, Delivered):
                execution.deliver(item)
            else:
                execution.deliver_outcome(*item)
        self._pump(run)

    def _check_foreign(self, run: InFlight) -> None:
        if run.execution is not None and not run.ended and not run.settling:
            run.execution.check_foreign()
            if run.execution.has_ended:
                self._ended(run, run.execution)

    # Delivery

    def _pump(self, run: InFlight) -> None:
        """Deliver what is durable, in order, then let the handler's commands out."""
        execution = run.execution
        if execution is None or run.ended or self.is_lost:
            return
        if run.idle is not None:
            run.idle.cancel()
            run.idle = None
        while run.pending and not run.settling and not execution.has_ended:
            event = run.pending.popleft()
            run.spent.append(event.id)
            if event.kind is EventKind.ATTEMPT:
                continue
            delivered = Delivered(event.kind, event.index, event.time_ms, event.payload)
            if execution.deliver(delivered):
                run.delivered.append(delivered)
        if execution.has_ended:
            self._ended(run, execution)
        elif not run.settling:
            execution.drained()
            if execution.has_ended:
                self._ended(run, execution)
            else:
                self._let_out(run, execution)

    def _let_out(self, run: InFlight, execution: Execution) -> None:
        """The handler blocks: commit what must not wait, start actions, and see whether it leaves memory."""
        activation = self.activations[run.message.target]
        try:
            changes = changes_of(run, activation, self._services.limits.payload_max)
        except UsageError as error:
            self._fail_with(run, execution, error)
            return
        results = [(index, outcome) for index, outcome in run.outcomes if execution.holds(index)]
        run.outcomes = []
        assert run.policy is not None
        idle = not (execution.unstarted or run.running or results)
        sleeps = idle and not run.policy.idle_timeout and not self.is_draining
        if sleeps or results or changes or self._must_commit(run, execution):
            self._commit_progress(run, activation, execution, changes, results, sleeps=sleeps)
        if sleeps:
            self._leave_memory(run, activation)
        elif not results:
            self._start_actions(run, execution)
            if idle:
                self._watch_idle(run, run.policy.idle_timeout)

    def _must_commit(self, run: InFlight, execution: Execution) -> bool:
        if execution.messages or execution.set_timers or execution.cleared:
            return True
        if run.exclusive or not execution.unstarted or execution.view is None:
            return False
        return any(name not in run.reads for name in execution.view.reads())

    def _commit_progress(
        self,
        run: InFlight,
        activation: Activation,
        execution: Execution,
        changes: dict[str, bytes | None],
        results: list[tuple[int, bytes]],
        *,
        sleeps: bool,
    ) -> None:
        record = record_of(run, changes, results)
        progress = progress_of(run, changes)
        self._take_commands(run, execution, progress)
        if run.began_again or not is_empty(record):
            run.began_again = False
            progress.record = record.encoded()
        if sleeps:
            progress.end = Sleep(holds=run.exclusive)
        run.settling = bool(results)
        number = self._stage(progress, run, record if progress.record else None)
        if changes:
            activation.write(changes)
        if changes or sleeps:
            activation.staged = number
        if record.reads:
            run.leave_after = number

    def _take_commands(self, run: InFlight, execution: Execution, progress: Progress) -> None:
        progress.messages, execution.messages = execution.messages, []
        now_ms = self._services.surroundings.now_ms()
        for index, delay_s in execution.set_timers.items():
            due_ms = now_ms + int(delay_s * 1000)
            run.timers[index] = self._member(run.id, str(index))
            progress.timers.append((due_ms, run.timers[index]))
        execution.set_timers = {}
        for index in execution.cleared:
            member = run.timers.pop(index, None)
            if member is not None:
                progress.untimers.append(member)
        execution.cleared = []

    def _member(self, id_: str, what: str) -> str:
        """Return the name of a timer: it sorts in the order of setting, of all owners of the shard."""
        self._timers_set += 1
        return f"{self.epoch:012x}{self._timers_set:08x}:{id_}:{what}"

    def _stage(self, progress: Progress, run: InFlight | None = None, record: Record | None = None) -> int:
        self._services.wake_writer()
        return self.queue.add(progress, run, record)

    # Actions

    def _start_actions(self, run: InFlight, execution: Execution) -> None:
        if not execution.unstarted or self.is_draining:
            return
        if self.queue.settled < run.leave_after:
            self._blocked.add(run)
            return
        steps, execution.unstarted = execution.unstarted, {}
        for index, step in steps.items():
            run.running[index] = step
            task = self._services.spawn(self._act(run, execution, step))
            self._tasks[run.id, index] = task

    async def _act(self, run: InFlight, execution: Execution, step: Step) -> None:
        def failed(error: BaseException, attempt: int, delay_s: float) -> None:
            text = f"step {step.name!r}: attempt {attempt} failed, the next follows in {delay_s:g} s"
            self._notify(run, f"{text}\n{outcomes.traced(error)}")

        try:
            outcome = await self._services.steps.run(step, f"{run.id}:{step.index}", self._leased, failed)
        except LeaseLapsed:
            return  # whoever owns the shard now starts it
        except UsageError as error:
            outcome = outcomes.encoded_error(TerminalError(str(error), 400))
        finally:
            self._tasks.pop((run.id, step.index), None)
        if run.execution is execution and run.running.pop(step.index, None) is not None and not run.ended:
            run.outcomes.append((step.index, outcome))
            if not run.settling:
                self._pump(run)

    def _cancel_actions(self, run: InFlight) -> None:
        for index in run.running:
            task = self._tasks.pop((run.id, index), None)
            if task is not None:
                task.cancel()
        run.running = {}
        run.outcomes = []

    # Ends

    def _ended(self, run: InFlight, execution: Execution) -> None:
        activation = self.activations[run.message.target]
        error = execution.error
        match execution.phase.value:
            case "completed":
                self._complete(run, activation, execution)
            case "failed":
                assert error is not None
                self._attempt_failed(run, activation, error)
            case _:
                self._pause(run, activation, execution)

    def _complete(self, run: InFlight, activation: Activation, execution: Execution) -> None:
        try:
            changes = changes_of(run, activation, self._services.limits.payload_max)
        except UsageError as error:
            execution.fail(TerminalError(str(error), 400))
            changes = {}
        self._finish(run, activation, execution.outcome, changes)

    def _fail_with(self, run: InFlight, execution: Execution, error: UsageError) -> None:
        execution.drop()
        execution.fail(TerminalError(str(error), 400))
        self._finish(run, self.activations[run.message.target], execution.outcome, {})

    def _finish(
        self, run: InFlight, activation: Activation, outcome: bytes, changes: dict[str, bytes | None]
    ) -> None:
        run.ended = True
        run.spent += [event.id for event in run.pending]
        progress = progress_of(run, changes)
        if run.execution is not None:
            self._take_commands(run, run.execution, progress)
            progress.timers = []
        progress.untimers += run.timers.values()
        progress.end = Finish(outcome, f"{run.message.target}.{run.message.handler}".encode(), run.message.keep_ms)
        number = self._stage(progress, run)
        self._cancel_actions(run)
        if activation.current is run:
            activation.current = None
        if changes:
            activation.write(changes)
        if run.exclusive:
            activation.staged = number
        self._forget(run, activation)

    def _forget(self, run: InFlight, activation: Activation) -> None:
        """Take the run out of memory, and give the turn on if it had it."""
        run.execution = None
        if run.idle is not None:
            run.idle.cancel()
            run.idle = None
        self._blocked.discard(run)
        self.in_flight.pop(run.id, None)
        activation.sharing.discard(run)
        if activation.current is run:
            activation.current = None
        if activation.held_by == run.id:
            activation.held_by = ""
        activation.used_at = self._services.now()
        self._turn(activation)

    def _attempt_failed(self, run: InFlight, activation: Activation, error: BaseException) -> None:
        """End an attempt: what it had not committed is discarded, and the next one follows after a back-off."""
        retry = run.policy.retry if run.policy is not None else resolve(self._services.policy).retry
        if retry.max_attempts is not None and run.attempt >= retry.max_attempts:
            where = f"{run.message.target}.{run.message.handler}"
            failed = outcomes.used_up(error, where, run.attempt)
            self._finish_failed(run, activation, outcomes.encoded_error(failed))
            return
        delay_s = retry.delay(run.attempt)
        text = (
            f"{run.message.target}.{run.message.handler} ({run.id}): attempt {run.attempt} failed, the next follows in "
            f"{delay_s:g} s\n{outcomes.traced(error)}"
        )
        run.attempt += 1
        record = Record(events=run.delivered, attempt=run.attempt, error=repr(error))
        run.delivered = []
        progress = progress_of(run, {})
        due_ms = self._services.surroundings.now_ms() + int(delay_s * 1000)
        progress.timers = [(due_ms, self._member(run.id, "a"))]
        progress.untimers = list(run.timers.values())
        self._end_attempt(run, activation, progress, record, text, sleeps=_sleeps_at_once(run))

    def _finish_failed(self, run: InFlight, activation: Activation, outcome: bytes) -> None:
        if run.execution is not None:
            run.execution.messages, run.execution.set_timers = [], {}
        self._finish(run, activation, outcome, {})

    def _pause(self, run: InFlight, activation: Activation, execution: Execution) -> None:
        """Lay a diverged invocation to sleep until an operator looks; its key stays held."""
        reason = str(execution.error)
        record = Record(events=run.delivered, error=reason)
        run.delivered = []
        progress = progress_of(run, {})
        progress.end = Sleep(holds=run.exclusive, paused=reason)
        self._end_attempt(run, activation, progress, record, f"paused: {reason}", sleeps=True)

    def _end_attempt(
        self, run: InFlight, activation: Activation, progress: Progress, record: Record, text: str, *, sleeps: bool
    ) -> None:
        logger.info("attempt ended: %s", text)
        self._cancel_actions(run)
        self._blocked.discard(run)
        run.execution, run.settling, run.backing_off, run.began_again = None, False, True, False
        run.timers = {}
        run.staged = len(run.recorded)
        progress.record, progress.notice = record.encoded(), text.encode()
        if sleeps and progress.end is None:
            progress.end = Sleep(holds=run.exclusive)
        number = self._stage(progress, run, record)
        if sleeps:
            activation.staged = number
            self._leave_memory(run, activation)

    def _notify(self, run: InFlight, text: str) -> None:
        where = f"{run.message.target}.{run.message.handler} ({run.id})"
        self._stage(Progress(run.id, "", "", notice=f"{where}: {text}".encode()))

    def _settle_back_off(self, run: InFlight) -> None:
        """If the back-off is over, the next attempt may begin."""
        if not run.backing_off:
            return
        for event in run.pending:
            if event.kind is EventKind.ATTEMPT:
                run.pending.remove(event)
                run.spent.append(event.id)
                run.backing_off, run.began_again = False, True
                return

    def _try_again(self, run: InFlight) -> None:
        if run.unsettled:
            return  # the journal that the next attempt replays is not all acknowledged: see `settled`
        self._settle_back_off(run)
        activation = self.activations[run.message.target]
        if run.backing_off or not (run is activation.current or run in activation.sharing):
            return  # too early, or it has not had its turn yet and begins with it
        if run.handler is None:  # its class could not be loaded
            activation.sharing.discard(run)
            activation.arrivals.append(run)
            self._sort(activation)
        else:
            self._begin(run, activation)

    # Sleep

    def _watch_idle(self, run: InFlight, timeout: timedelta) -> None:
        if run.idle is None:
            run.idle = self._services.loop.call_later(timeout.total_seconds(), self._idle_is_over, run)

    def _idle_is_over(self, run: InFlight) -> None:
        run.idle = None
        execution = run.execution
        if execution is None or run.ended or self.is_lost or self.is_draining:
            return
        if run.is_waiting and not execution.unstarted:
            activation = self.activations[run.message.target]
            self._commit_progress(run, activation, execution, {}, [], sleeps=True)
            self._leave_memory(run, activation)

    def _leave_memory(self, run: InFlight, activation: Activation) -> None:
        execution = run.execution
        if execution is not None:
            execution.drop()
        self._asleep[run.id] = list(run.pending)
        run.ended = True
        holds = run.exclusive
        self._forget_asleep(run, activation, holds=holds)

    def _forget_asleep(self, run: InFlight, activation: Activation, *, holds: bool) -> None:
        if holds:
            activation.held_by = run.id
            activation.current = None
        run.execution = None
        if run.idle is not None:
            run.idle.cancel()
            run.idle = None
        self._blocked.discard(run)
        self.in_flight.pop(run.id, None)
        activation.sharing.discard(run)

    # What the writer asks

    def take(self, incarnation: str) -> tuple[Part, list[Staged]] | None:
        """Return the next part of a commit, if there is something to write."""
        queue = self.queue
        if self.is_lost or not (queue.staged or queue.stray):
            return None
        items = queue.take()
        stray, queue.stray = queue.stray, []
        self.number += 1
        part = Part(self.shard, self.epoch, incarnation, self.number, [item.progress for item in items], stray)
        return part, items

    def settled(self, items: list[Staged], number: int, answer: Committed) -> None:
        """Take the acknowledgement of a part: its records are durable, and what waited for it goes on."""
        queue = self.queue
        queue.settled += len(items)
        self.acknowledged = max(self.acknowledged, number)
        self._note_due(items)
        ids = _following(answer.first)
        ready: list[tuple[InFlight, Record | None, int]] = []
        for item in items:
            run, record = item.run, item.record
            id_ = next(ids) if item.progress.record else ""
            if run is not None:
                run.unsettled -= 1
                if record is not None and item.progress.end is None:
                    run.records.append((id_, record))
                    run.journal.append(id_)
                ready.append((run, record, time_of(id_) if id_ else 0))
            if isinstance(item.progress.end, Sleep):
                self._slept(item.progress.invocation)
        for run, record, time_ms in ready:
            self._acknowledged(run, record, time_ms)
        blocked, self._blocked = self._blocked, set()
        for run in blocked:
            if run.execution is not None and not run.ended:
                self._start_or_wait(run)

    def _note_due(self, items: list[Staged]) -> None:
        # Not before they are durable: a look at the store that comes between would not find them, and forget.
        due_ms = min((due_ms for item in items for due_ms, _ in item.progress.timers), default=0)
        if due_ms and (not self.next_due_ms or due_ms < self.next_due_ms):
            self.next_due_ms = due_ms
            self._services.wake_timers()

    def _start_or_wait(self, run: InFlight) -> None:
        if run.execution is not None and not run.settling and not run.pending:
            self._start_actions(run, run.execution)

    def _slept(self, id_: str) -> None:
        events = self._asleep.pop(id_, [])
        if events:
            self._waking[id_] = events
            self._services.wake(self, id_)

    def _acknowledged(self, run: InFlight, record: Record | None, time_ms: int) -> None:
        execution = run.execution
        if run.ended or self.is_lost:
            return
        if record is not None and record.steps and execution is not None:
            run.settling = False
            for index, outcome in record.steps:
                if not execution.has_ended:
                    execution.deliver_outcome(index, outcome, time_ms)
            self._pump(run)
        elif run.backing_off and run.pending:
            self._try_again(run)

    # Leaving

    def collect(self, idle_since: float) -> int:
        """Let objects that nobody has used since leave memory; return how many went."""
        idle = [
            target
            for target, activation in self.activations.items()
            if activation.is_idle and activation.used_at <= idle_since and activation.staged <= self.queue.settled
        ]
        for target in idle:
            del self.activations[target]
        return len(idle)

    def drain(self) -> None:
        """Start nothing more; what waits stays in the store."""
        self.is_draining = True

    @property
    def is_drained(self) -> bool:
        """Whether no step is under way and all that was staged is durable."""
        is_acting = any(run.running or run.outcomes or run.settling for run in self.in_flight.values())
        return not is_acting and self.queue.settled == self.queue.count

    def lose(self) -> None:
        """Forget everything at once: another host owns the shard, or will."""
        self.is_lost = True
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        for run in self.in_flight.values():
            run.ended = True
            if run.idle is not None:
                run.idle.cancel()
            if run.execution is not None:
                run.execution.drop()
                run.execution = None
        self.in_flight.clear()
        self.activations.clear()


def _type_of(run: InFlight) -> str:
    return run.message.target.partition("/")[0]


def _sleeps_at_once(run: InFlight) -> bool:
    return run.policy is not None and not run.policy.idle_timeout


def _refusal(run: InFlight) -> str:
    assert run.declared is not None
    if run.exclusive:
        return ""
    if run.declared.is_service:
        return "a service has no state"
    return f"{run.message.handler} is a shared handler, which reads only (make it a @handler)"


def _unknown(run: InFlight) -> TerminalError:
    assert run.declared is not None
    name, kind = run.declared.name, "service" if run.declared.is_service else "virtual object"
    if run.handler is not None:
        how = f"{name}.{run.message.handler}" if run.declared.is_service else f"{name}[key].{run.message.handler}"
        return TerminalError(f"{name} is a {kind}: call it as {how}", 404)
    handlers = ", ".join(sorted(run.declared.handlers)) or "none"
    return TerminalError(f"{name} has no handler {run.message.handler!r}; it has: {handlers}", 404)


def _following(first: str) -> Iterator[str]:
    """Yield the ids of a part's records: one script writes them, so they differ in their last number only."""
    ms, sequence = order_of(first) if first else (0, 0)
    while True:
        yield f"{ms}-{sequence}"
        sequence += 1
