"""Code: what a program's classes need travels with them, and nothing else; values find their classes by name."""

import asyncio
import dataclasses
import gc
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import Any, cast

import cloudpickle
import pytest
from test_semantics import Member, Simulation, mode, played

from actors import Cancelled, Context, Policy, TerminalError, UsageError, VirtualObject, handler, state
from actors.code.bundles import bundle_of, digest_of, living_bundle_of
from actors.code.code import (
    CURRENT_FOR,
    MISSING_FOR,
    OFTEN,
    UNSENT,
    CodeBook,
    MissingCodeError,
    Sender,
    UnusableCodeError,
    unsent_here,
)
from actors.code.code_hash import CodeHash
from actors.objects.objects import object_handle
from actors.objects.scheduler import ScheduleObject
from actors.values import values
from actors.values.values import Scope, name_of
from journal.memory.store import MemoryStore

__all__ = ["mode"]

ROOT = Path(__file__).resolve().parent.parent

SHOP = '''
import dataclasses
from actors import Context, TerminalError, VirtualObject, handler, state
from prices import DISCOUNTS, Item, price_of

class SoldOut(TerminalError):
    """Of the user's own."""

@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    item: Item
    count: int = 1
    notes: list[str] = dataclasses.field(default_factory=list)

class Cart(VirtualObject):
    lines: list[Line] = state(default_factory=list)

    @handler
    async def add(self, ctx: Context, line: Line) -> int:
        await Stock["s"].take.remote(line)
        return total([line])

class Stock(VirtualObject):
    @handler
    async def take(self, ctx: Context, line: Line) -> None:
        if line.count > 9:
            raise SoldOut("none left")
        Cart["c"]

def total(lines: list[Line]) -> int:
    return sum(price_of(line.item) * line.count for line in lines) - DISCOUNTS["all"]
'''

PRICES = """
import dataclasses
DISCOUNTS = {"all": 1}

@dataclasses.dataclass
class Item:
    name: str
    price: int = 10

def price_of(item):
    return item.price
"""

SEND = """
import sys, json
from pathlib import Path
from actors.values import values
from actors.code.bundles import bundle_of
import shop, prices
bundle = bundle_of(shop.Cart)
Path("bundle").write_bytes(bundle.data)
Path("line").write_bytes(values.encode([shop.Line(prices.Item("book"), 3), {1}]))
print(json.dumps([bundle.digest, bundle.types]))
"""

LOAD = """
import dataclasses, sys
from pathlib import Path
from actors.values import values
from actors.code.code import _loaded
loaded = {name: found.cls for name, found in _loaded("d1", Path("bundle").read_bytes()).items()}
assert sorted(loaded) == ["Cart", "Stock"], loaded
assert "shop" not in sys.modules and "prices" not in sys.modules
scope = values.scope_of(loaded["Cart"])
line_type, item_type = scope.names["shop", "Line"], scope.names["prices", "Item"]
assert values.scope_of(line_type) is scope and scope.digest == "d1"
(line, ones) = values.decode(Path("line").read_bytes(), scope=scope)
assert type(line) is line_type and type(line.item) is item_type and ones == {1}
assert dataclasses.replace(line, count=4).count == 4 and line_type(item_type("x")).notes == []
assert not hasattr(line, "__dict__")
names = loaded["Cart"].__dict__["add"].fn.__globals__
assert names["total"]([line]) == 29 and names["Stock"] is loaded["Stock"]
assert loaded["Cart"].__dict__["add"].hints["line"] is line_type
Path("back").write_bytes(values.encode([line, {2}]))
"""

BACK = """
from pathlib import Path
from actors.values import values
import shop, prices
line, twos = values.decode(Path("back").read_bytes())
assert type(line) is shop.Line and type(line.item) is prices.Item and line.count == 3 and twos == {2}
"""

TRACE = """
import traceback
from pathlib import Path
from actors.code.code import _loaded
total = _loaded("d1", Path("bundle").read_bytes())["Cart"].cls.__dict__["add"].fn.__globals__["total"]
try:
    total(["no line"])
except AttributeError:
    traceback.print_exc()
"""


def run(program: str, folder: Path, *paths: Path, **variables: str) -> str:
    """Run a program in a folder that it cannot import from, unless a path says so."""
    # No bytecode: a module that is written anew within a second, as long as before, would be taken for unchanged.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **variables}
    environment["PYTHONPATH"] = os.pathsep.join(str(path) for path in (ROOT, *paths))
    ended = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stdout
    return ended.stdout


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "shop.py").write_text(SHOP)
    (folder / "prices.py").write_text(PRICES)
    return folder


