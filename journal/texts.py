"""Texts: bounded texts about any object, whatever its methods do.

Host code says things of users' errors, values and classes: in outcomes, records, notices, logs. Each of these runs code
of the user, which may raise anything, return anything, and be of any size. So host code asks here, and nowhere by
`str`, `repr` or an f-string.

Invariants:
    1. Nothing here raises, whatever the object does, and all results are plain `str` of bounded length.
    2. An object's class is its `type`, never its attribute `__class__`.
"""

from collections.abc import Callable
from typing import Any, Final

MESSAGE_MAX: Final = 65_536
"""Most characters of an error's message that are kept."""
NAME_MAX: Final = 200
"""Most characters of a class's name that are kept."""

# Descriptors of `type` itself: a metaclass may have names of its own making.
_name_in: Final[Callable[[type], Any]] = type.__dict__["__name__"].__get__
_qualname_in: Final[Callable[[type], Any]] = type.__dict__["__qualname__"].__get__
_module_in: Final[Callable[[type], Any]] = type.__dict__["__module__"].__get__


def shortened(text: str, most: int) -> str:
    """Return a text; of a longer one the beginning, and its length."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text):,} characters)"


def str_of(value: object, most: int = MESSAGE_MAX) -> str:
    """Return the `str` of an object."""
    return _asked(str, value, most)


def repr_of(value: object, most: int = 1_000) -> str:
    """Return the `repr` of an object."""
    return _asked(repr, value, most)


def _asked(ask: Callable[[object], str], value: object, most: int) -> str:
    try:
        return shortened(str.__str__(ask(value)), most)  # plain: a subclass has methods of its own
    except BaseException as error:  # noqa: BLE001 - code of the user, which may raise anything
        return f"<{class_name(type(value))}, whose {ask.__name__}() raised {class_name(type(error))}>"


def error_text(error: BaseException, most: int = MESSAGE_MAX) -> str:
    """Return an error's class and message, as the last line of a traceback does: `KeyError: 'nope'`."""
    message = str_of(error, most)
    return f"{class_name(type(error))}: {message}" if message else class_name(type(error))


def class_name(cls: type) -> str:
    """Return the name of a class."""
    return _name(_name_in, cls)


def full_name(cls: type) -> tuple[str, str]:
    """Return module and qualified name of a class."""
    return _name(_module_in, cls), _name(_qualname_in, cls)


def _name(get: Callable[[type], Any], cls: type) -> str:
    try:
        return shortened(str.__str__(get(cls)), NAME_MAX)
    except Exception:  # noqa: BLE001 - a module that is no text
        return "?"
