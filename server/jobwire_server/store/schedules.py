"""Schedules in the store: one method for each script."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import NamedTuple

from jobwire_server.domain.decisions.routing import parse_descriptor
from jobwire_server.domain.decisions.schedules import MissedRuns, Overlap, Plan, Step
from jobwire_server.domain.errors import JobwireError
from jobwire_server.domain.ids import job_id_of
from jobwire_server.domain.model import (
    Accepted,
    JobState,
    NewJob,
    QueueSettings,
    RequestId,
    UniqueKey,
)
from jobwire_server.store import codec
from jobwire_server.store.codes import Code
from jobwire_server.store.runner import Argument, QueueScripts
from jobwire_server.store.submissions import add_request, encode_default, not_written

LIST_BYTES = 2 << 20
"""A page ends early once its jobs have so many bytes."""


class Ends(NamedTuple):
    """When a schedule's job expires and ends, Unix ms, 0 for never."""

    expires_at_ms: int
    deadline_ms: int

    @classmethod
    def of(cls, moment_ms: int, expires_after_ms: int, deadline_after_ms: int) -> Ends:
        """Return the ends of the job of a due moment."""
        return cls(
            moment_ms + expires_after_ms if expires_after_ms else 0,
            moment_ms + deadline_after_ms if deadline_after_ms else 0,
        )


@dataclass(frozen=True, slots=True)
class Template:
    """A schedule's content, ready to be stored: its words, its plan, and its job."""

    spec: bytes
    """Serialized, without the job."""
    job: bytes
    """Serialized, without what the broker adds."""
    plan: Plan
    route_id: str
    descriptor: bytes
    priority: int | None
    """None: that of the queue."""
    extra: str
    """Of the job, as submit.lua reads it."""
    unique_key: str = ""
    """Of the job, in its producer's words."""
    expires_after_ms: int = 0
    """From the due moment, as the next; 0: none."""
    deadline_after_ms: int = 0

    def ends(self, moment_ms: int) -> Ends:
        """Return when the job of a moment expires and ends."""
        return Ends.of(moment_ms, self.expires_after_ms, self.deadline_after_ms)


class Run(NamedTuple):
    """A job that a schedule submitted."""

    due_ms: int
    submitted_ms: int
    ulid: str
    triggered: bool


@dataclass(frozen=True, slots=True)
class Schedule:
    """A schedule as it stands."""

    queue: str
    schedule_id: str
    template: Template
    creation_id: str
    revision: int
    created_ms: int
    updated_ms: int
    due_ms: int
    """The next moment; 0 while it is paused, and once it is over."""
    paused: bool
    pause_reason: str
    total_runs: int
    skipped_runs: int
    missed_runs: int
    runs: tuple[Run, ...]

    @property
    def version(self) -> str:
        """Names the content that jobs were made from."""
        return f"{self.creation_id}.{self.revision}"

    @property
    def standing(self) -> str:
        """Names what changes are based on: its version and its next moment."""
        return f"{self.version}.{self.due_ms or ''}"


class Standing(NamedTuple):
    """What a decision about a schedule needs."""

    schedule_id: str
    creation_id: str
    version: str
    due_ms: int
    plan: Plan
    job_bytes: int
    expires_after_ms: int = 0
    deadline_after_ms: int = 0

    def ends(self, moment_ms: int) -> Ends:
        """Return when the job of a moment expires and ends."""
        return Ends.of(moment_ms, self.expires_after_ms, self.deadline_after_ms)


class Firing(NamedTuple):
    """A step of a schedule with the job that it submits, if any."""

    schedule_id: str
    version: str
    step: Step
    ulid: str = ""
    ready_ms: int = 0
    """0: at once."""
    suffix: bytes = b""
    """Appended to the schedule's job for this moment."""
    ends: Ends = Ends(0, 0)


class Settled(IntEnum):
    """What became of a step."""

    SUBMITTED = Code.DONE
    PASSED = Code.RUN_PASSED
    SKIPPED = Code.RUN_SKIPPED
    CHANGED = Code.SCHEDULE_CHANGED
    HELD_BACK = Code.RUN_HELD_BACK


