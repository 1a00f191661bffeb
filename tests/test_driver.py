"""Driver: init and shutdown of real programs, with a host of their own: what they start, refuse and leave behind."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import orjson
import pytest
from servers import free_port

import actors
from actors import Context, Policy, UnavailableError, UsageError, VirtualObject, handler, processes, state
from actors import session as driver
from actors.host.local import bury_ended
from journal.clock import boot_seconds
from journal.embedded import guard
from journal.memory.store import MemoryStore
from journal.redis.url import shown

ROOT = Path(__file__).resolve().parent.parent
WITHIN_S = 15.0

PROGRAM = """
import sys, threading
import actors
from actors import Context, VirtualObject, handler, state

class Waiter(VirtualObject):
    n: int = state(0)

    @handler
    async def add(self, ctx: Context) -> int:
        self.n += 1
        return self.n

    @handler
    async def sleep(self, ctx: Context) -> None:
        await ctx.sleep("10m")

    @handler
    async def hang(self, ctx: Context) -> None:
        await ctx.run("hang", threading.Event().wait)

    @handler
    async def gate(self, ctx: Context) -> str:
        return await ctx.signal("open", str)

if __name__ == "__main__":
    actors.init(hosts="local")
    what = sys.argv[1]
    ref = Waiter["a"].handle.remote(what)
    if what == "add":
        print(ref.result(timeout=10), flush=True)
        sys.exit()
    ref.accepted().result(timeout=10)
    Waiter["b"].add.remote().result(timeout=10)
    print("waiting", flush=True)
    ref.result()
"""

BEGINS = """
import actors
from program import Waiter

with actors.init(hosts="local"):
    refs = [Waiter["c"].gate.remote(), Waiter["c"].add.remote()]  # the second one is queued
    refs[1].accepted().result(timeout=10)
    Waiter["d"].add.schedule(cron="0 0 1 1 *")
    while Waiter["b"].add.remote().result(timeout=10) < 3:
        pass
    print(*(ref.id for ref in refs))
"""
HAS_NO_CLASS = """
import sys
import actors

with actors.init(hosts="local"):
    refs = [actors.attach(id) for id in sys.argv[1:]]
    refs[0].signal("open", "sesame").result(timeout=10)
    fired = actors.schedules()[0].trigger().result(timeout=10)
    print(len(actors.wait([*refs, actors.attach(fired)], num_returns=3, timeout=2)[1]), fired)
"""
GOES_ON = """
import sys
import actors
import program

with actors.init(hosts="local"):
    print(actors.get([actors.attach(id) for id in sys.argv[1:]], timeout=20))
"""
NAMESAKE = """
import actors
from actors import Context, VirtualObject, handler

def name():
    return NAME

class Namesake(VirtualObject):
    @handler
    async def whose(self, ctx: Context) -> str:
        return name()

if __name__ == "__main__":
    with actors.init(hosts="local"):
        print("connected", flush=True)
        input()
        refs = [Namesake[f"{name()}-{number}"].whose.remote() for number in range(40)]
        print(sorted(set(actors.get(refs, timeout=30))), flush=True)
        input()
"""


class Program:
    """A program of a user's, in a directory of its own; its processes are known by a variable that all inherit."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "program.py").write_text(PROGRAM)
        self._mark = f"PROGRAM_MARK={directory}"

    def start(self, what: str) -> subprocess.Popen[str]:
        name, _, value = self._mark.partition("=")
        return subprocess.Popen(
            [sys.executable, "program.py", what],
            cwd=self.directory,
            env={**os.environ, "PYTHONPATH": str(ROOT), name: value},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def ran(self, code: str, *arguments: str) -> str:
        """Run another program in the same directory; return what it prints."""
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            cwd=self.directory,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            check=False,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout + done.stderr

    def started(self, what: str) -> subprocess.Popen[str]:
        """Return a program that waits for its invocation."""
        process = self.start(what)
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        return process

    def left(self) -> list[int]:
        """Return the processes of this program that live."""
        found: list[int] = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError):
                if entry.name.isdigit() and self._mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
        return found

    def leaves_nothing(self) -> bool:
        deadline = boot_seconds() + WITHIN_S
        while self.left() and boot_seconds() < deadline:
            guard.pause()
        return not self.left()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    program = Program(tmp_path)
    yield program
    for pid in program.left():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


