"""The command line: each command on the data of one program (cli_program.py), most of them in this process."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import Server, ask, valkey_binary
from typer.testing import CliRunner

from actors import Context, VirtualObject, handler
from actors.cli.main import app
from actors.client.client import Client
from actors.requests import current
from journal.clock import boot_seconds
from journal.redis.store import RedisStore

ROOT = Path(__file__).resolve().parent.parent
WITHIN_S = 30.0
SELF = (sys.executable, "-c", "import sys; from actors.cli.main import main; sys.argv[0] = 'perdure'; main()")


class Perdure:
    """The command, on one directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __call__(self, *arguments: str, code: int = 0) -> str:
        """Return what it prints."""
        done = CliRunner().invoke(app, [*arguments, "--directory", str(self.directory)])
        assert done.exit_code == code, (done.output, done.exception)
        return done.stdout if code == 0 else done.output

    def json(self, *arguments: str) -> Any:
        return json.loads(self(*arguments, "--json"))

    def sent(self, target: str, *arguments: str) -> str:
        return self("send", target, *arguments).strip()

    def until(self, holds: Callable[[Any], bool], *arguments: str) -> Any:
        """Return the answer as soon as it is as it should be."""
        deadline = boot_seconds() + WITHIN_S
        while not holds(found := self.json(*arguments)):
            assert boot_seconds() < deadline, found
        return found

    def why(self, what: str, *words: str) -> list[dict[str, Any]]:
        """Return the chain as soon as its last link says so."""
        return self.until(lambda links: bool(links) and all(word in links[-1]["waits"] for word in words), "why", what)


