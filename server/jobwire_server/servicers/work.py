"""The `Work` stream: frames to and from a worker's session.

Three tasks hold a stream: the handler itself, which waits for its end, one that reads and one that
writes. Whichever ends first ends the others.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from time import monotonic
from typing import Any

import grpc
import structlog
from google.protobuf.message import DecodeError

from jobwire.v1 import worker_service_pb2
from jobwire_server.broker.router import Router
from jobwire_server.domain.background import heard
from jobwire_server.domain.errors import InvalidRequest, Violation
from jobwire_server.domain.ids import split_job_id
from jobwire_server.domain.model import Ended, LeaseRef, Released, Reported, WorkerStatus
from jobwire_server.domain.options import BrokerOptions, Limits
from jobwire_server.servicers import convert, wire
from jobwire_server.servicers.checks import (
    Checker,
    check_checkpoint,
    check_failure,
    check_output,
    check_progress,
    is_sound,
    worker_spec,
)
from jobwire_server.servicers.convert import item_error
from jobwire_server.servicers.status import DETAILS_KEY, Refusal, details_of
from jobwire_server.telemetry.current_call import current_call
from jobwire_server.workers.frames import Attach, FrameIn, FrameOut, Receipt, Refused
from jobwire_server.workers.session import WorkerSession

log = structlog.get_logger(__name__)

ATTACH_TIMEOUT_S = 10.0
"""How long a stream may be open before its first frame; no worker needs it, and a stream costs
memory.
"""
LAST_WRITE_S = 1.0
"""How long a peer may take to read the message in hand when its stream ends."""
MAX_CREDITS = 10_000
MAX_LEASES = 10_000
MAX_ITEMS = 1_000
"""Reports or completions of one frame."""
MAX_VIOLATIONS = 10
"""Of one list; a status that names thousands would not fit into its trailers."""
FRAME = "WorkRequest"
_CHOOSABLE = (WorkerStatus.READY, WorkerStatus.PAUSED, WorkerStatus.DRAINING)
_NO_OUTCOME = "must be set to one of success, failure, cancelled, released"


def _refuse(field: str, description: str) -> InvalidRequest:
    return InvalidRequest([Violation(field, description)])


def _unreadable(error: DecodeError) -> InvalidRequest:
    return _refuse(FRAME, f"is not a WorkRequest: {error}")


def _why(session: WorkerSession, ends: Iterable[BaseException | None]) -> Exception | None:
    """Returns what a stream is ended with, None for OK."""
    # What the session ended with explains best; else what the reader found wrong with a frame.
    for end in (session.ended.exception() if session.ended.done() else None, *ends):
        if isinstance(end, DecodeError):
            return _unreadable(end)
        if isinstance(end, Exception):
            return end
    return None


async def _tell(context: Any, refusal: Refusal, details: bytes) -> None:
    """Ends a call with a status; returns when the peer has it or is gone."""
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
        self._limits = limits
        self._unread: set[asyncio.Task[None]] = set()
        """Ends that their peers have not read yet; they end with their connections."""

    async def hold(
        self, requests: AsyncIterator[worker_service_pb2.WorkRequest], context: Any
    ) -> None:
        """Holds one stream from its first frame to its end."""
        session = await self._router.attach_worker(await self._first(requests))
        reader = asyncio.create_task(self._read(requests, session), name="work-reader")
        writer = asyncio.create_task(self._write(session, context), name="work-writer")
        unread = False
        try:
            await asyncio.wait({reader, writer, session.ended}, return_when=asyncio.FIRST_COMPLETED)
            if session.writing_since is not None:
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
        except DecodeError as error:
            raise _unreadable(error) from error
        except TimeoutError:
            text = (
                f"must be in the first frame, within {ATTACH_TIMEOUT_S:.0f} s of the stream's begin"
            )
            raise _refuse("attach", text) from None
        if first is None or not first.HasField("attach"):
            raise _refuse("attach", "must be in the first frame of the stream")
        return self._attach(first.attach)

    def _attach(self, message: worker_service_pb2.Attach) -> Attach:
        checker = Checker()
        spec = worker_spec(message.worker, "attach.worker", checker)
        checker.worker_id("attach.instance_id", message.instance_id)
        if message.credits > MAX_CREDITS:
            checker.add("attach.credits", f"must be 0 to {MAX_CREDITS}, not {message.credits}")
        leases: list[tuple[str, str, int]] = []
        if len(message.leases) > MAX_LEASES:
            text = f"may name at most {MAX_LEASES}, not {len(message.leases)}"
            checker.add("attach.leases", text)
        else:
            for at, lease in enumerate(message.leases):
                if len(checker.violations) >= MAX_VIOLATIONS:
                    break
                queue, ulid = checker.job_id(f"attach.leases[{at}].job_id", lease.job_id)
                leases.append((queue, ulid, lease.fencing_token))
        checker.raise_if_any()
        return Attach(
            spec,
            message.instance_id,
            leases,
            message.credits,
            message.credit_bytes,
            message.attempt,
        )

    async def _read(
        self, requests: AsyncIterator[worker_service_pb2.WorkRequest], session: WorkerSession
    ) -> None:
        async for request in requests:
            await session.receive(self._frame(request))

    def _frame(self, request: worker_service_pb2.WorkRequest) -> FrameIn:
        """Checks a frame.

        Raises:
            InvalidRequest: The frame breaks the rules of the stream.
        """
        frame = FrameIn()
        known = False
        for field, value in request.ListFields():
            known = True
            name = field.name
            if name == "attach":
                raise _refuse("attach", "may be in the first frame of a stream only")
            if name == "sequence":
                frame.sequence = value
            elif name == "acks":
                if len(value) > MAX_LEASES:
                    raise _refuse("acks", f"may hold at most {MAX_LEASES}, not {len(value)}")
                frame.acks = [LeaseRef(ack.job_id, ack.fencing_token) for ack in value]
            elif name in ("completions", "reports"):
                if len(value) > MAX_ITEMS:
                    raise _refuse(name, f"may hold at most {MAX_ITEMS}, not {len(value)}")
                add = self._completion if name == "completions" else self._report
                for item in value:
                    add(frame, item)
            elif name == "credits":
                if value > MAX_CREDITS:
                    raise _refuse("credits", f"must be 0 to {MAX_CREDITS}, not {value}")
                frame.credits = value
            elif name == "status":
                if value not in [status.value for status in _CHOOSABLE]:
                    raise _refuse("status", "must be READY, PAUSED or DRAINING")
                frame.status = WorkerStatus(value)
            elif name == "received":
                frame.received = value
            elif name == "detach":
                frame.detach = True
        if request.HasField("stuck"):
            frame.stuck = min(request.stuck, MAX_CREDITS)
            known = True
        if not known and not request.HasField("credits"):
            raise _refuse(FRAME, "must hold something that this server knows")
        if (frame.completions or frame.reports or frame.refused) and not frame.sequence:
            raise _refuse("sequence", "must be above 0 in a frame with reports or completions")
        return frame

    def _completion(self, frame: FrameIn, item: worker_service_pb2.Completion) -> None:
        kind = item.WhichOneof("outcome")
        if kind == "success":
            result = item.success.result
            parts = split_job_id(item.job_id)
            if (
                parts
                and is_sound(result)
                and len(written := result.SerializeToString()) <= self._limits.max_result_bytes
            ):
                frame.completions.append(Ended(*parts, item.fencing_token, written))
                return
        checker = Checker()
        queue, ulid = checker.job_id("job_id", item.job_id)
        outcome: Any = None
        if kind == "success":
            result = item.success.result
            checker.payload("success.result", result, self._limits.max_result_bytes)
            outcome = result.SerializeToString()
        elif kind == "failure":
            outcome = check_failure(checker, "failure", item.failure)
        elif kind == "released":
            reason = checker.text("released.reason", item.released.reason, 512)
            outcome = Released(not item.released.not_started, reason)
        elif kind is None:
            checker.add("outcome", _NO_OUTCOME)
        if checker.violations:
            frame.refused.append(Refused(item.job_id, item.fencing_token, checker.error()))
        else:
            frame.completions.append(Ended(queue, ulid, item.fencing_token, outcome))

    def _report(self, frame: FrameIn, item: worker_service_pb2.Report) -> None:
        checker = Checker()
        queue, ulid = checker.job_id("job_id", item.job_id)
        progress = check_progress(checker, "progress", item.progress)
        output = check_output(checker, "output", item.output)
        checkpoint = check_checkpoint(checker, "checkpoint", item)
        if checker.violations:
            frame.refused.append(Refused(item.job_id, item.fencing_token, checker.error()))
        else:
            frame.reports.append(
                Reported(queue, ulid, item.fencing_token, progress, output, checkpoint)
            )

    async def _write(self, session: WorkerSession, context: Any) -> None:
        options = self._router.options
        while not session.ended.done():
            frame = await session.next_frame()
            message = self._message(frame, session, options)
            session.writing_since = monotonic()
            await context.write(message)
            session.writing_since = None

    def _message(self, frame: FrameOut, session: WorkerSession, options: BrokerOptions) -> Any:
        message = wire.WorkResponse()
        if not frame:
            message.heartbeat.SetInParent()
            return message
        lost = message.lost_leases
        if frame.attached:
            attached = message.attached
            attached.server_id = self._router.server_id
            beat_ms = round(session.times.heartbeat_s * 1000)
            convert.set_moment(attached.heartbeat_interval, beat_ms)
            convert.set_moment(attached.claim_timeout, options.claim_timeout_ms)
            attached.reconnect_window.SetInParent()
            convert.set_moment(attached.reconnect_window, options.reconnect_window_ms)
            convert.set_moment(attached.lease_duration, session.lease_ms)
            attached.features.append("received")
            attached.contact_timeout.SetInParent()
            convert.set_moment(
                attached.contact_timeout, options.contact_timeout_ms(session.lease_ms)
            )
            quiet_ms = round(session.times.worker_heartbeat_s * 1000)
            convert.set_moment(attached.worker_heartbeat_interval, quiet_ms)
            lost = attached.lost_leases
        for lease in frame.lost:
            lost.add(job_id=lease.job_id, fencing_token=lease.fencing_token)
        if frame.assignments:
            convert.add_assignments(message.assignments, frame.assignments)
        for receipt in frame.receipts:
            _add_receipt(message, receipt)
        for notice in frame.cancellations:
            message.cancellations.add().MergeFromString(
                convert.cancel_notice(notice).SerializeToString()
            )
        if frame.drain is not None:
            message.drain.leave = frame.drain.leave
            message.drain.reason = frame.drain.reason
            convert.set_moment(message.drain.deadline, frame.drain.deadline_ms)
        return message


def _add_receipt(message: Any, receipt: Receipt) -> None:
    added = message.receipts.add(sequence=receipt.sequence)
    for refused in receipt.refused:
        item = added.refused.add(job_id=refused.job_id, fencing_token=refused.fencing_token)
        item.error.MergeFromString(item_error(refused.error).SerializeToString())
