"""Uploads: the bundles of code that a program has sent, and those that the store has not taken yet.

Code is stored before the invocations that run on it: a host that reads a message finds the class that it names.
"""

from collections import deque

from actors.backoff import Patience
from actors.code.bundles import Bundle
from actors.errors import DamagedError, FullError, UnavailableError
from actors.values import seal
from journal.store import Store


async def put(store: Store, bundle: Bundle) -> None:
    """Put a bundle into a store, sealed; a stored one stays, but is sealed anew where its secret is an old one."""
    where = "code", bundle.digest
    await store.put_code(bundle.digest, seal.sealed(bundle.data, where), bundle.types)
    if seal.is_used():
        kept = await store.code(bundle.digest)
        if kept is not None and (renewed := seal.resealed(kept, where)) != kept:
            await store.put_code(bundle.digest, renewed, (), instead_of=kept)


class Uploads:
    """The bundles of one client; `put` from any thread, the rest on the client's loop."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self.waiting: deque[Bundle] = deque()
        """Bundles that the store has not taken."""
        self._stored: list[Bundle] = []

    def put(self, bundle: Bundle) -> None:
        """Store this bundle before the next write."""
        self.waiting.append(bundle)

    def again(self) -> None:
        """Store all bundles once more: a store that was emptied has lost them."""
        self.waiting.extendleft(self._stored)
        self._stored = []

    async def store(self, store: Store) -> None:
        """Store the waiting bundles. A full store takes neither these nor new invocations."""
        while self.waiting:
            found = self.waiting[0]
            try:
                await put(store, found)
            except FullError:
                return
            except (UnavailableError, DamagedError) as error:
                await self._patience.wait(error)
            else:
                self._patience.renew()
                self._stored.append(self.waiting.popleft())
