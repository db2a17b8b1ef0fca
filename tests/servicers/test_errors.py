"""What a refused call is answered with: status, reason, and what a program may do about it."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from structlog.testing import capture_logs

from tests.support.contract import admin, errors, job_pb2, jobs, workers
from tests.support.grpc_servers import Served, refusal, refused, served_broker
from tests.support.jobs import next_ulid
from tests.support.stores import StoreProcess


def _spec(**fields: Any) -> Any:
    return job_pb2.JobSpec(**{"operation": "op", **fields})


async def _register(served: Served, worker_id: str = "w1") -> None:
    spec = workers.WorkerSpec(worker_id=worker_id, operations=["op"])
    await served.workers.RegisterWorker(workers.RegisterWorkerRequest(worker=spec))


async def _running(served: Served) -> Any:
    await _register(served)
    await served.jobs.SubmitJob(jobs.SubmitJobRequest(spec=_spec()))
    answer = await served.workers.ClaimJob(workers.ClaimJobRequest(worker_id="w1"))
    (one,) = answer.assignments
    return one


def _succeed(job_id: str, token: int) -> Any:
    completion = workers.Completion(job_id=job_id, fencing_token=token, success=workers.Success())
    return workers.CompleteJobRequest(worker_id="w1", completion=completion)


async def test_an_unknown_job_is_not_found_by_every_method_that_names_one(
    served: Served,
) -> None:
    await _register(served)
    job_id = f"default-{next_ulid()}"
    claim = workers.ClaimJobRequest(worker_id="w1", job_id=job_id)
    for call in (
        served.jobs.GetJob(jobs.GetJobRequest(job_id=job_id)),
        served.jobs.WatchJob(jobs.WatchJobRequest(job_id=job_id)),
        served.jobs.CancelJob(jobs.CancelJobRequest(job_id=job_id)),
        served.workers.ClaimJob(claim),
        served.workers.CompleteJob(_succeed(job_id, 1)),
    ):
        found = await refusal(call)
        assert (found.code, found.reason) == (StatusCode.NOT_FOUND, "JOB_NOT_FOUND")
        assert found.resource == ("jobwire.v1.Job", job_id)


async def test_an_unknown_queue_is_not_found(served: Served) -> None:
    for call in (
        served.jobs.ListJobs(jobs.ListJobsRequest(filter=jobs.JobFilter(queue="none"))),
        served.admin.GetQueue(admin.GetQueueRequest(queue="none")),
        served.admin.PauseQueue(admin.PauseQueueRequest(queue="none")),
        served.admin.ResumeQueue(admin.ResumeQueueRequest(queue="none")),
    ):
        found = await refusal(call)
        assert (found.code, found.reason) == (StatusCode.NOT_FOUND, "QUEUE_NOT_FOUND")
        assert found.resource == ("jobwire.v1.Queue", "none")


async def test_an_unknown_worker_is_not_found(served: Served) -> None:
    status = workers.UpdateWorkerStatusRequest(worker_id="w9", status=2)
    for call in (
        served.workers.ClaimJob(workers.ClaimJobRequest(worker_id="w9")),
        served.workers.Heartbeat(workers.HeartbeatRequest(worker_id="w9")),
        served.workers.UpdateWorkerStatus(status),
        served.admin.GetWorker(admin.GetWorkerRequest(worker_id="w9")),
    ):
        found = await refusal(call)
        assert (found.code, found.reason) == (StatusCode.NOT_FOUND, "WORKER_NOT_FOUND")
    leaving = workers.DeregisterWorkerRequest(worker_id="w9")
    assert (await served.workers.DeregisterWorker(leaving)).released_jobs == 0


@pytest.mark.parametrize("kind", ["success", "failure", "released", "cancelled", "progress"])
async def test_a_write_with_a_stale_token_is_refused_and_changes_nothing(
    served: Served, kind: str
) -> None:
    one = await _running(served)
    before = served.broker.dump()
    token = one.fencing_token + 1
    if kind == "progress":
        call = served.workers.UpdateProgress(
            workers.UpdateProgressRequest(worker_id="w1", job_id=one.job_id, fencing_token=token)
        )
    else:
        completion = workers.Completion(job_id=one.job_id, fencing_token=token)
        getattr(completion, kind).SetInParent()
        call = served.workers.CompleteJob(
            workers.CompleteJobRequest(worker_id="w1", completion=completion)
        )
    found = await refusal(call)
    assert (found.code, found.reason) == (StatusCode.FAILED_PRECONDITION, "LEASE_LOST")
    assert found.metadata["job_id"] == one.job_id
    assert found.retry_after_ms is None
    assert served.broker.dump() == before


async def test_what_a_state_does_not_allow_names_the_state(served: Served) -> None:
    one = await _running(served)
    await served.workers.CompleteJob(_succeed(one.job_id, one.fencing_token))
    found = await refusal(served.jobs.CancelJob(jobs.CancelJobRequest(job_id=one.job_id)))
    assert (found.code, found.reason) == (StatusCode.FAILED_PRECONDITION, "WRONG_STATE")
    assert found.metadata["state"] == "SUCCEEDED"
    claim = workers.ClaimJobRequest(worker_id="w1", job_id=one.job_id)
    found = await refusal(served.workers.ClaimJob(claim))
    assert (found.reason, found.metadata["state"]) == ("WRONG_STATE", "SUCCEEDED")


async def test_an_id_in_use_for_another_job_is_refused_and_the_same_job_is_accepted_again(
    served: Served,
) -> None:
    job_id = f"default-{next_ulid()}"
    request = jobs.SubmitJobRequest(job_id=job_id, spec=_spec(labels={"a": "1", "b": "2"}))
    first = await served.jobs.SubmitJob(request)
    assert (first.job_id, first.existed) == (job_id, False)
    before = served.broker.dump()
    again = await served.jobs.SubmitJob(request)
    assert (again.job_id, again.existed, again.state) == (job_id, True, first.state)
    other = jobs.SubmitJobRequest(job_id=job_id, spec=_spec(priority=1))
    found = await refusal(served.jobs.SubmitJob(other))
    assert (found.code, found.reason) == (StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS")
    assert served.broker.dump() == before


async def test_a_batch_is_answered_item_by_item(served: Served) -> None:
    taken = f"default-{next_ulid()}"
    await served.jobs.SubmitJob(jobs.SubmitJobRequest(job_id=taken, spec=_spec()))
    request = jobs.SubmitJobsRequest(
        requests=[
            jobs.SubmitJobRequest(spec=_spec()),
            jobs.SubmitJobRequest(queue="X", spec=_spec(priority=300)),
            jobs.SubmitJobRequest(queue="other", spec=_spec()),
            jobs.SubmitJobRequest(job_id=taken, spec=_spec(priority=1)),
            jobs.SubmitJobRequest(job_id=taken, spec=_spec()),
        ]
    )
    results = (await served.jobs.SubmitJobs(request)).results
    assert [result.WhichOneof("outcome") for result in results] == [
        "accepted",
        "error",
        "accepted",
        "error",
        "accepted",
    ]
    invalid, exists = results[1].error, results[3].error
    assert invalid.code == StatusCode.INVALID_ARGUMENT.value[0]
    assert invalid.reason == errors.ERROR_REASON_INVALID_FIELD
    assert {one.field for one in invalid.violations} == {"queue", "spec.priority"}
    assert exists.reason == errors.ERROR_REASON_ALREADY_EXISTS
    assert results[2].accepted.job_id.startswith("other-")
    assert results[4].accepted.existed
    assert len(served.broker.check().jobs) == 2
    assert len(served.broker.check("other").jobs) == 1


async def test_a_full_store_says_so_with_a_time_to_retry(served: Served) -> None:
    await served.jobs.SubmitJob(jobs.SubmitJobRequest(spec=_spec()))
    before = served.broker.dump()
    served.broker.client.config_set("maxmemory", "100kb")
    try:
        found = await refusal(served.jobs.SubmitJob(jobs.SubmitJobRequest(spec=_spec())))
        batch = jobs.SubmitJobsRequest(requests=[jobs.SubmitJobRequest(spec=_spec())])
        (result,) = (await served.jobs.SubmitJobs(batch)).results
    finally:
        served.broker.client.config_set("maxmemory", 0)
    assert (found.code, found.reason) == (StatusCode.RESOURCE_EXHAUSTED, "STORE_FULL")
    assert found.retry_after_ms
    assert result.error.reason == errors.ERROR_REASON_STORE_FULL
    assert served.broker.dump() == before


async def test_a_store_that_dies_is_unavailable_and_comes_back_by_itself(
    own_store: StoreProcess,
) -> None:
    async with served_broker(own_store.url) as served:
        one = await _running(served)
        own_store.wait_written()
        own_store.kill()
        calls = [
            served.jobs.SubmitJob(jobs.SubmitJobRequest(spec=_spec())),
            served.jobs.SubmitJobs(
                jobs.SubmitJobsRequest(requests=[jobs.SubmitJobRequest(spec=_spec())])
            ),
            served.jobs.GetJob(jobs.GetJobRequest(job_id=one.job_id)),
            served.jobs.ListJobs(jobs.ListJobsRequest()),
            served.jobs.WatchJob(jobs.WatchJobRequest(job_id=one.job_id)),
            served.jobs.CancelJob(jobs.CancelJobRequest(job_id=one.job_id)),
            served.workers.ClaimJob(workers.ClaimJobRequest(worker_id="w1")),
            served.workers.Heartbeat(workers.HeartbeatRequest(worker_id="w1")),
            served.workers.CompleteJob(_succeed(one.job_id, one.fencing_token)),
            served.admin.ListQueues(admin.ListQueuesRequest()),
            served.admin.GetQueue(admin.GetQueueRequest()),
            served.admin.ListWorkers(admin.ListWorkersRequest()),
        ]
        async with asyncio.timeout(15):
            answers = await asyncio.gather(*(refusal(call) for call in calls))
        for found in answers:
            assert (found.code, found.reason) == (StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
            assert found.retry_after_ms
        own_store.start()
        answer = await _eventually_ok(
            lambda: served.workers.CompleteJob(_succeed(one.job_id, one.fencing_token))
        )
        assert answer.state == job_pb2.JOB_STATE_SUCCEEDED
        watched = [
            answer async for answer in served.jobs.WatchJob(jobs.WatchJobRequest(job_id=one.job_id))
        ]
        assert watched[-1].job.state == job_pb2.JOB_STATE_SUCCEEDED
        await served.jobs.SubmitJob(jobs.SubmitJobRequest(spec=_spec()))
        served.broker.check()


async def test_a_watch_outlives_an_outage_of_the_store(own_store: StoreProcess) -> None:
    async with served_broker(own_store.url) as served:
        one = await _running(served)
        stream = served.jobs.WatchJob(jobs.WatchJobRequest(job_id=one.job_id))
        events = aiter(stream)
        assert (await anext(events)).job.state == job_pb2.JOB_STATE_RUNNING
        own_store.wait_written()
        own_store.restart()
        await _eventually_ok(
            lambda: served.workers.CompleteJob(_succeed(one.job_id, one.fencing_token))
        )
        async with asyncio.timeout(15):
            states = [answer.job.state async for answer in events if answer.HasField("job")]
        assert states[-1] == job_pb2.JOB_STATE_SUCCEEDED


async def _eventually_ok(call: Any) -> Any:
    async with asyncio.timeout(15):
        while True:
            try:
                return await call()
            except grpc.aio.AioRpcError as error:
                if refused(error).code is not StatusCode.UNAVAILABLE:
                    raise
                await asyncio.sleep(0.01)


async def test_thousands_of_violations_fit_into_one_refusal(served: Served) -> None:
    leases = [workers.LeaseRef(job_id=f"no-job-{at}") for at in range(3_000)]
    found = await refusal(
        served.workers.Heartbeat(workers.HeartbeatRequest(worker_id="w1", leases=leases))
    )
    assert (found.code, found.reason) == (StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert "leases[0].job_id" in found.fields
    assert 1 < len(found.fields) < 100
    left_out = 3_000 - len(found.fields)
    assert found.metadata["more_violations"] == str(left_out)
    assert found.message.endswith(f"and {left_out} more")


async def test_what_is_no_job_id_is_not_logged_as_one(served: Served) -> None:
    long = "secret" * 1_000
    with capture_logs() as logs:
        await refusal(served.jobs.GetJob(jobs.GetJobRequest(job_id=long)))
        await refusal(served.workers.CompleteJob(_succeed(long, 1)))
    assert [len(line["job_id"]) for line in logs if line["event"] == "call"] == [90, 90]
