"""Activation: an object in memory, and the invocations of it that are open.

Owns the turn and the cached state of one object. An `OpenInvocation` owns the durable part of one invocation, its
attempt, and the content of its next commit. Neither does I/O: the host calls them.

Invariants:
    1. At most one exclusive invocation has the turn, from its start to its outcome, sleep included (promise 2); an
       invocation that it lets in runs in its place.
    2. `fields` is the state of the last commit handed to the writer; a dict that an execution was given never changes.
    3. Of the messages that wait for their turn only the first `queue_in_memory` keep their arguments.
"""

from collections import deque

from journal.ids import Shard, key_of

from .open_invocation import OpenInvocation


class Activation:
    """An object, or a service, in memory."""

    __slots__ = (
        "arrivals",
        "current",
        "fields",
        "held_by",
        "key",
        "loading",
        "mailbox",
        "shard",
        "sharing",
        "stale",
        "staged",
        "target",
        "used_at",
        "watches",
    )

    def __init__(self, shard: Shard, target: str, now: float) -> None:
        self.shard, self.target, self.used_at = shard, target, now
        self.key = key_of(target)
        self.fields: dict[str, bytes] | None = {} if self.key is None else None
        """The state; None until it is loaded."""
        self.watches: dict[str, set[str]] | None = None
        """The watches among the fields, with the names that each watches (`watches`); None until a commit asks."""
        self.loading = False
        self.stale = False
        """Some state has expired, and the state is being read again; waiting invocations hear of it afterwards."""
        self.held_by = ""
        """The invocation asleep that has the turn."""
        # An empty deque takes 760 bytes, so it exists only while it has elements.
        self.arrivals: deque[OpenInvocation] | None = None
        """Invocations that arrived and are not sorted yet: their class may have to be fetched."""
        self.mailbox: deque[OpenInvocation] | None = None
        """Exclusive invocations that wait for their turn."""
        self.current: OpenInvocation | None = None
        """The exclusive invocation in memory that has the turn."""
        self.sharing: set[OpenInvocation] = set()
        """Invocations that need no turn: of shared handlers and of services."""
        self.staged = 0
        """Number, in the shard, of the last commit handed to the writer for this object."""

    @property
    def is_idle(self) -> bool:
        """Whether it can leave memory at any time."""
        return not (self.arrivals or self.mailbox or self.current or self.sharing or self.loading)

    @property
    def is_free(self) -> bool:
        """Whether the next exclusive invocation may start."""
        return self.current is None and not self.held_by

    def enqueue(self, run: OpenInvocation, most: int) -> None:
        """Add an invocation to the mailbox; if `most` are there already, drop its arguments (they are read again).

        A call that may be let in, or that was asleep, keeps them.
        """
        if self.mailbox is None:
            self.mailbox = deque()
        elif len(self.mailbox) >= most and not (run.message.chain and (run.asleep or run.handler.reentrant)):
            run.message.arguments = b""
        self.mailbox.append(run)

    def first_awake(self) -> OpenInvocation | None:
        """Return the invocation that has the next turn; invocations that were asleep wait to be let in instead."""
        return next((run for run in self.mailbox or () if not run.asleep), None)

    def dequeue(self, run: OpenInvocation) -> None:
        """Remove an invocation from the mailbox."""
        assert self.mailbox is not None
        if self.mailbox[0] is run:
            self.mailbox.popleft()
        else:
            self.mailbox.remove(run)
        self.mailbox = self.mailbox or None

    def precedes(self, run: OpenInvocation) -> bool:
        """Whether another invocation has the turn, now or next: then this invocation has nothing durable yet."""
        is_first = not self.mailbox or self.mailbox[0] is run
        return not run.records and not (is_first and self.is_free)

    def write(self, changes: dict[str, bytes | None]) -> None:
        """Put the changes of a commit into the cached state; a dict that an execution was given never changes."""
        assert self.fields is not None
        fields = dict(self.fields) if self.sharing or self.current is not None else self.fields
        for name, value in changes.items():
            if value is None:
                fields.pop(name, None)
            else:
                fields[name] = value
        self.fields = fields