def test_a_process_without_the_source_runs_the_class_with_all_that_it_refers_to(shop: Path, tmp_path: Path) -> None:
    run(SEND, tmp_path, shop)
    run(LOAD, tmp_path)
    run(BACK, tmp_path, shop)


@pytest.mark.slow
def test_the_hash_is_that_of_the_sources_of_all_modules_that_are_reached(shop: Path, tmp_path: Path) -> None:
    first, again = run(SEND, tmp_path, shop), run(SEND, tmp_path, shop)
    (shop / "prices.py").write_text(PRICES.replace("10", "11"))
    changed = run(SEND, tmp_path, shop)
    (shop / "prices.py").write_text(PRICES)
    (shop / "unrelated.py").write_text("")

    assert json.loads(first)[1] == ["Cart", "Stock"]
    assert first == again != changed
    assert run(SEND, tmp_path, shop) == first


SETTINGS = """
import datetime, enum, logging, os, re, threading, functools
from dataclasses import dataclass, field
from decimal import Decimal
from actors import Context, VirtualObject, handler, state

LIMIT = int(os.environ.get("LIMIT", "1"))
Colour = enum.Enum("Colour", ["RED", "BLUE"])

@dataclass
class Rates:
    base: object
    since: datetime.date = datetime.date(2024, 1, 1)
    tags: set = field(default_factory=lambda: {"a", "b", "c"})

def where(place):
    return {PLACE}

def closed(limit):
    def inner():
        return limit
    return inner

def by_default(limit=LIMIT if "default" == os.environ.get("PLACE") else 0):
    return limit

NAMES = {"x", "y", "z", "w"}
LOCK, LOG = threading.local(), logging.getLogger("shop")
RATES = Rates(where("base"))
PATTERN = re.compile(where("pattern") + "x")
TABLE = {"deep": [({"k": Decimal(where("table"))},)]}
CLOSED = closed(where("closure"))
PARTIAL = functools.partial(max, where("partial"))
ME = [NAMES]
ME.append(ME)

class Shop(VirtualObject):
    per_class = where("class")
    count: int = state(int(where("state")))

    @handler
    async def ask(self, ctx: Context) -> list:
        return [NAMES, LOG, RATES.base, PATTERN, TABLE, CLOSED(), PARTIAL(0), by_default(), Colour.RED, ME, Shop]
"""

PLACES = ("base", "pattern", "table", "closure", "partial", "class", "state", "default")
ASK_SHOP = """
import importlib, json, os, sys
from actors.code.bundles import bundle_of, digest_of
found = {}
for place in sys.argv[1:]:
    for limit in "1", "2":
        os.environ.update(PLACE=place, LIMIT=limit)
        sys.modules.pop("settings", None)
        settings = importlib.import_module("settings")
        found[place + limit] = bundle_of(settings.Shop).digest, digest_of(settings.Shop)
print(json.dumps(found))
"""


@pytest.mark.slow
def test_the_hash_covers_the_values_that_travel(tmp_path: Path) -> None:
    """Issue 15.24: a host had the value that the environment of another program gave a constant.

    In each place in turn a value comes from the environment.
    """
    source = SETTINGS.replace("{PLACE}", 'str(LIMIT) if place == os.environ["PLACE"] else "7"')
    (tmp_path / "settings.py").write_text(source)

    program = ASK_SHOP.replace("sys.argv[1:]", repr(PLACES))
    first, again = (json.loads(run(program, tmp_path, tmp_path, PYTHONHASHSEED=seed)) for seed in ("1", "2"))

    assert first == again
    assert [place for place in PLACES if first[f"{place}1"][0] == first[f"{place}2"][0]] == []
    assert len({code for _, code in first.values()}) == 1  # of a class that lives where it runs only the code counts


PROMPT = """
import asyncio
from actors import Context, VirtualObject, handler
from actors.code.code import Sender

def price():
    return 1

LIMIT = 1

class Shop(VirtualObject):
    @handler
    async def ask(self, ctx: Context) -> int:
        return price() + LIMIT

sent = []
sender = Sender(sent.append)
digests = [sender.digest_of(Shop), sender.digest_of(Shop)]
def price():
    return 2
digests += [sender.digest_of(Shop), sender.digest_of(Shop)]
LIMIT = 2
digests += [sender.digest_of(Shop)]
def price():
    return 1
LIMIT = 1
digests += [sender.digest_of(Shop)]
print([digests.index(each) for each in digests], len(sent))
"""


