"""Cli: the command `perdure`, by which people ask and repair.

Owns the words, the output and the exit codes of its commands. It changes nothing but by what any program may do: calls,
events to invocations, schedules. It reads the pages of `journal.survey`. Nothing inside imports it.
"""