_ACTIONS = {Overlap.SKIP: "skip", Overlap.ALLOW: "allow", Overlap.CANCEL_PREVIOUS: "cancel"}


class ScheduleStore(QueueScripts):
    """The schedules of all queues.

    Every method raises StoreUnavailable, and `write`, `fire` and `trigger` StoreFull.
    """

    async def read(self, queue: str, schedule_id: str) -> tuple[int, Schedule | None]:
        """Return the store's time and a schedule as it stands, None if there is none."""
        now, _, row = await self._run("schedule_read", queue, [1, schedule_id])
        if not row:
            return now, None
        flat, runs = row
        return now, _decode(queue, schedule_id, codec.pairs(flat), runs)

    async def standings(
        self, queue: str, ids: Sequence[str]
    ) -> tuple[int, int, list[Standing | None]]:
        """Return the store's time, the earliest moment of any schedule or 0, and the standing of
        each that has a next moment.
        """
        now, head, *rows = await self._run("schedule_read", queue, [0, *ids])
        found: list[Standing | None] = []
        for schedule_id, row in zip(ids, rows, strict=True):
            if not row or not row[2]:
                found.append(None)
                continue
            creation_id, revision, due, plan = (part.decode() for part in row[:4])
            found.append(
                Standing(
                    schedule_id,
                    creation_id,
                    f"{creation_id}.{revision}",
                    int(due),
                    _decode_plan(plan),
                    row[4],
                    int(row[5] or 0),
                    int(row[6] or 0),
                )
            )
        return now, head, found

    async def page(self, queue: str, after: str, most: int) -> tuple[list[Schedule], bool]:
        """Return up to `most` schedules whose ids sort after `after`, without their runs, and True
        if there are more.
        """
        more, *rows = await self._run("schedule_list", queue, [after, most, LIST_BYTES])
        return [
            _decode(queue, schedule_id.decode(), codec.pairs(flat), [])
            for schedule_id, flat in zip(rows[::2], rows[1::2], strict=True)
        ], bool(more)

    async def write(
        self,
        queue: str,
        schedule_id: str,
        standing: str,
        due_ms: int,
        fields: dict[str, str | bytes | int],
    ) -> bool:
        """Write fields of a schedule; False if it is not what the change was made from.

        Args:
            queue: Its queue.
            schedule_id: Its name there.
            standing: What it must still be; '' if there must be no schedule.
            due_ms: The next moment; 0 for none.
            fields: The fields that change.
        """
        args: list[Argument] = [schedule_id, standing, due_ms or ""]
        for item in fields.items():
            args += item
        return bool(await self._run("schedule_write", queue, args) == Code.DONE)

    async def delete(self, queue: str, schedule_id: str) -> bool:
        """Remove a schedule; True if there was one."""
        return bool(await self._run("schedule_delete", queue, [schedule_id]))

    async def fire(
        self,
        queue: str,
        firings: Sequence[Firing],
        grace_ms: int,
        retention_ms: int,
        settings: QueueSettings,
    ) -> tuple[int, int, list[Settled]]:
        """Take steps; return the store's time, the earliest moment of any schedule or 0, and what
        became of each step.

        Args:
            queue: The queue of all the schedules.
            firings: The steps, those of one schedule in order.
            grace_ms: How long running jobs that are cancelled may take to stop.
            retention_ms: How long cancelled jobs are kept.
            settings: Of the queue: limits, and the priority of jobs that name none.
        """
        args: list[Argument] = [
            grace_ms,
            retention_ms,
            settings.max_pending_jobs,
            settings.max_live_bytes,
            encode_default(settings.default_priority),
        ]
        for firing in firings:
            step = firing.step
            args += (
                firing.schedule_id,
                firing.version,
                step.due_ms,
                step.next_ms or "",
                step.missed,
                _ACTIONS[step.overlap] if step.run_ms else "pass",
                firing.ulid,
                step.run_ms,
                firing.ready_ms or "",
                firing.suffix,
                firing.ends.expires_at_ms or "",
                firing.ends.deadline_ms or "",
            )
        now, head, *codes = await self._run("fire", queue, args)
        return now, head, [Settled(code) for code in codes]

    async def trigger(
        self,
        schedule: Schedule,
        ulid: str,
        moment_ms: int,
        suffix: bytes,
        request: RequestId | None,
        retention_ms: int,
        settings: QueueSettings,
    ) -> Accepted | JobwireError | None:
        """Submit a job of a schedule now; None if the schedule has changed since it was read.

        Args:
            schedule: As it was read.
            ulid: The job's.
            moment_ms: The moment to note with the run.
            suffix: What is appended to the schedule's job.
            request: Makes a retry safe.
            retention_ms: How long a job is kept that this one replaces.
            settings: Of the queue: limits, and the priority of jobs that name none.
        """
        template, queue = schedule.template, schedule.queue
        extra = add_request(template.extra, request) if request else template.extra
        limits = settings.max_pending_jobs, settings.max_live_bytes
        ends = template.ends(moment_ms)
        args: list[Argument] = [
            *(retention_ms, *limits, schedule.schedule_id, schedule.version),
            *(ulid, moment_ms, suffix, extra),
            *(ends.expires_at_ms or "", ends.deadline_ms or ""),
            encode_default(settings.default_priority),
        ]
        code, *answers = await self._run("trigger", queue, args)
        if code == Code.SCHEDULE_CHANGED:
            return None
        job = NewJob(
            job_id_of(queue, ulid),
            queue,
            parse_descriptor(template.descriptor),
            template.priority or 0,
            b"",
            request=request,
            unique=UniqueKey(template.unique_key) if template.unique_key else None,
        )
        (answer,) = answers
        if isinstance(answer, int):
            return Accepted(job.job_id, JobState(answer))
        return not_written(job, answer, limits)