@pytest.fixture(scope="module")
def perdure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Perdure]:
    directory = tmp_path_factory.mktemp("cli") / "store"
    command = [sys.executable, str(ROOT / "tests" / "cli_program.py"), str(directory)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    program = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    assert program.stdout.readline() == "serving\n"
    yield Perdure(directory)
    program.terminate()
    program.wait()
    program.stdout.close()


def run(*arguments: str, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command as a process."""
    return subprocess.run(
        [*SELF, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )


# ------------------------------------------------------------------------------------------------------- as a process


def test_help_imports_neither_ray_nor_pydantic() -> None:
    """Issue 12: `perdure --help` comes at once."""
    program = """
import sys
from actors.cli.main import app
from typer.testing import CliRunner
done = CliRunner().invoke(app, ["--help"])
assert done.exit_code == 0 and "invocations" in done.stdout, done.output
sys.stdout.write(repr([name for name in ("ray", "pydantic") if name in sys.modules]))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "[]"


def test_a_process_answers_in_text_and_in_json(perdure: Perdure) -> None:
    where = ("--directory", str(perdure.directory))

    text = run("status", *where)
    found = run("status", "--json", *where)

    assert (text.returncode, text.stderr) == (0, "")
    assert "0-15" in text.stdout
    data = json.loads(found.stdout)
    assert [host["shards"] for host in data["hosts"]] == [list(range(16))]
    assert (data["without_host"], data["namespace"], len(data["shards"])) == ([], "default", 16)


def test_a_process_calls_by_the_settings_of_its_folder(perdure: Perdure, tmp_path: Path) -> None:
    below = tmp_path / "below"
    below.mkdir()
    (tmp_path / "pyproject.toml").write_text(f'[tool.perdure]\ndirectory = "{perdure.directory}"\n')

    called = run("call", "CliCart/folder.add", '"apple"', cwd=below)
    elsewhere = run("call", "CliCart/folder.add", '"apple"', cwd=below, PERDURE_REDIS="redis://127.0.0.1:9/0")

    assert (called.returncode, called.stdout, called.stderr) == (0, "1\n", "")
    assert elsewhere.returncode == 1
    assert "127.0.0.1:9" in elsewhere.stderr
    assert "Traceback" not in elsewhere.stderr


def test_a_mistake_is_one_line_and_code_2(perdure: Perdure, tmp_path: Path) -> None:
    done = run("status", cwd=tmp_path)

    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "there is no store here" in done.stderr
    assert not list(tmp_path.iterdir())
    (tmp_path / "pyproject.toml").write_text("[tool.perdure]\nredi = 1\n")
    assert "has no setting redi" in run("status", cwd=tmp_path).stderr


def test_a_look_opens_no_namespace(perdure: Perdure) -> None:
    """A typing error must not fix the limits of a namespace that nobody has used."""
    for command in (("status",), ("why", "CliCart/a"), ("invocations", "list"), ("state", "clear", "CliCart/a", "x")):
        assert "no program has used the namespace 'defualt'" in perdure(*command, "--namespace", "defualt", code=2)
    url = f"unix://{perdure.directory}/socket"
    assert not asyncio.run(is_open(RedisStore(url, "defualt", is_ours=True)))


async def is_open(store: RedisStore) -> bool:
    try:
        return await store.survey().is_open()
    finally:
        await store.aclose()


# -------------------------------------------------------------------------------------------------------- call and send


def test_arguments_are_json_by_position_or_by_name(perdure: Perdure) -> None:
    assert perdure.json("call", "CliCart/a.b/c.add", '"apple"') == 1
    assert perdure.json("call", "CliCart/a.b/c.add", '"apple"', "2") == 3
    assert perdure.json("call", "CliCart/a.b/c.add", '{"item": "pear", "count": 4}') == 4
    assert perdure.json("call", "CliCart/a.b/c.view") == {"apple": 3, "pear": 4}


def test_annotations_make_values_of_json_and_json_of_values(perdure: Perdure) -> None:
    item = {"name": "fig", "price": "1.50"}

    assert perdure.json("call", "CliCart/priced.price", json.dumps({"item": item})) == item
    assert perdure.json("call", "CliCart/priced.price", json.dumps(item)) == item
    assert "does not take" in perdure("call", "CliCart/priced.price", '{"name": 5, "price": "1"}', code=2)
    assert perdure.json("call", "CliCart/priced.odd") == ["inf", "_w==", [1]]


@pytest.mark.slow_after_first
@pytest.mark.parametrize("key", ["a\nb", "[red]\x1b[31m", "../x", "%2F", "é漢😀", "\udcff", " ", "-x", "a/b.c"])
def test_a_key_may_be_any_text(perdure: Perdure, key: str) -> None:
    assert perdure.json("call", f"CliCart/{key}.add", '"apple"') == 1

    listed = ("invocations", "list", "--type", "CliCart", f"--key={key}")
    assert [row["target"] for row in perdure.json(*listed)] == [f"CliCart/{key}"]
    assert f"CliCart/{key}" in [row["object"] for row in perdure.json("objects", "CliCart", f"--prefix={key}")]
    assert "\x1b" not in perdure(*listed)
    assert perdure.json("state", "get", f"CliCart/{key}", "items") == {"apple": 1}


def test_a_terminal_error_is_code_1_with_its_parts(perdure: Perdure) -> None:
    done = CliRunner().invoke(
        app, ["call", "CliCart/x.add", '"apple"', "0", "--json", "--directory", str(perdure.directory)]
    )

    assert (done.exit_code, done.stdout) == (1, "")
    said = json.loads(done.stderr)
    assert (said["error"], said["code"]) == ("add at least one", 400)
    assert perdure.json("invocations", "show", said["id"])["failure"]["message"] == "add at least one"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("CliCart/x.add", "5"), "'item' of add does not take 5"),
        (("CliCart/x.add",), "missing a required argument: 'item'|missing 1 required positional argument: 'item'"),
        (("CliCart/x.ad", '"a"'), "did you mean 'add'"),
        (("CliCart.add", '"a"'), "CliCart has keys"),
        (("CliMail/x.post", '"a"'), "is a service"),
        (("CliCart/x.add", "apple"), "is not JSON"),
        (("CliCart/x",), "names no handler"),
        (("/x.add",), "is no address"),
    ],
)
def test_a_wrong_call_is_refused_before_it_is_sent(perdure: Perdure, arguments: tuple[str, ...], says: str) -> None:
    said = perdure("call", *arguments, code=2)

    assert any(each in said for each in says.split("|")), said