class DriverCount(VirtualObject):
    n: int = state(0)

    @handler
    async def add(self, ctx: Context, by: int = 1) -> int:
        self.n += by
        return self.n

    @handler
    async def init_inside(self, ctx: Context) -> None:
        actors.init(hosts="local")


@pytest.fixture
def session(tmp_path: Path) -> Iterator[actors.Session]:
    with actors.init(hosts="local", directory=tmp_path / "data") as session:
        yield session


# --- arguments -------------------------------------------------------------------------------------------------------


def test_the_same_arguments_give_the_same_session(session: actors.Session, tmp_path: Path) -> None:
    assert actors.init(hosts="local", directory=tmp_path / "data") is session


def test_other_arguments_are_refused_while_connected(session: actors.Session) -> None:
    with pytest.raises(UsageError, match=r"connected already, with .*call actors.shutdown\(\) before"):
        actors.init(hosts="local", directory="elsewhere")


def test_nothing_works_before_init_and_after_shutdown(tmp_path: Path) -> None:
    for call in (DriverCount["a"].add.remote, actors.status, lambda: actors.attach("1-0")):
        with pytest.raises(UsageError, match=r"call actors.init\(\) first"):
            call()
    with actors.init(hosts="local", directory=tmp_path):
        ref = DriverCount["a"].add.remote()
        assert ref.result(timeout=10) == 1
    with pytest.raises(UsageError, match=r"call actors.init\(\) first"):
        DriverCount["a"].add.remote()
    assert ref.result() == 1


def test_leaving_the_block_ends_its_own_session_alone(tmp_path: Path) -> None:
    with actors.init(hosts="local", directory=tmp_path):
        actors.shutdown()
        inner = actors.init(hosts="local", directory=tmp_path)
    assert actors.init(hosts="local", directory=tmp_path) is inner
    actors.shutdown()


def test_state_outlives_the_session(tmp_path: Path) -> None:
    for expected in (1, 2):
        with actors.init(hosts="local", directory=tmp_path):
            assert DriverCount["a"].add.remote().result(timeout=10) == expected


@pytest.mark.parametrize("hosts", ["two", -1, True, 1.5])
def test_hosts_is_a_number_or_local(hosts: int) -> None:
    with pytest.raises(UsageError, match='hosts is a number of Ray hosts, or "local"'):
        actors.init(hosts=hosts)


def test_an_address_and_local_hosts_contradict_each_other() -> None:
    with pytest.raises(UsageError, match="leave out the address"):
        actors.init(hosts="local", address="auto")


def test_the_environment_says_what_is_not_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PERDURE_HOSTS", "local")
    monkeypatch.setenv("PERDURE_NAMESPACE", "ours")
    monkeypatch.setenv("PERDURE_DURABILITY", "relaxed")
    with actors.init(directory=tmp_path) as session:
        assert (session.settings.namespace, session.settings.durability) == ("ours", "relaxed")
        assert actors.status().namespace == "ours"
    monkeypatch.setenv("PERDURE_DURABILITY", "quick")
    with pytest.raises(UsageError, match='durability is "disk" or "relaxed"'):
        actors.init(directory=tmp_path)


def test_a_store_that_does_not_answer_is_an_error_and_leaves_nothing_connected() -> None:
    with pytest.raises(UnavailableError):
        actors.init(f"redis://127.0.0.1:{free_port()}/0", hosts="local")
    with pytest.raises(UsageError, match=r"call actors.init\(\) first"):
        actors.status()


def test_a_policy_holds_for_every_class(tmp_path: Path) -> None:
    with actors.init(hosts="local", directory=tmp_path, policy=Policy(idle_timeout=0)) as session:
        assert session.settings.policy == Policy(idle_timeout=0)
        assert DriverCount["a"].add.remote().result(timeout=10) == 1