def test_a_helper_that_was_defined_anew_at_a_prompt_is_sent_anew(tmp_path: Path) -> None:
    """Issue 15.24."""
    assert run(PROMPT, tmp_path) == "[0, 0, 2, 2, 4, 0] 4\n"


def test_a_program_that_sends_its_code_again_and_again_is_warned_once(caplog: pytest.LogCaptureFixture) -> None:
    sender, before = Sender(lambda bundle: None), globals()["RATE"]
    digests: set[str] = set()
    for rate in range(OFTEN + 5):
        globals()["RATE"] = 1000 + rate
        digests.add(sender.digest_of(CodeRated))
    globals()["RATE"] = before

    assert len(digests) == OFTEN + 5
    assert caplog.text.count("CodeRated was sent to hosts 10 times") == 1


class Hostile:
    """Raises at whatever is asked of it but its class."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


HOSTILE = Hostile()
DEEP: list[Any] = reduce(lambda inner, _: [inner], range(2_000), cast("list[Any]", []))


class CodeHostile(VirtualObject):
    @handler
    async def ask(self, ctx: Context) -> list[Any]:
        return [HOSTILE, DEEP]


def test_a_hash_comes_to_an_end_whatever_a_class_holds() -> None:
    assert digest_of(CodeHostile) == digest_of(CodeHostile)
    walks = [CodeHash(lambda name: True, values=True) for _ in range(2)]
    for walk in walks:
        walk.add(CodeHostile)
    assert walks[0].digest == walks[1].digest


def test_a_traceback_names_the_file_of_code_that_travelled(shop: Path, tmp_path: Path) -> None:
    run(SEND, tmp_path, shop)
    said = run(TRACE, tmp_path)

    assert f'File "{shop / "shop.py"}", line ' in said
    assert "dynamic-code" not in said


RATE = 1


class CodeRated(VirtualObject):
    @handler
    async def rate(self, ctx: Context) -> int:
        return RATE


CLIENT = threading.Lock()


class CodeLocked(VirtualObject):
    @handler
    async def use(self, ctx: Context) -> bool:
        return CLIENT.locked()


def test_code_that_cannot_be_sent_names_what_holds_it_up_and_what_to_do() -> None:
    with pytest.raises(UsageError, match=r"CodeLocked cannot be sent to hosts: .*CLIENT \(lock\).* made in a step"):
        bundle_of(CodeLocked)


class CodeQuitter:
    def __reduce__(self) -> Any:
        raise SystemExit("not me")


QUITTER = CodeQuitter()


class CodeQuits(VirtualObject):
    @handler
    async def use(self, ctx: Context) -> str:
        return str(QUITTER)


@pytest.mark.parametrize("bundle", [bundle_of, living_bundle_of])
def test_a_global_that_exits_as_it_is_pickled_ends_no_program(bundle: Callable[[type[VirtualObject]], Any]) -> None:
    """Issue 15.2: code that travels runs code of the user in the caller."""
    with pytest.raises(UsageError, match="CodeQuits cannot be sent to hosts: not me"):
        bundle(CodeQuits)


@dataclasses.dataclass
class Point:
    x: int


def test_a_class_that_can_be_imported_is_written_as_pickle_writes_it() -> None:
    assert b"_named" not in values.pickled(Point(1))
    assert values.unpickled(values.pickled(Point(1))) == Point(1)


def test_a_class_is_looked_up_in_the_scope_first() -> None:
    other = type("Point", (), {})
    data = values.pickled({"p": Point(1)})

    found = values.unpickled(data, Scope("d", {name_of(Point): other}))

    assert type(found["p"]) is other


def test_a_function_s_class_is_found_again_in_its_process_and_carried_into_others(tmp_path: Path) -> None:
    @dataclasses.dataclass
    class Local:
        x: int

    data = values.encode(Local(1))
    (tmp_path / "value").write_bytes(data)

    assert type(values.decode(data)) is Local
    reads = "from actors.values import values; print(values.decode(open('value', 'rb').read()))"
    assert run(reads, tmp_path) == "Local(x=1)\n"


def test_one_object_of_a_local_class_does_not_replace_the_methods_of_the_class() -> None:
    class Local:
        def name(self) -> str:
            return "first"

    before = Local.name
    values.decode(values.encode(Local()))

    assert Local.name is before


class CodeCounter(VirtualObject):
    n: int = state(0)

    @handler
    async def add(self, ctx: Context) -> int:
        self.n += 1
        return self.n


def as_of_another_process(digit: str) -> bytes:
    """Return the code of `CodeCounter` so that loading it does not give the class that lives here."""
    data = bundle_of(CodeCounter).data
    pickling: Any = cloudpickle
    for cls in (CodeCounter, CodeLocked):
        data = data.replace(pickling.cloudpickle._get_or_create_tracker_id(cls).encode(), digit.encode() * 32)
    return data


async def test_a_deployment_is_seen_by_calls_by_name_within_a_second() -> None:
    now = [100.0]
    store = MemoryStore(lambda: 0)
    book = CodeBook(store, live=False, now=lambda: now[0])
    await store.put_code("old", as_of_another_process("0"), ["CodeCounter"])
    old = await book.fetch("CodeCounter", "")
    await store.put_code("new", as_of_another_process("1"), ["CodeCounter"])

    assert book.find("CodeCounter", "") is old
    now[0] += CURRENT_FOR
    assert book.find("CodeCounter", "") is None
    new = await book.fetch("CodeCounter", "")
    assert (book.code_of(old.cls), book.code_of(new.cls)) == ("old", "new")
    assert book.find("CodeCounter", "old") is old


async def test_a_type_that_nobody_has_stored_is_not_found() -> None:
    book = CodeBook(MemoryStore(lambda: 0), live=False)

    with pytest.raises(TerminalError, match="a program that has it must use it once") as caught:
        await book.fetch("Nowhere", "")
    assert caught.value.code == 404


async def test_a_class_that_was_not_sent_is_that_of_the_process_or_else_what_the_store_has() -> None:
    store = MemoryStore(lambda: 0)
    living, elsewhere = CodeBook(store, live=True), CodeBook(store, live=False)
    here = living.find("CodeCounter", UNSENT)
    assert here is not None
    assert (here.cls, living.code_of(CodeCounter), elsewhere.code_of(CodeCounter)) == (CodeCounter, unsent_here(), "")

    with pytest.raises(MissingCodeError):
        await elsewhere.fetch("Nowhere", UNSENT)
    await store.put_code("old", as_of_another_process("0"), ["CodeCounter"])
    assert elsewhere.find("CodeCounter", UNSENT) is None
    assert elsewhere.code_of((await elsewhere.fetch("CodeCounter", UNSENT)).cls) == "old"
    assert living.find("CodeCounter", UNSENT) is here  # not what was loaded since


async def test_code_of_another_python_is_imported_by_path(caplog: pytest.LogCaptureFixture) -> None:
    store = MemoryStore(lambda: 0)
    bundle = bundle_of(CodeCounter)
    head, _, body = bundle.data.partition(b"\n")
    await store.put_code(
        "other", json.dumps({**json.loads(head), "python": "3.9"}).encode() + b"\n" + body, ["CodeCounter"]
    )

    found = await CodeBook(store, live=False).fetch("CodeCounter", "other")

    assert found.cls is CodeCounter
    assert "is of Python 3.9: importing its classes by path" in caplog.text


@pytest.mark.parametrize("brings_code", [False, True])
async def test_a_class_of_ours_is_the_installed_one_whatever_code_comes_along(brings_code: bool) -> None:
    """Who declares a schedule sends the code of the class that is to be called."""
    store = MemoryStore(lambda: 0)
    bundle = bundle_of(CodeCounter)
    await store.put_code(bundle.digest, bundle.data, bundle.types)
    digest = bundle.digest if brings_code else ""
    book = CodeBook(store, live=False)

    assert book.find("perdure.Schedule", digest) is None
    assert (await book.fetch("perdure.Schedule", digest)).cls is ScheduleObject
    found = book.find("perdure.Schedule", digest)
    assert found is not None
    assert found.cls is ScheduleObject


def test_a_live_host_runs_the_latest_class_of_a_name_and_none_that_is_gone() -> None:
    def defined() -> type[VirtualObject]:
        class LiveOrGone(VirtualObject):
            @handler
            async def ask(self, ctx: Context) -> None: ...

        return LiveOrGone

    book, kept = CodeBook(MemoryStore(lambda: 0), live=True), [defined()]

    def is_found(cls: type[VirtualObject]) -> bool:
        found = book.find("LiveOrGone", UNSENT)
        return found is not None and found.cls is cls

    assert is_found(kept[0])
    assert is_found(kept[0])  # as known from before
    kept.append(defined())
    assert is_found(kept[1])

    kept.clear()
    gc.collect()
    assert book.find("LiveOrGone", UNSENT) is None


UNUSABLE = {
    "metaclass": "class Meta(type):\n    def __new__(meta, *args): return once(type.__new__(meta, *args))",
    "subclass": "class Base:\n    def __init_subclass__(cls): once(cls)",
    "attributes": "class Meta(type):\n    def __setattr__(cls, name, value): once(name, cls)",
    "reduced": "class Base:\n    def __reduce__(self): return once, (1,)",
}
THEIRS = {
    "metaclass": "class Theirs(metaclass=Meta): ...",
    "subclass": "class Theirs(Base): ...",
    "attributes": "class Theirs(metaclass=Meta):\n    x = 5",
    "reduced": "Theirs = Base()",
}
AT_FAULT = """
import os
from actors import Context, TerminalError, VirtualObject, handler
def once(*found):
    if "UNUSABLE_HERE" in os.environ:
        raise {error}
    return found[0]
{unusable}
{theirs}
class AtFault(VirtualObject):
    @handler
    async def ask(self, ctx: Context) -> str:
        return str(Theirs)
