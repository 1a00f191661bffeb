"""The embedded server: one Valkey for all programs that use one directory.

Owns the directory, its locks and the guard that starts and stops the server. Does not own what is stored in it.

Reading begins at `server`, the program's side; `guard` is the process that outlives programs.
"""
