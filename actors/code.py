"""Code: how the classes of a program reach hosts that have never seen it.

A driver stores the code of a class, by value, under the hash of its sources; messages name that hash; a host that meets
it for the first time loads it. A host in the driver's own process uses the classes that live there and never unpickles
them: that would replace the methods of a live class by copies with other globals.

Invariants:
    1. One hash is one set of classes in a process: all types of a module, and all that they refer to, travel together.
    2. The hash depends on sources and on Python's minor version, not on the pickle, which differs in every process.
"""

import hashlib

import inspect
import io
import logging
import sys

from dataclasses import dataclass
from types import ModuleType
from typing import Any, cast

import cloudpickle

from journal.store import Store

from .errors import TerminalError, UsageError
from .objects import Declaration, Durable, declaration, find_type, type_name

logger = logging.getLogger("actors")


@dataclass(frozen=True, slots=True)
class Bundle:
    """The code of the types of one module."""

    digest: str
    data: bytes
    types: tuple[str, ...]


class _Pickler(cloudpickle.Pickler):
    """Pickles classes of ours by value and notes which they are."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.noted: dict[str, type[Durable]] = {}

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, type) and issubclass(obj, Durable) and "_options" in obj.__dict__:
            self.noted.setdefault(type_name(obj), obj)
        return cast("Any", super()).reducer_override(obj)


def bundle_of(cls: type[Durable]) -> Bundle:
    """Return the code of a class's module: its types, and by value all that they use of the same package."""
    package = cls.__module__.partition(".")[0]
    modules = [m for name, m in list(sys.modules.items()) if _belongs(name, m, package)]
    for module in modules:
        if module.__name__ != "__main__":  # that one goes by value anyway
            cloudpickle.register_pickle_by_value(module)
    try:
        types = {type_name(cls): cls}
        data, types = _pickled(types)
        data, types = _pickled(types)  # once more, now that all types it refers to are known
    finally:
        for module in modules:
            if module.__name__ != "__main__":
                cloudpickle.unregister_pickle_by_value(module)
    return Bundle(_digest(cls, modules, data), data, tuple(sorted(types)))


def _belongs(name: str, module: ModuleType | None, package: str) -> bool:
    if name == package or name.startswith(package + "."):
        path = getattr(module, "__file__", None) or ""
        return isinstance(module, ModuleType) and "site-packages" not in path
    return False


def _pickled(types: dict[str, type[Durable]]) -> tuple[bytes, dict[str, type[Durable]]]:
    file = io.BytesIO()
    pickler = _Pickler(file)
    try:
        pickler.dump(types)
    except Exception as error:  # a user's globals may hold anything
        names = ", ".join(sorted(types))
        raise UsageError(
            f"the code of {names} cannot be sent to hosts: {error}. Something that its handlers refer to (a socket, a "
            "lock, an open file, a client) is made when the module is imported: make it in a step, or in a function"
        ) from error
    return file.getvalue(), {**types, **pickler.noted}


def _digest(cls: type[Durable], modules: list[ModuleType], data: bytes) -> str:
    digest = hashlib.blake2b(digest_size=10)
    digest.update(f"{sys.version_info[:2]}\0{cls.__module__}\0".encode())
    sources = 0
    for module in sorted(modules, key=lambda m: m.__name__):
        try:
            digest.update(inspect.getsource(module).encode())
            sources += 1
        except (OSError, TypeError):  # no source: a notebook, a prompt, a namespace package
            continue
    if not sources or "<locals>" in cls.__qualname__:
        digest.update(data)  # what the source does not tell: a prompt's classes, a function's variables
    return digest.hexdigest()


class CodeBook:
    """The classes that this host knows, by type and by the hash of their code."""

    def __init__(self, store: Store, *, live: bool) -> None:
        self._store, self._live = store, live
        self._known: dict[tuple[str, str], Declaration] = {}
        self._digests: dict[type[Any], str] = {}

    def code_of(self, cls: type[Any] | None) -> str:
        """Return the hash that a class came with; empty for a live one."""
        return "" if cls is None else self._digests.get(cls, "")

    def find(self, type_: str, digest: str) -> Declaration | None:
        """Return a class that is here; None if it must be fetched."""
        if self._live and not digest:
            cls = find_type(type_)
            if cls is not None:
                return declaration(cls)
        return self._known.get((type_, digest))

    async def fetch(self, type_: str, digest: str) -> Declaration:
        """Return a class from the store, or by import where the store has no code of it.

        Raises:
            TerminalError: nobody has stored such a type (404).
            Exception: whatever the code raises as it is loaded.
        """
        wanted = digest or await self._store.current_code(type_)
        data = await self._store.code(wanted) if wanted else None
        if data is None:
            raise TerminalError(
                f"no class {type_!r} is known to the hosts: a program that has it must use it once "
                f"({type_}[...].<handler>.remote(...)), so that its code is stored",
                404,
            )
        found: Declaration | None = None
        for name, cls in self._loaded(data).items():
            self._digests[cls] = wanted
            self._known[name, wanted] = declaration(cls)
            if name == type_:
                found = self._known[name, digest] = self._known[name, wanted]
        if found is None:
            raise TerminalError(f"the code {wanted} has no class {type_!r}", 404)
        return found

    def _loaded(self, data: bytes) -> dict[str, type[Durable]]:
        return cloudpickle.loads(data)
