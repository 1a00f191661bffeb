"""The table: raw figures, another system's beside them, and for each goal the ratio and whether it is met."""

import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

Row = dict[str, Any]
"""A workload and its figures, or a check and whether it is `ok`. It is what `--json` writes and `--beside` reads."""

NARROW: Final = ("workload", "clients", "ops_per_s", "p50_ms", "p95_ms", "p99_ms")
SLEEPERS: Final = 10_000
SIGNS: Final = {">=": operator.ge, "<=": operator.le, "<": operator.lt}
RAY: Final = ("ray 1 actor", "ray 2 actors")


@dataclass(frozen=True, slots=True)
class Figure:
    """Where a figure stands: the best of these workloads' rows."""

    workloads: tuple[str, ...]
    clients: int | None
    """Of a closed loop, or the sleepers of W6."""
    field: str

    def of(self, rows: Iterable[Row]) -> float | None:
        """Return the figure, of several rows the best one; None if there is none."""
        found = [
            float(row[self.field])
            for row in rows
            if row["workload"] in self.workloads and row.get(self.field) is not None
            if _clients(row) == self.clients
        ]
        return (max if self.field == "ops_per_s" else min)(found, default=None)


def _clients(row: Row) -> int | None:
    return row.get("clients", row.get("sleepers"))


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound on one figure of ours, or on its ratio to another one."""

    text: str
    ours: Figure
    theirs: Figure | None
    is_beside: bool
    """The other one is another system's."""
    sign: str
    """How the figure is to stand to the bound."""
    bound: float


def _goal(text: str, ours: Figure, theirs: Figure | None, sign: str, bound: float, *, beside: bool = False) -> Goal:
    return Goal(text, ours, theirs, beside, sign, bound)


def _rate(workload: str, clients: int) -> Figure:
    return Figure((workload,), clients, "ops_per_s")


def _median(workload: str) -> Figure:
    return Figure((workload,), 1, "p50_ms")


def _cpu(workload: str, clients: int) -> Figure:
    return Figure((workload,), clients, "cpu_s_per_1k_total")


def _naps(field: str) -> Figure:
    return Figure(("W6",), SLEEPERS, field)


_RAY_64: Final = Figure(RAY, 64, "ops_per_s")
_RAY_1: Final = Figure(RAY, 1, "p50_ms")

