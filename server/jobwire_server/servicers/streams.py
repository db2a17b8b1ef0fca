"""What holds a stream of frames both ways, a worker's or a producer's, until it is over.

A session stands behind each. One task reads frames for it and one writes its own; whichever ends
first ends the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Any, Protocol, TypeVar

import grpc
import structlog
from google.protobuf.message import Message

from jobwire_server.domain.background import heard
from jobwire_server.domain.errors import InvalidRequest, JobwireError, Violation
from jobwire_server.servicers.status import DETAILS_KEY, Refusal, details_of
from jobwire_server.telemetry.current_call import current_call

log = structlog.get_logger(__name__)

FIRST_TIMEOUT_S = 10.0
"""How long a stream may be open before its first frame; no peer needs it, and a stream costs
memory.
"""
LAST_WRITE_S = 1.0
"""How long a peer may take to read the message in hand when its stream ends."""


Frame = TypeVar("Frame", bound=Message)


async def first_frame(requests: AsyncIterator[Frame], field: str) -> Frame:
    """Return the first frame of a stream, which has a field.

    Raises:
        InvalidRequest: There is none, none came in time, or it lacks the field.
    """
    try:
        async with asyncio.timeout(FIRST_TIMEOUT_S):
            first = await anext(requests, None)
    except TimeoutError:
        text = f"must be in the first frame, within {FIRST_TIMEOUT_S:.0f} s of the stream's begin"
        raise refuse(field, text) from None
    if first is None or not first.HasField(field):
        raise refuse(field, "must be in the first frame of the stream")
    return first


def refuse(field: str, description: str) -> InvalidRequest:
    """Return what ends a stream for one field of a frame."""
    return InvalidRequest([Violation(field, description)])


class Session(Protocol):
    """What a stream is about."""

    ended: asyncio.Future[None]

    @property
    def is_writing(self) -> bool:
        """True while a frame is on its way to the peer's buffers."""

    def end(self, error: JobwireError | None = None) -> None:
        """End the stream; harmless if it has ended."""


class StreamEnds:
    """Ends streams; has the last words of those whose peers do not read."""

    def __init__(self) -> None:
        self._unread: set[asyncio.Task[None]] = set()
        """Final statuses not yet read; they end with their connections."""

    async def hold(
        self,
        session: Session,
        reader: asyncio.Task[None],
        writer: asyncio.Task[None],
        context: Any,
        release: Callable[[], Awaitable[None]],
        **named: str,
    ) -> None:
        """Return when the stream is over, or raise what it is ended with.

        Args:
            session: Of the stream.
            reader: Gives it frames.
            writer: Takes frames from it.
            context: Of the call.
            release: Ends the session.
            named: Who the peer is, for the log.
        """
        unread = False
        try:
            await asyncio.wait({reader, writer, session.ended}, return_when=asyncio.FIRST_COMPLETED)
            if session.is_writing:
                session.end()
                await asyncio.wait({writer}, timeout=LAST_WRITE_S)
                unread = not writer.done()
        finally:
            reader.cancel()
            writer.cancel()
            try:
                ends = await asyncio.gather(reader, writer, return_exceptions=True)
            finally:
                await release()
        error = _why(session, ends)
        if error is None:
            return
        if not unread:
            raise error
        # The status waits behind the message for as long as the peer likes. The server does not
        # wait with it, or one peer that reads nothing would hold up its shutdown.
        log.warning("stream not read", error=str(error), **named)
        call = current_call()
        refusal, details = details_of(error, call.request_id if call else "")
        told = heard(asyncio.create_task(_tell(context, refusal, details), name="stream-end"))
        self._unread.add(told)
        told.add_done_callback(self._unread.discard)
        raise asyncio.CancelledError


def _why(session: Session, ends: Iterable[BaseException | None]) -> Exception | None:
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
