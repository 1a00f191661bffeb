"""Issue 10.1: what an earlier version has stored goes on, whatever has moved and was renamed since.

`tests/stored/namespace.json` was written by commit 2bd5213, before any module moved: a namespace with invocations that
are open, asleep, paused, delayed, queued and finished, state of every kind, failures, a schedule, and code that
travelled. None of its classes is here, unless `tests.stored.goods` has it.
"""

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest

import actors
from actors import (
    Cancelled,
    Context,
    DurableError,
    Invocation,
    Schedule,
    Service,
    TerminalError,
    VirtualObject,
    handler,
    state,
    stored,
)
from actors.code.bundles import PYTHON, bundle_of
from actors.code.code import MissingCodeError
from actors.requests.fingerprints import fingerprint
from actors.requests.schedule import Firing, ScheduleStatus, Spec
from actors.requests.timing import Timing
from actors.values import outcomes, values
from journal.records import Failure, outcome_of
from journal.redis import connection
from tests.stored.goods import Jam, PickedBare, Punnet, Ripeness, arguments
from tests.stored.keyspace import client, data, globals_in, pickles, restored

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "stored" / "namespace.json").read_text("utf-8"))
NAMESPACE = "stored"
SOON = 60.0


@pytest.fixture(scope="module", params=["valkey_url", "redis7_url"])
def session(request: pytest.FixtureRequest) -> Iterator[actors.Session]:
    if GOLDEN["python"] != PYTHON:
        pytest.skip("code runs on the minor version of Python that has sent it")
    url = request.getfixturevalue(request.param)
    restored(url, GOLDEN["keyspace"])
    with actors.init(url, hosts="local", namespace=NAMESPACE) as session:
        yield session
    with client(url) as redis:
        redis.delete(*redis.keys(f"{NAMESPACE}:*"))


def ref(name: str) -> Invocation[Any]:
    return actors.attach(GOLDEN["ids"][name])


def plain(shown: Iterable[str]) -> list[str]:
    """Return what `repr` says, without addresses of memory, and without the modules of ours."""
    return [re.sub(r"\b(?:actors|journal)\.(?:\w+\.)*|0x[0-9a-f]+", "", text) for text in shown]


def larder(key: str, how: str, *args: Any) -> Any:
    return actors.object("Larder", key).remote(how, *args).result(SOON)


def seen(name: str) -> Any:
    return GOLDEN["seen"][name]


# ----------------------------------------------------------------------------------------------------------- goes on


def test_all_state_reads_as_it_was_written_by_the_code_that_travelled(session: actors.Session) -> None:
    assert plain(larder("a", "shown")) == plain(seen("shown"))


def test_what_had_begun_ends_and_repeats_no_step(session: actors.Session) -> None:
    assert ref("opened").result(SOON) == ["first", "second", 1]


def test_what_slept_wakes_with_its_values_and_failures(session: actors.Session) -> None:
    """The journal holds a step's values and a failure of each kind; the replay has to read all of them."""
    woken = plain(ref("asleep").result(SOON))

    caught = [seen(f"failed {how.partition(' ')[2]}") for how in GOLDEN["ids"] if how.startswith("failed ")]
    assert woken[: len(caught)] == plain([f"{kind} {said} {code} {meta}" for kind, said, code, meta in caught])
    assert woken[len(caught)] == "Jam(fruit='pear', sugar=0.5, crates=[]) Sticker(text='argument') Ripeness.GREEN"
    assert woken[len(caught) + 1 :] == plain(seen("made"))


def test_what_was_delayed_runs(session: actors.Session) -> None:
    assert ref("delayed").result(SOON) == "late Jam(fruit='quince', sugar=0.5, crates=[])"


def test_what_was_paused_stays_paused_and_resumes(session: actors.Session) -> None:
    assert ref("paused").status() == seen("statuses")["paused"]
    ref("paused").resume()
    assert ref("paused").result(SOON) == "noted, mended"


