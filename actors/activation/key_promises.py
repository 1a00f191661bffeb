"""KeyPromises: the durable promises of one workflow key, as an execution reads and writes them.

Owns the fields of promises and waits that the execution's next commit writes, and the events that this commit brings.
The rules and their reasons stand in `promises`.
"""

from collections.abc import Callable, Mapping
from typing import Final

from actors.blocks.answers import Answers
from actors.blocks.promises import PROMISE, WAIT, Posted
from actors.blocks.restarts import mark_of
from actors.errors import TerminalError, UsageError
from actors.policy import resolve
from actors.requests.run_ids import RUN, run_id
from actors.values import outcomes
from journal.records import EventKind
from journal.store import Bring, Leaving, NamespaceLimits
from journal.texts import str_of

from .activation import Activation
from .open_invocation import OpenInvocation
from .services import Services
from .state_changes import bound_state, changes_of

Changes = dict[str, bytes | None]
ALREADY: Final = {True: "was rejected already", False: "has its value already"}


class KeyPromises:
    """The promises of one key, for one execution (`promises.PromiseCommands`)."""

    def __init__(
        self,
        run: OpenInvocation,
        activation: Activation,
        limits: NamespaceLimits,
        commit: Callable[[OpenInvocation, Activation, Changes], None],
    ) -> None:
        self._run, self._activation, self._limits, self._commit = run, activation, limits, commit
        self.answers = Answers(run.answers)
        self._changes: Changes = {}
        self._completed: dict[str, bytes] = {}
        self._waits: dict[int, str] = {}

    @property
    def has_waits(self) -> bool:
        """Whether a wait is to be added."""
        return bool(self._waits)

    def find(self, name: str, /) -> bytes | None:
        """Return the outcome of a promise; later steps wait until that outcome is durable."""
        self._run.leave_after = max(self._run.leave_after, self._activation.staged)
        return _fields(self._activation).get(PROMISE + name)

    def refusal(self, name: str, outcome: bytes, /) -> bytes | None:
        """Return why a promise cannot be completed here, as a failure."""
        found = self.find(name)
        if found is not None:
            why = f"the promise {name!r} of {self._activation.target} {ALREADY[outcomes.is_failure(found)]}"
            return outcomes.encoded_error(TerminalError(why, 409))
        try:
            self._changes = changes_of(self._run, self._activation, self._limits)
            changes = self._changes | {PROMISE + name: outcome}
            bound_state(self._activation.target, _fields(self._activation), changes, self._limits.state_max)
        except UsageError as error:
            return outcomes.encoded_error(TerminalError(str_of(error), 400))
        return None

    def complete(self, name: str, outcome: bytes, /) -> None:
        """Stage a completion."""
        self._completed[name] = outcome
        self._commit(self._run, self._activation, self._changes)

    def wait(self, index: int, name: str, /) -> None:
        """Add a wait with the next commit."""
        self._waits[index] = name

    def take(self) -> Posted | None:
        """Return the fields and events for the commit that is being made, if any."""
        if not (self._completed or self._waits):
            return None
        completed, self._completed = self._completed, {}
        waits, self._waits = self._waits, {}
        fields, posted = _fields(self._activation), Posted({}, [])
        for field in fields if completed else ():
            if field.startswith(WAIT) and (outcome := completed.get(_promise_of(field))) is not None:
                posted.fields[field] = None
                invocation, _, mark = _waiter_of(field).rpartition(":")
                posted.events.append(self._event(invocation, int(mark), outcome))
        posted.fields |= {PROMISE + name: outcome for name, outcome in completed.items()}
        restarts = self._run.restarts
        for index, name in waits.items():
            mark = mark_of(index, restarts)
            outcome = completed.get(name) or fields.get(PROMISE + name)
            if outcome is None:
                posted.fields[f"{WAIT}{self._run.id}:{mark} {name}"] = b""
            else:
                posted.events.append(self._event(self._run.id, mark, outcome))
        return posted

    def _event(self, invocation: str, mark: int, outcome: bytes) -> Bring:
        # All handlers of a key are in one shard.
        return Bring(self._run.shard, invocation, EventKind.PROMISE, mark, outcome)


def with_waits(run: OpenInvocation, activation: Activation, changes: Changes, services: Services) -> Changes:
    """Return the changes with the end of an invocation's waits; mark the outcome of a workflow's run to be kept."""
    if run.declared is None and run.message.handler == RUN:
        # It ends without its class, which is not here, or not yet. Only a workflow's run has such an id.
        target, declared = run.message.target, services.code.find(run.type_name, run.message.code)
        run.exclusive = run.id == run_id(target, services.surroundings.limits.shards)
        handler = declared.handlers.get(RUN) if declared is not None else None
        of_class = (handler.policy, declared.options.policy) if declared is not None and handler is not None else ()
        run.policy = resolve(*of_class, services.policy)
    if run.message.handler == RUN:
        run.keep_outcome()
    mine = f"{WAIT}{run.id}:"
    waits = [field for field in activation.fields or () if field.startswith(mine)] if run.staged else ()
    return changes | dict.fromkeys(waits)


def rejections(activation: Activation) -> list[Leaving]:
    """Return the events that reject every wait for a promise of this key, because its state has expired."""
    told: list[Leaving] = []
    for field in activation.fields or ():
        if field.startswith(WAIT):
            why = (
                f"the promise {_promise_of(field)!r} was never completed: the state of {activation.target} has expired"
            )
            invocation, _, mark = _waiter_of(field).rpartition(":")
            outcome = outcomes.encoded_error(TerminalError(why, 410))
            told.append(Bring(activation.shard, invocation, EventKind.PROMISE, int(mark), outcome))
    return told


def _fields(activation: Activation) -> Mapping[str, bytes]:
    assert activation.fields is not None
    return activation.fields


def _waiter_of(field: str) -> str:
    return field[len(WAIT) :].partition(" ")[0]


def _promise_of(field: str) -> str:
    return field[len(WAIT) :].partition(" ")[2]
