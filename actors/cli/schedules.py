"""Schedules: `perdure schedules`: list them, and pause, resume, trigger or delete one.

The list reads what the schedules keep, so that it needs no host; an action is a request to the schedule.
"""

from collections.abc import Callable
from typing import Annotated, Any, Final

import typer

from actors.requests.invocation import Invocation
from actors.requests.schedule import ALL, ONE, REGISTRY, Schedule
from actors.values.values import decode
from journal.ids import shard_of
from journal.store import Loaded, Store

from .calls import wait_for
from .commands import Command, command, group, span, table, time_text
from .targets import duration_in

_FIELD: Final = "name "
"""The prefix of the registry's fields (`actors.objects.scheduler`)."""


def listed(me: Command) -> None:
    """List all schedules."""
    rows = rows_of_schedules(me)
    columns = ("name", "target", "ticks", "timezone", "paused", "next", "last")
    me.answer(rows, lambda: table(columns, [[row[name] for name in columns] for row in rows]))


def rows_of_schedules(me: Command) -> list[dict[str, Any]]:
    """Return all schedules as a list shows them."""
    fields = _fields(me, f"{ALL}/{REGISTRY}")
    rows = [_row(me, name.removeprefix(_FIELD)) for name in sorted(fields) if name.startswith(_FIELD)]
    return [row for row in rows if row["target"] is not None]


def _fields(me: Command, target: str) -> dict[str, bytes]:
    async def read(store: Store) -> dict[str, bytes]:
        loaded: list[Loaded] = await store.load([(shard_of(target, me.shards), target)])
        return loaded[0].fields

    return me.ask(read)


def _row(me: Command, name: str) -> dict[str, Any]:
    fields = {field: decode(data) for field, data in _fields(me, f"{ONE}/{name}").items()}
    spec, timing, is_paused = fields.get("spec"), fields.get("timing"), fields.get("is_paused", False)
    if spec is None or timing is None:  # announced and not declared yet, or being deleted
        return {"name": name, "target": None}
    place = spec.type if spec.key is None else f"{spec.type}/{spec.key}"
    return {
        "name": name,
        "target": f"{place}.{spec.handler}",
        "ticks": timing.cron or f"every {span(timing.every_ms)}",
        "timezone": timing.timezone,
        "missed": timing.missed,
        "paused": is_paused,
        "next": None if is_paused else time_text(fields.get("next_ms", 0)),
        "last": time_text(fields.get("last_ms", 0)),
        "fired": [id_ for _, id_ in reversed(fields.get("fired", []))],
    }


def _act(name: str, ask: Callable[[Schedule], Invocation[Any]], text: str) -> Callable[..., None]:
    def act(
        me: Command,
        schedule: Annotated[str, typer.Argument(metavar="NAME", help="The name of a schedule.")],
        timeout: Annotated[str | None, typer.Option(help="Wait so long: seconds, or 10m.")] = None,
    ) -> None:
        me.client  # noqa: B018  # connects
        invocation = ask(Schedule(schedule))
        wait_for(me, invocation, duration_in(timeout))
        result = invocation.result()
        me.answer({"name": schedule, "status": "done", "id": result}, result or "done")

    act.__name__, act.__doc__ = name, text
    return act


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    made = group(app, "schedules", "List schedules, pause, resume, trigger or delete one.")
    command(made, "list")(listed)
    for name, ask, text in (
        ("pause", Schedule.pause, "Fire no more, until it is resumed."),
        ("resume", Schedule.resume, "Fire again."),
        ("trigger", Schedule.trigger, "Fire now, and print the id of the invocation."),
        ("delete", Schedule.delete, "Forget a schedule; invocations that it has fired go on."),
    ):
        command(made, name)(_act(name, ask, text))
