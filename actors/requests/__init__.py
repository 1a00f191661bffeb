"""Requests: a call becomes a request, a request a message, and its caller holds an `Invocation`.

Owns the ids of invocations, idempotency keys, delays and schedules' instants, and whether this code runs in a handler,
in a step or in a program (`current`). Does not own where a message goes: that is the `Caller`'s.

Reading begins at `current`; others use `Request`, `Invocation` and the functions that make messages of requests.
"""
