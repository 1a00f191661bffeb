"""The model: what a program returns and leaves behind, by playing it one node after the other, with nothing durable.

It knows of no time, no threads and no crashes: what a program may ask for is such that they change nothing. Where they
do change something (which of two invocations of an object was first), it says what each has noted, not in which order.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .plays import Node


class Refused(Exception):
    """A terminal error."""

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(message)
        self.told = ["error", code, message]


@dataclass
class Block:
    """What one invocation notes in the log of its object: what and which node, in the order of each thread."""

    key: str
    sender: tuple[str, str] | None
    """The invocation and thread that sent it; None where its place among those of its sender is not known."""

    is_sure: bool = True
    """Whether it was there at all: else it may have been ended before it began."""

    threads: dict[str, list[tuple[str, int]]] = field(default_factory=dict[str, list[tuple[str, int]]])

    def note(self, thread: str, what: str, n: int) -> None:
        """Add a line."""
        self.threads.setdefault(thread, []).append((what, n))


@dataclass
class Expected:
    """What a program comes to."""

    result: Any
    blocks: dict[str, Block]
    """By path, in the order of sending."""

    steps: dict[str, int]
    """How often each step acts, if nothing crashes: by path and node."""

    undone: dict[str, dict[str, list[int]]] = field(default_factory=dict[str, dict[str, list[int]]])
    """What each invocation undoes: nodes of each thread, in order."""

    kills: list[bool] = field(default_factory=list[bool])
    """Whether what holds is to be killed, of each that is to be ended, the innermost last."""


def expected(path: str, key: str | None, parts: list[Node]) -> Expected:
    """Return what becomes of an invocation that is played at an object, or at none."""
    found = Expected(None, {}, {})
    found.result = settled(lambda: _Play(found, path, key, None).play_all(parts))
    return found


def settled(work: Callable[[], Any]) -> Any:
    """Return what it returns, or what it raises."""
    try:
        return work()
    except Refused as refused:
        return refused.told


class _Play:
    """Plays the nodes of one invocation."""

    def __init__(self, found: Expected, path: str, key: str | None, sender: tuple[str, str] | None) -> None:
        self._found, self._path = found, path
        self._block = Block(key or "", sender)
        self._done: dict[str, list[int]] = {}
        if key is not None:
            found.blocks[path] = self._block

    def play_all(self, parts: list[Node]) -> list[Any]:
        self._block.note("", "begin", 0)
        try:
            results = self._all(parts, "")
        except _Killed:
            raise
        except Refused:
            self.undo()
            raise
        self._block.note("", "end", 0)
        return results

    def undo(self) -> None:
        self._found.undone[self._path] = {thread: done[::-1] for thread, done in self._done.items()}

    def _all(self, parts: list[Node], thread: str) -> list[Any]:
        return [self._play(part, thread) for part in parts]

    def _play(self, node: Node, thread: str) -> Any:
        return getattr(self, f"_{node['do']}")(node, thread)

    def _attempt(self, node: Node, thread: str) -> Any:
        return settled(lambda: self._all(node["parts"], thread))

    # What an object notes

    def _noted(self, node: Node, thread: str) -> int:
        self._block.note(thread, node["do"], node["n"])
        return node["n"]

    def _write(self, node: Node, thread: str) -> None:
        self._noted(node, thread)

    _add = _clear = _read = _write

    # What takes time

    def _step(self, node: Node, thread: str) -> int:
        self._found.steps[f"{self._path}.{node['n']}"] = node["fails"] + 1
        self._block.note(thread, "ran", node["n"])
        if node["undoes"]:
            self._defer(node, thread)
        return node["n"]

    def _defer(self, node: Node, thread: str) -> None:
        self._done.setdefault(thread, []).append(node["n"])

    def _refused(self, node: Node, thread: str) -> None:
        raise Refused(422 if node["at_once"] else 500)

    def _same(self, node: Node, thread: str) -> int:
        return node["n"]

    _sleep = _stumble = _same

    def _pest(self, node: Node, thread: str) -> str:
        return ""

    def _fail(self, node: Node, thread: str) -> None:
        raise Refused(418, f"fail {node['n']}")

    # What others do

    def _sent(self, node: Node, thread: str, *, is_late: bool = False) -> Any:
        sender = None if is_late else (self._path, thread)
        play = _Play(self._found, f"{self._path}.{node['n']}", node["key"], sender)
        return settled(lambda: play.play_all(node["parts"]))

    def _called(self, node: Node, thread: str) -> Any:
        result = self._sent(node, thread)
        if result and result[0] == "error":
            raise Refused(result[1], result[2])
        return result

    def _told(self, node: Node, thread: str) -> None:
        """Send what notes no more than that it came."""
        self._reached(node["key"], f"{self._path}.{node['n']}", (self._path, thread))

    def _reached(self, key: str, path: str, sender: tuple[str, str]) -> None:
        block = self._found.blocks[path] = Block(key, sender)
        block.note("", "begin", 0)

    def _call(self, node: Node, thread: str) -> Any:
        return self._sent(node, thread) if node["twice"] else self._called(node, thread)

    def _send(self, node: Node, thread: str) -> None:
        self._sent(node, thread, is_late=bool(node["pause"]))

    def _post(self, node: Node, thread: str) -> None:
        path, sender = f"{self._path}.{node['n']}", (self._path, thread)
        for key in [node["key"], *node["forward"]]:
            self._reached(key, path, sender)
            path, sender = f"{path}.0", (path, "")

    def _drawn(self, node: Node, thread: str) -> bool:
        self._told(node, thread)
        return True

    def _look(self, node: Node, thread: str) -> bool:
        return True

    def _awake(self, node: Node, thread: str) -> list[Any]:
        out: list[Any] = ["later"] if node["reminds"] else []
        if node["by"] == "call":
            out.append(self._called(node, thread))
        elif node["by"] == "send":
            self._sent(node, thread)
        return out + node["times"] * [["error", 500, ""] if node["refuses"] else node["n"]]

    def _complete(self, node: Node, thread: str) -> None:
        pass

    def _tell(self, node: Node, thread: str) -> list[Any]:
        return [*(["later"] if node["reminds"] else []), self._sent(node, thread)]

    def _listen(self, node: Node, thread: str) -> list[Any]:
        out: list[Any] = []
        for number in range(node["count"]):
            out += [*(["later"] if node["reminds"] else []), [node["tell"], number]]
            self._block.note(thread, "noted", node["n"])
        return out

    # Ended from outside

    def _cancel(self, node: Node, thread: str) -> Any:
        self._found.kills.append(node["kills"])
        try:
            return self._sent(node, thread)
        finally:
            self._found.kills.pop()

    def _held(self, node: Node, thread: str) -> str:
        self._block.note(thread, "noted", node["n"])
        if node["how"] == "call":
            self._sent(node["deeper"], thread)
        if self._found.kills[-1]:
            raise _Killed
        self._all(node["parts"], thread)
        if not node["survives"]:
            raise Refused(409)
        return "survived"

    def _recall(self, node: Node, thread: str) -> Any:
        return ["error", 409, ""]

    def _hasty(self, node: Node, thread: str) -> Any:
        self._found.kills.append(False)
        self._sent(node, thread)
        self._found.kills.pop()
        if node["key"] is not None:
            self._found.blocks[f"{self._path}.{node['n']}"].is_sure = False
        self._found.undone.pop(f"{self._path}.{node['n']}", None)  # it has nothing, or it may not have begun
        return ["error", 408, ""]

    def _share(self, node: Node, thread: str) -> bool:
        self._sent(node, thread)
        return True

    def _workflow(self, node: Node, thread: str) -> list[Any]:
        play = _Play(self._found, f"{self._path}.{node['n']}", None, None)
        play.play_all(node["parts"])
        if node["refuses"]:
            play.undo()
        return [["error", 409, ""], 1, True]

    # At once

    def _threads(self, node: Node, thread: str) -> list[Any]:
        return [self._attempt(part, f"{thread}/{part['n']}") for part in node["parts"]]

    _gather = _threads

    def _never(self, node: Node, thread: str) -> None:
        self._all(node["parts"], thread)
        raise _Never

    def _ends(self, node: Node, thread: str) -> Iterator[tuple[Node, Any]]:
        """Yield the parts, each with what it comes to; with None if it never does."""
        for part in node["parts"]:
            try:
                yield part, [self._all(part["parts"], f"{thread}/{part['n']}")]
            except Refused as refused:
                yield part, refused
            except _Never:
                yield part, None

    def _group(self, node: Node, thread: str) -> list[Any]:
        ends = [end for _, end in self._ends(node, thread)]
        failed = [end.told for end in ends if isinstance(end, Refused)]
        return [failed, [end is None for end in ends]] if failed else [end[0] for end in ends]

    def _race(self, node: Node, thread: str) -> list[Any]:
        results = self._threads(node, thread)
        self._block.note(thread, "race", node["n"])
        self._told(node, thread)
        return [True, results]

    def _first(self, node: Node, thread: str) -> list[Any]:
        ends = [end for _, end in self._ends(node, thread)]
        ended = [(number, end) for number, end in enumerate(ends) if end is not None]
        won = [[number, end.told if isinstance(end, Refused) else end[0]] for number, end in ended]
        return [*won, *(end is None for end in ends)]

    def _within(self, node: Node, thread: str) -> Any:
        try:
            return self._all(node["parts"], thread)
        except _Never:
            return "too late"

    _shield = _attempt

    def _lock(self, node: Node, thread: str) -> int:
        self._threads(node, thread)
        return sum(part["n"] for part in node["parts"])

    def _queue(self, node: Node, thread: str) -> list[Any]:
        results = self._threads(node, thread)
        found = [[part["n"], result] for part, result in zip(node["parts"], results, strict=True)]
        return sorted(found, key=lambda pair: pair[0])


class _Killed(Refused):
    """It has ended, and nothing of it goes on."""

    def __init__(self) -> None:
        super().__init__(409)


class _Never(Exception):
    """It waits for what never comes."""
