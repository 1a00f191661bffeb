"""Steps: running the action of a `ctx.run`, with its time-out and its retries in place.

Owns the action between its start and its outcome. Does not own: when it may start (its host asks the lease first), nor
the record of its outcome.

Invariants:
    1. The lease is looked at immediately before each attempt of an action; where it has lapsed the action is not begun.
    2. Each attempt of an action runs in a fresh context in which `place.in_step` holds the step's id, so that nothing
       of the handler's or the host's context leaks into it, and calls from it are refused.
"""

import asyncio
import contextvars
import functools
import inspect
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, cast

from . import outcomes
from .errors import TerminalError, UsageError
from .loop import EntryFuture
from .outgoing import bounded
from .place import in_step
from .policy import Retry, seconds

logger = logging.getLogger("actors")


@dataclass(slots=True)
class Step:
    """An action that the handler wants done."""

    index: int
    name: str
    fn: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    retry: Retry | None
    timeout_s: float | None
    future: EntryFuture
    is_acting: bool = False  # its action is under way, not its back-off


class LeaseLapsed(BaseException):
    """The host may not start this action any more; whoever owns the shard now will."""


class StepRunner:
    """Runs actions: sync ones on a thread pool, async ones on the host's loop, Ray functions on the cluster."""

    def __init__(self, executor: Executor | None, default: Retry, payload_max: int, now: Callable[[], float]) -> None:
        self._executor, self._default, self._payload_max, self._now = executor, default, payload_max, now

    async def run(
        self,
        step: Step,
        step_id: str,
        may_start: Callable[[], bool],
        failed: Callable[[BaseException, int, float], None],
    ) -> bytes:
        """Return the outcome, encoded; `failed` is told of each attempt that another one follows.

        Call it in a task of its own, in the step's context (`context_of`): a first attempt runs in that task.

        Raises:
            LeaseLapsed: the action, or its next attempt, may not be started here.
        """
        retry, attempt, began = step.retry or self._default, 0, self._now()
        while True:
            attempt += 1
            if not may_start():
                raise LeaseLapsed
            step.is_acting = True
            try:
                if step.timeout_s is None:
                    value = await self._attempt(step, step_id, attempt)
                else:
                    async with asyncio.timeout(step.timeout_s):
                        value = await self._attempt(step, step_id, attempt)
                return self._encoded(step, value)
            except Exception as error:  # noqa: BLE001  # whatever a user's step raises is retried, or recorded
                found = self._given_up(error, step, attempt, self._now() - began, retry)
                if found is not None:
                    return outcomes.encoded_error(found)
                delay = retry.delay(attempt)
                failed(error, attempt, delay)
            step.is_acting = False
            await asyncio.sleep(delay)

    def _given_up(
        self, error: Exception, step: Step, attempt: int, elapsed_s: float, retry: Retry
    ) -> TerminalError | None:
        if isinstance(error, TerminalError):
            return error
        if isinstance(error, UsageError):
            return outcomes.terminal(error)
        if isinstance(error, TimeoutError) and step.timeout_s is not None and not str(error):
            error = TimeoutError(f"the step {step.name!r} took longer than {step.timeout_s:g} s")
        spent = retry.max_attempts is not None and attempt >= retry.max_attempts
        late = retry.max_duration is not None and elapsed_s >= seconds(retry.max_duration)
        return outcomes.used_up(error, step.name, attempt) if spent or late else None

    async def _attempt(self, step: Step, step_id: str, attempt: int) -> Any:
        fn = step.fn
        is_async = inspect.iscoroutinefunction(fn)
        if is_async and attempt == 1:
            return await fn(*step.args, **step.kwargs)
        if hasattr(fn, "remote") and hasattr(fn, "bind"):
            return await _unwrapped(fn.remote(*step.args, **step.kwargs))
        context, call = context_of(step_id), functools.partial(fn, *step.args, **step.kwargs)
        if is_async or self._executor is None:
            value = context.run(call)
        else:
            value = await asyncio.get_running_loop().run_in_executor(self._executor, context.run, call)
        if inspect.isawaitable(value):
            return await asyncio.get_running_loop().create_task(_awaited(value), context=context)
        return value

    def _encoded(self, step: Step, value: Any) -> bytes:
        try:
            data = outcomes.encoded_value(value)
        except UsageError as error:
            raise UsageError(f"the step {step.name!r} returned what cannot be recorded: {error}") from error
        return bounded(data, f"result of the step {step.name!r}", self._payload_max)


def context_of(step_id: str) -> contextvars.Context:
    """Return a fresh context for an action."""
    context = contextvars.Context()
    context.run(in_step.set, step_id)
    return context


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


async def _unwrapped(reference: Awaitable[Any]) -> Any:
    try:
        return await reference
    except Exception as error:  # noqa: BLE001  # a task may raise anything
        # Ray wraps what a task raised; the step fails with the error itself.
        cause = cast("Any", error).__dict__.get("cause")
        raise cause if isinstance(cause, Exception) else error from None
