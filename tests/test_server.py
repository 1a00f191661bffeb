"""One server for all programs of a directory, as real processes; conditions are polled, never assumed after a time."""

import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self
from urllib.parse import unquote

import pytest

from journal.clock import boot_seconds
from journal.embedded import guard
from journal.embedded.server import EmbeddedServer
from journal.errors import UnavailableError, UsageError

ROOT = Path(__file__).parents[1]

PROGRAM = """
import sys
from pathlib import Path
from journal.embedded.server import EmbeddedServer
server = EmbeddedServer.open(Path(sys.argv[1]), keep=sys.argv[2] == "keep")
print(server.url, server.pid, flush=True)
sys.stdin.read()
"""


class Program:
    """A program that uses the server until it is told to end, or killed."""

    def __init__(self, directory: Path, *, keep: bool = False) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(directory), "keep" if keep else "-"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        self.url = ""
        self.server = 0

    def opened(self) -> Self:
        assert self.process.stdout is not None
        self.url, server = self.process.stdout.readline().split()
        self.server = int(server)
        return self

    def end(self) -> None:
        self.process.communicate()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


def until(condition: Callable[[], bool]) -> None:
    deadline = boot_seconds() + 30
    while not condition():
        assert boot_seconds() < deadline, "it did not come to that"
        guard.pause()


def is_free(path: Path) -> bool:
    if not path.exists():
        return True
    descriptor = guard.opened(str(path))
    try:
        return guard.locked(descriptor)
    finally:
        os.close(descriptor)


def stopped(directory: Path) -> bool:
    """Tell whether neither server nor guard lives; the kernel keeps both locks as long as they do."""
    return is_free(directory / "lock") and is_free(directory / "guard")


def path_in(url: str) -> str:
    return unquote(url.removeprefix("unix://"))


def ask(url: str, command: str) -> list[bytes]:
    return guard.talk(path_in(url), command.encode() + b"\r\n", 1)[0]


def guard_pid(directory: Path) -> int:
    return int((directory / "guard").read_text())


def kill_guard(directory: Path) -> None:
    pid = guard_pid(directory)
    os.kill(pid, signal.SIGKILL)
    until(lambda: is_free(directory / "guard") or guard_pid(directory) != pid)


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory whose server has stopped when the test is over: every test shows that nothing is left behind."""
    place = tmp_path / "a place" / ".perdure"
    yield place
    until(lambda: stopped(place))


@pytest.fixture
def start(directory: Path) -> Iterator[Callable[..., Program]]:
    programs: list[Program] = []

    def started(*, keep: bool = False) -> Program:
        programs.append(Program(directory, keep=keep))
        return programs[-1]

    yield started
    for program in programs:
        program.kill()


def test_two_programs_share_one_server_and_the_last_one_stops_it(
    directory: Path, start: Callable[..., Program]
) -> None:
    one, two = start().opened(), start().opened()
    assert (one.url, one.server) == (two.url, two.server)
    one.end()
    assert ask(two.url, "SET k v") == [b"+OK"]
    assert not stopped(directory)
    two.end()
    until(lambda: stopped(directory))


def test_a_killed_last_program_stops_the_server(directory: Path, start: Callable[..., Program]) -> None:
    start().opened().kill()
    until(lambda: stopped(directory))


@pytest.mark.slow
def test_eight_programs_at_once_get_one_server(start: Callable[..., Program]) -> None:
    programs = [start() for _ in range(8)]
    assert len({(program.opened().url, program.server) for program in programs}) == 1


def test_the_next_program_finds_the_data_of_a_killed_server(directory: Path) -> None:
    program = Program(directory).opened()
    assert ask(program.url, "SET k v") == [b"+OK"]
    server, pid = program.server, guard_pid(directory)
    os.kill(pid, signal.SIGSTOP)  # else it would stop the server
    program.kill()  # else it would start both again
    for each in (pid, server):
        os.kill(each, signal.SIGKILL)
    until(lambda: is_free(directory / "guard"))
    until(lambda: is_free(directory / "lock"))
    with EmbeddedServer.open(directory) as again:
        assert again.pid != server
        assert ask(again.url, "GET k") == [b"v"]


def test_the_data_is_there_after_a_stop(directory: Path) -> None:
    with EmbeddedServer.open(directory) as server:
        ask(server.url, "SET k v")
    until(lambda: stopped(directory))
    with EmbeddedServer.open(directory) as again:
        assert ask(again.url, "GET k") == [b"v"]


def test_a_killed_server_comes_back_at_its_address_while_it_is_used(directory: Path) -> None:
    with EmbeddedServer.open(directory) as server:
        ask(server.url, "SET k v")
        os.kill(server.pid, signal.SIGKILL)
        until(lambda: guard.ask(str(directory)).pid not in (0, server.pid))
        assert ask(server.url, "GET k") == [b"v"]


@pytest.mark.slow
def test_guard_and_server_that_are_killed_together_come_back(directory: Path, start: Callable[..., Program]) -> None:
    """Issue 15.12, 16.6: nothing started them again until somebody called `init`; of four programs one starts them."""
    programs = [start().opened() for _ in range(4)]
    url, server = programs[0].url, programs[0].server
    assert ask(url, "SET k v") == [b"+OK"]
    for _ in range(3):
        for pid in (guard_pid(directory), server):
            os.kill(pid, signal.SIGKILL)
        until(lambda gone=server: guard.ask(str(directory)).pid not in (0, gone))
        server = guard.ask(str(directory)).pid
        assert ask(url, "GET k") == [b"v"]
    until(lambda: not is_free(directory / "guard"))
    for program in programs:
        program.end()  # the guard that came back stops the server, as ever


def test_a_disk_that_was_full_and_is_freed_takes_writes_again(directory: Path) -> None:
    """Issue 16.6: the guard died of ENOSPC. A limit on the size of files stands for the end of the disk."""
    with EmbeddedServer.open(directory) as server:
        ask(server.url, "SET k v")
        full = 20_000, resource.RLIM_INFINITY
        resource.prlimit(guard_pid(directory), resource.RLIMIT_FSIZE, full)  # and of the servers that it starts
        resource.prlimit(server.pid, resource.RLIMIT_FSIZE, full)
        with pytest.raises(OSError, match=r"ended|reset"):
            guard.talk(path_in(server.url), b"SET k %s\r\n" % (b"w" * 30_000), 1)
        until(lambda: guard.ask(str(directory)).pid not in (0, server.pid))
        again = guard.ask(str(directory)).pid
        kill_guard(directory)  # it might have ended by itself, of its own log
        resource.prlimit(again, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert ask(server.url, "SET k " + "w" * 30_000) == [b"+OK"]
        until(lambda: not is_free(directory / "guard"))


def test_programs_of_before_are_told_to_end_an_older_server(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 15.27: one that listens on a port, for anybody, is not gone on with."""
    monkeypatch.setattr("journal.embedded.server._START_SECONDS", 0.5)
    directory.mkdir(0o700, parents=True)
    (directory / "address").write_text("redis://127.0.0.1:6379/0\n")
    lock = guard.opened(str(directory / "lock"))
    assert guard.locked(lock)
    with pytest.raises(UnavailableError, match=r"started by an older version.*redis-cli -p PORT shutdown"):
        EmbeddedServer.open(directory)
    os.close(lock)


