"""The audit of a sale: what the buyers were told, what the seats say, what the map shows, what the ledger has.

A pure function. It trusts none of the four: each rule compares two of them, or one with itself.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from examples.payments import Line
from examples.seat_map import PAYMENT_FAILED, PRICE, Seat, View

CONFIRMED = "Booking Confirmed"
REFUSALS = frozenset(
    {
        (409, "Ticket is currently reserved"),
        (409, "Ticket already sold"),
        (PAYMENT_FAILED, "Payment failed: Payment declined: Payment declined (Method: card_decline)"),
        (PAYMENT_FAILED, "Payment failed: Payment declined: Gateway timeout"),
    }
)
"""The answers other than `CONFIRMED` that a checkout may give."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one checkout."""

    checkout: str
    """The invocation's id, which is also its idempotency key at the gateway."""
    user: str
    seat: str
    code: int | None
    """200, or the code of its terminal error; None if there was no answer."""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that an audit looks at."""

    answers: Sequence[Answer]
    tickets: Mapping[str, View]
    seat_map: Sequence[Seat]
    ledger: Sequence[Line]

    @property
    def confirmed(self) -> list[Answer]:
        """The checkouts whose buyers were told that the seat is theirs."""
        return [answer for answer in self.answers if answer.text == CONFIRMED]

    def keys(self, kind: str) -> list[str]:
        """Return the idempotency keys of the ledger's lines of one kind."""
        return [line["key"] for line in self.ledger if line["kind"] == kind]


def audit(evidence: Evidence) -> dict[str, list[str]]:
    """Return every rule, with what breaks it."""
    return {
        "every buyer was answered": list(_unanswered(evidence)),
        "no seat was sold twice": list(_sold_twice(evidence)),
        "a sold seat is its buyer's": list(_owners(evidence)),
        "nobody was charged twice": list(_charged_twice(evidence)),
        "who paid has a seat, and who has a seat paid": list(_payments(evidence)),
        "a declined buyer's seat is free again": list(_not_freed(evidence)),
        "the map agrees with every ticket": list(_map(evidence)),
        "each sold seat was confirmed by one e-mail": list(_emails(evidence)),
    }


def _unanswered(evidence: Evidence) -> Iterable[str]:
    for answer in evidence.answers:
        if answer.code is None:
            yield f"{answer.user} has no answer for {answer.seat}"
        elif answer.text != CONFIRMED and (answer.code, answer.text) not in REFUSALS:
            yield f"{answer.user} was told for {answer.seat}: {answer.code} {answer.text!r}"


def _sold_twice(evidence: Evidence) -> Iterable[str]:
    for seat, count in Counter(answer.seat for answer in evidence.confirmed).items():
        if count > 1:
            yield f"{seat} was sold to {count} buyers"


def _owners(evidence: Evidence) -> Iterable[str]:
    buyers = {answer.seat: answer.user for answer in evidence.confirmed}
    for seat, view in evidence.tickets.items():
        owner = view["reservedBy"] if view["status"] == "SOLD" else None
        if owner != buyers.get(seat):
            yield f"{seat} is {view['status']} and {owner}'s, but was sold to {buyers.get(seat)}"
    for seat in buyers.keys() - evidence.tickets.keys():
        yield f"{seat} was sold, and there is no such seat"


def _charged_twice(evidence: Evidence) -> Iterable[str]:
    for key, count in Counter(evidence.keys("charge")).items():
        if count > 1:
            yield f"{key} was charged {count} times"
    for line in evidence.ledger:
        if line["kind"] == "charge" and line["amount"] != PRICE:
            yield f"{line['key']} was charged {line['amount']}"


def _payments(evidence: Evidence) -> Iterable[str]:
    charged = set(evidence.keys("charge")) - set(evidence.keys("refund"))
    sold = {answer.checkout for answer in evidence.confirmed}
    yield from (f"{key} was charged and has no seat" for key in charged - sold)
    yield from (f"{key} has a seat and was not charged" for key in sold - charged)


def _not_freed(evidence: Evidence) -> Iterable[str]:
    sold = {answer.seat for answer in evidence.confirmed}
    declined = {answer.seat: answer.user for answer in evidence.answers if answer.code == PAYMENT_FAILED}
    for seat, view in evidence.tickets.items():
        if view["status"] == "RESERVED":
            yield f"{seat} is still reserved by {view['reservedBy']}"
        elif view["status"] == "SOLD" and seat in declined and seat not in sold:
            yield f"{seat} is sold, but {declined[seat]} was declined and nobody else has it"


def _map(evidence: Evidence) -> Iterable[str]:
    shown = {seat["id"]: seat["status"] for seat in evidence.seat_map}
    actual = {seat: view["status"] for seat, view in evidence.tickets.items()}
    for seat in sorted(shown.keys() | actual.keys()):
        if shown.get(seat) != actual.get(seat):
            yield f"{seat} is {actual.get(seat)}, the map shows {shown.get(seat)}"


def _emails(evidence: Evidence) -> Iterable[str]:
    sent = Counter(evidence.keys("email"))
    for answer in evidence.confirmed:
        if sent[answer.checkout] != 1:
            yield f"{answer.user} got {sent[answer.checkout]} e-mails for {answer.seat}"
    for key in sent.keys() - {answer.checkout for answer in evidence.confirmed}:
        yield f"an e-mail was sent for {key}, which sold nothing"
