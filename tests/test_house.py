"""The house rules that a reader could check by eye, and would not: layering, names, sizes, what lies where.

Every rule gathers all that breaks it and compares with an empty list, so that a failure names each place.

ORDER is the reading order of each package: a module imports only what stands above it, also inside functions and
under `TYPE_CHECKING`. A new file has no place until someone gives it one here; that is the moment to ask where it
belongs.
"""

import ast
import io
import re
import subprocess
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import cache
from itertools import groupby
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent

ORDER: dict[str, tuple[str, ...]] = {
    "journal": (
        "errors",
        "clock",
        "ids",
        "texts",
        "annotated",
        "codec",
        "records",
        "keys",
        "limits",
        "losses",
        "survey",
        "store",
        "memory.scripts",
        "memory.survey",
        "memory.store",
        "embedded.guard",
        "embedded.server",
        "redis.arguments",
        "redis.settings",
        "redis.url",
        "redis.connection",
        "redis.mending",
        "redis.trust",
        "redis.survey",
        "redis.store",
    ),
    "actors": (
        "aside",
        "perdure",
        "stored",
        "errors",
        "tracebacks",
        "policy",
        "limits",
        "threads",
        "processes",
        "backoff",
        "startup",
        "values.revived",
        "values.seal",
        "values.records",
        "values.values",
        "values.recorded",
        "values.outcomes",
        "loop.refusals",
        "loop.closing",
        "loop.coroutines",
        "loop.loop",
        "loop.blocking",
        "requests.timing",
        "requests.request",
        "requests.current",
        "requests.run_ids",
        "requests.invocation",
        "requests.schedule",
        "requests.fingerprints",
        "requests.message",
        "objects.lifetimes",
        "objects.annotations",
        "objects.commands",
        "objects.context",
        "objects.state",
        "objects.methods",
        "objects.handlers",
        "objects.edits",
        "objects.declarations",
        "objects.objects",
        "objects.scheduler",
        "code.code_hash",
        "code.bundles",
        "code.code",
        "blocks.entries",
        "blocks.restarts",
        "blocks.waits",
        "blocks.answers",
        "blocks.timers",
        "blocks.calls",
        "blocks.awakeables",
        "blocks.signals",
        "blocks.promises",
        "blocks.step_threads",
        "blocks.steps",
        "blocks.cancel",
        "blocks.sagas",
        "execution.phases",
        "execution.state_view",
        "execution.leftovers",
        "execution.execution",
        "activation.open_invocation",
        "activation.activation",
        "activation.idle",
        "activation.failures",
        "activation.black_box",
        "activation.suspects",
        "activation.services",
        "activation.state_changes",
        "activation.staging",
        "activation.pauses",
        "activation.endings",
        "activation.key_promises",
        "activation.watches",
        "shard.step_tasks",
        "shard.expiries",
        "shard.turns",
        "shard.isolation",
        "shard.holding_back",
        "shard.reentry",
        "shard.replays",
        "shard.deadlock",
        "shard.attempts",
        "shard.cancels",
        "shard.class_loading",
        "shard.shard",
        "host.leases",
        "host.placement",
        "host.handover",
        "host.ownership",
        "host.writer",
        "host.pace",
        "host.fetcher",
        "host.reader",
        "host.timekeeper",
        "host.host",
        "host.local",
        "client.slots",
        "client.batches",
        "client.run_starts",
        "client.uploads",
        "client.heartbeat",
        "client.submits",
        "client.replies",
        "client.watch",
        "client.timeouts",
        "client.views",
        "client.client",
        "ray.hosts",
        "ray.references",
        "ray.supervisor",
        "ray.cluster",
        "ray.__main__",
        "session",
        "http.answers",
        "http.preferences",
        "http.bodies",
        "http.targets",
        "http.waits",
        "http.calls",
        "http.invocations",
        "http.openapi",
        "http.restate",
        "http.batch",
        "http.events",
        "http.door",
        "http.serve",
        "cli.commands",
        "cli.targets",
        "cli.accounts",
        "cli.hosts",
        "cli.calls",
        "cli.invocations",
        "cli.states",
        "cli.schedules",
        "cli.why",
        "cli.journals",
        "cli.sql",
        "cli.projects",
        "cli.main",
    ),
}

