"""Bad input: every field has its range, and a mistake names the field and the remedy."""

from __future__ import annotations

import time
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode

from tests.support.contract import admin, job_pb2, jobs, workers
from tests.support.grpc_servers import Refused, Served, refusal
from tests.support.jobs import next_ulid

DAY_S = 86_400
FAR = Timestamp(seconds=99_999_999_999)
SOON = Timestamp(seconds=int(time.time()) + 3_600)
LATER = Timestamp(seconds=int(time.time()) + 2 * DAY_S)
LONG = "x" * 5_000
A_JOB = f"default-{next_ulid()}"
LABELS_17 = {f"k{at}": "v" for at in range(17)}
LABELS_65 = {f"k{at}": "v" for at in range(65)}
# Numbers that no double can hold, in each spelling.
BEYOND = ("1e400", "-1E+0400", "[1,\n 2.5e309]", "1" * 310, '{"e": ' + "9" * 301 + "e8}")
NOT_FINITE = job_pb2.Payload()
NOT_FINITE.struct.update({"a": [1, {"b": float("inf")}]})
BAD_JSON = job_pb2.Payload(json='{"a": 1,\n "b": }')


def spec(**fields: Any) -> Any:
    return job_pb2.JobSpec(**{"operation": "op", **fields})


def retry(**fields: Any) -> Any:
    return spec(retry=job_pb2.RetryPolicy(**fields))


def submit(**fields: Any) -> Any:
    return jobs.SubmitJobRequest(**{"spec": spec(), **fields})


def register(**fields: Any) -> Any:
    base = {"worker_id": "w1", "operations": ["op"]}
    return workers.RegisterWorkerRequest(worker=workers.WorkerSpec(**{**base, **fields}))


def complete(**fields: Any) -> Any:
    completion = workers.Completion(**{"job_id": A_JOB, "fencing_token": 1, **fields})
    return workers.CompleteJobRequest(worker_id="w1", completion=completion)


def report(**progress: Any) -> Any:
    return workers.UpdateProgressRequest(
        worker_id="w1", job_id=A_JOB, fencing_token=1, progress=job_pb2.Progress(**progress)
    )


def fail(**failure: Any) -> Any:
    return complete(failure=job_pb2.Failure(**failure))


