"""Invocations: `perdure invocations`: list, show, and end or let go on."""

import heapq
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from typing import Annotated, Any, Final

import typer
from rich.progress import track

from actors.errors import NotFoundError, UsageError
from actors.policy import seconds
from actors.requests.invocation import Accepted, Invocation
from journal.ids import Shard, address_of, shard_in, shard_of
from journal.records import Message, time_of
from journal.survey import PAGE, Listed, Page, Place
from journal.texts import shortened, str_of

from .accounts import described, failed_attempts, failure_in, status_of, story
from .commands import Command, command, confirmed, group, pairs, table, time_text
from .targets import duration_in, json_in, shown_outcome

STATUSES: Final = ("open", "asleep", "delayed", "paused", "succeeded", "failed")
_ERROR_MAX: Final = 200
_FIRST_PAGE: Final = 20
"""Entries of each shard that a list looks at first."""
_AT_ONCE: Final = 1_000
"""Events of a bulk operation that are on their way at once."""

_IDS: Final = typer.Argument(metavar="[ID]...", help="Ids of invocations.")
_TYPE: Final = typer.Option("--type", help="Of this type.")
_HANDLER: Final = typer.Option(help="Of this handler.")
_STATUS: Final = typer.Option(help=f"With this status: {', '.join(STATUSES)}.")
_KEY: Final = typer.Option(help="Of the object with this key.")
_SINCE: Final = typer.Option(help="Accepted, or ended, within the last: seconds, or 10m.")


@dataclass(frozen=True, slots=True)
class Filter:
    """A choice of invocations."""

    type: str | None = None
    handler: str | None = None
    status: str | None = None
    key: str | None = None
    since_ms: int = 0

    def __post_init__(self) -> None:
        if self.status is not None and self.status not in STATUSES:
            raise UsageError(f"there is no status {self.status!r}; there are {', '.join(STATUSES)}")
        if self.key is not None and self.type is None:
            raise UsageError("--key is the key of a type: say --type too")

    @property
    def is_empty(self) -> bool:
        """Whether it chooses all."""
        return (self.type, self.handler, self.status, self.key, self.since_ms) == (None, None, None, None, 0)

    @property
    def places(self) -> tuple[Place, ...]:
        """Where such invocations lie."""
        if self.status is None:
            return tuple(Place)
        if self.status in ("succeeded", "failed"):
            return (Place.ENDED,)
        return (Place.INBOX, Place.ASLEEP) if self.status == "open" else (Place.ASLEEP,)

    def begins(self, place: Place) -> str:
        """Return what the targets begin with."""
        if self.key is not None:
            return f"{self.type}/{self.key}{'.' if place is Place.ENDED else ''}"
        return self.type or ""

    def takes(self, row: dict[str, Any], at_ms: int) -> bool:
        """Whether it chooses this one."""
        target: str = row["target"]
        type_, slash, key = target.partition("/")
        return (
            self.type in (None, type_)
            and (self.key is None or (bool(slash) and key == self.key))
            and self.handler in (None, row["handler"])
            and self.status in (None, row["status"])
            and at_ms >= self.since_ms
        )


def row_of(found: Listed) -> tuple[dict[str, Any], int]:
    """Return an invocation of a page as a list shows it, and its time in ms."""
    at_ms = time_of(found.id) if found.id else 0
    if found.place is Place.ENDED:
        target, _, name = found.name.rpartition(".")
        failed = failure_in(found.outcome)
        error = shortened(failed.message, _ERROR_MAX) if failed is not None else None
        row = {"id": found.invocation, "status": status_of(found.outcome), "target": target, "handler": name}
        return {**row, "at": time_text(at_ms), "why": error}, at_ms
    try:
        message = Message.parse(found.message)
    except Exception:  # noqa: BLE001  # the bytes may be of any origin
        message = Message(found.invocation or "?", "?", "?", b"")
    status = "open"
    if found.place is Place.ASLEEP and found.paused != "":
        status = "paused" if found.paused else "asleep" if found.has_begun else "delayed"
    why = shortened(found.paused or "", _ERROR_MAX) or (
        f"due {time_text(message.due_ms)}" if status == "delayed" else None
    )
    row = {"id": message.id, "status": status, "target": message.target, "handler": message.handler}
    return {**row, "at": time_text(at_ms), "why": why}, at_ms


