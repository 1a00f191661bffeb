"""Calls: the invocations that a handler has started, and its waits for invocations.

Invariants:
    1. A call or send whose entry the journal holds sends no message again.
    2. A handler never waits for its own send. It may wait for an invocation of another handler or driver: by an entry
       of its own, which no cancel follows.
    3. The id of a callee follows from the entry of its call: a host that has only the journal can end the callee.
"""

import asyncio
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from actors.code.code import UNSENT
from actors.errors import TerminalError, UsageError
from actors.loop.loop import DeterministicLoop
from actors.objects.handlers import Handler
from actors.requests.invocation import Invocation, Waiter
from actors.requests.message import arguments_of, call_timeout, fingerprint_of, message_of, outgoing_of, started_id
from actors.requests.request import Request
from actors.requests.run_ids import RUN, happens_once
from actors.values import outcomes
from actors.values.values import Scope
from journal.codec import MISSING
from journal.ids import address_of, derived_id, invocation_id, shard_in
from journal.records import EventKind, Message, ReplyKind, teller_of_entry
from journal.store import Attach, Bring, Leaving, NamespaceLimits, unknown

from .restarts import Restarts, mark_of
from .timers import Timers
from .waits import Awaited

TIMEOUT: Final = "timeout"
"""Begins the entry of a call's time-out, before the index of the call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """Facts about the host that an execution needs."""

    limits: NamespaceLimits
    code_of: Callable[[type[Any] | None], str]
    """Returns the hash of the code that a class was uploaded with."""
    now_ms: Callable[[], int]
    """Returns the store's time, approximately."""


def _over() -> None:
    """Do nothing: the execution handles a time-out's timer itself, since it may have entries to make."""


CHAIN_MAX: Final = 100
"""Most exclusive handlers that may wait for a call, each through the next."""


class _CallEntry(Awaited):
    """A call, a send (which has no waits), or the handler's wait for an invocation that it has not started."""

    __slots__ = ("id", "is_awaited", "is_cancelled", "is_own", "limit", "name", "one_way")

    def __init__(self, id: str, name: str, annotation: Any, loop: DeterministicLoop, scope: Scope) -> None:
        super().__init__(annotation, loop, scope)
        self.id, self.name, self.is_awaited, self.is_cancelled = id, name, False, False
        self.limit: asyncio.TimerHandle | None = None
        """The timer of its time-out."""
        self.one_way, self.is_own = name.startswith("send "), name.startswith("call ")


def callee_of(invocation: str, mark: int, entry: str, shards: int) -> str | None:
    """Return the id of the invocation that a recorded entry of this mark has called, None if it is no call."""
    kind, _, called = entry.partition(" ")
    if kind != "call":
        return None
    address, _, rest = called.rpartition(".")  # the key may hold any character, the handler's name no point
    named = rest.partition(" ")[2]
    return named or invocation_id(derived_id(invocation, str(mark)), address, shards)


