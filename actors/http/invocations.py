"""Invocations: the questions for an invocation by its id, its outcome, and the events for it; awakeables by their ids.

The store has some time for an answer (`patience`): beyond it the answer is 503.
"""

from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal, cast

from pydantic_core import from_json

from actors.blocks.awakeables import completion
from actors.client.views import View, completion_of, view_of
from actors.errors import NotFoundError, UsageError
from actors.objects.objects import Declaration
from actors.requests.invocation import Accepted, Invocation
from actors.requests.run_ids import RUN, run_id
from actors.values import outcomes
from journal.codec import MISSING
from journal.ids import address_of, shard_in
from journal.store import UNKNOWN

from .answers import INVOCATION, HttpError, Receive, Scope, Send, answer, json_of, refused
from .bodies import Results
from .calls import HttpCalls, read_body
from .preferences import preferences_of
from .waits import within

Verb = Literal["attach", "output"]


@dataclass(slots=True)
class Lookup:
    """A question for the outcome of an invocation."""

    id: str
    verb: Verb
    results: Results
    not_ready: int = 202
    header: bytes = INVOCATION


def run_lookup(about: Declaration, key: str, verb: Verb, shards: int) -> Lookup:
    """Return the question for the outcome of a workflow's run."""
    results = Results(about.handlers[RUN].returns, f"{about.name}.{RUN}")
    return Lookup(run_id(address_of(about.name, key), shards), verb, results)


def id_lookup(id_: str, verb: Verb) -> Lookup:
    """Return the question for the outcome of an invocation whose handler is not known.

    Raises:
        HttpError: this is no id.
    """
    return Lookup(checked(id_), verb, Results(MISSING, id_))


def checked(id_: str) -> str:
    """Return the id of an invocation.

    Raises:
        HttpError: it is none.
    """
    try:
        shard_in(id_)
        id_.encode()
    except (UsageError, UnicodeEncodeError) as error:
        raise HttpError(400, str(error)) from None
    return id_


def unknown(id_: str) -> HttpError:
    """Return the answer that an invocation is not known."""
    return HttpError(404, f"{id_} {UNKNOWN}", id_=id_)


async def look(calls: HttpCalls, lookup: Lookup, receive: Receive, send: Send) -> None:
    """Answer with the outcome: when it is there (`attach`), or only if it is (`output`).

    Raises:
        HttpError: it is a failure, or nothing is known of the invocation.
        ClientLeft: the client has left.
    """
    id_ = lookup.id
    if not 0 <= shard_in(id_) < calls.client.limits.shards:
        raise unknown(id_)
    header = ((lookup.header, id_.encode()),)
    if lookup.verb == "output":
        outcome: bytes | None = await within(calls.client.ask(lambda store: store.outcome(id_)), calls.patience_s)
        if outcome is None:
            raise unknown(id_)
        if not outcome:
            status = await within(calls.client.ask(lambda store: store.status(id_)), calls.patience_s)
            if lookup.not_ready == 202:
                await answer(send, 202, json_of({"id": id_, "status": status.partition(":")[0]}), header)
                return
            raise HttpError(lookup.not_ready, f"{id_} has not ended: it is {status}", id_=id_)
    else:
        slot = await calls.waits.until_ended(Invocation(id_, calls.client), receive)
        assert slot is not None
        if slot.outcome is None:
            assert slot.error is not None
            raise unknown(id_) if isinstance(slot.error, NotFoundError) else refused(slot.error, id_)
        outcome = slot.outcome
    status, body, kind = lookup.results.answer(outcome, id_)
    await answer(send, status, body, header, kind)


async def show(calls: HttpCalls, scope: Scope, receive: Receive, send: Send, id_: str) -> None:
    """Answer with what the store knows of an invocation.

    Raises:
        HttpError: it is not known.
    """
    checked(id_)
    found: View | None = None
    if shard_in(id_) < calls.client.limits.shards:
        found = await within(calls.client.ask(lambda store: view_of(store, id_)), calls.patience_s)
    if found is None:
        raise unknown(id_)
    said = {name: _shown(value) for name, value in asdict(found).items() if value not in ("", None, (), 0)}
    await answer(send, 200, json_of(said), ((INVOCATION, id_.encode()),))


