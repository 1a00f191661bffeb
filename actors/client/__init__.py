"""Client: a program's side of an invocation, from `.remote()` to the reply.

Owns the program's writer, the order and the number of its submits, and its waits. Does not own the content of messages:
`requests` makes them.

Reading begins at `client`; others use `Client`.
"""
