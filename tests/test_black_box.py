"""The black box: what ended a process is known to those that take over, and held back alone."""

import asyncio
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_semantics import Member, Simulation, mode, played

from actors import Context, Policy, TerminalError, VirtualObject, handler
from actors.activation import black_box
from actors.activation.black_box import ALONE_MAX, FORGOTTEN_AFTER, HELD_FOR, NAME, SLOT, BlackBox
from actors.client.watch import described
from actors.processes import this_process
from journal.clock import wall_ms

__all__ = ["mode"]

ROOT = Path(__file__).resolve().parent.parent
DIES = """
import os, signal, sys
from pathlib import Path
from actors.activation.black_box import BlackBox

box = BlackBox(Path(sys.argv[1]))
box.runs("before-1")
box.rests()
for step in ("ended-1:0", "step-1:3", "step-2:0"):
    box.begins(step)
box.ends("ended-1:0")
box.runs("handler-1")
if sys.argv[2] == "close":
    box.close()
elif sys.argv[2] == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
os._exit(1)
"""


def ended(directory: Path, how: str) -> None:
    subprocess.run([sys.executable, "-c", DIES, str(directory), how], cwd=ROOT, check=False, timeout=60)


@pytest.mark.slow
def test_what_a_process_executed_as_it_ended_is_held_back_while_no_other_host_is_left(tmp_path: Path) -> None:
    """Issue 15.30: however it ended; what it did not execute any more is not."""
    boxes = tmp_path / "boxes"
    ended(boxes, "kill")
    box = BlackBox(boxes)
    box.look()
    assert not box.holds("handler-1"), "a host that never had company has nobody to wait for"
    box.is_left_alone = lambda: True
    assert [id_ for id_ in ("handler-1", "step-1", "step-2") if box.holds(id_)] == ["handler-1", "step-1", "step-2"]
    assert not any(box.holds(id_) for id_ in ("before-1", "ended-1", "another-1", ""))
    box.is_left_alone = lambda: False
    assert not box.holds("handler-1")

    ended(boxes, "exit")
    ended(boxes, "close")
    box.look()
    assert box._suspects["handler-1"] == 2
    assert box.holds("handler-1"), "that has ended two processes waits also in company"
    box.close()

    for path in boxes.iterdir():
        path.rename(path.with_suffix(f".{wall_ms() // 1000 - FORGOTTEN_AFTER - 1}"))
    box = BlackBox(boxes)
    box.look()
    assert not box.holds("handler-1")
    assert len(list(boxes.iterdir())) == 1
    box.close()


def test_what_is_held_back_for_want_of_another_host_waits_no_longer_than_its_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 15.30: of a fleet that is reduced for good; after each further death it waits anew."""
    now, alone = [1_000.0], [True]
    monkeypatch.setattr(black_box, "boot_seconds", lambda: now[0])
    box = BlackBox(tmp_path / "boxes")
    box.is_left_alone = lambda: alone[0]
    for count in (1, 2, 9):
        box._suspects["a-1"] = count
        assert box.holds("a-1")
        now[0] += ALONE_MAX - 0.1
        assert box.holds("a-1")
        assert list(box.held()) == ["a-1"]
        now[0] += 0.1
        assert not box.holds("a-1")
        assert box.held() == {}
    box._suspects["b-1"] = 1
    assert box.holds("b-1")
    assert box.held() == {"b-1": ANY_HOST.format(ALONE_MAX)}
    alone[0] = False
    assert not box.holds("b-1"), "another host is there again"
    for count, pause in ((2, 2.0), (3, 4.0), (7, 60.0), (1_000_000, 60.0)):
        box._suspects["c-1"] = count
        assert box.holds("c-1")
        now[0] += pause - 0.1
        assert box.holds("c-1")
        assert f"{count} processes have ended" in box.held()["c-1"]
        now[0] += 0.1
        assert not box.holds("c-1")
    assert box.holds("d-1") is False
    box._suspects["e-1"], alone[0] = 1, True
    assert box.holds("e-1")
    now[0] += HELD_FOR
    assert box.held() == {}, "nobody asks for it any more"
    box.close()


def test_a_look_ends_at_a_link_that_leads_nowhere_and_where_the_directory_is_gone(tmp_path: Path) -> None:
    """A host looks as it starts and as it takes a shard over: neither may wait for ever or fail."""
    boxes = tmp_path / "boxes"
    ended(boxes, "kill")
    (boxes / "nowhere").symlink_to(tmp_path / "none")
    box = BlackBox(boxes)
    box.look()
    assert box._suspects["handler-1"] == 1
    shutil.rmtree(boxes)
    box.look()
    assert not box.holds("handler-1")
    box.close()


LOOKS = """
import sys
from pathlib import Path
from actors.activation.black_box import BlackBox

