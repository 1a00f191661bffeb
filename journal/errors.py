"""Errors: the errors of the durable layer.

DurableError
├── UsageError             also a ValueError: the caller's mistake, says what to do
├── UnavailableError       the store cannot be reached, or an outcome is unknown
│   ├── OverloadedError    a named limit was reached
│   ├── FullError          the store has no memory left; nothing was done
│   └── NotNowError        the store answers, and does not do it now
├── SettingsError          the store's settings would lose data
├── DamagedError           a script failed half way
└── DecodeError            stored bytes cannot be made a value in this process
"""


class DurableError(Exception):
    """Anything that goes wrong in Perdure; catch this to catch all of it."""


class UsageError(DurableError, ValueError):
    """The caller made a mistake; the message says what to do instead."""


class UnavailableError(DurableError):
    """The store cannot be reached, or whether a write took effect is unknown."""


class OverloadedError(UnavailableError):
    """A limit was reached; the message names it."""


class FullError(UnavailableError):
    """The store has no memory left for what is new: this write was refused before it did anything."""


class NotNowError(UnavailableError):
    """The store answers, and does not do now what it was asked; it may in a moment."""

    elsewhere = False
    """Whether another server, found under the same name, may do it."""


class SettingsError(DurableError):
    """The store is set up so that it could lose what it acknowledged (promise 10)."""


class DamagedError(DurableError):
    """A script failed after its first write: the shard must not be served."""


class DecodeError(DurableError):
    """Stored bytes cannot be made a value here and now.

    The bytes are fine, the process lacks something: a module, a class, an annotation. It is no mistake of the caller
    whose value it is, so it must not end an invocation: a process that has what is missing can read the value.
    """
