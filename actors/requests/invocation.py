"""Invocation: the caller's handle of one invocation, to await, ask and pickle.

Nothing of an outcome is kept here. An `Invocation` is an id and its source; each wait gets the outcome decoded anew,
since one exception raised in two places would mix their tracebacks.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, Protocol, TypeVar, overload

from actors.errors import UsageError
from actors.loop.coroutines import Taskable
from actors.loop.loop import running_loop
from actors.policy import Duration, seconds
from actors.stored import pinned, public
from actors.values import outcomes
from journal.ids import shard_in
from journal.records import EventKind, pack
from journal.store import Bring

from . import current

if TYPE_CHECKING:
    from ray import ObjectRef  # the one name of Ray outside its file: the type that users see

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
D = TypeVar("D")

NAMED_MAX = 5
"""A time-out names so many of the invocations that are open, and counts the rest."""


_ENTRY_MAX = 999_999_999


_FOR_RAY: Final = ": give Ray ref.to_object_ref()"
_OF_FUTURES: Final = frozenset({"add_done_callback", "done", "cancelled", "exception", "remove_done_callback"})


@pinned("NoFutureError")
class NoFutureError(UsageError, AttributeError):
    """An invocation was used as a future of asyncio's."""


class _Named(type):
    """A metaclass whose `repr` adds advice: Ray names an object that it does not accept by its class."""

    def __repr__(cls) -> str:
        asked_by = sys._getframe(1).f_globals.get("__name__", "")  # pyright: ignore[reportPrivateUsage]
        return super().__repr__() + (_FOR_RAY if str(asked_by).partition(".")[0] == "ray" else "")


class Waiter(Protocol):
    """The waiting side on the running loop: an execution whose handler waits, or a driver's client."""

    def wait(self, invocation: Invocation[Any], /) -> Generator[Any, Any, Any]:
        """Wait for the end; return the result, or raise the failure. May be done again, and at once."""
        ...

    def wait_accepted(self, invocation: Invocation[Any], /) -> Generator[Any, Any, None]:
        """Wait until the store has it."""
        ...


class Source(Waiter, Protocol):
    """A driver's client, which knows outcomes outside of handlers."""

    def ready(self, invocations: Sequence[Invocation[Any]], count: int, timeout_s: float | None, /) -> set[str]:
        """Block until so many have ended or the time is over; return the ids of all that have."""
        ...

    def result(self, invocation: Invocation[Any], /) -> Any:
        """Block until it has ended; return the result, or raise the failure."""
        ...

    def accepted(self, invocation: Invocation[Any], timeout_s: float | None, /) -> bool:
        """Block until the store has it or the time is over; return whether it has."""
        ...

    def status(self, invocation: Invocation[Any], /) -> str:
        """Ask the store where it stands."""
        ...

    def peek(self, invocation: Invocation[Any], default: Any, /) -> Any:
        """Ask the store for the result, or raise the failure; return `default` while it is open."""
        ...

    def bring(self, event: Bring, entry: str, /) -> Accepted:
        """Bring an event to an invocation; it leaves in the order of these calls."""
        ...

    def object_ref(self, invocation: Invocation[Any], /) -> Any:
        """Return a Ray `ObjectRef` of the outcome."""
        ...


