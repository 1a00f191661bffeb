"""Names: what a program hears whose own files have the names of our packages, or that imports the one installed."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PERDURE = "actors/perdure.py"


def said(directory: Path, program: str) -> str:
    """Return the last line that a program says that runs in a directory of its own."""
    (directory / "program.py").write_text(program)
    ran = subprocess.run(
        [sys.executable, "program.py"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    return ran.stderr.splitlines()[-1] if ran.stderr else ""


@pytest.mark.parametrize("own", ["journal.py", "journal/__init__.py"])
def test_a_program_whose_own_journal_hides_ours_is_told_which_file_it_is(tmp_path: Path, own: str) -> None:
    """Issue 15.45: also where it was imported before."""
    path = tmp_path / own
    path.parent.mkdir(exist_ok=True)
    path.write_text("DIARY = 1\n")
    for program in ("import actors", "import journal\nimport actors"):
        assert said(tmp_path, program) == (
            f"ImportError: {path} hides the package 'journal' of Perdure, which is at {ROOT / 'journal'}: give yours "
            "another name, or take its directory off sys.path"
        )


def test_a_folder_without_modules_hides_nothing(tmp_path: Path) -> None:
    """Issue 15.45: one with data, of either name."""
    for name in ("journal", "actors"):
        (tmp_path / name).mkdir()
    assert said(tmp_path, "import actors\nactors.init") == ""


def test_the_name_that_was_installed_says_what_to_import(tmp_path: Path) -> None:
    """Issue 15.45: and what hides it, as a folder `actors` of the program's own does."""
    run = f"import runpy\nrunpy.run_path({str(ROOT / PERDURE)!r}, run_name='perdure')"
    told = said(tmp_path, run)
    assert told == "ImportError: Perdure is installed as `perdure` and imported as `actors`: write `import actors`"

    (tmp_path / "actors").mkdir()
    (tmp_path / "actors" / "__init__.py").write_text("")
    assert said(tmp_path, run) == (
        f"{told}. Here {tmp_path / 'actors' / '__init__.py'} is found by that name, which hides it: rename that"
    )


def test_wheels_have_the_module_of_that_name() -> None:
    """Issue 15.45: the top of the repository has none, so the build puts it there."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert settings["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"] == {PERDURE: "perdure.py"}
    assert (ROOT / PERDURE).is_file()
