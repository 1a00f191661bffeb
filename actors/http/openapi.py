"""OpenAPI: the description of all handlers from their signatures, and a page that shows it and calls them."""

from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from inspect import Parameter
from pathlib import Path
from typing import Any, Final

from actors.objects.handlers import Handler
from actors.objects.objects import Declaration
from actors.requests.run_ids import RUN

from .bodies import Parameters, Results, adapter_of, schema_of
from .targets import Targets

PAGE: Final = Path(__file__).with_name("docs.html").read_bytes()
POLICY: Final = b"default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'"

_ERROR: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["message", "code", "source"],
    "properties": {
        "message": {"type": "string"},
        "code": {"type": "integer"},
        "source": {"enum": ["handler", "request", "store"]},
        "id": {"type": "string"},
        "metadata": {"type": "object"},
    },
}
_SENT: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["id", "status"],
    "properties": {
        "id": {"type": "string"},
        "status": {"enum": ["accepted", "known"]},
        "due": {"type": "string", "format": "date-time"},
    },
}


def described(targets: Targets, prefix: str) -> dict[str, Any]:
    """Return the description of all handlers, as OpenAPI 3.1."""
    schemas: dict[str, Any] = {"Error": _ERROR, "Sent": _SENT}
    paths: dict[str, Any] = {}
    for about in targets.types().values():
        for handler in about.handlers.values():
            if not handler.private:
                _describe(about, handler, paths, schemas)
    try:
        found = version("perdure")
    except PackageNotFoundError:  # it runs from its sources
        found = "0"
    return {
        "openapi": "3.1.0",
        "info": {"title": "Perdure", "version": found},
        "servers": [{"url": prefix or "/"}],
        "paths": {**paths, **_others()},
        "components": {"schemas": schemas},
    }


def _describe(about: Declaration, handler: Handler[Any, Any], paths: dict[str, Any], schemas: dict[str, Any]) -> None:
    name = f"{about.name}.{handler.name}"
    path = f"/{about.name}/{handler.name}" if about.is_service else f"/{about.name}/{{key}}/{handler.name}"
    parameters = Parameters(handler, name)
    keyed = [] if about.is_service else [_key()]
    text = (handler.fn.__doc__ or "").strip()
    said: dict[str, Any] = {"tags": [about.name], "summary": text.partition("\n")[0]}
    answers = {**_result(Results(handler.returns, name), schemas), **_errors()}
    body = _body(parameters, schemas)
    call = {**said, "operationId": name, "parameters": [*keyed, *_wishes()], "responses": answers, **body}
    paths[path] = {"post": call}
    if handler.http_get:
        query = [*keyed, *_query(parameters, schemas)]
        paths[path]["get"] = {**said, "operationId": f"get {name}", "parameters": query, "responses": answers}
    sent = {"202": _json("It is accepted.", {"$ref": "#/components/schemas/Sent"}), **_errors()}
    delay = {"name": "delay", "in": "query", "schema": {"type": "string"}, "example": "10m"}
    send = {**said, "operationId": f"send {name}", "parameters": [*keyed, delay, _idempotency()], "responses": sent}
    paths[f"{path}/send"] = {"post": {**send, **body}}
    if about.is_workflow and handler.name == RUN:
        for verb in ("attach", "output"):
            ready = answers if verb == "attach" else {**answers, "202": {"description": "It has not ended."}}
            asked = {"tags": [about.name], "operationId": f"{verb} {name}", "parameters": keyed, "responses": ready}
            paths[f"/{about.name}/{{key}}/{verb}"] = {"get": asked}


