"""The frames of a `Work` stream: from the contract to plain values and back."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from time import perf_counter
from typing import Any

from jobwire.v1 import worker_service_pb2
from jobwire_server.domain.features import FEATURES
from jobwire_server.domain.model import LeaseRef
from jobwire_server.domain.options import BrokerOptions, Limits
from jobwire_server.servicers import convert, wire
from jobwire_server.servicers.attempts import AttemptChecks
from jobwire_server.servicers.checks import TURN_S, Checker
from jobwire_server.servicers.streams import refuse
from jobwire_server.servicers.worker_checks import (
    known_features,
    status_metadata,
    worker_spec,
    worker_status,
)
from jobwire_server.workers.frames import Attach, FrameIn, FrameOut, Receipt, Refused
from jobwire_server.workers.session import WorkerSession

MAX_CREDITS = 10_000
MAX_LEASES = 10_000
MAX_BYTES = (1 << 63) - 1
MAX_ITEMS = 1_000
"""Reports or completions of one frame."""
MAX_VIOLATIONS = 10
"""Of one list; a status that names thousands would not fit into its trailers."""
FRAME = "WorkRequest"


class FrameChecks:
    """Checks what workers say on their streams.

    Args:
        limits: What frames may hold.
    """

    def __init__(self, limits: Limits) -> None:
        self._attempts = AttemptChecks(limits.max_result_bytes)

    def attach(self, message: worker_service_pb2.Attach) -> Attach:
        """Return a worker's first words, checked.

        Raises:
            InvalidRequest: With every violation.
        """
        checker = Checker()
        spec = worker_spec(message.worker, "attach.worker", checker)
        checker.worker_id("attach.instance_id", message.instance_id)
        checker.number("attach.credits", message.credits, 0, MAX_CREDITS)
        checker.number("attach.credit_bytes", message.credit_bytes, 0, MAX_BYTES)
        checker.number("attach.attempt", message.attempt, 0, MAX_BYTES)
        features = known_features(checker, "attach.features", message.features)
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
            features,
        )

    async def frame(self, request: worker_service_pb2.WorkRequest) -> FrameIn:
        """Return a frame, checked.

        Raises:
            InvalidRequest: The frame breaks the rules of the stream.
        """
        frame = FrameIn()
        for field, value in request.ListFields():
            name = field.name
            if name == "attach":
                raise refuse("attach", "may be in the first frame of a stream only")
            if name == "sequence":
                frame.sequence = value
            elif name == "acks":
                if len(value) > MAX_LEASES:
                    raise refuse("acks", f"may hold at most {MAX_LEASES}, not {len(value)}")
                frame.acks = [LeaseRef(ack.job_id, ack.fencing_token) for ack in value]
            elif name in ("completions", "reports"):
                if len(value) > MAX_ITEMS:
                    raise refuse(name, f"may hold at most {MAX_ITEMS}, not {len(value)}")
                await self._add_items(frame, name, value)
            elif name == "credits":
                if not 0 <= value <= MAX_CREDITS:
                    raise refuse("credits", f"must be 0 to {MAX_CREDITS}, not {value}")
                frame.credits = value
            elif name == "status":
                checker = Checker()
                frame.status = worker_status(checker, "status", value)
                checker.raise_if_any()
            elif name == "credit_bytes":
                # Presence tells 0, no limit, from no change.
                if not 0 <= value <= MAX_BYTES:
                    raise refuse("credit_bytes", f"must be 0 to {MAX_BYTES}, not {value}")
                frame.credit_bytes = value
            elif name == "status_metadata":
                checker = Checker()
                frame.told = status_metadata(checker, "status_metadata.entries", value.entries)
                checker.raise_if_any()
            elif name == "received":
                if value < 0:
                    raise refuse("received", f"must not be negative, not {value}")
                frame.received = value
            elif name == "detach":
                frame.detach = True
        if request.HasField("stuck"):
            if request.stuck < 0:
                raise refuse("stuck", f"must not be negative, not {request.stuck}")
            frame.stuck = min(request.stuck, MAX_CREDITS)
        if frame.sequence < 0 or (
            (frame.completions or frame.reports or frame.refused) and not frame.sequence
        ):
            raise refuse("sequence", "must be above 0 in a frame with reports or completions")
        return frame

    async def _add_items(self, frame: FrameIn, name: str, items: Iterable[Any]) -> None:
        attempts = self._attempts
        # Other calls have their turn while a frame with much to read is checked.
        until = perf_counter() + TURN_S
        if name == "completions":
            for item in items:
                ended = attempts.ended_or_refused(item)
                if isinstance(ended, Refused):
                    frame.refused.append(ended)
                else:
                    frame.completions.append(ended)
                if perf_counter() > until:
                    await asyncio.sleep(0)
                    until = perf_counter() + TURN_S
        else:
            for item in items:
                reported = attempts.reported_or_refused(item)
                if isinstance(reported, Refused):
                    frame.refused.append(reported)
                else:
                    frame.reports.append(reported)
                if perf_counter() > until:
                    await asyncio.sleep(0)
                    until = perf_counter() + TURN_S


class FrameWriter:
    """Writes what workers are told.

    Args:
        server_id: Of this server.
        options: The clockwork that an attached worker is told.
    """

    def __init__(self, server_id: str, options: BrokerOptions) -> None:
        self._server_id = server_id
        self._options = options

    def to_wire(self, frame: FrameOut, session: WorkerSession) -> Any:
        """Return what a worker is to be told, as a `wire.WorkResponse`."""
        message = wire.WorkResponse()
        if not frame:
            message.heartbeat.SetInParent()
            return message
        lost = message.lost_leases
        if frame.attached:
            self._add_attached(message.attached, session)
            lost = message.attached.lost_leases
        for lease in frame.lost:
            lost.add(job_id=lease.job_id, fencing_token=lease.fencing_token)
        if frame.assignments:
            convert.add_assignments(message.assignments, frame.assignments)
        for receipt in frame.receipts:
            _add_receipt(message.receipts, receipt)
        for notice in frame.cancellations:
            message.cancellations.add().MergeFromString(
                convert.cancel_notice(notice).SerializeToString()
            )
        if frame.drain is not None:
            convert.write_drain(message.drain, frame.drain)
        return message

    def _add_attached(self, attached: Any, session: WorkerSession) -> None:
        options, times = self._options, session.times
        attached.server_id = self._server_id
        convert.write_ms(attached.heartbeat_interval, round(times.heartbeat_s * 1000))
        convert.write_ms(attached.claim_timeout, options.claim_timeout_ms)
        attached.reconnect_window.SetInParent()
        convert.write_ms(attached.reconnect_window, options.reconnect_window_ms)
        convert.write_ms(attached.lease_duration, session.lease_ms)
        attached.features.extend(FEATURES)
        attached.contact_timeout.SetInParent()
        convert.write_ms(attached.contact_timeout, options.contact_timeout_ms(session.lease_ms))
        quiet_ms = round(times.worker_heartbeat_s * 1000)
        convert.write_ms(attached.worker_heartbeat_interval, quiet_ms)


def _add_receipt(receipts: Any, receipt: Receipt) -> None:
    added = receipts.add(sequence=receipt.sequence)
    for refused in receipt.refused:
        item = added.refused.add(job_id=refused.job_id, fencing_token=refused.fencing_token)
        item.error.MergeFromString(convert.item_error(refused.error).SerializeToString())
