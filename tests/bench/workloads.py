"""The workloads' objects and services: W1 to W7, the same things that the other systems are given to do.

W1 and W2 count on many keys and on one; W3 takes ten steps; W4 is a checkout saga; W5 calls 100 objects at once; W6
sleeps; W7 is W3 with steps that write a token into a file, so that an audit can see which ran twice.
"""

import asyncio
import logging
import os
import threading
import time
from typing import TypedDict
from uuid import uuid4

from actors import Context, Service, TerminalError, VirtualObject, handler, shared, state

KEYS = 1000
STEPS = 10
FAN = 100
TEN = sum(range(STEPS))
"""What ten steps add up to."""

_open: dict[str, logging.FileHandler] = {}


def note(log: str, *words: object) -> None:
    """Append a line to a file with one write, which a kill of the process cannot tear.

    A handler may open no file; one that logs may write to its log.
    """
    if log not in _open:
        _open[log] = logging.FileHandler(log, delay=True)
    _open[log].emit(logging.makeLogRecord({"msg": " ".join(map(str, words))}))


class BenchCounter(VirtualObject):
    """W1, W2 and W5: one field, read and written."""

    n: int = state(0)

    @handler
    async def add(self, ctx: Context, by: int) -> int:
        """Add to the field and return it."""
        self.n += by
        return self.n

    @shared
    async def value(self, ctx: Context) -> int:
        """Return the field."""
        return self.n


async def number(i: int) -> int:
    """Return the number: a step that costs nothing by itself."""
    return i


def logged(log: str, flow: str, i: int) -> str:
    """Write a token into the log and return it: a step whose every run is seen."""
    token = uuid4().hex
    note(log, flow, i, token, time.time())
    return token


class BenchFlow(Service):
    """W3 and W7: ten steps, one after the other."""

    @handler
    async def ten(self, ctx: Context, name: str) -> int:
        """Take ten async steps."""
        total = 0
        for i in range(STEPS):
            total += await ctx.run("step", number, i)
        return total

    @handler
    async def ten_logged(self, ctx: Context, log: str, name: str) -> list[str]:
        """Take ten steps, plain functions that write a token each; return the tokens."""
        return [await ctx.run("step", logged, log, name, i) for i in range(STEPS)]


class BenchOrder(TypedDict):
    """What W4 checks out."""

    ticket: str
    map: str
    seat: str
    decline: bool


class BenchTicket(VirtualObject):
    """W4: a ticket is available, reserved or sold."""

    status: str | None = state(None)

    @handler
    async def reserve(self, ctx: Context, order: str) -> bool:
        """Reserve it if it is available."""
        if self.status is not None:
            raise TerminalError("not available")
        self.status = "RESERVED"
        return True

    @handler
    async def confirm(self, ctx: Context, order: str) -> bool:
        """Sell it if it is reserved."""
        if self.status != "RESERVED":
            raise TerminalError("not reserved")
        self.status = "SOLD"
        return True

    @handler
    async def release(self, ctx: Context, order: str) -> bool:
        """Make it available again."""
        if self.status == "RESERVED":
            ctx.clear("status")
        return True

    @shared
    async def get(self, ctx: Context) -> str | None:
        """Return its status."""
        return self.status


class BenchSeatMap(VirtualObject):
    """W4: a field for each seat."""

    @handler
    async def set(self, ctx: Context, seat: str, status: str) -> bool:
        """Show the seat so."""
        ctx.set(seat, status)
        return True


def pay(decline: bool) -> bool:
    """Pay, or be declined."""
    return not decline


def email() -> bool:
    """Tell the buyer."""
    return True


class BenchCheckout(Service):
    """W4: four to six calls and one or two steps."""

    @handler
    async def process(self, ctx: Context, order: BenchOrder) -> str:
        """Reserve, pay, confirm and tell, or undo."""
        name, seat = order["ticket"], order["seat"]
        ticket, seats = BenchTicket[name], BenchSeatMap[order["map"]]
        await ticket.reserve.remote(name)
        await seats.set.remote(seat, "RESERVED")
        if not await ctx.run("payment", pay, order["decline"]):
            await seats.set.remote(seat, "AVAILABLE")
            await ticket.release.remote(name)
            return "declined"
        await ticket.confirm.remote(name)
        await seats.set.remote(seat, "SOLD")
        await ctx.run("email", email)
        return "confirmed"


class BenchFan(Service):
    """W5: one handler, a hundred objects."""

    @handler
    async def out(self, ctx: Context, base: int) -> int:
        """Call them at once and wait for all."""
        calls = (BenchCounter[f"f{(base + i) % KEYS}"].add.remote(1) for i in range(FAN))
        return len(await asyncio.gather(*calls))


class BenchSleeper(VirtualObject):
    """W6: sleeps, and writes when it began and when it woke; a replay writes another beginning."""

    @handler
    async def nap(self, ctx: Context, log: str, seconds: float) -> bool:
        """Sleep durably."""
        note(log, "S", ctx.key, time.time())
        await asyncio.sleep(seconds)
        note(log, "E", ctx.key, time.time())
        return True


class BenchAlarm(VirtualObject):
    """Growth: sleeps until a time of the wall clock and writes by how much it woke too late."""

    @handler
    async def until(self, ctx: Context, log: str, due: float) -> None:
        """Sleep until then; a replay gets its recorded timer, but asks for one too, however late it is."""
        await asyncio.sleep(max(due - time.time(), 0.001))
        note(log, "E", ctx.key, time.time() - due)


class BenchDozer(VirtualObject):
    """Asleep: waits for longer than anybody measures."""

    @handler
    async def sleeps(self, ctx: Context) -> None:
        """Sleep for a day."""
        await ctx.sleep("1d")

    @handler
    async def waits(self, ctx: Context) -> int:
        """Wait for a signal; return its value."""
        return await ctx.signal("go", int)


class BenchBlob(VirtualObject):
    """Growth: a small field beside a large one."""

    n: int = state(0)
    blob: str = state("")

    @handler
    async def fill(self, ctx: Context, size: int, by: int) -> int:
        """Write the large field."""
        self.blob = chr(97 + by % 26) * size
        return len(self.blob)

    @handler
    async def touch(self, ctx: Context) -> int:
        """Write the small field alone."""
        self.n += 1
        return self.n


class BenchJournal(VirtualObject):
    """Growth: a journal of so many entries, then a wait and a replay."""

    @handler
    async def steps(self, ctx: Context, count: int, wait_s: float) -> float:
        """Take steps, then sleep; return by how many seconds it came too late, the replay included."""
        due = 0.0
        for i in range(count):
            due = await ctx.run("step", clock, wait_s if i == count - 1 else 0.0)
        await asyncio.sleep(max(due - time.time(), 0.001))
        return time.time() - due


async def clock(ahead_s: float) -> float:
    """Return the time of the wall clock after so many seconds."""
    return time.time() + ahead_s


class BenchQueue(VirtualObject):
    """Growth: messages that wait for one key until a file is there."""

    n: int = state(0)

    @handler
    async def hold(self, ctx: Context, gate: str) -> None:
        """Keep the turn until the file is there."""
        await ctx.run("gate", seen, gate)

    @handler
    async def add(self, ctx: Context) -> int:
        """Count."""
        self.n += 1
        return self.n


def seen(path: str) -> bool:
    """Return when the file is there."""
    pause = threading.Event()
    while not os.path.exists(path):
        pause.wait(0.01)
    return True
