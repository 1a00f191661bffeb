"""Durable promises: named values of a workflow, written once, that all handlers of its key share.

Where it lies. A promise is a field of the workflow's state hash that no user can name, `@promise <name>`, and so is
each wait for one that is not completed, `@wait <invocation>:<mark of the entry> <name>`. All handlers of a key run on
the owner of its shard, so that the activation decides: what it holds is the state of the last commit staged, and
commits are written in the order staged. Both stay when the handlers have ended, until the workflow's retention is over.

How it goes. Awaiting makes one entry for each name. The commit that records it adds the wait to the state, or, if the
promise is completed by then, brings its outcome to the invocation itself. Completing is decided at once and staged at
once, as a commit of its own: the handler's record so far with the answer, its state so far, the promise's field, one
event for each wait, and the waits cleared. So an outcome always comes as an event, in an order that is durable, and
there is one for each wait. Who looks (`peek`), or comes second, is answered at once; that answer is recorded with its
entry, and nothing leaves before the record.

What a death between two store calls does. Before the commit of a completion is applied: nothing was completed, and
nobody has seen anything of it, since what others saw is staged behind it and falls with it; the replay completes anew,
or finds that another did. Afterwards the promise, the record of who completed it and the events of all who wait are
durable together: a replay finds its answer and completes nothing, however the attempt ends; who waits gets his event
from whoever owns the shard. Of a host whose handler waits: a wait that was not staged is made again by the replay, one
that is durable is among those that the completion brings its event to; in between there is nothing.

Invariants:
    1. The first completion wins, in every replay; a later one raises a `TerminalError` with the code 409.
    2. A wait that is recorded lies in the state, or its event is brought.
    3. An invocation that ends takes its waits along.
"""

import zlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Protocol

from actors.errors import UsageError
from actors.loop.loop import DeterministicLoop, running_loop
from actors.requests import current
from actors.requests.message import bounded
from actors.values import outcomes
from actors.values.values import Scope
from journal.keys import OWN
from journal.store import Bring

from .answers import Answers
from .waits import Awaited

PROMISE: Final = f"{OWN}promise "
WAIT: Final = f"{OWN}wait "


@dataclass(slots=True)
class Posted:
    """What a commit does to the promises of a key: fields of its state, None for one made absent, and events."""

    fields: dict[str, bytes | None]
    events: list[Bring]


class PromiseCommands(Protocol):
    """Where the promises of the key stand: its activation, for one execution."""

    answers: Answers
    """What entries were told at once."""

    def find(self, name: str, /) -> bytes | None:
        """Return the outcome of a promise, None if it is not completed."""
        ...

    def refusal(self, name: str, outcome: bytes, /) -> bytes | None:
        """Return the failure of a completion that cannot be, None if it can."""
        ...

    def complete(self, name: str, outcome: bytes, /) -> None:
        """Stage a completion, and all that the handler has done so far."""
        ...

    def wait(self, index: int, name: str, /) -> None:
        """Add the wait of a new entry with the next commit."""
        ...

    @property
    def has_waits(self) -> bool:
        """Whether a wait is to be added."""
        ...

    def take(self) -> Posted | None:
        """Return what the commit that is being made does, if anything."""
        ...


class Promises:
    """The promises of one execution."""

    def __init__(
        self,
        whose: str,
        board: PromiseCommands | None,
        make: Callable[[str], int],
        is_new: Callable[[int], bool],
        loop: DeterministicLoop,
        scope: Scope,
        outcome_max: int,
    ) -> None:
        if board is None:
            raise UsageError(f"{whose} is no Workflow, so it has no promises: wait for ctx.awakeable() or ctx.signal()")
        self._board, self._make, self._is_new = board, make, is_new
        self.loop, self.scope, self._outcome_max = loop, scope, outcome_max
        self._by_name: dict[str, Awaited] = {}
        self._by_index: dict[int, Awaited] = {}

    def wait(self, name: str) -> Generator[Any, Any, bytes]:
        """Wait for the outcome of a promise."""
        waited = self._by_name.get(name)
        if waited is None:
            index = self._make(f"promise {name}")
            waited = self._by_name[name] = self._by_index[index] = Awaited(None, self.loop, self.scope)
            if self._is_new(index):
                self._board.wait(index, name)
        return waited.wait_undecoded()

    def expects(self, index: int) -> bool:
        """Whether the outcome for this entry counts."""
        return index in self._by_index and self._by_index[index].outcome is None

    def deliver(self, index: int, outcome: bytes) -> None:
        """Take the outcome for an entry; its waits are ready."""
        self._by_index[index].complete(outcome)

    def peek(self, name: str) -> bytes | None:
        """Return the outcome of a promise, None if it is not completed."""
        index = self._make(f"peek {name}")
        return self._board.answers.give(index, lambda: self._board.find(name))

    def complete(self, verb: str, name: str, outcome: bytes) -> None:
        """Complete a promise; raise the `TerminalError` of the second who does."""
        bounded(outcome, f"value of the promise {name!r}", self._outcome_max)
        index = self._make(f"{verb} {name}")
        refusal = self._board.answers.give(index, lambda: self._board.refusal(name, outcome))
        if refusal is not None:
            outcomes.decoded(refusal)
        elif self._is_new(index):
            self._board.complete(name, outcome)


class MadePromise:
    """A promise as a handler that runs here sees it (`commands.Promise`)."""

    __slots__ = ("_annotation", "_name", "_promises")

    def __init__(self, name: str, annotation: Any, promises: Promises) -> None:
        self._name, self._annotation, self._promises = name, annotation, promises

    def __await__(self) -> Generator[Any, Any, Any]:
        outcome = yield from self._here().wait(self._name)
        return outcomes.decoded(outcome, self._annotation, self._promises.scope)

    def peek(self, default: Any = None) -> Any:
        """Return the value, or `default` where there is none."""
        outcome = self._here().peek(self._name) if self._is_alive else None
        return default if outcome is None else outcomes.decoded(outcome, self._annotation, self._promises.scope)

    def resolve(self, value: Any) -> None:
        """Give it its value."""
        outcome = outcomes.encoded_value(value)
        if self._is_alive:
            self._here().complete("resolve", self._name, outcome)

    def reject(self, message: str) -> None:
        """Let whoever awaits it get a `TerminalError`."""
        if self._is_alive:
            self._here().complete("reject", self._name, outcomes.encoded_rejection(message))

    @property
    def _is_alive(self) -> bool:
        # While an execution leaves memory, what its `finally` blocks ask for does not happen.
        return not self._promises.loop.is_closed()

    def _here(self) -> Promises:
        if current.in_step.get() is not None:
            raise current.not_in_a_step()
        if running_loop() is not self._promises.loop:
            raise UsageError(f"the promise {self._name!r} belongs to its handler: it cannot be used from elsewhere")
        return self._promises

    def __bool__(self) -> NoReturn:
        raise UsageError(f"the promise {self._name!r} is neither true nor false: await it, or ask for its peek()")

    add_done_callback = current.no_future

    def __hash__(self) -> int:
        return zlib.crc32(
            self._name.encode("utf-8", "surrogatepass")
        )  # not by address: a replay iterates over a set in the same order

    def __repr__(self) -> str:
        return f"<Promise {self._name}>"
