"""Stored names: the names of this code in stored bytes. **This file never moves, and is never renamed.**

Pickles and bundles name classes and functions by module and name, a failure names its class. Stored bytes outlive every
move of the code, so that none of these names is that of the module where something happens to be defined:

- a public class or function says `__module__ = "actors"` (`public`), where the facade has it under its own name;
- everything else that bytes may name says `__module__ = "actors.stored"` (`pinned`), and is found here under a name
  that it keeps when it is renamed;
- bytes of version 0.1.0 and before name the modules of that time: `MOVED` lists these, and is never shortened.

Invariants:
    1. A name that was ever written means the same for ever: its class or function reads everything that it ever wrote.
    2. A name of ours is looked up in `NAMES` before any import, wherever stored bytes are unpickled.

Owns the names, the reading of bundles. Does not own: the named classes and functions, and how values are read
(`values`).
"""

import dataclasses
import inspect
import io
import pickle
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

from journal import codec, errors
from journal.texts import full_name

T = TypeVar("T", bound=Callable[..., Any])

FACADE: Final = "actors"
OURS: Final = (FACADE, __name__)

MOVED: Final[dict[str, tuple[str, ...]]] = {
    "actors.annotations": ("WrongTypeError",),
    "actors.awakeables": ("reject", "resolve"),
    "actors.code": ("MissingCodeError",),
    "actors.commands": ("Awakeable", "Promise"),
    "actors.context": ("Context",),
    "actors.driver": ("HostStatus", "Session", "Status", "attach", "init", "shutdown", "status"),
    "actors.errors": (
        *("CallTimeout", "Cancelled", "DeadlockError", "NondeterminismError", "NotFoundError", "TerminalError"),
    ),
    "actors.handlers": ("BoundHandler", "Call", "Handler", "_Maker", "_restored_handler"),
    "actors.invocation": ("Accepted", "Invocation", "NoFutureError", "get", "wait"),
    "actors.objects": (
        *("ByName", "Durable", "Keyed", "Service", "Unindexed", "VirtualObject", "Workflow"),
        *("_Table", "_restored_address", "object_handle"),
    ),
    "actors.place": ("CallOptions",),
    "actors.policy": ("Policy", "Retry", "RetryAfter"),
    "actors.records": ("made", "made_tuple", "restore"),
    "actors.refusals": ("Refusal",),
    "actors.revived": ("revived",),
    "actors.sagas": ("AsHandler",),
    "actors.schedule": ("Firing", "Schedule", "ScheduleStatus", "Spec"),
    "actors.scheduling": ("schedules",),
    "actors.state": ("Addressed", "Options", "State", "Unkeyed", "_restored_state", "state"),
    "actors.ticks": ("Timing",),
    "actors.values": ("_named",),
    "journal.codec": ("_Missing",),
    "journal.errors": (
        *("DamagedError", "DecodeError", "DurableError", "FullError", "NotNowError", "OverloadedError"),
        *("SettingsError", "UnavailableError", "UsageError"),
    ),
}
"""Names in the stored bytes of version 0.1.0, by the modules of that time."""

NAMES: Final[dict[tuple[str, str], Any]] = {}
"""Everything that stored bytes name, by module and name: of today, and of the time when they were written."""

_moved_from: Final = {name: module for module, names in MOVED.items() for name in names}


def public(it: T) -> T:
    """Let stored bytes name a public class or function, which the facade has under its own name."""
    return _enter(it, FACADE, it.__name__)


def pinned(name: str) -> Callable[[T], T]:
    """Let stored bytes find this under this name here, whatever it is called and wherever it is defined."""
    return lambda it: _enter(it, __name__, name)


def _enter(it: T, module: str, name: str) -> T:
    known = NAMES.setdefault((module, name), it) if module == FACADE else globals().setdefault(name, it)
    assert known is it, f"{module}.{name} is something else already"
    _keep_annotations(it)
    it.__module__, it.__qualname__ = module, name
    NAMES[module, name] = it
    if name in _moved_from:
        NAMES[_moved_from[name], name] = it
    return it


def _keep_annotations(it: Any) -> None:
    """Resolve the annotations of a dataclass: later they would be looked up in the module that it names."""
    if dataclasses.is_dataclass(it):
        it.__annotations__ = inspect.get_annotations(cast("type", it), eval_str=True)
        for field in dataclasses.fields(it):
            field.type = it.__annotations__[field.name]


def type_of(cls: type) -> str:
    """Return the name under which a failure stores its class: the bare name of one of ours, else `module:qualname`."""
    module, name = full_name(cls)
    return name if NAMES.get((module, name)) is cls else f"{module}:{name}"


def class_of(type_: str) -> Any:
    """Return the class of ours behind a failure's stored name, of today or of earlier; None for others."""
    module, is_earlier, name = type_.rpartition(":")
    if is_earlier:
        return NAMES.get((module, name))
    return NAMES.get((FACADE, name)) or NAMES.get((__name__, name))


class _BundleUnpickler(pickle.Unpickler):
    """Finds our classes and functions by their stored names."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        found = NAMES.get((module_name, global_name))
        return super().find_class(module_name, global_name) if found is None else found


def loads(data: bytes) -> Any:
    """Return an object that was pickled by value: code, whichever version of ours has written it."""
    return _BundleUnpickler(io.BytesIO(data)).load()


# The layer below knows of no facade, so that its classes are entered here.
for _each in (
    *(errors.DamagedError, errors.DecodeError, errors.DurableError, errors.OverloadedError, errors.SettingsError),
    *(errors.UnavailableError, errors.UsageError),
):
    public(_each)
for _each in (errors.FullError, errors.NotNowError, type(codec.MISSING)):
    pinned(_each.__name__)(_each)
