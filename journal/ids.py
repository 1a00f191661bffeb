"""Ids: the types of identifiers, and the fixed hash that places an object on a shard.

Invariants:
    1. An invocation's id ends in its shard, so that its streams are found by the id, without a directory.
    2. `shard_of` never changes for a namespace: state lies where it says.
    3. An id cannot be guessed from others: its holder may cancel, signal and complete.
"""

import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, NewType
from zlib import crc32

from .errors import UsageError

if TYPE_CHECKING:
    Shard = NewType("Shard", int)
    """A fixed slice of the key space; the unit of ownership and of order."""

    Epoch = NewType("Epoch", int)
    """A number that grows with every grant of a shard's lease."""

    InvocationId = NewType("InvocationId", str)
    """The stable id of one durable request: `<unique>-<shard>`."""
else:
    Shard, Epoch, InvocationId = int, int, str  # a call of a NewType is a call of a function in Python

_SHARD_DIGITS = 5
_UNIQUE_DIGITS = 24
_DRAWN_BYTES = 256 * _UNIQUE_DIGITS // 2


@dataclass(frozen=True, slots=True)
class ObjectId:
    """A virtual object's address: its type's name and its key; a service has no key."""

    type: str
    key: str | None

    def __str__(self) -> str:
        return address_of(self.type, self.key)

    @classmethod
    def parse(cls, text: str) -> "ObjectId":
        """Return the address that `str` wrote: a type's name has no slash, so that the first slash ends it."""
        return cls(text.partition("/")[0], key_of(text))


def key_of(address: str) -> str | None:
    """Return the key of an object's address; None for a service."""
    _, slash, key = address.partition("/")
    return key if slash else None


def address_of(type: str, key: str | None) -> str:
    """Return the address of an object, or of a service, which has no key."""
    return type if key is None else f"{type}/{key}"


def shard_of(address: str, shards: int) -> Shard:
    """Return the shard of an object's address or of the unique part of a service's invocation id."""
    return Shard(crc32(address.encode("utf-8", "surrogatepass")) % shards)


def shard_in(invocation: str) -> Shard:
    """Return the shard that an invocation's id names.

    Raises:
        UsageError: this is not an invocation's id.
    """
    unique, _, shard = invocation.rpartition("-")
    if not (unique and shard.isascii() and shard.isdecimal() and len(shard) <= _SHARD_DIGITS):
        raise UsageError(f"{invocation!r} is not the id of an invocation: take it from `.id` of what started it")
    return Shard(int(shard))


def shard_of_own(invocation: str) -> Shard:
    """Return the shard of an id that this process has made: `shard_in` without its check."""
    return Shard(int(invocation[invocation.rindex("-") + 1 :]))


def new_id() -> str:
    """Return an id never given before: of a writer, of a host's incarnation."""
    return secrets.token_hex(8)


def unique_ids() -> Iterator[str]:
    """Yield unique parts of ids of invocations: unguessable, and never given twice. Callers hold a lock.

    Each has 96 bits, as `derived_id` has: that two of a million million are alike has a chance below one to 100,000.
    The system is asked for many at once.
    """
    while True:
        drawn = os.urandom(_DRAWN_BYTES).hex()
        for at in range(0, 2 * _DRAWN_BYTES, _UNIQUE_DIGITS):
            yield drawn[at : at + _UNIQUE_DIGITS]


def derived_id(*parts: str) -> str:
    """Return the id that these parts name, the same in every process."""
    return blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def invocation_id(unique: str, address: str, shards: int) -> InvocationId:
    """Return the id of an invocation of `address`: an object's shard, or for a service the hash of the id itself."""
    return InvocationId(f"{unique}-{shard_of(address if '/' in address else unique, shards)}")
