"""The program of test_cli.py: one host in this process, and objects of which each is stuck in its own way."""

import sys
import threading
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal

import actors
from actors import Context, Policy, Retry, Service, TerminalError, VirtualObject, handler, shared, state

BRIEF = Policy(idle_timeout=timedelta(milliseconds=50))
"""Waits leave memory at once."""
PAUSES = Policy(retry=Retry(max_attempts=1, on_exhausted="pause"))
RETRIES = Policy(retry=Retry(initial="1h", max_interval="1h"))


@dataclass
class CliItem:
    name: str
    price: Decimal


class CliCart(VirtualObject):
    items: dict[str, int] = state(default_factory=dict)
    note: str = state("")

    @handler
    async def add(self, ctx: Context, item: str, count: int = 1) -> int:
        if count < 1:
            raise TerminalError("add at least one", 400)
        self.items[item] = self.items.get(item, 0) + count
        return self.items[item]

    @shared
    async def view(self, ctx: Context) -> dict[str, int]:
        return self.items

    @handler
    async def price(self, ctx: Context, item: CliItem) -> CliItem:
        return item

    @shared
    async def odd(self, ctx: Context) -> list[object]:
        return [float("inf"), b"\xff", {1}]


class CliStuck(VirtualObject, policy=BRIEF):
    done: int = state(0)

    @handler
    async def nap(self, ctx: Context) -> None:
        await ctx.sleep("1h", name="a long nap")

    @handler
    async def mark(self, ctx: Context) -> int:
        self.done += 1
        return self.done

    @handler(policy=RETRIES)
    async def retry(self, ctx: Context) -> None:
        raise ValueError("[red]no luck\x1b[31m")

    @handler(policy=PAUSES)
    async def pause(self, ctx: Context) -> None:
        raise ValueError("a bug")

    @handler
    async def wait(self, ctx: Context) -> str:
        self.done = 1
        return await ctx.awakeable(str)

    @handler
    async def gate(self, ctx: Context) -> str:
        return await ctx.signal("open", str)

    @handler
    async def follow(self, ctx: Context, others: list[str]) -> None:
        if not others:
            await ctx.sleep("1h")
        else:
            await CliStuck[others[0]].follow.remote(others[1:])


class CliMail(Service, policy=BRIEF):
    @handler
    async def post(self, ctx: Context, to: str) -> str:
        step = await ctx.run("send", str.upper, to)
        await ctx.sleep("1h")
        return step


def main(directory: str) -> None:
    with actors.init(hosts="local", directory=directory):
        CliCart["alice"].add.remote("apple").result(timeout=30)
        CliStuck["nobody"].mark.remote().result(timeout=30)
        CliStuck["ticking"].mark.schedule(cron="0 0 1 1 *", name="new year")
        CliMail.post.send("ann").accepted().result(timeout=30)  # their code is stored, so that names suffice
        sys.stdout.write("serving\n")
        sys.stdout.flush()
        threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1])
