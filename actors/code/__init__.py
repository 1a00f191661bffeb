"""Code: how the classes of a program reach hosts that have never seen them.

Owns the hash of a class's code, the bundle that carries it, and which version an invocation runs with. Does not own
when a bundle is stored: a program's client does that, before it sends messages that need it.

Reading begins at `code`; others use its `Sender` and `CodeBook`.
"""
