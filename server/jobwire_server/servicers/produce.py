"""The `Produce` stream: frames to and from a producer's session.

What answers a frame is written by the task that knows the answer; the stream's own writer has what
comes by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc

from jobwire.v1 import job_service_pb2
from jobwire_server.broker.producer_frames import ProducerNews
from jobwire_server.broker.producer_session import ProducerSession
from jobwire_server.broker.producers import Producers
from jobwire_server.domain.errors import StoreUnavailable
from jobwire_server.servicers.producer_frames import (
    ProducerFrameChecks,
    ProducerFrameWriter,
)
from jobwire_server.servicers.streams import StreamEnds, first_frame

Requests = AsyncIterator[job_service_pb2.ProduceRequest]


class ProduceStreams:
    """Holds the streams of producers.

    Args:
        producers: Where sessions come from.
        checks: Of frames.
        server_id: Of this server.
    """

    def __init__(self, producers: Producers, checks: ProducerFrameChecks, server_id: str) -> None:
        self._producers = producers
        self._checks = checks
        self._writer = ProducerFrameWriter(server_id)
        self._ends = StreamEnds()

    async def hold(self, requests: Requests, context: Any) -> None:
        """Hold one stream from its first frame to its end."""
        to_wire = self._writer.to_wire

        async def write(news: ProducerNews) -> None:
            message = to_wire(news)
            try:
                await context.write(message)
            except (grpc.aio.BaseError, asyncio.InvalidStateError) as error:
                # Whoever told the producer something has no part in the end of its stream.
                session.end(StoreUnavailable(f"the producer is gone: {error}"))

        first = await self._first(requests)
        session = self._producers.open(write)
        reader = asyncio.create_task(self._read(first, requests, session), name="produce-reader")
        writer = asyncio.create_task(session.tell_what_comes(), name="produce-writer")

        async def release() -> None:
            self._producers.release(session)

        await self._ends.hold(session, reader, writer, context, release)

    async def _first(self, requests: Requests) -> job_service_pb2.ProduceRequest:
        first = await first_frame(requests, "open")
        self._checks.check_opening(first.open)
        return first

    async def _read(
        self,
        first: job_service_pb2.ProduceRequest,
        requests: Requests,
        session: ProducerSession,
    ) -> None:
        await session.greet()
        await session.receive(await self._checks.frame(first, first=True))
        async for request in requests:
            await session.receive(await self._checks.frame(request))
        await session.finish()
