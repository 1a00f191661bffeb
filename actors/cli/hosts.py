"""Hosts: `perdure status`, `up`, `down` and `check`: the hosts and the store that they stand on.

`check` takes a store as it is, and writes nothing to stay: a writer is opened and closed, to see how long a synced
write takes.
"""

import asyncio
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Final

import typer
from rich.console import Group

from actors import session as sessions
from actors.errors import SettingsError, UsageError
from actors.limits import limits_in
from actors.values import seal
from journal.clock import boot_seconds, wall_ms
from journal.redis.settings import WANTED, check_version
from journal.redis.store import RedisStore
from journal.redis.url import shown
from journal.survey import Facts, Sizes
from journal.texts import str_of

from .commands import Command, command, pairs, table

_ADDRESS: Final = typer.Option(help="Of the Ray cluster (RAY_ADDRESS, or auto).")


def status(me: Command) -> None:
    """Show the hosts with their shards and their lag, the queues of the shards, and the memory of the store."""
    found = sessions.status() if me.session else None
    assert found is not None
    sizes: list[Sizes] = me.look(lambda survey: survey.sizes(found.shards))
    facts: Facts = me.look(lambda survey: survey.facts())
    owners = {shard: host.id for host in found.hosts for shard in host.shards}
    limits = me.client.limits
    data: dict[str, Any] = {
        "store": found.store,
        "server": facts.version,
        "memory": facts.memory,
        "memory_max": facts.memory_max or None,
        "namespace": found.namespace,
        "hosts": [
            {
                "id": host.id,
                "node": host.node,
                "pid": host.pid,
                "shards": list(host.shards),
                "lag": host.lag,
                "abandoned": list(host.abandoned),
                "faults": [fault._asdict() for fault in host.faults],
                "held_back": list(host.held_back),
            }
            for host in found.hosts
        ],
        "shards": [
            {
                "shard": shard,
                "host": owners.get(shard),
                "inbox": size.inbox,
                "inbox_max": limits.inbox_max,
                "events": size.events,
                "held": size.held,
                "timers": size.timers,
                "ended": size.done,
                "ended_max": limits.done_max,
            }
            for shard, size in enumerate(sizes)
        ],
        "without_host": [shard for shard in range(found.shards) if shard not in owners],
    }
    me.answer(data, lambda: _shown(data))


def _shown(data: dict[str, Any]) -> Group:
    most = data["memory_max"]
    head = pairs(
        {
            "store": data["store"],
            "server": data["server"],
            "memory": f"{data['memory'] / 1e6:,.0f} MB" + (f" of {most / 1e6:,.0f} MB" if most else ""),
            "namespace": data["namespace"],
            "without a host": ", ".join(map(str, data["without_host"])),
        }
    )
    columns = ("host", "node", "pid", "shards", "lag", "")
    hosts = [
        (
            *(host["id"], host["node"][:12], host["pid"], _ranges(host["shards"]), host["lag"]),
            "; ".join(
                [*host["abandoned"], *(f"fault: {fault['error']}" for fault in host["faults"]), *host["held_back"]]
            ),
        )
        for host in data["hosts"]
    ]
    shards = [
        (each["shard"], each["host"], each["inbox"], each["events"], each["held"], each["timers"], each["ended"])
        for each in data["shards"]
        if each["inbox"] or each["events"] or each["held"] or each["timers"]
    ]
    parts: list[Any] = [head, ""]
    parts += [table(columns, hosts) if hosts else "no host is there: start one, `perdure up`, or init(hosts=...)"]
    if shards:
        parts += ["", table(("shard", "host", "inbox", "events", "held", "timers", "ended"), shards)]
    return Group(*parts)


def _ranges(numbers: list[int]) -> str:
    """Return numbers as ranges: `0-3, 7`."""
    out: list[list[int]] = []
    for number in sorted(numbers):
        if out and out[-1][1] == number - 1:
            out[-1][1] = number
        else:
            out.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in out)


def up(
    me: Command,
    hosts: Annotated[int | None, typer.Option(help="How many in the whole cluster (as there are, or 2).")] = None,
    address: Annotated[str | None, _ADDRESS] = None,
    limit: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="As in actors.Limits; may be repeated.")
    ] = None,
) -> None:
    """Start the hosts on a Ray cluster, or change how many there are."""
    store, limits = _store_of(me), limits_in(limit or [])
    count = hosts if hosts is not None else me.setting("hosts")
    if count is not None and not str(count).isdecimal():
        raise UsageError(f"--hosts is a number of hosts on Ray, not {count!r}")
    from actors.ray.cluster import start_hosts  # takes a second

    started = start_hosts(store, _address(me, address), None if count is None else int(count), limits)
    data = [{"id": about.id, "node": about.node, "pid": about.pid} for about in started]
    me.answer(data, lambda: table(("host", "node", "pid"), [(each["id"], each["node"], each["pid"]) for each in data]))


def down(me: Command, address: Annotated[str | None, _ADDRESS] = None) -> None:
    """Let the hosts of this namespace on a Ray cluster hand over and end; accepted work waits for other hosts."""
    store = _store_of(me)
    from actors.ray.cluster import end_hosts  # takes a second

    had_hosts = end_hosts(store, _address(me, address))
    me.answer({"ended": had_hosts}, "all hosts have ended" if had_hosts else "there were no hosts on this cluster")


def _address(me: Command, given: str | None) -> str:
    return given or me.setting("address") or os.environ.get("RAY_ADDRESS") or "auto"


