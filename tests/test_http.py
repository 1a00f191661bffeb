"""HTTP: each answer of the table, from a real server on a real store."""

import asyncio
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import Enum
from types import SimpleNamespace
from typing import Annotated, Any, NotRequired, TypedDict
from uuid import UUID

import pytest
from pydantic import BaseModel, Field
from web import Web

import actors
from actors import (
    Cancelled,
    Context,
    Limits,
    Service,
    TerminalError,
    UsageError,
    VirtualObject,
    Workflow,
    handler,
    shared,
    state,
)
from actors.http import app

COLOURS = ["red", "blue"]


class HttpColour(Enum):
    RED = "red"
    BLUE = "blue"


class HttpItem(BaseModel):
    name: str
    count: Annotated[int, Field(gt=0)] = 1
    at: datetime | None = None


@dataclass
class HttpPoint:
    x: float
    y: float = 0.0


class HttpOrder(TypedDict):
    item: str
    gift: NotRequired[bool]


class HttpNode(TypedDict):
    value: int
    next: NotRequired["HttpNode | None"]


class HttpCart(VirtualObject):
    items: dict[str, int] = state(default_factory=dict)
    noted: str = state("")

    @handler
    async def add(self, ctx: Context, item: str, count: int = 1) -> int:
        self.items[item] = self.items.get(item, 0) + count
        return self.items[item]

    @handler
    async def note(self, ctx: Context, text: str) -> None:
        self.noted = text

    @handler
    async def clear(self, ctx: Context) -> None:
        self.items = {}

    @shared
    async def all(self, ctx: Context) -> dict[str, int]:
        return dict(self.items)

    @shared
    async def noted_text(self, ctx: Context) -> str:
        return self.noted

    @shared(http_get=True)
    async def count(self, ctx: Context, item: str = "apple", times: int = 1, also: list[str] | None = None) -> int:
        return (self.items.get(item, 0) + sum(self.items.get(one, 0) for one in also or ())) * times

    @handler(private=True)
    async def secret(self, ctx: Context) -> str:
        return "never"

    @shared
    async def key(self, ctx: Context) -> str:
        assert ctx.key is not None
        return ctx.key


class HttpWork(Service):
    @handler
    async def headers(self, ctx: Context) -> dict[str, str]:
        return dict(ctx.headers)

    @handler
    async def echo(self, ctx: Context, value: Any) -> Any:
        return value

    @handler
    async def raw(self, ctx: Context, data: bytes) -> bytes:
        return data[::-1]

    @handler
    async def order(self, ctx: Context, order: HttpOrder) -> str:
        return order["item"]

    @handler
    async def node(self, ctx: Context, node: HttpNode) -> int:
        return node["value"]

    @handler
    async def item(self, ctx: Context, item: HttpItem) -> HttpItem:
        return item

    @handler
    async def kinds(
        self,
        ctx: Context,
        when: datetime,
        who: UUID,
        colour: HttpColour,
        point: HttpPoint,
        pair: tuple[int, str],
        some: set[int],
        blob: bytes = b"",
    ) -> dict[str, Any]:
        assert isinstance(when, datetime)
        assert isinstance(point, HttpPoint)
        return {
            "when": when,
            "who": who,
            "colour": colour,
            "point": point,
            "pair": pair,
            "some": some,
            "blob": blob,
        }

    @handler
    async def many(self, ctx: Context, first: int, /, *rest: int, named: str = "", **more: int) -> list[Any]:
        return [first, list(rest), named, more]

    @handler
    async def fail(self, ctx: Context, code: int = 418, message: str = "no tea") -> None:
        raise TerminalError(message, code, {"pot": "small"})

    @handler
    async def wait(self, ctx: Context, seconds: float) -> str:
        try:
            await asyncio.sleep(seconds)
        except Cancelled:
            ENDED.append(ctx.id)
            raise
        return "rested"

    @handler
    async def gate(self, ctx: Context) -> str:
        gate = ctx.awakeable(str)
        HttpShelf["ids"].put.send(ctx.id, gate.id)
        return await gate

    @handler
    async def signalled(self, ctx: Context) -> int:
        return await ctx.signal("paid", int)

    @handler
    async def unshowable(self, ctx: Context) -> Any:
        return {(1, 2): object}

    @handler
    async def large(self, ctx: Context, size: int) -> bytes:
        return b"x" * size


