"""The pages: their programs print what they say, their tables are those of the code, their links lead somewhere."""

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path

import pytest
from test_house import ORDER

from actors.blocks.entries import ENTRY_MAX
from actors.cli.main import app
from actors.execution.phases import TRANSITIONS, Happening, Phase
from actors.host.leases import LEASE_TTL
from actors.limits import Limits
from actors.policy import ResolvedPolicy
from actors.requests.message import HEADERS_MAX, KEY_MAX
from journal.keys import TABLE
from journal.store import NamespaceLimits

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    "examples/README.md",
    "actors/README.md",
    "journal/README.md",
    "tests/README.md",
    "actors/cli/README.md",
    "actors/http/README.md",
)
TEXTS = {page: ROOT.joinpath(page).read_text("utf-8") for page in PAGES}
TEXT = TEXTS["README.md"]
JOINED = "examples/README.md"
"""The page whose blocks are one program."""
LINES = {"README.md": 250, "actors/README.md": 225, "actors/cli/README.md": 100, "actors/http/README.md": 120}
"""Most lines of a page, which is to be read in ten minutes."""
BLOCKS = re.compile(r"^```python\n(.*?)^```\n.*?^```text\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```.*?^```\n", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"`((?:[\w.-]+/)*(?:[\w.-]+\.(?:lua|md|py|toml|yaml)|[\w.-]+/))`")
"""A file or folder in backticks, from the root of the repository or from the folder of its page."""
RUN = re.compile(r"python -m ((?:actors|examples|tests)(?:\.[a-z_]+)+)")
LINK = re.compile(r"\]\(([^)#\s]*)(?:#([^)\s]*))?\)")


def programs() -> list[tuple[str, str]]:
    """Return the pages' programs, each with what it prints."""
    found = [block for page in PAGES if page != JOINED for block in BLOCKS.findall(TEXTS[page])]
    joined = BLOCKS.findall(TEXTS[JOINED])
    return [*found, ("\n\n".join(program for program, _ in joined), "".join(output for _, output in joined))]


