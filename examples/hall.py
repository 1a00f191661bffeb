"""The hall as a picture: live in a terminal, one line a second elsewhere."""

import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from examples.seat_map import Seat, Status

SEATS_IN_A_ROW = 10
SIGNS: dict[Status, tuple[str, str]] = {"AVAILABLE": ("·", "dim"), "RESERVED": ("◐", "yellow"), "SOLD": ("●", "green")}


@dataclass(slots=True)
class Progress:
    """What is known of a sale so far."""

    buyers: int
    began: float = field(default_factory=time.monotonic)
    seats: list[Seat] = field(default_factory=list[Seat])
    """As the map last showed them."""
    done: int = 0
    """Buyers who have their last answer."""
    answers: Counter[str] = field(default_factory=Counter[str])
    news: list[str] = field(default_factory=list[str])

    @property
    def elapsed_s(self) -> float:
        """How long the sale has gone on."""
        return time.monotonic() - self.began

    def tell(self, text: str) -> None:
        """Note something that happened, and when."""
        self.news.append(f"{self.elapsed_s:5.1f} s  {text}")

    def __str__(self) -> str:
        count = Counter(seat["status"] for seat in self.seats)
        answers = ", ".join(f"{number} {text}" for text, number in sorted(self.answers.items()))
        return (
            f"{self.elapsed_s:5.1f} s  seats: {count['SOLD']} sold, {count['RESERVED']} reserved, "
            f"{count['AVAILABLE']} free;  buyers done: {self.done} of {self.buyers};  answers: {answers or 'none'}"
        )


def picture(progress: Progress) -> Panel:
    """Return the hall, drawn."""
    hall = Table.grid(padding=(0, 1))
    for first in range(0, len(progress.seats), SEATS_IN_A_ROW):
        row = progress.seats[first : first + SEATS_IN_A_ROW]
        hall.add_row(*(Text(SIGNS[seat["status"]][0], SIGNS[seat["status"]][1]) for seat in row))
    legend = Text("  ").join(Text(f"{sign} {status.lower()}", style) for status, (sign, style) in SIGNS.items())
    bar = Padding(ProgressBar(total=progress.buyers, completed=progress.done, width=60), 0)
    return Panel(Group(hall, legend, Text(), bar, Text(str(progress)), *map(Text, progress.news)), title="the hall")


class Screen:
    """Shows a sale while it goes on; in a `with` block."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._live = Live(picture(progress), console=Console(), auto_refresh=False) if sys.stdout.isatty() else None
        self._printed_at = 0.0
        self._told = 0

    def show(self) -> None:
        """Show the sale as it is now."""
        if self._live is not None:
            self._live.update(picture(self._progress), refresh=True)
        elif time.monotonic() - self._printed_at >= 1:
            self._print()

    def _print(self) -> None:
        self._printed_at = time.monotonic()
        print(*self._progress.news[self._told :], self._progress, sep="\n", flush=True)
        self._told = len(self._progress.news)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._live is not None:
            self.show()
            self._live.stop()
        else:
            self._print()
