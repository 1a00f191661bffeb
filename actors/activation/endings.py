"""Verdicts: whether an attempt that has failed is the last, and what the outcome of the invocation is then."""

from actors.blocks.cancel import after_failure, ending_in
from actors.blocks.sagas import CANCELLED, GIVE_UP
from actors.errors import TerminalError
from actors.policy import Retry
from actors.values import outcomes
from journal.records import EventKind

from .activation import InFlight


def named(run: InFlight) -> str:
    """Return how an invocation is called in what people read."""
    return f"{run.message.target}.{run.message.handler} ({run.id})"


def is_last(run: InFlight, retry: Retry, now_ms: int) -> bool:
    """Whether the attempts of an invocation are used up."""
    return retry.is_exhausted(run.attempt, (now_ms - run.began_ms) / 1000 if run.began_ms else 0.0)


def used_up(run: InFlight, error: BaseException) -> TerminalError:
    """Return the outcome of an invocation whose last attempt failed so."""
    return outcomes.used_up(error, f"{run.message.target}.{run.message.handler}", run.attempt)


def last_word(run: InFlight, error: BaseException, recorded: str, now_ms: int) -> tuple[str, TerminalError] | None:
    """Return the entry and the error of an attempt that no other one follows; None if another one does.

    `recorded` is the entry that the journal holds there: a replay ends as it says.
    """
    assert run.policy is not None
    retry = run.policy.retry
    ending = ending_in(run.pending)
    if ending is EventKind.KILL:
        return None  # which undoes nothing
    if recorded == CANCELLED or (recorded != GIVE_UP and ending is not None):
        return CANCELLED, after_failure(error, EventKind.CANCEL)
    if recorded == GIVE_UP or (retry.on_exhausted == "fail" and is_last(run, retry, now_ms)):
        return GIVE_UP, used_up(run, error)
    return None