FORBIDDEN_PACKAGES = {"journal": ("actors", "tests", "examples"), "actors": ("tests", "examples")}
"""What a package never imports; `actors` stands on `journal`, and nothing stands on tests or examples."""

ENTRIES = {"ray": "actors/ray/*.py", "redis": "journal/redis/connection.py", "time": "journal/clock.py"}
"""What enters through one file."""

TYPE_ONLY = {("actors/requests/invocation.py", "ray", "ObjectRef")}
"""The one exception: the return type of `to_object_ref`, under `TYPE_CHECKING`."""

NAMES_OF_ROOMS = {"actors.http": "from .door import app as app"}
"""What a room's `__init__` gives users, for whom `actors` itself would be too much: it imports Starlette."""

FORBIDDEN_FILES = {"utils", "util", "helpers", "helper", "common", "base", "manager", "types", "core", "misc"}

LINES_OF_A_FILE = 560  # a file is split by noun, never by length; beyond this nobody has looked for the noun
LINES_OF_A_FUNCTION = 60
FILES_OF_A_ROOM = 13

FORBIDDEN_WORDS = {"grain", "silo", "zombie", "dedup", "rehydrate", "actor_ref", "side_effect", "routing_table"}
"""Synonyms that the vocabulary replaces: virtual object, host, fenced, idempotency key, replay, handle, step, …"""

TOP_LEVEL = {
    "LICENSE",
    "README.md",
    "actors",
    "cluster.yaml",
    "examples",
    "journal",
    "pyproject.toml",
    "tests",
    "uv.lock",
}

LUA_HEAD = ("KEYS:", "ARGV:", "Returns:", "Promise")

# ------------------------------------------------------------------------------------------------------ what is read


@dataclass(frozen=True)
class Import:
    """One imported name: `module` is absolute, `name` is None where it is the module that is imported."""

    path: str
    line: int
    module: str
    name: str | None
    type_only: bool

    def __str__(self) -> str:
        what = f"import {self.module}" if self.name is None else f"from {self.module} import {self.name}"
        return f"{self.path}:{self.line}: {what}"


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def python_files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def lua_files() -> list[Path]:
    return sorted((ROOT / "journal" / "redis" / "scripts").rglob("*.lua"))


@pytest.fixture(scope="module", autouse=True)
def trees() -> Iterator[None]:
    """Keep what is parsed for this file alone: the collector would look through it in each later test."""
    yield
    parsed.cache_clear()


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def module_of(path: str) -> str:
    """Return the dotted name of a file; a package's `__init__` has the package's name."""
    parts = PurePosixPath(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: str, tree: ast.AST) -> Iterator[Import]:
    """Yield every import of a file, wherever it stands, `import_module("…")` with a literal included."""
    package = PurePosixPath(path).parts[:-1]
    guarded = {id(node) for block in ast.walk(tree) if is_type_checking(block) for node in ast.walk(block)}
    for node in ast.walk(tree):
        type_only = id(node) in guarded
        match node:
            case ast.Import(names=names):
                yield from (Import(path, node.lineno, alias.name, None, type_only) for alias in names)
            case ast.ImportFrom(module=module, names=names, level=level):
                above = package[: len(package) - level + 1] if level else ()
                origin = ".".join((*above, *([module] if module else [])))
                yield from (from_import(path, node.lineno, origin, alias.name, type_only) for alias in names)
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module" | "__import__"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield Import(path, node.lineno, name, None, type_only)
            case _:
                pass


def from_import(path: str, line: int, origin: str, name: str, type_only: bool) -> Import:
    """Return `from origin import name`; a module got in this way is not taken from the facade."""
    if origin.split(".")[0] in ORDER and (ROOT / origin.replace(".", "/") / f"{name}.py").exists():
        return Import(path, line, f"{origin}.{name}", None, type_only)
    return Import(path, line, origin, name, type_only)


