"""Records: the bytes of messages, events, journal records and outcomes.

Owns the layout of everything that crosses the store, and nothing of its meaning. Each is one line of JSON that a person
can read in `redis-cli`, followed by the values in their encoded form: values may be pickles, which JSON cannot hold.

Invariants:
    1. `unpack` returns what `pack` wrote, whatever bytes the values hold.
    2. A record's lists stand in the order of delivery: events that came before, then the outcomes of steps.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, NamedTuple

import orjson


def pack(header: object, values: Sequence[bytes] = ()) -> bytes:
    """Return a line of JSON followed by the values; JSON holds no raw line feed, so the first one ends the line."""
    try:
        line = orjson.dumps(header)
    except TypeError:  # lone surrogates, as in the name of a file that is no valid UTF-8: orjson refuses them
        # As bytes, not as escapes, which JSON would join where two of them stand side by side.
        line = json.dumps(header, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return line + b"\n" + b"".join(values)


def unpack(data: bytes) -> tuple[Any, bytes]:
    """Return the header and the bytes after it."""
    end = data.index(b"\n")
    try:
        header = orjson.loads(data[:end])
    except orjson.JSONDecodeError:  # lone surrogates, see `pack`; they have been written as escapes, too
        header = json.loads(data[:end].decode("utf-8", "surrogatepass"))
    return header, data[end + 1 :]


@dataclass(slots=True)
class Message:
    """A durable request to run one handler, as it lies in an inbox."""

    id: str
    target: str
    """`Type/key`, or the name of a service."""
    handler: str
    arguments: bytes
    """Positional and keyword arguments, encoded."""
    caller: str = ""
    """The receiver of the outcome (see `teller_*`); empty for a send."""
    code: str = ""
    """Hash of the sender's code of the target's class; empty if it has none, `-` and its name if it has not sent it."""
    due_ms: int = 0
    """When it counts as sent, by the store's clock in ms; 0 is at once."""
    keep_ms: int = 0
    """How long its outcome is kept whatever the count; 0 leaves it to `done`."""
    headers: dict[str, str] | None = None
    chain: list[str] | None = None
    """The exclusive invocations that wait for it, where a handler calls; None for all others."""

    def encoded(self) -> bytes:
        """Return the bytes of the message."""
        header: list[Any] = [self.id, self.target, self.handler, self.caller, self.code, self.due_ms, self.keep_ms]
        header += (self.headers, self.chain) if self.chain else (self.headers,)
        return pack(header, (self.arguments,))

    @classmethod
    def parse(cls, data: bytes) -> "Message":
        """Return the message of these bytes."""
        header, arguments = unpack(data)
        chain = header.pop() if len(header) > 8 else None
        id_, target, handler, caller, code, due_ms, keep_ms, headers = header
        return cls(id_, target, handler, arguments, caller, code, due_ms, keep_ms, headers, chain)


def target_of(message: bytes | None) -> str:
    """Return the target of a message as it is stored; empty where there is none, or none that can be read."""
    try:
        return "" if message is None else Message.parse(message).target
    except Exception:  # noqa: BLE001 - a question where an invocation stands is answered, whatever its message is
        return ""


def teller_of_driver(writer: str) -> str:
    """Return the name of a driver that waits."""
    return "w:" + writer


def teller_of_entry(invocation: str, index: int) -> str:
    """Return the name of a journal entry that waits: a call of another invocation."""
    return f"i:{invocation}:{index}"


def timer_of(counter: str, invocation: str, what: str) -> str:
    """Return a timer of an invocation; `what` is due: an entry's mark, `a` (an attempt), or `d` (a delayed message)."""
    return f"{counter}:{invocation}:{what}"


def timer_of_object(target: str) -> str:
    """Return the timer at which an object's state is over; setting it again moves it."""
    return f"ttl:{target}:e"


def timer_of_field(target: str, field: str) -> str:
    """Return the timer at which one field is over."""
    return f"ttl:{target}\0{field}:f"


