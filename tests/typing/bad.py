# fmt: off
"""Each line marked E is an error in both strict checkers, and no other line: `test_typing.py` runs them."""

from __future__ import annotations

import asyncio

from ok import Cart, Work, acharge, charge, train

import actors
from actors import Context, Retry, Service, VirtualObject, handler, shared, state

Cart["a"].add.remote()  # E a missing argument
Cart["a"].add.remote("x", nonsense=1)  # E
Cart["a"].add.remote(1)  # E
Cart["a"].add.remote("x", 2)  # E it is keyword only
Cart["a"].add.send(1)  # E
Cart["a"].add.options(delay="1m").remote(1)  # E
Cart["a"].add.options(dely="1m")  # E
Cart["a"].apend.remote("x")  # E
Cart[12].add.remote("x")  # E
Cart["a"].add.schedule("x", every=[])  # E
Cart["a"].add.schedule("x", every="1h").stop()  # E
Work.go.remote("k").result().upper(1)  # E
actors.init(hosts="ray")  # E
actors.init(policy=Retry())  # E
actors.init(limits=Retry())  # E
actors.init(limits={"shards": 8})  # E
actors.Limits(shards="8")  # E
actors.Limits(payloadmax=8)  # E
actors.Limits(8)  # E
actors.Limits().shards = 8  # E
STATUS = actors.status().host  # E
actors.object("Cart", 1)  # E
actors.object("Cart", None)  # E
Cart.at(1)  # E
actors.get("id")  # E
actors.TerminalError("no", "402")  # E
actors.Policy(retries=3)  # E
Cart["a"].add.schedule("x", cron="@daily", missed="some")  # E
Cart.add.remote("x")  # E no key
Work["a"].go.remote("x")  # E a service has no key
Work.go.remote(3)  # E


class Bad(VirtualObject):
    n: int = state("x")  # E
    m: int = state("x", ttl="1h")  # E
    k: int = state(0, ttl=[])  # E

    @handler  # E no ctx
    async def a(self, x: int) -> None: ...

    @handler
    async def b(self, ctx: Context) -> None:
        self.n = "x"  # E
        await ctx.run("a", charge, "c")  # E
        await ctx.run("a", charge, "c", "d")  # E
        await ctx.run("a", charge, "c", 1, nokey=3)  # E
        await ctx.run("a", acharge, "c", "d")  # E
        await ctx.run("a", train, "c")  # E
        await ctx.run("a", charge, "c", "d", retry=Retry())  # E
        await ctx.run("a", charge, "c", retry=Retry())  # E
        await ctx.run("a", charge, "c", 1, undo=train)  # E
        await ctx.run("a", charge, "c", 1, undo=lambda receipt: receipt + 1)  # E
        ctx.defer("a", charge, "c")  # E
        ctx.defer("a", Cart["a"].add.remote, 1)  # E
        ctx.defer("a", train, "c")  # E
        (await ctx.awakeable(int)).upper()  # E
        (await ctx.signal("paid", int)).upper()  # E
        await ctx.signal(int)  # E no name
        ctx.changed(1)  # E
        Cart["a"].add.remote("x").signal(1, 2)  # E
        Cart["a"].add.remote("x").cancel("why")  # E
        Cart["a"].add.options(timeout=[]).remote("x")  # E
        (Cart["a"].add.remote("x").peek("open") or 0).upper()  # E
        actors.reject("id", 1)  # E
        ctx.promise("approved", bool).resolve("yes")  # E
        (await ctx.promise("approved", bool)).upper()  # E
        (ctx.promise("approved", bool).peek(0) or 0).upper()  # E
        ctx.promise("approved", bool).reject(1)  # E
        ctx.promise(bool)  # E no name
        Cart["a"].add.remote("x").restart("first")  # E
        actors.RetryAfter()  # E for how long
        Retry(on_exhausted="stop")  # E
        actors.attach(1)  # E
        actors.attach(Cart)  # E
        actors.resolve(ctx.awakeable(int), 1)  # E its id
        await asyncio.wait([Cart["a"].add.remote("x")])  # E no Future
        await asyncio.wait([ctx.awakeable(int)])  # E no Future
        (await asyncio.create_task(ctx.signal("paid", int))).upper()  # E
        (await asyncio.create_task(Cart["a"].add.remote("x"))).upper()  # E
        ctx.awakeable(int).result()  # E no Future
        Cart["a"].add.remote("x").done()  # E no Future


class Bad3(VirtualObject):
    @handler(reentrant="yes")  # E
    async def a(self, ctx: Context) -> None: ...

    @handler(private="yes")  # E
    async def b(self, ctx: Context) -> None: ...

    @shared(http_get=1)  # E
    async def c(self, ctx: Context) -> None: ...


class Bad2(Service, nonsense=True):  # E
    ...


class Vip2(Cart):
    @handler
    async def add(self, ctx: Context, item: int) -> int: return 1  # E an incompatible override


class Svc(Service):
    @handler
    async def a(self, ctx: Context) -> int:
        self.plain(ctx, "x")  # E
        return await self.a("x")  # E

    @handler
    def plain(self, ctx: Context, x: int) -> int:
        return x


async def answer(self: object, ctx: Context) -> int:
    return 1


class H(VirtualObject):
    handle = handler(answer)  # E taken


class H2(VirtualObject):
    handle: int = state(0)  # E taken


class Untyped(Service):
    @handler
    async def f(self, ctx, x): return x  # E unannotated
