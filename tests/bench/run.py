"""The command line: which workloads are run, each on a stack of its own, and where the rows go."""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, Literal

import uvloop

from .bench import Bench, Options
from .kill import kill
from .loops import checkout, fan, many_keys, one_key, ray, ten_steps, xadd
from .naps import naps
from .stack import stack
from .table import Row, table, verdicts

WORKLOADS: Final[dict[str, Callable[[Bench], Coroutine[Any, Any, None]]]] = {
    "W1": many_keys,
    "W2": one_key,
    "W3": ten_steps,
    "W4": checkout,
    "W5": fan,
    "W6": naps,
    "W7": kill,
}
BARE: Final = {"XADD": (xadd, {"W1", "W3"}), "RAY": (ray, {"W1"})}
"""What is measured in the same run, just before, with which workloads' goals in mind."""
NEED_RAY: Final = {"RAY", "W7"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for; return 0 if every check of results passed, whatever the speed."""
    said = _parser().parse_args(arguments)
    beside, name = _read([said.beside]) if said.beside else ([], "")
    if said.show:
        rows, _ = _read(said.show)
    else:
        options = Options(
            clients=said.clients,
            seconds=said.seconds,
            warm=said.warm,
            tries=said.tries,
            sleepers=said.sleepers,
            hosts=said.hosts,
            directory=Path(said.directory),
        )
        wanted = said.only | {bare for bare, (_, needed_by) in BARE.items() if said.only & needed_by}
        rows, about = list[Row](), _about(options)
        try:
            _measure(options, wanted - NEED_RAY if said.hosts == "local" else wanted, rows, about)
        finally:  # a workload that fails takes no other one's rows with it
            if said.json:
                goals = [{"goal": one.goal.text, "value": one.value, "is": one.word} for one in verdicts(rows, beside)]
                found = {"peer": "perdure", "meta": about, "rows": rows, "goals": goals}
                Path(said.json).write_text(json.dumps(found, indent=1), "utf-8")
    print(table(rows, beside, name))  # noqa: T201 - it is what was asked for
    return 0 if all(row.get("ok", True) for row in rows) else 1


def _measure(options: Options, wanted: set[str], rows: list[Row], about: dict[str, Any]) -> None:
    # Ray asks for a token otherwise, and gives its workers less of the CPU than it has itself.
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_worker_niceness", "0")
    steps = {**{bare: run for bare, (run, _) in BARE.items()}, **WORKLOADS}
    for name, run in steps.items():
        if name not in wanted:
            continue
        print(f"{time.strftime('%H:%M:%S')} {name}", file=sys.stderr, flush=True)  # noqa: T201 - for who waits
        with stack(options.hosts, options.directory) as ready:
            about["store"] = ready.store_version
            uvloop.run(run(Bench(options, ready, rows)))  # as the load of the systems that it is compared with


def _about(options: Options) -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{package: version(package) for package in ("ray", "redis", "hiredis")},
        "hosts": options.hosts,
        "run_s": options.seconds,
        "warm_s": options.warm,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _read(paths: Sequence[str]) -> tuple[list[Row], str]:
    """Return the rows of these files, all together, and the name of the first one's system."""
    read: list[dict[str, Any]] = [json.loads(Path(path).read_text("utf-8")) for path in paths]
    return [row for one in read for row in one["rows"]], read[0]["peer"]


def _names(text: str) -> set[str]:
    names = {name.upper() for name in text.split(",")}
    if names - WORKLOADS.keys() - BARE.keys():
        raise argparse.ArgumentTypeError(f"choose from {', '.join((*WORKLOADS, *BARE))}")
    return names


def _hosts(text: str) -> int | Literal["local"]:
    return "local" if text == "local" else int(text)


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="What an invocation costs.")
    add, usual = parser.add_argument, Options()
    add("--only", type=_names, default=set(WORKLOADS), help="some of W1 to W7, RAY, XADD; bare rows come by themselves")
    add("--clients", type=_numbers, default=usual.clients, help="numbers of clients of the closed loops (1,16,64)")
    add("--seconds", type=float, default=usual.seconds, help="of each window (%(default)s)")
    add("--warm", type=float, default=usual.warm, help="seconds before it (%(default)s)")
    add("--tries", type=int, default=usual.tries, help="at most, if others use the machine (%(default)s)")
    add("--sleepers", type=int, default=usual.sleepers, help="of W6 (%(default)s)")
    add(
        "--hosts",
        type=_hosts,
        default=usual.hosts,
        help="on Ray (%(default)s), or local: in this process, without Ray rows and W7",
    )
    add("--directory", default=usual.directory, help="where the stores write; emptied afterwards (%(default)s)")
    add("--json", metavar="FILE", help="write the rows here")
    add("--beside", metavar="FILE", help="another system's rows, as JSON")
    add("--show", metavar="FILE", nargs="+", help="measure nothing: print the rows of these files")
    return parser
