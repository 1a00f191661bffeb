"""Attempts: executions of one shard, from their start to their end: delivery, actions, commits, failures, sleep.

Owns the executions in memory and the actions of their steps. Does not own: whose turn it is (`shard`), nor what a
commit holds (`staging`).

Invariants:
    1. Events are delivered one at a time, in the order journal, then `events`; while a commit with a step's outcome is
       under way nothing else is delivered to that invocation; actions start only when nothing durable remains to be
       delivered. (A search over all crashes breaks every weaker set of these rules.)
    2. An action starts only when every commit whose state its handler has seen is durable (promise 5), and while the
       lease holds.
    3. An attempt that fails takes nothing with it but the events that it was given (promise 7).
"""

import asyncio
import logging
from collections.abc import Callable
from contextvars import Context
from datetime import timedelta
from typing import Protocol

from journal.entries import Delivered, EventKind, Record, time_of

from . import outcomes
from .activation import Activation, InFlight
from .errors import TerminalError, UsageError
from .execution import Execution
from .policy import resolve, seconds
from .replay import Phase
from .services import Services
from .staging import Staged, Staging, changes_of
from .steps import LeaseLapsed, Step, context_of

logger = logging.getLogger("actors")


class Turns(Protocol):
    """What is told of the end of an attempt: whoever gives turns."""

    def ended(self, run: InFlight, activation: Activation, /) -> None:
        """The invocation has ended."""
        ...

    def left_memory(self, run: InFlight, activation: Activation, /) -> None:
        """The invocation is laid to sleep; it holds its object still."""
        ...

    def activation_of(self, run: InFlight, /) -> Activation:
        """Return the object that the invocation is of."""
        ...

    def load_again(self, run: InFlight, activation: Activation, /) -> None:
        """Look for the invocation's class once more."""
        ...


