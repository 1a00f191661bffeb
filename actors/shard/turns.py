"""Turns: what an attempt tells whoever gives turns."""

from typing import Protocol

from actors.activation.activation import Activation, InFlight


class Turns(Protocol):
    """What is told of the end of an attempt: whoever gives turns."""

    in_flight: dict[str, InFlight]
    """The invocations in memory."""

    def ended(self, run: InFlight, activation: Activation, /) -> None:
        """The invocation has ended."""
        ...

    def left_memory(self, run: InFlight, activation: Activation, /) -> None:
        """The invocation is laid to sleep; it holds its object still."""
        ...

    def activation_of(self, run: InFlight, /) -> Activation:
        """Return the object that the invocation is of."""
        ...

    def wake(self, id_: str, /) -> None:
        """Bring an invocation that is asleep into memory."""
        ...

    @property
    def is_draining(self) -> bool:
        """Whether nothing new begins."""
        ...

    def renew(self, run: InFlight, activation: Activation, /) -> None:
        """Begin the next attempt, with the newest code of its class."""
        ...

    def load_again(self, run: InFlight, activation: Activation, /) -> None:
        """Look for the invocation's class once more."""
        ...