CASES: list[tuple[str, Any, str]] = [
    # SubmitJob
    ("SubmitJob", jobs.SubmitJobRequest(), "spec.operation"),
    ("SubmitJob", submit(spec=spec(operation="-x")), "spec.operation"),
    ("SubmitJob", submit(spec=spec(operation="x" * 129)), "spec.operation"),
    ("SubmitJob", submit(spec=spec(operation="a b")), "spec.operation"),
    ("SubmitJob", submit(queue="Upper"), "queue"),
    ("SubmitJob", submit(queue="x" * 64), "queue"),
    ("SubmitJob", submit(queue="a{b}"), "queue"),
    ("SubmitJob", submit(queue="x-"), "queue"),
    ("SubmitJob", submit(job_id="no-ulid"), "job_id"),
    ("SubmitJob", submit(job_id=f"other-{next_ulid()}"), "job_id"),
    ("SubmitJob", submit(job_id=f"default-{next_ulid().upper()}"), "job_id"),
    ("SubmitJob", submit(job_id=f"default-8{next_ulid()[1:]}"), "job_id"),
    ("SubmitJob", submit(spec=spec(priority=256)), "spec.priority"),
    ("SubmitJob", submit(spec=spec(payload=BAD_JSON)), "spec.payload.json"),
    ("SubmitJob", submit(spec=spec(payload={"json": ""})), "spec.payload.json"),
    ("SubmitJob", submit(spec=spec(payload={"json": "NaN"})), "spec.payload.json"),
    ("SubmitJob", submit(spec=spec(payload={"json": "{} {}"})), "spec.payload.json"),
    ("SubmitJob", submit(spec=spec(payload={"json": '"\\ud800"'})), "spec.payload.json"),
    *(
        ("SubmitJob", submit(spec=spec(payload={"json": text})), "spec.payload.json")
        for text in BEYOND
    ),
    (
        "SubmitJob",
        submit(spec=spec(payload=NOT_FINITE)),
        "spec.payload.struct.fields['a'].values[1].fields['b']",
    ),
    ("SubmitJob", submit(spec=spec(payload={"json": "[" * 900})), "spec.payload.json"),
    ("SubmitJob", submit(spec=spec(payload={"data": bytes(1_000)})), "spec.payload"),
    ("SubmitJob", submit(spec=spec(requirements=LABELS_17)), "spec.requirements"),
    ("SubmitJob", submit(spec=spec(labels=LABELS_17)), "spec.labels"),
    ("SubmitJob", submit(spec=spec(labels={"": "v"})), "spec.labels['']"),
    ("SubmitJob", submit(spec=spec(labels={"jobwire.due": "v"})), "spec.labels['jobwire.due']"),
    ("SubmitJob", submit(spec=spec(labels={"k": "ü" * 32})), "spec.labels['k']"),
    ("SubmitJob", submit(spec=spec(requirements={"a b": "v"})), "spec.requirements['a b']"),
    ("SubmitJob", submit(spec=retry(max_attempts=1001)), "spec.retry.max_attempts"),
    (
        "SubmitJob",
        submit(spec=retry(initial_backoff=Duration(seconds=DAY_S + 1))),
        "spec.retry.initial_backoff",
    ),
    (
        "SubmitJob",
        submit(spec=retry(initial_backoff=Duration(seconds=-1))),
        "spec.retry.initial_backoff",
    ),
    (
        "SubmitJob",
        submit(spec=retry(max_backoff=Duration(seconds=31 * DAY_S))),
        "spec.retry.max_backoff",
    ),
    (
        "SubmitJob",
        submit(spec=retry(initial_backoff=Duration(seconds=9), max_backoff=Duration(seconds=8))),
        "spec.retry.max_backoff",
    ),
    ("SubmitJob", submit(spec=retry(multiplier=0.5)), "spec.retry.multiplier"),
    ("SubmitJob", submit(spec=retry(multiplier=float("nan"))), "spec.retry.multiplier"),
    ("SubmitJob", submit(spec=retry(multiplier=10.1)), "spec.retry.multiplier"),
    ("SubmitJob", submit(spec=retry(jitter=1.1)), "spec.retry.jitter"),
    ("SubmitJob", submit(spec=retry(jitter=float("nan"))), "spec.retry.jitter"),
    ("SubmitJob", submit(spec=retry(jitter=-0.1)), "spec.retry.jitter"),
    (
        "SubmitJob",
        submit(spec=spec(execution_timeout=Duration(nanos=99_000_000))),
        "spec.execution_timeout",
    ),
    (
        "SubmitJob",
        submit(spec=spec(execution_timeout=Duration(seconds=31 * DAY_S))),
        "spec.execution_timeout",
    ),
    ("SubmitJob", submit(spec=spec(run_at=FAR)), "spec.run_at"),
    ("SubmitJob", submit(spec=spec(run_at=Timestamp())), "spec.run_at"),
    ("SubmitJob", submit(spec=spec(delay=Duration(seconds=-1))), "spec.delay"),
    ("SubmitJob", submit(spec=spec(delay=Duration(seconds=3700 * DAY_S))), "spec.delay"),
    ("SubmitJob", submit(spec=spec(expires_at=Timestamp(seconds=1))), "spec.expires_at"),
    ("SubmitJob", submit(spec=spec(expires_at=FAR)), "spec.expires_at"),
    ("SubmitJob", submit(spec=spec(deadline=Timestamp(seconds=1))), "spec.deadline"),
    ("SubmitJob", submit(spec=spec(deadline=FAR)), "spec.deadline"),
    ("SubmitJob", submit(spec=spec(deadline=SOON, run_at=LATER)), "spec.deadline"),
    ("SubmitJob", submit(spec=spec(deadline=SOON, delay=Duration(seconds=DAY_S))), "spec.deadline"),
    # SubmitJobs
    ("SubmitJobs", jobs.SubmitJobsRequest(), "requests"),
    ("SubmitJobs", jobs.SubmitJobsRequest(requests=[submit()] * 11), "requests"),
    # GetJob, WatchJob, CancelJob, ListJobs
    ("GetJob", jobs.GetJobRequest(), "job_id"),
    ("GetJob", jobs.GetJobRequest(job_id=LONG), "job_id"),
    ("WatchJob", jobs.WatchJobRequest(job_id="x"), "job_id"),
    ("CancelJob", jobs.CancelJobRequest(job_id="x"), "job_id"),
    ("CancelJob", jobs.CancelJobRequest(job_id=A_JOB, reason="x" * 513), "reason"),
    ("ListJobs", jobs.ListJobsRequest(filter=jobs.JobFilter(queue="X")), "filter.queue"),
    ("ListJobs", jobs.ListJobsRequest(page_size=-1), "page_size"),
    ("ListJobs", jobs.ListJobsRequest(page_size=1001), "page_size"),
    ("ListJobs", jobs.ListJobsRequest(filter=jobs.JobFilter(operation="-")), "filter.operation"),
    ("ListJobs", jobs.ListJobsRequest(filter=jobs.JobFilter(states=[2, 0])), "filter.states[1]"),
    ("ListJobs", jobs.ListJobsRequest(filter=jobs.JobFilter(states=[99])), "filter.states[0]"),
    ("ListJobs", jobs.ListJobsRequest(page_token="x"), "page_token"),
    # Workers
    ("RegisterWorker", workers.RegisterWorkerRequest(), "worker.worker_id"),
    ("RegisterWorker", register(worker_id="a b"), "worker.worker_id"),
    ("RegisterWorker", register(worker_id="x" * 65), "worker.worker_id"),
    ("RegisterWorker", register(operations=[]), "worker.operations"),
    ("RegisterWorker", register(operations=["op"] * 513), "worker.operations"),
    ("RegisterWorker", register(operations=["op", ""]), "worker.operations[1]"),
    ("RegisterWorker", register(queues=["a"] * 65), "worker.queues"),
    ("RegisterWorker", register(queues=["a", ""]), "worker.queues[1]"),
    ("RegisterWorker", register(labels=LABELS_65), "worker.labels"),
    ("RegisterWorker", register(client="x" * 129), "worker.client"),
    (
        "RegisterWorker",
        register(lease_duration=Duration(nanos=999_000_000)),
        "worker.lease_duration",
    ),
    ("RegisterWorker", register(lease_duration=Duration(seconds=3601)), "worker.lease_duration"),
    ("ClaimJob", workers.ClaimJobRequest(), "worker_id"),
    ("ClaimJob", workers.ClaimJobRequest(worker_id="w1", queues=["a", ""]), "queues[1]"),
    ("ClaimJob", workers.ClaimJobRequest(worker_id="w1", job_id="x"), "job_id"),
    ("ClaimJob", workers.ClaimJobRequest(worker_id="w1", max_jobs=11), "max_jobs"),
    ("ClaimJob", workers.ClaimJobRequest(worker_id="w1", wait=Duration(seconds=61)), "wait"),
    ("ClaimJob", workers.ClaimJobRequest(worker_id="w1", wait=Duration(seconds=-1)), "wait"),
    ("UpdateProgress", workers.UpdateProgressRequest(job_id=A_JOB), "worker_id"),
    ("UpdateProgress", workers.UpdateProgressRequest(worker_id="w1"), "job_id"),
    ("UpdateProgress", report(fraction=1.1), "progress.fraction"),
    ("UpdateProgress", report(fraction=float("nan")), "progress.fraction"),
    ("UpdateProgress", report(message="x" * 1025), "progress.message"),
    (
        "UpdateProgress",
        workers.UpdateProgressRequest(worker_id="w1", job_id=A_JOB, checkpoint=BAD_JSON),
        "checkpoint.json",
    ),
    (
        "UpdateProgress",
        workers.UpdateProgressRequest(worker_id="w1", job_id=A_JOB, checkpoint={"json": "1e400"}),
        "checkpoint.json",
    ),
    ("UpdateProgress", report(details=BAD_JSON), "progress.details.json"),
    ("UpdateProgress", report(details={"json": "1e400"}), "progress.details.json"),
    ("UpdateProgress", report(details={"data": bytes(17 << 10)}), "progress.details"),
    ("CompleteJob", complete(job_id="x", cancelled=workers.Cancelled()), "completion.job_id"),
    ("CompleteJob", complete(), "completion.outcome"),
    (
        "CompleteJob",
        complete(success=workers.Success(result={"data": bytes(500)})),
        "completion.success.result",
    ),
    (
        "CompleteJob",
        complete(success=workers.Success(result=BAD_JSON)),
        "completion.success.result.json",
    ),
    (
        "CompleteJob",
        complete(success=workers.Success(result={"json": "[-1E+999]"})),
        "completion.success.result.json",
    ),
    ("CompleteJob", fail(details={"json": "1e400"}), "completion.failure.details.json"),
    ("CompleteJob", fail(type="x" * 129), "completion.failure.type"),
    ("CompleteJob", fail(details=BAD_JSON), "completion.failure.details.json"),
    ("CompleteJob", fail(retry_after=Duration(seconds=-1)), "completion.failure.retry_after"),
    (
        "CompleteJob",
        complete(released=workers.Released(reason="x" * 513)),
        "completion.released.reason",
    ),
    (
        "CompleteJob",
        workers.CompleteJobRequest(
            worker_id="w1",
            completion=workers.Completion(job_id=A_JOB, cancelled=workers.Cancelled()),
            claim_next=workers.ClaimNext(max_jobs=1001),
        ),
        "claim_next.max_jobs",
    ),
    ("Heartbeat", workers.HeartbeatRequest(), "worker_id"),
    (
        "Heartbeat",
        workers.HeartbeatRequest(
            worker_id="w1", leases=[workers.LeaseRef(job_id=A_JOB), workers.LeaseRef()]
        ),
        "leases[1].job_id",
    ),
    ("UpdateWorkerStatus", workers.UpdateWorkerStatusRequest(worker_id="w1", status=4), "status"),
    ("UpdateWorkerStatus", workers.UpdateWorkerStatusRequest(status=1), "worker_id"),
    ("DeregisterWorker", workers.DeregisterWorkerRequest(), "worker_id"),
    # Operators
    ("ListQueues", admin.ListQueuesRequest(page_size=1001), "page_size"),
    ("ListQueues", admin.ListQueuesRequest(page_token="x"), "page_token"),
    ("GetQueue", admin.GetQueueRequest(queue="X"), "queue"),
    ("PauseQueue", admin.PauseQueueRequest(), "queue"),
    ("ResumeQueue", admin.ResumeQueueRequest(), "queue"),
    ("ListWorkers", admin.ListWorkersRequest(page_size=-5), "page_size"),
    ("ListWorkers", admin.ListWorkersRequest(queue="X"), "queue"),
    ("ListWorkers", admin.ListWorkersRequest(status=9), "status"),
    ("ListWorkers", admin.ListWorkersRequest(page_token="x"), "page_token"),
    ("GetWorker", admin.GetWorkerRequest(worker_id=""), "worker_id"),
]


