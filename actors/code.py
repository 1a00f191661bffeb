"""Code: how the classes of a program reach hosts that have never seen it.

A driver stores the code of a class, by value, under the hash of its sources; messages name that hash; a host that meets
it for the first time loads it. A host in the driver's own process uses the classes that live there and never unpickles
them: that would replace the methods of a live class by copies with other globals. Such a program sends no code: its
messages say that it has the class (`UNSENT`). A host that can find none leaves them, and what was begun, as they are
until a program that has it owns the shard: a program that was started beside it, or after it, ends nothing of it.

By value goes every class, function and module that the class reaches and that a developer may edit: what lies neither
in the standard library nor among installed packages, which hosts have.

Invariants:
    1. One hash is one set of classes in a process: all that a class refers to travels together, and is loaded once.
    2. The hash depends on the sources that were reached and on Python's minor version, not on the pickle, which differs
       in every process; only where there is no source (a prompt, a function's variables) it is made from the pickle.
"""

import asyncio
import dataclasses
import hashlib
import inspect
import io
import json
import logging
import sys
import sysconfig
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final, TypeGuard, cast
from weakref import ref

import cloudpickle

from journal.clock import boot_seconds
from journal.store import Store

from .errors import TerminalError, UsageError
from .objects import Declaration, Durable, classes_changed, declaration, find_type, type_name
from .schedule import INTERNAL
from .values import Name, Scope, adopt, living, name_of, note_sent, scope_of, sent

logger = logging.getLogger("actors")

CURRENT_FOR: Final = 1.0
"""Seconds for which a host takes the code of a call by name for current before it asks the store again."""

UNSENT: Final = "-"
"""In place of a hash: the class lives in the sender's process, which has not sent it."""
MISSING_FOR: Final = 1.0
"""Seconds after which a host looks again for a class that it could not find."""

_PYTHON: Final = f"{sys.version_info[0]}.{sys.version_info[1]}"
_OURS: Final = ("actors", "journal")
_INSTALLED: Final = tuple(
    {str(Path(sysconfig.get_path(name)).resolve()) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)
_NO_FILE: Final = "<dynamic-code>"
"""What cloudpickle says in place of a file."""
_SENTINELS: Final = ("MISSING", "KW_ONLY", "_HAS_DEFAULT_FACTORY")
_pickling: Final[Any] = cloudpickle
"""cloudpickle without its annotations, which are partial."""
_lock: Final = RLock()
"""What goes by value is registered with cloudpickle for the whole process, so one bundle is made at a time."""


class MissingCodeError(TerminalError):
    """Neither this process nor the store has the class."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """The code of a class and of all that it reaches."""

    digest: str
    data: bytes
    types: tuple[str, ...]
    """All types in it."""


def bundle_of(cls: type[Durable]) -> Bundle:
    """Return the code of a class, by value, with all types of its module and all that they reach.

    Raises:
        UsageError: something that its handlers refer to cannot be sent; it says what.
    """
    try:
        return _bundle({cls, *_beside(cls)})
    except UsageError:
        return _bundle({cls})  # another class of the module may be the one that cannot be sent


class Sender:
    """What a program has sent of its classes: each bundle is put into the store once, when it is first wanted."""

    def __init__(self, put: Callable[[Bundle], object]) -> None:
        self._put = put
        self._digests: dict[type[Durable], str] = {}

    def digest_of(self, cls: type[Durable]) -> str:
        """Return the hash of a class's code, which the store has now.

        Raises:
            UsageError: its code cannot be sent.
        """
        digest = self._digests.get(cls)
        if digest is None:
            declaration(cls)
            bundle = bundle_of(cls)
            self._put(bundle)
            for name in bundle.types:
                found = find_type(name)
                if found is not None and found.__module__ == cls.__module__:
                    self._digests[found] = bundle.digest
            digest = self._digests[cls] = bundle.digest
        return digest


def _bundle(classes: set[type]) -> Bundle:
    with _lock:
        found = _Reached(classes, {cls.__module__ for cls in classes if _travels(cls.__module__)})
        while (seen := _seen(found)) != found:
            found = seen
        names = _names(found.classes)
        data = _dumped(names, found)[0]
    for each in names.values():
        note_sent(each)
    types = {type_name(each): name for name, each in names.items() if _is_type(each)}
    header = json.dumps({"python": _PYTHON, "types": types}).encode()
    return Bundle(_digest(found, sorted(types), data), header + b"\n" + data, tuple(sorted(types)))


def _beside(cls: type[Durable]) -> set[type]:
    """Return the types that the module of a class defines, so that whichever is used first, they get one hash."""
    values = vars(sys.modules[cls.__module__]).values() if cls.__module__ in sys.modules else ()
    return {each for each in values if isinstance(each, type) and each.__module__ == cls.__module__ and _is_type(each)}


@dataclass(frozen=True, slots=True)
class _Reached:
    classes: set[type]
    modules: set[str]
    """Names of those that go by value."""


def _is_type(cls: type) -> TypeGuard[type[Durable]]:
    return issubclass(cls, Durable) and "_options" in vars(cls)


def _travels(name: str | None) -> bool:
    """Whether a module goes by value: its source is a file of the user's own, or it is the program itself."""
    module = sys.modules.get(name or "")
    if name == "__main__":
        return True
    if not isinstance(module, ModuleType) or module.__name__.partition(".")[0] in _OURS:
        return False
    path = getattr(module, "__file__", None)
    if not isinstance(path, str) or not path.endswith(".py"):
        return False
    resolved = Path(path).resolve()
    return "site-packages" not in resolved.parts and not str(resolved).startswith(_INSTALLED)


class _Pickler(cloudpickle.Pickler):
    """Notes the user's classes and modules that it meets."""

    def __init__(self, file: io.BytesIO, seen: _Reached) -> None:
        cast("Any", super()).__init__(file)
        self._seen = seen

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, ModuleType):
            if _travels(obj.__name__):
                self._seen.modules.add(obj.__name__)
        elif isinstance(obj, type | FunctionType):
            name = obj.__module__
            if _travels(name):
                self._seen.modules.add(name)
                if isinstance(obj, type):
                    self._seen.classes.add(obj)
        if type(obj) is CodeType:
            return _with_file(obj)
        return _sentinel(obj) or _with_slots(obj, cast("Any", super()).reducer_override(obj), _pickling)