PROGRAMS = programs()


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Return a table in markdown."""
    columns = list(head)
    lines = [f"| {' | '.join(cells)} |" for cells in (columns, *rows)]
    return "\n".join([lines[0], f"|{'---|' * len(columns)}", *lines[1:]])


def phases() -> str:
    """Return the table of what leads from one phase of an execution to the next; equal columns are one."""
    starts = [phase for phase in Phase if any(phase is start for start, _ in TRANSITIONS)]
    after = {start.value: [_after(start, happening) for happening in Happening] for start in starts}
    columns: dict[tuple[str, ...], list[str]] = {}
    for start, cells in after.items():
        columns.setdefault(tuple(cells), []).append(start)
    heads = [f"phase after {' or '.join(f'`{start}`' for start in found)}" for found in columns.values()]
    return table(["occurrence", *heads], zip((happening.value for happening in Happening), *columns, strict=True))


def _after(start: Phase, happening: Happening) -> str:
    after = TRANSITIONS.get((start, happening))
    return f"`{after.value}`" if after is not None else "–"


def keys() -> str:
    """Return the table of all keys of the store."""
    return table(["key", "type", "holds"], ([f"`{key}`", kind, holds] for key, kind, holds in TABLE))


def scripts() -> str:
    """Return the table of all scripts, by the comments that they begin with."""
    found = sorted((ROOT / "journal").rglob("*.lua"), key=lambda path: path.stem)
    return table(["script", "purpose", "promises"], (row(path.stem, path.read_text("utf-8")) for path in found))


def row(name: str, text: str) -> list[str]:
    head = re.split(r"^(?!--)", text, maxsplit=1, flags=re.MULTILINE)[0].replace("\n--", "").removeprefix("--")
    purpose = head.partition(" KEYS:")[0].strip()
    promises = re.findall(r"\d+", " ".join(re.findall(r"Promises? ([\d, and]+):", head)))
    return [f"`{name}`", purpose, ", ".join(promises)]


def rooms() -> str:
    """Return the table of the rooms of `actors`, in their order, by the first lines of their docstrings."""
    names = dict.fromkeys(module.split(".")[0] for module in ORDER["actors"] if "." in module)
    docs = {name: ROOT.joinpath("actors", name, "__init__.py").read_text("utf-8") for name in names}
    return table(
        ["room", "holds"],
        ([f"`actors/{name}/`", doc.split("\n")[0].strip('"').rpartition(": ")[2]] for name, doc in docs.items()),
    )


def order() -> str:
    """Return the rooms and single modules of `actors` in the order of their imports, as one line."""
    return " → ".join(f"`{name}`" for name in dict.fromkeys(module.split(".")[0] for module in ORDER["actors"]))


def commands() -> str:
    """Return the table of the commands of `perdure`, by their help."""
    rows: list[list[str]] = []
    for each in app.registered_commands:
        assert each.callback is not None
        rows.append([f"`perdure {each.name}`", _first_sentence(each.help or each.callback.__doc__)])
    for part in app.registered_groups:
        assert part.typer_instance is not None
        first, *others = [str(each.name) for each in part.typer_instance.registered_commands]
        names = ", ".join([f"`perdure {part.name} {first}`", *(f"`{name}`" for name in others)])
        rows.append([names, _first_sentence(part.typer_instance.info.help)])
    return table(["command", "does"], rows)


def _first_sentence(text: object) -> str:
    return re.split(r"[.;](?= |\n|$)", str(text).strip(), maxsplit=1)[0] + "."


TABLES = {
    "actors/README.md": {"phases": phases, "rooms": rooms, "order": order},
    "actors/cli/README.md": {"commands": commands},
    "journal/README.md": {"keys": keys, "scripts": scripts},
}


def section(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<=<!-- {name} -->\n)(.*?)(?=<!-- end -->)", re.DOTALL)


@pytest.mark.parametrize("page", TABLES)
def test_the_tables_are_those_of_the_code(page: str) -> None:
    assert all(section(name).search(TEXTS[page]) for name in TABLES[page])
    assert with_tables(page) == TEXTS[page], "`python tests/test_readme.py` writes them anew"


@pytest.mark.parametrize("page", PAGES)
def test_every_python_block_is_a_program_with_its_output(page: str) -> None:
    assert len(BLOCKS.findall(TEXTS[page])) == TEXTS[page].count("```python\n")


def test_there_are_programs() -> None:
    assert len(PROGRAMS) > 2


@pytest.mark.parametrize("page", LINES)
def test_the_page_is_short(page: str) -> None:
    assert len(TEXTS[page].splitlines()) <= LINES[page]


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page: str) -> None:
    links = [(path, anchor) for path, anchor in LINK.findall(TEXTS[page]) if "://" not in path]

    assert [link for link in links if not leads(page, *link)] == []
    assert links


def leads(page: str, path: str, anchor: str) -> bool:
    """Whether there is such a file, and in it such a heading."""
    target = (ROOT / page).parent.joinpath(path) if path else ROOT / page
    return target.exists() and (not anchor or anchor in anchors(target.read_text("utf-8")))


def anchors(text: str) -> list[str]:
    """Return what leads to the headings of a page, as GitHub names them."""
    titles = re.findall(r"^#+ (.*)$", FENCED.sub("", text), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


@pytest.mark.parametrize("page", PAGES)
def test_every_file_that_is_named_is_there(page: str) -> None:
    here = (ROOT / page).parent

    assert [
        name for name in NAMED.findall(TEXTS[page]) if not (here / name).exists() and not (ROOT / name).exists()
    ] == []


def test_every_member_that_is_named_is_there() -> None:
    classes = "\n".join(path.read_text("utf-8") for path in (ROOT / "actors").rglob("*.py"))
    named = re.findall(r"`([A-Z]\w+)\.(\w+)`", TEXTS["actors/README.md"])

    assert named
    assert [
        name
        for name in named
        if not re.search(rf"^class {name[0]}\b.*?\b{name[1]}\b", classes, re.MULTILINE | re.DOTALL)
    ] == []


def test_every_module_that_is_run_is_there() -> None:
    modules = {ROOT.joinpath(*name.split(".")) for text in TEXTS.values() for name in RUN.findall(text)}

    assert len(modules) > 5
    assert [
        path for path in modules if not path.with_suffix(".py").exists() and not (path / "__main__.py").exists()
    ] == []


def test_a_link_that_leads_nowhere_is_seen() -> None:
    assert leads("README.md", "", "try-it")
    assert leads("tests/README.md", "../README.md", "limits")
    assert not leads("README.md", "", "nowhere")
    assert not leads("README.md", "nowhere.md", "")


@pytest.mark.slow_after_first
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
    kept, own = NamespaceLimits(), Limits()
    said = {
        "`payload_max`": (kept.payload_max, 8_000_000, "8 MB"),
        "`key_max`, `name_max`, `headers_max`": (
            (KEY_MAX, ENTRY_MAX, HEADERS_MAX),
            (8_000, 10_000, 64_000),
            "8,000, 10,000 and 64,000",
        ),
        "`journal_max`, `journal_bytes_max`": (
            (kept.journal_max, kept.journal_bytes_max),
            (100_000, 64_000_000),
            "100,000 entries and 64 MB",
        ),
        "`sent_max`, `written_max`": ((kept.sent_max, kept.written_max), (32_000_000, 32_000_000), "32 MB each"),
        "`state_max`": (kept.state_max, 64_000_000, "64 MB"),
        "`signals_max`, `signals_bytes_max`": (
            (kept.signals_max, kept.signals_bytes_max),
            (10_000, 16_000_000),
            "10,000 and 16 MB",
        ),
        "`pending_max`": (own.pending_max, 100_000, "100,000"),
        "`inbox_max`": (kept.inbox_max, 100_000, "100,000"),
        "`queue_in_memory`": (own.queue_in_memory, 100, "100"),
        "`done_max`, `retention`": (
            (kept.done_max, kept.retention),
            (10_000, timedelta(days=1)),
            "10,000 and 1 day",
        ),
        "`waiting_max`": (own.waiting_max, 5_000, "5,000"),
        "`activations_max`": (own.activations_max, 100_000, "100,000"),
        "`activation_idle`": (own.activation_idle, timedelta(seconds=60), "60 s"),
        "`idle_timeout`": (ResolvedPolicy().idle_timeout, timedelta(seconds=60), "60 s"),
        "shards": (kept.shards, 16, "16"),
        "lease": (LEASE_TTL, timedelta(seconds=3), "3 s"),
        "`block_limit`": (own.block_limit, timedelta(seconds=10), "10 s"),
    }

    wrong = [name for name, (found, value, _) in said.items() if found != value]
    pages = TEXT + TEXTS["actors/README.md"]
    wrong += [name for name, (_, _, text) in said.items() if f"| {name} | {text} |" not in pages]
    assert wrong == []


def with_tables(page: str) -> str:
    """Return a page with its tables written anew."""
    text = TEXTS[page]
    for name, made in TABLES[page].items():
        text = section(name).sub(lambda _, made=made: f"{made()}\n", text, count=1)
    return text


if __name__ == "__main__":
    for changed in TABLES:
        ROOT.joinpath(changed).write_text(with_tables(changed), "utf-8")
