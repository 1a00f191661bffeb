"""Writes the golden file: `python -m tests.stored <file> <commit>`; its classes travel, as those of any `__main__`."""

import asyncio
import json
import logging
import os
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import actors
from actors import (
    CallTimeout,
    Cancelled,
    Context,
    DeadlockError,
    Invocation,
    Policy,
    Retry,
    RetryAfter,
    Schedule,
    Service,
    TerminalError,
    UsageError,
    VirtualObject,
    Workflow,
    handler,
    shared,
    state,
)
from actors.requests.fingerprints import fingerprint
from journal.clock import wall_ms
from tests.stored.goods import Jam, PickedBare, Punnet, Recipe, Ripeness, Scale, Trug, arguments
from tests.stored.keyspace import dumped

SOON = 30.0
NAMESPACE = "stored"
WRITES = "PERDURE_TESTS_WRITE_STORED"
"""Set in the environment of the program that writes: there a step hangs, and a handler fails."""
HELD = "a step hangs"
LONG = 40.0
"""Seconds for which something sleeps or is delayed: more than it takes to write the file."""
CENTURY = timedelta(days=36_500)
KEPT = Policy(retention=CENTURY)
LEAVES = Policy(retention=CENTURY, idle_timeout=0)
PAUSES = Policy(retention=CENTURY, retry=Retry(initial=0.01, max_attempts=2, on_exhausted="pause"))
ONCE = Policy(retention=CENTURY, retry=Retry(max_attempts=1))


@dataclass(slots=True)
class Sticker:
    """A value of a class that only the code that travels has."""

    text: str


class Spilled(TerminalError):
    """An error that only the code that travels has."""


ANCESTOR = Policy(idle_timeout=5)
HANDLE = actors.object("Larder", "global").options(delay=1, headers={"a": "b"})
GATHER = actors.get, actors.wait, actors.schedules, actors.resolve
GLOBALS: dict[str, Any] = {"schedule": Schedule("of a global"), "invocation": Invocation[int]("of-a-global")}


def hangs() -> str:
    """Return at once, but not in the program that writes."""
    if WRITES in os.environ:
        os.environ[WRITES] = HELD
        threading.Event().wait()
    return "second"


def is_mended() -> bool:
    return WRITES not in os.environ


FAILURES: dict[str, Callable[[], BaseException]] = {
    "TerminalError": lambda: TerminalError("ends", 418, {"why": "tea"}),
    "Cancelled": lambda: Cancelled("called off"),
    "DeadlockError": lambda: DeadlockError("a ring"),
    "CallTimeout": lambda: CallTimeout("took too long", metadata={"after": "1s"}),
    "UsageError": lambda: UsageError("not like this"),
    "TimeoutError": lambda: TimeoutError("no more time"),
    "KeyError": lambda: KeyError("nope"),
    "PickedBare": lambda: PickedBare("plums", 3),
    "Spilled": lambda: Spilled("all of it"),
}


def values() -> list[Any]:
    """Return what a program may store."""
    return [
        *(Jam("plum", 0.25, [Punnet("plum", 2)]), Recipe(name="jam"), Trug(["a"]), Scale(3), Ripeness.RIPE),
        *(Punnet("fig"), Sticker("a"), (1, "a"), {1, 2}, frozenset({3}), Decimal("1.10"), UUID(int=7), b"\0\xff", Jam),
        *(datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), timedelta(seconds=1.5), Larder["other"], Chores, Larder),
        *(actors.object("Larder", "x"), HANDLE, Schedule("a"), Invocation[int]("some-id"), ANCESTOR, Retry(initial=2)),
        *(each() for each in FAILURES.values()),
        *(actors.DurableError("a"), actors.NotFoundError("b"), actors.UnavailableError("c"), actors.DecodeError("d")),
        *(actors.OverloadedError("e"), actors.SettingsError("f"), actors.DamagedError("g"), RetryAfter(3, "later")),
        *(actors.NondeterminismError("id", 3, "a", "b"), Larder["other"].take, Chores.ring, list[Context]),
        *(actors.DecodeError, actors.Awakeable[int], actors.Promise[str], actors.get, actors.object, actors.Status),
    ]


