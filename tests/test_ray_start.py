"""Ray's start under Ctrl-C: half started it would leave processes behind for a minute."""

import logging
import os
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

os.environ["RAY_AUTH_MODE"] = "disabled"  # before Ray is imported: it wants a token otherwise

from actors import UsageError
from actors.aside import hidden_by
from actors.ray import cluster as rays
from actors.ray.cluster import Cluster
from actors.ray.hosts import StoreAddress

ROOT = Path(__file__).resolve().parent.parent


class Starting:
    """A Ray that is interrupted in the middle of its start."""

    def __init__(self, interruptions: int) -> None:
        self._interruptions = interruptions
        self.begun = self.started = False
        self.thread = threading.current_thread()

    def is_initialized(self) -> bool:
        return False

    def init(self, **options: Any) -> None:
        self.begun, self.thread = True, threading.current_thread()
        if self.thread is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ray does, with a handler of its own
        for _ in range(self._interruptions):
            signal.raise_signal(signal.SIGINT)
        self.started = True

    def shutdown(self) -> None:
        self.begun = self.started = False


def interrupted(monkeypatch: pytest.MonkeyPatch, times: int) -> tuple[Cluster, Starting]:
    starting = Starting(times)
    monkeypatch.setattr(rays, "api", starting)
    cluster = Cluster(None, StoreAddress("redis://127.0.0.1:9/0", "n", "disk"), None)
    with pytest.raises(KeyboardInterrupt):
        cluster.open(1)
    return cluster, starting


def test_ctrl_c_ends_a_program_when_its_ray_has_started_and_can_be_ended(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = signal.getsignal(signal.SIGINT)

    with caplog.at_level(logging.WARNING, "actors"):
        cluster, starting = interrupted(monkeypatch, 1)

    assert starting.started
    assert caplog.messages == ["interrupted while Ray starts: ending when it has started"]
    assert signal.getsignal(signal.SIGINT) is before
    cluster.close(keep_hosts=False)
    assert not starting.begun


@pytest.mark.parametrize("own", ["actors/__init__.py", "journal.py"])
def test_a_module_that_hides_ours_in_the_processes_of_ray_is_named_before_they_start(
    own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 15.45: `python scripts/program.py` finds ours; Ray's processes look where it was started, too."""
    path = tmp_path / own
    path.parent.mkdir(exist_ok=True)
    path.write_text("STARS = 5\n")
    monkeypatch.chdir(tmp_path)
    starting = Starting(0)
    monkeypatch.setattr(rays, "api", starting)
    with pytest.raises(UsageError, match=f"{path} hides the package '{own[:6]}.* start it in another directory"):
        Cluster(None, StoreAddress("redis://127.0.0.1:9/0", "n", "disk"), None).open(1)
    assert not starting.begun

    path.unlink()
    assert hidden_by([str(tmp_path), str(ROOT)]) == "", "a folder without modules hides nothing"


def test_a_second_ctrl_c_does_not_wait_for_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)

    _, starting = interrupted(monkeypatch, 2)

    assert starting.begun
    assert not starting.started
    assert signal.getsignal(signal.SIGINT) is before


def own_handler(_number: int, _frame: object) -> None: ...


@pytest.mark.parametrize("handler", [own_handler, signal.SIG_DFL])
@pytest.mark.parametrize("interruptions", [0, 1])
def test_the_programs_signal_handlers_are_put_back(
    monkeypatch: pytest.MonkeyPatch, handler: Any, interruptions: int
) -> None:
    """Issue 15.39: a web server that lost its handler of SIGTERM would end without its clean-up."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, handler)
    try:
        if interruptions:
            interrupted(monkeypatch, interruptions)
        else:
            monkeypatch.setattr(rays, "api", Starting(0))
            Cluster(None, StoreAddress("redis://127.0.0.1:9/0", "n", "disk"), None).join()
        assert signal.getsignal(signal.SIGTERM) is handler
        assert signal.getsignal(signal.SIGINT) is before[signal.SIGINT]
    finally:
        for number, found in before.items():
            signal.signal(number, found)


def test_a_ray_that_is_started_in_a_thread_outlives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 15.39: `async with init()` starts it off the loop; its processes end with the thread of their start."""
    starting = Starting(0)
    monkeypatch.setattr(rays, "api", starting)
    cluster = Cluster(None, StoreAddress("redis://127.0.0.1:9/0", "n", "disk"), None)

    caller = threading.Thread(target=cluster.join)
    caller.start()
    caller.join()

    assert starting.thread not in (caller, threading.main_thread())
    assert starting.thread.is_alive()
    cluster.close(keep_hosts=False)
    starting.thread.join(10)
    assert not starting.thread.is_alive()
