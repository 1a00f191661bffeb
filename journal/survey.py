"""Survey: the reads of operators: lists of a namespace, in pages.

A page looks at a bounded number of entries and bytes, so that no question of an operator holds the store up for more
than a few milliseconds. Nothing is written for these reads: they go by the data that the transitions need anyway.

Does not own: what the data means to the runtime (`actors.cli`).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Protocol

from .ids import Shard
from .records import pack

PAGE: Final = 1_000
"""Entries that one page looks at, whether they match or not."""
PAGE_BYTES: Final = 4_000_000
"""Bytes that one page looks at, about."""


class Place(Enum):
    """The places of invocations that a survey looks through."""

    INBOX = "i"
    """Not finished, and never left memory."""
    ASLEEP = "a"
    """Not finished, and left memory once."""
    ENDED = "d"
    """Finished, and remembered."""


@dataclass(frozen=True, slots=True)
class Listed:
    """An invocation in a page."""

    invocation: str
    """Empty for one of the inbox, whose message names it."""
    place: Place
    id: str
    """Stream id: the time of its acceptance, or of its end."""
    message: bytes = b""
    """The first line of its message, without the arguments; empty for one that has ended."""
    paused: str | None = None
    """Why it is paused; empty if it goes on after a pause, None if it is not and was not paused."""
    has_begun: bool = True
    """Whether one that is asleep holds more than its message: else it is delayed."""
    name: str = ""
    """Of one that has ended: its target and handler, with a point between."""
    outcome: bytes = b""
    """Of one that has ended: `V`, or the failure without the error itself; empty if it is forgotten."""


@dataclass(frozen=True, slots=True)
class Page:
    """A part of a list."""

    found: list[Listed]
    cursor: str
    """The place of the next page; empty after the last one."""


@dataclass(frozen=True, slots=True)
class Account:
    """All that the store holds of one invocation, except for its journal."""

    place: Place
    id: str
    """Stream id: the time of its acceptance, or of its end; empty if that is not known any more."""
    tellers: tuple[str, ...] = ()
    """The names of those that wait for its outcome."""
    message: bytes = b""
    paused: str | None = None
    has_begun: bool = True
    name: str = ""
    outcome: bytes = b""


@dataclass(frozen=True, slots=True)
class Sizes:
    """The lengths of a shard's lists."""

    inbox: int
    events: int
    journal: int
    timers: int
    held: int
    """Objects that are held by invocations asleep."""
    done: int
    """Finished invocations that are remembered."""
    known: int
    """Invocations that are known, open and finished."""


@dataclass(frozen=True, slots=True)
class Facts:
    """A server, as an operator wants to know it."""

    version: str = ""
    memory: int = 0
    """Bytes in use."""
    memory_max: int = 0
    """Bytes that it may use; 0: as much as the machine has."""
    settings: dict[str, str] = field(default_factory=dict[str, str])
    """The settings that decide whether it keeps data; empty where they may not be read."""
    role: str = ""
    replicas: int = 0


class Survey(Protocol):
    """The reads of operators; they raise what the methods of `Store` raise."""

    async def page(
        self, shard: Shard, place: Place, begins: str, cursor: str, count: int = PAGE, *, are_paused: bool = False
    ) -> Page:
        """Return the invocations of a shard whose targets begin so, in one place; a page may be empty.

        In the order of the inbox, the newest end first, and those asleep in no order, some perhaps twice. With
        `are_paused` only those of the sleeping ones that wait for an operator.
        """
        ...

    async def account(self, invocation: str) -> Account | None:
        """Return what is known of an invocation; None if it is not known."""
        ...

    async def records(self, invocation: str, cursor: str) -> tuple[list[tuple[str, bytes]], str]:
        """Return a page of an invocation's records in its shard's journal, and the next cursor, empty at the end."""
        ...

    async def due(self, shard: Shard, timers: Sequence[str]) -> list[int]:
        """Return the due times of timers in ms, 0 for a timer that is not set."""
        ...

    async def objects(self, begins: str, cursor: str, count: int = PAGE) -> tuple[list[str], str]:
        """Return a page of the objects that have state and whose targets begin so, and the next cursor; in no order."""
        ...

    async def sizes(self, shards: int) -> list[Sizes]:
        """Return the lengths of the lists of each shard."""
        ...

    async def is_open(self) -> bool:
        """Return whether a program has opened the namespace, and so fixed its limits."""
        ...

    async def facts(self) -> Facts:
        """Return what the server says of itself."""
        ...


def in_json(begins: str) -> bytes:
    """Return the beginning of a text as it stands in the JSON of a message."""
    return pack(begins)[1:-2]


def first_line(message: bytes) -> bytes:
    """Return a message without its arguments."""
    return message[: message.find(b"\n") + 1] or message


def in_short(outcome: bytes) -> bytes:
    """Return an outcome without its value, or without the pickle of its error."""
    return outcome[:1] if outcome[:1] == b"V" else first_line(outcome)
