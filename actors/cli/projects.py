"""Projects: `perdure new`: a project that runs, of one object and one test."""

import keyword
from pathlib import Path
from typing import Annotated, Final

import typer

from actors.errors import UsageError

from .commands import Command, command

_PYPROJECT: Final = """\
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = "{project}"
version = "0.1.0"
requires-python = ">=3.11"
dependencies = ["perdure", "pytest"]

[tool.hatch.build.targets.wheel]
packages = ["{package}"]

[tool.perdure]
directory = ".perdure"
"""

_MODULE: Final = '''\
"""Objects of {package}."""

from actors import Context, TerminalError, VirtualObject, handler, shared, state


class Cart(VirtualObject):
    """A cart: `Cart["alice"]` is there without being made, and is never lost."""

    items: dict[str, int] = state(default_factory=dict)

    @handler
    async def add(self, ctx: Context, item: str, count: int = 1) -> int:
        """Add an item; return how many of it there are."""
        if count < 1:
            raise TerminalError("add at least one", 400)
        self.items[item] = self.items.get(item, 0) + count
        return self.items[item]

    @shared
    async def view(self, ctx: Context) -> dict[str, int]:
        """Return all items."""
        return self.items
'''

_MAIN: Final = '''\
"""`python -m {package}`: serve the objects of this package until Ctrl-C."""

import threading

import actors

from . import Cart

with actors.init(hosts="local"):
    Cart["alice"].view.remote().result()  # from here on `perdure call Cart/alice.add '"apple"'` finds the class
    print("serving; stop with Ctrl-C")
    threading.Event().wait()
'''

_TEST: Final = '''\
"""The objects of {package}, on a store of their own."""

from collections.abc import Iterator
from pathlib import Path

import actors
import pytest

from {package} import Cart


@pytest.fixture(autouse=True)
def session(tmp_path: Path) -> Iterator[None]:
    with actors.init(hosts="local", directory=tmp_path):
        yield


def test_a_cart_keeps_what_is_added() -> None:
    cart = Cart.at("alice")

    assert cart.add.remote("apple").result(timeout=30) == 1
    assert cart.add.remote("apple", count=2).result(timeout=30) == 3
    assert cart.view.remote().result(timeout=30) == {{"apple": 3}}


def test_nothing_is_added_less_than_once() -> None:
    with pytest.raises(actors.TerminalError, match="at least one"):
        Cart["bob"].add.remote("apple", count=0).result(timeout=30)
'''


def new(
    me: Command, name: Annotated[str, typer.Argument(metavar="NAME", help="Of the project, and of its folder.")]
) -> None:
    """Make a project that runs: one object, one test."""
    folder = Path(name)
    package = folder.name.replace("-", "_")
    if not package.isidentifier() or keyword.iskeyword(package) or not package.isascii():
        raise UsageError(f"{name!r} cannot name a package: letters, digits, '-' and '_', not a digit first")
    if package in ("actors", "journal", "perdure"):
        raise UsageError(f"{name!r} is the name of a package of Perdure's: take another one")
    if folder.exists():
        raise UsageError(f"{folder} is there already: take another name")
    files = {
        "pyproject.toml": _PYPROJECT,
        f"{package}/__init__.py": _MODULE,
        f"{package}/__main__.py": _MAIN,
        f"tests/test_{package}.py": _TEST,
        ".gitignore": ".perdure/\n__pycache__/\n",
    }
    for path, text in files.items():
        file = folder / path
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text.format(project=folder.name, package=package), "utf-8")
        except OSError as error:
            raise UsageError(f"{file} cannot be written: {error}") from error
    made = sorted(str(folder / path) for path in files)
    following = f"cd {folder} && pip install -e . && pytest"
    me.answer({"files": made, "next": following}, "\n".join([*made, "", f"next: {following}"]))


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    command(app, "new")(new)
