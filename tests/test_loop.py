"""The deterministic loop: asyncio as handlers know it, the same way every time (promise 4 rests on it, design §5)."""

import asyncio
import contextvars
import gc
import importlib
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
from simulation import VirtualLoop

from actors.blocks.timers import sleeper
from actors.errors import UsageError
from actors.loop.loop import DeterministicLoop, EntryFuture

T = TypeVar("T")
Handler = Callable[[], Coroutine[Any, Any, Any]]


class FakeOwner:
    """An execution that records what the loop tells it; `run` fires its timers in order of time."""

    def __init__(self, now: float = 1000.0) -> None:
        self.timers: list[tuple[float, asyncio.TimerHandle]] = []
        self.cleared: list[float] = []
        self.cancelled: list[EntryFuture] = []
        self.foreign_calls: list[str] = []
        self.warnings: list[tuple[str, BaseException | None]] = []
        self.loop = DeterministicLoop(self, now)

    def set_timer(self, when: float, handle: asyncio.TimerHandle, /) -> None:
        self.timers.append((when, handle))

    def clear_timer(self, handle: asyncio.TimerHandle, /) -> None:
        self.timers = [timer for timer in self.timers if timer[1] is not handle]
        self.cleared.append(handle.when())

    def foreign_call(self) -> None:
        self.foreign_calls.append(threading.current_thread().name)

    def entry_cancelled(self, future: EntryFuture, /) -> None:
        self.cancelled.append(future)

    def warn(self, message: str, exception: BaseException | None, /) -> None:
        self.warnings.append((message, exception))

    def fire_next(self) -> None:
        timer = min(self.timers, key=lambda timer: timer[0])
        self.timers.remove(timer)
        self.loop.advance(timer[0])
        self.loop.fire(timer[1])
        self.loop.drain()

    def begin(self, coro: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        root = self.loop.start(coro)
        self.loop.drain()
        return root

    def run(self, coro: Coroutine[Any, Any, T]) -> T:
        root = self.begin(coro)
        while not root.done():
            assert self.timers, "the handler waits for nothing that will come"
            self.fire_next()
        self.loop.finish()
        return root.result()


@pytest.fixture
def owner() -> Iterator[FakeOwner]:
    owner = FakeOwner()
    yield owner
    owner.loop.drop()


async def after(delay: float, value: T) -> T:
    await asyncio.sleep(delay)
    return value


async def failing(delay: float) -> None:
    await asyncio.sleep(delay)
    raise LookupError(str(delay))


# Handlers whose results must be the same on asyncio's own loop. Times are apart far enough for a real clock.


async def sleeps() -> list[Any]:
    return [await asyncio.sleep(0, "at once"), await asyncio.sleep(0.001, "later"), await asyncio.sleep(-1, "past")]


async def gathers() -> list[Any]:
    results = await asyncio.gather(after(0.02, "a"), after(0, "b"), failing(0.01), return_exceptions=True)
    return [repr(result) for result in results]


async def gathers_a_failure() -> str:
    try:
        await asyncio.gather(after(0.02, "a"), failing(0.001))
    except LookupError as error:
        return repr(error)
    return "no error"


async def waits(mode: str) -> list[Any]:
    named = {
        asyncio.create_task(after(0.001, None), name="quick"),
        asyncio.create_task(failing(0.03), name="failing"),
        asyncio.create_task(after(0.06, None), name="slow"),
    }
    done, pending = await asyncio.wait(named, return_when=mode)
    result = [sorted(task.get_name() for task in tasks) for tasks in (done, pending)]
    await asyncio.gather(*done, *pending, return_exceptions=True)
    return result


async def waits_for_all() -> list[Any]:
    return await waits(asyncio.ALL_COMPLETED)


async def waits_for_the_first() -> list[Any]:
    return await waits(asyncio.FIRST_COMPLETED)


async def waits_for_a_failure() -> list[Any]:
    return await waits(asyncio.FIRST_EXCEPTION)


async def waits_for_a_time() -> list[int]:
    tasks = {asyncio.create_task(after(0.001, 1)), asyncio.create_task(after(0.06, 2))}
    done, pending = await asyncio.wait(tasks, timeout=0.03)
    await asyncio.gather(*pending)
    none, all_of_them = await asyncio.wait({asyncio.create_task(after(0.001, 3))}, timeout=0)
    return [len(done), len(pending), len(none), len(all_of_them)]


async def waits_for_one() -> list[str]:
    seen: list[str] = []
    for delay, timeout in ((0, 0.01), (0.001, 0.05), (0.05, 0.001), (0.001, 0), (0.001, None)):
        try:
            seen.append(str(await asyncio.wait_for(after(delay, delay), timeout)))
        except TimeoutError:
            seen.append("timeout")
    return seen


async def times_out() -> list[str]:
    seen: list[str] = []
    for timeout in (0, 0.001, 0.05, None):
        try:
            async with asyncio.timeout(timeout) as scope:
                await asyncio.sleep(0.02)
            seen.append(f"in time {scope.expired()}")
        except TimeoutError:
            seen.append("timeout")
    async with asyncio.timeout(0.001) as scope:
        scope.reschedule(None)
        await asyncio.sleep(0.01)
    return [*seen, str(scope.expired())]


async def groups() -> list[str]:
    seen: list[str] = []

    async def child(name: str, delay: float) -> None:
        try:
            await asyncio.sleep(delay)
            seen.append(f"{name} done")
        except asyncio.CancelledError:
            seen.append(f"{name} cancelled")
            raise

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(child("a", 0.001))
            group.create_task(failing(0.02))
            for name in "bcdefgh":
                group.create_task(child(name, 5))
    except* LookupError as errors:
        seen.append(repr(errors.exceptions))
    return sorted(seen)  # asyncio cancels its set of children in the order of their addresses


async def shields() -> list[str]:
    inner = asyncio.create_task(after(0.02, "inner"))
    try:
        await asyncio.wait_for(asyncio.shield(inner), 0.001)
    except TimeoutError:
        return ["timeout", await inner]
    return ["no timeout"]


async def completes_tasks() -> list[str]:
    tasks = [asyncio.create_task(after(delay, str(delay))) for delay in (0.03, 0.001, 0.06)]
    return [await task for task in asyncio.as_completed(tasks)]


async def queues() -> list[Any]:
    queue: asyncio.Queue[int] = asyncio.Queue(2)

    async def produce() -> None:
        for number in range(5):
            await queue.put(number)

    producer = asyncio.create_task(produce())
    seen = [await queue.get() for _ in range(5)]
    await producer
    try:
        await asyncio.wait_for(queue.get(), 0.001)
    except TimeoutError:
        return [*seen, queue.empty()]
    return seen


async def locks() -> list[str]:
    lock, gate, condition = asyncio.Lock(), asyncio.Event(), asyncio.Condition()
    semaphore, barrier = asyncio.Semaphore(2), asyncio.Barrier(3)
    seen: list[str] = []

    async def worker(name: str) -> None:
        await gate.wait()
        async with lock:
            await asyncio.sleep(0)
            seen.append(f"{name} locks")
        async with semaphore:
            await asyncio.sleep(0)
            seen.append(f"{name} passes")
        place = await barrier.wait()
        seen.append(f"{name} is {place}")
        async with condition:
            await condition.wait_for(lambda: "go" in seen)
            seen.append(f"{name} goes")

    tasks = [asyncio.create_task(worker(name)) for name in "abc"]
    await asyncio.sleep(0.001)
    gate.set()
    await asyncio.sleep(0.001)
    async with condition:
        seen.append("go")
        condition.notify_all()
    await asyncio.gather(*tasks)
    return seen


async def cancels() -> list[str]:
    task = asyncio.create_task(after(5, None), name="sleeper")
    await asyncio.sleep(0)
    task.cancel("enough")
    try:
        await task
    except asyncio.CancelledError as error:
        return [task.get_name(), str(task.cancelled()), *error.args]
    return []


async def generates() -> list[str]:
    seen: list[str] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            for number in range(9):
                yield await after(0.001, number)
        finally:
            await asyncio.sleep(0)
            seen.append("closed")

    async for number in numbers():
        seen.append(str(number))
        if number == 2:
            break
    await asyncio.sleep(0.001)
    return [*seen, "end"]


PLAIN_ASYNCIO: list[Handler] = [
    sleeps, gathers, gathers_a_failure, waits_for_all, waits_for_the_first, waits_for_a_failure, waits_for_a_time,
    waits_for_one, times_out, groups, shields, completes_tasks, queues, locks, cancels, generates,
]  # fmt: skip


@pytest.mark.parametrize("handler", PLAIN_ASYNCIO)
def test_plain_asyncio_works_as_on_its_own_loop(owner: FakeOwner, handler: Handler) -> None:
    with asyncio.Runner(loop_factory=VirtualLoop) as plain:  # asyncio's own, whose time no load of the machine passes
        assert owner.run(handler()) == plain.run(handler())
    assert owner.warnings == []
    assert owner.timers == []


# Without `groups`: a failing TaskGroup makes a cycle itself, the frame of its error's traceback holds the error.
@pytest.mark.parametrize("handler", [handler for handler in PLAIN_ASYNCIO if handler is not groups])
def test_a_finished_invocation_leaves_nothing_to_the_cycle_collector(handler: Handler) -> None:
    def invoke() -> None:
        owner = FakeOwner()
        owner.run(handler())
        del owner.loop, owner.timers  # the owner's own cycles: it holds the loop, which holds it

    gc.freeze()  # what the other tests hold is not looked through each time
    try:
        invoke()
        gc.collect()
        gc.disable()
        invoke()
        unreachable = gc.collect()
    finally:
        gc.enable()
        gc.unfreeze()
    assert unreachable == 0


def test_tasks_left_behind_leave_nothing_to_the_cycle_collector() -> None:
    async def handler() -> None:
        asyncio.create_task(after(60, None))
        asyncio.get_running_loop().call_later(60, print)
        await asyncio.sleep(0)

    test_a_finished_invocation_leaves_nothing_to_the_cycle_collector(handler)


# The same every time.


async def sets() -> list[str]:
    loop = asyncio.get_running_loop()
    tasks = {asyncio.create_task(after(1 + n % 3, None)): n for n in range(40)}
    done, pending = await asyncio.wait(set(tasks), timeout=2)
    children = {asyncio.shield(task): f"shield {tasks[task]}" for task in pending}
    futures = {loop.create_future(): f"future {n}" for n in range(20)}
    order = [*(str(tasks[task]) for task in done), *(children[future] for future in set(children))]
    await asyncio.gather(*pending)
    return order + [futures[future] for future in set(futures)]


def test_sets_of_tasks_and_futures_iterate_alike_in_every_run() -> None:
    first = FakeOwner().run(sets())
    ballast = [object() for _ in range(1001)]  # other addresses
    assert [FakeOwner().run(sets()) for _ in range(3)] == [first] * 3
    assert len(ballast) == 1001


def test_tasks_are_named_by_the_loop_s_own_counter() -> None:
    async def handler() -> list[str]:
        current = asyncio.current_task()
        assert current is not None
        await asyncio.gather(*(named := [asyncio.create_task(after(0, None)) for _ in range(3)]))
        return [current.get_name(), *(task.get_name() for task in named)]

    assert FakeOwner().run(handler()) == FakeOwner().run(handler()) == ["handler", "task-1", "task-2", "task-3"]


def test_as_completed_over_coroutines_is_refused_with_advice(owner: FakeOwner) -> None:
    async def handler() -> None:
        for result in asyncio.as_completed([after(0, 1)]):
            await result

    with pytest.raises(UsageError, match="ensure_future"):
        owner.run(handler())


def test_finished_tasks_are_forgotten(owner: FakeOwner) -> None:
    async def handler() -> None:
        for _ in range(1000):
            await asyncio.create_task(after(0, None))

    owner.begin(handler())
    assert len(owner.loop._tasks or ()) <= 64


# Time.


def test_time_is_that_of_the_last_event_and_never_goes_back(owner: FakeOwner) -> None:
    owner.loop.advance(1005.0)
    owner.loop.advance(1001.0)
    assert owner.loop.time() == 1005.0


def test_timers_are_the_owner_s_and_are_told_of_once(owner: FakeOwner) -> None:
    async def handler() -> None:
        await asyncio.sleep(5)
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.sleep(60), 10)

    owner.begin(handler())
    assert [when for when, _ in owner.timers] == [1005.0]
    owner.fire_next()
    assert owner.cleared == []  # `sleep` cancels its timer after it has fired
    assert sorted(when for when, _ in owner.timers) == [1015.0, 1065.0]
    owner.fire_next()
    assert owner.cleared == [1065.0]


