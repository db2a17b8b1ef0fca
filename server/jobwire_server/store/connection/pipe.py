"""One connection for many script calls at a time: each is sent as it comes.

A connection of redis-py's pool serves one caller after the other, and each of them pays for
borrowing it, for a timeout and for some turns of the event loop: more than the store takes for the
call. Here a call is packed and written, its future joins a queue, and the answers, which come in
the order of the calls, resolve the futures as they are read. redis-py still makes the connection,
whatever its address, encryption and user are, and names the errors.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import hiredis
from redis.asyncio.connection import AbstractConnection, DefaultParser
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, ReadOnlyError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

CLOSED = "Connection closed by server."
_PING = hiredis.pack_command(("PING",))
_NOT_YET = object()


class Pipe:
    """Sends commands to one node, over one connection after the other, each opened when needed.

    No command may block in the store, because all that come later wait for its answer.

    Args:
        make: Returns a connection of redis-py that is not open yet.
    """

    def __init__(self, make: Callable[[], AbstractConnection]) -> None:
        self._make = make
        self._wire: _Wire | None = None

    def send(self, words: tuple[Any, ...]) -> asyncio.Future[Any]:
        """Send a command; the future gets its answer. Cancelling it drops the answer.

        What it may raise besides an error of the store: a ConnectionError or TimeoutError of redis
        if the connection can't be opened, breaks, or brings no answer for as long as a read may
        take. Then the command may have been done.
        """
        packed = hiredis.pack_command(words)
        wire = self._wire
        if wire is None or wire.over():
            wire = self._wire = _Wire(self._make)
        return wire.send(packed)

    @property
    def busy(self) -> bool:
        """Some command waits for its answer."""
        return self._wire is not None and self._wire.busy

    async def close(self) -> None:
        """Close the connection; commands under way fail. Harmless if there is none."""
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.close()


class _Wire(asyncio.Protocol):
    """The life of one connection, from its opening to its first error."""

    def __init__(self, make: Callable[[], AbstractConnection]) -> None:
        self._make = make
        self._loop = asyncio.get_running_loop()
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse, replyError=_error_of, notEnoughData=_NOT_YET
        )
        self._asked: deque[asyncio.Future[Any]] = deque()
        """Calls whose answers are to come, in their order."""
        self._unsent: list[bytes] = []
        """Calls that came while the connection was being opened."""
        self._transport: asyncio.Transport | None = None
        """None until the connection is open."""
        self._where = ""
        self._idle_s = 0.0
        """How long it may rest before it is tried; 0: for ever."""
        self._since = 0.0
        """When the wait for the next answer began; between calls, when the last one came."""
        self._timer: asyncio.TimerHandle | None = None
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._task = asyncio.create_task(self._live(), name="store-pipe")

    @property
    def busy(self) -> bool:
        """Some call waits for its answer."""
        return bool(self._asked)

    def over(self) -> bool:
        """It takes no more calls."""
        if self._ended.done():
            return True
        transport = self._transport
        if transport is not None and transport.is_closing():
            # Somebody closed it, and the loop has yet to say so.
            self.end(RedisConnectionError(CLOSED))
            return True
        return False

    def send(self, packed: bytes) -> asyncio.Future[Any]:
        """Send a packed command, as soon as the connection is open."""
        future: asyncio.Future[Any] = self._loop.create_future()
        if not self._asked:
            self._since = self._loop.time()
        self._asked.append(future)
        if self._transport is None:
            self._unsent.append(packed)
        else:
            self._transport.write(packed)
        return future

    def end(self, error: BaseException) -> None:
        """Close the connection; whoever waits for an answer gets the error."""
        if self._ended.done():
            return
        self._ended.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            # What is left to write would keep a store that hangs from being given up.
            self._transport.abort()
        for future in self._asked:
            if not future.done():
                future.set_exception(error)
        self._asked.clear()
        self._unsent.clear()

    async def close(self) -> None:
        """Close the connection, whether or not it is open yet."""
        self.end(RedisConnectionError("the connection was closed"))
        self._task.cancel()
        await asyncio.wait([self._task])

    # ------------------------------------------------- what the transport says

    def data_received(self, data: bytes) -> None:
        """Take answers."""
        asked, gets = self._asked, self._reader.gets
        readonly = False
        try:
            self._reader.feed(data)
            while (answer := gets()) is not _NOT_YET:
                if not asked:
                    raise InvalidResponse(f"an answer to nothing: {answer!r:.200}")
                future = asked.popleft()
                # Not one whose caller gave up.
                if not future.done():
                    if isinstance(answer, RedisError):
                        readonly |= isinstance(answer, ReadOnlyError)
                        future.set_exception(answer)
                    else:
                        future.set_result(answer)
                self._since = self._loop.time()
        except RedisError as error:
            self.end(error)
        if readonly:
            # The next call looks for the primary.
            self.end(RedisConnectionError("the primary has become a replica"))

    def connection_lost(self, error: Exception | None) -> None:
        """The connection is gone."""
        said = f"Error while reading from {self._where}: {error}" if error else CLOSED
        self.end(RedisConnectionError(said))

    # ------------------------------------------------------------------ its life

    async def _live(self) -> None:
        connection: Any = None
        try:
            connection = self._make()
            connection.protocol = 2  # no pushes between the answers
            await connection.connect()
            self._take_over(connection)
            await self._ended
        except (RedisError, OSError, TimeoutError) as error:
            self.end(error)
        except Exception as error:  # in redis-py, if the connection is closed while it is opened
            self.end(RedisConnectionError(f"{type(error).__name__}: {error}"))
        finally:
            self.end(RedisConnectionError(CLOSED))
            if connection is not None:
                await connection.disconnect(nowait=True)

    def _take_over(self, connection: Any) -> None:
        """Read from an open connection in redis-py's place."""
        # A loss that somebody else was told of.
        if not connection.is_connected or connection._reader.at_eof():
            raise RedisConnectionError(CLOSED)
        transport = cast(asyncio.Transport, connection._writer.transport)
        if transport.is_closing():
            raise RedisConnectionError(CLOSED)
        transport.set_protocol(self)
        self._where = connection._host_error()
        self._idle_s = connection.health_check_interval
        self._transport = transport
        self._since = self._loop.time()
        transport.write(b"".join(self._unsent))
        self._unsent.clear()
        silence_s = connection.socket_timeout
        if silence_s is not None:
            self._timer = self._loop.call_later(silence_s, self._watch, silence_s)

    def _watch(self, silence_s: float) -> None:
        """Give a silent store up, and try a connection that has rested for long.

        One timer for all calls, which runs all the while.
        """
        waited = self._loop.time() - self._since
        if not self._asked:
            if 0 < self._idle_s <= waited:
                self.send(_PING).cancel()  # nobody waits for its answer
            left = silence_s
        elif waited >= silence_s:
            self.end(RedisTimeoutError(f"Timeout reading from {self._where}"))
            return
        else:
            left = silence_s - waited
        self._timer = self._loop.call_later(left, self._watch, silence_s)


def _error_of(text: str) -> Exception:
    """Return what the store's words mean, as redis-py has it."""
    return cast(Exception, DefaultParser.parse_error(text))  # type: ignore[no-untyped-call]


class Pipes:
    """The pipes to all nodes: two for each, so that no write waits behind a page of large jobs.

    Args:
        make: Returns a connection to a node.
    """

    def __init__(self, make: Callable[[str], AbstractConnection]) -> None:
        self._make = make
        self._open: dict[tuple[str, bool], Pipe] = {}

    def of(self, node: str, *, reads: bool) -> Pipe:
        """Return the pipe to a node.

        Args:
            node: Its name; "" where there is only one.
            reads: It is for what only reads, whose answers may have megabytes.
        """
        pipe = self._open.get((node, reads))
        if pipe is None:
            pipe = self._open[node, reads] = Pipe(lambda: self._make(node))
        return pipe

    async def close(self) -> None:
        """Close every connection."""
        pipes = [*self._open.values()]
        self._open.clear()
        for pipe in pipes:
            await pipe.close()
