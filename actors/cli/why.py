"""Why: `perdure why`: the chain of waits of an invocation or an object, and the commands that would end it.

Each link is an invocation that keeps the one before from going on: the holder of its key, or a call that it waits for.
The last link says what it waits for itself: a time, somebody outside, an operator, a host, or a class.
"""

import asyncio
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import orjson
import typer

from actors.code.code import UNSENT
from actors.errors import NotFoundError, UsageError
from actors.requests.schedule import INTERNAL
from journal.ids import Shard, shard_in, shard_of
from journal.records import Message, time_of, timer_of
from journal.store import Loaded, Membership, Store
from journal.survey import Listed, Page, Place
from journal.texts import shortened

from .accounts import TEXT_MAX, Entry, Story, story
from .commands import Command, command, plain, span, time_text
from .targets import class_of, is_id, object_in

LINKS_MAX: Final = 100
"""Most links of a chain."""
BEAT_MAX: Final = 1.5
"""Seconds within which a host that lives writes that it does."""


@dataclass(slots=True)
class Link:
    """An invocation of the chain."""

    id: str
    name: str
    says: str
    """A sentence on its wait."""
    since_ms: int = 0
    frees: list[str] = field(default_factory=list[str])
    """Commands that would free it."""
    next: str = ""
    """The invocation that it waits for."""

    def as_json(self) -> dict[str, Any]:
        """Return the link for programs."""
        return {
            "id": self.id,
            "invocation": self.name,
            "waits": self.says,
            "since": time_text(self.since_ms),
            "frees": self.frees,
            "next": self.next or None,
        }


