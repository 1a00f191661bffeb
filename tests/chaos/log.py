"""What drivers note of their operations, and what can be read out of it when they are dead.

A line is appended by one write and so outlives a SIGKILL. An operation is noted before it is submitted, again with its
id as soon as there is one, and then with what became of it; a driver's successor goes on in the same file.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from journal.clock import boot_seconds

Kind = Literal["count", "transfer", "nap", "pest"]


@dataclass(slots=True)
class Operation:
    """One wish of a driver, and everything that was ever noted of it."""

    name: str
    driver: str
    kind: Kind
    key: str
    target: str = ""
    amount: int = 0
    pause_ms: int = 0
    delay_ms: int = 0
    keyed: bool = False
    """It has an idempotency key, its name: a successor may submit it again."""
    how: str = ""
    """Of a pest: which hostility (`hostile.HOSTILITIES`); its answer is how that ended."""
    asked_ms: int = 0
    """The time of day before it was submitted."""
    asked_at: float = 0.0
    ids: list[str] = field(default_factory=list[str])
    accepted: bool = False
    answers: list[Any] = field(default_factory=list[Any])
    refusals: list[str] = field(default_factory=list[str])
    unknown: list[str] = field(default_factory=list[str])
    """Why a driver was told that nothing is known of it."""
    answered_at: float = 0.0

    @property
    def has_ended(self) -> bool:
        """Whether some driver knows what became of it."""
        return bool(self.answers or self.refusals or self.unknown)

    @property
    def is_settled(self) -> bool:
        """Whether a successor has nothing to do for it; of a nap, which is only sent, acceptance is all."""
        return self.has_ended or (self.kind == "nap" and self.accepted)


@dataclass(slots=True)
class Life:
    """One process of a driver."""

    name: str
    started_at: float
    first_at: float = 0.0
    """When it had its first answer."""
    resumed_at: float = 0.0
    """When all was settled that its predecessor had left open."""
    left_open: int = 0


class Log:
    """The file of one driver and its successors."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, **said: Any) -> None:
        """Append one line, with the time."""
        os.write(self._file, json.dumps({**said, "at": boot_seconds()}).encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)


def read(path: Path) -> tuple[dict[str, Operation], list[Life], list[str]]:
    """Return the operations of a log by name, the lives of its drivers, and what was not to happen."""
    operations: dict[str, Operation] = {}
    lives: list[Life] = []
    troubles: list[str] = []
    for line in path.read_text("utf-8").splitlines() if path.exists() else ():
        said = json.loads(line)
        at = said.pop("at")
        match said:
            case {"began": name, "left_open": left_open}:
                lives.append(Life(name, at, left_open=left_open))
            case {"resumed": _}:
                lives[-1].resumed_at = at
            case {"trouble": what}:
                troubles.append(f"{lives[-1].name}: {what}")
            case {"wish": wish}:
                operations[wish["name"]] = Operation(**wish, asked_at=at)
            case _:
                _note(operations[said["name"]], said, at)
                if "answer" in said and not lives[-1].first_at:
                    lives[-1].first_at = at
    return operations, lives, troubles


def _note(operation: Operation, said: dict[str, Any], at: float) -> None:
    match said:
        case {"id": id_}:
            operation.ids.append(id_)
        case {"accepted": True}:
            operation.accepted = True
        case {"answer": answer}:
            operation.answers.append(answer)
            operation.answered_at = operation.answered_at or at
        case {"refusal": why}:
            operation.refusals.append(why)
            operation.answered_at = operation.answered_at or at
        case {"unknown": why}:
            operation.unknown.append(why)
        case _:
            raise ValueError(f"no line of a log: {said}")
