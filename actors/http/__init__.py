"""HTTP: programs that do not import the classes call their handlers, and ask about invocations.

Owns the ASGI app, the JSON of arguments, results and errors, and `perdure serve`. Does not own invocations: this room
is a driver like any other program, and has no state of its own.

Reading begins at `door`; its `app` is the public name.
"""

from .door import app as app
