"""What type checkers say of users' code: `typing/ok.py` is clean, each line of `typing/bad.py` marked E is an error.

The programs of the pages are clean.
"""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from test_readme import PROGRAMS

import actors

ROOT = Path(__file__).resolve().parent.parent
FILES = [ROOT / "tests" / "typing" / name for name in ("ok.py", "bad.py")]

Lines = dict[str, list[int]]


def marked() -> Lines:
    """Return the lines marked E, by file."""
    return {
        file.name: [
            number for number, line in enumerate(file.read_text("utf-8").splitlines(), 1) if re.search(r"# E\b", line)
        ]
        for file in FILES
    }


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The programs of the pages, as files."""
    directory = tmp_path_factory.mktemp("pages")
    files = [directory / f"page_{number}.py" for number in range(len(PROGRAMS))]
    for file, (program, _) in zip(files, PROGRAMS, strict=True):
        file.write_text(program, "utf-8")
    return files


def checked(module: str, *arguments: str, directory: Path) -> str:
    """Return what a checker prints; it ends with 1 where it has found errors."""
    path = os.pathsep.join(map(str, (ROOT, FILES[0].parent)))
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=directory,
        env={**os.environ, "MYPYPATH": path},
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return done.stdout


def basedpyright(files: list[Path], directory: Path) -> Lines:
    settings = {
        "include": [str(file) for file in files],
        "extraPaths": [str(ROOT), str(FILES[0].parent)],
        "typeCheckingMode": "strict",
        "pythonVersion": "3.11",
    }
    config = directory / "pyrightconfig.json"
    config.write_text(json.dumps(settings), "utf-8")
    printed = checked(
        "basedpyright", "-p", str(config), "--pythonpath", sys.executable, "--outputjson", directory=directory
    )
    found = json.loads(printed)["generalDiagnostics"]
    return by_file((Path(one["file"]).name, one["range"]["start"]["line"] + 1) for one in found)


def mypy(files: list[Path], directory: Path) -> Lines:
    # Silent: the six signatures of ctx.run are one too many for mypy's TypeVarTuple, which users never see.
    options = ("--strict", "--python-version=3.11", "--config-file=", "--follow-imports=silent", "--hide-error-context")
    # Most of the time goes into what others have written, which stays the same.
    cache = f"--cache-dir={ROOT / '.mypy_cache'}"
    printed = checked("mypy", *options, cache, *map(str, files), directory=directory)
    found = re.findall(r"(\w+\.py):(\d+): error:", printed)
    return by_file((name, int(line)) for name, line in found)


def by_file(found: Iterable[tuple[str, int]]) -> Lines:
    lines: dict[str, set[int]] = {}
    for name, line in found:
        lines.setdefault(name, set()).add(line)
    return {name: sorted(numbers) for name, numbers in lines.items()}


@pytest.mark.slow
@pytest.mark.parametrize("checker", [basedpyright, mypy])
def test_a_checker_refuses_the_marked_lines_and_no_others(
    checker: Callable[[list[Path], Path], Lines], written: list[Path], tmp_path: Path
) -> None:
    """Issue 15.38: in the pages' programs too, from its first line on."""
    assert checker([*FILES, *written], tmp_path) == {name: lines for name, lines in marked().items() if lines}


def test_every_public_name_is_used_as_it_should_be() -> None:
    text = FILES[0].read_text("utf-8")

    assert [name for name in actors.__all__ if re.search(rf"\b{name}\b", text) is None] == []


def test_lines_are_marked() -> None:
    lines = marked()

    assert lines["ok.py"] == []
    assert len(lines["bad.py"]) > 30