Row = tuple[dict[str, Any], int]
"""An invocation as a list shows it, and its time in ms."""


def matching(
    me: Command, wanted: Filter, count: int = PAGE, *, places: Iterable[Place] = ()
) -> Iterator[dict[str, Any]]:
    """Yield the invocations that a filter chooses, each once, page by page.

    Those of inboxes by the time of their acceptance, those asleep in no order, the newest end first.
    """
    seen: set[str] = set()
    for place in places or wanted.places:
        found = [_rows(me, shard, place, wanted, count) for shard in _shards_of(me, wanted)]
        for row, _ in _in_order(place, found):
            if row["id"] not in seen:
                seen.add(row["id"])
                yield row


def _in_order(place: Place, found: list[Iterator[Row]]) -> Iterator[Row]:
    if place is Place.ASLEEP:
        return chain.from_iterable(found)
    sign = -1 if place is Place.ENDED else 1
    return heapq.merge(*found, key=lambda row: sign * row[1])


def _rows(me: Command, shard: Shard, place: Place, wanted: Filter, count: int) -> Iterator[Row]:
    for row, at_ms in map(row_of, _every(me, shard, place, wanted, count)):
        if place is Place.ENDED and at_ms < wanted.since_ms:
            return  # all others are older
        if wanted.takes(row, at_ms):
            yield row, at_ms


def _shards_of(me: Command, wanted: Filter) -> Iterable[Shard]:
    if wanted.type is not None and wanted.key is not None:
        return (shard_of(address_of(wanted.type, wanted.key), me.shards),)
    return map(Shard, range(me.shards))


def _every(me: Command, shard: Shard, place: Place, wanted: Filter, count: int) -> Iterator[Listed]:
    begins, are_paused = wanted.begins(place), wanted.status == "paused"
    cursor, is_first = "", True
    while is_first or cursor:
        page: Page = me.look(
            lambda survey, at=cursor, many=count: survey.page(shard, place, begins, at, many, are_paused=are_paused)
        )
        count = PAGE
        yield from page.found
        cursor, is_first = page.cursor, False


def listed(
    me: Command,
    type_: Annotated[str | None, _TYPE] = None,
    handler: Annotated[str | None, _HANDLER] = None,
    status: Annotated[str | None, _STATUS] = None,
    key: Annotated[str | None, _KEY] = None,
    since: Annotated[str | None, _SINCE] = None,
    failing: Annotated[bool, typer.Option("--failing", help="Those that wait for another attempt.")] = False,
    limit: Annotated[int, typer.Option(help="How many at most.", min=1)] = 50,
) -> None:
    """List invocations: open ones first, then the newest that have ended."""
    wanted = Filter(type_, handler, status, key, _since_ms(me, since))
    found = matching(me, wanted, max(limit, _FIRST_PAGE))
    rows = list(islice(_failing(me, found) if failing else found, limit))
    columns = ("id", "status", "target", "handler", "at", "why")
    me.answer(rows, lambda: table(columns, [[each[name] for name in columns] for each in rows]))


