"""Which code an invocation runs on, one sentence a test: each in memory and with every wait suspend-and-replay.

A class is defined anew in the process, as at a prompt or in a notebook: hosts that live there use the newest. What
travels to other processes is in `test_code.py` and `test_driver.py`, crashes in `test_crash_everywhere.py`.
"""

import asyncio
import gc
from typing import Any, cast

import cloudpickle
import pytest
import test_semantics
from test_semantics import Broken, Simulation, failure_of, mode, outside, played, simulated

import actors
from actors import Context, Invocation, Policy, Retry, Service, VirtualObject, handler
from actors.activation.open_invocation import OpenInvocation
from actors.code.bundles import bundle_of, digest_of
from journal.ids import Shard
from journal.records import Message, Record

__all__ = ["mode"]

QUICKLY = Policy(retry=Retry(initial=1, max_interval=1))
SLOWLY = Policy(retry=Retry(initial=1_000, max_interval=1_000))


HINT = "with the newer one that is there it goes on after its resume()"


def fail() -> str:
    outside.seen.append("failed")
    raise Broken("not mended yet")


def mend() -> str:
    return "mended"


def version(what: Any, *, policy: Policy = QUICKLY, name: str = "h") -> Any:
    """Define the class anew: its handler ends with what this returns."""

    class Versioned(VirtualObject, policy=policy):
        @handler
        async def at_once(self, ctx: Context) -> Any:
            return what()

        @handler
        async def after_an_entry(self, ctx: Context) -> Any:
            outside.seen.append(await ctx.run("first", lambda: "first"))
            return what()

        @handler
        async def in_a_step(self, ctx: Context) -> Any:
            return await ctx.run("step", what)

        @handler
        async def in_a_slow_step(self, ctx: Context) -> Any:
            async def act() -> Any:
                await asyncio.sleep(5)
                return what()

            return await ctx.run("step", act)

        @handler
        async def touch(self, ctx: Context) -> str:
            return "touched"

    return Versioned


async def failed(world: Simulation, count: int = 1) -> None:
    for _ in range(1_000):
        if outside.seen.count("failed") >= count:
            break
        await asyncio.sleep(0.1)
    assert outside.seen.count("failed") >= count
    await asyncio.sleep(0.1)  # until that is durable


def test_a_mended_handler_is_used_by_the_next_attempt_if_nothing_is_recorded(mode: Policy | None) -> None:
    """Issue 15.36, 15.43: what failed before the class was mended went on failing, and its key stayed blocked."""
    kept = [version(fail)]

    async def scenario(world: Simulation) -> None:
        ref, behind = kept[0]["a"].at_once.remote(), kept[0]["a"].touch.remote()
        await failed(world)
        kept.append(version(mend))
        assert (await ref, await behind) == ("mended", "touched")

    simulated(scenario)(mode)


def test_an_attempt_with_a_journal_stays_on_its_code_until_it_is_resumed(mode: Policy | None) -> None:
    """Issue 15.36: other code could ask for something else than is recorded."""
    kept = [version(fail)]

    async def scenario(world: Simulation) -> None:
        ref = kept[0]["a"].after_an_entry.remote()
        await failed(world)
        kept.append(version(mend))
        if mode is None:  # in the other mode the process has only the newest class: that of the name
            assert not any(HINT in notice for notice in world.program.notices)
            await failed(world, outside.seen.count("failed") + 2)
            assert HINT in world.program.notices[-1], "who has mended the class is told why nothing changes"
        await ref.resume()
        assert await ref == "mended"

    simulated(scenario)(mode)


@pytest.mark.parametrize("name", ["at_once", "after_an_entry", "in_a_step"])
def test_resume_ends_a_back_off_at_once(mode: Policy | None, name: str) -> None:
    """Issue 15.36: resume() did nothing to what fails and is not paused."""
    kept = [version(fail, policy=SLOWLY)]

    async def scenario(world: Simulation) -> None:
        ref: Invocation[Any] = kept[0]["a"].handle.remote(name)
        await failed(world)
        kept.append(version(mend, policy=SLOWLY))
        await ref.resume()
        assert await ref == "mended"
        assert world.elapsed < 20

    simulated(scenario)(mode)


