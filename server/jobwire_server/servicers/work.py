"""The `Work` stream: frames to and from a worker's session."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from jobwire.v1 import worker_service_pb2
from jobwire_server.broker.router import Router
from jobwire_server.domain.options import Limits
from jobwire_server.servicers.frames import FrameChecks, FrameWriter
from jobwire_server.servicers.streams import StreamEnds, first_frame
from jobwire_server.workers.frames import Attach
from jobwire_server.workers.session import WorkerSession


class WorkStreams:
    """Holds the streams of workers.

    Args:
        router: Where sessions come from.
        limits: What frames may hold.
    """

    def __init__(self, router: Router, limits: Limits) -> None:
        self._router = router
        self._checks = FrameChecks(limits)
        self._writer = FrameWriter(router.server_id, router.options)
        self._ends = StreamEnds()

    async def hold(
        self, requests: AsyncIterator[worker_service_pb2.WorkRequest], context: Any
    ) -> None:
        """Hold one stream from its first frame to its end."""
        session = await self._router.attach_worker(await self._first(requests))
        reader = asyncio.create_task(self._read(requests, session), name="work-reader")
        writer = asyncio.create_task(self._write(session, context), name="work-writer")
        await self._ends.hold(
            session,
            reader,
            writer,
            context,
            partial(self._router.release_session, session),
            worker_id=session.worker_id,
        )

    async def _first(self, requests: AsyncIterator[worker_service_pb2.WorkRequest]) -> Attach:
        first = await first_frame(requests, "attach")
        return self._checks.attach(first.attach)

    async def _read(
        self, requests: AsyncIterator[worker_service_pb2.WorkRequest], session: WorkerSession
    ) -> None:
        async for request in requests:
            await session.receive(await self._checks.frame(request))

    async def _write(self, session: WorkerSession, context: Any) -> None:
        outgoing = session.outgoing
        while not session.ended.done():
            frame = await outgoing.next_frame()
            message = self._writer.to_wire(frame, session)
            outgoing.write_begins()
            await context.write(message)
            outgoing.write_ends()
