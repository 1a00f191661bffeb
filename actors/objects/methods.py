"""Methods: checks of the functions that become handlers, decorated or not.

Pure. A decorator that uses `functools.wraps` hides nothing: name, parameters and annotations are those of the wrapped
function, and the method is async if any function in the chain is. A decorator without it would work, and silently hide
all of them.
"""

import functools
import inspect
from collections.abc import Callable, Collection
from typing import Any, Final, cast

from actors.errors import UsageError

WRAPS: Final = "let the decorator copy what it wraps, by @functools.wraps(fn) above its wrapper"
FIRST: Final = "put @handler or @shared first, above all other decorators"
INSTEAD: Final = "write `def name(self, ctx, ...)` under @handler or @shared"


def short(fn: Callable[..., Any]) -> str:
    """Return the name of a function within its module or function."""
    return fn.__qualname__.rpartition("<locals>.")[2]


def is_async(fn: Callable[..., Any], /) -> bool:
    """Whether a call of the method has to be awaited."""
    return inspect.iscoroutinefunction(inspect.unwrap(fn, stop=inspect.iscoroutinefunction))


async def awaited(fn: Callable[..., Any], me: object, ctx: object, args: Any, kwargs: Any, *, is_async: bool) -> Any:
    """Call a method that is no coroutine function itself, inside the handler's task."""
    value = fn(me, ctx, *args, **kwargs)
    return await value if is_async and inspect.isawaitable(value) else value


def check_method(fn: Any, *, is_handler: bool) -> None:
    """Refuse an object that cannot be a handler.

    Raises:
        UsageError: `fn` cannot be a handler; the message names its kind, and the correct form.
    """
    if is_handler:
        raise UsageError(f"{fn!r} is one already: one of @handler and @shared is enough")
    if not inspect.isfunction(fn):
        raise UsageError(f"a handler is a function of the class body, not {_what(fn)}")
    for one in (fn, inspect.unwrap(fn)):
        if inspect.isgeneratorfunction(one) or (
            inspect.isasyncgenfunction(one) and not inspect.iscoroutinefunction(fn)
        ):
            raise UsageError(f"{short(fn)} yields: a handler returns one value")
    parameters = list(inspect.signature(fn).parameters.values())
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if len(parameters) < 2 or any(parameter.kind not in positional for parameter in parameters[:2]):
        if _takes_all(parameters):
            raise UsageError(f"{short(fn)}(*args, **kwargs) hides the handler's arguments: {WRAPS}")
        raise UsageError(f"a handler takes self and ctx first: def {fn.__name__}(self, ctx, ...)")


def _what(fn: Any) -> str:
    if isinstance(fn, classmethod | staticmethod):
        kind = type(cast("object", fn)).__name__
        return f"a {kind}: it is called on an object, so leave @{kind} out and {INSTEAD}"
    if isinstance(fn, property | functools.cached_property):
        return f"a property: a caller cannot read one from afar, so {INSTEAD}"
    if isinstance(fn, functools.partial | functools.partialmethod):
        return f"a functools.{type(cast('object', fn)).__name__}: {INSTEAD}, which calls it"
    if isinstance(fn, type):
        return f"the class {fn.__name__}: {INSTEAD}"
    if callable(fn) and callable(inner := getattr(fn, "__wrapped__", None)):
        return f"the wrapper of {getattr(inner, '__name__', inner)!s} by a decorator ({type(fn).__name__}): {WRAPS}"
    if callable(fn):
        return f"{fn!r}, a {type(fn).__name__}: {INSTEAD}, which calls it"
    return f"{fn!r}: {INSTEAD}"


def _takes_all(parameters: Collection[inspect.Parameter]) -> bool:
    kinds = {parameter.kind for parameter in parameters}
    return {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD} <= kinds


def hides(fn: Callable[..., Any], name: str) -> bool:
    """Whether the method of this name is the wrapper of a decorator without `functools.wraps`."""
    return fn.__name__ != name and any(getattr(one, "__name__", "") == name for one in _enclosed(fn))


def encloses(value: object, of: type) -> bool:
    """Whether a member of a class body is a wrapper that a decorator has put around a handler."""
    for part in ("__wrapped__", "__func__", "fget", "func"):
        if isinstance(getattr(value, part, None), of):
            return True
    return inspect.isfunction(value) and any(isinstance(one, of) for one in _enclosed(value))


def _enclosed(fn: Callable[..., Any]) -> list[object]:
    found: list[object] = []
    for cell in getattr(fn, "__closure__", None) or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # an empty cell
            continue
    return found