def _store_of(me: Command) -> Any:
    redis = me.setting("redis")
    if redis is None:
        raise UsageError(
            "hosts on Ray need a store that all machines reach: --redis redis://HOST:PORT/0, or PERDURE_REDIS"
        )
    namespace, durability = me.setting("namespace") or "default", me.setting("durability") or "disk"
    if durability not in ("disk", "relaxed"):
        raise UsageError(f'durability is "disk" or "relaxed", not {durability!r}')
    from actors.ray.hosts import StoreAddress  # takes a second

    return StoreAddress(redis, namespace, durability, secrets=seal.secrets_in_environment())


WRITES: Final = 20
"""Writes that are measured."""
SLOW_MS: Final = 20.0
"""A synced write that takes longer is slow: each call waits for two."""
CLOCK_MS: Final = 1_000
FULL: Final = 0.9


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact, with a verdict."""

    what: str
    value: str
    verdict: str
    """`ok`, `warning`, or `bad`."""
    why: str = ""


def check(
    me: Command, address: Annotated[str | None, typer.Option(help="Of a Ray cluster to be looked at too.")] = None
) -> None:
    """Check whether this store and this Ray are fit: settings, version, sync time, memory, clock."""
    findings = [*_of_store(me), *_of_ray(address or me.setting("address"))]
    if any(found.verdict == "bad" for found in findings):
        me.exit_code = 1
    columns = ("what", "value", "verdict", "why")
    rows = [{"what": each.what, "value": each.value, "verdict": each.verdict, "why": each.why} for each in findings]
    me.answer(rows, lambda: table(columns, [[row[name] for name in columns] for row in rows]))


def _of_store(me: Command) -> list[Finding]:
    url: str | None = me.setting("redis")
    namespace: str = me.setting("namespace") or "default"
    if url is not None:
        return asyncio.run(_asked(RedisStore(url, namespace, durability="relaxed"), shown(url)))
    directory = Path(me.setting("directory") or ".perdure")
    if not directory.is_dir():
        raise UsageError(f"there is no store here: {directory.absolute()} is no folder. Say --directory, or --redis")
    from journal.embedded.server import EmbeddedServer  # importable on Linux and macOS alone

    with EmbeddedServer.open(directory) as server:
        return asyncio.run(_asked(RedisStore(server.url, namespace, durability="relaxed", is_ours=True), "embedded"))


async def _asked(store: RedisStore, name: str) -> list[Finding]:
    try:
        facts = await store.survey().facts()
        writes, asks = await _times(store)
        apart = await store.now_ms() - wall_ms()
    finally:
        await store.aclose()
    return [Finding("store", name, "ok"), *_judged(facts), *_measured(writes, asks, apart)]


async def _times(store: RedisStore) -> tuple[float, float]:
    """Return the medians of a synced write, and of a question, in ms."""
    writes: list[float] = []
    asks: list[float] = []
    for _ in range(WRITES):
        begun = boot_seconds()
        writer = await store.open_writer()
        written = boot_seconds()
        await store.now_ms()
        asks.append((boot_seconds() - written) * 1000)
        writes.append((written - begun) * 1000)
        await store.close_writer(writer)
    return median(writes), median(asks)


def _judged(facts: Facts) -> Iterator[Finding]:
    if not facts.version:
        yield Finding("version", "?", "bad", "INFO may not be read")
        return
    name, _, number = facts.version.partition(" ")
    try:
        check_version(number if name == "Redis" else "7")
    except SettingsError as error:
        yield Finding("version", facts.version, "bad", str_of(error))
    else:
        yield Finding("version", facts.version, "ok")
    for setting, (wanted, meaning) in WANTED.items():
        found = facts.settings.get(setting)
        if found is None:
            yield Finding(setting, "?", "bad", "it may not be read")
        elif found == wanted:
            yield Finding(setting, found, "ok")
        else:
            yield Finding(setting, found, "bad", f"{meaning.format(found=found)}: set `{setting} {wanted}`")
    if facts.role and facts.role != "master":
        yield Finding("role", facts.role, "bad", "connect to its primary")
    elif facts.role:
        yield Finding("role", "primary", "ok")
    if facts.replicas:
        why = "a replica has not got the last writes yet where it takes over"
        yield Finding("replicas", str(facts.replicas), "bad", why)
    most = facts.memory_max
    value = f"{facts.memory / 1e6:,.0f} MB" + (f" of {most / 1e6:,.0f} MB" if most else ", no limit")
    is_full = most > 0 and facts.memory >= FULL * most
    yield Finding("memory", value, "bad" if is_full else "ok", "outcomes are forgotten early" if is_full else "")


def _measured(writes: float, asks: float, apart: int) -> Iterator[Finding]:
    is_slow = writes > SLOW_MS
    slow = f"a call waits for two of them: a disk that syncs within {SLOW_MS:g} ms is better" if is_slow else ""
    yield Finding("synced write", f"{writes:.2f} ms", "warning" if is_slow else "ok", slow)
    yield Finding("question", f"{asks:.2f} ms", "warning" if asks > SLOW_MS else "ok")
    is_apart = abs(apart) > CLOCK_MS
    why = "leases and timers go by the store's clock, and logs by this machine's" if is_apart else ""
    yield Finding("clock", f"{apart:+,} ms from this machine's", "warning" if is_apart else "ok", why)


def _of_ray(address: str | None) -> Iterator[Finding]:
    try:
        yield Finding("ray", version("ray"), "ok")
    except PackageNotFoundError:
        yield Finding("ray", "", "warning", 'it is not installed: hosts run in programs alone (hosts="local")')
        return
    if address:
        from actors.ray.cluster import nodes_of  # takes a second

        nodes: list[dict[str, Any]] = nodes_of(address)
        yield Finding("nodes", str(len(nodes)), "ok" if nodes else "bad")


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    command(app, "status")(status)
    command(app, "up")(up)
    command(app, "down")(down)
    command(app, "check")(check)
