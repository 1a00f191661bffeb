"""The published clients of Restate, unchanged, against this server."""

from collections.abc import Iterator
from datetime import timedelta

import pytest
import restate
from web import Web

import actors
from actors import Context, Service, TerminalError, VirtualObject, Workflow, handler, shared, state


class RestateCart(VirtualObject):
    n: int = state(0)

    @handler
    async def add(self, ctx: Context, by: int) -> int:
        self.n += by
        return self.n

    @handler
    async def clear(self, ctx: Context) -> None:
        self.n = 0


class RestateGreeter(Service):
    @handler
    async def greet(self, ctx: Context, name: str) -> str:
        if name == "nobody":
            raise TerminalError("nobody is here", 418)
        return f"hello {name}, {ctx.headers.get('x-trace', '')}"

    @handler
    async def gate(self, ctx: Context) -> str:
        gate = ctx.awakeable(str)
        RestateIds["all"].put.send(ctx.id, gate.id)
        return await gate


class RestateIds(VirtualObject):
    @handler
    async def put(self, ctx: Context, name: str, value: str) -> None:
        ctx.set(name, value)

    @handler
    async def take(self, ctx: Context, name: str) -> str:
        return ctx.get(name, "")


class RestateFlow(Workflow):
    @handler
    async def run(self, ctx: Context, name: str) -> str:
        await ctx.promise("go", bool)
        return f"{name} went"

    @shared
    async def go(self, ctx: Context) -> None:
        ctx.promise("go", bool).resolve(True)


@pytest.fixture(scope="module")
def web(valkey_url: str) -> Iterator[Web]:
    with actors.init(valkey_url, namespace="restate", hosts="local"):
        server = Web()
        yield server
        server.stop()


# As a user of Restate declares them in Python.
cart = restate.VirtualObject("RestateCart")
greeter = restate.Service("RestateGreeter")


@cart.handler()
async def add(ctx: restate.ObjectContext, by: int) -> int:
    raise NotImplementedError


@cart.handler()
async def clear(ctx: restate.ObjectContext) -> None:
    raise NotImplementedError


@greeter.handler()
async def greet(ctx: restate.Context, name: str) -> str:
    raise NotImplementedError


async def test_the_python_client_calls_and_sends(web: Web) -> None:
    async with restate.create_client(f"{web.url}/restate") as client:
        assert await client.object_call(add, "a b", 2) == 2
        assert await client.object_call(add, "a b", 3) == 5
        assert await client.object_call(clear, "a b", None) is None
        assert await client.service_call(greet, "ann", headers={"x-trace": "t1"}) == "hello ann, t1"
        with pytest.raises(restate.HttpError) as failed:
            await client.service_call(greet, "nobody")
        assert failed.value.status_code == 418

        sent = await client.object_send(add, "later", 1, send_delay=timedelta(milliseconds=50))
        assert web.get(f"/restate/attach/{sent.invocation_id}").json == 1
        once = [await client.object_send(add, "once", 1, idempotency_key="k") for _ in range(2)]
        assert once[0].invocation_id == once[1].invocation_id
        assert await client.generic_call("RestateCart", "add", b"4", key="once") == b"5"


TYPESCRIPT = {"x-restateclient-retry-attempt": "1", "content-type": "application/json"}
"""Its client marks its requests so, and uses the paths of the server's root."""


def test_the_paths_of_the_typescript_client(web: Web) -> None:
    called = web.ask("POST", "/RestateCart/ts/add", 2, TYPESCRIPT)
    sent = web.ask("POST", "/RestateCart/ts/add/send?delay=20ms", 1, TYPESCRIPT)
    again = [web.ask("POST", "/RestateCart/ts/add/send", 1, {**TYPESCRIPT, "idempotency-key": "k"}) for _ in range(2)]
    attached = web.get(f"/restate/invocation/{sent.json['invocationId']}/attach")

    assert (called.json, called.headers["x-restate-id"] != "") == (2, True)
    assert (sent.status, sent.json["status"]) == (202, "Accepted")
    assert sent.headers["x-restate-id"] == sent.json["invocationId"]
    assert "executionTime" in sent.json
    assert [one.json["status"] for one in again] == ["Accepted", "PreviouslyAccepted"]
    assert attached.status == 200


def test_a_workflow_is_submitted_once_and_read(web: Web) -> None:
    first = web.ask("POST", "/RestateFlow/w1/run/send", "ann", TYPESCRIPT)
    again = web.ask("POST", "/RestateFlow/w1/run/send", "ann", TYPESCRIPT)
    called = web.ask("POST", "/RestateFlow/w1/run", "ann", TYPESCRIPT)
    waiting = web.get("/restate/workflow/RestateFlow/w1/output")

    assert (first.json["status"], again.json["status"]) == ("Accepted", "PreviouslyAccepted")
    assert first.json["invocationId"] == again.json["invocationId"]
    assert called.status == 409
    assert waiting.status == 470
    assert web.post("/restate/call/RestateFlow/w1/go").status == 204
    assert web.get("/restate/workflow/RestateFlow/w1/attach").json == "ann went"
    named = {"target": "workflow", "workflowName": "RestateFlow", "workflowKey": "w1"}
    assert web.post("/restate/lookup", named).json == {"invocationId": first.json["invocationId"]}
    assert web.post("/restate/output", named).json == "ann went"
    assert web.post("/restate/attach", named).json == "ann went"


def test_an_invocation_is_named_by_its_idempotency_key(web: Web) -> None:
    sent = web.post("/restate/send/RestateCart/keyed/add", 7, idempotency_key="x/y")
    named = {"target": "idempotentInvocation", "service": "RestateCart", "key": "keyed"}
    named |= {"handler": "add", "idempotencyKey": "x/y"}

    assert sent.json["status"] == "Accepted"
    assert web.post("/restate/lookup", named).json == {"invocationId": sent.json["invocationId"]}
    assert web.post("/restate/attach", named).json == 7
    assert web.get("/restate/invocation/RestateCart/keyed/add/x%2Fy/output").json == 7
    assert web.get(f"/restate/output/{sent.json['invocationId']}").json == 7


def test_an_awakeable_is_completed(web: Web) -> None:
    for verb, body, kind in (("resolve", b'"yes"', "application/json"), ("reject", b"not today", "text/plain")):
        sent = web.post("/restate/send/RestateGreeter/gate").json["invocationId"]
        gate = ""
        while not gate:
            gate = web.post("/RestateIds/all/take", sent).json
        path = "a" if verb == "resolve" else "awakeables"

        assert web.post(f"/restate/{path}/{gate}/{verb}", body, content_type=kind).status == 202
        got = web.get(f"/restate/attach/{sent}")
        assert (got.status, got.json if verb == "resolve" else got.json["message"]) == (
            (200, "yes") if verb == "resolve" else (500, "not today")
        )


def test_what_is_not_there(web: Web) -> None:
    assert "RestateCart" in web.get("/restate/health").json["services"]
    assert web.get("/restate/attach/abcdef-3").status == 404
    assert web.get("/restate/output/abcdef-3").status == 404
    assert web.get("/restate/workflow/RestateFlow/nobody/output").status == 404
    assert web.get("/restate/workflow/RestateCart/a/output").status == 400
    assert web.post("/restate/lookup", {"target": "other"}).status == 400
    assert web.post("/restate/lookup", [1]).status == 400
    assert web.post("/restate/call/Nobody/x").status == 404
    assert web.post("/restate").status == 404