ENDED: list[str] = []


class HttpShelf(VirtualObject):
    @handler
    async def put(self, ctx: Context, name: str, value: str) -> None:
        ctx.set(name, value)

    @shared
    async def take(self, ctx: Context, name: str) -> str:
        return ctx.get(name, "")


class HttpSignup(Workflow):
    @handler
    async def run(self, ctx: Context, email: str) -> str:
        await ctx.promise("approved", bool)
        return f"{email} is in"

    @shared
    async def approve(self, ctx: Context) -> None:
        ctx.promise("approved", bool).resolve(True)


@pytest.fixture(scope="module")
def web(valkey_url: str) -> Iterator[Web]:
    with actors.init(valkey_url, namespace="http", hosts="local", limits=Limits(pending_max=1_000)):
        server = Web()
        yield server
        server.stop()


def test_a_call_answers_with_the_result_and_the_id(web: Web) -> None:
    got = web.post("/HttpCart/alice/add", {"item": "apple", "count": 2})

    assert (got.status, got.body) == (200, b"2")
    assert got.headers["content-type"] == "application/json"
    assert actors.attach(got.id).result() == 2


def test_nothing_is_204_without_a_body(web: Web) -> None:
    got = web.post("/HttpCart/alice/clear")

    assert (got.status, got.body) == (204, b"")
    assert got.id
    assert "content-type" not in got.headers


def test_none_of_another_annotation_is_null(web: Web) -> None:
    assert web.post("/HttpWork/echo", b"null", content_type="application/json").body == b"null"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'"pear"', b"1"),  # the rest has defaults: it is an object by names all the same
        (b'{"item": "pear"}', b"1"),
        (b'{"item": "pear", "count": 3}', b"4"),
    ],
)
def test_several_parameters_are_an_object_by_names(web: Web, body: bytes, expected: bytes) -> None:
    got = web.post("/HttpCart/names/add", body, content_type="application/json")

    if body.startswith(b'"'):
        assert got.status == 400
    else:
        assert (got.status, got.body) == (200, expected)


def test_one_parameter_is_its_value_or_an_object_with_its_name(web: Web) -> None:
    assert web.post("/HttpCart/one/note", "hello").status == 204
    assert web.post("/HttpCart/one/noted_text").json == "hello"
    assert web.post("/HttpCart/one/note", {"text": "named"}).status == 204
    assert web.post("/HttpCart/one/noted_text").json == "named"


def test_an_object_is_the_value_of_a_parameter_that_is_one(web: Web) -> None:
    assert web.post("/HttpWork/order", {"item": "cup", "gift": True}).json == "cup"
    assert web.post("/HttpWork/item", {"name": "cup"}).json == {"name": "cup", "count": 1, "at": None}
    assert web.post("/HttpWork/node", {"value": 1, "next": {"value": 2}}).json == 1
    assert web.post("/HttpWork/order", {"order": {"item": "cup"}}).status == 400


def test_bytes_are_the_body_itself(web: Web) -> None:
    got = web.post("/HttpWork/raw", b"\x00\xffabc", content_type="image/png")

    assert (got.status, got.body) == (200, b"cba\xff\x00")
    assert got.headers["content-type"] == "application/octet-stream"


def test_values_are_read_by_annotation(web: Web) -> None:
    sent = {
        "when": "2026-11-28T12:00:00Z",
        "who": "12345678-1234-5678-1234-567812345678",
        "colour": "red",
        "point": {"x": 1, "y": 2.5},
        "pair": [1, "a"],
        "some": [3],
        "blob": "AAH/",
    }

    got = web.post("/HttpWork/kinds", sent)

    assert got.status == 200, got.body
    assert got.json == {**sent, "point": {"x": 1.0, "y": 2.5}, "blob": "AAH_"}  # of base64, URLs' own letters


