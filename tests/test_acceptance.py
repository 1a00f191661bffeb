"""What `accepted()` says: that the store has a request on disk, and never so of one that it refused (promise 1)."""

import asyncio
from collections.abc import Iterator

import pytest
from hostless import hostless

from actors import Context, Invocation, VirtualObject, handler
from actors.client.client import Client
from actors.errors import OverloadedError, UnavailableError


class Mailbox(VirtualObject):
    @handler
    async def put(self, ctx: Context) -> None:
        pass


@pytest.fixture
def client(valkey_url: str) -> Iterator[Client]:
    """A client in a namespace without hosts, whose inboxes hold one message."""
    with hostless(valkey_url, inbox_max=1) as client:
        yield client


def test_a_refused_request_is_not_accepted(client: Client) -> None:
    first, sent, called = Mailbox["a"].put.send(), Mailbox["a"].put.send(), Mailbox["a"].put.remote()

    assert first.accepted().result(timeout=10) is None
    for refused in (sent, called):
        with pytest.raises(OverloadedError, match="inbox_max"):
            refused.accepted().result(timeout=10)
        with pytest.raises(OverloadedError, match="inbox_max"):
            asyncio.run(_accepted(refused))


def test_what_was_accepted_stays_so_when_its_outcome_is_not_known_here(client: Client) -> None:
    ref = Mailbox["a"].put.remote()
    ref.accepted().result(timeout=10)
    client.close()

    with pytest.raises(UnavailableError, match="shut down"):
        ref.result()
    assert ref.accepted().result(timeout=10) is None


async def _accepted(ref: Invocation[None]) -> None:
    await ref.accepted()
