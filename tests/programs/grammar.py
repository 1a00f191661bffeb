"""Programs from a seed, and smaller ones from a program.

A program has a few roots, which a driver starts at once: each is played at an object or at a service. An invocation
calls only objects of a deeper level than its own, and nobody who holds an object waits for what needs a shallower one:
so nothing ever waits in a circle. What is waited for with a short time-out, and what is left waiting beside something
that fails or wins, waits for what never comes, after nothing that takes time.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from .pests import is_hostile, with_pests
from .plays import FIELDS, Node

KEYS: Final = 2
"""Objects of each level: few, so that invocations meet."""
DEPTH_MAX: Final = 3
ENDED: Final = ("cancel", "cancel", "recall", "hasty", "share")
PAUSES: Final = (0.0, 0.0, 0.05, 0.3, 2.0)


@dataclass(frozen=True)
class Root:
    """What a driver starts."""

    path: str
    key: str | None
    parts: list[Node]


def program(seed: int, name: str = "p") -> list[Root]:
    """Return the program of a seed; its paths and keys begin with the name."""
    maker = _Maker(random.Random(seed), name)
    roots = maker.roots()
    if not is_hostile(seed):
        return roots
    choose, count, found = random.Random(f"pests {seed}"), maker.count, list[Root]()
    for root in roots:
        parts, count = with_pests(root.parts, choose, count)
        found.append(Root(root.path, root.key, parts))
    return found


class _Maker:
    def __init__(self, choose: random.Random, name: str) -> None:
        self._choose, self._name, self.count = choose, name, 0
        self._left = choose.choice([4, 12, 30])
        """So many nodes may still be made."""

    def roots(self) -> list[Root]:
        made: list[Root] = []
        for number in range(self._choose.randint(1, 3)):
            key = self._key(0) if self._choose.random() < 0.7 else None
            made.append(Root(f"{self._name}.{number}", key, self._parts(0, key is not None, 4)))
        return made

    def _key(self, level: int) -> str:
        return f"{self._name}:{level}.{self._choose.randrange(KEYS)}"

    def _node(self, do: str, **more: Any) -> Node:
        self.count += 1
        self._left -= 1
        return {"do": do, "n": self.count, **more}

    def _chance(self, of_one: float = 0.5) -> bool:
        return self._choose.random() < of_one

    def _pause(self) -> float:
        return self._choose.choice(PAUSES)

    def _parts(self, level: int, held: bool, most: int) -> list[Node]:
        """Return nodes to be played one after the other, at an object of this level (`held`) or at none."""
        return [self._any(level, held) for _ in range(self._choose.randint(1, most))]

    def _any(self, level: int, held: bool) -> Node:
        simple = ["step", "step", "step", "sleep", "refused", "fail", "stumble", "defer"]
        state = ["noted", "write", "add", "clear", "read", "add"] if held else []
        others = (
            ["call", "call", "send", "post", "drawn", "look", "awake", "tell", *ENDED, "workflow"]
            if level < DEPTH_MAX
            else []
        )
        nests = ["gather", "group", "race", "first", "within", "shield", "lock", "queue", "attempt"]
        kinds = simple + 2 * state
        if self._left > 0:
            kinds += 2 * others + nests
        return self._made(self._choose.choice(kinds), level, held)

    def _made(self, do: str, level: int, held: bool) -> Node:
        return getattr(self, f"_{do}")(level, held)

    # Leaves

    def _noted(self, level: int, held: bool) -> Node:
        return self._node("noted")

    def _read(self, level: int, held: bool) -> Node:
        return self._node("read")

    def _write(self, level: int, held: bool) -> Node:
        return self._node("write", field=self._choose.choice(FIELDS))

    def _add(self, level: int, held: bool) -> Node:
        return self._node("add", field=self._choose.choice(FIELDS))

    def _clear(self, level: int, held: bool) -> Node:
        return self._node("clear", field=self._choose.choice(FIELDS))

    def _step(self, level: int, held: bool) -> Node:
        return self._node(
            "step", fails=self._choose.choice([0, 0, 0, 1, 2]), pause=self._pause(), undoes=self._chance(0.3)
        )

    def _defer(self, level: int, held: bool) -> Node:
        return self._node("defer")

    def _refused(self, level: int, held: bool) -> Node:
        return self._node("refused", at_once=self._chance())

    def _sleep(self, level: int, held: bool) -> Node:
        return self._node("sleep", pause=self._pause(), ours=self._chance())

    def _fail(self, level: int, held: bool) -> Node:
        return self._node("fail")

    def _stumble(self, level: int, held: bool) -> Node:
        return self._node("stumble", times=self._choose.randint(1, 2))

    # Others

    def _child(self, level: int) -> tuple[str | None, int]:
        """Return the key of somebody to be called, and the level that it is played at."""
        return (self._key(level + 1) if self._chance(0.75) else None), level + 1

    def _call(self, level: int, held: bool) -> Node:
        key, deeper = self._child(level)
        parts = self._parts(deeper, key is not None, 3)
        node = self._node("call", key=key, parts=parts, twice=self._chance(0.2), pause=self._pause())
        return node | {"timed": not node["twice"] and self._chance(0.2)}

    def _send(self, level: int, held: bool) -> Node:
        key, deeper = self._child(level)
        return self._node("send", key=key, parts=self._parts(deeper, key is not None, 3), pause=self._pause())

    def _post(self, level: int, held: bool) -> Node:
        forward = [self._key(deeper) for deeper in range(level + 2, DEPTH_MAX + 1)]
        return self._node("post", key=self._key(level + 1), forward=forward[: self._choose.randint(0, 2)])

    def _drawn(self, level: int, held: bool) -> Node:
        return self._node("drawn", key=self._key(level + 1))

    def _look(self, level: int, held: bool) -> Node:
        return self._node("look", key=self._key(self._choose.randint(0, DEPTH_MAX)), pause=self._pause())

    def _awake(self, level: int, held: bool) -> Node:
        key, deeper = self._child(level)
        node = self._node("awake", by=self._choose.choice(["call", "send", "outside"]), key=key)
        node |= {"reminds": self._chance(0.3), "refuses": self._chance(0.2), "times": self._choose.randint(1, 2)}
        complete = self._node("complete", gate=node["n"], refuses=node["refuses"], again=self._chance(0.3))
        before = [self._safe(deeper, key is not None)] if self._chance() else []
        node["parts"] = [*before, complete, *([self._any(deeper, key is not None)] if self._chance(0.3) else [])]
        return node

    def _tell(self, level: int, held: bool) -> Node:
        key, deeper = self._child(level)
        node = self._node("tell", key=key, count=self._choose.randint(1, 4), pause=self._pause())
        node["reminds"] = self._chance(0.3)
        listen = self._node("listen", tell=node["n"], count=node["count"], reminds=self._chance(0.3))
        before = [self._safe(deeper, key is not None)] if self._chance() else []
        node["parts"] = [*before, listen, *([self._any(deeper, key is not None)] if self._chance(0.3) else [])]
        return node

    # What is ended from outside

    def _cancel(self, level: int, held: bool) -> Node:
        key, deeper = self._child(level)
        node = self._node("cancel", key=key, kills=self._chance(0.3))
        node["parts"] = self._until_held(deeper, key is not None, node["n"])
        if self._chance(0.3):
            node["parts"].append(self._any(deeper, key is not None))
        return node

    def _until_held(self, level: int, held: bool, gate: int) -> list[Node]:
        before = [self._safe(level, held)] if self._chance() else []
        return [*before, self._held(level, held, gate)]

    def _held(self, level: int, held: bool, gate: int) -> Node:
        how = ["sleep", "signal", "step", "both", "lock"] + (["call", "call"] if level < DEPTH_MAX else [])
        node = self._node("held", gate=gate, how=self._choose.choice(how), survives=self._chance(0.3))
        node["parts"] = [self._safe(level, held)] if self._chance(0.7) else []
        if node["how"] == "call":
            key, deeper = self._child(level)
            node["deeper"] = self._node("call", key=key, parts=self._until_held(deeper, key is not None, gate))
            node["gate"] = 0
        return node

    def _recall(self, level: int, held: bool) -> Node:
        key, deeper = self._child(level)
        parts = self._parts(deeper, key is not None, 1)
        return self._node("recall", key=key, parts=parts, pause=self._pause(), kills=self._chance(0.3))

    def _hasty(self, level: int, held: bool) -> Node:
        key, deeper = self._child(level)
        node = self._node("held", gate=0, how=self._choose.choice(["sleep", "signal", "step", "both", "lock"]))
        node["survives"], node["parts"] = False, [self._noted(deeper, held)] if key is not None else []
        return self._node("hasty", key=key, parts=[node])

    def _share(self, level: int, held: bool) -> Node:
        key, deeper = self._child(level)
        return self._node("share", key=key, parts=self._parts(deeper, key is not None, 2), pause=self._pause())

    def _workflow(self, level: int, held: bool) -> Node:
        parts = [self._safe(level + 1, held=False)] if self._chance() else []
        return self._node(
            "workflow", parts=parts, pause=self._pause(), reminds=self._chance(), refuses=self._chance(0.3)
        )

    # Nests

    def _thread(self, level: int, held: bool) -> Node:
        return self._node("attempt", parts=self._parts(level, held, 2))

    def _threads(self, level: int, held: bool, most: int = 4) -> list[Node]:
        return [self._thread(level, held) for _ in range(self._choose.randint(2, most))]

    def _attempt(self, level: int, held: bool) -> Node:
        return self._thread(level, held)

    def _safe(self, level: int, held: bool) -> Node:
        """Return what raises nothing."""
        return self._thread(level, held)

    def _gather(self, level: int, held: bool) -> Node:
        return self._node("gather", parts=self._threads(level, held))

    def _race(self, level: int, held: bool) -> Node:
        if level == DEPTH_MAX:
            return self._gather(level, held)
        return self._node("race", key=self._key(level + 1), parts=self._threads(level, held))

    def _lock(self, level: int, held: bool) -> Node:
        return self._node("lock", parts=self._threads(level, held, 3))

    def _queue(self, level: int, held: bool) -> Node:
        return self._node("queue", parts=self._threads(level, held, 3))

    def _shield(self, level: int, held: bool) -> Node:
        return self._node("shield", parts=self._parts(level, held, 2))

    def _within(self, level: int, held: bool) -> Node:
        short = self._chance()
        parts = [self._never(level, held)] if short else self._parts(level, held, 2)
        return self._node("within", short=short, waits_for=self._chance(), parts=parts)

    def _never(self, level: int, held: bool) -> Node:
        """Return what never comes, after what takes no time."""
        kinds = ["noted", "write", "add", "clear", "read"] if held else []
        if level < DEPTH_MAX:
            kinds += ["send", "post"]
        parts = [self._made(self._choose.choice(kinds), level, held)] if kinds and self._chance() else []
        return self._node("never", how=self._choose.choice(["signal", "sleep", "awakeable"]), parts=parts)

    def _among(self, one: Node, level: int, held: bool) -> list[Node]:
        """Return one thread among others that never come."""
        others = [self._node("attempt", parts=[self._never(level, held)]) for _ in range(self._choose.randint(0, 2))]
        others.insert(self._choose.randint(0, len(others)), one)
        return others

    def _first(self, level: int, held: bool) -> Node:
        return self._node("first", parts=self._among(self._thread(level, held), level, held))

    def _group(self, level: int, held: bool) -> Node:
        if self._chance():
            parts = [self._node("attempt", parts=[part]) for part in self._threads(level, held)]
        else:
            one = self._node("attempt", parts=[self._safe(level, held), self._fail(level, held)])
            parts = self._among(one, level, held)
        return self._node("group", parts=parts)


# ---------------------------------------------------------------------------------------------------------- shrinking


def smallest(roots: list[Root], is_wrong: Callable[[list[Root]], bool]) -> list[Root]:
    """Return a program, made of this one, of which nothing can be left out without its being right."""
    for less in smaller(roots):
        with suppress(Exception):  # some are no programs any more
            if is_wrong(less):
                return smallest(less, is_wrong)
    return roots


def smaller(roots: list[Root]) -> Iterator[list[Root]]:
    """Yield programs that have something less: a root, or a node; or a thread in the place of its nest."""
    for number in range(len(roots)):
        if len(roots) > 1:
            yield roots[:number] + roots[number + 1 :]
    for number, root in enumerate(roots):
        for parts in _fewer(root.parts):
            yield [*roots[:number], Root(root.path, root.key, parts), *roots[number + 1 :]]


def _fewer(parts: list[Node]) -> Iterator[list[Node]]:
    for number, node in enumerate(parts):
        before, after = parts[:number], parts[number + 1 :]
        if node["do"] not in NEEDED:
            yield [*before, *after]
        if node["do"] in UNWRAPPED:
            yield [*before, *node["parts"], *after]
        for fewer in _fewer(node.get("parts", [])):
            if fewer or node["do"] in ("call", "send", "held", "workflow"):
                yield [*before, node | {"parts": fewer}, *after]


NEEDED: Final = ("complete", "listen", "never", "held")
"""Without these, another node would wait for ever, or not at all."""
UNWRAPPED: Final = ("gather", "race", "lock", "queue", "shield", "attempt")
"""Nests whose parts may stand alone."""
