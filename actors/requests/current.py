"""Current: whether this code runs in a handler, in a step, or in a driver.

The running loop says it, not a context variable: a copied context leaks into threads and callbacks, a running loop
cannot. Only steps, which run on loops and threads that are not ours, are marked by a variable, set in a fresh context.
"""

from __future__ import annotations

from contextvars import ContextVar
from functools import partial
from types import MethodType
from typing import Any, Protocol, cast

from actors.errors import UsageError
from actors.loop.loop import DeterministicLoop, running_loop
from journal.store import Bring

from .request import Request

in_step: ContextVar[str | None] = ContextVar("in_step", default=None)
"""The id of the step this code belongs to, or None."""

refused_in_step: ContextVar[list[str] | None] = ContextVar("refused_in_step", default=None)
"""A list that notes that a compensation, which runs as a step, was refused something that only its handler may do."""

NOT_IN_A_STEP = "a step may repeat: return the value and call from the handler"


def not_in_a_step() -> UsageError:
    """Return the error of a step that does something that only its handler may do."""
    noted = refused_in_step.get()
    if noted is not None:
        noted.append(NOT_IN_A_STEP)
    return UsageError(NOT_IN_A_STEP)


class Caller(Protocol):
    """The side that starts invocations: an execution, or a driver's client."""

    def start(self, request: Request, /) -> Any:
        """Return the `Invocation` of the request; it leaves in the order of these calls."""
        ...

    def bring(self, event: Bring, entry: str, /) -> Any:
        """Bring an event to an invocation, and return its `Accepted`; it leaves in the order of these calls."""
        ...


def address_in(fn: Any) -> Any:
    """Return the address whose `.remote` or `.send` this is, bound or not by `functools.partial`; else None."""
    while isinstance(fn, partial):
        fn = cast("Any", fn).func
    return fn.__self__ if isinstance(fn, MethodType) and hasattr(type(fn.__self__), "_check_start") else None


def check_start(fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Check a call that `address_in` has found, without making it: nothing leaves.

    Raises:
        TypeError: the arguments are not the handler's.
        UsageError: there is no such handler, or the options do not fit such a request.
    """
    while isinstance(fn, partial):
        bound = cast("Any", fn)
        fn, args, kwargs = bound.func, (*bound.args, *args), {**bound.keywords, **kwargs}
    fn.__self__._check_start(args, kwargs, one_way=fn.__name__.endswith("send"))


class _Driver:
    """The client that `actors.init()` made for this process, if any."""

    __slots__ = ("client", "validates")

    def __init__(self) -> None:
        self.client: Caller | None = None
        self.validates = True


_driver = _Driver()


def set_driver(client: Caller | None) -> None:
    """Let code outside handlers call through this client; None takes it away."""
    _driver.client = client


def set_validates(is_said: bool | None) -> None:
    """Set whether values are checked against annotations in this process; None is the default, which is yes."""
    _driver.validates = is_said is not False


def validates() -> bool:
    """Whether values are checked against annotations, as far as classes and handlers do not say otherwise."""
    return _driver.validates


def execution() -> Any:
    """Return the execution whose handler runs here, or None."""
    loop = running_loop()
    return loop.owner if isinstance(loop, DeterministicLoop) else None


def caller() -> Caller:
    """Return the caller that starts invocations here.

    Raises:
        UsageError: this is a step, or a process in which `actors.init()` was not called.
    """
    loop = running_loop()
    if isinstance(loop, DeterministicLoop):
        owner: Any = loop.owner  # the loop knows the half of its execution that it needs
        return owner
    if in_step.get() is not None:
        raise not_in_a_step()
    client = _driver.client
    if client is None:
        raise UsageError("nothing is connected in this process: call actors.init() first")
    return client
