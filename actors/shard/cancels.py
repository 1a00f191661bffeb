"""Cancels: cancels and kills that end an invocation without asking its handler.

Owns the invocations whose end still waits for something. Does not own the work of ending (`attempts`), nor the
difference between a cancel and a kill (`cancel`).

Invariant: an invocation listed here ends at the first look after it has everything its end needs: the state of its
object, which names the holder, and the commit that carries its calls.
"""

from collections.abc import Callable, Iterable

from actors.activation.activation import Activation
from actors.activation.open_invocation import OpenInvocation, Renewal
from actors.blocks.cancel import killed, never_begun, while_paused
from actors.errors import Cancelled
from journal.records import Event, EventKind

from .attempts import Attempts
from .isolation import serving


class Cancels:
    """The cancels and kills of one shard."""

    def __init__(
        self,
        attempts: Attempts,
        in_flight: dict[str, OpenInvocation],
        activations: dict[str, Activation],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._attempts, self._in_flight, self._activations = attempts, in_flight, activations
        self.failed = failed
        self.to_end: dict[str, tuple[EventKind, Cancelled]] = {}
        """Invocations to end as soon as everything that their end needs is known, with the kind and the error."""
        self.announced: dict[str, list[Event]] = {}
        """Cancels and kills of the present read; its messages are taken first."""

    def announce(self, event: Event) -> None:
        """Note a cancel or kill for its message, which may come with the same read."""
        self.announced.setdefault(event.invocation, []).append(event)

    def end_later(self, id_: str, kind: EventKind, error: Cancelled) -> None:
        """Let an invocation end in this way at the next look; a repetition changes nothing."""
        if id_ not in self.to_end or self.to_end[id_][0] is not kind:
            self.to_end[id_] = kind, error

    def try_end(self, run: OpenInvocation, kind: EventKind) -> bool:
        """End an invocation by a cancel or kill, if that is possible without its handler; return whether."""
        activation = self._activations[run.message.target]
        if kind is EventKind.KILL:
            self.end_later(run.id, kind, killed())
            self.end_ready([run.id])
            return True
        if run.renewal is Renewal.MISSING:
            self.end_later(run.id, kind, while_paused(kind, "no program has its code"))
            self.end_ready([run.id])
            return True
        if activation.mailbox and run in activation.mailbox and activation.precedes(run):
            activation.mailbox.remove(run)
            self._attempts.end_at_once(run, activation, never_begun(kind), kind)
            return True
        return False

    @serving
    def try_end_early(self, event: Event) -> bool:
        """Let a cancel or kill overtake events read before it, if its invocation waits for its turn; return whether.

        Otherwise a cancelled queue would give each of its invocations the turn, only to cancel it a moment later.
        """
        run = self._in_flight.get(event.invocation)
        if run is None or run.execution is not None or run.asleep or self._attempts.is_draining:
            return False
        activation = self._activations[run.message.target]
        if not (activation.mailbox and activation.precedes(run)):
            return False
        run.pending.append(event)
        if self.try_end(run, event.kind):
            return True
        run.pending.pop()
        return False

    def end_ready(self, ids: Iterable[str]) -> None:
        """Look at these invocations, and end each that has everything its end needs."""
        for id_ in ids:
            if id_ not in self.to_end:
                continue
            run = self._in_flight.get(id_)
            if run is None:  # its attempt has ended it meanwhile
                del self.to_end[id_]
                continue
            activation = self._activations[run.message.target]
            if activation.fields is None:
                continue  # the holder of the object is not read yet: this is repeated when it is
            if run.execution is None and run.unsettled:
                continue  # a commit under way may carry its calls: this is repeated when that is durable
            for queue in (activation.arrivals, activation.mailbox):
                if queue and run in queue:
                    queue.remove(run)
            kind, error = self.to_end.pop(id_)
            self._attempts.end_at_once(run, activation, error, kind)
