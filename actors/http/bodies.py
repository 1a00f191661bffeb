"""Bodies: arguments from JSON by the annotations of a handler, and results as JSON.

Strict where JSON is exact: a `1` is no `bool` and a text no number, while a date, which JSON lacks, is read from its
text. Nothing from outside meets a pickle. Bytes inside JSON are base64.

The form of a body depends on the handler's parameters: none, an empty body; `data: bytes`, the body itself; one, its
value, or an object with its name where the parameter is no object; several, an object by names.
"""

import inspect
import logging
import types
import typing
from collections.abc import Mapping, Sequence
from inspect import Parameter
from typing import Annotated, Any, Final, Optional, Union, cast

import orjson
import typing_extensions
from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_json

from actors.errors import DecodeError, UsageError
from actors.objects.handlers import Handler
from actors.values.values import decode
from journal.codec import MISSING
from journal.records import Failure, outcome_of
from journal.texts import error_text

from .answers import BYTES, JSON, HttpError, failed

logger = logging.getLogger("actors")

_typed_dict: Final[Any] = typing_extensions.TypedDict
CONFIG: Final[Any] = ConfigDict(
    arbitrary_types_allowed=True, allow_inf_nan=False, val_json_bytes="base64", ser_json_bytes="base64"
)
_BY_POSITION: Final = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
_SHOWN_MAX: Final = 5
"""Most misfits that an answer names."""
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


def modern(hint: Any, seen: Mapping[Any, Any] | None = None) -> Any:
    """Return an annotation with each `typing.TypedDict` as one that pydantic reads on each version of Python."""
    seen = seen or {}
    if typing.is_typeddict(hint):
        if hint in seen:
            return Any  # it holds itself
        hints = typing.get_type_hints(hint, include_extras=True)
        inside = {**seen, hint: None}
        fields = {
            name: _field(modern(_without(each), inside), is_required=name in hint.__required_keys__)
            for name, each in hints.items()
        }
        made = _typed_dict(hint.__name__, fields)
        made.__doc__ = hint.__doc__
        return made
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if not args or origin is typing.Literal:
        return hint
    if origin is Annotated:
        return Annotated[(modern(args[0], seen), *hint.__metadata__)]  # pyright: ignore[reportInvalidTypeArguments]
    found = tuple(modern(each, seen) for each in args)
    if all(one is other for one, other in zip(found, args, strict=True)):
        return hint
    if origin in (Union, types.UnionType):
        return Union[found]  # noqa: UP007  # made of values
    return origin[found]


def _field(hint: Any, *, is_required: bool) -> Any:
    wrap: Any = typing_extensions.Required if is_required else typing_extensions.NotRequired
    return wrap[hint]


def _without(hint: Any) -> Any:
    """Return an annotation of a field without `Required` and `NotRequired`."""
    of = (typing.Required, typing.NotRequired, typing_extensions.Required, typing_extensions.NotRequired)
    return typing.get_args(hint)[0] if typing.get_origin(hint) in of else hint


def adapter_of(hint: Any) -> TypeAdapter[Any] | None:
    """Return what reads and writes values of an annotation; None if pydantic cannot read it."""
    try:
        try:
            return TypeAdapter(hint, config=CONFIG)
        except PydanticUserError:  # a model, which has a configuration of its own
            return TypeAdapter(hint)
    except Exception:  # noqa: BLE001  # reading an annotation may run code of users, which may raise anything
        return None


def schema_of(adapter: TypeAdapter[Any] | None, mode: Any = "validation") -> dict[str, Any]:
    """Return the JSON schema of values; empty, which every value fits, where there is none."""
    if adapter is None:
        return {}
    try:
        return adapter.json_schema(mode=mode, ref_template="#/components/schemas/{model}")
    except Exception:  # noqa: BLE001  # as above
        return {}


def may_be_object(schema: Mapping[str, Any], known: Mapping[str, Any]) -> bool:
    """Whether a value that fits may be a JSON object."""
    if "$ref" in schema:
        return may_be_object(known.get(schema["$ref"].rpartition("/")[2], {}), known)
    for word in ("anyOf", "oneOf"):
        if word in schema:
            return any(may_be_object(each, known) for each in schema[word])
    if "const" in schema or "enum" in schema:
        return False
    return schema.get("type", "object") == "object"


