"""The audit: whether what a program returned, and what its objects hold, is what the model says.

An object's log must be the invocations that the model names, one after the other and none twice, each with the notes
that the model gives it; and all that was read or added must be what the log says had been written. So the order of
invocations, which nobody promises, is taken from the log, and all else is exact.
"""

from collections import Counter as Tally
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from .model import Block, Expected

Fields = Mapping[str, Any]
"""What an object's state holds."""


def audit(expected: Mapping[str, Expected], results: Mapping[str, Any], objects: Mapping[str, Fields]) -> list[str]:
    """Return what is wrong; results by the path of each root, objects by key."""
    wrong = [
        f"{path} returned {results.get(path)}, not {each.result}"
        for path, each in expected.items()
        if results.get(path) != each.result
    ]
    blocks = {path: block for each in expected.values() for path, block in each.blocks.items()}
    for key in sorted({block.key for block in blocks.values()} | objects.keys()):
        wrong += [f"{key}: {what}" for what in _of_object(key, blocks, objects.get(key, {}))]
    return wrong


def undone(expected: Mapping[str, Expected], found: Mapping[str, list[tuple[str, int]]]) -> Iterator[str]:
    """Yield what is wrong with what was undone, by path: threads and nodes in order, each once."""
    due = {path: threads for each in expected.values() for path, threads in each.undone.items() if threads}
    for path in due.keys() | found.keys():
        threads: dict[str, list[int]] = {}
        for thread, n in found.get(path, []):
            threads.setdefault(thread, []).append(n)
        if threads != due.get(path, {}):
            yield f"{path} has undone {threads}, not {due.get(path, {})}"


def runs_kept(objects: Mapping[str, Fields]) -> Iterator[tuple[str, str]]:
    """Yield, of each step whose outcome an object has noted, the invocation's id and what names the action."""
    for fields in objects.values():
        for _, _, what, _, *more in fields.get("log", []):
            if what == "ran":
                yield more[0], more[1]


def _of_object(key: str, blocks: Mapping[str, Block], fields: Fields) -> Iterator[str]:
    log: list[list[Any]] = fields.get("log", [])
    order = [path for path, _ in groupby(log, lambda line: line[0])]
    times, due = Tally(order), {path for path, block in blocks.items() if block.key == key}
    yield from (f"{path} was never there" for path in sorted(due - times.keys()) if blocks[path].is_sure)
    yield from (f"{path} is not expected here" for path in sorted(times.keys() - due))
    yield from (f"{path} was there {count} times" for path, count in times.items() if count > 1)
    for path in due & times.keys():
        yield from _of_block(path, blocks[path], [line for line in log if line[0] == path])
    yield from _order([path for path in order if path in due], blocks)
    yield from _values(log, {name: value for name, value in fields.items() if name != "log"})


def _of_block(path: str, block: Block, lines: list[list[Any]]) -> Iterator[str]:
    threads: dict[str, list[tuple[str, int]]] = {}
    for _, thread, what, n, *_ in lines:
        threads.setdefault(thread, []).append((what, n))
    if threads != block.threads:
        yield f"{path} noted {threads}, not {block.threads}"


def _order(order: list[str], blocks: Mapping[str, Block]) -> Iterator[str]:
    """What one thread has sent here must have come in the order of sending, which is that of the blocks."""
    sent = {path: number for number, path in enumerate(blocks)}
    last: dict[tuple[str, str], str] = {}
    for path in order:
        sender = blocks[path].sender
        if sender is None:
            continue
        if sender in last and sent[last[sender]] > sent[path]:
            yield f"{path} came after {last[sender]}"
        last[sender] = path


def _values(log: list[list[Any]], left: Fields) -> Iterator[str]:
    """What was seen, and what is left, must be what was written before."""
    fields: dict[str, int] = {}
    for path, _, what, n, *more in log:
        match what:
            case "write":
                fields[more[0]] = n
            case "clear":
                fields.pop(more[0], None)
            case "add":
                fields[more[0]] = fields.get(more[0], 0) + n
                if more[1] != fields[more[0]]:
                    yield f"{path}.{n} made {more[0]} {more[1]}, not {fields[more[0]]}"
            case "read":
                if more[0] != fields:
                    yield f"{path}.{n} read {more[0]}, not {fields}"
            case _:
                pass
    if dict(left) != fields:
        yield f"the state is {dict(left)}, not {fields}"
