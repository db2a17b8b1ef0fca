"""Who found a failure, and how that is told."""

from __future__ import annotations

from typing import Any

import pytest

from jobwire_server.domain.model import FailureOrigin
from jobwire_server.store.codec import decode_failure

from tests.support.contract import job_pb2, jobs, workers
from tests.support.grpc_servers import Served, refusal

WORKER, BROKER = job_pb2.FAILURE_ORIGIN_WORKER, job_pb2.FAILURE_ORIGIN_BROKER


async def _claimed(served: Served) -> Any:
    spec = workers.WorkerSpec(worker_id="w1", operations=["op"])
    await served.workers.RegisterWorker(workers.RegisterWorkerRequest(worker=spec))
    await served.jobs.SubmitJob(jobs.SubmitJobRequest(spec=job_pb2.JobSpec(operation="op")))
    (one,) = (await served.workers.ClaimJob(workers.ClaimJobRequest(worker_id="w1"))).assignments
    return one


async def _complete(served: Served, one: Any, **outcome: Any) -> Any:
    completion = workers.Completion(job_id=one.job_id, fencing_token=one.fencing_token, **outcome)
    request = workers.CompleteJobRequest(worker_id="w1", completion=completion)
    return await served.workers.CompleteJob(request)


async def _job(served: Served, job_id: str) -> Any:
    return (await served.jobs.GetJob(jobs.GetJobRequest(job_id=job_id))).job


@pytest.mark.parametrize(
    "claimed", ["CRASHED_TOO_OFTEN", "DEADLINE_EXCEEDED", "EXECUTION_TIMEOUT", "ValueError", ""]
)
async def test_a_workers_failure_is_its_own_whatever_it_claims(
    served: Served, claimed: str
) -> None:
    one = await _claimed(served)
    failure = job_pb2.Failure(type=claimed, message="no", origin=BROKER, non_retryable=True)
    await _complete(served, one, failure=failure)
    job = await _job(served, one.job_id)
    assert job.state == job_pb2.JOB_STATE_FAILED
    assert (job.failure.type, job.failure.origin) == (claimed, WORKER)
    assert job.attempts[0].failure.origin == WORKER
    listed = jobs.ListJobsRequest(filter={"states": [job_pb2.JOB_STATE_FAILED]})
    assert (await served.jobs.ListJobs(listed)).jobs[0].failure.origin == WORKER


async def test_what_the_broker_found_is_the_brokers(served: Served) -> None:
    one = await _claimed(served)
    await served.workers.DeregisterWorker(workers.DeregisterWorkerRequest(worker_id="w1"))
    (attempt,) = (await _job(served, one.job_id)).attempts
    assert (attempt.failure.type, attempt.failure.origin) == ("RELEASED", BROKER)


async def test_a_reason_for_giving_back_is_the_workers(served: Served) -> None:
    one = await _claimed(served)
    await _complete(served, one, released=workers.Released(reason="deploy"))
    (attempt,) = (await _job(served, one.job_id)).attempts
    assert (attempt.failure.type, attempt.failure.origin) == ("RELEASED", WORKER)


def test_an_entry_of_a_former_release_has_no_origin() -> None:
    failure = decode_failure(b'{"type":"E","message":"m"}')
    assert failure is not None
    assert failure.origin is FailureOrigin.UNKNOWN


VIEWS = {
    "GetJob": jobs.GetJobRequest(job_id="default-00000000000000000000000000"),
    "ListJobs": jobs.ListJobsRequest(),
    "WatchJob": jobs.WatchJobRequest(job_id="default-00000000000000000000000000"),
    "WatchJobs": jobs.WatchJobsRequest(),
    "RunJob": jobs.RunJobRequest(submit={"spec": {"operation": "op"}}),
}


@pytest.mark.parametrize("method", VIEWS)
@pytest.mark.parametrize("view", [3, 99, -1])
async def test_a_view_that_is_not_known_is_refused_by_field(
    served: Served, method: str, view: int
) -> None:
    request = type(VIEWS[method])()
    request.CopyFrom(VIEWS[method])
    request.view = view
    said = await refusal(getattr(served.jobs, method)(request))
    assert (said.code.name, said.reason, said.fields) == (
        "INVALID_ARGUMENT",
        "INVALID_FIELD",
        {"view"},
    )
    assert str(view) in said.violations["view"]
    # And nothing was submitted.
    said = await refusal(served.jobs.ListJobs(jobs.ListJobsRequest()))
    assert said.reason == "QUEUE_NOT_FOUND"
