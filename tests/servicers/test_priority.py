"""Which priority a job has: its own, or its queue's when it was accepted."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st

from jobwire_server.servicers.records import JobSpecRecords, priority_of

from tests.support.brokers import running_broker
from tests.support.contract import admin, job_pb2, jobs, schedules, workers
from tests.support.grpc_servers import Served
from tests.support.jobs import new_job
from tests.support.waiting import eventually


async def _default(served: Served, priority: int) -> None:
    await served.admin.ConfigureQueue(
        admin.ConfigureQueueRequest(
            queue="default",
            config=admin.QueueConfig(default_priority=priority),
            allow_missing=True,
        )
    )


async def _submit(served: Served, **fields: Any) -> str:
    spec = job_pb2.JobSpec(**{"operation": "op", **fields})
    return str((await served.jobs.SubmitJob(jobs.SubmitJobRequest(spec=spec))).job_id)


async def _job(served: Served, job_id: str) -> Any:
    """A job, whose priority is the same in every view."""
    job = (await served.jobs.GetJob(jobs.GetJobRequest(job_id=job_id))).job
    basic = (await served.jobs.GetJob(jobs.GetJobRequest(job_id=job_id, view=1))).job
    all_jobs = (await served.jobs.ListJobs(jobs.ListJobsRequest())).jobs
    (listed,) = [each for each in all_jobs if each.job_id == job_id]
    watch = served.jobs.WatchJob(jobs.WatchJobRequest(job_id=job_id))
    watched = await anext(aiter(watch))
    watch.cancel()
    assert {basic.priority, listed.priority, watched.job.priority} == {job.priority}
    return job


async def _register(served: Served) -> None:
    spec = workers.WorkerSpec(worker_id="w1", operations=["op"])
    await served.workers.RegisterWorker(workers.RegisterWorkerRequest(worker=spec))


async def _claim(served: Served, most: int = 10) -> list[Any]:
    claim = workers.ClaimJobRequest(worker_id="w1", max_jobs=most)
    return list((await served.workers.ClaimJob(claim)).assignments)


async def test_the_queue_gives_its_priority_to_jobs_that_name_none(served: Served) -> None:
    before = await _submit(served, payload={"json": "1"})
    await _default(served, 7)
    plain = await _submit(served, payload={"json": "1"})
    zero = await _submit(served, payload={"json": "1"}, priority=0)
    own = await _submit(served, priority=9)
    limited = await _submit(served, retention=Duration(seconds=9), unique={"key": "k"})
    delayed = await _submit(served, delay=Duration(seconds=60))
    expected = {before: 0, plain: 7, zero: 0, own: 9, limited: 7, delayed: 7}
    assert {name: (await _job(served, name)).priority for name in expected} == expected
    # The spec stays what the producer asked for.
    assert not (await _job(served, plain)).spec.HasField("priority")
    assert (await _job(served, zero)).spec.HasField("priority")
    await _default(served, 0)
    assert (await _job(served, await _submit(served))).priority == 0
    await _register(served)
    first, second, third, *rest = [one.job_id for one in await _claim(served)]
    assert (first, {second, third}) == (own, {plain, limited})
    assert rest[:2] == [before, zero]
    served.broker.check()


async def test_jobs_of_a_batch_and_their_repeats_get_it_once(served: Served) -> None:
    await _default(served, 7)
    request = jobs.SubmitJobsRequest(request_id="batch")
    for priority in (None, 0, 3):
        request.requests.add(spec=job_pb2.JobSpec(operation="op", priority=priority))
    ids = [result.accepted.job_id for result in (await served.jobs.SubmitJobs(request)).results]
    await _default(served, 8)
    again = (await served.jobs.SubmitJobs(request)).results
    assert [result.accepted.job_id for result in again] == ids
    assert all(result.accepted.existed for result in again)
    assert [(await _job(served, name)).priority for name in ids] == [7, 0, 3]


async def test_it_stays_through_attempts_and_redrives(served: Served) -> None:
    await _default(served, 7)
    job_id = await _submit(served, retry={"initial_backoff": Duration(), "max_attempts": 2})
    await _default(served, 1)
    await _register(served)

    async def end(**how: Any) -> None:
        (one,) = await _claim(served)
        done = workers.Completion(job_id=job_id, fencing_token=one.fencing_token, **how)
        request = workers.CompleteJobRequest(worker_id="w1", completion=done)
        await served.workers.CompleteJob(request)
        assert (await _job(served, job_id)).priority == 7

    await end(released={"reason": "deploy"})
    await end(failure={"type": "Broken"})
    await served.broker.after(1)
    await end(failure={"type": "Broken"})
    await served.jobs.RetryJob(jobs.RetryJobRequest(job_id=job_id))
    assert (await _job(served, job_id)).priority == 7
    waiting = await _submit(served)
    assert (await _job(served, waiting)).priority == 1
    assert [one.job_id for one in await _claim(served)] == [job_id, waiting]
    await served.jobs.CancelJob(jobs.CancelJobRequest(job_id=waiting))
    served.broker.check()


async def test_a_job_that_was_never_claimed_is_redriven_with_it(served: Served) -> None:
    await _default(served, 7)
    job_id = await _submit(served)
    await served.jobs.CancelJob(jobs.CancelJobRequest(job_id=job_id))
    await served.jobs.RetryJob(jobs.RetryJobRequest(job_id=job_id))
    assert (await _job(served, job_id)).priority == 7
    served.broker.check()


@pytest.mark.parametrize("own", [None, 0, 9])
async def test_jobs_of_a_schedule_get_the_priority_of_the_moment(
    served: Served, own: int | None
) -> None:
    await _default(served, 7)
    spec = schedules.ScheduleSpec(
        interval={"every": Duration(seconds=60)},
        job=job_pb2.JobSpec(operation="op", priority=own),
        overlap_policy=schedules.OVERLAP_POLICY_ALLOW,
    )
    await served.schedules.CreateSchedule(
        schedules.CreateScheduleRequest(schedule_id="s", spec=spec)
    )
    trigger = schedules.TriggerScheduleRequest(schedule_id="s")
    triggered = (await served.schedules.TriggerSchedule(trigger)).job_id
    await _default(served, 5)
    await served.broker.after(61_000)
    listed = (await served.jobs.ListJobs(jobs.ListJobsRequest())).jobs
    (fired,) = [job for job in listed if job.job_id != triggered]
    first = (await _job(served, triggered)).priority
    assert (first, fired.priority) == ((7, 5) if own is None else (own, own))
    served.broker.check()


async def test_a_default_that_another_server_was_told_holds_here_within_a_tick(
    valkey_url: str,
) -> None:
    async with (
        running_broker(valkey_url, server_id="s1") as one,
        running_broker(valkey_url, server_id="s2", tick_ms=20) as two,
    ):
        await one.submit()
        await two.submit()
        await one.router.operators.configure_queue("default", {"default_priority": 7})
        settings = two.parts.settings
        await eventually(lambda: settings.known("default").default_priority == 7, "it is known")
        (ulid,) = await two.submit(new_job())
        assert (await two.job(ulid)).priority == 7


@given(
    st.builds(
        job_pb2.JobSpec,
        operation=st.text(),
        payload=st.none() | st.builds(job_pb2.Payload, data=st.binary(max_size=300)),
        priority=st.none() | st.integers(0, 255),
        labels=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
        group_key=st.text(max_size=200),
    )
)
def test_the_priority_of_a_record_is_that_of_its_spec(spec: Any) -> None:
    record = spec.SerializeToString() + JobSpecRecords().stamp(1)
    assert priority_of(record) == spec.priority
