"""The asyncio client against a real gRPC server."""

from __future__ import annotations

import asyncio

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2  # type: ignore[import-untyped]

from jobwire import (
    AsyncBatchError,
    AsyncClient,
    DeadlineExceeded,
    InvalidRequest,
    JobCancelled,
    JobFailed,
    JobState,
    NewJob,
    NotFound,
    RetryPolicy,
    Unavailable,
)
from jobwire.v1 import job_pb2

from tests.client.broker import Broker, reason, retry_info, rich_status

UNAVAILABLE = rich_status(
    grpc.StatusCode.UNAVAILABLE, "the store is away", reason("STORE_UNAVAILABLE")
)


async def test_submit_sends_what_it_is_given(broker: Broker, client: AsyncClient) -> None:
    handle = await client.submit(
        "image.thumbnail",
        {"url": "https://example.com/ä"},
        queue="images",
        priority=7,
        requirements={"gpu": "a100"},
        labels={"customer": "42"},
        retry=RetryPolicy(max_attempts=5, initial_backoff=0.25, jitter=0.0),
        execution_timeout=90,
        delay=1.5,
    )
    (request,) = broker.calls["SubmitJob"]
    assert request.queue == "images"
    assert request.job_id == handle.id
    assert request.spec == job_pb2.JobSpec(
        operation="image.thumbnail",
        payload=job_pb2.Payload(json='{"url":"https://example.com/ä"}'),
        priority=7,
        requirements={"gpu": "a100"},
        labels={"customer": "42"},
        retry=job_pb2.RetryPolicy(
            max_attempts=5, initial_backoff=Duration(nanos=250_000_000), jitter=0.0
        ),
        execution_timeout=Duration(seconds=90),
        delay=Duration(seconds=1, nanos=500_000_000),
    )


async def test_a_submission_is_repeated_under_the_same_id_while_the_store_is_away(
    broker: Broker, client: AsyncClient
) -> None:
    broker.fail("SubmitJob", UNAVAILABLE, UNAVAILABLE)
    handle = await client.submit("work")
    ids = [request.job_id for request in broker.calls["SubmitJob"]]
    assert ids == [handle.id] * 3


async def test_a_full_queue_is_asked_again_after_the_delay_that_it_names(
    broker: Broker, client: AsyncClient
) -> None:
    full = rich_status(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "full", reason("QUEUE_FULL"), retry_info(0.3)
    )
    broker.fail("SubmitJob", full)
    loop = asyncio.get_running_loop()
    began = loop.time()
    await client.submit("work")
    assert loop.time() - began >= 0.3
    assert len(broker.calls["SubmitJob"]) == 2


async def test_a_wait_that_would_pass_the_deadline_is_not_begun(broker: Broker) -> None:
    full = rich_status(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "full", reason("QUEUE_FULL"), retry_info(0.9)
    )
    broker.fail("SubmitJob", full)
    async with AsyncClient(broker.target, timeout_s=0.8) as client:
        with pytest.raises(Exception, match="QUEUE_FULL: full") as raised:
            await client.submit("work")
    assert getattr(raised.value, "retry_after_s", None) == pytest.approx(0.9)
    assert len(broker.calls["SubmitJob"]) == 1


async def test_a_refusal_is_not_repeated_and_names_each_field(
    broker: Broker, client: AsyncClient
) -> None:
    bad = error_details_pb2.BadRequest()
    bad.field_violations.add(field="queue", description="has a space")
    bad.field_violations.add(field="spec.priority", description="is above 255")
    broker.fail(
        "SubmitJob",
        rich_status(
            grpc.StatusCode.INVALID_ARGUMENT, "2 fields", reason("INVALID_FIELD", a="b"), bad
        ),
    )
    with pytest.raises(InvalidRequest) as raised:
        await client.submit("work")
    error = raised.value
    assert [v.field for v in error.violations] == ["queue", "spec.priority"]
    assert (error.reason, error.metadata) == ("INVALID_FIELD", {"a": "b"})
    assert len(broker.calls["SubmitJob"]) == 1


async def test_without_a_server_a_call_ends_within_its_deadline() -> None:
    async with AsyncClient("127.0.0.1:1", timeout_s=0.5) as client:
        with pytest.raises(Unavailable):
            await client.get("default-x")


