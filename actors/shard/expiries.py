"""Expiries: state whose lifetime is over, from its event to the commit that clears it.

Owns the objects that have state to clear, and the objects that wait for that commit. Does not own turns (`shard`), nor
the timers (`lifetimes`).

An object that an exclusive invocation holds keeps its state until that invocation has ended; then, before the next
begins, it is cleared. It is not known here whether the state was written since its timer came due (the event may be
older than the lease), so the script that clears looks: if the timer is there again, the state was written, and nothing
is cleared. Nothing begins on the object until its state was read again. Handlers of a workflow that wait for a promise
would wait for ever: the same commit, if it clears, brings each a failure (410).

A death between two store calls. Before the commit is applied the event is still in `events`, and the next owner clears;
afterwards state and event are both gone. A write in between has set the timer again, in its own commit, so that the
event clears nothing.

Invariant: memory and store agree again before anything begins. The state is read when the clearing commit is durable,
with everything that shared handlers of a workflow (their promises) have staged since; and again, if they staged more
meanwhile.
"""

from collections.abc import Callable

from actors.activation.activation import Activation
from actors.activation.key_promises import rejections
from actors.activation.staging import Staging
from actors.activation.watches import expiry_events
from journal.records import Event


class Expiries:
    """The expiries of one shard."""

    def __init__(self, staging: Staging, load: Callable[[Activation], None]) -> None:
        self._staging, self._load = staging, load
        self._due: dict[str, list[Event]] = {}
        self._clearing: dict[str, tuple[int, Activation]] = {}
        """By object: the number of the last commit that clears, and the activation that waits for it."""
        self._reading: dict[str, int] = {}
        """By object whose state is being read: the number of the last commit that the read will show."""

    def add(self, event: Event) -> None:
        """Keep an event until its object is free."""
        self._due.setdefault(event.invocation, []).append(event)

    @property
    def waiting(self) -> list[str]:
        """The objects that have state to clear."""
        return list(self._due)

    def hold(self, activation: Activation, *, is_known: bool) -> bool:
        """Clear expired state, if the object is free; return whether nothing may begin on it yet.

        After a takeover the holder is unknown until every invocation with a journal is in memory.
        """
        target = activation.target
        if target in self._clearing or target in self._reading:
            return True
        if target not in self._due or not (is_known and activation.is_free) or _is_taken_over(activation):
            return False
        if not activation.loading:
            number = 0
            for event in self._due.pop(target):
                field = event.payload.decode("utf-8", "surrogatepass")
                told = expiry_events(activation, field) + ([] if field else rejections(activation))
                number = self._staging.expire(event, told)
            activation.loading = activation.stale = True
            self._clearing[target] = number, activation
        return True

    def read(self) -> None:
        """Ask for the state of objects whose clearing is durable, once."""
        for target, (number, activation) in list(self._clearing.items()):
            if max(number, activation.staged) <= self._staging.settled:
                del self._clearing[target]
                self._reading[target] = activation.staged
                self._load(activation)

    def has_missed(self, activation: Activation) -> bool:
        """Whether the state that was read lacks later commits; it is read again when they are durable."""
        shown = self._reading.pop(activation.target, activation.staged)
        if shown == activation.staged:
            return False
        self._clearing[activation.target] = activation.staged, activation
        self.read()
        return True


def _is_taken_over(activation: Activation) -> bool:
    """Whether the first in the mailbox had begun before the takeover."""
    return bool(activation.mailbox and activation.mailbox[0].records)
