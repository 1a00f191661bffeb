"""Client: a program's side of an invocation, from `.remote()` to the reply.

Owns the program's writer, the order and the number of its submits, and who waits for what. Does not own what a message
holds: `requests` makes it.

Reading begins at `client`; others use `Client`.
"""
