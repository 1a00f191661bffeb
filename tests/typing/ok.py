"""Everything here type-checks under both strict checkers: `test_typing.py` runs them."""

from __future__ import annotations

import asyncio
import datetime as dt
import functools
import os
from abc import ABC, abstractmethod
from collections.abc import Awaitable
from decimal import Decimal
from typing import Any, Generic, TypeVar, assert_type

import ray

import actors
from actors import (
    Awakeable,
    Context,
    Invocation,
    Limits,
    Policy,
    Promise,
    Retry,
    Service,
    VirtualObject,
    Workflow,
    handler,
    shared,
    state,
)

T = TypeVar("T")


# --- Objects and services


class Cart(VirtualObject, name="cart-v1", policy=Policy(idle_timeout=0), ttl="30d"):
    items: dict[str, int] = state(default_factory=dict)
    status: str = state("OPEN")
    holder: str | None = state(None)
    n: int = state(0)
    recent: list[str] = state(default_factory=list, ttl=dt.timedelta(hours=1))
    token: str = state("", ttl=60)

    @handler
    async def add(self, ctx: Context, item: str, *, quantity: int = 1) -> int:
        self.items[item] = self.items.get(item, 0) + quantity
        self.holder = "x"
        await self._two(ctx, item)
        assert_type(await self.total(ctx), int)
        assert_type(self.plain(ctx, 1), str)
        self.add.options(delay="1m").send(item)
        assert_type(self.add.schedule(item, quantity=2, cron="0 9 * * *", timezone="Europe/Berlin"), actors.Schedule)
        await ctx.sleep("1s")
        return self.n

    @handler(reentrant=True)
    async def noted(self, ctx: Context, item: str) -> int:
        assert_type(Cart["a"].noted.remote(item), Invocation[int])
        return await self.noted(ctx, item)

    @handler(policy=Policy(retention="1m"), reentrant=True)
    async def total(self, ctx: Context) -> int:
        return sum(self.items.values())

    @handler
    def plain(self, ctx: Context, x: int) -> str:
        return str(x)

    @handler(private=True)
    async def hidden(self, ctx: Context, item: str) -> int:
        return await self.add(ctx, item)

    @shared(http_get=True)
    async def size(self, ctx: Context) -> int:
        assert_type(Cart["a"].hidden.remote("x"), Invocation[int])
        return len(self.items)

    @shared
    async def view(self, ctx: Context) -> dict[str, str | None]:
        await asyncio.wait_for(ctx.changed("status", "holder"), 1)
        return {"a": self.status, "b": self.holder}

    async def _two(self, ctx: Context, item: str) -> int:
        return len(item)


class Vip(Cart):
    @handler
    async def add(self, ctx: Context, item: str, *, quantity: int = 1, gift: bool = False) -> int:
        return await super().add(ctx, item, quantity=quantity)


class Work(Service):
    @handler
    async def go(self, ctx: Context, key: str) -> str:
        got = await Cart[key].add.remote("x", quantity=2)
        assert_type(got, int)
        return await self.helper(ctx, key)

    @handler
    async def helper(self, ctx: Context, key: str) -> str:
        return key

    @handler
    def sync(self, ctx: Context) -> None: ...


def takes(target: Cart) -> Invocation[int]:
    """A handle is typed as its class: it can be passed on."""
    return target.add.remote("x")


def calls() -> None:
    assert_type(Cart["a"], Cart)
    assert_type(Cart["a"].add.remote("x", quantity=2), Invocation[int])
    assert_type(Cart["a"].add.send("x", quantity=2), Invocation[int])
    assert_type(Cart["a"].total.remote(), Invocation[int])
    assert_type(Cart["a"].plain.remote(1), Invocation[str])
    assert_type(Cart["a"].view.options(delay=dt.timedelta(1)).remote(), Invocation[dict[str, str | None]])
    assert_type(Vip["a"].add.remote("x", gift=True), Invocation[int])
    assert_type(Work.go.remote("k"), Invocation[str])
    assert_type(Work.sync.remote(), Invocation[None])
    assert_type(Work.handle.remote("go", "k"), Invocation[Any])
    assert_type(Cart["a"].handle.remote("add", "k"), Invocation[Any])
    takes(Cart["a"])


