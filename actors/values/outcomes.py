"""Outcomes: results and failures as bytes in the store, and the rule which errors are terminal.

Why so: whether an error ends the invocation must not depend on where it is looked at, so it is decided here alone. An
error that a replay could only raise again is terminal: a time-out is, since all time in a handler is durable; a mistake
in the use of the API is.
"""

import asyncio
from dataclasses import replace
from types import CodeType
from typing import Any, Final, cast

from actors import stored
from actors.errors import DecodeError, OverloadedError, Refusal, TerminalError, UsageError
from actors.tracebacks import caused, leaves, led_to, traced
from journal.codec import MISSING
from journal.records import Failure, failure, outcome_of, success
from journal.texts import error_text, full_name, repr_of, shortened, str_of

from . import seal
from .recorded import DESCRIBED_MAX, code_and_metadata, pickled_error
from .revived import attributes_of
from .values import LIVE, Scope, decode, encode, unpickled

__all__ = ["traced"]

_TERSE: Final = (AssertionError, KeyError, StopAsyncIteration, StopIteration)
"""Classes of errors whose message may be a bare value."""
NOT_UNDONE: Final = "compensation_failed"
"""Metadata of an outcome: names of compensations that failed for good."""
ERROR_MAX: Final = 1_000
"""Most characters of an error that a journal keeps of a failed attempt, or as the reason of a pause."""
NOTICE_MAX: Final = 20_000
"""Most characters of the notice of a failed attempt to waiting callers."""

_RUNS: Final = "a handler runs on an event loop already: await the coroutine instead of asyncio.run()"
_MISUSED: Final[dict[CodeType | None, str]] = {
    cast("Any", asyncio.wait).__code__: (
        "asyncio.wait() takes tasks: give it asyncio.create_task(...) of what is to be waited for"
    ),
    cast("Any", asyncio.run).__code__: _RUNS,
    cast("Any", asyncio.BaseEventLoop)._check_running.__code__: _RUNS,  # of loops and runners of one's own
}
"""Functions of asyncio that refuse how a handler has called them, and would refuse it again, with the advice."""

_OF_PYTHON: Final = (
    StopIteration,
    StopAsyncIteration,
    asyncio.CancelledError,
    GeneratorExit,
    SystemExit,
    KeyboardInterrupt,
)
"""Errors that mean something else to Python and asyncio where they are raised, also as bases of a terminal error."""


def terminal(error: BaseException) -> TerminalError | None:
    """Return the terminal error that ends the invocation, or None if another attempt follows."""
    # By its type: `isinstance`, and so `match`, asks the object's own `__class__` as well.
    kind = type(error)
    if issubclass(kind, BaseExceptionGroup) and not issubclass(kind, TerminalError):
        return _terminal_leaf(error)
    return _terminal_by_class(error)


def _refusal_behind(error: BaseException) -> Refusal | None:
    """Return the refusal behind an error of a library (`raise ConnectError from error`), if there is one.

    A refusal that the handler has caught before does not count for an unrelated error that it raises later.
    """
    found = next((one for one in led_to(error) if issubclass(type(one), Refusal)), None)
    return cast("Refusal | None", found)


def terminal_of_step(error: BaseException) -> TerminalError | None:
    """Return the terminal error that ends a step, or None if another attempt follows: also after a time-out."""
    found = next((leaf for leaf in leaves(error) if issubclass(type(leaf), TerminalError | UsageError)), None)
    return None if found is None else _terminal_by_class(found)


def _terminal_by_class(error: BaseException) -> Any:
    kind = type(error)
    if issubclass(kind, TerminalError):
        return error
    if issubclass(kind, TimeoutError):
        return _caused(TerminalError(_message_of(error) if str_of(error) else "timed out", 408, _kind(error)), error)
    if issubclass(kind, UsageError):
        return _caused(TerminalError(str_of(error), 400, _kind(error)), error)
    refusal = _refusal_behind(error)
    is_pythons = kind is TypeError or kind is RuntimeError  # no `in`: a metaclass may have an `__eq__` of its own
    if is_pythons and refusal is None and (advice := _MISUSED.get(_raised_in(error))):
        return _caused(TerminalError(f"{advice} ({error_text(error)})", 400, _kind(error)), error)
    return None if refusal is None else _caused(TerminalError(str_of(refusal), 400, _kind(refusal)), error)


def _raised_in(error: BaseException) -> CodeType | None:
    found = error.__traceback__
    while found is not None and found.tb_next is not None:
        found = found.tb_next
    return None if found is None else found.tb_frame.f_code


def _terminal_leaf(group: BaseException) -> TerminalError | None:
    # An error that the user has made terminal comes before one that is terminal by its class.
    found: TerminalError | None = None
    for leaf in leaves(group):
        if issubclass(type(leaf), TerminalError):
            found = _terminal_by_class(leaf)
            break
        found = found or _terminal_by_class(leaf)
    return None if found is None else _caused(found, group)


