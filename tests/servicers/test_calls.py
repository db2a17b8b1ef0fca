"""What good calls are answered with, over a real channel."""

from __future__ import annotations

import asyncio
from typing import Any

from google.protobuf import any_pb2, struct_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict, Parse

from tests.support.contract import admin, job_pb2, jobs, workers
from tests.support.grpc_servers import Served, refusal


def _spec(**fields: Any) -> Any:
    return job_pb2.JobSpec(**{"operation": "op", **fields})


async def _submit(served: Served, **fields: Any) -> str:
    request = jobs.SubmitJobRequest(**{"spec": _spec(), **fields})
    return str((await served.jobs.SubmitJob(request)).job_id)


async def _register(served: Served, **fields: Any) -> Any:
    spec = workers.WorkerSpec(**{"worker_id": "w1", "operations": ["op"], **fields})
    return await served.workers.RegisterWorker(workers.RegisterWorkerRequest(worker=spec))


async def _claim(served: Served, **fields: Any) -> Any:
    return await served.workers.ClaimJob(workers.ClaimJobRequest(worker_id="w1", **fields))


async def _complete(served: Served, one: Any, **fields: Any) -> Any:
    completion = workers.Completion(job_id=one.job_id, fencing_token=one.fencing_token, **fields)
    request = workers.CompleteJobRequest(worker_id="w1", completion=completion)
    return await served.workers.CompleteJob(request)


async def test_a_payload_of_any_kind_reaches_the_worker_as_it_was(served: Served) -> None:
    packed = any_pb2.Any(type_url="type.googleapis.com/x.Y", value=b"\x08\x01")
    json_text = '{ "a":  [1, 2.50, "ü\\u00fc"] }'
    kinds = [
        job_pb2.Payload(json=json_text),
        job_pb2.Payload(data=b"\x00\xff"),
        job_pb2.Payload(message=packed),
        job_pb2.Payload(),
    ]
    await _register(served)
    for payload in kinds:
        await _submit(served, spec=_spec(payload=payload))
        (one,) = (await _claim(served)).assignments
        assert one.spec.payload == payload
        assert one.spec.operation == "op"
        assert one.created_at.seconds > 0


async def test_a_struct_is_delivered_as_json(served: Served) -> None:
    struct = struct_pb2.Struct()
    struct.update({"text": "ü", "number": 1.5, "list": [None, True]})
    await _register(served)
    await _submit(served, spec=_spec(payload=job_pb2.Payload(struct=struct)))
    (one,) = (await _claim(served)).assignments
    assert one.spec.payload.WhichOneof("kind") == "json"
    expected = job_pb2.Payload(struct=struct)
    assert MessageToDict(expected.struct) == MessageToDict(_parse(one.spec.payload.json))


def _parse(text: str) -> struct_pb2.Struct:
    return Parse(text, struct_pb2.Struct())


async def test_the_life_of_a_job_is_told_in_full_and_in_short(served: Served) -> None:
    answer = await _register(served, lease_duration=Duration(seconds=7))
    assert answer.lease_duration.seconds == 7
    assert answer.server_id == "s1"
    job_id = await _submit(
        served, spec=_spec(payload={"json": "[1]"}, labels={"team": "a"}, priority=9)
    )
    claimed = await _claim(served)
    assert claimed.lease_duration.seconds == 7
    (one,) = claimed.assignments
    assert (one.job_id, one.attempt, one.fencing_token) == (job_id, 1, 1)
    progress = job_pb2.Progress(fraction=0.5, message="half", details={"json": "{}"})
    report = workers.UpdateProgressRequest(
        worker_id="w1", job_id=job_id, fencing_token=1, progress=progress
    )
    reported = await served.workers.UpdateProgress(report)
    assert not reported.HasField("cancel")
    job = (await served.jobs.GetJob(jobs.GetJobRequest(job_id=job_id))).job
    assert job.state == job_pb2.JOB_STATE_RUNNING
    assert (job.worker_id, job.queue, job.attempt) == ("w1", "default", 1)
    assert job.lease_expires_at == reported.lease_expires_at
    assert (job.progress.fraction, job.progress.message) == (0.5, "half")
    assert job.progress.updated_at.seconds > 0
    done = await _complete(served, one, success=workers.Success(result={"json": "42"}))
    assert done.state == job_pb2.JOB_STATE_SUCCEEDED
    job = (await served.jobs.GetJob(jobs.GetJobRequest(job_id=job_id))).job
    assert job.result.json == "42"
    assert job.spec.payload.json == "[1]"
    assert [attempt.outcome for attempt in job.attempts] == [job_pb2.ATTEMPT_OUTCOME_SUCCEEDED]
    assert job.finished_at.seconds > 0
    assert job.purge_at.seconds > job.finished_at.seconds
    assert not job.HasField("lease_expires_at")
    basic = jobs.GetJobRequest(job_id=job_id, view=job_pb2.JOB_VIEW_BASIC)
    short = (await served.jobs.GetJob(basic)).job
    assert dict(short.spec.labels) == {"team": "a"}
    assert not short.spec.HasField("payload")
    assert not short.HasField("result")
    assert not short.attempts


