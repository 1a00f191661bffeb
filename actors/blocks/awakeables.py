"""Awakeables: durable promises of one handler that are completed from outside, by a public id.

Where it lies. The id names the invocation (and so its shard) and an entry by its mark; making an awakeable stores
nothing else. The entry is durable with its invocation's next commit; until then a replay makes it again, with the same
id. A completion is an event: it lies in `events` of that shard from the numbered write that brings it (a driver's
submit, or the commit of the completing handler) until a commit of the invocation has recorded it, in the order of
delivery.

A death between two store calls. Of a driver, before its write is applied: nothing was completed, and no call reported
success; afterwards the event is durable, and a repeated write changes nothing. Of the host whose handler completes: the
completion is part of that commit, or of none, and a replay that finds the entry recorded sends nothing. Of the host
whose handler waits: the event stays until its record is durable, so the next owner delivers the same events in the same
order. If a step has handed out an id whose entry was not recorded, a completion may come before the replay has made the
entry: it is kept for the entry.

An id cannot be guessed, since the id of an invocation cannot be guessed (`journal.ids`). Its holder can name the other
awakeables of the invocation, by their marks. A program that must not complete these needs the id of an awakeable of
another invocation.

Invariants:
    1. The first completion wins, in every replay: it is the first in `events`. Others change nothing.
    2. An awakeable may be completed before its handler awaits it, or before a replay has made its entry.
"""

import re
import zlib
from collections.abc import Generator
from typing import Any, Final, NoReturn

from actors.errors import UsageError
from actors.loop.loop import DeterministicLoop, running_loop
from actors.objects.commands import Awakeable
from actors.requests import current
from actors.requests.invocation import Accepted
from actors.stored import public
from actors.values import outcomes
from actors.values.values import Scope
from journal.ids import shard_in
from journal.records import EventKind
from journal.store import Bring

from .restarts import Restarts, mark_of
from .waits import Awaited

_ID: Final = re.compile(r"awakeable\.([^\s.]+-\d{1,5})\.(\d{1,12})")


@public
def resolve(id: str, value: Any) -> Accepted:
    """Complete an awakeable with a value, which its awaiting handler gets.

    The first completion counts; after the end of the invocation a completion does nothing. It leaves in the order of
    all requests of this sender; in a handler with the next commit. To wait until the store has it, `await` the
    returned object, or call its `result()`.

    Raises:
        UsageError: this is no awakeable's id, or the value cannot be sent.
        NotFoundError: its invocation is not known; raised by the wait for the acknowledgement, otherwise logged.
    """
    return current.caller().bring(completion(id, outcomes.encoded_value(value)), f"resolve {id}")


@public
def reject(id: str, message: str) -> Accepted:
    """Complete an awakeable with a `TerminalError` of this message, raised by its await. Otherwise as `resolve`."""
    return current.caller().bring(completion(id, outcomes.encoded_rejection(message)), f"reject {id}")


def completion(id_: str, outcome: bytes) -> Bring:
    """Return the event that completes an awakeable.

    Raises:
        UsageError: this is no awakeable's id.
    """
    found = _ID.fullmatch(id_) if isinstance(id_, str) else None  # pyright: ignore[reportUnnecessaryIsInstance]  # users without a checker
    if found is None:
        raise UsageError(
            f"{id_!r} is not the id of an awakeable: take it from `.id` of an awakeable of ctx.awakeable()"
        )
    invocation = found[1]
    return Bring(shard_in(invocation), invocation, EventKind.AWAKEABLE, int(found[2]), outcome)


class MadeAwakeable(Awaited, Awakeable[Any]):
    """An awakeable of a handler that runs here (`commands.Awakeable`)."""

    __slots__ = ("id",)

    def __init__(self, id: str, annotation: Any, loop: DeterministicLoop, scope: Scope) -> None:
        super().__init__(annotation, loop, scope)
        self.id = id

    def __await__(self) -> Generator[Any, Any, Any]:
        if running_loop() is not self._loop:
            raise UsageError(f"{self.id} belongs to its handler: it cannot be awaited elsewhere")
        return (yield from self.wait())

    def __bool__(self) -> NoReturn:
        raise UsageError(f"{self.id} is neither true nor false: await it")

    def __hash__(self) -> int:
        return zlib.crc32(
            self.id.encode("utf-8", "surrogatepass")
        )  # not by address: a replay iterates over a set in the same order

    def __repr__(self) -> str:
        return f"<Awakeable {self.id}>"


class Awakeables:
    """The awakeables of one execution."""

    def __init__(self, invocation: str, loop: DeterministicLoop, scope: Scope, restarts: Restarts) -> None:
        self._invocation, self._loop, self._scope, self._restarts = invocation, loop, scope, restarts
        self._made: dict[int, MadeAwakeable] = {}
        self._early: dict[int, bytes] = {}
        """Completions of entries that this replay has not made yet."""

    def make(self, index: int, annotation: Any) -> MadeAwakeable:
        """Return the awakeable of a new entry."""
        id_ = f"awakeable.{self._invocation}.{mark_of(index, self._restarts)}"
        made = MadeAwakeable(id_, annotation, self._loop, self._scope)
        made.outcome = self._early.pop(index, None)
        self._made[index] = made
        return made

    def expects(self, index: int, made: int) -> bool:
        """Whether a completion of this entry counts, if `made` entries were made."""
        if index >= made:
            return index not in self._early
        return index in self._made and self._made[index].outcome is None

    def is_awaited(self, index: int) -> bool:
        """Whether the handler waits for this entry now."""
        return index in self._made and self._made[index].waits > 0

    def complete(self, index: int, outcome: bytes) -> None:
        """Take the completion of an entry."""
        if index in self._made:
            self._made[index].complete(outcome)
        else:
            self._early[index] = outcome
