"""Who waits in memory leaves it in time, in turns of the loop, and not too many wait."""

import asyncio
from collections import Counter

from simulation import virtual_loop

from actors.activation.idle import AT_ONCE, Idle


class Waits:
    idle = False


def test_who_has_waited_for_its_time_out_leaves_and_who_went_on_does_not() -> None:
    with virtual_loop() as loop:
        idle, left = Idle[Waits](loop, 100), list[tuple[float, Waits]]()
        early, late, gone = Waits(), Waits(), Waits()
        began = loop.time()

        def leave(one: Waits) -> None:
            left.append((round(loop.time() - began, 3), one))

        idle.add(late, 9.0, leave)
        idle.add(early, 2.0, leave)
        idle.add(gone, 2.0, leave)
        idle.remove(gone)
        loop.run_until_complete(asyncio.sleep(60))

        assert left == [(2.0, early), (9.0, late)]
        assert not any(one.idle for one in (early, late, gone))


def test_many_leave_in_turns_of_the_loop_so_that_others_have_theirs() -> None:
    with virtual_loop() as loop:
        idle, turn, left = Idle[Waits](loop, 10 * AT_ONCE), 0, Counter[int]()

        async def turns() -> None:
            nonlocal turn
            while sum(left.values()) < 5 * AT_ONCE:
                await asyncio.sleep(0)
                turn += 1

        for _ in range(5 * AT_ONCE):
            idle.add(Waits(), 0.0, lambda _: left.update([turn]))
        loop.run_until_complete(turns())

        assert list(left.values()) == [AT_ONCE] * 5


def test_beyond_the_limit_those_that_have_waited_longest_leave_early() -> None:
    with virtual_loop() as loop:
        idle, left = Idle[Waits](loop, 3), list[Waits]()
        waiting = [Waits() for _ in range(5)]
        for one in waiting:
            idle.add(one, 60.0, left.append)
        loop.run_until_complete(asyncio.sleep(1))

        assert left == waiting[:2]
        loop.run_until_complete(asyncio.sleep(60))
        assert left == waiting


def test_who_leaves_may_bring_one_with_another_time_out_and_the_others_leave_in_time() -> None:
    with virtual_loop() as loop:
        idle, left = Idle[Waits](loop, 100), list[tuple[float, Waits]]()
        first, second, brought = Waits(), Waits(), Waits()
        began = loop.time()

        def leave(one: Waits) -> None:
            left.append((round(loop.time() - began, 3), one))
            if one is first:
                idle.add(brought, 3.0, leave)

        idle.add(first, 2.0, leave)
        idle.add(second, 2.5, leave)
        loop.run_until_complete(asyncio.sleep(60))

        assert left == [(2.0, first), (2.5, second), (5.0, brought)]
