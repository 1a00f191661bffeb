"""Calls: `call`, `send`, `resolve` and `reject`."""

from typing import Annotated, Any, Final

import typer

from actors.blocks.awakeables import reject as rejected
from actors.blocks.awakeables import resolve as resolved
from actors.errors import UsageError
from actors.objects.objects import ByName, Declaration, object_handle
from actors.policy import Duration
from actors.requests.invocation import Invocation
from journal.records import Message
from journal.texts import str_of

from .commands import Command, command, in_json, time_text
from .targets import (
    Target,
    arguments_in,
    class_of,
    duration_in,
    json_in,
    scope_in,
    shown_outcome,
    target_in,
)

_TARGET: Final = typer.Argument(metavar="TARGET", help="Type/key.handler, or Service.handler.")
_ARGUMENTS: Final = typer.Argument(metavar="[JSON]...", help="The arguments, as JSON.")
_KEY: Final = typer.Option(metavar="KEY", help="The same key is the same invocation.")
_HEADER: Final = typer.Option(metavar="NAME=VALUE", help="A header for the handler; may be repeated.")


def call(
    me: Command,
    target: Annotated[str, _TARGET],
    arguments: Annotated[list[str] | None, _ARGUMENTS] = None,
    idempotency_key: Annotated[str | None, _KEY] = None,
    header: Annotated[list[str] | None, _HEADER] = None,
    timeout: Annotated[str | None, typer.Option(help="Wait so long: seconds, or 10m. It goes on.")] = None,
) -> None:
    """Call a handler, and print its result."""
    me.may_begin = True
    where = target_in(target)
    declared = class_of(me, where.object.type)
    invocation = _started(me, where, declared, arguments, one_way=False, key=idempotency_key, headers=header)
    invocation.accepted().result()
    limit = duration_in(timeout)
    wait_for(me, invocation, limit)
    outcome: bytes | None = me.ask(lambda store: store.outcome(invocation.id))
    said = shown_outcome(outcome or b"", scope_in(declared))
    if said["status"] == "failed":
        more = {name: value for name, value in said.items() if name not in ("status", "error")}
        me.fail(1, said["error"], id=invocation.id, **more)
    else:
        me.answer(said["result"], lambda: in_json(said["result"]))


def wait_for(me: Command, invocation: Invocation[Any], limit: Duration | None) -> None:
    """Wait until an invocation has ended, however it ends.

    Raises:
        TimeoutError: it goes on; the message says how to ask why.
    """
    try:
        invocation.result(limit)
    except TimeoutError as error:
        if not me.client.status(invocation).startswith(("succeeded", "failed")):
            raise TimeoutError(f"{str_of(error)}; `perdure why {invocation.id}` says what it waits for") from error
    except Exception:  # its outcome is read below, with the classes of the store
        if not me.client.status(invocation).startswith(("succeeded", "failed")):
            raise


def send(
    me: Command,
    target: Annotated[str, _TARGET],
    arguments: Annotated[list[str] | None, _ARGUMENTS] = None,
    delay: Annotated[str | None, typer.Option(help="Begin so much later: seconds, or 10m.")] = None,
    idempotency_key: Annotated[str | None, _KEY] = None,
    header: Annotated[list[str] | None, _HEADER] = None,
) -> None:
    """Start a handler without waiting for its result, and print the id of the invocation."""
    me.may_begin = True
    where = target_in(target)
    declared = class_of(me, where.object.type)
    invocation = _started(
        me, where, declared, arguments, one_way=True, key=idempotency_key, headers=header, delay=duration_in(delay)
    )
    invocation.accepted().result()
    account = me.look(lambda survey: survey.account(invocation.id))
    data: dict[str, Any] = {"id": invocation.id, "status": "accepted"}
    if account is not None and delay is not None:
        data["due"] = time_text(Message.parse(account.message).due_ms) if account.message else None
    me.answer(data, invocation.id)


def _started(
    me: Command,
    where: Target,
    declared: Declaration | None,
    documents: list[str] | None,
    *,
    one_way: bool,
    key: str | None,
    headers: list[str] | None,
    delay: Duration | None = None,
) -> Invocation[Any]:
    args, kwargs = arguments_in(documents or [], declared, where.handler)
    me.client  # noqa: B018  # connects
    address = _address(where, declared).options(
        idempotency_key=key, delay=delay, headers=_headers_in(headers) if headers else None
    )
    if declared is not None:
        try:
            declared.handler(where.handler).check(tuple(args), kwargs, declared.cls)
        except TypeError as error:
            raise UsageError(str_of(error)) from error
    start = address.send if one_way else address.remote
    return start(where.handler, *args, **kwargs)


def _address(where: Target, declared: Declaration | None) -> ByName:
    type_, key = where.object.type, where.object.key
    if declared is not None and declared.is_service != (key is None):
        is_one = "is a service, it has no key" if declared.is_service else "has keys: write {}/key.handler"
        raise UsageError(f"{type_} {is_one.format(type_)}")
    return object_handle(type_) if key is None else object_handle(type_, key)


def _headers_in(texts: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for text in texts:
        name, is_there, value = text.partition("=")
        if not (name and is_there):
            raise UsageError(f"--header {text!r}: write NAME=VALUE")
        found[name] = value
    return found


def resolve(
    me: Command,
    awakeable: Annotated[str, typer.Argument(metavar="ID", help="The id of an awakeable.")],
    value: Annotated[str, typer.Argument(metavar="[JSON]", help="Its value.")] = "null",
) -> None:
    """Complete an awakeable with a value."""
    found = json_in(value)
    me.client  # noqa: B018  # connects
    resolved(awakeable, found).result()
    me.answer({"id": awakeable, "status": "accepted"}, "accepted")


def reject(
    me: Command,
    awakeable: Annotated[str, typer.Argument(metavar="ID", help="The id of an awakeable.")],
    message: Annotated[str, typer.Argument(metavar="MESSAGE", help="The message of the error.")],
) -> None:
    """Complete an awakeable with an error."""
    me.client  # noqa: B018  # connects
    rejected(awakeable, message).result()
    me.answer({"id": awakeable, "status": "accepted"}, "accepted")


def add_to(app: typer.Typer) -> None:
    """Add these commands."""
    command(app, "call")(call)
    command(app, "send")(send)
    command(app, "resolve")(resolve)
    command(app, "reject")(reject)
