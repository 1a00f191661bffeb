"""Request: a call or a send with its options, checked and not yet accepted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from actors.errors import UsageError
from actors.policy import Duration, seconds
from actors.stored import pinned


@pinned("CallOptions")
@dataclass(frozen=True, slots=True, kw_only=True)
class CallOptions:
    """Options of one call or send."""

    delay: timedelta = timedelta(0)
    """It counts as sent when this time has passed."""

    idempotency_key: str | None = None
    """The same key within retention is the same invocation."""

    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    """The handler finds them in `ctx.headers`."""

    timeout_s: float | None = None
    """After so many seconds the call raises `CallTimeout`, and the called invocation is cancelled; None: never."""

    due_ms: int = 0
    """When it counts as sent, by the store's clock, instead of a delay; of our own objects alone."""

    arguments: bytes = b""
    """Its arguments as they were encoded elsewhere; of our own objects alone."""

    def check(self, *, one_way: bool) -> None:
        """Raise `UsageError` where a request of this kind has no such options."""
        if one_way and self.timeout_s is not None:
            raise UsageError("nobody waits for a send, so it has no timeout; use .remote()")

    def changed(
        self,
        delay: Duration | None,
        idempotency_key: str | None,
        headers: Mapping[str, str] | None,
        timeout: Duration | None,
    ) -> CallOptions:
        """Return these options, the given ones replaced.

        Raises:
            UsageError: a value is not of its kind.
        """
        if idempotency_key is not None and not _is_text(idempotency_key):
            raise UsageError(f"an idempotency key is a str that is not empty, not {idempotency_key!r}")
        for name, value in (headers or {}).items():
            if not (_is_text(name) and isinstance(value, str)):  # pyright: ignore[reportUnnecessaryIsInstance]  # users without a checker
                raise UsageError(f"headers are text by text, not {name!r}: {value!r}")
        return CallOptions(
            delay=self.delay if delay is None else timedelta(seconds=seconds(delay)),
            idempotency_key=self.idempotency_key if idempotency_key is None else idempotency_key,
            headers=self.headers if headers is None else dict(headers),
            timeout_s=self.timeout_s if timeout is None else seconds(timeout),
        )


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


EMPTY_OPTIONS = CallOptions()
"""Shared by all calls without options: nobody may write to its headers."""


@dataclass(slots=True)
class Request:
    """One call or send, checked where the class is known, not yet accepted."""

    type_name: str
    key: str | None
    """None for a service."""

    handler: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    one_way: bool
    options: CallOptions
    declared: Any
    """The declared `objects.Handler`, or None where the class is not known in this process."""

    owner: type[Any] | None
    """The class, or None."""
