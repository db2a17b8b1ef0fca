"""Times that a producer says as durations: from the acceptance, or from a schedule's due moment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import example, given
from hypothesis import strategies as st

from jobwire.v1 import job_pb2
from jobwire_server.servicers.checks import Checker
from jobwire_server.servicers.records import JobSpecRecords

from tests.support.contract import jobs, schedules, workers
from tests.support.grpc_servers import Served, refusal

MINUTE = 60_000
EXPIRED, FAILED = job_pb2.JOB_STATE_EXPIRED, job_pb2.JOB_STATE_FAILED


def _spec(**fields: Any) -> Any:
    return job_pb2.JobSpec(**{"operation": "op", **fields})


def _both(seconds: int = 60) -> Any:
    labels = {str(at): "x" for at in range(9)}
    return _spec(
        expires_after=Duration(seconds=seconds),
        deadline_after=Duration(seconds=2 * seconds),
        labels=labels,
    )


async def _job(served: Served, job_id: str) -> Any:
    return (await served.jobs.GetJob(jobs.GetJobRequest(job_id=job_id))).job


@given(st.integers(-2, 2), st.integers(-(2**31), 2**31 - 1) | st.integers(-(10**9), 10**9))
@example(1, 10**9)
@example(0, -(10**9))
@example(1, -1)
def test_a_duration_or_moment_is_taken_where_readers_take_it(seconds: int, nanos: int) -> None:
    checker = Checker()
    checker.duration_ms("a", Duration(seconds=seconds, nanos=nanos), -10_000, 10_000)
    assert (checker.violations == []) == _is_read(
        Duration(seconds=seconds, nanos=nanos).ToJsonString
    )
    checker = Checker()
    moment = Timestamp(seconds=100 + seconds, nanos=nanos)
    checker.moment_ms("a", moment, 200_000)
    assert (checker.violations == []) == _is_read(moment.ToJsonString)


def _is_read(read: Callable[[], object]) -> bool:
    try:
        read()
    except ValueError:
        return False
    return True


async def test_durations_count_from_the_acceptance_and_are_handed_on_as_moments(
    served: Served,
) -> None:
    spec = workers.WorkerSpec(worker_id="w1", operations=["op"])
    await served.workers.RegisterWorker(workers.RegisterWorkerRequest(worker=spec))
    accepted = await served.jobs.SubmitJob(jobs.SubmitJobRequest(spec=_both()))
    job = await _job(served, accepted.job_id)
    created = job.created_at.ToMilliseconds()
    (one,) = (await served.workers.ClaimJob(workers.ClaimJobRequest(worker_id="w1"))).assignments
    for told in (job.spec, one.spec):
        assert told.WhichOneof("expiry") == "expires_at"
        assert told.WhichOneof("end") == "deadline"
        assert told.expires_at.ToMilliseconds() == created + MINUTE
        assert told.deadline.ToMilliseconds() == created + 2 * MINUTE
        assert dict(told.labels) == dict(_both().labels)


async def test_a_job_expires_and_fails_when_its_durations_are_over(served: Served) -> None:
    expires = jobs.SubmitJobRequest(spec=_spec(expires_after=Duration(seconds=60)))
    fails = jobs.SubmitJobRequest(spec=_spec(deadline_after=Duration(seconds=60)))
    ids = [(await served.jobs.SubmitJob(request)).job_id for request in (expires, fails)]
    await served.broker.after(MINUTE // 2)
    assert {(await _job(served, one)).state for one in ids} == {job_pb2.JOB_STATE_PENDING}
    await served.broker.after(MINUTE // 2)
    assert [(await _job(served, one)).state for one in ids] == [EXPIRED, FAILED]


@pytest.mark.parametrize("named", ["job_id", "request_id"])
async def test_a_repeat_is_the_same_content_at_any_time_and_other_durations_are_not(
    served: Served, named: str
) -> None:
    name = {"job_id": "default-" + 26 * "0", "request_id": "a"}[named]
    first = await served.jobs.SubmitJob(jobs.SubmitJobRequest(spec=_both(), **{named: name}))
    served.broker.shift(3 * MINUTE)
    again = await served.jobs.SubmitJob(jobs.SubmitJobRequest(spec=_both(), **{named: name}))
    assert (again.job_id, again.existed) == (first.job_id, True)
    moments = (await _job(served, first.job_id)).spec
    for other in (_both(61), _spec(), moments):
        call = served.jobs.SubmitJob(jobs.SubmitJobRequest(spec=other, **{named: name}))
        said = await refusal(call)
        assert said.code.name in ("ALREADY_EXISTS", "INVALID_ARGUMENT")


@pytest.mark.parametrize("field", ["expires_after", "deadline_after"])
@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"after": Duration()}, "1 ms"),
        ({"after": Duration(seconds=-1)}, "1 ms"),
        ({"after": Duration(seconds=400_000_000)}, "3653 days"),
        ({"after": Duration(seconds=5), "delay": Duration(seconds=5)}, "longer than the delay"),
    ],
)
async def test_a_duration_that_can_never_fit_is_refused_by_field(
    served: Served, field: str, more: dict[str, Any], words: str
) -> None:
    fields = {field: more["after"], **({"delay": more["delay"]} if "delay" in more else {})}
    said = await refusal(served.jobs.SubmitJob(jobs.SubmitJobRequest(spec=_spec(**fields))))
    assert said.fields == {f"spec.{field}"}
    assert words in said.violations[f"spec.{field}"]


async def _create(served: Served, job: Any, **fields: Any) -> Any:
    spec = schedules.ScheduleSpec(
        job=job, interval={"every": Duration(seconds=60)}, overlap_policy=2, **fields
    )
    request = schedules.CreateScheduleRequest(schedule_id="s1", spec=spec)
    return (await served.schedules.CreateSchedule(request)).schedule


@pytest.mark.parametrize("unique", [None, {"key": "k", "scope": 3, "period": Duration(seconds=1)}])
async def test_a_schedules_jobs_count_from_their_due_moment(served: Served, unique: Any) -> None:
    job = _spec(
        expires_after=Duration(seconds=90),
        deadline_after=Duration(seconds=120),
        unique=unique,
        labels={"own": "1"},
    )
    made = await _create(served, job)
    assert made.spec.job == job
    await served.broker.after(MINUTE + 500)
    request = jobs.ListJobsRequest(view=job_pb2.JOB_VIEW_FULL)
    (fired,) = (await served.jobs.ListJobs(request)).jobs
    due = made.next_runs[0].ToMilliseconds()
    assert fired.spec.expires_at.ToMilliseconds() == due + 90_000
    assert fired.spec.deadline.ToMilliseconds() == due + 120_000
    assert fired.spec.labels["own"] == "1"
    assert fired.spec.labels["jobwire.schedule"] == "s1"
    pause = schedules.PauseScheduleRequest(schedule_id="s1")
    await served.schedules.PauseSchedule(pause)
    await served.broker.after(60_000)
    assert (await _job(served, fired.job_id)).state == job_pb2.JOB_STATE_PENDING
    await served.broker.after(30_000)
    assert (await _job(served, fired.job_id)).state == EXPIRED


async def test_a_triggered_job_counts_from_now(served: Served) -> None:
    await _create(served, _both())
    trigger = schedules.TriggerScheduleRequest(schedule_id="s1")
    job = await _job(served, (await served.schedules.TriggerSchedule(trigger)).job_id)
    created = job.created_at.ToMilliseconds()
    assert job.spec.expires_at.ToMilliseconds() == created + MINUTE
    assert job.spec.deadline.ToMilliseconds() == created + 2 * MINUTE
    await served.broker.after(MINUTE)
    assert (await _job(served, job.job_id)).state == EXPIRED


async def test_moments_stay_forbidden_in_a_schedule_and_durations_above_its_jitter(
    served: Served,
) -> None:
    moments = (await served.jobs.SubmitJob(jobs.SubmitJobRequest(spec=_both()))).job_id
    said = await refusal(_create(served, (await _job(served, moments)).spec))
    assert said.fields == {"spec.job.expires_at", "spec.job.deadline"}
    assert "expires_after" in said.violations["spec.job.expires_at"]
    short = _spec(expires_after=Duration(seconds=5))
    said = await refusal(_create(served, short, jitter=Duration(seconds=5)))
    assert said.fields == {"spec.job.expires_after"}


_MAYBE = st.one_of(st.none(), st.integers(1, 10**9))


@given(_MAYBE, _MAYBE, _MAYBE, _MAYBE, st.integers(1, 10**12), st.integers(1, 10**12))
def test_records_are_compared_as_they_were_written(
    expires: int | None,
    deadline: int | None,
    other_expires: int | None,
    other_deadline: int | None,
    now: int,
    later: int,
) -> None:
    records = JobSpecRecords()

    def record(expires: int | None, deadline: int | None, now: int) -> bytes:
        spec = _spec()
        if expires:
            spec.expires_after.FromMilliseconds(expires)
        if deadline:
            spec.deadline_after.FromMilliseconds(deadline)
        times = records.times((expires and now + expires) or 0, (deadline and now + deadline) or 0)
        return bytes(spec.SerializeToString()) + times + records.stamp(now)

    one, same = record(expires, deadline, now), record(expires, deadline, later)
    other = record(other_expires, other_deadline, now)
    assert records.same_content(one, same)
    equal = (expires, deadline) == (other_expires, other_deadline)
    assert records.same_content(one, other) is equal
