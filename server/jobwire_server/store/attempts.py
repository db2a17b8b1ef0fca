"""Attempts in the store: report.lua, succeed.lua and end_attempt.lua."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from jobwire_server.domain.decisions.endings import Ending
from jobwire_server.domain.errors import JobNotFound, JobwireError, LeaseLost, OutputFull, OutputGap
from jobwire_server.domain.ids import ULID, job_id_of
from jobwire_server.domain.model import CancelNotice, Completed, Job, JobState, Renewal, Written
from jobwire_server.domain.options import Limits
from jobwire_server.store import codec, keys
from jobwire_server.store.codes import Code
from jobwire_server.store.runner import Argument, QueueScripts

DEFAULT_LIMITS = Limits()
SUCCEEDED = Completed(JobState.SUCCEEDED)


class SuccessToWrite(NamedTuple):
    """The end of an attempt with a result."""

    ulid: str
    worker_id: str
    fencing_token: int
    result: bytes


@dataclass(frozen=True, slots=True)
class EndToWrite:
    """A decided end of an attempt, applied only if what it was decided on still holds."""

    job: Job
    condition: str
    """`worker` | `lease` | `timeout` | `deadline` | `grace` | `lost`, as in end_attempt.lua."""
    ending: Ending


class ReportToWrite(NamedTuple):
    """A report. One with nothing to record only renews the lease."""

    ulid: str
    worker_id: str
    fencing_token: int
    lease_ms: int
    progress: bytes
    output: Written | None = None
    checkpoint: bytes | None = None
    """b'' removes what was saved, None keeps it."""


class AttemptStore(QueueScripts):
    """Records what lease holders report, and how attempts end."""

    async def report(
        self, queue: str, reports: Sequence[ReportToWrite], limits: Limits = DEFAULT_LIMITS
    ) -> list[Renewal]:
        """Record progress, output and checkpoints, and renew leases; answer gone ones as lost."""
        args: list[Argument] = [
            limits.max_output_bytes,
            limits.max_queue_output_bytes,
        ]
        for report in reports:
            args += report[:5]
            # The first byte tells an empty checkpoint, which removes the old one, from none.
            args.append(b"" if report.checkpoint is None else b"=" + report.checkpoint)
            args += codec.encode_written(report.output)
        answers = await self._run("report", queue, args)
        return [
            renewal(queue, report.ulid, report.fencing_token, answer)
            for report, answer in zip(reports, answers, strict=True)
        ]

    async def succeed(
        self, queue: str, items: Sequence[SuccessToWrite], retention_ms: int
    ) -> list[Completed | JobwireError]:
        """Complete each job whose lease the caller holds; answer the others with their error."""
        args: list[Argument] = [retention_ms]
        for item in items:
            args += item  # its fields are in the order of the arguments
        answers = await self._run("succeed", queue, args)
        return [
            # Nearly all of them, so without another call or object.
            SUCCEEDED
            if type(answer) is int
            else completed(queue, item.ulid, item.fencing_token, answer)
            for item, answer in zip(items, answers, strict=True)
        ]

    async def end_attempts(
        self, queue: str, ends: Sequence[EndToWrite], retention_ms: int
    ) -> list[Completed | JobwireError | None]:
        """Apply decided endings; answer None for a job that changed: decide again."""
        args: list[Argument] = [retention_ms]
        for end in ends:
            job, ending = end.job, end.ending
            args += (
                job.job_id[ULID],
                job.worker_id,
                job.fencing_token,
                int(job.state),
                end.condition,
                int(ending.target),
                str(ending.budget),
                ending.backoff_ms,
                int(ending.outcome),
                codec.encode_failure(ending.failure),
            )
        answers = await self._run("end_attempt", queue, args)
        return [
            None
            if answer[0] == Code.STATE_CHANGED
            else completed(queue, end.job.job_id[ULID], end.job.fencing_token, answer)
            for end, answer in zip(ends, answers, strict=True)
        ]

    async def held(self, queue: str, worker_id: str) -> list[str]:
        """Return the ULIDs of the queue's jobs that the worker holds."""
        return [
            ulid.decode()
            for ulid in await self._runner.command("SMEMBERS", keys.held_key(queue, worker_id))
        ]


def completed(
    queue: str, ulid: str, fencing_token: int, answer: list[int] | int
) -> Completed | JobwireError:
    """Return the answer to the end of an attempt."""
    if isinstance(answer, int):
        return SUCCEEDED
    code, *rest = answer
    if code == Code.DONE:
        return Completed(JobState(rest[0]), rest[1], repeated=len(rest) > 2)
    job_id = job_id_of(queue, ulid)
    return LeaseLost(job_id, fencing_token) if code == Code.LEASE_LOST else JobNotFound(job_id)


def renewal(queue: str, ulid: str, fencing_token: int, answer: list[int | bytes]) -> Renewal:
    """Return the answer to a report."""
    job_id = job_id_of(queue, ulid)
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
