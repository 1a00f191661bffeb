"""Limits as settings (issue 10.6): what may be asked for, what a namespace keeps, and what is refused."""

import asyncio
import enum
import logging
import pickle
import threading
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from servers import ask
from simulation import SHARDS, SUSPEND, Faults, World, simulate, virtual_loop

import actors
from actors import (
    Context,
    DamagedError,
    Limits,
    OverloadedError,
    Policy,
    TerminalError,
    UsageError,
    VirtualObject,
    handler,
    state,
)
from actors.client.client import Client
from actors.host import leases
from actors.host.host import Host, Identity
from actors.host.leases import Leases, RenewalThread
from actors.limits import BYTES_MOST, COUNT_MOST, SHARDS_MOST, limits_in
from actors.ray.cluster import main
from actors.requests import current
from journal.clock import boot_seconds
from journal.ids import new_id
from journal.limits import kept_limits
from journal.memory.store import MemoryStore
from journal.redis.store import RedisStore
from journal.store import NamespaceLimits, Store

MODES = pytest.mark.parametrize("policy", [None, SUSPEND], ids=["in memory", "asleep"])
WHOLE = [field.name for field in fields(Limits) if field.name not in ("retention", "activation_idle", "block_limit")]
SOON = 30.0
NO_NUMBERS: list[Any] = [0, -1, True, False, "8", b"8", 8.0, float("nan"), float("inf"), [8], object(), 10**5_000]
NO_DURATIONS: list[Any] = [-1, True, float("nan"), float("inf"), "soon", "-1s", [], 10**5_000, timedelta(-1)]

OF_0_1_0 = {
    "shards": 4,
    "inbox_max": 100_000,
    "done_max": 10_000,
    "payload_max": 8_000_000,
    "journal_max": 100_000,
    "journal_bytes_max": 64_000_000,
    "signals_max": 10_000,
    "signals_bytes_max": 16_000_000,
    "sent_max": 32_000_000,
    "written_max": 32_000_000,
    "state_max": 64_000_000,
}
"""By which version 0.1.0 went, in a namespace of four shards. These never change."""


class LimitedBag(VirtualObject):
    kept: str = state("")

    @handler
    async def put(self, ctx: Context, size: int) -> int:
        self.kept = await ctx.run("make", lambda: "x" * size)
        return len(self.kept)

    @handler
    async def wait(self, ctx: Context) -> str:
        return await ctx.signal("go", str)


class Awkward(int):
    def __repr__(self) -> str:
        raise ValueError("no")

    def __lt__(self, other: object) -> bool:
        raise ValueError("no")

    __le__ = __gt__ = __ge__ = __lt__


class Size(enum.IntEnum):
    SMALL = 4


def of(name: str, value: Any) -> Limits:
    limits: Any = {name: value}
    return Limits(**limits)


# ---------------------------------------------------------------------------------------------------- what may be asked


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_no_number_or_none_that_makes_sense_is_refused(name: str) -> None:
    for value in (*NO_NUMBERS, Awkward(0)):
        with pytest.raises(UsageError, match=rf"^Limits\({name}=.*\): it is a whole number from 1 to [\d,]+$"):
            of(name, value)


@pytest.mark.parametrize("name", WHOLE)
def test_each_number_has_a_most_that_is_taken(name: str) -> None:
    most = next(m for m in (SHARDS_MOST, BYTES_MOST, COUNT_MOST) if _takes(name, m) and not _takes(name, m + 1))
    assert getattr(of(name, Awkward(most)), name) == most
    assert (name == "shards") == (most == SHARDS_MOST)


def _takes(name: str, value: int) -> bool:
    try:
        of(name, value)
    except UsageError:
        return False
    return True


@pytest.mark.parametrize("name", ["retention", "activation_idle", "block_limit"])
def test_what_is_no_duration_is_refused(name: str) -> None:
    for value in NO_DURATIONS:
        with pytest.raises(UsageError, match=rf"^Limits\({name}="):
            of(name, value)


@pytest.mark.parametrize(("name", "least"), [("retention", 1), ("block_limit", 3)])
def test_a_duration_that_is_too_short_is_refused(name: str, least: int) -> None:
    for short in (0, least - 0.1):
        with pytest.raises(UsageError, match=rf"^Limits\({name}={short}\): it is at least {least} s$"):
            of(name, short)
    assert getattr(of(name, f"{least}s"), name) == timedelta(seconds=least)


def test_one_that_means_the_same_is_the_same() -> None:
    assert Limits(retention="1h", shards=Size.SMALL) == Limits(retention=3_600, shards=4)
    assert type(Limits(shards=Size.SMALL).shards) is int
    assert Limits(retention=1.0004) == Limits(retention=timedelta(seconds=1))
    assert pickle.loads(pickle.dumps(Limits(shards=4))) == Limits(shards=4)
    assert repr(Limits(shards=4, waiting_max=10)) == "Limits(shards=4, waiting_max=10)"


