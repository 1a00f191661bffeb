"""Errors: one tree, re-exported whole by the facade.

    DurableError
    ├── TerminalError          recorded as the outcome; every other error of a handler means another attempt
    │   ├── Cancelled              409
    │   ├── DeadlockError          409
    │   └── CallTimeout            408, also a TimeoutError
    ├── UsageError             the caller's mistake, also a ValueError
    ├── NotFoundError          no such invocation
    ├── NondeterminismError    a replay that differs from its journal
    ├── UnavailableError       the store cannot be reached: outcome unknown
    │   ├── OverloadedError        a named limit was reached
    │   └── FullError              the store has no memory left; nothing was done
    ├── SettingsError          the store would lose data
    ├── DamagedError           a script failed half way
    └── DecodeError            stored bytes that this process cannot read

Errors that the durable layer raises itself are defined in `journal.errors`.
"""

from __future__ import annotations

from collections.abc import Mapping

from journal.errors import (
    DamagedError,
    DecodeError,
    DurableError,
    FullError,
    OverloadedError,
    SettingsError,
    UnavailableError,
    UsageError,
)
from journal.texts import error_text

from .stored import pinned, public

__all__ = [
    "CallTimeout",
    "Cancelled",
    "DamagedError",
    "DeadlockError",
    "DecodeError",
    "DurableError",
    "FullError",
    "NondeterminismError",
    "NotFoundError",
    "OverloadedError",
    "SettingsError",
    "TerminalError",
    "UnavailableError",
    "UsageError",
]


@public
class TerminalError(DurableError):
    """End the invocation: this failure is its outcome and reaches the caller as itself.

    A subclass arrives with its arguments and attributes, without a call of its `__init__`. Where the caller does not
    know the class, it gets a `TerminalError` whose message begins with its name, with the same code and metadata, and
    with `module:name` as the entry `error`. Code and metadata are kept as far as JSON holds them, and as text where it
    does not; very large parts (`recorded`) are cut, or described.
    """

    def __init__(self, message: str, code: int = 500, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        # Plain attributes: an exception's `__reduce__` carries its `args` (the message) and its `__dict__`.
        self.code = code
        self.metadata = dict(metadata or {})


@public
class Cancelled(TerminalError):
    """The invocation was cancelled; raised by each wait that was open then."""

    def __init__(self, message: str = "cancelled", code: int = 409, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message, code, metadata)


@public
class DeadlockError(TerminalError):
    """A call was refused: its key is held by an invocation that waits, through calls, for this call."""

    def __init__(self, message: str, code: int = 409, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message, code, metadata)


@public
class CallTimeout(TerminalError, TimeoutError):
    """A call took longer than its option `timeout`; the invocation that it waited for was cancelled."""

    def __init__(self, message: str = "timed out", code: int = 408, metadata: Mapping[str, str] | None = None) -> None:
        super().__init__(message, code, metadata)


@pinned("Refusal")
class Refusal(UsageError):
    """A handler has used I/O, threads or processes itself; it ends the invocation, whatever a library makes of it."""


@public
class NotFoundError(DurableError):
    """No invocation of this id is known: it never was, or its outcome is forgotten, by age (`retention`) or by count
    (`done_max`)."""


@public
class NondeterminismError(DurableError):
    """Replay asked for something other than what the journal holds."""

    def __init__(self, invocation_id: str, index: int, recorded: str, attempted: str) -> None:
        super().__init__(
            f"{invocation_id}: replay diverged at entry {index}: the journal holds {recorded}, the handler asked for "
            f"{attempted}. Was the handler changed while this was in flight? "
            "Wrap clocks, randomness and I/O in ctx.run()."
        )
        self.invocation_id = invocation_id
        self.index = index
        self.recorded = recorded
        self.attempted = attempted

    def explain(self, raised: BaseException) -> None:
        """Add the error that the handler has raised, which is the likelier fault: it explains other commands."""
        self.args = (f"{self.args[0]} It raised {error_text(raised, 1_000)}",)
        self.__cause__ = raised

    def __reduce__(self) -> tuple[type[NondeterminismError], tuple[str, int, str, str]]:
        # Exceptions are rebuilt from `args`, which holds the one finished sentence.
        return type(self), (self.invocation_id, self.index, self.recorded, self.attempted)