"""


def code_at_fault(kind: str, error: str, folder: Path) -> bytes:
    """Return the code of a class, by a program that can make what it refers to, as nobody else can."""
    source = AT_FAULT.format(error=error, unusable=UNUSABLE[kind], theirs=THEIRS[kind])
    (folder / "at_fault.py").write_text(source)
    send = (
        "import sys, at_fault\n"
        "from actors.code.bundles import bundle_of\n"
        "sys.stdout.buffer.write(bundle_of(at_fault.AtFault).data)"
    )
    env = {name: value for name, value in os.environ.items() if name != "UNUSABLE_HERE"} | {"PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-c", send], cwd=folder, env=env, check=True, capture_output=True).stdout


@pytest.mark.parametrize(
    ("kind", "error"),
    [*zip(UNUSABLE, ["KeyError", "SystemExit", "GeneratorExit", "TerminalError"], strict=True)],
)
async def test_code_that_cannot_be_loaded_says_what_it_raised_and_is_not_loaded_for_each_that_waits(
    kind: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Issue 15: whatever it raises, once a second; when it can be loaded it is."""
    now, store = [100.0], MemoryStore(lambda: 0)
    book = CodeBook(store, live=False, now=lambda: now[0])
    await store.put_code("bad", code_at_fault(kind, f"{error}('odd')", tmp_path), ["AtFault"])
    monkeypatch.setenv("UNUSABLE_HERE", "1")
    for _ in range(3):
        with pytest.raises(UnusableCodeError, match=r"^the code of AtFault cannot be loaded: .*odd"):
            await book.fetch("AtFault", "bad")
        monkeypatch.delenv("UNUSABLE_HERE", raising=False)  # mended, and not looked at
    now[0] += MISSING_FOR
    assert "ask" in (await book.fetch("AtFault", "bad")).handlers


