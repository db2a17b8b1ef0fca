"""Between a ScheduleSpec and what the router keeps of it."""

from __future__ import annotations

from jobwire.v1 import job_pb2, job_service_pb2, schedule_service_pb2
from jobwire_server.domain.decisions.cron import CronError, cron_of, zone_of
from jobwire_server.domain.decisions.schedules import (
    MissedRuns,
    Overlap,
    Plan,
    next_after,
    next_runs,
    shortest_distance,
)
from jobwire_server.domain.errors import InvalidRequest
from jobwire_server.domain.ids import job_id_of
from jobwire_server.domain.model import NotNow
from jobwire_server.servicers import convert
from jobwire_server.servicers.checks import DAY_MS, TEN_YEARS_MS, Checker
from jobwire_server.servicers.submission import JobChecks
from jobwire_server.store.schedules import Schedule, Template
from jobwire_server.store.submissions import encode_extra

HOUR_MS = 3_600_000
MAX_DESCRIPTION_BYTES = 1024
_FIXED_BY_SCHEDULE = {
    "run_at": "which says itself when jobs run",
    "delay": "which says itself when jobs run",
    "expires_at": "whose jobs share no moment: set expires_after, which counts from the due moment",
    "deadline": "whose jobs share no moment: set deadline_after, which counts from the due moment",
}


def check_spec(
    checker: Checker,
    queue: str,
    spec: schedule_service_pb2.ScheduleSpec,
    jobs: JobChecks,
    now_ms: int,
) -> Template:
    """Return what a schedule says, ready to be kept; note what is wrong with it.

    Args:
        checker: Takes the violations.
        queue: That the jobs go to.
        spec: What the schedule says.
        jobs: Checks its job.
        now_ms: The store's clock.
    """
    before = len(checker.violations)
    plan = _check_plan(checker, spec, now_ms)
    checker.text("spec.description", spec.description, MAX_DESCRIPTION_BYTES)
    if len(checker.violations) == before:
        _check_moments(checker, spec, plan, now_ms)
    for name, why in _FIXED_BY_SCHEDULE.items():
        if spec.job.HasField(name):  # type: ignore[arg-type]
            checker.add(f"spec.job.{name}", f"can't be set in a schedule, {why}")
    job = job_pb2.JobSpec()
    job.CopyFrom(spec.job)
    for name in _FIXED_BY_SCHEDULE:
        job.ClearField(name)  # type: ignore[arg-type]
    request = job_service_pb2.SubmitJobRequest(queue=queue, spec=job)
    made = jobs.check(request)
    if isinstance(made, InvalidRequest):
        checker.take_over(made, "spec.", "spec.job.", now=False)
        return Template(b"", b"", plan, "", b"", 0, "")
    if isinstance(made, NotNow):
        checker.take_over(made.refusal, "spec.", "spec.job.", now=True)
        made = made.job
    after = _after_due(checker, job, plan)
    words = schedule_service_pb2.ScheduleSpec()
    words.CopyFrom(spec)
    words.ClearField("job")
    return Template(
        spec=words.SerializeToString(deterministic=True),
        job=request.spec.SerializeToString(deterministic=True),
        plan=plan,
        route_id=made.route.id,
        descriptor=made.route.descriptor,
        priority=made.priority if job.HasField("priority") else None,
        # The moments are those of a job that is submitted now.
        extra=encode_extra(made._replace(expires_at_ms=0, deadline_ms=0)),
        unique_key=made.unique.key if made.unique else "",
        expires_after_ms=after[0],
        deadline_after_ms=after[1],
    )


