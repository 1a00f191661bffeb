"""Main: the command `perdure`, put together from its commands."""

import typer

from . import calls, hosts, invocations, journals, projects, why

app = typer.Typer(
    name="perdure",
    help="Ask durable virtual objects, see what they do, and repair it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for part in (projects, hosts, calls, invocations, why, journals):
    part.add_to(app)


def main() -> None:
    """Run the command line."""
    app(prog_name="perdure")
