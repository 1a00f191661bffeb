"""Turns: callbacks from an attempt to the shard that scheduled it."""

from typing import Protocol

from actors.activation.activation import Activation
from actors.activation.open_invocation import OpenInvocation


class Turns(Protocol):
    """The shard that scheduled an attempt, as the attempt calls it."""

    in_flight: dict[str, OpenInvocation]
    """The invocations in memory."""

    def ended(self, run: OpenInvocation, activation: Activation, /) -> None:
        """The invocation has ended."""
        ...

    def left_memory(self, run: OpenInvocation, activation: Activation, /) -> None:
        """The invocation falls asleep; it goes on holding its object."""
        ...

    def activation_of(self, run: OpenInvocation, /) -> Activation:
        """Return the activation of an invocation."""
        ...

    def wake(self, id_: str, /) -> None:
        """Read an invocation that is asleep into memory."""
        ...

    @property
    def is_draining(self) -> bool:
        """Whether nothing new begins."""
        ...

    def renew(self, run: OpenInvocation, activation: Activation, /) -> None:
        """Begin the next attempt, with the newest code of its class."""
        ...

    def load_again(self, run: OpenInvocation, activation: Activation, /) -> None:
        """Look for the invocation's class once more."""
        ...
