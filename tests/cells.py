"""Cells: objects that keep one text, and programs that read and write it at once and log what they saw and when."""

import json
import os
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from host_process import ANSWER_WITHIN_S, connected, serve
from linearizability import UNKNOWN, Operation

from actors import Context, UnavailableError, VirtualObject, handler, shared, state
from actors.client.client import Client
from actors.requests.request import EMPTY_OPTIONS, Request
from journal.clock import boot_seconds

__all__ = ["Cell", "history", "operate", "serve"]  # `serve` is a role of this module too


class Cell(VirtualObject):
    text: str = state("")

    @handler
    async def get(self, ctx: Context) -> str:
        return self.text

    @shared
    async def view(self, ctx: Context) -> str:
        return self.text

    @handler
    async def put(self, ctx: Context, new: str) -> None:
        self.text = new

    @handler
    async def swap(self, ctx: Context, expected: str, new: str) -> bool:
        if self.text != expected:
            return False
        self.text = new
        return True

    @handler
    async def append(self, ctx: Context, more: str) -> int:
        """Waits between its read and its write, as no other handler here does."""
        before = self.text
        await ctx.run("between", lambda: None)
        self.text = before + more
        return len(self.text)


def operate(url: str, namespace: str, seed: str, clients: str, keys: str, log: str) -> None:
    """Be so many clients that use so many cells until the standard input ends; say what they did in a file."""
    over = threading.Event()
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(**facts: Any) -> None:
        os.write(file, f"{json.dumps(facts)}\n".encode())

    def work(number: int) -> None:
        with_client = connected(url, namespace)
        user = _User(f"{seed}.{number}", int(keys), with_client)
        while not over.is_set():
            user.act(note)
        with_client.close()

    with ThreadPoolExecutor(int(clients)) as pool:
        working = [pool.submit(work, number) for number in range(int(clients))]
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.read()
        over.set()
        for each in working:
            each.result()


class _User:
    """One client: one operation after the other, each on a key by chance."""

    def __init__(self, name: str, keys: int, client: Client) -> None:
        self._name, self._keys, self._client = name, keys, client
        self._choose = random.Random(name)
        self._count = 0
        self._seen: dict[str, str] = {}

    def act(self, note: Any) -> None:
        key = f"{self._choose.randrange(self._keys)}"
        handler = self._choose.choice(["get", "view", "view", "put", "swap", "swap", "append", "append"])
        self._count += 1
        token = f"({self._name}.{self._count})"
        arguments = {"put": (token,), "swap": (self._seen.get(key, ""), token), "append": (token,)}.get(handler, ())
        kind = "get" if handler == "view" else handler
        name = f"{self._name}.{self._count}"
        note(name=name, key=key, kind=kind, arguments=arguments, called_at=boot_seconds())
        request = Request("Cell", key, handler, arguments, {}, False, EMPTY_OPTIONS, None, None)
        try:
            result = self._client.start(request).result(timeout=ANSWER_WITHIN_S)
        except UnavailableError:
            return  # whether it happened is not known
        note(name=name, result=result, returned_at=boot_seconds())
        if kind == "get":
            self._seen[key] = result
        elif kind == "put" or result is True:
            self._seen[key] = token


def history(log: Path) -> list[Operation]:
    """Return what the clients of a file did."""
    facts: dict[str, dict[str, Any]] = {}
    for line in log.read_text().splitlines():
        said = json.loads(line)
        facts.setdefault(said["name"], {}).update(said)
    return [
        Operation(
            *(each["key"], each["kind"], tuple(each["arguments"]), each["called_at"]),
            *(each.get("returned_at", float("inf")), each.get("result", UNKNOWN)),
        )
        for each in facts.values()
    ]
