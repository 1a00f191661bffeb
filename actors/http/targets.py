"""Targets: the handlers that HTTP reaches: those of the classes that were defined in this process.

Invariant: a class that was loaded as code of another program is no target. Its handlers do not say any more that they
are private.
"""

from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import unquote_to_bytes

from actors.errors import UsageError
from actors.objects.objects import Declaration, classes_changed, declaration, types_of_programs

from .answers import HttpError
from .bodies import Parameters, Results

SHOWN_MAX: Final = 50
"""Most names that an error lists."""


@dataclass(slots=True, eq=False)
class HttpTarget:
    """One handler of a type."""

    declaration: Declaration
    declared: Any
    """The `Handler`; a field of this type would be taken for a descriptor."""
    handler: str
    http_get: bool
    parameters: Parameters
    results: Results

    @property
    def name(self) -> str:
        """`Type.handler`."""
        return f"{self.declaration.name}.{self.handler}"


class Targets:
    """All targets, read again when a class is defined."""

    def __init__(self) -> None:
        self._number = -1
        self._types: dict[str, Declaration] = {}
        self._targets: dict[tuple[str, str], HttpTarget] = {}
        self.objects: dict[tuple[bytes, bytes], HttpTarget] = {}
        """Handlers of objects that were found, by type and handler as they stand in a path."""
        self.services: dict[tuple[bytes, bytes], HttpTarget] = {}

    def types(self) -> dict[str, Declaration]:
        """Return the types, by name."""
        if self._number != classes_changed():
            number = classes_changed()
            self._types = {name: declaration(cls) for name, cls in types_of_programs().items()}
            self._targets.clear()
            self.objects.clear()
            self.services.clear()
            self._number = number
        return self._types

    def is_current(self) -> bool:
        """Whether no class was defined since `types` was asked."""
        return self._number == classes_changed()

    def type(self, name: str) -> Declaration:
        """Return a type.

        Raises:
            HttpError: there is none of this name.
        """
        found = self.types().get(name)
        if found is None:
            known = [*self.types()]
            more = f" and {len(known) - SHOWN_MAX} more" if len(known) > SHOWN_MAX else ""
            raise HttpError(404, f"there is no type {name[:200]!r}: {', '.join(known[:SHOWN_MAX]) or 'none'}{more}")
        return found

    def find(self, type_name: str, handler: str, *, has_key: bool) -> HttpTarget:
        """Return a handler.

        Raises:
            HttpError: there is none, it is private, or only an object has a key.
        """
        about = self.type(type_name)
        if about.is_service and has_key:
            raise HttpError(404, f"{type_name} is a service, it has no key: /{type_name}/{{handler}}")
        if not about.is_service and not has_key:
            raise HttpError(404, f"every {type_name} has a key: /{type_name}/{{key}}/{{handler}}")
        found = self._targets.get((type_name, handler))
        if found is None:
            found = self._made(about, handler)
            self._targets[type_name, handler] = found
            by_path = self.services if about.is_service else self.objects
            by_path[type_name.encode(), handler.encode("utf-8", "surrogatepass")] = found
        return found

    def _made(self, about: Declaration, name: str) -> HttpTarget:
        try:
            handler = about.handler(name)
        except UsageError as error:
            raise HttpError(404, str(error)) from None
        full = f"{about.name}.{name}"
        if handler.private:
            raise HttpError(403, f"{full} is private: programs and handlers call it, HTTP does not")
        return HttpTarget(
            about, handler, name, handler.http_get, Parameters(handler, full), Results(handler.returns, full)
        )


def text_of(segment: bytes) -> str:
    """Return the text of a segment of a path.

    Raises:
        HttpError: it is no UTF-8.
    """
    if b"%" in segment:
        segment = unquote_to_bytes(segment)
    try:
        return segment.decode()
    except UnicodeDecodeError:
        raise HttpError(400, f"the path is no UTF-8: {segment[:100]!r}") from None
