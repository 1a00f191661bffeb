"""Sql: `perdure sql`: a namespace as tables, for questions that no other command answers.

The tables that a query names are read in pages, into a DuckDB in this process; the query runs there, and the store
hears nothing of it. What is read is as old as the reading takes, and no picture of one moment.
"""

import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, cast

import orjson
import typer

from actors import session as sessions
from actors.errors import UsageError
from journal.clock import boot_seconds
from journal.ids import Shard, shard_of
from journal.keys import OWN
from journal.store import Loaded, Store
from journal.survey import Sizes
from journal.texts import str_of

from .commands import Command, command, span, table
from .invocations import Filter, matching
from .schedules import rows_of_schedules
from .states import names_of
from .targets import as_json, shown_value

_AT_ONCE: Final = 200

Rows = Callable[[Command], Iterable[dict[str, Any]]]


@dataclass(frozen=True, slots=True)
class TableSource:
    """A table: its columns with their types, and its rows."""

    columns: dict[str, str]
    rows: Rows


def _invocations(me: Command) -> Iterator[dict[str, Any]]:
    for row in matching(me, Filter()):
        type_, slash, key = row["target"].partition("/")
        yield {**row, "type": type_, "key": key if slash else None, "time": row["at"]}


def _state(me: Command) -> Iterator[dict[str, Any]]:
    part: list[str] = []
    for name in names_of(me, ""):
        part.append(name)
        if len(part) == _AT_ONCE:
            yield from _fields(me, part)
            part = []
    yield from _fields(me, part)


def _fields(me: Command, names: list[str]) -> Iterator[dict[str, Any]]:
    async def read(store: Store) -> list[Loaded]:
        out: list[Loaded] = []
        while len(out) < len(names):  # one read brings the first of them
            out += await store.load([(shard_of(name, me.shards), name) for name in names[len(out) :]])
        return out

    found: list[Loaded] = me.ask(read)
    for name, loaded in zip(names, found, strict=True):
        type_, _, key = name.partition("/")
        for field, data in loaded.fields.items():
            if not field.startswith(OWN):
                yield {"type": type_, "key": key, "field": field, "value": shown_value(data), "bytes": len(data)}


def _hosts(me: Command) -> Iterator[dict[str, Any]]:
    me.client  # noqa: B018  # connects
    for host in sessions.status().hosts:
        yield {"id": host.id, "node": host.node, "pid": host.pid, "shards": list(host.shards), "lag": host.lag}


def _shards(me: Command) -> Iterator[dict[str, Any]]:
    sizes: list[Sizes] = me.look(lambda survey: survey.sizes(me.shards))
    owners = {shard: host.id for host in sessions.status().hosts for shard in host.shards}
    for shard, size in enumerate(sizes):
        yield {
            "shard": shard,
            "host": owners.get(Shard(shard)),
            "inbox": size.inbox,
            "events": size.events,
            "held": size.held,
            "timers": size.timers,
            "ended": size.done,
            "known": size.known,
        }


TEXT, COUNT, TIME = "VARCHAR", "BIGINT", "TIMESTAMPTZ"
SOURCES: Final[dict[str, TableSource]] = {
    "invocations": TableSource(
        {
            "id": TEXT,
            "status": TEXT,
            "target": TEXT,
            "type": TEXT,
            "key": TEXT,
            "handler": TEXT,
            "time": TIME,
            "why": TEXT,
        },
        _invocations,
    ),
    "state": TableSource({"type": TEXT, "key": TEXT, "field": TEXT, "value": "JSON", "bytes": COUNT}, _state),
    "schedules": TableSource(
        {
            "name": TEXT,
            "target": TEXT,
            "ticks": TEXT,
            "timezone": TEXT,
            "missed": TEXT,
            "paused": "BOOLEAN",
            "next": TIME,
            "last": TIME,
        },
        rows_of_schedules,
    ),
    "hosts": TableSource({"id": TEXT, "node": TEXT, "pid": COUNT, "shards": "BIGINT[]", "lag": COUNT}, _hosts),
    "shards": TableSource(
        {
            "shard": COUNT,
            "host": TEXT,
            "inbox": COUNT,
            "events": COUNT,
            "held": COUNT,
            "timers": COUNT,
            "ended": COUNT,
            "known": COUNT,
        },
        _shards,
    ),
}
"""The tables by name."""


def sql(me: Command, query: Annotated[str, typer.Argument(metavar="QUERY", help="A SELECT.")]) -> None:
    """Answer a query of SQL over the tables invocations, state, schedules, hosts and shards."""
    try:
        import duckdb  # of the extra `sql`
    except ImportError as error:
        raise UsageError("this needs DuckDB: pip install 'perdure[sql]'") from error
    words = set(re.findall(r"\w+", query.lower()))
    begun = boot_seconds()
    database: Any = duckdb.connect(":memory:")
    try:
        for name in sorted(SOURCES.keys() & words):
            _read_into(database, me, name, SOURCES[name])
        took = boot_seconds() - begun
        found = database.execute(query)
        columns: list[str] = [each[0] for each in found.description or ()]
        rows: list[tuple[Any, ...]] = found.fetchall()
    except duckdb.Error as error:
        raise UsageError(f"{str_of(error)}\nThe tables are {', '.join(SOURCES)}") from error
    finally:
        database.close()
    data = [dict(zip(columns, map(as_json, row), strict=True)) for row in rows]
    me.answer(data, lambda: table(columns, [[each[column] for column in columns] for each in data]))
    me.note(f"read within {span(int(took * 1000))}")


def _read_into(database: Any, me: Command, name: str, source: TableSource) -> None:
    """Make a table of rows: as lines of JSON, which DuckDB reads faster than it takes rows one by one."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.json"
        with file.open("wb") as out:
            for row in source.rows(me):
                out.write(_line({column: row.get(column) for column in source.columns}))
        declared = ", ".join(f'"{column}" {kind}' for column, kind in source.columns.items())
        database.execute(f"CREATE TABLE {name} ({declared})")
        if file.stat().st_size:
            kinds = ", ".join(f"\"{column}\": '{kind}'" for column, kind in source.columns.items())
            read = f"read_json('{file}', format = 'newline_delimited', columns = {{{kinds}}})"
            database.execute(f"INSERT INTO {name} SELECT * FROM {read}")


def _line(row: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(row) + b"\n"
    except TypeError:  # halves of surrogate pairs: a key may be any text
        return orjson.dumps(_whole(row)) + b"\n"


def _whole(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_whole(name): _whole(each) for name, each in cast("dict[str, Any]", value).items()}
    return [_whole(each) for each in cast("list[Any]", value)] if isinstance(value, list) else value


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    command(app, "sql")(sql)
