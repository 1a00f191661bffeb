"""Arguments: transitions as arguments of the scripts, and the server's answers as values.

Owns the Python side of the interface in the heads of `scripts/*.lua`; pure, so that it needs no server.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from journal.records import Event, EventKind, order_of
from journal.store import (
    INBOX_FULL,
    Answer,
    Attach,
    Bring,
    Committed,
    Damaged,
    Dormant,
    Expire,
    Fenced,
    Finish,
    NamespaceLimits,
    Outgoing,
    Part,
    PartlyApplied,
    Progress,
    Reply,
    Settled,
    Sleep,
)


def submit_arguments(teller: str, operations: Sequence[Outgoing | Attach | Bring]) -> list[Any]:
    """Return the arguments of `submit.lua` for each operation of the driver whose replies go to `teller`."""
    out: list[Any] = []
    for operation in operations:
        if isinstance(operation, Attach):
            out += ("a", operation.shard, operation.invocation)
        elif isinstance(operation, Bring):
            event = f"{operation.kind}:{operation.index}"
            out += ("e", operation.shard, operation.invocation, event, operation.data)
        elif operation.refusal is not None:
            to_whom = operation.shard, operation.invocation, operation.caller
            out += ("n", *to_whom, _digest_of(operation), operation.data)
        elif operation.caller == teller:
            out += ("c", operation.shard, operation.invocation, operation.data)
        else:
            out += ("m", operation.shard, operation.invocation, operation.caller, operation.data)
    return out


def _digest_of(message: Outgoing) -> str:
    return message.digest and f"{'?' if message.is_trusted else '='}{message.digest}"


def _told_refusal(message: Outgoing, refusal: bytes) -> bytes:
    return b"n%s\n%s\n%s" % (message.caller.encode(), _digest_of(message).encode(), refusal)


def parse_submitted(missed: Sequence[bytes] | None) -> Settled | PartlyApplied:
    """Return the result of a driver's write."""
    if not missed:
        return Settled.REFUSED if missed is None else Settled.APPLIED
    return PartlyApplied(_places(missed, b"o"), _places(missed, b"u"), _places(missed, b"k"), _places(missed, b"l"))


def _places(missed: Sequence[bytes], kind: bytes) -> tuple[int, ...]:
    return tuple(int(word[1:]) for word in missed if word[:1] == kind)


def commit_arguments(parts: Sequence[Part], limits: NamespaceLimits) -> list[Any]:
    """Return the arguments of `commit.lua`."""
    out: list[Any] = [limits.inbox_max * 10, limits.done_max, limits.retention_ms(), INBOX_FULL, len(parts)]
    for part in parts:
        out += (part.shard, f"{part.epoch} {part.incarnation}", part.number, 0)
        start = len(out)
        for progress in part.progress:
            _flatten(progress, out)
        if part.stray:
            _flatten(Progress("", "", "", events=part.stray), out)
        out[start - 1] = len(out) - start
    return out


def _flatten(progress: Progress, out: list[Any]) -> None:
    """Append a progress as `commit.lua` reads it: a section for each flag that is set, in order."""
    flags = 2048 if progress.asleep else 0
    out += (progress.invocation, progress.target, progress.inbox_id, flags)
    at = len(out) - 1
    if progress.record:
        flags |= 1
        out.append(progress.record)
    if progress.events:
        flags |= 2
        out += (len(progress.events), *progress.events)
    if len(progress.writes) == 1:
        flags |= 4
        out += next(iter(progress.writes.items()))
    elif progress.writes:
        flags |= 4096
        out.append(2 * len(progress.writes))
        for pair in progress.writes.items():
            out += pair
    if progress.clears:
        flags |= 8
        out += (len(progress.clears), *progress.clears)
    if progress.timers:
        flags |= 16
        out.append(2 * len(progress.timers))
        for timer in progress.timers:
            out += timer
    if progress.untimers:
        flags |= 32
        out += (len(progress.untimers), *progress.untimers)
    if isinstance(progress.end, Expire):
        flags |= 16384
        out.append(progress.end.field)
    if progress.messages:
        flags |= 64
        out.append(len(progress.messages))
        for m in progress.messages:
            teller: str | bytes
            if isinstance(m, Bring):
                teller = f"e:{m.kind}:{m.index}"
            elif isinstance(m, Attach):
                teller = f"a:{m.caller}"
            else:
                teller = m.caller if m.refusal is None else _told_refusal(m, m.refusal)
            out += (m.shard, m.invocation, teller, m.data)
    if progress.notice:
        flags |= 512
        out.append(progress.notice)
    if progress.journal:
        flags |= 1024
        out += (len(progress.journal), *progress.journal)
    if isinstance(progress.end, Finish):
        flags |= 128
        out += (progress.end.outcome, progress.end.summary)
        if progress.end.keep_ms > 0:
            flags |= 8192
            out.append(progress.end.keep_ms)
    elif isinstance(progress.end, Sleep):
        flags |= 256
        out += (2 if progress.end.resumed else int(progress.end.holds), progress.end.paused)
    out[at] = flags


def parse_answer(data: bytes) -> Answer:
    """Return the result of a part."""
    text = data.decode("utf-8", "replace")
    match text[0]:
        case "c":
            return Committed.parse(text[1:])
        case "f":
            return Fenced(text[1:])
        case _:
            return Damaged(text[1:])


def parse_replies(found: Any) -> list[Reply]:
    """Return the replies in the answer to XREAD of one reply stream: pairs of invocation and payload."""
    out: list[Reply] = []
    for id_, fields in found[0][1] if found else ():
        key = id_.decode()
        out += [Reply(key, text_of(fields[i]), fields[i + 1]) for i in range(0, len(fields), 2)]
    return out


def parse_event(entry: Any) -> Event:
    """Return an entry of `events`; an entry that cannot be read gets the kind UNREADABLE."""
    id_, fields = entry
    try:
        _, invocation, _, kind, _, index, _, payload = fields
        return Event(id_.decode(), text_of(invocation), EventKind(kind.decode()), int(index), payload)
    except ValueError:
        return Event(id_.decode(), "", EventKind.UNREADABLE, 0, b"")


def parse_dormant(fields: Mapping[bytes, bytes]) -> Dormant | None:
    """Return an invocation asleep as its hash holds it."""
    if not fields:
        return None
    records = [(key[1:].decode(), value) for key, value in fields.items() if key[:1] == b"j"]
    records.sort(key=lambda record: order_of(record[0]))
    return Dormant(fields[b"id"].decode(), fields[b"m"], records, text_of(fields.get(b"paused")))


def pairs_in(flat: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Return the pairs in a flat list, such as fields and values."""
    return zip(flat[::2], flat[1::2], strict=True)


def is_nearly_full(info: bytes, share: float) -> bool:
    """Return whether so much of the server's memory is used, by its answer to INFO."""
    said = dict(line.split(b":", 1) for line in info.splitlines() if b":" in line)
    most = int(said.get(b"maxmemory", 0))
    return most > 0 and int(said.get(b"used_memory", 0)) >= share * most


def ms_of(time: Sequence[bytes]) -> int:
    """Return the answer to TIME in ms."""
    seconds, micros = time
    return int(seconds) * 1000 + int(micros) // 1000


def text_of(data: bytes | None) -> str:
    """Return text that the store holds, empty if it holds none; a user's text may be no valid UTF-8."""
    return (data or b"").decode("utf-8", "surrogatepass")
