"""Endings: a program that ends in any way leaves no lease that stands, and says nothing but its own last words."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from actors.host.local import bury_ended
from journal.redis.store import RedisStore
from journal.store import SHARDS

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import asyncio, os, signal, sys, threading
import actors
from actors import Context, VirtualObject, handler, state

class Counter(VirtualObject):
    n: int = state(0)

    @handler
    async def add(self, ctx: Context) -> int:
        self.n += 1
        return self.n

actors.init(sys.argv[1], hosts="local", namespace=sys.argv[2])
match sys.argv[2]:
    case "send":
        Counter["a"].add.send()
    case "call":
        Counter["a"].add.remote().result(timeout=30)
    case "await":
        async def main():
            await Counter["a"].add.remote()
        asyncio.run(main())
    case "error":
        raise ValueError("line 2")
    case "exit":
        sys.exit(3)
    case "thread":
        threading.Thread(target=sys.exit, args=(1,)).start()
    case "int":
        signal.raise_signal(signal.SIGINT)
    case "term":
        signal.raise_signal(signal.SIGTERM)
    case "_exit":
        os._exit(4)
"""
SAYS = {"error": "ValueError: line 2", "int": "KeyboardInterrupt"}
CANNOT = ("term", "_exit")
"""Ends that run no code: the next program frees their leases, as it connects."""
ENDS = ("send", "call", "await", "exit", "thread", *SAYS, *CANNOT)


async def leases_of(url: str, namespace: str, *, bury: bool) -> list[str]:
    store = RedisStore(url, namespace)
    if bury:
        await bury_ended(store)
    look = await store.membership(SHARDS)
    await store.aclose()
    assert not look.hosts
    return [lease for lease in look.leases if lease]


@pytest.mark.slow
def test_whatever_ends_a_program_the_next_one_waits_for_no_lease_of_it(valkey_url: str, tmp_path: Path) -> None:
    """Issue 15.22, 15.37: neither shutdown() nor a word of ours is needed at the end of a program."""
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    programs = {
        how: subprocess.Popen(
            [sys.executable, "program.py", valkey_url, how],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for how in ENDS
    }
    for how, program in programs.items():
        said, _ = program.communicate(timeout=60)
        lines = [line for line in said.splitlines() if not line.startswith((" ", "Traceback"))]
        assert lines == ([SAYS[how]] if how in SAYS else []), said
        assert asyncio.run(leases_of(valkey_url, how, bury=how in CANNOT)) == [], how
