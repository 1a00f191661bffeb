"""Endings: whether a failed attempt is the last, and the outcome of the invocation then."""

from actors.blocks.cancel import after_failure, ending_in
from actors.blocks.sagas import CANCELLED, GIVE_UP
from actors.code.code import CodeBook
from actors.errors import TerminalError
from actors.policy import Retry
from actors.values import outcomes
from journal.records import EventKind

from .open_invocation import OpenInvocation


def named(run: OpenInvocation) -> str:
    """Return the name of an invocation for logs and errors."""
    return f"{run.message.target}.{run.message.handler} ({run.id})"


def hint_of(run: OpenInvocation, code: CodeBook) -> str:
    """Return what to do about a failure that a newer version of the class may have mended; empty if there is none."""
    newest = code.newest(run.type_name)
    if newest is None or run.declared is None or newest[0] is run.declared or not run.recorded:
        return ""  # without an entry it goes on with the newest by itself
    return ". It stays on the code that it began with; with the newer one that is there it goes on after its resume()"


def is_last(run: OpenInvocation, retry: Retry, now_ms: int) -> bool:
    """Whether the attempts of an invocation are used up."""
    return retry.is_exhausted(run.attempt, (now_ms - run.began_ms) / 1000 if run.began_ms else 0.0)


def used_up(run: OpenInvocation, error: BaseException) -> TerminalError:
    """Return the outcome of an invocation whose last attempt failed with this error."""
    return outcomes.used_up(error, f"{run.message.target}.{run.message.handler}", run.attempt)


def final_failure(
    run: OpenInvocation, error: BaseException, recorded: str, now_ms: int
) -> tuple[str, TerminalError] | None:
    """Return the entry and the error of an attempt that no other attempt follows; None if another follows.

    `recorded` is the entry that the journal holds at this place: a replay must end in the same way.
    """
    assert run.policy is not None
    retry = run.policy.retry
    ending = ending_in(run.pending)
    if ending is EventKind.KILL:
        return None  # a kill runs no compensation
    if recorded == CANCELLED or (recorded != GIVE_UP and ending is not None):
        return CANCELLED, after_failure(error, EventKind.CANCEL)
    if recorded == GIVE_UP or (retry.on_exhausted == "fail" and is_last(run, retry, now_ms)):
        return GIVE_UP, used_up(run, error)
    return None
