"""The worker's core: jobs, leases, capacity. It knows no wire; a transport feeds it, and its slots
run handlers.

At thousands of short jobs a second the bookkeeping of each job dominates. So a job gets no task, no
timer and no log line unless it needs one: sync handlers pass through a pool in batches, and only
async handlers and those in processes have a task.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Sequence

from jobwire.errors import CallError, InvalidRequest, LeaseLost, NotFound
from jobwire.v1.worker_service_pb2 import (
    Assignment,
    Cancelled,
    CancelNotice,
    Completion,
    LeaseRef,
    WorkerSpec,
)
from jobwire.worker.held import Held, Stage, WorkerStats
from jobwire.worker.held_jobs import HeldJobs
from jobwire.worker.outcomes import refused_result, without_details
from jobwire.worker.prefetch import LONGEST_WAIT_S, TICK_S, Prefetch
from jobwire.worker.processes import ProcessPool
from jobwire.worker.reports import Reports
from jobwire.worker.settings import WorkerSettings
from jobwire.worker.slots import Slots
from jobwire.worker.transport.base import MAX_LEASES, Transport

log = logging.getLogger("jobwire.worker")

# After the signal to stop, handlers get this long to unwind before their jobs are given back.
UNWIND_S = 5.0
# How long the end of the worker waits for the receipts of its last completions.
SETTLE_S = 5.0


class Core:
    """Runs what is assigned.

    Args:
        settings: What the worker is and serves.
        transport: Carries reports and completions.
        processes: For handlers in processes; ended with the core.

    Attributes:
        draining: Set once it takes no more jobs.
        drain_reason: Why, in the words of whoever asked.
        drain_within_s: How long it may take, in seconds; None: no limit.
    """

    def __init__(
        self, settings: WorkerSettings, transport: Transport, processes: ProcessPool
    ) -> None:
        self._spec = settings.spec
        self._concurrency = settings.spec.concurrency
        self._operations = settings.operations
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._jobs = HeldJobs()
        self._prefetch = Prefetch(settings.prefetch, MAX_LEASES - self._concurrency)
        self._reports = Reports(transport)
        self._changed = asyncio.Event()
        self._slots = Slots(
            settings, self._jobs, self._reports, transport, processes, self._changed
        )
        self._ticker: asyncio.TimerHandle | None = None
        self._ended_before = 0
        self.draining = asyncio.Event()
        self.drain_reason = ""
        self.drain_within_s: float | None = None

    @property
    def stats(self) -> WorkerStats:
        """Its counters."""
        return self._jobs.stats

    @property
    def stuck(self) -> int:
        """How many handlers keep running, and their slots, although they were told to stop."""
        return self._slots.stuck.count

    # What a transport sees.

    @property
    def spec(self) -> WorkerSpec:
        """What the worker is and serves."""
        return self._spec

    @property
    def capacity(self) -> int:
        """How many jobs it may hold at once now; none while it drains."""
        if self.draining.is_set():
            return 0
        return max(0, self._concurrency - self._jobs.void) + self._prefetch.jobs

    def free_slots(self) -> int:
        """Return how many more jobs it can take; one counts until its completion is recorded."""
        return max(0, self.capacity - len(self._jobs.by_id))

    async def wait_for_free_slots(self) -> int:
        """Wait until it can take jobs, and return how many."""
        await self._until(lambda: self.free_slots() > 0)
        return self.free_slots()

    def leases(self) -> Sequence[LeaseRef]:
        """Return the leases that it holds; those of running jobs first."""
        return self._jobs.leases()

    def assign(self, assignments: Iterable[Assignment]) -> None:
        """Take jobs, and start as many as there are free handlers."""
        jobs, now = self._jobs, self._loop.time()
        for assignment in assignments:
            spec = assignment.spec
            held = Held(assignment, self._operations.get(spec.operation), now, self._reports)
            known = jobs.by_id.get(held.job_id)
            if known is not None:
                if known.fencing_token >= held.fencing_token:
                    continue
                # The broker took the job back and hands it out anew: the old lease is lost.
                self._slots.lose(known)
            jobs.by_id[held.job_id] = held
            jobs.assigned += 1
            # Most jobs have neither, and at thousands a second every call counts.
            if spec.HasField("execution_timeout") or spec.HasField("deadline"):
                self._slots.limit(held)
            if self.draining.is_set():
                self._slots.release_unstarted(held)
            else:
                jobs.waiting.append(held)
        self._slots.fill()
        if self._ticker is None and self._prefetch.follows_speed:
            self._ticker = self._loop.call_later(TICK_S, self._tick)

    def cancel(self, notice: CancelNotice) -> None:
        """Stop a handler whose job was cancelled; a job that waits for one never starts."""
        held = self._jobs.find(notice.job_id, notice.fencing_token)
        if held is None or held.stage is Stage.ENDED or held.signal.is_set:
            return
        log.info("%s is cancelled%s", held.job_id, _why(notice.reason))
        if held.stage is Stage.WAITING:
            self._slots.say(held, held.completion(cancelled=Cancelled()))
        else:
            self._slots.stop(held, "cancelled", notice.reason)

    def lose(self, leases: Iterable[LeaseRef]) -> None:
        """Stop the handlers of leases that are known to be lost."""
        for lease in leases:
            held = self._jobs.find(lease.job_id, lease.fencing_token)
            # For one that has ended, the answer to its completion says it.
            if held is not None and held.stage is not Stage.ENDED:
                log.warning("the lease on %s is lost", lease.job_id)
                self._slots.lose(held)
        self._slots.fill()

    def lose_all(self) -> None:
        """Stop all handlers: the leases of this worker are gone."""
        self.lose(self.leases())

    def saved(self, lease: LeaseRef, error: CallError | None) -> None:
        """Note that the broker has a checkpoint, or refused it."""
        held = self._jobs.find(lease.job_id, lease.fencing_token)
        if held is not None:
            self._reports.saved(held, error)

    def recorded(self, completions: Iterable[Completion]) -> None:
        """Let go of jobs whose completions are in the broker's store."""
        self._jobs.recorded(completions)
        self._slots.fill()
        self._changed.set()

    def refused(self, completion: Completion, error: CallError) -> None:
        """Drop a refused completion, or say instead that its result or its details were wrong."""
        held = self._jobs.find(completion.job_id, completion.fencing_token)
        if held is None:
            return
        job_id = completion.job_id
        if isinstance(error, InvalidRequest) and completion.HasField("success"):
            log.error("%s: the broker refused the result: %s", job_id, error)
            self._transport.complete([held.completion(failure=refused_result(str(error)))])
            return
        if isinstance(error, InvalidRequest) and completion.failure.HasField("details"):
            log.error("%s: the broker refused the details of the failure: %s", job_id, error)
            self._transport.complete([held.completion(failure=without_details(completion.failure))])
            return
        if isinstance(error, LeaseLost | NotFound):
            self._jobs.lost += 1
            log.warning("%s ended after its lease was lost; the outcome is dropped", job_id)
        else:
            # Its lease is no longer renewed, so the broker takes the job back.
            log.error("the outcome of %s could not be recorded: %s", job_id, error)
        self._jobs.forget(held)
        self._slots.fill()
        self._changed.set()

    def drain(self, why: str, until_s: float | None = None) -> None:
        """Take no more jobs and give back those not begun; `draining` tells the owner to stop."""
        if self.draining.is_set():
            return
        self.drain_reason, self.drain_within_s = why, until_s
        self.draining.set()
        self._transport.capacity_changed()
        for held in self._jobs.unstarted():
            self._slots.release_unstarted(held)
        self._changed.set()

    # Time.

    def _tick(self) -> None:
        """Adjust the prefetch to the speed, and give back jobs that wait too long."""
        self._ticker = None
        ended, self._ended_before = self._slots.ended - self._ended_before, self._slots.ended
        if self.draining.is_set():
            return
        changed = self._prefetch.follow(ended)
        late = self._loop.time() - LONGEST_WAIT_S
        stale = [h for h in self._jobs.waiting if h.stage is Stage.WAITING and h.came_at < late]
        if stale:
            self._prefetch.stop()
            for held in stale:
                self._slots.release_unstarted(held)
        if changed or stale:
            self._transport.capacity_changed()
        if self._jobs.by_id or self._prefetch.jobs:
            self._ticker = self._loop.call_later(TICK_S, self._tick)

    async def _until(self, holds: Callable[[], bool]) -> None:
        while not holds():
            self._changed.clear()
            await self._changed.wait()

    # The end.

    async def wait_until_idle(self) -> None:
        """Wait until no handler runs and every completion is answered."""
        await self._until(lambda: not self._jobs.running and not self._jobs.by_id)

    async def finish(self, grace_s: float | None, hurry: asyncio.Event, *, answers: bool) -> None:
        """Let handlers finish, then stop those that have not and give their jobs back.

        Args:
            grace_s: How long they may keep running, in seconds; None: until they end.
            hurry: Ends the grace when set.
            answers: False: the conversation is over, so no receipts will come.
        """
        self.drain("the worker stops")
        hurried = self._loop.create_task(hurry.wait())
        hurried.add_done_callback(lambda _: self._changed.set())
        try:
            await self._wait(lambda: not self._jobs.running or hurry.is_set(), grace_s)
            self._slots.stop_all()
            await self._wait(lambda: not self._jobs.running, UNWIND_S)
            self._slots.give_back_stuck()
            if answers:
                await self._wait(lambda: not self._jobs.by_id, SETTLE_S)
        finally:
            hurried.cancel()
            await asyncio.wait({hurried})
            if self._ticker is not None:
                self._ticker.cancel()
            await self._slots.close()

    async def _wait(self, holds: Callable[[], bool], timeout_s: float | None) -> None:
        """Wait for a condition, for at most `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._until(holds)
        except TimeoutError:
            return


def _why(reason: str) -> str:
    return f": {reason}" if reason else ""
