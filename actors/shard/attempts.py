"""Attempts: executions of one shard, from their start to their end: delivery, actions, commits, failures, sleep.

Owns the executions in memory. Does not own turns (`shard`), the content of a commit (`staging`), nor the actions of
steps (`step_tasks`).

Invariants:
    1. Events are delivered one at a time, in the order journal, then `events`; while a commit with a step's outcome is
       under way nothing else is delivered to that invocation; actions start only when nothing durable remains to be
       delivered. (A search over all crashes breaks every weaker set of these rules.)
    2. An attempt that fails takes nothing with it but the events that it was given (promise 7).
"""

import logging
from collections.abc import Callable, Sequence
from contextvars import Context
from datetime import timedelta
from typing import Final

from actors.activation.activation import Activation
from actors.activation.endings import final_failure, hint_of, is_last, named, used_up
from actors.activation.key_promises import KeyPromises, with_waits
from actors.activation.open_invocation import OpenInvocation, Renewal
from actors.activation.pauses import COMMANDS
from actors.activation.services import Services
from actors.activation.staging import BACK_OFF, Staged, Staging, must_commit
from actors.activation.state_changes import changes_of
from actors.activation.watches import end_watches, posted_of, refresh_view
from actors.blocks.cancel import after_failure, brought, ending_in
from actors.blocks.restarts import at_its_entry
from actors.blocks.steps import Exhausted, Step
from actors.errors import TerminalError, UsageError
from actors.execution.execution import Execution
from actors.execution.phases import Phase
from actors.policy import resolve
from actors.values import outcomes
from journal.records import Delivered, Event, EventKind, Record, time_of
from journal.store import Bring
from journal.texts import error_text, str_of

from .deadlock import Deadlocks
from .holding_back import HoldingBack
from .reentry import Reentry
from .replays import replay
from .step_tasks import StepTasks, outcomes_of
from .turns import Turns

logger = logging.getLogger("actors")

FOR_HOST_ONLY: Final = (*COMMANDS, EventKind.ATTEMPT, EventKind.STATE, EventKind.RETIME)
"""Events for the host alone, which are never delivered to a handler."""
END_OF_BACK_OFF: Final = (EventKind.ATTEMPT, EventKind.CANCEL, EventKind.RESUME)