def is_type_checking(node: ast.AST) -> bool:
    match node:
        case ast.If(test=ast.Name(id="TYPE_CHECKING") | ast.Attribute(attr="TYPE_CHECKING"), orelse=[]):
            return True
        case _:
            return False


@cache
def product_imports() -> list[Import]:
    return [found for path in python_files(*ORDER) for found in imports_of(relative(path), parsed(path))]


# ----------------------------------------------------------------------------------------------------------- layering


def place(module: str) -> tuple[str, int] | None:
    """Return a module's package and its place in it; None if it is not of the product or has no place."""
    package, _, name = module.partition(".")
    if name not in ORDER.get(package, ()):
        return None
    return package, ORDER[package].index(name)


def looks_down(found: Import) -> bool:
    """A module imports one of its package that does not stand above it; a facade stands below all."""
    importer, imported = place(module_of(found.path)), place(found.module)
    if importer is None or imported is None or importer[0] != imported[0]:
        return False
    return imported[1] >= importer[1]


def is_inside(package: str, found: Import) -> bool:
    return found.path.startswith(f"{package}/") and found.path != f"{package}/__init__.py"


def test_every_module_has_a_place_in_the_order() -> None:
    modules = {module_of(relative(path)) for path in python_files(*ORDER) if path.name != "__init__.py"}
    placed = {f"{package}.{name}" for package, names in ORDER.items() for name in names}

    assert modules == placed


def rooms() -> dict[str, list[str]]:
    """Return the rooms of each package by their dotted names, with their modules in order."""
    found: dict[str, list[str]] = {}
    for package, names in ORDER.items():
        for name in names:
            room, dot, module = name.partition(".")
            if dot:
                found.setdefault(f"{package}.{room}", []).append(module)
    return found


def test_the_files_of_a_room_stand_together() -> None:
    for names in ORDER.values():
        met = [room for room, _ in groupby(names, key=lambda name: name.partition(".")[0])]
        assert len(met) == len(set(met))


def test_a_room_is_small_and_has_no_room_inside() -> None:
    assert {room: len(modules) for room, modules in rooms().items() if len(modules) > FILES_OF_A_ROOM} == {}
    assert [f"{room}.{module}" for room, modules in rooms().items() for module in modules if "." in module] == []


def test_a_room_says_what_it_is_and_holds_no_code() -> None:
    for room in rooms():
        body = parsed(ROOT / room.replace(".", "/") / "__init__.py").body
        assert [type(node) for node in body[:1]] == [ast.Expr], room
        assert [ast.unparse(node) for node in body[1:]] == [*filter(None, [NAMES_OF_ROOMS.get(room)])], room
        assert "Owns" in (ast.get_docstring(ast.Module(body, [])) or ""), room


def test_a_module_imports_only_what_stands_above_it() -> None:
    assert [str(found) for found in product_imports() if looks_down(found)] == []


def test_packages_look_one_way() -> None:
    wrong = [
        str(found)
        for found in product_imports()
        if found.module.split(".")[0] in FORBIDDEN_PACKAGES[found.path.split("/")[0]]
    ]

    assert wrong == []


def test_nobody_inside_imports_the_facade() -> None:
    wrong = [
        str(found)
        for found in product_imports()
        for package in ORDER
        if found.module == package and is_inside(package, found)
    ]

    assert wrong == [], "name the module: from .policy import Policy"


@pytest.mark.parametrize("outside", ENTRIES)
def test_the_outside_enters_through_one_file(outside: str) -> None:
    wrong = [
        str(found)
        for found in product_imports()
        if found.module.split(".")[0] == outside
        and not fnmatch(found.path, ENTRIES[outside])
        and not (found.type_only and (found.path, found.module, found.name) in TYPE_ONLY)
    ]

    assert wrong == []


# ---------------------------------------------------------------------------------------------------- the rules' rules


