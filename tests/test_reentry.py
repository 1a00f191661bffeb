"""What is promised of `@handler(reentrant=True)`: each in memory and with every wait turned into suspend-and-replay.

`test_crash_everywhere.py` has such calls under crashes before and after each store call.
"""

import asyncio
from functools import partial
from typing import Any

import pytest
from test_semantics import Simulation, failure_of, mode, outside, played, simulated

from actors import (
    Cancelled,
    Context,
    DeadlockError,
    Invocation,
    Policy,
    Retry,
    Service,
    TerminalError,
    UsageError,
    VirtualObject,
    Workflow,
    handler,
    shared,
    state,
)
from actors.activation.staging import CommitBudget
from actors.execution.state_view import INNER_WROTE, packed, unpacked
from actors.host import writer
from journal.memory.scripts import World as Stored
from journal.records import EventKind, Record
from journal.store import Part, Progress

__all__ = ["mode"]


class Board(VirtualObject):
    notes: list[str] = state(default_factory=list)
    mine: str = state("")
    other: str | None = state(None)

    @handler
    async def write(self, ctx: Context, how: str = "note", *args: object) -> list[str]:
        """Write, call out, and be called back meanwhile."""
        self.notes.append("before")
        self.mine = "holder"
        await Editor[ctx.key].edit.remote(ctx.key, how, *args)
        self.notes.append("after")
        return [self.mine, self.other or "", *self.notes]

    @handler(reentrant=True)
    async def note(self, ctx: Context) -> str:
        self.notes.append("inner")
        self.mine, self.other = "inner", "inner"
        return ",".join(self.notes)

    @handler(reentrant=True)
    async def slowly(self, ctx: Context, takes_s: float = 5) -> str:
        self.notes.append("begun")
        outside.seen.append(ctx.id)
        await ctx.run("work", lambda: outside.act_for(ctx.step_id, "work", takes_s))
        self.notes.append("worked")
        await asyncio.sleep(takes_s)
        self.notes.append("slept")
        return ",".join(self.notes)

    @handler(reentrant=True)
    async def forgetful(self, ctx: Context) -> str:
        ctx.clear("mine")
        ctx.clear("notes")
        return str(ctx.keys())

    @handler(reentrant=True)
    async def nested(self, ctx: Context, depth: int) -> str:
        self.notes.append(f"down {depth}")
        if depth:
            await Editor[f"{ctx.key}{depth}"].edit.remote(ctx.key, "nested", depth - 1)
        self.notes.append(f"up {depth}")
        return ",".join(self.notes)

    @handler(reentrant=True)
    async def failing(self, ctx: Context, failures: int) -> str:
        self.notes.append("tried")
        await asyncio.sleep(1)
        if ctx.attempt <= failures:
            raise ConnectionError("not now")
        return ",".join(self.notes)

    @handler(reentrant=True)
    async def refused(self, ctx: Context) -> None:
        self.notes.append("refused")
        raise TerminalError("no", 409)

    @handler(reentrant=True, policy=Policy(retry=Retry(max_attempts=1, on_exhausted="pause")))
    async def paused(self, ctx: Context) -> str:
        self.notes.append("pausing")
        outside.seen.append(ctx.id)
        await asyncio.sleep(1)
        if not outside.switch:
            raise ConnectionError("not now")
        return ",".join(self.notes)

    @handler(reentrant=True)
    async def long(self, ctx: Context) -> str:
        self.notes.append("long")
        outside.seen.append(ctx.id)
        try:
            return await ctx.awakeable(str)
        except Cancelled:
            self.notes.append("cancelled")
            return ""

    @handler(reentrant=True)
    async def call(self, ctx: Context, how: str) -> object:
        return await Editor["other"].edit.remote(ctx.key, how)

    @handler
    async def plain(self, ctx: Context) -> str:
        self.notes.append("plain")
        return ",".join(self.notes)

    @handler
    async def several(self, ctx: Context, count: int) -> list[str]:
        calls = [Editor[f"{ctx.key}{n}"].edit.remote(ctx.key, "slowly", 1) for n in range(count)]
        await asyncio.gather(*calls)
        return self.notes

    @handler
    async def limited(self, ctx: Context) -> str:
        try:
            await asyncio.wait_for(Editor[ctx.key].edit.remote(ctx.key, "slowly"), 2)
        except TimeoutError:
            return f"too late: {self.notes}"
        return "in time"

    @handler
    async def signalled(self, ctx: Context) -> list[str]:
        """Is moved by something else while one that it let in is under way."""

        async def heard() -> None:
            value = await ctx.signal("more", str)
            self.notes.append(value)

        await asyncio.gather(heard(), Editor[ctx.key].edit.remote(ctx.key, "slowly"))
        return self.notes

    @handler
    async def stumbling(self, ctx: Context) -> list[str]:
        """Fails once, after it has let one in."""
        self.notes.append("before")
        seen = list(self.notes)
        await Editor[ctx.key].edit.remote(ctx.key, "note")
        seen += self.notes
        self.notes.append("after")
        await asyncio.sleep(1)
        if ctx.attempt == 1:
            raise ConnectionError("once")
        return [*seen, *self.notes]

    @handler(policy=Policy(retry=Retry(max_attempts=1, on_exhausted="pause")))
    async def stops(self, ctx: Context) -> list[str]:
        self.notes.append("before")
        await Editor[ctx.key].edit.remote(ctx.key, "note")
        if not outside.switch:
            raise ConnectionError("not now")
        return self.notes

    @handler
    async def works(self, ctx: Context) -> list[str]:
        """Has a step under way when it is called back."""

        async def work() -> None:
            await ctx.run("work", lambda: outside.act_for(ctx.step_id, "work", 5))
            self.notes.append("work")

        await asyncio.gather(work(), Editor[ctx.key].edit.remote(ctx.key, "note"))
        return self.notes

    @shared
    async def read(self, ctx: Context) -> list[str]:
        return self.notes