class EventKind(StrEnum):
    """The kinds of events of an open invocation, or of an object."""

    REPLY = "r"
    """The outcome of a call; the index is the call's entry."""
    TIMER = "t"
    """A due timer; the index is its entry."""
    ATTEMPT = "a"
    """The back-off after a failed attempt is over."""
    AWAKEABLE = "w"
    """The completion of an awakeable; the index is its entry."""
    PROMISE = "p"
    """The outcome of a durable promise; the index is the entry that waits for it."""
    SIGNAL = "s"
    """A signal; carries its name and its value."""
    CANCEL = "c"
    """Ends the open waits of the invocation, each with `Cancelled`."""
    KILL = "k"
    """Ends the invocation, without asking its handler."""
    RESUME = "u"
    """A paused invocation goes on."""
    RESTART = "z"
    """A paused invocation begins again; the index is the first entry that is made anew."""
    STATE = "y"
    """A reentrant call begins, has written fields, or has ended; the index says which (`actors.shard.reentry`)."""
    PROBE = "q"
    """A search for a deadlock, from caller to callee; carries its path, or with index 1 a queued call's refusal."""
    NOTICE = "n"
    """A call that the invocation waits for failed an attempt; carries the text for the invocation's own callers."""
    RETIME = "v"
    """The store has lost its timers: its owner sets them again."""
    UNREADABLE = "?"
    """An event of a newer version, or a damaged one: it stays where it lies."""
    EXPIRE = "e"
    """State has expired: names an object instead of an invocation, and carries the field, nothing for all of them."""


AT_AN_ENTRY: Final = (EventKind.REPLY, EventKind.TIMER, EventKind.AWAKEABLE, EventKind.PROMISE)
"""Kinds of events of one entry: the index is the entry's mark (`actors.blocks.restarts`)."""


@dataclass(slots=True)
class Event:
    """One event of an invocation or an object, as it lies in a shard's `events`."""

    id: str
    """Its stream id: its place in the order of delivery, and its time."""
    invocation: str
    kind: EventKind
    index: int
    payload: bytes

    @property
    def time_ms(self) -> int:
        """When it was written, by the store's clock."""
        return time_of(self.id)


def time_of(stream_id: str) -> int:
    """Return the time in a stream id, in ms by the store's clock."""
    return int(stream_id.partition("-")[0])


def order_of(stream_id: str) -> tuple[int, int]:
    """Return the sort key of a stream id."""
    ms, _, sequence = stream_id.partition("-")
    return int(ms), int(sequence or 0)


@dataclass(frozen=True, slots=True)
class Delivered:
    """An event as the journal keeps it, with the time at which the handler saw it."""

    kind: EventKind
    index: int
    time_ms: int
    payload: bytes


class Tries(NamedTuple):
    """Failed attempts of a step that has no outcome yet."""

    entry: int
    attempts: int
    """How many attempts have failed."""
    first_ms: int
    """When the first one began, by the store's clock."""
    next_ms: int
    """When the next attempt may begin."""