def test_resume_waits_for_the_action_under_way_and_takes_its_success(mode: Policy | None) -> None:
    kept = [version(fail, policy=SLOWLY)]
    outcomes = iter([fail, mend])

    def what() -> str:
        return next(outcomes)()

    async def scenario(world: Simulation) -> None:
        kept[0] = version(what, policy=Policy(retry=Retry(initial=1, max_interval=1)))
        ref = kept[0]["a"].in_a_slow_step.remote()
        await failed(world)
        await asyncio.sleep(2)  # the second attempt of the step is under way
        kept.append(version(fail))
        await ref.resume()
        assert await ref == "mended"
        assert outside.seen == ["failed"]

    simulated(scenario)(mode)


def test_resume_while_an_action_is_under_way_counts_when_it_fails(mode: Policy | None) -> None:
    kept = [version(fail, policy=Policy(retry=Retry(initial=1, max_interval=1_000, factor=1_000)))]

    async def scenario(world: Simulation) -> None:
        ref = kept[0]["a"].in_a_slow_step.remote()
        await failed(world)
        await asyncio.sleep(2)  # the second attempt of the step is under way; its failure would be followed by hours
        kept.append(version(mend))
        await ref.resume()
        assert await ref == "mended"
        assert outside.seen == ["failed", "failed"]
        assert world.elapsed < 60

    simulated(scenario)(mode)


def test_one_that_runs_is_not_disturbed_by_resume(mode: Policy | None) -> None:
    kept = [version(mend)]

    async def scenario(world: Simulation) -> None:
        ref = kept[0]["a"].in_a_slow_step.remote()
        await asyncio.sleep(1)
        await ref.resume()
        assert await ref == "mended"

    simulated(scenario)(mode)


def leaving(*, has_wait: bool) -> Any:
    """Define the classes with or without the handler that waits."""

    class Leaving(VirtualObject):
        @handler
        async def touch(self, ctx: Context) -> str:
            return "touched"

        if has_wait:

            @handler
            async def wait(self, ctx: Context) -> str:
                return await ctx.signal("go", str)

    class LeavingService(Service):
        @handler
        async def touch(self, ctx: Context) -> str:
            return "touched"

        if has_wait:

            @handler
            async def wait(self, ctx: Context) -> str:
                return await ctx.signal("go", str)

    return Leaving, LeavingService


def test_a_handler_that_was_taken_away_lets_its_invocations_wait_and_ends_none(mode: Policy | None) -> None:
    """Issue 15.36, 16.9: a deployment without it ended what was under way with a 404."""
    kept: list[Any] = [leaving(has_wait=True)]

    async def scenario(world: Simulation) -> None:
        leaving_, service = kept[0]
        refs: list[Invocation[str]] = [leaving_["a"].wait.remote(), service.wait.remote()]
        ended: list[Invocation[str]] = [leaving_["b"].wait.remote(), leaving_["c"].wait.remote(), service.wait.remote()]
        behind = leaving_["a"].touch.remote()
        await asyncio.sleep(1)
        world.members["a"].task.cancel()
        kept[0] = leaving(has_wait=False)
        del leaving_, service
        await world.join("b")
        await asyncio.sleep(5)
        assert [await world.status(ref) in ("open", "asleep") for ref in (*refs, *ended, behind)] == [True] * 6
        assert await kept[0][0]["d"].touch.remote() == "touched"
        assert await kept[0][1].touch.remote() == "touched"
        ended[0].kill()
        ended[1].cancel()
        ended[2].cancel()
        for ref in ended:
            assert (await failure_of(ref)).code == 409
        assert any("waits: Leaving has no handler 'wait'" in notice for notice in world.program.notices)
        for ref in refs:
            await ref.signal("go", "on")
        kept[0] = leaving(has_wait=True)
        assert [await ref for ref in refs] == ["on", "on"]
        assert await behind == "touched"

    played(scenario, mode, ["a"])


