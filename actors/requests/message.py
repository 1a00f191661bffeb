"""Message: makes the stored message of a call or a send, in a driver as in a handler."""

from collections.abc import Callable
from typing import Any, Final

from actors.errors import CallTimeout, TerminalError, UsageError
from actors.values import outcomes
from actors.values.values import encode, encode_arguments
from journal.ids import derived_id, invocation_id, shard_of_own
from journal.records import Message
from journal.store import Outgoing
from journal.texts import str_of

from .fingerprints import fingerprint
from .request import EMPTY_OPTIONS, Request
from .run_ids import RUN, already_started, happens_once, run_id

KEEP_MS: Final = 86_400_000
"""How long the outcome of an invocation with an idempotency key is kept, whatever the count, unless its policy says so:
a day."""


KEY_MAX: Final = 8_000
"""Most characters of an object's type and key."""
HEADERS_MAX: Final = 64_000
"""Most characters of all headers of a call."""


def arguments_of(request: Request, address: str, payload_max: int) -> bytes:
    """Return the arguments, encoded.

    Raises:
        UsageError: one of them cannot be stored, all take more than `payload_max` bytes, or the key or the headers are
            too long.
    """
    if len(address) > KEY_MAX:
        raise UsageError(
            f"the key of {address[:60]}… has {len(address):,} characters, the limit key_max is {KEY_MAX:,}: name the "
            "object by a hash, and keep what is long in its state"
        )
    if request.options is not EMPTY_OPTIONS:
        _check_options(request, address)
        if request.options.arguments:
            return request.options.arguments
    try:
        arguments = encode_arguments(request.args, request.kwargs, ("arguments", address, request.handler))
    except UsageError as error:
        raise _unsendable(request, error) from error
    if len(arguments) > payload_max:
        raise _too_long(f"message to {address}.{request.handler}", arguments, payload_max)
    return arguments


def _check_options(request: Request, address: str) -> None:
    if request.one_way and request.options.timeout_s is not None:
        raise UsageError(
            f"{address}.{request.handler}: nobody waits for a send, so it has no timeout; use .remote(), or cancel() "
            "what .send() returns"
        )
    size = sum(len(name) + len(value) for name, value in request.options.headers.items())
    if size > HEADERS_MAX:
        raise UsageError(
            f"the headers of {address}.{request.handler} have {size:,} characters, the limit headers_max is "
            f"{HEADERS_MAX:,}: what is long is an argument"
        )


def _unsendable(request: Request, error: UsageError) -> UsageError:
    """Return the error that names the argument."""
    which = f"an argument of {request.type_name}.{request.handler}"
    for name, value in (*enumerate(request.args, 1), *request.kwargs.items()):
        try:
            encode(value)
        except UsageError as found:
            which, error = f"argument {name!r} of {request.type_name}.{request.handler}", found
            break
    return UsageError(f"{which} cannot be sent: {str_of(error)}")


def bounded(data: bytes, what: str, payload_max: int) -> bytes:
    """Return the bytes.

    Raises:
        UsageError: there are more than `payload_max` of them.
    """
    if len(data) > payload_max:
        raise _too_long(what, data, payload_max)
    return data


def outcome_of_result(result: Any, message: Message, payload_max: int) -> tuple[bytes, TerminalError | None]:
    """Return the outcome of a handler's result, or, if that cannot be sent, of the failure, which is returned too."""
    try:
        return bounded(outcomes.encoded_value(result), "result", payload_max), None
    except UsageError as error:
        where = f"{message.target}.{message.handler}"
        refused = TerminalError(f"{where} returned what cannot be sent: {str_of(error)}", 400)
        return outcomes.encoded_error(refused), refused


def _too_long(what: str, data: bytes, payload_max: int) -> UsageError:
    return UsageError(
        f"the {what} takes {len(data):,} bytes, the limit payload_max is {payload_max:,}: keep large data elsewhere "
        "and pass a reference"
    )


def call_timeout(name: str, timeout_s: float, failure: str = "") -> CallTimeout:
    """Return the error of a call that took too long; it names the last failure that is known."""
    last = f". The last that is known: {failure}" if failure else ""
    return CallTimeout(f"{name} took longer than {timeout_s:g} s; it is cancelled{last}")


def started_id(request: Request, address: str, unique: str, shards: int) -> str:
    """Return the id of the invocation that a request starts: a new one, or the one that its idempotency key names."""
    key = request.options.idempotency_key
    if request.handler == RUN and happens_once(request):
        return run_id(address, shards)
    if key is not None:
        unique = derived_id(address, request.handler, key)
    return invocation_id(unique, address, shards)


def fingerprint_of(request: Request) -> str:
    """Return the fingerprint of a request with an idempotency key; empty where an argument has none, or there is no
    key.

    It runs code of the arguments' classes.
    """
    if request.options.idempotency_key is None:
        return ""
    return fingerprint(request.declared.fn if request.declared is not None else None, request.args, request.kwargs)


def outgoing_of(request: Request, id_: str, caller: str, message: Message, found: str) -> Outgoing:
    """Return the message of a request on its way to the inbox.

    The same id is of the same request: of a workflow's `run` if it has the same idempotency key and arguments, of
    another one with an idempotency key if it has the same arguments. A request for something else is refused (409).
    """
    shard, key = shard_of_own(id_), request.options.idempotency_key
    is_run = request.handler == RUN and happens_once(request)
    if key is None:
        refusal = outcomes.encoded_error(already_started(message.target)) if is_run else None
        return Outgoing(shard, id_, caller, message.encoded(), refusal)
    if is_run:
        refusal, digest = already_started(message.target), derived_id(key, found)
    else:
        refusal, digest = key_conflict(message, key), found
    data = message.encoded()
    if not digest:
        return Outgoing(shard, id_, caller, data)
    return Outgoing(shard, id_, caller, data, outcomes.encoded_error(refusal), digest, not is_run)


def key_conflict(message: Message, key: str) -> TerminalError:
    """Return the error of a request whose idempotency key is that of another one."""
    where = f"{message.target}.{message.handler}"
    why = f"was asked for with the idempotency key {key!r} before, and with other arguments"
    return TerminalError(f"{where} {why}: repeat those, or take another key for another request", 409)


def message_of(
    request: Request, id_: str, address: str, arguments: bytes, caller: str, code: str, now_ms: Callable[[], int]
) -> Message:
    """Return the message of a request; `now_ms` tells the store's time."""
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
        options.due_ms or (now_ms() + delay_ms if delay_ms else 0),
        KEEP_MS if options.idempotency_key is not None else 0,
        dict(options.headers) if options.headers else None,
    )
