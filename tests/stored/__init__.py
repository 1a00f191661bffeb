"""A namespace as an earlier version wrote it, and what restores it: `python -m tests.stored` writes it anew.

The file `namespace.json` is what proves that stored bytes outlive changes of the code. It is written once for each
format that has to be read, and never again by the code that reads it.
"""
