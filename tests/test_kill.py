"""Real hosts, a real Valkey that syncs at every write, and SIGKILL: nothing is lost, nothing happens twice.

Promises 1 to 7, as seen from outside: by the effects that steps leave in a file, by the state of objects that note
every message, and by the replies of many programs.
"""

import asyncio
import itertools
import json
import subprocess
import threading
from collections import Counter as Tally
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from host_process import Fleet, Ledger, Line, Meter, Saga, connected, launch
from servers import Server, ask, valkey_binary

from actors.client.client import Client
from actors.errors import UnavailableError
from actors.requests import current
from journal.ids import new_id
from journal.keys import Keys

pytestmark = pytest.mark.slow

SAGA_KILLS = 50
SAGAS_AT_ONCE = 24
SAGA_KEYS = 10
LEDGERS = 4
APPENDS = 10_000
PROGRAMS, CLIENTS_EACH = 2, 32
COUNTERS = 10
INCREMENTS = 10_000


@pytest.fixture
def namespace() -> str:
    return new_id()


@pytest.fixture
def fleet(valkey_url: str, namespace: str, tmp_path: Path) -> Iterator[Fleet]:
    fleet = Fleet(valkey_url, namespace, tmp_path)
    fleet.start("a")
    fleet.start("b")
    yield fleet
    fleet.close()


@pytest.fixture
def client(valkey_url: str, namespace: str) -> Iterator[Client]:
    client = connected(valkey_url, namespace)
    current.set_driver(client)
    yield client
    current.set_driver(None)
    client.close()


def runs_by_step(fleet: Fleet) -> dict[str, list[str]]:
    """Return which runs each step had, in order."""
    runs: dict[str, list[str]] = {}
    for line in fleet.effects.read_text().splitlines():
        step_id, run = line.split(" ")
        runs.setdefault(step_id, []).append(run)
    return runs


def test_sagas_are_right_however_often_their_hosts_are_killed(fleet: Fleet, client: Client) -> None:
    """Promises 1 to 5 and 7: results, state and messages; and a recorded step never runs again."""
    results: dict[tuple[int, str], list[str | int]] = {}
    never = threading.Event()
    asyncio.run(
        _sagas(results, lambda: fleet.kill_at_random(1, SAGA_KILLS, (0.05, 1.0), never, done=lambda: len(results)))
    )
    assert fleet.kills == SAGA_KILLS
    runs = runs_by_step(fleet)
    _check_sagas(results)
    # What was recorded is what ran last: had it run again, there would be a later one.
    for result in results.values():
        assert [runs[step_id][-1] for step_id in _steps_of(runs, result)] == result[1:4]


def test_sagas_are_right_when_hosts_are_stopped_for_longer_than_their_leases(fleet: Fleet, client: Client) -> None:
    """Promise 6: a host that slept finds its shards taken; what it then asks for is refused."""

    def stop_each_twice() -> None:
        for name in "abab":
            fleet.stop_for(name, 4.0)

    results: dict[tuple[int, str], list[str | int]] = {}
    asyncio.run(_sagas(results, stop_each_twice))
    runs = runs_by_step(fleet)
    _check_sagas(results)
    # A host stopped in the instant before the effect may repeat one that was recorded meanwhile (promise 4).
    for result in results.values():
        assert all(run in runs[step] for run, step in zip(result[1:4], _steps_of(runs, result), strict=True))


async def _sagas(results: dict[tuple[int, str], list[str | int]], disturb: Callable[[], None]) -> None:
    """Run sagas, so many at once, until the disturbance is over; keep the results by key and name."""
    over = threading.Event()

    async def one_after_the_other(worker: int) -> None:
        turn = 0
        while not over.is_set():
            name = f"{worker}.{turn}"
            key, turn = (worker * 7 + turn) % SAGA_KEYS, turn + 1
            results[key, name] = await Saga[f"{key}"].run.remote(f"{turn % LEDGERS}", name)

    workers = [asyncio.ensure_future(one_after_the_other(worker)) for worker in range(SAGAS_AT_ONCE)]
    try:
        await asyncio.to_thread(disturb)
    finally:
        over.set()
    async with asyncio.timeout(60):
        await asyncio.gather(*workers)


def _check_sagas(results: dict[tuple[int, str], list[str | int]]) -> None:
    assert len(results) > 2 * SAGAS_AT_ONCE, "there was hardly any load"
    _check_stages(list(results))
    _check_ledgers({name: result[4] for (_, name), result in results.items()})
    assert all(result[5] == 3 for result in results.values()), "a replay saw state that was not as found"


def _steps_of(runs: dict[str, list[str]], result: list[str | int]) -> list[str]:
    """Return the ids of a saga's steps, in the order of its journal."""
    mine = [step_id for step_id in runs if step_id.startswith(f"{result[0]}:")]
    return sorted(mine, key=lambda step_id: int(step_id.rpartition(":")[2]))


def _check_stages(sagas: list[tuple[int, str]]) -> None:
    for key in {key for key, _ in sagas}:
        stages = Saga[f"{key}"].read.remote().result(timeout=30)
        names = [stage.removesuffix(" begins") for stage in stages[::2]]
        assert stages == [f"{name} {what}" for name in names for what in ("begins", "ends")], "not one at a time"
        assert sorted(names) == sorted(name for at, name in sagas if at == key)


