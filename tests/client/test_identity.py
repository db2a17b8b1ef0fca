"""What a submission says about itself: identity, end, retention."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import grpc
import pytest

from jobwire import AsyncBatchError, AsyncClient, NewJob, QueueFull, UniqueKey, UniqueKeyTaken
from jobwire._requests import submit_batches, submit_request
from jobwire.schedules import change_spec, new_spec
from jobwire.v1 import job_pb2
from jobwire.v1.job_service_pb2 import RunJobResponse

from tests.client.broker import Broker, reason, retry_info, rich_status

NOON = datetime(2100, 1, 1, 12, tzinfo=UTC)


def test_everything_that_a_job_may_say_goes_over_the_wire() -> None:
    key = UniqueKey("k", period=timedelta(hours=1), on_conflict="reject")
    job = NewJob(operation="work", deadline=NOON, unique_key=key, retention=60)
    spec = submit_request(job).spec
    assert spec.deadline.ToDatetime(tzinfo=UTC) == NOON
    assert spec.retention.seconds == 60
    assert spec.unique.scope == job_pb2.UNIQUE_SCOPE_PERIOD
    assert spec.unique.on_conflict == job_pb2.UNIQUE_CONFLICT_REJECT
    assert UniqueKey.from_proto(spec.unique) == UniqueKey(
        "k", "period", timedelta(hours=1), "reject"
    )


def test_spans_are_sent_as_spans_because_the_clock_here_may_be_wrong() -> None:
    day = timedelta(days=1)
    spec = submit_request(NewJob(operation="work", deadline=day, expires_after=2.5)).spec
    assert spec.deadline_after.ToTimedelta() == day
    assert spec.expires_after.ToTimedelta() == timedelta(seconds=2.5)
    assert not spec.HasField("deadline")
    with pytest.raises(ValueError, match="expires_at or expires_after"):
        submit_request(NewJob(operation="work", expires_at=NOON, expires_after=1))


def test_a_schedule_takes_spans_and_loses_them_again() -> None:
    day = timedelta(days=1)
    spec = new_spec("work", None, {"every": 60, "deadline": day, "expires_after": 5})
    assert spec.job.deadline_after.ToTimedelta() == day
    change_spec(spec, {"deadline": 2 * day, "expires_after": None})
    assert spec.job.deadline_after.ToTimedelta() == 2 * day
    assert not spec.job.HasField("expires_after")
    change_spec(spec, {"deadline": None})
    assert not spec.job.HasField("deadline_after")


def test_headers_and_required_features_travel_with_a_job_and_a_schedule() -> None:
    trace = {"traceparent": "00-1"}
    job = NewJob(operation="work", headers=trace, required_features=["headers"])
    spec = submit_request(job).spec
    assert (dict(spec.headers), list(spec.required_features)) == (trace, ["headers"])
    made = new_spec("w", None, {"every": 60, "headers": trace, "required_features": ["headers"]})
    assert (dict(made.job.headers), list(made.job.required_features)) == (trace, ["headers"])
    change_spec(made, {"headers": None, "required_features": ()})
    assert not made.job.headers
    assert not made.job.required_features


def test_a_text_is_a_key_until_the_job_has_ended() -> None:
    unique = submit_request(NewJob(operation="work", unique_key="invoice-1")).spec.unique
    assert (unique.key, unique.scope) == ("invoice-1", job_pb2.UNIQUE_SCOPE_UNFINISHED)
    assert unique.on_conflict == job_pb2.UNIQUE_CONFLICT_RETURN_EXISTING


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"scope": "forever"}, "not a scope; use pending, unfinished, period"),
        ({"on_conflict": "explode"}, "not an on_conflict"),
        ({"scope": "period"}, "needs a period"),
        ({"scope": "pending", "period": 5}, "takes no period"),
    ],
)
def test_a_unique_key_that_means_nothing_is_refused_at_once(
    options: dict[str, object], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        UniqueKey("k", **options)  # type: ignore[arg-type]


def test_a_request_id_leaves_the_job_id_to_the_server() -> None:
    request = submit_request(NewJob(operation="work", request_id="order-1"))
    assert (request.request_id, request.job_id) == ("order-1", "")
    named = submit_request(NewJob(operation="work", request_id="r", job_id="default-0"))
    assert (named.request_id, named.job_id) == ("r", "default-0")


def test_the_id_of_a_batch_is_that_of_each_job_by_its_place() -> None:
    jobs = [
        NewJob(operation="work"),
        NewJob(operation="work", request_id="own"),
        NewJob(operation="work", job_id="default-0"),
        NewJob(operation="work"),
    ]
    (batch,) = submit_batches(jobs, "batch")
    requests = batch.requests
    assert [request.request_id for request in requests] == ["batch:0", "own", "", "batch:3"]
    assert [request.job_id for request in requests] == ["", "", "default-0", ""]


async def test_a_repeated_call_is_the_same_call(broker: Broker, client: AsyncClient) -> None:
    broker.fail("SubmitJob", rich_status(grpc.StatusCode.UNAVAILABLE, "away"))
    handle = await client.submit("work")
    first, second = broker.calls["SubmitJob"]
    assert first == second
    assert handle.id == first.job_id
    assert not first.request_id


async def test_a_taken_key_names_its_holder(broker: Broker, client: AsyncClient) -> None:
    details = reason("UNIQUE_KEY_TAKEN", job_id="default-7")
    broker.fail("SubmitJob", rich_status(grpc.StatusCode.ALREADY_EXISTS, "taken", details))
    with pytest.raises(UniqueKeyTaken, match="taken") as caught:
        await client.submit("work", unique_key=UniqueKey("k", on_conflict="reject"))
    assert caught.value.job_id == "default-7"


async def test_a_full_queue_is_waited_for_and_then_told(broker: Broker) -> None:
    full = rich_status(
        grpc.StatusCode.RESOURCE_EXHAUSTED, "full", reason("QUEUE_FULL"), retry_info(0.05)
    )
    broker.fail("SubmitJob", full)
    async with AsyncClient(broker.target, timeout_s=10) as client:
        await client.submit("work")
    assert len(broker.calls["SubmitJob"]) == 2
    broker.fail("SubmitJob", *[full] * 50)
    async with AsyncClient(broker.target, timeout_s=0.3) as hasty:
        with pytest.raises(QueueFull) as caught:
            await hasty.submit("work")
    assert caught.value.retry_after_s == pytest.approx(0.05)


async def test_a_batch_error_has_no_job_ids_for_requests_with_an_id(
    broker: Broker, client: AsyncClient
) -> None:
    with pytest.raises(AsyncBatchError) as caught:
        await client.submit_many([NewJob(operation="", request_id="r")])
    assert caught.value.job_ids == ("",)


async def test_run_watches_the_job_that_holds_the_key(
    broker: Broker, client: AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = await broker.add("work")
    job.state = job_pb2.JOB_STATE_SUCCEEDED

    async def run_job(self: Broker, request: object, context: object) -> AsyncIterator[object]:
        await self.enter("RunJob", request, context)
        begun = job_pb2.Job(job_id=job.job_id, state=job_pb2.JOB_STATE_RUNNING, revision=2)
        yield RunJobResponse(job=begun, cursor="c1")

    monkeypatch.setattr(Broker, "RunJob", run_job)
    await broker.stop()
    await broker.start()
    job.revision = 5
    watch = await client.run("work", unique_key="k")
    assert watch.job_id == job.job_id
    states = [event.state async for event in watch]  # type: ignore[union-attr]
    assert states[-1] == "SUCCEEDED"
    assert broker.calls["WatchJob"][-1].job_id == job.job_id
