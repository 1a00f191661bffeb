"""Objects as users write them: classes with handlers and fields, their addresses, and the context.

Owns what a class declares and the errors of a wrong declaration. Does not own what a handler's wait does: the context
hands it to the `Commands` of an execution.

Reading begins at `objects`; others use `Declaration`, `Handler`, `State` and `Context`.
"""
