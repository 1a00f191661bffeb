"""The benchmark: what an invocation costs, beside bare Ray calls, bare XADDs and, if asked, another system's figures.

    python -m tests.bench --json out.json          # W1 to W7, one Ray host, fsync always
    python -m tests.bench --only W1,W3 --clients 1,16
    python -m tests.bench --beside restate.json    # rows of another system, as JSON, put beside ours with ratios
    python -m tests.bench --show out.json --beside restate.json     # measure nothing, print what was measured

W1 to W7 are closed loops with fixed meanings (`workloads.py`); `run.py` says how they are driven and checked. Only
operations that complete inside the window count. What the machine's other users took is measured in each window; a
window in which they took much is repeated and says so, as disturbance only slows.

It reads /proc, so it runs on Linux alone.
"""