def test_many_kinds_of_parameters(web: Web) -> None:
    got = web.post("/HttpWork/many", {"first": 1, "rest": [2, 3], "named": "x", "more": 4})

    assert got.json == [1, [2, 3], "x", {"more": 4}]


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/HttpCart/a/add", b'{"item": "apple", "count": "2"}', "count"),
        ("/HttpCart/a/add", b'{"item": "apple", "count": true}', "count"),
        ("/HttpCart/a/add", b'{"item": "apple", "count": 1.5}', "count"),
        ("/HttpCart/a/add", b'{"count": 1}', "item"),
        ("/HttpCart/a/add", b'{"item": "a", "colour": "red"}', "colour"),
        ("/HttpCart/a/add", b"", "item"),
        ("/HttpCart/a/note", b"12", "text"),
        ("/HttpCart/a/clear", b"12", ""),
        ("/HttpWork/item", b'{"name": "a", "count": 0}', "count"),
        ("/HttpWork/item", b'{"name": 1}', "name"),
        ("/HttpWork/many", b'{"first": 1, "more": "x"}', "more"),
        ("/HttpWork/many", b'{"first": 1, "rest": ["x"]}', "rest"),
        ("/HttpCart/a/add", b"{", ""),
        ("/HttpCart/a/add", b"NaN", ""),
        ("/HttpWork/echo", b"[NaN]", ""),
        ("/HttpWork/echo", b"[" * 100_000, ""),
        ("/HttpWork/echo", b'"\\ud800"', ""),
        ("/HttpWork/echo", b"\xff\xfe", ""),
        ("/HttpWork/wait", b"Infinity", ""),
    ],
)
def test_a_body_that_does_not_fit_is_400_and_names_the_field(web: Web, path: str, body: bytes, field: str) -> None:
    got = web.post(path, body, content_type="application/json")

    assert got.status == 400
    assert got.headers["perdure-error-source"] == "request"
    assert (got.json["code"], got.json["source"]) == (400, "request")
    assert field in got.json["message"]
    assert "perdure-invocation" not in got.headers


def test_wide_numbers_keep_all_their_digits(web: Web) -> None:
    assert web.post("/HttpWork/echo", b"123456789012345678901234567890", content_type="application/json").body == (
        b"123456789012345678901234567890"
    )


def test_a_terminal_error_has_one_shape(web: Web) -> None:
    got = web.post("/HttpWork/fail", {})

    assert got.status == 418
    assert got.json == {
        "message": "no tea",
        "code": 418,
        "source": "handler",
        "id": got.id,
        "metadata": {"pot": "small"},
    }
    assert got.headers["perdure-error-source"] == "handler"


@pytest.mark.parametrize(("code", "status"), [(200, 500), (399, 500), (400, 400), (599, 599), (600, 500), (-1, 500)])
def test_codes_that_are_none_of_an_error_become_500(web: Web, code: int, status: int) -> None:
    got = web.post("/HttpWork/fail", {"code": code, "message": "x\r\nset-cookie: a=b"})

    assert (got.status, got.json["code"]) == (status, status)
    assert "set-cookie" not in got.headers


def test_a_result_that_json_cannot_show_is_500(web: Web) -> None:
    got = web.post("/HttpWork/unshowable")

    assert (got.status, got.json["source"]) == (500, "handler")
    assert got.id


def test_what_is_unknown_is_404_and_lists_what_is_known(web: Web) -> None:
    assert "HttpCart" in web.post("/HttpCat/a/add").json["message"] or web.post("/HttpCat/a/add").status == 404
    got = web.post("/HttpCart/a/ad")
    assert (got.status, got.json["code"]) == (404, 404)
    assert "add" in got.json["message"]
    for path in (
        "/",
        "/HttpCart",
        "/HttpCart/a",
        "/HttpCart/a/add/send/more",
        "/HttpWork/a/echo/x",
        "/perdure.Schedule/a/status",
    ):
        assert web.post(path).status == 404, path


