"""Unhandled: what a host does where it fails itself: a bug in a rare path, or bytes that it cannot read.

Were the failure to end the host, the next one would meet the same entry and end as well, one host after the other.

A failure out of a shard that nobody catches leaves its memory half way through something, so that nothing in it can be
trusted any more: the host steps down from that shard, and from no other. That is what a crash does to it, and all that
the promises say of crashes holds; what is durable is all that the next owner begins from. It rests first: a shard on
which every owner fails is served again and again, but keeps no host busy.
"""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Serving(Protocol):
    """A shard that is served."""

    failed: Callable[[BaseException], None]
    """Steps down from it."""


S = TypeVar("S", bound=Serving)


def serving(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R | None]:
    """Let a failure of a shard's method end the service of this shard, and of nothing else."""

    @wraps(method)
    def serve(self: S, *args: P.args, **kwargs: P.kwargs) -> R | None:
        try:
            return method(self, *args, **kwargs)
        except BaseException as error:  # noqa: BLE001  # whatever it is, it is logged there
            self.failed(error)
            return None

    return serve