# --- where it is called ----------------------------------------------------------------------------------------------


async def test_init_works_where_an_event_loop_runs_as_in_a_notebook(tmp_path: Path) -> None:
    with actors.init(hosts="local", directory=tmp_path):
        assert await asyncio.wait_for(DriverCount["a"].add.remote(), 10) == 1
        assert len(actors.status().hosts) == 1


def test_a_handler_does_not_connect(session: actors.Session) -> None:
    with pytest.raises(actors.TerminalError, match=r"actors.init\(\) is for programs"):
        DriverCount["a"].init_inside.remote().result(timeout=10)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_is_not_connected_and_says_so(session: actors.Session, tmp_path: Path) -> None:
    ref = DriverCount["a"].add.remote()
    assert ref.result(timeout=10) == 1
    said = tmp_path / "said"
    pid = os.fork()
    if pid == 0:
        lines: list[str] = []
        for call in (DriverCount["a"].add.remote, actors.status, ref.result, ref.status):
            try:
                call()
            except UsageError as error:
                lines.append(str(error))
        said.write_text("\n".join(lines))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    lines = said.read_text().splitlines()
    assert len(lines) == 4
    assert all("call actors.init()" in line for line in lines)
    assert DriverCount["a"].add.remote().result(timeout=10) == 2


CONNECTS = """
import sys
import actors

with actors.init(sys.argv[1], hosts=0, namespace="connects"):
    counter = actors.object("DriverCount", "zero")
    print(counter.remote("add").result(timeout=20), len(actors.status().hosts), "ray" in sys.modules)
"""


def test_with_no_hosts_a_program_connects_without_ray_to_those_there_are(valkey_url: str) -> None:
    """Issue 15.47: it takes a moment, not the seconds of a Ray, and ends none of the hosts."""
    with actors.init(valkey_url, hosts="local", namespace="connects"):
        told = subprocess.run(
            [sys.executable, "-c", CONNECTS, valkey_url],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            text=True,
            check=True,
            timeout=60,
        )
        assert told.stdout == "1 1 False\n"
        assert DriverCount["zero"].add.remote().result(timeout=10) == 2


# --- what is asked ---------------------------------------------------------------------------------------------------


def test_status_names_hosts_shards_store_and_namespace(session: actors.Session) -> None:
    """Issue 15.46: also right after `init`."""
    status = actors.status()
    (host,) = status.hosts
    assert (host.pid, host.shards, host.lag) == (os.getpid(), tuple(range(16)), 0)
    assert (status.store, status.namespace, status.shards) == (session.url, "default", 16)


def test_a_password_is_not_shown() -> None:
    assert shown("rediss://user:secret@store:6380/2") == "rediss://store:6380/2"


def test_an_invocation_is_found_again_by_its_id(session: actors.Session) -> None:
    ref = DriverCount["a"].add.remote(5)
    assert ref.result(timeout=10) == 5
    assert actors.attach(ref.id).result(timeout=10) == 5


def test_tasks_are_made_of_invocations(session: actors.Session) -> None:
    """Issue 15.13: by each idiom that takes coroutines; each task waits by itself, and a cancel ends no other wait."""

    async def by_tasks() -> list[int]:
        ref, late = DriverCount["t"].add.remote(1), DriverCount["t"].add.options(delay="10m").remote(5)
        given_up, kept = asyncio.create_task(late, name="named"), asyncio.create_task(late)
        assert given_up.get_name() == "named"
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(each) for each in (ref, ref, ref.accepted(), DriverCount["t"].add.remote(2))]
        assert [task.result() for task in tasks] == [1, 1, None, 3]
        given_up.cancel()
        with pytest.raises(asyncio.CancelledError):
            await given_up
        assert not kept.done()
        assert late.status().startswith("asleep")
        await late.cancel()
        with pytest.raises(actors.Cancelled):
            await asyncio.wait_for(kept, 10)
        loop = asyncio.get_running_loop()
        there = await asyncio.to_thread(lambda: asyncio.run_coroutine_threadsafe(ref, loop).result(10))
        assert there == await asyncio.shield(ref) == await asyncio.wait_for(ref, 10) == 1
        return await asyncio.gather(ref, ref, *(task for task in asyncio.as_completed([ref])))

    assert asyncio.run(by_tasks()) == [1, 1, 1]
    assert asyncio.run(cast("Any", DriverCount["t"].add.remote(1))) == 4