@pytest.mark.parametrize(
    ("path", "source", "expected"),
    [
        ("actors/loop/loop.py", "from actors.policy import Policy", []),
        ("actors/loop/loop.py", "from .closing import close", []),
        ("actors/loop/loop.py", "from actors.host.host import Host", ["actors.host.host"]),
        ("actors/loop/loop.py", "from actors.host import host", ["actors.host.host"]),
        ("actors/loop/loop.py", "def f():\n    from actors.host.host import Host", ["actors.host.host"]),
        ("actors/loop/loop.py", "if TYPE_CHECKING:\n    import actors.host.host", ["actors.host.host"]),
        ("actors/loop/loop.py", "import_module('actors.host.host')", ["actors.host.host"]),
        ("actors/loop/loop.py", "from .loop import DeterministicLoop", ["actors.loop.loop"]),
        ("actors/loop/loop.py", "from journal.embedded.server import Server", []),
        ("actors/__init__.py", "from .host.host import Host", []),
    ],
)
def test_the_order_counts_every_kind_of_import(path: str, source: str, expected: list[str]) -> None:
    assert [found.module for found in imports_of(path, ast.parse(source)) if looks_down(found)] == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import ray", [("ray", None, False)]),
        ("from . import policy", [("actors.policy", None, False)]),
        ("from actors import Policy", [("actors", "Policy", False)]),
        ("if TYPE_CHECKING:\n    from ray import ObjectRef", [("ray", "ObjectRef", True)]),
        ("if TYPE_CHECKING:\n    pass\nelse:\n    from ray import ObjectRef", [("ray", "ObjectRef", False)]),
    ],
)
def test_an_import_is_read_as_it_is(source: str, expected: list[tuple[str, str | None, bool]]) -> None:
    found = imports_of("actors/invocation.py", ast.parse(source))

    assert [(one.module, one.name, one.type_only) for one in found] == expected


# ------------------------------------------------------------------------------------------------------ names and sizes


def test_no_file_is_named_after_nothing() -> None:
    names = {
        relative(path): module_of(relative(path)) for path in python_files("actors", "journal", "tests", "examples")
    }
    words = {path: {word.removeprefix("test_") for word in name.split(".")} for path, name in names.items()}

    assert [path for path, found in words.items() if found & FORBIDDEN_FILES] == []


def test_a_file_fits_a_sitting() -> None:
    sizes = {
        relative(path): len(path.read_text("utf-8").splitlines()) for path in [*python_files(*ORDER), *lua_files()]
    }

    assert {path: size for path, size in sizes.items() if size > LINES_OF_A_FILE} == {}


