"""The `Work` stream: frames to and from a worker's session.

Three tasks hold a stream: the handler itself, which waits for its end, one that reads and one that
writes. Whichever ends first ends the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from typing import Any

import grpc
import structlog

from jobwire.v1 import worker_service_pb2
from jobwire_server.broker.router import Router
from jobwire_server.domain.background import heard
from jobwire_server.domain.options import Limits
from jobwire_server.servicers.frames import FrameChecks, FrameWriter, refuse
from jobwire_server.servicers.status import DETAILS_KEY, Refusal, details_of
from jobwire_server.telemetry.current_call import current_call
from jobwire_server.workers.frames import Attach
from jobwire_server.workers.session import WorkerSession

log = structlog.get_logger(__name__)

ATTACH_TIMEOUT_S = 10.0
"""How long a stream may be open before its first frame; no worker needs it, and a stream costs
memory.
"""
LAST_WRITE_S = 1.0
"""How long a peer may take to read the message in hand when its stream ends."""


def _why(session: WorkerSession, ends: Iterable[BaseException | None]) -> Exception | None:
    """Return what a stream is ended with, None for OK."""
    # What the session ended with explains best; else what the reader found wrong with a frame.
    for end in (session.ended.exception() if session.ended.done() else None, *ends):
        if isinstance(end, Exception):
            return end
    return None


async def _tell(context: Any, refusal: Refusal, details: bytes) -> None:
    """End a call with a status; return when the peer has it or is gone."""
    with suppress(grpc.aio.AbortError, grpc.aio.BaseError, asyncio.CancelledError):
        await context.abort(refusal.code, refusal.message, ((DETAILS_KEY, details),))


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
        self._unread: set[asyncio.Task[None]] = set()
        """Final statuses not yet read; they end with their connections."""

    async def hold(
        self, requests: AsyncIterator[worker_service_pb2.WorkRequest], context: Any
    ) -> None:
        """Hold one stream from its first frame to its end."""
        session = await self._router.attach_worker(await self._first(requests))
        reader = asyncio.create_task(self._read(requests, session), name="work-reader")
        writer = asyncio.create_task(self._write(session, context), name="work-writer")
        unread = False
        try:
            await asyncio.wait({reader, writer, session.ended}, return_when=asyncio.FIRST_COMPLETED)
            if session.outgoing.writing_since is not None:
                session.end()
                await asyncio.wait({writer}, timeout=LAST_WRITE_S)
                unread = not writer.done()
        finally:
            reader.cancel()
            writer.cancel()
            try:
                ends = await asyncio.gather(reader, writer, return_exceptions=True)
            finally:
                await self._router.release_session(session)
        error = _why(session, ends)
        if error is None:
            return
        if not unread:
            raise error
        # The status waits behind the message for as long as the peer likes. The server does not
        # wait with it, or one peer that reads nothing would hold up its shutdown.
        log.warning("stream not read", worker_id=session.worker_id, error=str(error))
        call = current_call()
        refusal, details = details_of(error, call.request_id if call else "")
        told = heard(asyncio.create_task(_tell(context, refusal, details), name="work-end"))
        self._unread.add(told)
        told.add_done_callback(self._unread.discard)
        raise asyncio.CancelledError

    async def _first(self, requests: AsyncIterator[worker_service_pb2.WorkRequest]) -> Attach:
        try:
            async with asyncio.timeout(ATTACH_TIMEOUT_S):
                first = await anext(requests, None)
        except TimeoutError:
            text = (
                f"must be in the first frame, within {ATTACH_TIMEOUT_S:.0f} s of the stream's begin"
            )
            raise refuse("attach", text) from None
        if first is None or not first.HasField("attach"):
            raise refuse("attach", "must be in the first frame of the stream")
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
