"""Shard: the invocations of an owned shard, and their turns.

Owns the way of an invocation from its message to its end: queues, attempts, retries, sleep, cancels. Does not own the
lease, nor the writing of commits: both belong to the host.

Reading begins at `shard`; others use `OwnedShard`.
"""
