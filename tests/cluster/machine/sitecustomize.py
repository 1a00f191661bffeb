"""A machine of its own for each node: every Python process of a node sees another pid namespace than the rest.

All nodes of the test's cluster run on one machine, where hosts see each other's processes end and free their leases at
once. With this on their path, a node that is lost is as silent as a machine without power. Nothing in the product
knows of it.
"""

import os
from typing import Any

_read = os.readlink
_node = os.environ["TEST_MACHINE"]


def _readlink(path: Any, **more: Any) -> Any:
    found = _read(path, **more)
    return f"{found}.{_node}" if path == "/proc/self/ns/pid" else found


os.readlink = _readlink
