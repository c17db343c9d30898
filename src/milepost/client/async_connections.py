"""Connections to one server on one event loop: asyncio's transports, and answers read by the parser that the server reads requests
with. The SDK and the worker both speak on them.

A whole library for HTTP took 10 MB of each executor, a quarter of its start, and two thirds of what a request cost it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from http.client import HTTPException
from socket import SOCK_STREAM, socket
from typing import TYPE_CHECKING, NamedTuple, cast
from urllib.parse import SplitResult

from milepost.client.messages import Answer, header_lines, length_line, request_line

if TYPE_CHECKING:
    from ssl import SSLContext

# A larger body is sent in pieces, so that the loop has its turn in between.
PIECE_BYTES = 512 * 1024
# So much of a stream is kept for a reader that is busy; then the server has to wait.
KEPT_BYTES_MAX = 1024 * 1024
# One that has rested for longer is not used any more: the server may be closing it at this moment.
REST_SECONDS_MAX = 15.0

# What is raised when there is no answer. A host that is no name is a UnicodeError.
FAILURES = (HTTPException, OSError, UnicodeError)


class Limits(NamedTuple):
    """How long to wait, in seconds.

    Attributes:
        connect: for a connection, with each address that the server has.
        silence: until something moves on it.
    """

    connect: float
    silence: float


class AsyncConnections:
    """The connections to one server. Belongs to the event loop that uses it first; `close` ends what is left.

    Args:
        address: of the server.
        common_lines: headers of every request, as they are sent.
        count_max: so many requests are under way at once, and others wait for their turn; None for any number.
    """

    def __init__(self, address: SplitResult, common_lines: bytes, *, count_max: int | None = None) -> None:
        self._address = address
        self._common_lines = common_lines
        self._turns = None if count_max is None else asyncio.Semaphore(count_max)
        # The last used first.
        self._resting: list[_Connection] = []
        self._open: set[_Connection] = set()
        self._certificates: SSLContext | None = None

    async def exchange(
        self, method: str, target: str, body: bytes | None, headers: Mapping[str, str], limits: Limits
    ) -> tuple[Answer, bytes]:
        """Send one request, once; its answer, and the body of that.

        Raises: one of `FAILURES` when there is none.
        """
        if self._turns is None:
            return await self._exchange(method, target, body, headers, limits)
        async with self._turns:
            return await self._exchange(method, target, body, headers, limits)

    async def _exchange(
        self, method: str, target: str, body: bytes | None, headers: Mapping[str, str], limits: Limits
    ) -> tuple[Answer, bytes]:
        connection = self._rested() or await self._connect(limits.connect)
        try:
            answer = await connection.ask(self._head(method, target, body, headers), body, limits.silence)
            await connection.until(lambda: answer.is_whole, limits.silence)
        except BaseException:
            # Whatever has interrupted it: an answer may still come, which nobody is to take for another one.
            self._close(connection)
            raise
        if connection.may_rest:
            connection.rest()
            self._resting.append(connection)
        else:
            self._close(connection)
        return answer, answer.take()

    async def open(
        self, method: str, target: str, body: bytes | None, headers: Mapping[str, str], limits: Limits
    ) -> Incoming:
        """Send one request, on a connection of its own; its answer as it comes. To be closed.

        Raises: one of `FAILURES` when there is none.
        """
        connection = await self._connect(limits.connect)
        try:
            connection.kept_bytes_max = KEPT_BYTES_MAX
            answer = await connection.ask(self._head(method, target, body, headers), body, limits.silence)
            await connection.until(lambda: answer.has_head, limits.silence)
        except BaseException:
            # Whatever has interrupted it: nobody will read the answer.
            self._close(connection)
            raise
        return Incoming(connection, answer, limits.silence, self._close)

    async def close(self) -> None:
        """End all connections. Who waits for an answer gets none."""
        for connection in list(self._open):
            self._close(connection)
        self._resting.clear()
        # Their ends are seen in the loop's next round, and a loop that is closed before it complains.
        await asyncio.sleep(0)

    def _head(self, method: str, target: str, body: bytes | None, headers: Mapping[str, str]) -> bytes:
        line = request_line(method, self._address.path + target)
        return line + self._common_lines + header_lines(headers) + length_line(method, body)

    def _rested(self) -> _Connection | None:
        while self._resting:
            connection = self._resting.pop()
            if connection.is_fresh:
                return connection
            self._close(connection)
        return None

    async def _connect(self, seconds: float) -> _Connection:
        """A new connection: to the first address of the server that answers."""
        loop = asyncio.get_running_loop()
        host, is_secure = self._address.hostname or "", self._address.scheme == "https"
        port = self._address.port or (443 if is_secure else 80)
        certificates = self._trusted() if is_secure else None
        async with asyncio.timeout(seconds):
            places = await loop.getaddrinfo(host, port, type=SOCK_STREAM)
        failure: Exception = OSError(f"{host} has no address")
        for family, kind, protocol, _, place in places:
            try:
                # A system may have no such addresses although it knows one.
                sock = socket(family, kind, protocol)
            except OSError as error:
                failure = error
                continue
            try:
                sock.setblocking(False)
                async with asyncio.timeout(seconds):
                    await loop.sock_connect(sock, place)
                    _, connection = await loop.create_connection(
                        lambda: _Connection(loop),
                        sock=sock,
                        ssl=certificates,
                        server_hostname=host if is_secure else None,
                    )
            except OSError as error:
                sock.close()
                failure = error
            except BaseException:
                # Whoever has interrupted it leaves no socket behind.
                sock.close()
                raise
            else:
                self._open.add(connection)
                return connection
        raise failure

    def _trusted(self) -> SSLContext:
        if self._certificates is None:
            from ssl import create_default_context

            self._certificates = create_default_context()
        return self._certificates

    def _close(self, connection: _Connection) -> None:
        self._open.discard(connection)
        connection.close()


class Incoming:
    """An answer whose body comes bit by bit.

    Attributes:
        status: of the answer.
    """

    def __init__(
        self,
        connection: _Connection,
        answer: Answer,
        silence_seconds: float,
        close: Callable[[_Connection], None],
    ) -> None:
        self._connection = connection
        self._answer = answer
        self._silence_seconds = silence_seconds
        self._close = close
        self.status = answer.status

    async def more(self) -> bytes:
        """What has come since the last time, as soon as there is anything; nothing at the end.

        Raises: one of `FAILURES` when the connection breaks, or nothing comes for too long.
        """
        answer = self._answer
        await self._connection.until(lambda: answer.size > 0 or answer.is_whole, self._silence_seconds)
        content = answer.take()
        self._connection.go_on_reading()
        return content

    async def rest(self) -> bytes:
        """All that is still to come. Raises as `more`."""
        parts: list[bytes] = []
        while part := await self.more():
            parts.append(part)
        return b"".join(parts)

    def close(self) -> None:
        """End it, wherever it is. Twice is fine."""
        self._close(self._connection)


class _Connection(asyncio.Protocol):
    """One connection, which is asked one thing at a time.

    Attributes:
        kept_bytes_max: so much of a body may wait for its reader.
    """

    _transport: asyncio.Transport

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._answer: Answer | None = None
        self._is_open = True
        self._is_sent = False
        self._can_send = True
        self._is_paused = False
        self._rests_since = 0.0
        self._failure: BaseException | None = None
        self._moved_at = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self._is_there: Callable[[], bool]
        self._timer: asyncio.TimerHandle
        self.kept_bytes_max: int | None = None

    # --- what is done with it --------------------------------------------------------------------------------

    async def ask(self, head: bytes, body: bytes | None, seconds: float) -> Answer:
        """Send a request; the answer, which is still to come. It is not sent to its end when the server answers before that."""
        self._answer = answer = Answer()
        self._is_sent = True
        if body is None or len(body) <= PIECE_BYTES:
            # In one write, which saves a system call and a packet.
            self._transport.write(head if body is None else head + body)
            return answer
        self._transport.write(head)
        for start in range(0, len(body), PIECE_BYTES):
            await self.until(lambda: self._can_send or answer.has_head, seconds)
            if answer.has_head:
                self._is_sent = False
                break
            self._transport.write(memoryview(body)[start : start + PIECE_BYTES])
            await asyncio.sleep(0)
        return answer

    async def until(self, is_there: Callable[[], bool], seconds: float) -> None:
        """Wait until something is there. Raises one of `FAILURES`; TimeoutError when nothing has moved for so long."""
        if is_there():
            return
        if self._failure is not None:
            raise self._failure
        self._is_there = is_there
        self._waiter = self._loop.create_future()
        self._moved_at = self._loop.time()
        self._timer = self._loop.call_later(seconds, self._look_at_silence, seconds)
        try:
            await self._waiter
        finally:
            self._timer.cancel()
            self._waiter = None

    @property
    def may_rest(self) -> bool:
        """True when it can be asked again."""
        answer = self._answer
        return (
            self._is_open
            and self._is_sent
            and answer is not None
            and answer.is_whole
            and not answer.will_close
        )

    @property
    def is_fresh(self) -> bool:
        """True while it has not rested for long, and the server has not closed it."""
        return self._is_open and self._loop.time() - self._rests_since < REST_SECONDS_MAX

    def rest(self) -> None:
        """Nothing is asked for the moment."""
        self._let_go()
        self._rests_since = self._loop.time()

    def go_on_reading(self) -> None:
        """The reader has taken what was there."""
        if self._is_paused and self._is_open:
            self._is_paused = False
            self._transport.resume_reading()

    def close(self) -> None:
        """End it at once."""
        self._is_open = False
        self._let_go()
        self._transport.abort()

    def _let_go(self) -> None:
        if self._answer is not None:
            self._answer.let_go()
            self._answer = None

    # --- what the loop calls ---------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is there."""
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        """Something has come."""
        answer = self._answer
        if answer is None:
            # Nobody has asked for it: whatever comes next here could be taken for an answer.
            self.close()
            return
        self._moved_at = self._loop.time()
        try:
            answer.feed(data)
        except HTTPException as error:
            self._fail(error)
            return
        if self.kept_bytes_max is not None and answer.size > self.kept_bytes_max and not self._is_paused:
            self._is_paused = True
            self._transport.pause_reading()
        self._look()

    def pause_writing(self) -> None:
        """It takes no more at the moment."""
        self._can_send = False

    def resume_writing(self) -> None:
        """It takes more."""
        self._can_send = True
        self._moved_at = self._loop.time()
        self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended."""
        self._is_open = False
        if self._answer is None or self._answer.is_whole:
            failure: BaseException = ConnectionError("the connection was closed")
        else:
            failure = exc or self._early_end(self._answer)
        self._fail(failure)

    @staticmethod
    def _early_end(answer: Answer) -> BaseException:
        try:
            answer.end()
        except FAILURES as error:
            return error
        return ConnectionError("the connection was closed")

    def _fail(self, failure: BaseException) -> None:
        self._is_open = False
        if self._failure is None:
            self._failure = failure
        self._look()

    def _look(self) -> None:
        """Let go on who waits, if it may."""
        if self._waiter is None or self._waiter.done():
            return
        if self._is_there():
            self._waiter.set_result(None)
        elif self._failure is not None:
            self._waiter.set_exception(self._failure)

    def _look_at_silence(self, seconds: float) -> None:
        left = self._moved_at + seconds - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look_at_silence, seconds)
        else:
            self._fail(TimeoutError())
