"""Linearizability: whether what clients saw of one text could have been seen if everything had happened one at a time.

Owns the search (Wing and Gong's, with its states remembered). It goes through the history in the order of time, and
keeps every situation that is possible so far: what the text is, and which of the operations under way have happened.
An operation must have happened between its call and its return, and only its return asks for that; so nothing is tried
before it has to be, and situations that are alike are one.

An operation whose outcome nobody knows is under way for ever: it may happen at any later time, or never. The search
grows with the orders of those: a handful for each key is what it is made for.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

UNKNOWN: Final = "unknown"
"""The result of an operation that may have happened, may happen later, or never."""


@dataclass(frozen=True, slots=True)
class Operation:
    """What one client asked of one key, and when; without a known result it never returned."""

    key: str
    kind: str
    arguments: tuple[str, ...]
    called_at: float
    returned_at: float = math.inf
    result: Any = UNKNOWN

    @property
    def is_known(self) -> bool:
        """Whether its client was told the result."""
        return self.returned_at < math.inf


def get(text: str) -> tuple[str, Any]:
    """Return the text."""
    return text, text


def put(text: str, new: str) -> tuple[str, Any]:
    """Replace the text."""
    return new, None


def swap(text: str, expected: str, new: str) -> tuple[str, Any]:
    """Replace the text if it is as expected; return whether it was."""
    return (new, True) if text == expected else (text, False)


def append(text: str, more: str) -> tuple[str, Any]:
    """Append to the text; return its length."""
    return text + more, len(text) + len(more)


KINDS: Final[dict[str, Callable[..., tuple[str, Any]]]] = {"get": get, "put": put, "swap": swap, "append": append}
"""From the text and the arguments to the new text and the result."""

Situation = tuple[str, frozenset[Operation]]
"""The text, and which operations under way have happened."""


def broken(history: Iterable[Operation], begin: str = "") -> list[str]:
    """Return, for each key whose history is not linearizable, what shows it."""
    by_key: dict[str, list[Operation]] = {}
    for operation in history:
        by_key.setdefault(operation.key, []).append(operation)
    return [found for operations in by_key.values() if (found := _broken(operations, begin))]


def _broken(operations: list[Operation], begin: str) -> str:
    under_way: set[Operation] = set()
    possible: set[Situation] = {(begin, frozenset())}
    for operation, returns in _in_time(operations):
        if not returns:
            under_way.add(operation)
            continue
        found = {after for before in possible for after in _until(operation, before, under_way)}
        under_way.remove(operation)
        if not found:
            texts = sorted({text for text, _ in possible})
            return f"{operation} cannot be explained: the text was one of {texts}, and under way were {under_way}"
        possible = _widest({(text, happened - {operation}) for text, happened in found})
    return ""


def _widest(situations: set[Situation]) -> set[Situation]:
    """Leave out those in which more unknown operations have happened than in another one, alike in all else.

    They allow nothing that the other one does not: an unknown operation need never happen.
    """
    alike: dict[tuple[str, frozenset[Operation]], list[frozenset[Operation]]] = {}
    for text, happened in sorted(situations, key=lambda situation: len(situation[1])):
        known = frozenset(each for each in happened if each.is_known)
        kept = alike.setdefault((text, known), [])
        if not any(fewer <= happened for fewer in kept):
            kept.append(happened)
    return {(text, happened) for (text, _), kept in alike.items() for happened in kept}


def _in_time(operations: list[Operation]) -> Iterator[tuple[Operation, bool]]:
    """Yield each call, and each return with True; at one instant calls first: what touches in time is concurrent."""
    moments = [(operation.called_at, False, number) for number, operation in enumerate(operations)]
    moments += [(each.returned_at, True, number) for number, each in enumerate(operations) if each.is_known]
    for _, returns, number in sorted(moments):
        yield operations[number], returns


def _until(operation: Operation, before: Situation, under_way: set[Operation]) -> Iterator[Situation]:
    """Yield each situation in which the operation has just happened, or had before."""
    if operation in before[1]:
        yield before
        return
    seen, rest = {before}, [before]
    while rest:
        text, happened = rest.pop()
        for each in under_way - happened:
            new, result = KINDS[each.kind](text, *each.arguments)
            if each.is_known and result != each.result:
                continue
            after = new, happened | {each}
            if each is operation:
                yield after
            elif after not in seen:
                seen.add(after)
                rest.append(after)
