"""Services: what a host offers to the shards that it owns, and what it bounds."""

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Protocol

from actors.blocks.calls import Surroundings
from actors.blocks.steps import StepRunner
from actors.code.code import CodeBook
from actors.policy import Policy, ResolvedPolicy, resolve
from journal.records import Event

from .activation import Activation, InFlight
from .black_box import BlackBox
from .failures import Failures
from .idle import Idle
from .suspects import Suspects


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one host bounds in memory."""

    payload_max: int = 8_000_000
    """Most bytes of a message's arguments, a result, a step's result, or a field."""
    queue_in_memory: int = 100
    """Messages of one key that wait in memory with their arguments; of the rest only the ids."""
    activations_max: int = 100_000
    """Objects in memory; beyond it those that are idle go."""
    activation_idle: timedelta = timedelta(seconds=60)
    """An object that nobody has used for so long leaves memory."""
    waiting_max: int = 5_000
    """Handlers that wait in memory; beyond it those that have waited longest leave before their time."""


class Fetcher(Protocol):
    """Brings what is not in memory; the shard is told when it is there."""

    def load(self, shard: Any, activation: Activation, /) -> None:
        """Bring an object's state."""
        ...

    def wake(self, shard: Any, invocation: str, events: list[Event], /) -> None:
        """Bring an invocation that has left memory; these events are for it.

        If it is paused and there is a command among them, all that lie in the store are added, and the hash of its
        type's current code is brought too.
        """
        ...

    def refill(self, shard: Any, activation: Activation, /) -> None:
        """Bring the arguments of messages that wait without them."""
        ...


@dataclass(slots=True, kw_only=True)
class Services:
    """What a shard asks of its host."""

    limits: Limits
    policy: Policy | None
    surroundings: Surroundings
    code: CodeBook
    steps: StepRunner
    fetcher: Fetcher
    idle: Idle[InFlight]
    loop: asyncio.AbstractEventLoop
    now: Callable[[], float]
    """Seconds of a clock that never goes back."""
    spawn: Callable[[Coroutine[Any, Any, None], Context], "asyncio.Task[None]"]
    wake_writer: Callable[[], None]
    wake_timers: Callable[[], None]
    failed: Callable[[Any, BaseException], None]
    """Told of a shard that this host failed on."""
    failures: Failures
    box: BlackBox | None = None
    unfound: set[str] = field(default_factory=set[str])
    """Types whose classes live in another program, where that was said."""
    suspects: Suspects
    """What it failed on."""
    policies: dict[Any, ResolvedPolicy] = field(default_factory=dict[Any, ResolvedPolicy])

    def policy_of(self, handler: Any, of_class: Policy | None) -> ResolvedPolicy:
        """Return what holds for a handler, resolved once."""
        found = self.policies.get(handler)
        if found is None:
            found = self.policies[handler] = resolve(handler.policy, of_class, self.policy)
        return found