class Larder(VirtualObject, policy=KEPT):
    count: int = state(0)
    text: str = state("")
    blob: bytes = state(b"")
    jams: list[Jam] = state(default_factory=list)
    recipe: Recipe | None = state(None)
    jam: Jam | None = state(None)
    pair: tuple[int, str] = state((0, ""))
    tags: set[str] = state(default_factory=set)
    price: Decimal = state(Decimal(0))
    at: datetime | None = state(None)
    ripeness: Ripeness = state(Ripeness.GREEN)
    odd: Any = state(None)
    others: Any = state(None)
    label: Sticker | None = state(None)
    fading: str = state("", ttl=CENTURY)
    waiting: str = state("")

    @handler
    def fill(self, ctx: Context) -> None:
        self.count, self.text, self.blob = 2**70, "žluť \u2028", b"\0\xfe"
        self.jams = [Jam("fig"), Jam("plum", 0.1, [Punnet("plum")])]
        self.recipe, self.jam, self.pair, self.tags = Recipe(name="mash", minutes=9), Jam("apple"), (3, "c"), {"x"}
        self.price, self.at = Decimal("9.90"), datetime(2026, 5, 6, tzinfo=UTC)
        self.ripeness, self.odd, self.label, self.fading = Ripeness.RIPE, Scale(8), Sticker("state"), "not yet"
        self.others = values()

    @shared
    def shown(self, ctx: Context) -> list[str]:
        found = {name: getattr(self, name) for name in ("count", "text", "blob", "jams", "recipe", "jam", "pair")}
        found |= {name: getattr(self, name) for name in ("tags", "price", "at", "ripeness", "odd", "label", "fading")}
        shown = [f"{name}={value!r}" for name, value in found.items()]
        return (
            shown + [repr(each) for each in self.others or ()] + [f"{HANDLE!r} {ANCESTOR!r} {GLOBALS!r} {len(GATHER)}"]
        )

    @handler
    async def opened(self, ctx: Context) -> list[Any]:
        first = await ctx.run("first", lambda: Sticker("first"))
        second = await ctx.run("second", hangs)
        self.count += 1
        return [first.text, second, self.count]

    @handler(policy=LEAVES)
    async def sleeps(self, ctx: Context, jam: Jam, label: Sticker, ripeness: Ripeness = Ripeness.GREEN) -> list[str]:
        found = await ctx.run("found", values)
        caught: list[str] = []
        for how in FAILURES:
            try:
                await Chores.fail.remote(how)
            except TerminalError as error:
                caught.append(f"{type(error).__name__} {error} {error.code} {error.metadata}")
        await asyncio.sleep(LONG)
        return [*caught, f"{jam} {label} {ripeness}", *map(repr, found)]

    @handler(policy=PAUSES)
    async def pauses(self, ctx: Context) -> str:
        noted = await ctx.run("noted", lambda: "noted")
        if not is_mended():
            raise ValueError("not mended")
        return f"{noted}, mended"

    @handler
    async def waits(self, ctx: Context) -> list[Any]:
        gate = ctx.awakeable(Jam)
        self.waiting = gate.id
        jam = await gate
        return [jam, await ctx.signal("ready", Ripeness)]

    @shared
    def waiting_for(self, ctx: Context) -> str:
        return self.waiting

    @handler
    async def calls(self, ctx: Context, other: str) -> str:
        try:
            return f"got {await Larder[other].waits.remote()}"
        except Cancelled as error:
            return f"Cancelled {error}"

    @handler
    def take(self, ctx: Context, jam: Jam, schedule: Schedule, tags: set[str], errors: list[Any]) -> str:
        return f"took {jam} {schedule} {sorted(tags)} {errors}"

    @handler
    def late(self, ctx: Context, jam: Jam) -> str:
        return f"late {jam}"


