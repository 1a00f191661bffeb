"""A sale: many buyers at once, a host killed half way, and the audit. What `python -m examples.seat_map` runs."""

import argparse
import asyncio
import logging
import os
import secrets
import statistics
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import actors
from examples.audit import Evidence, audit
from examples.buyers import Buyers
from examples.hall import Progress, Screen
from examples.outage import Outage
from examples.payments import Gateway, read_ledger
from examples.seat_map import SEATS, SeatMap, Ticket, seat_ids

HOSTS = 2
PAINT_EVERY_S = 0.1


async def sell(buyers: Buyers, outage: Outage | None) -> None:
    """Return when every buyer has a last answer, and the host that was killed is replaced."""
    async with painting(buyers.progress), asyncio.TaskGroup() as group:
        if outage is not None:
            group.create_task(outage.happen(buyers.half, buyers.progress))
        group.create_task(buyers.run())


@asynccontextmanager
async def painting(progress: Progress) -> AsyncGenerator[None]:
    """Show the sale while it goes on, as the map has it."""

    async def paint(screen: Screen) -> None:
        while True:
            progress.seats = await SeatMap["global"].get.remote()
            screen.show()
            await asyncio.sleep(PAINT_EVERY_S)

    with Screen(progress) as screen:
        painter = asyncio.create_task(paint(screen))
        try:
            yield
            progress.seats = await SeatMap["global"].get.remote()
        finally:
            painter.cancel()


def evidence_of(buyers: Buyers) -> Evidence:
    """Ask every seat and the map, and read the ledger."""
    ids = seat_ids(buyers.seats)
    views = actors.get([Ticket[id_].get.remote() for id_ in ids], timeout=60)
    shown = SeatMap["global"].get.remote().result(timeout=60)
    return Evidence(buyers.answers, dict(zip(ids, views, strict=True)), shown, read_ledger(buyers.gateway.ledger))


def report(buyers: Buyers, elapsed_s: float, outage: Outage | None) -> None:
    """Print how long it took."""
    count, median = len(buyers.seconds), statistics.median(buyers.seconds)
    p95 = sorted(buyers.seconds)[int(0.95 * (count - 1))]
    sold = sum(answer.code == 200 for answer in buyers.answers)
    print(f"\n{sold} of {buyers.seats} seats sold; {buyers.count} buyers made {count} checkouts in {elapsed_s:.1f} s")
    print(f"throughput: {count / elapsed_s:.0f} checkouts a second, {sold / elapsed_s:.1f} seats a second")
    print(f"one checkout: median {median:.2f} s, 95 % within {p95:.2f} s; a payment takes {buyers.gateway.delay_s} s")
    if outage is not None:
        print(
            f"recovery: {outage.first_s:.2f} s from the kill to the first answer of a dead host's shard, "
            f"{outage.all_s:.2f} s until all {len(outage.shards)} of them answered"
        )


def verdict(evidence: Evidence) -> int:
    """Print the audit; return the program's exit status."""
    found = audit(evidence)
    print("\naudit")
    for rule, wrong in found.items():
        print(f"  {'WRONG' if wrong else 'ok   '}  {rule}", *wrong, sep="\n           ")
    return 1 if any(found.values()) else 0


def options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m examples.seat_map", description="Sell a hall of seats.")
    parser.add_argument("--seats", type=int, default=SEATS)
    parser.add_argument("--buyers", type=int, default=200, help="who come all at once")
    parser.add_argument("--hosts", type=int, default=HOSTS, help="on Ray")
    parser.add_argument("--seed", type=int, default=1, help="decides who has which card and wants which seats")
    parser.add_argument("--payment", type=float, default=0.5, metavar="SECONDS", help="how long a payment takes")
    parser.add_argument("--local", action="store_true", help="one host in this process, without Ray; nothing is killed")
    parser.add_argument("--no-kill", action="store_true", help="let all hosts live")
    parser.add_argument("--directory", default=".perdure", help="of the embedded server and the ledger")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sale in a namespace of its own; return 0 if the audit finds nothing wrong."""
    said = options(arguments)
    is_local = said.local or os.environ.get("PERDURE_HOSTS") == "local"
    is_here = not (os.environ.get("PERDURE_ADDRESS") or os.environ.get("RAY_ADDRESS"))
    # Failing payments are part of the show: what hosts and client say of each of them would hide it.
    os.environ.setdefault("PERDURE_LOG", "ERROR")
    logging.getLogger("actors").setLevel(os.environ["PERDURE_LOG"])
    namespace = f"seats-{secrets.token_hex(4)}"
    ledger = Path(said.directory, f"{namespace}.jsonl").absolute()
    print("starting the store and the hosts …", flush=True)
    with actors.init(hosts="local" if is_local else said.hosts, directory=said.directory, namespace=namespace):
        ledger.parent.mkdir(parents=True, exist_ok=True)
        ledger.touch()
        SeatMap["global"].open.remote(said.seats).result(timeout=120)
        outage = Outage.planned(said.hosts) if is_here and not (is_local or said.no_kill) else None
        progress = Progress(said.buyers)
        buyers = Buyers(said.buyers, said.seats, said.seed, Gateway(str(ledger), said.payment), progress)
        asyncio.run(sell(buyers, outage))
        report(buyers, progress.elapsed_s, outage)
        return verdict(evidence_of(buyers))