def _with_file(code: CodeType) -> Any:
    """Return what makes a code anew under the name of its file, for tracebacks: cloudpickle replaces it by a word."""
    make, arguments = _pickling.Pickler.dispatch_table[CodeType](code)
    if Path(code.co_filename).is_file():  # none of a notebook's, which are other ones in each process
        arguments = tuple(code.co_filename if each == _NO_FILE else each for each in arguments)
    return make, arguments


def _sentinel(obj: Any) -> str | None:
    """Return the name of what everybody compares with `is`, and cloudpickle would make anew."""
    if type(obj).__module__ != "dataclasses":
        return None
    return next((name for name in _SENTINELS if obj is getattr(dataclasses, name)), None)


def _with_slots(obj: Any, reduced: Any, pickling: Any) -> Any:
    """Have a class made with its slots: cloudpickle sets them afterwards, when they make nothing any more."""
    is_plain = type(obj) is type and "__slots__" in vars(obj) and not issubclass(obj, tuple)
    if is_plain and type(reduced) is tuple and reduced[0] is pickling.cloudpickle._make_skeleton_class:
        cast("Any", reduced)[1][3]["__slots__"] = cast("Any", obj).__slots__
    return cast("Any", reduced)


def _names(classes: set[type]) -> dict[Name, type]:
    """Return classes by name; of several the one that is found by it (a dataclass with slots leaves another behind)."""
    names = {name_of(cls): cls for cls in classes}
    return {name: found if (found := living(*name)) in classes else names[name] for name in sorted(names)}


def _seen(reached: _Reached) -> _Reached:
    """Return what these reach, when those modules go by value."""
    seen = _dumped(_names(reached.classes), reached)[1]
    return _Reached(seen.classes | reached.classes, seen.modules | reached.modules)


