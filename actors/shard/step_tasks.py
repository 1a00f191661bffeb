"""Step tasks: the asyncio tasks that run the actions of a shard's steps.

Owns these tasks, and the rule when an action may start. Does not own the running of an action and its next attempts
(`steps`), nor the use of its outcome (`attempts`).

Invariants:
    1. An action starts only when every commit whose state its handler has seen is durable (promise 5), and while the
       lease holds.
    2. A failed attempt of a step is staged, with all commands of its handler, before the next attempt begins.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Protocol

from actors.activation.endings import hint_of, named
from actors.activation.open_invocation import OpenInvocation
from actors.activation.services import Services
from actors.activation.staging import BYTES_MAX, Staging
from actors.blocks.restarts import mark_of
from actors.blocks.steps import Exhausted, LeaseLapsed, Step, context_of
from actors.errors import TerminalError, UsageError
from actors.execution.execution import Execution
from actors.values import outcomes
from journal.records import Tries
from journal.texts import str_of


class StepListener(Protocol):
    """Callbacks from an action to the attempts of its shard, as long as its execution exists."""

    is_draining: bool
    """Nothing new begins."""

    def step_ended(self, run: OpenInvocation, /) -> None:
        """An outcome was added to `run.outcomes`."""
        ...

    def step_failed(self, run: OpenInvocation, /) -> None:
        """An attempt of a step has failed, and another follows."""
        ...

    def step_exhausted(self, run: OpenInvocation, step: Step, found: Exhausted, /) -> None:
        """The attempts of a step are used up, and its invocation has to be paused."""
        ...


class StepTasks:
    """The actions of one shard."""

    def __init__(
        self, services: Services, staging: Staging, listener: StepListener, leased: Callable[[], bool]
    ) -> None:
        self._services, self._staging, self._listener, self._leased = services, staging, listener, leased
        self.blocked: set[OpenInvocation] = set()
        """Invocations whose actions wait for commits to be durable, or are held back."""
        self.is_held = False
        """No action starts for now."""
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}

    def start(self, run: OpenInvocation, execution: Execution) -> None:
        """Start the actions that have not started, as soon as they may."""
        if not execution.steps.unstarted or self._listener.is_draining:
            return
        if self.is_held or self._staging.settled < run.leave_after:
            self.blocked.add(run)
            return
        steps, execution.steps.unstarted = execution.steps.unstarted, {}
        tries = run.tries if min(steps) < run.replays else {}  # a new step has none: do not search a long journal
        for index, step in steps.items():
            run.running[index] = step
            step_id = f"{run.id}:{mark_of(index, execution.restarts)}"
            act = self._act(run, execution, step, step_id, tries.get(index))
            self._tasks[run.id, index] = self._services.spawn(act, context_of(step, step_id))

    async def _act(
        self, run: OpenInvocation, execution: Execution, step: Step, step_id: str, before: Tries | None
    ) -> None:
        box = self._services.box
        if box is not None:
            box.begins(step_id)
        failed, exhausted, outcome = partial(self._tried, run, execution, step), None, b""
        try:
            outcome = await self._services.steps.run(step, step_id, self._may_act, failed, before, run.message.target)
        except LeaseLapsed:
            return  # the present owner of the shard starts it
        except Exhausted as error:
            exhausted = error
        except UsageError as error:
            outcome = outcomes.encoded_error(TerminalError(str_of(error), 400))
        finally:
            self._tasks.pop((run.id, step.index), None)
            if box is not None:
                box.ends(step_id)
        if run.execution is not execution or run.running.pop(step.index, None) is None or run.ended:
            return
        if exhausted is not None and execution.steps.holds(step.index):
            self._listener.step_exhausted(run, step, exhausted)
        else:
            run.outcomes.append((step.index, outcome))
            self._listener.step_ended(run)

    async def _tried(
        self, run: OpenInvocation, execution: Execution, step: Step, error: BaseException, delay_s: float, tries: Tries
    ) -> None:
        if run.execution is not execution or run.ended:
            return
        hint = hint_of(run, self._services.code)
        text = f"step {step.name!r}: attempt {tries.attempts} failed, the next follows in {delay_s:g} s{hint}"
        told = f"{named(run)}: {text}\n{outcomes.traced(error)}"
        self._services.failures.note(run, error, tries.attempts, told, step.name)
        number = self._staging.tried(run, tries, error, told)
        self._listener.step_failed(run)
        await self._staging.until_durable(number)

    def _may_act(self) -> bool:
        return self._leased() and not self._listener.is_draining

    def take_blocked(self) -> set[OpenInvocation]:
        """Remove and return the invocations whose actions wait."""
        blocked, self.blocked = self.blocked, set()
        return blocked

    def stop(self, run: OpenInvocation, indices: list[int]) -> None:
        """Cancel the actions of these entries."""
        for index in indices:
            run.running.pop(index).is_stopped = True
            task = self._tasks.pop((run.id, index), None)
            if task is not None:
                task.cancel()

    def cancel(self, run: OpenInvocation) -> None:
        """Cancel all actions of an invocation; outcomes that no record holds are dropped."""
        if run.running:
            self.stop(run, list(run.running))
        run.outcomes = []

    def lose(self) -> None:
        """Cancel all actions: another host owns the shard now, or soon."""
        for task in self._tasks.values():
            task.cancel()
        self._tasks.clear()
        self.blocked.clear()


def outcomes_of(run: OpenInvocation, execution: Execution) -> list[tuple[int, bytes]]:
    """Take the outcomes of steps to record next, as many as fit into one write."""
    results, size, taken = list[tuple[int, bytes]](), 0, 0
    for index, outcome in run.outcomes:
        if size > BYTES_MAX:
            break
        taken += 1
        if execution.steps.holds(index):
            results.append((index, outcome))
            size += len(outcome)
    run.outcomes = run.outcomes[taken:]
    return results
