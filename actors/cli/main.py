"""Main: the command `perdure`, put together from its commands."""

from importlib import import_module
from importlib.util import find_spec

import typer

from . import calls, hosts, invocations, journals, projects, states, why

app = typer.Typer(
    name="perdure",
    help="Ask durable virtual objects, see what they do, and repair it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for part in (projects, hosts, calls, invocations, why, journals, states):
    part.add_to(app)

_SERVER = "actors.http.serve"
_AS_IT_IS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": list[str]()}


@app.command("serve", context_settings=_AS_IT_IS)
def serve(context: typer.Context) -> None:
    """Serve the handlers of modules over HTTP; `perdure serve --help` lists its options."""
    try:
        is_there = find_spec(_SERVER) is not None
    except ModuleNotFoundError:
        is_there = False
    if not is_there:
        typer.echo("error: this version of Perdure has no HTTP server", err=True)
        raise typer.Exit(2)
    try:
        found = import_module(_SERVER)
    except ModuleNotFoundError as error:
        typer.echo(f"error: {error.name} is missing: pip install 'perdure[http]'", err=True)
        raise typer.Exit(2) from error
    raise typer.Exit(found.main(context.args))


def main() -> None:
    """Run the command line."""
    app(prog_name="perdure")
