"""Outgoing: how a call or a send becomes a message, in a driver as in a handler."""

from typing import Final

from journal.entries import Message
from journal.names import derived_id, invocation_id

from .errors import UsageError
from .place import EMPTY_OPTIONS, Request
from .values import encode, encode_arguments

KEEP_MS: Final = 86_400_000
"""How long the outcome of an invocation with an idempotency key is kept, whatever the count: a day."""


def arguments_of(request: Request, address: str, payload_max: int) -> bytes:
    """Return the arguments, encoded.

    Raises:
        UsageError: one of them cannot be stored, or all take more than `payload_max` bytes.
    """
    try:
        arguments = encode_arguments(request.args, request.kwargs)
    except UsageError as error:
        raise _unsendable(request, error) from error
    if len(arguments) > payload_max:
        raise _too_long(f"message to {address}.{request.handler}", arguments, payload_max)
    return arguments


def _unsendable(request: Request, error: UsageError) -> UsageError:
    """Return the error that names the argument."""
    which = f"an argument of {request.type_name}.{request.handler}"
    for name, value in (*enumerate(request.args, 1), *request.kwargs.items()):
        try:
            encode(value)
        except UsageError as found:
            which, error = f"argument {name!r} of {request.type_name}.{request.handler}", found
            break
    return UsageError(f"{which} cannot be sent: {error}")


def bounded(data: bytes, what: str, payload_max: int) -> bytes:
    """Return the bytes.

    Raises:
        UsageError: there are more than `payload_max` of them.
    """
    if len(data) > payload_max:
        raise _too_long(what, data, payload_max)
    return data


def _too_long(what: str, data: bytes, payload_max: int) -> UsageError:
    return UsageError(
        f"the {what} takes {len(data):,} bytes, the limit payload_max is {payload_max:,}: keep large data elsewhere "
        "and pass a reference"
    )


def started_id(request: Request, address: str, unique: str, shards: int) -> str:
    """Return the id of what a request starts: its own, or the one that its idempotency key names."""
    key = request.options.idempotency_key
    if key is not None:
        unique = derived_id(address, request.handler, key)
    return invocation_id(unique, address, shards)


def message_of(
    request: Request, id_: str, address: str, arguments: bytes, caller: str, code: str, now_ms: int
) -> Message:
    """Return the message of a request."""
    options = request.options
    if options is EMPTY_OPTIONS:
        return Message(id_, address, request.handler, arguments, caller, code)
    delay_ms = int(options.delay.total_seconds() * 1000)
    return Message(
        id_,
        address,
        request.handler,
        arguments,
        caller,
        code,
        now_ms + delay_ms if delay_ms else 0,
        KEEP_MS if options.idempotency_key is not None else 0,
        dict(options.headers) if options.headers else None,
    )
