"""The audit of a campaign: what drivers noted, what objects hold, what lies outside, and what is left in the store.

A pure function. It trusts none of them: each rule compares two, or one with itself. What a driver was told decides what
must have happened: once, at most once (nobody told it anything), or never.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from journal.keys import TABLE
from journal.store import SHARDS

from .evidence import Evidence, Left, is_under_way
from .hostile import HOSTILITIES
from .log import Operation
from .objects import FUNDS

CLOCK_MS = 2
"""Two times of day that are rounded to milliseconds may differ by so much."""
NOT_FOUND = "NotFoundError"
LATE_S = 1.0
"""A good operation is answered so long after its fault-free time at the latest, whatever the hostile ones do."""


def audit(evidence: Evidence) -> dict[str, list[str]]:
    """Return every rule, with what breaks it."""
    return {
        "drivers did what they were to do": list(evidence.troubles),
        "all that was accepted was answered, and only a driver's death leaves a doubt": list(_unanswered(evidence)),
        "an operation has one id and one answer": list(_answers(evidence)),
        "replies of a counter are 1 to n, each its asker's": list(_replies(evidence)),
        "what was accepted happened once, what is unknown at most once, what was not found never": list(
            _times(evidence)
        ),
        "money is conserved, and no vault was ever short": list(_money(evidence)),
        "a transfer happened as a whole or not at all": list(_transfers(evidence)),
        "a step that was recorded did not run again, and its effect is the one recorded": list(_steps(evidence)),
        "no sleeper woke early": list(_early(evidence)),
        "every hostile operation came to one of its ends": list(_ends(evidence)),
        "no good operation that no fault disturbed was answered 1 s too late": list(_late(evidence)),
        "nothing is left in the store but state and history": list(_left(evidence)),
    }


def _unanswered(evidence: Evidence) -> Iterable[str]:
    for operation in evidence.operations.values():
        if operation.accepted and operation.unknown:
            yield f"{operation.name} was accepted, and is unknown: {operation.unknown}"
        elif operation.accepted and not operation.is_settled:
            yield f"{operation.name} was accepted and not answered"
        elif not operation.is_settled and (operation.ids or operation.keyed or operation.driver not in evidence.killed):
            yield f"{operation.name} was not answered"
        for why in operation.unknown:
            if not why.startswith(NOT_FOUND) or operation.driver not in evidence.killed:
                yield f"{operation.name} is unknown: {why}"


def _answers(evidence: Evidence) -> Iterable[str]:
    for operation in evidence.operations.values():
        if len(set(operation.ids)) > 1:
            yield f"{operation.name} had the ids {operation.ids}"
        told = [*operation.answers, *operation.refusals, *operation.unknown]
        if any(each != told[0] for each in told):
            yield f"{operation.name} was told {told}"
        if any(not why.startswith("402 ") for why in operation.refusals) or (
            operation.refusals and operation.kind != "transfer"
        ):
            yield f"{operation.name} failed: {operation.refusals}"


def _replies(evidence: Evidence) -> Iterable[str]:
    replies: dict[str, Counter[int]] = {key: Counter() for key in evidence.tallies}
    for operation in evidence.operations.values():
        if operation.kind == "count" and operation.answers:
            taken, reply = evidence.tallies[operation.key], operation.answers[0]
            replies[operation.key][reply] += 1
            if not 1 <= reply <= len(taken) or taken[reply - 1] != operation.name:
                yield f"{operation.name} was told {reply}, which is not its place in {operation.key}"
    silent = {operation.name for operation in evidence.operations.values() if not operation.answers}
    for key, taken in evidence.tallies.items():
        yield from (f"{times} were told {reply} by {key}" for reply, times in replies[key].items() if times > 1)
        for number, name in enumerate(taken, 1):
            if number not in replies[key] and name not in silent:
                yield f"nobody was told {number} by {key}"


def _times(evidence: Evidence) -> Iterable[str]:
    for kind, happened in (
        ("count", Counter(name for names in evidence.tallies.values() for name in names)),
        ("nap", Counter(name for naps in evidence.naps.values() for name, _, _ in naps)),
    ):
        wished = {name: operation for name, operation in evidence.operations.items() if operation.kind == kind}
        yield from (f"{name} happened, and nobody had asked" for name in happened.keys() - wished.keys())
        for name, operation in wished.items():
            if happened[name] not in _times_allowed(operation):
                yield f"{name} happened {happened[name]} times, not {_times_allowed(operation)}"
    where = {(name, key) for key, names in evidence.tallies.items() for name in names}
    where |= {(name, key) for key, naps in evidence.naps.items() for name, _, _ in naps}
    for name, key in where:
        if name in evidence.operations and evidence.operations[name].key != key:
            yield f"{name} happened to {key}"


def _times_allowed(operation: Operation) -> tuple[int, ...]:
    if operation.accepted or operation.answers:
        return (1,)
    return (0,) if operation.unknown else (0, 1)


def _money(evidence: Evidence) -> Iterable[str]:
    total, initial = sum(funds for funds, _ in evidence.vaults.values()), FUNDS * len(evidence.vaults)
    if total != initial:
        yield f"there are {total}, there were {initial}"
    for key, (funds, lines) in evidence.vaults.items():
        balances = list(accumulate((amount for _, amount in lines), initial=FUNDS))
        if balances[-1] != funds:
            yield f"vault {key} holds {funds}, its lines say {balances[-1]}"
        if min(balances) < 0:
            yield f"vault {key} was short by {-min(balances)}"


def _transfers(evidence: Evidence) -> Iterable[str]:
    lines: dict[str, list[tuple[str, int]]] = {}
    for key, (_, entries) in evidence.vaults.items():
        for name, amount in entries:
            lines.setdefault(name, []).append((key, amount))
    wished = {name: operation for name, operation in evidence.operations.items() if operation.kind == "transfer"}
    yield from (f"{name} happened, and nobody had asked" for name in lines.keys() - wished.keys())
    for name, operation in wished.items():
        whole = sorted([(operation.key, -operation.amount), (operation.target, operation.amount)])
        found = sorted(lines.get(name, []))
        may_be_whole = not (operation.refusals or operation.unknown)
        if not (found == whole and may_be_whole) and (found or operation.answers):
            yield f"{name} has the lines {found}, and was answered {operation.answers or operation.refusals}"


def _steps(evidence: Evidence) -> Iterator[str]:
    runs: dict[str, list[str]] = {}
    for effect in evidence.effects:
        operation = evidence.operations.get(effect.operation)
        if operation is None or operation.kind != "transfer" or operation.refusals:
            yield f"{effect.operation} has an effect, and no reason for one"
        elif not effect.step_id.startswith(f"{''.join(operation.ids[:1])}:"):
            if operation.ids:
                yield f"{effect.operation} has an effect of step {effect.step_id}, its id is {operation.ids[0]}"
        elif operation.answered_at and effect.at > operation.answered_at and not _had_stopped(evidence, effect.pid):
            yield f"{effect.operation} was answered, and then its step ran again: {effect.run}"
        runs.setdefault(effect.operation, []).append(effect.run)
    steps = {(effect.operation, effect.step_id) for effect in evidence.effects}
    yield from (f"{name} has {times} steps" for name, times in Counter(name for name, _ in steps).items() if times > 1)
    for operation in evidence.operations.values():
        if operation.kind == "transfer" and operation.answers:
            found, recorded = runs.get(operation.name, []), operation.answers[0]
            if recorded not in found:
                yield f"{operation.name} recorded {recorded}, outside there are {found}"


def _had_stopped(evidence: Evidence, pid: int) -> bool:
    # Stopped in the instant before the effect, a host does it when it goes on (promise 4).
    return any(stop.pid == pid for stop in evidence.stops)


def _early(evidence: Evidence) -> Iterable[str]:
    for naps in evidence.naps.values():
        for name, began, woke in naps:
            operation = evidence.operations.get(name)
            if operation is None:
                continue  # `_times` says so
            if woke - began < operation.pause_ms - CLOCK_MS:
                yield f"{name} slept {woke - began} ms, not {operation.pause_ms}"
            if began - operation.asked_ms < operation.delay_ms - CLOCK_MS:
                yield f"{name} began after {began - operation.asked_ms} ms, not {operation.delay_ms}"


def _ends(evidence: Evidence) -> Iterable[str]:
    for operation in evidence.operations.values():
        if operation.kind == "pest" and operation.answers and operation.answers[0] not in HOSTILITIES[operation.how]:
            allowed = ", ".join(sorted(HOSTILITIES[operation.how]))
            yield f"{operation.name}, {operation.how}, came to {operation.answers[0]}, not to {allowed}"


@dataclass(slots=True)
class Took:
    """How long good operations of a kind took beyond their pauses, at most, where no fault disturbed them."""

    judged: int = 0
    """So many beside what is hostile."""
    beside_s: float = 0.0
    alone_s: float = 0.0
    """Without anything hostile: what they take on this machine."""


def _over_s(operation: Operation) -> float:
    pause_s = operation.pause_ms / 1_000 if operation.answers else 0.0  # a refusal comes before the pause
    return operation.answered_at - operation.asked_at - pause_s


def _undisturbed(evidence: Evidence) -> Iterator[Operation]:
    for operation in evidence.operations.values():
        is_good = operation.kind in ("count", "transfer") and operation.answered_at
        if is_good and not any(disturbed.has_met(operation) for disturbed in evidence.disturbed):
            yield operation


def over_s(evidence: Evidence) -> dict[str, Took]:
    """Return how long the good operations of each kind took."""
    found: dict[str, Took] = {}
    for operation in _undisturbed(evidence):
        took = found.setdefault(operation.kind, Took())
        if operation.asked_at >= evidence.calm_from:
            took.alone_s = max(took.alone_s, _over_s(operation))
        else:
            took.judged += 1
            took.beside_s = max(took.beside_s, _over_s(operation))
    return found


def _late(evidence: Evidence) -> Iterable[str]:
    if not any(operation.kind == "pest" for operation in evidence.operations.values()):
        return
    took = over_s(evidence)
    if not any(each.judged for each in took.values()):
        yield "there was no such operation: nobody knows whether the hostile ones would have been noticed"
    for operation in _undisturbed(evidence):
        late_s = _over_s(operation) - took[operation.kind].alone_s
        if operation.asked_at < evidence.calm_from and late_s > LATE_S:
            yield f"{operation.name}, a {operation.kind} of {operation.key}, was answered {late_s:.2f} s late"


def _left(evidence: Evidence) -> Iterable[str]:
    types = {row: kind for row, kind, _ in TABLE}
    for key in evidence.left:
        if not key.row:
            yield f"{key.key} is in no table"
        elif types[key.row].replace("sorted set", "zset") != key.type:
            yield f"{key.key} is a {key.type}"
        elif is_under_way(key):
            yield f"{key.key} holds {key.open or key.size}"
        elif key.row in ("<ns>:writer:<id>", "<ns>:replies:<id>") and not key.expires:
            yield f"{key.key} never expires"
    yield from _owners(evidence.left, evidence.hosts)


def _owners(left: Iterable[Left], hosts: int) -> Iterable[str]:
    sizes = {key.row: key.size for key in left if key.row == "<ns>:hosts"}
    if sizes.get("<ns>:hosts") != hosts:
        yield f"{sizes.get('<ns>:hosts')} hosts are listed, not {hosts}"
    leases = sum(key.row == "<ns>:<shard>:lease" for key in left)
    if leases != SHARDS:
        yield f"{leases} shards have an owner, not {SHARDS}"
