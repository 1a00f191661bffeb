"""Targets: the addresses that are written on a command line, and the JSON of arguments and results.

An address is `Type/key`, of a service `Type`; with a handler `Type/key.handler`: the first slash ends the type, and the
last point begins the handler, so that a key may hold both.

Arguments. One JSON document is read as over HTTP: of a handler with one parameter it is the value, or an object with
its name; of one with several an object by their names. More documents are arguments in their order. The class is taken
from the store, if it is there, and its annotations make the values; else documents are handed over as they are.
"""

import asyncio
import inspect
import json
from dataclasses import dataclass
from typing import Any, Final, cast

from actors.code.code import CodeBook
from actors.errors import DecodeError, TerminalError, UsageError
from actors.objects.handlers import Handler
from actors.objects.objects import Declaration
from actors.policy import Duration
from actors.values import outcomes
from actors.values.values import LIVE, Scope, decode, scope_of
from journal.codec import MISSING
from journal.ids import ObjectId, shard_in
from journal.store import Store
from journal.texts import repr_of, str_of

from .commands import Command

_AS: Final = "Type/key.handler, or Service.handler"


@dataclass(frozen=True, slots=True)
class Target:
    """A handler at an address."""

    object: ObjectId
    handler: str


def target_in(text: str) -> Target:
    """Return the handler that is meant.

    Raises:
        UsageError: this is none.
    """
    address, point, handler = text.rpartition(".")
    if not point or not handler.isidentifier():
        raise UsageError(f"{text!r} names no handler: write {_AS}")
    return Target(object_in(address), handler)


def object_in(text: str) -> ObjectId:
    """Return the object, or the service, that is meant.

    Raises:
        UsageError: this is none.
    """
    found = ObjectId.parse(text)
    if not found.type or found.key == "":
        raise UsageError(f"{text!r} is no address: write Type/key, of a service Type")
    return found


def is_id(text: str) -> bool:
    """Whether this is the id of an invocation, by its form."""
    if "/" in text:
        return False
    try:
        shard_in(text)
    except UsageError:
        return False
    return True


def json_in(text: str) -> Any:
    """Return the value of a JSON document.

    Raises:
        UsageError: it is none.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise UsageError(f"{text!r} is not JSON ({error}): a text is written '\"apple\"', with both quotes") from error


def class_of(command: Command, type_: str) -> Declaration | None:
    """Return the newest class of a type, None if the store has none that can be used here."""

    async def found(store: Store) -> Declaration | None:
        try:
            return await CodeBook(store, live=False).fetch(type_, "")
        except (TerminalError, DecodeError):
            return None
        except (asyncio.CancelledError, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001  # code of users
            command.note(f"the class of {type_} cannot be used here ({str_of(error)}): JSON is taken as it is")
            return None

    return cast("Declaration | None", command.ask(found))


def scope_in(declared: Declaration | None) -> Scope:
    """Return the scope of a class that came from the store."""
    return LIVE if declared is None else scope_of(declared.cls)


def arguments_in(documents: list[str], declared: Declaration | None, name: str) -> tuple[list[Any], dict[str, Any]]:
    """Return the arguments that are meant by JSON documents.

    Raises:
        UsageError: there is no such handler, or these are not its arguments.
    """
    values = [json_in(document) for document in documents]
    if declared is None:
        return values, {}
    handler = declared.handler(name)
    parameters = list(inspect.signature(handler.fn).parameters.values())[2:]
    if len(values) != 1:
        return [
            _made(value, handler, each) for value, each in zip(values, _padded(parameters, values), strict=True)
        ], {}
    (value,) = values
    names = [each.name for each in parameters if each.kind is not each.VAR_KEYWORD]
    is_by_name = isinstance(value, dict) and (len(parameters) != 1 or list(cast("dict[str, Any]", value)) == names)
    if not is_by_name:
        return [_made(value, handler, _padded(parameters, values)[0])], {}
    by_name = {each.name: each for each in parameters}
    return [], {key: _made(each, handler, by_name.get(key)) for key, each in cast("dict[str, Any]", value).items()}


def _padded(parameters: list[inspect.Parameter], values: list[Any]) -> list[inspect.Parameter | None]:
    """Return a parameter for each value; those of too many values are refused by the check of the call."""
    return [parameters[at] if at < len(parameters) else None for at in range(len(values))]


def _made(value: Any, handler: Handler[Any, Any], parameter: inspect.Parameter | None) -> Any:
    """Return the value that an annotation makes of JSON."""
    hint = handler.hints.get(parameter.name, MISSING) if parameter is not None else MISSING
    if hint is MISSING or parameter is None:
        return value
    return made_by(hint, value, f"{parameter.name!r} of {handler.name}")


def made_by(hint: Any, value: Any, what: str) -> Any:
    """Return the value that an annotation makes of JSON.

    Raises:
        UsageError: it does not fit.
    """
    from pydantic import TypeAdapter, ValidationError  # takes 0.2 s

    try:
        adapter: Any = TypeAdapter(hint)
    except Exception:  # noqa: BLE001  # nothing that pydantic knows: the handler gets it as it is
        return value
    try:
        return adapter.validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        raise UsageError(f"{what} does not take {repr_of(value)}: {error.errors()[0]['msg']}") from error


def as_json(value: Any) -> Any:
    """Return a value as JSON has it; parts that it does not know by their `repr`."""
    from pydantic_core import to_jsonable_python  # takes 0.1 s

    try:
        return to_jsonable_python(value, fallback=repr_of)
    except ValueError:  # bytes that are no text
        return to_jsonable_python(value, fallback=repr_of, bytes_mode="base64")


def shown_value(data: bytes, scope: Scope = LIVE, hint: Any = MISSING) -> Any:
    """Return a stored value as JSON has it, or the reason why it cannot be read here."""
    try:
        return as_json(decode(data, hint, scope))
    except Exception as error:  # noqa: BLE001  # code of users
        return f"<cannot be read here: {str_of(error, 300)}>"


def shown_outcome(outcome: bytes, scope: Scope = LIVE) -> dict[str, Any]:
    """Return an outcome as JSON has it."""
    try:
        return {"status": "succeeded", "result": as_json(outcomes.decoded(outcome, MISSING, scope))}
    except TerminalError as error:
        return {"status": "failed", "error": str_of(error), "code": error.code, "metadata": as_json(error.metadata)}
    except Exception as error:  # noqa: BLE001  # code of users
        return {"status": "succeeded", "result": f"<cannot be read here: {str_of(error, 300)}>"}


def duration_in(text: str | None) -> Duration | None:
    """Return a duration: a number of seconds, or `10m`."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return text
