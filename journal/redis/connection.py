"""Connections to the server: each sends one command at a time, or several together, and reads the answers.

Owns the connections, their errors as ours, and the time after which an answer counts as lost. The only importer of
`redis`, of which it uses the difficult parts (addresses, TLS, passwords, the greeting) and avoids those with a cost on
every command: once a connection has opened, its transport speaks to a protocol of ours. With the client's streams and
parser in between, a tenth of what a driver and a host take for a call went there.

Invariants:
    1. Nothing is repeated: a command without an answer is an error, and its connection is closed.
    2. A connection whose answer was not read to its end, or that brings an answer without a command, is closed, so that
       no answer is taken for that of another command.
"""

import asyncio
import os
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, cast

import hiredis
from redis import exceptions
from redis.asyncio.connection import AbstractConnection, ConnectionPool, UnixDomainSocketConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from journal.errors import DamagedError, DurableError, FullError, NotNowError, UnavailableError

from .url import check, refused

ANSWER_MAX: Final = 10.0
"""Seconds without a byte, in either direction, after which a command that is not answered counts as lost."""

SECONDS_FOR_A_BYTE: Final = 1e-6
"""Seconds that a command gets in addition for each byte, since bytes may wait, unseen, on the way to the server."""

_TAKES_NO_WRITES: Final = (*("BUSY", "CLUSTERDOWN", "MASTERDOWN", "MISCONF", "NOREPLICAS", "READONLY", "TRYAGAIN"),)
"""First words of errors of a server that takes no writes now; it finds them before a script that says its flags
begins."""

_OF_THIS_SERVER: Final = ("BUSY", "MISCONF", "NOREPLICAS")
"""First words of errors after which another connection would be told the same."""

_FOR_GOOD: Final = re.compile(
    r"WRONGTYPE |NOSCRIPT |ERR (?:user_script:|Error (?:compiling|running) script|"
    r"Unknown \w+(?: \w+)? called from script|Wrong number of args|unknown (?:command|subcommand)|"
    r"wrong number of arguments|syntax error|no such key|(?:hash )?value is not |Invalid stream ID|"
    r"The ID specified in |invalid expire time)",
    re.IGNORECASE,
)
"""Errors after which a command will never be carried out, because of its own text or of the data at its keys. All other
errors may pass: the caller waits, and asks again."""

_pack = cast("Callable[[tuple[Any, ...]], bytes]", hiredis.pack_command)  # pyright: ignore[reportUnknownMemberType]

Command = Sequence[Any]

Greet = Callable[[Callable[..., Awaitable[list[Any]]]], Awaitable[None]]
"""Commands sent on each connection before all others; an error of it reaches the caller that opened the connection."""


class RefusedCommand(DamagedError):
    """The server's answer to a command that it never carries out; all its other errors are `UnavailableError`."""


class UnknownScript(RefusedCommand):
    """A restarted server has forgotten the script, and ran nothing."""


class Forbidden(UnavailableError):
    """This user may not do this, until somebody allows it."""


def _refused(text: str) -> DurableError:
    """Return an error of the server as one of ours."""
    word = text.partition(" ")[0]
    if word == "NOSCRIPT":
        return UnknownScript(text)
    if _FOR_GOOD.match(text):
        return RefusedCommand(text)
    if word in ("NOAUTH", "WRONGPASS"):
        remedy = "Name and password belong in the URL, redis://name:password@host"
        return UnavailableError(f"the store does not let us in: {text} {remedy}")
    if word == "OOM":
        return FullError(f"the store takes no writes: {text}")
    if word == "NOPERM":
        return Forbidden(f"the store does not allow it: {text}")
    does = "takes no writes" if word in _TAKES_NO_WRITES else "does not do it now"
    error = NotNowError(f"the store {does}: {text}")
    error.elsewhere = word not in _OF_THIS_SERVER
    return error


def _unanswered() -> TimeoutError:
    return TimeoutError(f"no answer for {ANSWER_MAX:g} s")


