"""HttpCalls: a request becomes an invocation, and its outcome an answer. This is the way that has to be short.

The id is made before the submit, so that whatever happens from there on, the answer names it. A request whose client
has left goes on, as does one that this worker does not live to answer: an accepted invocation is durable.
"""

import logging
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from actors.client.slots import Slot
from actors.requests.invocation import Invocation
from actors.requests.message import started_id
from actors.requests.request import Request
from actors.requests.run_ids import RUN
from journal.ids import address_of

from .answers import INVOCATION, HttpError, Receive, Scope, Send, answer, answer_error, json_of, refused
from .bodies import Arguments
from .preferences import Preferences, PreferencesOfAll, query_of
from .targets import HttpTarget
from .waits import ClientLeft, Waits, within

logger = logging.getLogger("actors")

_JSON_KINDS: Final = frozenset({"", "application/json", "text/json"})
RESTATE_ID: Final = b"x-restate-id"


class Called(NamedTuple):
    """One request for a handler."""

    target: HttpTarget
    key: str | None
    is_send: bool = False
    is_restate: bool = False
    """Whether a client of Restate's asks, and gets the answers that it expects."""

    @property
    def is_run(self) -> bool:
        """Whether it happens once for its key."""
        return self.target.declaration.is_workflow and self.target.handler == RUN

    @property
    def id_header(self) -> bytes:
        """The header that names the invocation."""
        return RESTATE_ID if self.is_restate else INVOCATION


async def read_body(scope: Scope, receive: Receive, most: int, length: int = 0) -> bytes:
    """Return the body of a request.

    Raises:
        HttpError: it is larger than `most`; the rest is not kept.
        ClientLeft: the client has left in the middle of it.
    """
    if length > most:
        raise _too_large(most)
    message = await receive()
    body = message.get("body", b"")
    if not message.get("more_body", False) and message["type"] == "http.request" and len(body) <= most:
        return body
    parts, size = [body], len(body)
    while True:
        if message["type"] == "http.disconnect":
            raise ClientLeft
        if size > most:
            raise _too_large(most)
        if not message.get("more_body", False):
            return b"".join(parts)
        message = await receive()
        part = message.get("body", b"")
        parts.append(part)
        size += len(part)


def _too_large(most: int) -> HttpError:
    return HttpError(413, f"the body is larger than {most:,} bytes, the limit payload_max: pass a reference to it")


