"""The commands that show what grows and what lies in memory: they run, and their checks of results pass."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run(command: str, directory: Path, *arguments: str) -> Any:
    """Return what the command wrote as JSON."""
    out = directory / "out.json"
    done = subprocess.run(
        [sys.executable, "-m", command, "--directory", str(directory / "stores"), "--json", str(out), *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert list((directory / "stores").iterdir()) == [], "what the stores wrote is removed"
    return json.loads(out.read_text("utf-8"))


@pytest.mark.slow
def test_tables_of_what_grows_are_taken(tmp_path: Path) -> None:
    only = ("--only", "keys,state,journal,queue", "--seconds", "0.5", "--largest", "0.001")
    found = run("tests.bench.growth", tmp_path, *only)

    assert [row["keys"] for row in found["keys"]] == [1_000]
    assert [row["state_bytes"] for row in found["state"]] == [100, 1_000]
    assert [row["entries"] for row in found["journal"]] == [2, 11]
    assert [row["queued"] for row in found["queue"]] == [1]
    assert all(row["ops"] > 0 for row in found["keys"])


@pytest.mark.slow
def test_idle_objects_leave_and_sleepers_wake(tmp_path: Path) -> None:
    objects = ("--activations", "200", "--activation-idle", "0.1")
    alarms = ("--sleepers", "100", "--rate", "200", "--idle-timeout", "0.2", "--settle", "1")
    found = run("tests.bench.memory", tmp_path, *objects, *alarms)["rows"]

    assert [(row["what"], row.get("left", row.get("woken"))) for row in found] == [
        ("activations", 0),
        ("sleepers", 100),
    ]
