"""The campaign's command line: run a load under the faults of a seed, print how it recovered, audit what remains."""

import argparse
import math
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # before Ray is imported: a local Ray wants a token otherwise

import ray

import actors
from journal.clock import boot_seconds
from journal.ids import new_id
from tests.servers import Server, valkey_binary

from . import hostile
from .audit import audit, over_s
from .evidence import Disturbed, Evidence, effects_in, keys_at_rest, states
from .faults import Faults, Suffered, pause
from .fleet import Fleet
from .schedule import Kind, schedule
from .stalls import Stalls

HOSTS, DRIVERS = 3, 2
SETTLES_S = 3.0
"""After a fault has been recovered from, and after the beginning, work that has heaped up is done for so long."""
CALM_S = 12.0
"""So long a hostile load goes on after all faults, and then without what is hostile: both are compared."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one campaign; return 0 if the audit finds nothing wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="A load under faults, and an audit.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1, help="decides what is done to whom, and when")
    parser.add_argument("--hostile", action="store_true", help="a share of all operations is hostile")
    parser.add_argument("--directory", help="where the store, logs and errors go, and stay (a temporary one)")
    said = parser.parse_args(arguments)
    say(
        f"seed {said.seed}, {said.seconds:g} s, {HOSTS} hosts, {DRIVERS} drivers",
    )
    with ExitStack() as stack:
        kept = said.directory or stack.enter_context(tempfile.TemporaryDirectory(prefix="perdure-"))
        directory = Path(kept).absolute()
        directory.mkdir(parents=True, exist_ok=True)
        evidence, suffered = campaign(directory, said.seed, said.seconds, stack, is_hostile=said.hostile)
    report(evidence, suffered)
    return verdict(evidence, said.seed)


def campaign(
    directory: Path, seed: int, seconds: float, stack: ExitStack, *, is_hostile: bool
) -> tuple[Evidence, list[Suffered]]:
    """Run the load under the seed's faults, and gather the evidence."""
    namespace = f"chaos-{new_id()}"
    server = Server(valkey_binary(), directory)
    stack.callback(server.kill)
    stack.enter_context(actors.init(server.url, hosts=HOSTS, namespace=namespace))
    if is_hostile:  # a request that comes without the class, before any with it, would find no class
        actors.get(hostile.Pest["first"].count.remote(1))
    context: Any = ray.get_runtime_context()
    fleet = Fleet(directory, server.url, namespace, context.gcs_address, seed, DRIVERS, is_hostile=is_hostile)
    stack.callback(fleet.close)
    faults = Faults(server, fleet)
    stalls = Stalls(lambda: [*faults.pids(), *fleet.pids()])
    with faults.watching(), stalls.watching():
        fleet.wait_ready()
        began = boot_seconds()
        faults.happen(schedule(seed, seconds), began)
        pause(began + seconds - boot_seconds())
        calm_from = _compared(fleet) if is_hostile else math.inf
        fleet.finish()
    keys_at_rest(server.url, namespace)
    tallies, vaults, naps = states()
    left = keys_at_rest(server.url, namespace)
    operations, lives, troubles = fleet.logs()
    for each in faults.suffered:
        if each.fault.kind is Kind.DRIVER_KILLED:
            successor = next((life for life in lives[each.victim] if life.started_at > each.at), None)
            if successor is not None:
                each.first_s = successor.first_at - each.at if successor.first_at else None
                each.all_s = successor.resumed_at - each.at if successor.resumed_at else None
    killed = frozenset(life.name for name in lives for life in lives[name][:-1])
    effects = effects_in(fleet.book)
    held = tallies, vaults, naps
    disturbed = [Disturbed(0.0, began + SETTLES_S), *(Disturbed(*each) for each in stalls.found)]
    for each in faults.suffered:
        whose = each.victim if each.fault.kind is Kind.DRIVER_KILLED else ""
        disturbed.append(Disturbed(each.at, each.over_at + SETTLES_S, whose))
    return (
        Evidence(operations, killed, *held, effects, faults.stops, left, HOSTS, troubles, disturbed, calm_from),
        faults.suffered,
    )


def _compared(fleet: Fleet) -> float:
    """Let the load go on, first with what is hostile, then without; return from when on."""
    pause(CALM_S)
    fleet.calm()
    pause(SETTLES_S)
    calm_from = boot_seconds()
    pause(CALM_S)
    return calm_from


def report(evidence: Evidence, suffered: Sequence[Suffered]) -> None:
    """Print what was done, and how long it took until work went on."""
    say("\n    at  lasted  first    all  shards  fault; * where another fault fell into its recovery")
    for each in suffered:
        lasted = f"{each.fault.lasts_s:.2f}" if each.fault.lasts_s else "–"
        mark = "*" if any(each.is_disturbed_by(other) for other in suffered) else " "
        say(
            f"{each.fault.at_s:6.2f}  {lasted:>6} {_seconds(each.first_s)} {_seconds(each.all_s)}{mark}"
            f" {len(each.shards) or '–':>6}  {each.fault.kind.value} ({each.victim})"
        )
    kinds = Counter(operation.kind for operation in evidence.operations.values())
    settled = sum(operation.has_ended for operation in evidence.operations.values())
    refused = sum(bool(operation.refusals) for operation in evidence.operations.values())
    unknown = sum(not operation.is_settled or bool(operation.unknown) for operation in evidence.operations.values())
    again = len(evidence.effects) - len({effect.operation for effect in evidence.effects})
    say(f"\n{', '.join(f'{count} {kind}s' for kind, count in sorted(kinds.items()))}; {settled} answered")
    for kind, late in over_s(evidence).items():
        allowed = f"{late.alone_s:.2f} s alone, at most {late.beside_s:.2f} s beside what is hostile"
        say(f"{late.judged} {kind}s that no fault disturbed took, beyond their pauses, at most {allowed}")
    say(f"{refused} transfers refused, {unknown} left unknown by a driver's death, {again} steps run again unrecorded")


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _seconds(value: float | None) -> str:
    return f"{value:6.2f}" if value is not None else "     –"


def verdict(evidence: Evidence, seed: int) -> int:
    """Print the audit; return the program's exit status."""
    found = audit(evidence)
    say(f"\naudit of seed {seed}")
    for rule, wrong in found.items():
        more = [f"… and {len(wrong) - 20} more"] if len(wrong) > 20 else []
        say("\n           ".join([f"  {'WRONG' if wrong else 'ok   '}  {rule}", *wrong[:20], *more]))
    return 1 if any(found.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
