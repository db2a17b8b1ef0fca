"""Schedules: the router's part that keeps them and submits their jobs.

What becomes of due moments is decided by the pure operations on the schedule as it was read, and
written only if the schedule still is what it was. So it does not matter how many servers do it at
once, and which of them dies.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace

import structlog

from jobwire_server.broker.new_jobs import digest_of
from jobwire_server.broker.queue_clock import Fired
from jobwire_server.broker.queue_set import QueueSet
from jobwire_server.domain.decisions.paging import decode_token, encode_token
from jobwire_server.domain.decisions.retention import retain_ended_ms
from jobwire_server.domain.decisions.routing import route_of
from jobwire_server.domain.decisions.schedules import (
    LATE_MS,
    Plan,
    Step,
    decide,
    identity_of,
    jitter_of,
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
from jobwire_server.domain.ids import job_id_of, ulid_from
from jobwire_server.domain.model import NewJob, RequestId
from jobwire_server.domain.options import BrokerOptions
from jobwire_server.domain.records import RecordCodec
from jobwire_server.store.connection.condition import StoreCondition
from jobwire_server.store.schedules import (
    Firing,
    Schedule,
    ScheduleStore,
    Settled,
    Standing,
    Template,
    template_fields,
)
from jobwire_server.store.settings_cache import QueueSettingsCache

log = structlog.get_logger(__name__)

DECISIONS = 100
"""How often a change is decided again because the schedule changed, or was fired, under it."""
AT_ONCE = 200
"""Steps of one script call; bounds how long the store is held."""
AT_ONCE_BYTES = 4 << 20
"""Jobs of so many bytes are enough for a call, too."""
PASS_STEPS = 1_000
"""Steps of one look at a queue: what is left is due at the next."""
PASS_S = 0.1
"""How long one look decides, for the same reason: what was missed for days takes its time."""
COMPLAINT_S = 60.0
"""How often the log tells that a queue holds schedules back."""


class Schedules:
    """The schedules of all queues.

    Args:
        store: Where they are.
        queues: The queues that this server keeps.
        settings: Limits of queues.
        options: For jobs that are cancelled.
        new_ulid: Makes ids for jobs that are triggered.
        condition: Of the store.
        settled: Told how many moments were `submitted`, `skipped` or `missed`.
        records: Stamps the jobs.
    """

    def __init__(
        self,
        store: ScheduleStore,
        queues: QueueSet,
        settings: QueueSettingsCache,
        options: BrokerOptions,
        new_ulid: Callable[[], str],
        settled: Callable[[str, int], None],
        condition: StoreCondition,
        records: RecordCodec,
    ) -> None:
        self._records = records
        self._store = store
        self._queues = queues
        self._settings = settings
        self._options = options
        self._new_ulid = new_ulid
        self._complained: dict[str, float] = {}
        self._settled = settled
        self._condition = condition

    async def create(
        self,
        queue: str,
        schedule_id: str,
        template: Template,
        paused: bool,
        refusal: JobwireError | None = None,
    ) -> Schedule:
        """Makes a schedule, and its queue; one that says the same is answered as it stands.

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
            await self._queues.open(queue)
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
        """Returns a schedule as it stands.

        Raises:
            ScheduleNotFound: There is none.
        """
        _, found = await self._read(queue, schedule_id)
        return found

    async def page(self, queue: str, page_size: int, page_token: str) -> tuple[list[Schedule], str]:
        """Returns a page of schedules by id, without their runs, and the token of the next.

        Raises:
            BadPageToken: The token is of another listing.
        """
        scope = f"schedules:{queue}"
        after = str(decode_token(scope, page_token, 1)[0]) if page_token else ""
        found, more = await self._store.page(queue, after, page_size)
        return found, encode_token(scope, found[-1].schedule_id) if more else ""

    async def update(
        self,
        queue: str,
        schedule_id: str,
        template: Template,
        revision: int,
        refusal: JobwireError | None = None,
    ) -> Schedule:
        """Replaces what a schedule says.

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
        """Stops a schedule, or lets it go on with the first moment after now.

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
        """Removes a schedule, if there is one."""
        await self._store.delete(queue, schedule_id)

    async def trigger(self, queue: str, schedule_id: str, request_id: str) -> str:
        """Submits a job of a schedule now; returns its id, or that of the job that the request or
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
            known = await self._queues.lanes(queue).known.one(job)
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
                self._records.scheduled_stamp(schedule_id, now, now),
                request,
                retain_ended_ms(settings, self._options),
                settings,
            )
            if isinstance(answer, JobwireError):
                raise answer
            if answer is not None:
                return answer.job_id
        raise _unsettled(queue, schedule_id)

    async def fire_due(self, queue: str, ids: Sequence[str]) -> Fired:
        """Settles moments of schedules that are due, oldest first, as many as one look may.

        Args:
            queue: Their queue.
            ids: The schedules.
        """
        now, head, standings = await self._store.standings(queue, ids)
        batches, held_back = await self._decide(queue, [found for found in standings if found], now)
        settings = await self._settings.get(queue)
        retention_ms = retain_ended_ms(settings, self._options)
        for batch in batches:
            try:
                self._condition.check_fit()
                now, head, outcomes = await self._store.fire(
                    queue, batch, self._options.cancel_grace_ms, retention_ms, settings
                )
            except (StoreFull, StoreUnfit) as error:
                # The queue's clock goes on: it forgets jobs, which makes room.
                held_back = True
                self._complain(queue, "schedules held back", error=error.message)
                break
            self._count(batch, outcomes)
            if Settled.HELD_BACK in outcomes:
                held_back = True
                self._complain(queue, "schedules held back: the queue is at its limit")
        return Fired(head, now, held_back)

    async def _decide(
        self, queue: str, standings: Sequence[Standing], now_ms: int
    ) -> tuple[list[list[Firing]], bool]:
        """Returns steps in batches for one script call each, and True if there is a schedule that
        can't be decided.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + PASS_S
        batches: list[list[Firing]] = [[]]
        broken = False
        steps_left, bytes_left = PASS_STEPS, AT_ONCE_BYTES
        for standing in standings:
            if standing.due_ms > now_ms:
                continue  # Another server was faster.
            if steps_left <= 0 or loop.time() > until:
                break
            try:
                steps = decide(standing.plan, standing.due_ms, now_ms)
            except Exception as error:
                # The others go on. A release that no longer knows its time zone, for example.
                broken = True
                self._complain(
                    queue,
                    "schedule not decided",
                    schedule_id=standing.schedule_id,
                    error=f"{type(error).__name__}: {error}",
                )
                continue
            for step in steps:
                if len(batches[-1]) >= AT_ONCE or bytes_left <= 0:
                    batches.append([])
                    bytes_left = AT_ONCE_BYTES
                batches[-1].append(self._firing(queue, standing, step, now_ms))
                bytes_left -= standing.job_bytes
            steps_left -= len(steps)
            if now_ms - standing.due_ms > LATE_MS:
                # Much may have been missed; others have their turn meanwhile.
                await asyncio.sleep(0)
        return [batch for batch in batches if batch], broken

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
            self._queues.due_in(queue, due_ms - now_ms)
        return written

    def _firing(self, queue: str, standing: Standing, step: Step, now_ms: int) -> Firing:
        schedule_id, creation_id, version, _, plan, _ = standing
        if not step.run_ms:
            return Firing(schedule_id, version, step)
        identity = identity_of(queue, schedule_id, creation_id, step.run_ms)
        ready = step.run_ms + jitter_of(plan, identity)
        return Firing(
            schedule_id,
            version,
            step,
            ulid_from(step.run_ms, identity),
            ready if ready > now_ms else 0,
            self._records.scheduled_stamp(schedule_id, step.run_ms, now_ms),
        )

    def _count(self, firings: Sequence[Firing], outcomes: Sequence[Settled]) -> None:
        submitted = skipped = missed = 0
        for firing, outcome in zip(firings, outcomes, strict=True):
            submitted += outcome is Settled.SUBMITTED
            skipped += outcome is Settled.SKIPPED
            if outcome in (Settled.SUBMITTED, Settled.PASSED, Settled.SKIPPED):
                missed += firing.step.missed
        for name, count in (("submitted", submitted), ("skipped", skipped), ("missed", missed)):
            if count:
                self._settled(name, count)

    def _complain(self, queue: str, words: str, **facts: str) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._complained.get(queue, -COMPLAINT_S) >= COMPLAINT_S:
            self._complained[queue] = now
            log.warning(words, queue=queue, **facts)


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