def test_a_timer_of_the_past_is_ready_at_once(owner: FakeOwner) -> None:
    seen: list[str] = []
    owner.loop.call_later(0, seen.append, "now")
    owner.loop.call_at(1.0, seen.append, "long ago").cancel()
    owner.loop.drain()
    assert (seen, owner.timers, owner.cleared) == (["now"], [], [])


def test_the_sleeper_of_a_timer_can_be_failed(owner: FakeOwner) -> None:
    async def handler() -> str:
        try:
            await asyncio.sleep(60)
        except LookupError:
            return "failed"
        return "slept"

    root = owner.begin(handler())
    future = sleeper(owner.timers[0][1])
    assert future is not None
    future.set_exception(LookupError())
    owner.loop.drain()
    assert root.result() == "failed"
    assert sleeper(owner.loop.call_later(1, print)) is None


def test_a_cancelled_timer_that_fires_does_nothing(owner: FakeOwner) -> None:
    handle = owner.loop.call_later(1, pytest.fail)
    handle.cancel()
    owner.loop.fire(handle)
    owner.loop.drain()
    assert owner.loop.is_quiet


# Entries.


def test_an_entry_is_completed_by_its_owner(owner: FakeOwner) -> None:
    entry = owner.loop.entry_future()

    async def handler() -> str:
        return await entry

    root = owner.begin(handler())
    assert owner.loop.is_quiet
    entry.set_result("value")
    assert not owner.loop.is_quiet
    owner.loop.drain()
    assert root.result() == "value"
    assert owner.cancelled == []