# --- Waiting


def driver() -> None:
    assert_type(actors.get([Cart["a"].add.remote("x"), Cart["b"].add.remote("y")], timeout=3), list[int])
    assert_type(actors.get(Cart["a"].plain.remote(1)), str)
    ready, rest = actors.wait([Cart["a"].add.remote("x")], num_returns=1)
    assert_type(ready, list[Invocation[int]])
    assert_type(rest, list[Invocation[int]])
    mixed = actors.get([Cart["a"].add.remote("x"), Cart["b"].plain.remote(1)])
    assert len(mixed) == 2
    cart = Cart.at("a")
    assert_type(cart, Cart)
    ref = cart.add.remote("x")
    assert_type(ref.result(timeout=3), int)
    assert_type(ref.accepted().result("3s"), None)
    assert_type(ref.id, str)
    assert_type(ray.get(ref.to_object_ref()), int)


async def async_driver() -> None:
    a = await asyncio.gather(*(Cart["a"].add.remote("x") for _ in range(3)))
    assert_type(a, list[int])
    b, c = await asyncio.gather(Cart["a"].add.remote("x"), Cart["a"].plain.remote(1))
    assert_type(b, int)
    assert_type(c, str)
    async with asyncio.timeout(1):
        await Cart["a"].add.remote("x")
    await asyncio.wait_for(Cart["a"].add.remote("x"), 3)
    await Cart["a"].add.remote("x").accepted()
    assert_type(await asyncio.create_task(Cart["a"].plain.remote(1)), str)
    asyncio.run_coroutine_threadsafe(Cart["a"].add.remote("x"), asyncio.get_running_loop())


# --- Steps


def charge(card: str, amount: int, key: str = "") -> str:
    return card + key + str(amount)


async def acharge(card: str, amount: int, *, key: str = "") -> bytes:
    return charge(card, amount, key).encode()


async def unpaid(receipt: bytes) -> None: ...


@ray.remote
def train(n: int) -> float:
    return float(n)


@ray.remote(num_cpus=1)
def train2(n: int, m: str) -> float:
    return float(m) * n


def ident(x: T) -> T:
    return x


def awaitable(x: int) -> Awaitable[str]:
    return acharge_text(x)


async def acharge_text(x: int) -> str:
    return str(x)


class Client:
    def charge(self, a: int, *, b: str) -> bytes:
        return b.encode() * a

    async def acharge(self, a: int, *, b: str) -> bytes:
        return b.encode() * a


