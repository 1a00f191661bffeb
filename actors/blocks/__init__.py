"""Building blocks: what a handler can wait for, one file each.

Owns, for each block, its entries in the journal, the events that complete it, and what is left behind at the end. Does
not own when an event comes: the execution delivers it.

Reading begins at `entries`, then `timers`, the smallest block.
"""
