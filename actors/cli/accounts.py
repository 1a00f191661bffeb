"""Accounts: one invocation, as far as the store tells: its request, its journal, its waits.

The journal is what the invocation's host would replay. A host writes an entry with the next commit, so that a handler
in memory may have gone further than is read here.
"""

from dataclasses import dataclass
from typing import Any, Final

from actors.activation.open_invocation import OpenInvocation
from actors.blocks.calls import callee_of
from actors.blocks.restarts import mark_of
from actors.errors import DecodeError, NotFoundError
from journal.ids import Shard, shard_in
from journal.records import EventKind, Failure, Message, Record, outcome_of, time_of, unpack
from journal.store import UNKNOWN, Store
from journal.survey import Account, Place
from journal.texts import error_text, shortened

from .commands import Command, time_text
from .targets import is_id

RECORDS_AT_ONCE: Final = 1_000
TEXT_MAX: Final = 2_000
"""Characters of an error, and of a reason."""
_WAITS: Final = frozenset({"call", "attach", "run", "sleep", "awakeable", "signal", "promise", "changed"})
"""Kinds of entries that have an end of their own; all others are over when they are made."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry of a journal."""

    index: int
    mark: int
    kind: str
    name: str
    made_ms: int
    ended_ms: int = 0
    """0 while it is open, or if it has no end of its own."""
    outcome: bytes | None = None
    attempts: int = 0
    """Failed attempts of a step."""
    next_ms: int = 0
    error: str = ""

    @property
    def is_open(self) -> bool:
        """Whether the handler may wait for it."""
        return self.kind in _WAITS and not self.ended_ms

    @property
    def text(self) -> str:
        """The entry as the journal holds it."""
        return f"{self.kind} {self.name}" if self.name else self.kind


@dataclass(frozen=True, slots=True)
class Story:
    """An invocation, as far as the store tells."""

    id: str
    account: Account
    message: Message | None
    """Without it, the invocation has ended."""
    run: OpenInvocation | None
    entries: tuple[Entry, ...] = ()

    @property
    def name(self) -> str:
        """Target and handler."""
        message = self.message
        return self.account.name if message is None else f"{message.target}.{message.handler}"

    @property
    def status(self) -> str:
        """The word for where it stands, as `ref.status()` has it; `delayed` if it is not due."""
        account = self.account
        if account.place is Place.ENDED:
            return status_of(account.outcome)
        if account.place is Place.INBOX or account.paused == "":
            return "open"
        if account.paused:
            return "paused"
        return "asleep" if account.has_begun else "delayed"

    @property
    def failure(self) -> str:
        """The last failed attempt, if another follows."""
        if self.run is None:
            return ""
        last = self.run.records[-1][1] if self.run.records else None
        if last is not None and last.attempt and last.error:
            return last.error
        return next((entry.error for entry in reversed(self.entries) if entry.is_open and entry.error), "")

    @property
    def next_ms(self) -> int:
        """When the next attempt follows, 0 if none does."""
        if self.run is None:
            return 0
        last = self.run.records[-1][1] if self.run.records else None
        if last is not None and last.attempt:
            return last.next_ms
        return next((entry.next_ms for entry in reversed(self.entries) if entry.is_open and entry.error), 0)

    @property
    def waits(self) -> list[Entry]:
        """The entries that are open, oldest first."""
        return [entry for entry in self.entries if entry.is_open]

    def callee(self, entry: Entry, shards: int) -> str:
        """Return the id of the invocation that an entry has started, or waits for; empty if it is no such entry."""
        if entry.kind == "attach":
            return entry.name
        if entry.kind not in ("call", "send"):
            return ""
        return callee_of(self.id, entry.mark, f"call {entry.name}", shards) or ""


def status_of(outcome: bytes) -> str:
    """Return the word for an outcome."""
    return "succeeded" if outcome[:1] == b"V" else "failed" if outcome else "ended"


def failure_in(outcome: bytes) -> Failure | None:
    """Return the failure in an outcome."""
    found = outcome_of(outcome) if outcome[:1] == b"E" else None
    return found if isinstance(found, Failure) else None


async def story(store: Store, id_: str) -> Story:
    """Return what is known of an invocation.

    Raises:
        NotFoundError: it is not known.
        DecodeError: its request or its journal cannot be read.
    """
    survey = store.survey()
    account = await survey.account(id_)
    if account is None:
        raise NotFoundError(f"{id_} {UNKNOWN}")
    if account.place is Place.ENDED:
        return Story(id_, account, None, None)
    shard, records = shard_in(id_), list[tuple[str, bytes]]()
    if account.place is Place.ASLEEP:
        dormant = (await store.dormant([(shard, id_)]))[0]
        records += dormant.records if dormant is not None else []
    cursor, is_first = "", True
    while is_first or cursor:
        found, cursor = await survey.records(id_, cursor)
        records, is_first = records + found, False
    try:
        message = Message.parse(account.message)
        run = OpenInvocation(message, shard, account.id, asleep=account.place is Place.ASLEEP)
        run.adopt([(at, Record.parse(data)) for at, data in records])
        return Story(id_, account, message, run, tuple(entries_of(run)))
    except Exception as error:  # the bytes may be of any origin
        raise DecodeError(f"what the store holds of {id_} cannot be read: {error_text(error, 300)}") from error