class Parameters:
    """The parameters of one handler, after self and ctx."""

    def __init__(self, handler: Handler[Any, Any], name: str) -> None:
        self.name = name
        self.all = list(inspect.signature(handler.fn).parameters.values())[2:]
        self._check = handler.check
        self.hints = {each.name: _hint(each, handler.hints) for each in self.all}
        one = self.all[0] if len(self.all) == 1 and not _is_many(self.all[0]) else None
        self.is_bytes = one is not None and self.hints[one.name] is bytes
        self.value = adapter_of(self.hints[one.name]) if one is not None and not self.is_bytes else None
        schema = schema_of(self.value)
        self.is_value = self.value is not None and may_be_object(schema, schema.get("$defs", {}))
        """Whether an object is the value of the one parameter, and not an object with its name."""
        self.object = self._object()
        self.required = [each.name for each in self.all if each.default is Parameter.empty and not _is_many(each)]

    def _object(self) -> TypeAdapter[Any] | None:
        """Return what reads an object by names."""
        fields: dict[str, Any] = {}
        more: dict[str, Any] = {}
        for each in self.all:
            hint = self.hints[each.name]
            hint = hint if adapter_of(hint) is not None else Any
            if each.kind is Parameter.VAR_KEYWORD:
                more["extra_items"] = hint
            elif each.kind is Parameter.VAR_POSITIONAL:
                fields[each.name] = _field(list[hint], is_required=False)
            else:
                fields[each.name] = _field(hint, is_required=each.default is Parameter.empty)
        made = _typed_dict("Arguments", fields, **more)
        made.__pydantic_config__ = CONFIG if more else ConfigDict(**CONFIG, extra="forbid")
        return adapter_of(made)

    def read(self, body: bytes) -> Arguments:
        """Return the arguments of a body.

        Raises:
            HttpError: it does not fit; the message names the field.
        """
        if self.is_bytes:
            return (body,), {}
        is_empty = not body or body.isspace()
        if is_empty:
            if self.required:
                raise self.misfit(f"the body is empty, and `{self.required[0]}` is missing")
            return (), {}
        if b"NaN" in body or b"Infinity" in body:  # pydantic takes them for numbers
            self._check_json(body)
        is_object = body.lstrip()[:1] == b"{"
        try:
            if self.value is not None and (self.is_value or not is_object):
                return (self.value.validate_json(body, strict=True),), {}
            if self.object is None:
                return self._checked(orjson.loads(body))
            return self._bound(self.object.validate_json(body, strict=True))
        except ValidationError as error:
            raise self._misfits(error) from None
        except orjson.JSONDecodeError as error:
            raise self.misfit(f"the body is no JSON: {error}") from None
        except HttpError:
            raise
        except Exception as error:
            logger.exception("%s: a validator failed", self.name)
            raise self.misfit(f"the arguments cannot be read: {error_text(error, 200)}") from error

    def from_query(self, pairs: Sequence[tuple[str, str]]) -> Arguments:
        """Return the arguments of a query, whose values are text: JSON where the parameter is no text.

        Raises:
            HttpError: it does not fit.
        """
        found: dict[str, list[str]] = {}
        for name, text in pairs:
            found.setdefault(name, []).append(text)
        unknown = found.keys() - self.hints.keys()
        if unknown:
            raise self.misfit(f"`{min(unknown)}` is unknown: the parameters are {', '.join(self.hints) or 'none'}")
        missing = [name for name in self.required if name not in found]
        if missing:
            raise self.misfit(f"`{missing[0]}` is missing in the query")
        return self._bound({name: self._of_texts(name, texts) for name, texts in found.items()})

    def _of_texts(self, name: str, texts: Sequence[str]) -> Any:
        adapter = adapter_of(self.hints[name])
        if adapter is None:
            return texts[-1]
        try:
            if self.hints[name] is bytes:
                return texts[-1].encode()
            if len(texts) > 1:
                return adapter.validate_python(list(texts))
            try:
                return adapter.validate_strings(texts[0])
            except ValidationError as error:
                try:
                    return adapter.validate_json(texts[0])
                except ValidationError:
                    raise error from None
        except ValidationError as error:
            raise self._misfits(error, name) from None

    def _checked(self, values: Any) -> Arguments:
        """Return arguments that pydantic cannot read, checked as those of a program."""
        if not isinstance(values, dict):
            raise self.misfit("an object by names is expected")
        args, kwargs = self._bound(cast("dict[str, Any]", values))
        try:
            self._check(args, kwargs)
        except (TypeError, UsageError) as error:
            raise self.misfit(str(error)) from None
        return args, kwargs

    def _bound(self, values: dict[str, Any]) -> Arguments:
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        has_many = any(each.kind is Parameter.VAR_POSITIONAL and values.get(each.name) for each in self.all)
        absent = ""
        for each in self.all:
            if each.kind is Parameter.VAR_KEYWORD:
                kwargs.update(values)
            elif each.name not in values:
                absent = absent or each.name
            elif each.kind is Parameter.VAR_POSITIONAL:
                args += values.pop(each.name)
            elif each.kind is Parameter.POSITIONAL_ONLY or (has_many and each.kind in _BY_POSITION):
                if absent:
                    raise self.misfit(f"`{each.name}` is given by position, so `{absent}` is needed before it")
                args.append(values.pop(each.name))
            else:
                kwargs[each.name] = values.pop(each.name)
        return tuple(args), kwargs

    def _check_json(self, body: bytes) -> None:
        try:
            orjson.loads(body)
        except orjson.JSONDecodeError as error:
            raise self.misfit(f"the body is no JSON: {error}") from None

    def misfit(self, why: str, field: str = "") -> HttpError:
        """Return the error of arguments that do not fit."""
        return HttpError(400, f"{self.name}: {why}", metadata={"field": field} if field else None)

    def _misfits(self, error: ValidationError, name: str = "") -> HttpError:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        said: list[str] = []
        first = ""
        for each in found[:_SHOWN_MAX]:
            where = ".".join(filter(None, [name, *map(str, each["loc"])]))
            first = first or where
            if not where and self.all and each["type"] != "json_invalid" and self.value is not None:
                where = first = self.all[0].name
            said.append(f"`{where}`: {each['msg']}" if where else each["msg"])
        more = f" (and {len(found) - _SHOWN_MAX} more)" if len(found) > _SHOWN_MAX else ""
        return self.misfit("; ".join(said) + more, first)