async def test_a_failed_attempt_is_told_with_its_failure(served: Served) -> None:
    await _register(served)
    job_id = await _submit(served)
    (one,) = (await _claim(served)).assignments
    failure = job_pb2.Failure(type="ValueError", message="no", stack="line", details={"data": b"x"})
    done = await _complete(served, one, failure=failure)
    assert done.state == job_pb2.JOB_STATE_SCHEDULED
    job = (await served.jobs.GetJob(jobs.GetJobRequest(job_id=job_id))).job
    assert job.run_at == done.next_attempt_at
    failure.origin = job_pb2.FAILURE_ORIGIN_WORKER
    assert job.failure == failure
    assert job.attempts[0].failure == failure
    assert job.failures == 1


async def test_a_completion_may_bring_the_next_jobs(served: Served) -> None:
    await _register(served)
    for _ in range(4):
        await _submit(served)
    (one,) = (await _claim(served)).assignments
    completion = workers.Completion(
        job_id=one.job_id, fencing_token=one.fencing_token, success=workers.Success()
    )
    request = workers.CompleteJobRequest(
        worker_id="w1", completion=completion, claim_next=workers.ClaimNext(max_jobs=2)
    )
    answer = await served.workers.CompleteJob(request)
    assert answer.state == job_pb2.JOB_STATE_SUCCEEDED
    assert len(answer.assignments) == 2
    assert answer.lease_duration.seconds == 30
    served.broker.check()


async def test_a_long_poll_is_answered_by_a_submission_and_empty_after_its_wait(
    served: Served,
) -> None:
    await _register(served)
    assert not (await _claim(served, wait=Duration(nanos=50_000_000))).assignments
    poll = asyncio.create_task(_claim(served, wait=Duration(seconds=30)))
    job_id = await _submit(served)
    async with asyncio.timeout(5):
        assert [one.job_id for one in (await poll).assignments] == [job_id]


async def test_a_heartbeat_tells_of_lost_leases_cancellations_and_drain(served: Served) -> None:
    await _register(served)
    first, second = await _submit(served), await _submit(served)
    taken = (await _claim(served, max_jobs=2)).assignments
    assert [one.job_id for one in taken] == [first, second]
    await served.jobs.CancelJob(jobs.CancelJobRequest(job_id=second, reason="stop"))
    leases = [
        workers.LeaseRef(job_id=first, fencing_token=9),
        workers.LeaseRef(job_id=second, fencing_token=1),
    ]
    beat = workers.HeartbeatRequest(worker_id="w1", leases=leases)
    answer = await served.workers.Heartbeat(beat)
    assert [*answer.lost_leases] == leases[:1]
    (notice,) = answer.cancellations
    assert (notice.job_id, notice.reason, notice.fencing_token) == (second, "stop", 1)
    assert not answer.HasField("drain")
    status = workers.UpdateWorkerStatusRequest(
        worker_id="w1", status=workers.WORKER_STATUS_DRAINING
    )
    await served.workers.UpdateWorkerStatus(status)
    assert (await served.workers.Heartbeat(beat)).drain.leave


async def test_a_watch_brings_snapshot_and_end(served: Served) -> None:
    await _register(served)
    job_id = await _submit(served, spec=_spec(payload={"json": "1"}))
    stream = served.jobs.WatchJob(jobs.WatchJobRequest(job_id=job_id))
    events = aiter(stream)
    assert (await anext(events)).job.state == job_pb2.JOB_STATE_PENDING
    (one,) = (await _claim(served)).assignments
    await _complete(served, one, success=workers.Success(result={"json": "2"}))
    async with asyncio.timeout(10):
        rest = [answer async for answer in events]
    assert rest[-1].job.result.json == "2"
    assert rest[-1].job.spec.payload.json == "1"


async def test_jobs_are_listed_by_state_and_operation_page_by_page(served: Served) -> None:
    submitted = [
        await _submit(served, spec=_spec(operation=f"op{at % 2}", payload={"data": b"x"}))
        for at in range(9)
    ]
    found: list[str] = []
    request = jobs.ListJobsRequest(
        filter=jobs.JobFilter(states=[job_pb2.JOB_STATE_PENDING], operation="op0"), page_size=2
    )
    while True:
        answer = await served.jobs.ListJobs(request)
        assert all(not job.spec.HasField("payload") for job in answer.jobs)
        found += [job.job_id for job in answer.jobs]
        if not answer.next_page_token:
            break
        request.page_token = answer.next_page_token
    assert found == submitted[::2]