def test_a_server_whose_guard_was_killed_gets_another_one(directory: Path) -> None:
    with EmbeddedServer.open(directory) as server:
        kill_guard(directory)
        with EmbeddedServer.open(directory) as same:
            assert (same.url, same.pid) == (server.url, server.pid)
    until(lambda: stopped(directory))


def test_who_joins_while_the_server_stops_gets_one_that_lives(directory: Path) -> None:
    for number in range(12):
        with EmbeddedServer.open(directory) as server:
            assert ask(server.url, f"INCRBY n {number}") == [b":%d" % sum(range(number + 1))]


def test_who_joins_waits_while_a_guard_stops_the_server(directory: Path, start: Callable[..., Program]) -> None:
    EmbeddedServer.open(directory).close()
    until(lambda: stopped(directory))
    users = guard.opened(str(directory / "users"))
    assert guard.locked(users)  # as a guard does that is about to stop the server
    program = start()
    assert program.process.poll() is None
    assert is_free(directory / "guard")
    os.close(users)
    assert ask(program.opened().url, "PING") == [b"+PONG"]


@pytest.mark.slow
def test_a_kept_server_stays_until_somebody_stops_it(directory: Path, start: Callable[..., Program]) -> None:
    first, kept = start().opened(), start(keep=True).opened()
    kept.end()
    first.kill()
    until(lambda: is_free(directory / "guard"))
    assert ask(kept.url, "SET k v") == [b"+OK"]

    again = start().opened()
    assert again.server == kept.server
    again.end()
    until(lambda: is_free(directory / "guard"))
    assert ask(kept.url, "GET k") == [b"v"]

    os.kill(kept.server, signal.SIGTERM)
    until(lambda: stopped(directory))
    # The request was for that server, not for the next one.
    start().opened().end()
    until(lambda: stopped(directory))


