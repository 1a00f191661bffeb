"""Shard: the invocations of one owned shard, and whose turn it is.

Owns the way of an invocation from its message to its end: queues, attempts, retries, sleep, cancels. Does not own the
lease, nor the writing of commits: those are the host's.

Reading begins at `shard`; others use `OwnedShard`.
"""