class Chain:
    """The search for the end of a chain."""

    def __init__(self, me: Command) -> None:
        self._me = me
        self._exclusive: dict[str, dict[str, bool]] = {}
        self._now_ms = int(me.ask(lambda store: store.now_ms()))
        self._members: Membership | None = None

    def links(self, id_: str) -> Iterator[Link]:
        """Yield the links that begin with an invocation."""
        seen: set[str] = set()
        while id_ and len(seen) < LINKS_MAX:
            if id_ in seen:
                yield Link(id_, "", "the chain is a circle: cancel one of its calls", frees=_ends(id_))
                return
            seen.add(id_)
            link = self._link(id_)
            yield link
            id_ = link.next

    def holder(self, target: str) -> str:
        """Return the invocation that holds an object; empty if none does."""
        shard = shard_of(target, self._me.shards)
        loaded: list[Loaded] = self._me.ask(lambda store: store.load([(shard, target)]))
        return loaded[0].held_by or next((message.id for message in self._queue(shard, target)), "")

    def _queue(self, shard: Shard, target: str) -> Iterator[Message]:
        """Yield the messages of an object in its inbox that need its turn, in order."""
        cursor, is_first = "", True
        while is_first or cursor:
            page: Page = self._me.look(lambda survey, c=cursor: survey.page(shard, Place.INBOX, target, c))
            yield from (each for each in map(_message_of, page.found) if each and self._is_in_line(each, target))
            cursor, is_first = page.cursor, False

    def _is_in_line(self, message: Message, target: str) -> bool:
        return message.target == target and self._needs_turn(message)

    def _needs_turn(self, message: Message) -> bool:
        """Whether a message is for an exclusive handler; where its class is not there, it counts as one."""
        if "/" not in message.target:
            return False
        type_ = message.target.partition("/")[0]
        if type_ not in self._exclusive:
            declared = class_of(self._me, type_)
            found = declared.handlers.items() if declared is not None else ()
            self._exclusive[type_] = {name: handler.exclusive for name, handler in found}
        return self._exclusive[type_].get(message.handler, True)

    def _link(self, id_: str) -> Link:
        try:
            found: Story = self._me.ask(lambda store: story(store, id_))
        except NotFoundError as error:
            return Link(id_, "", str(error))
        since = time_of(found.account.id) if found.account.id else 0
        message, run = found.message, found.run
        if message is None or run is None:
            return Link(id_, found.name, f"has ended: {found.status}", since)
        if found.status == "delayed":
            says = f"is not due before {time_text(message.due_ms)}, in {span(message.due_ms - self._now_ms)}"
            return Link(id_, found.name, says, since, _ends(id_))
        if found.account.paused:
            return Link(id_, found.name, f"is paused: {_cut(found.account.paused)}", since, _of_paused(id_))
        if found.account.place is Place.INBOX and not run.records and self._needs_turn(message):
            holder, ahead = self._before(message)
            if holder:
                says = f"is queued behind {holder}, which holds {message.target}"
                says += f", with {ahead - 1:,} others before it" if ahead > 1 else ""
                return Link(id_, found.name, says, since, [f"perdure invocations cancel {id_}"], holder)
        nobody = self._without_host(id_)
        if nobody:
            return Link(id_, found.name, nobody, since, ["perdure up --hosts 1", "perdure status"])
        lacks = "" if run.records else self._without_code(message)
        if lacks:
            return Link(id_, found.name, lacks, since, _ends(id_))
        return self._waiting(found)

    def _before(self, message: Message) -> tuple[str, int]:
        """Return the holder of a message's key, and how many are before the message, the holder included."""
        shard = shard_in(message.id)
        loaded: list[Loaded] = self._me.ask(lambda store: store.load([(shard, message.target)]))
        holder, count = loaded[0].held_by, 1 if loaded[0].held_by else 0
        for each in self._queue(shard, message.target):
            if each.id == message.id:
                break
            holder, count = holder or each.id, count + 1
        return ("", 0) if holder == message.id else (holder, count)

    def _without_host(self, id_: str) -> str:
        """Return why no host executes an invocation, empty if one may."""
        shard = shard_in(id_)
        members = self._members or self._me.ask(lambda store: store.membership(self._me.shards))
        self._members = members
        if not members.hosts:
            return "waits for a host: none is there"
        owner = members.leases[shard].partition(" ")[0]
        if owner not in members.hosts:
            return f"waits for a host: none owns its shard {shard}, of {len(members.hosts)} that are there"
        return ""

    def _is_silent(self, id_: str) -> bool:
        """Whether the host of an invocation has stopped to write that it lives; asked where something is overdue."""
        members = self._members
        assert members is not None
        owner = members.leases[shard_in(id_)].partition(" ")[0]
        return not self._me.ask(lambda store: _beats(store, owner, members))

    def _without_code(self, message: Message) -> str:
        """Return why no host can have the class of an invocation that has not begun; empty if one may."""
        type_ = message.target.partition("/")[0]
        if type_.startswith(INTERNAL):
            return ""
        if message.code == UNSENT:
            return (
                f'waits for the class {type_}, unless it runs: its program has not sent it (hosts="local"), so only a '
                "host in a process with that class executes it"
            )
        if message.code:
            is_there = self._me.ask(lambda store: store.code(message.code)) is not None
            return "" if is_there else f"waits for the class {type_}: the store has no code {message.code}"
        is_there = bool(self._me.ask(lambda store: store.current_code(type_)))
        use = f"{type_}[...].<handler>.remote(...)"
        return "" if is_there else f"waits for the class {type_}: nobody has stored it; use it once, {use}"

    def _waiting(self, found: Story) -> Link:
        """Return the link of an invocation that has begun, or may begin."""
        link = self._going_on(found)
        is_overdue = not (link.next or found.waits) or (found.failure and found.next_ms <= self._now_ms)
        if is_overdue and self._is_silent(found.id):
            link.says = f"waits for {self._host_of(found.id)}, which has fallen silent; {link.says}"
            link.frees = ["perdure up --hosts 1", "perdure status"]
        return link

    def _going_on(self, found: Story) -> Link:
        link = Link(found.id, found.name, "", time_of(found.account.id))
        if found.failure:
            run = found.run
            assert run is not None
            step = next((entry for entry in reversed(found.waits) if entry.error), None)
            what = f"the step {step.name!r}, attempt {step.attempts}" if step else f"attempt {run.attempt - 1}"
            link.says = f"failed: {what}: {_cut(found.failure)}; {self._next_try(found.next_ms)}"
            link.frees = [f"perdure invocations resume {found.id}", *_ends(found.id)]
            return link
        waits = found.waits
        if not waits:
            link.says = f"runs on {self._host_of(found.id)}, as far as its journal tells"
            link.frees = _ends(found.id)
            return link
        link.since_ms = waits[0].made_ms
        said: list[str] = []
        for entry in waits:
            text, frees = self._wait(found, entry, link)
            said.append(text)
            link.frees += frees
        link.says = "waits for " + "; ".join(said[:5]) + (f"; and {len(said) - 5} more" if len(said) > 5 else "")
        link.frees += _ends(found.id)
        return link

    def _wait(self, found: Story, entry: Entry, link: Link) -> tuple[str, list[str]]:
        """Return what an open entry waits for, and what would end the wait."""
        match entry.kind:
            case "call" | "attach":
                callee = found.callee(entry, self._me.shards)
                link.next = link.next or callee
                return f"{entry.name.split(' ')[0]} ({callee})", []
            case "sleep":
                return self._sleep(found, entry), []
            case "awakeable":
                id_ = f"awakeable.{found.id}.{entry.mark}"
                return f"the awakeable {id_}", [f"perdure resolve {id_} JSON", f"perdure reject {id_} MESSAGE"]
            case "signal":
                return f"the signal {entry.name!r}", [
                    f"perdure invocations signal {found.id} {shlex.quote(entry.name)} JSON"
                ]
            case "run":
                return f"the step {entry.name!r}, which runs on {self._host_of(found.id)}", []
            case "promise":
                return f"the promise {entry.name!r} of its workflow, which another handler completes", []
            case _:
                return f"`{entry.text}`", []

    def _sleep(self, found: Story, entry: Entry) -> str:
        run = found.run
        assert run is not None
        counter = next((each.timers[str(entry.mark)] for _, each in run.records if str(entry.mark) in each.timers), "")
        timer = timer_of(counter, found.id, str(entry.mark))
        (due_ms,) = self._me.look(lambda survey: survey.due(shard_in(found.id), [timer])) or [0]
        until = f" until {time_text(due_ms)}, for {span(max(due_ms - self._now_ms, 0))}" if due_ms else ""
        return f"a timer{f' ({entry.name})' if entry.name else ''}{until}"

    def _next_try(self, next_ms: int) -> str:
        if next_ms <= self._now_ms:
            return "the next attempt is under way"
        return f"the next attempt follows at {time_text(next_ms)}, in {span(next_ms - self._now_ms)}"

    def _host_of(self, id_: str) -> str:
        members = self._members
        if members is None:
            return "its host"
        about = members.hosts.get(members.leases[shard_in(id_)].partition(" ")[0])
        said: dict[str, Any] = orjson.loads(about.partition(b" ")[2]) if about else {}
        return f"{said.get('id', 'its host')}, pid {said.get('pid')}"


