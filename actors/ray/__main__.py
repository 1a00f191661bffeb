"""The command line `python -m actors.ray`."""

import sys

from .cluster import main

sys.exit(main())
