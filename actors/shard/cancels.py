"""Ends: invocations of one shard that end at once, because somebody asked for it, and not their handlers.

Owns which of them still wait for something that their end needs. Does not own: what an end is (`attempts`), nor how a
cancel and a kill differ (`cancel`).

Invariant: who waits here ends with the first look after what it waits for is there: its object's state, which says who
holds the object, or the commit with which calls leave it.
"""

from collections.abc import Callable, Iterable

from actors.activation.activation import Activation, InFlight, Renewal
from actors.blocks.cancel import killed, never_begun, while_paused
from actors.errors import Cancelled
from journal.records import Event, EventKind

from .attempts import Attempts
from .isolation import serving


class Ends:
    """The ends of one shard that are asked for from outside."""

    def __init__(
        self,
        attempts: Attempts,
        in_flight: dict[str, InFlight],
        activations: dict[str, Activation],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._attempts, self._in_flight, self._activations = attempts, in_flight, activations
        self.failed = failed
        self.doomed: dict[str, tuple[EventKind, Cancelled]] = {}
        """Invocations that end as soon as all is known of them that their end needs: by what, and how."""
        self.foreseen: dict[str, list[Event]] = {}
        """Ends that one read has brought together with messages, which are taken first."""

    def foresee(self, event: Event) -> None:
        """Let an end be known to the message that it is for, should that come with the same read."""
        self.foreseen.setdefault(event.invocation, []).append(event)

    def doom(self, id_: str, kind: EventKind, error: Cancelled) -> None:
        """Let an invocation end so with the next look; the same once more says nothing new."""
        if id_ not in self.doomed or self.doomed[id_][0] is not kind:
            self.doomed[id_] = kind, error

    def ends(self, run: InFlight, kind: EventKind) -> bool:
        """Whether a cancel or a kill is done with, or will be: its handler is not to be told."""
        activation = self._activations[run.message.target]
        if kind is EventKind.KILL:
            self.doom(run.id, kind, killed())
            self.end([run.id])
            return True
        if run.renewal is Renewal.MISSING:
            self.doom(run.id, kind, while_paused(kind, "no program has its code"))
            self.end([run.id])
            return True
        if activation.mailbox and run in activation.mailbox and activation.precedes(run):
            activation.mailbox.remove(run)
            self._attempts.end_at_once(run, activation, never_begun(kind), kind)
            return True
        return False

    @serving
    def ends_early(self, event: Event) -> bool:
        """Whether an end is done with before what was read before it: it ends one that waits for its turn.

        Else the ends of a whole queue would give each of it the turn, to be told a moment later.
        """
        run = self._in_flight.get(event.invocation)
        if run is None or run.execution is not None or run.asleep or self._attempts.is_draining:
            return False
        activation = self._activations[run.message.target]
        if not (activation.mailbox and activation.precedes(run)):
            return False
        run.pending.append(event)
        if self.ends(run, event.kind):
            return True
        run.pending.pop()
        return False

    def end(self, ids: Iterable[str]) -> None:
        """Look at these, and end those that wait for nothing more."""
        for id_ in ids:
            if id_ not in self.doomed:
                continue
            run = self._in_flight.get(id_)
            if run is None:  # its attempt has ended it meanwhile
                del self.doomed[id_]
                continue
            activation = self._activations[run.message.target]
            if activation.fields is None:
                continue  # who holds the object is not read yet: asked again when it is
            if run.execution is None and run.unsettled:
                continue  # calls may leave it with a commit that is under way: asked again when that is durable
            for queue in (activation.arrivals, activation.mailbox):
                if queue and run in queue:
                    queue.remove(run)
            kind, error = self.doomed.pop(id_)
            self._attempts.end_at_once(run, activation, error, kind)