def _caused(error: TerminalError, cause: BaseException) -> TerminalError:
    caused(error, cause)
    return error


def _message_of(error: BaseException) -> str:
    """Return an error's message, with its class where the message says little: `KeyError: 'nope'`, not `'nope'`."""
    text, kind = str_of(error), type(error)
    return text if text and issubclass(kind, Exception) and not issubclass(kind, _TERSE) else error_text(error)


def _kind(error: BaseException) -> dict[str, str]:
    return {"error": name_of(UsageError if issubclass(type(error), Refusal) else type(error))}


def name_of(cls: type) -> str:
    """Return `module:qualname`."""
    return ":".join(full_name(cls))


def used_up(error: BaseException, what: str, attempts: int) -> TerminalError:
    """Return the terminal error of something whose retries are used up, with the message of the last failure."""
    metadata = {**_kind(error), "attempts": str(attempts), "step": what}
    return _caused(TerminalError(_message_of(error), 500, metadata), error)


def encoded_value(value: Any) -> bytes:
    """Return the outcome of a result.

    Raises:
        UsageError: the value cannot be stored.
    """
    return success(encode(value))


def encoded_error(error: TerminalError, not_undone: str = "") -> bytes:
    """Return the outcome of a terminal error, with the names of failed compensations; one of a user's class is pickled
    too.

    Never fails: a part that cannot be recorded is replaced by a description.
    """
    type_ = stored.type_of(type(error))
    code, metadata = code_and_metadata(error)
    if not_undone:
        metadata[NOT_UNDONE] = shortened(not_undone, ERROR_MAX)
    pickled = pickled_error(error) if ":" in type_ else b""
    return failure(Failure(code, str_of(error), metadata, type_, pickled))


def encoded_rejection(message: str) -> bytes:
    """Return the outcome of a rejection with this message.

    Raises:
        UsageError: it is no text.
    """
    if not isinstance(message, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # users without a checker
        raise UsageError(f"what is rejected has a message, a str, not {repr_of(message)}")
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


def checked(outcome: bytes) -> bytes:
    """Return an outcome without its seal, for a reader without secrets; an error's pickle without a seal of ours is
    dropped.

    Raises:
        DecodeError: a result has no seal of ours.
    """
    found = outcome_of(outcome)
    if isinstance(found, bytes):
        return success(b"P" + seal.unsealed(found[1:])) if found[:1] == b"P" else outcome
    if not found.pickled:
        return outcome
    try:
        return failure(replace(found, pickled=seal.unsealed(found.pickled)))
    except DecodeError:
        return failure(replace(found, pickled=b""))


def is_failure(outcome: bytes) -> bool:
    """Whether an outcome is a failure."""
    return isinstance(outcome_of(outcome), Failure)


def needs_annotation(outcome: bytes) -> bool:
    """Whether an outcome is a result that only its annotation can rebuild."""
    found = outcome_of(outcome)
    return isinstance(found, bytes) and found[:1] == b"T"


def error_of(found: Failure, scope: Scope = LIVE) -> Exception:
    """Return the error that a failure stands for; where its class is not here, a `TerminalError` with its name."""
    if found.type == "OverloadedError":
        return OverloadedError(found.message)
    _, is_named, name = found.type.partition(":")
    if found.pickled:
        error = _read(found, scope)
        if error is not None:
            return error
    else:
        kind = stored.class_of(found.type)
        if isinstance(kind, type) and issubclass(kind, TerminalError):
            return kind(found.message, found.code, dict(found.metadata))
    if not is_named:  # the store's own, or another program's
        return TerminalError(found.message, found.code, dict(found.metadata))
    error = TerminalError(
        shortened(f"{name.rpartition('.')[2]}: {found.message}", len(found.message) + DESCRIBED_MAX), found.code
    )
    error.metadata = {"error": found.type, **found.metadata}
    return error


def _read(found: Failure, scope: Scope) -> TerminalError | None:
    """Return the error of a user's class; None where that is not here, or not as it was."""
    try:
        error = unpickled(found.pickled, scope)
        if not issubclass(type(error), TerminalError) or issubclass(type(error), _OF_PYTHON):
            return None
        attributes = attributes_of(error)
        attributes.setdefault("code", found.code)  # an instance that has never called the `__init__` of TerminalError
        metadata = attributes.setdefault("metadata", dict(found.metadata))
        if NOT_UNDONE in found.metadata and type(metadata) is dict:
            metadata[NOT_UNDONE] = found.metadata[NOT_UNDONE]
    except KeyboardInterrupt:
        raise  # Ctrl-C in a program that waits
    except BaseException:  # noqa: BLE001  # code of a user's class
        return None
    return error
