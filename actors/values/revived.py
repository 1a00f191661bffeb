"""Revived exceptions: stored as class, arguments and attributes, and read without a call of `__init__`.

Python rebuilds an exception by calling its class with its `args`. That fails, or makes another error, where a class has
an `__init__` of its own that takes other arguments than it passes on, as most do that hold more than a message.

Invariant: a class's own way of being pickled (`__reduce__`, `__getstate__`, …) is kept.
"""

from contextlib import suppress
from types import FunctionType, MemberDescriptorType
from typing import Any, Final, cast

from actors.stored import pinned

_ERROR: Final = cast("Any", BaseException)
_SAYS_HOW: Final = (
    "__reduce__",
    "__reduce_ex__",
    "__getstate__",
    "__setstate__",
    "__getnewargs__",
    "__getnewargs_ex__",
)

_MADE_BY_CLASS: Final = 1 << 9
"""The flag of classes that a `class` statement has made (Py_TPFLAGS_HEAPTYPE): all others are Python's own."""

Parts = tuple[type, tuple[Any, ...], dict[str, Any], dict[str, Any]]
"""Class, arguments, attributes, and members outside of its `__dict__`."""


def is_revived(kind: type) -> bool:
    """Whether errors of a class are made from their parts: it has an `__init__`, and no way of its own to pickle."""
    if not (issubclass(kind, BaseException) and isinstance(kind.__init__, FunctionType)):
        return False
    return not any(isinstance(getattr(kind, name, None), FunctionType) for name in _SAYS_HOW)


def parts_of(error: BaseException) -> Parts:
    """Return the parts of an error."""
    kind, members = type(error), dict[str, Any]()
    for base in kind.__mro__:
        for name, member in vars(base).items():
            if isinstance(member, MemberDescriptorType) and not name.startswith("__"):
                with suppress(AttributeError):  # a slot that is empty
                    members.setdefault(name, member.__get__(error))
    # Python's own classes distinguish an attribute that was never set, and reads as None, from one that was set to
    # None.
    members = {name: value for name, value in members.items() if value is not None}
    return kind, _ERROR.args.__get__(error), dict(attributes_of(error)), members


def attributes_of(error: BaseException) -> dict[str, Any]:
    """Return the `__dict__` of an error."""
    return _ERROR.__dict__["__dict__"].__get__(error)


@pinned("revived")
def revived(kind: type, args: tuple[Any, ...], attributes: dict[str, Any], members: dict[str, Any]) -> BaseException:
    """Return the error that is made of these parts."""
    inner: Any = next(base for base in kind.__mro__ if not base.__flags__ & _MADE_BY_CLASS)
    is_group = issubclass(kind, BaseExceptionGroup)
    error = inner.__new__(kind, *(args[:2] if is_group else args))
    _ERROR.args.__set__(error, args)
    attributes_of(error).update(attributes)
    for name, value in members.items():
        with suppress(AttributeError, TypeError):  # of a group they are set for good as it is made
            object.__setattr__(error, name, value)
    return error


class Made:
    """Pickles as the error that is made of these parts."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def __reduce__(self) -> tuple[Any, Parts]:
        return revived, self._parts
