"""The fault campaign: its audit sees each thing that can be wrong, its schedule comes from the seed, and it runs.

The evidence below is small and right; each case corrupts one thing and names the rules that must see it, and no other.
"""

import itertools
import math
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from journal.ids import new_id
from journal.store import SHARDS
from tests.chaos.audit import audit
from tests.chaos.evidence import Disturbed, Effect, Evidence, Left, keys_of, row_of
from tests.chaos.faults import Stop
from tests.chaos.hostile import EQUAL, REFUSED
from tests.chaos.log import Log, Operation, read
from tests.chaos.objects import FUNDS
from tests.chaos.schedule import LEASE_S, ON_STORE, Kind, schedule

ROOT = Path(__file__).resolve().parent.parent
ANSWERS = "all that was accepted was answered, and only a driver's death leaves a doubt"
ONE_ANSWER = "an operation has one id and one answer"
REPLIES = "replies of a counter are 1 to n, each its asker's"
TIMES = "what was accepted happened once, what is unknown at most once, what was not found never"
MONEY = "money is conserved, and no vault was ever short"
WHOLE = "a transfer happened as a whole or not at all"
STEPS = "a step that was recorded did not run again, and its effect is the one recorded"
EARLY = "no sleeper woke early"
LEFT = "nothing is left in the store but state and history"
ENDS = "every hostile operation came to one of its ends"
LATE = "no good operation that no fault disturbed was answered 1 s too late"
TROUBLE = "drivers did what they were to do"


@dataclass
class Told:
    """Evidence that can still be corrupted."""

    operations: dict[str, Operation]
    tallies: dict[str, list[str]]
    vaults: dict[str, tuple[int, list[tuple[str, int]]]]
    naps: dict[str, list[tuple[str, int, int]]]
    effects: list[Effect]
    stops: list[Stop]
    left: list[Left]
    troubles: list[str]
    disturbed: list[Disturbed]

    def evidence(self) -> Evidence:
        killed = frozenset({"d0.0"})
        states = self.tallies, self.vaults, self.naps
        rest = self.effects, self.stops, self.left, 1, self.troubles, self.disturbed, 100.0
        return Evidence(self.operations, killed, *states, *rest)


def told() -> Told:
    """Return right evidence; the driver d0.0 was killed, d0.1 came after it."""
    found = [
        Operation("c1", "d0.0", "count", "k", ids=["i1-1"], accepted=True, answers=[1], answered_at=1.0),
        Operation("c2", "d0.1", "count", "k", ids=["i2-1"], accepted=True, answers=[3], answered_at=1.0),
        Operation("c3", "d0.0", "count", "k"),  # it happened, and nobody was told
        Operation("c4", "d0.0", "count", "k", ids=["i4-1"], unknown=["NotFoundError: i4-1"]),
        Operation("t1", "d0.1", "transfer", "a", "b", 30, keyed=True, ids=["i5-1"], accepted=True, answers=["7@5.0"]),
        Operation("t2", "d0.1", "transfer", "a", "b", 90, ids=["i6-1"], accepted=True, refusals=["402 a has only 70"]),
        Operation("t3", "d0.0", "transfer", "b", "a", 10),  # it happened, and nobody was told
        Operation("t4", "d0.1", "transfer", "b", "a", 999, ids=["i10-1"], accepted=True, refusals=["402 less"]),
        Operation("n1", "d0.1", "nap", "x", pause_ms=500, delay_ms=50, asked_ms=1_000, ids=["i7-1"], accepted=True),
        Operation("n2", "d0.0", "nap", "x", pause_ms=500),
        Operation("p1", "d0.1", "pest", "1 1", how="value.floats", ids=["i8-1"], accepted=True, answers=[EQUAL]),
        Operation("p2", "d0.1", "pest", "1 2", how="unfit.argument.lock", answers=[REFUSED]),
        Operation("p3", "d0.0", "pest", "1 2", how="error.step.decimal", ids=["i9-1"], unknown=["NotFoundError: i9-1"]),
    ]
    operations = {operation.name: operation for operation in found}
    for name, asked_at, answered_at in (
        ("c1", 0.5, 1.0),
        ("c2", 0.1, 1.0),
        ("c3", 2.0, 9.0),
        ("t1", 4.5, 6.2),
        ("t4", 101.0, 101.2),
    ):
        operations[name].asked_at, operations[name].answered_at = asked_at, answered_at
    operations["t1"].pause_ms = 600
    return Told(
        operations,
        {"k": ["c1", "c3", "c2"], "unused": []},
        {"a": (FUNDS - 20, [("t1", -30), ("t3", 10)]), "b": (FUNDS + 20, [("t1", 30), ("t3", -10)])},
        {"x": [("n1", 1_050, 1_550)]},
        [Effect("t1", "i5-1:1", "6@4.0"), Effect("t1", "i5-1:1", "7@5.0"), Effect("t3", "i9-1:1", "7@5.1")],
        [Stop(6, 3.0)],
        [
            Left("ns:hosts", "<ns>:hosts", "hash", 1, False),
            Left("ns:writer:w", "<ns>:writer:<id>", "string", 1, True),
            Left("ns:0:inbox", "<ns>:<shard>:inbox", "stream", 0, False),
            Left("ns:0:ids", "<ns>:<shard>:ids", "hash", 9, False),
            Left("ns:0:state:Tally/k", "<ns>:<shard>:state:<Type>/<key>", "hash", 1, False),
            *(Left(f"ns:{shard}:lease", "<ns>:<shard>:lease", "string", 9, False) for shard in range(SHARDS)),
        ],
        [],
        [Disturbed(8.5, 9.5), Disturbed(0.0, 9.0, "d1")],
    )