def test_a_private_handler_is_403(web: Web) -> None:
    for path in ("/HttpCart/a/secret", "/HttpCart/a/secret/send"):
        assert web.post(path).status == 403
    assert web.get("/HttpCart/a/secret").status == 403
    assert HttpCart["a"].secret.remote().result() == "never"


def test_get_calls_a_shared_handler_that_says_so(web: Web) -> None:
    web.post("/HttpCart/getter/add", {"item": "apple", "count": 2})
    web.post("/HttpCart/getter/add", {"item": "pear", "count": 5})

    assert web.get("/HttpCart/getter/count").json == 2
    assert web.get("/HttpCart/getter/count?item=pear&times=3").json == 15
    assert web.get("/HttpCart/getter/count?also=pear&also=apple").json == 9
    assert web.post("/HttpCart/getter/count", {"item": "pear"}).json == 5
    assert web.get("/HttpCart/getter/count?times=x").status == 400
    assert web.get("/HttpCart/getter/count?colour=x").status == 400
    assert web.get("/HttpCart/getter/count?item=%ff").status == 400


def test_another_method_is_405_and_says_which(web: Web) -> None:
    got = web.get("/HttpCart/a/add")
    assert (got.status, got.headers["allow"]) == (405, "POST")
    assert web.ask("PUT", "/HttpCart/a/count").headers["allow"] == "GET, POST"
    assert web.post("/health").status == 405
    assert web.get("/invocations/abc-1/cancel").status == 405


def test_http_get_and_private_are_refused_where_they_mean_nothing() -> None:
    """Declarations that contradict themselves."""
    with pytest.raises(UsageError, match="shared"):
        handler(http_get=True)
    with pytest.raises(UsageError, match="private"):
        shared(http_get=True, private=True)


def test_a_body_of_another_kind_is_415(web: Web) -> None:
    assert web.post("/HttpCart/a/note", b"text=a", content_type="application/x-www-form-urlencoded").status == 415
    assert web.post("/HttpCart/a/note", b'"a"', content_type="application/vnd.api+json; charset=utf-8").status == 204
    assert web.post("/HttpCart/a/note", b'"a"').status == 204


def test_a_body_that_is_too_large_is_413(web: Web) -> None:
    got = web.post("/HttpWork/raw", b"x" * 8_000_001)

    assert (got.status, got.json["code"]) == (413, 413)
    assert web.post("/HttpWork/raw", b"x" * 7_999_990).status in (200, 413)  # a pickle of it may be too large


# ------------------------------------------------------------------------------------------------------------- sends


def test_a_send_is_202_with_its_id(web: Web) -> None:
    got = web.post("/HttpCart/sent/add/send", {"item": "apple"})

    assert (got.status, got.json) == (202, {"id": got.id, "status": "accepted"})
    assert actors.attach(got.id).result() == 1
    assert web.post("/HttpWork/echo/send", 1).status == 202


@pytest.mark.parametrize(
    ("delay", "seconds"),
    [("10m", 600), ("PT10M", 600), ("600", 600), ("P1DT1S", 86_401), ("1.5", 1.5), ("250ms", 0.25)],
)
def test_a_delayed_send_says_when_it_is_due(web: Web, delay: str, seconds: float) -> None:
    got = web.post(f"/HttpCart/later/clear/send?delay={delay}")

    due = datetime.fromisoformat(got.json["due"])
    assert got.status == 202
    assert abs(due - datetime.now(UTC) - timedelta(seconds=seconds)) < timedelta(seconds=10)


@pytest.mark.parametrize("delay", ["soon", "-1", "PT", "P", "1e9", "9" * 30, "10M"])
def test_a_delay_that_is_none_is_400(web: Web, delay: str) -> None:
    assert web.post(f"/HttpCart/later/clear/send?delay={delay}").status == 400


