"""`python -m tests.bench`."""

import sys

from .run import main

if __name__ == "__main__":  # a host that loads code by value may import this again
    sys.exit(main())