def test_an_entry_that_the_handler_gives_up_is_told_of_once(owner: FakeOwner) -> None:
    entry = owner.loop.entry_future()

    async def handler() -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(entry, 5)
        entry.cancel()

    owner.run(handler())
    assert owner.cancelled == [entry]


def test_entries_hash_by_number() -> None:
    def numbers() -> list[int]:
        loop = FakeOwner().loop
        return [hash(loop.entry_future()), hash(loop.create_future()), hash(loop.entry_future())]

    assert numbers() == numbers() == [1, 2, 3]


# What is refused.


def test_io_threads_and_processes_are_refused_with_advice(owner: FakeOwner) -> None:
    async def handler() -> list[str]:
        loop = asyncio.get_running_loop()
        asks: dict[str, Callable[[], Awaitable[Any] | object]] = {
            "create_connection": lambda: asyncio.open_connection("localhost", 1),
            "create_server": lambda: asyncio.start_server(print, "localhost", 1),
            "getaddrinfo": lambda: loop.getaddrinfo("localhost", 1),
            "run_in_executor": lambda: loop.run_in_executor(None, print),
            "run_in_executor ": lambda: asyncio.to_thread(print),
            "subprocess_exec": lambda: asyncio.create_subprocess_exec("true"),
            "subprocess_shell": lambda: asyncio.create_subprocess_shell("true"),
            "add_reader": lambda: loop.add_reader(0, print),
            "add_signal_handler": lambda: loop.add_signal_handler(2, print),
            "run_forever": loop.run_forever,
            "run_until_complete": lambda: loop.run_until_complete(loop.create_future()),
            "stop": loop.stop,
            "close": loop.close,
            "set_debug": lambda: loop.set_debug(True),
            "set_task_factory": lambda: loop.set_task_factory(None),
        }
        refused: list[str] = []
        for name, ask in asks.items():
            with pytest.raises(UsageError, match=rf"{name.strip()} in a handler.*ctx\.run\(\)"):
                asked = ask()
                if isinstance(asked, Awaitable):
                    await asked
            refused.append(name)
        return refused

    assert len(owner.run(handler())) == 15


