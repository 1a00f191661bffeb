"""Building blocks: steps, calls, timers, signals and the other waits of a handler, a file for each.

Owns, for each block, its entries in the journal, the events that complete it, and its remains at the end of the
handler. Does not own the delivery of events: that is the execution's.

Reading begins at `entries`, then `timers`, the smallest block.
"""
