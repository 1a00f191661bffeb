"""Leftovers: what a handler started and did not wait for, in words for its author."""

from collections.abc import Iterator

from actors.blocks.calls import TIMEOUT, Calls
from actors.blocks.steps import Steps
from actors.blocks.timers import Timers
from actors.loop.loop import DeterministicLoop


def leftovers(calls: Calls, steps: Steps, timers: Timers, loop: DeterministicLoop, entries: list[str]) -> Iterator[str]:
    """Yield a sentence for each thing that ends with its handler, or goes on without it, and was not awaited."""
    for name in calls.unawaited():
        yield f"`{name}` was never awaited: its result is lost. Use .send() if nobody waits"
    for step in steps.unended():
        yield f"the step {step.name!r} was never awaited: it is given up with its handler"
    for index in timers:
        if not entries[index].startswith(f"{TIMEOUT} "):
            yield f"`{entries[index]}` had not ended when the handler did: is an await missing?"
    for name in loop.unfinished():
        yield f"{name} had not ended when the handler did: it was cancelled"