def test_an_object_is_called_by_name(session: actors.Session) -> None:
    assert actors.object("DriverCount", "a").remote("add", by=3).result(timeout=10) == 3


def test_there_is_no_object_ref_without_ray(session: actors.Session) -> None:
    with pytest.raises(UnavailableError, match="no Ray in this program"):
        DriverCount["a"].add.remote().to_object_ref()


def test_importing_actors_imports_no_ray() -> None:
    told = subprocess.run(
        [sys.executable, "-c", "import sys, actors; print('ray' in sys.modules)"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert told.stdout == "False\n"


async def test_async_with_init_starts_and_ends_off_the_loop(valkey_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 15.39: as a web server's lifespan needs it; where it is not entered at once, init() starts in its line."""
    threads: list[threading.Thread] = []
    for name in ("open", "close"):
        method = getattr(driver.Session, name)

        def noted(session: driver.Session, method: Callable[[driver.Session], None] = method) -> None:
            threads.append(threading.current_thread())
            method(session)

        monkeypatch.setattr(driver.Session, name, noted)

    async with actors.init(valkey_url, hosts="local", namespace="entered") as session:
        assert actors.status().namespace == "entered"
        assert actors.init(valkey_url, hosts="local", namespace="entered") is session
        async with actors.init(valkey_url, hosts="local", namespace="entered") as again:
            assert again is session
        with pytest.raises(UsageError, match="nothing is connected"):
            actors.status()
    assert len(threads) == 2
    assert threading.main_thread() not in threads

    found = actors.init(valkey_url, hosts="local", namespace="entered")
    assert threads[2] is threading.main_thread()
    async with found as entered:
        assert entered is found
    assert len(threads) == 4

    with pytest.raises(UnavailableError):
        async with actors.init("redis://127.0.0.1:9/0", hosts="local"):
            pytest.fail("nothing answers there")
    with pytest.raises(UsageError, match="nothing is connected"):
        actors.status()


async def test_a_cancel_while_async_with_init_starts_leaves_nothing_open(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 15.39: as a web server that is stopped while it starts does it."""
    begun, may_end = asyncio.Event(), threading.Event()
    loop, started = asyncio.get_running_loop(), driver.Session.open

    def late(session: driver.Session) -> None:
        loop.call_soon_threadsafe(begun.set)
        may_end.wait(WITHIN_S)
        started(session)

    monkeypatch.setattr(driver.Session, "open", late)

    async def main() -> None:
        async with actors.init(valkey_url, hosts="local", namespace="entered"):
            pytest.fail("it was cancelled before")

    entering = asyncio.create_task(main())
    await begun.wait()
    entering.cancel()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await entering
    assert driver._slot.session is None


# --- ends of programs ------------------------------------------------------------------------------------------------


def test_a_program_that_ends_leaves_no_process_and_its_next_life_waits_for_nothing(program: Program) -> None:
    for expected in ("1\n", "2\n"):
        process = program.start("add")
        assert process.communicate(timeout=30)[0] == expected
        assert process.returncode == 0
    assert program.leaves_nothing()


@pytest.mark.slow
def test_a_program_without_the_class_ends_nothing_of_the_one_that_has_it(program: Program) -> None:
    """Its handlers refer to what no pickle can hold, so that its class lives in its own processes alone."""
    unsendable = PROGRAM.replace("class Waiter", "LOCK = threading.Lock()\n\nclass Waiter")
    unsendable = unsendable.replace("self.n += 1", "with LOCK:\n            self.n += 1")
    (program.directory / "program.py").write_text(unsendable)
    ids = program.ran(BEGINS).split()

    told = program.ran(HAS_NO_CLASS, *ids)
    count, fired = told.split()[:2]
    assert count == "3"
    where = (
        r'lives in a program that has not sent it \(hosts="local", the (process \d+ \(-c\))\), and the (process \d+)'
    )
    found = re.findall(rf"Waiter/c.gate \({ids[0]}\) waits: its class {where} \(-c\), which has the shard", told)
    assert len(found) == 1, "issue 15.45: once, with which process is which"
    assert found[0][0] != found[0][1]

    assert program.ran(GOES_ON, *ids, fired) == "['sesame', 1, 1]\n"


@pytest.mark.slow
def test_a_program_without_the_class_goes_on_with_the_code_of_the_one_that_has_it(program: Program) -> None:
    ids = program.ran(BEGINS).split()

    assert program.ran(HAS_NO_CLASS, *ids).split()[0] == "0"


def test_two_programs_with_one_class_name_get_the_answers_of_their_own_code(program: Program) -> None:
    """Issue 16.7: 19 of 40 keys were answered by the other program's class."""
    for name in ("one", "two"):
        (program.directory / f"{name}.py").write_text(NAMESAKE.replace("NAME", repr(name)))
    started = [
        subprocess.Popen(
            [sys.executable, f"{name}.py"],
            cwd=program.directory,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for name in ("one", "two")
    ]
    with started[0] as one, started[1] as two:
        for each in (one, two):
            assert each.stdout is not None
            assert each.stdout.readline() == "connected\n"
        for each in (one, two):
            assert each.stdin is not None
            each.stdin.write("go\n")
            each.stdin.flush()
        for each, name in ((one, "one"), (two, "two")):
            assert each.stdout is not None
            assert each.stdout.readline() == f"{[name]}\n"
        for each in (one, two):
            each.communicate("end\n", timeout=WITHIN_S)
    assert [one.returncode, two.returncode] == [0, 0]


def test_ctrl_c_ends_a_waiting_program_with_one_traceback_and_leaves_no_process(program: Program) -> None:
    process = program.started("sleep")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=WITHIN_S)
    assert process.returncode == -signal.SIGINT
    assert output.rstrip().endswith("KeyboardInterrupt")
    assert re.findall(r"^\w.*", output, re.MULTILINE) == ["Traceback (most recent call last):", "KeyboardInterrupt"]
    assert program.leaves_nothing()


@pytest.mark.slow
def test_a_second_ctrl_c_ends_the_wait_for_a_step_that_hangs(program: Program) -> None:
    process = program.started("hang")
    assert process.stdout is not None
    process.send_signal(signal.SIGINT)
    for line in process.stdout:
        if "Ctrl-C ends the wait" in line:
            break
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=WITHIN_S)
    assert output == ""
    assert program.leaves_nothing()


def test_a_program_that_is_killed_takes_its_server_along(program: Program) -> None:
    process = program.started("sleep")
    process.kill()
    process.communicate(timeout=WITHIN_S)
    assert program.leaves_nothing()


async def test_only_hosts_whose_processes_are_known_to_have_ended_are_buried() -> None:
    child = subprocess.Popen(  # noqa: ASYNC220  # it does nothing but wait
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE
    )
    me = processes.this_process()
    there = f"{processes._machine()} {child.pid} {processes._start(child.pid)}"
    store = MemoryStore(lambda: 0)
    for process in (me, there, f"elsewhere {child.pid} 1", ""):
        await store.renew(process or "older", {}, orjson.dumps({"process": process}))
    child.communicate(timeout=WITHIN_S)
    await asyncio.wait_for(processes.until_ended(there), WITHIN_S)

    assert await bury_ended(store) == 1
    assert (await store.membership(16)).hosts.keys() == {me, f"elsewhere {child.pid} 1", "older"}


async def test_a_number_that_was_given_to_another_process_proves_the_end_of_the_first() -> None:
    machine, pid, _ = processes.this_process().rsplit(" ", 2)
    before = f"{machine} {pid} 1"

    assert processes.has_ended(before)
    await asyncio.wait_for(processes.until_ended(before), WITHIN_S)
    assert processes.has_ended(processes.this_process()) is False
