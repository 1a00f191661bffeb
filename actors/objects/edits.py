"""Edits: the handler by which an operator sets and clears fields of an object.

Every object has it, and no class declares it: no user's handler may have its name. It is exclusive, so that an edit
waits its turn, is part of a commit, and sees and leaves the state that other handlers see.
"""

from typing import Any, Final, cast

from actors.errors import UsageError
from journal.keys import OWN

from .context import Context
from .handlers import Handler
from .state import State

NAME: Final = "@edit"


async def _edit(self: Any, ctx: Context, sets: dict[str, Any], clears: list[str], is_whole: bool = False) -> None:
    """Set fields, and clear others; with `is_whole`, all others. An error leaves all as it was."""
    declared = {name: field for name in sets if (field := _field(self, name)) is not None}
    for name, field in declared.items():
        field.check(sets[name])
    for name in (*sets, *clears):
        if name.startswith(OWN):
            raise UsageError(f"the field {name!r} is Perdure's own")
    for name in ctx.keys() if is_whole else clears:  # no dict
        ctx.clear(name)
    for name, value in sets.items():
        if name in declared:
            setattr(self, name, value)
        else:
            ctx.set(name, value)


def _field(self: object, name: str) -> State[Any] | None:
    found: object = getattr(type(self), name, None)
    return cast("State[Any]", found) if isinstance(found, State) else None


def _made() -> Handler[Any, Any]:
    made = Handler[Any, Any](_edit, exclusive=True)
    made.name = NAME
    return made


EDIT: Final = _made()
