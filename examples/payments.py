"""The payment stand-in: a slow gateway, and the ledger in which it writes what it did.

The ledger is a file of its own, outside the store, so that an audit can compare the two. Like a real gateway it takes
an idempotency key: what comes twice with one key, because a host died in between, is done once.
"""

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from fcntl import LOCK_EX, LOCK_UN, flock
from pathlib import Path
from typing import Any

from actors import TerminalError

LEDGER, DELAY = "perdure-ledger", "perdure-payment-delay"
"""Headers that only programs can send: HTTP passes on none that begin with `perdure-`, and this one names a file."""
Line = dict[str, Any]
"""One line of the ledger: `kind` (charge, refund or email), `key`, and what belongs to it."""


@dataclass(frozen=True, slots=True)
class Gateway:
    """Charges cards, gives money back, sends e-mails; its methods are what steps call."""

    ledger: str = ".perdure/ledger.jsonl"
    delay_s: float = 0.5
    """How long a payment takes; 0 in benchmarks."""

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> "Gateway":
        """Return the gateway that a caller named in its headers, else the usual one."""
        return cls(headers.get(LEDGER, cls().ledger), float(headers.get(DELAY, cls().delay_s)))

    @property
    def headers(self) -> dict[str, str]:
        """What names this gateway in a call."""
        return {LEDGER: self.ledger, DELAY: str(self.delay_s)}

    async def charge(self, card: str, amount: int, key: str) -> str:
        """Charge a card once for each key; return the payment's id.

        Raises:
            TerminalError: the card is declined: asking again would not help.
            TimeoutError: the gateway does not answer: asking again might help.
        """
        await asyncio.sleep(self.delay_s)
        if card == "card_decline":
            raise TerminalError("Payment declined: Payment declined (Method: card_decline)", 402)
        if card == "card_error":
            raise TimeoutError("Payment declined: Gateway timeout")
        await self._note({"kind": "charge", "key": key, "amount": amount, "card": card})
        return f"payment-{key}"

    async def refund(self, amount: int, key: str) -> None:
        """Give back what was charged with this key, or may yet be."""
        await self._note({"kind": "refund", "key": key, "amount": amount})

    async def email(self, user: str, seat: str, key: str) -> None:
        """Send one confirmation for each key."""
        await self._note({"kind": "email", "key": key, "user": user, "seat": seat})

    async def _note(self, line: Line) -> None:
        await asyncio.to_thread(append_once, self.ledger, line)


def append_once(ledger: str, line: Line) -> None:
    """Append the line durably, unless one of its kind and key is there."""
    start = json.dumps({"kind": line["kind"], "key": line["key"]})[:-1].encode()
    Path(ledger).parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(ledger, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        flock(descriptor, LOCK_EX)  # other hosts look and write too
        with open(descriptor, "rb", closefd=False) as file:
            is_new = start not in file.read()
        if is_new:
            os.write(descriptor, json.dumps(line).encode() + b"\n")
        flock(descriptor, LOCK_UN)
        os.fsync(descriptor)  # also for a line that another has written and not yet synced
    finally:
        os.close(descriptor)


def read_ledger(ledger: str) -> list[Line]:
    """Return the lines of a ledger, oldest first."""
    return [json.loads(line) for line in Path(ledger).read_text("utf-8").splitlines()]
