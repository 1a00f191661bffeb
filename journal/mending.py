"""Mending: what is open in a shard whose `ids` are torn, found where it lies.

`ids` only says where things are. Somebody may have deleted it, or a store may have lost what it names; everything else
would then stand, though it is there. So its entries are made again, from the inbox, from the hashes of what is asleep,
from `done` and `outcomes`; what it names and is nowhere is ended. Of those who wait only the first is known then, who
stands in the message: all drivers attach anew.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

from .entries import Message
from .keys import Keys
from .line import Lines
from .losses import GONE
from .names import Shard

PAGE: Final = 100
"""Most entries in one read, and in one call of the script."""


async def mended(lines: Lines, run: Callable[..., Awaitable[Any]], keys: Keys, shard: Shard, owner: str) -> list[str]:
    """Make the entries of a shard's open invocations again; return the ids of those that are gone."""
    after = "-"
    while True:
        page = await lines.ask("XRANGE", keys.inbox(shard), after, "+", "COUNT", PAGE)
        await run(shard, owner, GONE, 0, *_entries((fields[1], b"i" + id_) for id_, fields in page))
        if len(page) < PAGE:
            break
        after = f"({page[-1][0].decode()}"
    cursor: Any = 0
    while True:
        pattern = re.sub(r"([\\*?\[\]])", r"\\\1", keys.asleep(shard, "")) + "*"
        cursor, names = await lines.ask("SCAN", cursor, "MATCH", pattern, "COUNT", PAGE)
        found = await lines.ask_all(*(("HMGET", name, "m", "id") for name in names))
        there = [(message, b"a" + id_) for message, id_ in found if message is not None and id_ is not None]
        await run(shard, owner, GONE, 0, *_entries(there))
        if int(cursor) == 0:
            break
    lost = await run(shard, owner, GONE, 1)
    return [name.decode("utf-8", "surrogatepass") for name in lost or ()]


def _entries(found: Any) -> list[Any]:
    out: list[Any] = []
    for data, place in found:
        try:
            message = Message.parse(data)
        except Exception:  # noqa: BLE001  # whose it is nobody knows; who serves the shard says so
            continue
        out += (message.id, place + (f" {message.caller}".encode() if message.caller else b""))
    return out
