"""Watch streams: events as answers, put into bytes once for all who watch."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from jobwire.v1 import job_service_pb2
from jobwire_server.domain.model import Job, OutputPosition, Written
from jobwire_server.domain.store_clock import StoreClock
from jobwire_server.servicers import convert, wire
from jobwire_server.servicers.attempts import MAX_OFFSET
from jobwire_server.servicers.checks import Checker
from jobwire_server.watch.job_watch import JobCourse, WatchWish
from jobwire_server.watch.queue_watch import CaughtUp
from jobwire_server.watch.watched_job import JobEvent, OutputEvent

MAX_ATTEMPT = (1 << 31) - 1

_ALL = job_service_pb2.WATCH_CONTENT_ALL
_STATES = job_service_pb2.WATCH_CONTENT_STATES
_OUTPUT = job_service_pb2.WATCH_CONTENT_OUTPUT

# A length-delimited field of at most 127 bytes: its tag, its length, its bytes.
_CURSOR_TAG = bytes([job_service_pb2.WatchJobResponse.CURSOR_FIELD_NUMBER << 3 | 2])


def wish_of(
    checker: Checker, request: job_service_pb2.WatchJobRequest | job_service_pb2.RunJobRequest
) -> WatchWish:
    """Return what a request wants to see."""
    content = request.content or _ALL
    if content not in (_ALL, _STATES, _OUTPUT):
        checker.add("content", "must be one of the contents that a watcher can want")
    wish = WatchWish(states=content != _OUTPUT, output=content != _STATES)
    if isinstance(request, job_service_pb2.WatchJobRequest):
        start = request.WhichOneof("start")
        if start == "cursor":
            if not request.cursor:
                checker.add("cursor", "must not be empty: leave it unset to watch from the start")
            return replace(wish, cursor=request.cursor)
        elif start == "output_from":
            wanted = request.output_from
            checker.number("output_from.attempt", wanted.attempt, 0, MAX_ATTEMPT)
            checker.number("output_from.offset", wanted.offset, 0, MAX_OFFSET)
            position = OutputPosition(wanted.attempt, wanted.offset)
            return replace(wish, position=position, resumed=True, latest=not wanted.attempt)
        elif start == "output_from_end":
            return replace(wish, from_end=True)
    return wish


async def answers(
    events: JobCourse,
    clock: StoreClock,
    *,
    full: bool,
) -> AsyncGenerator[bytes]:
    """Yield the events of a watch as serialized WatchJobResponses.

    RunJobResponse has the same fields, so that these bytes serve both. Messages laid end to end
    are one message, which is how the cursor joins what all watchers share.
    """
    async with aclosing(events) as steps:  # type: ignore[type-var]
        async for event, cursor in steps:
            if event is None:
                body = _bookmark(clock)
            elif isinstance(event, JobEvent):
                body = event.encoded.get(full) or _encode_job(event, full)
            else:
                body = event.encoded or _encode_output(event)
            yield body + _CURSOR_TAG + bytes([len(cursor)]) + cursor.encode()


def job_step(job: Job | CaughtUp | None, cursor: str, clock: StoreClock, *, full: bool) -> Any:
    """Return one step of the watch of a queue."""
    answer = wire.WatchJobsResponse(cursor=cursor)
    if isinstance(job, Job):
        answer.job.MergeFrom(convert.job_to_wire(job, full=full))
    else:
        convert.write_ms(answer.bookmark.time, clock.now_ms())
        answer.bookmark.caught_up = job is not None
    return answer


def _bookmark(clock: StoreClock) -> bytes:
    answer = wire.WatchJobResponse()
    convert.write_ms(answer.bookmark.time, clock.now_ms())
    answer.bookmark.caught_up = False
    serialized: bytes = answer.SerializeToString()
    return serialized


def _encode_job(event: JobEvent, full: bool) -> bytes:
    answer = wire.WatchJobResponse(job=convert.job_to_wire(event.job, full=full))
    event.encoded[full] = answer.SerializeToString()
    return event.encoded[full]


def _encode_output(event: OutputEvent) -> bytes:
    answer = job_service_pb2.WatchJobResponse()
    answer.output.attempt = event.start.attempt
    for written in event.written:
        add_chunks(answer.output.chunks, written)
    event.encoded = answer.SerializeToString()
    return event.encoded


def add_chunks(chunks: Any, written: Written) -> None:
    """Add a run of output as chunks."""
    offset = written.offset
    for piece in written.pieces:
        chunk = chunks.add(channel=piece.channel, offset=offset)
        offset += len(piece.content)
        text = _text(piece.content) if piece.text else None
        if text is None:
            chunk.data = piece.content
        else:
            chunk.text = text


def _text(content: bytes) -> str | None:
    """Return text; None where a cut went through a character, which bytes can carry."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None
