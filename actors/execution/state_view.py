"""State view: an object's state as one invocation sees it.

Owns the values that this invocation has read and written; the bytes it began from are shared and never changed here.

Invariants:
    1. Every invocation decodes values of its own: nothing mutable is shared between two.
    2. Reading writes nothing: a value that was only read encodes as it was found, or as its decoded copy encodes here.
    3. A field mutated in place is noticed: every field that was read is encoded again and compared.
    4. A shared handler sees a single state between two of its waits: the state that was committed when the first of
       them ended. The values that it has read of each state are recorded, with the number of deliveries before.
"""

from collections.abc import Iterable, Mapping
from threading import get_ident
from types import MappingProxyType
from typing import Any, Final

from actors.errors import UsageError
from actors.loop.loop import DeterministicLoop
from actors.objects.state import Addressed, State
from actors.values import records, seal
from actors.values.values import LIVE, Scope, decode, encode
from journal.codec import MISSING
from journal.keys import OWN
from journal.records import pack, unpack
from journal.texts import str_of

NAMES: Final = f"{OWN}names"
"""A read of this name records that the invocation listed the fields: they are the ones read together with it."""
INNER_WROTE: Final = 0
"""The index of the STATE event that carries fields."""
IMMUTABLE: Final = frozenset({str, int, bool, float, bytes, type(None)})
_UNSET: Final = object()
_NONE: Final[frozenset[str]] = frozenset()
_NOTHING: Final[Mapping[str, bytes | None]] = MappingProxyType({})
"""These two are shared, and never changed: most invocations need none of their own."""


