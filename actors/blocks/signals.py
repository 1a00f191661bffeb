"""Signals: named values sent to an open invocation, queued by name until its handler takes them.

Where it lies. A signal is an event: it lies in `events` of the invocation's shard from the numbered write that brings
it (a driver's submit, or a commit of the handler that sends it) until a commit of the invocation has recorded it in the
journal. It may come to any open invocation. If that is queued, delayed, asleep, or if no host has read its message yet,
its events stay in the store, and in the memory of its owner, until the handler begins. A signal that was delivered and
not taken is kept by the execution alone: a replay delivers it again, at the same place.

A death between two store calls. Of a driver, before its write is applied: nothing was sent, and no call reported
success; afterwards the signal is durable, and a repeated write changes nothing. Of the host whose handler sends: the
signal is part of that commit, or of none. Of the host whose handler waits: the event stays until its record is durable,
so the next owner delivers the same signals, each once, at the same places among all other events.

Invariants:
    1. Signals of a name are handed out in the order of `events`, which is the order sent for each sender, to waits in
       the order in which they began; a wait that was given up gets none.
    2. Signals that are left when the invocation ends are dropped with it.
    3. Signals that no wait has taken are bounded by count and bytes: beyond that the newest is dropped with a warning,
       and is in no journal, so that a replay sees the kept signals. The store cannot count them; their sender does not
       hear of it.
"""

import logging
from collections import deque
from collections.abc import Collection
from typing import Any

from actors.loop.coroutines import HandlerWait
from actors.loop.loop import DeterministicLoop, EntryFuture
from actors.values import outcomes
from actors.values.values import Scope
from journal.records import Event, EventKind, unpack
from journal.store import NamespaceLimits

logger = logging.getLogger("actors")


def is_early(waiting: Collection[Event], signal: Event, limits: NamespaceLimits) -> bool:
    """Whether a signal finds no room among the events of an invocation that does not execute."""
    if len(waiting) >= limits.signals_max:
        return True
    if len(signal.payload) <= limits.signals_bytes_max // limits.signals_max:  # so many of them take no more
        return False
    taken = sum(len(event.payload) for event in waiting if event.kind is EventKind.SIGNAL)
    return taken + len(signal.payload) > limits.signals_bytes_max


def dropped(where: str, payload: bytes, limits: NamespaceLimits) -> None:
    """Log that a signal is dropped."""
    (name,), _ = unpack(payload)
    logger.warning(
        "%s: a signal %r was dropped: %s or more signals, or %s or more bytes of them, wait for it to ask for them "
        "(signals_max, signals_bytes_max): let it ask sooner, or its senders wait for an answer",
        *(where, name, f"{limits.signals_max:,}", f"{limits.signals_bytes_max:,}"),
    )


class Signals:
    """The signals of one execution."""

    def __init__(self, loop: DeterministicLoop, scope: Scope, limits: NamespaceLimits) -> None:
        self._loop, self._scope, self._limits = loop, scope, limits
        self._kept: dict[str, deque[bytes]] = {}
        """Signals that no wait has taken, by name."""
        self._count = self._bytes = 0
        self._asking: dict[str, deque[tuple[EntryFuture, Any]]] = {}

    def ask(self, name: str, annotation: Any) -> HandlerWait[Any]:
        """Return the wait for the next signal of a name."""
        wait = self._loop.entry_future()
        kept = self._kept.get(name)
        if kept:
            outcome = kept.popleft()
            self._count, self._bytes = self._count - 1, self._bytes - len(outcome)
            self._hand_out(wait, outcome, annotation)
        else:
            self._asking.setdefault(name, deque()).append((wait, annotation))
        return wait

    def has_room(self, payload: bytes) -> bool:
        """Whether a wait takes the signal, or it may be kept."""
        if self._count < self._limits.signals_max and self._bytes + len(payload) <= self._limits.signals_bytes_max:
            return True
        (name,), _ = unpack(payload)
        return any(not wait.done() for wait, _ in self._asking.get(name, ()))

    def take(self, payload: bytes) -> None:
        """Take a signal: hand it to the first wait, or keep it."""
        (name,), outcome = unpack(payload)
        asking = self._asking.get(name)
        while asking:
            wait, annotation = asking.popleft()
            if not wait.done():
                self._hand_out(wait, outcome, annotation)
                return
        self._kept.setdefault(name, deque()).append(outcome)
        self._count, self._bytes = self._count + 1, self._bytes + len(outcome)

    def _hand_out(self, wait: EntryFuture, outcome: bytes, annotation: Any) -> None:
        try:
            wait.set_result(outcomes.decoded(outcome, annotation, self._scope))
        except Exception as error:  # noqa: BLE001  # a value's class may raise anything as it is read
            wait.set_exception(error)
