"""Who may speak to the embedded server, and whom a program believes: issue 15.27.

Where a test needs another user, a child process becomes one (only root may); the rest runs for everybody.
"""

import asyncio
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote

import pytest

from journal.clock import boot_seconds
from journal.embedded import guard
from journal.embedded.server import EmbeddedServer
from journal.errors import UnavailableError, UsageError
from journal.redis.store import RedisStore

NOBODY = 65_534

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes another user")

TAKE = """
import os, socket, sys
os.setuid(int(sys.argv[2]))
path = sys.argv[1]
server = socket.socket(socket.AF_UNIX)
server.bind(path)
os.chmod(path, 0o777)
server.listen()
print("listening", flush=True)
while True:
    end, _ = server.accept()
    try:
        end.sendall(b"+PONG\\r\\n" * 9)
        print("received", end.recv(4096), flush=True)
    except OSError:
        print("received b''", flush=True)
    end.close()
"""

ENTER = """
import os, socket, sys
os.setgroups([])
os.setuid(int(sys.argv[2]))
found = []
for name in ("socket", "address", "valkey.log"):
    try:
        if name == "socket":
            socket.socket(socket.AF_UNIX).connect(sys.argv[1] + "/socket")
        else:
            open(sys.argv[1] + "/" + name, "rb").read()
    except PermissionError:
        continue
    found.append(name)
print(found)
"""


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that every user may enter, as the tests' own may not."""
    with tempfile.TemporaryDirectory() as name:
        os.chmod(name, 0o755)
        yield Path(name)


def stopped(directory: Path) -> None:
    deadline = boot_seconds() + 30
    for name in ("lock", "guard"):
        while True:
            assert boot_seconds() < deadline
            descriptor = guard.opened(str(directory / name))
            is_free = guard.locked(descriptor)
            os.close(descriptor)
            if is_free:
                break
            guard.pause()


