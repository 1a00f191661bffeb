"""Losses: a store that went back, was emptied, or lacks a key; programs and hosts notice, say it, and go on."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from servers import Server, ask, valkey_binary

import actors
from actors import Context, DurableError, VirtualObject, handler, state
from actors.host import timekeeper
from journal import clock
from journal.embedded import guard
from journal.ids import new_id

SOON = 20.0


class Lossy(VirtualObject):
    count: int = state(0)

    @handler
    async def add(self, ctx: Context) -> int:
        self.count += 1
        return self.count

    @handler
    async def wait(self, ctx: Context) -> str:
        return await ctx.signal("go", str)

    @handler
    async def sleep(self, ctx: Context, seconds: float) -> str:
        await ctx.sleep(seconds)
        return "slept"

    @handler(policy=actors.Policy(retry=actors.Retry(initial=2.0)))
    async def stumble(self, ctx: Context) -> int:
        await ctx.run("once", lambda: 1)
        if ctx.attempt == 1:
            raise ValueError("the first attempt")
        return ctx.attempt

    @handler
    async def relay(self, ctx: Context, key: str) -> str:
        return await Lossy[key].wait.remote()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(valkey_binary(), tmp_path_factory.mktemp("losses"))
    yield server
    server.kill()


@pytest.fixture(params=["in memory", "asleep"])
def session(request: pytest.FixtureRequest, server: Server) -> Iterator[actors.Session]:
    policy = actors.Policy(idle_timeout=0) if request.param == "asleep" else None
    with actors.init(redis=server.url, namespace=new_id(), hosts="local", policy=policy) as session:
        assert Lossy["warm"].add.remote().result(SOON) == 1
        yield session


def tell(server: Server, *words: str) -> None:
    """Send a command past every program."""
    answer = ask(server.url, " ".join(words))
    assert not answer or not answer[0].startswith(b"-"), answer


def wait_until(is_so: Callable[[], bool]) -> None:
    until = clock.boot_seconds() + SOON
    while not is_so():
        assert clock.boot_seconds() < until
        guard.pause()


def waiting(key: str, status: str = "") -> actors.Invocation[str]:
    ref = Lossy[key].wait.remote()
    ref.accepted().result(SOON)
    wait_until(lambda: Lossy["probe"].add.remote().result(SOON) > 0 and ref.status() in ("open", "asleep"))
    return ref


def lost(ref: actors.Invocation[str]) -> bool:
    """Whether who waits is told, within seconds, that it is lost."""
    try:
        ref.result(SOON)
    except TimeoutError:
        return False
    except DurableError:
        return True
    return False


def works() -> None:
    """Whatever was lost: what comes now is done, in each shard."""
    refs = [Lossy[f"k{number}"].add.remote() for number in range(50)]
    for ref in refs:
        assert ref.result(SOON) >= 1


@pytest.mark.slow_after_first
def test_an_emptied_store_is_noticed_and_used_again(
    session: actors.Session, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Issue 15.31: who waited was told nothing, for ever."""
    refs = [waiting("a"), waiting("b")]
    relayed = Lossy["r"].relay.remote("c")
    relayed.accepted().result(SOON)

    tell(server, "FLUSHALL")

    assert all(lost(ref) for ref in [*refs, relayed])
    works()
    assert Lossy["warm"].add.remote().result(SOON) == 1, "its state is lost as well"
    assert "the store has lost something: it has forgotten this program" in caplog.text


@pytest.mark.slow_after_first
@pytest.mark.parametrize("key", ["writer", "replies"])
def test_a_lost_writer_is_noticed_by_who_merely_waits(session: actors.Session, server: Server, key: str) -> None:
    """Issue 15.31: without its reply stream a program that sends nothing was never told."""
    assert session.client is not None
    ref, former = waiting("a"), session.client._submits.writer

    tell(server, "DEL", f"{session.settings.namespace}:{key}:{former}")
    wait_until(lambda: session.client is not None and session.client._submits.writer != former)
    ref.signal("go", "on")

    assert ref.result(SOON) == "on"
    works()


