"""What `/openapi.json` says holds: requests drawn from it get no 5xx, and no answer that it does not name."""

from collections.abc import Iterator
from datetime import date, datetime
from enum import Enum
from typing import Annotated, Any, Literal, NotRequired, TypedDict
from uuid import UUID

import pytest
import schemathesis as untyped
from hypothesis import HealthCheck, Phase, given, settings
from pydantic import BaseModel, Field
from web import Web

import actors
from actors import Context, Service, VirtualObject, Workflow, handler, shared, state

schemathesis: Any = untyped  # its types are partial


class SchemaColour(Enum):
    RED = "red"
    BLUE = "blue"


class SchemaPart(BaseModel):
    name: Annotated[str, Field(max_length=5)]
    parts: list["SchemaPart"] = []


class SchemaOrder(TypedDict):
    id: int
    note: NotRequired[str | None]


class SchemaObject(VirtualObject):
    n: int = state(0)

    @handler
    async def add(self, ctx: Context, by: int = 1, note: str | None = None) -> int:
        return by

    @handler
    async def nothing(self, ctx: Context) -> None: ...

    @shared(http_get=True)
    async def get(self, ctx: Context, many: int = 0, name: str = "", flag: bool = False) -> str:
        return name * min(max(many, 0), 2) + str(flag)


class SchemaService(Service):
    @handler
    async def scalar(self, ctx: Context, value: float) -> float:
        return value

    @handler
    async def text(self, ctx: Context, text: Annotated[str, Field(min_length=1)]) -> str:
        return text

    @handler
    async def order(self, ctx: Context, order: SchemaOrder) -> SchemaOrder:
        return order

    @handler
    async def part(self, ctx: Context, part: SchemaPart) -> SchemaPart:
        return part

    @handler
    async def kinds(
        self,
        ctx: Context,
        colour: SchemaColour,
        who: UUID,
        when: datetime,
        day: date | None,
        word: Literal["a", "b"],
        pair: tuple[int, str],
        table: dict[str, list[int]],
        *rest: bool,
        blob: bytes = b"",
    ) -> list[Any]:
        return [colour, who, when, day, word, pair, table, rest, blob]

    @handler
    async def anything(self, ctx: Context, value: Any) -> Any:
        return value

    @handler
    async def more(self, ctx: Context, first: int, /, **more: str) -> dict[str, str]:
        return more

    @handler
    async def raw(self, ctx: Context, data: bytes) -> bytes:
        return data


class SchemaFlow(Workflow):
    @handler
    async def run(self, ctx: Context, name: str) -> str:
        return name


@pytest.fixture(scope="module")
def web(valkey_url: str) -> Iterator[Web]:
    with actors.init(valkey_url, namespace="schema", hosts="local"):
        server = Web()
        yield server
        server.stop()


ASKED = r"^/(Schema\w+/\w+|Schema\w+/\{key\}/\w+|invocations/\{id\}(/output|/cancel)?|awakeables/\{id\}/\w+|health)$"
"""Not `/send`, whose bodies are those of the call."""

QUICK = settings(
    max_examples=4,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow, HealthCheck.data_too_large],
    phases=[Phase.generate],
)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.filterwarnings("ignore")
def test_no_request_that_is_described_gets_an_answer_that_is_not(web: Web) -> None:
    schema = schemathesis.openapi.from_url(f"{web.url}/openapi.json")
    asked: list[str] = []
    for found in schema.include(path_regex=ASKED).get_all_operations():
        operation = found.ok()
        for case in _cases(operation):
            got = case.call(base_url=web.url, timeout=10)
            assert got.status_code < 500, (case.as_curl_command(), got.text)
            checks = (
                schemathesis.checks.not_a_server_error,
                schemathesis.specs.openapi.checks.status_code_conformance,
                schemathesis.specs.openapi.checks.content_type_conformance,
                schemathesis.specs.openapi.checks.response_schema_conformance,
            )
            case.validate_response(got, checks=checks)
        asked.append(operation.label)

    assert len(asked) > 15


def _cases(operation: Any) -> list[Any]:
    """Return some requests for an operation, fitting ones and others."""
    found: list[Any] = []
    for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):

        @QUICK
        @given(operation.as_strategy(generation_mode=mode))
        def draw(case: Any) -> None:
            found.append(case)

        try:
            draw()
        except BaseException as error:
            if "nsatisfiable" not in type(error).__name__ and "Skip" not in type(error).__name__:
                raise
    return found