class StateView:
    """The fields of one object for one execution."""

    __slots__ = (
        "_base",
        "_before",
        "_cleared",
        "_declared",
        "_last",
        "_loop",
        "_owner",
        "_past",
        "_position",
        "_reads",
        "_recorded",
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
        self._cleared: frozenset[str] = _NONE
        self._reads: dict[str, bytes | None] = {}
        """Values read since the position, as they were found."""
        self._recorded: frozenset[str] = _NONE
        """Names of these that a record holds."""
        self._past: tuple[tuple[int, dict[str, bytes | None]], ...] = ()
        """Values read at earlier positions that no record holds."""
        self._position = 0
        self._last: Mapping[str, bytes | None] = _NOTHING
        """The last value read of each field, before the position."""

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
        if self._cleared:
            self._cleared -= {name}

    # Fields by name (`commands.FieldCommands`)

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
        self._cleared |= {name}

    def names(self) -> list[str]:
        """Return the names of the fields that are set, sorted."""
        base = {name for name in self._base if not name.startswith(OWN)}
        self._reads[NAMES] = None
        self.read_all(base)
        names = base - self._cleared
        names.update(name for name, data in self.changes().items() if data is not None)
        return sorted(names)

    def _check_writable(self, name: str) -> None:
        if self._loop.inside != get_ident():
            raise _elsewhere(name)
        if self._refusal:
            raise UsageError(f"{self._refusal}: {name!r} cannot be written")

    def read_all(self, names: Iterable[str]) -> dict[str, bytes | None]:
        """Return the stored values of these fields, and note them as read."""
        found = {name: self._base.get(name) for name in names}
        self._reads.update(found)
        return found

    def last_read(self, names: Iterable[str]) -> dict[str, bytes | None]:
        """Return the last values read of these fields, also before waits; read the fields that were never read."""
        return {name: self._last[name] for name in names if name in self._last and name not in self._reads} | (
            self.read_all([name for name in names if name not in self._last or name in self._reads])
        )

    def _load(self, name: str, field: State[Any] | None) -> Any:
        data = self._reads[name] = self._base.get(name)
        if name in self._cleared:
            data = None
        if data is not None:
            value = self._decoded(name, data, field)
        elif field is None:
            return MISSING
        else:
            value = field.made()
        self._values[name] = value
        if type(value) in IMMUTABLE:
            self._before[name] = value
        else:
            self._before[name] = self._encoded(name, value) if data is None else data
        return value

    # For the commit

    def changes(self) -> dict[str, bytes | None]:
        """Return the fields that differ from the state that the invocation found, encoded; None for a cleared field.

        Raises:
            UsageError: a value cannot be encoded; it names the field.
        """
        changed: dict[str, bytes | None] = {}
        if self._cleared:
            changed = {name: None for name in self._cleared if name in self._base}
        for name, value in self._values.items():
            before = self._before[name]
            if type(value) in IMMUTABLE and value is before:
                continue
            data = self._encoded(name, value)
            if data == before:
                continue
            is_same = type(before) is bytes and data == self._reencoded(name, before)
            if is_same and not self._is_to_be_sealed(data, before):
                continue
            if data != self._base.get(name):
                changed[name] = data
            else:
                changed.pop(name, None)
        return changed

    def _is_to_be_sealed(self, data: bytes, before: bytes) -> bool:
        """Whether an unchanged field is written again: it was sealed with an old secret, and writing is allowed."""
        return not self._refusal and data != before and seal.unverified(data) == seal.unverified(before)

    def _encoded(self, name: str, value: Any) -> bytes:
        try:
            return encode(value, ("state", self._target, name))
        except UsageError as error:
            raise UsageError(f"state {name!r}: {str_of(error)}") from error

    def _decoded(self, name: str, data: bytes, field: State[Any] | None) -> Any:
        annotation = MISSING if field is None else field.annotation
        return decode(data, annotation, self._scope, ("state", self._target, name))

    def _reencoded(self, name: str, data: bytes) -> bytes:
        """Return the found value as it is encoded here and now: a set may have another order, a class a new field."""
        if data[:1] == b"J":
            return data
        return self._encoded(name, self._decoded(name, data, self._declared.get(name)))

    def absorb(self, fields: Mapping[str, bytes | None]) -> None:
        """Take over fields that another invocation has written; this invocation's own values of them are dropped."""
        base = {name: value for name, value in self._base.items() if name not in fields}
        self._base = base | {name: value for name, value in fields.items() if value is not None}
        for name in fields:
            self._values.pop(name, None)
            self._before.pop(name, None)
        self._cleared -= fields.keys()

    # For shared handlers

    def note_recorded(self, names: Iterable[str]) -> None:
        """Note the fields whose value before the first wait is in the journal."""
        self._recorded |= set(names)

    def refresh(self, base: Mapping[str, bytes], position: int) -> None:
        """Show another state from here on; `position` counts the deliveries before."""
        known = self._reads.keys() | self._recorded
        if NAMES in known or any(self._base.get(name) != base.get(name) for name in known):
            self._leave(position)
        self._base = base

    def show(self, fields: Mapping[str, bytes | None], position: int) -> None:
        """Show the recorded values that were read after `position` deliveries."""
        self._leave(position)
        self._recorded = frozenset(fields)
        self._base = laid_over(self._base, fields)

    def _leave(self, position: int) -> None:
        if unrecorded := self._unrecorded():
            self._past = (*self._past, (self._position, unrecorded))
        self._last = {**self._last, **self._reads}
        self._values, self._before, self._reads, self._recorded = {}, {}, {}, _NONE
        self._position = position

    def _unrecorded(self) -> dict[str, bytes | None]:
        return {name: value for name, value in self._reads.items() if name not in self._recorded}

    @property
    def is_shown(self) -> Mapping[str, bytes]:
        """The state that the invocation sees."""
        return self._base

    @property
    def has_read(self) -> bool:
        """Whether values were read that no record holds."""
        return bool(self._past or any(name not in self._recorded for name in self._reads))

    def take_reads(self) -> list[tuple[int, dict[str, bytes | None]]]:
        """Return the unrecorded values read, by position; the caller puts them into a record."""
        found, self._past = list(self._past), ()
        if unrecorded := self._unrecorded():
            found.append((self._position, unrecorded))
            self._recorded |= unrecorded.keys()
        return found

    def found(self, name: str) -> bytes | None:
        """Return the stored value of a field as the invocation found it."""
        return self._base.get(name)


def laid_over(stored: Mapping[str, bytes], reads: Mapping[str, bytes | None]) -> dict[str, bytes]:
    """Return the stored state with recorded values in place of the stored ones."""
    fields = {name: value for name, value in stored.items() if name.startswith(OWN) or NAMES not in reads}
    for name, value in reads.items():
        if value is None:
            fields.pop(name, None)
        else:
            fields[name] = value
    return fields


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