def _closed() -> exceptions.ConnectionError:
    return exceptions.ConnectionError("it has closed the connection")


class _Wire(asyncio.Protocol):
    """The answers on one open connection, and the command that waits for them."""

    def __init__(self, transport: asyncio.WriteTransport, former: asyncio.BaseProtocol) -> None:
        self._transport, self._former = transport, former
        self._reader = cast("Any", hiredis.Reader(replyError=_refused))
        self._answers: list[Any] = []
        self._wanted = 0
        self._waiting: asyncio.Future[None] | None = None
        self._deadline = 0.0
        self._unsent = 0
        self._is_watched = False
        self.received = 0
        """Bytes of the last answers."""
        self.is_open = True

    async def ask(self, packed: bytes, count: int) -> list[Any]:
        """Send commands and return so many answers, errors among them as they are."""
        loop = asyncio.get_running_loop()
        self._answers, self._wanted = [], count
        self._deadline = loop.time() + ANSWER_MAX + len(packed) * SECONDS_FOR_A_BYTE
        self.received = 0
        waiting = self._waiting = loop.create_future()
        if not self._is_watched:
            self._watch(loop)
        self._transport.write(packed)
        self._unsent = self._transport.get_write_buffer_size()
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
        unsent = self._transport.get_write_buffer_size()
        if unsent < self._unsent:  # it is slow, and goes on
            self._unsent, self._deadline = unsent, loop.time() + ANSWER_MAX
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

    # Calls of the transport (`asyncio.Protocol`)

    def data_received(self, data: bytes) -> None:
        """Take answers."""
        self.received += len(data)
        try:
            self._reader.feed(data)
            while (answer := self._reader.gets()) is not False:
                self._answers.append(answer)
        except hiredis.ProtocolError as error:
            self._fail(exceptions.ConnectionError(f"what answers is no Redis: {error}"))
            self.close()
            return
        if len(self._answers) < self._wanted:
            self._deadline = asyncio.get_running_loop().time() + ANSWER_MAX
            return
        if self._waiting is None or len(self._answers) > self._wanted:
            self.close()
        elif not self._waiting.done():
            self._waiting.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the command that waits for an answer, and tell the client library."""
        self.is_open = False
        self._fail(exc or _closed())
        self._former.connection_lost(exc)


class _OwnSocket(UnixDomainSocketConnection):
    """A connection to a server of our own user; another's is left before anything is sent to it or read from it."""

    async def _connect(self) -> None:
        from journal.embedded.guard import is_ours  # importable on Linux and macOS alone

        reader, writer = await asyncio.open_unix_connection(self.path)
        try:
            with socket.socket(fileno=os.dup(writer.get_extra_info("socket").fileno())) as end:
                if not is_ours(end):
                    raise PermissionError(f"another user's process listens at {self.path}: it is not believed")
        except BaseException:
            writer.transport.abort()
            raise
        self._reader, self._writer = reader, writer


class Connection:
    """One connection; it opens with the first command, and again after a failure."""

    def __init__(self, connection: AbstractConnection, greet: Greet | None = None) -> None:
        self._connection, self._greet = connection, greet
        self._wire: _Wire | None = None

    async def ask(self, *commands: Command) -> list[Any]:
        """Send commands together and return their answers.

        Raises:
            RefusedCommand: the server never carries one of them out; of several, others may have been.
            UnavailableError: it does not answer, does not let us in, or does not do it now (`FullError`: for want of
                memory).
        """
        answers = await self.answers(*commands)
        for answer in answers:
            if isinstance(answer, Exception):
                if isinstance(answer, NotNowError) and answer.elsewhere and self._wire is not None:
                    self._wire.close()
                raise answer
        return answers

    async def answers(self, *commands: Command) -> list[Any]:
        """Send commands together and return their answers, errors among them as they are.

        Raises:
            UnavailableError: it does not answer, or does not let us in.
        """
        packed = _packed(self._connection, commands)
        try:
            wire = self._wire
            if wire is None or not wire.is_open:
                wire = self._wire = await self._open()
                await self._greeted(wire)
            return await wire.ask(packed, len(commands))
        except (exceptions.RedisError, OSError) as error:
            raise _unreachable(error) from error

    async def _greeted(self, wire: _Wire) -> None:
        if self._greet is None:
            return
        try:
            await self._greet(lambda *commands: wire.ask(_packed(self._connection, commands), len(commands)))
        except BaseException:
            wire.close()  # else the next command would find it open
            raise

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

    @property
    def received(self) -> int:
        """How many bytes the last answers took."""
        return self._wire.received if self._wire is not None else 0

    async def aclose(self) -> None:
        """Close the connection."""
        await self._connection.disconnect()


