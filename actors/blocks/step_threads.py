"""Step threads: the thread pool of a host for sync steps, with a fair share for each object and type.

Owns the places, the order of waiting steps, and the threads of steps that were given up. Does not own time-outs and
retries (`steps`).

The number of steps that run at once is limited, and each object and each type has at most a share of the places: if the
steps of a type hang, steps of other types go on. Waiting steps get places by turns among types, and among the objects
of a type.

A step whose wait has ended (its time-out, a cancel, the end of its handler) gives its place up: its outcome is ignored,
but Python cannot end its thread, so the thread is abandoned and a new thread takes its place. The number of abandoned
threads is limited, for a type and an object more tightly; beyond it each such step keeps its place until it ends.

Invariants:
    1. No more calls work than there are places, and no more are abandoned than `ABANDONED_MAX`.
    2. A call begins at most once; a call that was given up before it began never begins.
"""

import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, NamedTuple, ParamSpec, TypeVar

from journal.clock import boot_seconds

P = ParamSpec("P")
T = TypeVar("T")

STEP_THREADS: Final = 32
"""Sync steps that run at once in one host; further steps wait."""
OF_AN_OBJECT: Final = 16
"""The share of one object, or of one invocation of a service."""
OF_A_TYPE: Final = 24
"""The share of one type: the rest is for other types."""
ABANDONED_MAX: Final = 256
"""Most abandoned threads at once."""
ABANDONED_OF_A_TYPE: Final = 192
"""Most abandoned threads of one type; for an object the limit is its number of places."""
SAY_AFTER: Final = 5.0
"""Seconds that a step waits for a place before its host logs the holders of all places."""
NAME_MAX: Final = 200
"""Most characters of the names of a step and its object."""
NAMED_MAX: Final = 8
"""Most steps named in one line; the rest is counted."""


class Holder(NamedTuple):
    """The step that a call belongs to, and its object."""

    type: str
    object: str
    """The object, or the invocation of a service."""
    target: str
    step: str

    def __str__(self) -> str:
        named = f"{self.step!r} of {self.target}"[:NAME_MAX]
        return named.encode("utf-8", "backslashreplace").decode()


ALL: Final = "this host"
_NOBODY: Final = Holder("", "", "", "")
"""The holder of calls outside of any share: they are limited by the number of places alone."""


class _PoolFuture(Future[Any]):
    """A call that waits, works, or is abandoned."""

    def __init__(self, pool: "Threads", holder: Holder, work: Callable[[], Any]) -> None:
        super().__init__()
        self.holder, self.work, self.since = holder, work, boot_seconds()
        """The time since when it waits, and later since when it works."""
        self.is_given_up = False
        self._pool = pool

    def cancel(self) -> bool:
        """Give the call up; asyncio calls this when the wait for it has ended."""
        is_cancelled = super().cancel()
        if not is_cancelled:
            self._pool.give_up(self)
        return is_cancelled

    def __str__(self) -> str:
        return f"{self.holder}, for {boot_seconds() - self.since:.0f} s"


class _Of(Executor):
    """The pool, for the calls of one holder."""

    def __init__(self, pool: "Threads", holder: Holder) -> None:
        self._pool, self._holder = pool, holder

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        return self._pool.put(self._holder, partial(fn, *args, **kwargs))


