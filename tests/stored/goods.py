"""Goods: values of users' classes that every process can import."""

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from pydantic import BaseModel

from actors import TerminalError


class Ripeness(Enum):
    GREEN = "green"
    RIPE = "ripe"


class Crate(NamedTuple):
    fruit: str
    count: int = 1


@dataclass
class Jam:
    fruit: str
    sugar: float = 0.5
    crates: list[Crate] = field(default_factory=list[Crate])


class Recipe(BaseModel):
    name: str
    minutes: int = 5


class Basket(list[str]):
    """A subclass of a builtin."""


class Scale:
    """A class of which nothing is known but its attributes."""

    def __init__(self, weight: int) -> None:
        self.weight = weight

    def __repr__(self) -> str:
        return f"Scale({self.weight})"


class SoldOut(TerminalError):
    """An error with arguments and an attribute of its own."""

    def __init__(self, fruit: str, left: int) -> None:
        super().__init__(f"no {fruit}", 410, {"fruit": fruit})
        self.left = left