def test_a_call_that_takes_long_says_how_to_ask_why(perdure: Perdure) -> None:
    said = perdure("call", "CliStuck/slow.nap", "--timeout", "0.3", code=1)

    assert "perdure why" in said


def test_a_delayed_send_says_when_it_is_due(perdure: Perdure) -> None:
    data = perdure.json("send", "CliStuck/later.mark", "--delay", "1h")

    assert data["status"] == "accepted"
    row = perdure.until(lambda data: data["status"] == "delayed", "invocations", "show", data["id"])
    assert row["due"] == data["due"]
    assert "is not due before" in perdure.why(data["id"], "not due")[0]["waits"]


# --------------------------------------------------------------------------------------------------------- invocations


def test_invocations_are_listed_by_type_key_handler_and_status(perdure: Perdure) -> None:
    nap, mark = perdure.sent("CliStuck/listed.nap"), perdure.sent("CliStuck/listed.mark")
    key = ("invocations", "list", "--type", "CliStuck", "--key", "listed")

    rows = perdure.until(lambda rows: {row["status"] for row in rows} == {"open", "asleep"}, *key)

    assert {row["id"]: row["status"] for row in rows} == {nap: "asleep", mark: "open"}
    assert [row["id"] for row in perdure.json(*key, "--handler", "mark")] == [mark]
    assert [row["id"] for row in perdure.json(*key, "--status", "asleep")] == [nap]
    assert perdure.json(*key, "--since", "1h", "--limit", "1") == rows[:1]
    assert perdure.json("invocations", "list", "--type", "CliStuc") == []
    assert nap in perdure(*key)
    assert "there is no status" in perdure(*key, "--status", "lost", code=2)


def test_failing_ones_are_listed_with_their_error_as_it_is(perdure: Perdure) -> None:
    id_ = perdure.sent("CliStuck/unlucky.retry")
    listed = ("invocations", "list", "--type", "CliStuck", "--key", "unlucky", "--failing")

    (row,) = perdure.until(bool, *listed)

    assert row["id"] == id_
    assert "[red]no luck" in row["why"]
    assert "\x1b" not in perdure(*listed)
    assert "[red]no luck" in perdure(*listed)


def test_one_is_cancelled_by_its_id_and_an_unknown_one_is_said(perdure: Perdure) -> None:
    id_ = perdure.sent("CliStuck/ended.nap")

    assert perdure.json("invocations", "cancel", id_) == [{"id": id_, "status": "accepted"}]

    data = perdure.until(lambda data: data["status"] == "failed", "invocations", "show", id_)
    assert data["failure"]["type"] == "Cancelled"
    assert "is not known" in perdure("invocations", "show", "0123456789ab-3", code=1)
    assert "is not the id" in perdure("invocations", "cancel", "nonsense", code=2)


def test_a_filter_is_counted_asked_for_and_ended(perdure: Perdure) -> None:
    ids = {perdure.sent("CliStuck/bulk.pause"), perdure.sent("CliStuck/bulk.mark"), perdure.sent("CliStuck/bulk.mark")}
    of_key = ("--type", "CliStuck", "--key", "bulk")
    listed = ("invocations", "list", *of_key)
    perdure.until(lambda rows: {row["id"] for row in rows} == ids and "paused" in str(rows), *listed)

    assert perdure.json("invocations", "kill", *of_key, "--dry-run") == {"count": 3}
    assert "say --yes" in perdure("invocations", "kill", *of_key, code=2)
    assert {row["status"] for row in perdure.json(*listed)} == {"open", "paused"}
    assert perdure.json("invocations", "resume", *of_key, "--status", "paused", "--dry-run") == {"count": 1}
    assert perdure("invocations", "kill", *of_key, "--yes").count("accepted") == 3

    perdure.until(lambda rows: {row["status"] for row in rows} == {"failed"}, *listed)
    assert "what?" in perdure("invocations", "kill", code=2)