class Steps(Service):
    @handler
    async def functions(self, ctx: Context) -> None:
        assert_type(await ctx.run("a", charge, "c", 100), str)
        assert_type(await ctx.run("a", charge, "c", amount=100), str)
        assert_type(await ctx.run("a", acharge, "c", 100, key="x"), bytes)
        assert_type(await ctx.run("a", lambda: 3), int)
        assert_type(await ctx.run("a", train, 3), float)
        assert_type(await ctx.run("a", train2, 3, "x"), float)

    @handler
    async def options(self, ctx: Context) -> None:
        assert_type(await ctx.run("a", charge, "c", 100, "k", retry=Retry(max_attempts=3)), str)
        assert_type(await ctx.run("a", charge, "c", 100, retry=Retry(max_attempts=3)), str)
        assert_type(await ctx.run("a", acharge, "c", 100, retry=Retry(max_attempts=3), timeout="3s"), bytes)
        assert_type(await ctx.run("a", train, 3, retry=Retry()), float)

    @handler
    async def undone(self, ctx: Context) -> None:
        assert_type(await ctx.run("a", charge, "c", 100, undo=len), str)
        assert_type(await ctx.run("a", acharge, "c", 100, undo=unpaid, retry=Retry(max_attempts=3)), bytes)
        assert_type(await ctx.run("a", train, 3, undo=lambda trained: trained.is_integer()), float)
        assert_type(ctx.defer("a", charge, "c", amount=100), None)
        ctx.defer("a", acharge, "c", 100, key="x")
        ctx.defer("a", train2, 3, "x")
        ctx.defer("a", lambda: 3)
        ctx.defer("a", Cart["a"].add.remote, "x", quantity=2)
        ctx.defer("a", Cart["a"].add.options(headers={}).send, "x")
        ctx.run("a", lambda: "x", undo=Cart["a"].add.remote)

    @handler
    async def many(self, ctx: Context) -> None:
        steps = [ctx.run("a", charge, "c", 100), ctx.run("b", charge, "c", 100)]
        await asyncio.wait(steps)
        assert_type(await asyncio.gather(*steps), list[str])
        first: asyncio.Future[str] = steps[0]
        assert_type((first.done(), first.cancel()), tuple[bool, bool])

    @handler
    async def tasks(self, ctx: Context) -> None:
        """Issue 15.13."""
        call = Cart["a"].add.remote("x")
        async with asyncio.TaskGroup() as group:
            assert_type(group.create_task(ctx.sleep("1s")), asyncio.Task[None])
            assert_type(group.create_task(ctx.run("a", charge, "c", 100), name="a"), asyncio.Task[str])
            assert_type(group.create_task(call), asyncio.Task[int])
            assert_type(group.create_task(call.accepted()), asyncio.Task[None])
            assert_type(group.create_task(ctx.signal("paid", bytes)), asyncio.Task[bytes])
        assert_type(asyncio.create_task(ctx.awakeable(int)), asyncio.Task[int])
        assert_type(asyncio.create_task(ctx.promise("approved", bool)), asyncio.Task[bool])
        await asyncio.create_task(ctx.changed("n"))
        assert_type(await asyncio.wait_for(ctx.sleep(1), 2), None)
        assert_type(await asyncio.shield(ctx.signal("paid", bytes)), bytes)
        assert_type(asyncio.ensure_future(call), asyncio.Task[int])
        both = await asyncio.gather(ctx.run("a", charge, "c", 100), call, ctx.awakeable(int))
        assert_type(both, tuple[str, int, int])

    @handler
    async def callables(self, ctx: Context) -> None:
        c = Client()
        assert_type(await ctx.run("a", ident, 3), int)
        assert_type(await ctx.run("a", Decimal, "1.0"), Decimal)
        assert_type(await ctx.run("a", os.urandom, 8), bytes)
        assert_type(await ctx.run("a", c.charge, 3, b="x"), bytes)
        assert_type(await ctx.run("a", c.acharge, 3, b="x"), bytes)
        assert_type(await ctx.run("a", functools.partial(c.charge, 3, b="x"), retry=Retry()), bytes)
        assert_type(await ctx.run("a", functools.partial(c.acharge, 3, b="x"), retry=Retry()), bytes)
        assert_type(await ctx.run("a", lambda: c.acharge(3, b="x")), bytes)
        assert_type(await ctx.run("a", lambda: c.acharge(3, b="x"), retry=Retry()), bytes)
        assert_type(await ctx.run("a", lambda: c.charge(3, b="x"), timeout=3), bytes)
        assert_type(await ctx.run("a", awaitable, 3), str)
        assert_type(await ctx.run("a", sorted, [3, 1]), list[int])


# --- Mixins, generics, abstract classes


class Audited:
    @handler
    async def audit(self, ctx: Context, what: str) -> None:
        self.audit.send(what)
        await self.audit(ctx, what)

    @shared
    async def log(self, ctx: Context) -> list[str]:
        return []


class Account(Audited, VirtualObject):
    @handler
    async def pay(self, ctx: Context) -> None:
        await self.audit(ctx, "pay")
        await asyncio.create_task(self.audit(ctx, "pay"))
        async with asyncio.TaskGroup() as group:
            group.create_task(self.audit(ctx, "x"))
        refs = {Cart[k].add.remote("x"): k for k in "ab"}
        done, _ = await asyncio.wait([asyncio.ensure_future(r) for r in refs])
        assert_type([d.result() for d in done], list[int])


class Box(VirtualObject, Generic[T]):
    value: list[T] = state(default_factory=list)

    @handler
    async def put(self, ctx: Context, v: T) -> list[T]:
        self.value.append(v)
        return self.value


class IntBox(Box[int]):
    pass


class Abstract(VirtualObject, ABC):
    @handler
    @abstractmethod
    async def put(self, ctx: Context, v: int) -> int: ...
    @abstractmethod
    def helper(self) -> int: ...


