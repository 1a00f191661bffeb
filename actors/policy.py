"""Policies: how invocations are treated, and durations as people write them.

Every field of a `Policy` may be left open (None); `resolve` takes each from the first policy that sets it: handler,
class, `init(policy=)`, built-in. With concrete defaults a class that sets only `retry` would undo `init(policy=...)`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

from journal.texts import repr_of

from .errors import UsageError
from .stored import public
from .tracebacks import leaves

Duration = timedelta | float | str
"""A `timedelta`, a number of seconds, or text such as "10ms", "1.5s", "15m", "2h", "1d"."""

DURATION_MAX = timedelta(days=36_525)
"""A hundred years: beyond it, a mistake in the unit is likelier than a wish."""

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_TEXT = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?(ms|s|m|h|d)")


def seconds(duration: Duration) -> float:
    """Return the duration in seconds.

    Raises:
        UsageError: it is no duration, negative, or longer than `DURATION_MAX`.
    """
    if isinstance(duration, timedelta):
        value = duration.total_seconds()
    elif isinstance(duration, str):
        value = _seconds_of_text(duration)
    elif isinstance(duration, bool) or not isinstance(duration, int | float):  # pyright: ignore[reportUnnecessaryIsInstance]  # users without a checker
        raise UsageError(f"a duration is a timedelta, a number of seconds or text, not {repr_of(duration, 100)}")
    else:
        value = float(duration) if abs(duration) < 1e300 else math.inf  # of a larger int there is no float
    if not (math.isfinite(value) and 0 <= value <= DURATION_MAX.total_seconds()):
        raise UsageError(f"a duration is at least 0 and at most {DURATION_MAX.days} days, not {repr_of(duration, 100)}")
    return value


def _seconds_of_text(text: str) -> float:
    found = _TEXT.fullmatch(text)
    if found is None:
        raise UsageError(
            f"{repr_of(text, 100)} is no duration: write a number and a unit, as in '10ms', '1.5s', '15m', '2h', '1d'"
        )
    number, unit = found.groups()
    return float(number) * _UNITS[unit]


def _checked(*durations: Duration | None) -> None:
    for duration in durations:
        if duration is not None:
            seconds(duration)


@public
class RetryAfter(Exception):
    """Raised in a step or a handler: this attempt has failed, and the next follows after `delay` instead of a back-off.

    It counts as an attempt like any other failure.
    """

    def __init__(self, delay: Duration, message: str = "") -> None:
        """Wait for so long; raises `UsageError` for what is no duration."""
        self.delay_s = seconds(delay)
        super().__init__(message or f"to be tried again after {delay}")
        self._made_of = delay, message

    def __reduce__(self) -> tuple[type[RetryAfter], tuple[Duration, str]]:
        # Exceptions are rebuilt from `args`, which holds the finished sentence.
        return type(self), self._made_of


def _asked_s(error: BaseException) -> float | None:
    """Return how long an error asks to wait, of a group the longest; None if none asks for a valid time."""
    asked = (_asked_by(leaf) for leaf in leaves(error) if issubclass(type(leaf), RetryAfter))
    return max((delay_s for delay_s in asked if delay_s is not None), default=None)


def _asked_by(error: Any) -> float | None:
    try:
        return seconds(error.delay_s)
    except BaseException:  # noqa: BLE001 - of a subclass that never called our `__init__`, or has a property of that name
        return None


@public
@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """The times of further attempts after a failure, and their end."""

    initial: Duration = 0.05
    """The wait after the first failure."""

    factor: float = 2.0
    """Each further wait is longer by this factor."""

    max_interval: Duration = 10.0
    """No wait is longer than this."""

    max_attempts: int | None = None
    """Failed attempts after which it is exhausted; None means never. A crash is no failed attempt."""

    max_duration: Duration | None = None
    """A failure so long after the first attempt began exhausts it; None means never."""

    on_exhausted: Literal["fail", "pause"] = "fail"
    """Then the last failure becomes terminal, or the invocation is paused with it and waits for an operator."""

    def __post_init__(self) -> None:
        _checked(self.initial, self.max_interval, self.max_duration)
        if not (math.isfinite(self.factor) and self.factor >= 1):
            raise UsageError(f"Retry(factor={self.factor!r}): waits do not shrink, so it is at least 1")
        if self.max_attempts is not None and self.max_attempts < 1:
            raise UsageError(
                f"Retry(max_attempts={self.max_attempts!r}): the first attempt counts, so it is at least 1"
            )
        if self.on_exhausted not in ("fail", "pause"):
            raise UsageError(f"Retry(on_exhausted={self.on_exhausted!r}): it is 'fail' or 'pause'")

    def delay(self, attempt: int) -> float:
        """Return the seconds between the failure of this attempt, counted from 1, and the next."""
        assert attempt >= 1
        longest = seconds(self.max_interval)
        try:
            return min(seconds(self.initial) * self.factor ** (attempt - 1), longest)
        except OverflowError:
            return longest

    def delay_after(self, error: BaseException, attempt: int) -> float:
        """Return the seconds between this failure of an attempt and the next: as the error asks, else the back-off."""
        asked_s = _asked_s(error)
        return self.delay(attempt) if asked_s is None else asked_s

    def is_exhausted(self, attempts: int, elapsed_s: float) -> bool:
        """Whether no attempt follows after so many failed attempts and so many seconds."""
        if self.max_attempts is not None and attempts >= self.max_attempts:
            return True
        return self.max_duration is not None and elapsed_s >= seconds(self.max_duration)


@public
@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How invocations are treated; None means: not set here."""

    retry: Retry | None = None
    """How a failed attempt is followed by the next."""

    idle_timeout: Duration | None = None
    """An execution that waits longer leaves memory; 0 makes every wait suspend and replay."""

    retention: Duration | None = None
    """How long the outcome outlives the invocation, whatever the count of others (`done_max`).

    Where it is not set, it is a day for a workflow's `run` and with an idempotency key; the outcome of any other
    invocation is kept as long, if the count allows.
    """

    validate: bool | None = None
    """Whether arguments and fields are checked against their annotations where they are given; None means yes."""

    def __post_init__(self) -> None:
        _checked(self.idle_timeout, self.retention)
        if self.retry is not None and not isinstance(self.retry, Retry):  # pyright: ignore[reportUnnecessaryIsInstance]  # users without a checker
            raise UsageError(f"Policy(retry={self.retry!r}): it is a Retry, as in Policy(retry=Retry(max_attempts=3))")
        if self.validate not in (None, True, False):
            raise UsageError(f"Policy(validate={self.validate!r}): it is True or False")


