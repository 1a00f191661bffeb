"""Fields: an object's state as one invocation sees it.

Owns what this invocation has read and written; the bytes it began from are shared and never changed here.

Invariants:
    1. Every invocation decodes values of its own: nothing mutable is shared between two.
    2. Reading writes nothing: a value that was only read encodes as it was found, or as what was found does here.
    3. A field mutated in place is noticed: what was touched is encoded again and compared.
"""

from collections.abc import Mapping
from threading import get_ident
from typing import Any, Final

from journal.codec import MISSING
from journal.entries import pack, unpack
from journal.keys import OWN
from journal.texts import said

from . import records, seal
from .errors import UsageError
from .loop import DeterministicLoop
from .state import Addressed, State
from .values import LIVE, Scope, decode, encode

INNER_WROTE: Final = 0
"""The index of the STATE event that carries fields."""
IMMUTABLE: Final = frozenset({str, int, bool, float, bytes, type(None)})
_UNSET: Final = object()


class StateView:
    """The fields of one object for one execution."""

    __slots__ = (
        "_base",
        "_before",
        "_cleared",
        "_declared",
        "_loop",
        "_owner",
        "_reads",
        "_refusal",
        "_scope",
        "_target",
        "_values",
    )

    def __init__(
        self,
        base: Mapping[str, bytes],
        declared: Mapping[str, State[Any]],
        loop: DeterministicLoop,
        refusal: str = "",
        scope: Scope = LIVE,
        owner: type[Addressed] = Addressed,
        target: str = "",
    ) -> None:
        self._owner = owner
        self._base, self._declared, self._loop, self._refusal, self._scope = base, declared, loop, refusal, scope
        self._target = target
        self._values: dict[str, Any] = {}
        self._before: dict[str, Any] = {}
        self._cleared: set[str] = set()
        self._reads: set[str] = set()

    # Declared fields: `self.status`

    def get(self, field: State[Any], /) -> Any:
        """Return a declared field's value, its default if it is not set."""
        if self._loop.inside != get_ident():
            raise _elsewhere(field.name)
        try:
            return self._values[field.name]
        except KeyError:
            return self._load(field.name, field)

    def set(self, field: State[Any], value: Any, /) -> None:
        """Set a declared field."""
        known = field.known
        if known is not None and type(value) not in known and self._owner._validates:  # pyright: ignore[reportPrivateUsage]  # as in state
            field.check(value)
        self._write(field.name, value)

    def _write(self, name: str, value: Any) -> None:
        self._check_writable(name)
        if type(value) not in IMMUTABLE:
            _check_value(name, value)
        self._before.setdefault(name, _UNSET)
        self._values[name] = value
        self._cleared.discard(name)

    # Fields by name (`commands.Fields`)

    def read(self, name: str, /) -> Any:
        """Return a field's value, its default if it is declared, else MISSING."""
        if self._loop.inside != get_ident():
            raise _elsewhere(name)
        if name in self._values:
            return self._values[name]
        return self._load(name, self._declared.get(name))

    def write(self, name: str, value: Any, /) -> None:
        """Set a field, declared or not."""
        field = self._declared.get(name)
        if field is None:
            self._write(name, value)
        else:
            self.set(field, value)

    def clear(self, name: str, /) -> None:
        """Make a field absent."""
        self._check_writable(name)
        self._values.pop(name, None)
        self._before.pop(name, None)
        self._cleared.add(name)

    def names(self) -> list[str]:
        """Return the names of the fields that are set, sorted."""
        base = {name for name in self._base if not name.startswith(OWN)}
        self._reads.update(base)
        names = base - self._cleared
        names.update(name for name, data in self.changes().items() if data is not None)
        return sorted(names)

    def _check_writable(self, name: str) -> None:
        if self._loop.inside != get_ident():
            raise _elsewhere(name)
        if self._refusal:
            raise UsageError(f"{self._refusal}: {name!r} cannot be written")

    def _load(self, name: str, field: State[Any] | None) -> Any:
        self._reads.add(name)
        data = None if name in self._cleared else self._base.get(name)
        if data is not None:
            value = self._decoded(name, data)
        elif field is None:
            return MISSING
        else:
            value = field.made()
        self._values[name] = value
        if type(value) in IMMUTABLE:
            self._before[name] = value
        else:
            self._before[name] = encode(value, self._place_of(name)) if data is None else data
        return value

    # What the execution takes along

    def changes(self) -> dict[str, bytes | None]:
        """Return the fields that differ from what the invocation found, encoded; None for one made absent.

        Raises:
            UsageError: a value cannot be encoded; it names the field.
        """
        changed: dict[str, bytes | None] = {name: None for name in self._cleared if name in self._base}
        for name, value in self._values.items():
            before = self._before[name]
            if type(value) in IMMUTABLE and value is before:
                continue
            data = self._encoded(name, value)
            if data == before:
                continue
            is_same = type(before) is bytes and data == self._as_of_today(name, before)
            if is_same and not self._is_to_be_sealed(data, before):
                continue
            if data != self._base.get(name):
                changed[name] = data
            else:
                changed.pop(name, None)
        return changed

    def _is_to_be_sealed(self, data: bytes, before: bytes) -> bool:
        """Whether a field that is as it was is written anew: it was sealed with an old secret, and may be written."""
        return not self._refusal and data != before and seal.bare(data) == seal.bare(before)

    def _place_of(self, name: str) -> tuple[str, ...]:
        return "state", self._target, name

    def _encoded(self, name: str, value: Any) -> bytes:
        try:
            return encode(value, self._place_of(name))
        except UsageError as error:
            raise UsageError(f"state {name!r}: {said(error)}") from error

    def _decoded(self, name: str, data: bytes) -> Any:
        field = self._declared.get(name)
        return decode(data, MISSING if field is None else field.annotation, self._scope, self._place_of(name))

    def _as_of_today(self, name: str, data: bytes) -> bytes:
        """Return how what was found is written here and now: a set has another order, a class a further field."""
        return data if data[:1] == b"J" else self._encoded(name, self._decoded(name, data))

    def absorb(self, fields: Mapping[str, bytes | None]) -> None:
        """Take what another invocation has written as found; what this one held of these fields is over."""
        base = {name: value for name, value in self._base.items() if name not in fields}
        self._base = base | {name: value for name, value in fields.items() if value is not None}
        for name in fields:
            self._values.pop(name, None)
            self._before.pop(name, None)
            self._cleared.discard(name)

    def reads(self) -> dict[str, bytes | None]:
        """Return what was read so far, as it was found."""
        return {name: self._base.get(name) for name in self._reads}

    def found(self, name: str) -> bytes | None:
        """Return what the invocation found in a field."""
        return self._base.get(name)


def packed(fields: Mapping[str, bytes | None]) -> bytes:
    """Return fields as one payload."""
    header = [[name, -1 if value is None else len(value)] for name, value in fields.items()]
    return pack(header, [value for value in fields.values() if value is not None])


def unpacked(data: bytes) -> dict[str, bytes | None]:
    """Return the fields of a payload."""
    header, rest = unpack(data)
    fields: dict[str, bytes | None] = {}
    for name, size in header:
        fields[name] = None if size < 0 else rest[:size]
        rest = rest[max(size, 0) :]
    return fields


def _check_value(name: str, value: Any) -> None:
    try:
        records.check(value)
    except TypeError as error:
        raise UsageError(f"state {name!r}: {error}") from None


def _elsewhere(name: str) -> UsageError:
    return UsageError(
        f"state {name!r} belongs to its handler: read it there and hand the value to the step, task or thread"
    )
