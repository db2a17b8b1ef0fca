"""Single calls of a worker, over a connection that can be left for another."""

from __future__ import annotations

import asyncio
import logging
import math
from typing import Any, NoReturn, cast

import grpc
from grpc import aio

from jobwire._channels import AsyncChannels
from jobwire._connection import ConnectionOptions
from jobwire._repeat import Backoff, Doubt, doubt_of, is_passing
from jobwire.errors import CallError, Unavailable, from_rpc_error
from jobwire.v1 import worker_service_pb2_grpc as worker_grpc
from jobwire.worker.cancelling import this_task_is_cancelled

log = logging.getLogger("jobwire.worker")

MAX_DEFECTS = 5
CALL_TIMEOUT_S = 10.0


class WorkerCalls:
    """Calls the broker, and says in the log when it is lost and found.

    Args:
        options: Where the servers are.
        channel: An open channel to use in place of one of its own; it stays the caller's.

    Attributes:
        address: Where the servers are, for people.
    """

    def __init__(self, options: ConnectionOptions, channel: aio.Channel | None = None) -> None:
        self.address = options.address
        self._options = options
        self._owns_channel = channel is None
        self._channels = AsyncChannels(options, channel)
        self._stub = _stub(self._channels)
        self._metadata = tuple(options.metadata.items())
        self._left: set[asyncio.Task[None]] = set()
        """Connections that were left, while they are closed."""
        self._reachable = True

    async def persist(self, method: str, request: Any, patience_s: float = math.inf) -> Any:
        """Repeat a call until it succeeds, or is refused as any repeat would be.

        Args:
            method: Of the service.
            request: Its request.
            patience_s: How long to repeat it where the refusal may be a proxy's word, seconds.
        """
        backoff = Backoff(max_s=2.0)
        defects = 0
        loop = asyncio.get_running_loop()
        began = loop.time()
        while True:
            try:
                return await self.call(method, request, CALL_TIMEOUT_S)
            except CallError as error:
                doubt = doubt_of(error)
                defects += doubt is Doubt.DEFECT
                if doubt is Doubt.PROXY:
                    if loop.time() - began >= patience_s:
                        raise
                    if not defects:
                        log.warning("%s refuses, still trying: %s", self.address, error)
                        defects = 1
                elif not is_passing(error) and not 0 < defects < MAX_DEFECTS:
                    raise
                await asyncio.sleep(backoff.next_s(error.retry_after_s))

    async def call(self, method: str, request: Any, timeout_s: float) -> Any:
        call = getattr(self._stub, method)
        try:
            await self._channels.ready()
            answer = await call(request, timeout=timeout_s, metadata=self._metadata)
        except Unavailable as unresolved:
            self._note_and_raise(unresolved)
        except grpc.RpcError as raised:
            error = from_rpc_error(raised)
            self._channels.suspect(error)
            self._note_and_raise(error)
        except asyncio.CancelledError:
            if this_task_is_cancelled():
                raise
            # The call was under way on a connection that was left.
            raise Unavailable("the connection was left") from None
        if not self._reachable:
            self._reachable = True
            log.info("%s answers again", self.address)
        return answer

    def _note_and_raise(self, error: CallError) -> NoReturn:
        # Said once for each outage, not for each attempt.
        if isinstance(error, Unavailable) and self._reachable:
            self._reachable = False
            log.warning("%s does not answer, still trying: %s", self.address, error)
        raise error

    def leave_connection(self) -> None:
        """Continue over another connection: the server of this one hangs."""
        if not self._owns_channel:
            return
        left, self._channels = self._channels, AsyncChannels(self._options)
        self._stub = _stub(self._channels)
        closing = asyncio.create_task(left.close())
        self._left.add(closing)
        closing.add_done_callback(self._left.discard)

    async def close(self) -> None:
        """Close the connection, and wait for those that were left."""
        await asyncio.gather(*self._left, return_exceptions=True)
        if self._owns_channel:
            await self._channels.close()


def _stub(channels: AsyncChannels) -> worker_grpc.WorkerServiceAsyncStub:
    # To the stub, the channels of several addresses are one.
    stub: worker_grpc.WorkerServiceAsyncStub = worker_grpc.WorkerServiceStub(
        cast("aio.Channel", channels)
    )
    return stub