def test_every_method_of_a_loop_is_defined_or_refused() -> None:
    inherited = [
        name
        for name in dir(asyncio.AbstractEventLoop)
        if not name.startswith("_") and name not in vars(DeterministicLoop)
    ]
    assert inherited == []


def test_another_thread_that_calls_in_is_told_of_and_runs_nothing(owner: FakeOwner) -> None:
    errors: list[BaseException] = []

    def foreign() -> None:
        try:
            owner.loop.call_soon_threadsafe(pytest.fail)
        except UsageError as error:
            errors.append(error)

    thread = threading.Thread(target=foreign, name="foreign")
    thread.start()
    thread.join()
    owner.loop.drain()
    assert owner.foreign_calls == ["foreign"]
    assert "ctx.run()" in str(errors[0])


def test_the_handler_itself_may_call_threadsafe(owner: FakeOwner) -> None:
    async def handler() -> str:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()
        loop.call_soon_threadsafe(future.set_result, "done")
        return await future

    assert owner.run(handler()) == "done"
    assert owner.foreign_calls == []


def test_a_thread_that_comes_too_late_is_ignored(owner: FakeOwner) -> None:
    owner.run(after(0, None))
    owner.loop.call_soon_threadsafe(pytest.fail)
    assert owner.foreign_calls == []


