"""When schedules are due: cron in local times, clocks put forward and back, distances, and what is no timing."""

from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest

from actors.errors import UsageError
from actors.requests.timing import Timing, instant_of, time_of, timing_of

BERLIN = "Europe/Berlin"


def at(text: str) -> int:
    return instant_of(datetime.fromisoformat(text).replace(tzinfo=UTC))


def following(timing: Timing, since: str, count: int) -> list[str]:
    """Return the next ticks, by the clock of the zone."""
    found, now = list[str](), at(since)
    for _ in range(count):
        now = timing.after(now, at(since))
        found.append(time_of(now, timing.timezone).isoformat(timespec="minutes"))
    return found


def test_a_week_of_ticks_in_local_time() -> None:
    found = following(Timing("0 9 * * mon-fri", BERLIN), "2026-03-26T12:00", 5)
    assert found == [
        "2026-03-27T09:00+01:00",
        "2026-03-30T09:00+02:00",
        "2026-03-31T09:00+02:00",
        "2026-04-01T09:00+02:00",
        "2026-04-02T09:00+02:00",
    ]


def test_a_tick_that_does_not_exist_is_at_the_next_time_that_does() -> None:
    assert following(Timing("30 2 * * *", BERLIN), "2026-03-28T00:00", 3) == [
        "2026-03-28T02:30+01:00",
        "2026-03-29T03:00+02:00",
        "2026-03-30T02:30+02:00",
    ]


def test_several_ticks_that_do_not_exist_are_one() -> None:
    assert following(Timing("*/20 * * * *", BERLIN), "2026-03-29T00:30", 4) == [
        "2026-03-29T01:40+01:00",
        "2026-03-29T03:00+02:00",
        "2026-03-29T03:20+02:00",
        "2026-03-29T03:40+02:00",
    ]


def test_a_doubled_tick_is_once_at_the_first_of_both() -> None:
    assert following(Timing("30 2 * * *", BERLIN), "2026-10-24T12:00", 2) == [
        "2026-10-25T02:30+02:00",
        "2026-10-26T02:30+01:00",
    ]
    assert following(Timing("*/30 * * * *", BERLIN), "2026-10-25T00:10", 3) == [
        "2026-10-25T02:30+02:00",
        "2026-10-25T03:00+01:00",
        "2026-10-25T03:30+01:00",
    ]
    # Begun in the second of both, when all of its ticks have been.
    assert following(Timing("*/30 * * * *", BERLIN), "2026-10-25T01:10", 1) == ["2026-10-25T03:00+01:00"]


@pytest.mark.slow_after_first
@pytest.mark.parametrize("cron", ["30 2 * * *", "15,45 * * * *", "@daily"])
@pytest.mark.parametrize(
    ("zone", "year"),
    [(BERLIN, 2026), ("Australia/Lord_Howe", 2026), ("America/St_Johns", 2011), ("Pacific/Apia", 2011)],
)
def test_what_comes_one_by_one_is_what_is_found_looking_back(cron: str, zone: str, year: int) -> None:
    """Around each change of a clock, from every half hour: no tick twice, none lost, none out of order."""
    timing = Timing(cron, zone)
    start, end = at(f"{year}-01-01T00:00"), at(f"{year + 1}-01-05T00:00")
    ticks = [start]
    while ticks[-1] < end:
        ticks.append(timing.after(ticks[-1], 0))
    ticks = [tick for tick in ticks[1:] if tick <= end]
    assert all(one < other for one, other in pairwise(ticks))
    changes = [n for n in range(start, end, 3_600_000) if _offset(n, zone) != _offset(n + 3_600_000, zone)]
    for change in [*changes, end - 86_400_000 * 2]:
        for now in range(change - 5 * 3_600_000, change + 5 * 3_600_000, 1_800_000):
            assert timing.after(now, 0) == next(tick for tick in ticks if tick > now)
            past = [tick for tick in ticks if change - 86_400_000 <= tick <= now]
            assert timing.latest(change - 86_400_000, now, 0, 1_000) == past
            assert timing.latest(change - 86_400_000, now, 0, 3) == past[-3:]


def _offset(instant: int, zone: str) -> Any:
    return time_of(instant, zone).utcoffset()


def test_a_distance_is_counted_from_the_declaration() -> None:
    timing, anchor = Timing(every_ms=600_000), at("2026-01-01T00:00:07")
    ticks = [anchor]
    for _ in range(7 * 24 * 6):
        ticks.append(timing.after(ticks[-1], anchor))
    assert ticks == [anchor + n * 600_000 for n in range(7 * 24 * 6 + 1)]
    assert timing.after(ticks[5] + 1, anchor) == ticks[6]
    assert timing.latest(ticks[2], ticks[5] + 1, anchor, 1_000) == ticks[2:6]
    assert timing.latest(ticks[2], ticks[5] - 1, anchor, 2) == ticks[3:5]
    assert timing.latest(anchor, anchor + 1, anchor, 10) == []


def test_a_year_of_missed_minutes_is_looked_at_from_its_end() -> None:
    timing = Timing("* * * * *", BERLIN)
    found = timing.latest(at("2025-06-01T00:00"), at("2026-06-01T00:00"), 0, 1_001)
    assert (len(found), found[-1]) == (1_001, at("2026-06-01T00:00"))


def test_a_cron_with_a_last_date_ends() -> None:
    timing = Timing("0 0 1 1 * 0 2027")
    assert following(timing, "2026-03-01T00:00", 1) == ["2027-01-01T00:00+00:00"]
    assert timing.after(at("2027-01-01T00:00"), 0) == 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({}, "say one of them"),
        ({"cron": "* * * * *", "every": 5}, "say one of them"),
        ({"cron": "daily at nine"}, "cannot be read"),
        ({"cron": ""}, "cannot be read"),
        ({"cron": "61 * * * *"}, "cannot be read"),
        ({"cron": "@reboot"}, "cannot be read"),
        ({"cron": 5}, "five fields"),
        ({"cron": "R 9 * * *"}, "differ from host to host"),
        ({"cron": "H(0-30) 9 * * *"}, "differ from host to host"),
        ({"cron": "0 0 30 2 *"}, "never fires"),
        ({"cron": "0 0 1 1 * 0 2001"}, "never fires"),
        ({"cron": "0 9 * * *", "timezone": "Berlin"}, "timezone='Berlin' is not known"),
        ({"cron": "0 9 * * *", "timezone": "../etc/passwd"}, "is not known"),
        ({"cron": "0 9 * * *", "timezone": ""}, "is not known"),
        ({"cron": "0 9 * * *", "timezone": 2}, "is not known"),
        ({"every": "10m", "timezone": BERLIN}, "timezone= is for cron="),
        ({"every": 0.5}, "at least 1 s apart"),
        ({"every": -5}, "duration"),
        ({"every": "often"}, "duration"),
        ({"every": "1m", "missed": "some"}, "'skip', 'last' or 'all'"),
    ],
)
def test_what_is_no_timing_is_refused_in_words(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        timing_of(
            wrong.get("cron"),
            wrong.get("every"),
            wrong.get("timezone"),
            wrong.get("missed", "last"),
            at("2026-01-01T00:00"),
        )


@pytest.mark.parametrize(
    "cron", ["0 9 * * fri", "0 0 1 mar *", "0 0 * * thu#1", "@hourly", "0 0 L * *", "*/5 0 9 * * *"]
)
def test_letters_that_are_names_are_taken(cron: str) -> None:
    assert timing_of(cron, None, None, "all", at("2026-01-01T00:00")).cron == cron
