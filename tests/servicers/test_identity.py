"""Request ids and unique keys as a producer sees them, over a real channel."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf import struct_pb2
from google.protobuf.duration_pb2 import Duration

from tests.support.contract import admin, job_pb2, jobs, workers
from tests.support.grpc_servers import Served, refusal

PENDING, RUNNING, CANCELLED = 2, 3, 7


def _spec(**fields: Any) -> Any:
    return job_pb2.JobSpec(**{"operation": "op", **fields})


def _request(**fields: Any) -> Any:
    return jobs.SubmitJobRequest(**{"spec": _spec(), **fields})


def _unique(key: str = "k", **fields: Any) -> Any:
    return _request(spec=_spec(unique=job_pb2.UniqueKey(key=key, **fields)))


async def test_a_repeated_request_is_answered_with_the_same_job(served: Served) -> None:
    struct = struct_pb2.Struct()
    struct.update({str(at): at for at in range(40)})
    spec = _spec(payload=job_pb2.Payload(struct=struct), labels={str(at): "x" for at in range(16)})
    first = await served.jobs.SubmitJob(_request(spec=spec, request_id="a"))
    again = await served.jobs.SubmitJob(_request(spec=spec, request_id="a"))
    assert (again.job_id, again.state, again.existed) == (first.job_id, PENDING, True)
    assert not first.existed


async def test_the_repeat_of_a_request_whose_job_is_forgotten_says_so(served: Served) -> None:
    first = await served.jobs.SubmitJob(_request(request_id="a"))
    assert not first.forgotten
    await served.jobs.CancelJob(jobs.CancelJobRequest(job_id=first.job_id))
    purge = admin.PurgeJobsRequest(filter={"queue": "default"})
    async for _ in served.admin.PurgeJobs(purge):
        pass
    again = await served.jobs.SubmitJob(_request(request_id="a"))
    assert (again.job_id, again.state) == (first.job_id, 0)
    assert (again.existed, again.forgotten) == (True, True)
    batch = jobs.SubmitJobsRequest(requests=[_request(request_id="a")])
    (result,) = (await served.jobs.SubmitJobs(batch)).results
    assert result.accepted == again


async def test_other_content_under_the_request_id_is_refused_by_name(served: Served) -> None:
    await served.jobs.SubmitJob(_request(request_id="a"))
    other = _request(spec=_spec(operation="other"), request_id="a")
    said = await refusal(served.jobs.SubmitJob(other))
    assert (said.code.name, said.reason) == ("ALREADY_EXISTS", "ALREADY_EXISTS")
    assert "request_id a was used for other content" in said.message


async def test_a_repeated_batch_is_answered_item_by_item(served: Served) -> None:
    batch = jobs.SubmitJobsRequest(
        requests=[_request(), _request(request_id="own"), _request(queue="q2")], request_id="b"
    )
    first = await served.jobs.SubmitJobs(batch)
    again = await served.jobs.SubmitJobs(batch)
    ids = [result.accepted.job_id for result in first.results]
    assert len(set(ids)) == 3
    assert [result.accepted.job_id for result in again.results] == ids
    assert all(result.accepted.existed for result in again.results)
    # The first item under the id that its place made.
    alone = await served.jobs.SubmitJob(_request(request_id="b:0"))
    assert alone.job_id == ids[0]


async def test_a_unique_key_answers_refuses_and_replaces(served: Served) -> None:
    first = await served.jobs.SubmitJob(_unique())
    shared = await served.jobs.SubmitJob(_unique())
    assert (shared.job_id, shared.state, shared.existed) == (first.job_id, PENDING, True)
    said = await refusal(served.jobs.SubmitJob(_unique(on_conflict=job_pb2.UNIQUE_CONFLICT_REJECT)))
    assert (said.code.name, said.reason) == ("ALREADY_EXISTS", "UNIQUE_KEY_TAKEN")
    assert said.metadata["job_id"] == first.job_id
    second = await served.jobs.SubmitJob(
        _unique(on_conflict=job_pb2.UNIQUE_CONFLICT_REPLACE_PENDING)
    )
    assert not second.existed
    old = (await served.jobs.GetJob(jobs.GetJobRequest(job_id=first.job_id))).job
    assert (old.state, old.cancel_reason) == (CANCELLED, f"replaced by {second.job_id}")


async def test_one_refused_item_of_a_batch_does_not_stop_the_others(served: Served) -> None:
    batch = jobs.SubmitJobsRequest(
        requests=[
            _unique(),
            _unique(on_conflict=job_pb2.UNIQUE_CONFLICT_REJECT),
            _request(),
        ]
    )
    one, two, three = (await served.jobs.SubmitJobs(batch)).results
    assert one.accepted.job_id
    assert two.error.metadata["job_id"] == one.accepted.job_id
    assert three.accepted.state == PENDING


async def test_run_job_follows_the_job_that_holds_the_key(served: Served) -> None:
    first = await served.jobs.SubmitJob(_unique())
    call = served.jobs.RunJob(jobs.RunJobRequest(submit=_unique(), cancel_on_disconnect=True))
    answer = await call.read()
    assert answer.job.job_id == first.job_id
    call.cancel()
    await served.workers.RegisterWorker(
        workers.RegisterWorkerRequest(worker=workers.WorkerSpec(worker_id="w1", operations=["op"]))
    )
    claim = workers.ClaimJobRequest(worker_id="w1")
    (one,) = (await served.workers.ClaimJob(claim)).assignments
    assert one.job_id == first.job_id


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"key": ""}, "spec.unique.key"),
        ({"key": "x" * 129}, "spec.unique.key"),
        ({"key": "k", "scope": 9}, "spec.unique.scope"),
        ({"key": "k", "on_conflict": 9}, "spec.unique.on_conflict"),
        ({"key": "k", "scope": 3}, "spec.unique.period"),
        ({"key": "k", "scope": 3, "period": Duration(nanos=1)}, "spec.unique.period"),
        ({"key": "k", "scope": 3, "period": Duration(seconds=1 << 40)}, "spec.unique.period"),
        ({"key": "k", "period": Duration(seconds=5)}, "spec.unique.period"),
    ],
)
async def test_a_bad_unique_key_is_named(
    served: Served, fields: dict[str, Any], named: str
) -> None:
    spec = _spec(unique=job_pb2.UniqueKey(**fields))
    said = await refusal(served.jobs.SubmitJob(_request(spec=spec)))
    assert said.code.name == "INVALID_ARGUMENT"
    assert named in said.message


@pytest.mark.parametrize("request_id", ["x" * 65, "a b", "ä", "a/b"])
async def test_a_bad_request_id_is_named(served: Served, request_id: str) -> None:
    said = await refusal(served.jobs.SubmitJob(_request(request_id=request_id)))
    assert said.code.name == "INVALID_ARGUMENT"
    assert "request_id" in said.message


async def test_the_request_id_of_a_batch_leaves_room_for_the_places(served: Served) -> None:
    batch = jobs.SubmitJobsRequest(requests=[_request()], request_id="x" * 57)
    said = await refusal(served.jobs.SubmitJobs(batch))
    assert "56" in said.message
    batch.request_id = "x" * 56
    assert (await served.jobs.SubmitJobs(batch)).results[0].accepted.job_id


@pytest.mark.parametrize("retention", [Duration(seconds=-1), Duration(seconds=1 << 40)])
async def test_a_bad_retention_is_named(served: Served, retention: Duration) -> None:
    said = await refusal(served.jobs.SubmitJob(_request(spec=_spec(retention=retention))))
    assert "spec.retention" in said.message


async def test_a_full_queue_is_named_with_its_limit_and_when_to_come_back(served: Served) -> None:
    await served.jobs.SubmitJob(_request())
    config = admin.QueueConfig(max_pending_jobs=2)
    await served.admin.ConfigureQueue(admin.ConfigureQueueRequest(queue="default", config=config))
    batch = jobs.SubmitJobsRequest(requests=[_request(), _request()])
    one, two = (await served.jobs.SubmitJobs(batch)).results
    assert one.accepted.job_id
    assert two.error.code == 8
    said = await refusal(served.jobs.SubmitJob(_request()))
    assert (said.code.name, said.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
    assert said.retry_after_ms == 1000
    assert "max_pending_jobs" in said.message
    queue = (await served.admin.GetQueue(admin.GetQueueRequest())).queue
    assert queue.live_bytes > 0
    assert queue.ended_bytes == 0
