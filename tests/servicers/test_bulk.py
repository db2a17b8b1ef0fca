"""Redrives and actions on many jobs over a real channel."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode

from tests.support.contract import admin, job_pb2, jobs, workers
from tests.support.grpc_servers import Served, refusal
from tests.support.jobs import next_ulid

LABELS_17 = {f"k{at}": "v" for at in range(17)}


async def _dead_letters(served: Served, count: int, **fields: Any) -> list[str]:
    """Makes dead letters; their priorities are 0, 1, 2, ..."""
    spec = workers.WorkerSpec(worker_id="w1", operations=["op", "other"])
    await served.workers.RegisterWorker(workers.RegisterWorkerRequest(worker=spec))
    ids = []
    for at in range(count):
        job = job_pb2.JobSpec(**{"operation": "op", "priority": at, **fields})
        ids.append((await served.jobs.SubmitJob(jobs.SubmitJobRequest(spec=job))).job_id)
        (one,) = (
            await served.workers.ClaimJob(workers.ClaimJobRequest(worker_id="w1"))
        ).assignments
        completion = workers.Completion(
            job_id=one.job_id,
            fencing_token=one.fencing_token,
            failure=job_pb2.Failure(type="Broken", non_retryable=True),
        )
        request = workers.CompleteJobRequest(worker_id="w1", completion=completion)
        await served.workers.CompleteJob(request)
    return ids


async def _told(stream: Any) -> Any:
    answers = [answer.progress async for answer in stream]
    assert [answer.done for answer in answers] == [False] * (len(answers) - 1) + [True]
    return answers[-1]


def _filter(**fields: Any) -> Any:
    return jobs.JobFilter(**{"queue": "default", **fields})


async def test_a_dead_letter_is_put_back(served: Served) -> None:
    (job_id,) = await _dead_letters(served, 1, requirements={})
    request = jobs.RetryJobRequest(job_id=job_id, reason="mended")
    job = (await served.jobs.RetryJob(request)).job
    assert job.state == job_pb2.JOB_STATE_PENDING
    assert job.last_redrive.reason == "mended"
    assert job.last_redrive.from_state == job_pb2.JOB_STATE_FAILED
    assert job.last_redrive.number == 1
    assert job.last_redrive.redriven_at.seconds > 0
    assert not job.HasField("finished_at")
    assert not job.HasField("purge_at")
    (one,) = (await served.workers.ClaimJob(workers.ClaimJobRequest(worker_id="w1"))).assignments
    assert (one.job_id, one.fencing_token) == (job_id, 2)


async def test_a_redrive_may_wait(served: Served) -> None:
    (job_id,) = await _dead_letters(served, 1)
    request = jobs.RetryJobRequest(job_id=job_id, delay=Duration(seconds=60))
    job = (await served.jobs.RetryJob(request)).job
    assert job.state == job_pb2.JOB_STATE_SCHEDULED
    assert job.HasField("run_at")


async def test_a_job_that_is_not_over_is_not_redriven(served: Served) -> None:
    spec = job_pb2.JobSpec(operation="op")
    job_id = (await served.jobs.SubmitJob(jobs.SubmitJobRequest(spec=spec))).job_id
    found = await refusal(served.jobs.RetryJob(jobs.RetryJobRequest(job_id=job_id)))
    assert (found.code, found.reason) == (StatusCode.FAILED_PRECONDITION, "WRONG_STATE")
    assert found.metadata["state"] == "PENDING"
    gone = jobs.RetryJobRequest(job_id=f"default-{next_ulid()}")
    assert (await refusal(served.jobs.RetryJob(gone))).reason == "JOB_NOT_FOUND"


async def test_many_are_redriven_cancelled_and_forgotten(served: Served) -> None:
    ids = await _dead_letters(served, 4, labels={"tenant": "a"})
    filter_ = _filter(labels={"tenant": "a"}, failure_type="Broken", operation="op")
    dry = await _told(served.jobs.RetryJobs(jobs.RetryJobsRequest(filter=filter_, dry_run=True)))
    assert (dry.matched, dry.changed, dry.skipped) == (4, 4, 0)
    assert sorted(dry.sample_job_ids) == sorted(ids)
    request = jobs.RetryJobsRequest(filter=filter_, reason="mended", max_jobs=3)
    assert (await _told(served.jobs.RetryJobs(request))).changed == 3
    job = (await served.jobs.GetJob(jobs.GetJobRequest(job_id=ids[0]))).job
    assert job.last_redrive.reason == "mended"
    cancel = jobs.CancelJobsRequest(filter=_filter(), reason="changed our mind")
    assert (await _told(served.jobs.CancelJobs(cancel))).changed == 3
    job = (await served.jobs.GetJob(jobs.GetJobRequest(job_id=ids[0]))).job
    assert job.cancel_reason == "changed our mind"
    purge = admin.PurgeJobsRequest(filter=_filter(states=[job_pb2.JOB_STATE_CANCELLED]))
    assert (await _told(served.admin.PurgeJobs(purge))).changed == 3
    found = await refusal(served.jobs.GetJob(jobs.GetJobRequest(job_id=ids[0])))
    assert found.reason == "JOB_NOT_FOUND"
    assert (await _told(served.admin.PurgeJobs(admin.PurgeJobsRequest(filter=_filter())))).changed
    served.broker.check()


async def test_time_of_submission_and_end_narrow(served: Served) -> None:
    ids = await _dead_letters(served, 2)
    got = [(await served.jobs.GetJob(jobs.GetJobRequest(job_id=one))).job for one in ids]

    async def count(**fields: Any) -> int:
        request = jobs.RetryJobsRequest(filter=_filter(**fields), dry_run=True)
        return int((await _told(served.jobs.RetryJobs(request))).matched)

    far = Timestamp(seconds=got[1].finished_at.seconds + 60)
    assert await count(submitted_after=got[0].created_at, submitted_before=far) == 2
    assert await count(submitted_before=got[0].created_at) == 0
    assert await count(finished_after=got[0].finished_at, finished_before=far) == 2
    assert await count(finished_after=far) == 0
    assert await count(job_ids=[ids[1]]) == 1


async def test_listings_narrow_by_labels_and_failure(served: Served) -> None:
    (first,) = await _dead_letters(served, 1, labels={"tenant": "a"})
    (second,) = await _dead_letters(served, 1, labels={"tenant": "b"})

    async def listed(**fields: Any) -> list[str]:
        found: list[str] = []
        token = ""
        while True:
            request = jobs.ListJobsRequest(
                page_size=1, page_token=token, filter=jobs.JobFilter(**fields)
            )
            answer = await served.jobs.ListJobs(request)
            found += [job.job_id for job in answer.jobs]
            token = answer.next_page_token
            if not token:
                return found

    assert await listed(labels={"tenant": "a"}) == [first]
    assert await listed(labels={"tenant": "b"}, failure_type="Broken") == [second]
    assert await listed(failure_type="Broken") == [first, second]
    assert await listed(failure_type="Other") == []
    assert await listed(failure_origin=job_pb2.FAILURE_ORIGIN_WORKER) == [first, second]
    assert await listed(failure_origin=job_pb2.FAILURE_ORIGIN_BROKER) == []


async def test_a_token_holds_for_its_labels_and_failure_only(served: Served) -> None:
    await _dead_letters(served, 3)
    request = jobs.ListJobsRequest(page_size=1, filter=jobs.JobFilter(failure_type="Broken"))
    token = (await served.jobs.ListJobs(request)).next_page_token
    assert token
    others: list[dict[str, Any]] = [
        {},
        {"failure_type": "Broken", "failure_origin": job_pb2.FAILURE_ORIGIN_WORKER},
        {"failure_type": "Other"},
        {"labels": {"a": "b"}},
    ]
    for fields in others:
        other = jobs.ListJobsRequest(page_size=1, page_token=token, filter=jobs.JobFilter(**fields))
        assert (await refusal(served.jobs.ListJobs(other))).reason == "BAD_PAGE_TOKEN"


FILTERS: list[tuple[dict[str, Any], str]] = [
    ({"queue": ""}, "filter.queue"),
    ({"queue": "No"}, "filter.queue"),
    ({"states": [0]}, "filter.states[0]"),
    ({"states": [6, 99]}, "filter.states[1]"),
    ({"operation": "-"}, "filter.operation"),
    ({"labels": LABELS_17}, "filter.labels"),
    ({"failure_type": "x" * 129}, "filter.failure_type"),
    ({"failure_origin": 3}, "filter.failure_origin"),
    ({"failure_origin": -1}, "filter.failure_origin"),
    ({"submitted_after": Timestamp(seconds=-1)}, "filter.submitted_after"),
    ({"finished_before": Timestamp(seconds=1, nanos=-5)}, "filter.finished_before"),
    (
        {"submitted_after": Timestamp(seconds=9), "submitted_before": Timestamp(seconds=9)},
        "filter.submitted_before",
    ),
    ({"job_ids": ["x"]}, "filter.job_ids[0]"),
    ({"job_ids": [f"other-{next_ulid()}"]}, "filter.job_ids[0]"),
    ({"job_ids": ["x"] * 1_001}, "filter.job_ids"),
]


@pytest.mark.parametrize("method", ["RetryJobs", "CancelJobs", "PurgeJobs"])
async def test_a_bad_filter_names_its_field(served: Served, method: str) -> None:
    for fields, field in FILTERS:
        service, messages = (served.admin, admin) if method == "PurgeJobs" else (served.jobs, jobs)
        request = getattr(messages, f"{method}Request")(filter=_filter(**fields))
        found = await refusal(getattr(service, method)(request))
        assert found.code is StatusCode.INVALID_ARGUMENT
        assert found.fields == {field}, fields


@pytest.mark.parametrize(
    ("method", "fields", "field"),
    [
        ("RetryJob", {"job_id": "x"}, "job_id"),
        ("RetryJob", {"reason": "ü" * 257}, "reason"),
        ("RetryJob", {"delay": Duration(seconds=-1)}, "delay"),
        ("RetryJob", {"delay": Duration(seconds=400_000_000)}, "delay"),
        ("RetryJobs", {"reason": "x" * 513}, "reason"),
        ("RetryJobs", {"max_per_second": -1}, "max_per_second"),
        ("RetryJobs", {"max_per_second": 0.001}, "max_per_second"),
        ("RetryJobs", {"max_per_second": 1e6}, "max_per_second"),
        ("RetryJobs", {"max_per_second": float("nan")}, "max_per_second"),
        ("RetryJobs", {"max_jobs": -1}, "max_jobs"),
        ("CancelJobs", {"reason": "x" * 513}, "reason"),
    ],
)
async def test_a_bad_field_is_named(
    served: Served, method: str, fields: dict[str, Any], field: str
) -> None:
    base: dict[str, Any] = (
        {"job_id": f"default-{next_ulid()}"} if method == "RetryJob" else {"filter": _filter()}
    )
    request = getattr(jobs, f"{method}Request")(**{**base, **fields})
    found = await refusal(getattr(served.jobs, method)(request))
    assert found.fields == {field}


async def test_live_jobs_are_not_purged(served: Served) -> None:
    states = [job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_RUNNING]
    request = admin.PurgeJobsRequest(filter=_filter(states=states))
    assert (await refusal(served.admin.PurgeJobs(request))).fields == {"filter.states[1]"}


async def test_a_queue_that_never_was_is_not_found(served: Served) -> None:
    request = jobs.RetryJobsRequest(filter=_filter(queue="none"))
    found = await refusal(served.jobs.RetryJobs(request))
    assert (found.code, found.reason) == (StatusCode.NOT_FOUND, "QUEUE_NOT_FOUND")


async def test_a_server_that_drains_sends_them_elsewhere(served: Served) -> None:
    await _dead_letters(served, 1)
    await served.broker.router.drain()
    found = await refusal(served.jobs.RetryJobs(jobs.RetryJobsRequest(filter=_filter())))
    assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "SERVER_DRAINING")
