"""The replies of the scripts about jobs, as answers and errors."""

from __future__ import annotations

from typing import Any

from jobwire_server.domain.errors import (
    AlreadyExists,
    JobNotFound,
    JobwireError,
    LeaseLost,
    OutputFull,
    OutputGap,
    QueueFull,
    UniqueKeyTaken,
)
from jobwire_server.domain.model import (
    Accepted,
    Assignment,
    CancelNotice,
    Completed,
    JobState,
    NewJob,
    Renewal,
)
from jobwire_server.store.codes import Code

SUCCEEDED = Completed(JobState.SUCCEEDED)


def not_written(job: NewJob, answer: list[Any], limits: tuple[int, int]) -> Accepted | JobwireError:
    """What a job is answered that submit.lua did not write."""
    code, *rest = answer
    if code == Code.SAME_ID:
        return Accepted(job.job_id, JobState(rest[0]), rest[1])
    if code == Code.REQUEST_ID_REUSED:
        request_id = job.request.request_id if job.request else ""
        return AlreadyExists(
            f"request_id {request_id} was used for other content within the last 24 hours; give"
            " the new request an id of its own",
            metadata={"job_request_id": request_id},
        )
    if code == Code.TOO_MANY_PENDING:
        return queue_full(job.queue, "max_pending_jobs", "jobs that wait", limits[0], rest[0])
    if code == Code.TOO_MANY_BYTES:
        return queue_full(job.queue, "max_live_bytes", "bytes of live jobs", limits[1], rest[0])
    state = JobState(rest[0]) if rest[0] else None
    job_id = f"{job.queue}-{rest[1].decode()}"
    if code == Code.KEY_TAKEN:
        return UniqueKeyTaken(
            job.unique.key if job.unique else "", job_id, state.name if state else "forgotten"
        )
    return Accepted(job_id, state, b"")


def queue_full(queue: str, setting: str, what: str, limit: int, present: int) -> QueueFull:
    """Returns the refusal of a queue at its limit."""
    return QueueFull(
        f"the queue {queue} is at its limit {setting}: it holds {present} of {limit} {what}; retry"
        " after the delay, add workers, or raise the limit with ConfigureQueue",
        metadata={
            "queue": queue,
            "limit": setting,
            "maximum": str(limit),
            "present": str(present),
        },
        retry_after_ms=1_000,
    )


def assignments(queue: str, answer: list[bytes | int]) -> list[Assignment]:
    """What a claim brought, from the reply for one request."""
    prefix = queue + "-"
    jobs = iter(answer)
    next(jobs)
    return [
        Assignment(prefix + ulid.decode(), int(token), int(attempt), record)  # type: ignore[union-attr, arg-type]
        if type(attempt) is bytes
        else Assignment(prefix + ulid.decode(), int(token), int(attempt[0]), record, attempt[1])  # type: ignore[union-attr, arg-type, index]
        for ulid, token, attempt, record in zip(jobs, jobs, jobs, jobs, strict=True)
    ]


def completed(
    queue: str, ulid: str, fencing_token: int, answer: list[int] | int
) -> Completed | JobwireError:
    """What the end of an attempt is answered."""
    if isinstance(answer, int):
        return SUCCEEDED
    code, *rest = answer
    if code == Code.DONE:
        return Completed(JobState(rest[0]), rest[1], repeated=len(rest) > 2)
    job_id = f"{queue}-{ulid}"
    return LeaseLost(job_id, fencing_token) if code == Code.LEASE_LOST else JobNotFound(job_id)


def renewal(queue: str, ulid: str, fencing_token: int, answer: list[int | bytes]) -> Renewal:
    """What a report is answered."""
    job_id = f"{queue}-{ulid}"
    code = answer[0]
    if code in (Code.NOT_FOUND, Code.LEASE_LOST):
        return Renewal(lost=True)
    if code == Code.OUTPUT_GAP:
        return Renewal(False, refusal=OutputGap(job_id, int(answer[1])))
    if code != Code.DONE:
        whose = job_id if code == Code.OUTPUT_FULL else f"the queue {queue}"
        text = f"the output of {whose} is full: it keeps at most {answer[1]!r} bytes"
        return Renewal(False, refusal=OutputFull(text))
    _, lease_end, cancel_deadline, reason = answer
    cancel = None
    if cancel_deadline:
        cancel = CancelNotice(
            job_id,
            fencing_token,
            bytes(reason).decode(errors="replace"),
            int(cancel_deadline),
        )
    return Renewal(lost=False, lease_expires_at_ms=int(lease_end), cancel=cancel)