box = BlackBox(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
box.look()
print(len(box._suspects))
box.close()
"""


@pytest.mark.slow
def test_hosts_that_look_at_once_all_see_what_each_process_executed(tmp_path: Path) -> None:
    """The first to see a file renames it: the others missed what it named, and were ended by it."""
    boxes, ended_processes = tmp_path / "boxes", 300
    boxes.mkdir(mode=0o700)
    name = f"{this_process().partition(' ')[0]} 1 0".encode()
    for number in range(ended_processes):
        slots = f"suspect-{number}".encode().ljust(SLOT, b"\0")
        (boxes / f"{number:016x}").write_bytes(name.ljust(NAME, b"\0") + slots)
    command = [sys.executable, "-c", LOOKS, str(boxes)]
    hosts = [subprocess.Popen(command, cwd=ROOT, stdin=-1, stdout=-1, text=True) for _ in range(4)]
    assert [host.stdout.readline() for host in hosts if host.stdout] == ["ready\n"] * 4
    for host in hosts:
        assert host.stdin is not None
        host.stdin.write("\n")
        host.stdin.flush()
    assert [host.communicate(timeout=60)[0] for host in hosts] == [f"{ended_processes}\n"] * 4


def test_a_directory_that_others_may_write_is_not_believed(tmp_path: Path) -> None:
    """Issue 15.30: nor is a file in it that is none of ours; then nothing is held back."""
    ended(tmp_path / "own", "kill")
    (tmp_path / "own" / "other").write_bytes(b"\xff" * 1_000)
    (tmp_path / "own" / "empty.x").touch()
    box = BlackBox(tmp_path / "own")
    box.look()
    assert box._suspects["handler-1"] == 1
    box.close()
    (tmp_path / "own").chmod(0o777)
    box = BlackBox(tmp_path / "own")
    box.runs("a")
    box.rests()
    box.look()
    assert not box.holds("handler-1")


ANY_HOST = (
    "the process that executed it has ended, and no other host than this one is left; it is tried again when there is "
    "another, at the latest after {:g} s"
)


class HeldBack(VirtualObject):
    @handler
    async def act(self, ctx: Context) -> str:
        return await ctx.run("act", lambda: ctx.key)


def test_one_that_is_held_back_holds_its_key_alone_and_can_be_killed(mode: Policy | None, tmp_path: Path) -> None:
    """Issue 15.30, promise 8; its status and who waits for it are told why."""
    box = BlackBox(tmp_path / "boxes")

    async def scenario(world: Simulation) -> None:
        world.members["a"] = member = Member(world, "a")
        member.host._box, box.is_left_alone = box, lambda: True
        for end in ("kill", "let go"):
            ref = HeldBack["a"].act.remote()
            box._suspects[ref.id] = 1
            behind = HeldBack["a"].act.remote()
            assert await HeldBack["b"].act.remote() == "b"
            await asyncio.sleep(20)
            assert await described(world.store, ref.id) == f"open: {ANY_HOST.format(ALONE_MAX)}"
            assert await world.status(behind) == "open"
            assert f"HeldBack/a.act ({ref.id}) waits: {ANY_HOST.format(ALONE_MAX)}" in world.program.notices
            if end == "kill":
                ref.kill()
                with pytest.raises(TerminalError):
                    await ref
            else:
                del box._suspects[ref.id]
                assert await ref == "a"
            assert await behind == "a"

    played(scenario, mode, [])
    box.close()
