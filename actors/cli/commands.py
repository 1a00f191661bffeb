"""Commands: the shape that all commands share: how one connects, answers and fails, and how answers look.

Each command takes the options of the connection and `--json` besides its own. Settings are taken from the options, else
from the environment (as `actors.init` does), else from `[tool.perdure]` in the `pyproject.toml` of this folder or one
above it.

Exit codes: 0; 1 if what was asked for failed, or is not as it should be; 2 for a mistake in the question.

Invariants:
    1. An answer goes to stdout, as one JSON document with `--json`; all else goes to stderr.
    2. Names, keys and messages of users are shown, never obeyed: neither markup of rich's nor control characters of a
       terminal's have an effect.
"""

import asyncio
import inspect
import json
import os
import sys
import tomllib
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Final, cast

import typer
from rich.console import Console, RenderableType
from rich.table import Table

from actors import session as sessions
from actors.client.client import Client
from actors.errors import DurableError, TerminalError, UsageError
from journal.redis.store import RedisStore
from journal.store import Store
from journal.survey import Survey
from journal.texts import str_of

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


SETTINGS: Final = ("redis", "address", "hosts", "directory", "namespace", "durability")
"""Keys of `[tool.perdure]`."""
_PANEL: Final = "Connection"

Made = Callable[..., None]


def settings_of_folder(here: Path) -> dict[str, Any]:
    """Return `[tool.perdure]` of the nearest `pyproject.toml`; its folders are meant from there.

    Raises:
        UsageError: that file cannot be read, or has other settings.
    """
    for folder in (here, *here.parents):
        file = folder / "pyproject.toml"
        if not file.is_file():
            continue
        try:
            tool = tomllib.loads(file.read_text("utf-8")).get("tool", {})
        except (OSError, ValueError) as error:
            raise UsageError(f"{file} cannot be read: {error}") from error
        found: dict[str, Any] = tool.get("perdure", {})
        unknown = sorted(found.keys() - set(SETTINGS))
        if unknown:
            raise UsageError(
                f"{file}: [tool.perdure] has no setting {', '.join(unknown)}; it has {', '.join(SETTINGS)}"
            )
        if "directory" in found:
            found["directory"] = str(folder / str(found["directory"]))
        return found
    return {}


@dataclass
class Command:
    """One run of a command."""

    redis: str | None = None
    namespace: str | None = None
    directory: str | None = None
    durability: str | None = None
    as_json: bool = False
    may_begin: bool = False
    """Whether it may be the first to use a namespace: a request may come before all hosts."""
    exit_code: int = 0
    """Set by a command whose answer is no good news."""
    _session: sessions.Session | None = None
    _said: dict[str, Any] | None = field(default=None)

    def setting(self, name: str) -> Any:
        """Return a setting of the options, the environment or the folder, in this order; None if nobody says it."""
        given = getattr(self, name, None) or os.environ.get(f"PERDURE_{name.upper()}")
        if given:
            return given
        if self._said is None:
            self._said = settings_of_folder(Path.cwd())
        return self._said.get(name)

    @property
    def session(self) -> sessions.Session:
        """The connection, which the first question opens.

        Raises:
            UsageError: there is no store to connect to.
        """
        if self._session is None:
            redis, directory = self.setting("redis"), Path(self.setting("directory") or ".perdure")
            if redis is None and not directory.is_dir():
                raise UsageError(
                    f"there is no store here: {directory.absolute()} is no folder. Run this where your program runs, "
                    "or say --directory, or --redis redis://HOST:PORT/0 (PERDURE_REDIS)"
                )
            if redis is None:
                from journal.embedded.server import EmbeddedServer  # importable on Linux and macOS alone

                with EmbeddedServer.open(directory) as server:
                    self._session = self._opened(server.url, redis, directory)
            else:
                self._session = self._opened(redis, redis, directory)
        return self._session

    def _opened(self, url: str, redis: str | None, directory: Path) -> sessions.Session:
        namespace: str = self.setting("namespace") or "default"
        if not (
            self.may_begin
            or asyncio.run(_is_open(RedisStore(url, namespace, durability="relaxed", is_ours=redis is None)))
        ):
            raise UsageError(
                f"no program has used the namespace {namespace!r} of this store: is it another one, --namespace? To "
                "look at it here would fix its limits"
            )
        durability = self.setting("durability")
        return sessions.init(redis, hosts=0, directory=directory, namespace=namespace, durability=durability)

    @property
    def client(self) -> Client:
        """The client of the connection."""
        client = self.session.client
        assert client is not None
        return client

    @property
    def shards(self) -> int:
        """How many shards the namespace has."""
        return self.client.limits.shards

    def ask(self, work: Callable[[Store], Coroutine[Any, Any, Any]]) -> Any:
        """Return the answer to a question to the store."""
        return self.client.call(work)

    def look(self, work: Callable[[Survey], Coroutine[Any, Any, Any]]) -> Any:
        """Return the answer to a question to the survey of the store."""
        return self.client.call(lambda store: work(store.survey()))

    def answer(self, data: Any, shown: Callable[[], RenderableType | str] | RenderableType | str) -> None:
        """Give the answer: as JSON, or as text."""
        if self.as_json:
            typer.echo(in_json(data))
        else:
            found = shown() if callable(shown) else shown
            console().print(plain(found) if isinstance(found, str) else found, soft_wrap=isinstance(found, str))

    def note(self, text: str) -> None:
        """Say something beside the answer."""
        if not self.as_json:
            console(to_errors=True).print(plain(text), soft_wrap=True)

    def fail(self, exit_code: int, message: str, /, **more: Any) -> None:
        """Say why there is no answer."""
        self.exit_code = exit_code
        said = in_json({"error": message, **more}) if self.as_json else f"error: {plain(message)}"
        typer.echo(said, err=True)

    def close(self) -> None:
        """Disconnect."""
        if self._session is not None:
            sessions.shutdown()


