"""Between the model and the contract's messages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from jobwire.v1 import admin_service_pb2, errors_pb2, job_pb2, worker_service_pb2
from jobwire_server.domain.decisions.rates import rates
from jobwire_server.domain.errors import JobwireError
from jobwire_server.domain.model import (
    Assignment,
    Attempt,
    CancelNotice,
    Failure,
    Job,
    JobState,
    Queue,
    Worker,
    WorkerSpec,
)
from jobwire_server.servicers import wire
from jobwire_server.servicers.queue_config import config_to_wire
from jobwire_server.servicers.records import (
    STAMP_BYTES,
    content_of,
    created_at_ms,
    moment_of,
    priority_of,
    without_content,
)
from jobwire_server.servicers.status import refusal_of
from jobwire_server.workers.claims import Handed
from jobwire_server.workers.frames import DrainNotice


def moment(ms: int) -> Timestamp:
    """Return Unix milliseconds as a Timestamp."""
    return Timestamp(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)


def span(ms: int) -> Duration:
    """Return milliseconds as a Duration."""
    return Duration(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)


def write_ms(field: Any, ms: int) -> None:
    """Write milliseconds into a Timestamp or a Duration field; 0 leaves it unset."""
    if ms:
        field.seconds = ms // 1000
        field.nanos = ms % 1000 * 1_000_000


def job_to_wire(job: Job, *, full: bool) -> Any:
    """Return a job in the FULL or the BASIC view."""
    message = wire.Job(
        job_id=job.job_id,
        queue=job.queue,
        spec=content_of(job.record) if full else without_content(job.record),
        state=int(job.state),
        revision=job.revision,
        attempt=job.attempt,
        failures=job.failures,
        crashes=job.crashes,
        interruptions=job.interruptions,
        worker_id=job.worker_id,
        fencing_token=job.fencing_token,
        cancel_reason=job.cancel_reason,
        output_bytes=job.output_bytes,
        priority=priority_of(job.record) if job.priority is None else job.priority,
    )
    write_ms(message.created_at, created_at_ms(job.record))
    write_ms(message.run_at, job.run_at_ms)
    write_ms(message.started_at, job.started_at_ms)
    write_ms(message.finished_at, job.finished_at_ms)
    write_ms(message.lease_expires_at, job.lease_expires_at_ms)
    write_ms(message.purge_at, job.purge_at_ms)
    if job.redrive is not None:
        redrive = job.redrive
        write_ms(message.last_redrive.redriven_at, redrive.at_ms)
        message.last_redrive.reason = redrive.reason
        message.last_redrive.from_state = int(redrive.from_state)
        message.last_redrive.number = redrive.number
    if job.progress:
        # Serialized messages laid end to end are one message: the time joins the worker's words.
        stamp = job_pb2.Progress(updated_at=moment(job.progress_at_ms)).SerializeToString()
        message.progress = job.progress + stamp
    failure = job.failure
    if failure is not None and job.state is not JobState.SUCCEEDED:
        message.failure.CopyFrom(failure_to_wire(failure, full=full))
    if full:
        if job.state is JobState.SUCCEEDED:
            message.result = job.result
        if job.checkpoint:
            message.checkpoint = job.checkpoint
        message.attempts.extend(attempt_to_wire(attempt) for attempt in job.attempts)
    return message


def failure_to_wire(failure: Failure, *, full: bool = True) -> Any:
    """Return a failure, in the BASIC view without its stack and details."""
    message = wire.Failure(
        type=failure.type,
        message=failure.message,
        non_retryable=failure.non_retryable,
        origin=int(failure.origin),
    )
    if full:
        message.stack = failure.stack
        if failure.details:
            message.details = failure.details
    if failure.retry_after_ms is not None:
        write_ms(message.retry_after, failure.retry_after_ms)
    return message


def attempt_to_wire(attempt: Attempt) -> Any:
    """Return the record of one delivery."""
    message = wire.Attempt(
        number=attempt.number,
        worker_id=attempt.worker_id,
        fencing_token=attempt.fencing_token,
        outcome=int(attempt.outcome or job_pb2.ATTEMPT_OUTCOME_RUNNING),
    )
    write_ms(message.started_at, attempt.started_at_ms)
    write_ms(message.ended_at, attempt.ended_at_ms)
    if attempt.failure is not None:
        message.failure.CopyFrom(failure_to_wire(attempt.failure))
    return message


def add_assignments(to: Any, assignments: Sequence[Assignment]) -> None:
    """Add jobs, as they are handed to a worker, to a repeated field of `wire.Assignment`.

    Their records are not looked at. Made in their place, they are not copied once more.
    """
    add = to.add
    for job_id, token, attempt, record, checkpoint in assignments:
        added = add(
            job_id=job_id,
            fencing_token=token,
            attempt=attempt,
            spec=record[:-STAMP_BYTES],
            created_at=moment_of(record[-STAMP_BYTES:]),
        )
        if checkpoint:
            added.checkpoint = checkpoint


def add_handed(answer: Any, handed: Handed) -> Any:
    """Add what a claim brought to an answer; return the answer."""
    add_assignments(answer.assignments, handed.assignments)
    for notice in handed.cancellations:
        answer.cancellations.add().MergeFromString(cancel_notice(notice).SerializeToString())
    write_ms(answer.lease_duration, handed.lease_ms)
    return answer


def cancel_notice(notice: CancelNotice) -> worker_service_pb2.CancelNotice:
    """Return the word to stop a job."""
    return worker_service_pb2.CancelNotice(
        job_id=notice.job_id,
        fencing_token=notice.fencing_token,
        reason=notice.reason,
        deadline=moment(notice.deadline_ms),
    )


def write_drain(field: Any, notice: DrainNotice) -> None:
    """Write the wish that a worker leaves, or its stream."""
    field.leave = notice.leave
    field.reason = notice.reason
    write_ms(field.deadline, notice.deadline_ms)


def worker_spec(spec: WorkerSpec, lease_ms: int) -> worker_service_pb2.WorkerSpec:
    """Return a worker's description."""
    return worker_service_pb2.WorkerSpec(
        worker_id=spec.worker_id,
        queues=spec.queues,
        operations=sorted(spec.operations),
        labels=dict(spec.labels),
        concurrency=spec.concurrency,
        lease_duration=span(lease_ms),
        client=spec.client,
        build_id=spec.build_id,
    )


