"""The fault campaign: `python -m tests.chaos --seconds 60 --seed N` runs a load under faults, and audits what remains.

With `--hostile` a share of all operations is hostile: each must come to one of its ends, and no good one may be
answered more than 1 s later than the same load is answered without them, which is measured after all faults.

Real Ray hosts, a real Valkey that syncs at every write, drivers that are processes of their own. `schedule` says from
the seed alone what happens when, `faults` does it, `driver` is the load, `objects` are its classes, `hostile` is the
table of hostilities, `log` is what drivers note, `fleet` starts and kills them, `stalls` sees when the machine itself
stood, `evidence` gathers what there is at the end, and `audit` judges it: pure functions, which `tests/test_chaos.py`
feeds with corrupted evidence.
"""
