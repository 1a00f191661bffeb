"""Host: one process that owns shards under leases, reads them, serves them and writes their commits.

Owns leases, placement, the one grouped write at a time, and time. Does not own processes on other machines: those are
`ray`'s.

Reading begins at `host`; others use `Host` and `LocalHost`.
"""
