"""Text that is no valid UTF-8, as `os.listdir` gives it, wherever users say text. It works, in each place alike.

Refused where it is said it would be a trap: names of files are keys, messages of errors quote them, and who has either
cannot do anything about it. Stored is what Python makes of it with `surrogatepass`. Surrogates that stand side by side
stay two; JSON would make one character of them.
"""

import asyncio
import io
import json
import logging
import sys
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, cast

import pytest
from test_semantics import Simulation, failure_of, mode, played

import actors
from actors import Context, Policy, Retry, TerminalError, VirtualObject, Workflow, handler, shared, state
from actors.ray import hosts
from actors.requests.current import caller
from actors.requests.request import EMPTY_OPTIONS, Request
from actors.session import init, shutdown
from journal.embedded.guard import pause
from journal.records import Message, Record, pack, unpack

__all__ = ["mode"]

ODD = "caf\udce9\udce8 \ud83d\ude00.txt"
"""A name that is no valid UTF-8, with a pair of surrogates that JSON would join."""


class Odd(VirtualObject, ttl=timedelta(minutes=5)):
    text: str = state("")
    texts: dict[str, str] = state(default_factory=dict)

    @handler
    async def keep(self, ctx: Context, text: str) -> list[Any]:
        self.text = text
        self.texts[text] = text
        ctx.set(text, text)
        assert await ctx.run(text, lambda: text) == text
        await ctx.sleep(0.01, name=text)
        assert (
            await Odd[f"{ctx.key} again"].echo.options(headers={text: text}, idempotency_key=text).remote(text) == text
        )
        Odd[f"{ctx.key} too"].echo.send(text)
        return [self.text, self.texts, ctx.get(text), ctx.keys(), ctx.key, dict(ctx.headers)]

    @shared
    async def view(self, ctx: Context) -> list[Any]:
        return [self.text, self.texts, ctx.key]

    @handler
    async def echo(self, ctx: Context, text: str) -> str:
        assert ctx.headers in ({}, {text: text})
        return text

    @handler
    async def waits(self, ctx: Context) -> str:
        return await ctx.signal(ODD, str) + await ctx.signal("other", str)

    @handler(policy=Policy(retry=Retry(initial=0.01, max_attempts=2)))
    async def fails(self, ctx: Context, how: str) -> None:
        if how == "terminal":
            raise TerminalError(ODD, 409, {ODD: ODD})
        raise KeyError(ODD)

    @handler(policy=Policy(retry=Retry(max_attempts=1, on_exhausted="pause")))
    async def pauses(self, ctx: Context) -> None:
        raise KeyError(ODD)


class OddFlow(Workflow):
    @handler
    async def run(self, ctx: Context) -> str:
        assert len({ctx.promise(ODD, str)}) == 1
        return await ctx.promise(ODD, str)

    @shared
    async def approve(self, ctx: Context) -> None:
        ctx.promise(ODD, str).resolve(ODD)


def test_any_text_is_a_key_a_name_and_a_value(mode: Policy | None) -> None:
    """Issue 15.1."""

    async def scenario(world: Simulation) -> None:
        kept = Odd[ODD].keep.options(headers={ODD: ODD}, idempotency_key=ODD).remote(ODD)
        assert await kept == [ODD, {ODD: ODD}, ODD, sorted(["text", "texts", ODD]), ODD, {ODD: ODD}]
        assert await Odd[ODD].view.remote() == [ODD, {ODD: ODD}, ODD]
        waits = Odd[ODD].waits.remote()
        await asyncio.sleep(1)
        waits.signal(ODD, ODD)
        await asyncio.sleep(1)
        waits.signal("other", ODD)
        assert await waits == ODD + ODD
        flow = OddFlow[ODD].run.remote()
        await asyncio.sleep(1)
        await OddFlow[ODD].approve.remote()
        assert await flow == ODD
        for how in ("terminal", "other"):
            error = await failure_of(Odd[ODD].fails.remote(how))
            assert ODD in str(error) or repr(ODD) in str(error)
        error = await failure_of(caller().start(Request("Odd", ODD, ODD, (), {}, False, EMPTY_OPTIONS, None, None)))
        assert error.code == 404
        paused = Odd[ODD].pauses.remote()
        await world.until_status(paused, "paused")
        paused.kill()
        assert await Odd[ODD].echo.remote("after") == "after"
        assert world.elapsed < 30

    played(scenario, mode, ["a"])