class Greeter(VirtualObject):
    def hello(self) -> str:
        return ""

    @shared
    async def greet(self, ctx: Context) -> str:
        return self.hello()


def bases() -> None:
    assert_type(Account["a"].audit.remote("x"), Invocation[None])
    assert_type(Account["a"].log.remote(), Invocation[list[str]])
    assert_type(IntBox["a"].put.remote(3), Invocation[list[int]])
    assert_type(Greeter["a"].greet.remote(), Invocation[str])


# --- Names


class Names(VirtualObject):
    @handler
    async def get(self, ctx: Context) -> int:
        return 1

    @handler
    async def name(self, ctx: Context) -> int:
        return 1

    @handler
    async def objects(self, ctx: Context) -> int:
        return 1

    @handler
    async def state(self, ctx: Context) -> int:
        return 1

    @handler
    async def key(self, ctx: Context) -> int:
        return 1

    @handler
    async def remote(self, ctx: Context) -> int:
        return 1

    @handler
    async def send(self, ctx: Context) -> int:
        return 1

    @handler
    async def options(self, ctx: Context) -> int:
        return 1

    @handler
    async def mro(self, ctx: Context) -> int:
        return 1

    @handler
    async def register(self, ctx: Context) -> int:
        return 1

    @handler
    async def self_(self, ctx: Context, self_: int, ctx_: int) -> int:
        return 1

    @handler
    async def var(self, ctx: Context, /, *args: int, **kw: str) -> int:
        return 1


class ServiceNames(Service):
    @handler
    async def get(self, ctx: Context) -> int:
        return 1

    @handler
    async def mro(self, ctx: Context) -> int:
        return 1

    @handler
    async def register(self, ctx: Context) -> int:
        return 1

    @handler
    async def remote(self, ctx: Context) -> int:
        return 1


class Gate(VirtualObject):
    @handler
    async def wait(self, ctx: Context) -> int:
        gate = ctx.awakeable(list[int])
        assert_type(gate, Awakeable[list[int]])
        assert_type(gate.id, str)
        assert_type(await gate, list[int])
        assert_type(await asyncio.wait_for(gate, 1), list[int])
        assert_type(await asyncio.gather(gate, ctx.awakeable(bool)), tuple[list[int], bool])
        anything: int | None = await ctx.awakeable(int | None)
        anything = await ctx.awakeable()
        assert_type(await ctx.signal("paid", int), int)
        assert_type(await asyncio.wait_for(ctx.signal("paid", list[int]), 1), list[int])
        async with asyncio.timeout(1):
            anything = await ctx.signal("paid")
        ref = Gate["a"].wait.options(timeout="10s").remote()
        await ref.signal("paid", 1)
        await ref.cancel()
        ref.kill()
        assert_type(await actors.attach(ref.id), Any)
        actors.resolve(gate.id, [1])
        await actors.reject(gate.id, "no")
        return anything or 0


class Signup(Workflow, policy=Policy(retention="7d")):
    asked: int = state(0)

    @handler
    async def run(self, ctx: Context, email: str) -> bool:
        approved = ctx.promise("approved", bool)
        assert_type(approved, Promise[bool])
        assert_type(approved.peek(), bool | None)
        assert_type(approved.peek("none"), bool | str)
        anything: int | None = await ctx.promise("any")
        anything = await ctx.promise("any", int | None)
        self.asked = anything or 0
        assert_type(await asyncio.wait_for(approved, 3600), bool)
        return await approved

    @shared
    def approve(self, ctx: Context, by: str) -> None:
        ctx.promise("approved", bool).resolve(True)
        ctx.promise("by").resolve(by)
        ctx.promise("late", bool).reject("too late")


def complete() -> None:
    assert_type(Signup["a"].run.remote("a@x"), Invocation[bool])
    assert_type(Signup["a"].approve.send("ann"), Invocation[None])
    assert_type(actors.attach(Signup["a"].run), Invocation[bool])
    assert_type(actors.attach("abc-1"), Invocation[Any])
    actors.resolve("awakeable.abc-1.0", {"any": "value"}).result(timeout=1)
    actors.attach("abc-1").signal("paid", 1).result(timeout=1)
    actors.attach("abc-1").resume().result(timeout=1)
    actors.attach("abc-1").restart().result(timeout=1)
    ref = Gate["a"].wait.remote()
    assert_type(ref.peek(), int | None)
    assert_type(ref.peek("open"), int | str)
    ref.cancel().result(timeout=1)
    ref.kill()


