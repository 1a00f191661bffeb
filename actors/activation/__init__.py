"""Activation: an object in memory, its open invocations, and the content of their next commit.

Owns the progress that is staged and not yet durable. Does not own the choice of the next invocation: that is the
shard's.

Reading begins at `activation`; others use `Activation`, `OpenInvocation` and `Staging`.
"""
