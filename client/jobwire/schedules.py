"""Recurring jobs as Python values. Every time is in UTC; None means unset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, get_args
from zoneinfo import ZoneInfo

from jobwire._convert import (
    Seconds,
    from_duration,
    from_timestamp,
    moment_of,
    span_of,
    to_duration,
    to_timestamp,
)
from jobwire._requests import JobOptions, job_spec
from jobwire.models import NewJob, RetryPolicy
from jobwire.payloads import from_payload, to_payload
from jobwire.unique import UniqueKey
from jobwire.v1 import job_pb2, schedule_service_pb2

Missed = Literal["skip", "run_latest", "run_all"]
Overlap = Literal["skip", "allow", "cancel_previous"]


class ScheduleOptions(JobOptions, total=False):
    """What a schedule says; `Client.create_schedule` describes each.

    In a change, what is left out stays, and None removes.
    """

    cron: str | None
    time_zone: str | ZoneInfo | None
    every: Seconds | None
    anchor: datetime | None
    start_at: datetime | None
    end_at: datetime | None
    missed: Missed | None
    catch_up_window: Seconds | None
    overlap: Overlap | None
    jitter: Seconds | None
    description: str | None


class ScheduleChanges(ScheduleOptions, total=False):
    """What may be changed of a schedule."""

    operation: str
    payload: Any


_JOB_OPTIONS = {"operation", "payload", *JobOptions.__annotations__}
_JOB_FIELDS = {"unique_key": ("unique",), "deadline": ("deadline", "deadline_after")}


def new_spec(
    operation: str, payload: Any, options: ScheduleOptions
) -> schedule_service_pb2.ScheduleSpec:
    """Build the spec of a schedule.

    Raises:
        TypeError, ValueError: The payload or a time can't be carried, or not exactly one of
            `cron` and `every` is given.
    """
    changes: ScheduleChanges = {**options, "operation": operation, "payload": payload}
    spec = schedule_service_pb2.ScheduleSpec()
    change_spec(spec, changes)
    if not spec.cron.expression and not spec.HasField("interval"):
        raise ValueError("give cron='30 6 * * *' or every=timedelta(hours=1)")
    return spec


def change_spec(spec: schedule_service_pb2.ScheduleSpec, changes: ScheduleChanges) -> None:
    """Apply changes to the spec of a schedule; what is left out stays, None removes.

    Raises:
        TypeError, ValueError: As for `new_spec`.
    """
    given: dict[str, Any] = dict(changes)
    _change_job(spec.job, {k: v for k, v in given.items() if k in _JOB_OPTIONS})
    _change_cadence(spec, given)
    for name in ("start_at", "end_at"):
        if name in given:
            spec.ClearField(name)
            if given[name] is not None:
                getattr(spec, name).CopyFrom(to_timestamp(given[name]))
    for name in ("catch_up_window", "jitter"):
        if name in given:
            spec.ClearField(name)  # type: ignore[arg-type]
            if given[name] is not None:
                getattr(spec, name).CopyFrom(to_duration(given[name], name))
    if "missed" in given:
        spec.missed_run_policy = _number(
            schedule_service_pb2.MissedRunPolicy, given["missed"], "missed"
        )
    if "overlap" in given:
        spec.overlap_policy = _number(
            schedule_service_pb2.OverlapPolicy, given["overlap"], "overlap"
        )
    if "description" in given:
        spec.description = given["description"] or ""


def _change_job(spec: job_pb2.JobSpec, given: dict[str, Any]) -> None:
    made = job_spec(NewJob(**{"operation": spec.operation, **given}))
    for name in given:
        if name == "payload":
            spec.payload.CopyFrom(to_payload(given[name]))
            continue
        fields: Any = _JOB_FIELDS.get(name, (name,))
        for field_name in fields:
            spec.ClearField(field_name)
        for field_name in fields:
            if name in ("requirements", "labels", "headers"):
                getattr(spec, field_name).update(getattr(made, field_name))
            elif name == "required_features":
                spec.required_features.extend(made.required_features)
            elif name == "operation":
                spec.operation = made.operation
            elif name == "priority":
                if made.HasField("priority"):
                    spec.priority = made.priority
            elif made.HasField(field_name):
                getattr(spec, field_name).CopyFrom(getattr(made, field_name))


def _change_cadence(spec: schedule_service_pb2.ScheduleSpec, given: dict[str, Any]) -> None:
    cron, every = given.get("cron"), given.get("every")
    if cron is not None and every is not None:
        raise ValueError("give cron or every, not both")
    if cron is not None:
        zone = spec.cron.time_zone
        spec.cron.expression = cron
        spec.cron.time_zone = zone
    if every is not None:
        spec.interval.every.CopyFrom(to_duration(every, "every"))
    if "time_zone" in given:
        if spec.WhichOneof("cadence") == "interval":
            if given["time_zone"] is not None:
                raise ValueError("time_zone goes with cron")
        else:
            spec.cron.time_zone = str(given["time_zone"] or "")
    if "anchor" in given:
        if spec.WhichOneof("cadence") != "interval":
            if given["anchor"] is not None:
                raise ValueError("anchor goes with every")
        else:
            spec.interval.ClearField("anchor")
            if given["anchor"] is not None:
                spec.interval.anchor.CopyFrom(to_timestamp(given["anchor"]))


def _number(kind: Any, word: str | None, name: str) -> Any:
    prefix = "MISSED_RUN_POLICY" if name == "missed" else "OVERLAP_POLICY"
    words = get_args(Missed if name == "missed" else Overlap)
    if word is None:
        return kind.Value(f"{prefix}_UNSPECIFIED")
    if word not in words:
        raise ValueError(f"{word!r} is not a value of {name}; use {', '.join(words)}")
    return kind.Value(f"{prefix}_{word.upper()}")


_MISSED: dict[int, Missed] = {
    schedule_service_pb2.MissedRunPolicy.Value(f"MISSED_RUN_POLICY_{word.upper()}"): word
    for word in get_args(Missed)
}
_OVERLAPS: dict[int, Overlap] = {
    schedule_service_pb2.OverlapPolicy.Value(f"OVERLAP_POLICY_{word.upper()}"): word
    for word in get_args(Overlap)
}


@dataclass(frozen=True, slots=True)
class ScheduleRun:
    """A job that a schedule submitted."""

    due_at: datetime | None
    """The moment it was due."""
    submitted_at: datetime | None
    job_id: str
    triggered: bool
    """True: submitted by `trigger_schedule`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A schedule as it stood when the server answered."""

    id: str
    queue: str
    operation: str
    cron: str | None
    """Its expression; None: it is due at fixed intervals."""
    time_zone: str
    """The time zone of `cron`, an IANA name."""
    every: timedelta | None
    """The interval at which it is due; None: it has a `cron`."""
    anchor: datetime | None
    start_at: datetime | None
    end_at: datetime | None
    missed: Missed
    catch_up_window: timedelta | None
    overlap: Overlap
    jitter: timedelta | None
    description: str
    priority: int | None
    """Of each job; None: the queue's default when it is submitted."""
    requirements: Mapping[str, str]
    labels: Mapping[str, str]
    retry: RetryPolicy
    execution_timeout: timedelta | None
    unique_key: UniqueKey | None
    retention: timedelta | None
    expires_after: timedelta | None
    """How long after its due moment a job may be started for the first time."""
    deadline: timedelta | None
    """How long after its due moment a job fails unless it is finished."""
    paused: bool
    pause_reason: str
    revision: int
    """Grows with every change."""
    created_at: datetime | None
    updated_at: datetime | None
    next_runs: tuple[datetime, ...]
    """At most 5; empty if it is paused or over."""
    recent_runs: tuple[ScheduleRun, ...]
    """Newest first, at most 10; empty in listings."""
    total_runs: int
    skipped_runs: int
    """How many due moments were skipped because of `overlap`."""
    missed_runs: int
    """How many due moments were skipped because of `missed`."""
    raw_payload: job_pb2.Payload = field(repr=False)

    @property
    def payload(self) -> Any:
        """The input of each job as a Python value."""
        return from_payload(self.raw_payload)

    @property
    def cadence(self) -> str:
        """When it is due, for people: `30 6 * * * Europe/Berlin` or `every 1:00:00`."""
        return f"every {self.every}" if self.cron is None else f"{self.cron} {self.time_zone}"

    @classmethod
    def from_proto(cls, proto: schedule_service_pb2.Schedule) -> Schedule:
        """Read the wire's form."""
        spec, job = proto.spec, proto.spec.job
        by_cron = spec.WhichOneof("cadence") == "cron"
        return cls(
            id=proto.schedule_id,
            queue=proto.queue,
            operation=job.operation,
            cron=spec.cron.expression if by_cron else None,
            time_zone=spec.cron.time_zone or "UTC",
            every=None if by_cron else from_duration(spec.interval.every),
            anchor=moment_of(spec.interval, "anchor"),
            start_at=moment_of(spec, "start_at"),
            end_at=moment_of(spec, "end_at"),
            missed=_MISSED.get(spec.missed_run_policy, "run_latest"),
            catch_up_window=span_of(spec, "catch_up_window"),
            overlap=_OVERLAPS.get(spec.overlap_policy, "skip"),
            jitter=span_of(spec, "jitter"),
            description=spec.description,
            priority=job.priority if job.HasField("priority") else None,
            requirements=dict(job.requirements),
            labels=dict(job.labels),
            retry=RetryPolicy.from_proto(job.retry),
            execution_timeout=span_of(job, "execution_timeout"),
            unique_key=UniqueKey.from_proto(job.unique) if job.HasField("unique") else None,
            retention=span_of(job, "retention"),
            expires_after=span_of(job, "expires_after"),
            deadline=span_of(job, "deadline_after"),
            paused=proto.paused,
            pause_reason=proto.pause_reason,
            revision=proto.revision,
            created_at=moment_of(proto, "created_at"),
            updated_at=moment_of(proto, "updated_at"),
            next_runs=tuple(from_timestamp(moment) for moment in proto.next_runs),
            recent_runs=tuple(
                ScheduleRun(
                    due_at=moment_of(run, "due_at"),
                    submitted_at=moment_of(run, "submitted_at"),
                    job_id=run.job_id,
                    triggered=run.triggered,
                )
                for run in proto.recent_runs
            ),
            total_runs=proto.total_runs,
            skipped_runs=proto.skipped_runs,
            missed_runs=proto.missed_runs,
            raw_payload=job.payload,
        )
