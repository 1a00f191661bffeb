"""Outcomes: what becomes of an error, and how results and failures cross the store.

Why so: whether an error ends the invocation must not depend on where it is looked at, so it is decided here alone. What
a replay could only raise again is terminal: all time in a handler is durable, so a time-out is; a mistake in the use of
the API is.
"""

import sys
import traceback
from collections.abc import Iterator
from concurrent.futures import thread
from pathlib import Path
from typing import Any, Final, cast

from journal import errors
from journal.codec import MISSING
from journal.entries import Failure, failure, outcome_of, success

from .errors import OverloadedError, TerminalError, UsageError
from .refusals import Refusal
from .values import LIVE, Scope, decode, encode, pickled, unpickled

_UNSAID: Final = (str(Path(__file__).parent), str(Path(errors.__file__).parent), thread.__file__)
"""Where frames lie that say nothing to a reader of his own error: both packages, and the threads of steps."""
MESSAGE_MAX: Final = 65_536
"""Most characters of an error's message that are kept."""


def terminal(error: BaseException) -> TerminalError | None:
    """Return the terminal error that ends the invocation, or None if another attempt follows."""
    match error:
        case TerminalError():
            return error
        case BaseExceptionGroup():
            return _terminal_leaf(error)
        case TimeoutError():
            return _caused(TerminalError(str(error) or "timed out", 408, _kind(error)), error)
        case UsageError():
            return _caused(TerminalError(str(error), 400, _kind(error)), error)
        case _:
            refusal = _refusal_behind(error)
            return None if refusal is None else _caused(TerminalError(str(refusal), 400, _kind(refusal)), error)


def _refusal_behind(error: BaseException) -> Refusal | None:
    """Return the refusal that a library has made another error of (`raise ConnectError from error`), if there is one.

    One that a handler has caught and left behind is not behind what it raises later.
    """
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        if isinstance(found, Refusal):
            return found
        seen.add(id(found))
        found = found.__cause__ or found.__context__
    return None


def _terminal_leaf(group: BaseExceptionGroup[Any]) -> TerminalError | None:
    # What the user calls terminal comes before what is so by its nature.
    for leaf in sorted(_leaves(group), key=lambda leaf: not isinstance(leaf, TerminalError)):
        found = terminal(leaf)
        if found is not None:
            return _caused(found, group)
    return None


def _leaves(group: BaseExceptionGroup[Any]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(cast("BaseExceptionGroup[Any]", error))
        else:
            yield error


def _caused(error: TerminalError, cause: BaseException) -> TerminalError:
    error.__cause__ = cause
    return error


def _kind(error: BaseException) -> dict[str, str]:
    return {"error": name_of(UsageError if isinstance(error, Refusal) else type(error))}


def name_of(cls: type) -> str:
    """Return `module:qualname`."""
    return f"{cls.__module__}:{cls.__qualname__}"


def traced(error: BaseException) -> str:
    """Return the traceback of an error, of those that it groups and of its causes, without the frames of Perdure."""
    found = traceback.TracebackException.from_exception(error)
    _strip(found)
    return "".join(found.format()).rstrip()


def _strip(found: traceback.TracebackException) -> None:
    kept = [frame for frame in found.stack if not frame.filename.startswith(_UNSAID)]
    found.stack = traceback.StackSummary.from_list(kept or list(found.stack))
    for other in (found.__cause__, found.__context__, *(found.exceptions or ())):
        if other is not None:
            _strip(other)


def used_up(error: BaseException, what: str, attempts: int) -> TerminalError:
    """Return the terminal error of something whose retries are used up; it says what its last failure said."""
    metadata = {**_kind(error), "attempts": str(attempts), "step": what}
    return _caused(TerminalError(str(error) or type(error).__name__, 500, metadata), error)


def encoded_value(value: Any) -> bytes:
    """Return the outcome of a result.

    Raises:
        UsageError: the value cannot be stored.
    """
    return success(encode(value))


def encoded_error(error: TerminalError) -> bytes:
    """Return the outcome of a terminal error; one of a user's class is pickled as well."""
    kind = type(error)
    carried = b""
    if not kind.__module__.startswith("actors."):
        try:
            carried = pickled(error)
        except Exception:  # noqa: BLE001  # whatever a user's class does to pickle: code, message and metadata remain
            carried = b""
    message = str(error)
    if len(message) > MESSAGE_MAX:
        message, carried = f"{message[:MESSAGE_MAX]}… ({len(message):,} characters)", b""
    return failure(Failure(error.code, message, error.metadata, name_of(kind), carried))


def encoded_rejection(message: str) -> bytes:
    """Return the outcome of what was rejected with this message.

    Raises:
        UsageError: it is no text.
    """
    if not isinstance(message, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # users without a checker
        raise UsageError(f"what is rejected has a message, a str, not {message!r}")
    return encoded_error(TerminalError(message))


def decoded(outcome: bytes, annotation: Any = MISSING, scope: Scope = LIVE) -> Any:
    """Return the result of an outcome, or raise its failure, decoded anew each time with the classes of this scope.

    Raises:
        TerminalError: the invocation failed; of its own class where that is known here.
        DecodeError: this process cannot read the result.
    """
    found = outcome_of(outcome)
    if isinstance(found, bytes):
        return decode(found, annotation, scope)
    raise error_of(found, scope)


def is_failure(outcome: bytes) -> bool:
    """Whether an outcome is a failure."""
    return isinstance(outcome_of(outcome), Failure)


def needs_annotation(outcome: bytes) -> bool:
    """Whether an outcome is a result that only its annotation can rebuild."""
    found = outcome_of(outcome)
    return isinstance(found, bytes) and found[:1] == b"T"


def error_of(found: Failure, scope: Scope = LIVE) -> Exception:
    """Return the error that a failure stands for."""
    if found.type == "OverloadedError":
        return OverloadedError(found.message)
    if found.pickled:
        try:
            error = unpickled(found.pickled, scope)
        except Exception:  # noqa: BLE001  # its class is not here, or not as it was: documented to come as TerminalError then
            error = None
        if isinstance(error, TerminalError):
            return error
    module, _, name = found.type.partition(":")
    kind = getattr(sys.modules.get(module), name, None) if module.startswith("actors.") else None
    if not (isinstance(kind, type) and issubclass(kind, TerminalError)):
        kind = TerminalError
    return kind(found.message, found.code, dict(found.metadata))
