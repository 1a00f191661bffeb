"""Objects as users write them: classes with handlers and fields, their addresses, and the context.

Owns the declarations of a class and the errors of a wrong declaration. Does not own the effect of a command: the
context passes it on to the `Commands` of an execution.

Reading begins at `objects`; others use `Declaration`, `Handler`, `State` and `Context`.
"""
