"""Durable virtual objects for Python: the public names, and nothing else."""

from .context import Context as Context
from .errors import CallTimeout as CallTimeout
from .errors import Cancelled as Cancelled
from .errors import DamagedError as DamagedError
from .errors import DecodeError as DecodeError
from .errors import DurableError as DurableError
from .errors import NondeterminismError as NondeterminismError
from .errors import NotFoundError as NotFoundError
from .errors import OverloadedError as OverloadedError
from .errors import SettingsError as SettingsError
from .errors import TerminalError as TerminalError
from .errors import UnavailableError as UnavailableError
from .errors import UsageError as UsageError
from .invocation import Invocation as Invocation
from .invocation import get as get
from .invocation import wait as wait
from .handlers import handler as handler
from .handlers import shared as shared
from .objects import Service as Service
from .objects import VirtualObject as VirtualObject
from .policy import Duration as Duration
from .policy import Policy as Policy
from .policy import Retry as Retry
from .state import state as state

__all__ = [
    "CallTimeout",
    "Cancelled",
    "Context",
    "DamagedError",
    "DecodeError",
    "DurableError",
    "Duration",
    "Invocation",
    "NondeterminismError",
    "NotFoundError",
    "OverloadedError",
    "Policy",
    "Retry",
    "Service",
    "SettingsError",
    "TerminalError",
    "UnavailableError",
    "UsageError",
    "VirtualObject",
    "get",
    "handler",
    "shared",
    "state",
    "wait",
]
