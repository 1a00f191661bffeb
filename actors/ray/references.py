"""References: Ray object references of invocations, and the actor that waits for their outcomes."""

import asyncio
import logging
from typing import Any, Final

from actors.client.client import Client
from actors.code.bundles import portable
from actors.values import outcomes, seal
from actors.values.values import Name, living, note_sent
from journal.codec import MISSING
from journal.texts import error_text

from .hosts import StoreAddress, api

logger = logging.getLogger("actors")

Classes = dict[Name, bytes]
"""Pickles of classes, by name."""


ANNOTATIONS_MAX: Final = 1_000


class Outcomes:
    """Waits for invocations on behalf of Ray's object references; one for each program that asks for any."""

    def __init__(self, address: StoreAddress) -> None:
        seal.use(address.secrets, address.namespace)
        self._client = Client(address.connect, sends_code=False)
        self._opening: asyncio.Future[None] | None = None

    async def outcome(self, id_: str, returns: bytes, classes: Classes) -> Any:
        """Return the result of an invocation, to be read where it is wanted, or raise its failure."""
        if self._opening is None:
            self._opening = asyncio.ensure_future(asyncio.to_thread(self._client.open))
        await asyncio.shield(self._opening)
        outcome = outcomes.checked(await self._client.outcome(id_))
        if outcomes.is_failure(outcome):
            return _restored(outcome, returns, _named_in(outcome, classes))
        return Result(outcome, returns, classes)


class Result:
    """A result on its way: reading it gives the value, with the classes of the process that reads."""

    def __init__(self, outcome: bytes, returns: bytes, classes: Classes) -> None:
        self._parts = outcome, returns, _named_in(outcome, classes)

    def __reduce__(self) -> tuple[Any, ...]:
        return _restored, self._parts


def _named_in(outcome: bytes, classes: Classes) -> Classes:
    return {name: code for name, code in classes.items() if name[1].encode() in outcome}


def _restored(outcome: bytes, returns: bytes, classes: Classes) -> Any:
    """Return a result or raise a failure; classes that cannot be imported here are made of the code that came along."""
    for name, code in classes.items():
        if living(*name, imports=True) is None:
            try:
                _kept[name] = api.cloudpickle.loads(code)
            except Exception as error:  # noqa: BLE001  # making a class runs code of users; its values say what is missing
                logger.info("%s.%s cannot be made of its code: %s", *name, error_text(error))
            else:
                note_sent(_kept[name], name)
    annotation = MISSING
    if outcomes.needs_annotation(outcome):
        annotation = _annotations[returns] if returns in _annotations else api.cloudpickle.loads(returns)
    with seal.trusting():  # the waiting actor has checked it, and Ray has brought it from there
        return outcomes.decoded(outcome, annotation)


def keep_annotation(returns: Any) -> bytes:
    """Return an annotation's pickle; this process reads it as the annotation itself, not as a copy."""
    data = portable(returns, api.cloudpickle)
    if len(_annotations) > ANNOTATIONS_MAX:
        _annotations.clear()
    _annotations[data] = returns
    return data


_kept: Final[dict[Name, type]] = {}
"""Classes that were made of code: nothing else references them until a value does."""


_annotations: Final[dict[bytes, Any]] = {}
