"""URL: the address of a store, checked as a program gives it, and shown to people without its secrets.

Every text that names a store (an error, a log line, a `repr`, `status()`) has it from `shown`. It shows the parts that
are known to be harmless and hides all others, because a URL that is written wrongly may have its password anywhere: the
one in `redis://:a/b@host` begins in the place of a port.
"""

import re
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from journal.errors import UsageError

HIDDEN: Final = "***"

_SCHEMES: Final = ("redis", "rediss", "unix")
_PLACE: Final = re.compile(r"(?:[\w.-]+|\[[0-9A-Fa-f:.]+\])?(?::\d{1,5})?(?:/\d{0,3})?", re.ASCII)
_HOST: Final = re.compile(r"[\w.-]*:", re.ASCII)
_PATH: Final = re.compile(r"/[^?#@\s]*")
_NAME: Final = re.compile(r"[a-z_]{1,40}")
_OPTION: Final = re.compile(r"(?:db|protocol)=\d")
"""Options that are shown with their value."""

_ENCODE: Final = (
    "characters such as # / ? @ : % in a name or a password are written percent-encoded "
    "(urllib.parse.quote(password, safe=''))"
)


def shown(url: str) -> str:
    """Return a URL without name, password, and whatever else may be secret in it."""
    scheme, mark, rest = str(url).partition("://")
    if not mark or scheme not in _SCHEMES:
        return HIDDEN
    before, _, after = rest.rpartition("@")
    if "?" in before:  # a password in an option, or with a question mark: it may go on after the question mark
        return f"{scheme}://{HIDDEN}"
    where, mark, query = after.partition("?")
    if not (_PATH if scheme == "unix" else _PLACE).fullmatch(where):
        host = _HOST.match(where)
        where = f"{host[0] if host else ''}{HIDDEN}"
    return f"{scheme}://{where}{mark}{'&'.join(map(_shown_option, query.split('&')))}"


def _shown_option(option: str) -> str:
    name, mark, _ = option.partition("=")
    if not _NAME.fullmatch(name):
        return HIDDEN if option else ""
    return option if _OPTION.fullmatch(option) else f"{name}{mark}{HIDDEN if mark else ''}"


def check(url: str) -> None:
    """Return if this can be the URL of a store.

    Raises:
        UsageError: it cannot; the message says why, and shows nothing secret.
    """
    why = _wrong(url)
    if why:
        raise refused(url, why)


def refused(url: str, why: str) -> UsageError:
    """Return the error for a URL; raised where no other error is handled, whose text might hold the URL."""
    return UsageError(f"{shown(url)} is no URL of a Redis or Valkey, redis://host:port/0 for one: {why}")


def _wrong(url: str) -> str:
    scheme, mark, rest = url.partition("://") if isinstance(url, str) else ("", "", "")  # pyright: ignore[reportUnnecessaryIsInstance]  # users without a checker
    if not mark or scheme not in _SCHEMES:
        return "it begins with redis://, rediss:// or unix://"
    authority = re.split("[/?]", rest, maxsplit=1)[0]
    path, _, query = rest[len(authority) :].partition("?")
    if "#" in rest or "@" in path:
        return _ENCODE
    try:
        _port = urlsplit(url).port
        parse_qsl(query, strict_parsing=bool(query))
    except ValueError:
        return f"its host, its port or its options cannot be read; {_ENCODE}"
    return ""
