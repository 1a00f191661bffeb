"""Leftovers: warnings about calls, steps, timers and tasks that a handler started and never awaited."""

from collections.abc import Iterator

from actors.blocks.calls import TIMEOUT, Calls
from actors.blocks.steps import Steps
from actors.blocks.timers import Timers
from actors.loop.loop import DeterministicLoop


def leftovers(calls: Calls, steps: Steps, timers: Timers, loop: DeterministicLoop, entries: list[str]) -> Iterator[str]:
    """Yield a warning for each call, step, timer or task that was not awaited when its handler ended."""
    for name in calls.unawaited():
        yield f"`{name}` was never awaited: its result is lost. Use .send() if nobody waits"
    for step in steps.unended():
        yield f"the step {step.name!r} was never awaited: it is given up with its handler"
    for index in timers:
        if not entries[index].startswith(f"{TIMEOUT} "):
            yield f"`{entries[index]}` had not ended when the handler did: is an await missing?"
    for name in loop.unfinished():
        yield f"{name} had not ended when the handler did: it was cancelled"