def _check_ledgers(places: dict[str, str | int]) -> None:
    seen: dict[str, int] = {}
    noted: list[str] = []
    for number in range(LEDGERS):
        added, notes = Ledger[f"{number}"].read.remote().result(timeout=30)
        assert len(set(added)) == len(added), "a call was executed twice"
        assert seen.keys().isdisjoint(added)
        seen |= {name: position + 1 for position, name in enumerate(added)}
        noted += notes
    assert seen == places
    assert Tally(noted) == Tally(f"{name} {what}" for name in places for what in ("first", "second"))
    for name in places:
        assert noted.index(f"{name} first") < noted.index(f"{name} second")


def test_ten_thousand_messages_of_one_driver_to_one_key_arrive_in_order(fleet: Fleet, client: Client) -> None:
    """Promise 2, calls and sends mixed, while hosts are killed."""
    over = threading.Event()
    killing = threading.Thread(target=fleet.kill_at_random, args=(2, 100, (0.5, 1.5), over))
    killing.start()
    try:
        calls = {number: Line["line"].append.remote(number) for number in _appended()}
        for number, call in calls.items():
            assert call.result(timeout=60) == number + 1
        assert Line["line"].append.remote(APPENDS).result(timeout=60) == APPENDS + 1
    finally:
        over.set()
        killing.join()
    assert Line["line"].read.remote().result(timeout=60) == (APPENDS + 1, [])


def _appended() -> Iterator[int]:
    """Send each number, but for those that are to be calls."""
    for number in range(APPENDS):
        if number % 10 == 9:
            yield number
        else:
            Line["line"].append.send(number)


def test_sixty_four_programs_count_to_exactly_ten_thousand(
    fleet: Fleet, client: Client, valkey_url: str, namespace: str
) -> None:
    """Promises 1 to 3: each increment takes effect once, each reply is seen once, while hosts are killed."""
    over = threading.Event()
    programs = [
        launch(
            *("drive", valkey_url, namespace, f"{number * CLIENTS_EACH}"),
            *(f"{CLIENTS_EACH}", f"{COUNTERS}", f"{INCREMENTS // PROGRAMS}"),
            errors=fleet.errors,
        )
        for number in range(PROGRAMS)
    ]
    killing = threading.Thread(target=fleet.kill_at_random, args=(3, 100, (1.9, 2.1), over))
    try:
        for program in programs:
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
        killing.start()
        said = _said_by_all(programs)
    finally:
        over.set()
        if killing.ident is not None:
            killing.join()
        for program in programs:
            program.kill()
            program.communicate()
    replies = [(key, value) for line in said for key, value in json.loads(line)]
    assert len(replies) == INCREMENTS, fleet.errors.read_text()[-2_000:]
    assert len(set(replies)) == INCREMENTS, "a value was given to two"
    totals = Tally(key for key, _ in replies)
    assert sum(totals.values()) == INCREMENTS
    assert {key: Meter[f"{key}"].read.remote().result(timeout=30) for key in totals} == totals
    assert fleet.kills > 0


def test_a_program_that_the_store_has_forgotten_says_what_is_unknown(
    fleet: Fleet, client: Client, valkey_url: str, namespace: str
) -> None:
    """Promises 1 and 3: it opens another writer; what it cannot know is `UnavailableError`, and nothing comes twice."""
    _forget(valkey_url, Keys(namespace).writer(client._submits.writer))
    calls = [Meter["one"].add.remote(1) for _ in range(3_000)]
    with suppress(UnavailableError):
        calls[0].result(timeout=30)
    _forget(valkey_url, Keys(namespace).writer(client._submits.writer))
    calls += [Meter["one"].add.remote(1) for _ in range(100)]
    values: list[int] = []
    unknown = 0
    for call in calls:
        try:
            values.append(call.result(timeout=30))
        except UnavailableError:
            unknown += 1
    assert len(set(values)) == len(values)
    assert len(values) <= Meter["one"].read.remote().result(timeout=30) <= len(values) + unknown


def _forget(url: str, key: str) -> None:
    """Delete a key behind everybody's back."""
    assert ask(url, f"DEL {key}") == [b":1"]


def test_a_store_that_is_killed_has_lost_nothing(tmp_path: Path) -> None:
    """Promises 1 to 3: what it had acknowledged is on its disk; what it had not is asked for again, once."""
    server = Server(valkey_binary(), tmp_path)
    fleet = Fleet(server.url, "store", tmp_path)
    fleet.start("a")
    fleet.start("b")
    client = connected(server.url, "store")
    current.set_driver(client)
    over = threading.Event()

    replies: list[tuple[int, int]] = []

    def count(worker: int) -> None:
        for key in itertools.cycle((worker + n) % COUNTERS for n in range(COUNTERS)):
            if over.is_set():
                return
            replies.append((key, Meter[f"{key}"].add.remote(1).result(timeout=60)))

    try:
        with ThreadPoolExecutor(16) as pool:
            counting = [pool.submit(count, worker) for worker in range(16)]
            for turn in range(5):
                if turn:
                    server.kill()
                    server.start()
                over.wait(1.5)
                while len(replies) <= 250 * (turn + 1) and not any(each.done() for each in counting):
                    over.wait(0.05)
            over.set()
            for each in counting:
                each.result()
        assert len(set(replies)) == len(replies) > 1_000
        totals = Tally(key for key, _ in replies)
        assert {key: Meter[f"{key}"].read.remote().result(timeout=30) for key in totals} == totals
    finally:
        over.set()
        current.set_driver(None)
        client.close()
        fleet.close()
        server.kill()


def _said_by_all(programs: "list[subprocess.Popen[str]]") -> list[str]:
    for program in programs:
        assert program.stdin is not None
        program.stdin.write("go\n")
        program.stdin.flush()
    return [program.stdout.readline() for program in programs if program.stdout is not None]
