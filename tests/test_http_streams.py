"""HTTP: batches, and the events of objects."""

import http.client
import json
import socket
import threading
from collections.abc import Iterator

import pytest
from web import Web

import actors
from actors import Context, Service, VirtualObject, handler, shared, state
from actors.http import events


class StreamCounter(VirtualObject):
    n: int = state(0)
    name: str | None = state(None)
    pair: tuple[int, int] = state((0, 0))

    @handler
    async def add(self, ctx: Context, by: int = 1) -> int:
        self.n += by
        return self.n

    @handler
    async def call_it(self, ctx: Context, name: str) -> None:
        self.name = name
        self.pair = (len(name), 1)

    @handler
    async def forget(self, ctx: Context) -> None:
        ctx.clear("name")

    @shared
    async def value(self, ctx: Context) -> int:
        return self.n

    @handler(private=True)
    async def hidden(self, ctx: Context) -> None: ...


class StreamEcho(Service):
    @handler
    async def echo(self, ctx: Context, data: bytes) -> bytes:
        return data

    @handler
    async def trace(self, ctx: Context) -> str:
        return ctx.headers["x-trace"]


@pytest.fixture(scope="module")
def web(valkey_url: str) -> Iterator[Web]:
    with actors.init(valkey_url, namespace="streams", hosts="local"):
        server = Web()
        yield server
        server.stop()


def batch(web: Web, *lines: object, kind: str = "application/x-ndjson") -> list[dict[str, object]]:
    body = b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines)
    got = web.post("/batch", body, content_type=kind)
    assert got.status == 200, got.body
    return [json.loads(line) for line in got.body.splitlines()]


def test_a_batch_answers_each_line_in_order(web: Web) -> None:
    said = batch(
        web,
        {"target": "StreamCounter/b/add", "body": {"by": 2}},
        {"target": "/StreamCounter/b/add", "body": 3},
        b"",
        {"target": "StreamCounter/b/add", "body": "x"},
        {"target": "StreamCounter/b/nothing"},
        {"target": "StreamCounter/b/hidden"},
        {"target": "StreamEcho/echo", "body": 1},
        {"target": "StreamCounter"},
        {"target": "StreamCounter/b/add", "colour": "red"},
        b"{",
        b"[1]",
        {"target": "StreamEcho/trace", "headers": {"X-Trace": "t"}, "delay": "10ms"},
        {"target": "StreamEcho/trace", "headers": {"X-Trace": 1}},
        {"target": "StreamCounter/b/add", "idempotency_key": "k"},
        {"target": "StreamCounter/b/add", "idempotency_key": "k"},
    )

    codes = [one.get("code", one.get("status")) for one in said]
    assert codes == [
        *("accepted", "accepted", 400, 404, 403, 415, 400, 400, 400, 400, "accepted", 400, "accepted"),
        "known",
    ]
    ids = [str(one["id"]) for one in said if "id" in one]
    assert [actors.attach(id_).result() for id_ in ids] == [2, 5, "t", 6, 6]
    assert "due" in said[10]


def test_a_batch_of_another_kind_is_415(web: Web) -> None:
    assert web.post("/batch", b"a=b", content_type="text/plain").status == 415
    assert web.get("/batch").status == 405
    assert batch(web) == []


def test_a_line_that_is_too_large_ends_the_batch(web: Web) -> None:
    said = batch(web, {"target": "StreamCounter/l/add"}, b'"' + b"x" * 9_000_000)

    assert [one.get("code", one.get("status")) for one in said] == ["accepted", 413]


def test_a_large_batch(web: Web) -> None:
    said = batch(web, *({"target": "StreamCounter/many/add"} for _ in range(3_000)))

    assert {one["status"] for one in said} == {"accepted"}
    assert web.post("/StreamCounter/many/add").json == 3_001


class Reader:
    """A client that reads events."""

    def __init__(self, web: Web, path: str, last: str = "") -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", web.port, timeout=10)
        self.connection.request("GET", path, headers={"last-event-id": last} if last else {})
        self.answer = self.connection.getresponse()

    def next(self) -> dict[str, str]:
        """Return the next event by its fields; comments are passed over, the end is empty."""
        found: dict[str, str] = {}
        while line := self.answer.readline():
            text = line.decode().rstrip("\n")
            if not text and found:
                return found
            name, _, value = text.partition(": ")
            if name:
                found[name] = value
        return found

    def close(self) -> None:
        self.connection.close()


def test_the_events_of_an_object(web: Web) -> None:
    reader = Reader(web, "/StreamCounter/e1/events")
    assert reader.answer.getheader("content-type") == "text/event-stream"

    first = reader.next()
    web.post("/StreamCounter/e1/add", {"by": 2})
    second = reader.next()
    web.post("/StreamCounter/e1/call_it", "ann")
    third = reader.next()
    web.post("/StreamCounter/e1/forget")
    fourth = reader.next()
    reader.close()

    assert json.loads(first["data"]) == {}
    assert json.loads(second["data"]) == {"n": 2}
    assert json.loads(third["data"]) == {"name": "ann", "pair": [3, 1]}
    assert json.loads(fourth["data"]) == {"name": None}
    assert len({event["id"] for event in (first, second, third, fourth)}) == 4