class Attempts:
    """The executions of one shard. All methods but the actions are synchronous: nothing is ever half done."""

    def __init__(self, services: Services, staging: Staging, turns: Turns, leased: Callable[[], bool]) -> None:
        self._services, self._staging, self._turns, self._leased = services, staging, turns, leased
        self._blocked: set[InFlight] = set()
        """Those whose actions wait for commits to be durable."""
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}
        self.is_draining = False
        """Nothing new begins, and nothing leaves memory."""

    # Begin

    def begin(self, run: InFlight, activation: Activation) -> None:
        """Start an attempt, replay what is recorded, and go on from there; one that backs off waits for its time."""
        if run.backing_off or self.is_draining:
            return
        assert run.declared is not None
        assert activation.fields is not None
        run.leave_after = activation.staged
        run.began_ms = run.began_ms or self._services.surroundings.now_ms()
        execution = Execution(
            self._services.surroundings,
            run.declared,
            run.handler,
            run.message,
            run.attempt,
            run.recorded,
            time_of(run.inbox_id),
        )
        run.execution, run.staged = execution, len(execution.recorded)
        execution.on_foreign_call = lambda: self._services.loop.call_soon_threadsafe(self._check_foreign, run)
        execution.begin(run.found(activation.fields), _refusal(run))
        for item in run.history() if run.records else ():
            if execution.has_ended:
                break
            if isinstance(item, Delivered):
                execution.deliver(item)
            else:
                execution.deliver_outcome(*item)
        self.deliver(run)

    def _check_foreign(self, run: InFlight) -> None:
        if run.execution is not None and not run.ended and not run.settling:
            run.execution.check_foreign()
            if run.execution.has_ended:
                self._end(run, run.execution)

    def end_back_off(self, run: InFlight) -> None:
        """If the event is there that ends the back-off, the next attempt may begin."""
        if not run.backing_off:
            return
        found = next((event for event in run.pending if event.kind is EventKind.ATTEMPT), None)
        if found is not None:
            run.pending.remove(found)
            run.spent.append(found.id)
            run.backing_off, run.began_again = False, True

    def try_again(self, run: InFlight) -> None:
        """Begin the next attempt, if its time has come and all that it replays is acknowledged."""
        if run.unsettled:
            return  # tried once more in `acknowledged`
        self.end_back_off(run)
        activation = self._turns.activation_of(run)
        if run.backing_off or not (run is activation.current or run in activation.sharing):
            return  # too early, or it has not had its turn yet and begins with it
        if run.handler is None:
            self._turns.load_again(run, activation)
        else:
            self.begin(run, activation)

    # Delivery

    def deliver(self, run: InFlight) -> None:
        """Deliver what is durable, in order, then let the handler's commands out."""
        execution = run.execution
        if execution is None or run.ended:
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
        if not (run.settling or execution.has_ended):
            execution.drained()
        if execution.has_ended:
            self._end(run, execution)
        elif not run.settling:
            self._let_out(run, execution)

    def acknowledged(self, items: list[Staged]) -> None:
        """Go on with what waited for these commits."""
        for item in items:
            run, record = item.run, item.record
            if run is None or run.ended:
                continue
            if record is not None and record.steps and run.execution is not None:
                self._deliver_outcomes(run, run.execution, record, time_of(item.id))
            elif run.backing_off and run.pending:
                self.try_again(run)
        blocked, self._blocked = self._blocked, set()
        for run in blocked:
            if run.execution is not None and not (run.ended or run.settling or run.pending):
                self._start_actions(run, run.execution)

    def _deliver_outcomes(self, run: InFlight, execution: Execution, record: Record, time_ms: int) -> None:
        run.settling = False
        for index, outcome in record.steps:
            if not execution.has_ended:
                execution.deliver_outcome(index, outcome, time_ms)
        self.deliver(run)

    def _let_out(self, run: InFlight, execution: Execution) -> None:
        """The handler waits: commit what must not wait, start actions, and see whether it leaves memory."""
        activation = self._turns.activation_of(run)
        try:
            changes = changes_of(run, activation, self._services.limits.payload_max)
        except UsageError as error:
            execution.drop()
            self._finish(run, activation, outcomes.encoded_error(TerminalError(str(error), 400)), {}, commands=False)
            return
        results = [(index, outcome) for index, outcome in run.outcomes if execution.holds(index)]
        run.outcomes = []
        assert run.policy is not None
        idle = not (execution.unstarted or run.running or results)
        sleeps = idle and not run.policy.idle_timeout and not self.is_draining
        if sleeps or results or changes or _must_commit(run, execution):
            self._commit(run, activation, changes, results, sleeps=sleeps)
        if sleeps or results:
            return
        self._start_actions(run, execution)
        if idle:
            self._watch_idle(run, run.policy.idle_timeout)

    def _commit(
        self,
        run: InFlight,
        activation: Activation,
        changes: dict[str, bytes | None],
        results: list[tuple[int, bytes]],
        *,
        sleeps: bool,
    ) -> None:
        reads = len(run.reads)
        number = self._staging.commit(run, changes, results, sleeps=sleeps)
        run.settling = bool(results)
        if changes:
            activation.write(changes)
        if changes or sleeps:
            activation.staged = number
        if len(run.reads) > reads:
            run.leave_after = number  # what a shared handler has read is recorded before it leaves
        if sleeps:
            self._leave_memory(run, activation)

    # Actions

    def _start_actions(self, run: InFlight, execution: Execution) -> None:
        if not execution.unstarted or self.is_draining:
            return
        if self._staging.settled < run.leave_after:
            self._blocked.add(run)
            return
        steps, execution.unstarted = execution.unstarted, {}
        for index, step in steps.items():
            run.running[index] = step
            step_id = f"{run.id}:{index}"
            act = self._act(run, execution, step, step_id)
            self._tasks[run.id, index] = self._services.spawn(act, context_of(step_id))

    async def _act(self, run: InFlight, execution: Execution, step: Step, step_id: str) -> None:
        def failed(error: BaseException, attempt: int, delay_s: float) -> None:
            text = f"step {step.name!r}: attempt {attempt} failed, the next follows in {delay_s:g} s"
            told = f"{_named(run)}: {text}\n{outcomes.traced(error)}"
            self._staging.notice(run.id, told.encode(errors="backslashreplace"), [])

        try:
            outcome = await self._services.steps.run(step, step_id, self._may_act, failed)
        except LeaseLapsed:
            return  # whoever owns the shard now starts it
        except UsageError as error:
            outcome = outcomes.encoded_error(TerminalError(str(error), 400))
        finally:
            self._tasks.pop((run.id, step.index), None)
        if run.execution is execution and run.running.pop(step.index, None) is not None and not run.ended:
            run.outcomes.append((step.index, outcome))
            if not run.settling:
                Context().run(self.deliver, run)  # nothing of the step reaches the handler

    def _may_act(self) -> bool:
        return self._leased() and not self.is_draining

    def _cancel_actions(self, run: InFlight) -> None:
        for index in run.running:
            task = self._tasks.pop((run.id, index), None)
            if task is not None:
                task.cancel()
        run.running, run.outcomes = {}, []

    # Ends

    def _end(self, run: InFlight, execution: Execution) -> None:
        activation, error = self._turns.activation_of(run), execution.error
        if execution.phase is Phase.COMPLETED:
            self._complete(run, activation, execution)
        elif execution.phase is Phase.FAILED:
            assert error is not None
            self.fail(run, activation, error)
        else:
            self._staging.paused(run, str(error))
            self._end_attempt(run, activation, f"paused: {error}", sleeps=True)

    def _complete(self, run: InFlight, activation: Activation, execution: Execution) -> None:
        outcome = execution.outcome
        try:
            changes = changes_of(run, activation, self._services.limits.payload_max)
        except UsageError as error:
            outcome, changes = outcomes.encoded_error(TerminalError(str(error), 400)), {}
        self._finish(run, activation, outcome, changes, commands=True)

    def reject(self, run: InFlight, activation: Activation, error: TerminalError) -> None:
        """End an invocation that cannot be executed."""
        self._finish(run, activation, outcomes.encoded_error(error), {}, commands=False)

    def _finish(
        self, run: InFlight, activation: Activation, outcome: bytes, changes: dict[str, bytes | None], *, commands: bool
    ) -> None:
        number = self._staging.finish(run, outcome, changes, commands=commands)
        self._cancel_actions(run)
        if activation.current is run:
            activation.current = None
        if changes:
            activation.write(changes)
        if run.exclusive:
            activation.staged = number
        self.forget(run)
        self._turns.ended(run, activation)

    def fail(self, run: InFlight, activation: Activation, error: BaseException) -> None:
        """End an attempt: the next one follows after a back-off, unless the policy's attempts are used up."""
        retry = run.policy.retry if run.policy is not None else resolve(self._services.policy).retry
        spent = retry.max_attempts is not None and run.attempt >= retry.max_attempts
        elapsed_s = (self._services.surroundings.now_ms() - run.began_ms) / 1000 if run.began_ms else 0.0
        if spent or (retry.max_duration is not None and elapsed_s >= seconds(retry.max_duration)):
            found = outcomes.used_up(error, f"{run.message.target}.{run.message.handler}", run.attempt)
            self._finish(run, activation, outcomes.encoded_error(found), {}, commands=False)
            return
        delay_s = retry.delay(run.attempt)
        text = (
            f"{_named(run)}: attempt {run.attempt} failed, the next follows in {delay_s:g} s\n{outcomes.traced(error)}"
        )
        run.attempt += 1
        sleeps = run.policy is not None and not run.policy.idle_timeout
        number = self._staging.failed(run, error, delay_s, text, sleeps=sleeps)
        if sleeps:
            activation.staged = number
        self._end_attempt(run, activation, text, sleeps=sleeps)

    def _end_attempt(self, run: InFlight, activation: Activation, text: str, *, sleeps: bool) -> None:
        logger.info("attempt ended: %s", text)
        self._cancel_actions(run)
        self._blocked.discard(run)
        run.execution, run.settling, run.backing_off, run.began_again = None, False, True, False
        if sleeps:
            self._leave_memory(run, activation)

    # Sleep

    def _watch_idle(self, run: InFlight, timeout: timedelta) -> None:
        if run.idle is None:
            run.idle = self._services.loop.call_later(timeout.total_seconds(), self._idle_is_over, run)

    def _idle_is_over(self, run: InFlight) -> None:
        run.idle = None
        execution = run.execution
        if execution is None or run.ended or self.is_draining or not run.is_waiting or execution.unstarted:
            return
        self._commit(run, self._turns.activation_of(run), {}, [], sleeps=True)

    def _leave_memory(self, run: InFlight, activation: Activation) -> None:
        if run.execution is not None:
            run.execution.drop()
        self.forget(run)
        self._turns.left_memory(run, activation)

    def forget(self, run: InFlight) -> None:
        """Drop what is in memory of an attempt."""
        run.ended = True
        run.execution = None
        if run.idle is not None:
            run.idle.cancel()
            run.idle = None
        self._blocked.discard(run)

    def lose(self) -> None:
        """Stop all actions: another host owns the shard, or will."""
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        self._blocked.clear()


def _must_commit(run: InFlight, execution: Execution) -> bool:
    if execution.has_messages or execution.timers.set or execution.timers.cleared:
        return True
    if run.exclusive or not execution.unstarted or execution.view is None:
        return False
    return any(name not in run.reads for name in execution.view.reads())


def _named(run: InFlight) -> str:
    return f"{run.message.target}.{run.message.handler} ({run.id})"


def _refusal(run: InFlight) -> str:
    assert run.declared is not None
    if run.exclusive:
        return ""
    if run.declared.is_service:
        return "a service has no state"
    return f"{run.message.handler} is a shared handler, which reads only (make it a @handler)"