async def _is_open(store: RedisStore) -> bool:
    try:
        return await store.survey().is_open()
    finally:
        await store.aclose()


def common(
    redis: Annotated[
        str | None, typer.Option(help="URL of the store; without it the embedded server.", rich_help_panel=_PANEL)
    ] = None,
    namespace: Annotated[str | None, typer.Option(help="Where programs meet.", rich_help_panel=_PANEL)] = None,
    directory: Annotated[
        str | None, typer.Option(help="Folder of the embedded server (.perdure).", rich_help_panel=_PANEL)
    ] = None,
    durability: Annotated[
        str | None, typer.Option(help='"disk", or "relaxed": takes any server.', rich_help_panel=_PANEL)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> Command:
    """Return the run of a command with these options, which every command has."""
    return Command(redis, namespace, directory, durability, as_json)


def command(app: typer.Typer, name: str) -> Callable[[Made], Made]:
    """Add a command, a function of its `Command` and its own options, to an app."""

    def added(work: Made) -> Made:
        own = list(inspect.signature(work).parameters.values())[1:]
        shared = list(inspect.signature(common).parameters.values())
        run: Any = partial(_run, work)
        # typer reads these two; both are those of a function that has all options.
        run.__signature__ = inspect.Signature(
            [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in (*own, *shared)]
        )
        run.__annotations__ = {each.name: each.annotation for each in (*own, *shared)}
        run.__name__, run.__doc__ = work.__name__, work.__doc__
        app.command(name)(run)
        return work

    return added


def _run(work: Made, **options: Any) -> None:
    shared = {name: options.pop(name) for name in inspect.signature(common).parameters}
    me = common(**shared)
    try:
        try:
            work(me, **options)
        finally:
            me.close()
    except TerminalError as error:
        me.fail(1, str_of(error), code=error.code, metadata=dict(error.metadata))
    except UsageError as error:
        me.fail(2, str_of(error))
    except (DurableError, TimeoutError) as error:
        me.fail(1, str_of(error))
    raise typer.Exit(me.exit_code)


def confirmed(question: str, *, is_sure: bool) -> bool:
    """Ask, unless it was said already; a program that cannot be asked says it by `--yes`.

    Raises:
        UsageError: nobody can be asked.
    """
    if is_sure:
        return True
    if not sys.stdin.isatty():
        raise UsageError(f"{line(question)} Nobody can be asked here: say --yes")
    return typer.confirm(plain(question), err=True)


def group(app: typer.Typer, name: str, text: str) -> typer.Typer:
    """Add a group of commands to an app."""
    made = typer.Typer(help=text, no_args_is_help=True)
    app.add_typer(made, name=name)
    return made
