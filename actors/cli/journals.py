"""Journals: `perdure journal`, `tree` and `failing`: the entries of an invocation, its calls, and failed attempts.

An invocation whose next attempt is awaited is in memory, so that its records lie in the journals of the shards; a
paused one says why itself.
"""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Final

import typer
from rich.tree import Tree

from actors.errors import NotFoundError
from journal.ids import shard_in
from journal.survey import Place
from journal.texts import shortened

from .accounts import TEXT_MAX, Entry, Story, caller_of, failed_attempts, failure_in, story
from .commands import Command, command, line, span, table, time_text
from .invocations import Filter, matching
from .targets import is_id

_SHOWN_MAX: Final = 60
"""Characters of an outcome in a table."""
DEPTH_MAX: Final = 50
NODES_MAX: Final = 10_000
"""Most invocations of a tree."""

_ID: Final = typer.Argument(metavar="ID", help="The id of an invocation.")


def journal(me: Command, id_: Annotated[str, _ID]) -> None:
    """Show the entries of an open invocation, with their times, attempts and outcomes."""
    shard_in(id_)
    found: Story = me.ask(lambda store: story(store, id_))
    if found.run is None:
        me.fail(1, f"{found.name} {id_} has {found.status}: its journal went with its end", id=id_, status=found.status)
        return
    rows = [_row(found, each, me.shards) for each in found.entries]
    columns = ("index", "entry", "at", "took", "attempts", "outcome")
    me.answer(
        {"id": id_, "invocation": found.name, "status": found.status, "entries": rows},
        lambda: (
            table(columns, [[row[name] for name in columns] for row in rows])
            if rows
            else "the journal is empty: nothing is recorded so far"
        ),
    )


def _row(found: Story, entry: Entry, shards: int) -> dict[str, Any]:
    took = span(entry.ended_ms - entry.made_ms) if entry.ended_ms else "open" if entry.is_open else None
    return {
        "index": entry.index,
        "entry": entry.text,
        "at": time_text(entry.made_ms),
        "ended": time_text(entry.ended_ms),
        "took": took,
        "attempts": entry.attempts or None,
        "outcome": _outcome(entry) or entry.error or None,
        "next_attempt": time_text(entry.next_ms),
        "invocation": found.callee(entry, shards) or None,
    }


def _outcome(entry: Entry) -> str:
    """Return an outcome in few words; values that are no JSON are not unpickled for it."""
    data = entry.outcome
    if not data:
        return ""
    failed = failure_in(data)
    if failed is not None:
        return shortened(f"failed: {failed.message}", _SHOWN_MAX)
    if data[:2] == b"VJ":
        return shortened(data[2:].decode("utf-8", "replace"), _SHOWN_MAX)
    return f"{len(data):,} bytes" if data[:1] == b"V" else ""


def tree(me: Command, id_: Annotated[str, _ID]) -> None:
    """Show the invocations that one has called and sent, and theirs, with what each waits for."""
    shard_in(id_)
    data = _node(me, id_, set(), 0)
    me.answer(data, lambda: _drawn(data))


def _node(me: Command, id_: str, seen: set[str], depth: int) -> dict[str, Any]:
    seen.add(id_)
    try:
        found: Story = me.ask(lambda store: story(store, id_))
    except NotFoundError:
        return {"id": id_, "status": "unknown", "invocation": None, "waits": [], "children": []}
    children: list[dict[str, Any]] = []
    for entry in found.entries:
        child = found.callee(entry, me.shards)
        if child and child not in seen and is_id(child) and depth < DEPTH_MAX and len(seen) < NODES_MAX:
            node = _node(me, child, seen, depth + 1)
            children.append({**node, "invocation": node["invocation"] or entry.name.split(" ")[0], "by": entry.kind})
    data: dict[str, Any] = {
        "id": id_,
        "invocation": found.name or None,
        "status": found.status,
        "waits": [each.text for each in found.waits],
        "children": children,
    }
    if depth == 0 and found.message is not None:
        data["called_by"] = caller_of(found.message) or None
    return data


def _drawn(data: dict[str, Any], into: Tree | None = None) -> Tree:
    waits = f": waits for {', '.join(data['waits'])}" if data["waits"] else ""
    by = "sent " if data.get("by") == "send" else ""
    label = line(f"{by}{data['invocation'] or ''} {data['id']} {data['status']}{waits}".strip())
    here = Tree(label, highlight=False) if into is None else into.add(label)
    for child in data["children"]:
        _drawn(child, here)
    return here


_KIND: Final = re.compile(r"(?:^|: )([A-Za-z_][\w.]*(?:Error|Exception|Exit|Interrupt|Timeout|Group)\w*)")
"""The class of an error in its text."""


@dataclass(slots=True)
class Failing:
    """A group of failures."""

    type: str
    handler: str
    error: str
    retrying: int = 0
    paused: int = 0
    since: str = ""
    next_attempt: str = ""
    example: str = ""
    says: str = ""

    def add(self, is_paused: bool, since: str, next_attempt: str, id_: str, text: str) -> None:
        """Count one."""
        self.paused += is_paused
        self.retrying += not is_paused
        self.since = min(self.since or since, since)
        if next_attempt:
            self.next_attempt = min(self.next_attempt or next_attempt, next_attempt)
        if not self.example:
            self.example, self.says = id_, shortened(text, TEXT_MAX)

    def as_json(self) -> dict[str, Any]:
        """Return the group for programs."""
        return {
            "type": self.type,
            "handler": self.handler,
            "error": self.error,
            "retrying": self.retrying,
            "paused": self.paused,
            "since": self.since or None,
            "next_attempt": self.next_attempt or None,
            "example": self.example,
            "says": self.says,
        }


def kind_of(text: str) -> str:
    """Return the class of an error in its text; its first words where there is none."""
    found = _KIND.search(text)
    return found[1] if found else shortened(text.split("(")[0].split("\n")[0], 60)


def failing(
    me: Command,
    type_: Annotated[str | None, typer.Option("--type", help="Of this type.")] = None,
) -> None:
    """Show the failures of open invocations by type, handler and error: how many, since when, and one of each."""
    groups: dict[tuple[str, str, str], Failing] = {}
    known = failed_attempts(me)
    for row in matching(me, Filter(type_), places=(Place.INBOX, Place.ASLEEP)):
        failed = known.get(row["id"])
        if failed is not None and row["status"] != "paused":
            text, since, following = failed.error, time_text(failed.since_ms), time_text(failed.next_ms)
        elif row["status"] == "paused":
            text, since, following = row["why"], row["at"], None
        else:
            continue
        key = row["target"].partition("/")[0], row["handler"], kind_of(text)
        is_paused = row["status"] == "paused"
        groups.setdefault(key, Failing(*key)).add(is_paused, since or "", following or "", row["id"], text)
    rows = [group.as_json() for group in sorted(groups.values(), key=lambda each: -each.retrying - each.paused)]
    columns = ("type", "handler", "error", "retrying", "paused", "since", "next_attempt", "example", "says")
    me.answer(
        rows,
        lambda: table(columns, [[row[name] for name in columns] for row in rows]) if rows else "nothing is failing",
    )


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    command(app, "journal")(journal)
    command(app, "tree")(tree)
    command(app, "failing")(failing)