def test_an_idempotency_key_is_one_invocation(web: Web) -> None:
    first = web.post("/HttpCart/once/add/send", {"item": "apple"}, idempotency_key="k1")
    again = web.post("/HttpCart/once/add/send", {"item": "apple"}, idempotency_key="k1")
    called = web.post("/HttpCart/once/add", {"item": "apple"}, idempotency_key="k1")
    other = web.post("/HttpCart/once/add", {"item": "pear"}, idempotency_key="k1")

    assert (first.json["status"], again.json["status"]) == ("accepted", "known")
    assert first.id == again.id == called.id == other.id
    assert called.json == 1
    assert (other.status, other.json["source"]) == (422, "request")
    assert "idempotency key" in other.json["message"]


def test_prefer_wait_answers_202_where_it_takes_longer(web: Web) -> None:
    slow = web.post("/HttpWork/wait", 0.4, prefer="wait=0.05")
    quick = web.post("/HttpWork/wait", 0.01, prefer="respond-async, wait=10")

    assert (slow.status, slow.json) == (202, {"id": slow.id, "status": "accepted"})
    assert (quick.status, quick.json) == (200, "rested")
    assert web.get(f"/invocations/{slow.id}/attach").json == "rested"
    assert web.post("/HttpWork/echo", 1, prefer="wait=soon").status == 400


def test_a_timeout_is_408_and_cancels(web: Web) -> None:
    for path, headers in (("/HttpWork/wait", {"perdure_timeout": "100ms"}), ("/HttpWork/wait?timeout=0.1", {})):
        got = web.post(path, 30, **headers)

        assert (got.status, got.json["source"], got.json["id"]) == (408, "request", got.id)
        with pytest.raises(Cancelled):
            actors.attach(got.id).result(10)


def test_headers_reach_the_handler_but_for_secrets(web: Web) -> None:
    got = web.post(
        "/HttpWork/headers",
        x_trace="a",
        traceparent="00-1-2-3",
        cookie="secret=1",
        authorization="Bearer secret",
        proxy_authorization="secret",
        connection="close",
        perdure_timeout="10s",
        perdure_scheduled_at="2020",
        te="trailers",
    ).json

    assert (got["x-trace"], got["traceparent"]) == ("a", "00-1-2-3")
    assert "secret" not in json.dumps(got)
    assert not {"cookie", "authorization", "connection", "te", "perdure-timeout", "perdure-scheduled-at"} & got.keys()


# ----------------------------------------------------------------------------------------------------------- lookups


def test_an_invocation_is_shown(web: Web) -> None:
    got = web.post("/HttpWork/wait/send", 0.3)
    shown = web.get(f"/invocations/{got.id}")

    assert shown.status == 200
    assert (shown.json["id"], shown.json["target"], shown.json["handler"]) == (got.id, "HttpWork", "wait")
    assert shown.json["status"] in ("open", "asleep")
    assert web.get(f"/invocations/{got.id}/output").status == 202
    assert web.get(f"/invocations/{got.id}/attach").json == "rested"
    assert web.get(f"/invocations/{got.id}/output").json == "rested"
    assert web.get(f"/invocations/{got.id}").json["status"] == "succeeded"


def test_a_failure_is_an_outcome(web: Web) -> None:
    got = web.post("/HttpWork/fail/send", {})

    assert web.get(f"/invocations/{got.id}/attach").status == 418
    assert web.get(f"/invocations/{got.id}/output").json["message"] == "no tea"


@pytest.mark.parametrize("verb", ["", "/attach", "/output"])
def test_an_unknown_invocation_is_404(web: Web, verb: str) -> None:
    assert web.get(f"/invocations/abcdef-3{verb}").status == 404
    assert web.get(f"/invocations/abcdef-99{verb}").status == 404
    assert web.get(f"/invocations/abcdef{verb}").status == 400


def test_an_invocation_is_cancelled_and_killed(web: Web) -> None:
    for verb in ("cancel", "kill"):
        got = web.post("/HttpWork/wait/send", 30)
        assert web.post(f"/invocations/{got.id}/{verb}").status == 202
        ended = web.get(f"/invocations/{got.id}/attach")
        assert (ended.status, ended.json["source"]) == (409, "handler")
        assert web.post(f"/invocations/{got.id}/resume").status == 202
    for verb in ("cancel", "kill", "resume", "restart"):
        assert web.post(f"/invocations/abcdef-3/{verb}").status == 404
    assert web.post(f"/invocations/{got.id}/restart", {"from_entry": "x"}).status == 400