# What handlers raise.


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_an_exit_does_not_leave_the_loop(owner: FakeOwner, error: type[BaseException]) -> None:
    async def leave() -> None:
        raise error()

    async def handler() -> str:
        asyncio.create_task(leave())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return "went on"

    root = owner.begin(handler())
    assert root.result() == "went on"
    assert type(owner.loop.escaped) is error


def test_a_failure_in_a_callback_is_a_warning(owner: FakeOwner) -> None:
    def fail() -> None:
        raise LookupError("x")

    owner.loop.call_soon(fail)
    owner.loop.drain()
    [(message, error)] = owner.warnings
    assert "Exception in callback" in message
    assert isinstance(error, LookupError)


def test_a_failure_that_nobody_retrieved_is_a_warning(owner: FakeOwner) -> None:
    async def handler() -> None:
        asyncio.create_task(failing(0))
        await asyncio.sleep(0)

    owner.run(handler())
    [(message, error)] = owner.warnings
    assert message == "Task exception was never retrieved"
    assert isinstance(error, LookupError)


# The end of an invocation.


def test_finish_cancels_what_the_handler_left_and_names_it(owner: FakeOwner) -> None:
    seen: list[str] = []

    async def child() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            seen.append("ended")

    async def handler() -> None:
        asyncio.create_task(child(), name="left behind")
        await asyncio.create_task(after(0, None))

    root = owner.begin(handler())
    assert root.done()
    assert owner.loop.unfinished() == ["left behind"]
    owner.loop.finish()
    assert owner.loop.unfinished() == ["left behind"]
    assert (seen, owner.timers, owner.loop.is_closed()) == (["ended"], [], True)


def test_finish_closes_what_resists(owner: FakeOwner) -> None:
    seen: list[str] = []

    async def child() -> None:
        try:
            while True:
                with suppress(asyncio.CancelledError):
                    await asyncio.sleep(60)
        finally:
            seen.append("closed")

    async def handler() -> None:
        asyncio.create_task(child())
        await asyncio.sleep(0)

    owner.run(handler())
    assert seen == ["closed"]


def test_after_the_end_nothing_runs(owner: FakeOwner) -> None:
    owner.run(after(1, None))
    owner.loop.call_soon(pytest.fail)
    owner.loop.fire(owner.loop.call_later(1, pytest.fail))
    owner.loop.drain()
    assert owner.loop.is_quiet
    assert owner.timers == []


def test_drop_closes_coroutines_newest_first_and_starts_nothing(owner: FakeOwner) -> None:
    seen: list[str] = []

    async def never() -> None:
        pytest.fail("a dropped execution started something")

    async def child(name: str) -> None:
        try:
            await asyncio.sleep(60)
        except BaseException as error:
            seen.append(f"{name} {type(error).__name__}")
            raise
        finally:
            task = asyncio.create_task(never(), name="late")
            task.add_done_callback(print)
            asyncio.get_running_loop().call_soon(pytest.fail)
            owner.loop.entry_future().cancel()
            await task
            pytest.fail("an await did not end the block")

    async def handler() -> None:
        tasks = [asyncio.create_task(child(name)) for name in "ab"]
        try:
            await asyncio.gather(*tasks)
        finally:
            seen.append("handler")

    owner.begin(handler())
    timers = list(owner.timers)
    owner.loop.drop()
    owner.loop.drop()
    assert seen == ["b GeneratorExit", "a GeneratorExit", "handler"]
    assert (owner.timers, owner.cleared, owner.cancelled, owner.warnings) == (timers, [], [], [])


def test_drop_before_the_first_step_runs_nothing(owner: FakeOwner) -> None:
    async def handler() -> None:
        pytest.fail("started")

    owner.loop.start(handler())
    owner.loop.drop()
    owner.loop.drain()


def test_a_finally_that_fails_does_not_disturb_a_drop(owner: FakeOwner) -> None:
    async def handler() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise SystemExit

    owner.begin(handler())
    owner.loop.drop()
    assert owner.warnings == []


def test_a_coroutine_that_ignores_its_end_is_survived_and_named(owner: FakeOwner) -> None:
    closes: list[int] = []

    async def stubborn() -> None:
        while len(closes) < 500:
            try:
                await asyncio.sleep(60)
            except BaseException:
                closes.append(1)

    owner.begin(stubborn())
    owner.loop.drop()
    [(message, _)] = owner.warnings
    assert message.startswith("handler awaits again")
    assert len(closes) == 100


# Async generators.


def test_drop_ends_async_generators(owner: FakeOwner) -> None:
    seen: list[str] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            seen.append("closing")
            await asyncio.sleep(60)
            seen.append("not reached")

    async def handler() -> None:
        async for _ in numbers():
            await asyncio.sleep(60)

    owner.begin(handler())
    owner.loop.drop()
    assert seen == ["closing"]