def _failing(me: Command, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Yield those that are paused, and those whose next attempt is awaited, with the last failure."""
    known = failed_attempts(me)
    for row in rows:
        failed = known.get(row["id"])
        if row["status"] == "paused":
            yield row
        elif failed is not None and row["status"] in ("open", "asleep"):
            yield {**row, "why": shortened(failed.error, _ERROR_MAX)}


def _since_ms(me: Command, since: str | None) -> int:
    found = duration_in(since)
    return 0 if found is None else int(me.ask(lambda store: store.now_ms()) - seconds(found) * 1000)


def show(me: Command, ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of invocations.")]) -> None:
    """Show invocations: status, times, attempts, the last failure, and what each waits for."""
    found: list[dict[str, Any]] = []
    for id_ in ids:
        shard_in(id_)  # refuses what is no id
        data = described(me.ask(lambda store, id_=id_: story(store, id_)))
        if data["status"] == "succeeded":
            outcome: bytes | None = me.ask(lambda store, id_=id_: store.outcome(id_))
            data |= {name: value for name, value in shown_outcome(outcome or b"").items() if name == "result"}
        found.append(data)
    for data in found if not me.as_json else ():
        me.answer(data, lambda data=data: pairs(data))
    if me.as_json:
        me.answer(found[0] if len(ids) == 1 else found, "")


Event = Callable[[Invocation[Any]], Accepted]


def _act(me: Command, name: str, ids: Iterable[str], event: Event) -> None:
    """Bring an event to each of these, and say which could not be brought."""
    wanted = list(ids)
    for id_ in wanted:
        shard_in(id_)
    client, results = me.client, list[dict[str, str]]()
    is_long = len(wanted) > _AT_ONCE and not me.as_json
    parts = [wanted[at : at + _AT_ONCE] for at in range(0, len(wanted), _AT_ONCE)]
    for part in track(parts, f"{name} {len(wanted):,}") if is_long else parts:
        brought = [(id_, event(Invocation[Any](id_, client))) for id_ in part]
        for id_, accepted in brought:
            try:
                accepted.result()
            except NotFoundError as error:
                me.exit_code = 1
                results.append({"id": id_, "status": "unknown", "error": str_of(error)})
            else:
                results.append({"id": id_, "status": "accepted"})
    lines = [f"{each['id']}  {each.get('error') or each['status']}" for each in results]
    count = sum(each["status"] == "accepted" for each in results)
    many = f"{name}: {count:,} accepted, {len(results) - count:,} unknown"
    me.answer(results, "\n".join(lines) if len(lines) <= _ERROR_MAX else many)


def _bulk(name: str, event: Event, statuses: tuple[str, ...]) -> Callable[..., None]:
    """Return the command that brings an event to invocations by id, or by a filter."""

    def act(
        me: Command,
        ids: Annotated[list[str] | None, _IDS] = None,
        type_: Annotated[str | None, _TYPE] = None,
        handler: Annotated[str | None, _HANDLER] = None,
        status: Annotated[str | None, _STATUS] = None,
        key: Annotated[str | None, _KEY] = None,
        since: Annotated[str | None, _SINCE] = None,
        dry_run: Annotated[bool, typer.Option("--dry-run", help="Count, and do nothing.")] = False,
        yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    ) -> None:
        wanted = Filter(type_, handler, status, key, _since_ms(me, since))
        if ids:
            if not wanted.is_empty:
                raise UsageError(f"{name} takes ids, or a filter, not both")
            if dry_run:
                me.answer({"count": len(ids)}, f"{len(ids)} would be asked")
                return
            _act(me, name, ids, event)
            return
        if wanted.is_empty:
            raise UsageError(f"{name} what? Give ids, or a filter: --type T --status paused")
        found = [row["id"] for row in matching(me, wanted) if row["status"] in statuses]
        if dry_run or not found:
            me.answer({"count": len(found)}, f"{len(found):,} match")
            return
        if not confirmed(f"{name} {len(found):,} invocations?", is_sure=yes):
            raise typer.Exit(1)
        _act(me, name, found, event)

    act.__name__ = name
    return act


def restart(
    me: Command,
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of paused invocations.")],
    from_entry: Annotated[int, typer.Option(help="Keep the entries before this one.", min=0)] = 0,
) -> None:
    """Let paused invocations begin again in place."""
    _act(me, "restart", ids, lambda ref: ref.restart(from_entry))


def signal(
    me: Command,
    id_: Annotated[str, typer.Argument(metavar="ID", help="The id of an invocation.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The name of the signal.")],
    value: Annotated[str, typer.Argument(metavar="[JSON]", help="Its value.")] = "null",
) -> None:
    """Send a signal to an invocation."""
    found = json_in(value)
    _act(me, "signal", [id_], lambda ref: ref.signal(name, found))


_OPEN: Final = ("open", "asleep", "delayed", "paused")


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    made = group(app, "invocations", "List invocations, show them, end them, let them go on.")
    command(made, "list")(listed)
    command(made, "show")(show)
    for name, event, statuses, text in (
        ("cancel", Invocation[Any].cancel, _OPEN, "Cancel invocations: their handlers may compensate."),
        ("kill", Invocation[Any].kill, _OPEN, "End invocations at once: their handlers are not asked."),
        (
            "resume",
            Invocation[Any].resume,
            ("open", "asleep", "paused"),
            "Let paused invocations go on, and failing ones try again now, with the newest code.",
        ),
    ):
        act = _bulk(name, event, statuses)
        act.__doc__ = text
        command(made, name)(act)
    command(made, "restart")(restart)
    command(made, "signal")(signal)