def test_a_signal_and_a_restart_reach_their_invocations(perdure: Perdure) -> None:
    gate, paused = perdure.sent("CliStuck/gated.gate"), perdure.sent("CliStuck/again.pause")
    perdure.until(lambda data: data["status"] == "paused", "invocations", "show", paused)

    perdure("invocations", "signal", gate, "open", '"now"')
    perdure("invocations", "restart", paused)

    assert perdure.until(lambda data: data["status"] == "succeeded", "invocations", "show", gate)["result"] == "now"
    again = perdure.until(lambda data: data["status"] == "paused", "invocations", "show", paused)
    assert again["attempt"] >= 1


# ------------------------------------------------------------------------------------------------ why, journal and tree


def test_why_of_one_queued_behind_one_that_sleeps(perdure: Perdure) -> None:
    nap, mark = perdure.sent("CliStuck/asleep.nap"), perdure.sent("CliStuck/asleep.mark")

    links = perdure.why(mark, "a timer (a long nap) until")

    assert [link["id"] for link in links] == [mark, nap]
    assert f"queued behind {nap}" in links[0]["waits"]
    assert perdure.why("CliStuck/asleep", "timer")[0]["id"] == nap
    assert f"perdure invocations cancel {nap}" in perdure("why", mark)


def test_why_of_one_queued_behind_one_that_retries(perdure: Perdure) -> None:
    retry, mark = perdure.sent("CliStuck/retries.retry"), perdure.sent("CliStuck/retries.mark")

    links = perdure.why(mark, "attempt 1", "no luck", "follows at")

    assert [link["id"] for link in links] == [mark, retry]
    assert links[-1]["frees"][0] == f"perdure invocations resume {retry}"


def test_why_of_one_queued_behind_one_that_is_paused(perdure: Perdure) -> None:
    paused, first, mark = (perdure.sent(f"CliStuck/halted.{name}") for name in ("pause", "mark", "mark"))

    links = perdure.why(mark, "is paused", "a bug")

    assert [link["id"] for link in links] == [mark, paused]
    assert "with 1 others before it" in links[0]["waits"]
    assert perdure.why(first, "is paused")[0]["next"] == paused
    assert f"perdure invocations restart {paused}" in links[-1]["frees"]


def test_why_of_one_that_waits_for_an_awakeable_says_how_to_resolve_it(perdure: Perdure) -> None:
    id_ = perdure.sent("CliStuck/called.wait")

    (link,) = perdure.why("CliStuck/called", "the awakeable")

    assert link["id"] == id_
    command = next(each for each in link["frees"] if " resolve " in each).split()
    perdure(*command[1:-1], '"done"')
    assert perdure.until(lambda data: data["status"] == "succeeded", "invocations", "show", id_)["result"] == "done"
    assert perdure("why", "CliStuck/called").startswith("nobody holds CliStuck/called")


def test_why_follows_calls_to_the_end_of_their_chain(perdure: Perdure) -> None:
    id_ = perdure.sent("CliStuck/one.follow", '["two", "three"]')

    links = perdure.why(id_, "a timer")

    assert [link["invocation"] for link in links] == [f"CliStuck/{name}.follow" for name in ("one", "two", "three")]
    assert [link["next"] for link in links] == [links[1]["id"], links[2]["id"], None]
    tree = perdure.json("tree", id_)
    (child,) = tree["children"]
    assert [child["id"], child["children"][0]["id"]] == [links[1]["id"], links[2]["id"]]
    assert perdure.json("invocations", "show", links[2]["id"])["called_by"] == links[1]["id"]
    assert "waits for sleep" in perdure("tree", id_)


def test_a_journal_shows_entries_with_their_outcomes(perdure: Perdure) -> None:
    id_ = perdure.sent("CliMail.post", '"ann"')

    data = perdure.until(lambda data: len(data["entries"]) == 2, "journal", id_)

    step, sleep = data["entries"]
    assert (step["entry"], step["outcome"], sleep["entry"], sleep["took"]) == ("run send", '"ANN"', "sleep", "open")
    assert "run send" in perdure("journal", id_)
    ended = perdure.json("invocations", "list", "--status", "succeeded", "--limit", "1")[0]["id"]
    assert "went with its end" in perdure("journal", ended, code=1)


