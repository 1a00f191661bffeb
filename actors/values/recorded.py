"""Recorded errors: the parts of a terminal error that the store keeps, each bounded.

A part that cannot be recorded is replaced by a description. Errors are payloads: each part has a limit, so that an
error that is raised again and again, or that has a response of megabytes among its attributes, fills no store.

Invariant: nothing here raises, and all results are bounded.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any, Final, NoReturn

from journal import codec
from journal.texts import repr_of, shortened, str_of

from .revived import Made, Parts, parts_of
from .values import pickled

METADATA_ENTRIES: Final = 64
"""Most entries of an error's metadata that are kept."""
METADATA_MAX: Final = 16_384
"""Most characters of an error's metadata that are kept, names and values."""
METADATA_NAME_MAX: Final = 200
"""Most characters of the name of an entry."""
ATTRIBUTES_MAX: Final = 65_536
"""Most bytes of an error of a user's class, with its arguments and attributes: a larger one is only described."""
DESCRIBED_MAX: Final = 1_000
"""Most characters of the description of a part that cannot be recorded."""
CODE_MAX: Final = 2**31 - 1
CODE_OF_ANY: Final = 500
"""The code of an error without a code, or with a code that is no number."""


def code_and_metadata(error: BaseException) -> tuple[int, dict[str, Any]]:
    """Return the code and the metadata of an error; a code that is no number is described in the metadata."""
    code, found = _attribute(error, "code", CODE_OF_ANY), _attribute(error, "metadata", None)
    number, metadata = _number(code), _entries(found)
    if number is None:
        metadata.setdefault("code", repr_of(code, DESCRIBED_MAX))
    return CODE_OF_ANY if number is None else number, metadata


def _attribute(error: BaseException, name: str, missing: Any) -> Any:
    try:
        return getattr(error, name, missing)
    except BaseException as raised:  # noqa: BLE001 - a property of a user's class
        return f"<the error's {name} raised {type(raised).__name__}>"


def _number(code: Any) -> int | None:
    try:
        if not issubclass(type(code), int) or type(code) is bool:
            return None
        number = int.__int__(code)
    except BaseException:  # noqa: BLE001 - a user's class
        return None
    return number if abs(number) <= CODE_MAX else None


def _entries(found: Any) -> dict[str, Any]:
    """Return metadata as JSON can hold it; other values as text."""
    entries, room = dict[str, Any](), METADATA_MAX
    if found is None:
        return entries
    try:
        items = _items(found)
        for name, value in islice(items, METADATA_ENTRIES):
            name = str_of(name, METADATA_NAME_MAX)
            kept, size = _as_json(value, room - len(name))
            entries[name] = kept
            room = max(room - len(name) - size, 0)
        left_out = sum(1 for _ in islice(items, METADATA_ENTRIES))
        if left_out:
            entries["…"] = f"{left_out}{' or more' if left_out == METADATA_ENTRIES else ''} entries are left out"
    except BaseException:  # noqa: BLE001 - no mapping, or one of a user's class
        entries.setdefault("metadata", repr_of(found, DESCRIBED_MAX))
    return entries


def _items(found: Any) -> Iterator[tuple[Any, Any]]:
    return iter(found.items())


def _as_json(value: Any, room: int) -> tuple[Any, int]:
    """Return a value, or its text if JSON does not hold it or it is too large, and the size of that."""
    if type(value) is str:
        text = value if len(value) <= room else shortened(value, max(room, 0))
        return text, len(text)
    try:
        data = codec.encode(value, dumps=_refuse)
        if len(data) <= room:
            return codec.decode(data), len(data)
    except BaseException:  # noqa: BLE001 - nothing that JSON holds
        pass
    text = str_of(value, max(min(room, DESCRIBED_MAX), 0))
    return text, len(text)


def _refuse(value: Any) -> NoReturn:
    raise TypeError


def pickled_error(error: BaseException) -> bytes:
    """Return the pickle of an error of a user's class; empty if not even the class can be pickled."""
    try:
        return pickled(error, ATTRIBUTES_MAX)
    except BaseException:  # noqa: BLE001 - a user's class may do anything to pickle
        pass
    try:
        return pickled(Made(_pickled_parts(error)), 2 * ATTRIBUTES_MAX)
    except BaseException:  # noqa: BLE001 - its class: code, message and metadata remain
        return b""


def _pickled_parts(error: BaseException) -> Parts:
    """Return the parts of an error; a part that cannot be pickled, or is too large, is described."""
    room = ATTRIBUTES_MAX

    def kept(value: Any) -> Any:
        nonlocal room
        try:
            room -= len(pickled(value, room))
        except BaseException:  # noqa: BLE001 - a socket, a lock, code of the user
            value = str_of(value, DESCRIBED_MAX)
            room = max(room - len(value), 0)
        return value

    def few(found: dict[str, Any]) -> dict[str, Any]:
        return {name: kept(value) for name, value in islice(found.items(), METADATA_ENTRIES)}

    kind, args, attributes, members = parts_of(error)
    return kind, tuple(kept(value) for value in args[:METADATA_ENTRIES]), few(attributes), few(members)
