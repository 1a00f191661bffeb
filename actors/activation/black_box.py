"""Black box: a file that names the invocations a host was executing when its process ended.

An invocation that ends its process each time would end one host after the other, and no key would be served. Only the
dead process knew the invocation, so each host notes its running invocations in a file that is mapped into its memory:
the kernel keeps the file, whatever ends the process. A host that takes over a shard that was not handed over reads the
files of ended processes and holds back the invocations named there, and no others: where no other host is left until
another is there again, and anywhere for longer after each further death.

Why so: a host that has handed over leaves no such file. So the other host of one that is left alone has been killed,
and Ray starts it again. If the invocation ended the last host before, all keys would wait for that; held back, it waits
alone. Nobody can know that Ray will never succeed, for want of memory say, so each wait has a most.
"""

import mmap
import os
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final

from actors.processes import has_ended, this_process
from journal.clock import boot_seconds, wall_ms

NAME: Final = 256
"""Bytes for the name of the process, in front of the slots of invocations."""
SLOT: Final = 96
"""Bytes for an id; a longer one is not noted."""
SLOTS: Final = 128
"""The first slot is for the handler that runs, the others for steps under way; further steps are not noted."""
READS_MAX: Final = 10
"""Most readings of the directory in one look: a link that leads nowhere is never read."""
FORGOTTEN_AFTER: Final = 600
"""Seconds after which the end of a process counts no more."""
ALONE_MAX: Final = 60.0
"""Seconds for which an invocation is held back because no other host is left. Ray needs a second or two to start the
other one again, far longer on a machine that is busy."""
HELD_FIRST, HELD_MAX = 2.0, 60.0
"""Seconds for which an invocation is held back that has ended two processes; doubled for each further, to the max."""


HELD_SHOWN: Final = 20
"""Most invocations held back that a host describes."""
HELD_FOR: Final = 1.0
"""Seconds after which one that is not asked for again is not held back any more: it has ended, or the shard is gone."""


@dataclass(slots=True)
class Held:
    """An invocation that is held back."""

    why: str
    asked: float


class BlackBox:
    """The file of this process, and the files of ended processes."""

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory or Path(tempfile.gettempdir(), f"perdure-{os.getuid()}")
        self._suspects: Counter[str] = Counter()
        self._since: dict[tuple[str, int], float] = {}
        self._held: dict[str, Held] = {}
        self._running = ""
        self._slots: dict[str, int] = {}
        self._free = list(range(SLOTS - 1, 0, -1))
        self._memory = self._opened()
        self.is_left_alone: Callable[[], bool] = lambda: False
        """Whether other hosts have lived beside this host, and none does now."""

    def _opened(self) -> mmap.mmap | None:
        process = this_process().encode()
        self._path = self._directory / blake2b(process, digest_size=8).hexdigest()
        try:
            self._directory.mkdir(mode=0o700, exist_ok=True)
            found = os.lstat(self._directory)
            if found.st_uid != os.getuid() or found.st_mode & 0o077 or len(process) > NAME:
                return None  # other users could write to it, and so hold invocations back
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
            try:
                os.truncate(descriptor, NAME + SLOT * SLOTS)
                memory = mmap.mmap(descriptor, 0)
            finally:
                os.close(descriptor)
        except OSError:
            return None
        memory[: len(process)] = process
        return memory

    # The invocations of this process

    def runs(self, id_: str) -> None:
        """Note the invocation whose handler runs from here on."""
        if id_ is not self._running:
            self._running = id_
            self._write(0, id_)

    def rests(self) -> None:
        """Note that no handler runs."""
        self._running = ""
        if self._memory is not None:
            self._memory[NAME] = 0

    def begins(self, step_id: str) -> None:
        """Note a step that is under way."""
        if self._free:
            slot = self._slots[step_id] = self._free.pop()
            self._write(slot, step_id.rpartition(":")[0])

    def ends(self, step_id: str) -> None:
        """Note that a step is no longer under way."""
        slot = self._slots.pop(step_id, 0)
        if slot:
            self._write(slot, "")
            self._free.append(slot)

    def _write(self, slot: int, id_: str) -> None:
        data, at = id_.encode() + b"\0", NAME + SLOT * slot
        if self._memory is not None and len(data) <= SLOT:
            self._memory[at : at + len(data)] = data

    # The invocations of ended processes

    def look(self) -> None:
        """Read which invocations the ended processes of this machine executed last."""
        executed: dict[str, set[str]] = {}
        for _ in range(READS_MAX):  # another host may rename a file in between, and it be listed under neither name
            if self._read_ended(executed):
                break
        self._suspects = suspects = Counter(id_ for ids in executed.values() for id_ in ids)
        self._since = {(id_, count): at for (id_, count), at in self._since.items() if suspects[id_] == count}

    def _read_ended(self, executed: dict[str, set[str]]) -> bool:
        """Note the invocations by the names of the files; return whether every listed file could be read."""
        now, is_whole = wall_ms() // 1000, True
        try:
            paths = list(self._directory.iterdir()) if self._memory is not None else []
        except OSError:
            return True  # it was removed, as old files below it may be: nothing is known then
        for path in paths:
            try:
                data = path.read_bytes()
                if not path.suffix and not has_ended(data[:NAME].rstrip(b"\0").decode()):
                    continue
                slots = (data[at : at + SLOT].partition(b"\0")[0] for at in range(NAME, len(data), SLOT))
                ids = {slot.decode() for slot in slots if slot}
                if not ids or (path.suffix and now - int(path.suffix[1:]) > FORGOTTEN_AFTER):
                    path.unlink()
                    continue
                executed[path.stem] = ids
                if not path.suffix:
                    path.rename(path.with_suffix(f".{now}"))
            except FileNotFoundError:
                is_whole = False
            except (OSError, ValueError):
                continue  # it is no file of ours
        return is_whole

    def holds(self, id_: str) -> bool:
        """Whether an invocation has to wait here because it may end this process."""
        if not self._suspects or id_ not in self._suspects:
            return False
        count, now = self._suspects[id_], boot_seconds()
        waited = now - self._since.setdefault((id_, count), now)
        pause = min(HELD_FIRST * 2 ** min(count - 2, 9), HELD_MAX) if count > 1 else 0.0
        if waited < pause:
            why = f"{count} processes have ended as they executed it; it is tried again after {pause:g} s"
        elif waited < ALONE_MAX and self.is_left_alone():
            why = (
                "the process that executed it has ended, and no other host than this one is left; it is tried again "
                f"when there is another, at the latest after {ALONE_MAX:g} s"
            )
        else:
            self._held.pop(id_, None)
            return False
        self._held[id_] = Held(why, now)
        return True

    def held(self) -> dict[str, str]:
        """Return the invocations that are held back now, not more than some, with the reasons; any thread may ask."""
        now = boot_seconds()
        found = [(id_, held) for id_, held in list(self._held.items()) if now - held.asked < HELD_FOR]
        return {id_: held.why for id_, held in found[-HELD_SHOWN:]}

    def close(self) -> None:
        """Remove the file: this process ends in order."""
        if self._memory is not None:
            self._memory = None
            self._path.unlink(missing_ok=True)
