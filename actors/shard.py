"""Shard: what a host holds in memory of one shard that it owns, and whose turn it is.

Owns: activations, the invocations in memory, their turns, and what becomes of everything that the host reads. Does not
own: the executions (`attempts`), the next commit (`staging`), reading and writing the store, nor the lease.

Invariants:
    1. Of a key's exclusive invocations one is under way, and they start in the order of their inbox ids (promise 2).
    2. An invocation that was laid to sleep is read again only when its sleep is durable, one that has ended never.
    3. All methods are synchronous and run on the host's loop: a shard is never half way through something.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import Context
from itertools import islice

from journal.entries import Event, EventKind, Message, Record, time_of
from journal.names import Epoch, Shard
from journal.store import Committed, Cursor, Dormant, Finish, Loaded

from .activation import Activation, InFlight
from .attempts import Attempts
from .errors import TerminalError
from .services import Services
from .staging import Staging, Unwritten

logger = logging.getLogger("actors")


class OwnedShard:
    """One shard of this host, from the grant of its lease until it is lost or handed over."""

    def __init__(self, services: Services, shard: Shard, epoch: Epoch, number: int, leased: Callable[[], bool]) -> None:
        self._services, self.shard, self.epoch = services, shard, epoch
        self.leased = leased
        """Whether the lease holds."""
        self.cursor = Cursor("0-0", "0-0")
        self.staging = Staging(shard, epoch, number, services.surroundings.now_ms, services.wake_writer)
        self._attempts = Attempts(services, self.staging, self, leased)
        self.in_flight: dict[str, InFlight] = {}
        self.activations: dict[str, Activation] = {}
        self.recovered: dict[str, list[tuple[str, Record]]] = {}
        """What `journal` held when the shard was taken over, by invocation."""
        self.next_due_ms = 0
        """When a timer is due next, as far as is known; 0 if none is."""
        self.is_recovered = False
        """Whether everything that was there at the takeover is in memory."""
        self.is_lost = False
        self._asleep: dict[str, list[Event]] = {}
        """Invocations whose sleep is being written, with the events that came since."""
        self._waking: dict[str, list[Event]] = {}
        """Invocations that are being read from their hashes, with the events that woke them."""
        self._early: dict[str, list[Event]] = {}
        """Events of invocations whose messages are still to be read: from behind in the inbox, or when they are due."""
        self._ending: set[str] = set()
        """Invocations whose end is being written: until then their hashes still say that they are asleep."""
        self._runnable: deque[Activation] = deque()
        self._is_turning = False

    # What comes in

    def accept(self, inbox_id: str, data: bytes, events: Iterable[Event] = ()) -> None:
        """Take a message from the inbox, after a takeover with the events that wait for it."""
        message = Message.parse(data)
        if message.id in self.in_flight or self.is_draining:
            return
        if self._early or self._waking:
            events = [*self._waking.pop(message.id, ()), *self._early.pop(message.id, ()), *events]
        if message.due_ms and message.due_ms > time_of(inbox_id):
            self._asleep[message.id] = list(events)
            self.staging.delayed(message, inbox_id)
            return
        run = InFlight(message, self.shard, inbox_id)
        run.pending.extend(events)
        if message.id in self.recovered:
            run.adopt(self.recovered.pop(message.id))
            self._attempts.end_back_off(run)
        self._admit(run)

    def accept_recovered(self, inbox_id: str, data: bytes, events: dict[str, list[Event]]) -> None:
        """Take a message that was there at the takeover, and from `events` what waits for it."""
        waiting = events.pop(Message.parse(data).id, [])
        self.accept(inbox_id, data, [event for event in waiting if event.kind is not EventKind.NOTICE])
        for event in waiting:
            if event.kind is EventKind.NOTICE:
                self.receive(event)

    def _admit(self, run: InFlight, *, first: bool = False) -> None:
        self.in_flight[run.id] = run
        activation = self.activations.get(run.message.target)
        if activation is None:
            activation = Activation(self.shard, run.message.target, self._services.now())
            self.activations[run.message.target] = activation
        if activation.arrivals is None:
            activation.arrivals = deque((run,))
        elif first:
            activation.arrivals.appendleft(run)
        else:
            activation.arrivals.append(run)
        self._sort(activation)

    def receive(self, event: Event) -> None:
        """Take an event: deliver it, keep it for its time, or wake whom it is for."""
        if self.is_draining:
            return
        id_ = event.invocation
        if event.kind is EventKind.NOTICE:
            self.staging.notice(id_, event.payload, [event.id])
            return
        run = self.in_flight.get(id_)
        if run is not None:
            run.pending.append(event)
            if run.backing_off:
                self._attempts.try_again(run)
            else:
                self._attempts.deliver(run)
        elif id_ in self._ending:
            self.staging.stray([event.id])
        elif id_ in self._asleep:
            self._asleep[id_].append(event)
        elif id_ in self._waking:
            self._waking[id_].append(event)
        elif id_ in self._early:
            self._early[id_].append(event)
        else:
            self._fetch_dormant(id_, [event])

    def wake(self, id_: str) -> None:
        """Ask for an invocation asleep although no event names it: its journal does."""
        if id_ not in self._waking:
            self._fetch_dormant(id_, [])

    def _fetch_dormant(self, id_: str, events: list[Event]) -> None:
        self._waking[id_] = events
        self._services.fetcher.wake(self, id_, events)

    def woken(self, id_: str, events: list[Event], dormant: Dormant | None, *, is_unread: bool) -> None:
        """Take an invocation that was read from its hash; it has none if its message is unread, or if it has ended."""
        if self._waking.get(id_) is not events:
            return  # its message came in meanwhile, and took the events
        del self._waking[id_]
        message = Message.parse(dormant.message) if dormant is not None else None
        if is_unread or (message and dormant and message.due_ms > time_of(dormant.inbox_id)):
            self._early[id_] = events
        elif dormant is None or message is None:
            self.staging.stray([event.id for event in events])
        elif not dormant.paused:
            run = InFlight(message, self.shard, dormant.inbox_id, asleep=True)
            run.adopt([(record_id, Record.parse(data)) for record_id, data in dormant.records])
            run.journal = []  # those lie in its hash
            run.adopt(self.recovered.pop(id_, []))
            run.pending.extend(events)
            self._attempts.end_back_off(run)
            self._admit(run, first=True)

    def loaded(self, activation: Activation, found: Loaded) -> None:
        """Take an object's state."""
        activation.loading = False
        activation.fields, activation.held_by = found.fields, found.held_by
        self._sort(activation)

    # Sorting: whose class is known, who needs a turn

    def _sort(self, activation: Activation) -> None:
        if activation.loading or self.is_lost:
            return
        if activation.fields is None:
            activation.loading = True
            self._services.fetcher.load(self, activation)
            return
        while activation.arrivals and not activation.loading:
            run = activation.arrivals[0]
            found = self._services.code.find(_type_of(run), run.message.code)
            if found is None:
                activation.loading = True
                self._services.spawn(self._fetch_code(activation, run), Context())
                return
            activation.arrivals.popleft()
            run.declared, run.handler = found, found.handlers.get(run.message.handler)
            self._place(activation, run)
        activation.arrivals = activation.arrivals or None
        self._turn(activation)

    async def _fetch_code(self, activation: Activation, run: InFlight) -> None:
        error: Exception | None = None
        try:
            await self._services.code.fetch(_type_of(run), run.message.code)
        except Exception as raised:  # noqa: BLE001  # the user's code may raise anything as it is loaded
            error = raised
        activation.loading = False
        if error is not None and not self.is_lost:
            assert activation.arrivals is not None
            activation.arrivals.remove(run)
            activation.sharing.add(run)
            if isinstance(error, TerminalError):
                self._attempts.reject(run, activation, error)
            else:
                self._attempts.fail(run, activation, error)
        self._sort(activation)

    def _place(self, activation: Activation, run: InFlight) -> None:
        assert run.declared is not None
        handler = run.handler
        if handler is None or run.declared.is_service != (activation.key is None):
            activation.sharing.add(run)
            self._attempts.reject(run, activation, _unknown(run))
            return
        run.policy = self._services.policy_of(handler, run.declared.options.policy)
        run.exclusive = handler.exclusive and activation.key is not None
        if not run.exclusive:
            activation.sharing.add(run)
            self._attempts.begin(run, activation)
        elif run.asleep:
            activation.held_by, activation.current = run.id, run
            self._attempts.begin(run, activation)
        else:
            if activation.mailbox is None:
                activation.mailbox = deque()
            elif len(activation.mailbox) >= self._services.limits.queue_in_memory:
                run.message.arguments = b""
            activation.mailbox.append(run)

    # Turns (`attempts.Turns`)

    def _turn(self, activation: Activation) -> None:
        """Give the turn to whoever is next, without recursion: a handler that never waits ends at once."""
        self._runnable.append(activation)
        if self._is_turning:
            return
        self._is_turning = True
        try:
            while self._runnable:
                self._next(self._runnable.popleft())
        finally:
            self._is_turning = False

    def _next(self, activation: Activation) -> None:
        while activation.mailbox and activation.is_free and not (self.is_draining or self.is_lost):
            run = activation.mailbox[0]
            if not run.message.arguments:
                if not activation.loading:
                    activation.loading = True
                    self._services.fetcher.refill(self, activation)
                return
            activation.mailbox.popleft()
            activation.mailbox = activation.mailbox or None
            activation.current = run
            self._attempts.begin(run, activation)

    def refilled(self, activation: Activation, messages: dict[str, bytes]) -> None:
        """Take the arguments of messages that had waited without them."""
        activation.loading = False
        # The first ones, as they were asked for: a look at all would make a long queue cost the square of its length.
        for run in islice(activation.mailbox or (), self._services.limits.queue_in_memory):
            data = messages.get(run.inbox_id)
            if data is not None:
                run.message = Message.parse(data)
        self._sort(activation)

    def ended(self, run: InFlight, activation: Activation, /) -> None:
        """Give the turn on."""
        self.in_flight.pop(run.id, None)
        self._ending.add(run.id)
        activation.sharing.discard(run)
        if activation.held_by == run.id:
            activation.held_by = ""
        activation.used_at = self._services.now()
        self._turn(activation)

    def left_memory(self, run: InFlight, activation: Activation, /) -> None:
        """Keep the turn for an invocation asleep, and its events until its sleep is durable."""
        self._asleep[run.id] = list(run.pending)
        self.in_flight.pop(run.id, None)
        activation.sharing.discard(run)
        activation.used_at = self._services.now()
        if run.exclusive:
            activation.held_by, activation.current = run.id, None

    def activation_of(self, run: InFlight, /) -> Activation:
        """Return the object that the invocation is of."""
        return self.activations[run.message.target]

    def load_again(self, run: InFlight, activation: Activation, /) -> None:
        """Look for the invocation's class once more."""
        activation.sharing.discard(run)
        self._admit(run)

    # What the writer asks

    def take(self, incarnation: str) -> Unwritten | None:
        """Return the next part of a commit, if there is something to write."""
        return None if self.is_lost or self.staging.is_empty else self.staging.take(incarnation)

    def settled(self, unwritten: Unwritten, answer: Committed) -> None:
        """Take the acknowledgement of a part: what waited for it goes on."""
        self.staging.acknowledge(unwritten, answer)
        self._note_due(unwritten)
        for item in unwritten.items:
            invocation, end = item.progress.invocation, item.progress.end
            if isinstance(end, Finish):
                self._ending.discard(invocation)
            elif end is not None:
                events = self._asleep.pop(invocation, [])
                if events:
                    self._fetch_dormant(invocation, events)
        self._attempts.acknowledged(unwritten.items)

    def _note_due(self, unwritten: Unwritten) -> None:
        # Not before they are durable: a look at the store that comes between would not find them, and forget.
        due_ms = min((due_ms for item in unwritten.items for due_ms, _ in item.progress.timers), default=0)
        if due_ms and (not self.next_due_ms or due_ms < self.next_due_ms):
            self.next_due_ms = due_ms
            self._services.wake_timers()

    # Leaving

    def collect(self, idle_since: float) -> None:
        """Let objects that nobody has used since leave memory."""
        idle = [
            target
            for target, activation in self.activations.items()
            if activation.is_idle and activation.used_at <= idle_since and activation.staged <= self.staging.settled
        ]
        for target in idle:
            del self.activations[target]

    @property
    def is_draining(self) -> bool:
        """Whether it is being handed over: nothing new begins, and what waits stays in the store."""
        return self._attempts.is_draining

    def drain(self) -> None:
        """Start nothing more."""
        self._attempts.is_draining = True

    @property
    def is_drained(self) -> bool:
        """Whether no step is under way and all that was staged is durable."""
        if self.staging.backlog:
            return False
        # A step that waits for its next attempt is not waited for: the next owner makes it.
        return not any(
            run.outcomes or run.settling or any(step.is_acting for step in run.running.values())
            for run in self.in_flight.values()
        )

    def lose(self) -> None:
        """Forget everything at once: another host owns the shard, or will."""
        self.is_lost = True
        self._attempts.lose()
        for run in self.in_flight.values():
            if run.execution is not None:
                run.execution.drop()
            self._attempts.forget(run)
        self.in_flight.clear()
        self.activations.clear()


def _type_of(run: InFlight) -> str:
    return run.message.target.partition("/")[0]


def _unknown(run: InFlight) -> TerminalError:
    assert run.declared is not None
    name, kind = run.declared.name, "service" if run.declared.is_service else "virtual object"
    if run.handler is not None:
        how = f"{name}.{run.message.handler}" if run.declared.is_service else f"{name}[key].{run.message.handler}"
        return TerminalError(f"{name} is a {kind}: call it as {how}", 404)
    return TerminalError(run.declared.without(run.message.handler), 404)
