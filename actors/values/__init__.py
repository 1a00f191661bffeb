"""Values: how arguments, results, state and errors become bytes, and bytes become them again.

Owns which classes a pickle may name, what of an error is kept, and the seal of a pickle. Does not own where bytes lie:
that is the store's.

Others use `encode` and `decode` of `values`, where reading begins, and `outcomes` for results and failures.
"""
