"""Import check: whether the package `journal` that Python finds is the one beside this package.

Made before anything else is imported: a program's own `journal.py` would be imported in its place.
"""

import importlib.util
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


check_journal()
