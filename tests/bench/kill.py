"""W7: SIGKILL of the host's process under ten-step load, and an audit of which steps ran twice.

Ray starts the host anew; what was under way goes on by replay. A step may run twice only if its flow was under way at
the kill: the effect of a step whose record did not become durable repeats.
"""

import asyncio
import os
import signal
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from .bench import Bench
from .meter import runs
from .naps import lines_of
from .workloads import STEPS, BenchFlow

CLIENTS: Final = 16
KILL_AFTER_S: Final = 4.0
LOAD_S: Final = 12.0
END_MAX_S: Final = 80.0
WARM_FLOWS: Final = 50


@dataclass(slots=True)
class Flows:
    """The flows of the load, by name, and the kill; all times are of the machine's one wall clock."""

    begun: dict[str, float] = field(default_factory=dict[str, float])
    ended: dict[str, float] = field(default_factory=dict[str, float])
    tokens: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    under_way: set[str] = field(default_factory=set[str])
    """At the kill."""
    killed: float = 0.0
    dead: float = 0.0


async def kill(bench: Bench) -> None:
    """Load, kill, wait for all, audit.

    Raises:
        TimeoutError: some have not ended within `END_MAX_S`.
    """
    for i in range(WARM_FLOWS):
        await BenchFlow.ten.remote(f"warm{i}")
    log, flows = bench.stack.directory / "steps.log", Flows()
    pid = min(bench.stack.host_pids)
    start = time.time()

    async def client() -> None:
        while time.time() - start < LOAD_S:
            flow = f"wf{len(flows.begun)}"
            flows.begun[flow] = time.time()
            flows.tokens[flow] = await BenchFlow.ten_logged.remote(str(log), flow)
            flows.ended[flow] = time.time()

    async with asyncio.timeout(END_MAX_S), asyncio.TaskGroup() as group:
        for _ in range(CLIENTS):
            group.create_task(client())
        await asyncio.sleep(KILL_AFTER_S)
        flows.under_way, flows.killed = flows.begun.keys() - flows.ended.keys(), time.time()
        os.kill(pid, signal.SIGKILL)
        while runs(pid):  # noqa: ASYNC110 - there is nothing to be woken by
            await asyncio.sleep(0.001)
        flows.dead = time.time()
    _report(bench, flows, lines_of(log))


def _report(bench: Bench, flows: Flows, lines: list[list[str]]) -> None:
    ran: dict[tuple[str, int], list[str]] = defaultdict(list)
    renewed: dict[str, float] = {}
    for flow, step, token, at in lines:
        ran[flow, int(step)].append(token)
        if float(at) > flows.dead:
            renewed.setdefault(flow, float(at))
    # An answer that was stored before the kill is no recovery: one of the flow's steps must have run after it.
    first = min((flows.ended[flow] for flow in renewed), default=float("nan"))
    last = max((flows.ended[flow] for flow in flows.under_way), default=float("nan"))
    twice = {flow for (flow, _), tokens in ran.items() if len(tokens) > 1}
    foreign, missing = audit(flows.tokens, ran)
    bench.add(
        {
            "workload": "W7",
            "clients": CLIENTS,
            "finished_before_kill": sum(at <= flows.killed for at in flows.ended.values()),
            "finished_total": len(flows.ended),
            "inflight_at_kill": len(flows.under_way),
            "kill_to_first_new_step_s": round(min(renewed.values(), default=float("nan")) - flows.killed, 3),
            "kill_to_first_completion_s": round(first - flows.killed, 3),
            "kill_to_all_inflight_done_s": round(last - flows.killed, 3),
            "steps_logged": len(lines),
            "steps_run_more_than_once": sum(len(tokens) > 1 for tokens in ran.values()),
            "max_runs_of_one_step": max(map(len, ran.values())),
        }
    )
    bench.check(
        "W7",
        not (foreign or missing or twice - flows.under_way) and flows.tokens.keys() == flows.begun.keys(),
        results_with_foreign_token=foreign,
        results_not_of_ten_distinct_steps=missing,
        flows_with_steps_twice=len(twice),
        of_them_not_under_way_at_the_kill=len(twice - flows.under_way),
    )


def audit(returned: Mapping[str, list[str]], ran: Mapping[tuple[str, int], list[str]]) -> tuple[int, int]:
    """Return how many flows returned a token that their step never wrote, and how many not ten distinct ones."""
    foreign = sum(
        any(token not in ran.get((flow, i), []) for i, token in enumerate(tokens)) for flow, tokens in returned.items()
    )
    return foreign, sum(len(tokens) != STEPS or len(set(tokens)) != STEPS for tokens in returned.values())
