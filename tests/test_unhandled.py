"""What a host does where it fails itself: the fault stays with the invocation, or with the shard, and no host ends.

Each in memory and with every wait turned into suspend-and-replay; faults are planted from outside, by id.
"""

import asyncio
import logging
from typing import Any

import pytest
from test_semantics import Simulation, mode, outside, played

from actors import Context, Policy, VirtualObject, handler, state
from actors.ownership import REST
from actors.shard import OwnedShard
from actors.unhandled import serving
from journal.entries import Message
from journal.names import Shard, shard_of

__all__ = ["mode"]

SHARDS = 4


class Sturdy(VirtualObject):
    lines: list[str] = state(default_factory=list)

    @handler
    async def append(self, ctx: Context, line: str) -> list[str]:
        self.lines.append(await ctx.run("step", lambda: outside.act(ctx.step_id, line)))
        return self.lines

    @handler(policy=Policy(idle_timeout=0))
    async def listens(self, ctx: Context) -> list[str]:
        line = await ctx.signal("line", str)
        self.lines.append(await ctx.run("step", lambda: outside.act(ctx.step_id, line)))
        return self.lines


KEYS = {Shard(n): next(k for k in "abcdefgh" if shard_of(f"Sturdy/{k}", SHARDS) == n) for n in range(SHARDS)}


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