def _dumped(names: dict[Name, type], reached: _Reached) -> tuple[bytes, _Reached]:
    file, seen = io.BytesIO(), _Reached(set(), set())
    try:
        with _by_value(reached.modules, _pickling):
            cast("Any", _Pickler(file, seen)).dump(names)
    except Exception as error:  # a user's globals may hold anything
        raise UsageError(_unsendable(names, seen.modules, error)) from error
    return file.getvalue(), seen


@contextmanager
def _by_value(names: set[str], pickling: Any) -> Generator[None]:
    modules = [sys.modules[name] for name in names if name != "__main__"]  # that one goes by value anyway
    modules = [module for module in modules if module.__name__ not in pickling.list_registry_pickle_by_value()]
    for module in modules:
        pickling.register_pickle_by_value(module)
    try:
        yield
    finally:
        for module in modules:
            pickling.unregister_pickle_by_value(module)


def portable(value: Any, pickling: Any) -> bytes:
    """Return a pickle, by this copy of cloudpickle, in which classes that were sent to hosts go by value."""

    class Pickler(pickling.Pickler):
        def reducer_override(self, obj: Any) -> Any:
            reduced: Any = pickling.Pickler.reducer_override(self, obj)
            return _sentinel(obj) or _with_slots(obj, reduced, pickling)

    file = io.BytesIO()
    with _lock, _by_value({module for module, _ in sent() if _travels(module)}, pickling):
        Pickler(file).dump(value)
    return file.getvalue()


def _unsendable(names: dict[Name, type], modules: set[str], error: Exception) -> str:
    types = ", ".join(type_name(cls) for cls in names.values() if _is_type(cls))
    culprits: list[str] = []
    for name in sorted(modules & sys.modules.keys()):
        for key, value in list(vars(sys.modules[name]).items()):
            if key.startswith("__") or isinstance(value, type | FunctionType | ModuleType):
                continue
            try:
                _pickling.dumps(value)
            except Exception:  # noqa: BLE001 - that is the question
                culprits.append(f"{name}.{key} ({type(value).__name__})")
    named = f" It may be {', '.join(culprits[:5])}." if culprits else ""
    return (
        f"the code of {types} cannot be sent to hosts: {error}.{named} What its handlers refer to and no "
        "pickle can hold (a socket, a lock, an open file, a client) is made in a step, or by a function that it calls"
    )


def _digest(reached: _Reached, types: list[str], data: bytes) -> str:
    digest = hashlib.blake2b(digest_size=10)
    digest.update(f"{_PYTHON}\0{types}\0".encode())
    has_sources = True
    for name in sorted(reached.modules | {cls.__module__ for cls in reached.classes}):
        try:
            source = inspect.getsource(sys.modules[name])
        except (OSError, TypeError):  # a notebook, a prompt
            has_sources = False
        else:
            digest.update(f"{name}\0{source}\0".encode())
    if not has_sources or any("<locals>" in each.__qualname__ for each in reached.classes):
        digest.update(_without_trackers(data, reached))
    return digest.hexdigest()


def _without_trackers(data: bytes, reached: _Reached) -> bytes:
    """Return a pickle without the random numbers by which cloudpickle knows a class again."""
    trackers = cast("Mapping[type, str]", _pickling.cloudpickle._DYNAMIC_CLASS_TRACKER_BY_CLASS)
    for number, cls in enumerate(sorted(reached.classes, key=name_of)):
        tracker = trackers.get(cls)
        if tracker is not None:
            data = data.replace(tracker.encode(), b"%d" % number)
    return data


