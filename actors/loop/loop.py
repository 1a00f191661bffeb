"""Loop: the deterministic event loop on which one execution of a handler runs.

Owns: a queue of ready callbacks, the numbers of tasks and futures, and the end of both. Does not own: timers (its owner
makes them durable and fires them), entries, or the decision when to run; it does no I/O and starts no thread.

Invariants:
    1. Between two events nothing happens here: handlers advance in `drain`, `finish` and `drop` only.
    2. The same events in the same order give the same order of everything: the queue is first in, first out; time is
       the time of the last event; tasks and futures hash by their number of creation, so sets of them iterate alike
       in every process. (The root task, and the futures that `gather` itself makes, hash by address: asyncio
       puts neither into a set that it iterates.)
    3. Every error of a handler stays in its task; `SystemExit` and `KeyboardInterrupt` end in `escaped`.
    4. After `finish` or `drop` no code of the user runs, and nothing of the loop's own waits for the cycle collector.

Why a loop of our own: asyncio is written against `AbstractEventLoop`, so its sleeps, groups, locks and queues become
durable and repeatable without a second set of them; and calls that a replay could not repeat (sockets, threads,
processes) are refused, without a sandbox. The host drives it from a plain callback. From inside a task works too, on
Python 3.11 to 3.13: asyncio keeps the current task per loop there, so swapping the running loop swaps the task.

Why the root task is a plain `asyncio.Task`: a subclass costs 4 µs, and most handlers make no other task.
"""

# pyright: reportPrivateUsage=false
# A loop is asyncio's other half: `Handle._run`, `TimerHandle._scheduled` and `Task._log_destroy_pending` are how
# asyncio's own loops work (the same from 3.11 to 3.13), and have no public names.

import asyncio
import sys
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator
from contextvars import Context, copy_context
from threading import get_ident
from typing import Any, Final, Protocol, TypeVar, cast

from actors.errors import UsageError

from .closing import close_task, unwind
from .coroutines import HandlerWait, Taskable
from .refusals import foreign_future, is_called_by_as_completed, refusal

T = TypeVar("T")
FutureT = TypeVar("FutureT", bound="Future")

TASKS_KEPT: Final = 64
"""How many tasks a loop lists before it looks for finished ones to forget; doubles with the unfinished ones."""

running_loop = asyncio._get_running_loop
"""Return the loop that runs here, or None; `asyncio.get_running_loop` raises then."""
_set_running_loop = asyncio._set_running_loop


class Owner(Protocol):
    """The loop's calls to its execution. Only `foreign_call` comes from other threads."""

    def set_timer(self, when: float, handle: asyncio.TimerHandle, /) -> None:
        """Give the handle to `fire` at that time (`inf`: never). Equal handles compare equal: tell them apart by id."""
        ...

    def clear_timer(self, handle: asyncio.TimerHandle, /) -> None:
        """Forget a timer that was set and has not fired."""
        ...

    def foreign_call(self) -> None:
        """Fail the attempt: another thread called into the loop. Any thread may call this."""
        ...

    def entry_cancelled(self, future: "EntryFuture", /) -> None:
        """Forget a wait that the handler, or the end of its invocation, has cancelled."""
        ...

    def warn(self, message: str, exception: BaseException | None, /) -> None:
        """Tell the user of a warning of asyncio, for example of an exception that was never retrieved."""
        ...


class _Nobody:
    """The owner of a loop that has ended."""

    def set_timer(self, when: float, handle: asyncio.TimerHandle, /) -> None: ...
    def clear_timer(self, handle: asyncio.TimerHandle, /) -> None: ...
    def foreign_call(self) -> None: ...
    def entry_cancelled(self, future: "EntryFuture", /) -> None: ...
    def warn(self, message: str, exception: BaseException | None, /) -> None: ...


_NOBODY: Final = _Nobody()


class Future(HandlerWait[Any]):
    """A future that hashes by its number."""

    __slots__ = ("number",)
    number: int

    def __hash__(self) -> int:
        return self.number