@dataclass(slots=True)
class Record:
    """The part of an invocation's journal that one commit adds."""

    events: list[Delivered] = field(default_factory=list[Delivered])
    """Delivered since the last commit, in order, and before the outcomes in `steps`."""
    first: int = 0
    """Index of the first of `entries`."""
    entries: list[str] = field(default_factory=list[str])
    """The commands of the handler, `kind name`, in program order."""
    olds: dict[str, bytes | None] = field(default_factory=dict[str, bytes | None])
    """Values that fields had before this invocation first overwrote them; None where there was none."""
    reads: dict[str, bytes | None] = field(default_factory=dict[str, bytes | None])
    """Values that a shared handler has read."""
    seen: list[tuple[int, dict[str, bytes | None]]] = field(default_factory=list[tuple[int, dict[str, bytes | None]]])
    """Values that a shared handler has read, after so many deliveries of events and of outcomes of steps."""
    steps: list[tuple[int, bytes]] = field(default_factory=list[tuple[int, bytes]])
    """Outcomes of steps; delivered when this record is durable, at its own time."""
    answers: list[tuple[int, bytes | None]] = field(default_factory=list[tuple[int, bytes | None]])
    """Immediate answers to entries of this record, which a replay might get otherwise."""
    attempt: int = 0
    """The attempt that follows, where this record ends one; else 0."""
    error: str = ""
    """Why that attempt ended, or the one of a step in `tries`, or why the invocation is paused."""
    next_ms: int = 0
    """With an error: when the next attempt may begin, by the store's clock."""
    began_ms: int = 0
    """Where this record ends an attempt: when the first one began, by the store's clock."""
    tries: list[Tries] = field(default_factory=list[Tries])
    """Failed attempts of steps; of each step the last ones hold."""
    code: str | None = None
    """Where a paused or failing invocation was resumed: the hash of the code that it has from here on, empty as in
    `Message`; its attempts are counted anew."""
    newer: str = ""
    """The hash of the code that it goes on with: newer code, as its journal held no entry, or that which it began with,
    as its message named none."""
    timers: dict[str, str] = field(default_factory=dict[str, str])
    """Timers set in the same commit: the thing that is due, as in `timer_of`, and the counter in the timer's name."""
    restart: tuple[int, int] = (0, 0)
    """The entry that it begins again from, and the generation of the entries that it makes; (0, 0): it does not."""

    def encoded(self) -> bytes:
        """Return the bytes of the record; empty fields are left out."""
        header: dict[str, Any] = {}
        values: list[bytes] = []
        if self.events:
            header["events"] = [[e.kind, e.index, e.time_ms, len(e.payload)] for e in self.events]
            values += [e.payload for e in self.events]
        if self.entries:
            header["first"], header["entries"] = self.first, self.entries
        for name, fields in (("olds", self.olds), ("reads", self.reads)):
            if fields:
                header[name] = [[key, -1 if value is None else len(value)] for key, value in fields.items()]
                values += [value for value in fields.values() if value is not None]
        if self.seen:
            header["seen"] = [
                [at, [[key, -1 if value is None else len(value)] for key, value in fields.items()]]
                for at, fields in self.seen
            ]
            values += [value for _, fields in self.seen for value in fields.values() if value is not None]
        if self.steps:
            header["steps"] = [[index, len(outcome)] for index, outcome in self.steps]
            values += [outcome for _, outcome in self.steps]
        if self.answers:
            header["answers"] = [[index, -1 if answer is None else len(answer)] for index, answer in self.answers]
            values += [answer for _, answer in self.answers if answer is not None]
        if self.attempt:
            header["attempt"] = self.attempt
        if self.error:
            header["error"] = self.error
        if self.began_ms:
            header["began"] = self.began_ms
        if self.next_ms:
            header["next"] = self.next_ms
        if self.tries:
            header["tries"] = [list(tries) for tries in self.tries]
        if self.timers:
            header["timers"] = self.timers
        if self.code is not None:
            header["code"] = self.code
        if self.newer:
            header["newer"] = self.newer
        if self.restart[1]:
            header["restart"] = self.restart
        return pack(header, values)

    @classmethod
    def parse(cls, data: bytes) -> "Record":
        """Return the record of these bytes."""
        header, rest = unpack(data)
        reader = _Reader(rest)
        return cls(
            events=[Delivered(EventKind(k), i, t, reader.take(n)) for k, i, t, n in header.get("events", ())],
            first=header.get("first", 0),
            entries=header.get("entries", []),
            olds={key: reader.take_or_none(n) for key, n in header.get("olds", ())},
            reads={key: reader.take_or_none(n) for key, n in header.get("reads", ())},
            seen=[(at, {key: reader.take_or_none(n) for key, n in fields}) for at, fields in header.get("seen", ())],
            steps=[(i, reader.take(n)) for i, n in header.get("steps", ())],
            answers=[(i, reader.take_or_none(n)) for i, n in header.get("answers", ())],
            attempt=header.get("attempt", 0),
            error=header.get("error", ""),
            began_ms=header.get("began", 0),
            next_ms=header.get("next", 0),
            tries=[Tries(*tries) for tries in header.get("tries", ())],
            timers=header.get("timers", {}),
            code=header.get("code"),
            newer=header.get("newer", ""),
            restart=tuple(header.get("restart", (0, 0))),
        )


class _Reader:
    """Takes the values behind a header, one after the other."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def take(self, size: int) -> bytes:
        start, self._at = self._at, self._at + size
        return self._data[start : self._at]

    def take_or_none(self, size: int) -> bytes | None:
        return None if size < 0 else self.take(size)


@dataclass(frozen=True, slots=True)
class Failure:
    """A terminal error as the store keeps it."""

    code: int
    message: str
    metadata: Mapping[str, str]
    type: str
    """`module:qualname` of the error's class."""
    pickled: bytes = b""
    """The error itself, where its class is not one of ours."""


def success(value: bytes) -> bytes:
    """Return the outcome that holds an encoded value."""
    return b"V" + value


def failure(error: Failure) -> bytes:
    """Return the outcome that holds a terminal error."""
    return b"E" + pack([error.code, error.message, dict(error.metadata), error.type], (error.pickled,))


def outcome_of(data: bytes) -> bytes | Failure:
    """Return the encoded value of a success, or the failure."""
    if data[:1] == b"V":
        return data[1:]
    (code, message, metadata, type_), pickled = unpack(data[1:])
    return Failure(code, message, metadata, type_, pickled)


class ReplyKind(StrEnum):
    """The first byte of the payloads in a driver's reply stream."""

    VALUE = "V"
    ERROR = "E"
    NOTICE = "N"
    """An attempt failed; the invocation goes on."""
    UNKNOWN = "U"
    """The store does not know this invocation."""