@pytest.mark.skipif(sys.version_info < (3, 13), reason="older Pythons do not close a generator that itself waits")
def test_drop_ends_async_generators_that_wait(owner: FakeOwner) -> None:
    seen: list[str] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            await asyncio.sleep(60)
            yield 1
        finally:
            seen.append("closing")

    async def handler() -> None:
        async for _ in numbers():
            pytest.fail("woke up")

    owner.begin(handler())
    owner.loop.drop()
    assert seen == ["closing"]


def test_a_generator_that_the_collector_finds_is_ended_with_its_invocation(owner: FakeOwner) -> None:
    seen: list[str] = []

    async def numbers(itself: list[Any]) -> AsyncIterator[int]:
        try:
            yield len(itself)
        finally:
            seen.append("closed")

    async def handler() -> None:
        itself: list[Any] = []
        generator = numbers(itself)
        itself.append(generator)
        await anext(generator)
        del generator, itself
        await asyncio.sleep(1)

    gc.disable()  # else it may come of itself, before the generator is garbage
    try:
        root = owner.begin(handler())
        gc.collect()
    finally:
        gc.enable()
    assert seen == []
    owner.fire_next()
    assert root.done()
    owner.loop.finish()
    assert seen == ["closed"]


def test_the_host_s_loop_hears_nothing_of_a_handler_s_generators(owner: FakeOwner) -> None:
    heard: list[object] = []
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(heard.append, heard.append)
    try:
        owner.run(generates())
        assert sys.get_asyncgen_hooks() == (heard.append, heard.append)
    finally:
        sys.set_asyncgen_hooks(*hooks)
    assert heard == []


# The host.


def test_context_variables_are_fresh_in_each_invocation() -> None:
    variable = contextvars.ContextVar("variable", default="fresh")
    variable.set("host's")

    async def child() -> str:
        return variable.get()

    async def handler() -> list[str]:
        seen = [variable.get()]
        variable.set("handler's")
        return [*seen, await asyncio.create_task(child()), await child()]

    for _ in range(2):
        assert FakeOwner().run(handler()) == ["fresh", "handler's", "handler's"]
    assert variable.get() == "host's"


async def drives_from_a_callback_and_a_task() -> list[list[Any]]:
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    results = [FakeOwner().run(groups())]
    done: asyncio.Future[list[str]] = loop.create_future()
    loop.call_soon(lambda: done.set_result(FakeOwner().run(groups())))
    results.append(await done)
    assert asyncio.get_running_loop() is loop
    assert asyncio.current_task() is task
    return results


def test_any_asyncio_host_drives_it_and_finds_its_own_loop_and_task_again() -> None:
    here = FakeOwner().run(groups())
    assert asyncio._get_running_loop() is None
    assert asyncio.run(drives_from_a_callback_and_a_task()) == [here, here]
    with asyncio.Runner(debug=True) as runner:
        assert runner.run(drives_from_a_callback_and_a_task()) == [here, here]


def test_a_uvloop_host_drives_it_too() -> None:
    pytest.importorskip("uvloop")
    uvloop: Any = importlib.import_module("uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        results = runner.run(drives_from_a_callback_and_a_task())
    assert results == [FakeOwner().run(groups())] * 2


def test_the_handler_sees_its_own_loop_and_task(owner: FakeOwner) -> None:
    async def handler() -> tuple[bool, bool, str]:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        return loop is owner.loop, loop.is_running(), task.get_name()

    async def host() -> tuple[bool, bool, str]:
        return owner.run(handler())

    assert asyncio.run(host()) == (True, True, "handler")
    assert not owner.loop.is_running()


def test_it_cannot_be_driven_from_within(owner: FakeOwner) -> None:
    async def handler() -> None:
        owner.loop.drain()

    with pytest.raises(AssertionError, match="within the handler"):
        owner.run(handler())


@pytest.mark.slow
def test_debug_mode_of_the_environment_changes_nothing() -> None:
    program = "from test_loop import FakeOwner, locks; print(FakeOwner().run(locks()))"

    def output_of(*options: str) -> str:
        command = [sys.executable, *options, "-c", program]
        path = os.pathsep.join(map(str, Path(__file__).parents[:2]))
        environment = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert "RuntimeWarning" not in done.stderr
        return done.stdout

    assert output_of() == output_of("-X", "dev") != ""
