"""Slots: who waits is told once, each loop by one call, and who stops waiting leaves nothing behind."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from actors import Context, VirtualObject, handler
from actors.client.client import Client
from actors.client.slots import Countdown, Slot, Wait, Waiting, acceptance_of, block_until, end_of, wake
from actors.errors import UnavailableError
from actors.requests.invocation import Invocation
from actors.requests.request import EMPTY_OPTIONS, Request
from journal.clock import wall_ms
from journal.memory.store import MemoryStore
from journal.store import Reply


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts how often another thread has woken it."""

    woken = 0

    def call_soon_threadsafe(self, callback: Callable[..., object], *args: Any, context: Any = None) -> asyncio.Handle:
        self.woken += 1
        return super().call_soon_threadsafe(callback, *args, context=context)


def settle(slots: list[Slot], outcome: bytes = b"VJ1") -> tuple[Waiting, ...]:
    return sum((slot.settle(outcome, None) for slot in slots), ())


def test_a_loop_is_woken_once_for_all_that_wait_on_it() -> None:
    loop, lock, slots = CountingLoop(), threading.Lock(), [Slot() for _ in range(5)]

    async def scenario() -> list[Any]:
        waits = [asyncio.ensure_future(Wait(end_of(slot, lock))) for slot in [*slots, slots[0]]]
        await asyncio.sleep(0)
        wake(settle(slots))
        await asyncio.gather(*waits)
        return [slot.result() for slot in slots]

    try:
        assert loop.run_until_complete(scenario()) == [1] * 5
        assert loop.woken == 1
    finally:
        loop.close()


def test_who_waits_on_a_closed_loop_keeps_nobody_else_waiting() -> None:
    loop = asyncio.new_event_loop()
    gone: asyncio.Future[None] = loop.create_future()
    loop.close()
    told: list[int] = []
    wake([gone, lambda: told.append(1)])
    assert told == [1]


async def test_a_wait_that_was_cancelled_leaves_the_others_and_nothing_behind() -> None:
    slot, lock = Slot(), threading.Lock()
    first, second = (asyncio.ensure_future(Wait(end_of(slot, lock))) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert len(slot.waiting) == 1
    wake(settle([slot]))
    await second
    assert slot.waiting == ()


def test_a_wait_that_is_collected_takes_no_lock() -> None:
    slot, lock, loop = Slot(), threading.Lock(), asyncio.new_event_loop()

    async def begin() -> Any:
        wait = end_of(slot, lock)
        next(wait)
        return wait

    wait = loop.run_until_complete(begin())
    with lock:  # as the collector may, in the middle of anything
        wait.close()
    wake(settle([slot]))
    loop.close()


async def test_an_end_is_an_acceptance_too() -> None:
    slot, lock = Slot(), threading.Lock()
    wait = asyncio.ensure_future(Wait(acceptance_of(slot, lock)))
    await asyncio.sleep(0)
    wake(settle([slot]))
    await wait
    assert settle([slot], b"VJ2") == ()
    assert slot.result() == 1


def test_a_blocking_wait_ends_with_so_many_or_with_the_time() -> None:
    lock, slots = threading.Lock(), [Slot() for _ in range(3)]
    block_until(1, slots, 0.0, lock)
    assert [slot.waiting for slot in slots] == [()] * 3
    settle(slots[:1])
    block_until(1, slots, None, lock)
    thread = threading.Thread(target=block_until, args=(3, slots, None, lock))
    thread.start()
    while not slots[2].waiting:
        pass
    for slot in slots[1:]:
        assert thread.is_alive()
        wake(settle([slot]))
    thread.join()


def test_a_countdown_says_whether_it_was_told_in_time() -> None:
    countdown = Countdown(2)
    countdown()
    assert not countdown.wait(0.0)
    countdown()
    countdown()
    assert countdown.wait(None)


class FailingStore(MemoryStore):
    """A store with a defect: what it raises is no answer of a store."""

    async def replies(self, writer: str, after: str, block_ms: int) -> list[Reply]:
        raise LookupError("a defect")


class Unheard(VirtualObject):
    @handler
    async def call(self, ctx: Context) -> None: ...


def test_a_client_that_fails_tells_everybody(caplog: pytest.LogCaptureFixture) -> None:
    client = Client(lambda: FailingStore(wall_ms), sends_code=False)
    client.open()
    try:
        with pytest.raises(UnavailableError, match="a defect"):
            for _ in range(1_000):  # the first may have been started before the task failed
                client.result(
                    client.start(Request("Unheard", "a", "call", (), {}, False, EMPTY_OPTIONS, None, Unheard))
                )
        with pytest.raises(UnavailableError, match="a defect"):
            client.result(Invocation("0123-0", client))
        assert "the client failed" in caplog.text
    finally:
        client.close()
