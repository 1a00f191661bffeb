"""Import check: whether the packages that Python finds by our names are ours.

`journal` is looked for before anything else is imported: a program's own `journal.py` would be imported in its place.
A program's own `actors` that hides this package cannot be seen from here, but in a directory where a process of Ray
will look first.
"""

import importlib.util
from collections.abc import Iterable
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Final

NAME: Final = "journal"


def check_journal() -> None:
    """Check that no module of the program hides our package.

    Raises:
        ImportError: another module or package of this name comes first on `sys.path`.
    """
    try:
        spec = importlib.util.find_spec(NAME)
    except ValueError:  # it was put into sys.modules by hand
        spec = None
    found = "" if spec is None else spec.origin or ""
    ours = Path(__file__).resolve().parent.parent / NAME / "__init__.py"
    if not found or Path(found).resolve() != ours:
        where = found or (next(iter(spec.submodule_search_locations or ()), "") if spec is not None else "")
        raise ImportError(
            f"{where or 'something in sys.modules'} hides the package {NAME!r} of Perdure, which is at {ours.parent}: "
            "give yours another name, or take its directory off sys.path"
        )


def hidden_by(directories: Iterable[str]) -> str:
    """Return what hides one of our packages from a process that looks into these directories first, or ""."""
    ours = Path(__file__).resolve().parent
    for directory in directories:
        for package in (ours, ours.parent / NAME):
            spec = PathFinder.find_spec(package.name, [directory])
            if spec is not None and spec.origin is not None and Path(spec.origin).resolve().parent != package:
                return f"{spec.origin} hides the package {package.name!r} of Perdure, which is at {package}"
    return ""


check_journal()
