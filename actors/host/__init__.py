"""Host: a process that owns shards under leases, reads them, serves them and writes their commits.

Owns leases, placement, the single grouped write at a time, and time. Does not own processes on other machines: they
belong to `ray`.

Reading begins at `host`; others use `Host` and `LocalHost`.
"""
