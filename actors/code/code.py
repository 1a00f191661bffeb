"""Code: how the classes of a program reach hosts that have never seen it.

A program stores the code of a class, by value, under its hash (`bundles`); messages name that hash; a host that meets
it for the first time loads it. A host in the program's own process uses the classes that live there, if they have that
hash, and never unpickles them: that would replace the methods of a live class by copies with other globals.

The classes of a program whose hosts live in its own process may refer to objects that cannot be pickled: its messages
say that it has the class and has not sent it (`UNSENT`), and run on the class of that name in the process that owns
their shard. A host without such a class leaves the messages, and begun invocations, as they are until a program with
the class owns the shard: a program that was started beside it, or after it, ends none of them.

Invariants:
    1. One hash is one set of classes in a process: all that a class refers to travels together, and is loaded once.
    2. An invocation runs on the code that its message names, whichever host owns its shard; where that names none, on
       the newest, which its first record names from then on. It goes on with the newest code of its type when it is
       resumed, and before an attempt that follows a failed one while its journal holds no entry.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any, Final, cast
from weakref import WeakKeyDictionary, WeakValueDictionary, ref

from actors import stored
from actors.errors import TerminalError, UsageError
from actors.objects.objects import Declaration, Durable, classes_changed, declaration, find_type, type_name
from actors.processes import this_program
from actors.requests.schedule import INTERNAL
from actors.stored import pinned
from actors.values import seal
from actors.values.values import Name, Scope, adopt, living, name_of, scope_of
from journal.clock import boot_seconds
from journal.store import Store
from journal.texts import error_text

from .bundles import PYTHON, Bundle, bundle_of, digest_of, is_type, living_bundle_of
from .code_hash import Globals

logger = logging.getLogger("actors")

CURRENT_FOR: Final = 1.0
"""Seconds after which a host asks the store again for the current code of a class that is called by name."""

UNSENT: Final = "-"
"""First in place of a hash: the class lives in the sender's process, which has not sent it. The name of the program
follows, for the warning of a host that has no such class."""
MISSING_FOR: Final = 1.0
"""Seconds after which a host looks again for a class that it could not find."""
OFTEN: Final = 10
"""Versions of one class from one program after which a warning is logged."""

_digests: Final[WeakKeyDictionary[type, str]] = WeakKeyDictionary()
"""The hashes of classes of this process, as far as they were asked for."""
_bundles: Final[WeakKeyDictionary[type, Bundle | None]] = WeakKeyDictionary()
"""Bundles of classes of this process; None for a class that cannot be sent."""
_lived: Final[WeakValueDictionary[tuple[str, str], type[Durable]]] = WeakValueDictionary()
"""Classes of this process by type and hash, replaced ones too."""


def unsent_here() -> str:
    """Return what stands for the hash of a class that this program does not send."""
    return UNSENT + this_program()


def is_unsent(code: str) -> bool:
    """Whether this stands for the hash of a class that its program has not sent."""
    return code.startswith(UNSENT)


def is_hash(code: str) -> bool:
    """Whether a message names a code; one of a sender without the class names none."""
    return bool(code) and not code.startswith(UNSENT)


@pinned("MissingCodeError")
class MissingCodeError(TerminalError):
    """Neither this process nor the store has the class."""


class UnusableCodeError(Exception):
    """The code of a class raises an error as it is loaded."""


class Sender:
    """The bundles of classes that a program has sent: each is handed over once, when its code is first needed."""

    def __init__(self, put: Callable[[Bundle], object]) -> None:
        self._put = put
        self._sent: dict[type[Durable], tuple[str, Globals | None]] = {}
        self._versions: dict[type[Durable], int] = {}

    def digest_of(self, cls: type[Durable]) -> str:
        """Return the hash of a class's code, with what its functions refer to now; it was handed over.

        Raises:
            UsageError: its code cannot be sent.
        """
        digest, seen = self._sent.get(cls, ("", None))
        return digest if seen is not None and seen.are_unchanged() else self._send(cls)

    def _send(self, cls: type[Durable]) -> str:
        if digest := scope_of(cls).digest:  # it came from the store itself
            return digest
        declaration(cls)
        bundle = bundle_of(cls)
        self._put(bundle)
        for name in bundle.types:
            found = find_type(name)
            if found is not None and found.__module__ == cls.__module__:
                self._sent[found] = bundle.digest, bundle.globals
        self._sent[cls] = bundle.digest, bundle.globals
        versions = self._versions[cls] = self._versions.get(cls, 0) + 1
        if versions == OFTEN:
            logger.warning(
                "%s was sent to hosts %d times: a global that it refers to is bound anew again and again, and each "
                "time is a new version of its code; hand such values over as arguments",
                type_name(cls),
                versions,
            )
        return bundle.digest


class LivingSender:
    """The sender of a program whose hosts live in its process, and use its classes as they are."""

    def __init__(self, put: Callable[[Bundle], object]) -> None:
        self._put = put
        self._sent: dict[type[Durable], str] = {}

    def digest_of(self, cls: type[Durable]) -> str:
        """Return the hash of a class's code, which was handed over, or UNSENT where that cannot be."""
        return self._sent.get(cls) or self._send(cls)

    def _send(self, cls: type[Durable]) -> str:
        bundle = _bundle_here(cls)
        digest = self._sent[cls] = bundle.digest if bundle is not None else unsent_here()
        if bundle is not None:
            self._put(bundle)
            for name in bundle.types:  # its handlers may call these
                found = find_type(name)
                if found is not None:
                    self.digest_of(found)
        return digest