def test_state_of_any_name_is_over_in_time(mode: Policy | None) -> None:
    """Issue 15.1: the timer of a key, and its event."""

    async def scenario(world: Simulation) -> None:
        await Odd[ODD].keep.remote(ODD)
        await asyncio.sleep(600)
        assert await Odd[ODD].view.remote() == ["", {}, ODD]

    played(scenario, mode, ["a"])


def test_what_an_older_version_has_stored_is_read() -> None:
    """Issue 15.1: surrogates lay in the store as escapes."""
    message = Message("old-0", "Odd/caf\udce9", "echo", b"J[[],{}]", headers={"\udce9": "\U0001f600"})
    header, _ = unpack(message.encoded())
    assert Message.parse(json.dumps(header).encode() + b"\n" + message.arguments) == message


def test_the_layout_keeps_any_text() -> None:
    for text in (ODD, "\ud83d\ude00", "\udce9", "plain", "\U0001f600"):
        assert unpack(pack([text], (b"value",))) == ([text], b"value")
        record = Record(entries=[f"run {text}"], olds={text: b"old"}, error=text)
        assert Record.parse(record.encoded()) == record


@pytest.fixture(scope="module")
def connected(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    init(hosts="local", directory=tmp_path_factory.mktemp("perdure"), namespace=f"of {ODD}")
    yield
    shutdown()


@pytest.mark.usefixtures("connected")
def test_any_text_goes_through_a_server() -> None:
    """Issue 15.1: keys, fields, names and headers, in a namespace of such a name."""
    kept = Odd[ODD].keep.options(headers={ODD: ODD}, idempotency_key=ODD).remote(ODD)
    found = [ODD, {ODD: ODD}, ODD, sorted(["text", "texts", ODD]), ODD, {ODD: ODD}]
    assert kept.result(timeout=20) == found
    assert actors.attach(kept.id).result(timeout=20) == found
    assert Odd[ODD].view.remote().result(timeout=20) == [ODD, {ODD: ODD}, ODD]
    waits = Odd[ODD].waits.remote()
    waits.signal(ODD, ODD)
    waits.signal("other", ODD)
    assert waits.result(timeout=20) == ODD + ODD
    for how in ("terminal", "other"):
        with pytest.raises(TerminalError) as caught:
            Odd[ODD].fails.remote(how).result(timeout=20)
        assert ODD in str(caught.value) or repr(ODD) in str(caught.value)
    schedule = Odd[ODD].echo.schedule(ODD, every="1d", name=ODD)
    assert schedule.status().result(timeout=20).next_due is not None
    schedule.delete().result(timeout=20)
    paused = Odd[ODD].pauses.remote()
    waiting = Odd[ODD].echo.remote("after")
    while not paused.status().startswith("paused"):
        pause()
    paused.kill()
    assert waiting.result(timeout=20) == "after"


def test_a_host_on_ray_logs_any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Issue 15.1: the file that Ray keeps of a process takes valid UTF-8 alone, and the line was lost."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    monkeypatch.setattr("sys.stderr", io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict", write_through=True))
    monkeypatch.setattr(logging, "raiseExceptions", True)
    hosts.log_here()
    try:
        raise KeyError(ODD)
    except KeyError:
        logging.getLogger("actors").warning("Odd/%s has failed", ODD, exc_info=True)
    written = cast("Any", sys.stderr).buffer.getvalue().decode()
    assert "Odd/caf\\udce9\\udce8 \\ud83d\\ude00.txt has failed\n" in written
    assert "Logging error" not in written
