"""A repeat of what was accepted gets its first answer, whatever has changed meanwhile."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from redis.asyncio import Redis

from jobwire_server.domain.ids import UlidFactory

from tests.support.contract import admin, errors, job_pb2, jobs, schedules
from tests.support.grpc_servers import LIMITS, Served, refusal, served_broker

HOUR_MS = 3_600_000
PENDING = 2


def _moment(ms: int) -> Timestamp:
    return Timestamp(seconds=ms // 1000, nanos=ms % 1000 * 1_000_000)


def _spec(**fields: Any) -> Any:
    return job_pb2.JobSpec(**{"operation": "op", **fields})


def _ids(how: str) -> dict[str, str]:
    if how == "request_id":
        return {"request_id": "r-1"}
    return {"job_id": f"default-{UlidFactory(lambda: 1_700_000_000_000)()}"}


def _later(served: Served, ms: int) -> None:
    """Moves the store's clock, and lets the server hear of it."""
    served.broker.shift(ms)
    served.broker.router.clock.told(served.broker.now_ms())


BY_TIME = {
    "deadline": lambda now: {"deadline": _moment(now + HOUR_MS)},
    "expires_at": lambda now: {"expires_at": _moment(now + HOUR_MS)},
    "deadline after a delay": lambda now: {
        "deadline": _moment(now + HOUR_MS),
        "delay": Duration(seconds=3_000),
    },
    "both": lambda now: {
        "expires_at": _moment(now + HOUR_MS),
        "deadline": _moment(now + HOUR_MS),
    },
}
"""Jobs that nobody would accept two hours later."""


@pytest.mark.parametrize("how", ["request_id", "job_id"])
@pytest.mark.parametrize("fields", BY_TIME.values(), ids=BY_TIME.keys())
async def test_a_repeat_whose_time_has_passed_gets_its_first_answer(
    served: Served, fields: Callable[[int], dict[str, Any]], how: str
) -> None:
    request = jobs.SubmitJobRequest(spec=_spec(**fields(served.broker.now_ms())), **_ids(how))
    first = await served.jobs.SubmitJob(request)
    _later(served, 2 * HOUR_MS)
    again = await served.jobs.SubmitJob(request)
    assert (again.job_id, again.existed) == (first.job_id, True)
    batch = await served.jobs.SubmitJobs(jobs.SubmitJobsRequest(requests=[request]))
    assert batch.results[0].accepted.job_id == first.job_id
    stream = served.jobs.RunJob(jobs.RunJobRequest(submit=request))
    assert (await stream.read()).job.job_id == first.job_id
    stream.cancel()
    assert len(served.broker.dump()) > 0
    served.broker.check()


async def test_a_repeat_that_another_job_answered_is_answered_by_it_while_it_holds_the_key(
    served: Served,
) -> None:
    unique = job_pb2.UniqueKey(key="k")
    holder = await served.jobs.SubmitJob(jobs.SubmitJobRequest(spec=_spec(unique=unique)))
    deadline = _moment(served.broker.now_ms() + HOUR_MS)
    request = jobs.SubmitJobRequest(spec=_spec(unique=unique, deadline=deadline), **_ids("job_id"))
    first = await served.jobs.SubmitJob(request)
    assert (first.job_id, first.existed) == (holder.job_id, True)
    _later(served, 2 * HOUR_MS)
    again = await served.jobs.SubmitJob(request)
    assert (again.job_id, again.existed) == (holder.job_id, True)


@pytest.mark.parametrize("how", ["request_id", "job_id"])
async def test_what_was_never_accepted_is_refused_for_its_time(served: Served, how: str) -> None:
    past = _moment(served.broker.now_ms() - HOUR_MS)
    request = jobs.SubmitJobRequest(spec=_spec(deadline=past), **_ids(how))
    said = await refusal(served.jobs.SubmitJob(request))
    assert (said.code.name, said.fields) == ("INVALID_ARGUMENT", {"spec.deadline"})
    (result,) = (await served.jobs.SubmitJobs(jobs.SubmitJobsRequest(requests=[request]))).results
    assert result.error.reason == errors.ERROR_REASON_INVALID_FIELD
    said = await refusal(served.jobs.RunJob(jobs.RunJobRequest(submit=request)).read())
    assert said.fields == {"submit.spec.deadline"}


async def test_other_content_is_refused_though_its_time_has_passed(served: Served) -> None:
    now = served.broker.now_ms()
    first = jobs.SubmitJobRequest(spec=_spec(deadline=_moment(now + HOUR_MS)), request_id="r")
    await served.jobs.SubmitJob(first)
    _later(served, 2 * HOUR_MS)
    first.spec.operation = "other"
    said = await refusal(served.jobs.SubmitJob(first))
    assert said.code.name == "ALREADY_EXISTS"


async def test_a_repeated_batch_is_answered_item_by_item_after_the_time_of_some(
    served: Served,
) -> None:
    deadline = _moment(served.broker.now_ms() + HOUR_MS)
    batch = jobs.SubmitJobsRequest(
        requests=[
            jobs.SubmitJobRequest(spec=_spec(deadline=deadline)),
            jobs.SubmitJobRequest(spec=_spec()),
            jobs.SubmitJobRequest(spec=_spec(deadline=deadline), queue="q2"),
        ],
        request_id="b",
    )
    first = await served.jobs.SubmitJobs(batch)
    _later(served, 2 * HOUR_MS)
    again = await served.jobs.SubmitJobs(batch)
    ids = [result.accepted.job_id for result in first.results]
    assert [result.accepted.job_id for result in again.results] == ids
    assert all(result.accepted.existed for result in again.results)


