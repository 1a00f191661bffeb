"""Durable virtual objects for Python: the public names, and nothing else."""

from . import aside as _aside  # first: it sees that `journal` is ours  # isort: split  # noqa: F401  # pyright: ignore[reportUnusedImport]
from .awakeables import reject as reject
from .awakeables import resolve as resolve
from .commands import Awakeable as Awakeable
from .commands import Promise as Promise
from .context import Context as Context
from .driver import Session as Session
from .driver import Status as Status
from .driver import attach as attach
from .driver import init as init
from .driver import shutdown as shutdown
from .driver import status as status
from .errors import CallTimeout as CallTimeout
from .errors import Cancelled as Cancelled
from .errors import DamagedError as DamagedError
from .errors import DeadlockError as DeadlockError
from .errors import DecodeError as DecodeError
from .errors import DurableError as DurableError
from .errors import NondeterminismError as NondeterminismError
from .errors import NotFoundError as NotFoundError
from .errors import OverloadedError as OverloadedError
from .errors import SettingsError as SettingsError
from .errors import TerminalError as TerminalError
from .errors import UnavailableError as UnavailableError
from .errors import UsageError as UsageError
from .handlers import handler as handler
from .handlers import shared as shared
from .invocation import Invocation as Invocation
from .invocation import get as get
from .invocation import wait as wait
from .objects import Service as Service
from .objects import VirtualObject as VirtualObject
from .objects import Workflow as Workflow
from .objects import object_handle
from .policy import Duration as Duration
from .policy import Policy as Policy
from .policy import Retry as Retry
from .policy import RetryAfter as RetryAfter
from .schedule import Schedule as Schedule
from .scheduling import schedules as schedules
from .state import state as state

object = object_handle  # noqa: A001 - users write actors.object("Ticket", "A1")

__all__ = [
    "Awakeable",
    "CallTimeout",
    "Cancelled",
    "Context",
    "DamagedError",
    "DeadlockError",
    "DecodeError",
    "DurableError",
    "Duration",
    "Invocation",
    "NondeterminismError",
    "NotFoundError",
    "OverloadedError",
    "Policy",
    "Promise",
    "Retry",
    "RetryAfter",
    "Schedule",
    "Service",
    "Session",
    "SettingsError",
    "Status",
    "TerminalError",
    "UnavailableError",
    "UsageError",
    "VirtualObject",
    "Workflow",
    "attach",
    "get",
    "handler",
    "init",
    "object",
    "reject",
    "resolve",
    "schedules",
    "shared",
    "shutdown",
    "state",
    "status",
    "wait",
]
