"""Fixtures that every test may ask for: one real server of each kind for the whole session, synced at every write."""

from collections.abc import Iterator

import pytest
from servers import Server, redis_binary, valkey_binary


@pytest.fixture(scope="session")
def valkey_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    server = Server(valkey_binary(), tmp_path_factory.mktemp("valkey"))
    yield server.url
    server.kill()


@pytest.fixture(scope="session")
def redis7_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    binary = redis_binary()
    if binary is None:
        pytest.skip("there is no redis-server here")
    server = Server(binary, tmp_path_factory.mktemp("redis7"))
    yield server.url
    server.kill()
