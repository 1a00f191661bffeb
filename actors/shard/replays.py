"""Replays: the recorded part of an invocation, delivered to its next attempt in the order of its records."""

from actors.activation.activation import Activation
from actors.activation.open_invocation import OpenInvocation
from actors.activation.watches import refresh_view
from actors.execution.execution import Execution
from journal.records import Delivered, EventKind

from .reentry import Reentry


def replay(run: OpenInvocation, execution: Execution, activation: Activation, reentry: Reentry) -> None:
    """Deliver the recorded events and outcomes of steps; commands that the journal holds are not issued again."""
    execution.repeats = True
    seen, covered = run.seen() if run.reader else ({}, 0)
    for item in run.to_replay():
        if execution.has_ended:
            break
        if run.reader:
            is_recorded = run.deliveries < covered
            refresh_view(run, activation, seen.get(run.deliveries + 1), is_recorded=is_recorded)
        if isinstance(item, Delivered) and item.kind is EventKind.STATE:
            reentry.tell(execution, item)
        elif isinstance(item, Delivered):
            execution.deliver(item)
        else:
            execution.deliver_outcome(*item)
    execution.repeats = False