class Threads(Executor):
    """A pool of daemon threads: unlike with `ThreadPoolExecutor`, a process can end while a step hangs."""

    def __init__(self, count: int = STEP_THREADS, of_an_object: int = OF_AN_OBJECT, of_a_type: int = OF_A_TYPE) -> None:
        self._count, self._of_an_object, self._of_a_type = count, of_an_object, of_a_type
        self._lock = threading.Lock()
        self._is_shut = False
        self._started = self._idle = 0
        """The number of threads ever started, and the number of idle threads that no call is coming for."""
        self._begun: SimpleQueue[_PoolFuture | None] = SimpleQueue()
        self._working: dict[_PoolFuture, None] = {}
        self._abandoned: dict[_PoolFuture, None] = {}
        self._by_object: Counter[str] = Counter()
        self._by_type: Counter[str] = Counter()
        self._waiting: OrderedDict[str, OrderedDict[str, deque[_PoolFuture]]] = OrderedDict()
        """Waiting calls by type, then by object."""
        self._said: set[str] = set()

    def of(self, holder: Holder) -> Executor:
        """Return the pool for the calls of one holder."""
        return _Of(self, holder)

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Call `fn` in a thread, as soon as one is free."""
        return self.put(_NOBODY, partial(fn, *args, **kwargs))

    def put(self, holder: Holder, work: Callable[[], Any]) -> Future[Any]:
        """Call `work` in a thread, as soon as there is a place for its holder."""
        call = _PoolFuture(self, holder, work)
        with self._lock:
            if self._is_shut:
                raise RuntimeError("the host has ended")
            if self._shortage(holder) is None:
                self._begin(call)
            else:
                self._waiting.setdefault(holder.type, OrderedDict()).setdefault(holder.object, deque()).append(call)
        return call

    def give_up(self, call: _PoolFuture) -> None:
        """Abandon a call that has a place, unless too many are abandoned already."""
        with self._lock:
            if call in self._working:
                call.is_given_up = True
                self._abandon()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls, and let idle threads end; do not wait for working threads."""
        with self._lock:
            self._is_shut = True
            self._waiting.clear()
            for _ in range(self._idle + len(self._working)):
                self._begun.put(None)

    @property
    def abandoned(self) -> list[str]:
        """Return the abandoned steps, each with its age, oldest first."""
        with self._lock:
            return [str(call) for call in self._abandoned]

    def look(self) -> list[str]:
        """Return a sentence for each lasting shortage that was not reported before, with the steps that cause it."""
        now, lasting, sentences = boot_seconds(), set[str](), list[str]()
        with self._lock:
            for objects in self._waiting.values():
                for calls in objects.values():
                    first = next((call for call in calls if not call.cancelled()), None)
                    short = None if first is None else self._shortage(first.holder)
                    if first is None or short is None or now - first.since < SAY_AFTER or short in lasting:
                        continue
                    holders = [call for call in self._working if short in (ALL, call.holder.type, call.holder.object)]
                    if all(now - call.since >= SAY_AFTER for call in holders):
                        lasting.add(short)
                        if short not in self._said:
                            sentences.append(_shortage_of(short, holders))
            self._said = lasting
        return sentences

    # With the lock

    def _shortage(self, holder: Holder) -> str | None:
        """Return the name of the share that has no free place for this holder, None if there is a place."""
        if len(self._working) >= self._count:
            return ALL
        if holder.type and self._by_type[holder.type] >= self._of_a_type:
            return holder.type
        if holder.type and self._by_object[holder.object] >= self._of_an_object:
            return holder.object
        return None

    def _begin(self, call: _PoolFuture) -> None:
        if not call.set_running_or_notify_cancel():
            return
        call.since = boot_seconds()
        self._working[call] = None
        self._by_object[call.holder.object] += 1
        self._by_type[call.holder.type] += 1
        self._begun.put(call)
        if self._idle:
            self._idle -= 1
        else:
            self._started += 1
            threading.Thread(target=self._work, name=f"perdure-step-{self._started}", daemon=True).start()

    def _end(self, call: _PoolFuture) -> None:
        del self._working[call]
        for counter, name in ((self._by_object, call.holder.object), (self._by_type, call.holder.type)):
            counter[name] -= 1
            if not counter[name]:
                del counter[name]

    def _abandon(self) -> None:
        """Free the places of calls that were given up, and abandon their threads, up to the limits."""
        for call in [call for call in self._working if call.is_given_up and self._may_abandon(call.holder)]:
            if self._may_abandon(call.holder):
                self._end(call)
                self._abandoned[call] = None
        self._fill()

    def _may_abandon(self, holder: Holder) -> bool:
        of_object = sum(call.holder.object == holder.object for call in self._abandoned)
        of_type = sum(call.holder.type == holder.type for call in self._abandoned)
        return of_object < self._of_an_object and of_type < ABANDONED_OF_A_TYPE and len(self._abandoned) < ABANDONED_MAX

    def _fill(self) -> None:
        while (call := self._next()) is not None:
            self._begin(call)

    def _next(self) -> _PoolFuture | None:
        """Remove and return the call whose turn is next, if there is a place for it."""
        if len(self._working) >= self._count:
            return None
        for type_, objects in self._waiting.items():
            for object_, calls in objects.items():
                if self._shortage(calls[0].holder) in (type_, object_):
                    if self._by_type[type_] >= self._of_a_type and type_:
                        break
                    continue
                call = calls.popleft()
                self._turn(type_, object_)
                return call
        return None

    def _turn(self, type_: str, object_: str) -> None:
        """Move on to the next type, and within this type to the next object."""
        objects = self._waiting[type_]
        objects.move_to_end(object_)
        self._waiting.move_to_end(type_)
        if not objects[object_]:
            del objects[object_]
        if not objects:
            del self._waiting[type_]

    # In the threads

    def _work(self) -> None:
        goes_on = True
        while goes_on and (call := self._begun.get()) is not None:
            try:
                call.set_result(call.work())
            except BaseException as error:  # noqa: BLE001 - it is the caller's
                call.set_exception(error)
            goes_on = self._ended(call)
            del call  # otherwise an idle thread keeps it alive

    def _ended(self, call: _PoolFuture) -> bool:
        """Give the call's place to the next call, and return whether its thread still belongs to the pool."""
        with self._lock:
            if call in self._abandoned:
                del self._abandoned[call]
                self._abandon()
                return False
            self._end(call)
            self._idle += 1
            self._fill()
            return True


def _shortage_of(short: str, holders: list[_PoolFuture]) -> str:
    named = ", ".join(str(call) for call in holders[:NAMED_MAX])
    rest = f" and {len(holders) - NAMED_MAX} more" if len(holders) > NAMED_MAX else ""
    return (
        f"sync steps of {short} wait for a thread: all {len(holders)} that it may have hang, {named}{rest}. A time-out "
        'gives them up: ctx.run(..., timeout="10s")'
    )
