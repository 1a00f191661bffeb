"""Shard: an owned shard in the memory of its host: activations, open invocations, turns.

Owns the activations, the invocations in memory and their turns, and routes every message and event that the host reads.
Does not own the executions (`attempts`), the next commit (`staging`), reading and writing the store, nor the lease.

Invariants:
    1. At most one exclusive invocation of a key is under way, and they start in the order of their inbox ids
       (promise 2).
    2. An invocation that fell asleep is read again only when its sleep is durable; an ended invocation is never read.
    3. All methods are synchronous and run on the host's loop: no other code ever sees a change of a shard half done.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import Context
from functools import partial
from itertools import islice

from actors.activation.activation import Activation
from actors.activation.open_invocation import OpenInvocation
from actors.activation.pauses import COMMANDS, answer, command_in
from actors.activation.services import Services
from actors.activation.staging import CommitBudget, Staging, Unwritten
from actors.activation.watches import change_events
from actors.blocks.cancel import ENDING, ended_before, ending_in, killed, never_begun, while_paused
from actors.blocks.signals import dropped, is_early
from journal.ids import Epoch, Shard
from journal.records import Event, EventKind, Message, Record, time_of
from journal.store import Committed, Cursor, Dormant, Finish, Loaded, Sleep

from .attempts import Attempts
from .cancels import Cancels
from .class_loading import ClassLoader
from .expiries import Expiries
from .isolation import serving

logger = logging.getLogger("actors")


class OwnedShard:
    """A shard of this host, from the grant of its lease until it is lost or handed over."""

    def __init__(self, services: Services, shard: Shard, epoch: Epoch, number: int, leased: Callable[[], bool]) -> None:
        self._services, self.shard, self.epoch = services, shard, epoch
        self.leased = leased
        """Whether the lease holds."""
        self.cursor = Cursor("0-0", "0-0")
        self.staging = Staging(shard, epoch, number, services.surroundings.now_ms, services.wake_writer)
        self._attempts = Attempts(services, self.staging, self, leased)
        self.in_flight: dict[str, OpenInvocation] = {}
        self.activations: dict[str, Activation] = {}
        self.failed: Callable[[BaseException], None] = partial(services.failed, self)
        """Step down: a change of this shard failed half-way, and no invocation is known as the cause."""
        self.cancels = Cancels(self._attempts, self.in_flight, self.activations, self.failed)
        self.recovered: dict[str, list[tuple[str, bytes]]] = {}
        """The entries of `journal` when the shard was taken over, by invocation."""
        self.next_due_ms = 0
        """The time of the next due timer, as far as is known; 0 if there is none."""
        self.is_recovered = False
        """Whether every invocation that began before the takeover is known; from here on the shard is read normally."""
        self.is_lost = False
        self.patrolled = 0
        """How far the shard was searched for invocations that the store has lost."""
        self.is_draining = False
        """Whether it is being handed over: nothing new begins, and waiting invocations stay in the store."""
        self._asleep: dict[str, list[Event]] = {}
        """Invocations whose sleep is being written, with the events that came since."""
        self._waking: dict[str, list[Event]] = {}
        """Invocations that are being read from their hashes, with the events that woke them."""
        self._unread: dict[str, list[Event]] = {}
        """Events of invocations whose messages are still unread, further on in the inbox."""
        self._delayed: dict[str, list[Event]] = {}
        """Events of invocations whose messages come into the inbox when they are due."""
        self._keeping = (self._asleep, self._waking, self._unread, self._delayed)
        self._ending: set[str] = set()
        """Invocations whose end is being written: until then their hashes still say that they are asleep."""
        self._paused: dict[str, list[str]] = {}
        """Ids of events that lie in the store for paused invocations; the end of the invocation deletes them."""
        self._paused_bytes: dict[str, int] = {}
        self._classes = ClassLoader(services, self.staging, self._attempts, self._sort, self.load_again)
        self._expiries: Expiries | None = None
        """Made with the first expiry."""
        self._runnable: deque[Activation] = deque()
        self._is_turning = False

    # Arrivals

    @serving
    def accept(self, inbox_id: str, data: bytes) -> None:
        """Take a message from the inbox, with the events that wait for it."""
        try:
            message = Message.parse(data)
        except Exception:
            # Its invocation is unknown then. An owner with a version that can read it takes it from the inbox.
            logger.exception("shard %d: message %s of its inbox cannot be read, and stays there", self.shard, inbox_id)
            return
        if message.id in self.in_flight or self.is_draining:
            return
        events: list[Event] = []
        if self._unread or self._waking or self._delayed:
            for waiting in (self._waking, self._unread, self._delayed):
                events += waiting.pop(message.id, ())
        ending = ending_in(events) if events else None
        has_begun = message.id in self.recovered
        if ending is None and not has_begun and self._is_early(message, inbox_id):
            self._asleep[message.id] = list(events)
            self.staging.delayed(message, inbox_id)
            return
        before = None
        if message.due_ms and not has_begun:
            before = ended_before(inbox_id, message.due_ms, [*events, *self.cancels.announced.get(message.id, ())])
        if before is not None:
            self.cancels.end_later(message.id, before, never_begun(before))
        elif ending is EventKind.KILL:
            self.cancels.end_later(message.id, ending, killed())
        run = OpenInvocation(message, self.shard, inbox_id)
        run.pending.extend(events)
        if has_begun:
            self._adopt(run, self._recovered_of(message.id))
            self._attempts.end_back_off(run)
        self._admit(run)

    def _is_early(self, message: Message, inbox_id: str) -> bool:
        """Whether a message is not due; ids stand still while a store's clock that was set back catches up."""
        due_ms = message.due_ms
        return due_ms > 0 and (due_ms > time_of(inbox_id) or due_ms > self._services.surroundings.now_ms())

    def _adopt(self, run: OpenInvocation, found: list[tuple[str, bytes]]) -> None:
        """Give an invocation its journal; if that cannot be read, set aside this invocation alone."""
        if not found:
            return
        ids = [*run.journal, *(id_ for id_, _ in found)]
        try:
            run.adopt([(id_, Record.parse(data)) for id_, data in found])
        except Exception as error:  # noqa: BLE001  # the bytes may be of any origin
            run.forget_journal(ids)
            self._services.suspects.cannot_read(self.shard, run.id, error, self._services.surroundings.now_ms())

    def _recovered_of(self, id_: str) -> list[tuple[str, bytes]]:
        found = self.recovered.pop(id_, [])
        if self._expiries is not None and not self.recovered:
            for target in self._expiries.waiting:
                self._services.loop.call_soon(self._sort, self._activation(target))
        return found

    def expect(self, unread: Iterable[str]) -> None:
        """At the takeover: keep the events of these invocations until their messages are read from the inbox."""
        for id_ in unread:
            self._unread[id_] = []

    def _admit(self, run: OpenInvocation, *, first: bool = False) -> None:
        self.in_flight[run.id] = run
        activation = self._activation(run.message.target)
        if activation.arrivals is None:
            activation.arrivals = deque((run,))
        elif first:
            activation.arrivals.appendleft(run)
        else:
            activation.arrivals.append(run)
        self._sort(activation)

    def _activation(self, target: str) -> Activation:
        activation = self.activations.get(target)
        if activation is None:
            activation = self.activations[target] = Activation(self.shard, target, self._services.now())
        return activation

    @serving
    def receive(self, event: Event) -> None:
        """Take an event: deliver it, keep it until later, or wake its invocation."""
        if self.is_draining:
            return
        id_ = event.invocation
        if event.kind is EventKind.NOTICE:
            self.staging.notice(id_, event.payload, [event.id])
            return
        if event.kind is EventKind.UNREADABLE:
            logger.error("shard %d: event %s cannot be read, and stays there", self.shard, event.id)
            return
        if event.kind is EventKind.EXPIRE:
            self._expiries = self._expiries or Expiries(self.staging, partial(self._services.fetcher.load, self))
            self._expiries.add(event)
            self._sort(self._activation(id_))
            return
        run = self.in_flight.get(id_)
        if event.kind is EventKind.SIGNAL and self._is_dropped(event, run):
            return
        if run is not None:
            if event.kind is EventKind.PROBE and self._attempts.deadlocks.is_taken(run, event):
                return
            run.pending.append(event)
            if event.kind in ENDING and self.cancels.try_end(run, event.kind):
                return
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
        elif id_ in self._unread:
            self._unread[id_].append(event)
        elif id_ in self._delayed:
            self._delayed[id_].append(event)
            if event.kind in ENDING:
                self.staging.hasten(id_)
        else:
            self._fetch_dormant(id_, [event])

    def _is_dropped(self, event: Event, run: OpenInvocation | None) -> bool:
        """Drop a signal beyond the limit of an invocation without an execution (an execution checks its own)."""
        id_ = event.invocation
        if run is not None:
            waiting = run.pending if run.execution is None else ()
        else:
            waiting = next((kept[id_] for kept in self._keeping if id_ in kept), ())
        if not is_early(waiting, event, self._services.surroundings.limits):
            return False
        self._drop(event)
        return True

    def _drop(self, signal: Event) -> None:
        dropped(signal.invocation, signal.payload, self._services.surroundings.limits)
        self.staging.stray([signal.id])

    def wake(self, id_: str) -> None:
        """Read an invocation asleep without an event for it: another journal names it, or it has to let a call in."""
        if id_ not in self._waking and id_ not in self._asleep:
            self._fetch_dormant(id_, [])

    def _fetch_dormant(self, id_: str, events: list[Event]) -> None:
        self._waking[id_] = events
        self._services.fetcher.wake(self, id_, events)

    @serving
    def woken(self, id_: str, events: list[Event], dormant: Dormant | None, *, is_unread: bool, code: str = "") -> None:
        """Take an invocation from its hash; `dormant` is None if its message is unread, or if it has ended."""
        if self._waking.get(id_) is not events:
            return  # its message came in meanwhile, and took the events
        del self._waking[id_]
        message, ending = self._message_of(id_, dormant), ending_in(events)
        if dormant is not None and message is None:
            self._keep_for_paused(id_, events)
            return
        if is_unread:
            self._unread[id_] = events
        elif message and dormant and message.due_ms and not (dormant.records or dormant.paused):
            self._delayed[id_] = events
            if ending is not None:
                self.staging.hasten(id_)
        elif dormant is None or message is None:
            self.staging.stray([event.id for event in events])
        elif dormant.paused and ending is None and command_in(events) is None:
            self._keep_for_paused(id_, self._attempts.deadlocks.without_probes(events))
        else:
            run = OpenInvocation(message, self.shard, dormant.inbox_id, asleep=True)
            self._adopt(run, dormant.records)
            run.journal = []  # these records lie in its hash
            if dormant.paused and ending is None:
                if not self.is_draining:  # otherwise the next owner answers
                    self._no_longer_paused(id_)
                    self._asleep[id_] = answer(run, events, dormant, code, self.staging)
                return
            if dormant.paused and ending is not None:
                self.cancels.end_later(id_, ending, while_paused(ending, dormant.paused))
            elif ending is EventKind.KILL:
                self.cancels.end_later(id_, ending, killed())
            run.spent += self._no_longer_paused(id_)
            self._adopt(run, self._recovered_of(id_))
            # If it was paused, the command is answered already, and only wakes it here.
            host_only = (EventKind.RESTART,) if run.backing_off or run.tries else COMMANDS
            run.spent += [event.id for event in events if event.kind in host_only]
            run.pending.extend(event for event in events if event.kind not in host_only)
            self._attempts.end_back_off(run)
            self._admit(run, first=True)

    def _message_of(self, id_: str, dormant: Dormant | None) -> Message | None:
        try:
            return None if dormant is None else Message.parse(dormant.message)
        except Exception as error:  # noqa: BLE001  # the bytes may be of any origin
            self._services.suspects.cannot_read(self.shard, id_, error, self._services.surroundings.now_ms())
            return None

    def _keep_for_paused(self, id_: str, events: Iterable[Event]) -> None:
        """Leave events in the store, except for signals beyond their limit."""
        ids, size = self._paused.setdefault(id_, []), self._paused_bytes.get(id_, 0)
        limits = self._services.surroundings.limits
        for event in events:
            size += len(event.payload)
            if event.kind is EventKind.SIGNAL and (len(ids) >= limits.signals_max or size > limits.signals_bytes_max):
                size -= len(event.payload)
                self._drop(event)
            else:
                ids.append(event.id)
        self._paused_bytes[id_] = size

    def _no_longer_paused(self, id_: str) -> list[str]:
        self._paused_bytes.pop(id_, None)
        return self._paused.pop(id_, [])

    @serving
    def loaded(self, activation: Activation, found: Loaded) -> None:
        """Take an object's state."""
        if self._expiries is not None and self._expiries.has_missed(activation):
            return
        before = activation.fields or {}
        activation.loading = False
        activation.fields, activation.held_by, activation.watches = found.fields, found.held_by, None
        if activation.stale:
            self._tell_watching(activation, before)
        self._sort(activation)

    def _tell_watching(self, activation: Activation, before: dict[str, bytes]) -> None:
        """After expired state was read again: tell the watchers that came meanwhile, and deliver the events held."""
        activation.stale, now = False, activation.fields or {}
        changed = [name for name in before.keys() | now.keys() if before.get(name) != now.get(name)]
        if (posted := change_events(activation, changed)) is not None:
            self.staging.tell("", list(posted.events))
        for run in list(activation.sharing):
            if run.pending:
                self._attempts.deliver(run)

    # Sorting arrivals: load the class, then queue, begin or reject

    def _sort(self, activation: Activation) -> None:
        if activation.loading or self.is_lost:
            return
        if activation.fields is None:
            activation.loading = True
            self._services.fetcher.load(self, activation)
            return
        if self.cancels.to_end:
            self.cancels.end_ready(run.id for run in list(activation.arrivals or ()))
        while activation.arrivals and not activation.loading:
            run = activation.arrivals[0]
            found = self._classes.of(run, activation)
            if found is None:
                activation.loading = True
                self._services.spawn(self._classes.fetch(run, activation), Context())
                return
            activation.arrivals.popleft()
            name = run.message.handler
            run.declared, run.handler = found, found.handlers.get(name) or found.built_in(name)
            self._place(activation, run)
        activation.arrivals = activation.arrivals or None
        if activation.mailbox or self._expiries is not None:
            self._turn(activation)

    def _place(self, activation: Activation, run: OpenInvocation) -> None:
        assert run.declared is not None
        handler = run.handler
        if run.is_misdirected(self._services.surroundings.limits.shards):
            activation.sharing.add(run)
            self._attempts.reject(run, activation, run.misdirected())
            return
        run.policy = self._services.policy_of(handler, run.declared.options.policy)
        if run.policy.keeps or run.message.keep_ms:
            run.message.keep_ms = int(run.policy.retention.total_seconds() * 1000)
        run.exclusive = handler.exclusive and activation.key is not None
        if not run.exclusive:
            activation.sharing.add(run)
            self._attempts.begin(run, activation)
        elif (run.asleep and activation.held_by == run.id) or self._is_next(run, activation):
            activation.current = run
            self._attempts.begin(run, activation)
        elif run.pending and activation.precedes(run) and ending_in(run.pending) is not None:
            self._attempts.end_at_once(run, activation, never_begun(EventKind.CANCEL), EventKind.CANCEL)
        else:
            activation.enqueue(run, self._services.limits.queue_in_memory)
            if run.message.chain:
                self._attempts.queued(run, activation)

    def _is_next(self, run: OpenInvocation, activation: Activation) -> bool:
        """Whether it has the turn at once, as most have; otherwise the mailbox decides (`_next`)."""
        if activation.mailbox or activation.current is not None or activation.held_by or run.message.chain:
            return False
        return not (run.asleep or run.pending or self._expiries is not None or self.is_draining or self.is_lost)

    # Turns (`turns.Turns`)

    def _turn(self, activation: Activation) -> None:
        """Give the turn to the next invocation, without recursion: a handler that never waits ends at once."""
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
        while not (self.is_draining or self.is_lost):
            if self._expiries is not None and self._expiries.hold(activation, is_known=not self.recovered):
                return
            if not (activation.mailbox and activation.is_free):
                return
            run = activation.mailbox[0]
            if run.asleep and (run := activation.first_awake()) is None:
                return
            if not run.message.arguments:
                if not activation.loading:
                    activation.loading = True
                    self._services.fetcher.refill(self, activation)
                return
            activation.dequeue(run)
            activation.current = run
            self._attempts.begin(run, activation)

    @serving
    def refilled(self, activation: Activation, messages: dict[str, bytes]) -> None:
        """Take the arguments of messages that had waited without them."""
        activation.loading = False
        # Only the first few, as requested: a look at all would make a long queue cost the square of its length.
        for run in islice(activation.mailbox or (), self._services.limits.queue_in_memory):
            data = messages.get(run.inbox_id)
            if data is not None:
                run.message = Message.parse(data)
        self._sort(activation)

    def ended(self, run: OpenInvocation, activation: Activation, /) -> None:
        """Pass the turn on."""
        self.in_flight.pop(run.id, None)
        self._ending.add(run.id)
        if self._attempts.reentry.waiting:
            self._attempts.reentry.drop(run)
        activation.sharing.discard(run)
        if activation.held_by == run.id:
            activation.held_by = ""
        activation.used_at = self._services.now()
        if activation.mailbox or self._expiries is not None:
            self._turn(activation)

    def left_memory(self, run: OpenInvocation, activation: Activation, /) -> None:
        """Keep the turn for an invocation asleep, and its events until its sleep is durable."""
        self._asleep[run.id] = list(run.pending)
        self.in_flight.pop(run.id, None)
        activation.sharing.discard(run)
        activation.used_at = self._services.now()
        if run.holds:
            activation.held_by, activation.current = run.id, None

    def activation_of(self, run: OpenInvocation, /) -> Activation:
        """Return the activation of an invocation."""
        return self.activations[run.message.target]

    def load_again(self, run: OpenInvocation, activation: Activation, /) -> None:
        """Look for the invocation's class once more."""
        activation.sharing.discard(run)
        self._admit(run)

    def renew(self, run: OpenInvocation, activation: Activation, /) -> None:
        """Begin the next attempt, with the newest code of its class."""
        if self._classes.renew(run, activation):
            self._attempts.begin(run, activation)
        else:
            self._services.spawn(self._classes.fetch_newest(run, activation), Context())

    # For the writer

    @serving
    def take(self, incarnation: str, room: CommitBudget) -> Unwritten | None:
        """Return the next part of a commit, if there is something to write."""
        return None if self.is_lost or self.staging.is_empty else self.staging.take(incarnation, room)

    @serving
    def settled(self, unwritten: Unwritten, answer: Committed) -> None:
        """Take the acknowledgement of a part, and go on with the invocations that waited for it."""
        self.staging.acknowledge(unwritten, answer)
        self._note_due(unwritten)
        for item in unwritten.items:
            invocation, end = item.progress.invocation, item.progress.end
            if isinstance(end, Finish):
                self._ending.discard(invocation)
            elif isinstance(end, Sleep):
                events = self._asleep.pop(invocation, [])
                if events or self._attempts.reentry.is_wanted(item.progress.target, invocation):
                    self._fetch_dormant(invocation, events)
        if self._expiries is not None:
            self._expiries.read()
        self._attempts.acknowledged(unwritten.items)
        if self.cancels.to_end:
            self.cancels.end_ready(list(self.cancels.to_end))

    def _note_due(self, unwritten: Unwritten) -> None:
        # Only when they are durable: an earlier look at the store would miss them, and reset `next_due_ms`.
        due_ms = min((due_ms for item in unwritten.items for due_ms, _ in item.progress.timers), default=0)
        if due_ms and (not self.next_due_ms or due_ms < self.next_due_ms):
            self.next_due_ms = due_ms
            self._services.wake_timers()

    # Leaving

    def collect(self, idle_since: float) -> None:
        """Drop the objects from memory that were not used since then."""
        idle = [
            target
            for target, activation in self.activations.items()
            if activation.is_idle and activation.used_at <= idle_since and activation.staged <= self.staging.settled
        ]
        for target in idle:
            del self.activations[target]

    def drain(self) -> None:
        """Start nothing more."""
        self.is_draining = self._attempts.is_draining = True

    def hold(self, is_held: bool) -> None:
        """Start no step while held; afterwards start the steps that were held back. Everything else goes on."""
        self._attempts.hold(is_held)

    @property
    def acting_since_ms(self) -> int:
        """When the longest running action of a step began; 0 if none runs."""
        steps = (step for run in self.in_flight.values() for step in run.running.values())
        return min((step.acting_since_ms for step in steps if step.acting_since_ms), default=0)

    @property
    def is_acting(self) -> bool:
        """Whether a step is under way or its outcome unwritten; a step between two attempts does not count."""
        return any(run.is_acting for run in self.in_flight.values())

    @property
    def is_drained(self) -> bool:
        """Whether no step is under way and all staged progress is durable."""
        return not (self.staging.backlog or self.is_acting)

    def lose(self) -> None:
        """Drop everything at once: another host owns the shard now, or soon."""
        self.is_lost = True
        self._attempts.lose()
        for run in self.in_flight.values():
            if run.execution is not None:
                run.execution.drop()
            self._attempts.forget(run)
        self.in_flight.clear()
        self.activations.clear()
