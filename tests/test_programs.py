"""Random programs of all building blocks do what the model says, whatever crashes (promises 1 to 7).

`python -m tests.programs --count 10000` plays more of them. That the programs would notice is shown by faults that are
planted in the product: each is found.
"""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.activation import staging
from actors.activation.open_invocation import OpenInvocation
from actors.shard.attempts import Attempts
from journal.records import EventKind, Record
from tests.chaos import hostile
from tests.programs.__main__ import main
from tests.programs.grammar import Root, program, smallest
from tests.programs.model import expected
from tests.programs.pests import GUESTS, is_hostile
from tests.programs.world import MODES, RoughStore, play

ROOT = Path(__file__).resolve().parent.parent
COUNT = 200
FOUND_WITHIN = 400


@pytest.mark.slow_after_first
@pytest.mark.parametrize("first", range(0, COUNT, COUNT // 8))
def test_programs_do_what_the_model_says(first: int) -> None:
    for seed in range(first, first + COUNT // 8):
        assert play(program(seed), seed).wrong == [], f"python -m tests.programs --count 1 --seed {seed}"


@pytest.mark.parametrize("seed", range(4))
def test_a_program_comes_to_the_same_in_every_mode(seed: int) -> None:
    assert [play(program(seed), seed, mode=mode).wrong for mode in MODES] == [[]] * len(MODES)


def test_a_program_comes_from_its_seed_alone() -> None:
    assert program(7) == program(7) != program(8)


def test_the_command_says_what_it_played(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--count", "3", "--seed", "5"]) == 0
    assert "3 programs from seed 5: 0 wrong" in capsys.readouterr().out


def test_programs_have_every_kind_of_node() -> None:
    seen: set[str] = set()

    def look(parts: list[dict[str, Any]]) -> None:
        for node in parts:
            seen.add(node["do"])
            look(node.get("parts", []))

    for seed in range(COUNT):
        for root in program(seed):
            look(root.parts)
            expected(root.path, root.key, root.parts)
    assert seen == KINDS


KINDS = {
    *("noted", "write", "add", "clear", "read", "step", "refused", "sleep", "fail", "stumble", "defer", "pest"),
    *("call", "send", "post", "drawn", "look", "awake", "complete", "tell", "listen"),
    *("cancel", "held", "recall", "hasty", "share", "workflow"),
    *("gather", "group", "race", "first", "within", "never", "shield", "lock", "queue", "attempt"),
}


# --------------------------------------------------------------------------------------------------- what is planted


def former_values_are_forgotten(patch: pytest.MonkeyPatch) -> None:
    """A replay begins with the state as it is, not as its invocation found it."""

    def found(_run: OpenInvocation, stored: dict[str, bytes]) -> dict[str, bytes]:
        return stored

    patch.setattr(OpenInvocation, "found", found)


def events_do_not_wait_for_outcomes(patch: pytest.MonkeyPatch) -> None:
    """An event is delivered while the commit of a step's outcome is under way."""
    patch.setattr(OpenInvocation, "settling", property(lambda _run: False, lambda _run, _value: None))  # pyright: ignore[reportUnknownLambdaType]


def signals_are_not_recorded(patch: pytest.MonkeyPatch) -> None:
    """A signal is delivered, and no record holds it."""
    make = staging._record_of

    def record_of(*args: Any) -> Record:
        record = make(*args)
        record.events = [event for event in record.events if event.kind is not EventKind.SIGNAL]
        return record

    patch.setattr(staging, "_record_of", record_of)


def test_who_is_late_because_of_pests_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 15, "It must show": where an attempt that fails holds up the store for its host, good ones are late."""
    seeds = [seed for seed in range(0, FOUND_WITHIN, 8) if is_hostile(seed)]
    assert [play(program(seed), seed).wrong for seed in seeds[:3]] == [[]] * 3
    fail, held_until = Attempts.fail, 0.0

    def holds_up(attempts: Attempts, *args: Any) -> None:
        nonlocal held_until
        held_until = asyncio.get_running_loop().time() + 1.5
        fail(attempts, *args)

    async def travel(_store: RoughStore) -> None:
        await asyncio.sleep(max(0.0, held_until - asyncio.get_running_loop().time()))

    monkeypatch.setattr(Attempts, "fail", holds_up)
    monkeypatch.setattr(RoughStore, "_travel", travel)
    assert any(what.endswith("s late") for what in play([], seeds[0]).wrong)


def test_an_end_of_a_pest_that_is_none_of_its_ends_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile, "HOSTILITIES", dict.fromkeys(hostile.HOSTILITIES, frozenset({"no such end"})))
    seed = next(seed for seed in range(FOUND_WITHIN) if is_hostile(seed))
    found = play([], seed).wrong
    assert len(found) == GUESTS
    assert all(" came to " in what for what in found)


@pytest.mark.slow_after_first
@pytest.mark.parametrize(
    "plant",
    [former_values_are_forgotten, events_do_not_wait_for_outcomes, signals_are_not_recorded],
)
def test_a_planted_fault_is_found(plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)
    assert any(play(program(seed), seed).wrong for seed in range(FOUND_WITHIN))


def test_a_smaller_program_shows_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    former_values_are_forgotten(monkeypatch)
    seed = next(seed for seed in range(FOUND_WITHIN) if play(program(seed), seed).wrong)

    def is_wrong(roots: list[Root]) -> bool:
        return bool(play(roots, seed).wrong)

    found = smallest(program(seed), is_wrong)
    assert is_wrong(found)
    assert len(str(found)) < len(str(program(seed)))


@pytest.mark.slow
def test_programs_do_the_same_on_real_hosts_that_are_killed() -> None:
    """With a real Valkey; in a process of its own, which knows other classes than these tests do."""
    command = [sys.executable, "-m", "tests.programs", "--real", "30"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-4_000:] + done.stderr[-2_000:]
