"""Durable promises: named values of a workflow, written once, that all handlers of its key share.

Where it lies. A promise is a field of the workflow's state hash that no user can name, `@promise <name>`, and so is
each wait for an open promise, `@wait <invocation>:<mark of the entry> <name>`. All handlers of a key run on the owner
of its shard, so that the activation decides: it holds the state of the last commit staged, and commits are written in
the order staged. Both fields stay when the handlers have ended, until the workflow's retention is over.

How it works. Awaiting makes one entry for each name. The commit that records it adds the wait to the state or, if the
promise is completed by then, brings its outcome to the invocation itself. A completion is decided at once and staged at
once, as a commit of its own: the handler's record so far with the answer, its state so far, the promise's field, an
event for each wait, and the waits cleared. So an outcome always comes as an event, in a durable order, once for each
wait. A `peek`, and a second completion, is answered at once; that answer is recorded with its entry, and no message or
step begins before the record is durable.

A death between two store calls. Before the commit of a completion is applied: nothing was completed, and no other
handler has durably seen it, since commits that depend on it are staged behind it and are lost with it; the replay
completes anew, or finds that another handler did. Afterwards the promise, the record of its completion and the events
for all waits are durable together: a replay finds its answer and completes nothing, however the attempt ends; a waiting
handler gets its event from the owner of the shard. Of a host whose handler waits: the replay makes a wait again that
was not staged, and the completion brings its event to a wait that is durable; there is no state in between.

Invariants:
    1. The first completion wins, in every replay; a later one raises a `TerminalError` with the code 409.
    2. A wait that is recorded lies in the state, or its event is brought.
    3. The end of an invocation removes its waits.
"""

import zlib
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Protocol

from actors.errors import UsageError
from actors.loop.loop import DeterministicLoop, running_loop
from actors.objects.commands import Promise
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
    """Changes of a commit to the promises of a key: fields of its state, None for a cleared field, and events."""

    fields: dict[str, bytes | None]
    events: list[Bring]


class PromiseCommands(Protocol):
    """The promises of a key, held by its activation, as one execution uses them."""

    answers: Answers
    """The immediate answers of entries."""

    def find(self, name: str, /) -> bytes | None:
        """Return the outcome of a promise, None if it is not completed."""
        ...

    def refusal(self, name: str, outcome: bytes, /) -> bytes | None:
        """Return the failure of a completion that is refused, None if it is possible."""
        ...

    def complete(self, name: str, outcome: bytes, /) -> None:
        """Stage a completion, with all progress of the handler so far."""
        ...

    def wait(self, index: int, name: str, /) -> None:
        """Add the wait of a new entry with the next commit."""
        ...

    @property
    def has_waits(self) -> bool:
        """Whether a wait is to be added."""
        ...

    def take(self) -> Posted | None:
        """Return the fields and events for the commit that is being made, if any."""
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
        """Complete a promise; raise a `TerminalError` if it is completed already."""
        bounded(outcome, f"value of the promise {name!r}", self._outcome_max)
        index = self._make(f"{verb} {name}")
        refusal = self._board.answers.give(index, lambda: self._board.refusal(name, outcome))
        if refusal is not None:
            outcomes.decoded(refusal)
        elif self._is_new(index):
            self._board.complete(name, outcome)


class MadePromise(Promise[Any]):
    """A promise as a handler that runs here sees it (`commands.Promise`)."""

    __slots__ = ("_annotation", "_name", "_promises")

    def __init__(self, name: str, annotation: Any, promises: Promises) -> None:
        self._name, self._annotation, self._promises = name, annotation, promises

    def __await__(self) -> Generator[Any, Any, Any]:
        outcome = yield from self._here().wait(self._name)
        return outcomes.decoded(outcome, self._annotation, self._promises.scope)

    def peek(self, default: Any = None) -> Any:
        """Return the value, or `default` if there is none."""
        outcome = self._here().peek(self._name) if self._is_alive else None
        return default if outcome is None else outcomes.decoded(outcome, self._annotation, self._promises.scope)

    def resolve(self, value: Any) -> None:
        """Complete the promise with a value."""
        outcome = outcomes.encoded_value(value)
        if self._is_alive:
            self._here().complete("resolve", self._name, outcome)

    def reject(self, message: str) -> None:
        """Complete the promise with a `TerminalError`, raised in every handler that awaits it."""
        if self._is_alive:
            self._here().complete("reject", self._name, outcomes.encoded_rejection(message))

    @property
    def _is_alive(self) -> bool:
        # While an execution leaves memory, commands of its `finally` blocks are ignored.
        return not self._promises.loop.is_closed()

    def _here(self) -> Promises:
        if current.in_step.get() is not None:
            raise current.not_in_a_step()
        if running_loop() is not self._promises.loop:
            raise UsageError(f"the promise {self._name!r} belongs to its handler: it cannot be used from elsewhere")
        return self._promises

    def __bool__(self) -> NoReturn:
        raise UsageError(f"the promise {self._name!r} is neither true nor false: await it, or ask for its peek()")

    def __hash__(self) -> int:
        return zlib.crc32(
            self._name.encode("utf-8", "surrogatepass")
        )  # not by address: a replay iterates over a set in the same order

    def __repr__(self) -> str:
        return f"<Promise {self._name}>"