def test_a_reader_that_comes_back_misses_nothing(web: Web) -> None:
    reader = Reader(web, "/StreamCounter/e2/events")
    reader.next()
    web.post("/StreamCounter/e2/add")
    seen = reader.next()
    reader.close()

    other = Reader(web, "/StreamCounter/e2/events")  # so that the changes are seen one by one
    other.next()
    for expected in (2, 3):
        web.post("/StreamCounter/e2/add")
        assert json.loads(other.next()["data"]) == {"n": expected}
    again = Reader(web, "/StreamCounter/e2/events", seen["id"])
    found = [json.loads(again.next()["data"]) for _ in range(2)]
    web.post("/StreamCounter/e2/add")
    found.append(json.loads(again.next()["data"]))
    other.close()
    again.close()

    assert found == [{"n": 2}, {"n": 3}, {"n": 4}]


@pytest.mark.parametrize("last", ["nonsense", "0123456789abcdef-1", "-", "x-99999999999999999999"])
def test_a_reader_that_cannot_go_on_is_reset(web: Web, last: str) -> None:
    web.post("/StreamCounter/e3/add")
    reader = Reader(web, "/StreamCounter/e3/events", last)
    event = reader.next()
    reader.close()

    assert (event["event"], json.loads(event["data"])["n"]) == ("reset", web.post("/StreamCounter/e3/value").json)


def test_a_silent_stream_has_comments(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "COMMENT_EVERY", 0.1)
    monkeypatch.setattr(web.door, "_watched", None)
    reader = Reader(web, "/StreamCounter/silent/events")
    reader.next()
    found = {reader.answer.readline() for _ in range(4)}
    reader.close()

    assert found == {b": alive\n", b"\n"}


def test_what_has_no_events(web: Web) -> None:
    assert web.get("/StreamEcho/events").status in (404, 405)
    assert web.get("/Nothing/a/events").status == 404
    assert web.post("/StreamCounter/a/events").status == 404


def test_many_readers_see_one_change(web: Web) -> None:
    readers = [Reader(web, "/StreamCounter/e4/events") for _ in range(50)]
    for reader in readers:
        reader.next()
    web.post("/StreamCounter/e4/add")
    found = [json.loads(reader.next()["data"]) for reader in readers]
    for reader in readers:
        reader.close()

    assert found == [{"n": 1}] * 50


# ------------------------------------------------------------------------------------------- clients that misbehave


def raw(web: Web, data: bytes) -> bytes:
    """Send bytes as they are, and return all of the answer."""
    with socket.create_connection(("127.0.0.1", web.port), timeout=10) as line:
        line.sendall(data)
        line.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: line.recv(65_536), b""))


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 1\r\nContent-Length: 2\r\n",
        b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Content-Length: +1\r\n",
        b"Content-Length: 1\r\n folded: yes\r\n",
        b"X-Null: a\0b\r\nContent-Length: 1\r\n",
    ],
)
def test_requests_that_smuggle_are_refused(web: Web, head: bytes) -> None:
    before = web.post("/StreamCounter/smuggled/value").json
    smuggled = b"POST /StreamCounter/smuggled/add HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n"

    got = raw(web, b"POST /StreamCounter/outer/add HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n1" + smuggled)

    assert got.startswith(b"HTTP/1.1 400") or got == b""
    assert web.post("/StreamCounter/smuggled/value").json == before


def test_a_body_that_comes_slowly_disturbs_nobody(web: Web) -> None:
    with socket.create_connection(("127.0.0.1", web.port), timeout=10) as line:
        line.sendall(b"POST /StreamCounter/slow/add HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n")
        line.sendall(b"Content-Length: 9\r\n\r\n")
        for byte in b'{"by": 1}'[:-1]:
            line.sendall(bytes([byte]))
            assert web.post("/StreamCounter/other/add").status == 200
        line.sendall(b"}")
        assert line.recv(65_536).startswith(b"HTTP/1.1 200")
        line.sendall(b"POST /StreamCounter/slow/add HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n1")
    assert web.post("/StreamCounter/slow/value").json == 1  # the second one has left in the middle


def test_a_hundred_megabytes_are_413_and_not_kept(web: Web) -> None:
    answer = b""

    def read(line: socket.socket) -> None:
        nonlocal answer
        while not answer.endswith(b"}"):
            answer += line.recv(65_536)

    with socket.create_connection(("127.0.0.1", web.port), timeout=20) as line:
        line.sendall(b"POST /StreamEcho/echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        reading = threading.Thread(target=read, args=(line,))
        reading.start()
        chunk = b"100000\r\n" + b"x" * 0x100000 + b"\r\n"
        for _ in range(100):
            line.sendall(chunk)
        line.sendall(b"0\r\n\r\n")
        reading.join()
        assert answer.startswith(b"HTTP/1.1 413")
        line.sendall(b"POST /StreamCounter/after/add HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        assert line.recv(65_536).startswith(b"HTTP/1.1 200")  # the connection goes on
