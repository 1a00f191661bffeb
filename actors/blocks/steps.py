"""Steps: the steps of an execution that have no outcome, and their actions, run with time-out and retries in place.

Owns the entry of a step, and its action from start to outcome. Does not own the permission to start (its host checks
the lease first), nor the record of the outcome.

Invariants:
    1. The lease is checked immediately before each attempt of an action; if it has lapsed the action does not begin.
    2. Each attempt of an action runs in a copy of its handler's context as it was at `ctx.run`, with the step's id in
       `current.in_step`: it sees the handler's context variables and none of the host's, its changes of them are lost
       with the copy, and calls from it are refused.
    3. A failed attempt is recorded before the next begins.
"""

import asyncio
import contextvars
import functools
import inspect
import logging
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, cast

from actors.errors import TerminalError, UsageError
from actors.loop.coroutines import HandlerWait
from actors.loop.loop import DeterministicLoop, EntryFuture
from actors.policy import Retry
from actors.requests.current import in_step
from actors.requests.message import bounded
from actors.values import outcomes
from actors.values.values import Scope
from journal.records import Tries
from journal.texts import full_name, str_of

from .step_threads import Holder, Threads

logger = logging.getLogger("actors")


@dataclass(slots=True)
class Step:
    """A step of a handler: an action to run."""

    index: int
    name: str
    fn: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    retry: Retry | None
    timeout_s: float | None
    future: EntryFuture
    acting_since_ms: int = 0  # 0: no action is under way, perhaps a back-off
    context: contextvars.Context = field(default_factory=contextvars.copy_context)
    """The handler's context at `ctx.run`."""
    is_stopped: bool = False  # its host has cancelled it


class Steps:
    """The steps of one execution."""

    def __init__(self, make: Callable[[str], int], loop: DeterministicLoop, scope: Scope) -> None:
        self._make, self._loop, self._scope = make, loop, scope
        self._by_index: dict[int, Step] = {}
        self._index_of: dict[int, int] = {}
        self.unstarted: dict[int, Step] = {}
        """Steps without an outcome whose action has not started."""

    def run(
        self,
        name: str,
        fn: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        retry: Retry | None,
        timeout_s: float | None,
        /,
    ) -> HandlerWait[Any]:
        """Make the entry of a step; its action starts when the host allows it."""
        index = self._make(f"run {name}")
        future = self._loop.entry_future()
        step = Step(index, name, fn, args, kwargs, retry, timeout_s, future)
        self._by_index[index] = self.unstarted[index] = step
        self._index_of[future.number] = index
        return future

    def holds(self, index: int) -> bool:
        """Whether the handler still waits for the outcome of a step."""
        step = self._by_index.get(index)
        return step is not None and not step.future.done()

    def take(self, index: int) -> Step | None:
        """Remove and return a step whose outcome has come, None if it was given up."""
        self.unstarted.pop(index, None)
        return self._by_index.pop(index, None)

    def complete(self, step: Step, outcome: bytes) -> None:
        """Give a step its outcome, unless its wait has ended."""
        if not step.future.done():
            try:
                step.future.set_result(outcomes.decoded(outcome, scope=self._scope))
            except Exception as error:  # noqa: BLE001  # the step's own failure, or an error of decoding its result
                step.future.set_exception(error)

    def give_up(self, future: EntryFuture) -> None:
        """Forget the step whose wait was cancelled."""
        index = self._index_of.pop(future.number, None)
        if index is not None:
            self.take(index)

    def unended(self) -> list[Step]:
        """Return the steps that have no outcome and were not given up."""
        return [step for step in self._by_index.values() if not step.future.done()]

    def end(self) -> None:
        """Give up all steps: their handler has ended."""
        for step in self.unended():
            step.future.cancel()


class LeaseLapsed(BaseException):
    """The host may not start this action any more; the present owner of the shard will."""


class Exhausted(Exception):
    """The attempts of a step are used up, and its policy wants the invocation paused."""

    def __init__(self, error: BaseException, attempts: int) -> None:
        super().__init__()
        self.error, self.attempts = error, attempts


