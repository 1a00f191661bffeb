"""Classes: how one shard gets those that its invocations are of, and waits for those that nobody has sent.

Does not own: the code itself (`code`), nor what is done once a class is there (`shard`).
"""

import asyncio
import logging
import os
import sys
from collections.abc import Callable

from .activation import Activation, InFlight
from .attempts import Attempts
from .code import MISSING_FOR, UNSENT, MissingCodeError
from .errors import TerminalError
from .patience import Patience
from .services import Services
from .staging import Staging
from .verdicts import named

logger = logging.getLogger("actors")


class Classes:
    """The classes that one shard asks for."""

    def __init__(
        self, services: Services, staging: Staging, attempts: Attempts, sort: Callable[[Activation], None]
    ) -> None:
        self._services, self._staging, self._attempts, self._sort = services, staging, attempts, sort
        self._patience = Patience("code")
        self._unfound: set[str] = set()
        """Types whose classes were looked for in vain; who waits was told."""

    async def fetch(self, run: InFlight, activation: Activation) -> None:
        """Get the class of the first that waits to be sorted; what cannot be loaded fails its attempt."""
        error: Exception | None = None
        try:
            await self._patience.until_answered(lambda: self._services.code.fetch(run.type_name, run.message.code))
        except Exception as raised:  # noqa: BLE001  # the user's code may raise anything as it is loaded
            error = raised
        if isinstance(error, MissingCodeError) and (run.message.code == UNSENT or run.records):
            error = await self._look_again(run)
        activation.loading = False
        if error is not None and not run.ended:
            assert activation.arrivals is not None
            activation.arrivals.remove(run)
            activation.sharing.add(run)
            if isinstance(error, TerminalError):
                self._attempts.reject(run, activation, error)
            else:
                self._attempts.fail(run, activation, error)
        self._sort(activation)

    async def _look_again(self, run: InFlight) -> None:
        """Wait before the next look for a class that some program has; say so where its caller waits."""
        if run.type_name not in self._unfound:
            self._unfound.add(run.type_name)
            text = (
                f'{named(run)} waits: its class lives in a program that has not sent it (hosts="local"), and the '
                f"process {os.getpid()} ({sys.argv[0] or 'python'}), which has the shard, is another: end this one, or "
                "start the one with the class"
            )
            if run.type_name not in self._services.unfound:
                self._services.unfound.add(run.type_name)
                logger.warning("%s", text)
            self._staging.notice(run.id, text.encode(errors="backslashreplace"), [])
        await asyncio.sleep(MISSING_FOR)