def test_a_signal_arrives(web: Web) -> None:
    got = web.post("/HttpWork/signalled/send")

    assert web.post(f"/invocations/{got.id}/signals/paid", 12).status == 202
    assert web.get(f"/invocations/{got.id}/attach").json == 12


def awakeable_of(web: Web) -> tuple[str, str]:
    got = web.post("/HttpWork/gate/send")
    for _ in range(200):
        if gate := web.post("/HttpShelf/ids/take", got.id).json:
            return got.id, gate
    raise AssertionError("no awakeable")


def test_an_awakeable_is_resolved_once(web: Web) -> None:
    id_, gate = awakeable_of(web)

    assert web.post(f"/awakeables/{gate}/resolve", "yes").status == 202
    assert web.get(f"/invocations/{id_}/attach").json == "yes"
    assert web.post(f"/awakeables/{gate}/resolve", "yes").status == 202


def test_an_awakeable_is_rejected(web: Web) -> None:
    id_, gate = awakeable_of(web)

    assert web.post(f"/awakeables/{gate}/reject", {"message": "not today"}).status == 202
    got = web.get(f"/invocations/{id_}/attach")
    assert (got.status, got.json["message"]) == (500, "not today")


def test_an_awakeable_is_400_or_404_where_it_is_none(web: Web) -> None:
    assert web.post("/awakeables/nonsense/resolve", 1).status == 400
    assert web.post("/awakeables/awakeable.abcdef-3.0/resolve", 1).status == 404
    assert web.post("/awakeables/awakeable.abcdef-77.0/resolve", 1).status == 404
    assert web.post("/awakeables/awakeable.abcdef-3.0/resolve", b"{", content_type="application/json").status == 400


class HttpTwoGates(Service):
    @handler
    async def both(self, ctx: Context) -> str:
        first, second = ctx.awakeable(str), ctx.awakeable(str)
        HttpShelf["ids"].put.send(ctx.id, f"{first.id} {second.id}")
        return await second + await first


def test_a_second_value_of_an_awakeable_is_409(web: Web) -> None:
    got = web.post("/HttpTwoGates/both/send")
    gates = ""
    while not gates:
        gates = web.post("/HttpShelf/ids/take", got.id).json
    first, second = gates.split(" ")

    assert web.post(f"/awakeables/{first}/resolve", "a").status == 202
    assert web.post(f"/awakeables/{first}/resolve", "a").status == 202
    assert web.post(f"/awakeables/{first}/resolve", "b").status == 409
    assert web.post(f"/awakeables/{first}/reject", "b").status == 409
    assert web.post(f"/awakeables/{second}/resolve", "b").status == 202
    assert web.get(f"/invocations/{got.id}/attach").json == "ba"


def test_a_workflow_runs_once(web: Web) -> None:
    unknown = web.get("/HttpSignup/nobody/output")
    first = web.post("/HttpSignup/ann/run/send", "ann@x", idempotency_key="k")
    again = web.post("/HttpSignup/ann/run/send", "ann@x", idempotency_key="k")
    other = web.post("/HttpSignup/ann/run", "bob@x")
    waiting = web.get("/HttpSignup/ann/output")

    assert (unknown.status, first.status, waiting.status) == (404, 202, 202)
    assert (again.json["status"], again.id) == ("known", first.id)
    assert (other.status, other.id, other.json["source"]) == (409, first.id, "request")
    assert web.post("/HttpSignup/ann/approve").status == 204
    assert web.get("/HttpSignup/ann/attach").json == "ann@x is in"
    assert web.get("/HttpSignup/ann/output").json == "ann@x is in"


# ----------------------------------------------------------------------------------------------- about, and the hostile


def test_health_and_ready(web: Web) -> None:
    assert web.get("/health").json == {"status": "ok"}
    assert web.get("/ready").json == {"status": "ready", "hosts": 1, "shards": 16}