def test_a_function_fits_a_glance() -> None:
    sizes = {
        f"{relative(path)}:{node.lineno} {node.name}": lines_of(node)
        for path in python_files(*ORDER)
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }

    assert {where: size for where, size in sizes.items() if size > LINES_OF_A_FUNCTION} == {}


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Return how many lines a function has, without its decorators and its docstring."""
    size = (function.end_lineno or function.lineno) - function.lineno + 1
    match function.body[0]:
        case ast.Expr(value=ast.Constant(value=str())) as docstring:
            return size - ((docstring.end_lineno or docstring.lineno) - docstring.lineno + 1)
        case _:
            return size


def test_nothing_is_left_for_later() -> None:
    # Built from halves, so that this file does not name what it looks for.
    later = re.compile(r"\b(" + "|".join(("TO" + "DO", "FIX" + "ME", "X" + "XX")) + r")\b")
    files = [*python_files("actors", "journal", "tests", "examples"), *lua_files()]
    files += [
        path for name in ("pyproject.toml", "cluster.yaml", "README.md", ".ci/run") if (path := ROOT / name).exists()
    ]
    wrong = [
        f"{relative(path)}:{number}"
        for path in files
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if later.search(line)
    ]

    assert wrong == []


def test_a_class_name_is_given_once() -> None:
    """A leading underscore makes no other name: a reader says them alike."""
    given: dict[str, list[str]] = {}
    for path in python_files(*ORDER):
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.ClassDef):
                given.setdefault(node.name.strip("_"), []).append(f"{relative(path)}:{node.lineno}")
    double = {name: where for name, where in given.items() if len(where) > 1}

    assert double == {}


def test_an_idea_has_one_word() -> None:
    wrong = [
        f"{relative(path)}:{line} {name}"
        for path in python_files(*ORDER)
        for line, name in names_of(parsed(path))
        if any(f"_{word}_" in f"_{snake(name)}_" for word in FORBIDDEN_WORDS)
    ]

    assert wrong == []


def names_of(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the names that a file gives; names that it only uses belong to others."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield node.lineno, name
            case ast.arg(arg=name):
                yield node.lineno, name
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()):
                yield node.lineno, name
            case _:
                pass


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def test_a_script_says_what_it_takes_and_promises() -> None:
    heads = {relative(path): head_of(path.read_text("utf-8").splitlines()) for path in lua_files()}
    missing = {
        path: [word for word in LUA_HEAD if not any(says(line, word) for line in head)] for path, head in heads.items()
    }

    assert {path: words for path, words in missing.items() if words} == {}


def head_of(lines: Iterable[str]) -> list[str]:
    """Return the comment lines with which a script begins, a `#!lua` line aside."""
    head: list[str] = []
    for line in lines:
        if line.startswith("#!lua") and not head:
            continue
        if not line.startswith("--"):
            break
        head.append(line)
    return head


def says(line: str, word: str) -> bool:
    return line.removeprefix("--").strip().startswith(word)


@pytest.mark.slow
def test_a_test_owns_its_time_and_fakes() -> None:
    # ruff's banned names are off in tests, where handlers sleep durably; these two stay banned here.
    wrong = [
        str(found)
        for path in python_files("tests")
        for found in imports_of(relative(path), parsed(path))
        if found.module.startswith("unittest")
        or (found.module, found.name) in {("time", "sleep"), ("unittest", "mock")}
    ]
    wrong += [
        f"{relative(path)}:{node.lineno}: time.sleep"
        for path in python_files("tests")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Attribute) and node.attr == "sleep" and ast.unparse(node.value) == "time"
    ]

    assert wrong == [], "hand in a clock, or wait for a condition; write a fake by wrapping a Store or a Clock"


# -------------------------------------------------------------------------------------------------------------- English

RIDDLES_PER_1000_WORDS = 0.2
"""Most riddling clauses in docstrings and comments: a ratchet, which never rises."""

_VERB = r"(?:is|are|was|were|has|have|had|does|do|did|may|might|can|could|must|will|would|should)"
_AFTER_A_PRONOUN = rf"(?=\s+(?:that|which|who|whose|with|without|{_VERB})\b)"

RIDDLE = re.compile(
    rf"""(?: (?:^|(?<!own)(?<!owns)[.:;(—]|\n\ *-) \s* (?:who|whoever|what|(?:those|one){_AFTER_A_PRONOUN})
         |   , \s+                            (?:whoever|(?:those|one){_AFTER_A_PRONOUN}) )
         \b (?!\s*[,.;:?)])""",
    re.IGNORECASE | re.VERBOSE,
)
"""A clause whose subject is no noun: it begins with such a word at the start of a text, after a stop, or as an item.