@public
class Invocation(Taskable[R_co], Generic[R_co], metaclass=_Named):
    """One durable request to run one handler; `await` it, or ask for its `result()`.

    It may be awaited any number of times, from any loop; ending a wait does not end the invocation. It is equal to
    every other `Invocation` of the same id, pickles as that id, and in another process asks the client there.

    `asyncio.gather` awaits equal ones once. A second request with the same idempotency key and other arguments is
    refused, under the same id: await each by itself, or by `actors.get`, to hear of it.
    """

    __slots__ = ("__weakref__", "_id", "_source", "kept")

    def __init__(self, id: str, source: Waiter | None = None, kept: Any = None) -> None:
        self._id = id
        self._source = source
        self.kept = kept
        """An object of its source: as long as the invocation is referenced, its outcome is at hand."""

    @property
    def id(self) -> str:
        """The stable id, unique in the namespace."""
        return self._id

    def __await__(self) -> Generator[Any, Any, R_co]:
        return self._waiter().wait(self)

    def result(self, timeout: Duration | None = None) -> R_co:
        """Return the result, or raise the failure, blocking until there is one.

        Raises:
            TimeoutError: it has not ended in time; it goes on.
            UsageError: an event loop runs here: await the invocation instead.
        """
        _refuse_to_block("result()")
        source = self._source_here()
        if timeout is not None and not source.ready([self], 1, seconds(timeout)):
            raise _too_late([self], timeout)
        return source.result(self)

    def status(self) -> str:
        """Return its status, as the store knows it now; after a failed attempt also which, why, and the time of the
        next.

        It begins with `open`, `asleep`, `paused`, `succeeded`, `failed` or `submitting`.
        """
        _refuse_in_a_handler("status()")
        return self._source_here().status(self)

    @overload
    def peek(self) -> R_co | None: ...
    @overload
    def peek(self, default: D) -> R_co | D: ...
    def peek(self, default: Any = None) -> Any:
        """Return the result if it has ended, or raise its failure; `default` while it is open. Asks the store, once.

        Raises:
            NotFoundError: the invocation is not known.
            UsageError: this is a handler, whose replay may see another answer: await it.
        """
        _refuse_in_a_handler("peek()")
        return self._source_here().peek(self, default)

    def accepted(self) -> Accepted:
        """Return the acknowledgement that the store has the request on disk: `await` it, or ask for its `result()`."""
        return Accepted(self)

    def signal(self, name: str, value: Any) -> Accepted:
        """Send a signal: its handler gets this value from `ctx.signal(name)`, when it asks.

        It leaves in the order of all requests sent here, and may come early; a signal to an ended invocation does
        nothing. In a handler it leaves with the next commit. `await` the returned acknowledgement, or ask for its
        `result()`, to wait until the store has it.

        Raises:
            UsageError: the name is no text, or the value cannot be sent.
            NotFoundError: the invocation is not known; raised by a wait for the acknowledgement, else logged.
        """
        if not isinstance(name, str) or not name:  # pyright: ignore[reportUnnecessaryIsInstance]  # users without a checker
            raise UsageError(f"a signal has a name: ref.signal('paid', value), not ref.signal({name!r}, ...)")
        data = pack([name], (outcomes.encoded_value(value),))
        return self._bring(EventKind.SIGNAL, f"signal {name} to {self._id}", data)

    def cancel(self) -> Accepted:
        """Cancel the invocation: every open wait of its handler raises `Cancelled`, once, and the handler may
        compensate.

        If the handler does not catch the error, it is the outcome. A handler that catches it and goes on, as
        `except Exception` and `gather(return_exceptions=True)` do by mistake, may go on, and is named once in its
        host's log: the next wait does not raise the error again, so that a handler can compensate. Its calls are
        cancelled as well, its sends are not. A queued or delayed invocation never begins; a paused one ends at once; a
        finished one stays as it is. The cancel leaves in the order of all requests sent here, in a handler with the
        next commit. `await` the returned acknowledgement, or ask for its `result()`, to wait until the store has it:
        the handler may not have heard of it yet.

        Raises:
            NotFoundError: the invocation is not known; raised by a wait for the acknowledgement, else logged.
        """
        return self._bring(EventKind.CANCEL, f"cancel {self._id}")

    def kill(self) -> Accepted:
        """End the invocation and its calls at once, with `Cancelled`: handlers are not asked, nothing is compensated.

        For invocations that do not heed `cancel()`. Otherwise as `cancel`.
        """
        return self._bring(EventKind.KILL, f"kill {self._id}")

    def resume(self) -> Accepted:
        """Let a paused invocation go on, by replay of its journal, with the current code and a new count of attempts.

        Events that came meanwhile are delivered first, in order. An invocation that fails again and again, itself or in
        a step, tries again without the rest of its back-off; an action that is under way ends first. Any other
        invocation is left as it is. The request leaves, is awaited and fails as a signal does.
        """
        return self._bring(EventKind.RESUME, f"resume {self._id}")

    def restart(self, from_entry: int = 0) -> Accepted:
        """Let a paused invocation begin again in place, keeping the first `from_entry` entries of its journal.

        The completions of these stay; all later entries are made anew: steps run again, calls are new invocations (the
        old ones go on, unheard), awakeables have new ids. Signals are delivered again, and fields have the values that
        the invocation found at first. Otherwise as `resume`; an invocation with a shorter journal stays paused, and its
        status says so.

        Raises:
            UsageError: this is no entry's index.
        """
        if not isinstance(from_entry, int) or isinstance(from_entry, bool) or not 0 <= from_entry <= _ENTRY_MAX:  # pyright: ignore[reportUnnecessaryIsInstance]  # users without a checker
            raise UsageError(f"restart(from_entry={from_entry!r}): it is the index of an entry, counted from 0")
        return self._bring(EventKind.RESTART, f"restart {self._id} from {from_entry}", index=from_entry)

    def _bring(self, kind: EventKind, entry: str, data: bytes = b"", index: int = 0) -> Accepted:
        execution = current.execution()
        source = self._source_here() if execution is None else execution
        made = Foreign if execution is None and self.is_foreign else Bring
        return source.bring(made(shard_in(self._id), self._id, kind, index, data), entry)

    def to_object_ref(self) -> ObjectRef[R_co]:
        """Return a Ray `ObjectRef` of the result, for `ray.get`, `ray.wait` and arguments of tasks."""
        _refuse_in_a_handler("to_object_ref()")
        return self._source_here().object_ref(self)

    def _waiter(self) -> Waiter:
        # In a handler each wait is an entry of its journal, wherever the invocation came from.
        execution = current.execution()
        return self._source_here() if execution is None else execution

    def _source_here(self) -> Any:
        if self._source is None or current.in_step.get() is not None:
            return current.caller()
        return self._source

    @property
    def is_foreign(self) -> bool:
        """Whether it came here as a pickle: its start may come later."""
        return self._source is None

    def __eq__(self, other: object) -> bool:
        return self._id == other._id if isinstance(other, Invocation) else NotImplemented

    def __hash__(self) -> int:
        # Not hash(str), which differs from process to process: a replay iterates over a set in the same order.
        return zlib.crc32(self._id.encode("utf-8", "surrogatepass"))

    def __repr__(self) -> str:
        # Ray names an object that it does not accept by its repr, and calls nothing else of ours before.
        asked_by = sys._getframe(1).f_globals.get("__name__", "")  # pyright: ignore[reportPrivateUsage]
        return f"<Invocation {self._id}{_FOR_RAY if str(asked_by).partition('.')[0] == 'ray' else ''}>"

    if not TYPE_CHECKING:  # a checker says it of itself

        def __getattr__(self, name: str) -> Any:
            if name in _OF_FUTURES:
                raise NoFutureError(
                    f"an Invocation has no {name}(): await it, or make a task of it, asyncio.create_task(ref)"
                )
            raise AttributeError(f"an Invocation has no attribute {name!r}", name=name, obj=self)

    def __reduce__(self) -> tuple[type[Invocation[Any]], tuple[str]]:
        return Invocation, (self._id,)


