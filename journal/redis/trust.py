"""Trust: the verdict whether the server keeps what it acknowledges, by its last answers about its settings.

Owns the asking and the verdict. Settings change while programs are connected, and a server that comes back may have
others: each connection asks before all else, and every host and driver asks again each second.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from journal.errors import NotNowError, SettingsError, UnavailableError

from .connection import Forbidden, RefusedCommand
from .settings import WANTED, check_settings, refusal

_ASKED: Final = (("CONFIG", "GET", *WANTED), ("ROLE",))
_REWRITTEN: Final = ("INFO", "persistence")


class Trust:
    """The verdict on one server, by its last answers about its settings."""

    def __init__(self) -> None:
        self.verdict: SettingsError | None = None
        """Why it may not; None if all is well."""

    async def ask(self, send: Callable[..., Awaitable[Sequence[Any]]]) -> None:
        """Ask the server, and keep the verdict.

        Raises:
            UnavailableError: it may lose what it acknowledges, or says nothing now.
        """
        answers = await send(*_ASKED, *([_REWRITTEN] if self.verdict else ()))
        for answer in answers:
            if isinstance(answer, NotNowError):
                raise answer
        try:
            _judge(answers)
        except SettingsError as error:
            self.verdict = error
        else:
            self.verdict = None
        self.check()

    def check(self) -> None:
        """Return if the last verdict was good.

        Raises:
            UnavailableError: it was not; the message says what to set.
        """
        if self.verdict is not None:
            raise UnavailableError(f"nothing is written until the store is mended: {self.verdict}")


def _judge(answers: Sequence[Any]) -> None:
    for answer in answers:
        if isinstance(answer, Forbidden | RefusedCommand):
            raise refusal(f"its settings may not be read ({answer})")
        if isinstance(answer, Exception):
            raise answer
    settings, role, *rewritten = answers
    found = {name.decode(): value.decode() for name, value in zip(settings[::2], settings[1::2], strict=True)}
    check_settings(found, role[0].decode(), len(role[2]) if role[0] == b"master" else 0)
    for state in rewritten:  # it was weak: its writes of that time are in its file when that has been written anew
        said = dict(line.partition(b":")[::2] for line in state.split(b"\r\n"))
        under_way = said.get(b"aof_rewrite_in_progress") != b"0" or said.get(b"aof_rewrite_scheduled") != b"0"
        if under_way or said.get(b"aof_last_bgrewrite_status") != b"ok":
            raise refusal("its append-only file is being written anew, and not whole until then")
