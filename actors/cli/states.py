"""States: `perdure objects` and `perdure state`: objects by prefix, and the fields of one.

Fields are written by an exclusive invocation (`actors.objects.edits`): an edit waits its turn, and a holder that never
ends keeps it waiting. A field that is declared takes what its annotation makes of JSON.
"""

import os
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final, cast

import typer

from actors.errors import UsageError
from actors.objects import edits
from actors.objects.objects import ByName, Declaration, object_handle
from journal.ids import ObjectId, shard_of
from journal.keys import OWN
from journal.store import Loaded, Store
from journal.texts import str_of

from .accounts import story
from .calls import wait_for
from .commands import Command, command, confirmed, group, in_json, table
from .targets import class_of, duration_in, json_in, made_by, object_in, scope_in, shown_value

_TARGET: Final = typer.Argument(metavar="TARGET", help="Type/key.")
_TIMEOUT: Final = typer.Option(help="Wait so long for its turn: seconds, or 10m. The edit stays.")
_LOADED_AT_ONCE: Final = 200


def objects(
    me: Command,
    type_: Annotated[str, typer.Argument(metavar="TYPE", help="A type of objects.")],
    prefix: Annotated[str, typer.Option(help="Keys that begin so.")] = "",
    limit: Annotated[int, typer.Option(help="How many at most.", min=1)] = 50,
) -> None:
    """List the objects of a type that have state, or are held by an invocation asleep."""
    object_in(type_)
    if "/" in type_:
        raise UsageError(f"{type_!r} is no type: write `perdure objects TYPE --prefix KEY`")
    names: list[str] = []
    for name in names_of(me, f"{type_}/{prefix}"):
        names.append(name)
        if len(names) >= limit:
            break
    names.sort()
    held = dict(zip(names, _held(me, names), strict=True))
    rows = [
        {"object": name, "status": _status(me, held[name]) if held[name] else "idle", "held_by": held[name] or None}
        for name in names
    ]
    columns = ("object", "status", "held_by")
    me.answer(rows, lambda: table(columns, [[row[column] for column in columns] for row in rows]))


def names_of(me: Command, begins: str) -> Iterator[str]:
    """Yield the objects that have state and whose addresses begin so, each once."""
    seen: set[str] = set()
    cursor, is_first = "", True
    while is_first or cursor:
        found: tuple[list[str], str] = me.look(lambda survey, cursor=cursor: survey.objects(begins, cursor))
        yield from (name for name in found[0] if name not in seen)
        seen.update(found[0])
        cursor, is_first = found[1], False


def _held(me: Command, names: list[str]) -> list[str]:
    """Return the invocations asleep that hold these objects."""

    async def holders(store: Store, part: list[str]) -> list[str]:
        out: list[str] = []
        while len(out) < len(part):  # one read brings the first of them
            asked = [(shard_of(name, me.shards), name) for name in part[len(out) :]]
            out += [loaded.held_by for loaded in await store.load(asked)]
        return out

    found: list[str] = []
    for at in range(0, len(names), _LOADED_AT_ONCE):
        found += me.ask(lambda store, at=at: holders(store, names[at : at + _LOADED_AT_ONCE]))
    return found


def _status(me: Command, holder: str) -> str:
    found = me.ask(lambda store: story(store, holder))
    return f"{found.status}: {found.name.rpartition('.')[2]}"


def _object(text: str) -> ObjectId:
    found = object_in(text)
    if found.key is None:
        raise UsageError(f"{text!r} has no key, and so no state: write Type/key")
    return found


def get(
    me: Command,
    target: Annotated[str, _TARGET],
    field: Annotated[str | None, typer.Argument(metavar="[FIELD]", help="One field.")] = None,
) -> None:
    """Print the committed fields of an object, or one of them."""
    found = _object(target)
    fields = _fields(me, found, class_of(me, found.type))
    if field is None:
        me.answer(fields, lambda: in_json(fields))
    elif field in fields:
        me.answer(fields[field], lambda: in_json(fields[field]))
    else:
        me.fail(1, f"{target} has no field {field!r} that is set; it has {', '.join(sorted(fields)) or 'none'}")


def _fields(me: Command, found: ObjectId, declared: Declaration | None) -> dict[str, Any]:
    target = str(found)
    loaded: list[Loaded] = me.ask(lambda store: store.load([(shard_of(target, me.shards), target)]))
    scope = scope_in(declared)
    return {
        name: shown_value(data, scope) for name, data in sorted(loaded[0].fields.items()) if not name.startswith(OWN)
    }