class Chores(Service, policy=ONCE):
    @handler
    def fail(self, ctx: Context, how: str) -> None:
        error = FAILURES[how]()
        raise error

    @handler
    def make(self, ctx: Context) -> list[Any]:
        return values()

    @handler
    def give(self, ctx: Context) -> list[Any]:
        return arguments()

    @handler
    def ring(self, ctx: Context, jam: Jam) -> str:
        return f"rang for {jam}"


class Harvest(Workflow, policy=KEPT):
    @handler
    async def run(self, ctx: Context, what: Sticker) -> str:
        return f"{what}: {await ctx.promise('answer', Jam)}"

    @shared
    def answer(self, ctx: Context, jam: Jam) -> None:
        ctx.promise("answer", Jam).resolve(jam)


def write(url: str) -> tuple[dict[str, str], dict[str, Any]]:
    """Start one invocation of each kind, and return their ids and what is to be read of them."""
    larder = Larder["a"]
    larder.fill.remote().result(SOON)
    started: dict[str, Invocation[Any]] = {
        "asleep": Larder["asleep"].sleeps.remote(Jam("pear"), Sticker("argument")),
        "paused": Larder["paused"].pauses.remote(),
        "waiting": Larder["waiting"].waits.remote(),
        "calling": Larder["calling"].calls.remote("called"),
        "delayed": Larder["delayed"].late.options(delay=LONG).remote(Jam("quince")),
        "behind": Larder["waiting"].late.remote(Jam("queued")),
        "workflow": Harvest["2026"].run.remote(Sticker("harvest")),
        "same": Larder["same"]
        .take.options(idempotency_key="one")
        .remote(Jam("melon"), Schedule("s"), {"b", "a"}, arguments()),
        "opened": Larder["opened"].opened.remote(),
        "made": Chores.make.remote(),
        "given": Chores.give.remote(),
        **{f"failed {how}": Chores.fail.remote(how) for how in FAILURES},
    }
    for each in started.values():
        each.accepted().result(SOON)
    Chores.ring.schedule(Jam("clock"), every=CENTURY, name="yearly")
    seen: dict[str, Any] = {"shown": larder.shown.remote().result(SOON)}
    seen["schedule"] = repr(Schedule("yearly").status().result(SOON))
    seen["same"] = started["same"].result(SOON)
    seen["made"] = list(map(repr, started["made"].result(SOON)))
    for how in FAILURES:
        try:
            started[f"failed {how}"].result(SOON)
        except TerminalError as error:
            seen[f"failed {how}"] = [type(error).__name__, str(error), error.code, error.metadata]
    standings = {"paused": "paused", "asleep": "asleep"}
    deadline = wall_ms() + 30_000
    while os.environ[WRITES] != HELD or any(
        not started[name].status().startswith(standings[name]) for name in standings
    ):
        assert wall_ms() < deadline, {name: each.status() for name, each in started.items()}
        threading.Event().wait(0.1)
    threading.Event().wait(2)
    seen["given"] = list(map(repr, started["given"].result(SOON)))
    seen["fingerprint"] = fingerprint(None, arguments(), {})
    seen["awakeables"] = [Larder[key].waiting_for.remote().result(SOON) for key in ("waiting", "called")]
    seen["statuses"] = {name: each.status() for name, each in started.items()}
    return {name: each.id for name, each in started.items()}, seen


def main(path: str, commit: str) -> None:
    """Write the golden file."""
    os.environ[WRITES] = "1"
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as directory:
        session = actors.init(hosts="local", directory=directory, namespace=NAMESPACE)
        url = session.url
        ids, seen = write(url)
        golden = {
            "version": "0.1.0",
            "commit": commit,
            "written": datetime.fromtimestamp(wall_ms() / 1000, UTC).isoformat(),
            "python": f"{sys.version_info[0]}.{sys.version_info[1]}",
            "ids": ids,
            "seen": seen,
            "keyspace": dumped(url, NAMESPACE),
        }
        Path(path).write_text(json.dumps(golden, indent=1, ensure_ascii=False) + "\n", "utf-8")
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