def lost(name: str) -> Callable[[Told], None]:
    """Nobody has answered it."""

    def corrupt(told: Told) -> None:
        told.operations[name].answers = []

    return corrupt


def said(name: str, **fields: Any) -> Callable[[Told], None]:
    """The drivers' logs say something else of an operation."""

    def corrupt(told: Told) -> None:
        told.operations[name] = replace(told.operations[name], **fields)

    return corrupt


def taken(*names: str) -> Callable[[Told], None]:
    """The counter has these."""

    def corrupt(told: Told) -> None:
        told.tallies["k"] = list(names)

    return corrupt


def vault(key: str, funds: int, *lines: tuple[str, int]) -> Callable[[Told], None]:
    """A vault has these lines."""

    def corrupt(told: Told) -> None:
        told.vaults[key] = funds, list(lines)

    return corrupt


def napped(*naps: tuple[str, int, int]) -> Callable[[Told], None]:
    """The sleeper has these."""

    def corrupt(told: Told) -> None:
        told.naps["x"] = list(naps)

    return corrupt


def effect(operation: str, step_id: str, run: str) -> Callable[[Told], None]:
    """There is one effect more outside."""

    def corrupt(told: Told) -> None:
        told.effects.append(Effect(operation, step_id, run))

    return corrupt


def left(name: str, type_: str, size: int, *, expires: bool = False, is_open: int = 0) -> Callable[[Told], None]:
    """There is one key more, or another one, in the store."""

    def corrupt(told: Told) -> None:
        key = name.replace("<ns>", "ns").replace("<shard>", "0").replace("<id>", "w")
        told.left = [each for each in told.left if each.key != key]
        told.left.append(Left(key, name if name.startswith("<ns>") else "", type_, size, expires, is_open))

    return corrupt


def without_lease(told: Told) -> None:
    told.left.pop()


def without_effects(told: Told) -> None:
    told.effects = [each for each in told.effects if each.run != "7@5.0"]


