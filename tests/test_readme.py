"""The README: its programs print what it says, its tables are those of the code, its commands are there."""

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

import pytest

from actors.client import PENDING_MAX
from actors.entries import ENTRY_MAX
from actors.leases import BLOCK_LIMIT, LEASE_TTL
from actors.outgoing import HEADERS_MAX, KEY_MAX
from actors.replay import TRANSITIONS, Happening, Phase
from actors.services import Limits
from journal.keys import TABLE
from journal.store import SHARDS
from journal.store import Limits as Kept

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
TEXT = README.read_text("utf-8")
BLOCKS = re.compile(r"^```python\n(.*?)^```\n.*?^```text\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
SECTIONS = re.split(r"^(?=## )", TEXT, flags=re.MULTILINE)
JOINED = "## The building blocks\n"
"""The section whose blocks are one program."""


def programs() -> list[tuple[str, str]]:
    """Return the page's programs, each with what it prints."""
    found: list[tuple[str, str]] = []
    for blocks in (BLOCKS.findall(section) for section in SECTIONS if not section.startswith(JOINED)):
        found += blocks
    joined = next(BLOCKS.findall(section) for section in SECTIONS if section.startswith(JOINED))
    return [*found, ("\n\n".join(program for program, _ in joined), "".join(output for _, output in joined))]


PROGRAMS = programs()


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in markdown."""
    columns = list(head)
    lines = [f"| {' | '.join(cells)} |" for cells in (columns, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(columns)}", *lines[1:]])


def phases() -> str:
    """Return the table of what leads from one phase of an execution to the next."""
    starts = [phase for phase in Phase if any(phase is start for start, _ in TRANSITIONS)]
    rows = [[happening.value, *(_after(start, happening) for start in starts)] for happening in Happening]
    return table(["what happens", *(f"while {start.value}" for start in starts)], rows)


def _after(start: Phase, happening: Happening) -> str:
    after = TRANSITIONS.get((start, happening))
    return after.value if after is not None else "–"


def keys() -> str:
    """Return the table of all keys of the store."""
    return table(["key", "type", "holds"], ([f"`{key}`", kind, holds] for key, kind, holds in TABLE))


TABLES = {"phases": phases, "keys": keys}


def section(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<=<!-- {name} -->\n)(.*?)(?=<!-- end -->)", re.DOTALL)


def test_the_tables_are_those_of_the_code() -> None:
    assert all(section(name).search(TEXT) for name in TABLES)
    assert with_tables(TEXT) == TEXT, "`python tests/test_readme.py` writes them anew"


def test_every_python_block_is_a_program_with_its_output() -> None:
    assert all(len(BLOCKS.findall(section)) == section.count("```python\n") for section in SECTIONS)
    assert len(PROGRAMS) > 2


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
def test_a_program_prints_what_the_page_says(number: int, tmp_path: Path) -> None:
    program, output = PROGRAMS[number]
    file = tmp_path / "program.py"
    file.write_text(program, "utf-8")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])

    done = subprocess.run(
        [sys.executable, str(file)],
        cwd=tmp_path,
        env={**os.environ, "PERDURE_HOSTS": "local", "PYTHONPATH": path},
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )

    assert (done.stdout, done.returncode) == (output, 0), done.stderr


@pytest.mark.parametrize(
    "command",
    ["pip install -e . && python -m examples.seat_map", "pip install -e '.[test]' && python -m pytest"],
)
def test_the_two_commands_stand_in_blocks_of_their_own(command: str) -> None:
    assert f"```sh\n{command}\n```\n" in TEXT


def test_every_limit_has_its_default() -> None:
    said = {
        "`payload_max`": (Limits().payload_max, 8_000_000, "8 MB"),
        "`key_max`, `name_max`, `headers_max`": (
            (KEY_MAX, ENTRY_MAX, HEADERS_MAX),
            (8_000, 10_000, 64_000),
            "8,000, 10,000 and 64,000",
        ),
        "`pending_max`": (PENDING_MAX, 100_000, "100,000"),
        "`inbox_max`": (Kept().inbox_max, 100_000, "100,000"),
        "`queue_in_memory`": (Limits().queue_in_memory, 100, "100"),
        "`done_max`, `retention`": (
            (Kept().done_max, Kept().retention),
            (10_000, timedelta(days=1)),
            "10,000 and 1 day",
        ),
        "`waiting_max`": (Limits().waiting_max, 5_000, "5,000"),
        "shards": (SHARDS, 16, "16"),
        "lease": (LEASE_TTL, timedelta(seconds=3), "3 s"),
        "`block_limit`": (BLOCK_LIMIT, timedelta(seconds=10), "10 s"),
    }

    wrong = [name for name, (found, value, _) in said.items() if found != value]
    wrong += [name for name, (_, _, text) in said.items() if f"| {name} | {text} |" not in TEXT]
    assert wrong == []


def with_tables(text: str) -> str:
    """Return the page with its tables written anew."""
    for name, made in TABLES.items():
        text = section(name).sub(lambda _, made=made: f"{made()}\n", text, count=1)
    return text


if __name__ == "__main__":
    README.write_text(with_tables(TEXT), "utf-8")