def _message_of(found: Listed) -> Message | None:
    try:
        return Message.parse(found.message)
    except Exception:  # noqa: BLE001  # the bytes may be of any origin
        return None


async def _beats(store: Store, incarnation: str, before: Membership) -> bool:
    """Whether a host writes that it lives."""
    loop = asyncio.get_running_loop()
    until = loop.time() + BEAT_MAX
    while loop.time() < until:
        await asyncio.sleep(BEAT_MAX / 10)
        now = await store.membership()
        if now.hosts.get(incarnation) != before.hosts.get(incarnation):
            return incarnation in now.hosts
    return False


def _cut(text: str) -> str:
    return shortened(text, TEXT_MAX)


def _ends(id_: str) -> list[str]:
    return [f"perdure invocations cancel {id_}"]


def _of_paused(id_: str) -> list[str]:
    return [f"perdure invocations {verb} {id_}" for verb in ("resume", "restart", "cancel", "kill")]


def why(
    me: Command, what: Annotated[str, typer.Argument(metavar="TARGET|ID", help="Type/key, or the id of an invocation.")]
) -> None:
    """Say what an invocation or an object waits for, and what would free it."""
    me.client  # noqa: B018  # connects
    chain, id_ = Chain(me), what
    if not is_id(what):
        address = object_in(what)
        if address.key is None:
            raise UsageError(f"{what!r} has no key: write Type/key, or the id of an invocation")
        target = str(address)
        id_ = chain.holder(target)
        if not id_:
            me.answer([], f"nobody holds {target}: the next request for it begins at once")
            return
    links = list(chain.links(id_))
    me.answer([link.as_json() for link in links], lambda: _shown(links, what, id_))


def _shown(links: list[Link], what: str, id_: str) -> str:
    lines = [f"{what} is held by {id_}"] if what != id_ else []
    for depth, link in enumerate(links):
        mark = "  " * depth
        since = f" (since {time_text(link.since_ms)})" if link.since_ms else ""
        lines.append(f"{mark}{plain(link.name or 'invocation')} {link.id}{since}")
        lines.append(f"{mark}  {plain(link.says)}")
    frees = [free for link in links[-1:] for free in link.frees]
    if frees:
        lines += ["", "what would free it:", *(f"  {plain(free)}" for free in frees)]
    return "\n".join(lines)


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    command(app, "why")(why)
