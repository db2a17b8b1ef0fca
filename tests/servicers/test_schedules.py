"""ScheduleService over a real channel, on a store whose clock the tests move."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode

from tests.support.contract import admin, job_pb2, jobs, schedules, workers
from tests.support.grpc_servers import Served, refusal

MINUTE = 60_000
HOUR = 60 * MINUTE
DAY = 24 * HOUR
GOOD_JOB = {"operation": "op", "labels": {"own": "1"}, "payload": {"json": "[1]"}}


def spec(every_s: int = 60, **fields: Any) -> Any:
    """An interval, unless another cadence is named."""
    base: dict[str, Any] = {"job": job_pb2.JobSpec(**GOOD_JOB)}
    if "cron" not in fields:
        base["interval"] = schedules.IntervalCadence(every=Duration(seconds=every_s))
    return schedules.ScheduleSpec(**{**base, **fields})


def cron(expression: str, time_zone: str = "") -> Any:
    return schedules.CronCadence(expression=expression, time_zone=time_zone)


async def _create(served: Served, name: str = "s1", paused: bool = False, **fields: Any) -> Any:
    request = schedules.CreateScheduleRequest(schedule_id=name, spec=spec(**fields), paused=paused)
    return (await served.schedules.CreateSchedule(request)).schedule


async def _get(served: Served, name: str = "s1") -> Any:
    request = schedules.GetScheduleRequest(schedule_id=name)
    return (await served.schedules.GetSchedule(request)).schedule


async def _jobs(served: Served) -> list[Any]:
    """All jobs, in the order of their due moments."""
    found = await served.jobs.ListJobs(jobs.ListJobsRequest(page_size=1000, view=2))
    return sorted(found.jobs, key=lambda job: job.job_id)


def _due(job: Any) -> int:
    text = job.spec.labels["jobwire.due"]
    return int(datetime.fromisoformat(text).timestamp() * 1000)


def _ms(moment: Timestamp) -> int:
    return moment.ToMilliseconds()


async def _claim(served: Served) -> Any:
    lease = Duration(seconds=3600)
    spec = workers.WorkerSpec(worker_id="w1", operations=["op"], lease_duration=lease)
    await served.workers.RegisterWorker(workers.RegisterWorkerRequest(worker=spec))
    request = workers.ClaimJobRequest(worker_id="w1")
    (assignment,) = (await served.workers.ClaimJob(request)).assignments
    return assignment


async def _succeed(served: Served, one: Any) -> None:
    completion = workers.Completion(
        job_id=one.job_id, fencing_token=one.fencing_token, success=workers.Success()
    )
    await served.workers.CompleteJob(
        workers.CompleteJobRequest(worker_id="w1", completion=completion)
    )


# ------------------------------------------------------------------ the life of a schedule


async def test_a_schedule_submits_its_job_at_each_moment_with_its_labels(served: Served) -> None:
    made = await _create(served, overlap_policy=schedules.OVERLAP_POLICY_ALLOW)
    assert made.queue == "default"
    assert made.revision == 1
    created = _ms(made.created_at)
    due = [created + at * MINUTE for at in range(1, 6)]
    assert [_ms(at) for at in made.next_runs] == due
    assert await _jobs(served) == []
    await served.broker.after(MINUTE)
    await served.broker.after(MINUTE)
    first, second = await _jobs(served)
    assert first.spec.operation == "op"
    assert first.spec.payload.json == "[1]"
    assert first.spec.labels["own"] == "1"
    assert first.spec.labels["jobwire.schedule"] == "s1"
    assert [_due(first), _due(second)] == due[:2]
    assert first.state == job_pb2.JOB_STATE_PENDING
    assert _ms(first.created_at) >= due[0]
    found = await _get(served)
    assert found.total_runs == 2
    assert [run.job_id for run in found.recent_runs] == [second.job_id, first.job_id]
    assert [_ms(run.due_at) for run in found.recent_runs] == [due[1], due[0]]
    assert [_ms(at) for at in found.next_runs] == [due[2] + at * MINUTE for at in range(5)]
    assert (found.skipped_runs, found.missed_runs) == (0, 0)
    served.broker.check()


async def test_a_scheduled_job_is_claimed_like_any_other(served: Served) -> None:
    await _create(served)
    await served.broker.after(MINUTE)
    assignment = await _claim(served)
    assert assignment.spec.labels["jobwire.schedule"] == "s1"
    await _succeed(served, assignment)
    served.broker.check()


async def test_a_cron_schedule_tells_its_next_runs_in_its_zone(served: Served) -> None:
    made = await _create(served, cron=cron("30 6 * * *", "Europe/Berlin"))
    assert made.spec.cron.time_zone == "Europe/Berlin"
    for at in made.next_runs:
        assert at.ToDatetime(tzinfo=UTC).minute == 30
        assert at.ToDatetime(tzinfo=UTC).hour in (4, 5)


async def test_what_a_schedule_says_is_told_as_it_was_said(served: Served) -> None:
    said = spec(
        3600,
        start_at=Timestamp(seconds=1_900_000_000),
        missed_run_policy=schedules.MISSED_RUN_POLICY_RUN_ALL,
        catch_up_window=Duration(seconds=600),
        overlap_policy=schedules.OVERLAP_POLICY_CANCEL_PREVIOUS,
        jitter=Duration(seconds=30),
        description="hourly",
    )
    said.job.payload.struct.update({"b": 1, "a": [2]})
    request = schedules.CreateScheduleRequest(schedule_id="s1", spec=said)
    await served.schedules.CreateSchedule(request)
    found = await _get(served)
    # A structure is kept as the JSON text that it stands for.
    said.job.payload.json = found.spec.job.payload.json
    assert found.spec == said
    assert _ms(found.next_runs[0]) >= 1_900_000_000_000


async def test_making_the_same_schedule_again_answers_it_as_it_stands(served: Served) -> None:
    first = await _create(served)
    await served.broker.after(MINUTE)
    again = await _create(served)
    assert again.created_at == first.created_at
    assert again.total_runs == 1
    request = schedules.CreateScheduleRequest(schedule_id="s1", spec=spec(61))
    answer = await refusal(served.schedules.CreateSchedule(request))
    assert (answer.code, answer.reason) == (StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS")
    assert (await _get(served)).spec.interval.every.seconds == 60


async def test_an_update_replaces_what_is_said_and_keeps_the_history(served: Served) -> None:
    await _create(served)
    await served.broker.after(MINUTE)
    request = schedules.UpdateScheduleRequest(
        schedule_id="s1", spec=spec(3600, description="slower"), revision=1
    )
    changed = (await served.schedules.UpdateSchedule(request)).schedule
    assert changed.revision == 2
    assert changed.total_runs == 1
    assert len(changed.recent_runs) == 1
    assert changed.spec.description == "slower"
    assert _ms(changed.next_runs[0]) == _ms(changed.created_at) + HOUR
    # The same call, whose answer was lost.
    assert (await served.schedules.UpdateSchedule(request)).schedule.revision == 2
    request.spec.description = "other"
    answer = await refusal(served.schedules.UpdateSchedule(request))
    assert (answer.code, answer.reason) == (StatusCode.ABORTED, "CHANGED_MEANWHILE")
    assert answer.metadata["revision"] == "2"
    request.revision = 0
    assert (await served.schedules.UpdateSchedule(request)).schedule.revision == 3


async def test_pausing_forgives_and_resuming_goes_on_from_now(served: Served) -> None:
    made = await _create(served, missed_run_policy=schedules.MISSED_RUN_POLICY_RUN_ALL)
    request = schedules.PauseScheduleRequest(schedule_id="s1", reason="holidays")
    paused = (await served.schedules.PauseSchedule(request)).schedule
    assert (paused.paused, paused.pause_reason, paused.revision) == (True, "holidays", 2)
    assert list(paused.next_runs) == []
    again = (await served.schedules.PauseSchedule(request)).schedule
    assert again.revision == 2
    await served.broker.after(10 * MINUTE + 5_000)
    assert await _jobs(served) == []
    resume = schedules.ResumeScheduleRequest(schedule_id="s1")
    resumed = (await served.schedules.ResumeSchedule(resume)).schedule
    assert (resumed.paused, resumed.pause_reason, resumed.revision) == (False, "", 3)
    assert _ms(resumed.next_runs[0]) == _ms(made.created_at) + 11 * MINUTE
    await served.broker.after(MINUTE)
    (job,) = await _jobs(served)
    assert _due(job) == _ms(made.created_at) + 11 * MINUTE
    assert (await _get(served)).missed_runs == 0


async def test_a_schedule_may_begin_paused_and_is_changed_without_going_on(served: Served) -> None:
    made = await _create(served, paused=True)
    assert (made.paused, list(made.next_runs)) == (True, [])
    request = schedules.UpdateScheduleRequest(schedule_id="s1", spec=spec(61))
    changed = (await served.schedules.UpdateSchedule(request)).schedule
    assert (changed.paused, list(changed.next_runs)) == (True, [])
    await served.broker.after(HOUR)
    assert await _jobs(served) == []


async def test_deleting_leaves_jobs_and_nothing_else(served: Served) -> None:
    await _create(served)
    await served.broker.after(MINUTE)
    request = schedules.DeleteScheduleRequest(schedule_id="s1")
    await served.schedules.DeleteSchedule(request)
    await served.schedules.DeleteSchedule(request)
    await served.broker.after(HOUR)
    assert len(await _jobs(served)) == 1
    left = {key for key in served.broker.dump() if key.startswith(("schedule", "runs:", "due"))}
    assert left == set()
    served.broker.check()


async def test_a_schedule_made_again_under_its_name_begins_anew(served: Served) -> None:
    await _create(served, overlap_policy=schedules.OVERLAP_POLICY_ALLOW)
    await served.broker.after(MINUTE)
    await served.schedules.DeleteSchedule(schedules.DeleteScheduleRequest(schedule_id="s1"))
    again = await _create(served, overlap_policy=schedules.OVERLAP_POLICY_ALLOW)
    assert (again.revision, again.total_runs, len(again.recent_runs)) == (1, 0, 0)


@pytest.mark.parametrize("method", ["Get", "Update", "Pause", "Resume", "Trigger"])
async def test_a_schedule_that_is_not_there_is_not_found(served: Served, method: str) -> None:
    request = getattr(schedules, f"{method}ScheduleRequest")(schedule_id="s1")
    if method == "Update":
        request.spec.CopyFrom(spec())
    answer = await refusal(getattr(served.schedules, f"{method}Schedule")(request))
    assert (answer.code, answer.reason) == (StatusCode.NOT_FOUND, "SCHEDULE_NOT_FOUND")
    assert answer.resource == ("jobwire.v1.Schedule", "s1")


async def test_schedules_are_listed_by_id_page_by_page(served: Served) -> None:
    for name in ("b", "a", "C", "d", "e"):
        await _create(served, name)
    await served.broker.after(MINUTE)
    found: list[Any] = []
    token = ""
    pages = 0
    while True:
        request = schedules.ListSchedulesRequest(page_size=2, page_token=token)
        page = await served.schedules.ListSchedules(request)
        found += page.schedules
        pages += 1
        token = page.next_page_token
        if not token:
            break
    assert [one.schedule_id for one in found] == ["C", "a", "b", "d", "e"]
    assert pages == 3
    assert all(one.total_runs == 1 and not one.recent_runs for one in found)
    nowhere = schedules.ListSchedulesRequest(queue="nowhere")
    assert list((await served.schedules.ListSchedules(nowhere)).schedules) == []
    other = schedules.ListSchedulesRequest(queue="other", page_token="x")
    assert (await refusal(served.schedules.ListSchedules(other))).reason == "BAD_PAGE_TOKEN"


# -------------------------------------------------------------------------------- triggers


async def test_a_trigger_submits_a_job_now_whatever_the_schedule_does(served: Served) -> None:
    made = await _create(served, paused=True)
    request = schedules.TriggerScheduleRequest(schedule_id="s1")
    ids = [(await served.schedules.TriggerSchedule(request)).job_id for _ in range(2)]
    assert ids[0] != ids[1]
    found = await _get(served)
    assert [run.job_id for run in found.recent_runs] == ids[::-1]
    assert all(run.triggered for run in found.recent_runs)
    assert found.total_runs == 2
    assert found.revision == made.revision
    (first, _) = await _jobs(served)
    assert first.spec.labels["jobwire.schedule"] == "s1"
    assert _due(first) == _ms(found.recent_runs[-1].due_at)
    served.broker.check()


async def test_a_trigger_leaves_the_moments_and_their_overlap_alone(served: Served) -> None:
    made = await _create(served)
    await served.schedules.TriggerSchedule(schedules.TriggerScheduleRequest(schedule_id="s1"))
    assert (await _get(served)).next_runs == made.next_runs
    await served.broker.after(MINUTE)
    # A job that was triggered is not the job of an earlier moment.
    assert len(await _jobs(served)) == 2
    assert (await _get(served)).skipped_runs == 0


async def test_a_trigger_with_a_request_id_is_one_job(served: Served) -> None:
    await _create(served)
    await _create(served, "s2")
    request = schedules.TriggerScheduleRequest(schedule_id="s1", request_id="r-1")
    ids = {(await served.schedules.TriggerSchedule(request)).job_id for _ in range(3)}
    assert len(ids) == len(await _jobs(served)) == 1
    assert (await _get(served)).total_runs == 1
    request.schedule_id = "s2"
    answer = await refusal(served.schedules.TriggerSchedule(request))
    assert (answer.code, answer.reason) == (StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS")


async def test_a_trigger_meets_unique_keys_as_a_submission_does(served: Served) -> None:
    unique = job_pb2.UniqueKey(key="k", on_conflict=job_pb2.UNIQUE_CONFLICT_REJECT)
    await _create(served, job=job_pb2.JobSpec(operation="op", unique=unique))
    request = schedules.TriggerScheduleRequest(schedule_id="s1")
    await served.schedules.TriggerSchedule(request)
    answer = await refusal(served.schedules.TriggerSchedule(request))
    assert (answer.code, answer.reason) == (StatusCode.ALREADY_EXISTS, "UNIQUE_KEY_TAKEN")


# ------------------------------------------------------------------------- overlap, misses


async def test_overlap_skip_leaves_moments_out_until_the_job_has_ended(served: Served) -> None:
    await _create(served)
    await served.broker.after(MINUTE)
    await served.broker.after(MINUTE)
    assignment = await _claim(served)
    await served.broker.after(MINUTE)
    found = await _get(served)
    assert (found.total_runs, found.skipped_runs, len(await _jobs(served))) == (1, 2, 1)
    await _succeed(served, assignment)
    await served.broker.after(MINUTE)
    found = await _get(served)
    assert (found.total_runs, found.skipped_runs) == (2, 2)
    served.broker.check()


async def test_overlap_cancel_previous_cancels_what_waits_and_what_runs(served: Served) -> None:
    await _create(served, overlap_policy=schedules.OVERLAP_POLICY_CANCEL_PREVIOUS)
    await served.broker.after(MINUTE)
    await served.broker.after(MINUTE)
    first, second = await _jobs(served)
    assert first.state == job_pb2.JOB_STATE_CANCELLED
    assert first.cancel_reason
    assert (await _claim(served)).job_id == second.job_id
    await served.broker.after(MINUTE)
    _, second, third = await _jobs(served)
    assert second.state == job_pb2.JOB_STATE_CANCELLING
    assert third.state == job_pb2.JOB_STATE_PENDING
    assert (await _get(served)).total_runs == 3
    served.broker.check()


async def test_of_moments_missed_for_days_the_latest_runs(served: Served) -> None:
    made = await _create(served)
    await served.broker.after(3 * DAY + 20_000)
    (job,) = await _jobs(served)
    assert _due(job) == _ms(made.created_at) + 3 * DAY
    assert (await _get(served)).missed_runs == 3 * 1440 - 1


async def test_a_schedule_that_skips_misses_runs_nothing_that_is_late(served: Served) -> None:
    made = await _create(served, every_s=3600, missed_run_policy=schedules.MISSED_RUN_POLICY_SKIP)
    await served.broker.after(5 * HOUR + 2 * MINUTE)
    assert await _jobs(served) == []
    assert (await _get(served)).missed_runs == 5
    await served.broker.after(58 * MINUTE)
    (job,) = await _jobs(served)
    assert _due(job) == _ms(made.created_at) + 6 * HOUR


async def test_run_all_makes_up_for_each_missed_moment_within_its_window(served: Served) -> None:
    made = await _create(
        served,
        missed_run_policy=schedules.MISSED_RUN_POLICY_RUN_ALL,
        catch_up_window=Duration(seconds=3600),
    )
    await served.broker.after(3 * HOUR + 30_000)
    due = [_ms(made.created_at) + at * MINUTE for at in range(121, 181)]
    assert [_due(job) for job in await _jobs(served)] == due
    found = await _get(served)
    assert (found.total_runs, found.missed_runs, found.skipped_runs) == (60, 120, 0)
    assert [_ms(run.due_at) for run in found.recent_runs] == due[:-11:-1]
    served.broker.check()


async def test_a_schedule_ends_at_its_end(served: Served) -> None:
    now = served.broker.now_ms()
    end = Timestamp()
    end.FromMilliseconds(now + 2 * MINUTE + 30_000)
    made = await _create(served, overlap_policy=schedules.OVERLAP_POLICY_ALLOW, end_at=end)
    assert len(made.next_runs) == 2
    for _ in range(4):
        await served.broker.after(MINUTE)
    assert len(await _jobs(served)) == 2
    found = await _get(served)
    assert (list(found.next_runs), found.paused) == ([], False)
    assert served.broker.dump().get("due", {}) == {}


async def test_jitter_delays_a_job_and_not_its_moment(served: Served) -> None:
    await _create(served, every_s=3600, jitter=Duration(seconds=3600))
    await served.broker.after(HOUR)
    (job,) = await _jobs(served)
    found = await _get(served)
    assert _due(job) == _ms(found.recent_runs[0].due_at)
    assert job.state == job_pb2.JOB_STATE_SCHEDULED
    assert 0 < _ms(job.run_at) - _due(job) <= HOUR
    await served.broker.after(_ms(job.run_at) - _due(job))
    (job,) = await _jobs(served)
    assert job.state == job_pb2.JOB_STATE_PENDING
    served.broker.check()


async def test_a_full_queue_holds_a_schedule_back_and_loses_nothing(served: Served) -> None:
    made = await _create(
        served,
        overlap_policy=schedules.OVERLAP_POLICY_ALLOW,
        missed_run_policy=schedules.MISSED_RUN_POLICY_RUN_ALL,
    )
    config = admin.QueueConfig(max_pending_jobs=1)
    await served.admin.ConfigureQueue(admin.ConfigureQueueRequest(queue="default", config=config))
    await served.jobs.SubmitJob(jobs.SubmitJobRequest(spec=job_pb2.JobSpec(operation="op")))
    for _ in range(3):
        served.broker.shift(MINUTE)
        fired = await served.broker.parts.due_schedules.fire("default", ["s1"])
        assert fired.held_back
    assert (await _get(served)).total_runs == 0
    assert _ms((await _get(served)).next_runs[0]) == _ms(made.created_at) + MINUTE
    config.max_pending_jobs = 0
    await served.admin.ConfigureQueue(admin.ConfigureQueueRequest(queue="default", config=config))
    await served.broker.settle()
    due = [_due(job) for job in await _jobs(served) if job.spec.labels]
    assert due == [_ms(made.created_at) + at * MINUTE for at in (1, 2, 3)]
    served.broker.check()


async def test_a_unique_key_that_is_held_leaves_a_moment_out(served: Served) -> None:
    job = job_pb2.JobSpec(operation="op", unique=job_pb2.UniqueKey(key="k"))
    await served.jobs.SubmitJob(jobs.SubmitJobRequest(spec=job))
    await _create(served, job=job, overlap_policy=schedules.OVERLAP_POLICY_ALLOW)
    await served.broker.after(MINUTE)
    found = await _get(served)
    assert (found.total_runs, found.skipped_runs, len(await _jobs(served))) == (0, 1, 1)


async def test_many_schedules_of_one_moment_are_fired_in_batches(served: Served) -> None:
    for at in range(450):
        await _create(served, f"s{at}")
    tick = await served.broker.parts.upkeep.tick("default", 200, DAY, 5_000, 13)
    assert tick.schedules == []
    served.broker.shift(MINUTE + 60_000)
    rounds = 0
    while True:
        tick = await served.broker.parts.upkeep.tick("default", 200, DAY, 5_000, 13)
        if not tick.schedules:
            break
        assert len(tick.schedules) <= 200
        await served.broker.parts.due_schedules.fire("default", tick.schedules)
        rounds += 1
    assert 3 <= rounds <= 8
    assert len(await _jobs(served)) == 450
    served.broker.check()


# ------------------------------------------------------------------------------- bad input


def _create_with(**fields: Any) -> Any:
    return schedules.CreateScheduleRequest(schedule_id="s", spec=spec(**fields))


def _job(**fields: Any) -> Any:
    return _create_with(job=job_pb2.JobSpec(**{"operation": "op", **fields}))


MOMENT = Timestamp(seconds=1_900_000_000)
BAD: list[tuple[str, Any, str, str]] = [
    ("Create", schedules.CreateScheduleRequest(spec=spec()), "schedule_id", "must be 1 to 64"),
    ("Create", schedules.CreateScheduleRequest(schedule_id="-a", spec=spec()), "schedule_id", ""),
    ("Create", schedules.CreateScheduleRequest(schedule_id="a" * 65), "schedule_id", ""),
    ("Create", schedules.CreateScheduleRequest(schedule_id="a"), "spec.cadence", "cron or"),
    ("Create", schedules.CreateScheduleRequest(queue="Q", schedule_id="a"), "queue", ""),
    ("Create", _create_with(cron=cron("0 0 30 2 *")), "spec.cron.expression", "never due"),
    ("Create", _create_with(cron=cron("61 * * * *")), "spec.cron.expression", "minute"),
    ("Create", _create_with(cron=cron("")), "spec.cron.expression", "five fields"),
    (
        "Create",
        _create_with(cron=cron("* * * * *", "europe/berlin")),
        "spec.cron.time_zone",
        "did you mean Europe/Berlin",
    ),
    ("Create", _create_with(every_s=0), "spec.interval.every", "1 s to 365 days"),
    ("Create", _create_with(every_s=366 * 86_400), "spec.interval.every", "365 days"),
    (
        "Create",
        _create_with(start_at=MOMENT, end_at=Timestamp(seconds=1_800_000_000)),
        "spec.end_at",
        "before start_at",
    ),
    (
        "Create",
        _create_with(end_at=Timestamp(seconds=1_000_000_000)),
        "spec.end_at",
        "no moment",
    ),
    ("Create", _create_with(jitter=Duration(seconds=61)), "spec.jitter", "distance"),
    ("Create", _create_with(jitter=Duration(seconds=3601)), "spec.jitter", "1 hour,"),
    (
        "Create",
        _create_with(catch_up_window=Duration(seconds=59)),
        "spec.catch_up_window",
        "1 minute to",
    ),
    ("Create", _create_with(missed_run_policy=9), "spec.missed_run_policy", "RUN_ALL"),
    ("Create", _create_with(overlap_policy=9), "spec.overlap_policy", "ALLOW"),
    ("Create", _create_with(description="x" * 1025), "spec.description", "1024"),
    ("Create", _job(operation=""), "spec.job.operation", "operation name"),
    ("Create", _job(run_at=MOMENT), "spec.job.run_at", "schedule"),
    ("Create", _job(delay=Duration(seconds=1)), "spec.job.delay", "schedule"),
    ("Create", _job(expires_at=MOMENT), "spec.job.expires_at", "schedule"),
    ("Create", _job(deadline=MOMENT), "spec.job.deadline", "schedule"),
    ("Create", _job(labels={"jobwire.due": "1"}), "spec.job.labels['jobwire.due']", "broker"),
    ("Create", _job(payload={"json": "{"}), "spec.job.payload.json", "not JSON"),
    ("Create", _job(payload={"data": bytes(2_000)}), "spec.job.payload", "at most"),
    ("Update", schedules.UpdateScheduleRequest(schedule_id="s"), "spec.cadence", "cron or"),
    ("Get", schedules.GetScheduleRequest(), "schedule_id", ""),
    ("Pause", schedules.PauseScheduleRequest(schedule_id="s", reason="x" * 513), "reason", "512"),
    (
        "Trigger",
        schedules.TriggerScheduleRequest(schedule_id="s", request_id="a b"),
        "request_id",
        "UUID",
    ),
]


@pytest.mark.parametrize(
    ("method", "request_", "field", "words"),
    BAD,
    ids=[f"{at}-{method}-{field}" for at, (method, _, field, _) in enumerate(BAD)],
)
async def test_a_bad_field_is_named_with_what_would_be_right(
    served: Served, method: str, request_: Any, field: str, words: str
) -> None:
    call: Callable[[Any], Any] = getattr(served.schedules, f"{method}Schedule")
    answer = await refusal(call(request_))
    assert answer.code is StatusCode.INVALID_ARGUMENT
    assert field in answer.violations
    assert words in answer.violations[field]
    assert served.broker.dump() == {}


async def test_a_job_that_needs_what_the_server_lacks_is_unsupported_in_a_schedule_too(
    served: Served,
) -> None:
    job = job_pb2.JobSpec(operation="op", group_key="g")
    said = await refusal(_create(served, job=job))
    assert (said.reason, said.fields) == ("UNSUPPORTED", {"spec.job.group_key"})
    assert said.metadata["feature"] == "groups"
    job.priority = 999
    said = await refusal(_create(served, job=job))
    assert said.reason == "INVALID_FIELD"
    assert said.fields == {"spec.job.group_key", "spec.job.priority"}
