"""The objects of the campaign: each keeps, besides what it is for, which operations it has seen, for the audit.

An operation's name is given to it by its driver before anything leaves; what an object notes of it is part of the
commit that does it, so a name that is there twice, or not at all, is an invocation executed twice or lost.
"""

import asyncio
import os

from actors import Context, Policy, Service, TerminalError, VirtualObject, handler, shared, state
from journal.clock import boot_seconds, wall_ms

FUNDS = 100
"""What each vault begins with: little enough that some withdrawals are refused."""


def booked(book: str, step_id: str, operation: str) -> str:
    """Append one line to the file outside, at once and whole; return what makes this very run of the step known."""
    at = boot_seconds()
    run = f"{os.getpid()}@{at:.6f}"
    file = os.open(book, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, f"{operation} {step_id} {run}\n".encode())
    finally:
        os.close(file)
    return run


class Tally(VirtualObject):
    """A counter that remembers whom it gave each number."""

    taken: list[str] = state(default_factory=list)

    @handler
    async def add(self, ctx: Context, operation: str) -> int:
        self.taken.append(operation)
        return len(self.taken)

    @shared
    async def read(self, ctx: Context) -> list[str]:
        return self.taken


class Vault(VirtualObject):
    """An account."""

    funds: int = state(FUNDS)
    lines: list[tuple[str, int]] = state(default_factory=list)

    @handler
    async def withdraw(self, ctx: Context, operation: str, amount: int) -> None:
        if self.funds < amount:
            raise TerminalError(f"{ctx.key} has only {self.funds}", 402)
        self.funds -= amount
        self.lines.append((operation, -amount))

    @handler
    async def deposit(self, ctx: Context, operation: str, amount: int) -> None:
        self.funds += amount
        self.lines.append((operation, amount))

    @shared
    async def read(self, ctx: Context) -> tuple[int, list[tuple[str, int]]]:
        return self.funds, self.lines


class Transfer(Service, policy=Policy(idle_timeout=0.25)):
    """Moves money in two calls, with a step and a sleep between them, of which the longer ones leave memory."""

    @handler
    async def move(
        self, ctx: Context, operation: str, source: str, target: str, amount: int, pause_ms: int, book: str
    ) -> str:
        await Vault[source].withdraw.remote(operation, amount)
        run = await ctx.run("book", lambda: booked(book, ctx.step_id, operation))
        await asyncio.sleep(pause_ms / 1_000)
        await Vault[target].deposit.remote(operation, amount)
        return run


class Napper(VirtualObject, policy=Policy(idle_timeout=1)):
    """Sleeps; naps longer than a second leave memory."""

    naps: list[tuple[str, int, int]] = state(default_factory=list)

    @handler
    async def nap(self, ctx: Context, operation: str, pause_ms: int) -> None:
        began = await ctx.run("began", wall_ms)
        await asyncio.sleep(pause_ms / 1_000)
        woke = await ctx.run("woke", wall_ms)
        self.naps.append((operation, began, woke))

    @shared
    async def read(self, ctx: Context) -> list[tuple[str, int, int]]:
        return self.naps


class Probe(VirtualObject):
    """Answers, if its shard does."""

    @handler
    async def ask(self, ctx: Context) -> None:
        pass