class Editor(VirtualObject):
    @handler
    async def edit(self, ctx: Context, key: str, how: str, *args: object) -> object:
        return await Board[key].handle.remote(how, *args)


HOSTS = pytest.mark.parametrize("hosts", [["a"], ["a", "b", "c"]], ids=["one host", "three hosts"])


@HOSTS
def test_a_call_that_comes_back_is_let_in_and_both_see_what_the_other_wrote(
    mode: Policy | None, hosts: list[str]
) -> None:
    async def scenario(world: Simulation) -> None:
        began = world.elapsed
        assert await Board["a"].write.remote() == ["inner", "inner", "before", "inner", "after"]
        assert world.elapsed - began < 1
        assert world.state("Board/a") == {"mine": "inner", "notes": ["before", "inner", "after"], "other": "inner"}

    played(scenario, mode, hosts)


@HOSTS
def test_without_it_the_same_call_is_a_deadlock(mode: Policy | None, hosts: list[str]) -> None:
    async def scenario(world: Simulation) -> None:
        error = await failure_of(Board["a"].write.remote("plain"))
        assert (type(error), error.code) == (DeadlockError, 409)

    played(scenario, mode, hosts)


@simulated
async def test_an_inner_one_waits_as_any_other(world: Simulation) -> None:
    assert await Board["a"].write.remote("slowly") == ["holder", "", "before", "begun", "worked", "slept", "after"]


@simulated
async def test_an_inner_one_may_clear_what_its_holder_wrote(world: Simulation) -> None:
    assert await Board["a"].write.remote("forgetful") == ["", "", "after"]
    assert world.state("Board/a") == {"notes": ["after"]}


@simulated
async def test_an_inner_one_may_let_another_one_in(world: Simulation) -> None:
    found = await Board["a"].write.remote("nested", 3)

    downs, ups = [f"down {n}" for n in (3, 2, 1, 0)], [f"up {n}" for n in range(4)]
    assert found == ["holder", "", "before", *downs, *ups, "after"]
    assert world.state("Board/a")["notes"] == found[2:]