GOALS: Final = (
    _goal("W1, 64 clients: throughput / bare Ray's (the faster of 1 and 2 actors)", _rate("W1", 64), _RAY_64, ">=", 4),
    _goal("W1, 64 clients: throughput / theirs", _rate("W1", 64), _rate("W1", 64), ">=", 15, beside=True),
    _goal("W2, 64 clients, one key: throughput / ours of W1", _rate("W2", 64), _rate("W1", 64), ">=", 0.8),
    _goal("W2, 64 clients, one key: throughput / theirs", _rate("W2", 64), _rate("W2", 64), ">=", 40, beside=True),
    _goal("W1, one client: median / a bare Ray call's", _median("W1"), _RAY_1, "<", 1),
    _goal("W1, one client: median / an XADD's", _median("W1"), _median("xadd"), "<", 8),
    _goal("W3, one client: median / an XADD's", _median("W3"), _median("xadd"), "<", 25),
    _goal("W3, one client: median / theirs", _median("W3"), _median("W3"), "<=", 1 / 5, beside=True),
    _goal("W3, one client: p99 / median", Figure(("W3",), 1, "p99_ms"), _median("W3"), "<", 4),
    _goal("W3, 16 clients: throughput / theirs", _rate("W3", 16), _rate("W3", 16), ">=", 8, beside=True),
    _goal("W4, 16 clients: throughput / theirs", _rate("W4", 16), _rate("W4", 16), ">=", 8, beside=True),
    _goal("W5, one client: median / theirs", _median("W5"), _median("W5"), "<=", 1 / 6, beside=True),
    _goal("W6: seconds until all have started", _naps("all_started_s"), None, "<=", 3),
    _goal("W6: seconds from a start to its wake, at most", _naps("longest_nap_s"), None, "<=", 6),
    _goal("W6: MB of host and store while asleep", _naps("rss_mb_while_asleep_total"), None, "<", 250),
    _goal("W1, 64 clients: CPU s of host and store per 1,000", _cpu("W1", 64), None, "<", 0.4),
)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How a goal stands."""

    goal: Goal
    ours: float
    theirs: float | None
    """None if the goal is on our figure alone, or if the other one was not measured."""

    @property
    def value(self) -> float | None:
        """The figure that the bound is on; None if it cannot be told."""
        if self.goal.theirs is None:
            return self.ours
        return self.ours / self.theirs if self.theirs else None

    @property
    def word(self) -> str:
        """Met, missed, or why that cannot be said."""
        if self.value is None:
            return "no figure beside" if self.goal.is_beside else "not measured"
        return "met" if SIGNS[self.goal.sign](self.value, self.goal.bound) else "missed"


def verdicts(rows: Sequence[Row], beside: Sequence[Row]) -> list[Verdict]:
    """Return how each goal stands whose own figure is among the rows."""
    found: list[Verdict] = []
    for goal in GOALS:
        ours = goal.ours.of(rows)
        if ours is not None:
            theirs = None if goal.theirs is None else goal.theirs.of(beside if goal.is_beside else rows)
            found.append(Verdict(goal, ours, theirs))
    return found


def table(rows: Sequence[Row], beside: Sequence[Row] = (), name: str = "theirs") -> str:
    """Return all of it as text."""
    parts = [_grid(list(_figures(rows))), *_facts(rows)]
    if beside:
        parts.append(f"beside {name}: ours / theirs\n\n" + _grid(list(_ratios(rows, beside))))
    judged = verdicts(rows, beside)
    if judged:
        parts.append(_grid(list(_judged(judged))))
    return "\n\n".join(part for part in parts if part) + "\n"


def _figures(rows: Iterable[Row]) -> Iterator[Sequence[str]]:
    yield (*NARROW, "cpu s/1k host store driver ray", "peak MiB host store driver", "disturbed %", "tries")
    for row in rows:
        if "ops_per_s" in row:
            cpu: Row = row["cpu_s_per_1k"]
            peak: Row = row["peak_rss_mib"]
            yield (
                *(_shown(row[name]) for name in NARROW),
                " ".join(_shown(cpu.get(name)) for name in ("host", "store", "driver", "ray")),
                " ".join(_shown(peak.get(name)) for name in ("host", "store", "driver")),
                _shown(row["disturbed_pct"]),
                _shown(row["tries"]),
            )


def _facts(rows: Iterable[Row]) -> Iterator[str]:
    """Yield what is no closed loop: W6, W7 and the checks."""
    for row in rows:
        if "ops_per_s" not in row:
            said = ", ".join(f"{name} {_shown(value)}" for name, value in row.items() if name not in ("workload", "ok"))
            word = {None: "", True: "ok, ", False: "WRONG, "}[row.get("ok")]
            yield f"{row['workload']}: {word}{said}"


RATIOS: Final = (
    *("ops_per_s", "p50_ms", "p99_ms", "cpu_s_per_1k_total"),
    *("all_done_s", "kill_to_first_completion_s", "kill_to_all_inflight_done_s"),
)


def _ratios(rows: Iterable[Row], beside: Sequence[Row]) -> Iterator[Sequence[str]]:
    yield ("workload", "clients", "figure", "ours", "theirs", "ratio")
    for row in rows:
        for field in RATIOS:
            theirs = Figure((row["workload"],), _clients(row), field).of(beside)
            if row.get(field) is not None and theirs:
                ours = float(row[field])
                yield (*map(_shown, (row["workload"], _clients(row), field, ours, theirs, ours / theirs)),)


def _judged(found: Iterable[Verdict]) -> Iterator[Sequence[str]]:
    yield ("goal", "figure", "other", "ratio", "bound", "")
    for verdict in found:
        goal = verdict.goal
        ratio = None if goal.theirs is None else verdict.value
        bound = f"{goal.sign} {_shown(goal.bound)}"
        yield goal.text, *map(_shown, (verdict.ours, verdict.theirs, ratio)), bound, verdict.word


def _shown(value: object) -> str:
    match value:
        case None:
            return "-"
        case float():
            return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 100 else f"{value:.3g}"
        case dict():
            return " ".join(f"{name}={_shown(each)}" for name, each in cast("Row", value).items())
        case _:
            return str(value)


def _grid(lines: Sequence[Sequence[str]]) -> str:
    if len(lines) < 2:
        return ""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    padded = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([padded[0], "-" * max(map(len, padded)), *padded[1:]])
