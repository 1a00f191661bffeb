"""Batches: the choice of a driver's operations for its next write, in their order."""

from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Final

from actors.backoff import Patience
from actors.errors import FullError, UnavailableError
from journal.store import PartlyApplied, Settled, makes_room

from .slots import Operation

SUBMIT_MAX: Final = 1_000
"""Most operations in one submit."""
SUBMIT_BYTES_MAX: Final = 4_000_000
"""Most bytes in one submit, but for a single operation that is larger."""


def next_batch(queue: deque[Operation]) -> list[Operation]:
    """Remove and return the first operations, as many as one write takes."""
    if len(queue) <= SUBMIT_MAX and sum([len(each.data) for each in queue]) <= SUBMIT_BYTES_MAX:
        taken = list(queue)
        queue.clear()
        return taken
    room, taken = SUBMIT_BYTES_MAX, list[Operation]()
    while queue and len(taken) < SUBMIT_MAX:
        room -= len(queue[0].data)
        if room < 0 and taken:
            break
        taken.append(queue.popleft())
    return taken


def freeing_batch(queue: deque[Operation]) -> list[Operation]:
    """Remove and return the waiting operations that a full store takes: cancels, kills, questions. They overtake the
    others, but none for the same invocation.
    """
    taken, left, behind = list[Operation](), deque[Operation](), set[str]()
    for operation in queue:
        if len(taken) < SUBMIT_MAX and makes_room(operation) and operation.invocation not in behind:
            taken.append(operation)
        else:
            left.append(operation)
            behind.add(operation.invocation)
    queue.clear()
    queue.extend(left)
    return taken


async def submit_until_answered(
    submit: Callable[[], Coroutine[Any, Any, Settled | PartlyApplied]], patience: Patience
) -> Settled | PartlyApplied | FullError:
    """Send a write, unchanged, until the store answers; `FullError` is an answer, unless an earlier one was lost."""
    is_first = True
    while True:
        try:
            settled = await submit()
        except FullError as error:
            if is_first:
                return error
            await patience.wait(error)
        except UnavailableError as error:
            is_first = False
            await patience.wait(error)
        else:
            patience.renew()
            return settled
