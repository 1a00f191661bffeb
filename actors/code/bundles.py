"""Bundles: the code of a class and of all that it reaches, by value.

By value goes every class, function and module that the class reaches and that a developer may edit: everything outside
of the standard library and of installed packages, which hosts have.

Owns the pickle and its hash. Does not own: sending and loading (`code`).

Invariants:
    1. All that a class refers to travels together, under one hash.
    2. The hash depends on the code as it is now: on the sources of all modules that were reached, and on the values
       that their functions and classes refer to; where there is no source (a prompt, a notebook) on the code itself. It
       is the same in every process that has the same code, unlike a pickle.
"""

import dataclasses
import hashlib
import inspect
import io
import json
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from types import CodeType, FunctionType, ModuleType
from typing import Any, Final, TypeGuard, cast

import cloudpickle

from actors.errors import UsageError
from actors.objects.objects import Durable, type_name
from actors.values.values import Name, living, name_of, note_sent, sent
from journal.texts import str_of

from .code_hash import CodeHash, Globals, goes_by_value

PYTHON: Final = f"{sys.version_info[0]}.{sys.version_info[1]}"
_NO_FILE: Final = "<dynamic-code>"
"""cloudpickle's word in the place of a file's name."""
_SENTINELS: Final = ("MISSING", "KW_ONLY", "_HAS_DEFAULT_FACTORY")
_pickling: Final[Any] = cloudpickle
"""cloudpickle without its annotations, which are partial."""
_lock: Final = RLock()
"""Modules that go by value are registered with cloudpickle for the whole process, so one bundle is made at a time."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """The code of a class and of all that it reaches."""

    digest: str
    data: bytes
    types: tuple[str, ...]
    """All types in it."""
    globals: Globals | None
    """The globals of its functions, to be compared later; None where values do not count."""


def bundle_of(cls: type[Durable]) -> Bundle:
    """Return the code of a class, by value, with all types of its module and all that they reach.

    Raises:
        UsageError: an object that its handlers refer to cannot be sent; the message names it.
    """
    try:
        return _bundle({cls, *_types_of_module(cls)}, values=True)
    except UsageError:
        return _bundle({cls}, values=True)  # another class of the module may be the one that cannot be sent


def living_bundle_of(cls: type[Durable]) -> Bundle:
    """Return the code of a class that hosts in this process use as it lives here, under its hash `digest_of`.

    Raises:
        UsageError: an object that its handlers refer to cannot be sent; the message names it.
    """
    return _bundle({cls}, values=False)


def digest_of(cls: type[Durable]) -> str:
    """Return the hash of the code of a class, without the values that it refers to; nothing is pickled for it."""
    return _hashed({cls}, values=False)[0]


def _bundle(classes: set[type], *, values: bool) -> Bundle:
    with _lock:
        found = _Reached(classes, {cls.__module__ for cls in classes if goes_by_value(cls.__module__)})
        while (seen := _seen(found)) != found:
            found = seen
        names = _names(found.classes)
        data = _dumped(names, found)[0]
    for each in names.values():
        note_sent(each)
    types = {type_name(each): name for name, each in names.items() if is_type(each)}
    header = json.dumps({"python": PYTHON, "types": types}).encode()
    digest, seen_globals = _hashed(classes, values=values)
    return Bundle(digest, header + b"\n" + data, tuple(sorted(types)), seen_globals if values else None)


def _types_of_module(cls: type[Durable]) -> set[type]:
    """Return the types that the module of a class defines: they have one hash, whichever is used first."""
    values = vars(sys.modules[cls.__module__]).values() if cls.__module__ in sys.modules else ()
    return {
        each for each in values if issubclass(type(each), type) and each.__module__ == cls.__module__ and is_type(each)
    }


@dataclass(frozen=True, slots=True)
class _Reached:
    classes: set[type]
    modules: set[str]
    """Names of the modules that go by value."""


def is_type(cls: type) -> TypeGuard[type[Durable]]:
    return issubclass(cls, Durable) and "_options" in vars(cls)


class _BundlePickler(cloudpickle.Pickler):
    """Notes the user's classes and modules that it meets."""

    def __init__(self, file: io.BytesIO, seen: _Reached) -> None:
        cast("Any", super()).__init__(file)
        self._seen = seen

    def reducer_override(self, obj: Any) -> Any:
        if issubclass(type(obj), ModuleType):  # of a proxy, `isinstance` would ask the object
            if goes_by_value(obj.__name__):
                self._seen.modules.add(obj.__name__)
        elif issubclass(type(obj), type | FunctionType):
            name = obj.__module__
            if goes_by_value(name):
                self._seen.modules.add(name)
                if issubclass(type(obj), type):
                    self._seen.classes.add(obj)
        if type(obj) is CodeType:
            return _with_file(obj)
        return _sentinel(obj) or _with_slots(obj, cast("Any", super()).reducer_override(obj), _pickling)