def test_what_waits_gets_its_awakeable_and_its_signal_and_lets_the_next_in(session: actors.Session) -> None:
    gate, _ = seen("awakeables")
    actors.resolve(gate, Jam("of today", 1.5, [Punnet("fig", 3)])).result(SOON)
    ref("waiting").signal("ready", Ripeness.RIPE)

    assert ref("waiting").result(SOON) == [Jam("of today", 1.5, [Punnet("fig", 3)]), Ripeness.RIPE]
    assert ref("behind").result(SOON) == "late Jam(fruit='queued', sugar=0.5, crates=[])"


def test_a_call_gets_the_reply_that_comes_now(session: actors.Session) -> None:
    gate = seen("awakeables")[1]
    actors.attach(gate.removeprefix("awakeable.").rpartition(".")[0]).cancel()

    assert ref("calling").result(SOON) == "Cancelled cancelled"


def test_a_workflow_gets_its_promise(session: actors.Session) -> None:
    actors.object("Harvest", "2026").remote("answer", Jam("all")).result(SOON)

    assert ref("workflow").result(SOON) == "Sticker(text='harvest'): Jam(fruit='all', sugar=0.5, crates=[])"


def test_a_schedule_is_what_it_was_and_fires(session: actors.Session) -> None:
    assert repr(Schedule("yearly").status().result(SOON)) == seen("schedule")
    assert actors.attach(Schedule("yearly").trigger().result(SOON)).result(SOON).startswith("rang for Jam(")
    assert actors.schedules() == [Schedule("yearly")]


def test_results_are_read_with_their_classes(session: actors.Session) -> None:
    given = ref("given").result(SOON)

    assert plain(map(repr, given)) == plain(map(repr, arguments()))
    assert list(map(type, given)) == list(map(type, arguments()))
    assert ref("same").result(SOON) == seen("same")


@pytest.mark.parametrize("how", [name for name in GOLDEN["ids"] if name.startswith("failed ")])
def test_failures_are_read_with_their_classes(session: actors.Session, how: str) -> None:
    kind, message, code, metadata = seen(how)
    with pytest.raises(TerminalError) as raised:
        ref(how).result(SOON)

    found = raised.value
    if kind == "Spilled":  # only the code that travelled has it; a host of this process may have loaded it by now
        assert str(found) in (message, f"Spilled: {message}")
        return
    assert [type(found).__name__, str(found), found.code, found.metadata] == [kind, message, code, metadata]
    assert type(found) is (PickedBare if kind == "PickedBare" else getattr(actors, kind))


def test_the_same_request_is_the_same(session: actors.Session) -> None:
    """The names of functions of ours are in its fingerprint, which must not differ."""
    same = actors.object("Larder", "same").options(idempotency_key="one")

    again = same.remote("take", Jam("melon"), Schedule("s"), {"b", "a"}, arguments())

    assert (again.id, again.result(SOON)) == (GOLDEN["ids"]["same"], seen("same"))
    assert fingerprint(None, arguments(), {}) == seen("fingerprint") != ""
    with pytest.raises(TerminalError, match="other arguments"):
        same.remote("take", Jam("other"), Schedule("s"), {"b", "a"}, arguments()).result(SOON)


# ------------------------------------------------------------------------------------------------------ what is named

PUBLIC = [getattr(actors, name) for name in actors.__all__ if name not in ("Duration", "handler", "object", "shared")]
"""What users import; the three others are no class or function, or are pinned under another name."""

PINNED = {
    *("BoundHandler", "ByName", "Call", "CallOptions", "Firing", "Keyed", "Options", "ScheduleStatus", "Spec"),
    *("Timing", "Unindexed", "_Maker", "_Missing", "_Table", "_named", "_restored_address", "_restored_handler"),
    *("_restored_state", "made", "made_tuple", "object_handle", "restore", "revived"),
}
"""Every global besides that stored bytes name. A new one is for ever: give it its name by `stored.pinned`."""


class Cellar(VirtualObject):
    total: int = state(0)
    seen: list[str] = state(default_factory=list, ttl=60)

    @handler
    async def names_all(self, ctx: Context, gate: actors.Awakeable[int]) -> list[Any]:
        return [PUBLIC, HANDLES, STATUS, DECORATORS]


class Cooks(Service):
    @handler(policy=actors.Policy(retry=actors.Retry()))
    async def names_others(self, ctx: Context) -> type[Cellar]:
        return Cellar