def _shown(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    if isinstance(value, dict):
        return {name: _shown(each) for name, each in cast("dict[str, Any]", value).items() if each is not None}
    return value


async def bring(calls: HttpCalls, scope: Scope, receive: Receive, send: Send, id_: str, what: str) -> None:
    """Bring an event to an invocation, and answer when the store has it.

    Raises:
        HttpError: it is refused.
        ClientLeft: the client has left.
    """
    invocation = Invocation[Any](checked(id_), calls.client)
    if shard_in(id_) >= calls.client.limits.shards:
        raise unknown(id_)
    verb, _, name = what.partition("/")
    body = await read_body(scope, receive, calls.client.limits.payload_max, preferences_of(scope).length)
    try:
        if verb == "signals":
            accepted = invocation.signal(name, json_value(body))
        elif verb == "restart":
            accepted = invocation.restart(_from_entry(body))
        else:
            accepted = {"cancel": invocation.cancel, "kill": invocation.kill, "resume": invocation.resume}[verb]()
    except HttpError:
        raise
    except Exception as error:
        raise refused(error, id_) from error
    await acknowledged(calls, accepted, id_)
    await answer(send, 202, json_of({"id": id_, "status": "accepted"}), ((INVOCATION, id_.encode()),))


def _from_entry(body: bytes) -> int:
    said = json_value(body)
    found = cast("dict[str, Any]", said).get("from_entry", 0) if isinstance(said, dict) else said
    return 0 if found is None else found


def json_value(body: bytes) -> Any:
    """Return the value of a body; an empty one is None.

    Raises:
        HttpError: it is no JSON.
    """
    if not body or body.isspace():
        return None
    try:
        return from_json(body, allow_inf_nan=False)
    except ValueError as error:
        raise HttpError(400, f"the body is no JSON: {error}") from None


async def acknowledged(calls: HttpCalls, accepted: Accepted, id_: str) -> None:
    """Wait until the store has an event.

    Raises:
        HttpError: it is refused, or the store does not answer.
    """

    async def wait() -> None:
        await accepted

    try:
        await within(wait(), calls.patience_s)
    except HttpError as error:
        if error.code == 404:
            raise unknown(id_) from None
        error.id = error.id or id_
        raise


async def complete(calls: HttpCalls, scope: Scope, receive: Receive, send: Send, id_: str, verb: str) -> None:
    """Complete an awakeable, and answer when the store has it.

    Raises:
        HttpError: it is refused.
        ClientLeft: the client has left.
    """
    wishes = preferences_of(scope)
    body = await read_body(scope, receive, calls.client.limits.payload_max, wishes.length)
    try:
        event = completion(id_, _completed(verb, body, wishes.content_type))
        if event.shard >= calls.client.limits.shards:
            raise unknown(id_)
        before = await within(
            calls.client.ask(lambda store: completion_of(store, event.invocation, event.index)), calls.patience_s
        )
        if before is not None and before != event.data:
            raise HttpError(409, f"{id_} is completed already, with another value")
        accepted = calls.client.bring(event, f"{verb} {id_}")
    except HttpError:
        raise
    except Exception as error:
        raise refused(error) from error
    await acknowledged(calls, accepted, id_)
    await answer(send, 202, json_of({"id": id_, "status": "accepted"}))


def _completed(verb: str, body: bytes, content_type: str) -> bytes:
    """Return the outcome that a body gives: JSON or bytes for a value; for a rejection a text, JSON or not."""
    if verb == "resolve":
        if content_type in ("application/octet-stream", "text/plain"):
            return outcomes.encoded_value(body if content_type.startswith("app") else _text(body))
        return outcomes.encoded_value(json_value(body))
    if content_type == "text/plain":
        return outcomes.encoded_rejection(_text(body))
    said = json_value(body)
    message = cast("dict[str, Any]", said).get("message") if isinstance(said, dict) else said
    return outcomes.encoded_rejection("rejected" if message is None else cast("str", message))


def _text(body: bytes) -> str:
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise HttpError(400, "the text is no UTF-8") from None