def _call(served: Served, method: str, request: Any) -> Any:
    for stub in (served.jobs, served.workers, served.admin):
        if hasattr(stub, method):
            return getattr(stub, method)(request)
    raise AssertionError(method)


def _written(served: Served) -> set[bytes]:
    """Return the keys of the store but for those that clocks and sweeps write by themselves."""
    clocks_own = (b":samples", b":servers")
    return {key for key in served.broker.client.scan_iter() if not key.endswith(clocks_own)}


async def _refusal(served: Served, method: str, request: Any) -> Refused:
    return await refusal(_call(served, method, request))


@pytest.mark.parametrize(
    ("method", "request_", "field"),
    CASES,
    ids=[f"{at}-{method}-{field}" for at, (method, _, field) in enumerate(CASES)],
)
async def test_a_field_out_of_its_range_is_named_and_nothing_is_written(
    served: Served, method: str, request_: Any, field: str
) -> None:
    keys = _written(served)
    found = await _refusal(served, method, request_)
    assert found.code is StatusCode.INVALID_ARGUMENT
    assert found.fields == ({field} if request_.ByteSize() else found.fields | {field})
    assert found.reason in ("INVALID_FIELD", "TOO_LARGE", "BAD_PAGE_TOKEN")
    assert found.retry_after_ms is None
    assert all(found.violations.values())
    assert _written(served) == keys