class _Raised(Exception):
    """Carries an action's error as a return value, because some errors cannot be raised through asyncio.

    StopIteration cannot go through a future or a coroutine, GeneratorExit closes the coroutine that it is thrown into,
    SystemExit and KeyboardInterrupt end the host's loop.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


class StepRunner:
    """Runs actions: sync ones on a thread pool, async ones on the host's loop, Ray functions on the cluster."""

    def __init__(self, executor: Executor | None, default: Retry, payload_max: int, now_ms: Callable[[], int]) -> None:
        self._executor, self._default, self._payload_max, self._now_ms = executor, default, payload_max, now_ms

    async def run(
        self,
        step: Step,
        step_id: str,
        may_start: Callable[[], bool],
        failed: Callable[[BaseException, float, Tries], Awaitable[None]],
        before: Tries | None,
        target: str = "",
    ) -> bytes:
        """Return the encoded outcome, going on after the recorded failed attempts, `before`.

        Each failure that another attempt follows goes to `failed`, with the seconds until then. `failed` returns when
        the failure is recorded; only then the back-off begins, so that a crash loses at most the count of the present
        attempt. After a crash the rest of a back-off is waited for: a remote service that asked for time gets it,
        however many hosts die meanwhile. If the handler gave the step up no attempt follows, and the outcome is empty.

        To be called in a task of its own, in the step's context (`context_of`): a first attempt runs in that task.

        Raises:
            LeaseLapsed: the action, or its next attempt, may not be started here.
            Exhausted: the attempts are used up, and the invocation has to be paused.
        """
        retry, done, first_ms, is_first = step.retry or self._default, 0, self._now_ms(), True
        task = asyncio.current_task()
        if before is not None:
            done, first_ms = before.attempts, before.first_ms
            await asyncio.sleep((before.next_ms - self._now_ms()) / 1000)
        while not step.future.done():
            if not may_start():
                raise LeaseLapsed
            step.acting_since_ms = self._now_ms()
            try:
                return self._encoded(step, await self._in_time(step, step_id, target, is_first=is_first))
            except BaseException as raised:  # noqa: BLE001  # any error of a user's step is retried, or recorded
                error = await self._of_step(step, raised, may_start, task)
            if (found := outcomes.terminal_of_step(error)) is not None:
                return outcomes.encoded_error(found)
            done, is_first = done + 1, False
            if retry.is_exhausted(done, (self._now_ms() - first_ms) / 1000):
                return outcomes.encoded_error(_used_up(error, step, done, retry))
            delay_s = retry.delay_after(error, done)
            step.acting_since_ms = 0
            tries = Tries(step.index, done, first_ms, self._now_ms() + int(delay_s * 1000))
            await failed(error, delay_s, tries)
            await asyncio.sleep(delay_s)
        return b""

    async def _of_step(
        self, step: Step, raised: BaseException, may_start: Callable[[], bool], task: "asyncio.Task[Any] | None"
    ) -> BaseException:
        """Return the error that an action has raised, or raise it if the host has cancelled or closed this task."""
        kind = type(raised)
        if task is None or _this_task() is not task:
            raise raised  # it is closed, for example by the collector
        if kind is _Raised:
            return cast("_Raised", raised).error
        if issubclass(kind, asyncio.CancelledError) and (step.is_stopped or not may_start()):
            raise raised
        if task.cancelling():
            # The action has cancelled its own task. A pending CancelledError is raised at the next await: here.
            while task.cancelling():
                task.uncancel()
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                if step.is_stopped or not may_start():
                    raise
        return raised

    async def _in_time(self, step: Step, step_id: str, target: str, *, is_first: bool) -> Any:
        """Make an attempt, with its own time-out. A thread or a Ray task that takes longer goes on, and is ignored."""
        if step.timeout_s is None:
            return await self._attempt(step, step_id, target, is_first=is_first)
        deadline = asyncio.timeout(step.timeout_s)
        try:
            async with deadline:
                return await self._attempt(step, step_id, target, is_first=is_first)
        except TimeoutError as error:
            if not deadline.expired():
                raise  # the action's own
            raise TimeoutError(f"the step {step.name!r} took longer than {step.timeout_s:g} s") from error

    async def _attempt(self, step: Step, step_id: str, target: str, *, is_first: bool) -> Any:
        fn = step.fn
        is_async = inspect.iscoroutinefunction(fn)
        if is_async and is_first:
            return await fn(*step.args, **step.kwargs)
        if hasattr(fn, "remote") and hasattr(fn, "bind"):
            return await _unwrapped(fn.remote(*step.args, **step.kwargs))
        context, call = context_of(step, step_id), functools.partial(fn, *step.args, **step.kwargs)
        if is_async or self._executor is None:
            value = context.run(call)
        else:
            value = await asyncio.get_running_loop().run_in_executor(
                self._pool(step, step_id, target), context.run, functools.partial(_called, call)
            )
        if inspect.isawaitable(value):
            value = await _ended(value, context)
        if type(value) is _Raised:
            raise value
        return value

    def _pool(self, step: Step, step_id: str, target: str) -> Executor | None:
        if not isinstance(self._executor, Threads):
            return self._executor
        type_, _, key = target.partition("/")
        return self._executor.of(Holder(type_, target if key else step_id.rpartition(":")[0], target, step.name))

    def _encoded(self, step: Step, value: Any) -> bytes:
        try:
            data = outcomes.encoded_value(value)
        except UsageError as error:
            raise UsageError(
                f"the step {step.name!r} returned a value that cannot be recorded: {str_of(error)}"
            ) from error
        return bounded(data, f"result of the step {step.name!r}", self._payload_max)