No riddle: a number or a determiner ("one line", "one of", "those modules"), a question after a verb ("says what it
is", "Does not own: who is told"), a relative clause ("the host, who"), a word alone ("what, where and how").
"""


def texts_of(path: Path) -> list[str]:
    """Return the docstrings of a file, those of fields too, and its comments, adjacent lines as one text."""
    source = path.read_text("utf-8")
    if path.suffix == ".lua":
        return blocks((n, line.partition("--")[2]) for n, line in enumerate(source.splitlines()) if "--" in line)
    docstrings = [
        node.value.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return docstrings + blocks((token.start[0], token.string[1:]) for token in tokens if token.type == tokenize.COMMENT)


def blocks(lines: Iterable[tuple[int, str]]) -> list[str]:
    """Join the lines whose numbers follow each other."""
    out: list[str] = []
    before = -1
    for number, line in lines:
        if number == before + 1 and out:
            out[-1] += "\n" + line.strip()
        else:
            out.append(line.strip())
        before = number
    return out


def riddles(text: str) -> Iterator[str]:
    """Yield what surrounds each riddle of a text, code in backticks aside."""
    prose = re.sub(r"`[^`]*`", "X", text)
    for found in RIDDLE.finditer(prose):
        yield " ".join(prose[max(found.start() - 30, 0) : found.end() + 50].split())


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Turns: what an attempt tells whoever gives turns.", 1),
        ("Who waits is told. One that ends, or dies, ends none; those with a name stay.", 3),
        ("If the shard moves, whoever owns it reads on (what was read is kept).", 2),
        ("Owns: the list.\n\n- What is sent\n- who is told of it", 2),
        ("Says what it does, where, and who is told. One of them, one line, those modules: one at a time.", 0),
        ("Does not own: who is told (`ends`). A host, who waits. Errors say where, what, and how. `what is it`", 0),
    ],
)
def test_a_riddle_is_a_clause_without_a_noun(text: str, count: int) -> None:
    assert len([*riddles(text)]) == count, [*riddles(text)]


def test_sentences_have_nouns_for_subjects() -> None:
    """Fewer riddles than before: `python -m pytest tests/test_house.py -k nouns` lists them all when the bound is 0."""
    found: list[str] = []
    words = 0
    for path in [*python_files(*ORDER), *lua_files()]:
        texts = texts_of(path)
        words += sum(len(text.split()) for text in texts)
        found += [f"{relative(path)}: {riddle}" for text in texts for riddle in riddles(text)]

    assert len(found) / words * 1000 <= RIDDLES_PER_1000_WORDS, "\n".join([f"{len(found)} in {words} words", *found])


# -------------------------------------------------------------------------------------------- the repository as a whole


def test_the_top_level_holds_what_it_may() -> None:
    names = {path.split("/")[0] for path in files_of_the_repository()}

    assert sorted(name for name in names - TOP_LEVEL if not name.startswith(".")) == []


def files_of_the_repository() -> list[str]:
    """Return what is committed or would be; without git nobody knows, and the test is skipped."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"git does not list the files here: {error}")
    return [path for path in listed.stdout.split("\0") if path]


def test_the_page_of_actors_lists_the_public_names() -> None:
    """The table under "## Public API" has each public name in backticks in its first column, and no other."""
    facade, readme = ROOT / "actors" / "__init__.py", ROOT / "actors" / "README.md"

    public = exported(parsed(facade))
    listed = names_in_table(section(readme.read_text("utf-8"), "Public API"))

    assert sorted(listed) == sorted(public)


def exported(facade: ast.Module) -> list[str]:
    """Return the literal `__all__` of a facade."""
    for node in facade.body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id="__all__")], value=value)
                | ast.AnnAssign(target=ast.Name(id="__all__"), value=ast.expr() as value)
            ):
                return [str(name) for name in ast.literal_eval(value)]
            case _:
                pass
    return []


def section(markdown: str, title: str) -> list[str]:
    """Return the lines between a heading of the second level and the next one."""
    lines = markdown.splitlines()
    if f"## {title}" not in lines:
        return []
    first = lines.index(f"## {title}") + 1
    following = (number for number, line in enumerate(lines[first:], first) if re.match(r"#{1,2} ", line))
    return lines[first : next(following, len(lines))]


def names_in_table(lines: Iterable[str]) -> list[str]:
    rows = (line.split("|")[1] for line in lines if line.startswith("|"))
    return [name for cell in rows for name in re.findall(r"`([^`]+)`", cell)]


def test_a_table_ends_with_its_section() -> None:
    before = ["# Title", "| `not` |", "## Public API", "", "| name | does |", "|---|---|"]
    rows = ["| `init`, `get` | takes `hosts` |", "### More", "| `wait` | |"]
    after = ["## Other", "| `neither` | |"]

    assert names_in_table(section("\n".join([*before, *rows, *after]), "Public API")) == ["init", "get", "wait"]
