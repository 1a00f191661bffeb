"""Run ids: the one id of a workflow's `run` for each key.

The id depends on the key alone, so that a second start finds the first, and the key suffices to join it.
"""

from typing import Final

from actors.errors import TerminalError
from journal.ids import ObjectId, derived_id, invocation_id

from .request import Request

RUN: Final = "run"
"""The handler of a workflow that happens once for each key."""


def happens_once(request: Request) -> bool:
    """Whether a request for a handler called `run` is for that of a workflow."""
    return request.owner is not None and request.owner._runs_once


def run_id(address: str, shards: int) -> str:
    """Return the id of a workflow's `run`: there is one for each key."""
    return invocation_id(derived_id(RUN, address), address, shards)


def already_started(address: str) -> TerminalError:
    """Return the error of a second start."""
    where = ObjectId.parse(address)
    how = f"actors.attach({where.type}[{where.key!r}].run) joins it, as does the same start with its idempotency key"
    return TerminalError(f"{address} was started already: {how}", 409)