def test_why_says_that_no_host_is_there(tmp_path: Path) -> None:
    """Without a host, of an object and of a type that nobody has ever used."""
    (tmp_path / "store").mkdir()
    alone = Perdure(tmp_path / "store")
    id_ = alone.sent("CliCart/alice.add", '"apple"')

    (link,) = alone.json("why", id_)

    assert "waits for a host: none is there" in link["waits"]
    assert link["frees"][0].startswith("perdure up")
    assert alone.json("status")["without_host"] == list(range(16))
    assert "no host is there" in alone("status")


class CliUnsent(VirtualObject):
    @handler
    async def work(self, ctx: Context) -> None: ...


def test_why_says_that_no_host_has_the_code(perdure: Perdure) -> None:
    """Its program ran hosts="local", has not sent the class, and has ended."""
    client = Client(lambda: RedisStore(f"unix://{perdure.directory}/socket", is_ours=True), sends_code=False)
    client.open()
    current.set_driver(client)
    try:
        id_ = CliUnsent["a"].work.send().id
    finally:
        current.set_driver(None)
        client.close()

    (link,) = perdure.json("why", id_)

    assert "waits for the class CliUnsent" in link["waits"]
    assert "has not sent it" in link["waits"]


def test_why_says_that_its_host_has_fallen_silent(tmp_path: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "cli_program.py"), str(tmp_path / "store")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdout is not None
    assert program.stdout.readline() == "serving\n"
    alone = Perdure(tmp_path / "store")
    program.send_signal(signal.SIGSTOP)
    try:
        id_ = alone.sent("CliCart/alice.add", '"apple"')
        (link,) = alone.json("why", id_)
        assert "has fallen silent" in link["waits"]
    finally:
        program.send_signal(signal.SIGCONT)
        program.terminate()
        program.wait()
        program.stdout.close()


def test_why_says_that_nobody_has_stored_the_class(perdure: Perdure) -> None:
    """Its host refuses it, or waits for a program; both are said."""
    (link,) = perdure.json("why", perdure.sent("CliUnknown/x.run"))

    assert "ended: failed" in link["waits"] or "nobody has stored it" in link["waits"]


# ------------------------------------------------------------------------------------------------------------ projects


@pytest.mark.slow
def test_a_new_project_passes_its_test(tmp_path: Path) -> None:
    assert run("new", "my-shop", cwd=tmp_path).returncode == 0
    project = tmp_path / "my-shop"

    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{project}"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
        cwd=project,
        env=environment,
        capture_output=True,
        check=False,
        text=True,
        timeout=100,
    )

    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout
    again = run("new", "my-shop", cwd=tmp_path)
    assert (again.returncode, "is there already" in again.stderr) == (2, True)
    assert run("new", "5-a-day", cwd=tmp_path).returncode == 2
    assert json.loads(run("new", "other", "--json", cwd=tmp_path).stdout)["next"].startswith("cd other")


# -------------------------------------------------------------------------------------------------- objects and state


def test_objects_are_listed_by_prefix_with_their_status(perdure: Perdure) -> None:
    for key in ("stock-1", "stock-2", "other"):
        perdure("call", f"CliCart/{key}.add", '"apple"')
    id_ = perdure.sent("CliStuck/stock-3.wait")
    perdure.why("CliStuck/stock-3", "awakeable")

    rows = perdure.json("objects", "CliCart", "--prefix", "stock-")
    (held,) = perdure.json("objects", "CliStuck", "--prefix", "stock-")

    assert rows == [{"object": f"CliCart/stock-{n}", "status": "idle", "held_by": None} for n in (1, 2)]
    assert held == {"object": "CliStuck/stock-3", "status": "asleep: wait", "held_by": id_}
    assert perdure("objects", "CliCart", "--limit", "1").count("CliCart/") == 1
    assert perdure.json("objects", "CliCar") == []