@dataclass(slots=True)
class Foreign(Bring):
    """An event for an invocation that came here from another program."""


@pinned("Accepted")
class Accepted(Taskable[None]):
    """The acknowledgement of one invocation: from then on it will be executed, whichever process dies."""

    __slots__ = ("_invocation",)

    def __init__(self, invocation: Invocation[Any]) -> None:
        self._invocation = invocation

    def __await__(self) -> Generator[Any, Any, None]:
        return self._invocation._waiter().wait_accepted(self._invocation)  # pyright: ignore[reportPrivateUsage]  # one file

    def result(self, timeout: Duration | None = None) -> None:
        """Block until the store has the request on disk.

        Raises:
            TimeoutError: it was not acknowledged in time; it may be yet.
            UnavailableError: it was refused (`OverloadedError`), or whether the store has it cannot be known.
        """
        _refuse_to_block("accepted().result()")
        source = self._invocation._source_here()  # pyright: ignore[reportPrivateUsage]  # one file
        if not source.accepted(self._invocation, None if timeout is None else seconds(timeout)):
            raise TimeoutError(f"{self._invocation.id} was not acknowledged within {timeout}; it may be yet")


@overload
def get(refs: Invocation[R], *, timeout: Duration | None = None) -> R: ...
@overload
def get(refs: Sequence[Invocation[R]], *, timeout: Duration | None = None) -> list[R]: ...
@public
def get(refs: Invocation[Any] | Sequence[Invocation[Any]], *, timeout: Duration | None = None) -> Any:
    """Return the result of one invocation, or the results of many in their order, as `ray.get` does.

    Raises:
        TimeoutError: some have not ended in time; it names them, and they go on.
        UsageError: an event loop runs here: await them instead, many with `asyncio.gather`.
    """
    if isinstance(refs, Invocation):
        return refs.result(timeout)
    _refuse_to_block("get()")
    invocations = _checked(refs)
    if timeout is not None and invocations:
        ended = _source_of(invocations).ready(invocations, len(set(invocations)), seconds(timeout))
        still_open = [ref for ref in invocations if ref.id not in ended]
        if still_open:
            raise _too_late(still_open, timeout)
    return [ref.result() for ref in invocations]


