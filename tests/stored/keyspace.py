"""Keyspace: all keys of one namespace as JSON that a person can read and every engine can be given."""

import base64
import pickletools
from collections.abc import Iterator
from typing import Any, cast

from redis import Redis

GONE_WITH_ITS_PROCESSES = ("hosts", "lease")
"""What is no more when all processes of a namespace have ended for long enough."""
_BINARY = "base64:"
_PICKLE = b"\x80\x05\x95"


def dumped(url: str, namespace: str) -> dict[str, Any]:
    """Return what a namespace holds, as of long after the end of all its processes."""
    with client(url) as redis:
        keys = sorted(cast("list[bytes]", redis.keys(f"{namespace}:*")))
        kept = (key for key in keys if key.decode().rpartition(":")[2] not in GONE_WITH_ITS_PROCESSES)
        return {text(key): _dumped(redis, key) for key in kept}


def restored(url: str, keyspace: dict[str, Any]) -> None:
    """Put into a server what was dumped."""
    with client(url) as redis:
        for name, found in keyspace.items():
            ((kind, content),) = found.items()
            _restore(redis, data(name), kind, content)


def client(url: str) -> Any:
    """Return a connection on which each command waits for its answer."""
    return Redis.from_url(url)


def text(found: bytes) -> str:
    """Return bytes as text, as base64 where they are none."""
    try:
        plain = found.decode()
    except UnicodeDecodeError:
        plain = ""
    if (plain or not found) and plain.isprintable() and not plain.startswith(_BINARY):
        return plain
    return _BINARY + base64.b64encode(found).decode()


def data(found: str) -> bytes:
    """Return the bytes of a text."""
    return base64.b64decode(found[len(_BINARY) :]) if found.startswith(_BINARY) else found.encode()


def _dumped(redis: Any, key: bytes) -> dict[str, Any]:
    kind = redis.type(key).decode()
    if kind == "string":
        return {kind: text(redis.get(key))}
    if kind == "hash":
        return {kind: {text(field): text(value) for field, value in sorted(redis.hgetall(key).items())}}
    if kind == "zset":
        scores = redis.zrange(key, 0, -1, withscores=True)
        return {kind: {text(member): str(score) for member, score in scores}}
    assert kind == "stream", kind
    last = redis.xinfo_stream(key)["last-generated-id"]
    entries = redis.xrange(key)
    fields = [[text(id_), *(text(each) for pair in found.items() for each in pair)] for id_, found in entries]
    return {kind: {"last": text(last), "entries": fields}}


def _restore(redis: Any, key: bytes, kind: str, content: Any) -> None:
    if kind == "string":
        redis.set(key, data(content))
    elif kind == "hash":
        redis.hset(key, mapping={data(field): data(value) for field, value in content.items()})
    elif kind == "zset":
        redis.zadd(key, {data(member): score for member, score in content.items()})
    else:
        for entry in content["entries"]:
            redis.execute_command("XADD", key, *map(data, entry))
        if not content["entries"]:
            redis.xgroup_create(key, "made", mkstream=True)
            redis.xgroup_destroy(key, "made")
        redis.execute_command("XSETID", key, content["last"])


def pickles(found: bytes) -> Iterator[bytes]:
    """Yield everything in these bytes that begins as a pickle does, those in other pickles too."""
    at = found.find(_PICKLE)
    while at >= 0:
        yield found[at:]
        at = found.find(_PICKLE, at + 1)


def globals_in(pickle: bytes) -> set[tuple[str, str]]:
    """Return module and name of each global that a pickle of protocol 5 names."""
    named, memo, strings = set[tuple[str, str]](), list[str | None](), list[str | None]()
    for opcode, argument, _ in pickletools.genops(pickle):
        if opcode.name == "MEMOIZE":
            memo.append(strings[-1])
        elif opcode.name == "STACK_GLOBAL":
            module, name = strings[-2:]
            assert module is not None
            assert name is not None
            named.add((module, name))
            strings.append(None)
        elif opcode.name in ("BINGET", "LONG_BINGET"):
            strings.append(memo[cast("int", argument)])
        else:
            strings.append(argument if "UNICODE" in opcode.name else None)
    return named