def test_fields_are_read_set_and_cleared_by_their_annotations(perdure: Perdure) -> None:
    perdure("call", "CliCart/fields.add", '"apple"')

    perdure("state", "set", "CliCart/fields", "items", '{"pear": 7}')
    perdure("state", "set", "CliCart/fields", "note", '"for ann"')

    assert perdure.json("state", "get", "CliCart/fields") == {"items": {"pear": 7}, "note": "for ann"}
    assert perdure.json("state", "get", "CliCart/fields", "note") == "for ann"
    assert perdure.json("call", "CliCart/fields.view") == {"pear": 7}
    assert "does not take 5" in perdure("state", "set", "CliCart/fields", "note", "5", code=2)
    assert "declares no field 'nota'" in perdure("state", "set", "CliCart/fields", "nota", "5", code=2)
    assert "Perdure's own" in perdure("state", "set", "CliCart/fields", "@x", "5", "--undeclared", code=2)
    assert perdure.json("state", "clear", "CliCart/fields", "note")["cleared"] == ["note"]
    assert "say --yes" in perdure("state", "clear", "CliCart/fields", code=2)
    perdure("state", "clear", "CliCart/fields", "--yes")
    assert perdure.json("state", "get", "CliCart/fields") == {}
    assert "has no field" in perdure("state", "get", "CliCart/fields", "note", code=1)
    assert "no key" in perdure("state", "get", "CliMail", code=2)


def test_an_edit_waits_its_turn(perdure: Perdure) -> None:
    holder = perdure.sent("CliStuck/edited.gate")
    perdure.why("CliStuck/edited", "signal")

    late = perdure("state", "set", "CliStuck/edited", "done", "5", "--timeout", "0.3", code=1)

    assert "perdure why" in late
    assert perdure.json("state", "get", "CliStuck/edited") == {}
    perdure("invocations", "signal", holder, "open", '"now"')
    assert perdure.json("call", "CliStuck/edited.mark") == 6


def test_an_editor_changes_and_clears_fields(perdure: Perdure, tmp_path: Path) -> None:
    perdure("call", "CliCart/typed.add", '"apple"')
    perdure("state", "set", "CliCart/typed", "note", '"old"')
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\nprintf \'{"items": {"fig": 2}}\' > "$1"\n')
    editor.chmod(0o755)

    done = run("state", "edit", "CliCart/typed", "--directory", str(perdure.directory), EDITOR=str(editor), VISUAL="")

    assert (done.returncode, done.stderr) == (0, "")
    assert perdure.json("state", "get", "CliCart/typed") == {"items": {"fig": 2}}


def test_a_call_by_the_stores_class_sends_no_code(perdure: Perdure) -> None:
    """The class that is taken from the store keeps its hash: its messages name the code that is there."""
    first, second = (perdure.sent(f"CliStuck/coded-{n}.nap") for n in range(2))

    codes = {perdure.json("invocations", "show", id_)["code"] for id_ in (first, second)}

    assert len(codes) == 1
    assert codes != {None}


# ------------------------------------------------------------------------------------ failing, schedules and fitness


def test_failures_are_grouped_by_type_handler_and_error(perdure: Perdure) -> None:
    retries = [perdure.sent(f"CliStuck/fails-{n}.retry") for n in range(2)]
    paused = perdure.sent("CliStuck/fails-2.pause")
    perdure.why(paused, "is paused")

    rows = perdure.until(
        lambda rows: sum(row["retrying"] for row in rows if row["handler"] == "retry") >= 2,
        *("failing", "--type", "CliStuck"),
    )

    by_handler = {row["handler"]: row for row in rows}
    assert by_handler.keys() == {"retry", "pause"}
    retry, pause = by_handler["retry"], by_handler["pause"]
    assert (retry["type"], retry["error"], retry["paused"]) == ("CliStuck", "ValueError", 0)
    assert (pause["error"], pause["retrying"], pause["paused"] >= 1) == ("ValueError", 0, True)
    assert "no luck" in retry["says"]
    assert retry["next_attempt"] > retry["since"]
    assert perdure.json("failing", "--type", "CliCart") == []
    assert "nothing is failing" in perdure("failing", "--type", "CliCart")
    perdure("invocations", "kill", *retries, paused)