async def test_a_job_in_a_larger_request_is_refused_by_the_whole_path(served: Served) -> None:
    tried = 0
    for method, request, field in CASES:
        if method != "SubmitJob":
            continue
        stream = served.jobs.RunJob(jobs.RunJobRequest(submit=request))
        found = await refusal(stream.read())
        alone = await _refusal(served, "SubmitJob", request)
        assert found.fields == {f"submit.{name}" for name in alone.fields}, field
        assert (found.code, found.reason) == (alone.code, alone.reason)
        tried += 1
    assert tried > 50


async def test_every_wrong_field_of_a_request_is_told_at_once(served: Served) -> None:
    bad = submit(
        job_id="y",
        spec=job_pb2.JobSpec(
            operation="-",
            priority=999,
            labels={"": "v"},
            payload=BAD_JSON,
            retry=job_pb2.RetryPolicy(max_attempts=5000, jitter=7),
            delay=Duration(seconds=-1),
        ),
    )
    found = await _refusal(served, "SubmitJob", bad)
    assert found.fields == {
        "job_id",
        "spec.operation",
        "spec.priority",
        "spec.labels['']",
        "spec.payload.json",
        "spec.retry.max_attempts",
        "spec.retry.jitter",
        "spec.delay",
    }


async def test_a_mistake_in_json_is_told_with_its_position(served: Served) -> None:
    found = await _refusal(served, "SubmitJob", submit(spec=spec(payload=BAD_JSON)))
    assert "line 2 column 7" in found.violations["spec.payload.json"]