def _after_due(checker: Checker, job: job_pb2.JobSpec, plan: Plan) -> tuple[int, int]:
    """Return how long after its due moment a job expires and ends, ms, 0 for never."""
    found = []
    for name in ("expires_after", "deadline_after"):
        after = 0
        if job.HasField(name):
            duration = getattr(job, name)
            after = duration.seconds * 1000 + -(-duration.nanos // 1_000_000)
            if 0 < after <= plan.jitter_ms:
                checker.add(f"spec.job.{name}", "must be longer than spec.jitter")
        found.append(after)
    return found[0], found[1]


def _check_plan(checker: Checker, spec: schedule_service_pb2.ScheduleSpec, now_ms: int) -> Plan:
    latest = now_ms + TEN_YEARS_MS
    cron, zone, every, anchor, start, end, jitter = "", "UTC", 0, 0, 0, 0, 0
    cadence = spec.WhichOneof("cadence")
    if cadence == "cron":
        cron, zone = _check_cron(checker, spec.cron)
    elif cadence == "interval":
        every = checker.duration_ms("spec.interval.every", spec.interval.every, 1_000, 365 * DAY_MS)
        if spec.interval.HasField("anchor"):
            anchor = checker.moment_ms("spec.interval.anchor", spec.interval.anchor, latest)
    else:
        checker.add("spec.cadence", "must be set: cron or interval")
    if spec.HasField("start_at"):
        start = checker.moment_ms("spec.start_at", spec.start_at, latest)
    if spec.HasField("end_at"):
        end = checker.moment_ms("spec.end_at", spec.end_at, latest)
        if 0 < end < start:
            checker.add("spec.end_at", "must not lie before start_at")
    catch_up = DAY_MS
    if spec.HasField("catch_up_window"):
        catch_up = checker.duration_ms(
            "spec.catch_up_window", spec.catch_up_window, 60_000, 30 * DAY_MS
        )
    if spec.HasField("jitter"):
        jitter = checker.duration_ms("spec.jitter", spec.jitter, 0, HOUR_MS)
    missed, overlap = MissedRuns.RUN_LATEST, Overlap.SKIP
    if spec.missed_run_policy in schedule_service_pb2.MissedRunPolicy.values():
        missed = MissedRuns(spec.missed_run_policy or missed)
    else:
        checker.add("spec.missed_run_policy", "must be SKIP, RUN_LATEST or RUN_ALL")
    if spec.overlap_policy in schedule_service_pb2.OverlapPolicy.values():
        overlap = Overlap(spec.overlap_policy or overlap)
    else:
        checker.add("spec.overlap_policy", "must be SKIP, ALLOW or CANCEL_PREVIOUS")
    return Plan(cron, zone, every, anchor, start, end, missed, catch_up, overlap, jitter)


def _check_cron(checker: Checker, cadence: schedule_service_pb2.CronCadence) -> tuple[str, str]:
    zone = cadence.time_zone or "UTC"
    try:
        zone_of(zone)
    except CronError as error:
        checker.add("spec.cron.time_zone", str(error))
        zone = "UTC"
    try:
        cron_of(cadence.expression, zone)
    except CronError as error:
        checker.add("spec.cron.expression", str(error))
    return cadence.expression, zone


def _check_moments(
    checker: Checker, spec: schedule_service_pb2.ScheduleSpec, plan: Plan, now_ms: int
) -> None:
    if not next_after(plan, now_ms):
        if spec.HasField("end_at"):
            text = "leaves no moment at which the schedule is due"
            checker.add("spec.end_at", text, now=True)
        else:
            checker.add("spec.cron.expression", "is never due", now=True)
        return
    distance = shortest_distance(plan, now_ms) if plan.jitter_ms else 0
    if distance and plan.jitter_ms > distance:
        checker.add(
            "spec.jitter",
            f"must not be above the distance of two moments, {distance} ms, not {plan.jitter_ms}",
            now=True,
        )


def to_wire(schedule: Schedule) -> schedule_service_pb2.Schedule:
    """Return a schedule as the contract tells it."""
    template = schedule.template
    message = schedule_service_pb2.Schedule(
        queue=schedule.queue,
        schedule_id=schedule.schedule_id,
        spec=schedule_service_pb2.ScheduleSpec.FromString(template.spec),
        paused=schedule.paused,
        pause_reason=schedule.pause_reason,
        revision=schedule.revision,
        created_at=convert.moment(schedule.created_ms),
        updated_at=convert.moment(schedule.updated_ms),
        next_runs=[convert.moment(ms) for ms in next_runs(template.plan, schedule.due_ms)],
        total_runs=schedule.total_runs,
        skipped_runs=schedule.skipped_runs,
        missed_runs=schedule.missed_runs,
    )
    message.spec.job.MergeFromString(template.job)
    for run in schedule.runs:
        message.recent_runs.add(
            due_at=convert.moment(run.due_ms),
            submitted_at=convert.moment(run.submitted_ms),
            job_id=job_id_of(schedule.queue, run.ulid),
            triggered=run.triggered,
        )
    return message
