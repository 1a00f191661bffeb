"""Durable virtual objects for Python: the public names, and nothing else."""

from . import aside as _aside  # first: it sees that `journal` is ours  # isort: split  # noqa: F401  # pyright: ignore[reportUnusedImport]
from .blocks.awakeables import reject as reject
from .blocks.awakeables import resolve as resolve
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
from .limits import Limits as Limits
from .objects.commands import Awakeable as Awakeable
from .objects.commands import Promise as Promise
from .objects.context import Context as Context
from .objects.handlers import handler as handler
from .objects.handlers import shared as shared
from .objects.objects import Service as Service
from .objects.objects import VirtualObject as VirtualObject
from .objects.objects import Workflow as Workflow
from .objects.objects import object_handle
from .objects.scheduler import schedules as schedules
from .objects.state import state as state
from .policy import Duration as Duration
from .policy import Policy as Policy
from .policy import Retry as Retry
from .policy import RetryAfter as RetryAfter
from .requests.invocation import Invocation as Invocation
from .requests.invocation import get as get
from .requests.invocation import wait as wait
from .requests.schedule import Schedule as Schedule
from .session import Session as Session
from .session import Status as Status
from .session import attach as attach
from .session import init as init
from .session import shutdown as shutdown
from .session import status as status

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
    "Limits",
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
