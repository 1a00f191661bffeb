"""Mending: rebuilds the index `ids` of a shard that has lost entries, from the data that is still there.

`ids` only says where invocations are. Somebody may have deleted it, or a store may have lost invocations that it names;
without it everything else would stand still, though it is there. So its entries are made again, from the inbox, from
the hashes of sleeping invocations, from `done` and `outcomes`; an invocation that is named and is nowhere is ended. Of
the waiting callers only the first is known then, which stands in the message: all drivers attach anew.

Where `timers` is gone, a delayed message says when it is due. When an entry's timer is due is known to its handler
alone, by a replay: every invocation that has begun gets an event that lets its owner set its timers again, and stays
until that is durable. The time at which state was to expire is lost: the state stays until it is written again.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

from journal.ids import Shard
from journal.keys import Keys
from journal.losses import GONE
from journal.records import Message, timer_of

from .connection import Connections

PAGE: Final = 100
"""Most entries in one read, and in one call of the script."""
NOT_BEGUN: Final = 2
"""Fields in the hash of a delayed message: the message, and its id."""
FIRST: Final = "0" * 20
"""The counter of a timer that is set anew."""


async def mended(
    connections: Connections, run: Callable[..., Awaitable[Any]], keys: Keys, shard: Shard, owner: str
) -> list[str]:
    """Make the entries of a shard's open invocations again; return the ids of those that are gone."""
    after = "-"
    while True:
        page = await connections.ask("XRANGE", keys.inbox(shard), after, "+", "COUNT", PAGE)
        await run(shard, owner, GONE, 0, *_entries((fields[1], b"i" + id_, 0) for id_, fields in page))
        if len(page) < PAGE:
            break
        after = f"({page[-1][0].decode()}"
    cursor: Any = 0
    while True:
        pattern = re.sub(r"([\\*?\[\]])", r"\\\1", keys.asleep(shard, "")) + "*"
        cursor, names = await connections.ask("SCAN", cursor, "MATCH", pattern, "COUNT", PAGE)
        found = await connections.ask_all(*(("HMGET", name, "m", "id") for name in names))
        counts = await connections.ask_all(*(("HLEN", name) for name in names))
        pairs = zip(found, counts, strict=True)
        there = [(message, b"a" + id_, count) for (message, id_), count in pairs if None not in (message, id_)]
        await run(shard, owner, GONE, 0, *_entries(there))
        if int(cursor) == 0:
            break
    after, begun = "-", set[bytes]()
    while True:
        page = await connections.ask("XRANGE", keys.journal(shard), after, "+", "COUNT", PAGE)
        named = {fields[1] for _, fields in page} - begun
        begun |= named
        await run(shard, owner, GONE, 0, *(word for name in sorted(named) for word in (name, b"", b"w")))
        if len(page) < PAGE:
            break
        after = f"({page[-1][0].decode()}"
    lost = await run(shard, owner, GONE, 1)
    return [name.decode("utf-8", "surrogatepass") for name in lost or ()]


def _entries(found: Any) -> list[Any]:
    out: list[Any] = []
    for data, place, count in found:
        try:
            message = Message.parse(data)
        except Exception:  # noqa: BLE001 # its invocation is unknown; the shard's host logs it
            continue
        timers = "w" if count else ""
        if count == NOT_BEGUN and message.due_ms:
            timers = f"{message.due_ms} {timer_of(FIRST, message.id, 'd')}"
        out += (message.id, place + (f" {message.caller}".encode() if message.caller else b""), timers)
    return out
