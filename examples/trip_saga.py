"""A trip: flight, car and hotel are booked one after the other; when one fails, what was booked is undone."""

import actors
from actors import Context, Service, TerminalError, handler

RATES = {"flight": 320, "car": 90}


def book(what: str, key: str) -> None:
    """Book at a partner, who knows the key: asked twice, it books once."""
    if what not in RATES:
        raise TerminalError(f"no {what} is free", 409)
    print(f"booked the {what} for {RATES[what]}")


def cancel(what: str, key: str) -> None:
    """Cancel what was booked with this key, if anything was."""
    print(f"cancelled the {what}" if what in RATES else f"there was no {what} to cancel")


def pay(amount: int) -> int:
    """Take the money."""
    print(f"took {amount}")
    return amount


def refund(amount: int) -> None:
    """Give the money back."""
    print(f"gave {amount} back")


class Trip(Service):
    """Books a trip as a whole, or not at all."""

    @handler
    async def plan(self, ctx: Context, *wanted: str) -> None:
        """Pay, then book each part; what is deferred runs only if this ends in an error, newest first."""
        await ctx.run("pay", pay, 700, undo=refund)
        for what in wanted:
            ctx.defer(f"cancel {what}", cancel, what, ctx.id)  # before: the answer of a booking may be lost
            await ctx.run(f"book {what}", book, what, ctx.id)


if __name__ == "__main__":
    with actors.init(hosts="local"):  # in this process, so that one sees what its steps print
        try:
            Trip.plan.remote("flight", "car", "hotel").result()
        except TerminalError as error:
            print(f"no trip: {error} ({error.code})")

# It prints:
#
#   took 700
#   booked the flight for 320
#   booked the car for 90
#   there was no hotel to cancel
#   cancelled the car
#   cancelled the flight
#   gave 700 back
#   no trip: no hotel is free (409)