def _hint(parameter: Parameter, hints: Mapping[str, Any]) -> Any:
    hint = modern(hints.get(parameter.name, Any))
    return Optional[hint] if parameter.default is None and hint is not Any else hint  # noqa: UP045  # made of values


def _is_many(parameter: Parameter) -> bool:
    return parameter.kind in (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)


class Results:
    """The results of one handler."""

    def __init__(self, returns: Any, name: str) -> None:
        self.name, self.returns = name, returns
        self.is_nothing = returns is None or returns is type(None)
        self.is_bytes = returns is bytes
        self.adapter = None if returns is MISSING else adapter_of(modern(returns))

    def answer(self, outcome: bytes, id_: str) -> tuple[int, bytes, bytes]:
        """Return status, body and content type of an outcome.

        Raises:
            HttpError: it is a failure, or a result that JSON cannot show.
        """
        if outcome[:2] == b"VJ":  # it is JSON already
            body = outcome[2:]
            return (204, b"", JSON) if self.is_nothing and body == b"null" else (200, body, JSON)
        found = outcome_of(outcome)
        if isinstance(found, Failure):
            raise failed(found, id_)
        try:
            value = decode(found, self.returns)
        except DecodeError as error:
            raise HttpError(500, str(error), "store", id_=id_) from error
        if isinstance(value, bytes | bytearray):
            return 200, bytes(value), BYTES
        try:
            return 200, self._json(value), JSON
        except Exception as error:  # it may run code of a user's class
            why = f"{self.name} returned what JSON cannot show: {error_text(error, 500)}"
            raise HttpError(500, why, "handler", id_=id_) from error

    def _json(self, value: Any) -> bytes:
        if self.adapter is not None:
            try:
                return self.adapter.dump_json(value, by_alias=True, warnings="error")
            except (PydanticSerializationError, ValueError):
                pass  # it is not as it was annotated
        return to_json(value, bytes_mode="base64", by_alias=True)