async def test_submit_many_goes_out_in_chunks_and_keeps_the_order(
    broker: Broker, client: AsyncClient
) -> None:
    handles = await client.submit_many(NewJob(operation=f"op{n}") for n in range(1201))
    assert [len(call.requests) for call in broker.calls["SubmitJobs"]] == [500, 500, 201]
    assert [broker.jobs[handle.id].spec.operation for handle in handles] == [
        f"op{n}" for n in range(1201)
    ]


async def test_submit_many_tells_the_accepted_from_the_refused(
    broker: Broker, client: AsyncClient
) -> None:
    batch = [NewJob(operation="a"), NewJob(operation=""), NewJob(operation="c")]
    with pytest.raises(AsyncBatchError) as raised:
        await client.submit_many(batch)
    assert [broker.jobs[handle.id].spec.operation for handle in raised.value.handles] == ["a", "c"]
    assert list(raised.value.errors) == [1]
    assert raised.value.errors[1].violations[0].field == "spec.operation"


async def test_list_reads_page_after_page(broker: Broker, client: AsyncClient) -> None:
    for _ in range(5):
        await broker.add("work")
    found = [job.id async for job in client.list_jobs(page_size=2)]
    assert found == list(broker.jobs)
    assert len(broker.calls["ListJobs"]) == 3


async def test_get_of_an_unknown_job_is_not_found(client: AsyncClient) -> None:
    with pytest.raises(NotFound) as raised:
        await client.get("default-none")
    assert raised.value.reason == "JOB_NOT_FOUND"


async def test_result_waits_for_the_end_and_returns_the_value(
    broker: Broker, client: AsyncClient
) -> None:
    handle = await client.submit("work")
    waiting = asyncio.create_task(handle.result(timeout=10))
    await broker.until(lambda: broker.calls["WatchJob"])
    job = broker.jobs[handle.id]
    job.state = job_pb2.JOB_STATE_SUCCEEDED
    job.result.json = '{"width":120}'
    await broker.touch(job)
    assert await waiting == {"width": 120}


@pytest.mark.parametrize(
    ("state", "error"),
    [(job_pb2.JOB_STATE_FAILED, JobFailed), (job_pb2.JOB_STATE_CANCELLED, JobCancelled)],
)
async def test_result_raises_how_the_job_ended(
    broker: Broker, client: AsyncClient, state: job_pb2.JobState.ValueType, error: type[Exception]
) -> None:
    job = await broker.add("work")
    job.state = state
    job.failure.type = "ValueError"
    await broker.touch(job)
    with pytest.raises(error):
        await client.job(job.job_id).result(timeout=10)


async def test_result_that_takes_too_long_is_a_timeout_error(
    broker: Broker, client: AsyncClient
) -> None:
    job = await broker.add("work")
    with pytest.raises(TimeoutError) as raised:
        await client.job(job.job_id).result(timeout=0.1)
    assert isinstance(raised.value, DeadlineExceeded)


async def test_watch_goes_on_after_a_restart_and_shows_no_state_twice(
    broker: Broker, client: AsyncClient
) -> None:
    job = await broker.add("work")
    seen = []
    async for state in client.watch(job.job_id):
        seen.append((state.revision, state.state))
        if len(seen) == 1:
            await broker.stop()
            await broker.start()
            broker.fail("WatchJob", UNAVAILABLE)
            job.state = job_pb2.JOB_STATE_RUNNING
            await broker.touch(job)
        elif len(seen) == 2:
            job.state = job_pb2.JOB_STATE_SUCCEEDED
            await broker.touch(job)
    assert seen == [(1, JobState.PENDING), (2, JobState.RUNNING), (3, JobState.SUCCEEDED)]
    assert len(broker.calls["WatchJob"]) >= 3


async def test_watch_gives_up_when_no_server_answers_for_the_reconnect_time(
    broker: Broker,
) -> None:
    job = await broker.add("work")
    async with AsyncClient(broker.target, reconnect_s=0.3) as client:
        states = client.watch(job.job_id)
        assert (await anext(states)).state is JobState.PENDING
        await broker.stop()
        with pytest.raises(Unavailable):
            await anext(states)


async def test_metadata_goes_with_every_call(broker: Broker) -> None:
    async with AsyncClient(broker.target, metadata={"authorization": "Bearer x"}) as client:
        await client.submit("work")
    assert ("authorization", "Bearer x") in broker.metadata["SubmitJob"]


async def test_several_addresses_outlive_the_death_of_one(broker: Broker) -> None:
    async with AsyncClient(f"127.0.0.1:1,localhost:{broker.port}", timeout_s=10) as client:
        for _ in range(4):
            await client.submit("work")
    assert len(broker.jobs) == 4
