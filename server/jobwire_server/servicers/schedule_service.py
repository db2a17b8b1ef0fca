"""ScheduleService: recurring jobs."""

from __future__ import annotations

import asyncio
import re

from jobwire.v1 import schedule_service_pb2
from jobwire_server.broker.router import Router
from jobwire_server.domain.errors import InvalidRequest
from jobwire_server.domain.options import Limits
from jobwire_server.servicers.checks import MAX_REASON_BYTES, Checker
from jobwire_server.servicers.schedule_spec import check_spec, to_wire
from jobwire_server.servicers.submission import JobChecks
from jobwire_server.store.schedules import Template

_SCHEDULE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class ScheduleService:
    """Converts, asks the router, and converts back."""

    def __init__(self, router: Router, limits: Limits) -> None:
        self._router = router
        self._schedules = router.schedules
        self._jobs = JobChecks(limits, router.new_jobs, router.clock.now_ms)

    async def CreateSchedule(
        self, request: schedule_service_pb2.CreateScheduleRequest, context: object
    ) -> schedule_service_pb2.CreateScheduleResponse:
        """Make a schedule."""
        checker = Checker()
        queue, schedule_id = _name(checker, request.queue, request.schedule_id)
        template = self._template(checker, queue, request.spec)
        refusal = _refusal(checker)
        made = await self._schedules.create(queue, schedule_id, template, request.paused, refusal)
        return schedule_service_pb2.CreateScheduleResponse(schedule=to_wire(made))

    async def GetSchedule(
        self, request: schedule_service_pb2.GetScheduleRequest, context: object
    ) -> schedule_service_pb2.GetScheduleResponse:
        """Return one schedule."""
        found = await self._schedules.get(*_checked_name(request.queue, request.schedule_id))
        return schedule_service_pb2.GetScheduleResponse(schedule=to_wire(found))

    async def ListSchedules(
        self, request: schedule_service_pb2.ListSchedulesRequest, context: object
    ) -> schedule_service_pb2.ListSchedulesResponse:
        """List the schedules of a queue, page by page."""
        checker = Checker()
        queue = checker.queue("queue", request.queue)
        page_size = checker.count("page_size", request.page_size, 1, 1000, 100)
        checker.raise_if_any()
        found, token = await self._schedules.page(queue, page_size, request.page_token)
        answer = schedule_service_pb2.ListSchedulesResponse(next_page_token=token)
        for schedule in found:
            answer.schedules.append(to_wire(schedule))
            # Next runs take their time; other calls have their turn meanwhile.
            await asyncio.sleep(0)
        return answer

    async def UpdateSchedule(
        self, request: schedule_service_pb2.UpdateScheduleRequest, context: object
    ) -> schedule_service_pb2.UpdateScheduleResponse:
        """Replace what a schedule says."""
        checker = Checker()
        queue, schedule_id = _name(checker, request.queue, request.schedule_id)
        template = self._template(checker, queue, request.spec)
        refusal = _refusal(checker)
        changed = await self._schedules.update(
            queue, schedule_id, template, request.revision, refusal
        )
        return schedule_service_pb2.UpdateScheduleResponse(schedule=to_wire(changed))

    async def PauseSchedule(
        self, request: schedule_service_pb2.PauseScheduleRequest, context: object
    ) -> schedule_service_pb2.PauseScheduleResponse:
        """Stop a schedule."""
        checker = Checker()
        queue, schedule_id = _name(checker, request.queue, request.schedule_id)
        reason = checker.text("reason", request.reason, MAX_REASON_BYTES)
        checker.raise_if_any()
        paused = await self._schedules.set_paused(queue, schedule_id, True, reason)
        return schedule_service_pb2.PauseScheduleResponse(schedule=to_wire(paused))

    async def ResumeSchedule(
        self, request: schedule_service_pb2.ResumeScheduleRequest, context: object
    ) -> schedule_service_pb2.ResumeScheduleResponse:
        """Let a schedule go on."""
        queue, schedule_id = _checked_name(request.queue, request.schedule_id)
        resumed = await self._schedules.set_paused(queue, schedule_id, False)
        return schedule_service_pb2.ResumeScheduleResponse(schedule=to_wire(resumed))

    async def TriggerSchedule(
        self, request: schedule_service_pb2.TriggerScheduleRequest, context: object
    ) -> schedule_service_pb2.TriggerScheduleResponse:
        """Submit a job of a schedule now."""
        checker = Checker()
        queue, schedule_id = _name(checker, request.queue, request.schedule_id)
        if request.request_id:
            checker.request_id("request_id", request.request_id)
        checker.raise_if_any()
        job_id = await self._schedules.trigger(queue, schedule_id, request.request_id)
        return schedule_service_pb2.TriggerScheduleResponse(job_id=job_id)

    async def DeleteSchedule(
        self, request: schedule_service_pb2.DeleteScheduleRequest, context: object
    ) -> schedule_service_pb2.DeleteScheduleResponse:
        """Remove a schedule."""
        await self._schedules.delete(*_checked_name(request.queue, request.schedule_id))
        return schedule_service_pb2.DeleteScheduleResponse()

    def _template(
        self, checker: Checker, queue: str, spec: schedule_service_pb2.ScheduleSpec
    ) -> Template:
        now = self._router.clock.now_ms()
        return check_spec(checker, queue, spec, self._jobs, now)


def _refusal(checker: Checker) -> InvalidRequest | None:
    """Return what holds for a schedule that does not say so already, None if nothing is wrong.

    Raises:
        InvalidRequest: Something was wrong whenever it was said.
    """
    if not checker.only_now:
        raise checker.error()
    return checker.error() if checker.violations else None


def _name(checker: Checker, queue: str, schedule_id: str) -> tuple[str, str]:
    queue = checker.queue("queue", queue)
    if not _SCHEDULE_ID.fullmatch(schedule_id):
        checker.add(
            "schedule_id",
            "must be 1 to 64 characters out of letters, digits and . _ - that begin with a letter"
            f" or a digit, not {schedule_id[:80]!r}",
        )
    return queue, schedule_id


def _checked_name(queue: str, schedule_id: str) -> tuple[str, str]:
    checker = Checker()
    name = _name(checker, queue, schedule_id)
    checker.raise_if_any()
    return name