async def test_queues_workers_and_server_are_told(served: Served) -> None:
    await _register(served, labels={"gpu": "a100"}, concurrency=4, client="test/1")
    await _submit(served)
    await _submit(served, queue="other", spec=_spec(delay=Duration(seconds=60)))
    (one,) = (await _claim(served)).assignments
    await _complete(served, one, success=workers.Success())
    await _submit(served)
    listed = (await served.admin.ListQueues(admin.ListQueuesRequest())).queues
    assert [queue.queue for queue in listed] == ["default", "other"]
    queue = (await served.admin.GetQueue(admin.GetQueueRequest())).queue
    assert {depth.state: depth.count for depth in queue.counts} == {
        job_pb2.JOB_STATE_PENDING: 1,
        job_pb2.JOB_STATE_SUCCEEDED: 1,
    }
    assert (queue.totals.submitted, queue.totals.started, queue.totals.succeeded) == (2, 1, 1)
    assert queue.HasField("oldest_pending_age")
    paused = await served.admin.PauseQueue(admin.PauseQueueRequest(queue="default"))
    assert paused.queue.paused
    resumed = await served.admin.ResumeQueue(admin.ResumeQueueRequest(queue="default"))
    assert not resumed.queue.paused
    worker = (await served.admin.GetWorker(admin.GetWorkerRequest(worker_id="w1"))).worker
    assert worker.status == workers.WORKER_STATUS_READY
    assert dict(worker.spec.labels) == {"gpu": "a100"}
    assert (worker.spec.concurrency, worker.spec.client) == (4, "test/1")
    assert [*worker.spec.queues] == ["default"]
    nobody = admin.ListWorkersRequest(queue="other")
    assert not (await served.admin.ListWorkers(nobody)).workers
    info = await served.admin.GetServerInfo(admin.GetServerInfoRequest())
    assert (info.server_id, info.store_engine) == ("s1", "valkey")
    assert info.limits.max_payload_bytes == 1_000
    assert info.store_time.seconds > 0


async def test_a_claim_and_a_completion_tell_of_cancelled_jobs(served: Served) -> None:
    await _register(served)
    for _ in range(3):
        await _submit(served)
    first, second, third = (await _claim(served, max_jobs=3)).assignments
    await served.jobs.CancelJob(jobs.CancelJobRequest(job_id=first.job_id, reason="late"))
    (notice,) = (await _claim(served, wait=Duration(seconds=30))).cancellations
    assert (notice.job_id, notice.fencing_token) == (first.job_id, first.fencing_token)
    assert notice.reason == "late"
    assert notice.deadline.seconds > 0
    await served.jobs.CancelJob(jobs.CancelJobRequest(job_id=second.job_id))
    completion = workers.Completion(
        job_id=third.job_id, fencing_token=third.fencing_token, success=workers.Success()
    )
    request = workers.CompleteJobRequest(
        worker_id="w1",
        completion=completion,
        claim_next=workers.ClaimNext(wait=Duration(seconds=30)),
    )
    answer = await served.workers.CompleteJob(request)
    assert [one.job_id for one in answer.cancellations] == [second.job_id]
    fourth = await _submit(served)
    await served.jobs.CancelJob(jobs.CancelJobRequest(job_id=first.job_id))
    assert (await _claim(served, job_id=fourth)).cancellations == []


async def test_what_a_former_process_says_late_does_nothing_to_the_one_that_has_its_id(
    served: Served,
) -> None:
    stub, spec = served.workers, workers.WorkerSpec(worker_id="w1", operations=["op"])
    for instance in ("former", "newer"):
        request = workers.RegisterWorkerRequest(worker=spec, instance_id=instance)
        await stub.RegisterWorker(request)
    await served.jobs.SubmitJob(jobs.SubmitJobRequest(spec=job_pb2.JobSpec(operation="op")))
    (one,) = (await stub.ClaimJob(workers.ClaimJobRequest(worker_id="w1"))).assignments

    async def leave(instance: str) -> int:
        request = workers.DeregisterWorkerRequest(worker_id="w1", instance_id=instance)
        return int((await stub.DeregisterWorker(request)).released_jobs)

    drained = workers.UpdateWorkerStatusRequest(
        worker_id="w1", status=workers.WORKER_STATUS_DRAINING, instance_id="former"
    )
    assert (await refusal(stub.UpdateWorkerStatus(drained))).reason == "WORKER_NOT_FOUND"
    assert await leave("former") == 0
    beat = await stub.Heartbeat(workers.HeartbeatRequest(worker_id="w1"))
    assert not beat.HasField("drain")
    (job,) = (await served.jobs.ListJobs(jobs.ListJobsRequest())).jobs
    assert (job.job_id, job.state) == (one.job_id, job_pb2.JOB_STATE_RUNNING)
    drained.instance_id = "newer"
    assert (await stub.UpdateWorkerStatus(drained)).status == workers.WORKER_STATUS_DRAINING
    assert await leave("newer") == 1