def put(
    me: Command,
    target: Annotated[str, _TARGET],
    field: Annotated[str, typer.Argument(metavar="FIELD", help="A field.")],
    value: Annotated[str, typer.Argument(metavar="JSON", help="Its value.")],
    timeout: Annotated[str | None, _TIMEOUT] = None,
    undeclared: Annotated[bool, typer.Option("--undeclared", help="The class does not declare it.")] = False,
) -> None:
    """Set a field, when no exclusive handler of the object is under way."""
    found = _object(target)
    _edit(me, found, {field: json_in(value)}, [], timeout, undeclared=undeclared)


def clear(
    me: Command,
    target: Annotated[str, _TARGET],
    fields: Annotated[list[str] | None, typer.Argument(metavar="[FIELD]...", help="Fields; without any, all.")] = None,
    timeout: Annotated[str | None, _TIMEOUT] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before all fields are cleared.")] = False,
) -> None:
    """Clear fields, or all, when no exclusive handler of the object is under way."""
    found = _object(target)
    if not fields and not confirmed(f"clear all fields of {target}?", is_sure=yes):
        raise typer.Exit(1)
    _edit(me, found, {}, fields or [], timeout, is_whole=not fields)


def edit(me: Command, target: Annotated[str, _TARGET], timeout: Annotated[str | None, _TIMEOUT] = None) -> None:
    """Open the fields of an object in $EDITOR as JSON, and write the changes when its key is free."""
    found = _object(target)
    before = _fields(me, found, class_of(me, found.type))
    after: Any = json_in(_edited(in_json(before)))
    if not isinstance(after, dict):
        raise UsageError("the fields of an object are one JSON object")
    fields = cast("dict[str, Any]", after)
    changed = {name: value for name, value in fields.items() if name not in before or before[name] != value}
    gone = sorted(before.keys() - fields.keys())
    if not changed and not gone:
        me.answer({"status": "unchanged"}, "nothing was changed")
        return
    _edit(me, found, changed, gone, timeout, undeclared=True)


def _edited(text: str) -> str:
    """Return a text as the user's editor leaves it.

    Raises:
        UsageError: there is no editor, or it ended with an error.
    """
    editor = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "fields.json"
        file.write_text(text, "utf-8")
        try:
            subprocess.run([*shlex.split(editor), str(file)], check=True)
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            raise UsageError(f"the editor {editor!r} failed: {str_of(error)}. Nothing was changed") from error
        return file.read_text("utf-8")


def _edit(
    me: Command,
    found: ObjectId,
    sets: dict[str, Any],
    clears: list[str],
    timeout: str | None,
    *,
    is_whole: bool = False,
    undeclared: bool = False,
) -> None:
    declared = class_of(me, found.type)
    if declared is not None and declared.built_in(edits.NAME) is None:
        raise UsageError(f"{found.type} is a workflow or a service: only its handlers change what it holds")
    for name in (*sets, *clears):
        if name.startswith(OWN):
            raise UsageError(f"the field {name!r} is Perdure's own")
    values = {name: _value(declared, name, value, undeclared=undeclared) for name, value in sets.items()}
    assert found.key is not None
    address: ByName = object_handle(found.type, found.key)
    invocation = address.remote(edits.NAME, values, clears, is_whole)
    invocation.accepted().result()
    wait_for(me, invocation, duration_in(timeout))
    invocation.result()
    data = {"id": invocation.id, "set": sorted(sets), "cleared": "all" if is_whole else clears}
    me.answer(data, "done")


def _value(declared: Declaration | None, name: str, value: Any, *, undeclared: bool) -> Any:
    field = declared.fields.get(name) if declared is not None else None
    if field is not None:
        return made_by(field.annotation, value, f"the field {name!r}")
    if declared is not None and not undeclared:
        said = ", ".join(sorted(declared.fields)) or "none"
        raise UsageError(f"{declared.name} declares no field {name!r}; it declares {said}. --undeclared sets it anyway")
    return value


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    command(app, "objects")(objects)
    made = group(app, "state", "Read and write the fields of an object.")
    for name, work in (("get", get), ("set", put), ("edit", edit), ("clear", clear)):
        command(made, name)(work)
