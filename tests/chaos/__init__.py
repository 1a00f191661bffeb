"""The fault campaign: `python -m tests.chaos --seconds 60 --seed N` runs a load under faults, and audits what remains.

Real Ray hosts, a real Valkey that syncs at every write, drivers that are processes of their own. `schedule` says from
the seed alone what happens when, `faults` does it, `driver` is the load, `objects` are its classes, `log` is what
drivers note, `fleet` starts and kills them, `evidence` gathers what there is at the end, and `audit` judges it: pure
functions, which `tests/test_chaos.py` feeds with corrupted evidence.
"""
