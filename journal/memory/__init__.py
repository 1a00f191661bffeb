"""The store in this process, for simulations and tests: the same contract, without a server.

Owns the transitions in Python, one function for each script of `journal.redis`. It forgets everything with its last
reference. Reading begins at `store`.
"""