def test_schedules_are_listed_and_acted_on(perdure: Perdure) -> None:
    (row,) = perdure.until(bool, "schedules", "list")
    name = row["name"]
    assert (row["target"], row["ticks"], row["paused"]) == ("CliStuck/ticking.mark", "0 0 1 1 *", False)
    assert row["next"].endswith("-01-01T00:00:00.000+00:00")

    perdure("schedules", "pause", name)
    fired = perdure("schedules", "trigger", name).strip()

    (paused,) = perdure.json("schedules", "list")
    assert (paused["paused"], paused["next"]) == (True, None)
    assert perdure.until(lambda data: data["status"] == "succeeded", "invocations", "show", fired)["result"] == 1
    perdure("schedules", "resume", name)
    assert perdure.json("schedules", "list") == [row]
    perdure("schedules", "delete", name)
    assert perdure.until(lambda rows: not rows, "schedules", "list") == []
    assert "there is no schedule" in perdure("schedules", "pause", name, code=1)


def test_a_fit_store_is_said_to_be_fit(perdure: Perdure) -> None:
    rows = {row["what"]: row for row in perdure.json("check")}

    assert {row["verdict"] for row in rows.values()} <= {"ok", "warning"}  # a machine under load syncs slowly
    assert rows["appendfsync"]["value"] == "always"
    assert {"store", "version", "role", "memory", "synced write", "clock", "ray"} <= rows.keys()
    assert "appendfsync" in perdure("check")


def test_a_store_that_loses_data_is_said_not_to_be_fit(tmp_path: Path) -> None:
    server = Server(valkey_binary(), tmp_path, "--appendonly", "no", "--maxmemory-policy", "allkeys-lru")
    try:
        done = run("check", "--json", "--redis", server.url)
        left = ask(server.url, "DBSIZE")
    finally:
        server.kill()

    assert done.returncode == 1
    wrong = {row["what"]: row["why"] for row in json.loads(done.stdout) if row["verdict"] == "bad"}
    assert wrong.keys() == {"appendonly", "appendfsync", "maxmemory-policy"}
    assert "set `appendonly yes`" in wrong["appendonly"]
    assert left == [b":0"]  # it leaves nothing behind


def test_up_and_down_say_where_a_store_is_wanted(tmp_path: Path) -> None:
    for name in ("up", "down"):
        done = run(name, cwd=tmp_path, PERDURE_REDIS="")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1)
        assert "--redis redis://HOST:PORT/0" in done.stderr


def test_ends_are_listed_newest_first_across_all_shards(perdure: Perdure) -> None:
    ids = [perdure.sent(f"CliStuck/ends-{n}.mark") for n in range(6)]
    for id_ in ids:
        perdure.until(lambda data: data["status"] == "succeeded", "invocations", "show", id_)

    rows = perdure.json("invocations", "list", "--status", "succeeded", "--limit", "50")

    assert [row["id"] for row in rows[:6]] == ids[::-1]
    assert [row["at"] for row in rows] == sorted((row["at"] for row in rows), reverse=True)


def test_sql_counts_by_type_and_status(perdure: Perdure) -> None:
    ids = [perdure.sent(f"CliStuck/sql-{n}.wait") for n in range(3)]
    for id_ in ids:
        perdure.until(lambda data: data["status"] == "asleep", "invocations", "show", id_)
    perdure("call", "CliCart/sql\udcff.add", '"apple"')
    where = "WHERE type = 'CliStuck' AND key LIKE 'sql-%' GROUP BY ALL"

    assert perdure.json("sql", f"SELECT type, status, count(*) AS n FROM invocations {where}") == [
        {"type": "CliStuck", "status": "asleep", "n": 3}
    ]
    assert perdure.json("sql", "SELECT shards FROM hosts") == [{"shards": list(range(16))}]
    assert perdure.json("sql", "SELECT count(*) AS n FROM shards WHERE host IS NOT NULL") == [{"n": 16}]
    (row,) = perdure.json("sql", "SELECT value->>'apple' AS apples FROM state WHERE key = 'sql\\udcff'")
    assert row == {"apples": "1"}
    assert "The tables are invocations" in perdure("sql", "SELECT * FROM invocation", code=2)
    assert "asleep" in perdure("sql", f"SELECT status FROM invocations {where}")
    assert perdure.json("sql", "SELECT max(time) > TIMESTAMPTZ '2020-01-01' AS is_time FROM invocations") == [
        {"is_time": True}
    ]