def test_one_that_failed_keeps_the_code_that_its_next_owner_has_as_well(
    mode: Policy | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The class that lives there has the hash that its message names: nothing is newer."""
    kept = [version(fail)]
    monkeypatch.setattr(test_semantics, "UNSENT", digest_of(kept[0]))

    async def scenario(world: Simulation) -> None:
        ref = kept[0]["a"].at_once.remote()
        await failed(world)
        world.members["a"].task.cancel()
        await world.join("b")
        await failed(world, outside.seen.count("failed") + 2)
        shards = world.store._world.shards
        written = repr([(shard.journal.entries, shard.asleep) for shard in shards])
        assert '"attempt"' in written
        assert '"newer"' not in written
        ref.kill()
        assert (await failure_of(ref)).code == 409

    simulated(scenario)(mode)


def test_a_death_after_newer_code_was_recorded_changes_neither_code_nor_count() -> None:
    """Before that record is durable, the next owner finds the back-off and what ends it, and decides anew."""
    failed_twice, newer = Record(attempt=3, error="late", began_ms=5), Record(newer="new")
    run = OpenInvocation(Message("1-0", "Versioned/a", "at_once", b"", "", "old"), Shard(0), "7-0")
    run.adopt([("8-0", failed_twice)])
    assert (run.message.code, run.attempt, run.backing_off) == ("old", 3, True)
    run.adopt([("9-0", Record.parse(newer.encoded()))])
    assert (run.message.code, run.attempt, run.backing_off, run.began_ms) == ("new", 3, False, 5)
    run.adopt([("10-0", Record(attempt=4))])
    assert (run.message.code, run.attempt, run.backing_off) == ("new", 4, True)


def named_version(what: str) -> Any:
    """Define the class anew: its handler makes entries of this name."""

    class NamedVersion(VirtualObject):
        @handler
        async def last(self, ctx: Context, seconds: float) -> list[str]:
            out = [await ctx.run(f"{what} {number}", lambda: what) for number in range(2)]
            await ctx.sleep(seconds)
            return [*out, await ctx.run(f"{what} again", lambda: what)]

        @handler
        async def ring(self, ctx: Context) -> list[str]:
            return [what]

    return NamedVersion


async def deployed(world: Simulation, what: str) -> Any:
    """Store a version as another process would; return the class, which lives here while it is held."""
    cls = named_version(what)
    bundle, pickling = bundle_of(cls), cast("Any", cloudpickle).cloudpickle
    data = bundle.data.replace(pickling._get_or_create_tracker_id(cls).encode(), f"{what:0<32}".encode())
    await world.store.put_code(bundle.digest, data, bundle.types)
    return cls


@pytest.mark.parametrize("how", ["by name", "by a schedule", "unsent"])
def test_what_named_no_code_ends_on_the_code_that_it_began_with(mode: Policy | None, how: str) -> None:
    """It went on with newer code after a sleep, or on another host, and diverged."""

    async def started(cls: Any, key: str) -> Invocation[Any]:
        if how == "by a schedule":
            schedule = cls[key].last.schedule(20, every="1d", name=key)
            await schedule.status()
            return Invocation(await schedule.trigger())
        if how == "unsent":
            return cls[key].last.remote(20)
        del cls
        gc.collect()
        return actors.object("NamedVersion", key).remote("last", 20)

    async def scenario(world: Simulation) -> None:
        world.expected_leftovers = how == "by a schedule"  # its next ticks
        await world.join("a", live=False)
        old = await started(await deployed(world, "old"), "a")
        await asyncio.sleep(5)
        newer = await deployed(world, "new")
        world.members["a"].task.cancel()
        await world.join("b", live=False)
        assert await old == ["old"] * 3
        assert await (await started(newer, "b")) == ["new"] * 3

    played(scenario, mode, [])
