"""What a ttl promises of state, one sentence a test: each in memory and with every wait turned into suspend-and-replay.

`test_crash_everywhere.py` has the same under crashes before and after each store call, `test_store.py` the transitions.
"""

import asyncio
import pickle
import random
from typing import Any

import cloudpickle
import pytest
from test_semantics import Broken, Simulation, mode, played, simulated

from actors import Context, Policy, Retry, Service, UsageError, VirtualObject, handler, shared, state
from actors.objects.objects import declaration

__all__ = ["mode"]


class Session(VirtualObject, ttl="60s"):
    user: str = state("nobody")
    visits: int = state(0)
    note: str = state("none", ttl="10s")
    tags: list[str] = state(default_factory=list, ttl=20)

    @handler
    async def login(self, ctx: Context, user: str, pause_s: float = 0) -> str:
        """Writes, and waits while it holds the object."""
        self.user = user
        self.visits += 1
        if pause_s:
            await asyncio.sleep(pause_s)
        return self.user

    @handler
    async def again(self, ctx: Context, pause_s: float) -> int:
        """Writes before and after its pause."""
        self.visits += 1
        await asyncio.sleep(pause_s)
        self.visits += 1
        return self.visits

    @handler
    async def annotate(self, ctx: Context, note: str) -> None:
        self.note = note
        self.tags.append(note)

    @handler
    async def set(self, ctx: Context, name: str, value: Any) -> None:
        ctx.set(name, value)

    @handler
    async def clear(self, ctx: Context, name: str = "") -> None:
        if name:
            ctx.clear(name)
        else:
            ctx.clear_all()

    @handler(policy=Policy(retry=Retry(initial=1)))
    async def stumbles(self, ctx: Context) -> None:
        self.user = "stumbler"
        await asyncio.sleep(1)
        if ctx.attempt < 3:
            raise Broken("not yet")

    @handler
    async def read(self, ctx: Context) -> tuple[str, int, str, list[str]]:
        return self.user, self.visits, self.note, self.tags

    @shared
    async def look(self, ctx: Context, pause_s: float = 0) -> tuple[str, int]:
        before = self.user
        await asyncio.sleep(pause_s)
        return before, self.visits


class Plain(VirtualObject):
    n: int = state(0)

    @handler
    async def add(self, ctx: Context) -> int:
        self.n += 1
        return self.n


def timers(world: Simulation) -> list[str]:
    """Return the timers of state that are set."""
    shards = world.store._world.shards
    return sorted(member for shard in shards for member in shard.timers if member.startswith("ttl:"))


@simulated
async def test_state_is_gone_so_long_after_its_last_change(world: Simulation) -> None:
    await Session["a"].login.remote("ann")
    await asyncio.sleep(59)
    assert world.state("Session/a") == {"user": "ann", "visits": 1}
    await asyncio.sleep(2)
    assert world.state("Session/a") == {}
    assert await Session["a"].read.remote() == ("nobody", 0, "none", [])
    assert timers(world) == []


@simulated
async def test_a_change_moves_the_time_and_nothing_accumulates(world: Simulation) -> None:
    for _ in range(10):
        await Session["a"].login.remote("ann")
        await asyncio.sleep(40)
        assert timers(world) == ["ttl:Session/a:e"]
    assert await Session["a"].login.remote("ann")
    assert world.state("Session/a") == {"user": "ann", "visits": 11}


@simulated
async def test_reading_and_writing_what_is_there_changes_nothing(world: Simulation) -> None:
    await Session["a"].set.remote("user", "ann")
    for _ in range(2):
        await asyncio.sleep(25)
        await Session["a"].read.remote()
        await Session["a"].set.remote("user", "ann")
    await asyncio.sleep(11)
    assert world.state("Session/a") == {}


@simulated
async def test_a_field_goes_alone_and_reads_as_its_default(world: Simulation) -> None:
    await Session["a"].login.remote("ann")
    await Session["a"].annotate.remote("vip")
    assert await Session["a"].read.remote() == ("ann", 1, "vip", ["vip"])
    await asyncio.sleep(11)
    assert await Session["a"].read.remote() == ("ann", 1, "none", ["vip"])
    await asyncio.sleep(10)
    assert await Session["a"].read.remote() == ("ann", 1, "none", [])
    assert world.state("Session/a") == {"user": "ann", "visits": 1}


@simulated
async def test_fields_by_name_go_with_the_object(world: Simulation) -> None:
    await Session["a"].set.remote("undeclared", 1)
    await Session["a"].set.remote("note", "by name")
    await asyncio.sleep(11)
    assert world.state("Session/a") == {"undeclared": 1}
    await asyncio.sleep(51)
    assert world.state("Session/a") == {}


@simulated
async def test_clearing_takes_the_timers_along(world: Simulation) -> None:
    await Session["a"].annotate.remote("vip")
    assert timers(world) == ["ttl:Session/a\0note:f", "ttl:Session/a\0tags:f", "ttl:Session/a:e"]
    await Session["a"].clear.remote("note")
    assert timers(world) == ["ttl:Session/a\0tags:f", "ttl:Session/a:e"]
    await Session["a"].clear.remote()
    assert timers(world) == []


