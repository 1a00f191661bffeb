"""Ray: hosts as its actors, found by programs that start or join it; and how fast they recover.

One Ray of this program's own; other programs join it.
"""

import asyncio
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

os.environ["RAY_AUTH_MODE"] = "disabled"  # before Ray is imported: it wants a token otherwise

import ray
from ray.exceptions import ActorUnavailableError
from redis import Redis
from servers import DURABLE, Server, valkey_binary

import actors
from actors import Context, Service, TerminalError, VirtualObject, handler, state
from actors.ray.hosts import RAY_NAMESPACE, StoreAddress
from actors.session import HostStatus
from actors.values.values import note_sent
from journal.clock import boot_seconds
from journal.embedded import guard
from journal.keys import Keys

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
WITHIN_S = 30.0
RAY_ENDS_S = 120.0
"""A Ray takes 15 s to end on a machine with nothing else to do; how long is none of our promises."""
RAY_STARTS_S = 60.0
"""The same of the processes that it starts again."""
TAKEOVER_MAX_S = 2.0
"""Far below the lease of three seconds, far above what it takes on a machine with nothing else to do."""
api: Any = ray


class NoSeat(TerminalError):
    """Of the user's own."""


@dataclasses.dataclass
class Seat:
    row: int
    name: str = ""


def doubled(seat: Seat) -> Seat:
    return Seat(seat.row * 2, seat.name)


class RayHall(VirtualObject):
    seats: list[Seat] = state(default_factory=list)
    by_row: Any = state(None)

    @handler
    async def add(self, ctx: Context, seat: Seat) -> Seat:
        assert isinstance(seat, Seat)
        found = await ctx.run("double", doubled, seat)
        assert isinstance(found, Seat)
        self.seats = [*self.seats, found]
        self.by_row = {(each.row,): each for each in self.seats}  # no JSON: it is pickled
        return found

    @handler
    async def first(self, ctx: Context) -> Any:
        assert all(isinstance(each, Seat) for each in [*self.seats, *self.by_row.values()])
        return {self.seats[0].row: self.by_row}

    @handler
    async def fail(self, ctx: Context, seat: Seat) -> None:
        raise NoSeat(f"no seat {seat.row}", 410, {"row": str(seat.row)})


class RayTour(Service):
    @handler
    async def visit(self, ctx: Context, hall: str) -> str:
        try:
            await RayHall[hall].fail.remote(Seat(7))
        except NoSeat as error:
            return f"{type(error).__name__} {error.code} {error}"
        return "?"


class RayCount(VirtualObject):
    n: int = state(0)

    @handler
    async def add(self, ctx: Context) -> int:
        self.n += 1
        return self.n

    @handler
    async def place(self, ctx: Context) -> tuple[int, int]:
        return await ctx.run("place", lambda: (os.getpid(), sys.flags.hash_randomization))

    @handler
    async def squared(self, ctx: Context, x: int) -> int:
        return await ctx.run("square", squared, x)

    @handler
    async def awaited(self, ctx: Context, x: int) -> int:
        return await squared.remote(x)

    @handler
    async def got(self, ctx: Context, x: int) -> Any:
        ref = squared.remote(x)
        return api.get(ref) if x else api.wait([ref])

    @handler
    async def run_by_remote(self, ctx: Context, x: int) -> int:
        return await ctx.run("x", squared.remote, x)


@ray.remote(num_cpus=0)
def squared(x: int) -> int:
    return x * x


