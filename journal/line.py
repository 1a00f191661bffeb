"""Line: a connection to the server, on which one command at a time is asked and answered.

Owns the connections, their errors as ours, and the time after which an answer counts as lost. The only importer of
`redis`, of which it takes what is hard (addresses, TLS, passwords, errors) and leaves what costs on every command: the
client's pool, callbacks and two timeouts each took more than asking and reading together.

Invariants:
    1. Nothing is repeated: what was not answered is an error, and its connection is closed.
    2. A line whose answer was not read to its end is closed, so that no answer is taken for that of another command.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import hiredis
from redis import exceptions
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from .errors import UnavailableError, UsageError

ANSWER_MAX: Final = 10.0
"""Seconds after which a command that is not answered counts as lost."""

_TAKES_NO_WRITES: Final = ("BUSY ", "MISCONF ", "NOREPLICAS ", "MASTERDOWN ", "CLUSTERDOWN ", "TRYAGAIN ")
"""Errors that pass; the server finds them before a script that says its flags begins."""

_pack = cast("Callable[[tuple[Any, ...]], bytes]", hiredis.pack_command)  # pyright: ignore[reportUnknownMemberType]

Command = Sequence[Any]

Refusal = exceptions.ResponseError
"""The server's answer to a command that it does not carry out."""

UnknownScript = exceptions.NoScriptError
"""A restarted server has forgotten the script, and ran nothing."""


class Line:
    """One connection; it opens with the first command, and again after one that failed."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection
        self._asking: asyncio.Task[Any] | None = None
        self._deadline = 0.0
        self._is_late = self._is_watched = False

    async def ask(self, *commands: Command) -> list[Any]:
        """Send commands together and return their answers.

        Raises:
            Refusal: the server does not carry one of them out; of several, others may have been.
            UnavailableError: it does not answer, does not let us in, or takes no writes now.
        """
        try:
            return await self._timed(commands)
        except exceptions.AuthenticationError as error:
            raise UnavailableError(
                f"the store does not let us in: {error} Name and password belong in the URL, redis://name:password@host"
            ) from error
        except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as error:
            raise UnavailableError(f"the store does not answer: {error}") from error
        except (exceptions.ReadOnlyError, exceptions.OutOfMemoryError) as error:
            raise UnavailableError(f"the store takes no writes: {error}") from error
        except exceptions.ResponseError as error:
            if str(error).startswith(_TAKES_NO_WRITES):
                raise UnavailableError(f"the store takes no writes: {error}") from error
            raise

    async def _timed(self, commands: Sequence[Command]) -> list[Any]:
        # As `asyncio.timeout`, but for its timer: one that is set and cleared for each command is half of its cost.
        loop = asyncio.get_running_loop()
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        cancelling = task.cancelling()
        self._asking, self._deadline, self._is_late = task, loop.time() + ANSWER_MAX, False
        if not self._is_watched:
            self._watch(loop)
        try:
            return await self._asked(commands)
        except asyncio.CancelledError as error:
            if self._is_late and task.uncancel() <= cancelling:
                raise TimeoutError(f"no answer for {ANSWER_MAX:g} s") from error
            raise
        finally:
            self._asking = None

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_watched = self._asking is not None
        if self._asking is None:
            return
        if loop.time() < self._deadline:
            loop.call_at(self._deadline, self._watch, loop)
        else:
            self._is_late, self._is_watched = True, False
            self._asking.cancel()

    async def _asked(self, commands: Sequence[Command]) -> list[Any]:
        connection = self._connection
        packed = [_packed(connection, command) for command in commands]
        try:
            await connection.send_packed_command(packed, check_health=False)
            return [await connection.read_response() for _ in commands]
        except BaseException as error:
            if len(commands) > 1 or not isinstance(error, exceptions.ResponseError):
                await connection.disconnect(nowait=True)
            raise

    async def check(self) -> None:
        """Close the connection if the server has done so, or has said what nobody asked for."""
        connection = self._connection
        if connection.is_connected and await connection.can_read():
            await connection.disconnect(nowait=True)

    async def aclose(self) -> None:
        """Close the connection."""
        await self._connection.disconnect()


def _packed(connection: AbstractConnection, command: Command) -> bytes:
    try:
        return _pack(tuple(command))
    except UnicodeEncodeError:  # a user's text may hold what is no valid UTF-8
        return b"".join(connection.pack_command(*command))


class Lines:
    """The lines of one program to one server: as many as it has commands under way at once."""

    def __init__(self, url: str) -> None:
        try:
            self._pool = ConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]  # **kwargs are untyped
                url,
                protocol=2,
                retry=Retry(NoBackoff(), 0),
                retry_on_error=[],
                socket_timeout=None,
                socket_connect_timeout=ANSWER_MAX,
                encoding_errors="surrogatepass",
            )
        except ValueError as error:
            raise UsageError(f"{url!r} is no URL of a Redis or Valkey, redis://host:port/0 for one: {error}") from error
        self._lines: list[Line] = []
        self._free: list[Line] = []

    def open(self) -> Line:
        """Return a line of one's own, on which nothing waits behind others."""
        line = Line(self._pool.make_connection())
        self._lines.append(line)
        return line

    async def ask(self, *command: Any) -> Any:
        """Ask on a free line and return the answer; raises as `Line.ask`."""
        return (await self.ask_all(command))[0]

    async def ask_all(self, *commands: Command) -> list[Any]:
        """Ask several commands in one round trip on a free line; raises as `Line.ask`."""
        if not commands:
            return []
        line = self._free.pop() if self._free else self.open()
        try:
            await line.check()
            return await line.ask(*commands)
        finally:
            self._free.append(line)

    async def aclose(self) -> None:
        """Close all lines."""
        for line in self._lines:
            await line.aclose()