def test_the_description_has_every_handler(web: Web) -> None:
    api = web.get("/openapi.json").json

    assert api["openapi"] == "3.1.0"
    call = api["paths"]["/HttpCart/{key}/add"]["post"]
    schema = call["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["count"]["type"] == "integer"
    assert schema["required"] == ["item"]
    assert "get" in api["paths"]["/HttpCart/{key}/count"]
    assert "/HttpCart/{key}/secret" not in api["paths"]
    assert "204" in api["paths"]["/HttpCart/{key}/clear"]["post"]["responses"]
    named = set(re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(api)))
    assert named <= api["components"]["schemas"].keys()


def test_the_page_asks_nobody_else(web: Web) -> None:
    page = web.get("/docs")

    assert page.status == 200
    assert b"http://" not in page.body
    assert b"https://" not in page.body
    assert "default-src 'none'" in page.headers["content-security-policy"]


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("%2e%2e", ".."),
        ("..", ".."),
        ("a%2Fb", "a/b"),
        ("a%252Fb", "a%2Fb"),
        ("a%00b", "a\0b"),
        ("%C3%A9", "é"),
        ("e%CC%81", "e\u0301"),
        ("x" * 5_000, "x" * 5_000),
        ("a+b%20c", "a+b c"),
        ("%0d%0aset-cookie:%20a=b", "\r\nset-cookie: a=b"),
        ("a;b=c?x=1", "a;b=c"),
        ("send", "send"),
        ("%23", "#"),
    ],
)
def test_a_key_is_any_text(web: Web, path: str, key: str) -> None:
    path, _, query = path.partition("?")

    got = web.post(f"/HttpCart/{path}/key" + (f"?{query}" if query else ""))

    assert (got.status, got.json) == (200, key)
    assert "set-cookie" not in got.headers
    assert web.post(f"/HttpCart/{path}/key").json == key  # the second time by the short way


async def test_letters_that_no_client_may_send_are_the_same_key_each_time(web: Web) -> None:
    """uvicorn refuses them; other servers may hand them on."""
    said: list[Any] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        said.append(message.get("body"))

    door = app()
    path = "/HttpCart/é/key"
    scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b""}
    for _ in range(2):  # the second time by the short way
        await door({**scope, "headers": [], "root_path": ""}, receive, send)

    assert [body.decode() for body in said if body] == ['"é"', '"é"']


@pytest.mark.parametrize("path", ["%ff", "%C3", "", "x" * 8_100, "%ed%a0%80"])
def test_a_key_that_is_none_is_400(web: Web, path: str) -> None:
    assert web.post(f"/HttpCart/{path}/key").status == 400


def test_a_client_that_leaves_cancels_nothing(web: Web) -> None:
    with pytest.raises(TimeoutError):
        web.ask("POST", "/HttpCart/left/add", {"item": "apple"}, timeout=1e-6)
    got = web.post("/HttpWork/wait", 0.05)

    assert got.status == 200


def test_a_client_may_ask_for_a_cancel_where_it_leaves(web: Web) -> None:
    before = len(ENDED)
    with pytest.raises(TimeoutError):
        web.ask("POST", "/HttpWork/wait", 60, {"perdure-cancel-on-disconnect": "1"}, timeout=0.3)

    deadline = threading.Event()
    for _ in range(100):
        if len(ENDED) > before:
            break
        deadline.wait(0.05)
    assert len(ENDED) == before + 1


def test_too_many_requests_are_429(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    from actors import session

    client = session.connected()
    assert client is not None
    monkeypatch.setattr(client, "_asked", SimpleNamespace(pending_max=0))

    got = web.post("/HttpCart/a/add", {"item": "a"})

    assert (got.status, got.headers["retry-after"], got.json["source"]) == (429, "1", "store")


def test_a_class_that_is_defined_later_is_served(web: Web) -> None:
    assert web.post("/HttpLate/now").status == 404

    class HttpLate(Service):
        @handler
        async def now(self, ctx: Context) -> str:
            return "here"

    assert web.post("/HttpLate/now").json == "here"
    assert HttpLate is not None
