"""Standing: who waits for an invocation that needs help is told of it, also when the one in its way is an older one."""

import logging
import threading
from collections.abc import Iterator

import pytest
from hostless import hostless

import actors
from actors import Context, Policy, Retry, VirtualObject, handler
from actors.client.client import Client
from actors.client.slots import Slot
from actors.client.watch import Watch

SOON = 30.0


class Jammed(VirtualObject):
    @handler(policy=Policy(retry=Retry(max_attempts=1, on_exhausted="pause")))
    async def fail(self, ctx: Context) -> None:
        raise ValueError("of the past")

    @handler
    async def touch(self, ctx: Context) -> None:
        return None


@pytest.fixture
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[actors.Session]:
    with actors.init(hosts="local", directory=str(tmp_path_factory.mktemp("store"))) as session:
        yield session


def jammed(key: str) -> actors.Invocation[None]:
    ref = Jammed[key].fail.remote()
    while not ref.status().startswith("paused"):
        ref.accepted().result(SOON)
    return ref


def looked(client: Client, ids: list[str], caplog: pytest.LogCaptureFixture, looks: int = 2) -> list[str]:
    """Return what a watch says that has looked so often, while these are waited for."""
    slots = {id_: Slot(is_attached=True, waiting=(lambda: None,)) for id_ in ids}
    caplog.clear()

    async def look(store: object) -> None:
        watch = Watch(client._store, slots, threading.Lock())
        for _ in range(looks):
            await watch.look()

    with caplog.at_level(logging.WARNING, "actors"):
        client.call(look)
    return caplog.messages


def test_the_status_of_one_whose_key_is_held_names_the_holder_and_why(session: actors.Session) -> None:
    first, behind, free = jammed("status"), Jammed["status"].touch.remote(), Jammed["free"].touch.remote()
    behind.accepted().result(SOON)

    assert behind.status() == f"open: its key is held by {first.id}, {first.status()}"
    assert "ValueError: of the past" in behind.status()
    free.result(SOON)
    assert free.status() == "succeeded"


def test_who_waits_long_behind_a_paused_one_is_told_once_what_to_do(
    session: actors.Session, caplog: pytest.LogCaptureFixture
) -> None:
    assert session.client is not None
    first, behind = jammed("told"), Jammed["told"].touch.remote()
    behind.accepted().result(SOON)

    (said,) = looked(session.client, [behind.id], caplog, 4)

    assert said.startswith(f"{behind.id} waits: open: its key is held by {first.id}, paused: Jammed/told.fail")
    assert said.endswith(f"actors.attach({first.id!r}) has resume(), restart(), cancel() and kill()")
    first.cancel()
    behind.result(SOON)
    assert looked(session.client, [behind.id], caplog) == []


def test_who_attaches_to_a_paused_one_is_told_of_it(session: actors.Session, caplog: pytest.LogCaptureFixture) -> None:
    assert session.client is not None
    ref = jammed("attached")

    (said,) = looked(session.client, [ref.id], caplog)

    assert said.startswith(f"{ref.id} waits: paused: Jammed/attached.fail")
    assert f"actors.attach({ref.id!r})" in said


def test_nothing_is_said_of_what_is_waited_for_at_one_look_alone(
    session: actors.Session, caplog: pytest.LogCaptureFixture
) -> None:
    assert session.client is not None
    assert looked(session.client, [jammed("short").id], caplog, 1) == []


def test_who_waits_where_no_host_is_hears_of_it_once(valkey_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with hostless(valkey_url, inbox_max=10) as client:
        ref = Jammed["alone"].touch.remote()
        ref.accepted().result(SOON)

        (said,) = looked(client, [ref.id], caplog, 4)

    assert said == f"{ref.id} waits, and no host is there to execute it: start some, init(hosts=...)"
