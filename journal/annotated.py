"""Annotated values: JSON written by earlier versions of this codec, decoded by the annotation of the value.

The codec no longer writes this format: reading depended on the validators and defaults of the day of the reading, and
was impossible without the annotation. Where the validators refuse a stored value, it is read once more without them, as
data.
"""

import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, cast

from .errors import DecodeError
from .texts import repr_of, str_of

if TYPE_CHECKING:
    from pydantic import TypeAdapter

_ADAPTERS_MAX: Final = 1024
_CHECKS: Final = frozenset({"function-before", "function-after", "function-wrap"})
_LEFT_OUT: Final = frozenset(
    {
        "post_init",
        "custom_init",
        "gt",
        "ge",
        "lt",
        "le",
        "multiple_of",
        "min_length",
        "max_length",
        "pattern",
        "max_digits",
        "decimal_places",
    }
)


def rebuilt(text: bytes, annotation: Any) -> Any:
    """Return the value of JSON in this format.

    Raises:
        DecodeError: this is no annotation, or the value does not fit it.
    """
    adapter = None if annotation is None or isinstance(annotation, str) else _adapter(annotation)
    if adapter is None:
        raise DecodeError(
            "a stored value was written by the annotation of its handler or field, and is read without it "
            f"(annotation here: {repr_of(annotation)}). Read it where the class is defined."
        )
    try:
        return adapter.validate_json(text)
    except Exception as exc:  # noqa: BLE001 - validators of users may raise anything
        try:
            return _as_data(adapter, text)
        except Exception:  # noqa: BLE001 - the code below says why it cannot be read
            raise DecodeError(
                f"a stored value does not fit its annotation {repr_of(annotation)}: {str_of(exc, 2_000)}. Has the "
                "class changed since it was written? Give new fields a default, and keep old ones readable."
            ) from exc


def _adapter(annotation: Any) -> "TypeAdapter[Any] | None":
    try:
        # With its spelling: `A | B` equals `B | A`, and pydantic prefers the first.
        return _cached_adapter(annotation, repr(annotation))
    except Exception:  # noqa: BLE001 - unhashable: Annotated[int, []]; or a metaclass of the user's
        return _new_adapter(annotation)


@lru_cache(_ADAPTERS_MAX)
def _cached_adapter(annotation: Any, _spelling: str) -> "TypeAdapter[Any] | None":
    return _new_adapter(annotation)


def _new_adapter(annotation: Any) -> "TypeAdapter[Any] | None":
    from pydantic import TypeAdapter  # takes 0.2 s, and most programs never need it

    try:
        return TypeAdapter(annotation)
    except Exception:  # noqa: BLE001 - nothing that pydantic knows; building it may run code of users
        return None


def _as_data(adapter: "TypeAdapter[Any]", text: bytes) -> Any:
    from pydantic_core import SchemaValidator

    return SchemaValidator(_bare(adapter.core_schema)).validate_json(text)


def _bare(schema: Any) -> Any:
    """Return a schema of pydantic's without the validators and functions of users."""
    if isinstance(schema, list):
        return [_bare(each) for each in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    found = cast("dict[str, Any]", schema)
    kind = found.get("type")
    if kind in _CHECKS and not _is_of_a_library(found["function"]["function"]):
        inner = _bare(found["schema"])
        return {**inner, "ref": found["ref"]} if "ref" in found and "ref" not in inner else inner
    left_out = _LEFT_OUT if isinstance(kind, str) else ()  # else these are the names of fields
    return {name: _bare(each) for name, each in found.items() if name not in left_out}


def _is_of_a_library(function: Any) -> bool:
    """Whether a function makes values of a standard type; a function of the user's is a validator."""
    module = str(getattr(function, "__module__", "") or "").partition(".")[0]
    return module in ("pydantic", "pydantic_core") or module in sys.stdlib_module_names - {"__main__"}