def _bundle_here(cls: type[Durable]) -> Bundle | None:
    if cls not in _bundles:
        declaration(cls)
        try:
            bundle = _bundles[cls] = living_bundle_of(cls)
        except UsageError as error:
            logger.info("%s runs only where its class lives: %s", type_name(cls), error)
            _bundles[cls] = None
        else:
            _lived[type_name(cls), bundle.digest] = cls
    return _bundles[cls]


def _digest_here(cls: type[Durable]) -> str:
    found = _digests.get(cls)
    if found is None:
        found = _digests[cls] = digest_of(cls)
    return found


class CodeBook:
    """The classes that this host knows, by type and by the hash of their code."""

    def __init__(
        self,
        store: Store,
        *,
        live: bool,
        now: Callable[[], float] = boot_seconds,
        new_classes: Callable[[], None] = lambda: None,
    ) -> None:
        self._store, self._live, self._now = store, live, now
        self._new_classes = new_classes
        """Called when this process has new classes."""
        self._known: dict[tuple[str, str], Declaration] = {}
        self._unusable: dict[str, tuple[UnusableCodeError, float]] = {}
        """Code that has raised an error, and the time until which it is not loaded again: many may wait for it."""
        self._current: dict[str, tuple[Declaration, float]] = {}
        self._own: dict[tuple[str, str], ref[type[Durable]] | None] = {}
        """Classes that were found, valid until a class changes; weak, since a class that a function defines may go."""
        self._changed = 0
        self._lock = asyncio.Lock()

    def code_of(self, cls: type[Any] | None) -> str:
        """Return the hash that a class came with, or that this program has sent it under; UNSENT if it has not."""
        if cls is None:
            return ""
        digest = scope_of(cls).digest
        if digest or not self._live:
            return digest
        bundle = _bundles.get(cls)
        return unsent_here() if bundle is None else bundle.digest

    def find(self, type_: str, digest: str) -> Declaration | None:
        """Return a class that is here; None if it must be fetched."""
        if self._live and (cls := self._own_type(type_, digest)) is not None:
            return declaration(cls)
        if is_hash(digest):
            return self._known.get((type_, digest))
        found, until = self._current.get(type_, (None, 0.0))
        return found if self._now() < until else None

    def _own_type(self, type_: str, digest: str = "") -> type[Durable] | None:
        """Return the class that lives here, if it has this hash."""
        if self._changed != (changed := classes_changed()):
            self._changed, self._own = changed, {}
            self._new_classes()
        key = type_, digest
        if key in self._own:
            known = self._own[key]
            cls = known() if known is not None else None
            if cls is not None or known is None:
                return cls
        cls = _living_type(type_, digest)
        self._own[key] = ref(cls) if cls is not None else None
        return cls

    def newest(self, type_: str) -> tuple[Declaration, str] | None:
        """Return the newest class of a type with the hash of its code; None if it must be fetched, by name alone."""
        if self._live and (cls := self._own_type(type_)) is not None:
            return declaration(cls), self.code_of(cls)
        found, until = self._current.get(type_, (None, 0.0))
        return (found, scope_of(found.cls).digest) if found is not None and self._now() < until else None

    async def current(self, type_: str) -> str:
        """Return the hash of a type's code for a new invocation, empty where the class is part of this process."""
        return "" if self._live and self._own_type(type_) is not None else await self._store.current_code(type_)

    async def fetch(self, type_: str, digest: str) -> Declaration:
        """Return a class from the store, or by import where the store has no code of it.

        Raises:
            MissingCodeError: nobody has stored such a type (404).
            UnusableCodeError: its code raises as it is loaded.
        """
        async with self._lock:  # else two simultaneous loads make two classes
            if is_hash(digest):
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
            cls = None if self._live and digest else _own_type(type_)
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
        for name, declared in self._loaded(digest, data).items():
            self._known[name, digest] = declared
        found = self._known.get((type_, digest))
        if found is None:
            raise TerminalError(f"the code {digest} has no class {type_!r}", 404)
        return found

    def _loaded(self, digest: str, data: bytes) -> dict[str, Declaration]:
        error, until = self._unusable.pop(digest, (None, 0.0))
        if error is None or self._now() >= until:
            try:
                return _loaded(digest, data)
            except UnusableCodeError as raised:
                error, until = raised, self._now() + MISSING_FOR
        self._unusable[digest] = error, until
        raise UnusableCodeError(*error.args) from error.__cause__