@pytest.mark.parametrize("value", [{"shards": 4}, 4, "shards=4", Limits])
def test_init_takes_nothing_else_for_limits(value: Any) -> None:
    with pytest.raises(UsageError, match=r"^limits is an actors\.Limits, as in "):
        actors.init(hosts="local", limits=value)


def test_the_command_line_reads_limits() -> None:
    found = limits_in(["payload_max=1_000_000", "retention=2d", "shards=4", "block_limit=5s"])
    assert found == Limits(payload_max=1_000_000, retention="2d", shards=4, block_limit=5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["payload_max"], "--limit payload_max: write name=value, with one of shards, payload_max,"),
        (["payloadmax=1"], "--limit payloadmax=1: write name=value"),
        (["__class__=1"], "--limit __class__=1: write name=value"),
        (["shards=4", "shards=5"], "--limit shards=5: shards was said before"),
        (["shards=0"], "Limits(shards=0): it is a whole number from 1 to 256"),
        (["shards=-4"], "Limits(shards='-4'): it is a whole number"),
        (["shards="], "Limits(shards=''): it is a whole number"),
        (["shards=²"], "Limits(shards='²'): it is a whole number"),
        (["inbox_max=" + "9" * 5_000], "Limits(inbox_max='999"),
        (["retention=5"], "Limits(retention='5'): '5' is no duration"),
    ],
)
def test_the_command_line_refuses_what_is_no_limit(
    settings: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [word for setting in settings for word in ("--limit", setting)]
    assert main(["up", "--redis", "redis://127.0.0.1:9/0", *arguments]) == 1
    assert capsys.readouterr().err.startswith(said)


# ----------------------------------------------------------------------------------------------- what a namespace keeps


def client_of(url: str, namespace: str, limits: Limits | None = None) -> Client:
    return Client(lambda: RedisStore(url, namespace), sends_code=False, limits=limits or Limits())


def opened(url: str, namespace: str, limits: Limits | None = None) -> NamespaceLimits:
    """Return what a program finds in a namespace."""
    client = client_of(url, namespace, limits)
    client.open()
    client.close()
    return client.limits


def test_the_first_program_fixes_the_limits_and_all_others_find_them(valkey_url: str) -> None:
    namespace, asked = new_id(), Limits(shards=3, payload_max=1_000, retention="2h", sent_max=7, waiting_max=9)
    kept = replace(NamespaceLimits(), shards=3, payload_max=1_000, retention=timedelta(hours=2), sent_max=7)

    assert opened(valkey_url, namespace, asked) == kept
    assert opened(valkey_url, namespace) == kept
    assert opened(valkey_url, namespace, asked) == kept
    assert opened(valkey_url, namespace, Limits(shards=3, waiting_max=10, pending_max=5)) == kept


def test_other_limits_are_refused_and_change_nothing(valkey_url: str) -> None:
    namespace = new_id()
    opened(valkey_url, namespace, Limits(payload_max=1_000_000))
    before = ask(valkey_url, f"HGETALL {namespace}:meta")

    with pytest.raises(UsageError) as refused:
        opened(valkey_url, namespace, Limits(payload_max=2_000_000, shards=16, retention="1h"))

    assert str(refused.value) == (
        "the namespace has other limits since it was first opened: payload_max is 1,000,000, not 2,000,000; retention "
        "is 1 day, 0:00:00, not 1:00:00. Leave these out, which takes what is there, or open a namespace of another "
        "name"
    )
    assert ask(valkey_url, f"HGETALL {namespace}:meta") == before


def test_of_two_programs_that_open_a_namespace_at_once_one_is_refused(valkey_url: str) -> None:
    for _ in range(5):
        namespace, found = new_id(), list[str]()
        together = threading.Barrier(4)

        def opens(shards: int) -> None:
            client = client_of(valkey_url, namespace, Limits(shards=shards, done_max=shards))  # noqa: B023  # joined below
            together.wait()  # noqa: B023
            try:
                client.open()
            except UsageError as error:
                found.append(str(error))  # noqa: B023
            else:
                found.append(f"{client.limits.shards} {client.limits.done_max}")  # noqa: B023
                client.close()

        threads = [threading.Thread(target=opens, args=(shards,)) for shards in (3, 5, 7, 9)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        kept = opened(valkey_url, namespace)
        assert kept.shards == kept.done_max
        assert sorted(text[:13] for text in found) == sorted([f"{kept.shards} {kept.shards}", *["the namespace"] * 3])


def test_a_namespace_that_an_older_version_opened_has_the_defaults(valkey_url: str) -> None:
    """It kept none, and went by these: they are not those of new namespaces, should these ever change."""
    namespace = new_id()
    ask(valkey_url, f"HSET {namespace}:meta format 1 shards 4")

    kept = opened(valkey_url, namespace, Limits(shards=4, payload_max=8_000_000))

    whole = {field.name: field.default for field in fields(kept) if isinstance(field.default, int)}
    assert {name: getattr(kept, name) for name in whole} == OF_0_1_0
    assert (kept.retention, kept.session) == (timedelta(days=1), timedelta(days=1))
    assert kept.retention_when_full == timedelta(seconds=10)
    with pytest.raises(UsageError, match=r"inbox_max is 100,000, not 5"):
        opened(valkey_url, namespace, Limits(inbox_max=5))
    assert ask(valkey_url, f"HGETALL {namespace}:meta") == [b"format", b"1", b"shards", b"4"]


def test_a_namespace_whose_first_program_died_half_way_is_opened_whole(valkey_url: str) -> None:
    """Version 0.1.0 wrote the format before the number of shards; today they come together."""
    namespace = new_id()
    ask(valkey_url, f"HSET {namespace}:meta format 1 losses 2")

    assert opened(valkey_url, namespace, Limits(shards=3)) == NamespaceLimits(shards=3)
    assert opened(valkey_url, namespace) == NamespaceLimits(shards=3)


def test_a_later_version_may_keep_more() -> None:
    assert kept_limits(b"4", b'{"done_max":7,"tomorrow":[1]}') == NamespaceLimits(shards=4, done_max=7)


@pytest.mark.parametrize(
    ("shards", "kept"),
    [
        *((b"4", data) for data in (b"{", b"3", b"[]", b'"done_max"', b'["done_max"]', b"\xff", b"null")),
        *((b"4", b'{"done_max":' + value + b"}") for value in (b"0", b"-1", b"true", b'"7"', b"1.5", b"null", b"{}")),
        (b"4", b'{"retention":9999999999999999999}'),
        *((shards, None) for shards in (b"0", b"-1", b"", b"x", b"1.5")),
    ],
)
def test_what_no_version_has_written_is_damage(shards: bytes, kept: bytes | None) -> None:
    if kept in (b"[]", b"null"):
        assert kept_limits(shards, None) == NamespaceLimits(shards=4)
        return
    with pytest.raises(DamagedError, match=r"^the limits that the namespace keeps \(in its `meta`\) cannot be read: "):
        kept_limits(shards, kept)


def test_a_namespace_that_was_lost_is_again_as_it_was(valkey_url: str) -> None:
    """A program that goes on does not make it one with other shards: its ids name them."""
    namespace = new_id()
    client = client_of(valkey_url, namespace, Limits(shards=3, done_max=7))
    client.open()
    ask(valkey_url, f"DEL {namespace}:meta")

    client.call(lambda _: client._open_anew())  # pyright: ignore[reportPrivateUsage]  # else after minutes

    client.close()
    assert opened(valkey_url, namespace) == NamespaceLimits(shards=3, done_max=7)


def test_a_program_that_was_refused_leaves_nothing_behind(tmp_path: Path) -> None:
    with actors.init(hosts="local", directory=tmp_path, limits=Limits(shards=2)):
        assert LimitedBag["a"].put.remote(5).result(SOON) == 5
        assert [len(host.shards) for host in actors.status().hosts] == [2]
        with pytest.raises(UsageError, match=r"connected already, with .*limits=Limits\(shards=2\)"):
            actors.init(hosts="local", directory=tmp_path, limits=Limits(shards=3))
    with pytest.raises(UsageError, match=r"shards is 2, not 3"):
        actors.init(hosts="local", directory=tmp_path, limits=Limits(shards=3))
    with pytest.raises(UsageError, match="nothing is connected"):
        actors.status()
    with actors.init(hosts="local", directory=tmp_path):
        assert LimitedBag["a"].put.remote(6).result(SOON) == 6
        assert actors.status().shards == 2


def test_any_number_of_shards_is_served(tmp_path: Path) -> None:
    with actors.init(hosts="local", directory=tmp_path, limits=Limits(shards=64)):
        assert len({LimitedBag[f"{n}"].put.remote(n).result(SOON) for n in range(50)}) == 50
        assert sum(len(host.shards) for host in actors.status().hosts) == 64


def test_up_refuses_other_limits_before_it_starts_anything(valkey_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    namespace = new_id()
    opened(valkey_url, namespace, Limits(shards=3))
    assert main(["up", "--redis", valkey_url, "--namespace", namespace, "--limit", "shards=4"]) == 1
    assert "shards is 3, not 4" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------- who goes by which of them


def test_a_program_goes_by_the_limits_of_its_namespace_and_by_its_own(valkey_url: str) -> None:
    namespace = new_id()
    opened(valkey_url, namespace, Limits(payload_max=1_000, inbox_max=3, shards=1))
    client = client_of(valkey_url, namespace, Limits(pending_max=5))
    client.open()
    current.set_driver(client)
    try:
        with pytest.raises(UsageError, match=r"the limit payload_max is 1,000"):
            actors.object("Elsewhere", "a").remote("put", "x" * 1_000)
        waiting = [actors.object("Elsewhere", "a").remote("put", n) for n in range(5)]
        with pytest.raises(OverloadedError, match=r"^5 invocations of this program are not answered \(pending_max\)"):
            actors.object("Elsewhere", "a").remote("put", 5)
        for ref in waiting[3:]:
            with pytest.raises(OverloadedError, match="inbox"):
                ref.result(SOON)
    finally:
        current.set_driver(None)
        client.close()


@MODES
def test_a_host_goes_by_the_limits_of_its_namespace(policy: Policy | None) -> None:
    async def scenario(world: World) -> str:
        assert await world.driver.call("LimitedBag/a", "put", 90) == 90
        with pytest.raises(TerminalError) as refused:
            await world.driver.call("LimitedBag/a", "put", 100)
        return str(refused.value)

    limits = NamespaceLimits(shards=SHARDS, payload_max=100)
    for crashes in ([], [Faults(at=at, applied=True) for at in (8, 12, 16)]):
        _, said = simulate(scenario, iter(crashes), policy=policy, limits=limits)
        assert "the limit payload_max is 100" in said


def odd_host(world: World, connect: Callable[[], Store], limits: Limits) -> "asyncio.Task[None]":
    host = Host(connect, Identity(id="odd"), live=True, now=world.loop.time, own_thread=False, limits=limits)
    return asyncio.ensure_future(host.run())


def test_a_host_with_other_limits_serves_nothing_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    """A replay would decide otherwise there; it waits, as for a store that is to be mended."""

    async def scenario(world: World) -> list[bytes]:
        odd = odd_host(world, world.store.connect, Limits(sent_max=5))
        await asyncio.sleep(30)
        assert await world.driver.call("LimitedBag/a", "put", 90) == 90
        found = list((await world.store.membership(SHARDS)).hosts.values())
        odd.cancel()
        await asyncio.gather(odd, return_exceptions=True)
        return found

    with caplog.at_level(logging.WARNING, "actors"):
        _, hosts = simulate(scenario, iter(()))
    assert [b'"odd"' in about for about in hosts] == [False]
    assert caplog.text.count("host odd: the namespace has other limits") == 1
    assert "sent_max is 32,000,000, not 5" in caplog.text


def test_a_host_bounds_its_memory_by_its_own_limits() -> None:
    async def scenario(world: World) -> tuple[int, list[str]]:
        odd = odd_host(world, world.store.connect, Limits(waiting_max=2, activation_idle=0))
        waiting = [await world.driver.start(f"LimitedBag/{n}", "wait") for n in range(6)]
        await asyncio.sleep(10)
        asleep = [await world.store.status(id_) for id_ in waiting].count("asleep")
        for id_ in waiting:
            await world.driver.signal(id_, "go", "on")
        results = [await world.driver.result(id_) for id_ in waiting]
        odd.cancel()
        await asyncio.gather(odd, return_exceptions=True)
        return asleep, results

    class Alone(World):
        def host(self, faults: Faults, name: str = "host") -> "asyncio.Task[None]":
            return asyncio.ensure_future(asyncio.Event().wait())  # pyright: ignore[reportReturnType]  # never ends

    with virtual_loop() as loop:
        asleep, results = loop.run_until_complete(Alone(loop).run(scenario, iter(())))
    assert asleep == 4
    assert results == ["on"] * 6


async def test_a_host_whose_loop_turns_is_not_named_though_its_reader_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is silent for as long as the limit ended each process of a cluster, as if a handler blocked it."""
    monkeypatch.setattr(leases, "RENEW_EVERY", timedelta(seconds=0.02))
    named, store = list[str](), MemoryStore(lambda: 0)
    held = Leases("a", boot_seconds, lambda: b"", dict)
    renewal = RenewalThread(held, store.connect, boot_seconds, named.append, 0.2)
    renewal.start()
    await asyncio.sleep(1)
    assert named == []

    until = boot_seconds() + 20
    while not named and boot_seconds() < until:
        pass  # as a handler that computes

    await renewal.stop()
    assert "test_limits.py" in named[0]


def test_a_host_has_the_limit_of_blocking_that_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, made = list[float](), RenewalThread.__init__

    def noted(self: RenewalThread, *args: Any) -> None:
        given.append(args[-1])
        made(self, *args)

    monkeypatch.setattr(RenewalThread, "__init__", noted)
    with actors.init(hosts="local", directory=tmp_path, limits=Limits(block_limit="7s")):
        assert LimitedBag["a"].put.remote(1).result(SOON) == 1
    assert given == [7.0]