@contextmanager
def impostor(path: Path, uid: int) -> Generator["subprocess.Popen[str]"]:
    """Listen at a path as another user."""
    child = subprocess.Popen([sys.executable, "-c", TAKE, str(path), str(uid)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        assert child.stdout.readline() == "listening\n"
        yield child
    finally:
        child.kill()
        child.communicate()


@needs_root
def test_another_user_can_neither_connect_nor_read(open_place: Path) -> None:
    """Issue 15.27: whoever could write to the store ran code in the program."""
    with EmbeddedServer.open(open_place / "data") as server:
        said = subprocess.run(
            [sys.executable, "-c", ENTER, str(open_place / "data"), str(NOBODY)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        assert said.stdout == "[]\n"
        assert "127.0.0.1" not in server.url
        pid = server.pid
        listening = subprocess.run(["ss", "-ltnp"], stdout=subprocess.PIPE, text=True, check=False).stdout
        assert f"pid={pid}," not in listening
    stopped(open_place / "data")


@needs_root
async def test_a_server_of_another_user_at_our_address_is_not_believed(open_place: Path) -> None:
    """Issue 15.27: nothing is sent to it, and nothing of what it says is read; an honest one at the path is."""
    os.chmod(open_place, 0o777)
    path = open_place / "socket"
    store = RedisStore(f"unix://{path}", is_ours=True)
    with impostor(path, NOBODY) as child:
        with pytest.raises(PermissionError, match="another user's process"):
            guard.talk(str(path), b"PING\r\n", 1)
        assert guard.ask(str(open_place)) == guard.Answer(guard.Health.GONE)
        with pytest.raises(UnavailableError, match="another user's process listens at"):
            await store.now_ms()
        assert child.stdout is not None
        assert [await asyncio.to_thread(child.stdout.readline) for _ in range(3)] == ["received b''\n"] * 3
    path.unlink()
    with impostor(path, 0), pytest.raises(UnavailableError, match=r"no Redis|closed|does not answer"):
        await store.now_ms()  # of our user: asked, though it is none
    await store.aclose()


def test_a_directory_that_others_may_write_is_refused_with_advice(tmp_path: Path) -> None:
    """Issue 15.27: what lies in it may be theirs."""
    for mode in (0o770, 0o707, 0o722, 0o777):
        os.chmod(tmp_path, mode)
        with pytest.raises(UsageError, match=r"other users may write to it .*chmod 700 .*init\(directory="):
            EmbeddedServer.open(tmp_path)
        assert list(tmp_path.iterdir()) == []
    os.chmod(tmp_path, 0o700)


@needs_root
def test_what_belongs_to_another_user_is_refused_with_advice(tmp_path: Path) -> None:
    """Issue 15.27: a directory, and a link that leads to one of ours."""
    (tmp_path / "theirs").mkdir(0o700)
    os.chown(tmp_path / "theirs", NOBODY, NOBODY)
    with pytest.raises(UsageError, match="it belongs to another user"):
        EmbeddedServer.open(tmp_path / "theirs")
    (tmp_path / "ours").mkdir(0o755)
    (tmp_path / "link").symlink_to("ours")
    os.lchown(tmp_path / "link", NOBODY, NOBODY)
    with pytest.raises(UsageError, match="a link that another user has made"):
        EmbeddedServer.open(tmp_path / "link")
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == 0o755


def test_a_directory_of_ours_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    """Issue 15.27: as a user makes one, or an older version used it; a link of our own is followed."""
    (tmp_path / "old").mkdir(0o755)
    (tmp_path / "old" / "address").write_text("redis://127.0.0.1:6379/0\n")
    (tmp_path / "link").symlink_to("old")
    with EmbeddedServer.open(tmp_path / "link") as server:
        assert stat.S_IMODE((tmp_path / "old").stat().st_mode) == 0o700
        assert (tmp_path / "old" / "address").read_text() == f"{server.url}\n"
    stopped(tmp_path / "old")


@pytest.mark.parametrize("how", [os.symlink, os.link])
@pytest.mark.parametrize("name", ["address.new", "address", "valkey.log", "users", "guard", "lock", "keep"])
def test_nothing_is_written_through_a_link(tmp_path: Path, name: str, how: "type") -> None:
    """Issue 15.27: `guard`, `address.new` and `valkey.log` were overwritten through links."""
    victim, directory = tmp_path / "victim", tmp_path / "data"
    victim.write_text("precious")
    directory.mkdir(0o700)
    how(victim, directory / name)
    said = ""
    try:
        with EmbeddedServer.open(directory, keep=name == "keep") as server:
            said = "made anew" if not (directory / name).is_symlink() else "followed"
            if name == "keep":
                os.kill(server.pid, signal.SIGTERM)
    except (UsageError, UnavailableError) as error:
        said = str(error)
    assert name in said or said == "made anew"
    assert victim.read_text() == "precious"
    if name not in ("lock", "guard"):
        stopped(directory)


def test_a_link_that_the_server_would_follow_is_refused(tmp_path: Path) -> None:
    """Issue 15.27: it opens its files by their names."""
    (tmp_path / "victims").mkdir()
    (tmp_path / "data").mkdir(0o700)
    (tmp_path / "data" / "appendonlydir").symlink_to(tmp_path / "victims")
    with pytest.raises(UnavailableError, match="link, which the server would follow"):
        EmbeddedServer.open(tmp_path / "data")
    assert list((tmp_path / "victims").iterdir()) == []
    stopped(tmp_path / "data")


def test_a_path_that_is_too_long_for_a_socket_is_none_for_data(tmp_path: Path) -> None:
    """Issue 15.27: the socket lies elsewhere, as private; the directory's copy does not take it over."""
    directory = tmp_path / ("long" * 30)
    with EmbeddedServer.open(directory) as server:
        path = Path(unquote(server.url.removeprefix("unix://")))
        assert path.parent.parent == Path(tempfile.gettempdir())
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with EmbeddedServer.open(directory) as same:
            assert (same.url, same.pid) == (server.url, server.pid)
        guard_pid = int((directory / "guard").read_text())
        os.kill(guard_pid, signal.SIGKILL)
        os.kill(server.pid, signal.SIGKILL)
        with EmbeddedServer.open(directory) as again:
            assert again.url == server.url
            assert again.pid != server.pid
        shutil.copytree(directory, tmp_path / ("copy" * 30), ignore=shutil.ignore_patterns("keep"))
        with EmbeddedServer.open(tmp_path / ("copy" * 30)) as other:
            assert other.url != server.url
            assert guard.ask(str(directory)).health is guard.Health.READY
    stopped(directory)
    stopped(tmp_path / ("copy" * 30))
    assert not path.parent.exists()


def test_whoever_listens_is_asked_for_its_user(tmp_path: Path) -> None:
    """Issue 15.27: the kernel says it, of one's own too."""
    with socket.socket(socket.AF_UNIX) as listening, socket.socket(socket.AF_UNIX) as end:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        end.connect(str(tmp_path / "s"))
        assert guard.is_ours(end)