class Attempts:
    """The executions of one shard. All methods but the actions are synchronous, so no work is ever half done."""

    def __init__(self, services: Services, staging: Staging, turns: Turns, leased: Callable[[], bool]) -> None:
        self._services, self._staging, self._turns = services, staging, turns
        self._step_tasks = StepTasks(services, staging, self, leased)
        self.reentry = Reentry(services, staging, turns, self.begin)
        self.deadlocks = Deadlocks(services, staging, turns, self.reentry, self.reject)
        self._holding_back = HoldingBack(services, staging, turns, self.try_again)
        self._final_failure = self._final_failure_of  # bound once: each execution gets these two
        self._on_foreign_call = self._called_from_a_thread
        self.is_draining = False
        """Nothing new begins, and no invocation leaves memory."""

    # Begin

    def begin(self, run: OpenInvocation, activation: Activation) -> None:
        """Start an attempt, replay its records, and go on from there; in a back-off, wait for its end."""
        if self.reentry.waiting:
            self.reentry.drop(run)
        if run.backing_off or self.is_draining:
            return
        box = self._services.box
        if box is not None:
            if box.holds(run.id):
                self._holding_back.hold(run, box)
                return
            box.runs(run.id)
        if self._services.suspects.set_aside and run.id in self._services.suspects.set_aside:
            self._set_aside(run, activation, self._services.suspects.release(run.id))
            return
        assert run.declared is not None
        assert activation.fields is not None
        run.leave_after = activation.staged
        if not run.began_at:
            run.began_at = self._services.now()
        recorded = run.recorded
        execution = Execution(
            self._services.surroundings,
            run.declared,
            run.handler,
            run.message,
            run.attempt,
            recorded,
            time_of(run.inbox_id),
        )
        run.execution, run.staged, run.replays = execution, len(recorded), len(recorded)
        run.reader, run.deliveries = not run.exclusive and activation.key is not None, 0
        execution.final_failure, execution.on_foreign_call = self._final_failure, self._on_foreign_call
        if run.declared.is_workflow:
            execution.board = KeyPromises(run, activation, self._services.surroundings.limits, self._commit_now)
        if run.records:
            self.reentry.replayed(run)
        if run.records and (restarts := run.restarts):
            execution.restarts = execution.calls.restarts = restarts
        execution.begin(run.found(activation.fields), run.refusal)
        if run.records:
            replay(run, execution, activation, self.reentry)
        self.deliver(run)

    def _set_aside(self, run: OpenInvocation, activation: Activation, reason: str) -> None:
        """Pause an invocation on which this host has failed, without reading its arguments or journal."""
        text = f"{named(run)}: {reason}; it is paused until it is resumed"
        activation.staged = self._staging.paused(run, reason, text)
        self._end_attempt(run, activation, text, sleeps=True)

    def queued(self, run: OpenInvocation, activation: Activation) -> None:
        """Take a call that waits for its turn; the holder of the turn may wait for it."""
        if activation.precedes(run):
            self.deadlocks.queued(run, activation)
        if run.asleep or run.handler.reentrant:
            self.reentry.queued(run, activation)

    def _called_from_a_thread(self, execution: Execution) -> None:
        self._services.loop.call_soon_threadsafe(self._check_foreign, execution)

    def _check_foreign(self, execution: Execution) -> None:
        run = self._turns.in_flight.get(execution.id)
        if run is None or run.execution is not execution:
            return
        if not (run.ended or run.settling or run.id in self.reentry.inner):
            execution.check_foreign()
            self.deliver(run)  # it has ended, or compensates

    def end_back_off(self, run: OpenInvocation) -> None:
        """Begin the next attempt if an event has come that ends the back-off."""
        if not run.backing_off:
            return
        found = next((event for event in run.pending if event.kind in END_OF_BACK_OFF), None)
        if found is None:
            self._staging.backs_off_again(run)
            return
        if found.kind is not EventKind.CANCEL:
            run.pending.remove(found)
            run.spent.append(found.id)
        if found.kind is EventKind.ATTEMPT:
            run.timers.pop(BACK_OFF, None)
        if found.kind is EventKind.RESUME:
            run.renewal = Renewal.RESUMED
        elif run.renewal is None and not run.recorded:
            run.renewal = Renewal.NEWER
        run.backing_off, run.began_again = False, True

    def try_again(self, run: OpenInvocation) -> None:
        """Begin the next attempt, if its time has come and all records that it replays are acknowledged."""
        if run.unsettled:
            return  # tried once more in `acknowledged`
        self.end_back_off(run)
        activation = self._turns.activation_of(run)
        if run.backing_off or not (run is activation.current or run.holder is not None or run in activation.sharing):
            return  # too early, or it has not had its turn yet and begins then
        if run.handler is None:
            self._turns.load_again(run, activation)
        elif run.renewal is not None:
            self._turns.renew(run, activation)
        else:
            self.begin(run, activation)

    # Delivery

    def deliver(self, run: OpenInvocation) -> None:
        """Deliver durable events in order, then carry out the handler's commands."""
        execution = run.execution
        if execution is None or run.ended or (self.reentry.inner and self.reentry.is_suspended(run)):
            return
        if run.reader and run.pending and self._turns.activation_of(run).stale:
            return
        box = self._services.box
        if box is not None:
            box.runs(run.id)
        if run.idle:
            self._services.idle.remove(run)
        probes: Sequence[Event] = ()
        while run.pending and not run.settling and not execution.has_ended:
            if execution.calls.unsent > self._services.surroundings.limits.sent_max:
                self._commit_first(run, execution)
                return
            event = run.pending.popleft()
            run.spent.append(event.id)
            if event.kind is EventKind.PROBE:
                probes = [*probes, event]
                continue
            if event.kind in FOR_HOST_ONLY:
                if event.kind is EventKind.RETIME:
                    execution.timers.set_again(self._services.surroundings.now_ms() / 1000)
                if event.kind is EventKind.RESUME and run.resume is None and run.is_failing:
                    run.resume = event
                    run.spent.pop()
                continue
            delivered = Delivered(event.kind, event.index, event.time_ms, event.payload)
            if execution.restarts:
                delivered = at_its_entry(delivered, execution.restarts)
                if delivered is None:
                    continue
            run.delivered.append(delivered)  # first: the handler's reaction may be committed at once
            if run.reader:
                refresh_view(run, self._turns.activation_of(run))
            if not execution.deliver(delivered):
                run.delivered.pop()
                run.deliveries -= 1
            if event.kind is EventKind.CANCEL and run.running:
                self._step_tasks.stop(run, [index for index in run.running if not execution.steps.holds(index)])
        if not (run.settling or execution.has_ended):
            execution.drained()
        if box is not None:
            box.rests()
        if execution.has_ended:
            self._end(run, execution)
        elif run.resume is not None and self._resumes(run, run.resume):
            return
        elif not run.settling:
            self.deadlocks.waits(run, execution, probes)
            self._carry_out(run, execution)

    def _resumes(self, run: OpenInvocation, event: Event) -> bool:
        """End an attempt whose step fails, to go on with the newest code, unless an action runs; return whether.

        The event stays in the store until the next attempt has begun, so that a new owner of the shard does the same.
        """
        if run.is_failing and (run.settling or run.is_acting):
            return False  # asked again when the action has ended
        if not run.is_failing:
            run.spent.append(event.id)
            run.resume = None
            return False
        assert run.execution is not None
        run.execution.drop()
        self._staging.interrupted(run)
        self._end_attempt(run, self._turns.activation_of(run), "it was resumed", sleeps=False)
        return True

    def step_failed(self, run: OpenInvocation, /) -> None:
        """Go on with the newest code, if a RESUME came while the action was under way."""
        if run.resume is not None and not run.ended:
            Context().run(self.deliver, run)

    def acknowledged(self, items: list[Staged]) -> None:
        """Go on with the invocations that waited for these commits."""
        for item in items:
            run, record = item.run, item.record
            if run is None or run.ended:
                continue
            if record is not None and record.steps and run.execution is not None:
                self._deliver_outcomes(run, run.execution, record, time_of(item.id))
            elif run.backing_off and run.pending:
                self.try_again(run)
        self._start_blocked()

    def _start_blocked(self) -> None:
        for run in self._step_tasks.take_blocked():
            if run.execution is not None and not (run.ended or run.settling or run.pending):
                self._step_tasks.start(run, run.execution)

    def hold(self, is_held: bool) -> None:
        """Start no action while held; afterwards start the actions that were held back."""
        self._step_tasks.is_held = is_held
        if not is_held:
            self._start_blocked()

    def _deliver_outcomes(self, run: OpenInvocation, execution: Execution, record: Record, time_ms: int) -> None:
        run.settling = False
        for index, outcome in record.steps:
            if not execution.has_ended:
                if run.reader:
                    refresh_view(run, self._turns.activation_of(run))
                execution.deliver_outcome(index, outcome, time_ms)
        self.deliver(run)

    def _changes(
        self, run: OpenInvocation, activation: Activation, execution: Execution
    ) -> dict[str, bytes | None] | None:
        """Return the changes of its state; None if they cannot be stored, which has ended the invocation."""
        try:
            return changes_of(run, activation, self._services.surroundings.limits)
        except UsageError as error:
            execution.drop()
            self._finish(run, activation, outcomes.encoded_error(TerminalError(str_of(error), 400)), {}, commands=False)
            return None

    def _commit_first(self, run: OpenInvocation, execution: Execution) -> None:
        """Commit before more is delivered: the handler's messages are enough for a write."""
        activation = self._turns.activation_of(run)
        changes = self._changes(run, activation, execution)
        if changes is not None:
            self._commit(run, activation, changes, [], sleeps=False)
            execution.calls.unsent = 0
            self._services.loop.call_soon(self.deliver, run, context=Context())

    def _carry_out(self, run: OpenInvocation, execution: Execution) -> None:
        """Carry out the commands of a handler that waits: commit if needed, start actions, watch for idleness."""
        activation = self._turns.activation_of(run)
        changes = self._changes(run, activation, execution)
        if changes is None:
            return
        results = outcomes_of(run, execution)
        assert run.policy is not None
        idle = not (execution.steps.unstarted or run.running or results)
        sleeps = idle and not run.policy.idle_timeout and not self.is_draining
        if sleeps and self.reentry.waiting:
            sleeps = not self.reentry.is_wanted(activation.target, run.id)
        if sleeps or results or changes or must_commit(run, execution):
            self._commit(run, activation, changes, results, sleeps=sleeps)
        if sleeps or results:
            return
        self._step_tasks.start(run, execution)
        if idle:
            self._watch_idle(run, run.policy.idle_timeout)
        if self.reentry.waiting:
            self.reentry.look(activation)

    def _commit(
        self,
        run: OpenInvocation,
        activation: Activation,
        changes: dict[str, bytes | None],
        results: list[tuple[int, bytes]],
        *,
        sleeps: bool,
    ) -> None:
        execution = run.execution
        assert execution is not None
        board = execution.board
        posted, is_answered = (board.take(), board.answers.new) if board is not None else (None, None)
        if changes or execution.watching:
            posted = posted_of(run, execution, activation, changes, posted)
        if changes and run.holder is not None:
            self.reentry.pass_on(run, activation, changes)
        has_read = run.reader and execution.view is not None and execution.view.has_read
        number = self._staging.commit(run, changes, activation.fields or {}, results, posted, sleeps=sleeps)
        run.settling = bool(results)
        if posted is not None:
            changes, activation.watches = changes | posted.fields, None
        if changes:
            activation.write(changes)
        if changes or sleeps:
            activation.staged = number
        if has_read or is_answered:
            run.leave_after = number  # reads that a replay must repeat are durable before a step begins
        if sleeps:
            self._leave_memory(run, activation)

    def _commit_now(self, run: OpenInvocation, activation: Activation, changes: dict[str, bytes | None]) -> None:
        self._commit(run, activation, changes, [], sleeps=False)

    # Steps (`step_tasks.StepListener`)

    def step_ended(self, run: OpenInvocation, /) -> None:
        """Deliver the outcomes of steps, unless earlier outcomes are on their way to the store."""
        if not run.settling:
            Context().run(self.deliver, run)  # context variables of the step do not reach the handler

    def step_exhausted(self, run: OpenInvocation, step: Step, found: Exhausted, /) -> None:
        """Pause the invocation of a step whose attempts are used up."""
        what = f"{named(run)}: step {step.name!r}"
        self._pause(run, self._turns.activation_of(run), found.error, found.attempts, what)

    # Ends

    def _end(self, run: OpenInvocation, execution: Execution) -> None:
        activation, error = self._turns.activation_of(run), execution.error
        if execution.phase is Phase.COMPLETED:
            self._complete(run, activation, execution)
        elif execution.phase is Phase.FAILED:
            assert error is not None
            self.fail(run, activation, error)
        else:
            assert error is not None
            reason = str_of(error)
            text = f"paused: {reason}" if error.__cause__ is None else f"paused: {reason}\n{outcomes.traced(error)}"
            self._staging.paused(run, reason, text)
            self._end_attempt(run, activation, text, sleeps=True)

    def _complete(self, run: OpenInvocation, activation: Activation, execution: Execution) -> None:
        outcome = execution.outcome
        try:
            changes = changes_of(run, activation, self._services.surroundings.limits)
        except UsageError as error:
            outcome, changes = outcomes.encoded_error(TerminalError(str_of(error), 400)), {}
        self._finish(run, activation, outcome, changes, commands=True)

    def reject(self, run: OpenInvocation, activation: Activation, error: TerminalError) -> None:
        """End an invocation that cannot be executed."""
        self._finish(run, activation, outcomes.encoded_error(error), {}, commands=False)

    def end_at_once(self, run: OpenInvocation, activation: Activation, error: TerminalError, kind: EventKind) -> None:
        """End an invocation without asking its handler; its calls without an outcome get the same event."""
        outcome = outcomes.encoded_error(error)
        messages = brought(kind, run.callees(self._services.surroundings.limits.shards))
        if run.execution is not None:
            run.execution.drop()
        self._finish(run, activation, outcome, {}, commands=False, messages=messages)

    def _finish(
        self,
        run: OpenInvocation,
        activation: Activation,
        outcome: bytes,
        changes: dict[str, bytes | None],
        *,
        commands: bool,
        messages: list[Bring] | None = None,
    ) -> None:
        if run.declared is None or run.declared.is_workflow:
            changes = with_waits(run, activation, changes, self._services)
        if changes and run.holder is not None:
            self.reentry.pass_on(run, activation, changes)
        brings: Sequence[Bring] = messages or ()
        if changes or (run.staged and not run.exclusive):
            changes, brings = end_watches(run, activation, changes, brings)
        if run.message.chain or run.records or self.reentry.inner:
            brings = [*brings, *self.reentry.end_events(run, activation)]
        number = self._staging.finish(run, outcome, changes, activation.fields, commands=commands, messages=brings)
        self._step_tasks.cancel(run)
        if activation.current is run:
            activation.current = None
        if changes:
            activation.write(changes)
        if run.exclusive or changes or messages is not None:  # if it ends at once, `exclusive` may be unknown
            activation.staged = number
        self.forget(run)
        self._turns.ended(run, activation)

    def fail(self, run: OpenInvocation, activation: Activation, error: BaseException) -> None:
        """End a failed attempt: the next follows after a back-off, unless the policy's attempts are used up."""
        ending = ending_in(run.pending)
        if ending is not None:
            self.end_at_once(run, activation, after_failure(error, ending), ending)
            return
        retry = run.policy.retry if run.policy is not None else resolve(self._services.policy).retry
        if is_last(run, retry, self._dated(run)):
            if retry.on_exhausted == "pause" and run.policy is not None:
                self._pause(run, activation, error, run.attempt, named(run))
                return
            text = f"{named(run)}: the last of {run.attempt} attempts failed\n{outcomes.traced(error)}"
            self._services.failures.note(run, error, run.attempt, text, "used up")
            self._finish(run, activation, outcomes.encoded_error(used_up(run, error)), {}, commands=False)
            return
        delay_s = retry.delay_after(error, run.attempt)
        following = f"the next follows in {delay_s:g} s{hint_of(run, self._services.code)}"
        text = f"{named(run)}: attempt {run.attempt} failed, {following}\n{outcomes.traced(error)}"
        self._services.failures.note(run, error, run.attempt, text)
        run.attempt += 1
        sleeps = run.policy is not None and not run.policy.idle_timeout
        number = self._staging.failed(run, error, delay_s, text, sleeps=sleeps)
        if sleeps:
            activation.staged = number
        self._end_attempt(run, activation, text, sleeps=sleeps)

    def _pause(
        self, run: OpenInvocation, activation: Activation, error: BaseException, attempts: int, what: str
    ) -> None:
        """Pause an invocation that has used up its attempts; steps that have ended meanwhile keep their outcomes."""
        execution = run.execution
        if execution is not None and not execution.has_ended:
            self._commit(run, activation, {}, outcomes_of(run, execution), sleeps=False)
            while run.outcomes:
                self._commit(run, activation, {}, outcomes_of(run, execution), sleeps=False)
        tries = "the only attempt" if attempts == 1 else f"the last of {attempts} attempts"
        reason = f"{what}: {tries} failed: {error_text(error, outcomes.ERROR_MAX)}"
        text = f"{what}: {tries} failed; it is paused until it is resumed\n{outcomes.traced(error)}"
        self._services.failures.note(run, error, attempts, text, "paused")
        activation.staged = self._staging.paused(run, reason, text)
        self._end_attempt(run, activation, text, sleeps=True)

    def _final_failure_of(
        self, execution: Execution, error: BaseException, recorded: str
    ) -> tuple[str, TerminalError] | None:
        run = self._turns.in_flight[execution.id]
        return final_failure(run, error, recorded, self._dated(run))

    def _dated(self, run: OpenInvocation) -> int:
        """Return the store's time; the invocation has the time of its beginning from here on."""
        now_ms = self._services.surroundings.now_ms()
        if run.began_at and not run.began_ms:
            run.began_ms = now_ms - int((self._services.now() - run.began_at) * 1000)
        return now_ms

    def _end_attempt(self, run: OpenInvocation, activation: Activation, text: str, *, sleeps: bool) -> None:
        logger.info("attempt ended: %s", text)
        if run.resume is not None:
            run.pending.appendleft(run.resume)
            run.resume = None
        self._step_tasks.cancel(run)
        self._step_tasks.blocked.discard(run)
        if run.execution is not None:
            run.execution.forget()
        run.execution, run.settling, run.backing_off, run.began_again = None, False, True, False
        if sleeps:
            self._leave_memory(run, activation)

    # Sleep

    def _watch_idle(self, run: OpenInvocation, timeout: timedelta) -> None:
        if not run.idle:
            self._services.idle.add(run, timeout.total_seconds(), self._idle_is_over)

    def _idle_is_over(self, run: OpenInvocation) -> None:
        execution = run.execution
        if execution is None or run.ended or self.is_draining or not run.is_waiting or execution.steps.unstarted:
            return
        if run.id in self.reentry.inner:
            return
        self._commit(run, self._turns.activation_of(run), {}, [], sleeps=True)

    def _leave_memory(self, run: OpenInvocation, activation: Activation) -> None:
        if run.execution is not None:
            run.execution.drop()
        self.forget(run)
        self._turns.left_memory(run, activation)

    def forget(self, run: OpenInvocation) -> None:
        """Drop an attempt from memory."""
        if self.reentry.inner:
            self.reentry.inner.pop(run.id, None)
        run.ended = True
        if run.execution is not None:
            run.execution.forget()
            run.execution = None
        if run.idle:
            self._services.idle.remove(run)
        self._step_tasks.blocked.discard(run)

    def lose(self) -> None:
        """Stop all actions: another host owns the shard now, or soon."""
        self._step_tasks.lose()