def template_fields(template: Template) -> dict[str, str | bytes | int]:
    """Return the fields of a schedule's HASH that hold what it says."""
    return {
        "spec": template.spec,
        "job": template.job,
        "plan": json.dumps(asdict(template.plan), separators=(",", ":")),
        "rt": template.route_id,
        "rd": template.descriptor,
        "p": "" if template.priority is None else template.priority,
        "x": template.extra,
        "u": template.unique_key,
        "xa": template.expires_after_ms,
        "da": template.deadline_after_ms,
    }


def _decode_plan(text: str | bytes) -> Plan:
    fields = json.loads(text)
    fields["missed_runs"] = MissedRuns(fields["missed_runs"])
    fields["overlap"] = Overlap(fields["overlap"])
    return Plan(**fields)


def _decode(
    queue: str, schedule_id: str, fields: dict[bytes, bytes], runs: Sequence[bytes]
) -> Schedule:
    def number(name: bytes) -> int:
        return int(fields.get(name, 0))

    return Schedule(
        queue=queue,
        schedule_id=schedule_id,
        template=Template(
            spec=fields[b"spec"],
            job=fields[b"job"],
            plan=_decode_plan(fields[b"plan"]),
            route_id=fields[b"rt"].decode(),
            descriptor=fields[b"rd"],
            priority=number(b"p") if fields[b"p"] else None,
            extra=fields[b"x"].decode(),
            unique_key=fields[b"u"].decode(),
            expires_after_ms=number(b"xa"),
            deadline_after_ms=number(b"da"),
        ),
        creation_id=fields[b"cid"].decode(),
        revision=number(b"rev"),
        created_ms=number(b"at"),
        updated_ms=number(b"up"),
        due_ms=number(b"due"),
        paused=number(b"paused") == 1,
        pause_reason=fields.get(b"why", b"").decode(errors="replace"),
        total_runs=number(b"n"),
        skipped_runs=number(b"k"),
        missed_runs=number(b"m"),
        runs=tuple(_decode_run(raw) for raw in runs),
    )


def _decode_run(raw: bytes) -> Run:
    due, submitted, ulid, triggered = raw.decode().split()
    return Run(int(due), int(submitted), ulid, triggered == "1")
