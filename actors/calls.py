"""Calls: the invocations that one handler has started, and its waits for them.

Invariants:
    1. A call or send whose entry the journal holds leaves nothing again.
    2. A send is never waited for, nor a call that another handler has started.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any

from journal.codec import MISSING
from journal.entries import teller_of_entry
from journal.names import address_of, derived_id, shard_in
from journal.store import Bring, Outgoing

from .awaited import Awaited
from .errors import UsageError
from .invocation import Invocation, Waiter
from .loop import DeterministicLoop
from .outgoing import arguments_of, message_of, started_id
from .place import Request
from .values import Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What an execution needs to know of its host."""

    shards: int
    payload_max: int
    """Most bytes of arguments, a result, or a field."""
    code_of: Callable[[type[Any] | None], str]
    """The hash of the code that a class came with."""
    now_ms: Callable[[], int]
    """The store's time, about."""


class _Call(Awaited):
    """A call, or a send, for which nobody can wait."""

    __slots__ = ("is_awaited", "name", "one_way")

    def __init__(self, name: str, annotation: Any, loop: DeterministicLoop, scope: Scope, *, one_way: bool) -> None:
        super().__init__(annotation, loop, scope)
        self.name, self.one_way, self.is_awaited = name, one_way, False


class Calls:
    """The calls and sends of one execution."""

    def __init__(self, invocation: str, surroundings: Surroundings, loop: DeterministicLoop, scope: Scope) -> None:
        self._invocation, self._surroundings, self._loop, self._scope = invocation, surroundings, loop, scope
        self._by_index: dict[int, _Call] = {}
        self._by_id: dict[str, _Call] = {}
        self.messages: list[Outgoing | Bring] = []
        """What leaves with the next commit, in order."""

    def start(
        self, request: Request, make: Callable[[str], int], is_new: Callable[[int], bool], source: Waiter
    ) -> Invocation[Any]:
        """Make the entry of a call or a send, and its message if the journal does not hold the entry."""
        around = self._surroundings
        address = address_of(request.type_name, request.key)
        arguments = arguments_of(request, address, around.payload_max)
        name = f"{'send' if request.one_way else 'call'} {address}.{request.handler}"
        index = make(name)
        id_ = started_id(request, address, derived_id(self._invocation, str(index)), around.shards)
        returns = request.declared.returns if request.declared is not None else MISSING
        call = _Call(name, returns, self._loop, self._scope, one_way=request.one_way)
        self._by_index[index] = self._by_id[id_] = call
        if is_new(index):
            caller = "" if request.one_way else teller_of_entry(self._invocation, index)
            code = around.code_of(request.owner)
            message = message_of(request, id_, address, arguments, caller, code, around.now_ms())
            self.messages.append(Outgoing(shard_in(id_), id_, caller, message.encoded()))
        return Invocation(id_, source)

    def expects(self, index: int) -> bool | None:
        """Whether the call of this entry has no outcome yet; None if the entry is no call."""
        call = self._by_index.get(index)
        return None if call is None else call.outcome is None

    def reply(self, index: int, outcome: bytes) -> None:
        """Take the outcome of a call; its waits are ready."""
        self._by_index[index].complete(outcome)

    def wait(self, invocation: Invocation[Any]) -> Generator[Any, Any, Any]:
        """Wait for a call of this handler; return its result, or raise its failure."""
        call = self._by_id.get(invocation.id)
        if call is None or call.one_way:
            raise UsageError(
                f"{invocation.id} was {'sent' if call else 'started elsewhere'}: a handler can wait for its own calls "
                "only, so start it here with .remote()"
            )
        call.is_awaited = True
        return (yield from call.wait())

    def unawaited(self) -> list[str]:
        """Return the names of calls that nobody has waited for."""
        return [call.name for call in self._by_index.values() if not (call.is_awaited or call.one_way)]
