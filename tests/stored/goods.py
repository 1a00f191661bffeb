"""Goods: values of users' classes that every process can import."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple

from pydantic import BaseModel

import actors
from actors import (
    Cancelled,
    Context,
    Invocation,
    Policy,
    Retry,
    RetryAfter,
    Schedule,
    TerminalError,
    VirtualObject,
    handler,
)


class Ripeness(Enum):
    GREEN = "green"
    RIPE = "ripe"


class Punnet(NamedTuple):
    fruit: str
    amount: int = 1


@dataclass
class Jam:
    fruit: str
    sugar: float = 0.5
    crates: list[Punnet] = field(default_factory=list[Punnet])


class Recipe(BaseModel):
    name: str
    minutes: int = 5


class Trug(list[str]):
    """A subclass of a builtin."""


class Scale:
    """A class of which nothing is known but its attributes."""

    def __init__(self, weight: int) -> None:
        self.weight = weight

    def __repr__(self) -> str:
        return f"Scale({self.weight})"


class PickedBare(TerminalError):
    """An error with arguments and an attribute of its own."""

    def __init__(self, fruit: str, left: int) -> None:
        super().__init__(f"no {fruit}", 410, {"fruit": fruit})
        self.left = left


class Orchard(VirtualObject):
    @handler
    def pick(self, ctx: Context, jam: Jam) -> Jam:
        return jam


def arguments() -> list[Any]:
    """Return values that every process can read, and whose fingerprint is the same in each."""
    return [
        *(Jam("plum", 0.25, [Punnet("plum", 2)]), Recipe(name="jam"), Trug(["a"]), Scale(3), Ripeness.RIPE, Jam),
        *(Orchard["x"], Orchard, actors.object("Orchard", "y").options(delay=1)),
        *(Schedule("a"), Invocation[int]("some-id"), Policy(retry=Retry(initial=2)), RetryAfter(3, "later")),
        *(
            Cancelled("x"),
            PickedBare("plums", 3),
            actors.UsageError("u"),
            actors.get,
            actors.object,
            actors.DecodeError,
        ),
    ]