@public
def wait(
    refs: Sequence[Invocation[R]], *, num_returns: int = 1, timeout: Duration | None = None
) -> tuple[list[Invocation[R]], list[Invocation[R]]]:
    """Block until `num_returns` have ended or the time is over; return those that have and the rest, as `ray.wait`.

    The first list has at most `num_returns`; both keep the order given.

    Raises:
        UsageError: an event loop runs here, an invocation is given twice, or there are fewer than `num_returns`.
    """
    _refuse_to_block("wait()")
    invocations = _checked(refs)
    if len(set(invocations)) != len(invocations):
        raise UsageError("wait() takes each invocation once")
    if not 1 <= num_returns <= len(invocations):
        raise UsageError(f"wait(num_returns={num_returns}) of {len(invocations)} invocations")
    ended = _source_of(invocations).ready(invocations, num_returns, None if timeout is None else seconds(timeout))
    ready = [ref for ref in invocations if ref.id in ended][:num_returns]
    taken = set(ready)
    return ready, [ref for ref in invocations if ref not in taken]


def _checked(refs: Sequence[Invocation[R]]) -> list[Invocation[R]]:
    found = list(refs)  # it may be a generator
    for ref in found:
        if not isinstance(ref, Invocation):  # pyright: ignore[reportUnnecessaryIsInstance]  # users without a checker
            raise UsageError(f"an Invocation is wanted, as .remote() returns it, not {ref!r}")
    return found


def _source_of(invocations: Sequence[Invocation[Any]]) -> Source:
    return invocations[0]._source_here()  # pyright: ignore[reportPrivateUsage]  # one file


def _refuse_to_block(what: str) -> None:
    # As Ray Serve does, in notebooks too: `await` works there.
    if running_loop() is not None:
        raise UsageError(f"{what} blocks, and an event loop runs here: await the invocation instead")


def _refuse_in_a_handler(what: str) -> None:
    if current.execution() is not None:
        raise UsageError(f"{what} is not replayed, so it has no place in a handler: await the invocation instead")


def _described(ref: Invocation[Any]) -> tuple[str, str]:
    """Return an invocation's address, handler and last failure, as far as its source knows them."""
    described = getattr(ref.kept, "described", None)
    return (ref.id, "") if described is None else described(ref.id)


def _too_late(invocations: Sequence[Invocation[Any]], timeout: Duration) -> TimeoutError:
    described = [_described(ref) for ref in invocations[:NAMED_MAX]]
    named = ", ".join(name for name, _ in described)
    last = "".join(f". The last that is known: {failure}" for _, failure in described if failure)
    rest = f" and {len(invocations) - NAMED_MAX} more" if len(invocations) > NAMED_MAX else ""
    verb = "have" if len(invocations) > 1 else "has"
    return TimeoutError(f"{named}{rest} {verb} not ended within {timeout}; waiting ended, the work goes on{last}")
