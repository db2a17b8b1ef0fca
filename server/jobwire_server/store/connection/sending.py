"""Connections of redis-py whose commands can be cancelled at any moment.

redis-py bounds each send with `asyncio.wait_for`. Before Python 3.12 that function drops a
cancellation which arrives in the moment when the send is done, so that a loop which is being
stopped goes on for ever; and it makes a task for every command, which costs more than the
command. `asyncio.timeout` does neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import hiredis
from redis.asyncio.connection import Connection, SSLConnection, UnixDomainSocketConnection
from redis.asyncio.sentinel import SentinelManagedConnection, SentinelManagedSSLConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

_SCRIPT_CALLS = frozenset({"EVALSHA", "EVAL"})


class _Cancellable:
    """Sends as redis-py does, with its own errors, and hears every cancellation."""

    def pack_command(self: Any, *args: Any) -> list[bytes]:
        # A batch has hundreds of arguments, which redis-py packs one by one in Python: a quarter
        # of all that a busy server does. Names of two words ("CONFIG GET") are left to it.
        if args[0] in _SCRIPT_CALLS:
            return [hiredis.pack_command(args)]
        packed: list[bytes] = super().pack_command(*args)  # type: ignore[misc]
        return packed

    async def send_packed_command(
        self: Any, command: bytes | str | Iterable[bytes], check_health: bool = True
    ) -> None:
        if not self.is_connected:
            await self.connect_check_health(check_health=False)
        if check_health:
            await self.check_health()
        if isinstance(command, str):
            command = command.encode()
        try:
            writer = self._writer
            writer.write(command if isinstance(command, bytes) else b"".join(command))
            # Nearly always the kernel has it all by now, and there is nothing to wait for.
            if writer.transport.is_closing() or writer.transport.get_write_buffer_size():
                async with asyncio.timeout(self.socket_timeout):
                    await writer.drain()
        except TimeoutError:
            await self.disconnect(nowait=True)
            raise RedisTimeoutError("Timeout writing to socket") from None
        except OSError as error:
            await self.disconnect(nowait=True)
            raise RedisConnectionError(f"Error while writing to socket: {error}") from error
        except BaseException:
            # A half-sent command can't be completed, so the connection is of no more use.
            await self.disconnect(nowait=True)
            raise


class TcpConnection(_Cancellable, Connection):
    pass


class TlsConnection(_Cancellable, SSLConnection):
    pass


class UnixConnection(_Cancellable, UnixDomainSocketConnection):
    pass


class _ToPrimary(_Cancellable):
    """Asks again where the primary is when it was closed before it is used."""

    async def send_packed_command(
        self: Any, command: bytes | str | Iterable[bytes], check_health: bool = True
    ) -> None:
        if not self.is_connected:  # closed by a failover; its old address is no longer right
            await self.connect()
        await super().send_packed_command(command, check_health)


class SentinelConnection(_ToPrimary, SentinelManagedConnection):
    pass


class SentinelTlsConnection(_ToPrimary, SentinelManagedSSLConnection):
    pass


CANCELLABLE: dict[type, type] = {
    TcpConnection: TcpConnection,
    Connection: TcpConnection,
    SSLConnection: TlsConnection,
    UnixDomainSocketConnection: UnixConnection,
}
"""Class that a URL names -> the one to take in its place."""
