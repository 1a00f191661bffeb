"""Scheduler: the internal objects behind schedules, built from public features only.

`perdure.Schedule` is a schedule, by its name. Except for `status` its handlers never wait, so that each is one commit:
the fired requests, the state that notes them, and the delayed message of the next tick leave together, once, or not at
all. `perdure.Schedules` is the single object that holds the names of all schedules.

A death between two store calls. Of a driver that declares: the schedule is there, or its name alone, until it is
declared again. Of the host: before the commit of a tick nothing was fired, and the next owner does all of it;
afterwards the next tick lies in the store. While everything is down ticks are due and not fired: the first tick that
comes computes how late it is, and `missed` decides about the others.

Invariants:
    1. A tick counts if it carries the schedule's present turn; a new declaration, a pause, a resume or a deletion
       begins another turn. The message of the old tick is then killed, so that nothing is left behind.
    2. The time of a tick is computed from the timing alone, never from the time at which the last tick was fired.
    3. Only the schedule itself tells the registry of its end, so that the registry gets all news in order; a program
       only announces the name before.
"""

import asyncio
from datetime import timedelta
from typing import Any, Final

from actors.errors import DecodeError, TerminalError, UsageError
from actors.requests import current
from actors.requests.invocation import Invocation
from actors.requests.request import CallOptions, Request
from actors.requests.schedule import ALL, ONE, REGISTRY, Firing, Schedule, ScheduleStatus, Spec, fire
from actors.requests.timing import Timing, instant_of, time_of
from actors.stored import public
from journal.texts import str_of

from .context import Context
from .handlers import handler
from .objects import VirtualObject
from .state import state

LATE_MS: Final = 60_000
"""A tick that comes later was missed: something was down."""
MISSED_MAX: Final = 1_000
"""Most missed ticks that are fired; the oldest are skipped."""
FIRED_KEPT: Final = 5
"""Fired ticks whose outcomes a status shows."""
OUTCOME_MAX: Final = 300
"""Characters of an outcome."""
OPEN_AFTER: Final = 0.1
"""Seconds without an answer after which an invocation counts as open: an ended invocation answers at once."""
_FIELD: Final = "name "
"""The prefix of the registry's fields: a schedule's name may begin with a character that no field may begin with."""


class ScheduleObject(VirtualObject, name=ONE):
    """A schedule."""

    spec: Spec | None = state(None)
    timing: Timing | None = state(None)
    turn: str = state("")
    """The id of the invocation that began the present turn; a tick must carry it."""
    tick_id: str = state("")
    """The invocation of the next tick."""
    anchor_ms: int = state(0)
    next_ms: int = state(0)
    """The time of the next tick, 0 after the last; in a pause, of the first tick that was not fired."""
    last_ms: int = state(0)
    is_paused: bool = state(False)
    fired: list[tuple[int, str]] = state(default_factory=list)
    """The times of the last fired ticks, and their invocations."""

    @handler
    def declare(self, ctx: Context, spec: Spec, timing: Timing) -> None:
        """Take a declaration; with the same timing the ticks stay as they are."""
        ScheduleRegistry[REGISTRY].note.send(ctx.key, True)
        self.spec = spec
        if timing == self.timing:
            return
        now_ms = instant_of(ctx.now())
        self.timing, self.anchor_ms, self.next_ms = timing, now_ms, timing.after(now_ms, now_ms)
        self._begin(ctx)

    @handler
    def tick(self, ctx: Context, turn: str) -> None:
        """Fire due ticks, and send the next tick."""
        if turn == self.turn:
            self._catch_up(ctx, LATE_MS)

    @handler
    def pause(self, ctx: Context) -> None:
        """Let no tick count."""
        self._declared(ctx)
        self.is_paused = True
        self._begin(ctx)

    @handler
    def resume(self, ctx: Context) -> None:
        """Fire missed ticks, and go on."""
        self._declared(ctx)
        if self.is_paused:
            self.is_paused, self.turn = False, ctx.id
            self._catch_up(ctx, 0)

    @handler
    def trigger(self, ctx: Context) -> str:
        """Fire now."""
        spec, timing = self._declared(ctx)
        return fire(spec, timing, time_of(instant_of(ctx.now()), timing.timezone)).id

    @handler
    def delete(self, ctx: Context) -> None:
        """Forget everything."""
        ScheduleRegistry[REGISTRY].note.send(ctx.key, False)
        self._stop()
        ctx.clear_all()

    @handler  # not shared: it must run after the declarations that were sent before it
    async def status(self, ctx: Context) -> Any:
        """Return a `ScheduleStatus`, as a pickle: through an annotation its times would not come out the same."""
        spec, timing = self._declared(ctx)
        place_of = spec.type if spec.key is None else f"{spec.type}/{spec.key}"
        zone, is_due = timing.timezone, self.next_ms and not self.is_paused
        return ScheduleStatus(
            name=ctx.key,
            target=f"{place_of}.{spec.handler}",
            cron=timing.cron or None,
            timezone=zone,
            every=timedelta(milliseconds=timing.every_ms) if timing.every_ms else None,
            missed=timing.missed,
            paused=self.is_paused,
            next_due=time_of(self.next_ms, zone) if is_due else None,
            last_fired=time_of(self.last_ms, zone) if self.last_ms else None,
            last_outcomes=await _outcomes(list(reversed(self.fired)), zone),
        )

    def _declared(self, ctx: Context) -> tuple[Spec, Timing]:
        if self.spec is None or self.timing is None:
            raise TerminalError(f"there is no schedule {ctx.key!r}: declare it with .schedule(...)", 404)
        return self.spec, self.timing

    def _catch_up(self, ctx: Context, late_ms: int) -> None:
        """Fire ticks that are due by now; ticks that have been due for longer than `late_ms` were missed."""
        spec, timing = self._declared(ctx)
        now_ms = instant_of(ctx.now())
        if self.next_ms and self.next_ms <= now_ms:
            due = timing.latest(self.next_ms, now_ms, self.anchor_ms, MISSED_MAX + 1)
            if len(due) > MISSED_MAX and timing.missed == "all":
                ctx.log.warning(
                    "schedule %s: it missed more than %d ticks, the oldest are skipped", ctx.key, MISSED_MAX
                )
            for tick_ms in _fired(due[-MISSED_MAX:], timing, now_ms - late_ms):
                invocation = fire(spec, timing, time_of(tick_ms, timing.timezone))
                self.fired = [*self.fired, (tick_ms, invocation.id)][-FIRED_KEPT:]
                self.last_ms = tick_ms
            self.next_ms = timing.after(now_ms, self.anchor_ms)
        self._send_tick(ctx)

    def _begin(self, ctx: Context) -> None:
        """Begin another turn: ticks that are under way do not count."""
        self._stop()
        self.turn = ctx.id
        if not self.is_paused:
            self._send_tick(ctx)

    def _stop(self) -> None:
        if self.tick_id:
            Invocation[None](self.tick_id).kill()
            self.tick_id = ""

    def _send_tick(self, ctx: Context) -> None:
        if self.next_ms:
            options = CallOptions(due_ms=self.next_ms)
            request = Request(ONE, ctx.key, "tick", (self.turn,), {}, True, options, None, None)
            self.tick_id = current.caller().start(request).id
        else:
            self.tick_id = ""


