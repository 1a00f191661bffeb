"""The store's time as a process knows it: what is delayed or sleeps may end late by a round trip, never early."""

from collections.abc import Iterable

import pytest

from journal.clock import CUT_MS, offset_ms

AHEAD_MS = 1_000_000
"""The store's clock is ahead of the process's by so much."""


@pytest.mark.parametrize(
    ("ways", "expected"),
    [
        ([(0, 0)] * 3, AHEAD_MS),
        ([(0, 40)] * 3, AHEAD_MS),
        ([(40, 0)] * 3, AHEAD_MS + 40),
        ([(0, 5_000), (1, 2), (2, 9)], AHEAD_MS + 1),
        ([(5_000, 0), (2, 9), (0, 3)], AHEAD_MS),
    ],
)
async def test_the_offset_is_never_too_small_and_a_pause_does_not_spoil_it(
    ways: Iterable[tuple[int, int]], expected: int
) -> None:
    now, trips = 500, iter(ways)

    async def ask() -> int:
        nonlocal now
        there, back = next(trips)
        now += there
        told = now + AHEAD_MS
        now += back
        return told

    assert await offset_ms(ask, lambda: now) == expected + CUT_MS


@pytest.mark.parametrize(("here", "there"), [(0.0, 0.0), (0.999, 0.0), (0.0, 0.999), (0.5, 0.6), (0.999, 0.999)])
async def test_clocks_that_are_cut_to_milliseconds_end_nothing_early(here: float, there: float) -> None:
    async def ask() -> int:
        return int(AHEAD_MS + there + here)

    offset = await offset_ms(ask, lambda: int(here))

    for later in (0.0, 0.3, 0.999):
        assert int(here + later) + offset >= AHEAD_MS + there + here + later
