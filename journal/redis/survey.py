"""RedisSurvey: the reads of operators on a Redis or Valkey.

Owns the pages of `scripts/survey.lua`, and the questions that take no script.
"""

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from journal.ids import Shard, shard_in
from journal.keys import Keys
from journal.survey import PAGE, PAGE_BYTES, Account, Facts, Listed, Page, Place, Sizes, in_json

from .arguments import pairs_in, text_of
from .connection import Connections, Forbidden, RefusedCommand

ASLEEP_PAGE: Final = 500
"""Entries of `ids` that a page of sleeping invocations looks at: the message of each is read."""
_TIMES: Final = 5
"""How often an invocation is looked up that moves meanwhile."""
_GLOB: Final = re.compile(r"([*?\[\]^\\-])")
_SETTINGS: Final = ("appendonly", "appendfsync", "no-appendfsync-on-rewrite", "maxmemory-policy")


class RedisSurvey:
    """See `Survey` for what each method promises."""

    def __init__(self, connections: Connections, keys: Keys, run: Callable[..., Awaitable[Any]]) -> None:
        self._connections, self._keys, self._run = connections, keys, run

    async def page(
        self, shard: Shard, place: Place, begins: str, cursor: str, count: int = PAGE, *, are_paused: bool = False
    ) -> Page:
        wanted = begins if place is Place.ENDED else in_json(begins)
        most = min(count, ASLEEP_PAGE) if place is Place.ASLEEP else count
        following, *found = await self._run(
            "survey", shard, place.value, cursor, most, PAGE_BYTES, wanted, int(are_paused)
        )
        return Page(_READERS[place](found), text_of(following))

    async def account(self, invocation: str) -> Account | None:
        for _ in range(_TIMES):
            entry = await self._connections.ask("HGET", self._keys.ids(shard_in(invocation)), invocation)
            if entry is None:
                return None
            place, *tellers = text_of(entry).split(" ")
            found = await self._at(invocation, place[:1], place[1:], tuple(tellers))
            if found is not None:
                return found
        return Account(Place.ENDED, "")

    async def _at(self, invocation: str, kind: str, id_: str, tellers: tuple[str, ...]) -> Account | None:
        shard, ask = shard_in(invocation), self._connections.ask
        if kind == "i":
            found = await ask("XRANGE", self._keys.inbox(shard), id_, id_)
            return Account(Place.INBOX, id_, tellers, found[0][1][1]) if found else None
        if kind == "a":
            key = self._keys.asleep(shard, invocation)
            message, paused, count = await self._connections.answers(
                ("HGET", key, "m"), ("HGET", key, "paused"), ("HLEN", key)
            )
            said = None if paused is None else text_of(paused)
            return Account(Place.ASLEEP, id_, tellers, message, said, has_begun=count > 2) if message else None
        if kind == "o":
            outcome = await ask("HGET", self._keys.outcomes(shard), invocation)
            return Account(Place.ENDED, "", outcome=outcome or b"")
        found = await ask("XRANGE", self._keys.done(shard), id_, id_)
        if not found:
            return None
        fields = found[0][1]
        return Account(Place.ENDED, id_, name=text_of(fields[5]), outcome=fields[3])

    async def records(self, invocation: str, cursor: str) -> tuple[list[tuple[str, bytes]], str]:
        arguments = shard_in(invocation), "j", cursor, PAGE, PAGE_BYTES, invocation
        following, *found = await self._run("survey", *arguments)
        return [(id_.decode(), record) for id_, record in pairs_in(found)], text_of(following)

    async def due(self, shard: Shard, timers: Sequence[str]) -> list[int]:
        if not timers:
            return []
        found = await self._connections.ask("ZMSCORE", self._keys.timers(shard), *timers)
        return [int(float(score)) if score is not None else 0 for score in found]

    async def objects(self, begins: str, cursor: str, count: int = PAGE) -> tuple[list[str], str]:
        begin = f"{self._keys.namespace}:"
        pattern = f"{_GLOB.sub(_ESCAPED, begin)}*:state:{_GLOB.sub(_ESCAPED, begins)}*"
        following, found = await self._connections.ask("SCAN", cursor or "0", "MATCH", pattern, "COUNT", count)
        targets: list[str] = []
        for key in map(text_of, found):
            shard, _, rest = key.removeprefix(begin).partition(":")
            if shard.isdecimal() and rest.startswith(f"state:{begins}"):
                targets.append(rest.removeprefix("state:"))
        said = text_of(following)
        return targets, "" if said == "0" else said

    async def sizes(self, shards: int) -> list[Sizes]:
        keys = self._keys
        questions = [
            command
            for shard in map(Shard, range(shards))
            for command in (
                ("XLEN", keys.inbox(shard)),
                ("XLEN", keys.events(shard)),
                ("XLEN", keys.journal(shard)),
                ("ZCOUNT", keys.timers(shard), "(0", "+inf"),  # without the mark that keeps it from being empty
                ("HLEN", keys.held(shard)),
                ("XLEN", keys.done(shard)),
                ("HLEN", keys.ids(shard)),
            )
        ]
        found = await self._connections.ask_all(*questions)
        return [Sizes(*found[at : at + 7]) for at in range(0, len(found), 7)]

    async def is_open(self) -> bool:
        return bool(await self._connections.ask("EXISTS", self._keys.meta))

    async def facts(self) -> Facts:
        try:
            info = await self._connections.ask("INFO")
        except (Forbidden, RefusedCommand):
            return Facts()
        said = {name: value.strip() for name, _, value in (line.partition(":") for line in text_of(info).splitlines())}
        version = said.get("valkey_version", "")
        settings: dict[str, str] = {}
        for name in _SETTINGS:
            try:
                found = await self._connections.ask("CONFIG", "GET", name)
            except (Forbidden, RefusedCommand):
                break
            settings |= {text_of(key): text_of(value) for key, value in pairs_in(found)}
        return Facts(
            version=f"Valkey {version}" if version else f"Redis {said.get('redis_version', '')}",
            memory=int(said.get("used_memory", 0)),
            memory_max=int(said.get("maxmemory", 0)),
            settings=settings,
            role=said.get("role", ""),
            replicas=int(said.get("connected_slaves", 0)),
        )


_ESCAPED: Final = r"\\\1"


def _of_inbox(found: Sequence[Any]) -> list[Listed]:
    return [Listed("", Place.INBOX, id_.decode(), line) for id_, line in pairs_in(found)]


def _of_asleep(found: Sequence[Any]) -> list[Listed]:
    out: list[Listed] = []
    for at in range(0, len(found), 5):
        invocation, id_, line, paused, count = found[at : at + 5]
        said = text_of(paused)
        why = said[1:] if said.startswith("=") else None
        out.append(Listed(text_of(invocation), Place.ASLEEP, id_.decode(), line, why, has_begun=count > 2))
    return out


def _of_ended(found: Sequence[Any]) -> list[Listed]:
    return [
        Listed(
            text_of(found[at + 1]),
            Place.ENDED,
            found[at].decode(),
            name=text_of(found[at + 2]),
            outcome=found[at + 3],
        )
        for at in range(0, len(found), 4)
    ]


_READERS: Final = {Place.INBOX: _of_inbox, Place.ASLEEP: _of_asleep, Place.ENDED: _of_ended}