def _with_file(code: CodeType) -> Any:
    """Return a code's pickle that keeps the name of its file, for tracebacks: cloudpickle replaces it by a word."""
    make, arguments = _pickling.Pickler.dispatch_table[CodeType](code)
    if Path(code.co_filename).is_file():  # not a notebook's, whose files differ from process to process
        arguments = tuple(code.co_filename if each == _NO_FILE else each for each in arguments)
    return make, arguments


def _sentinel(obj: Any) -> str | None:
    """Return the name of a sentinel, which code compares with `is` and cloudpickle would make anew."""
    if type(obj).__module__ != "dataclasses":
        return None
    return next((name for name in _SENTINELS if obj is getattr(dataclasses, name)), None)


def _with_slots(obj: Any, reduced: Any, pickling: Any) -> Any:
    """Have a class made with its slots: cloudpickle sets them afterwards, when they have no effect any more."""
    is_plain = type(obj) is type and "__slots__" in vars(obj) and not issubclass(obj, tuple)
    if is_plain and type(reduced) is tuple and reduced[0] is pickling.cloudpickle._make_skeleton_class:
        cast("Any", reduced)[1][3]["__slots__"] = cast("Any", obj).__slots__
    return cast("Any", reduced)


def _names(classes: set[type]) -> dict[Name, type]:
    """Return classes by name; of several the one that the name finds: a dataclass with slots leaves two."""
    names = {name_of(cls): cls for cls in classes}
    return {name: found if (found := living(*name)) in classes else names[name] for name in sorted(names)}


def _seen(reached: _Reached) -> _Reached:
    """Return the classes and modules that these reach, when those modules go by value."""
    seen = _dumped(_names(reached.classes), reached)[1]
    return _Reached(seen.classes | reached.classes, seen.modules | reached.modules)


def _dumped(names: dict[Name, type], reached: _Reached) -> tuple[bytes, _Reached]:
    file, seen = io.BytesIO(), _Reached(set(), set())
    try:
        with _by_value(reached.modules, _pickling):
            cast("Any", _BundlePickler(file, seen)).dump(names)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a user's globals may hold anything, and `sys.exit` in its `__reduce__`
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

    class _PortablePickler(pickling.Pickler):
        def reducer_override(self, obj: Any) -> Any:
            reduced: Any = pickling.Pickler.reducer_override(self, obj)
            return _sentinel(obj) or _with_slots(obj, reduced, pickling)

    file = io.BytesIO()
    with _lock, _by_value({module for module, _ in sent() if goes_by_value(module)}, pickling):
        _PortablePickler(file).dump(value)
    return file.getvalue()


def _unsendable(names: dict[Name, type], modules: set[str], error: BaseException) -> str:
    types = ", ".join(type_name(cls) for cls in names.values() if is_type(cls))
    culprits: list[str] = []
    for name in sorted(modules & sys.modules.keys()):
        for key, value in list(vars(sys.modules[name]).items()):
            if key.startswith("__") or issubclass(type(value), type | FunctionType | ModuleType):
                continue
            try:
                _pickling.dumps(value)
            except KeyboardInterrupt:
                raise
            except BaseException:  # noqa: BLE001 - that is the question
                culprits.append(f"{name}.{key} ({type(value).__name__})")
    named = f" It may be {', '.join(culprits[:5])}." if culprits else ""
    return (
        f"the code of {types} cannot be sent to hosts: {str_of(error)}.{named} What its handlers refer to and no "
        "pickle can hold (a socket, a lock, an open file, a client) is made in a step, or by a function that it calls"
    )


def _hashed(classes: set[type], *, values: bool) -> tuple[str, Globals]:
    """Return the hash of classes with all that they reach, and the globals that their functions refer to."""
    sources: dict[str, str] = {}

    def has_source(name: str) -> bool:
        if name not in sources:
            try:
                sources[name] = inspect.getsource(sys.modules[name])
            except (OSError, TypeError, KeyError):  # a notebook, a prompt
                sources[name] = ""
        return bool(sources[name])

    walk = CodeHash(has_source, values=values)
    for each in sorted(classes, key=name_of):
        walk.add(each)
    digest = hashlib.blake2b(walk.digest, digest_size=10)
    digest.update(f"{PYTHON}\0{values}\0".encode())
    for name in sorted(walk.modules):
        if has_source(name):
            digest.update(f"{name}\0{sources[name]}\0".encode(errors="surrogatepass"))
    walk.globals.keep()
    return digest.hexdigest(), walk.globals