class EntryFuture(Future):
    """The wait for a journal entry. Its owner completes it; a handler may cancel it."""

    __slots__ = ()

    def set_result(self, result: Any, /) -> None:
        """End the wait with a result."""
        cast(DeterministicLoop, self.get_loop())._wait_over(self)
        super().set_result(result)

    def set_exception(self, exception: Any, /) -> None:
        """End the wait with a failure."""
        cast(DeterministicLoop, self.get_loop())._wait_over(self)
        super().set_exception(exception)

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel as any future, and tell the loop's owner if that ended the wait."""
        cancelled = super().cancel(msg)
        if cancelled:
            cast(DeterministicLoop, self.get_loop())._entry_cancelled(self)
        return cancelled


class Task(asyncio.Task[T]):
    """A task that hashes by its number."""

    __slots__ = ("number", "within")
    number: int
    within: Context
    """The context that it runs in, and is closed in. (Before Python 3.12 asyncio does not tell.)"""

    def __init__(self, number: int, coro: Coroutine[Any, Any, T], context: Context, **options: Any) -> None:
        self.number, self.within = number, context  # first: asyncio.Task puts itself into a set
        super().__init__(coro, context=context, **options)

    def __hash__(self) -> int:
        return self.number


class DeterministicLoop(asyncio.AbstractEventLoop):
    """Run one handler's coroutines, step by step, the same way every time.

    Every method that asyncio's loops have and this class does not define raises `UsageError`. Only `drain`, `finish`
    and `drop` run code of the user; call them in the host's thread, never from within the handler.
    """

    __slots__ = (
        "_cut",
        "_dead",
        "_limit",
        "_now",
        "_numbers",
        "_ready",
        "_root",
        "_root_context",
        "_strays",
        "_tasks",
        "_waits",
        "escaped",
        "inside",
        "owner",
        "watch",
    )

    def __init__(self, owner: Owner, now: float) -> None:
        self.owner = owner
        self.inside = 0
        """The thread that runs the handler right now, by `threading.get_ident`; 0 between two events."""
        self.escaped: BaseException | None = None
        self.watch: Callable[[], None] | None = None
        """Called in the handler as it makes a wait."""
        self._now = now
        self._ready: deque[asyncio.Handle] = deque()
        self._numbers = 0
        self._root: asyncio.Task[Any] | None = None
        self._root_context: Context | None = None
        self._tasks: list[Task[Any]] | None = None  # made with the first: most handlers have none
        self._limit = TASKS_KEPT
        self._strays: list[AsyncGenerator[Any, Any]] | None = None
        self._waits: dict[int, EntryFuture] | None = None  # as the tasks: most handlers have none
        self._cut: list[str] | None = None
        self._dead = False

    # Methods that asyncio calls.

    def get_debug(self) -> bool:
        """Return False, whatever the environment says: debug mode looks at clocks and stacks."""
        return False

    def time(self) -> float:
        """Return the time of the last event, in seconds; it never goes back."""
        return self._now

    def is_running(self) -> bool:
        """Return whether this is the running loop of this thread."""
        return running_loop() is self

    def is_closed(self) -> bool:
        """Return whether the loop was finished or dropped."""
        return self._dead

    def call_soon(self, callback: Callable[..., object], *args: Any, context: Context | None = None) -> asyncio.Handle:
        """Put the callback into the queue; it runs in this or the next `drain`."""
        handle = asyncio.Handle(callback, args, self, context)
        if not self._dead:
            self._ready.append(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.Handle:
        """As `call_soon` within the handler; from anywhere else fail the attempt and run nothing.

        Raised in the foreign thread alone, the error would leave the handler waiting for ever.
        """
        if running_loop() is self or self._dead:
            return self.call_soon(callback, *args, context=context)
        self.owner.foreign_call()
        raise UsageError("a thread called into a handler's event loop: what is done in threads belongs in ctx.run()")

    def call_later(
        self, delay: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Call back after so many seconds of the loop's time, by a durable timer."""
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> asyncio.TimerHandle:
        """Call back at a time, by a durable timer; at once, without a timer, if that has come."""
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        if self._dead:
            return handle
        if when > self._now:
            handle._scheduled = True
            self.owner.set_timer(when, handle)
        else:
            self._ready.append(handle)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        # asyncio calls this from TimerHandle.cancel(); `sleep` cancels its timer after it has fired, too.
        if handle._scheduled and not self._dead:
            handle._scheduled = False
            self.owner.clear_timer(handle)

    def create_future(self) -> asyncio.Future[Any]:
        """Return a future that hashes by its number."""
        refused = foreign_future(sys._getframe(1))
        if refused is not None:
            raise refused
        return self._numbered(Future(loop=self))

    def entry_future(self) -> EntryFuture:
        """Return a numbered future that tells the owner when it is cancelled."""
        future = self._numbered(EntryFuture(loop=self))
        if not self._dead:
            if self._waits is None:
                self._waits = {}
            self._waits[future.number] = future
        return future

    def _numbered(self, future: FutureT) -> FutureT:
        if self.watch is not None:
            self.watch()
        self._numbers = future.number = self._numbers + 1
        return future

    def create_task(
        self,
        coro: Generator[Any, None, T] | Coroutine[Any, Any, T] | Awaitable[T],
        *,
        name: str | None = None,
        context: Context | None = None,
    ) -> asyncio.Task[T]:
        """Return a task that hashes and is named by its number; in a loop that has ended, the task never runs.

        Unlike asyncio's loops this one takes every awaitable: a step and a sleep are no coroutines, and need not
        become coroutines where they are only awaited. A cancel of the task cancels the wait.
        """
        started: Any = coro
        future = None
        if isinstance(coro, Taskable) or (not asyncio.iscoroutine(coro) and isinstance(coro, Awaitable)):
            future = coro if asyncio.isfuture(coro) else None
            started = _outcome_of(coro)
        if is_called_by_as_completed(sys._getframe(1)):
            started.close()
            raise UsageError(
                "as_completed starts coroutines in no certain order: give it tasks, "
                "as_completed([asyncio.ensure_future(x) for x in ...])"
            )
        self._numbers = number = self._numbers + 1
        within = copy_context() if context is None else context
        task: Task[T] = Task(number, started, within, loop=self, name=name or f"task-{number}")
        if future is not None:  # also of a task that is cancelled before it has begun to wait
            task.add_done_callback(lambda ended: future.cancel() if ended.cancelled() else None)
        if self._dead:
            close_task(task, None)  # it has not begun
        else:
            self._keep(task)
        return task

    def _keep(self, task: Task[Any]) -> None:
        kept = self._tasks
        if kept is None:
            kept = self._tasks = []
        elif len(kept) >= self._limit:
            kept[:] = [other for other in kept if not other.done()]
            self._limit = max(TASKS_KEPT, 2 * len(kept))
        kept.append(task)

    def get_task_factory(self) -> None:
        """Return None: handlers have no task factory."""

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Give asyncio's warning to the owner, while the invocation lives."""
        if not self._dead:
            self.owner.warn(context.get("message") or "unhandled exception in the event loop", context.get("exception"))

    # Methods that an execution calls.

    @property
    def is_quiet(self) -> bool:
        """Whether nothing is ready: the next step needs an event."""
        return not self._ready

    @property
    def newest(self) -> int:
        """The number of the task or future that was made last: later tasks have a higher one."""
        return self._numbers

    def advance(self, now: float) -> None:
        """Set the time to that of the event about to be delivered; an earlier one changes nothing."""
        if now > self._now:
            self._now = now

    def start(self, coro: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Return the root task, in a context of its own: nothing of the host's context variables reaches a handler."""
        assert self._root is None
        assert not self._dead
        self._root_context = context = Context()
        self._root = task = asyncio.Task(coro, loop=self, name="handler", context=context)
        return task

    def fire(self, handle: asyncio.TimerHandle) -> None:
        """Make a due timer ready, unless it was cancelled."""
        handle._scheduled = False
        if not (self._dead or handle.cancelled()):
            self._ready.append(handle)

    def drain(self) -> None:
        """Run until nothing is ready. Raises nothing that a handler raised; see `escaped`."""
        self._inside(self._run_ready)

    def settle(self) -> None:
        """End the tasks that the root task left behind: cancel, drain, close. Another root task may follow."""
        assert self._root is not None
        assert self._root.done()
        self._root = None
        if self._tasks:
            self._end_tasks()

    def finish(self) -> None:
        """End the tasks that the handler left behind, after its root task, and forget all."""
        assert self._root is None or self._root.done()
        if self._tasks:
            self._end_tasks()
        self._end()

    def open_waits(self) -> list[EntryFuture]:
        """Return the waits for entries that have not ended, in the order of their making."""
        return list((self._waits or {}).values())

    def unfinished(self) -> list[str]:
        """Return the names of tasks that the end of the root task cut off."""
        if self._cut is not None:
            return self._cut
        return [task.get_name() for task in self._tasks if not task.done()] if self._tasks else []

    def drop(self) -> None:
        """Close every coroutine, newest first, as the execution leaves memory.

        `finally` blocks run with `GeneratorExit`; their calls of the loop do nothing, and an `await` ends them.
        """
        if not self._dead:
            self._dead = True
            self._inside(self._close_all)
            self._end()

    # How it works.

    def _inside(self, work: Callable[[], None]) -> None:
        # Async generators belong to the loop that is told of them first: the host's must not hear of a handler's.
        previous, hooks = running_loop(), sys.get_asyncgen_hooks()
        assert previous is not self, "a handler's loop was driven from within the handler"
        _set_running_loop(self)
        self.inside = get_ident()
        sys.set_asyncgen_hooks(None, self._generator_left)
        try:
            work()
        finally:
            self.inside = 0
            _set_running_loop(previous)
            sys.set_asyncgen_hooks(*hooks)

    def _run_ready(self) -> None:
        ready = self._ready
        while ready:
            handle = ready.popleft()
            if not handle.cancelled():
                try:
                    handle._run()
                except (SystemExit, KeyboardInterrupt) as error:
                    # All other errors stay in tasks. These come through, and would end the host, and the next one.
                    self.escaped = self.escaped or error
        handle = None  # tracebacks keep this frame, and would with it keep the task that they belong to

    def _end_tasks(self) -> None:
        self._cut = self.unfinished()
        if self._cut:
            self._cancel_tasks()
            self.drain()
        # Forgotten while the loop lives, so that asyncio can warn of failures that were never retrieved.
        self._tasks = [task for task in self._tasks or () if not task.done()]
        if self._tasks:
            self._dead = True  # calls of the loop by their `finally` blocks do nothing
            self._inside(self._close_all)
            self._dead = False
            self._tasks = None

    def _cancel_tasks(self) -> None:
        for task in self._tasks or ():
            task.cancel()

    def _end(self) -> None:
        self._dead = True
        if self._strays:
            self._inside(self._close_all)
        self._ready.clear()
        self._root = self._root_context = self._tasks = self._strays = self._waits = None
        self.watch = None
        self.owner = _NOBODY  # the owner holds its loop: without the way back, no cycle waits for the collector

    def _close_all(self) -> None:
        self._ready.clear()
        for task in reversed([self._root, *(self._tasks or ())]):
            if task is None or task.done():
                continue
            if not close_task(task, task.within if isinstance(task, Task) else self._root_context):
                message = f"{task.get_name()} awaits again and again while it is closed; it is left as it is"
                self.owner.warn(message, None)
        while self._strays:
            unwind(self._strays.pop())

    def _generator_left(self, generator: AsyncGenerator[Any, Any]) -> None:
        # The interpreter calls this for a generator that nobody holds and that has not ended.
        if running_loop() is self:
            if self._dead:
                unwind(generator)
            else:
                self.create_task(generator.aclose())
        elif not self._dead:
            # The cycle collector found it, at no certain time, perhaps in another thread: it waits for the end.
            self._strays = [*(self._strays or ()), generator]

    def _wait_over(self, future: EntryFuture) -> None:
        if self._waits is not None:
            self._waits.pop(future.number, None)

    def _entry_cancelled(self, future: EntryFuture) -> None:
        self._wait_over(future)
        if not self._dead:
            self.owner.entry_cancelled(future)


async def _outcome_of(awaitable: Awaitable[T]) -> T:
    return await awaitable


for _name in dir(asyncio.AbstractEventLoop):
    if not _name.startswith("_") and _name not in vars(DeterministicLoop):
        setattr(DeterministicLoop, _name, refusal(_name))
