"""Ray: hosts in the processes of a Ray cluster; the only importer of `ray`.

Owns starting and joining a Ray, its supervisor, object references, and `python -m actors.ray`. Does not own what a host
does: that is `host`.

Reading begins at `cluster`.
"""