@pytest.fixture(scope="module")
def session(own_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[actors.Session]:
    session = actors.init(directory=tmp_path_factory.mktemp("ray"))
    yield session
    actors.shutdown()
    assert api.is_initialized(), "who has initialized Ray shuts it down"
    assert api.util.list_named_actors(all_namespaces=True) == [], "the hosts that init() started end with it"


@pytest.fixture
def hosts(session: actors.Session) -> list[HostStatus]:
    """Return two hosts that share the shards."""
    return until(
        lambda: [host for host in actors.status().hosts if len(host.shards) == 8], lambda found: len(found) == 2
    )


def until(ask: Callable[[], Any], is_over: Callable[[Any], bool], within_s: float = WITHIN_S) -> Any:
    deadline = boot_seconds() + within_s
    while not is_over(found := ask()):
        assert boot_seconds() < deadline, found
        guard.pause()
    return found


def keys_of(pid: int) -> list[str]:
    """Return keys whose objects live in this process."""
    keys = [f"k{number}" for number in range(32)]
    places = actors.get([RayCount[key].place.remote() for key in keys], timeout=WITHIN_S)
    return [key for key, place in zip(keys, places, strict=True) if place[0] == pid]


# --- code and values -------------------------------------------------------------------------------------------------


def test_objects_of_users_classes_go_both_ways_as_what_they_are(session: actors.Session) -> None:
    seat = RayHall["a"].add.remote(Seat(2, "x")).result(timeout=WITHIN_S)
    first = RayHall["a"].first.remote().result(timeout=WITHIN_S)

    assert seat == Seat(4, "x")
    assert first == {4: {(4,): Seat(4, "x")}}
    assert type(first[4][4,]) is Seat


def test_users_errors_reach_handlers_and_programs_as_what_they_are(session: actors.Session) -> None:
    with pytest.raises(NoSeat, match="no seat 3") as caught:
        RayHall["a"].fail.remote(Seat(3)).result(timeout=WITHIN_S)

    assert (caught.value.code, caught.value.metadata) == (410, {"row": "3"})
    assert RayTour.visit.remote("a").result(timeout=WITHIN_S) == "NoSeat 410 no seat 7"


def test_a_step_runs_on_the_cluster(session: actors.Session) -> None:
    assert RayCount["r"].squared.remote(7).result(timeout=WITHIN_S) == 49


def test_a_ray_task_that_a_handler_awaits_is_refused_with_what_works(session: actors.Session) -> None:
    """Issue 15.40: at once, not attempt by attempt."""
    with pytest.raises(TerminalError, match=r"await ctx\.run\(\"x\", f\.remote, x\)") as caught:
        RayCount["r"].awaited.remote(7).result(timeout=WITHIN_S)

    assert caught.value.code == 400
    assert RayCount["r"].run_by_remote.remote(7).result(timeout=WITHIN_S) == 49


@pytest.mark.parametrize(("x", "what"), [(7, "ray.get"), (0, "ray.wait")])
def test_what_waits_for_ray_is_refused_in_a_handler(session: actors.Session, x: int, what: str) -> None:
    """Issue 15.40: it would stop the host."""
    with pytest.raises(TerminalError, match=f"^{what} in a handler stops its whole host") as caught:
        RayCount["r"].got.remote(x).result(timeout=WITHIN_S)
    assert caught.value.code == 400


def test_hosts_hash_alike(session: actors.Session) -> None:
    assert RayCount["a"].place.remote().result(timeout=WITHIN_S)[1] == 0


PROGRAM = """
import dataclasses, sys
import actors
from actors import Context, TerminalError, VirtualObject, handler, state
import shelves

@dataclasses.dataclass
class Book:
    title: str
    other: object = None

class Lost(TerminalError):
    pass

LIMIT = 2

def checked(book):
    return Book(book.title.upper(), {1})

class Reader(VirtualObject):
    last: object = state(None)

    @handler
    async def read(self, ctx: Context, book: Book) -> Book:
        assert isinstance(book, Book)
        if len(book.title) > LIMIT:
            raise Lost(book.title, 404)
        label = await shelves.Shelf["s"].put.remote(shelves.Label("l"))
        assert isinstance(label, shelves.Label)
        self.last = checked(book)
        return self.last

if __name__ == "__main__":
    actors.init(sys.argv[1], address=sys.argv[2])
    book = Reader["a"].read.remote(Book("ab")).result(timeout=20)
    assert type(book) is Book and book == Book("AB", {1}), book
    assert type(shelves.Shelf["s"].put.remote(shelves.Label("x")).result(timeout=20)) is shelves.Label
    try:
        Reader["a"].read.remote(Book("abc")).result(timeout=20)
    except Lost as error:
        print(error.code)
    actors.shutdown()
"""

SHELVES = """
import dataclasses
from actors import Context, VirtualObject, handler

@dataclasses.dataclass
class Label:
    text: str

class Shelf(VirtualObject):
    @handler
    async def put(self, ctx: Context, label: Label) -> Label:
        assert isinstance(label, Label)
        return label
"""


def ran(*arguments: str, folder: Path = ROOT) -> str:
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def address() -> str:
    return api.get_runtime_context().gcs_address


def test_classes_of_a_script_and_of_its_modules_run_on_hosts_that_cannot_import_them(
    session: actors.Session, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "shelves.py").write_text(SHELVES)
    store: Any = Redis.from_url(session.url)
    before = {host.pid for host in actors.status().hosts}

    def digests() -> dict[bytes, bytes]:
        assert ran("program.py", session.url, address(), folder=tmp_path) == "404\n"
        return store.hgetall(Keys("default").code)

    first, again = digests(), digests()
    (tmp_path / "program.py").write_text(PROGRAM.replace("LIMIT = 2", "LIMIT = 2  # books"))
    changed = digests()
    store.close()

    assert first == again
    assert first[b"Reader"] != changed[b"Reader"]
    assert {host.pid for host in actors.status().hosts} == before, "a cluster that was joined keeps its hosts"


# --- references ------------------------------------------------------------------------------------------------------


def test_an_object_ref_works_with_get_wait_and_as_an_argument(session: actors.Session) -> None:
    @ray.remote(num_cpus=0)
    def row_of(seat: Any) -> int:
        return seat.row

    refs = [RayHall["o"].add.remote(Seat(row)).to_object_ref() for row in (1, 2)]
    ready, rest = api.wait(refs, num_returns=2, timeout=WITHIN_S)

    assert (len(ready), rest) == (2, [])
    assert ray.get(refs[0], timeout=WITHIN_S) == Seat(2)
    assert type(ray.get(refs[0])) is Seat
    assert ray.get(row_of.remote(refs[1]), timeout=WITHIN_S) == 4


class Unpicklable(type):
    """Its classes cannot be pickled."""

    def __reduce_ex__(cls, protocol: Any) -> Any:
        raise TypeError("no pickle of this class")


def test_a_class_that_cannot_be_pickled_holds_up_no_object_ref(session: actors.Session) -> None:
    """A program may have sent such a class before, and have nothing of it in the outcome."""
    kept = Unpicklable("Kept", (), {"lock": threading.Lock(), "__module__": __name__})
    note_sent(kept)
    assert ray.get(RayCount["unpicklable"].add.remote().to_object_ref(), timeout=WITHIN_S) == 1


def test_a_class_that_cannot_be_made_again_holds_up_no_failure(session: actors.Session) -> None:
    """Its pickle is good, and raises where it is read."""
    kept = type("NoSeat", (), {"__class__": property(lambda _: object), "__module__": __name__, "__qualname__": "No"})
    note_sent(kept)
    ref = RayHall["unmade"].fail.remote(Seat(6)).to_object_ref()
    with pytest.raises(NoSeat, match="no seat 6"):
        ray.get(ref, timeout=WITHIN_S)


async def test_an_object_ref_can_be_awaited(session: actors.Session) -> None:
    ref: Any = RayCount["o"].add.remote().to_object_ref()
    assert await asyncio.wait_for(ref, WITHIN_S) == 1


def test_an_object_ref_raises_the_error_itself(session: actors.Session) -> None:
    ref = RayHall["o"].fail.remote(Seat(5)).to_object_ref()
    with pytest.raises(NoSeat, match="no seat 5") as caught:
        ray.get(ref, timeout=WITHIN_S)
    assert caught.value.code == 410


# --- recovery --------------------------------------------------------------------------------------------------------


def test_survivors_take_over_at_once_when_a_host_is_killed_and_ray_restarts_it(hosts: list[HostStatus]) -> None:
    victim = hosts[0]
    keys = keys_of(victim.pid)
    before = actors.get([RayCount[key].add.remote() for key in keys], timeout=WITHIN_S)

    began = boot_seconds()
    os.kill(victim.pid, signal.SIGKILL)
    after = actors.get([RayCount[key].add.remote() for key in keys], timeout=WITHIN_S)
    taken = boot_seconds() - began

    assert after == [n + 1 for n in before]
    assert taken < TAKEOVER_MAX_S
    found = until(actors.status, lambda status: len([host for host in status.hosts if host.shards]) == 2).hosts
    assert {host.id for host in found} == {host.id for host in hosts}
    assert victim.pid not in {host.pid for host in found}


class RayPoison(VirtualObject):
    @handler
    async def die(self, ctx: Context) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


def test_one_that_kills_its_host_each_time_holds_no_other_shard_up(hosts: list[HostStatus]) -> None:
    """Issue 15.30: others wait for the restart of a host where none is left, and never for what has ended it."""
    keys = [f"k{number}" for number in range(32)]
    actors.get([RayCount[key].add.remote() for key in keys], timeout=WITHIN_S)
    seen, is_over, without = {host.pid for host in hosts}, threading.Event(), [0.0]

    def watch() -> None:
        last = boot_seconds()
        while not is_over.is_set():
            guard.pause()
            seen.update(host.pid for host in actors.status().hosts if host.shards)
            now = boot_seconds()
            if not any(Path(f"/proc/{pid}").exists() for pid in seen):
                without[0] += now - last
            last = now

    watching = threading.Thread(target=watch)
    watching.start()
    poison, begun, waits = RayPoison["a"].die.remote(), boot_seconds(), list[float]()
    ended = set[int]()
    try:
        while len(ended) < 2 or ended >= seen:
            assert boot_seconds() < begun + RAY_STARTS_S, (ended, seen)
            asked, before = boot_seconds(), without[0]
            actors.get([RayCount[key].add.remote() for key in keys], timeout=RAY_STARTS_S)
            waits.append(boot_seconds() - asked - (without[0] - before))
            ended = {pid for pid in seen if not Path(f"/proc/{pid}").exists()}
            guard.pause()
    finally:
        poison.kill()
        is_over.set()
        watching.join()
    with pytest.raises(TerminalError):
        poison.result(timeout=WITHIN_S)
    assert max(waits) < TAKEOVER_MAX_S


def test_it_recovers_without_the_supervisor_which_adopts_the_hosts_when_it_is_back(
    session: actors.Session, hosts: list[HostStatus]
) -> None:
    supervisor: Any = api.get_actor(
        f"supervisor:{StoreAddress(session.url, 'default', 'disk').name}", namespace=RAY_NAMESPACE
    )
    keys = keys_of(hosts[1].pid)

    api.kill(supervisor, no_restart=False)
    os.kill(hosts[1].pid, signal.SIGKILL)

    assert actors.get([RayCount[key].add.remote() for key in keys], timeout=WITHIN_S)
    abouts = until(lambda: asked(supervisor), bool)
    assert {about.id for about in abouts} == {host.id for host in hosts}
    assert hosts[0].pid in {about.pid for about in abouts}


def asked(supervisor: Any) -> list[Any]:
    try:
        return api.get(supervisor.ensure.remote(None), timeout=WITHIN_S)
    except ActorUnavailableError:
        return []


def test_hosts_go_on_when_guard_and_server_are_killed_together(session: actors.Session) -> None:
    """Issue 15.12: nothing started them again until somebody called `init`."""
    directory = Path(session.settings.directory)
    before = RayCount["g"].add.remote().result(timeout=WITHIN_S)
    server = guard.ask(str(directory)).pid
    for pid in (int((directory / "guard").read_text()), server):
        os.kill(pid, signal.SIGKILL)
    assert RayCount["g"].add.remote().result(timeout=WITHIN_S) == before + 1
    assert guard.ask(str(directory)).pid not in (0, server)


# --- other programs --------------------------------------------------------------------------------------------------


def test_up_starts_hosts_once_and_changes_their_number(session: actors.Session) -> None:
    def up(*more: str) -> list[str]:
        command = ("-m", "actors.ray", "up", "--redis", session.url, "--namespace", "up", "--address", address())
        return ran(*command, *more).splitlines()

    first = up("--hosts", "1", "--limit", "shards=8", "--limit", "waiting_max=100")
    assert len(first) == 1
    assert first[0].startswith("host ")
    assert up() == first
    two = up("--hosts", "2", "--limit", "waiting_max=200")
    assert (len(two), two[0]) == (2, first[0])
    supervisor = api.get_actor(f"supervisor:{StoreAddress(session.url, 'up', 'disk').name}", namespace=RAY_NAMESPACE)
    hosts = api.get(supervisor.ensure.remote(None))
    assert [host.limits.waiting_max for host in hosts] == [100, 200]
    asked = ("-c", "from actors.cli.main import main; main()")
    where = ("--redis", session.url, "--namespace", "up", "--address", address())
    known = json.loads(ran(*asked, "up", *where, "--json"))
    assert [f"host {host['id']}" for host in known] == [line.partition(" on ")[0] for line in two]
    assert ran(*asked, "down", *where) == "all hosts have ended\n"
    assert ran(*asked, "down", *where) == "there were no hosts on this cluster\n"


SECRETIVE = """
import sys
import ray
import actors
from actors import Context, TerminalError, VirtualObject, handler, state

class Refused(TerminalError):
    pass

class Safe(VirtualObject):
    kept: object = state(None)

    @handler
    async def put(self, ctx: Context, tags: set[str]) -> frozenset[str]:
        self.kept = await ctx.run("step", frozenset, tags)
        return self.kept

    @handler
    async def fail(self, ctx: Context, tags: set[str]) -> None:
        raise Refused("as said")

if __name__ == "__main__":
    with actors.init(address=sys.argv[1], namespace="secretive", hosts=1) as session:
        assert Safe["a"].put.remote({"x"}).result(timeout=30) == {"x"}
        assert ray.get(Safe["a"].put.remote({"y"}).to_object_ref()) == {"y"}
        try:
            Safe["a"].fail.remote({"x"}).result(timeout=30)
        except Refused:
            print("refused")
        print(repr(session._cluster._store), actors.status(), ray.util.list_named_actors(all_namespaces=True))
        sys.stdin.read()
"""


def test_hosts_get_the_secret_and_show_neither_it_nor_the_password(session: actors.Session, tmp_path: Path) -> None:
    """Issue 15.27 and 15.28: in no argument of a process, no name, no log of Ray's; pickles of hosts are signed."""
    secret, password = "the-secret-of-the-test", "the-password-of-the-test"
    (tmp_path / "program.py").write_text(SECRETIVE)
    (tmp_path / "data").mkdir()
    server = Server(valkey_binary(), tmp_path / "data", *DURABLE, "--requirepass", password)
    url = f"redis://:{password}@127.0.0.1:{server.port}/0"
    program = subprocess.Popen(
        [sys.executable, "program.py", address()],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PERDURE_REDIS": url, "PERDURE_SECRET": secret},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert program.stdout is not None
    said = program.stdout.readline() + program.stdout.readline()
    try:
        assert said.startswith("refused\n"), said + program.stdout.read()
        store: Any = Redis.from_url(url)
        assert [value[:2] for value in store.hvals(next(store.scan_iter("secretive:*:state:Safe/a")))] == [b"PS"]
        for line in Path("/proc").glob("[0-9]*/cmdline"):
            with suppress(OSError):
                said += line.read_text(errors="replace").replace(f"--requirepass\0{password}", "")
    finally:
        said += program.communicate()[0]
        supervisor = api.get_actor(f"supervisor:{StoreAddress(url, 'secretive', 'disk').name}", namespace=RAY_NAMESPACE)
        api.get(supervisor.leave.remote(), timeout=WITHIN_S)
        api.kill(supervisor)
        server.kill()
    logs = Path(api._private.worker._global_node.get_logs_dir_path())
    said += "".join(path.read_text(errors="replace") for path in logs.rglob("*") if path.is_file())
    assert secret not in said
    assert password not in said


OWN = """
import sys
import actors
from actors import Context, VirtualObject, handler

class Sleeper(VirtualObject):
    @handler
    async def sleep(self, ctx: Context) -> None:
        await ctx.sleep("10m")

if __name__ == "__main__":
    actors.init(hosts=1)
    ref = Sleeper["a"].sleep.remote()
    ref.accepted().result(timeout=20)
    print(len(actors.status().hosts), "waiting", flush=True)
    ref.result()
"""


class OwnRay:
    """A program with a Ray of its own, where somebody has left the address of another behind."""

    def __init__(self, folder: Path, short: str) -> None:
        folder.mkdir()
        (folder / "own.py").write_text(OWN)
        Path(short, "ray").mkdir(parents=True)
        Path(short, "ray", "ray_current_cluster").write_text("127.0.0.1:9")  # nobody listens there
        self._mark = f"PROGRAM_MARK={folder}"
        self.process = subprocess.Popen(
            [sys.executable, "own.py"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PROGRAM_MARK": str(folder), "RAY_TMPDIR": short},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def left(self, allowed: str) -> list[str]:
        """Return the processes of it that there are, but for those that may be."""
        found = [entry for entry in Path("/proc").iterdir() if entry.name.isdigit() and self._mark in environ(entry)]
        left = [f"{entry.name} {(entry / 'cmdline').read_text()[:200]}" for entry in found if entry.exists()]
        return [line for line in left if allowed not in line]


def test_a_program_with_a_ray_of_its_own_joins_no_other_and_leaves_no_process(tmp_path: Path) -> None:
    """One that Ctrl-C ends, and one that is killed; they start and end at once, for each takes a Ray's time."""
    # Ray's sockets lie below it: their paths are bounded. Agents of the killed one may write to it for a while.
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as short:
        ends = (signal.SIGINT, signal.SIGKILL)
        programs = {end: OwnRay(tmp_path / end.name, f"{short}/{end}") for end in ends}
        for program in programs.values():
            assert program.process.stdout is not None
            assert program.process.stdout.readline() == "1 waiting\n"
        for end, program in programs.items():
            program.process.send_signal(end)
        outputs = {end: program.process.communicate(timeout=RAY_ENDS_S)[0] for end, program in programs.items()}

        for end, output in outputs.items():
            assert output.count("Traceback") == (1 if end is signal.SIGINT else 0), output
            assert output == "" or output.rstrip().endswith("KeyboardInterrupt"), output
            # A killed Ray's agents try to report that for a minute, and then end as well.
            allowed = "Agent" if end is signal.SIGKILL else "nothing"
            until(partial(programs[end].left, allowed), lambda found: not found, RAY_ENDS_S)


def environ(entry: Path) -> list[str]:
    try:
        return (entry / "environ").read_text("utf-8", "replace").split("\0")
    except OSError:
        return []
