"""Limits: the bounds that a program asks for, of a namespace, of its hosts and of itself.

Bounds that the store enforces, or that refuse something to a handler, are the namespace's: all hosts and programs must
decide alike, and so must a replay, which may run on any host. The program that opens the namespace writes them into the
store (`journal.limits`), all others find them there, and they never change: a request for another value is refused. A
bound on the memory or the time of one process is set for that process alone; the others need not know it.

Owns the checks of the values, and the comparison with the stored ones. Does not own: the effect beyond a limit.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import timedelta
from typing import Any, Final

from journal.store import NamespaceLimits, Store
from journal.texts import repr_of, str_of

from .errors import UsageError
from .policy import Duration, seconds
from .stored import public

SHARDS_MOST: Final = 256
"""Most shards: a host waits for all of its shards in one read, and looks at all leases each second."""
BYTES_MOST: Final = 128_000_000
"""Most bytes of any limit: they are written or read at once, and of more the store makes a pause in which leases lapse;
a quarter of what a server takes as one value."""
COUNT_MOST: Final = 10_000_000
"""Most of anything that is counted."""

_OF_HOSTS: Final = ("waiting_max", "activations_max", "activation_idle", "queue_in_memory", "block_limit")
_OWN: Final = ("pending_max", *_OF_HOSTS)
"""The bounds of one process."""
_TIMES: Final = {"retention": (1.0, "1 s"), "activation_idle": (0.0, "0 s"), "block_limit": (3.0, "3 s")}
"""The durations, each with its least value in seconds and as text. A host that is idle turns each second,
and is not to seem to be blocked."""
_BYTES: Final = ("payload_max", "journal_bytes_max", "signals_bytes_max", "sent_max", "written_max", "state_max")


def _whole(name: str, value: object) -> int:
    most = SHARDS_MOST if name == "shards" else BYTES_MOST if name in _BYTES else COUNT_MOST
    if isinstance(value, int) and not isinstance(value, bool):
        exact = int.__index__(value)  # a subclass has methods of its own
        if 1 <= exact <= most:
            return exact
    raise UsageError(f"Limits({name}={repr_of(value, 100)}): it is a whole number from 1 to {most:,}")


def _duration(name: str, value: Any) -> timedelta:
    least_s, least = _TIMES[name]
    try:
        found_s = seconds(value)
    except UsageError as error:
        raise UsageError(f"Limits({name}={repr_of(value, 100)}): {error}") from None
    if found_s < least_s:
        raise UsageError(f"Limits({name}={repr_of(value, 100)}): it is at least {least}")
    return timedelta(milliseconds=round(found_s * 1000))  # as it is kept


@public
@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Limits:
    """Bounds of a namespace, of its hosts, and of this program.

    The fields that may be None are the namespace's. The first program fixes them; None takes the stored value, or the
    default for a new namespace; any value but the stored one is refused. Each process has its own other fields.

    Raises:
        UsageError: one of them is no whole number or no duration, or out of its range.
    """

    shards: int | None = None
    """Slices of the key space (16), at most 256; each is served by one host at a time."""
    payload_max: int | None = None
    """Most bytes of arguments, a result, a step's result, or a field of state (8,000,000)."""
    inbox_max: int | None = None
    """Most unfinished invocations of one shard for programs; calls of handlers find ten times that (100,000)."""
    done_max: int | None = None
    """Most finished invocations that one shard remembers (10,000)."""
    retention: Duration | None = None
    """How long a finished invocation is remembered, if the count allows (1 day)."""
    journal_max: int | None = None
    """Most entries of one invocation, but for those that compensate: as many again (100,000)."""
    journal_bytes_max: int | None = None
    """Most bytes of them, and of what was delivered (64,000,000)."""
    signals_max: int | None = None
    """Most signals of one invocation that nobody has asked for (10,000)."""
    signals_bytes_max: int | None = None
    """Most bytes of them (16,000,000)."""
    sent_max: int | None = None
    """Most bytes that one handler sends before it waits again (32,000,000)."""
    written_max: int | None = None
    """Most bytes of state that one handler writes before it waits again, with the values before (32,000,000)."""
    state_max: int | None = None
    """Most bytes of all fields of one object (64,000,000)."""

    pending_max: int = 100_000
    """Most invocations of this program that are not answered."""
    waiting_max: int = 5_000
    """Handlers that wait in one host's memory; of more, the longest waiting ones leave before their time."""
    activations_max: int = 100_000
    """Objects in one host's memory; of more, idle ones go at once."""
    activation_idle: Duration = timedelta(seconds=60)
    """An object that nobody has used for so long leaves memory."""
    queue_in_memory: int = 100
    """Messages of one key that wait in a host's memory with their arguments; of the rest only the ids."""
    block_limit: Duration = timedelta(seconds=10)
    """A handler that blocks its host's event loop longer costs the host its shards, and is named; at least 3 s."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None and field.default is None:
                continue
            check = _duration if field.name in _TIMES else _whole
            object.__setattr__(self, field.name, check(field.name, value))

    def __repr__(self) -> str:
        said_here = ((field.name, getattr(self, field.name), field.default) for field in fields(self))
        return f"Limits({', '.join(f'{name}={value!r}' for name, value, default in said_here if value != default)})"

    def of_namespace(self) -> dict[str, Any]:
        """Return the wishes for the namespace, by name."""
        return {name: value for name, value in asdict(self).items() if name not in _OWN and value is not None}

    def of_host(self) -> dict[str, Any]:
        """Return the bounds of a host that is started with these limits, by name."""
        return {name: getattr(self, name) for name in _OF_HOSTS}


DEFAULT: Final = Limits()


def limits_of(asked: object) -> Limits:
    """Return the limits that `init` was given; without any, the defaults.

    Raises:
        UsageError: they are something else.
    """
    if asked is None or isinstance(asked, Limits):
        return asked or DEFAULT
    raise UsageError(f"limits is an actors.Limits, as in Limits(waiting_max=10_000), not {repr_of(asked, 100)}")


def limits_in(settings: list[str]) -> Limits:
    """Return the limits that texts such as `waiting_max=10000` and `retention=2d` name.

    Raises:
        UsageError: a name is unknown or given twice, or a value is invalid.
    """
    found = dict[str, Any]()
    for setting in settings:
        name, sign, text = setting.partition("=")
        if not sign or name not in Limits.__slots__:
            raise UsageError(f"--limit {setting}: write name=value, with one of {', '.join(Limits.__slots__)}")
        if name in found:
            raise UsageError(f"--limit {setting}: {name} was said before")
        digits = text.replace("_", "").replace(",", "")
        is_number = name not in _TIMES and digits.isascii() and digits.isdecimal() and len(digits) < 20
        found[name] = int(digits) if is_number else text
    return Limits(**found)


async def opened(store: Store, asked: Limits) -> NamespaceLimits:
    """Open the namespace, and return its bounds.

    Raises:
        UsageError: it has other limits.
    """
    named = asked.of_namespace()
    kept = await store.open_namespace(replace(NamespaceLimits(), **named))
    _compare(named, kept)
    return kept


def _compare(asked: Mapping[str, Any], kept: NamespaceLimits) -> None:
    there = {name: getattr(kept, name) for name in asked}
    other = [
        f"{name} is {_said(there[name])}, not {_said(value)}" for name, value in asked.items() if value != there[name]
    ]
    if other:
        raise UsageError(
            f"the namespace has other limits since it was first opened: {'; '.join(other)}. Leave these out, which "
            "takes what is there, or open a namespace of another name"
        )


def _said(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else str_of(value)