def test_the_environment_can_ask_to_keep_it(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDURE_KEEP", "1")
    with EmbeddedServer.open(directory) as server:
        pass
    until(lambda: is_free(directory / "guard"))
    assert ask(server.url, "PING") == [b"+PONG"]
    os.kill(server.pid, signal.SIGTERM)


def test_closing_twice_is_closing_once(directory: Path) -> None:
    server = EmbeddedServer.open(directory)
    server.close()
    other = os.open("/dev/null", os.O_RDONLY)  # takes the number that was closed
    server.close()
    os.fstat(other)
    os.close(other)


def test_it_syncs_every_write_and_is_nobody_elses(directory: Path) -> None:
    with EmbeddedServer.open(directory) as server:
        settings = ask(server.url, "CONFIG GET append* no-appendfsync-on-rewrite save port maxmemory-policy")
        pairs = dict(zip(settings[::2], settings[1::2], strict=True))
        assert pairs[b"appendonly"] == b"yes"
        assert pairs[b"appendfsync"] == b"always"
        assert pairs[b"no-appendfsync-on-rewrite"] == b"no"
        assert pairs[b"save"] == b""
        assert pairs[b"port"] == b"0"
        assert pairs[b"maxmemory-policy"] == b"noeviction"
        for path in (directory, *directory.rglob("*")):
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


def test_it_is_not_in_the_session_of_the_program(directory: Path) -> None:
    with EmbeddedServer.open(directory) as server:
        assert os.getsid(0) not in {os.getsid(server.pid), os.getsid(guard_pid(directory))}


def test_what_a_program_executes_does_not_count_as_a_user(directory: Path) -> None:
    with EmbeddedServer.open(directory):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    until(lambda: stopped(directory))
    assert child.poll() is None
    child.communicate(b"\n")


def test_what_a_program_did_to_its_signals_does_not_reach_the_server(directory: Path) -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        EmbeddedServer.open(directory).close()
        until(lambda: stopped(directory))
        assert "did not shut down in time" not in (directory / guard.LOG).read_text()
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        signal.signal(signal.SIGCHLD, before)


def test_another_server_at_the_old_address_is_not_taken_for_ours(directory: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with EmbeddedServer.open(directory) as stranger:
        (other / "address").write_text(stranger.url)
        with EmbeddedServer.open(other) as ours:
            assert ours.url != stranger.url
            assert ours.pid != stranger.pid
        until(lambda: stopped(other))
        assert ask(stranger.url, "PING") == [b"+PONG"]


def test_a_directory_that_is_moved_takes_its_server_with_it(directory: Path) -> None:
    with EmbeddedServer.open(directory):
        directory.rename(directory.with_name("moved"))
    moved = directory.with_name("moved")
    until(lambda: stopped(moved))
    assert "last user" in (moved / guard.LOG).read_text()


def test_a_server_whose_directory_was_deleted_stops_with_its_last_user(directory: Path) -> None:
    with EmbeddedServer.open(directory):
        lock = guard.opened(str(directory / "lock"))
        shutil.rmtree(directory)
    until(lambda: guard.locked(lock))
    os.close(lock)


def test_a_server_that_cannot_start_shows_its_log(directory: Path) -> None:
    (directory / "appendonlydir").mkdir(parents=True)
    (directory / "appendonlydir" / "appendonly.aof.manifest").write_text("this is no manifest\n")
    with pytest.raises(UnavailableError, match=r"(?s)did not start.*manifest"):
        EmbeddedServer.open(directory)


def test_a_place_that_is_no_directory_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UsageError, match=r"cannot keep its data in .*Choose another place"):
            EmbeddedServer.open(place)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(0o500)
    with pytest.raises(UsageError, match="Permission denied"):
        EmbeddedServer.open(tmp_path / "locked")


def test_a_platform_without_a_server_is_refused_with_advice(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("platform.machine", lambda: "vax")
    with pytest.raises(UsageError, match=r"no embedded server for \w+ on vax here.*init\(redis="):
        EmbeddedServer.open(tmp_path)


# --- its allocator ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing is loaded before a program's own libraries")
def test_it_runs_with_the_jemalloc_of_ray_and_keeps_all_through_a_rewrite(directory: Path) -> None:
    """The rewrite of the log is a fork of the server."""
    with EmbeddedServer.open(directory) as server:
        assert server.allocator == "jemalloc"
        ask(
            server.url,
            "EVAL \"for i = 1, 20000 do redis.call('SET', 'k' .. i, string.rep('v', i % 500)) end return 1\" 0",
        )
        ask(server.url, "BGREWRITEAOF")
        until(lambda: info(server.url, "aof_rewrite_in_progress") == "0" and info(server.url, "aof_rewrites") != "0")
        assert info(server.url, "aof_last_bgrewrite_status") == "ok"
        os.kill(server.pid, signal.SIGKILL)
        until(lambda: guard.ask(str(directory)).pid not in (0, server.pid))
        until(lambda: not ask(server.url, "DBSIZE")[0].startswith(b"-LOADING"))
        assert ask(server.url, "DBSIZE") == [b":20000"]
        assert server.allocator == "jemalloc"


@pytest.mark.skipif(sys.platform != "linux", reason="as above")
def test_it_starts_without_a_jemalloc_and_with_one_that_cannot_be_loaded(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "libjemalloc.so"
    broken.write_text("no library")
    for found in ([], [broken], [tmp_path / "a b" / "libjemalloc.so"]):
        monkeypatch.setattr("journal.embedded.server._jemallocs", found.__iter__)
        with EmbeddedServer.open(directory) as server:
            assert ask(server.url, "SET k v") == [b"+OK"]
            assert server.allocator == "libc"
        until(lambda: stopped(directory))


@pytest.mark.skipif(sys.platform != "linux", reason="as above")
def test_a_library_that_the_user_has_preloaded_stays_alone(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "libc.so.6")
    with EmbeddedServer.open(directory) as server:
        assert server.allocator == "libc"


def info(url: str, name: str) -> str:
    (text,) = ask(url, "INFO persistence")
    return dict(line.split(":", 1) for line in text.decode().splitlines() if ":" in line)[name]