def check_policy(whose: str, policy: object) -> None:
    """Refuse a value that is no policy, where it is given."""
    if policy is not None and not isinstance(policy, Policy):
        raise UsageError(f"{whose}: policy={policy!r} is no Policy; say policy=Policy(retry=Retry(max_attempts=3))")


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedPolicy:
    """A policy in which every field is set."""

    retry: Retry = Retry()
    idle_timeout: timedelta = timedelta(seconds=60)
    retention: timedelta = timedelta(days=1)
    keeps: bool = False
    """Whether the retention was set: then it holds for every invocation."""


def resolve(*policies: Policy | None) -> ResolvedPolicy:
    """Return the policy in force: each field from the first policy that sets it, else the built-in default."""
    said = [policy for policy in policies if policy is not None]
    built_in = ResolvedPolicy()
    return ResolvedPolicy(
        retry=next((policy.retry for policy in said if policy.retry is not None), built_in.retry),
        idle_timeout=_first(built_in.idle_timeout, *(policy.idle_timeout for policy in said)),
        retention=_first(built_in.retention, *(policy.retention for policy in said)),
        keeps=any(policy.retention is not None for policy in said),
    )


def _first(built_in: timedelta, *durations: Duration | None) -> timedelta:
    for duration in durations:
        if duration is not None:
            return timedelta(seconds=seconds(duration))
    return built_in
