"""Submissions in the store: submit.lua and known.lua."""

from __future__ import annotations

import json
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

from jobwire_server.domain.errors import AlreadyExists, JobwireError, QueueFull, UniqueKeyTaken
from jobwire_server.domain.ids import ULID, job_id_of
from jobwire_server.domain.model import Accepted, JobState, NewJob, RequestId, UniqueScope
from jobwire_server.store import codec
from jobwire_server.store.codes import Code
from jobwire_server.store.runner import Argument, QueueScripts

_PLAIN = tuple(NewJob._field_defaults.values())
"""The values after the first five fields of a job that asks for nothing special."""
_STATES = {state.value: state for state in JobState}
_SCOPES = {UniqueScope.PENDING: "p", UniqueScope.UNFINISHED: "u", UniqueScope.PERIOD: "t"}
_LONGEST_NAME = 40
NO_LIMITS = (0, 0)


class SubmissionStore(QueueScripts):
    """Brings jobs into queues."""

    async def submit(
        self,
        queue: str,
        jobs: Sequence[NewJob],
        retention_ms: int = 14 * 86_400_000,
        max_pending: int = 0,
        max_live_bytes: int = 0,
    ) -> list[Accepted | JobwireError]:
        """Write the jobs that are new. At most 1000 at a time.

        Args:
            queue: The queue of all of them.
            jobs: In the order of delivery.
            retention_ms: How long jobs are kept that these replace.
            max_pending: The most jobs that may wait there, 0 for no limit.
            max_live_bytes: The most bytes of records of live jobs, 0 for no limit.
        """
        args: list[Argument] = [retention_ms, max_pending, max_live_bytes]
        add_jobs(args, jobs)
        _, *answers = await self._run("submit", queue, args)
        return accepted(jobs, answers, (max_pending, max_live_bytes))

    async def known(
        self, queue: str, jobs: Sequence[NewJob]
    ) -> list[Accepted | JobwireError | None]:
        """Answer each job that was accepted before as `submit` would, None for the others; write
        nothing.
        """
        args: list[Argument] = []
        for job in jobs:
            args += (job.job_id[ULID], encode_extra(job))
        answers = await self._run("known", queue, args)
        return [
            not_written(job, answer, NO_LIMITS) if answer else None
            for job, answer in zip(jobs, answers, strict=True)
        ]


def add_jobs(args: list[Argument], jobs: Sequence[NewJob]) -> None:
    """Append jobs with their routes, as submit.lua reads them."""
    routes = {job.route.id: job.route.descriptor for job in jobs}
    args.append(len(routes))
    for described in routes.items():
        args += described
    for job in jobs:
        # One comparison in C for all the fields that most jobs leave alone.
        if job[5:] == _PLAIN:
            args += (job.job_id[ULID], job.route.id, job.priority, "", "", job.record)
            continue
        args += (
            job.job_id[ULID],
            job.route.id,
            encode_default(job.queue_priority) if job.queue_priority else job.priority,
            encode_start(job),
            encode_extra(job),
            job.record,
        )


def accepted(
    jobs: Sequence[NewJob], answers: Sequence[Any], limits: tuple[int, int]
) -> list[Accepted | JobwireError]:
    """Return what became of jobs, from submit.lua's answers; limits as in `submit`."""
    return [
        Accepted(job.job_id, _STATES[answer])
        if type(answer) is int
        else not_written(job, answer, limits)
        for job, answer in zip(jobs, answers, strict=True)
    ]


def not_written(job: NewJob, answer: list[Any], limits: tuple[int, int]) -> Accepted | JobwireError:
    """Return the answer to a job that submit.lua did not write."""
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
    job_id = job_id_of(job.queue, rest[1].decode())
    if code == Code.KEY_TAKEN:
        return UniqueKeyTaken(
            job.unique.key if job.unique else "", job_id, state.name if state else "forgotten"
        )
    return Accepted(job_id, state, b"")


def queue_full(queue: str, setting: str, what: str, limit: int, present: int) -> QueueFull:
    """Return the refusal for a queue at its limit."""
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


def encode_default(priority: int) -> str:
    """Return the priority of a job that has its queue's, as submit.lua reads it."""
    return f"q{priority}" if priority else "0"


def encode_start(job: NewJob) -> str:
    """Return when the job becomes ready, as submit.lua reads it."""
    if job.delay_ms:
        return f"+{job.delay_ms}"
    return str(job.run_at_ms) if job.run_at_ms else ""


def encode_extra(job: NewJob) -> str:
    """Return the HASH fields that a new job needs beyond the defaults, '' for none."""
    fields: list[str] = []
    if job.execution_timeout_ms or job.deadline_ms or job.retention_ms is not None or job.unique:
        fields += ["y", "1"]
    if job.execution_timeout_ms:
        fields += ["xt", str(job.execution_timeout_ms)]
    if job.expires_at_ms:
        fields += ["ex", str(job.expires_at_ms)]
    if job.deadline_ms:
        fields += ["dl", str(job.deadline_ms)]
    if job.retry is not None:
        fields += ["o", codec.encode_policy(job.retry)]
    if job.max_output_bytes:
        fields += ["ol", str(job.max_output_bytes)]
    if job.trim_output:
        fields += ["ot", "1"]
    if job.retention_ms is not None:
        fields += ["kp", str(job.retention_ms)]
    if job.request or job.unique:
        return _encode_identity(job, fields)
    return json.dumps(fields) if fields else ""


def _encode_identity(job: NewJob, fields: list[str]) -> str:
    """Return the HASH fields together with what decides whether the job is written at all."""
    item: dict[str, Any] = {"f": fields}
    if job.request is not None:
        item |= {"q": job.request.request_id, "d": job.request.digest}
        if job.request.chosen:
            item["j"] = 1
    if job.unique is not None:
        unique = _SCOPES[job.unique.scope] + _unique_name(job.unique.key)
        item |= {"u": unique, "c": int(job.unique.conflict)}
        if job.unique.scope is UniqueScope.PERIOD:
            # Ends by itself, whatever happens to the job.
            item["t"] = job.unique.period_ms
        else:
            item["f"] = [*fields, "uk", unique]
    return json.dumps(item)


def add_request(extra: str, request: RequestId) -> str:
    """Return a job's extra, as submit.lua reads it, with the id of the request added."""
    item = json.loads(extra) if extra else []
    if isinstance(item, list):
        item = {"f": item}
    return json.dumps(item | {"q": request.request_id, "d": request.digest})


def _unique_name(key: str) -> str:
    """Return a unique key as it is stored: a long one as a digest.

    The digest has 48 characters, more than any short key, and keeps the job's HASH in its compact
    encoding.
    """
    raw = key.encode()
    return key if len(raw) <= _LONGEST_NAME else blake2b(raw, digest_size=24).hexdigest()
