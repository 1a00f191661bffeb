"""The buyers: many at once, each with a card, each wanting some seat."""

import asyncio
import random
import time
from dataclasses import dataclass, field

from actors import TerminalError, UnavailableError
from examples.audit import Answer
from examples.hall import Progress
from examples.payments import Gateway
from examples.seat_map import Checkout, Order, seat_ids

CARDS = ("card_success", "card_decline", "card_error")
ODDS = (80, 10, 10)
TRIES = 5
"""Who finds a seat taken tries another one, up to so many in all."""
THOUGHT_S = 1.0
"""And thinks for at most so long in between."""
WORDS = {200: "confirmed", 402: "declined", 409: "taken", None: "missing"}
"""Answers by code, in a word."""
PATIENCE_S = 120.0
"""A checkout without an answer by then counts as unanswered."""


@dataclass(slots=True)
class Buyers:
    """All buyers of a sale, and what they were told."""

    count: int
    seats: int
    seed: int
    gateway: Gateway
    progress: Progress
    answers: list[Answer] = field(default_factory=list[Answer])
    seconds: list[float] = field(default_factory=list[float])
    """How long each checkout took."""
    half: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when half of the seats are sold, or half of the buyers have their last answer."""

    async def run(self) -> None:
        """Let all in at once; return when each has a last answer."""
        await asyncio.gather(*(self._buyer(number) for number in range(self.count)))

    async def _buyer(self, number: int) -> None:
        chance = random.Random(f"{self.seed} {number}")
        card = chance.choices(CARDS, ODDS)[0]
        for seat in chance.sample(seat_ids(self.seats), min(TRIES, self.seats)):
            answer = await self._checkout(f"buyer-{number}", seat, card)
            if answer.code != 409:
                break
            await asyncio.sleep(chance.uniform(0, THOUGHT_S))
        self.progress.done += 1
        self._look_whether_half()

    async def _checkout(self, user: str, seat: str, card: str) -> Answer:
        order: Order = {"ticketId": seat, "userId": user, "paymentMethodId": card}
        began = time.monotonic()
        ref = Checkout.process.options(headers=self.gateway.headers).remote(order)
        try:
            answer = Answer(ref.id, user, seat, 200, await asyncio.wait_for(ref, PATIENCE_S))
        except TerminalError as error:
            answer = Answer(ref.id, user, seat, error.code, str(error))
        except (TimeoutError, UnavailableError) as error:
            answer = Answer(ref.id, user, seat, None, str(error))
        self.seconds.append(time.monotonic() - began)
        self.answers.append(answer)
        self.progress.answers[WORDS.get(answer.code, answer.text)] += 1
        self._look_whether_half()
        return answer

    def _look_whether_half(self) -> None:
        sold = sum(answer.code == 200 for answer in self.answers)
        if 2 * sold >= self.seats or 2 * self.progress.done >= self.count:
            self.half.set()
