"""Fixtures that every test may ask for: one real server of each kind for the whole session, synced at every write."""

import signal
from collections.abc import Iterator

import pytest
from servers import Server, redis_binary, valkey_binary

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell starts what is to run in the background: the programs of the tests would ignore Ctrl-C as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
