"""Services: the parts of a host that its shards use."""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from dataclasses import dataclass, field
from typing import Any, Protocol

from actors.blocks.calls import Surroundings
from actors.blocks.steps import StepRunner
from actors.code.code import CodeBook
from actors.limits import Limits
from actors.policy import Policy, ResolvedPolicy, resolve
from journal.records import Event

from .activation import Activation
from .black_box import BlackBox
from .failures import Failures
from .idle import Idle
from .open_invocation import OpenInvocation
from .suspects import Suspects


class Fetcher(Protocol):
    """Reads state, journals and arguments into memory, and tells the shard when they are there."""

    def load(self, shard: Any, activation: Activation, /) -> None:
        """Read an object's state."""
        ...

    def wake(self, shard: Any, invocation: str, events: list[Event], /) -> None:
        """Read an invocation that has left memory; these events are for it.

        If it is paused and a command is among the events, all its events in the store are added, and the hash of its
        type's current code is read too.
        """
        ...

    def refill(self, shard: Any, activation: Activation, /) -> None:
        """Read the arguments of messages that wait without them."""
        ...


@dataclass(slots=True, kw_only=True)
class Services:
    """The parts of a host that its shards use."""

    limits: Limits
    """The bounds of this host; `surroundings` has those of the namespace."""
    policy: Policy | None
    surroundings: Surroundings
    code: CodeBook
    steps: StepRunner
    fetcher: Fetcher
    idle: Idle[OpenInvocation]
    loop: asyncio.AbstractEventLoop
    now: Callable[[], float]
    """Seconds of a clock that never goes back."""
    spawn: Callable[[Coroutine[Any, Any, None], Context], "asyncio.Task[None]"]
    wake_writer: Callable[[], None]
    wake_timers: Callable[[], None]
    failed: Callable[[Any, BaseException], None]
    """Called with a shard that this host failed on, and the error."""
    failures: Failures
    box: BlackBox | None = None
    unfound: set[str] = field(default_factory=set[str])
    """Types whose classes live in another program, for which that was logged already."""
    suspects: Suspects
    """The invocations that the host failed on."""
    policies: dict[Any, ResolvedPolicy] = field(default_factory=dict[Any, ResolvedPolicy])

    def policy_of(self, handler: Any, of_class: Policy | None) -> ResolvedPolicy:
        """Return the policy of a handler, resolved once."""
        found = self.policies.get(handler)
        if found is None:
            found = self.policies[handler] = resolve(handler.policy, of_class, self.policy)
        return found
