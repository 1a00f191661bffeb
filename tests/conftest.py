"""Fixtures that every test may ask for, and who runs what when the whole suite runs on several workers.

One real server of each kind for each worker, synced at every write.
"""

import os
import signal
import sys
from collections.abc import Generator, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Final, cast

import pytest
from servers import Server, redis_binary, valkey_binary
from xdist.scheduler import LoadScopeScheduling

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell starts what is to run in the background: the programs of the tests would ignore Ctrl-C as well.
    signal.signal(signal.SIGINT, signal.default_int_handler)

if sys.dont_write_bytecode:
    # As containers often have it: hundreds of processes of the tests, and each worker, would compile everything anew.
    sys.dont_write_bytecode = False
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

os.environ.setdefault("RAY_worker_niceness", "0")
"""Ray's processes are of the lowest priority otherwise: beside the other workers a host takes 30 s to start again."""

RAY = ("test_ray", "test_under_fire", "test_chaos")
PROCESSES = (
    *("test_promotion", "test_endings", "test_linearizability", "test_kill", "test_node_lost"),
    *("test_bench_growth", "test_bench"),
)
"""Files whose tests start many processes, or Ray, and whose faults have times: one after the other, on a worker each.

In this order: what bounds a time, or counts what is done in a moment, is not beside the start of a cluster.
"""
SPREAD = ("test_crash_everywhere", "test_programs", "test_semantics")
"""Files of long computations; each of their tests goes where there is time. Every other file stays on one worker."""


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """For the whole suite one worker more than cores, for many tests wait; a part of it begins sooner without."""
    is_whole = config.args_source is not pytest.Config.ArgsSource.ARGS and not config.option.keyword
    return min((os.cpu_count() or 1) + 1, 8) if is_whole and not config.option.collectonly else 0


class _ByNeed(LoadScopeScheduling):
    """Hands tests out by their groups: the mark `xdist_group` does not reach the controller with each pytest."""

    def _split_scope(self, nodeid: str) -> str:
        return _group(nodeid) or nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _ByNeed:
    """Return the scheduler of the whole suite."""
    return _ByNeed(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put first what has to run one after the other, and last what can be spread."""
    seen: set[tuple[Path, str]] = set()
    for item in items:
        if item.get_closest_marker("slow_after_first") is not None:
            test = item.path, item.name.partition("[")[0]
            if test in seen:
                item.add_marker(pytest.mark.slow)
            seen.add(test)
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: _turn(item.nodeid))


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable() -> Generator[None, Any, Any]:
    """Let reports reach the terminal whose texts hold halves of surrogate pairs, as some tests print and log."""
    return _encodable((yield))


def _encodable(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_encodable(key): _encodable(each) for key, each in cast("dict[Any, Any]", value).items()}
    if isinstance(value, list):
        return [_encodable(each) for each in cast("list[Any]", value)]
    if isinstance(value, tuple):
        return tuple(_encodable(each) for each in cast("tuple[Any, ...]", value))
    return value


def _group(nodeid: str) -> str:
    """Return the tests with which a test stays on one worker: its file's, as a rule; empty if it goes anywhere."""
    file = PurePosixPath(nodeid.partition("::")[0])
    found = [name for name, stems in _GROUPS.items() if file.stem in stems]
    return found[0] if found else str(file)


def _turn(nodeid: str) -> tuple[int, int]:
    """Return when a test is to run."""
    group, stem = _group(nodeid), PurePosixPath(nodeid.partition("::")[0]).stem
    return (0, _GROUPS[group].index(stem)) if group in ("ray", "processes") else (1 if group else 2, 0)


_GROUPS: Final = {"ray": RAY, "processes": PROCESSES, "": SPREAD}


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


@pytest.fixture(scope="session")
def own_ray() -> Iterator[None]:
    """A Ray of this process, which the files that need one share: each start costs 5 s of a core."""
    import ray

    api: Any = ray
    api.init("local", num_cpus=2, include_dashboard=False, logging_level=30, log_to_driver=False)
    yield
    api.shutdown()