def _used_up(error: BaseException, step: Step, attempts: int, retry: Retry) -> TerminalError:
    """Return the terminal error of a step.

    Raises:
        Exhausted: its policy wants the invocation paused instead.
    """
    if retry.on_exhausted == "pause":
        raise Exhausted(error, attempts) from error
    return outcomes.used_up(error, step.name, attempts)


def context_of(step: Step, step_id: str) -> contextvars.Context:
    """Return a context for an attempt of an action."""
    context = step.context.copy()
    for variable, value in step.context.items():
        if variable.name == "decimal_context":  # its value is changed in place, by `getcontext().prec = 50`
            context.run(variable.set, value.copy())
    context.run(in_step.set, step_id)
    return context


def _called(call: Callable[[], Any]) -> Any:
    try:
        return call()
    except BaseException as error:  # noqa: BLE001  # whatever a user's step raises
        return _Raised(error)


async def _ended(work: Awaitable[Any], context: contextvars.Context) -> Any:
    """Return the result of an awaitable, or its error as `_Raised`; it is awaited in a task of its own."""
    task = asyncio.get_running_loop().create_task(_awaited(work), context=context)
    try:
        return await task
    finally:
        if task.done() and inspect.iscoroutine(work):
            work.close()  # it may have been cancelled before it began


async def _awaited(work: Awaitable[Any]) -> Any:
    task = asyncio.current_task()
    try:
        if full_name(type(work))[0].partition(".")[0] == "ray":  # of `f.remote` as the step's function
            return await _unwrapped(work)
        return await work
    except asyncio.CancelledError:
        raise
    except BaseException as error:  # whatever a user's step raises
        if _this_task() is not task:
            raise  # it is closed
        return _Raised(error)


def _this_task() -> "asyncio.Task[Any] | None":
    """Return the present task; None if a coroutine is being closed, for example by the collector."""
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None


async def _unwrapped(reference: Awaitable[Any]) -> Any:
    try:
        return await reference
    except Exception as error:  # a task may raise anything
        # Ray wraps what a task raised; the step fails with the error itself.
        cause = cast("Any", error).__dict__.get("cause")
        if not isinstance(cause, Exception):
            raise
        raise cause from None
