"""Schedule: the handle of a durable schedule, and its declaration.

Owns a program's requests to the internal objects of `scheduler`, by name: their classes stand below this module.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple, cast

from actors.errors import UsageError
from actors.policy import Duration
from actors.stored import pinned, public
from actors.values.values import encode_arguments
from journal.clock import wall_ms
from journal.ids import address_of

from .current import caller
from .invocation import Invocation
from .request import EMPTY_OPTIONS, CallOptions, Request
from .timing import Missed, Timing, timing_of

INTERNAL: Final = "perdure."
"""Prefix of the names of internal types."""
ONE: Final = f"{INTERNAL}Schedule"
ALL: Final = f"{INTERNAL}Schedules"
REGISTRY: Final = "all"
"""The key of the one object of type `ALL`."""
_BY_NAME: Final = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
SCHEDULED_AT: Final = "perdure-scheduled-at"
"""The header of a fired invocation: the tick, as ISO 8601."""


@pinned("Spec")
@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """The request that a schedule fires; the timing says when."""

    type: str
    key: str | None
    handler: str
    arguments: bytes
    """Encoded: the classes in them need not be known where they are kept."""
    headers: Mapping[str, str]


@pinned("Firing")
@dataclass(frozen=True, slots=True, kw_only=True)
class Firing:
    """The invocation and the outcome of one tick."""

    at: datetime
    """The tick."""
    id: str
    """The invocation; while it is open, `actors.attach(id).status()` tells its status, and why."""
    outcome: str
    """`open`, `succeeded`, `failed: why`, or `unknown` where its outcome is forgotten."""


@pinned("ScheduleStatus")
@dataclass(frozen=True, slots=True, kw_only=True)
class ScheduleStatus:
    """The result of `schedule.status()`."""

    name: str
    target: str
    """`Type/key.handler`."""
    cron: str | None
    timezone: str
    every: timedelta | None
    missed: Missed
    paused: bool
    next_due: datetime | None
    """The next tick; None while it is paused, and after the last one."""
    last_fired: datetime | None
    """The last tick that was fired."""
    last_outcomes: tuple[Firing, ...] = ()
    """The last five ticks that were fired, the newest first."""


@public
class Schedule:
    """A durable schedule, by its name; `Report["daily"].build.schedule(cron="0 9 * * *")` declares one and returns it.

    Each method starts an invocation and returns it: await it, or ask for its `result()`. If the schedule is not
    declared, or was deleted, it fails with a `TerminalError` of code 404. Pickles as its name.
    """

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        if not isinstance(name, str) or not name:  # pyright: ignore[reportUnnecessaryIsInstance]  # users without a checker
            raise UsageError(f"the name of a schedule is a str that is not empty, not {name!r}")
        self._name = name

    @property
    def name(self) -> str:
        """The name, unique in the namespace."""
        return self._name

    def pause(self) -> Invocation[None]:
        """Fire no more, until `resume`."""
        return self._ask("pause")

    def resume(self) -> Invocation[None]:
        """Fire again; `missed` decides about the ticks since `pause`."""
        return self._ask("resume")

    def trigger(self) -> Invocation[str]:
        """Fire now, beside the ticks, also while it is paused; the result is the id of the invocation."""
        return self._ask("trigger")

    def delete(self) -> Invocation[None]:
        """Forget the schedule; invocations that it has fired go on. Deleting an unknown schedule does nothing."""
        return self._ask("delete")

    def status(self) -> Invocation[ScheduleStatus]:
        """Return its declaration and its ticks."""
        return self._ask("status")

    def _ask(self, handler: str) -> Invocation[Any]:
        return _started(ONE, self._name, handler, (), one_way=False)

    def __eq__(self, other: object) -> bool:
        return self._name == other._name if isinstance(other, Schedule) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._name)

    def __repr__(self) -> str:
        return f"<Schedule {self._name}>"

    def __reduce__(self) -> tuple[type[Schedule], tuple[str]]:
        return Schedule, (self._name,)


class ScheduleOptions(NamedTuple):
    """The options that were given for a schedule; None: not given. Fields are named as the keywords are."""

    cron: str | None
    every: Duration | None
    timezone: str | None
    missed: Missed | None
    name: str | None


def handler_keywords(
    handler: str,
    fn: Callable[..., Any] | None,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: ScheduleOptions,
    arguments: object,
) -> dict[str, Any]:
    """Return the keywords of the handler: no option takes a keyword that may be meant for it.

    `fn` is the handler's function, None where it is not known.

    Raises:
        UsageError: the handler takes an argument of that name, too, and nothing says which is meant.
    """
    said = {name for name, value in options._asdict().items() if value is not None}
    if arguments is not None:
        said.add("arguments")
    named = cast("Mapping[str, Any]", arguments if isinstance(arguments, Mapping) else {})
    parameters = list(inspect.signature(fn).parameters.values())[2:] if fn is not None else []
    names = [one.name for one in parameters[len(args) :] if one.kind in _BY_NAME]
    # With `arguments` the handler's keywords are explicit; a handler's argument of that name might be meant itself.
    meant = said if arguments is None else {"arguments"} if not named or named.keys() - names else set[str]()
    for name in names:
        if name in meant and name in said and name not in named:
            raise UsageError(
                f"{handler}() takes an argument {name!r} itself, and a schedule has an option of this name: give it by "
                f"position or as arguments={{{name!r}: ...}}; with arguments= of all others the option is meant"
            )
    if named is not arguments and arguments is not None:
        raise UsageError(f"{handler}: arguments= takes the handler's arguments by name, not {arguments!r}")
    if both := kwargs.keys() & named.keys():
        raise UsageError(f"{handler}(): {min(both)!r} is given twice")
    return {**kwargs, **named}


def declared(request: Request, said: ScheduleOptions) -> Schedule:
    """Declare the schedule of a request, which was checked where its class is known.

    Raises:
        UsageError: the timing is invalid, the arguments cannot be sent, or the options do not fit a schedule.
    """
    options, address, name = request.options, address_of(request.type_name, request.key), said.name
    if options.delay or options.idempotency_key is not None or options.timeout_s is not None:
        raise UsageError("a schedule takes headers, but no delay, no timeout and no idempotency key")
    missed = "last" if said.missed is None else said.missed
    timing = timing_of(said.cron, said.every, said.timezone, missed, wall_ms())
    schedule = Schedule(f"{address}.{request.handler}" if name is None else name)
    spec = Spec(
        type=request.type_name,
        key=request.key,
        handler=request.handler,
        arguments=encode_arguments(request.args, request.kwargs, ("arguments", address, request.handler)),
        headers=options.headers,
    )
    _started(ALL, REGISTRY, "expect", (schedule.name,), one_way=True)
    # It comes with the code of the class that it fires, so that hosts have it when a tick is due.
    _started(ONE, schedule.name, "declare", (spec, timing), one_way=True, owner=request.owner)
    return schedule


def _started(
    type_: str, key: str, handler: str, args: tuple[Any, ...], *, one_way: bool, owner: type[Any] | None = None
) -> Invocation[Any]:
    request = Request(type_, key, handler, args, {}, one_way, EMPTY_OPTIONS, None, owner)
    return cast("Invocation[Any]", caller().start(request))


def fire(spec: Spec, timing: Timing, scheduled_at: datetime) -> Invocation[Any]:
    """Send the request of a schedule, from its object."""
    headers = {**spec.headers, SCHEDULED_AT: scheduled_at.isoformat()}
    options = CallOptions(headers=headers, arguments=spec.arguments)
    return cast(
        "Invocation[Any]",
        caller().start(Request(spec.type, spec.key, spec.handler, (), {}, True, options, None, None)),
    )
