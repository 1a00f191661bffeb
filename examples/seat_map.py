"""The seat map: a hall of 50 seats, sold to people who all want them at once.

    python -m examples.seat_map            # 200 buyers, two hosts on Ray, one of them killed half way, and an audit
    python -m examples.seat_map --help

A seat is reserved under a token, a number that grows with each reservation of the seat. Whoever acts for an older
reservation (a checkout that was slow, a timer, a message that came late) is told so, or changes nothing.
"""

import sys
from typing import Literal, NotRequired, TypedDict

from actors import Cancelled, Context, Retry, Service, TerminalError, VirtualObject, handler, shared, state
from examples.payments import Gateway

if __name__ == "__main__":  # before the classes: they belong to `examples.seat_map`, which `examples.sale` imports
    from examples.sale import main

    sys.exit(main())

Status = Literal["AVAILABLE", "RESERVED", "SOLD"]
SEATS = 50
PRICE = 100
HOLD_MS = 15 * 60 * 1000
PAYMENT_FAILED = 402


class View(TypedDict):
    """A seat, as others see it."""

    status: Status
    reservedBy: str | None
    reservedUntil: int | None


class Seat(TypedDict):
    """A seat, as the map shows it."""

    id: str
    status: Status


class Order(TypedDict):
    """What a buyer asks for."""

    ticketId: str
    userId: str
    paymentMethodId: NotRequired[str]


def seat_ids(seats: int = SEATS) -> list[str]:
    """Return the ids of the seats of a hall."""
    return [f"seat-{number}" for number in range(1, seats + 1)]


class Ticket(VirtualObject):
    """One seat; its key is the seat's id."""

    status: Status = state("AVAILABLE")
    user: str | None = state(None)
    holder: str | None = state(None)
    until: int | None = state(None)
    token: int = state(0)

    @handler
    async def reserve(self, ctx: Context, user: str, checkout: str | None = None) -> int:
        """Hold the seat for 15 minutes, for one checkout; return the token of the reservation."""
        holder = checkout or user  # two checkouts of one user are two holders
        if self.status == "SOLD":
            raise TerminalError("Ticket already sold", 409)
        if self.status == "RESERVED" and self.holder != holder:
            raise TerminalError("Ticket is currently reserved", 409)
        if self.status == "AVAILABLE":
            self.status, self.user, self.holder = "RESERVED", user, holder
            self.until = round(ctx.now().timestamp() * 1000) + HOLD_MS
            self.token += 1
            self.expire.options(delay=HOLD_MS / 1000).send(self.token)
        return self.token

    @handler
    async def confirm(self, ctx: Context, token: int) -> None:
        """Sell the seat to the holder of this reservation."""
        if self.status == "AVAILABLE" or self.token != token:
            raise TerminalError("Reservation lost", 409)
        self.status, self.until = "SOLD", None

    @handler
    async def release(self, ctx: Context, token: int) -> bool:
        """End this reservation; return False if the seat is sold by it, and stays so."""
        if self.token != token:
            return True
        if self.status == "RESERVED":
            self._free()
        return self.status != "SOLD"

    @handler
    async def expire(self, ctx: Context, token: int) -> None:
        """End this reservation, which was held for too long."""
        if self.status == "RESERVED" and self.token == token:
            self._free()
            SeatMap["global"].set.send(ctx.key, "AVAILABLE", token)

    @handler
    async def reset(self, ctx: Context) -> None:
        """Make the seat available, whatever it was; reservations under way are lost."""
        self._free()
        self.token += 1
        SeatMap["global"].set.send(ctx.key, "AVAILABLE", self.token)

    @shared
    async def get(self, ctx: Context) -> View:
        """Return the seat as it is."""
        return {"status": self.status, "reservedBy": self.user, "reservedUntil": self.until}

    def _free(self) -> None:
        self.status, self.user, self.holder, self.until = "AVAILABLE", None, None, None


class SeatMap(VirtualObject):
    """All seats at a glance; the one key `global` is busy on purpose."""

    seats: dict[str, Status] = state(default_factory=lambda: _empty(SEATS))
    size: int = state(SEATS)
    automatic_reset: bool = state(False)
    seen: dict[str, int] = state(default_factory=dict)

    @handler
    async def open(self, ctx: Context, size: int = SEATS, automatic_reset: bool = False) -> None:
        """Begin with an empty hall; with automatic reset it empties itself when it is full."""
        self.seats, self.size, self.automatic_reset = _empty(size), size, automatic_reset

    @handler
    async def set(self, ctx: Context, seat: str, status: Status, token: int | None = None) -> None:
        """Show the seat so, unless the token says that this is older than what is shown."""
        if token is not None:
            # A reservation begins as RESERVED and ends as one of the others.
            age = 2 * token + (status != "RESERVED")
            if age < self.seen.get(seat, 0):
                return
            self.seen[seat] = age
        self.seats[seat] = status
        if self.automatic_reset and all(self.seats[id_] == "SOLD" for id_ in seat_ids(self.size)):
            self.seats = _empty(self.size)
            GameManager.reset.send(self.size)

    @handler
    async def reset(self, ctx: Context) -> None:
        """Show all seats as available."""
        self.seats = _empty(self.size)

    @shared
    async def get(self, ctx: Context) -> list[Seat]:
        """Return all seats."""
        return [{"id": id_, "status": status} for id_, status in self.seats.items()]


def _empty(size: int) -> dict[str, Status]:
    return dict.fromkeys(seat_ids(size), "AVAILABLE")


class GameManager(Service):
    """Begins anew."""

    @handler
    async def reset(self, ctx: Context, seats: int = SEATS) -> None:
        """Make every seat available. All messages leave in one commit, so what a seat says next comes after them."""
        SeatMap["global"].reset.send()
        for id_ in seat_ids(seats):
            Ticket[id_].reset.send()


class Checkout(Service):
    """Sells one seat to one buyer: sold and paid, or free and not paid, whatever dies meanwhile."""

    @handler
    async def process(self, ctx: Context, order: Order) -> str:
        """Reserve, charge, confirm, send an e-mail."""
        seat, user, card = order["ticketId"], order["userId"], order.get("paymentMethodId", "card_success")
        ticket, hall, gateway = Ticket[seat], SeatMap["global"], Gateway.of(ctx.headers)
        token = await ticket.reserve.remote(user, ctx.id)
        try:
            await hall.set.remote(seat, "RESERVED", token)
            await self._pay(ctx, gateway, card)
            await ticket.confirm.remote(token)
        except TerminalError as error:
            if await ticket.release.remote(token):
                if error.code != PAYMENT_FAILED:  # the reservation was lost, or the checkout cancelled: it may be paid
                    await ctx.run("refund", gateway.refund, PRICE, ctx.id)
                await hall.set.remote(seat, "AVAILABLE", token)
            else:  # cancelled while it confirmed
                await hall.set.remote(seat, "SOLD", token)
            raise
        await hall.set.remote(seat, "SOLD", token)
        await ctx.run("send-email", gateway.email, user, seat, ctx.id)
        return "Booking Confirmed"

    async def _pay(self, ctx: Context, gateway: Gateway, card: str) -> None:
        try:
            await ctx.run("process-payment", gateway.charge, card, PRICE, ctx.id, retry=Retry(max_attempts=3))
        except Cancelled:
            raise
        except TerminalError as error:
            raise TerminalError(f"Payment failed: {error}", PAYMENT_FAILED) from error