async def operate(ref: Invocation[int]) -> None:
    await ref.resume()
    await ref.restart(from_entry=3)
    Policy(retry=Retry(max_attempts=3, on_exhausted="pause"), validate=False)
    raise actors.RetryAfter("10s") from actors.RetryAfter(1.5, "busy")


def names() -> None:
    assert_type(Names["a"].get.remote(), Invocation[int])
    assert_type(Names["a"].mro.remote(), Invocation[int])
    assert_type(Names["a"].remote.remote(), Invocation[int])
    assert_type(Names["a"].var.remote(1, 2, x="y"), Invocation[int])
    assert_type(ServiceNames.get.remote(), Invocation[int])
    assert_type(ServiceNames.register.remote(), Invocation[int])
    assert_type(ServiceNames.remote.remote(), Invocation[int])


# --- Programs, schedules, errors


def program(duration: actors.Duration = "15m") -> None:
    limits = Limits(shards=8, payload_max=1_000_000, retention=duration, waiting_max=10, block_limit="5s")
    assert_type(limits.shards, int | None)
    assert_type(limits.waiting_max, int)
    with actors.init(hosts="local", policy=Policy(idle_timeout=duration), limits=limits) as session:
        assert_type(session, actors.Session)
    found = actors.status()
    assert_type(found, actors.Status)
    assert_type([host.shards for host in found.hosts], list[tuple[int, ...]])
    assert_type(actors.object("cart-v1", "a").remote("add", "x", quantity=2), Invocation[Any])
    assert_type(actors.object("cart-v1", "a").handle.remote("add", "x"), Invocation[Any])
    assert_type(actors.object("checkout").remote("process", "x"), Invocation[Any])
    assert_type(Cart["a"].add.schedule(cron="0 9 * * *", arguments={"item": "x"}), actors.Schedule)
    actors.shutdown()


def fire() -> None:
    daily = Work.go.schedule("k", every=dt.timedelta(hours=1), missed="skip", name="daily")
    assert_type(daily.name, str)
    assert_type(daily.pause(), Invocation[None])
    assert_type(daily.resume().result(), None)
    assert_type(daily.trigger().result(), str)
    assert_type(daily.status().result().next_due, dt.datetime | None)
    assert_type(daily.delete(), Invocation[None])
    assert_type(actors.schedules(), list[actors.Schedule])


class Declined(actors.TerminalError):
    """A user's own."""


class Commands(VirtualObject):
    @handler
    async def all(self, ctx: Context) -> None:
        assert_type((ctx.key, ctx.id, ctx.attempt, ctx.headers["a"]), tuple[str, str, int, str])
        assert_type(ctx.now(), dt.datetime)
        assert_type(ctx.uuid4().hex, str)
        assert_type(ctx.random.random(), float)
        ctx.set("any", {"a": 1})
        assert_type(ctx.keys(), list[str])
        ctx.clear("any")
        ctx.clear_all()
        ctx.log.info("said once")
        await ctx.run("charge", lambda: charge("c", 100, ctx.step_id))

    @handler
    async def compensate(self, ctx: Context) -> str:
        try:
            return str(await Cart["a"].add.options(timeout="10s").remote("x"))
        except actors.CallTimeout as late:
            assert_type(late.code, int)
            raise Declined("too late", 402, {"card": "visa"}) from late
        except actors.Cancelled:
            return "compensated"
        except actors.DeadlockError as circle:
            return str(circle)


def recover(ref: Invocation[int]) -> int:
    """Each error that a program may see has one base."""
    try:
        return ref.result()
    except actors.TerminalError as error:
        return error.code
    except (actors.NotFoundError, actors.NondeterminismError, actors.UsageError):
        return 1
    except (actors.OverloadedError, actors.UnavailableError):
        return 2
    except (actors.SettingsError, actors.DamagedError, actors.DecodeError):
        return 3
    except actors.DurableError:
        return 4