class CodeBook:
    """The classes that this host knows, by type and by the hash of their code."""

    def __init__(self, store: Store, *, live: bool, now: Callable[[], float] = boot_seconds) -> None:
        self._store, self._live, self._now = store, live, now
        self._known: dict[tuple[str, str], Declaration] = {}
        self._current: dict[str, tuple[Declaration, float]] = {}
        self._own: dict[str, ref[type[Durable]]] = {}
        """What was found while no class has changed since; weak, as what a function defines may go."""
        self._changed = 0
        self._lock = asyncio.Lock()

    def code_of(self, cls: type[Any] | None) -> str:
        """Return the hash that a class came with, UNSENT for a live one."""
        return "" if cls is None else scope_of(cls).digest or (UNSENT if self._live else "")

    def find(self, type_: str, digest: str) -> Declaration | None:
        """Return a class that is here; None if it must be fetched."""
        if digest and digest != UNSENT:
            return self._known.get((type_, digest))
        if self._live:
            cls = self._own_type(type_)
            if cls is not None:
                return declaration(cls)
        found, until = self._current.get(type_, (None, 0.0))
        return found if self._now() < until else None

    def _own_type(self, type_: str) -> type[Durable] | None:
        if self._changed != (changed := classes_changed()):
            self._changed, self._own = changed, {}
        known = self._own.get(type_)
        cls = known() if known is not None else None
        if cls is None and (cls := _own_type(type_)) is not None:
            self._own[type_] = ref(cls)
        return cls

    async def current(self, type_: str) -> str:
        """Return the hash of a type's code that a new invocation would have, empty where it is here by itself."""
        return "" if self._live and self._own_type(type_) is not None else await self._store.current_code(type_)

    async def fetch(self, type_: str, digest: str) -> Declaration:
        """Return a class from the store, or by import where the store has no code of it.

        Raises:
            MissingCodeError: nobody has stored such a type (404).
            Exception: whatever the code raises as it is loaded.
        """
        async with self._lock:  # else two who ask at once make two classes
            if digest and digest != UNSENT:
                found = self._known.get((type_, digest)) or await self._fetched(type_, digest)
            else:
                wanted = await self._store.current_code(type_)
                found = self._known.get((type_, wanted)) or await self._fetched(type_, wanted)
                self._current[type_] = found, self._now() + CURRENT_FOR
            return found

    async def _fetched(self, type_: str, digest: str) -> Declaration:
        # A message to an object of Perdure itself may bring the code of a class that it is to call.
        data = await self._store.code(digest) if digest and not type_.startswith(INTERNAL) else None
        if data is None:
            cls = _own_type(type_)
            if cls is not None:  # of a package that is installed here
                found = declaration(cls)
                if digest:
                    self._known[type_, digest] = found
                return found
            raise MissingCodeError(
                f"no class {type_!r} is known to the hosts: a program that has it must use it once "
                f"({type_}[...].<handler>.remote(...)), so that its code is stored",
                404,
            )
        for name, cls in _loaded(digest, data).items():
            self._known[name, digest] = declaration(cls)
        found = self._known.get((type_, digest))
        if found is None:
            raise TerminalError(f"the code {digest} has no class {type_!r}", 404)
        return found


def _own_type(type_: str) -> type[Durable] | None:
    """Return the class of this type that this process has by itself, whatever code of it was loaded since."""
    cls = find_type(type_)
    if cls is None or not scope_of(cls).digest:
        return cls
    found = living(*name_of(cls))
    is_own = isinstance(found, type) and issubclass(found, Durable) and not scope_of(found).digest
    return cast("type[Durable]", found) if is_own else None


def _loaded(digest: str, data: bytes) -> dict[str, type[Durable]]:
    """Return the types of a bundle, made anew in this process."""
    head, _, body = data.partition(b"\n")
    header = json.loads(head)
    if header["python"] != _PYTHON:
        logger.warning("the code %s is of Python %s: importing its classes by path", digest, header["python"])
        return {name: _imported(name, *place) for name, place in header["types"].items()}
    names: dict[Name, type] = cloudpickle.loads(body)
    scope = Scope(digest, names)
    for name, cls in names.items():
        if living(*name) is not cls:
            cls.__qualname__ = name[1]  # cloudpickle keeps the last part of it alone
            adopt(cls, scope)
    return {type_name(cls): cls for cls in names.values() if _is_type(cls)}


def _imported(type_: str, module: str, qualname: str) -> type[Durable]:
    found = living(module, qualname, imports=True)
    if not (isinstance(found, type) and issubclass(found, Durable)):
        raise TerminalError(
            f"the class {type_!r} was sent by another Python than {_PYTHON}, and {module}.{qualname} cannot be "
            "imported here: use one minor version everywhere, or install the package on the hosts",
            500,
        )
    return found
