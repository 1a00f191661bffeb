"""A driver without hosts: what it starts is accepted, and lies in the store."""

from collections.abc import Generator
from contextlib import contextmanager

from actors.client.client import Client
from actors.limits import Limits
from actors.requests import current
from journal.ids import new_id
from journal.redis.store import RedisStore


@contextmanager
def hostless(url: str, *, inbox_max: int) -> Generator[Client]:
    """Be the driver of a new namespace whose streams hold so many entries, and 1,000 bytes an entry."""
    namespace, limits = new_id(), Limits(inbox_max=inbox_max, payload_max=1_000)
    client = Client(lambda: RedisStore(url, namespace), sends_code=False, limits=limits)
    client.open()
    current.set_driver(client)
    try:
        yield client
    finally:
        current.set_driver(None)
        client.close()