@asynccontextmanager
async def _with_limits(url: str, **limits: int) -> AsyncIterator[Served]:
    async with served_broker(url, replace(LIMITS, **limits)) as running:
        yield running


@pytest.mark.parametrize("how", ["request_id", "job_id"])
async def test_a_repeat_outlives_limits_that_were_lowered(valkey_url: str, how: str) -> None:
    payload = job_pb2.Payload(json=f'"{"x" * 900}"')
    request = jobs.SubmitJobRequest(
        spec=_spec(payload=payload, output=job_pb2.OutputPolicy(max_bytes=5_000)), **_ids(how)
    )
    async with _with_limits(valkey_url, max_output_bytes=10_000) as served:
        first = await served.jobs.SubmitJob(request)
    async with _with_limits(valkey_url, max_payload_bytes=100, max_output_bytes=100) as served:
        assert (await served.jobs.SubmitJob(request)).job_id == first.job_id
        new = jobs.SubmitJobRequest(spec=request.spec, request_id="new")
        said = await refusal(served.jobs.SubmitJob(new))
        assert (said.reason, said.fields) == (
            "TOO_LARGE",
            {"spec.payload", "spec.output.max_bytes"},
        )


async def test_a_repeated_batch_outlives_a_lower_limit_of_batches(valkey_url: str) -> None:
    batch = jobs.SubmitJobsRequest(
        requests=[jobs.SubmitJobRequest(spec=_spec()) for _ in range(6)], request_id="b"
    )
    async with _with_limits(valkey_url) as served:
        first = await served.jobs.SubmitJobs(batch)
    async with _with_limits(valkey_url, max_batch_jobs=5) as served:
        again = await served.jobs.SubmitJobs(batch)
        assert [result.accepted.job_id for result in again.results] == [
            result.accepted.job_id for result in first.results
        ]
        batch.request_id = "other"
        said = await refusal(served.jobs.SubmitJobs(batch))
        assert said.fields == {"requests"}


async def test_a_repeat_outlives_a_full_queue_a_pause_and_a_taken_key(served: Served) -> None:
    unique = job_pb2.UniqueKey(key="k", on_conflict=job_pb2.UNIQUE_CONFLICT_REJECT)
    request = jobs.SubmitJobRequest(spec=_spec(unique=unique), request_id="r")
    first = await served.jobs.SubmitJob(request)
    await served.jobs.CancelJob(jobs.CancelJobRequest(job_id=first.job_id))
    await served.jobs.SubmitJob(jobs.SubmitJobRequest(spec=_spec(unique=unique)))
    config = admin.QueueConfig(max_pending_jobs=1)
    await served.admin.ConfigureQueue(admin.ConfigureQueueRequest(queue="default", config=config))
    await served.admin.PauseQueue(admin.PauseQueueRequest(queue="default"))
    again = await served.jobs.SubmitJob(request)
    assert (again.job_id, again.existed) == (first.job_id, True)


async def test_a_repeat_is_answered_by_a_full_store(served: Served, valkey_url: str) -> None:
    request = jobs.SubmitJobRequest(spec=_spec(), request_id="r")
    first = await served.jobs.SubmitJob(request)
    async with Redis.from_url(valkey_url) as store:
        await store.config_set("maxmemory", 1)
        try:
            new = jobs.SubmitJobRequest(spec=_spec(), request_id="new")
            assert (await refusal(served.jobs.SubmitJob(new))).reason == "STORE_FULL"
            assert (await served.jobs.SubmitJob(request)).job_id == first.job_id
            batch = jobs.SubmitJobsRequest(requests=[request, new])
            one, two = (await served.jobs.SubmitJobs(batch)).results
            assert one.accepted.job_id == first.job_id
            assert two.error.reason == errors.ERROR_REASON_STORE_FULL
        finally:
            await store.config_set("maxmemory", 0)


async def test_a_repeated_trigger_outlives_its_schedule(served: Served) -> None:
    spec = schedules.ScheduleSpec(
        interval=schedules.IntervalCadence(every=Duration(seconds=3600)), job=_spec()
    )
    await served.schedules.CreateSchedule(
        schedules.CreateScheduleRequest(schedule_id="s", spec=spec)
    )
    trigger = schedules.TriggerScheduleRequest(schedule_id="s", request_id="r")
    first = await served.schedules.TriggerSchedule(trigger)
    await served.schedules.DeleteSchedule(schedules.DeleteScheduleRequest(schedule_id="s"))
    assert (await served.schedules.TriggerSchedule(trigger)).job_id == first.job_id
    trigger.request_id = "new"
    said = await refusal(served.schedules.TriggerSchedule(trigger))
    assert said.reason == "SCHEDULE_NOT_FOUND"


async def test_a_repeated_schedule_outlives_its_end(served: Served) -> None:
    spec = schedules.ScheduleSpec(
        interval=schedules.IntervalCadence(every=Duration(seconds=60)),
        end_at=_moment(served.broker.now_ms() + HOUR_MS),
        job=_spec(),
    )
    create = schedules.CreateScheduleRequest(schedule_id="s", spec=spec)
    first = (await served.schedules.CreateSchedule(create)).schedule
    update = schedules.UpdateScheduleRequest(schedule_id="s", spec=spec, revision=first.revision)
    update.spec.description = "changed"
    changed = (await served.schedules.UpdateSchedule(update)).schedule
    _later(served, 2 * HOUR_MS)
    again = (await served.schedules.UpdateSchedule(update)).schedule
    assert again.revision == changed.revision
    create.spec.CopyFrom(update.spec)
    assert (await served.schedules.CreateSchedule(create)).schedule.revision == changed.revision
    create.schedule_id = "new"
    said = await refusal(served.schedules.CreateSchedule(create))
    assert said.fields == {"spec.end_at"}