async def _outcomes(fired: list[tuple[int, str]], zone: str) -> tuple[Firing, ...]:
    asked = [asyncio.ensure_future(_outcome(id_)) for _, id_ in fired]
    if asked:
        await asyncio.wait(asked, timeout=OPEN_AFTER)
    found = [each.result() if each.done() else "open" for each in asked]
    for each in asked:
        each.cancel()
    return tuple(
        Firing(at=time_of(tick_ms, zone), id=id_, outcome=outcome)
        for (tick_ms, id_), outcome in zip(fired, found, strict=True)
    )


async def _outcome(id_: str) -> str:
    try:
        await Invocation[Any](id_, current.execution())
    except TerminalError as error:
        return (
            "unknown"
            if error.code == 404 and str_of(error).startswith(id_)
            else f"failed: {str_of(error)}"[:OUTCOME_MAX]
        )
    except DecodeError:
        pass  # its class is not known here
    return "succeeded"


def _fired(due: list[int], timing: Timing, missed_before_ms: int) -> list[int]:
    """Return which of the due ticks are fired."""
    missed = [tick for tick in due if tick < missed_before_ms]
    match timing.missed:
        case "all":
            return due
        case "skip":
            return due[len(missed) :]
        case "last":
            return due[len(missed) :] or missed[-1:]


class ScheduleRegistry(VirtualObject, name=ALL):
    """The names of all schedules, each as a field."""

    @handler
    def expect(self, ctx: Context, name: str) -> None:
        """Take the name of a schedule that is being declared."""
        ctx.set(f"{_FIELD}{name}", True)

    @handler
    def note(self, ctx: Context, name: str, is_there: bool) -> None:
        """Take the news of a schedule that it exists, or was deleted."""
        if is_there:
            ctx.set(f"{_FIELD}{name}", True)
        else:
            ctx.clear(f"{_FIELD}{name}")

    @handler
    def names(self, ctx: Context) -> list[str]:
        """Return all names."""
        return [field.removeprefix(_FIELD) for field in ctx.keys()]  # noqa: SIM118  # no dict


@public
def schedules() -> list[Schedule]:
    """Return all schedules of the namespace, by name; blocks as `actors.status()` does.

    Raises:
        UsageError: this is a handler or a step, or the process is not connected.
    """
    if current.execution() is not None:
        raise UsageError("actors.schedules() is for programs: a handler names its schedules, Schedule(name)")
    client: Any = current.caller()
    names: list[str] = client.result(ScheduleRegistry[REGISTRY].names.remote())
    return [Schedule(name) for name in names]
