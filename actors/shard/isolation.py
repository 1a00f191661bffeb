"""Isolation: a failure of the host itself ends its service of a single shard.

Such a failure is a bug in a rare path, or bytes that the host cannot read. If it ended the host, the next host would
meet the same entry and end as well, and so on. An uncaught failure leaves the shard's memory in the middle of a change,
so that memory cannot be trusted any more: the host steps down from that shard, and from no other. The effect is that of
a crash, so the promises for crashes hold: the next owner begins from the durable state. The shard rests first: a shard
on which every owner fails is served again and again, but keeps no host busy.
"""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Serving(Protocol):
    """A shard that a host serves."""

    failed: Callable[[BaseException], None]
    """Steps down from the shard."""


S = TypeVar("S", bound=Serving)


def serving(method: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], R | None]:
    """Let a failure of a shard's method end the service of this shard, and of no other."""

    @wraps(method)
    def serve(self: S, *args: P.args, **kwargs: P.kwargs) -> R | None:
        try:
            return method(self, *args, **kwargs)
        except BaseException as error:  # noqa: BLE001  # `failed` logs every error
            self.failed(error)
            return None

    return serve
