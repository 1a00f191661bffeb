"""Line: a connection to the server, on which one command at a time is asked and answered.

Owns the connections, their errors as ours, and the time after which an answer counts as lost. The only importer of
`redis`, of which it takes what is hard (addresses, TLS, passwords, the greeting) and leaves what costs on every
command: once a connection has opened, its transport speaks to a protocol of ours. With the client's streams and parser
in between, a tenth of what a driver and a host take for a call went there.

Invariants:
    1. Nothing is repeated: what was not answered is an error, and its connection is closed.
    2. A connection whose answer was not read to its end, or that says what nobody asked for, is closed, so that no
       answer is taken for that of another command.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, cast

import hiredis
from redis import exceptions
from redis.asyncio.connection import AbstractConnection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from .errors import FullError, UnavailableError, UsageError

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

_REFUSALS: Final[dict[str, type[Exception]]] = {
    "LOADING": exceptions.BusyLoadingError,
    "NOAUTH": exceptions.AuthenticationError,
    "NOSCRIPT": exceptions.NoScriptError,
    "OOM": exceptions.OutOfMemoryError,
    "READONLY": exceptions.ReadOnlyError,
}
"""What the first word of an error means to us; all else is a refusal."""


def _refused(text: str) -> Exception:
    return _REFUSALS.get(text.partition(" ")[0], Refusal)(text)


def _unanswered() -> TimeoutError:
    return TimeoutError(f"no answer for {ANSWER_MAX:g} s")


def _closed() -> exceptions.ConnectionError:
    return exceptions.ConnectionError("it has closed the connection")


class _Wire(asyncio.Protocol):
    """What comes over one open connection, and who waits for it."""

    def __init__(self, transport: asyncio.WriteTransport, former: asyncio.BaseProtocol) -> None:
        self._transport, self._former = transport, former
        self._reader = cast("Any", hiredis.Reader(replyError=_refused))
        self._answers: list[Any] = []
        self._wanted = 0
        self._waiting: asyncio.Future[None] | None = None
        self._deadline = 0.0
        self._is_watched = False
        self.is_open = True

    async def ask(self, packed: bytes, count: int) -> list[Any]:
        """Send commands and return so many answers, errors among them as they are."""
        loop = asyncio.get_running_loop()
        self._answers, self._wanted, self._deadline = [], count, loop.time() + ANSWER_MAX
        waiting = self._waiting = loop.create_future()
        if not self._is_watched:
            self._watch(loop)
        self._transport.write(packed)
        try:
            await waiting
            return self._answers
        except BaseException:
            self.close()
            raise
        finally:
            self._answers, self._wanted, self._waiting = [], 0, None

    def _watch(self, loop: asyncio.AbstractEventLoop) -> None:
        # One timer for many commands, which moves on when it comes: most are answered long before.
        self._is_watched = self._waiting is not None
        if self._waiting is None:
            return
        if loop.time() < self._deadline:
            loop.call_at(self._deadline, self._watch, loop)
            return
        self._is_watched = False
        self._fail(_unanswered())

    def _fail(self, error: Exception) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(error)

    def close(self) -> None:
        """Close the connection."""
        self.is_open = False
        self._transport.abort()

    # What the transport says (`asyncio.Protocol`)

    def data_received(self, data: bytes) -> None:
        """Take answers."""
        try:
            self._reader.feed(data)
            while (answer := self._reader.gets()) is not False:
                self._answers.append(answer)
        except hiredis.ProtocolError as error:
            self._fail(exceptions.ConnectionError(f"what answers is no Redis: {error}"))
            self.close()
            return
        if len(self._answers) < self._wanted:
            return
        if self._waiting is None or len(self._answers) > self._wanted:
            self.close()
        elif not self._waiting.done():
            self._waiting.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who waits for an answer, and who waits for the end."""
        self.is_open = False
        self._fail(exc or _closed())
        self._former.connection_lost(exc)


class Line:
    """One connection; it opens with the first command, and again after one that failed."""

    def __init__(self, connection: AbstractConnection) -> None:
        self._connection = connection
        self._wire: _Wire | None = None

    async def ask(self, *commands: Command) -> list[Any]:
        """Send commands together and return their answers.

        Raises:
            Refusal: the server does not carry one of them out; of several, others may have been.
            UnavailableError: it does not answer, does not let us in, or takes no writes now (`FullError`: for want of
                memory).
        """
        connection = self._connection
        packed = (
            _packed(connection, commands[0])
            if len(commands) == 1
            else b"".join(_packed(connection, c) for c in commands)
        )
        try:
            wire = self._wire
            if wire is None or not wire.is_open:
                wire = self._wire = await self._open()
            answers = await wire.ask(packed, len(commands))
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
        except exceptions.AuthenticationError as error:
            raise UnavailableError(
                f"the store does not let us in: {error} Name and password belong in the URL, redis://name:password@host"
            ) from error
        except (exceptions.ConnectionError, exceptions.TimeoutError, OSError) as error:
            raise UnavailableError(f"the store does not answer: {error}") from error
        except exceptions.OutOfMemoryError as error:
            raise FullError(f"the store takes no writes: {error}") from error
        except exceptions.ReadOnlyError as error:
            raise UnavailableError(f"the store takes no writes: {error}") from error
        except exceptions.ResponseError as error:
            if str(error).startswith(_TAKES_NO_WRITES):
                raise UnavailableError(f"the store takes no writes: {error}") from error
            raise
        return answers

    async def _open(self) -> _Wire:
        connection = self._connection
        try:
            async with asyncio.timeout(ANSWER_MAX):
                await connection.disconnect(nowait=True)
                await connection.connect()
            # The client has no public way to its transport.
            private = cast("Any", connection)
            transport, is_over = private._writer.transport, private._reader.at_eof()
            if is_over or transport.is_closing():  # it was told so before this, and tells nobody again
                raise _closed()
        except BaseException as error:
            await connection.disconnect(nowait=True)
            if isinstance(error, TimeoutError):
                raise _unanswered() from error
            raise
        wire = _Wire(transport, transport.get_protocol())
        transport.set_protocol(wire)
        transport.set_write_buffer_limits(high=0)  # else a write waits for the loop's turn to end
        return wire

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
            return await line.ask(*commands)
        finally:
            self._free.append(line)

    async def aclose(self) -> None:
        """Close all lines."""
        for line in self._lines:
            await line.aclose()
