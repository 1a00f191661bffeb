"""Patience with tasks and with a silent store."""

import asyncio
import itertools

import pytest
from simulation import virtual_loop

from actors.backoff import Patience, end
from actors.errors import UnavailableError


async def test_a_task_that_takes_a_cancellation_for_its_own_is_cancelled_again() -> None:
    """As `asyncio.wait_for` does before Python 3.12: clients that closed at a bad moment waited for ever."""
    swallowed = 0

    async def stubborn() -> None:
        nonlocal swallowed
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                swallowed += 1
                if swallowed == 3:
                    raise

    task = asyncio.ensure_future(stubborn())
    await asyncio.sleep(0)
    await end([task])
    assert task.cancelled()
    assert swallowed == 3


def test_a_silent_store_is_asked_again_and_again_with_growing_waits(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[float] = []

    async def ask() -> str:
        asked.append(asyncio.get_running_loop().time())
        if len(asked) < 10:
            raise UnavailableError("silent")
        return "answer"

    with virtual_loop() as loop:
        assert loop.run_until_complete(Patience("test").until_answered(ask)) == "answer"
    waits = [round(later - earlier, 2) for earlier, later in itertools.pairwise(asked)]
    assert waits == [0.02, 0.04, 0.08, 0.16, 0.32, 0.5, 0.5, 0.5, 0.5]
    said = [record.getMessage() for record in caplog.records]
    assert said == ["test: silent; asking again until it does", "test: the store answers again"]
