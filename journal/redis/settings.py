"""Settings: the server settings under which no acknowledged write is lost (promise 10).

Owns the rules, applied to a server's answers. Does not own the asking (`trust`).
"""

from collections.abc import Mapping

from journal.errors import SettingsError

VERSION_MIN = 7
"""Of Redis, which Valkey names too: flags of scripts are understood from here on."""

WANTED: Mapping[str, tuple[str, str]] = {
    "appendonly": ("yes", "it has no append-only file"),
    "appendfsync": ("always", "it answers before it has synced (appendfsync {found})"),
    "no-appendfsync-on-rewrite": ("no", "it does not sync while it rewrites"),
    "maxmemory-policy": ("noeviction", "its eviction policy {found} may drop keys"),
}
"""Setting → the value it must have, and what another one means."""


def check_settings(found: Mapping[str, str], role: str, replicas: int = 0) -> None:
    """Return if a server with these settings keeps what it has acknowledged.

    Raises:
        SettingsError: it may not; the message says what to set.
    """
    for name, (value, meaning) in WANTED.items():
        if name not in found:
            raise refusal(f"its setting {name} may not be read")
        if found[name] != value:
            raise refusal(meaning.format(found=found[name]), f"{name} {value}")
    if role != "master":
        raise refusal(f"it is a {role}: connect to its primary")
    if replicas:
        raise refusal("it has a replica, which has not got the last writes yet where it takes over")


def check_version(text: str) -> None:
    """Return if a server of this version can run the scripts.

    Raises:
        SettingsError: it is too old.
    """
    if int(text.partition(".")[0]) < VERSION_MIN:
        raise SettingsError(
            f"this Redis is {text}, whose scripts know no flags: use Redis {VERSION_MIN} or newer, or Valkey"
        )


def refusal(why: str, remedy: str = "") -> SettingsError:
    """Return the error for a server that could lose data."""
    setting = f"Set `{remedy}` on the server" if remedy else "Use a server of your own"
    return SettingsError(
        f"this Redis could lose what it has acknowledged: {why}. {setting}, or say "
        'actors.init(durability="relaxed") if losing data is acceptable.'
    )
