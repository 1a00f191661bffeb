"""Restate: the paths and answers that the published clients of Restate expect, so that they work unchanged.

The Python client of `restate-sdk` gets `http://HOST:PORT/restate` as its ingress, since it counts delays in
milliseconds; all others get `http://HOST:PORT`.
"""

from typing import Any, Final, cast

from actors.objects.objects import Declaration
from journal.codec import MISSING
from journal.ids import address_of, derived_id, invocation_id

from .answers import HttpError, Receive, Scope, Send, answer, json_of
from .bodies import Results
from .calls import RESTATE_ID, Called, HttpCalls, read_body
from .invocations import Lookup, Verb, checked, complete, json_value, look, run_lookup
from .preferences import preferences_of
from .targets import Targets, text_of

NOT_READY: Final = 470
_ASK_MAX: Final = 100_000
"""Most bytes of a body that names an invocation."""


async def serve_restate(
    calls: HttpCalls, targets: Targets, parts: list[bytes], scope: Scope, receive: Receive, send: Send
) -> None:
    """Answer a request of a client of Restate's.

    Raises:
        HttpError: there is no such path, or it is refused.
        ClientLeft: the client has left.
    """
    words = [text_of(part) for part in parts]
    while words and words[0] == "restate":  # clients whose base ends so add theirs
        words.pop(0)
    shards, is_post = calls.client.limits.shards, scope["method"] == "POST"
    match words:
        case ["health"]:
            await answer(send, 200, json_of({"services": [*targets.types()]}))
        case ["awakeables" | "a", id_, "resolve" | "reject" as verb] if is_post:
            await complete(calls, scope, receive, send, id_, verb)
        case ["attach" | "output" | "lookup" as verb] if is_post:
            body = await read_body(scope, receive, _ASK_MAX, preferences_of(scope).length)
            found = _named(targets, json_value(body), shards, "attach" if verb == "lookup" else verb)
            if verb == "lookup":
                await answer(send, 200, json_of({"invocationId": found.id}), ((RESTATE_ID, found.id.encode()),))
            else:
                await look(calls, found, receive, send)
        case ["attach" | "output" as verb, id_]:
            await look(calls, _asked(checked(id_), verb), receive, send)
        case ["invocation", id_, "attach" | "output" as verb]:
            await look(calls, _asked(checked(id_), verb), receive, send)
        case ["invocation", name, *key, handler, idempotency_key, "attach" | "output" as verb] if len(key) < 2:
            id_ = _once(targets.type(name), key[0] if key else None, handler, idempotency_key, shards)
            await look(calls, _asked(id_, verb), receive, send)
        case ["workflow", name, key, "attach" | "output" as verb]:
            await look(calls, _run(targets.type(name), key, verb, shards), receive, send)
        case ["call", *rest] | ["send", *rest]:
            await calls.handle(_called(targets, rest, is_send=words[0] == "send"), scope, receive, send)
        case [*rest, "send"] if len(rest) > 1:
            await calls.handle(_called(targets, rest, is_send=True), scope, receive, send)
        case _:
            await calls.handle(_called(targets, words, is_send=False), scope, receive, send)


def _called(targets: Targets, words: list[str], *, is_send: bool) -> Called:
    if len(words) not in (2, 3):
        raise HttpError(404, "there is no such path: /restate/call/{service}/{key}/{handler}, or send for call")
    key = words[1] if len(words) == 3 else None
    if key == "":
        raise HttpError(400, f"the key of a {words[0]} is not empty")
    return Called(targets.find(words[0], words[-1], has_key=key is not None), key, is_send, is_restate=True)


def _asked(id_: str, verb: Verb, results: Results | None = None) -> Lookup:
    return Lookup(id_, verb, results or Results(MISSING, id_), NOT_READY, RESTATE_ID)


def _run(about: Declaration, key: str, verb: Verb, shards: int) -> Lookup:
    if not about.is_workflow:
        raise HttpError(400, f"{about.name} is no workflow")
    found = run_lookup(about, key, verb, shards)
    return _asked(found.id, verb, found.results)


def _once(about: Declaration, key: str | None, handler: str, idempotency_key: str, shards: int) -> str:
    """Return the id of the invocation that an idempotency key names."""
    address = address_of(about.name, key)
    return invocation_id(derived_id(address, handler, idempotency_key), address, shards)


def _named(targets: Targets, said: Any, shards: int, verb: Verb) -> Lookup:
    """Return the question for the invocation that a body names.

    Raises:
        HttpError: it names none.
    """
    asked = cast("dict[str, Any]", said) if isinstance(said, dict) else {}

    def text(*names: str) -> str:
        found = next((asked[name] for name in names if name in asked), None)
        if not isinstance(found, str) or not found:
            raise HttpError(400, f"`{names[0]}` is missing: a text that is not empty")
        return found

    match asked.get("target"):
        case "workflow":
            about = targets.type(text("workflowName", "name", "service"))
            return _run(about, text("workflowKey", "key"), verb, shards)
        case "idempotentInvocation":
            key = text("key") if asked.get("key") is not None else None
            about = targets.type(text("service"))
            return _asked(_once(about, key, text("handler"), text("idempotencyKey"), shards), verb)
        case "invocation":
            return _asked(checked(text("invocationId", "id")), verb)
        case _:
            raise HttpError(400, '`target` is "workflow", "idempotentInvocation" or "invocation"')