def _unreachable(error: Exception) -> DurableError:
    """Return an error that came instead of an answer, or while a connection opened, as one of ours."""
    if isinstance(error, exceptions.AuthenticationError):
        return _refused(f"NOAUTH {error}")
    if isinstance(error, exceptions.ResponseError | exceptions.BusyLoadingError):
        return NotNowError(f"the store does not do it now: {error}")
    return UnavailableError(f"the store does not answer: {error}")


def _packed(connection: AbstractConnection, commands: Sequence[Command]) -> bytes:
    try:
        if len(commands) == 1:
            return _pack(tuple(commands[0]))
        return b"".join([_pack(tuple(command)) for command in commands])
    except UnicodeEncodeError:  # a user's text may hold invalid UTF-8
        return b"".join([part for command in commands for part in connection.pack_command(*command)])


def _pool_of(url: str) -> ConnectionPool | None:
    """Return a factory of connections, None if an option is wrong: the error may hold the URL, and stays here."""
    try:
        pool = ConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType]  # **kwargs are untyped
            url,
            protocol=2,
            retry=Retry(NoBackoff(), 0),
            retry_on_error=[],
            socket_timeout=None,
            socket_connect_timeout=ANSWER_MAX,
            encoding_errors="surrogatepass",
        )
        pool.make_connection()
    except (ValueError, TypeError, exceptions.RedisError):
        return None
    return pool


class Connections:
    """The connections of one program to one server: as many as it has commands under way at once."""

    def __init__(self, url: str, greet: Greet | None = None, *, is_ours: bool = False) -> None:
        self._greet = greet
        check(url)
        pool = _pool_of(url)
        if pool is None:
            raise refused(url, "one of its options is unknown, or has a value that it cannot have")
        if is_ours:
            pool.connection_class = _OwnSocket
        self._pool = pool
        self.opened = 0
        """How many connections were opened."""
        self._connections: list[Connection] = []
        self._free: list[Connection] = []

    def open(self) -> Connection:
        """Return a connection for the caller alone, on which nothing waits behind others."""
        connection = Connection(self._pool.make_connection(), self._greeted)
        self._connections.append(connection)
        return connection

    async def _greeted(self, send: Callable[..., Awaitable[list[Any]]]) -> None:
        if self._greet is not None:
            await self._greet(send)
        self.opened += 1

    async def ask(self, *command: Any) -> Any:
        """Ask on a free connection and return the answer; raises as `Connection.ask`."""
        return (await self.ask_all(command))[0]

    async def ask_all(self, *commands: Command) -> list[Any]:
        """Ask several commands in one round trip on a free connection; raises as `Connection.ask`."""
        if not commands:
            return []
        connection = self._free.pop() if self._free else self.open()
        try:
            return await connection.ask(*commands)
        finally:
            self._free.append(connection)

    async def answers(self, *commands: Command) -> list[Any]:
        """Ask several commands on a free connection and return their answers; raises as `Connection.answers`."""
        connection = self._free.pop() if self._free else self.open()
        try:
            return await connection.answers(*commands)
        finally:
            self._free.append(connection)

    async def aclose(self) -> None:
        """Close all connections."""
        for connection in self._connections:
            await connection.aclose()
