"""Processes: which one this is, and whether another one has ended.

The leases of a host are freed early only on proof that its process is gone. A process is named by its machine's boot,
its pid namespace, its pid and its start, so that a number that was given anew, or means something in another container,
proves nothing.
"""

import os
import platform
from pathlib import Path

_BOOT = Path("/proc/sys/kernel/random/boot_id")


def _machine() -> str:
    try:
        return f"{_BOOT.read_text().strip()}/{os.readlink('/proc/self/ns/pid')}"
    except OSError:  # no /proc: macOS
        return platform.node()


def _start(pid: int) -> str | None:
    """Return when a process started, in the kernel's ticks, or a word where they are not told; None if it has ended."""
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


def has_ended(process: str) -> bool | None:
    """Whether a process has ended; None if it is of another machine, so that nobody can tell here."""
    machine, _, rest = process.partition(" ")
    if not rest or machine != _machine():
        return None
    pid, _, start = rest.partition(" ")
    return _start(int(pid)) != start