def test_code_that_cannot_be_loaded_fails_its_own_attempts_alone(mode: Policy | None, tmp_path: Path) -> None:
    """Issue 15, promise 8: status says what it raised; it goes on once that is mended, and can be cancelled."""
    data = code_at_fault("metaclass", "BaseException('odd')", tmp_path)

    async def scenario(world: Simulation) -> None:
        world.members["a"] = member = Member(world, "a")
        member.host._code = CodeBook(world.store.connect(), live=False, now=world.loop.time)
        await world.store.put_code("bad", data, ["AtFault"])
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("UNUSABLE_HERE", "1")
            asked = [object_handle("AtFault", key).handle.remote("ask") for key in "abc"]
            good = object_handle("CodeCounter", "a").handle.remote("add")
            await world.store.put_code("good", bundle_of(CodeCounter).data, ["CodeCounter"])
            assert await good is not None
            await asyncio.sleep(30)
            assert (await world.until_status(asked[0], "open")) == "open"
            assert any(
                "the code of AtFault cannot be loaded" in notice and "odd" in notice for notice in world.program.notices
            )
            asked[1].cancel()
            with pytest.raises(Cancelled):
                await asked[1]
        assert "Theirs" in await asked[0]
        assert "Theirs" in await asked[2]

    played(scenario, mode, [])
