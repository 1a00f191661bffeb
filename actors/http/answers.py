"""Answers: the one shape of errors, and how outcomes, results and failures become answers.

An error is `{"message", "code", "source", "id"?, "metadata"?}`. Its `source` says whose mistake it is: the handler's,
which has failed for good, the request's, or the store's, which does not answer. No class of a user is made here: a
failure is answered by its record, and not by the error that it stands for.
"""

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from typing import Any, Final, Literal

import orjson

from actors.errors import CallTimeout, NotFoundError, OverloadedError, TerminalError, UnavailableError, UsageError
from journal.records import Failure
from journal.texts import error_text

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Source = Literal["handler", "request", "store"]
Headers = Iterable[tuple[bytes, bytes]]

JSON: Final = b"application/json"
BYTES: Final = b"application/octet-stream"
INVOCATION: Final = b"perdure-invocation"
RETRY_AFTER_S: Final = 1
"""Seconds after which a refused client may ask again."""


class HttpError(Exception):
    """A request that is answered with an error."""

    def __init__(
        self,
        code: int,
        message: str,
        source: Source = "request",
        *,
        id_: str = "",
        metadata: Mapping[str, Any] | None = None,
        headers: Headers = (),
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.source, self.id, self.metadata = code, message, source, id_, metadata
        self.headers = tuple(headers)

    def body(self) -> dict[str, Any]:
        """Return the error as JSON shows it."""
        said: dict[str, Any] = {"message": self.message, "code": self.code, "source": self.source}
        if self.id:
            said["id"] = self.id
        if self.metadata:
            said["metadata"] = dict(self.metadata)
        return said


def json_of(value: Any) -> bytes:
    """Return JSON; halves of surrogate pairs, which are no UTF-8, as escapes."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, separators=(",", ":"), default=str).encode()


async def answer(send: Send, status: int, body: bytes = b"", headers: Headers = (), kind: bytes = JSON) -> None:
    """Send an answer as a whole."""
    about = [*headers]
    if status != 204:
        about += ((b"content-type", kind), (b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": about})
    await send({"type": "http.response.body", "body": body})


async def answer_error(send: Send, error: HttpError, id_header: bytes = INVOCATION) -> None:
    """Send an error."""
    headers = [*error.headers, (b"perdure-error-source", error.source.encode())]
    if error.id:
        headers.append((id_header, error.id.encode()))
    if error.code in (429, 503):
        headers.append((b"retry-after", b"%d" % RETRY_AFTER_S))
    await answer(send, error.code, json_of(error.body()), headers)


def failed(failure: Failure, id_: str) -> HttpError:
    """Return the answer of an invocation that has failed for good; a code that is none of an HTTP error is 500."""
    if failure.type == "OverloadedError":
        return HttpError(429, failure.message, "store", id_=id_)
    code = failure.code if 400 <= failure.code <= 599 else 500
    return HttpError(code, failure.message, "handler", id_=id_, metadata=failure.metadata)


def refused(error: Exception, id_: str = "") -> HttpError:
    """Return the answer of a request that the client of this process could not start, or has lost."""
    said = str(error)
    if isinstance(error, HttpError):
        error.id = error.id or id_
        return error
    if isinstance(error, CallTimeout):
        return HttpError(408, said, id_=id_)
    if isinstance(error, TerminalError):
        return HttpError(error.code if 400 <= error.code <= 599 else 500, said, id_=id_, metadata=error.metadata)
    if isinstance(error, NotFoundError):
        return HttpError(404, said, id_=id_)
    if isinstance(error, OverloadedError):
        return HttpError(429, said, "store", id_=id_)
    if isinstance(error, UnavailableError):
        return HttpError(503, said, "store", id_=id_)
    if isinstance(error, UsageError):
        return HttpError(413 if "payload_max" in said else 400, said, id_=id_)
    return HttpError(500, error_text(error, 1_000), "store", id_=id_)
