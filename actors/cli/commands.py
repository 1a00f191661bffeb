"""Commands: the shape that all commands share: how one connects, answers and fails.

Each command takes the options of the connection and `--json` besides its own. Settings are taken from the options, else
from the environment (as `actors.init` does), else from `[tool.perdure]` in the `pyproject.toml` of this folder or one
above it.

Exit codes: 0; 1 if what was asked for failed, or is not as it should be; 2 for a mistake in the question.
"""

import inspect
import os
import sys
import tomllib
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import RenderableType

from actors import session as sessions
from actors.client.client import Client
from actors.errors import DurableError, TerminalError, UsageError
from journal.store import Store
from journal.survey import Survey
from journal.texts import str_of

from .output import console, in_json, line, plain

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
            self._session = sessions.init(
                redis,
                hosts=0,
                directory=directory,
                namespace=self.setting("namespace"),
                durability=self.setting("durability"),
            )
        return self._session

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
