"""The examples: each prints what its last lines say, the seats keep their rules, the audit sees what is wrong."""

import asyncio
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import actors
from actors import TerminalError
from examples.audit import CONFIRMED, Answer, Evidence, audit
from examples.hall import Progress, picture
from examples.payments import Gateway, Line, append_once, read_ledger
from examples.seat_map import Checkout, GameManager, Order, Seat, SeatMap, Ticket, View

ROOT = Path(__file__).resolve().parent.parent
HALL = SeatMap["global"]
FREE: View = {"status": "AVAILABLE", "reservedBy": None, "reservedUntil": None}

# ------------------------------------------------------------------------------------------------------- as programs


def ran(directory: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run an example as its reader would, with a host in its own process."""
    environment = {**os.environ, "PERDURE_HOSTS": "local"}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [environment.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        check=False,
        text=True,
        timeout=100,
    )


def promised_output(module: str) -> str:
    """Return the indented lines of the comment that ends an example."""
    text = ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text("utf-8")
    comment = text[text.index("\n# It prints") :]
    return "".join(f"{line}\n" for line in re.findall(r"^#   (.*)$", comment, re.MULTILINE))


@pytest.mark.slow_after_first
@pytest.mark.parametrize(
    "module",
    ["examples.counter", "examples.shopping_cart", "examples.cron", "examples.trip_saga", "examples.signup_workflow"],
)
def test_an_example_prints_what_it_says(module: str, tmp_path: Path) -> None:
    done = ran(tmp_path, module)

    assert (done.stdout, done.returncode) == (promised_output(module), 0), done.stderr


@pytest.mark.slow
def test_a_sale_ends_with_an_audit_that_finds_nothing(tmp_path: Path) -> None:
    done = ran(tmp_path, "examples.seat_map", "--seats", "20", "--buyers", "60", "--payment", "0.05")

    assert done.returncode == 0, done.stdout + done.stderr
    assert "WRONG" not in done.stdout
    assert done.stdout.count("  ok ") == len(audit(sound()))


def test_the_picture_shows_every_seat() -> None:
    progress = Progress(buyers=4, seats=[*sound().seat_map] * 5, done=3, answers=Counter(confirmed=2, taken=1))
    progress.tell("a host was killed")
    console = Console(file=StringIO(), width=160)

    with console.capture() as captured:
        console.print(picture(progress))
    drawn = captured.get()

    assert (drawn.count("●"), drawn.count("·"), drawn.count("◐")) == (10 + 1, 5 + 1, 1)  # one of each explains the sign
    words = "10 sold, 0 reserved, 5 free; buyers done: 3 of 4; answers: 2 confirmed, 1 taken"
    assert words in " ".join(drawn.split())
    assert "a host was killed" in drawn


# ------------------------------------------------------------------------------------------------------ the rules


@pytest.fixture(scope="module", autouse=True)
def session(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with actors.init(hosts="local", directory=tmp_path_factory.mktemp("store"), namespace="examples"):
        yield


@pytest.fixture
def gateway(tmp_path: Path) -> Gateway:
    return Gateway(str(tmp_path / "ledger.jsonl"), 0.0)


def started(gateway: Gateway, seat: str, user: str, card: str | None = None) -> actors.Invocation[str]:
    order: Order = {"ticketId": seat, "userId": user}
    if card is not None:
        order["paymentMethodId"] = card
    return Checkout.process.options(headers=gateway.headers).remote(order)


def bought(gateway: Gateway, seat: str, user: str, card: str | None = None) -> str:
    return started(gateway, seat, user, card).result(timeout=30)


def refused(call: Callable[[], object]) -> tuple[str, int]:
    with pytest.raises(TerminalError) as caught:
        call()
    return str(caught.value), caught.value.code


def view(seat: str) -> View:
    return Ticket[seat].get.remote().result(timeout=30)


def shown() -> dict[str, str]:
    return {seat["id"]: seat["status"] for seat in HALL.get.remote().result(timeout=30)}


def eventually(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline


def test_a_checkout_sells_its_seat(gateway: Gateway) -> None:
    assert bought(gateway, "test-seat-1", "u1", "card_success") == "Booking Confirmed"
    assert view("test-seat-1") == {"status": "SOLD", "reservedBy": "u1", "reservedUntil": None}
    assert shown()["test-seat-1"] == "SOLD"
    assert [line["kind"] for line in read_ledger(gateway.ledger)] == ["charge", "email"]
    assert refused(lambda: bought(gateway, "test-seat-1", "u3")) == ("Ticket already sold", 409)


@pytest.mark.parametrize(
    ("card", "message"),
    [
        ("card_decline", "Payment failed: Payment declined: Payment declined (Method: card_decline)"),
        ("card_error", "Payment failed: Payment declined: Gateway timeout"),
    ],
)
def test_a_failed_payment_frees_the_seat(gateway: Gateway, card: str, message: str) -> None:
    seat = f"seat-of-{card}"

    assert refused(lambda: bought(gateway, seat, "u2", card)) == (message, 402)
    assert view(seat) == FREE
    assert shown()[seat] == "AVAILABLE"
    assert not Path(gateway.ledger).exists()


def test_two_checkouts_of_one_user_are_two_holders(gateway: Gateway) -> None:
    slow = replace(gateway, delay_s=0.5)
    first = started(slow, "wanted", "u1")
    eventually(lambda: view("wanted")["status"] == "RESERVED")

    assert refused(lambda: bought(gateway, "wanted", "u1")) == ("Ticket is currently reserved", 409)
    assert first.result(timeout=30) == "Booking Confirmed"


def test_the_same_holder_keeps_reservation_and_deadline() -> None:
    ticket = Ticket["held"]
    token = ticket.reserve.remote("u1").result(timeout=30)
    before = view("held")

    assert before["status"] == "RESERVED"
    assert before["reservedUntil"] is not None
    assert ticket.reserve.remote("u1").result(timeout=30) == token
    assert view("held") == before


def test_a_reservation_that_expired_frees_the_seat_and_is_lost() -> None:
    ticket = Ticket["expired"]
    token = ticket.reserve.remote("u1").result(timeout=30)

    ticket.expire.remote(token).result(timeout=30)

    assert view("expired") == FREE
    assert refused(ticket.confirm.remote(token).result) == ("Reservation lost", 409)
    eventually(lambda: shown().get("expired") == "AVAILABLE")


def test_an_old_reservation_changes_nothing() -> None:
    ticket = Ticket["again"]
    old = ticket.reserve.remote("u1").result(timeout=30)
    assert ticket.release.remote(old).result(timeout=30)
    new = ticket.reserve.remote("u2").result(timeout=30)

    assert ticket.release.remote(old).result(timeout=30)
    ticket.expire.remote(old).result(timeout=30)
    assert refused(ticket.confirm.remote(old).result) == ("Reservation lost", 409)
    assert view("again")["reservedBy"] == "u2"

    ticket.confirm.remote(new).result(timeout=30)
    ticket.confirm.remote(new).result(timeout=30)
    assert not ticket.release.remote(new).result(timeout=30)
    assert view("again")["status"] == "SOLD"


def test_the_map_ignores_what_comes_late() -> None:
    HALL.set.remote("late", "SOLD", 2).result(timeout=30)

    HALL.set.remote("late", "AVAILABLE", 1).result(timeout=30)
    HALL.set.remote("late", "RESERVED", 2).result(timeout=30)

    assert shown()["late"] == "SOLD"


def test_who_paid_for_a_seat_that_was_reset_gets_the_money_back(gateway: Gateway) -> None:
    slow = replace(gateway, delay_s=0.3)
    checkout = started(slow, "reset-in-between", "u1")
    eventually(lambda: view("reset-in-between")["status"] == "RESERVED")

    Ticket["reset-in-between"].reset.remote().result(timeout=30)

    assert refused(checkout.result) == ("Reservation lost", 409)
    assert [line["kind"] for line in read_ledger(gateway.ledger)] == ["charge", "refund"]
    assert view("reset-in-between") == FREE
    eventually(lambda: shown()["reset-in-between"] == "AVAILABLE")


def test_a_full_hall_empties_itself(gateway: Gateway) -> None:
    HALL.open.remote(2, automatic_reset=True).result(timeout=30)

    assert bought(gateway, "seat-1", "u1") == "Booking Confirmed"
    assert shown() == {"seat-1": "SOLD", "seat-2": "AVAILABLE"}
    assert bought(gateway, "seat-2", "u2") == "Booking Confirmed"

    eventually(lambda: view("seat-1") == FREE == view("seat-2"))
    eventually(lambda: shown() == {"seat-1": "AVAILABLE", "seat-2": "AVAILABLE"})
    HALL.open.remote().result(timeout=30)


def test_the_manager_resets_fifty_seats() -> None:
    HALL.open.remote().result(timeout=30)
    token = Ticket["seat-50"].reserve.remote("u1").result(timeout=30)
    HALL.set.remote("seat-50", "RESERVED", token).result(timeout=30)

    GameManager.reset.remote().result(timeout=30)

    eventually(lambda: view("seat-50") == FREE)
    eventually(lambda: list(shown().values()) == ["AVAILABLE"] * 50)


# ---------------------------------------------------------------------------------------------------- the gateway


def test_a_key_is_charged_once(gateway: Gateway) -> None:
    async def charge_twice() -> None:
        await asyncio.gather(*(gateway.charge("card_success", 100, "key") for _ in range(5)))
        await gateway.charge("card_success", 100, "key")

    asyncio.run(charge_twice())

    assert read_ledger(gateway.ledger) == [{"kind": "charge", "key": "key", "amount": 100, "card": "card_success"}]


def test_writers_share_a_ledger(tmp_path: Path) -> None:
    ledger = str(tmp_path / "ledger.jsonl")
    lines: list[Line] = [{"kind": "charge", "key": f"key-{number % 20}", "amount": 100} for number in range(100)]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(append_once, [ledger] * len(lines), lines))

    assert sorted(line["key"] for line in read_ledger(ledger)) == sorted(f"key-{number}" for number in range(20))


# ------------------------------------------------------------------------------------------------------- the audit

DECLINED = "Payment failed: Payment declined: Payment declined (Method: card_decline)"


def sound() -> Evidence:
    """Return what a small sale leaves behind when everything is right."""
    return Evidence(
        answers=[
            Answer("c1", "ann", "seat-1", 200, CONFIRMED),
            Answer("c2", "bob", "seat-1", 409, "Ticket already sold"),
            Answer("c3", "bob", "seat-2", 402, DECLINED),
            Answer("c4", "cyd", "seat-3", 402, DECLINED),
            Answer("c5", "dan", "seat-3", 200, CONFIRMED),
        ],
        tickets={"seat-1": sold_to("ann"), "seat-2": FREE, "seat-3": sold_to("dan")},
        seat_map=[on_map("seat-1", "SOLD"), on_map("seat-2", "AVAILABLE"), on_map("seat-3", "SOLD")],
        ledger=[charge("c1"), email("c1"), charge("c5"), email("c5"), charge("c9"), {"kind": "refund", "key": "c9"}],
    )


def sold_to(user: str) -> View:
    return {"status": "SOLD", "reservedBy": user, "reservedUntil": None}


def on_map(seat: str, status: Any) -> Seat:
    return {"id": seat, "status": status}


def charge(key: str) -> Line:
    return {"kind": "charge", "key": key, "amount": 100}


def email(key: str) -> Line:
    return {"kind": "email", "key": key}


def with_answer(evidence: Evidence, answer: Answer) -> Evidence:
    others = [other for other in evidence.answers if other.checkout != answer.checkout]
    return replace(evidence, answers=[*others, answer])


def with_ticket(evidence: Evidence, seat: str, view: View) -> Evidence:
    return replace(evidence, tickets={**evidence.tickets, seat: view})


def with_lines(evidence: Evidence, *lines: Line) -> Evidence:
    return replace(evidence, ledger=[*evidence.ledger, *lines])


def without_lines(evidence: Evidence, kind: str, key: str) -> Evidence:
    return replace(evidence, ledger=[line for line in evidence.ledger if (line["kind"], line["key"]) != (kind, key)])


RESERVED: View = {"status": "RESERVED", "reservedBy": "bob", "reservedUntil": 1}
UNANSWERED = "every buyer was answered"
SOLD_TWICE = "no seat was sold twice"
OWNERS = "a sold seat is its buyer's"
CHARGED_TWICE = "nobody was charged twice"
PAYMENTS = "who paid has a seat, and who has a seat paid"
FREED = "a declined buyer's seat is free again"
MAP = "the map agrees with every ticket"
EMAILS = "each sold seat was confirmed by one e-mail"


def test_the_audit_finds_nothing_where_nothing_is_wrong() -> None:
    found = audit(sound())

    assert list(found) == [UNANSWERED, SOLD_TWICE, OWNERS, CHARGED_TWICE, PAYMENTS, FREED, MAP, EMAILS]
    assert not any(found.values())


@pytest.mark.parametrize(
    ("wrong", "broken"),
    [
        (with_answer(sound(), Answer("c2", "bob", "seat-1", None)), {UNANSWERED}),
        (with_answer(sound(), Answer("c2", "bob", "seat-1", 500, "oops")), {UNANSWERED}),
        (
            with_answer(with_lines(sound(), charge("c2"), email("c2")), Answer("c2", "bob", "seat-1", 200, CONFIRMED)),
            {SOLD_TWICE, OWNERS},
        ),
        (with_ticket(sound(), "seat-1", sold_to("eve")), {OWNERS}),
        (with_ticket(sound(), "seat-1", FREE), {OWNERS, MAP}),
        (with_answer(sound(), Answer("c1", "ann", "seat-1", 409, "Ticket already sold")), {OWNERS, PAYMENTS, EMAILS}),
        (replace(sound(), tickets={"seat-2": FREE, "seat-3": sold_to("dan")}), {OWNERS, MAP}),
        (with_lines(sound(), charge("c1")), {CHARGED_TWICE}),
        (with_lines(without_lines(sound(), "charge", "c1"), {**charge("c1"), "amount": 200}), {CHARGED_TWICE}),
        (with_lines(sound(), charge("c3")), {PAYMENTS}),
        (without_lines(sound(), "charge", "c1"), {PAYMENTS}),
        (without_lines(sound(), "refund", "c9"), {PAYMENTS}),
        (with_lines(sound(), {"kind": "refund", "key": "c1"}), {PAYMENTS}),
        (with_ticket(sound(), "seat-2", RESERVED), {FREED, MAP}),
        (with_ticket(sound(), "seat-2", sold_to("bob")), {FREED, OWNERS, MAP}),
        (replace(sound(), seat_map=[on_map("seat-1", "SOLD"), on_map("seat-3", "SOLD")]), {MAP}),
        (replace(sound(), seat_map=[*sound().seat_map[:2], on_map("seat-3", "RESERVED")]), {MAP}),
        (without_lines(sound(), "email", "c5"), {EMAILS}),
        (with_lines(sound(), email("c3")), {EMAILS}),
        (with_lines(sound(), email("c1")), {EMAILS}),
    ],
)
def test_the_audit_sees_what_is_wrong(wrong: Evidence, broken: set[str]) -> None:
    assert {rule for rule, found in audit(wrong).items() if found} == broken
