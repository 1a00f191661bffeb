"""Uploads: the code that a program has sent, and what of it the store has not taken yet.

Code is stored before what is started with it: a host that reads a message finds the class that it names.
"""

from collections import deque

from actors.backoff import Patience
from actors.code.bundles import Bundle
from actors.errors import DamagedError, FullError, UnavailableError
from actors.values import seal
from journal.store import Store


async def put(store: Store, bundle: Bundle) -> None:
    """Put a bundle into a store, sealed; one that is there stays, but is sealed anew where its secret is an old one."""
    where = "code", bundle.digest
    await store.put_code(bundle.digest, seal.sealed(bundle.data, where), bundle.types)
    if seal.is_used():
        kept = await store.code(bundle.digest)
        if kept is not None and (renewed := seal.renewed(kept, where)) != kept:
            await store.put_code(bundle.digest, renewed, (), instead_of=kept)


class Uploads:
    """The bundles of one client; `put` from any thread, the rest on the client's loop."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self.waiting: deque[Bundle] = deque()
        """What the store has not taken."""
        self._stored: list[Bundle] = []

    def put(self, bundle: Bundle) -> None:
        """Let this be stored before the next write."""
        self.waiting.append(bundle)

    def again(self) -> None:
        """Let all be stored once more: a store that was emptied has lost them."""
        self.waiting.extendleft(self._stored)
        self._stored = []

    async def store(self, store: Store) -> None:
        """Store what waits. A full store takes neither that nor what is started with it, but what frees memory."""
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
