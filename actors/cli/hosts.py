"""Hosts: `status`, `up` and `down`."""

from typing import Annotated, Any, Final

import typer
from rich.console import Group

from actors import session as sessions
from actors.errors import UsageError
from actors.limits import limits_in
from actors.values import seal
from journal.survey import Facts, Sizes

from .commands import Command, command
from .output import pairs, table

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
    from actors.ray.cluster import start_hosts  # takes a second

    count = hosts if hosts is not None else me.setting("hosts")
    if count is not None and not str(count).isdecimal():
        raise UsageError(f"--hosts is a number of hosts on Ray, not {count!r}")
    started = start_hosts(
        _store_of(me), _address(me, address), None if count is None else int(count), limits_in(limit or [])
    )
    data = [{"id": about.id, "node": about.node, "pid": about.pid} for about in started]
    me.answer(data, lambda: table(("host", "node", "pid"), [(each["id"], each["node"], each["pid"]) for each in data]))


def down(me: Command, address: Annotated[str | None, _ADDRESS] = None) -> None:
    """Let the hosts of this namespace on a Ray cluster hand over and end; accepted work waits for other hosts."""
    from actors.ray.cluster import end_hosts  # takes a second

    had_hosts = end_hosts(_store_of(me), _address(me, address))
    me.answer({"ended": had_hosts}, "all hosts have ended" if had_hosts else "there were no hosts on this cluster")


def _address(me: Command, given: str | None) -> str:
    return given or me.setting("address") or "auto"


def _store_of(me: Command) -> Any:
    from actors.ray.cluster import NO_STORE
    from actors.ray.hosts import StoreAddress

    redis = me.setting("redis")
    if redis is None:
        raise UsageError(NO_STORE)
    namespace, durability = me.setting("namespace") or "default", me.setting("durability") or "disk"
    if durability not in ("disk", "relaxed"):
        raise UsageError(f'durability is "disk" or "relaxed", not {durability!r}')
    return StoreAddress(redis, namespace, durability, secrets=seal.secrets_in_environment())


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    command(app, "status")(status)
    command(app, "up")(up)
    command(app, "down")(down)
