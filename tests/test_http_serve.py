"""`perdure serve` as a process: the shell session of the seat map, SIGTERM under load, and what it refuses."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def serving(tmp_path: Path, *arguments: str) -> Generator[tuple[subprocess.Popen[str], str]]:
    """Start `perdure serve` and yield it with its URL."""
    command = [sys.executable, "-c", "from actors.cli.main import main; main()", "serve", *arguments, "--port", "0"]
    path = os.pathsep.join([str(ROOT), str(tmp_path)])
    environment = {**os.environ, "PYTHONPATH": path}
    program = subprocess.Popen(
        [*command, "--directory", str(tmp_path / "store")],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert program.stderr is not None
        said = program.stderr.readline()
        found = re.fullmatch(r"serving (http://127\.0\.0\.1:\d+)\n", said)
        assert found, said + program.stderr.read()
        yield program, found[1]
    finally:
        program.kill()
        program.communicate()


def curl(*arguments: str) -> str:
    return subprocess.run(["curl", "-s", *arguments], capture_output=True, check=True, text=True, timeout=30).stdout


def test_the_shell_session_of_the_seat_map(tmp_path: Path) -> None:
    """The examples are served as they are; errors have a source and an id beside what the session shows."""
    kind = ("-H", "content-type: application/json")
    with serving(tmp_path, "examples.seat_map") as (program, url):
        booked = curl(
            *(f"{url}/Checkout/process", *kind, "-d"),
            '{"ticketId":"test-seat-1","userId":"u1","paymentMethodId":"card_success"}',
        )
        sold = curl("-X", "POST", f"{url}/Ticket/test-seat-1/get")
        declined = curl(
            *("-w", " %{http_code}", f"{url}/Checkout/process", *kind, "-d"),
            '{"ticketId":"test-seat-2","userId":"u2","paymentMethodId":"card_decline"}',
        )
        free = curl("-X", "POST", f"{url}/Ticket/test-seat-2/get")
        taken = curl(
            *("-w", " %{http_code}", f"{url}/Checkout/process", *kind, "-d"),
            '{"ticketId":"test-seat-1","userId":"u3"}',
        )
        program.terminate()
        assert program.wait(10) == 0

    assert booked == '"Booking Confirmed"'
    assert sold == '{"status":"SOLD","reservedBy":"u1","reservedUntil":null}'
    said = "Payment failed: Payment declined: Payment declined (Method: card_decline)"
    assert declined.startswith(f'{{"message":"{said}","code":402,')
    assert declined.endswith(" 402")
    assert free == '{"status":"AVAILABLE","reservedBy":null,"reservedUntil":null}'
    assert taken.startswith('{"message":"Ticket already sold","code":409,')
    assert taken.endswith(" 409")


MODULE = """
import asyncio
from actors import Context, Service, VirtualObject, handler, state

class ServedCounter(VirtualObject):
    n: int = state(0)

    @handler
    async def add(self, ctx: Context) -> int:
        self.n += 1
        await asyncio.sleep(0.02)
        return self.n

class ServedWait(Service):
    @handler
    async def wait(self, ctx: Context, seconds: float) -> str:
        await asyncio.sleep(seconds)
        return "rested"
"""


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
async def test_sigterm_under_load_answers_what_was_accepted(tmp_path: Path, workers: str) -> None:
    (tmp_path / "served.py").write_text(MODULE, "utf-8")
    answered: list[int] = []
    sent = 0

    async def client(web: httpx.AsyncClient, key: int) -> None:
        nonlocal sent
        while True:
            sent += 1
            try:
                got = await web.post(f"/ServedCounter/{key}/add")
            except (httpx.ConnectError, httpx.RemoteProtocolError, httpx.ReadError):
                sent -= 1  # its connection was not accepted, or was idle and closed: the request was not read
                return
            assert got.status_code == 200, got.text
            answered.append(got.json())

    with serving(tmp_path, "served", "--workers", workers) as (program, url):
        async with httpx.AsyncClient(base_url=url, timeout=30) as web:
            clients = [asyncio.create_task(client(web, key)) for key in range(20)]
            while len(answered) < 100:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            program.send_signal(signal.SIGTERM)
            await asyncio.gather(*clients)
        code = await asyncio.to_thread(program.wait, 20)

    assert (len(answered), code) == (sent, 0)

    # Each answer is a commit, and each commit was answered: the counters stand where the clients saw them last.
    with serving(tmp_path, "served") as (_, url):
        async with httpx.AsyncClient(base_url=url, timeout=30) as web:
            last = [(await web.post(f"/ServedCounter/{key}/add")).json() - 1 for key in range(20)]
    assert sum(last) == len(answered)


@pytest.mark.slow
async def test_sigterm_tells_who_waits_for_long_where_the_outcome_will_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "served.py").write_text(MODULE.replace("import asyncio", "import asyncio\n" + SHORT_GRACE), "utf-8")
    with serving(tmp_path, "served") as (program, url):
        async with httpx.AsyncClient(base_url=url, timeout=30) as web:
            asked = asyncio.create_task(web.post("/ServedWait/wait", json=2.5))
            watched = asyncio.create_task(web.get("/ServedCounter/a/events"))
            await asyncio.sleep(0.5)
            program.send_signal(signal.SIGTERM)
            assert (await watched).status_code == 200  # the stream ends before the call is answered
            assert not asked.done()
            got = await asked
        assert await asyncio.to_thread(program.wait, 20) == 0

    assert got.status_code == 503
    assert got.headers["retry-after"] == "1"
    id_ = got.json()["id"]
    with serving(tmp_path, "served") as (_, url):
        assert json.loads(curl(f"{url}/invocations/{id_}/attach")) == "rested"


SHORT_GRACE = "import actors.http.waits as waits\nwaits.GRACE = 0.5"


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "from actors.cli.main import main; main()", "serve", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
        text=True,
        timeout=30,
    )


def test_other_machines_are_refused_without_tokens(tmp_path: Path) -> None:
    done = run("examples.seat_map", "--host", "0.0.0.0", cwd=tmp_path)

    assert done.returncode == 2
    assert "tokens" in done.stderr
    assert not (tmp_path / ".perdure").exists()


def test_a_module_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = run("nowhere.at_all", cwd=tmp_path)

    assert done.returncode == 2
    assert "nowhere" in done.stderr
    assert "Traceback" not in done.stderr
