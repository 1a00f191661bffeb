"""Execution: a single attempt at an invocation. Events go in, commands come out.

Owns the phases of an attempt, from replay to its end, and the state that it sees. Does no I/O and knows no store.

Reading begins at `execution`; others use `Execution` and `StateView`.
"""
