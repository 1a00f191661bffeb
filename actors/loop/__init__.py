"""The event loop of one attempt: asyncio, made deterministic.

Owns the order in which tasks run, and the refusal of threads, sockets and files inside a handler. Does not own anything
durable, and does no I/O.

Others use `DeterministicLoop` and `EntryFuture` of `loop`, where reading begins, and `blocking.install`.
"""