@pytest.mark.slow_after_first
@pytest.mark.parametrize("name", ["ids", "timers", "head", "lease", "journal", "events", "done", "held"])
def test_a_key_of_a_shard_that_somebody_deletes_holds_nobody(
    session: actors.Session, server: Server, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Issues 15.31 and 16.4: it is said, what is there goes on, and nothing is damaged."""
    ref = waiting("a")
    shard = ref.id.rpartition("-")[2]

    tell(server, "DEL", f"{session.settings.namespace}:{shard}:{name}")
    if name in ("ids", "timers", "head"):
        wait_until(lambda: f"shard {shard}: the store has lost" in caplog.text)
    ref.signal("go", "on")

    assert ref.result(SOON) == "on"
    works()
    assert "damaged" not in caplog.text
    assert "half way" not in caplog.text


def test_timers_that_somebody_deletes_are_set_again(
    session: actors.Session, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Issues 15.31 and 16.4: what slept, backed off or was delayed never went on."""
    began = clock.boot_seconds()
    refs = [
        Lossy["a"].sleep.remote(3),
        Lossy["b"].stumble.remote(),
        Lossy["c"].sleep.options(delay="3s").remote(0),
    ]
    wait_until(lambda: refs[2].status() == "asleep" and all(ref.status() for ref in refs))
    for ref in refs:
        tell(server, "DEL", f"{session.settings.namespace}:{ref.id.rpartition('-')[2]}:timers")

    assert [ref.result(SOON) for ref in refs] == ["slept", 2, "slept"]
    assert clock.boot_seconds() - began >= 2.9
    assert "its timers are gone, and are set again" in caplog.text


@pytest.mark.slow_after_first
def test_a_deleted_inbox_is_said_and_who_waits_is_told(
    session: actors.Session, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Issue 15.31."""
    ref = waiting("a")
    was_asleep = ref.status() == "asleep"
    shard = ref.id.rpartition("-")[2]

    tell(server, "DEL", f"{session.settings.namespace}:{shard}:inbox")

    wait_until(lambda: f"shard {shard}: the store has lost" in caplog.text)
    if was_asleep:
        ref.signal("go", "on")
        assert ref.result(SOON) == "on"
    else:
        assert lost(ref)
    works()


def test_an_invocation_asleep_that_somebody_deletes_is_said_and_frees_its_key(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    """Issue 16.4."""
    with actors.init(
        redis=server.url, namespace=new_id(), hosts="local", policy=actors.Policy(idle_timeout=0)
    ) as session:
        ref = waiting("a")
        wait_until(lambda: ref.status() == "asleep")
        shard = ref.id.rpartition("-")[2]
        behind = Lossy["a"].add.remote()

        tell(server, "DEL", f"{session.settings.namespace}:{shard}:asleep:{ref.id}")
        ref.signal("go", "on")

        assert lost(ref)
        assert behind.result(SOON) == 1
        works()
        assert ref.id in caplog.text


def test_an_invocation_asleep_that_is_gone_is_noticed_by_looking(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Issue 16.4: nothing came for it, so nobody noticed."""
    monkeypatch.setattr(timekeeper, "TRIM_EVERY", 0.2)
    with actors.init(
        redis=server.url, namespace=new_id(), hosts="local", policy=actors.Policy(idle_timeout=0)
    ) as session:
        ref = waiting("a")
        wait_until(lambda: ref.status() == "asleep")

        tell(server, "DEL", f"{session.settings.namespace}:{ref.id.rpartition('-')[2]}:asleep:{ref.id}")

        assert lost(ref)
        works()
        assert ref.id in caplog.text


def newest(directory: Path) -> Path:
    return max(directory.glob("appendonlydir/*.incr.aof"), key=lambda path: path.stat().st_mtime)


@pytest.mark.slow_after_first
@pytest.mark.parametrize("cut", ["submit", "commit"])
def test_a_file_that_was_cut_costs_what_was_in_it_and_no_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cut: str
) -> None:
    """Issue 15.31: a shard was damaged for good, where a handler had begun."""
    server = Server(valkey_binary(), tmp_path)
    try:
        with actors.init(redis=server.url, hosts="local") as session:
            assert session.client is not None
            refs, former = [waiting("a")], session.client._submits.writer
            size = newest(tmp_path).stat().st_size
            if cut == "submit":
                refs.append(waiting("b"))
            else:
                refs[0].signal("go", "on")
                assert refs[0].result(SOON) == "on"
                refs = []
            server.kill()
            os.truncate(newest(tmp_path), size)
            server.start()
            wait_until(lambda: session.client is not None and session.client._submits.writer != former)

            for ref in refs[1:]:
                assert lost(ref)
            for ref in refs[:1]:
                ref.signal("go", "on")
                assert ref.result(SOON) == "on"
            works()
            assert "the store has lost" in caplog.text
            assert "damaged" not in caplog.text
    finally:
        server.kill()
