"""Keys: every name in the store, spelled once, each with type, writer, reader and expiry.

The scripts build the same names from the prefix that they are given; the README prints `TABLE`.
"""

from dataclasses import dataclass

from .ids import Shard

OWN = "@"
"""First character of the names of fields that are not the user's: user code can neither read nor write them."""

TABLE: tuple[tuple[str, str, str], ...] = (
    (
        "<ns>:meta",
        "hash",
        "format, number of shards, limits; written once by the first program, read on connect; no expiry",
    ),
    ("<ns>:hosts", "hash", "incarnation → id, node, pid and a beat; written by hosts each second until they end"),
    ("<ns>:control", "stream", "wakes all hosts when leases or hosts change; at most about 100 entries"),
    ("<ns>:code", "hash", "object type → hash of its current code; written by drivers, read by hosts; no expiry"),
    ("<ns>:code:<hash>", "string", "code of user classes, by value; written once by drivers, read by hosts; no expiry"),
    ("<ns>:writer:<id>", "string", "a driver's last number and its answer; set by submits; expires after `session`"),
    (
        "<ns>:replies:<id>",
        "stream",
        "a driver's replies; added by commits, trimmed by submits; expires with the writer",
    ),
    ("<ns>:<shard>:inbox", "stream", "messages of invocations that have not finished and never left memory"),
    (
        "<ns>:<shard>:events",
        "stream",
        "events of open invocations: replies, due timers, signals, …; expiries of state",
    ),
    ("<ns>:<shard>:journal", "stream", "records of invocations in memory; deleted when one ends or is laid to sleep"),
    ("<ns>:<shard>:asleep:<invocation>", "hash", "message, inbox id and records of one that left memory; to its end"),
    ("<ns>:<shard>:held", "hash", "object → the invocation asleep that holds it, until its end"),
    ("<ns>:<shard>:ids", "hash", "invocation → where it is and whom to tell; trimmed with `done`"),
    (
        "<ns>:<shard>:state:<Type>/<key>",
        "hash",
        "field → encoded value, `@…` is not the user's; written by commits; cleared when its `ttl` is over",
    ),
    ("<ns>:<shard>:timers", "sorted set", "due time in ms → counter, invocation and entry to wake; state that expires"),
    ("<ns>:<shard>:done", "stream", "finished invocations and outcomes; bounded by count and `retention`"),
    ("<ns>:<shard>:outcomes", "hash", "outcomes kept beyond `done`, of workflows and with an idempotency key"),
    (
        "<ns>:<shard>:digests",
        "hash",
        "invocation with an idempotency key → digest of its request; goes with its outcome",
    ),
    ("<ns>:<shard>:forget", "sorted set", "until when each of `outcomes` is kept"),
    ("<ns>:<shard>:head", "string", "epoch, incarnation, number and answer of the owner's last commit"),
    ("<ns>:<shard>:lease", "string", "incarnation and a counter that its owner changes with each renewal"),
)
"""Key, type, and contents with writer, reader and expiry."""


@dataclass(frozen=True, slots=True)
class Keys:
    """The names of one namespace; names that only the scripts use are in `TABLE` alone."""

    namespace: str

    @property
    def meta(self) -> str:
        return f"{self.namespace}:meta"

    @property
    def hosts(self) -> str:
        return f"{self.namespace}:hosts"

    @property
    def control(self) -> str:
        return f"{self.namespace}:control"

    @property
    def code(self) -> str:
        return f"{self.namespace}:code"

    def code_of(self, digest: str) -> str:
        return f"{self.namespace}:code:{digest}"

    def writer(self, writer: str) -> str:
        return f"{self.namespace}:writer:{writer}"

    def replies(self, writer: str) -> str:
        return f"{self.namespace}:replies:{writer}"

    def inbox(self, shard: Shard) -> str:
        return self._of(shard, "inbox")

    def events(self, shard: Shard) -> str:
        return self._of(shard, "events")

    def journal(self, shard: Shard) -> str:
        return self._of(shard, "journal")

    def asleep(self, shard: Shard, invocation: str) -> str:
        return self._of(shard, f"asleep:{invocation}")

    def held(self, shard: Shard) -> str:
        return self._of(shard, "held")

    def ids(self, shard: Shard) -> str:
        return self._of(shard, "ids")

    def state(self, shard: Shard, target: str) -> str:
        # The user's key comes last, so it may hold any character.
        return self._of(shard, f"state:{target}")

    def done(self, shard: Shard) -> str:
        return self._of(shard, "done")

    def outcomes(self, shard: Shard) -> str:
        return self._of(shard, "outcomes")

    def timers(self, shard: Shard) -> str:
        return self._of(shard, "timers")

    def head(self, shard: Shard) -> str:
        return self._of(shard, "head")

    def lease(self, shard: Shard) -> str:
        return self._of(shard, "lease")

    def _of(self, shard: Shard, name: str) -> str:
        return f"{self.namespace}:{shard}:{name}"