def _key() -> dict[str, Any]:
    return {"name": "key", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _idempotency() -> dict[str, Any]:
    text = {"type": "string", "minLength": 1}
    about = "The same key is the same invocation."
    return {"name": "Idempotency-Key", "in": "header", "schema": text, "description": about}


def _wishes() -> list[dict[str, Any]]:
    text = {"type": "string", "pattern": "^[0-9]{1,6}(ms|s|m)$"}
    return [
        _idempotency(),
        {"name": "Prefer", "in": "header", "schema": {"type": "string"}, "example": "wait=10"},
        {"name": "Perdure-Timeout", "in": "header", "schema": text, "example": "10s"},
    ]


def _json(about: str, schema: Any) -> dict[str, Any]:
    return {"description": about, "content": {"application/json": {"schema": schema}}}


def _errors() -> dict[str, Any]:
    return {
        "4XX": _json("It was refused, or has failed.", {"$ref": "#/components/schemas/Error"}),
        "5XX": _json("It has failed, or the store does not answer.", {"$ref": "#/components/schemas/Error"}),
    }


def _moved(schema: dict[str, Any], schemas: dict[str, Any]) -> dict[str, Any]:
    """Return a schema whose definitions are among `schemas`."""
    schemas.update(schema.pop("$defs", {}))
    return schema


def _body(parameters: Parameters, schemas: dict[str, Any]) -> dict[str, Any]:
    if not parameters.all:
        return {}
    is_required = bool(parameters.required)
    if parameters.is_bytes:
        return {"requestBody": {"content": {"application/octet-stream": {"schema": {}}}, "required": is_required}}
    by_name = _moved(schema_of(parameters.object), schemas)
    schema = by_name
    if parameters.value is not None:
        value = _moved(schema_of(parameters.value), schemas)
        schema = value if parameters.is_value else {"anyOf": [value, by_name]}
    return {"requestBody": {"content": {"application/json": {"schema": schema}}, "required": is_required}}


def _query(parameters: Parameters, schemas: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "name": each.name,
            "in": "query",
            "required": each.name in parameters.required,
            "schema": _moved(schema_of(adapter_of(parameters.hints[each.name])), schemas),
        }
        for each in parameters.all
        if each.kind not in (Parameter.VAR_KEYWORD, Parameter.VAR_POSITIONAL)
    ]


def _result(results: Results, schemas: dict[str, Any]) -> dict[str, Any]:
    if results.is_bytes:
        content: dict[str, Any] = {"application/octet-stream": {"schema": {}}}
        return {"200": {"description": "The result.", "content": content}, **_later()}
    if results.is_nothing:
        return {"204": {"description": "It has ended; there is no result."}, **_later()}
    schema = _moved(schema_of(results.adapter, "serialization"), schemas)
    return {"200": _json("The result.", schema), **_later()}


def _later() -> dict[str, Any]:
    return {"202": _json("It has not ended in the time of `Prefer: wait`.", {"$ref": "#/components/schemas/Sent"})}


def _others() -> Mapping[str, Any]:
    """Return the paths beside the handlers."""
    id_ = [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]
    done = {"202": {"description": "The store has it."}, **_errors()}
    free: dict[str, Any] = {"requestBody": {"content": {"application/json": {"schema": {}}}}}
    paths: dict[str, Any] = {
        "/invocations/{id}": _get("what the store knows of an invocation", id_),
        "/invocations/{id}/attach": _get("the outcome, when it is there", id_),
        "/invocations/{id}/output": _get("the outcome, if it is there", id_),
        "/health": _get("whether this server lives", []),
        "/ready": _get("whether the store is reached and every shard has a host", []),
    }
    for verb in ("cancel", "kill", "resume"):
        paths[f"/invocations/{{id}}/{verb}"] = {"post": _asked(f"{verb} an invocation", id_, done)}
    paths["/invocations/{id}/restart"] = {"post": {**_asked("restart a paused invocation", id_, done), **free}}
    named = [*id_, {"name": "name", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}]
    paths["/invocations/{id}/signals/{name}"] = {"post": {**_asked("send a signal", named, done), **free}}
    for verb in ("resolve", "reject"):
        paths[f"/awakeables/{{id}}/{verb}"] = {"post": {**_asked(f"{verb} an awakeable", id_, done), **free}}
    return paths


def _get(summary: str, parameters: list[Any]) -> dict[str, Any]:
    said = {"200": "It is there.", "202": "It is not there yet.", "204": "It has ended; there is no result."}
    answers = {code: {"description": text} for code, text in said.items()} | _errors()
    return {"get": _asked(summary, parameters, answers)}


def _asked(summary: str, parameters: list[Any], answers: dict[str, Any]) -> dict[str, Any]:
    return {"tags": ["perdure"], "summary": summary, "parameters": parameters, "responses": answers}
