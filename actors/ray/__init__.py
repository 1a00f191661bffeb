"""Ray: hosts in the processes of a Ray cluster; the only importer of `ray`.

Owns starting and joining a Ray, its supervisor, object references, and `python -m actors.ray`. Does not own a host's
work (`host`).

Reading begins at `cluster`.
"""
