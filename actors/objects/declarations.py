"""Members: reads and checks the handlers and fields that a class declares, its bases included.

Pure: each call reads the classes as they are then, and stores nothing.
"""

from collections.abc import Mapping
from typing import Any, Final, cast

from actors.errors import UsageError
from actors.requests.run_ids import RUN

from .handlers import Handler
from .methods import FIRST, WRAPS, encloses, hides
from .state import State, Unkeyed

TAKEN: Final = frozenset({"handle", "_fields", "_key", "_options", "_table", "_validates"})
"""Names that the base classes use themselves."""


def members(cls: type) -> tuple[dict[str, Handler[Any, Any]], dict[str, State[Any]]]:
    """Return the handlers and the fields of a class.

    Raises:
        UsageError: members contradict each other, or their names are taken.
    """
    handlers: dict[str, Handler[Any, Any]] = {}
    fields: dict[str, State[Any]] = {}
    for base in reversed(cls.__mro__):
        for name, value in vars(base).items():
            if isinstance(value, Handler):
                handlers[name] = cast("Handler[Any, Any]", value)
                _check_member(base, name, handlers[name], fields)
            elif isinstance(value, State):
                fields[name] = cast("State[Any]", value)
                _check_member(base, name, fields[name], handlers)
            elif name in handlers or name in fields:
                raise UsageError(f"{base.__name__}.{name} hides a handler or field: decorate it too, or rename it")
            elif encloses(value, Handler):
                raise UsageError(f"{base.__name__}.{name} was a handler, and its decorator hides it: {FIRST}")
    reentrant = [name for name, found in handlers.items() if found.reentrant]
    if reentrant and Unkeyed in cls.__mro__:
        raise UsageError(
            f"{cls.__name__}.{reentrant[0]}: a service has no key to come back to; leave reentrant=True out"
        )
    return handlers, fields


def _check_member(base: type, name: str, value: Handler[Any, Any] | State[Any], others: Mapping[str, object]) -> None:
    where = f"{base.__name__}.{name}"
    if name.startswith("_"):
        raise UsageError(f"{where}: handlers and fields do not begin with '_', helpers do")
    if name in TAKEN:
        raise UsageError(f"{where}: the name is taken")
    if name in others:
        raise UsageError(f"{where} is declared twice: a name is a handler or a field, in all bases")
    if isinstance(value, Handler) and hides(value.fn, name):
        raise UsageError(
            f"{where}: a decorator puts {value.fn.__name__!r} in its place, which hides its types: {WRAPS}"
        )
    if value.name != name:
        raise UsageError(f"{where} is also called {value.name!r}: declare it once")


def check_run(cls: type, handlers: Mapping[str, Handler[Any, Any]]) -> None:
    """Refuse a workflow without `run`, or with another exclusive handler."""
    run = handlers.get(RUN)
    if run is None:
        raise UsageError(f"{cls.__name__} is a Workflow: it needs `@handler async def run(self, ctx, ...)`")
    if not run.exclusive:
        raise UsageError(f"{cls.__name__}.run is the workflow itself, once for each key: make it a @handler")
    for name, found in handlers.items():
        if found.reentrant:
            raise UsageError(
                f"{cls.__name__}.{name} happens once for each key: nothing calls it back; not reentrant=True"
            )
        if found.exclusive and name != RUN:
            raise UsageError(f"{cls.__name__}.{name}: run is the only @handler of a Workflow; make this one @shared")
