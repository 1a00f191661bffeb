"""State changes: what a commit writes of an object's state, within its limits."""

from collections.abc import Mapping

from actors.errors import UsageError
from actors.requests.message import bounded
from journal.store import NamespaceLimits
from journal.texts import error_text

from .activation import Activation
from .open_invocation import OpenInvocation


def changes_of(run: OpenInvocation, activation: Activation, limits: NamespaceLimits) -> dict[str, bytes | None]:
    """Return the writes that turn the stored state into the state as the invocation sees it.

    Raises:
        UsageError: a field cannot be encoded, or is too large; it names the field.
    """
    execution = run.execution
    if execution is None or execution.view is None or not run.exclusive or execution.has_given_up:
        return {}
    stored, view = activation.fields or {}, execution.view
    try:
        seen = view.changes()
    except UsageError:
        raise
    except BaseException as error:
        raise UsageError(f"state cannot be compared with what is stored: {error_text(error)}") from error
    for name in run.olds:
        seen.setdefault(name, view.found(name))
    if not seen:
        return seen
    if view.is_shown is stored:
        changed = seen  # nothing was written since it began
    else:
        changed = {name: value for name, value in seen.items() if value != stored.get(name)}
    for name, value in changed.items():
        if value is not None and len(value) > limits.payload_max:
            bounded(value, f"state {name!r}", limits.payload_max)
    most = (len(stored) + 2 * len(changed)) * limits.payload_max
    if most > limits.state_max or most > limits.written_max:  # fewer fields cannot be more
        bound_state(run.message.target, stored, changed, limits.state_max)
        _bound_written(run, stored, changed, limits.written_max)
    return changed


def _bound_written(
    run: OpenInvocation, stored: Mapping[str, bytes], changed: Mapping[str, bytes | None], written_max: int
) -> None:
    written = sum(len(value or b"") + len(stored.get(name, b"")) for name, value in changed.items())
    if written > written_max:
        raise UsageError(
            f"{run.message.target}.{run.message.handler} writes {written:,} bytes of state, former values "
            f"included, before it waits, the limit written_max is {written_max:,}: let it wait for "
            "something, a step or a sleep, after each few of the large fields"
        )


def bound_state(target: str, stored: Mapping[str, bytes], changed: Mapping[str, bytes | None], state_max: int) -> None:
    """Refuse changes that let the state of an object grow beyond its limit.

    Raises:
        UsageError: the state would be larger than `state_max`.
    """
    grown = sum(len(value or b"") - len(stored.get(name, b"")) for name, value in changed.items())
    if grown > 0 and (size := sum(map(len, stored.values())) + grown) > state_max:
        largest = max(changed, key=lambda name: len(changed[name] or b""))
        raise UsageError(
            f"the state of {target} takes {size:,} bytes with what was written, the limit state_max is {state_max:,} "
            f"(the largest of it is {largest!r}): spread it over more keys, or keep large data elsewhere"
        )