@simulated
async def test_inner_ones_run_one_at_a_time(world: Simulation) -> None:
    assert await Board["a"].several.remote(3) == ["begun", "worked", "slept"] * 3


@simulated
async def test_who_is_not_called_back_waits_for_the_holder(world: Simulation) -> None:
    writing = Board["a"].write.remote("slowly")
    await asyncio.sleep(1)
    others = [Board["a"].plain.remote(), Board["a"].note.remote()]

    assert (await writing)[2:] == ["before", "begun", "worked", "slept", "after"]
    assert await others[0] == "before,begun,worked,slept,after,plain"
    assert await others[1] == "before,begun,worked,slept,after,plain,inner"


@simulated
async def test_the_holder_stands_still_while_an_inner_one_is_under_way(world: Simulation) -> None:
    ref = Board["a"].signalled.remote()
    await asyncio.sleep(2)
    ref.signal("more", "signal")

    assert await ref == ["begun", "worked", "slept", "signal"]


@simulated
async def test_a_time_out_of_the_holder_comes_when_the_inner_one_has_ended(world: Simulation) -> None:
    assert await Board["a"].limited.remote() == "too late: ['begun', 'worked', 'slept']"


@simulated
async def test_the_holder_ends_its_step_first(world: Simulation) -> None:
    assert await Board["a"].works.remote() == ["work", "inner"]


@simulated
async def test_a_holder_that_fails_finds_again_what_it_found(world: Simulation) -> None:
    found = await Board["a"].stumbling.remote()

    assert found == ["before", "before", "inner", "before", "inner", "after"]
    assert world.state("Board/a")["notes"] == ["before", "inner", "after"]


@simulated
async def test_what_an_inner_one_wrote_stays_when_its_holder_is_restarted(world: Simulation) -> None:
    for how, notes in (("resume", ["before", "inner"]), ("restart", ["before", "inner", "inner"])):
        outside.switch = False
        stopped = Board[how].stops.remote()
        await world.until_status(stopped, "paused")
        assert world.state(f"Board/{how}")["notes"] == ["before", "inner"]
        outside.switch = True
        getattr(stopped, how)()

        assert await stopped == notes
        assert world.state(f"Board/{how}")["notes"] == notes


@simulated
async def test_an_inner_one_that_fails_is_tried_again_before_the_holder_goes_on(world: Simulation) -> None:
    assert await Board["a"].write.remote("failing", 2) == ["holder", "", "before", "tried", "after"]


@simulated
async def test_the_failure_of_an_inner_one_reaches_its_caller_and_what_it_wrote_stays(world: Simulation) -> None:
    error = await failure_of(Board["a"].write.remote("refused"))

    assert (str(error), error.code) == ("no", 409)
    assert world.state("Board/a")["notes"] == ["before", "refused"]


@simulated
async def test_a_shared_handler_sees_what_was_written_last(world: Simulation) -> None:
    writing = Board["a"].write.remote("slowly")
    await asyncio.sleep(2)

    assert await Board["a"].read.remote() == ["before", "begun"]
    await writing


async def begun(world: Simulation, how: str) -> tuple[Invocation[list[str]], Invocation[str]]:
    """Start a holder, and return it with its inner one when that is under way."""
    writing = Board["a"].write.remote(how)
    while not outside.seen:  # noqa: ASYNC110  # it looks from outside
        await asyncio.sleep(0.1)
    return writing, Invocation(outside.seen[0], world.program)


@simulated
async def test_an_inner_one_that_is_paused_keeps_the_key_until_it_goes_on(world: Simulation) -> None:
    writing, inner = await begun(world, "paused")
    await world.until_status(inner, "paused")
    plain = Board["a"].plain.remote()
    await asyncio.sleep(30)
    assert await world.status(writing) in ("open", "asleep")
    assert await world.status(plain) == "open"

    outside.switch = True
    inner.resume()
    assert (await writing)[2:] == ["before", "pausing", "after"]
    assert await plain == "before,pausing,after,plain"


