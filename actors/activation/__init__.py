"""Activation: an object in memory, its open invocations, and what their next commit writes.

Owns what is staged and not yet durable, and who is told of it afterwards. Does not own whose turn it is: that is the
shard's.

Reading begins at `activation`; others use `Activation`, `InFlight` and `Staging`.
"""
