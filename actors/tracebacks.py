"""Tracebacks: the bounded text of an error, and the walk over its causes and members.

An error is a graph: causes, contexts, members of groups, the same one in several places. It may be as deep as memory
allows, and cyclic: nothing here recurses over it, and each error is met once.

Invariants:
    1. Nothing here raises, and all results are bounded: in errors, frames and characters.
    2. Attributes are read by the descriptors of `BaseException`: a class may have properties of their names.
"""

import traceback
from collections.abc import Generator, Iterator
from concurrent.futures import thread
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Final, cast

from journal import errors
from journal.texts import error_text

CHAIN_MAX: Final = 16
"""Most errors that are shown of an error and its causes: the first and the last of them."""
GROUP_MAX: Final = 10
"""Most members of a group that are shown."""
DEPTH_MAX: Final = 5
"""Greatest depth of nested groups that is shown."""
ERRORS_MAX: Final = 40
"""Most errors that are shown in all."""
FRAMES_MAX: Final = 40
"""Most frames of each error that are shown, the last ones."""
TRACEBACK_MAX: Final = 16_384
"""Most characters of a traceback: beginning and end of a longer one."""
WALK_MAX: Final = 100_000
"""Most errors that are visited, in a chain or a group."""

_UNSAID: Final = (str(Path(__file__).parent), str(Path(errors.__file__).parent), thread.__file__)
"""Files whose frames do not help a reader of an error: both packages, and the threads of steps."""

_ERROR: Final = cast("Any", BaseException)
_MEMBERS: Final = cast("Any", BaseExceptionGroup).exceptions


def leaves(error: BaseException) -> Iterator[BaseException]:
    """Yield an error that is no group, or the members of a group, each once, in order."""
    left, seen = [error], {id(error)}
    while left and len(seen) < WALK_MAX:
        one = left.pop()
        if not issubclass(type(one), BaseExceptionGroup):
            yield one
            continue
        for member in reversed(_MEMBERS.__get__(one)):
            if id(member) not in seen:
                seen.add(id(member))
                left.append(member)


def led_to(error: BaseException) -> Iterator[BaseException]:
    """Yield an error, its cause, or else its context, theirs, and so on, each once."""
    seen = set[int]()
    found: BaseException | None = error
    while found is not None and id(found) not in seen and len(seen) < WALK_MAX:
        yield found
        seen.add(id(found))
        cause = _ERROR.__cause__.__get__(found)
        found = _ERROR.__context__.__get__(found) if cause is None else cause


def frames_of(error: BaseException) -> list[FrameType]:
    """Return the frames that an error has come through, the innermost first."""
    found: list[FrameType] = []
    trace: TracebackType | None = _ERROR.__traceback__.__get__(error)
    while trace is not None:
        found.append(trace.tb_frame)
        trace = trace.tb_next
    return found[: -WALK_MAX - 1 : -1]


def caused(error: BaseException, cause: BaseException) -> None:
    """Set the cause of an error."""
    _ERROR.__cause__.__set__(error, cause)


def traced(error: BaseException, *, whole: bool = False) -> str:
    """Return the traceback of an error, its causes and its members; without Perdure's frames, unless `whole`."""
    try:
        text = "".join(_ErrorTree(whole).of(error, 0).format()).rstrip()
    except BaseException:  # noqa: BLE001 # sources, names and notes are the user's: the error itself is shown all the same
        text = error_text(error)
    if len(text) <= TRACEBACK_MAX:
        return text
    half = TRACEBACK_MAX // 2
    return f"{text[:half]}\n… ({len(text):,} characters) …\n{text[-half:]}"


class _ErrorText(traceback.TracebackException):
    """One error of several; the reader adds its causes and members."""

    __cause__: traceback.TracebackException | None
    __context__: traceback.TracebackException | None
    exceptions: list[traceback.TracebackException] | None  # pyright: ignore[reportIncompatibleVariableOverride]  # of the same class, as it is there

    def __init__(self, error: BaseException, text: str = "") -> None:
        # With a set of seen errors it does not go on to the causes: as it does for members of a group.
        trace = _ERROR.__traceback__.__get__(error)
        super().__init__(type(error), error, trace, limit=-FRAMES_MAX, _seen=set())
        self._error, self._text = error, text
        self.__cause__ = self.__context__ = self.exceptions = None
        self.__suppress_context__ = False

    def format_exception_only(self, **options: Any) -> Generator[str]:
        """Yield the lines of the error itself."""
        if self._text:
            yield f"{self._text}\n"
            return
        try:
            lines = list(super().format_exception_only(**options))
        except BaseException:  # noqa: BLE001  # of a class without a name, for one
            lines = [f"{error_text(self._error)}\n"]
        yield from lines


class _ErrorTree:
    """Makes a tree of the errors that are shown, of bounded size."""

    def __init__(self, whole: bool) -> None:
        self._whole, self._left, self._seen = whole, ERRORS_MAX, set[int]()

    def of(self, error: BaseException, depth: int) -> _ErrorText:
        chain = _chain(error, self._seen)
        unsaid = len(chain) - CHAIN_MAX
        if unsaid > 0:
            half = CHAIN_MAX // 2
            chain = [*chain[:half], (None, True), *chain[-half:]]
        made: _ErrorText | None = None
        is_cause = False
        for one, is_cause_of_next in reversed(chain):
            said = _left_out(f"… {unsaid:,} errors between are left out") if one is None else self._one(one, depth)
            if is_cause:
                said.__cause__ = made
            else:
                said.__context__ = made
            made, is_cause = said, is_cause_of_next
        assert made is not None
        return made

    def _one(self, error: BaseException, depth: int) -> _ErrorText:
        self._left -= 1
        try:
            said = _ErrorText(error)
        except BaseException:  # noqa: BLE001  # its notes are a property that raises, for one
            said = _left_out(error_text(error))
        if not self._whole:
            kept = [frame for frame in said.stack if not frame.filename.startswith(_UNSAID)]
            said.stack = traceback.StackSummary.from_list(kept or list(said.stack))
        if issubclass(type(error), BaseExceptionGroup):
            said.exceptions = self._members(_MEMBERS.__get__(error), depth)
        return said

    def _members(self, members: tuple[BaseException, ...], depth: int) -> list[traceback.TracebackException]:
        found: list[traceback.TracebackException] = []
        for number, member in enumerate(members):
            if number >= GROUP_MAX or depth >= DEPTH_MAX or self._left <= 0:
                found.append(_left_out(f"… {len(members) - number:,} more in this group are left out"))
                break
            is_new = id(member) not in self._seen
            found.append(
                self.of(member, depth + 1) if is_new else _left_out(f"{error_text(member, 1_000)} (said elsewhere)")
            )
        return found


def _left_out(text: str) -> _ErrorText:
    return _ErrorText(Exception(), text)


def _chain(error: BaseException, seen: set[int]) -> list[tuple[BaseException | None, bool]]:
    """Return an error and its causes, outermost first, each with whether it was the direct cause.

    It ends at an error that was seen; all of these are seen from here on.
    """
    found: list[tuple[BaseException | None, bool]] = [(error, False)]
    seen.add(id(error))
    while len(found) < WALK_MAX:
        cause = _ERROR.__cause__.__get__(error)
        is_cause = cause is not None
        if not is_cause and not _ERROR.__suppress_context__.__get__(error):
            cause = _ERROR.__context__.__get__(error)
        if cause is None or id(cause) in seen:
            break
        seen.add(id(cause))
        found.append((cause, is_cause))
        error = cause
    return found
