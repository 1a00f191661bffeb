"""Edits of an object's fields by an operator, each in memory and with every wait suspend-and-replay."""

import asyncio

import pytest
from test_semantics import Simulation, failure_of, mode, simulated

from actors import Context, TerminalError, UsageError, VirtualObject, Workflow, handler, shared, state
from actors.objects.edits import NAME
from actors.objects.objects import declaration

__all__ = ["mode"]


class Edited(VirtualObject):
    count: int = state(0)
    note: str = state("")

    @handler
    async def add_slowly(self, ctx: Context) -> int:
        before = self.count
        await ctx.sleep(10)
        self.count = before + 1
        return self.count

    @shared
    async def changes(self, ctx: Context) -> int:
        await ctx.changed("count")
        return self.count


class EditedWorkflow(Workflow):
    @handler
    async def run(self, ctx: Context) -> None:
        await ctx.sleep(1)


@simulated
async def test_an_edit_waits_its_turn_and_is_seen_by_the_next(world: Simulation) -> None:
    """Issue 12: an operator's write is between two handlers, never within one."""
    edited = Edited.at("a")
    first = edited.add_slowly.remote()
    edit = edited.handle.remote(NAME, {"count": 10, "note": "x", "other": [1]}, [])
    last = edited.add_slowly.remote()

    assert [await first, await edit, await last] == [1, None, 11]
    assert world.state("Edited/a") == {"count": 11, "note": "x", "other": [1]}


@simulated
async def test_an_edit_clears_fields_and_wakes_who_watches(world: Simulation) -> None:
    edited = Edited.at("b")
    await edited.handle.remote(NAME, {"count": 10, "note": "x", "other": 1}, [])
    watching = edited.changes.remote()
    await asyncio.sleep(5)

    await edited.handle.remote(NAME, {"count": 5}, ["note"])
    assert await watching == 5
    assert world.state("Edited/b") == {"count": 5, "other": 1}

    await edited.handle.remote(NAME, {}, [], True)
    assert world.state("Edited/b") == {}


@simulated
async def test_a_wrong_edit_changes_nothing(world: Simulation) -> None:
    edited = Edited.at("c")
    for sets in ({"note": "x", "count": "no number"}, {"note": "x", "@of perdure": 1}):
        error = await failure_of(edited.handle.remote(NAME, sets, []))
        assert isinstance(error, TerminalError)
        assert error.code == 400
    assert world.state("Edited/c") == {}


def test_only_objects_are_edited() -> None:
    assert NAME not in declaration(Edited).handlers
    with pytest.raises(UsageError, match="EditedWorkflow has no handler"):
        EditedWorkflow["a"].handle.remote(NAME, {}, [])
