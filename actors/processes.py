"""Processes: the name of this process, and whether another one has ended.

The leases of a host are freed early only on proof that its process is gone. A process is named by its machine's boot,
its pid namespace, its pid and its start, so that a pid that was given anew, or belongs to another container, proves
nothing.
"""

import asyncio
import os
import platform
import sys
from functools import lru_cache
from pathlib import Path
from typing import Final

from journal.texts import repr_of, shortened

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_POLL: Final = 0.05
_PROGRAM_MAX: Final = 200
"""Most characters of a program's path, as a message or a warning has it."""


def _machine() -> str:
    try:
        return f"{_BOOT.read_text().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no /proc: macOS
        return platform.node()


def _start(pid: int) -> str | None:
    """Return the start of a process in the kernel's ticks, or a word where they are unknown; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None if Path("/proc/self/stat").exists() else _signalled(pid)
    return None if fields[0] in "ZX" else fields[19]


def _signalled(pid: int) -> str | None:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass  # it lives, as somebody else's
    return "runs"


def this_process() -> str:
    """Return the name of this process, which no other one ever has."""
    return f"{_machine()} {os.getpid()} {_start(os.getpid())}"


@lru_cache(maxsize=1)
def _program(pid: int) -> str:
    path = repr_of(sys.argv[0])[1:-1] if sys.argv else ""
    return f"process {pid} ({shortened(path, _PROGRAM_MAX) or 'python'})"


def this_program() -> str:
    """Return the name of this process for people."""
    return _program(os.getpid())


def has_ended(process: str) -> bool | None:
    """Whether a process has ended; None if it is of another machine, so that nobody can tell here."""
    machine, _, rest = process.partition(" ")
    if not rest or machine != _machine():
        return None
    pid, _, start = rest.partition(" ")
    return _start(int(pid)) != start


async def until_ended(process: str) -> None:
    """Return as soon as a process of this machine has ended: the kernel tells, within a millisecond."""
    pid = int(process.partition(" ")[2].partition(" ")[0])
    loop = asyncio.get_running_loop()
    try:
        descriptor = os.pidfd_open(pid)
    except (AttributeError, OSError):  # not Linux, or the process has ended
        while not has_ended(process):  # noqa: ASYNC110 - there is nothing to be woken by
            await asyncio.sleep(_POLL)
        return
    told = loop.create_future()
    loop.add_reader(descriptor, lambda: told.done() or told.set_result(None))
    try:
        if not has_ended(process):  # else the pid has passed to another one
            await told
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