@simulated
async def test_an_inner_one_that_is_killed_leaves_the_key_to_its_holder(world: Simulation) -> None:
    for how in ("paused", "slowly"):
        outside.seen.clear()
        writing, inner = await begun(world, how)
        if how == "paused":
            await world.until_status(inner, "paused")
        inner.kill()

        assert type(await failure_of(inner)) is Cancelled
        assert type(await failure_of(writing)) is Cancelled, "nobody has caught it on the way"
        assert (await Board["a"].plain.remote()).endswith(",plain")


@simulated
async def test_a_holder_that_is_killed_takes_its_inner_one_along(world: Simulation) -> None:
    for how in ("paused", "slowly", "long"):
        outside.seen.clear()
        writing, inner = await begun(world, how)
        if how == "paused":
            await world.until_status(inner, "paused")
        plain = Board["a"].plain.remote()
        writing.kill()

        assert type(await failure_of(writing)) is Cancelled
        assert type(await failure_of(inner)) is Cancelled
        assert (await plain).endswith(",plain")


@simulated
async def test_a_cancel_of_an_inner_one_reaches_its_handler(world: Simulation) -> None:
    writing, inner = await begun(world, "long")
    inner.cancel()

    assert (await writing)[2:] == ["before", "long", "cancelled", "after"]


@simulated
async def test_a_cancel_of_the_holder_comes_when_its_inner_one_has_ended(world: Simulation) -> None:
    writing, inner = await begun(world, "slowly")
    writing.cancel()

    assert type(await failure_of(writing)) is Cancelled
    assert await inner == "before,begun,worked,slept"
    assert world.state("Board/a")["notes"] == ["before", "begun", "worked", "slept"]


@simulated
async def test_a_circle_among_inner_ones_is_found(world: Simulation) -> None:
    error = await failure_of(Board["a"].write.remote("call", "plain"))

    assert (type(error), error.code) == (DeadlockError, 409)
    assert await Board["a"].plain.remote() == "before,plain"


def test_what_an_inner_one_writes_is_in_one_commit_with_what_its_holders_know_of_it(
    mode: Policy | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts: list[Part] = []
    commit = Stored.commit

    def seen(self: Stored, part: Part) -> Any:
        parts.append(part)
        return commit(self, part)

    async def scenario(world: Simulation) -> None:
        await Board["a"].write.remote("nested", 2)

    monkeypatch.setattr(writer, "CommitBudget", partial(CommitBudget, commands=1))
    monkeypatch.setattr(Stored, "commit", seen)
    played(scenario, mode, ["a"])

    large = [part.progress for part in parts if len(part.progress) > 1]
    for *before, last in large:
        assert all(wrote(progress) for progress in before)
        assert last.writes
        assert not wrote(last)
    # The innermost writes once, the others before and after it; each has one holder more than the one before.
    assert sorted(map(len, large)) == [2, 2, 3, 3, 4]


def wrote(progress: Progress) -> bool:
    """Whether it tells an invocation what an inner one has written."""
    events = Record.parse(progress.record).events if progress.record else []
    return any(event.kind is EventKind.STATE and event.index == INNER_WROTE for event in events)


def test_where_it_has_no_meaning_it_is_refused() -> None:
    with pytest.raises(UsageError, match="runs beside all others anyway"):

        @shared(reentrant=True)
        async def look(self: Board, ctx: Context) -> None: ...

    with pytest.raises(UsageError, match="a service has no key to come back to"):

        class Odd(Service):  # pyright: ignore[reportUnusedClass]
            @handler(reentrant=True)
            async def answer(self, ctx: Context) -> None: ...

    with pytest.raises(UsageError, match="happens once for each key"):

        class Odder(Workflow):  # pyright: ignore[reportUnusedClass]
            @handler(reentrant=True)
            async def run(self, ctx: Context) -> None: ...


def test_it_travels_with_the_class() -> None:
    restore, parts = vars(Board)["note"].__reduce__()
    assert restore(*parts).reentrant


def test_fields_come_back_as_they_were_packed() -> None:
    fields: dict[str, bytes | None] = {"a": b"1", "b": None, "c": b"", "d": b"x\ny"}
    assert unpacked(packed(fields)) == fields
