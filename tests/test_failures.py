"""Failures that nobody waits for are said by the host, and by the status of their invocations, in both modes."""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from test_semantics import Simulation, mode, played

from actors import Context, Policy, Retry, TerminalError, VirtualObject, handler
from actors.client.watch import described

__all__ = ["mode"]


def refused() -> None:
    raise ConnectionError("no card")


class Typo(VirtualObject):
    @handler
    async def fail(self, ctx: Context, what: str = "text") -> None:
        raise (KeyError if what == "key" else ValueError)(what)

    @handler
    async def step(self, ctx: Context) -> None:
        await ctx.run("charge", refused)

    @handler
    async def other(self, ctx: Context) -> None:
        await Typo["called"].fail.remote()

    @handler(policy=Policy(retry=Retry(max_attempts=2)))
    async def give_up(self, ctx: Context) -> None:
        raise ValueError("at last")

    @handler
    async def refuse(self, ctx: Context) -> None:
        raise TerminalError("an outcome as others")


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def played_for(seconds: float, start: Callable[[], Any], mode: Policy | None) -> str:
    """Return the status of what is started, as it is after so long."""
    said: list[str] = []

    async def scenario(world: Simulation) -> None:
        ref, world.expected_leftovers = start(), True
        await asyncio.sleep(seconds)
        said.append(await described(world.store, ref.id))
        ref.kill()
        await asyncio.sleep(1)

    played(scenario, mode, ["a"])
    return said[0]


def test_what_nobody_waits_for_is_said_once_then_once_a_minute(
    mode: Policy | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Issue 15.23: with the traceback; all keys and messages of one type, handler and class of error are one kind."""

    def start() -> Any:
        Typo["b"].fail.send("other")
        Typo["c"].fail.send("key")
        return Typo["a"].fail.send()

    played_for(70, start, mode)
    said = lines(caplog)
    assert len(said) == 4, said
    assert sum("\nValueError" in line for line in said) == 2
    assert sum("\nKeyError" in line for line in said) == 2
    assert "Typo/" in said[0]
    assert "Traceback" in said[0]
    assert "raise (KeyError" in said[0]
    assert "more like this" in said[-1]


@pytest.mark.parametrize("what", ["step", "other", "give_up"])
def test_a_step_a_call_of_a_call_and_a_last_attempt_are_said_too(
    mode: Policy | None, caplog: pytest.LogCaptureFixture, what: str
) -> None:
    """Issue 15.23."""
    played_for(20, lambda: Typo["a"].handle.send(what), mode)
    said = lines(caplog)
    assert len(said) == (2 if what == "give_up" else 1), said
    assert {"step": "'charge': attempt 1", "other": "Typo/called.fail", "give_up": "the last of 2"}[what] in said[-1]


def test_an_outcome_and_what_somebody_waits_for_are_no_failures_to_say(
    mode: Policy | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Issue 15.23: a waiting program is told; where it has ended without a word, the host speaks after a while."""
    played_for(1, Typo["a"].refuse.send, mode)
    played_for(1, Typo["a"].fail.remote, mode)
    assert lines(caplog) == []
    played_for(20, Typo["a"].fail.remote, mode)
    assert len(lines(caplog)) == 1


def test_the_status_says_attempt_error_and_next_try(mode: Policy | None) -> None:
    """Issue 15.23."""
    said = played_for(3, Typo["a"].fail.send, mode)
    assert said.startswith(("open: attempt 6 failed: ValueError('text'); the next follows at 20", "asleep: attempt 6"))
    said = played_for(3, Typo["a"].step.send, mode)
    assert ": `run charge`: attempt 6 failed: ConnectionError('no card'); the next follows at 20" in said