async def test_what_is_too_large_says_so(served: Served) -> None:
    found = await _refusal(served, "SubmitJob", submit(spec=spec(payload={"data": bytes(1_000)})))
    assert found.reason == "TOO_LARGE"
    assert "1000" in found.violations["spec.payload"]


async def test_the_largest_values_are_taken(served: Served) -> None:
    request = submit(
        queue="x" * 63,
        spec=spec(
            operation="o" * 128,
            priority=255,
            payload={"data": bytes(990)},
            labels={f"{at:02}" + "k" * 61: "v" * 63 for at in range(16)},
            retry=job_pb2.RetryPolicy(
                max_attempts=1000,
                initial_backoff=Duration(seconds=DAY_S),
                max_backoff=Duration(seconds=30 * DAY_S),
                multiplier=10,
                jitter=1,
            ),
            execution_timeout=Duration(seconds=30 * DAY_S),
            delay=Duration(seconds=3653 * DAY_S),
        ),
    )
    answer = await served.jobs.SubmitJob(request)
    assert answer.state == job_pb2.JOB_STATE_SCHEDULED
    job = (await served.jobs.GetJob(jobs.GetJobRequest(job_id=answer.job_id))).job
    assert job.spec == request.spec


async def test_a_message_over_the_limit_of_the_wire_is_refused_by_the_transport(
    served: Served,
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await served.jobs.SubmitJob(submit(spec=spec(payload={"data": bytes(70_000)})))
    assert error.value.code() is StatusCode.RESOURCE_EXHAUSTED


async def test_a_broken_completion_leaves_the_job_to_its_worker(served: Served) -> None:
    await served.workers.RegisterWorker(register())
    await served.jobs.SubmitJob(submit())
    claimed = await served.workers.ClaimJob(workers.ClaimJobRequest(worker_id="w1"))
    (one,) = claimed.assignments
    completion = workers.Completion(job_id=one.job_id, fencing_token=one.fencing_token)
    completion.success.result.CopyFrom(BAD_JSON)
    request = workers.CompleteJobRequest(worker_id="w1", completion=completion)
    found = await _refusal(served, "CompleteJob", request)
    assert found.fields == {"completion.success.result.json"}
    completion.success.result.json = "{}"
    answer = await served.workers.CompleteJob(
        workers.CompleteJobRequest(worker_id="w1", completion=completion)
    )
    assert answer.state == job_pb2.JOB_STATE_SUCCEEDED


async def test_texts_of_a_failure_that_are_too_long_are_cut(served: Served) -> None:
    await served.workers.RegisterWorker(register())
    await served.jobs.SubmitJob(submit())
    claimed = await served.workers.ClaimJob(workers.ClaimJobRequest(worker_id="w1"))
    (one,) = claimed.assignments
    failure = job_pb2.Failure(type="T", message="ü" * 4_000, stack="€" * 10_000)
    failure.non_retryable = True
    completion = workers.Completion(
        job_id=one.job_id, fencing_token=one.fencing_token, failure=failure
    )
    await served.workers.CompleteJob(
        workers.CompleteJobRequest(worker_id="w1", completion=completion)
    )
    job = (await served.jobs.GetJob(jobs.GetJobRequest(job_id=one.job_id))).job
    assert job.failure.message == "ü" * 2_048
    assert job.failure.stack == "€" * (16_384 // 3)


async def test_a_number_too_large_is_refused_with_its_place_and_the_remedy(served: Served) -> None:
    request = submit(spec=spec(payload={"json": '{"a": "1e400",\n "b": 1e400}'}))
    refused = await _refusal(served, "SubmitJob", request)
    (violation,) = refused.violations.items()
    assert "1e400 at line 2 column 7" in violation[1]
    assert "send it as a string" in violation[1]


@pytest.mark.parametrize(
    "text",
    ['"1e400"', '"\\"1e400"', "1.7e308", "1e-999", "1" * 308, "[" * 200 + "]" * 200,
     '{"a":1,"a":2}', '"\\ud83d\\ude00"', "0." + "0" * 400 + "1e500", '"' + "9" * 400 + '"'],
    ids=lambda text: text[:16],
)  # fmt: skip
async def test_json_that_every_reader_can_take_is_kept_as_it_is(served: Served, text: str) -> None:
    made = await served.jobs.SubmitJob(submit(spec=spec(payload={"json": text})))
    found = await served.jobs.GetJob(jobs.GetJobRequest(job_id=made.job_id))
    assert found.job.spec.payload.json == text