CORRUPTIONS: list[tuple[Callable[[Told], None], Sequence[str]]] = [
    # answers
    (lost("c2"), [ANSWERS]),
    (said("c2", accepted=False, answers=[]), [ANSWERS]),
    (said("c3", driver="d0.1"), [ANSWERS]),
    (said("c3", ids=["i3-1"]), [ANSWERS]),
    (said("t3", keyed=True), [ANSWERS]),
    (said("c4", accepted=True), [ANSWERS, TIMES]),
    (said("c4", driver="d0.1"), [ANSWERS]),
    (said("c4", unknown=["UnavailableError: it may be"]), [ANSWERS]),
    (said("n1", accepted=False), [ANSWERS]),
    (said("c1", ids=["i1-1", "i2-1"]), [ONE_ANSWER]),
    (said("c1", answers=[1, 2]), [ONE_ANSWER]),
    (said("t1", refusals=["402 no"]), [ONE_ANSWER, WHOLE, STEPS]),
    (said("t2", refusals=["500 what"]), [ONE_ANSWER]),
    (said("c1", answers=[], refusals=["402 what"]), [ONE_ANSWER]),
    # counters
    (said("c1", answers=[3]), [REPLIES]),
    (said("c1", answers=[0]), [REPLIES]),
    (said("c2", answers=[4]), [REPLIES]),
    (taken("c1", "c2", "c3"), [REPLIES]),
    (taken("c1", "c3"), [REPLIES, TIMES]),
    (taken("c1", "c3", "c2", "c2"), [REPLIES, TIMES]),
    (taken("c1", "c3", "c2", "c3"), [TIMES]),
    (taken("c1", "c3", "c2", "c4"), [TIMES]),
    (taken("c1", "c3", "c2", "from nowhere"), [REPLIES, TIMES]),
    (said("c3", key="unused"), [TIMES]),
    # transfers
    (vault("a", FUNDS - 19, ("t1", -30), ("t3", 10)), [MONEY]),
    (vault("b", FUNDS + 21, ("t1", 30), ("t3", -10), ("t3", 1)), [MONEY, WHOLE]),
    (vault("b", FUNDS - 10, ("t3", -10)), [MONEY, WHOLE]),
    (vault("b", FUNDS + 30, ("t1", 30)), [MONEY, WHOLE]),
    (vault("b", FUNDS + 20, ("t3", -FUNDS - 10), ("t1", 30), ("t3", FUNDS)), [MONEY, WHOLE]),
    (vault("b", FUNDS + 20, ("t1", 30), ("t3", -10), ("from nowhere", 0)), [WHOLE]),
    (said("t3", unknown=["NotFoundError: i8-1"]), [WHOLE]),
    (said("t2", refusals=[], answers=["7@5.0"]), [WHOLE, STEPS]),
    # steps
    (said("t1", answers=["7@5.5"]), [STEPS]),
    (without_effects, [STEPS]),
    (effect("t1", "i5-1:1", "8@7.0"), [STEPS]),
    (effect("t1", "i5-1:2", "8@5.5"), [STEPS]),
    (effect("t1", "i8-1:1", "8@5.5"), [STEPS]),
    (effect("t2", "i6-1:1", "8@5.5"), [STEPS]),
    (effect("from nowhere", "i6-1:1", "8@5.5"), [STEPS]),
    # sleepers
    (napped(), [TIMES]),
    (napped(("n1", 1_050, 1_550), ("n1", 1_050, 1_550)), [TIMES]),
    (napped(("n1", 1_050, 1_550), ("from nowhere", 1_050, 1_550)), [TIMES]),
    (napped(("n1", 1_050, 1_540)), [EARLY]),
    (napped(("n1", 1_040, 1_550)), [EARLY]),
    # hostility
    (said("p1", answers=["402"]), [ENDS]),
    (said("p1", answers=["another value: ['list']"]), [ENDS]),
    (said("p2", answers=[EQUAL]), [ENDS]),
    (said("p3", unknown=[], answers=["500"]), [ENDS]),
    (said("p1", answers=[]), [ANSWERS]),
    (said("p1", answers=[EQUAL, "500"]), [ONE_ANSWER]),
    (said("p1", answers=[], refusals=["402 what"]), [ONE_ANSWER]),
    (said("c1", answered_at=1.6), [LATE]),
    (said("c2", asked_at=-0.1), [LATE]),
    (said("t1", pause_ms=499), [LATE]),
    (said("t2", asked_at=0.1, answered_at=1.4, pause_ms=500), [LATE]),  # a refusal comes before the pause
    (lambda told: told.disturbed.clear(), [LATE]),
    (lambda told: told.disturbed.append(Disturbed(0.0, 9.0, "d0")), [LATE]),  # then nobody is judged
    # the store
    (left("<ns>:<shard>:inbox", "stream", 1), [LEFT]),
    (left("<ns>:<shard>:events", "stream", 1), [LEFT]),
    (left("<ns>:<shard>:journal", "stream", 1), [LEFT]),
    (left("<ns>:<shard>:held", "hash", 1), [LEFT]),
    (left("<ns>:<shard>:timers", "zset", 1), [LEFT]),
    (left("<ns>:<shard>:asleep:<invocation>", "hash", 1), [LEFT]),
    (left("<ns>:<shard>:ids", "hash", 9, is_open=1), [LEFT]),
    (left("<ns>:<shard>:done", "hash", 1), [LEFT]),
    (left("<ns>:writer:<id>", "string", 1), [LEFT]),
    (left("<ns>:hosts", "hash", 2), [LEFT]),
    (left("stray", "string", 1), [LEFT]),
    (without_lease, [LEFT]),
    # drivers
    (lambda told: told.troubles.append("a driver ended with 1"), [TROUBLE]),
]


