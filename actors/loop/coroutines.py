"""Coroutines: the objects that asyncio makes tasks of, so that it makes them of ours.

`asyncio.create_task`, `TaskGroup.create_task`, `asyncio.run` and their kind take coroutines only: objects that have
`send`, `throw` and `close`. Unlike a coroutine, a `Taskable` may be awaited many times, so a wait belongs to the task
that it is the root of, not to the object.

Invariants:
    1. Each task has a wait of its own; a cancel of the task ends that wait and nothing else.
"""

import asyncio
from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from weakref import WeakKeyDictionary

S = TypeVar("S")
S_contra = TypeVar("S_contra", contravariant=True)
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_waits: WeakKeyDictionary["asyncio.Task[Any]", Generator[Any, Any, Any]] = WeakKeyDictionary()
"""The waits of tasks that were made of a `Taskable`."""

if TYPE_CHECKING:
    from collections.abc import Coroutine

    class HandlerWait(asyncio.Future[T], Coroutine[Any, Any, T]):
        """A wait of a handler: a future, of which its loop makes tasks as well.

        A coroutine for type checkers alone: `asyncio.wait` takes futures, and refuses whatever is a coroutine.
        """

        def send(self, value: Any, /) -> Any: ...
        def throw(self, *error: Any) -> Any: ...
        def close(self) -> None: ...
else:
    HandlerWait = asyncio.Future

    class Coroutine(Generic[S, S_contra, T_co]):
        # asyncio asks for the methods; the metaclass of the real one would make `isinstance` slow.
        __slots__ = ()


class Taskable(Coroutine[Any, Any, T_co]):
    """Something to await that every event loop makes tasks of."""

    __slots__ = ()

    @property
    def __name__(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]  # asyncio shows it as the task
        return repr(self)

    def send(self, value: Any, /) -> Any:
        """Begin the wait of the running task, or go on with it."""
        return self._go_on("send", value)

    def throw(self, *error: Any) -> Any:
        """Raise an error in the wait of the running task."""
        return self._go_on("throw", *error)

    def close(self) -> None:
        """End the wait of the running task."""
        task = asyncio.current_task()
        if task is not None and (wait := _waits.pop(task, None)) is not None:
            wait.close()

    def _go_on(self, how: str, *given: Any) -> Any:
        task = asyncio.current_task()
        assert task is not None, "asyncio's tasks alone go on with a wait: await it"
        wait = _waits.pop(task, None) or self.__await__()
        found = getattr(wait, how)(*given)  # an error is the end of the wait
        _waits[task] = wait
        return found
