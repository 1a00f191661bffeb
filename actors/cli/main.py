"""Main: the command `perdure`, put together from its commands, and `serve`."""

from typing import Annotated, Any

import typer

from actors.errors import UsageError

from . import calls, hosts, invocations, journals, projects, schedules, sql, states, why
from .commands import Command, command

app = typer.Typer(
    name="perdure",
    help="Ask durable virtual objects, see what they do, and repair it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for part in (projects, hosts, calls, invocations, why, journals, states, schedules, sql):
    part.add_to(app)


def serve(
    me: Command,
    modules: Annotated[list[str], typer.Argument(metavar="MODULE...", help="As it is imported: examples.seat_map.")],
    host: Annotated[str, typer.Option(help="The address to listen at; without tokens one of this machine.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="The port to listen at.", min=0, max=65_535)] = 8080,
    workers: Annotated[int, typer.Option(help="The number of processes that answer.", min=1, max=256)] = 1,
    hosts: Annotated[
        str | None, typer.Option(help='How many hosts on Ray, or "local": one in this process. Without a store: local.')
    ] = None,
) -> None:
    """Serve the handlers of modules over HTTP, until SIGTERM or Ctrl-C."""
    try:
        from actors.http import serve as serving  # Starlette and others, which the rest does without
    except ImportError as error:
        raise UsageError(f"serving needs more packages: pip install 'perdure[http]' ({error})") from error
    opens: dict[str, Any] = {name: me.setting(name) for name in ("redis", "namespace", "durability")}
    opens["directory"] = me.setting("directory") or ".perdure"
    opens["hosts"] = hosts if hosts is not None else me.setting("hosts")
    serving.serve(modules, host=host, port=port, workers=workers, opens=opens)


command(app, "serve")(serve)


def main() -> None:
    """Run the command line."""
    app(prog_name="perdure")