def test_right_evidence_breaks_no_rule() -> None:
    assert {rule: wrong for rule, wrong in audit(told().evidence()).items() if wrong} == {}


@pytest.mark.parametrize(("corrupt", "rules"), CORRUPTIONS)
def test_the_audit_sees_what_is_wrong(corrupt: Callable[[Told], None], rules: Sequence[str]) -> None:
    found = told()
    corrupt(found)

    assert [rule for rule, wrong in audit(found.evidence()).items() if wrong] == rules


def test_every_rule_is_seen_to_fail() -> None:
    assert {rule for _, rules in CORRUPTIONS for rule in rules} == set(audit(told().evidence()))


def test_a_host_that_was_stopped_may_repeat_the_effect_of_a_recorded_step() -> None:
    """Promise 4: it was stopped in the instant before the effect."""
    found = told()
    found.effects.append(Effect("t1", "i5-1:1", "6@7.0"))

    assert not any(audit(found.evidence()).values())


def test_a_schedule_comes_from_its_seed_alone() -> None:
    assert schedule(7, 60.0) == schedule(7, 60.0) != schedule(8, 60.0)


@pytest.mark.parametrize("seed", range(1, 21))
def test_a_schedule_has_every_kind_of_fault_and_leaves_the_store_time_to_come_back(seed: int) -> None:
    faults = schedule(seed, 60.0)
    outages = [fault for fault in faults if fault.kind in ON_STORE]

    assert {fault.kind for fault in faults} == set(Kind)
    assert all(one.at_s + one.lasts_s < two.at_s for one, two in itertools.pairwise(outages))
    assert all(fault.lasts_s > LEASE_S for fault in faults if fault.kind is Kind.HOST_STOPPED)


def test_a_log_says_what_became_of_an_operation(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    log.note(began="d0.0", left_open=0)
    log.note(wish={"name": "d0.0-1", "driver": "d0.0", "kind": "count", "key": "k"})
    log.note(name="d0.0-1", id="i-1")
    log.note(began="d0.1", left_open=1)
    log.note(name="d0.0-1", accepted=True)
    log.note(name="d0.0-1", answer=None)
    log.note(resumed="d0.1")
    log.note(trouble="what")
    log.close()

    operations, lives, troubles = read(tmp_path / "log")

    operation = operations["d0.0-1"]
    assert (operation.ids, operation.accepted, operation.answers, operation.has_ended) == (["i-1"], True, [None], True)
    assert [(life.name, life.left_open, life.first_at > 0, life.resumed_at > 0) for life in lives] == [
        ("d0.0", 0, False, False),
        ("d0.1", 1, True, True),
    ]
    assert troubles == ["d0.1: what"]


@pytest.mark.parametrize(
    ("key", "row"),
    [
        ("ns:hosts", "<ns>:hosts"),
        ("ns:code:12ab", "<ns>:code:<hash>"),
        ("ns:3:inbox", "<ns>:<shard>:inbox"),
        ("ns:12:asleep:i-12", "<ns>:<shard>:asleep:<invocation>"),
        ("ns:12:state:Tally/a:\n/b", "<ns>:<shard>:state:<Type>/<key>"),
        ("ns:3:other", ""),
        ("other:3:inbox", ""),
    ],
)
def test_a_key_is_known_by_the_table_of_keys(key: str, row: str) -> None:
    assert row_of(key, "ns") == row


def test_a_timer_that_is_never_due_is_a_mark_and_others_are_under_way(valkey_url: str) -> None:
    """The mark of a shard tells a deleted key from an empty one; it stays for good."""
    namespace = new_id()
    with Redis.from_url(valkey_url) as client:
        client.zadd(f"{namespace}:1:timers", {"": math.inf})
        client.zadd(f"{namespace}:2:timers", {"": math.inf, "01:invocation:1": 5})
        sizes = {left.key: left.size for left in keys_of(valkey_url, namespace) if left.key.startswith(namespace)}
        client.delete(*sizes)

    assert sizes == {f"{namespace}:1:timers": 0, f"{namespace}:2:timers": 1}


@pytest.mark.slow
def test_a_short_campaign_finds_nothing_wrong(tmp_path: Path) -> None:
    """All promises at once, on Ray, with the store killed and ended, a host killed, and a driver."""
    command = [sys.executable, "-m", "tests.chaos", "--seconds", "15", "--seed", "7", "--directory", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-2_000:]
    assert "WRONG" not in done.stdout
