"""Perdure: the module behind `import perdure`, the name of the distribution: it tells which package to import.

A wheel, and an editable install, puts this file beside the package `actors` as the module `perdure` (pyproject.toml).
"""

import importlib.util
from pathlib import Path

_WRITE = "Perdure is installed as `perdure` and imported as `actors`: write `import actors`"


def _hint() -> str:
    spec = importlib.util.find_spec("actors")
    found = spec.origin if spec is not None else None
    if found is not None and (Path(found).parent / "aside.py").exists():
        return _WRITE
    return f"{_WRITE}. Here {found or 'nothing'} is found by that name, which hides it: rename that"


raise ImportError(_hint(), name=__name__)