class Calls:
    """The calls and sends of one execution."""

    restarts: Restarts = ()

    def __init__(
        self, message: Message, surroundings: Surroundings, loop: DeterministicLoop, scope: Scope, *, holds: bool
    ) -> None:
        self._message, self._surroundings, self._loop, self._scope = message, surroundings, loop, scope
        self._invocation, self._holds = message.id, holds and "/" in message.target
        self._by_index: dict[int, _CallEntry] = {}
        self._by_id: dict[str, _CallEntry] = {}
        self.messages: list[Leaving] = []
        """Messages of the next commit, in order."""
        self.sent = 0
        """Bytes of messages since the last delivery."""
        self.unsent = 0
        """Bytes of `messages`, or more."""

    def start(
        self, request: Request, make: Callable[[str], int], is_new: Callable[[int], bool], source: Waiter
    ) -> Invocation[Any]:
        """Make the entry of a call or a send, and its message if the journal does not hold the entry."""
        around = self._surroundings
        address = address_of(request.type_name, request.key)
        arguments = arguments_of(request, address, around.limits.payload_max)
        self.count_sent(arguments)
        name = f"{'send' if request.one_way else 'call'} {address}.{request.handler}"
        is_run = request.handler == RUN and happens_once(request)
        if is_run or request.options.idempotency_key is not None:
            name += f" {started_id(request, address, '', around.limits.shards)}"
        chain = None if request.one_way else self._chain(name)
        index = make(name)
        mark = mark_of(index, self.restarts)
        id_ = started_id(request, address, derived_id(self._invocation, str(mark)), around.limits.shards)
        returns = request.declared.returns if request.declared is not None else MISSING
        call = _CallEntry(id_, name, returns, self._loop, self._scope)
        self._by_index[index] = call
        is_named = is_run or request.options.idempotency_key is not None
        if not is_named:  # otherwise only the `Invocation` holds it: the id may be of an earlier request of others
            self._by_id[id_] = call
        elif not is_run:
            self._by_id.setdefault(id_, call)
        if is_new(index):
            caller = "" if request.one_way else teller_of_entry(self._invocation, mark)
            # The class of a schedule's request was in some program when the schedule was declared.
            code = UNSENT if request.options.arguments else around.code_of(request.owner)
            message = message_of(request, id_, address, arguments, caller, code, around.now_ms)
            message.chain = chain
            self.messages.append(outgoing_of(request, id_, caller, message, fingerprint_of(request)))
        return Invocation(id_, source, call if is_named else None)

    def count_sent(self, data: bytes) -> None:
        """Count the bytes of a message that leaves before the handler waits again; a replay counts alike.

        Raises:
            UsageError: the messages are larger than one write takes.
        """
        self.sent += len(data)
        self.unsent += len(data)
        sent_max = self._surroundings.limits.sent_max
        if self.sent > sent_max:
            raise UsageError(
                f"{self._message.target}.{self._message.handler} sends {self.sent:,} bytes before it waits, the limit "
                f"sent_max is {sent_max:,}: await some of it before it sends more, or pass references"
            )

    @property
    def shards(self) -> int:
        """How many shards the namespace has."""
        return self._surroundings.limits.shards

    def _chain(self, name: str) -> list[str]:
        """Return the exclusive invocations that wait for a call: this one, if it holds a key, and its own chain."""
        chain = [*(self._message.chain or ()), self._invocation] if self._holds else self._message.chain or []
        if len(chain) > CHAIN_MAX:
            raise TerminalError(f"`{name}`: {CHAIN_MAX} exclusive handlers already wait, each for the next", 508)
        return chain

    def waits(self) -> dict[str, int]:
        """Return the number of waits for each awaited invocation, by id."""
        return {id_: call.waits for id_, call in self._by_id.items() if call.outcome is None and call.waits}

    def cancels(self) -> list[Bring]:
        """Return the events that cancel the calls without an outcome."""
        own = [call for call in self._by_index.values() if call.outcome is None and call.is_own]
        return self._cancels(list({call.id: call for call in own}.values()))

    def _cancels(self, calls: list[_CallEntry]) -> list[Bring]:
        for call in calls:
            call.is_cancelled = True
        return [Bring(shard_in(call.id), call.id, EventKind.CANCEL, 0, b"") for call in calls]

    def answered(self) -> set[int]:
        """Return the entries of the calls that have an outcome."""
        return {index for index, call in self._by_index.items() if call.outcome is not None}

    def take_messages(self) -> list[Leaving]:
        """Remove and return the messages of the next commit."""
        messages, self.messages, self.unsent = self.messages, [], 0
        return messages

    def expects(self, index: int) -> bool | None:
        """Whether the call of this entry has no outcome yet; None if the entry is no call."""
        call = self._by_index.get(index)
        return None if call is None else call.outcome is None

    def reply(self, index: int, outcome: bytes) -> None:
        """Take the outcome of a call; its waits are ready."""
        call = self._by_index[index]
        if call.limit is not None:
            call.limit.cancel()
        call.complete(unknown(call.id) if outcome == ReplyKind.UNKNOWN.encode() else outcome)

    def limit(self, id_: str, timeout_s: float, timers: Timers, made: int) -> None:
        """Make the entry of a call's time-out; `made` entries exist, the last of which is the call's."""
        call = self._by_index[made - 1]
        self._limited[made] = call, timeout_s
        call.limit = timers.call_later(timeout_s, f"{TIMEOUT} {made - 1}", _over)

    def time_out(self, entry: int) -> list[Bring]:
        """Take a due timer: if it is a call's time-out, fail the call, and return the events that cancel the callee."""
        call, timeout_s = self._limited.pop(entry, (None, 0.0))
        if call is None or call.outcome is not None:
            return []
        call.complete(outcomes.encoded_error(call_timeout(call.name.removeprefix("call "), timeout_s)))
        return [] if call.is_cancelled else self._cancels([call])

    @cached_property
    def _limited(self) -> dict[int, tuple[_CallEntry, float]]:
        return {}

    def tell(self, event: Bring) -> None:
        """Add an event to the next commit."""
        self.messages.append(event)
        if event.kind is EventKind.CANCEL and event.invocation in self._by_id:
            self._by_id[event.invocation].is_cancelled = True

    def wait(
        self, invocation: Invocation[Any], make: Callable[[str], int], is_new: Callable[[int], bool]
    ) -> Generator[Any, Any, Any]:
        """Wait for an invocation, started here or elsewhere; return its result, or raise its failure."""
        kept, id_ = invocation.kept, invocation.id
        if isinstance(kept, _CallEntry) and kept.is_of(self._loop):
            call = kept
        else:
            returns = kept.returns if isinstance(kept, Handler) else MISSING
            call = self._by_id.get(id_) or self._attach(id_, returns, make, is_new)
        if call.one_way:
            raise UsageError(f"{id_} was sent: nobody waits for a send, so start it with .remote()")
        call.is_awaited = True
        return (yield from call.wait())

    def _attach(self, id_: str, returns: Any, make: Callable[[str], int], is_new: Callable[[int], bool]) -> _CallEntry:
        """Make the entry of a wait for an invocation that was started elsewhere."""
        if id_ == self._invocation:
            raise UsageError(f"{id_} cannot wait for its own end")
        shard = shard_in(id_)
        index = make(f"attach {id_}")
        call = _CallEntry(id_, f"attach {id_}", returns, self._loop, self._scope)
        self._by_index[index] = self._by_id[id_] = call
        if is_new(index):
            teller = teller_of_entry(self._invocation, mark_of(index, self.restarts))
            self.messages.append(Attach(shard, id_, teller, unknown(id_)))
        return call

    def is_sent(self, invocation: Invocation[Any]) -> bool:
        """Whether the invocation is a send of this handler, which has no waits."""
        call = invocation.kept if isinstance(invocation.kept, _CallEntry) else self._by_id.get(invocation.id)
        return call is not None and call.one_way

    def unawaited(self) -> list[str]:
        """Return the names of calls that the handler never awaited."""
        return [call.name for call in self._by_index.values() if call.is_own and not call.is_awaited]