class HttpCalls:
    """The calls of one client on one loop."""

    def __init__(self, waits: Waits, patience_s: float) -> None:
        self.waits, self.client, self.patience_s = waits, waits.client, patience_s
        self._preferences = PreferencesOfAll()
        self.on_their_way: set[str] = set()
        """Ids of invocations with an idempotency key that the store may not have yet."""

    async def handle(self, called: Called, scope: Scope, receive: Receive, send: Send) -> None:
        """Call or send, and answer."""
        try:
            wishes = self._preferences.of(scope, is_restate=called.is_restate)
            if wishes.is_restate:
                called = called._replace(is_restate=True)
            if scope["method"] == "POST":
                body = await read_body(scope, receive, self.client.limits.payload_max, wishes.length)
                args = arguments_of(called.target, body, wishes.content_type)
            else:
                args = called.target.parameters.from_query(query_of(scope))
            await self.answer(called, args, wishes, receive, send)
        except HttpError as error:
            await answer_error(send, error, called.id_header)
        except ClientLeft:
            pass
        except Exception as error:
            logger.exception("%s: a request over HTTP failed", called.target.name)
            await answer_error(send, refused(error), called.id_header)

    async def answer(self, called: Called, args: Arguments, wishes: Preferences, receive: Receive, send: Send) -> None:
        """Start the invocation of a request, wait for it, and answer.

        Raises:
            HttpError: it is refused, fails, or cannot be waited for.
            ClientLeft: the client has left.
        """
        if called.is_send or wishes.delay_s:
            status, said, id_ = await self.sent(called, args, wishes)
            await answer(send, status, json_of(said), ((called.id_header, id_),))
            return
        invocation = self.start(called, args, wishes)
        id_ = invocation.id
        try:
            slot = await self.waits.until_ended(invocation, receive, wishes.wait_s, cancels=wishes.cancels)
            if slot is None:
                check_taken(called, await self.waits.until_taken(invocation), id_, wishes)
                await answer(send, 202, json_of({"id": id_, "status": "accepted"}), ((called.id_header, id_.encode()),))
                return
            if slot.outcome is None:
                raise _lost(called, slot, id_, wishes)
            status, body, kind = called.target.results.answer(slot.outcome, id_)
        except (HttpError, ClientLeft):
            raise
        except Exception as error:
            raise refused(error, id_) from error
        await answer(send, status, body, ((called.id_header, id_.encode()),), kind)

    def start(self, called: Called, args: Arguments, wishes: Preferences, due_ms: int = 0) -> Invocation[Any]:
        """Start the invocation of a request.

        Raises:
            HttpError: it cannot be started.
        """
        try:
            return self.client.start(self._request(called, args, wishes, due_ms))
        except Exception as error:
            raise refused(error) from error

    async def sent(self, called: Called, args: Arguments, wishes: Preferences) -> tuple[int, dict[str, Any], bytes]:
        """Send a request; return status, answer and id when the store has it.

        Raises:
            HttpError: it is refused, or the store does not answer.
        """
        due_ms = self.due_ms(wishes)
        keyed: set[str] = set()
        try:
            is_known = wishes.idempotency_key is not None and await self.is_known(called, args, wishes, keyed)
            invocation = self.start(called._replace(is_send=True), args, wishes, due_ms)
            id_ = invocation.id
            slot = await self.waits.until_taken(invocation)
        finally:
            self.on_their_way -= keyed
        if called.is_restate and called.is_run and slot.error is not None and not slot.is_accepted:
            is_known = True
        else:
            check_taken(called, slot, id_, wishes)
        return 202, sent_answer(called, id_, due_ms, is_known=is_known), id_.encode()

    def due_ms(self, wishes: Preferences) -> int:
        """Return when a delayed request is due, 0 for one that is not delayed."""
        return self.client.now_ms() + round(wishes.delay_s * 1000) if wishes.delay_s else 0

    async def is_known(self, called: Called, args: Arguments, wishes: Preferences, keyed: set[str]) -> bool:
        """Whether an invocation that an idempotency key names is known, or on its way from here, before it is started.

        If it is not, it is on its way from now on: the caller takes `keyed` away when the store has it, or will not.

        Raises:
            HttpError: the store does not answer.
        """
        request = self._request(called, args, wishes, 0)
        id_ = started_id(request, address_of(request.type_name, request.key), "", self.client.limits.shards)
        if id_ in self.on_their_way:
            return True
        self.on_their_way.add(id_)
        keyed.add(id_)
        return bool(await within(self.client.ask(lambda store: store.status(id_)), self.patience_s))

    def _request(self, called: Called, args: Arguments, wishes: Preferences, due_ms: int) -> Request:
        target = called.target
        about = target.declaration
        options = wishes.options(due_ms)
        what = about.name, called.key, target.handler
        return Request(*what, args[0], args[1], called.is_send, options, target.declared, about.cls)


def sent_answer(called: Called, id_: str, due_ms: int, *, is_known: bool) -> dict[str, Any]:
    """Return the answer of a send that the store has."""
    if called.is_restate:
        said = {"invocationId": id_, "status": "PreviouslyAccepted" if is_known else "Accepted"}
    else:
        said = {"id": id_, "status": "known" if is_known else "accepted"}
    if due_ms:
        due = datetime.fromtimestamp(due_ms / 1000, UTC).isoformat(timespec="milliseconds")
        said["executionTime" if called.is_restate else "due"] = due
    return said


def arguments_of(target: HttpTarget, body: bytes, content_type: str) -> Arguments:
    """Return the arguments of a body.

    Raises:
        HttpError: it is of another kind, or does not fit.
    """
    parameters = target.parameters
    if body and content_type not in _JSON_KINDS and not parameters.is_bytes and not content_type.endswith("+json"):
        raise HttpError(415, f"{target.name} takes application/json, not {content_type[:100]!r}")
    return parameters.read(body)


def check_taken(called: Called, slot: Slot, id_: str, wishes: Preferences) -> None:
    """Raise the error of a request that the store has not taken."""
    if slot.error is not None and not slot.is_accepted:
        raise _lost(called, slot, id_, wishes)


def _lost(called: Called, slot: Slot, id_: str, wishes: Preferences) -> HttpError:
    """Return the answer of a request without an outcome."""
    assert slot.error is not None
    error = refused(slot.error, id_)
    if wishes.idempotency_key is not None and not called.is_run and error.code == 409 and not slot.is_accepted:
        error.code = 422  # the key is known, with other arguments
    return error
