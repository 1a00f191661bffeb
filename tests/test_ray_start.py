"""Ray's start under Ctrl-C: half started it would leave processes behind for a minute."""

import logging
import os
import signal
from typing import Any

import pytest

os.environ["RAY_AUTH_MODE"] = "disabled"  # before Ray is imported: it wants a token otherwise

from actors import ray as rays
from actors.ray import Cluster
from actors.ray_hosts import Place


class Starting:
    """A Ray that is interrupted in the middle of its start."""

    def __init__(self, interruptions: int) -> None:
        self._interruptions = interruptions
        self.begun = self.started = False

    def is_initialized(self) -> bool:
        return False

    def init(self, **options: Any) -> None:
        self.begun = True
        for _ in range(self._interruptions):
            signal.raise_signal(signal.SIGINT)
        self.started = True

    def shutdown(self) -> None:
        self.begun = self.started = False


def interrupted(monkeypatch: pytest.MonkeyPatch, times: int) -> tuple[Cluster, Starting]:
    starting = Starting(times)
    monkeypatch.setattr(rays, "api", starting)
    cluster = Cluster(None, Place("redis://127.0.0.1:9/0", "n", "disk"), None)
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


def test_a_second_ctrl_c_does_not_wait_for_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGINT)

    _, starting = interrupted(monkeypatch, 2)

    assert starting.begun
    assert not starting.started
    assert signal.getsignal(signal.SIGINT) is before