def worker(item: Worker, lease_ms: int, *, leases: bool) -> admin_service_pb2.Worker:
    """Return a worker as the broker sees it."""
    message = admin_service_pb2.Worker(
        spec=worker_spec(item.spec, lease_ms),
        status=item.status.value,  # type: ignore[arg-type]
        registered_at=moment(item.registered_at_ms),
        last_seen_at=moment(item.last_seen_at_ms),
        held_jobs=item.held_jobs,
        attached=item.attached,
        server_id=item.server_id,
        credits=item.credits,
        totals=admin_service_pb2.WorkerTotals(
            assigned=item.assigned, succeeded=item.succeeded, failed=item.failed
        ),
        stuck=item.stuck,
        free=item.free,
        status_metadata=worker_service_pb2.StatusMetadata(entries=item.told) if item.told else None,
    )
    if leases:
        for lease in item.leases[:1000]:
            message.leases.add(job_id=lease.job_id, fencing_token=lease.fencing_token)
    return message


def queue(item: Queue, *, detail: bool) -> admin_service_pb2.Queue:
    """Return a queue; with `detail` also its rates and the age of its oldest ready job."""
    message = admin_service_pb2.Queue(
        queue=item.name,
        paused=item.paused,
        config=config_to_wire(item.settings),
        output_bytes=item.output_bytes,
        live_bytes=max(0, item.live_bytes),
        ended_bytes=max(0, item.ended_bytes),
        revision=item.revision,
    )
    for state, count in item.counts.items():
        message.counts.add(state=state.value, count=count)
    for name in admin_service_pb2.QueueTotals.DESCRIPTOR.fields_by_name:
        setattr(message.totals, name, item.totals.get(name, 0))
    if detail:
        since = item.oldest_pending_ms
        if item.oldest_pending_record:
            since = created_at_ms(item.oldest_pending_record)
        if since:
            message.oldest_pending_age.CopyFrom(span(max(0, item.now_ms - since)))
        measured = rates(item.now_ms, item.totals, item.samples)
        message.rates.window.CopyFrom(span(measured.window_ms))
        for name, value in measured.per_second.items():
            setattr(message.rates, name, value)
    return message


def item_error(error: JobwireError) -> errors_pb2.ItemError:
    """Return why one item of a batch was refused."""
    refusal = refusal_of(error)
    return errors_pb2.ItemError(
        code=refusal.number,
        message=refusal.message,
        reason=errors_pb2.ErrorReason.Value(f"ERROR_REASON_{refusal.reason}"),
        violations=[
            errors_pb2.FieldViolation(field=v.field, description=v.description)
            for v in refusal.violations
        ],
        metadata=refusal.metadata,
        retry_delay=None if error.retry_after_ms is None else span(error.retry_after_ms),
    )