def entries_of(run: OpenInvocation) -> list[Entry]:
    """Return the entries of a journal with their outcomes."""
    ended, signals = _ends_of(run)
    tries, restarts, errors = run.tries, run.restarts, _errors_of(run)
    made = {record.first + at: time_of(id_) for id_, record in run.records for at in range(len(record.entries))}
    out: list[Entry] = []
    for index, text in enumerate(run.recorded):
        kind, _, name = text.partition(" ")
        at, outcome = ended.get(index, (0, None))
        if kind == "signal":
            if _is_sent(name):
                kind = "signalled"
            elif signals.get(name):
                at, outcome = signals[name].pop(0)
        failed = tries.get(index)
        out.append(
            Entry(
                *(index, mark_of(index, restarts), kind, name, made.get(index, 0), at, outcome),
                attempts=failed.attempts if failed else 0,
                next_ms=failed.next_ms if failed and not at else 0,
                error=shortened(errors.get(index, ""), TEXT_MAX) if failed else "",
            )
        )
    return out


Ends = dict[int, tuple[int, bytes | None]]


def _ends_of(run: OpenInvocation) -> tuple[Ends, dict[str, list[tuple[int, bytes | None]]]]:
    """Return the ends of entries by their index, and the delivered signals by name."""
    ended: Ends = {}
    signals: dict[str, list[tuple[int, bytes | None]]] = {}
    for id_, record in run.records:
        for event in record.events:
            if event.kind is EventKind.SIGNAL:
                (name,), outcome = unpack(event.payload)
                signals.setdefault(name, []).append((event.time_ms, outcome))
            elif event.kind in (EventKind.REPLY, EventKind.TIMER, EventKind.AWAKEABLE, EventKind.PROMISE):
                ended.setdefault(event.index, (event.time_ms, event.payload))
        for index, outcome in record.steps:
            ended.setdefault(index, (time_of(id_), outcome))
        for index, answer in record.answers:
            ended.setdefault(index, (time_of(id_), answer))
    return ended, signals


def _is_sent(name: str) -> bool:
    """Whether this is the entry of a signal that was sent: its name ends in the id of an invocation."""
    return " to " in name and is_id(name.rpartition(" to ")[2])


def _errors_of(run: OpenInvocation) -> dict[int, str]:
    """Return the last errors of steps that have failed."""
    return {tries.entry: record.error for _, record in run.records if record.error for tries in record.tries}


@dataclass(frozen=True, slots=True)
class FailedAttempt:
    """The last failure of an invocation in memory whose next attempt is awaited, or under way."""

    error: str
    next_ms: int
    since_ms: int


def failed_attempts(me: Command) -> dict[str, FailedAttempt]:
    """Return the invocations in memory whose last records tell of a failed attempt, of theirs or of a step."""
    found: dict[str, FailedAttempt] = {}
    begun: dict[str, int] = {}
    for shard in map(Shard, range(me.shards)):
        after, is_first = "", True
        while is_first or after:
            page: list[tuple[str, str, bytes]] = me.ask(
                lambda store, shard=shard, after=after: store.journal(shard, after, RECORDS_AT_ONCE)
            )
            for at, id_, data in page:
                begun.setdefault(id_, time_of(at))
                record = Record.parse(data) if b'"error"' in data else None
                if record is not None and record.error and record.next_ms:
                    found[id_] = FailedAttempt(record.error, record.next_ms, record.began_ms or begun[id_])
                else:
                    found.pop(id_, None)
            after, is_first = page[-1][0] if page else "", False
    return found


def described(found: Story) -> dict[str, Any]:
    """Return an invocation as `show` prints it."""
    account, message, run = found.account, found.message, found.run
    failed = failure_in(account.outcome)
    data: dict[str, Any] = {
        "id": found.id,
        "status": found.status,
        "target": message.target if message else account.name.rpartition(".")[0] or None,
        "handler": message.handler if message else account.name.rpartition(".")[2] or None,
    }
    if message is None or run is None:
        data["ended"] = time_text(time_of(account.id)) if account.id else None
        if failed is not None:
            data["failure"] = {"message": shortened(failed.message, TEXT_MAX), "code": failed.code, "type": failed.type}
        return data
    data |= {
        "accepted": time_text(time_of(account.id)),
        "due": time_text(message.due_ms),
        "begun": time_text(run.began_ms),
        "attempt": run.attempt,
        "failure": shortened(found.failure, TEXT_MAX) or None,
        "next_attempt": time_text(found.next_ms),
        "paused": shortened(account.paused or "", TEXT_MAX) or None,
        "code": message.code or None,
        "headers": message.headers,
        "called_by": caller_of(message) or None,
        "waiting_callers": len(account.tellers),
        "entries": len(found.entries),
        "waits": [{"index": each.index, "entry": each.text, "since": time_text(each.made_ms)} for each in found.waits],
    }
    return data


def caller_of(message: Message) -> str:
    """Return the invocation whose entry waits for this one, empty if there is none."""
    return message.caller.removeprefix("i:").rpartition(":")[0] if message.caller.startswith("i:") else ""