@simulated
async def test_nothing_goes_under_an_exclusive_handler_and_all_before_the_next_one(world: Simulation) -> None:
    # Promise 2: no handler sees the state of its object change under it.
    held = Session["a"].login.remote("ann", 100)
    behind = Session["a"].read.remote()
    await asyncio.sleep(90)
    assert world.state("Session/a") == {"user": "ann", "visits": 1}
    assert await Session["a"].look.remote() == ("ann", 1)
    assert await held == "ann"
    assert await behind == ("nobody", 0, "none", [])
    assert timers(world) == []


@simulated
async def test_a_write_after_the_time_and_before_the_clearing_keeps_the_state(world: Simulation) -> None:
    held = Session["a"].again.remote(100)
    behind = Session["a"].login.remote("ann")
    assert await held == 2
    await behind
    assert world.state("Session/a") == {"user": "ann", "visits": 3}
    await asyncio.sleep(61)
    assert world.state("Session/a") == {}


@simulated
async def test_a_shared_handler_keeps_what_it_has_read(world: Simulation) -> None:
    await Session["a"].login.remote("ann")
    looking = Session["a"].look.remote(100)
    await asyncio.sleep(70)
    assert world.state("Session/a") == {}
    assert (await looking)[0] == "ann"


@simulated
async def test_a_failed_attempt_sets_no_time_of_its_own(world: Simulation) -> None:
    await Session["a"].stumbles.remote()
    assert timers(world) == ["ttl:Session/a:e"]
    await asyncio.sleep(61)
    assert world.state("Session/a") == {}


@pytest.mark.slow_after_first
@pytest.mark.parametrize("seed", range(5))
def test_a_write_about_the_time_goes_on_from_the_old_state_or_from_none_and_is_kept(
    mode: Policy | None, seed: int
) -> None:
    found: set[int] = set()

    async def scenario(world: Simulation) -> None:
        source = world.latency = random.Random(seed)

        async def visit(key: str) -> None:
            await Session[key].set.remote("visits", 1)
            await asyncio.sleep(59.7 + 0.5 * source.random())
            visits = await Session[key].again.remote(0)
            await Session[key].look.remote()
            await asyncio.sleep(5)
            assert world.state(f"Session/{key}") == {"visits": visits}
            found.add(visits)

        await asyncio.gather(*(visit(f"k{number}") for number in range(60)))
        await asyncio.sleep(60)
        assert timers(world) == []

    played(scenario, mode, ["a"])
    assert found == {2, 3}


@simulated
async def test_keys_may_hold_any_character(world: Simulation) -> None:
    for key in ("a:b c", "x\0y", "\0", "1:e", "/a\n:f"):
        await Session[key].annotate.remote("vip")
        await Session[key].login.remote("ann")
    await asyncio.sleep(30)
    for key in ("a:b c", "x\0y", "\0", "1:e", "/a\n:f"):
        assert await Session[key].read.remote() == ("ann", 1, "none", [])
    await asyncio.sleep(31)
    assert [world.state(f"Session/{key}") for key in ("a:b c", "x\0y", "\0", "1:e", "/a\n:f")] == [{}] * 5


@simulated
async def test_classes_without_a_ttl_set_no_timers(world: Simulation) -> None:
    await Plain["a"].add.remote()
    assert timers(world) == []
    assert declaration(Plain).lifetimes is None
    await asyncio.sleep(800)
    assert await Plain["a"].add.remote() == 2


def test_state_goes_at_the_next_owner_too_and_once(mode: Policy | None) -> None:
    async def scenario(world: Simulation) -> None:
        keys = "abcdefgh"
        for key in keys:
            await Session[key].login.remote(key)
        held = Session["a"].again.remote(70)
        await asyncio.sleep(55)
        world.members["a"].running.clear()
        await asyncio.sleep(20)
        assert await held == 3
        assert [world.state(f"Session/{key}") for key in keys[1:]] == [{}] * 7
        assert world.state("Session/a") == {"user": "a", "visits": 3}
        await asyncio.sleep(61)
        assert world.state("Session/a") == {}
        assert timers(world) == []

    played(scenario, mode, ["a", "b"])


def test_a_ttl_travels_with_its_class() -> None:
    found = declaration(pickle.loads(cloudpickle.dumps(Session))).lifetimes
    assert found is not None
    assert (found.object_ms, dict(found.fields_ms)) == (60_000, {"note": 10_000, "tags": 20_000})


@pytest.mark.parametrize("ttl", [0, "0s", 0.0001])
def test_a_ttl_that_is_over_at_once_is_refused(ttl: Any) -> None:
    with pytest.raises(UsageError, match="is over at once"):
        state(1, ttl=ttl)
    with pytest.raises(UsageError, match=r"Wrong: ttl=.* is over at once"):

        class Wrong(VirtualObject, ttl=ttl):  # pyright: ignore[reportUnusedClass]
            n: int = state(0)


@pytest.mark.parametrize("ttl", [-1, "1 year", True, "200000d"])
def test_a_ttl_that_is_no_duration_is_refused(ttl: Any) -> None:
    with pytest.raises(UsageError, match="duration"):
        state(default_factory=list, ttl=ttl)
    with pytest.raises(UsageError, match="duration"):

        class Wrong(VirtualObject, ttl=ttl):  # pyright: ignore[reportUnusedClass]
            n: int = state(0)


def test_a_service_has_no_ttl() -> None:
    with pytest.raises(UsageError, match="a service has no state that could expire"):

        class Wrong(Service, ttl="1h"):  # pyright: ignore[reportUnusedClass]
            @handler
            async def go(self, ctx: Context) -> None: ...
