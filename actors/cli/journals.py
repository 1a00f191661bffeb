"""Journals: `perdure journal` and `perdure tree`: the entries of an invocation, and its calls and sends."""

from typing import Annotated, Any, Final

import typer
from rich.tree import Tree

from actors.errors import NotFoundError
from journal.ids import shard_in
from journal.texts import shortened

from .accounts import Entry, Story, caller_of, failure_in, story
from .commands import Command, command
from .output import line, span, table, time_text
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


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    command(app, "journal")(journal)
    command(app, "tree")(tree)