HANDLES = [Cellar["a"], Cellar["a"].names_all, Cooks.names_others, actors.object("Cellar", "c").options(delay=1)]
DECORATORS = handler, actors.shared
NOW = datetime(2026, 1, 1, tzinfo=UTC)
STATUS = ScheduleStatus(
    name="a",
    target="b",
    cron=None,
    timezone="UTC",
    every=None,
    missed="last",
    paused=False,
    next_due=NOW,
    last_fired=None,
    last_outcomes=(Firing(at=NOW, id="a", outcome="open"),),
)


def ours(pickle: bytes) -> set[tuple[str, str]]:
    """Return what the bytes name of ours."""
    named = set[tuple[str, str]]().union(*map(globals_in, pickles(pickle)))
    return {name for name in named if name[0].partition(".")[0] in ("actors", "journal")}


def texts(found: Any) -> Iterator[str]:
    """Yield every text in JSON."""
    if isinstance(found, str):
        yield found
        return
    for each in cast("list[Any]", list(found.values()) if isinstance(found, dict) else found):  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
        yield from texts(each)


def test_stored_bytes_name_nothing_but_what_is_pinned() -> None:
    @dataclass
    class Local:
        spec: Spec
        timing: Timing

    local = Local(Spec(type="a", key=None, handler="b", arguments=b"", headers={}), Timing())
    written = [bundle_of(each).data for each in (Cellar, Cooks)]
    written += [values.encode(each) for each in (PUBLIC, HANDLES, STATUS, local, arguments())]
    written += [outcomes.encoded_error(error) for error in (PickedBare("plums", 1), Cancelled())]

    named = set[tuple[str, str]]().union(*map(ours, written))

    assert {module for module, _ in named} == set(stored.OURS)
    assert {name for module, name in named if module == stored.FACADE} == {each.__name__ for each in PUBLIC}
    assert {name for module, name in named if module == stored.__name__} == PINNED


def test_what_an_earlier_version_named_needs_none_of_its_modules() -> None:
    named = set[tuple[str, str]]().union(*(ours(data(text)) for text in texts(GOLDEN["keyspace"])))

    assert len(named) > 40
    assert sorted(named - stored.NAMES.keys()) == []
    assert sorted({(m, n) for m, names in stored.MOVED.items() for n in names} - stored.NAMES.keys()) == []


def test_an_error_of_ours_is_named_by_no_place() -> None:
    """Whichever a handler has caught may be in a value, or in what a failure says of its cause.

    Those of a connection do not come so far: the store makes others of them.
    """

    def below(cls: type) -> Iterator[type]:
        for each in cls.__subclasses__():
            yield from (each, *below(each))

    of_a_connection = {each for each in vars(connection).values() if isinstance(each, type)}
    named = {each: each.__module__ for each in below(DurableError) if each not in of_a_connection}
    wrong = [
        f"{module}.{each.__name__}" for each, module in named.items() if module.startswith(("actors.", "journal."))
    ]

    assert sorted(each for each in wrong if not each.startswith(f"{stored.__name__}.")) == []


@pytest.mark.parametrize(
    ("kind", "earlier"),
    [
        (TerminalError, "actors.errors:TerminalError"),
        (Cancelled, "actors.errors:Cancelled"),
        (actors.DeadlockError, "actors.errors:DeadlockError"),
        (actors.CallTimeout, "actors.errors:CallTimeout"),
        (MissingCodeError, "actors.code:MissingCodeError"),
    ],
)
def test_a_failure_of_a_class_of_ours_stores_its_bare_name(kind: type[TerminalError], earlier: str) -> None:
    found = outcome_of(outcomes.encoded_error(kind("said", 409, {"a": "b"})))

    assert found == Failure(409, "said", {"a": "b"}, kind.__name__)
    for type_ in (kind.__name__, earlier):
        assert type(outcomes.error_of(Failure(409, "said", {"a": "b"}, type_))) is kind


def test_a_failure_that_names_what_is_no_error_is_a_plain_one() -> None:
    for type_ in ("get", "actors:get", "actors.objects:VirtualObject", "UsageError", "actors.nowhere:Cancelled"):
        assert type(outcomes.error_of(Failure(500, "said", {}, type_))) is TerminalError
