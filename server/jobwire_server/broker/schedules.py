"""Schedules as producers see and change them.

Each change is decided on the schedule as it was read, and written only if it still is what it was.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import replace

from jobwire_server.broker.alarms import Alarms
from jobwire_server.broker.lanes import QueueLanes
from jobwire_server.broker.new_jobs import digest_of
from jobwire_server.broker.open_queues import OpenQueues
from jobwire_server.domain.decisions.retention import retain_ended_ms
from jobwire_server.domain.decisions.routing import route_of
from jobwire_server.domain.decisions.schedules import (
    Plan,
    next_after,
)
from jobwire_server.domain.errors import (
    AlreadyExists,
    ChangedMeanwhile,
    JobwireError,
    ScheduleNotFound,
    StoreFull,
    StoreUnavailable,
    StoreUnfit,
)
from jobwire_server.domain.ids import job_id_of
from jobwire_server.domain.model import NewJob, RequestId
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.domain.records import RecordCodec
from jobwire_server.store.connection.condition import StoreCondition
from jobwire_server.store.schedules import (
    Schedule,
    ScheduleStore,
    Template,
    template_fields,
)
from jobwire_server.store.settings_cache import QueueSettingsCache
from jobwire_server.store.tokens import Tokens

DECISIONS = 100
"""How often a change is decided again because the schedule changed, or was fired, under it."""


class Schedules:
    """The schedules of all queues.

    Args:
        store: Where they are.
        open_queues: Creates the queue of a schedule.
        lanes: Know which triggers were accepted before.
        alarms: Told when a schedule is due.
        settings: Limits of queues.
        options: For jobs that are cancelled.
        new_ulid: Makes ids for jobs that are triggered.
        condition: Of the store.
        records: Stamps the jobs.
        tokens: Say where a listing goes on.
    """

    def __init__(
        self,
        store: ScheduleStore,
        open_queues: OpenQueues,
        lanes: QueueLanes,
        alarms: Alarms,
        settings: QueueSettingsCache,
        options: BrokerOptions,
        new_ulid: Callable[[], str],
        condition: StoreCondition,
        records: RecordCodec,
        tokens: Tokens,
    ) -> None:
        self._records = records
        self._tokens = tokens
        self._store = store
        self._open_queues = open_queues
        self._lanes = lanes
        self._alarms = alarms
        self._settings = settings
        self._options = options
        self._new_ulid = new_ulid
        self._condition = condition

    async def create(
        self,
        queue: str,
        schedule_id: str,
        template: Template,
        paused: bool,
        refusal: JobwireError | None = None,
    ) -> Schedule:
        """Make a schedule, and its queue; one that says the same is answered as it stands.

        Args:
            queue: Its queue.
            schedule_id: Its name there.
            template: What it says.
            paused: True to have it stand still.
            refusal: Raised unless the schedule is there and says the same.

        Raises:
            AlreadyExists: The queue has another schedule of this id.
        """
        if refusal is None:
            await self._open_queues.open(queue)
        for _ in range(DECISIONS):
            now, found = await self._store.read(queue, schedule_id)
            if found is not None:
                if _says_the_same(found.template, template):
                    return found
                raise AlreadyExists(
                    f"the queue {queue} has another schedule {schedule_id}; choose another id, or"
                    " change it with UpdateSchedule",
                    metadata={"queue": queue, "schedule_id": schedule_id},
                )
            if refusal is not None:
                raise refusal
            plan = _anchored(template.plan, now)
            fields: dict[str, str | bytes | int] = {
                **template_fields(replace(template, plan=plan)),
                "cid": secrets.token_hex(8),
                "at": now,
                "up": now,
                "paused": int(paused),
            }
            due = 0 if paused else next_after(plan, now)
            if await self._write(queue, schedule_id, "", now, due, fields):
                return await self.get(queue, schedule_id)
        raise _unsettled(queue, schedule_id)

    async def get(self, queue: str, schedule_id: str) -> Schedule:
        """Return a schedule as it stands.

        Raises:
            ScheduleNotFound: There is none.
        """
        _, found = await self._read(queue, schedule_id)
        return found

    async def page(self, queue: str, page_size: int, page_token: str) -> tuple[list[Schedule], str]:
        """Return a page of schedules by id, without their runs, and the token of the next.

        Raises:
            BadPageToken: The token is of another listing.
        """
        scope = "schedules", queue
        after = await self._tokens.read(page_token, *scope) if page_token else ""
        found, more = await self._store.page(queue, after, page_size)
        if not more:
            return found, ""
        return found, (await self._tokens.seal(*scope)).write(found[-1].schedule_id)

    async def update(
        self,
        queue: str,
        schedule_id: str,
        template: Template,
        revision: int,
        refusal: JobwireError | None = None,
    ) -> Schedule:
        """Replace what a schedule says.

        Args:
            queue: Its queue.
            schedule_id: Its name there.
            template: What it says from now on.
            revision: That it must have; 0 for any.
            refusal: Raised unless it says so already.

        Raises:
            ScheduleNotFound: There is none.
            ChangedMeanwhile: It has another revision.
        """
        for _ in range(DECISIONS):
            now, found = await self._read(queue, schedule_id)
            same = _says_the_same(found.template, template)
            if same and (found.revision == revision + 1 if revision else refusal):
                # This very call, whose answer was lost.
                return found
            if revision and found.revision != revision:
                raise ChangedMeanwhile(
                    f"the schedule {schedule_id} has revision {found.revision}, not {revision}:"
                    " read it, and make the change again",
                    metadata={"revision": str(found.revision)},
                )
            if refusal is not None:
                raise refusal
            plan = _anchored(template.plan, found.created_ms)
            fields = template_fields(replace(template, plan=plan)) | {"up": now}
            due = 0 if found.paused else next_after(plan, now)
            if await self._write(queue, schedule_id, found.standing, now, due, fields):
                return await self.get(queue, schedule_id)
        raise _unsettled(queue, schedule_id)

    async def set_paused(
        self, queue: str, schedule_id: str, paused: bool, reason: str = ""
    ) -> Schedule:
        """Stop a schedule, or let it go on with the first moment after now.

        Raises:
            ScheduleNotFound: There is none.
        """
        for _ in range(DECISIONS):
            now, found = await self._read(queue, schedule_id)
            if found.paused == paused:
                return found
            fields: dict[str, str | bytes | int] = {"paused": int(paused), "why": reason}
            due = 0 if paused else next_after(found.template.plan, now)
            if await self._write(queue, schedule_id, found.standing, now, due, fields):
                return await self.get(queue, schedule_id)
        raise _unsettled(queue, schedule_id)

    async def delete(self, queue: str, schedule_id: str) -> None:
        """Remove a schedule, if there is one."""
        await self._store.delete(queue, schedule_id)

    async def trigger(self, queue: str, schedule_id: str, request_id: str) -> str:
        """Submit a job of a schedule now; return its id, or that of the job that the request or
        the holder of its unique key stands for.

        Raises:
            ScheduleNotFound: There is none.
            AlreadyExists: The request id was used for something else.
            UniqueKeyTaken: Another job holds the unique key.
            QueueFull: The queue is at its limit.
        """
        ulid = self._new_ulid()
        request = _request(schedule_id, request_id) if request_id else None
        try:
            self._condition.check_fit()
            return await self._trigger(queue, schedule_id, ulid, request)
        except (ScheduleNotFound, StoreFull, StoreUnfit):
            if request is None:
                raise
            # It may have been accepted before, when the schedule was there and the store had room.
            job = NewJob(job_id_of(queue, ulid), queue, route_of("", {}), 0, b"", request=request)
            known = await self._lanes.of(queue).known.one(job)
            if known is None:
                raise
            if isinstance(known, JobwireError):
                raise known from None
            return known.job_id

    async def _trigger(
        self, queue: str, schedule_id: str, ulid: str, request: RequestId | None
    ) -> str:
        settings = await self._settings.get(queue)
        for _ in range(DECISIONS):
            now, found = await self._read(queue, schedule_id)
            answer = await self._store.trigger(
                found,
                ulid,
                now,
                self._records.scheduled_stamp(schedule_id, now, now, *found.template.ends(now)),
                request,
                retain_ended_ms(settings, self._options),
                settings,
            )
            if isinstance(answer, JobwireError):
                raise answer
            if answer is not None:
                for end in filter(None, found.template.ends(0)):
                    self._alarms.due_in(queue, end)
                return answer.job_id
        raise _unsettled(queue, schedule_id)

    async def _read(self, queue: str, schedule_id: str) -> tuple[int, Schedule]:
        now, found = await self._store.read(queue, schedule_id)
        if found is None:
            raise ScheduleNotFound(queue, schedule_id)
        return now, found

    async def _write(
        self,
        queue: str,
        schedule_id: str,
        standing: str,
        now_ms: int,
        due_ms: int,
        fields: dict[str, str | bytes | int],
    ) -> bool:
        written = await self._store.write(queue, schedule_id, standing, due_ms, fields)
        if written and due_ms:
            self._alarms.due_in(queue, due_ms - now_ms)
        return written


def _anchored(plan: Plan, created_ms: int) -> Plan:
    return replace(plan, anchor_ms=created_ms) if plan.every_ms and not plan.anchor_ms else plan


def _says_the_same(one: Template, other: Template) -> bool:
    return (one.spec, one.job) == (other.spec, other.job)


def _request(schedule_id: str, request_id: str) -> RequestId:
    return RequestId(request_id, digest_of(f"trigger\n{schedule_id}".encode()))


def _unsettled(queue: str, schedule_id: str) -> StoreUnavailable:
    return StoreUnavailable(
        f"the schedule {schedule_id} of {queue} changes faster than this change can be made"
    )
