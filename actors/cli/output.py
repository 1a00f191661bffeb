"""Output: the answers of commands, as text for people and as JSON for programs.

Invariants:
    1. An answer goes to stdout, as one JSON document with `--json`; all else goes to stderr.
    2. Names, keys and messages of users are shown, never obeyed: neither markup of rich's nor control characters of a
       terminal's have an effect.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from math import isfinite
from typing import Any, Final, cast

from rich.console import Console
from rich.table import Table

WIDE: Final = 10_000
"""Columns where no terminal says how many it has: a line in a file is not broken."""
_UNITS: Final = ((86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s"))


def console(*, to_errors: bool = False) -> Console:
    """Return the console of stdout, or of stderr."""
    found = Console(stderr=to_errors, markup=False, highlight=False, emoji=False)
    return (
        found
        if found.is_terminal
        else Console(stderr=to_errors, markup=False, highlight=False, emoji=False, width=WIDE)
    )


def plain(text: str) -> str:
    """Return a text whose control characters and halves of surrogate pairs are written as escapes."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() or each == "\n" else ascii(each)[1:-1] for each in text)


def line(text: object) -> str:
    """Return a text as one line."""
    return plain(str(text)).replace("\n", "\\n")


def in_json(data: object) -> str:
    """Return a value as JSON; ASCII alone, so that no terminal is asked for more."""
    try:
        return json.dumps(data, indent=2, default=str, allow_nan=False)
    except ValueError:  # JSON has no infinity
        return json.dumps(_finite(data), indent=2, default=str)


def _finite(data: Any) -> Any:
    """Return a value whose floats that JSON does not have are texts."""
    if isinstance(data, dict):
        return {key: _finite(each) for key, each in cast("dict[Any, Any]", data).items()}
    if isinstance(data, list | tuple):
        return [_finite(each) for each in cast("list[Any]", data)]
    return str(data) if isinstance(data, float) and not isfinite(data) else data


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """Return a table whose cells are lines."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        made.add_column(column, overflow="fold")
    for row in rows:
        made.add_row(*("" if cell is None else line(cell) for cell in row))
    return made


def pairs(data: Mapping[str, object]) -> Table:
    """Return a table of names and values, without empty ones."""
    made = Table(box=None, pad_edge=False, show_header=False)
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    for name, value in data.items():
        if value not in (None, "", [], {}):
            made.add_row(name, _value(value))
    return made


def _value(value: object) -> str:
    if isinstance(value, str):
        return plain(value)
    if isinstance(value, list) and all(isinstance(each, str) for each in cast("list[Any]", value)):
        return plain("\n".join(cast("list[str]", value)))
    return in_json(cast("Any", value)) if isinstance(value, dict | list) else str(value)


def time_text(ms: int) -> str | None:
    """Return a time of the store's clock as RFC 3339; None for 0."""
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds") if ms else None


def span(ms: int) -> str:
    """Return a duration, to be read."""
    for size, name in _UNITS:
        if ms >= size:
            return f"{ms / size:.3g} {name}"
    return f"{ms} ms"