def _living_type(type_: str, digest: str) -> type[Durable] | None:
    cls = _own_type(type_)
    if not is_hash(digest) or type_.startswith(INTERNAL):
        return cls
    if cls is not None and _digest_here(cls) == digest:
        return cls
    return _lived.get((type_, digest))


def _own_type(type_: str) -> type[Durable] | None:
    """Return the class of this type that is part of this process, whatever code of it was loaded since."""
    cls = find_type(type_)
    if cls is None or not scope_of(cls).digest:
        return cls
    found = living(*name_of(cls))
    is_own = isinstance(found, type) and issubclass(found, Durable) and not scope_of(found).digest
    return cast("type[Durable]", found) if is_own else None


def _loaded(digest: str, data: bytes) -> dict[str, Declaration]:
    """Return the types of a bundle, made anew in this process.

    Raises:
        UnusableCodeError: making them raises an error: a metaclass, an `__init_subclass__`, a module that is imported.
    """
    head, _, body = seal.unsealed(data, ("code", digest)).partition(b"\n")
    header = json.loads(head)
    try:
        return _made(digest, header, body)
    except BaseException as error:  # the user's code may raise anything
        types = ", ".join(header["types"])
        raise UnusableCodeError(f"the code of {types} cannot be loaded: {error_text(error)}") from error


def _made(digest: str, header: Any, body: bytes) -> dict[str, Declaration]:
    if header["python"] != PYTHON:
        logger.warning("the code %s is of Python %s: importing its classes by path", digest, header["python"])
        return {name: declaration(_imported(name, *place)) for name, place in header["types"].items()}
    names: dict[Name, type] = stored.loads(body)
    scope = Scope(digest, names)
    for name, cls in names.items():
        if living(*name) is not cls:
            cls.__qualname__ = name[1]  # cloudpickle keeps the last part of it alone
            adopt(cls, scope)
    return {type_name(cls): declaration(cls) for cls in names.values() if is_type(cls)}


def _imported(type_: str, module: str, qualname: str) -> type[Durable]:
    found = living(module, qualname, imports=True)
    if not (isinstance(found, type) and issubclass(found, Durable)):
        raise ImportError(
            f"the class {type_!r} was sent by another Python than {PYTHON}, and {module}.{qualname} cannot be "
            "imported here: use one minor version everywhere, or install the package on the hosts"
        )
    return found
