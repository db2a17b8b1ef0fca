# Made from jobwire/_async by tools/unasync.py; edit that one.
"""The part of the client for recurring jobs."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any, Unpack

from jobwire._sync.calls import Calls
from jobwire.errors import ChangedMeanwhile
from jobwire.schedules import Schedule, ScheduleChanges, ScheduleOptions, change_spec, new_spec
from jobwire.v1 import schedule_service_pb2 as schedules_pb2

# A change is made from what was read; so often it is read again because somebody was quicker.
MAX_CHANGES = 10


class ScheduleMethods:
    """Methods for schedules; see `Client`."""

    _calls: Calls
    _timeout_s: float | None

    def create_schedule(
        self,
        schedule_id: str,
        operation: str,
        payload: Any = None,
        *,
        queue: str = "default",
        paused: bool = False,
        **options: Unpack[ScheduleOptions],
    ) -> Schedule:
        """Create a schedule: the broker submits its job whenever it is due.

            client.create_schedule(
                "nightly", "report.build", cron="30 6 * * *", time_zone="Europe/Berlin"
            )
            client.create_schedule("ping", "site.check", every=timedelta(minutes=5))

        Creating the same schedule twice returns it as it stands.

        Args:
            schedule_id: Unique in the queue: 1 to 64 letters, digits and `. _ -`.
            operation: The type of its jobs.
            payload: Their input: a JSON value, bytes or a protobuf message.
            queue: Where they go.
            paused: True: it begins paused.
            options: `cron`, five fields or `@daily` and the like, in `time_zone` (an IANA name or
                a ZoneInfo; UTC unless said), or `every`, seconds or a timedelta from 1 second to
                365 days, counted from `anchor` (unless said, its creation).

                `start_at` and `end_at`, moments outside of which it is not due. `missed`, what
                becomes of moments while no server was up: `run_latest`, one job for all of them,
                unless said otherwise; `skip`; `run_all`, one for each within `catch_up_window`.
                `overlap`, what happens while the job before is not finished: `skip` the moment,
                unless said otherwise; `allow`; `cancel_previous`. `jitter`, the most that a job
                is spread behind its moment. `description`, for people.

                `priority`, `requirements`, `labels`, `retry`, `execution_timeout`, `output`,
                `unique_key`, `retention`, `expires_after` and `deadline` (a timedelta) of the jobs,
                as for `submit`; the last two count from the due moment.

        Raises:
            TypeError, ValueError: The payload or a time can't be carried, or not exactly one of
                `cron` and `every` is given.
            InvalidRequest: A field is out of its range, or it would never be due.
            AlreadyExists: The queue has another schedule of this id.
        """
        request = schedules_pb2.CreateScheduleRequest(
            queue=queue,
            schedule_id=schedule_id,
            spec=new_spec(operation, payload, options),
            paused=paused,
        )
        answer = self._calls.unary(self._calls.schedules.CreateSchedule, request, self._timeout_s)
        return Schedule.from_proto(answer.schedule)

    def get_schedule(self, schedule_id: str, *, queue: str = "default") -> Schedule:
        """Return a schedule with its next due moments and latest runs.

        Raises:
            ScheduleNotFound: The queue has none of this id.
        """
        return Schedule.from_proto(self._read_schedule(schedule_id, queue))

    def _read_schedule(self, schedule_id: str, queue: str) -> schedules_pb2.Schedule:
        request = schedules_pb2.GetScheduleRequest(queue=queue, schedule_id=schedule_id)
        answer = self._calls.unary(self._calls.schedules.GetSchedule, request, self._timeout_s)
        return answer.schedule

    def list_schedules(self, queue: str = "default") -> Iterator[Schedule]:
        """Yield the schedules of a queue by id, without their latest runs."""
        request = schedules_pb2.ListSchedulesRequest(queue=queue)
        while True:
            answer = self._calls.unary(
                self._calls.schedules.ListSchedules, request, self._timeout_s
            )
            for proto in answer.schedules:
                yield Schedule.from_proto(proto)
            request.page_token = answer.next_page_token
            if not request.page_token:
                return

    def update_schedule(
        self,
        schedule_id: str,
        *,
        queue: str = "default",
        **changes: Unpack[ScheduleChanges],
    ) -> Schedule:
        """Change what a schedule says; what is not named stays, and None takes away.

        Its history and whether it is paused stay; its due moments are counted anew from now. What
        somebody else changes at the same time is not undone.

        Args:
            schedule_id: The schedule.
            queue: Its queue.
            changes: `operation`, `payload`, and the options of `create_schedule`.

        Raises:
            TypeError, ValueError: As for `create_schedule`.
            ScheduleNotFound: The queue has none of this id.
            ChangedMeanwhile: Others changed it again and again.
        """
        for attempt in range(MAX_CHANGES):
            found = self._read_schedule(schedule_id, queue)
            change_spec(found.spec, changes)
            request = schedules_pb2.UpdateScheduleRequest(
                queue=queue, schedule_id=schedule_id, spec=found.spec, revision=found.revision
            )
            try:
                answer = self._calls.unary(
                    self._calls.schedules.UpdateSchedule, request, self._timeout_s
                )
                break
            except ChangedMeanwhile:
                if attempt == MAX_CHANGES - 1:
                    raise
        return Schedule.from_proto(answer.schedule)

    def pause_schedule(
        self, schedule_id: str, reason: str = "", *, queue: str = "default"
    ) -> Schedule:
        """Pause a schedule; what it misses meanwhile is not made up for.

        Args:
            schedule_id: The schedule.
            reason: For people; kept with it. At most 512 bytes.
            queue: Its queue.
        """
        request = schedules_pb2.PauseScheduleRequest(
            queue=queue, schedule_id=schedule_id, reason=reason
        )
        answer = self._calls.unary(self._calls.schedules.PauseSchedule, request, self._timeout_s)
        return Schedule.from_proto(answer.schedule)

    def resume_schedule(self, schedule_id: str, *, queue: str = "default") -> Schedule:
        """Resume a paused schedule with the first due moment after now."""
        request = schedules_pb2.ResumeScheduleRequest(queue=queue, schedule_id=schedule_id)
        answer = self._calls.unary(self._calls.schedules.ResumeSchedule, request, self._timeout_s)
        return Schedule.from_proto(answer.schedule)

    def trigger_schedule(
        self, schedule_id: str, *, queue: str = "default", request_id: str | None = None
    ) -> str:
        """Submit a job of a schedule now, due or not, and return its id.

        Args:
            schedule_id: The schedule.
            queue: Its queue.
            request_id: As for `submit`; None: a new one, so that a repeat after a lost answer
                submits no second job.
        """
        request = schedules_pb2.TriggerScheduleRequest(
            queue=queue, schedule_id=schedule_id, request_id=request_id or secrets.token_hex(16)
        )
        answer = self._calls.unary(self._calls.schedules.TriggerSchedule, request, self._timeout_s)
        return answer.job_id

    def delete_schedule(self, schedule_id: str, *, queue: str = "default") -> None:
        """Delete a schedule if it exists; the jobs that it submitted stay."""
        request = schedules_pb2.DeleteScheduleRequest(queue=queue, schedule_id=schedule_id)
        self._calls.unary(self._calls.schedules.DeleteSchedule, request, self._timeout_s)
