"""Preferences: the wishes in the headers and the query of a request, beside its arguments.

A handler gets all headers but those of one connection, those that hold secrets (cookies, authorisation) and Perdure's
own: a message is kept, and secrets are not.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, cast
from urllib.parse import parse_qsl

from actors.errors import UsageError
from actors.policy import seconds
from actors.requests.request import CallOptions

from .answers import HttpError, Scope

_DROPPED: Final = frozenset(
    {
        *(b"connection", b"keep-alive", b"proxy-connection", b"te", b"trailer", b"transfer-encoding", b"upgrade"),
        *(b"cookie", b"set-cookie", b"authorization", b"proxy-authorization", b"proxy-authenticate"),
    }
)
_OWN: Final = b"perdure-"
_NUMBER: Final = re.compile(r"[0-9]{1,12}(\.[0-9]{1,9})?")
_ISO: Final = re.compile(
    r"P(?:(?P<days>\d+)D)?(?:T(?:(?P<hours>\d+)H)?(?:(?P<minutes>\d+)M)?(?:(?P<seconds>\d+(?:\.\d+)?)S)?)?", re.ASCII
)


KEPT: Final = 1_000
"""Most lists of headers that are kept with what they say."""
SIZE_KEPT: Final = 2_000
"""Most bytes of such a list."""


@dataclass(slots=True)
class Preferences:
    """The wishes of one request."""

    headers: dict[str, str] = field(default_factory=dict[str, str])
    """For the handler."""
    content_type: str = ""
    length: int = 0
    """Of the body, as far as it is said."""
    idempotency_key: str | None = None
    wait_s: float | None = None
    """After so many seconds the answer is 202, if there is no result; None: never."""
    timeout_s: float | None = None
    delay_s: float = 0.0
    cancels: bool = False
    """Whether the invocation is cancelled where the client leaves."""
    is_restate: bool = False
    """Whether a client of Restate's asks."""

    plain: CallOptions | None = None
    """The options of a request that is not delayed, made once."""

    def options(self, due_ms: int = 0) -> CallOptions:
        """Return the options of the request."""
        if self.plain is not None and not due_ms:
            return self.plain
        made = CallOptions(
            headers=self.headers,
            idempotency_key=self.idempotency_key,
            timeout_s=self.timeout_s,
            due_ms=due_ms,
        )
        if not due_ms:
            self.plain = made
        return made


class PreferencesOfAll:
    """The preferences of requests, read once for clients that say the same with each request."""

    def __init__(self) -> None:
        self._read: dict[tuple[Any, ...], Preferences] = {}

    def of(self, scope: Scope, *, is_restate: bool = False) -> Preferences:
        """Return what a request asks for; nobody may change it.

        Raises:
            HttpError: a header or the query cannot be read.
        """
        if scope["query_string"]:
            return preferences_of(scope, 0.001 if is_restate else 1.0)
        headers = tuple(scope["headers"])
        found = self._read.get(headers)
        if found is None:
            found = preferences_of(scope)
            # An idempotency key comes once. Secrets are dropped, and are not kept here either.
            is_small = sum(len(name) + len(value) for name, value in headers) <= SIZE_KEPT
            if found.idempotency_key is None and len(found.headers) == len(headers) and is_small:
                if len(self._read) >= KEPT:
                    self._read.clear()
                self._read[headers] = found
        return found


def preferences_of(scope: Scope, unit_s: float = 1.0) -> Preferences:
    """Return what a request asks for; a delay without a unit counts units of so many seconds.

    Raises:
        HttpError: a header or the query cannot be read.
    """
    found = Preferences()
    headers = found.headers
    for name, value in scope["headers"]:
        if name in _DROPPED:
            continue
        if name in _READ or name[:8] == _OWN:
            _read(found, name, value.decode("latin-1"))
            if name[:8] == _OWN:
                continue
        text = name.decode("latin-1")
        headers[text] = f"{headers[text]}, {value.decode('latin-1')}" if text in headers else value.decode("latin-1")
    if scope["query_string"]:
        said = dict(query_of(scope))
        if "timeout" in said:
            found.timeout_s = duration(said["timeout"], "?timeout=")
        if "delay" in said:
            found.delay_s = duration(said["delay"], "?delay=")
            found.delay_s *= unit_s if _NUMBER.fullmatch(said["delay"]) else 1.0
    return found


def query_of(scope: Scope) -> list[tuple[str, str]]:
    """Return the query of a request.

    Raises:
        HttpError: it is no text.
    """
    try:
        raw = cast("bytes", scope["query_string"]).decode("ascii")
        return parse_qsl(raw, keep_blank_values=True, errors="strict", max_num_fields=1_000)
    except ValueError as error:
        raise HttpError(400, f"the query cannot be read: {error}") from None


def _read(found: Preferences, name: bytes, value: str) -> None:
    match name:
        case b"content-type":
            found.content_type = value.partition(";")[0].strip().lower()
        case b"content-length":
            found.length = int(value) if value.isascii() and value.isdecimal() and len(value) < 19 else 0
        case b"idempotency-key":
            if not value:
                raise HttpError(400, "Idempotency-Key is empty: leave the header out, or give it a text")
            found.idempotency_key = value
        case b"prefer":
            _read_prefer(found, value.split(","))
        case b"perdure-timeout":
            found.timeout_s = duration(value, "Perdure-Timeout")
        case b"perdure-cancel-on-disconnect":
            found.cancels = value == "1"
        case b"x-restateclient-retry-attempt":
            found.is_restate = True
        case _:
            pass


_READ: Final = frozenset(
    {b"content-type", b"content-length", b"idempotency-key", b"prefer", b"x-restateclient-retry-attempt"}
)


def _read_prefer(found: Preferences, wishes: Iterable[str]) -> None:
    for wish in wishes:
        name, _, value = (part.strip() for part in wish.partition("="))
        if name.lower() == "wait":
            found.wait_s = duration(value, "Prefer: wait")
        elif name.lower() == "respond-async" and found.wait_s is None:
            found.wait_s = 0.0


def duration(text: str, what: str) -> float:
    """Return the seconds of a duration: a number of seconds, text such as "10m", or ISO 8601 such as "PT10M".

    Raises:
        HttpError: it is none.
    """
    try:
        if _NUMBER.fullmatch(text):
            return seconds(float(text))
        found: Any = _ISO.fullmatch(text)
        if found is not None and any(found.groups()):
            return seconds(timedelta(**{unit: float(number) for unit, number in found.groupdict("0").items()}))
        return seconds(text)
    except (UsageError, OverflowError):
        raise HttpError(
            400, f'{what}: {text[:100]!r} is no duration: write seconds, as in "600", or "10m", or "PT10M"'
        ) from None
