"""Producers and watchers of a run with the async client: every call and answer is written down."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import Any

from jobwire import (
    AsyncBatchError,
    AsyncClient,
    CallError,
    Job,
    NewJob,
    OutputChunk,
    RetryPolicy,
    UniqueKeyTaken,
    WrongState,
)
from jobwire.ids import new_job_id

from tests.faults.history import Journal
from tests.faults.wishes import Wish, draw

EXPECTED = ("DEADLINE_EXCEEDED", "UNAVAILABLE", "CANCELLED", "RESOURCE_EXHAUSTED")
"""What calls may end with under faults; all else is written down as `wrong`."""
REPEAT_AFTER_S = (0.5, 15.0)
MOST_WATCHES = 40


def new_job(wish: Wish, *, job_id: str | None, request_id: str | None) -> NewJob:
    """Says to the SDK what a wish says; moments are counted from now."""

    def moment(in_s: float) -> datetime | None:
        return datetime.now(UTC) + timedelta(seconds=in_s) if in_s else None

    return NewJob(
        operation=wish.operation,
        payload=wish.payload,
        queue=wish.queue,
        priority=wish.priority,
        delay=wish.delay_s or None,
        expires_at=moment(wish.expires_s),
        deadline=moment(wish.deadline_s),
        execution_timeout=wish.timeout_s or None,
        retry=RetryPolicy(max_attempts=wish.max_attempts or 10, initial_backoff=0.2, max_backoff=1),
        unique_key=wish.unique_key or None,
        job_id=job_id,
        request_id=request_id,
    )


def options(job: NewJob) -> dict[str, Any]:
    """The arguments of `submit` for a job."""
    names = (name for name in NewJob.__dataclass_fields__ if name not in ("operation", "payload"))
    return {name: getattr(job, name) for name in names}


class Producers:
    """Tasks around one client.

    Args:
        client: Shared by all.
        journal: Takes what they do.
        rng: Decides what they do.
        pause_s: The mean pause of each producer.
        block_ms: The longest that a handler holds its loop.
    """

    def __init__(
        self,
        client: AsyncClient,
        journal: Journal,
        rng: random.Random,
        pause_s: float,
        block_ms: int,
    ) -> None:
        self.client = client
        self.journal = journal
        self.rng = rng
        self.pause_s = pause_s
        self.block_ms = block_ms
        self.stopping = asyncio.Event()
        self._known: deque[str] = deque(maxlen=200)
        self._watches: set[asyncio.Task[None]] = set()
        self._repeats: set[asyncio.Task[None]] = set()
        self._watch_number = 0

    async def run(self) -> None:
        """Submits, watches, cancels and redrives until told to stop; then until watches ended."""
        async with asyncio.TaskGroup() as group:
            for work in (*[self._singles] * 6, *[self._batches] * 2, self._meddle):
                group.create_task(work())
        for task in [*self._repeats]:
            task.cancel()
        await asyncio.gather(*self._repeats, return_exceptions=True)
        await asyncio.gather(*self._watches)

    async def _pause(self, mean_s: float) -> bool:
        """Waits a while; returns False once it is time to stop."""
        try:
            async with asyncio.timeout(self.rng.uniform(0, 2 * mean_s)):
                await self.stopping.wait()
        except TimeoutError:
            pass
        return not self.stopping.is_set()

    def _draw(self) -> tuple[str, Wish, NewJob]:
        """A job, its key in the history, and the job as the SDK takes it."""
        wish = draw(self.rng, block_ms=self.block_ms)
        by_request = self.rng.random() < 0.3
        job_id = None if by_request else new_job_id(wish.queue)
        request_id = f"r-{self.rng.getrandbits(64):016x}" if by_request else None
        key = f"request:{wish.queue}:{request_id}" if by_request else str(job_id)
        return key, wish, new_job(wish, job_id=job_id, request_id=request_id)

    async def _singles(self) -> None:
        while await self._pause(self.pause_s * 4):
            key, wish, job = self._draw()
            self.journal.write("submit", key=key, wish=wish.facts())
            await self._submit(key, job)
            if self.rng.random() < 0.2:
                self._later(self._repeat(key, job))

    async def _submit(self, key: str, job: NewJob) -> None:
        try:
            handle = await self.client.submit(job.operation, job.payload, **options(job))
        except CallError as error:
            self._refused("refused", error, key=key)
            return
        self.journal.write("accepted", key=key, job=handle.id, existed=handle.existed)
        self._accepted(handle.id)

    async def _repeat(self, key: str, job: NewJob) -> None:
        """Says the same again later: the deadline may have passed by then."""
        await asyncio.sleep(self.rng.uniform(*REPEAT_AFTER_S))
        await self._submit(key, job)

    async def _batches(self) -> None:
        while await self._pause(self.pause_s * 10):
            drawn = [self._draw() for _ in range(self.rng.randrange(2, 25))]
            for key, wish, _ in drawn:
                self.journal.write("submit", key=key, wish=wish.facts())
            try:
                outcomes: Any = await self.client.submit_many([job for _, _, job in drawn])
            except AsyncBatchError as error:
                outcomes = error.outcomes
            except CallError as error:
                outcomes = [error] * len(drawn)
            for (key, _, _), outcome in zip(drawn, outcomes, strict=True):
                if isinstance(outcome, CallError):
                    self._refused("refused", outcome, key=key)
                    continue
                self.journal.write("accepted", key=key, job=outcome.id, existed=outcome.existed)
                self._accepted(outcome.id)

    def _accepted(self, job_id: str) -> None:
        self._known.append(job_id)
        if self.rng.random() < 0.2 and len(self._watches) < MOST_WATCHES:
            self._watch_number += 1
            self._later(self._watch(job_id, self._watch_number), self._watches)

    def _later(self, work: Any, tasks: set[asyncio.Task[None]] | None = None) -> None:
        task = asyncio.create_task(work)
        kept = self._repeats if tasks is None else tasks
        kept.add(task)
        task.add_done_callback(kept.discard)

    async def _meddle(self) -> None:
        """Cancels some jobs, whatever their state, and puts some that have ended back."""
        while await self._pause(self.pause_s * 3):
            if not self._known:
                continue
            job_id = self.rng.choice(self._known)
            what = self.rng.choice(("cancel", "redrive"))
            self.journal.write(what, job=job_id)
            try:
                if what == "cancel":
                    await self.client.cancel(job_id, "meddled")
                else:
                    await self.client.retry_job(job_id, "meddled")
            except (WrongState, UniqueKeyTaken):
                continue
            except CallError as error:
                self._refused(f"{what}-refused", error, job=job_id)

    async def _watch(self, job_id: str, number: int) -> None:
        facts = {"job": job_id, "watch": number}
        with_output = self.rng.random() < 0.7
        error = ""
        try:
            watch: Any = self.client.job(job_id).watch(output=with_output)  # type: ignore[call-overload]
            async with aclosing(watch):
                async for event in watch:
                    self._seen(event, facts)
        except CallError as raised:
            error = f"{raised.code.name} {raised}"
        self.journal.write("watch-end", **facts, with_output=with_output, error=error)

    def _seen(self, event: Job | OutputChunk, facts: dict[str, Any]) -> None:
        if isinstance(event, OutputChunk):
            self.journal.write(
                *("output",), **facts, attempt=event.attempt, offset=event.offset, text=event.text
            )
            return
        self.journal.write(
            "seen",
            **facts,
            state=event.state.value,
            revision=event.revision,
            token=event.fencing_token,
            redrives=event.last_redrive.number if event.last_redrive else 0,
        )

    def _refused(self, what: str, error: CallError, **facts: Any) -> None:
        self.journal.write(
            *(what,), **facts, code=error.code.name, reason=error.reason, text=str(error)[:300]
        )
