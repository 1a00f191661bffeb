"""What a host does where it fails itself: the fault stays with the invocation, or with the shard, and no host ends.

Each in memory and with every wait turned into suspend-and-replay; faults are planted from outside, by id.
"""

import asyncio
import json
import logging
from typing import Any

import pytest
from test_semantics import Simulation, mode, outside, played

from actors import Context, Policy, Retry, VirtualObject, handler, state
from actors.activation.open_invocation import OpenInvocation
from actors.activation.staging import Staging
from actors.execution.execution import Execution
from actors.host.ownership import REST
from actors.shard.isolation import serving
from actors.shard.shard import OwnedShard
from journal.ids import Shard, shard_of
from journal.records import Message

__all__ = ["mode"]

SHARDS = 4


class Sturdy(VirtualObject):
    lines: list[str] = state(default_factory=list)

    @handler
    async def append(self, ctx: Context, line: str) -> list[str]:
        self.lines.append(await ctx.run("step", lambda: outside.act(ctx.step_id, line)))
        return self.lines

    @handler
    async def fails_once(self, ctx: Context) -> str:
        return await ctx.run("step", outside.fail, 2, "done", retry=Retry(initial=0.01))

    @handler(policy=Policy(idle_timeout=0))
    async def listens(self, ctx: Context) -> list[str]:
        line = await ctx.signal("line", str)
        self.lines.append(await ctx.run("step", lambda: outside.act(ctx.step_id, line)))
        return self.lines


KEYS = {Shard(n): next(k for k in "abcdefgh" if shard_of(f"Sturdy/{k}", SHARDS) == n) for n in range(SHARDS)}


class Poison(VirtualObject):
    @handler
    async def act(self, ctx: Context) -> str:
        return await ctx.run("step", lambda: outside.act(ctx.step_id, "poison"))

    @handler
    async def after(self, ctx: Context) -> str:
        return "after"


async def replaced(world: Simulation, old: str, new: str) -> None:
    """Let another host take over from one that is killed."""
    world.members[old].task.cancel()
    await asyncio.gather(world.members[old].task, return_exceptions=True)
    await world.join(new)


def test_a_message_that_cannot_be_read_stays_in_its_inbox_and_others_go_on(
    mode: Policy | None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    parse = Message.parse

    def refusing(data: bytes) -> Message:
        if b"newer" in data and not outside.switch:
            raise ValueError("too many values")
        return parse(data)

    async def scenario(world: Simulation) -> None:
        monkeypatch.setattr(Message, "parse", staticmethod(refusing))
        newer = Sturdy["a"].append.remote("newer")
        assert await Sturdy["a"].append.remote("one") == ["one"]
        (inbox_id,) = world.store._world.shards[shard_of("Sturdy/a", SHARDS)].inbox.entries  # pyright: ignore[reportPrivateUsage]  # looks from outside
        said = f"shard {shard_of('Sturdy/a', SHARDS)}: message {inbox_id} of its inbox cannot be read"
        assert [said in record.message for record in caplog.records if record.levelno == logging.ERROR] == [True]
        await replaced(world, "a", "b")
        assert await Sturdy["a"].append.remote("two") == ["one", "two"]
        outside.switch = True
        await replaced(world, "b", "c")
        assert await newer == ["one", "two", "newer"]
        assert outside.seen == ["one", "two", "newer"]

    played(scenario, mode, ["a"])


@pytest.mark.parametrize("where", ["accept", "receive", "loaded", "woken", "take", "settled"])
def test_a_failure_that_is_no_invocation_s_ends_the_service_of_its_shard_alone(
    mode: Policy | None, where: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken, *others = KEYS
    inner: Any = getattr(OwnedShard, where).__wrapped__
    failures = list[str]()

    def failing(self: OwnedShard, *args: Any, **kwargs: Any) -> Any:
        if self.shard == broken and not outside.switch and (where != "take" or not self.staging.is_empty):
            failures.append(where)
            raise RuntimeError("a bug")
        return inner(self, *args, **kwargs)

    async def scenario(world: Simulation) -> None:
        monkeypatch.setattr(OwnedShard, where, serving(failing))
        stuck = Sturdy[KEYS[broken]].listens.remote()
        await asyncio.sleep(1)  # it leaves memory
        stuck.signal("line", "stuck")
        for number in range(3):
            for shard in others:
                assert len(await Sturdy[KEYS[shard]].append.remote("others")) == number + 1
            await asyncio.sleep(REST)
        assert not world.members["a"].task.done()
        assert f"shard {broken}: host a failed on it" in caplog.text
        assert 2 <= len(failures) <= 4, "it is tried again, and not all the time"
        outside.switch = True
        await asyncio.sleep(2 * REST)
        assert await stuck == ["stuck"]
        assert await Sturdy[KEYS[broken]].append.remote("after") == ["stuck", "after"]

    played(scenario, mode, ["a"])


def hosts_of(world: Simulation) -> list[dict[str, Any]]:
    """Return what hosts say of themselves, as `actors.status()` has it."""
    hosts = world.store._world.hosts.values()  # pyright: ignore[reportPrivateUsage]  # looks from outside
    return [json.loads(about.partition(b" ")[2]) for about in hosts]


@pytest.mark.parametrize("how", ["resume", "kill"])
def test_an_invocation_that_its_host_fails_on_is_set_aside_and_no_shard_rests(
    mode: Policy | None, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 15.1 and 15.5: whatever the fault is, one message never stops a shard, and `status()` shows it."""
    inner, failures = Execution.begin, list[str]()

    def failing(self: Execution, fields: Any, refusal: str) -> None:
        inner(self, fields, refusal)
        if self.id == poisoned and not outside.switch:
            failures.append(self.id)
            raise SystemExit("a bug")

    async def scenario(world: Simulation) -> None:
        nonlocal poisoned
        ref = Poison["p"].act.remote()
        poisoned = ref.id
        behind = Poison["p"].after.remote()
        for _ in range(5):
            for key in KEYS.values():
                await asyncio.wait_for(Sturdy[key].append.remote("others"), 2)
        assert await world.until_status(ref, "paused") == (
            "paused: its host failed on it 2 times, a defect of Perdure: SystemExit: a bug"
        )
        await asyncio.sleep(2)
        shard = shard_of("Poison/p", SHARDS)
        assert [fault[:3] for fault in hosts_of(world)[0]["faults"]] == [[shard, ref.id, "SystemExit: a bug"]] * 2
        assert failures == [ref.id] * 2
        outside.switch = True
        if how == "kill":
            ref.kill()
        else:
            ref.resume()
            assert await ref == "poison"
        assert await behind == "after"

    poisoned = ""
    monkeypatch.setattr(Execution, "begin", failing)
    played(scenario, mode, ["a"])


def test_a_task_that_fails_ends_the_service_of_its_shard_and_the_step_is_made_elsewhere(
    mode: Policy | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 15.5: a task of a host that fails leaves a mark, and what it was to serve goes on."""
    tried = Staging.tried
    failures = list[str]()

    def failing(self: Staging, run: OpenInvocation, *args: Any) -> int:
        if not failures:
            failures.append(run.id)
            raise RuntimeError("a bug")
        return tried(self, run, *args)

    async def scenario(world: Simulation) -> None:
        assert await Sturdy["a"].fails_once.remote() == "done"
        await asyncio.sleep(2)
        (fault,) = hosts_of(world)[0]["faults"]
        assert fault[:3] == [shard_of("Sturdy/a", SHARDS), failures[0], "RuntimeError: a bug"]
        assert world.elapsed < 10

    monkeypatch.setattr(Staging, "tried", failing)
    played(scenario, mode, ["a"])
