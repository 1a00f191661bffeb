"""What `python -m actors.ray` runs."""

import sys

from .cluster import main

sys.exit(main())
