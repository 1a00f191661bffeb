"""Seal: the HMAC of a pickle, so that write access to the store is not enough to run code in its readers.

With `PERDURE_SECRET` (or the file that `PERDURE_SECRET_FILE` names) every pickle that this program writes to the store
carries an HMAC over its place and its bytes, and a pickle without an HMAC, or with a wrong one, is refused: its
invocation is tried again and again, since a process that has the secret can read it, and holds up its own key alone.
Several secrets, with spaces or lines between them, are accepted; the first one signs. So secrets rotate: add the new
one as the second everywhere, make it the first, take the old one away. JSON carries none: reading it runs no code.

The place is known to both sides anyway:

    code                    namespace, hash
    arguments               namespace, object, handler
    a field of a state      namespace, object, field
    results, errors, all    namespace
    that is completed

So a pickle that was copied to another place, where it would be taken for something else, is refused there; a result in
the place of another one is from a program with the secret, and the JSON beside it could be forged as well.

Owns the secrets of this process, one of the package's three globals (`session` and `current` have the others):
everything that unpickles here does it with them, in handlers, steps and the program itself. Hosts on Ray are given them
with the place of the store; they are in no argument of a process, in no environment that Ray shows, and in no text.
"""

import hmac
import logging
import os
import stat
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import sha256
from pathlib import Path
from typing import Final

from actors.errors import DecodeError, UsageError

logger = logging.getLogger("actors")

MARK: Final = b"S"
"""The first byte of sealed bytes: no pickle and no JSON begins with it."""
MAC_BYTES: Final = 16
SECRET_MIN: Final = 16
REFUSED_MAX: Final = 1_000
"""Places whose refusal is remembered, so that each is logged once."""

VARIABLE: Final = "PERDURE_SECRET"
FILE: Final = "PERDURE_SECRET_FILE"


class _SigningKeys:
    """The keys of this process, for the namespace that it is connected to."""

    def __init__(self) -> None:
        self.keys: tuple[bytes, ...] = ()
        self.namespace = ""
        self.refused: set[tuple[str, ...]] = set()


_ours: Final = _SigningKeys()
_trusts: Final[ContextVar[bool]] = ContextVar("_trusts", default=False)


class Secrets(tuple[bytes, ...]):
    """Secrets, which no text shows."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{len(self)} secrets>"


def secrets_in_environment() -> Secrets:
    """Return the secrets in the environment.

    Raises:
        UsageError: a secret is too short, or the file cannot be read or may be written by others.
    """
    text = os.environ.get(VARIABLE, "")
    if path := os.environ.get(FILE, ""):
        text += f" {_read(Path(path))}"
    secrets = Secrets(each.encode("utf-8", "surrogateescape") for each in text.split())
    if any(len(each) < SECRET_MIN for each in secrets):
        raise UsageError(
            f"{VARIABLE} holds a secret of fewer than {SECRET_MIN} characters: take a random one "
            '(python -c "import secrets; print(secrets.token_hex(32))"). Several stand with spaces between them'
        )
    if (text or path) and not secrets:
        raise UsageError(f"{FILE if path else VARIABLE} is set, and holds no secret")
    return secrets


def _read(path: Path) -> str:
    try:
        if path.stat().st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise UsageError(f"{FILE} names a file that other users may write: chmod 600 {path}")
        return path.read_text("utf-8", "surrogateescape")
    except OSError as error:
        raise UsageError(f"{FILE} names a file that cannot be read: {error}") from error


def use(secrets: tuple[bytes, ...], namespace: str) -> None:
    """Sign and check with these from now on, in this process; without secrets nothing signed is read or written."""
    _ours.keys = tuple(
        hmac.digest(secret, f"perdure {namespace}".encode("utf-8", "replace"), sha256) for secret in secrets
    )
    _ours.namespace = namespace
    _ours.refused.clear()


def is_used() -> bool:
    """Whether pickles are sealed in this process."""
    return bool(_ours.keys)


def sealed(pickle: bytes, where: tuple[str, ...] = ()) -> bytes:
    """Return a pickle with its HMAC, if there is a secret."""
    return MARK + _mac(_ours.keys[0], pickle, where) + pickle if _ours.keys else pickle


def unsealed(data: bytes, where: tuple[str, ...] = ()) -> bytes:
    """Return the pickle in bytes that were sealed at this place.

    Raises:
        DecodeError: none of the secrets of this process has sealed it.
    """
    is_sealed = data[:1] == MARK
    if not _ours.keys and not is_sealed:
        return data
    if not is_sealed and _trusts.get():
        return data
    if is_sealed and any(_is_by(key, data, where) for key in _ours.keys):
        return data[1 + MAC_BYTES :]
    raise _refusal(is_sealed, where)


def resealed(data: bytes, where: tuple[str, ...]) -> bytes:
    """Return sealed bytes, sealed anew with the first secret; unchanged, where none of our secrets has sealed them."""
    if data[:1] != MARK or not any(_is_by(key, data, where) for key in _ours.keys):
        return data
    return sealed(data[1 + MAC_BYTES :], where)


def _is_by(key: bytes, data: bytes, where: tuple[str, ...]) -> bool:
    return hmac.compare_digest(data[1 : 1 + MAC_BYTES], _mac(key, data[1 + MAC_BYTES :], where))


def unverified(data: bytes) -> bytes:
    """Return the result of `unsealed` for a value (`codec`), unchecked: for a comparison, never to be unpickled."""
    return data[:1] + data[2 + MAC_BYTES :] if data[:2] == b"P" + MARK else data


@contextmanager
def trusting() -> Generator[None]:
    """Read bytes without an HMAC as well: they were checked, and have not come from the store."""
    token = _trusts.set(True)
    try:
        yield
    finally:
        _trusts.reset(token)


def _mac(key: bytes, pickle: bytes, where: tuple[str, ...]) -> bytes:
    made = hmac.new(key, repr(where).encode("utf-8", "surrogatepass"), sha256)
    made.update(pickle)
    return made.digest()[:MAC_BYTES]


def _refusal(is_sealed: bool, where: tuple[str, ...]) -> DecodeError:
    what = " ".join(map(repr, where)) or "a value"
    if not is_sealed:
        why = "it is a pickle without an HMAC, and this process has a secret"
    elif _ours.keys:
        why = "its HMAC is of no secret that this process has, or of another place"
    else:
        why = "its HMAC cannot be checked: this process has no secret"
    text = f"{what} is refused: {why}. {VARIABLE} must hold the secret with which it was written"
    if where not in _ours.refused and len(_ours.refused) < REFUSED_MAX:
        _ours.refused.add(where)
        logger.error("namespace %r: %s", _ours.namespace, text)
    return DecodeError(text)
