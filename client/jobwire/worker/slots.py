"""The worker's slots: which jobs run in them, how handlers are stopped, and what they end with."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence

from jobwire._stop import StopReason
from jobwire.v1.worker_service_pb2 import Completion, Released
from jobwire.worker.completions import Completions
from jobwire.worker.held import Held, Stage
from jobwire.worker.held_jobs import HeldJobs
from jobwire.worker.limits import end_of, words_for
from jobwire.worker.processes import ProcessPool
from jobwire.worker.reports import Reports
from jobwire.worker.runner import Outcome, Runner
from jobwire.worker.settings import WorkerSettings
from jobwire.worker.stuck import STUCK_AFTER_S, Stuck
from jobwire.worker.transport.base import MAX_LEASES, Transport

log = logging.getLogger("jobwire.worker")


class Slots:
    """Gives jobs that wait to handlers as these become free.

    Args:
        settings: What the worker is and serves.
        jobs: All jobs in its hands.
        reports: What their handlers say before they end.
        transport: Carries completions.
        processes: For handlers in processes; ended with the slots.
        changed: Set when a job ends or is let go.

    Attributes:
        stuck: Handlers that keep running although they were told to stop.
        ended: How many handlers have ended.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        jobs: HeldJobs,
        reports: Reports,
        transport: Transport,
        processes: ProcessPool,
        changed: asyncio.Event,
    ) -> None:
        self._concurrency = settings.spec.concurrency
        self._jobs = jobs
        self._reports = reports
        self._transport = transport
        self._changed = changed
        self._growth = settings.growth
        self._loop = asyncio.get_running_loop()
        self._completions = Completions(settings.on_error)
        most_running = self._concurrency + settings.max_abandoned
        self._runner = Runner(most_running, self._end_all, processes)
        self.stuck = Stuck(self._concurrency, settings.max_abandoned)
        self._most_unrecorded = max(1_000, MAX_LEASES - self._concurrency)
        self.ended = 0

    def fill(self) -> None:
        """Start waiting jobs as far as there are free handlers."""
        jobs, starting = self._jobs, list[Held]()
        while (
            jobs.waiting
            and len(jobs.running) < self._concurrency
            # Starts nothing more while the broker records nothing.
            and jobs.unrecorded < self._most_unrecorded
        ):
            held = jobs.waiting.popleft()
            if held.void or held.stage is not Stage.WAITING:
                continue
            held.stage = Stage.RUNNING
            jobs.running.add(held)
            starting.append(held)
        if starting:
            now = self._loop.time()
            for held in starting:
                held.started_at = now
            self._runner.start(starting)

    def _end_all(self, ended: Sequence[tuple[Held, Outcome]]) -> None:
        """Take what handlers made of their jobs."""
        jobs, completions = self._jobs, list[Completion]()
        self._completions.note(ended)
        for held, outcome in ended:
            if held.stop_timer is not None and self.stuck.ended(held):
                continue  # its slot went to another long ago
            jobs.running.discard(held)
            if held.void:
                jobs.void -= 1
                self._transport.capacity_changed()
                continue
            if held.has_spoken:
                self._reports.finish(held)
            held.stage = Stage.ENDED
            completions.append(self._completions.of(held, outcome))
        self.ended += len(ended)
        if self._growth is not None:
            self._growth.jobs_ended(len(ended))
        self._complete(completions)
        self.fill()

    def say(self, held: Held, completion: Completion) -> None:
        """End a job that no handler has, or any more."""
        held.stage = Stage.ENDED
        self._complete([completion])

    def _complete(self, completions: Sequence[Completion]) -> None:
        self._jobs.unrecorded += len(completions)
        self._transport.complete(completions)
        self._changed.set()

    def lose(self, held: Held) -> None:
        """Let go of a job whose lease is lost, and stop its handler."""
        self._jobs.lost += 1
        self._jobs.forget(held)
        held.void = True
        self._reports.drop(held)
        if held.stage is Stage.RUNNING:
            # Until it heeds the signal it occupies a slot that the broker counts as free.
            self._jobs.void += 1
            self._transport.capacity_changed()
            self.stop(held, "lease_lost")
        self._changed.set()

    def stop(self, held: Held, reason: StopReason, message: str = "") -> None:
        """Tell a handler to stop, and check later whether it did."""
        self._runner.stop(held, reason, message)
        if held.stop_timer is None and reason != "shutdown":
            held.stop_timer = self._loop.call_later(STUCK_AFTER_S, self._look_if_stuck, held)

    def stop_all(self) -> None:
        """Tell all handlers to stop, as the worker ends."""
        for held in list(self._jobs.running):
            self._runner.stop(held, "shutdown")

    def _look_if_stuck(self, held: Held) -> None:
        if held not in self._jobs.running:
            return
        may_abandon = self.stuck.found(held)
        if held.void and may_abandon:
            # Another handler gets its slot; this one is left alone.
            self.stuck.abandon(held)
            self._jobs.running.discard(held)
            self._jobs.void -= 1
            self.fill()
        else:
            held.stop_timer = self._loop.call_later(STUCK_AFTER_S, self._look_if_stuck, held)
        self._transport.capacity_changed()

    def release_unstarted(self, held: Held) -> None:
        """Give back a job whose handler has not begun."""
        released = Released(not_started=True, reason="the worker takes no more jobs")
        self.say(held, held.completion(released=released))

    def limit(self, held: Held) -> None:
        """Start the timer of a job that has an execution timeout or a deadline."""
        end = end_of(held.assignment.spec, time.time())
        if end is not None:
            held.ends_at, reason = end
            wait_s = max(0.0, held.ends_at - time.time())
            held.end_timer = self._loop.call_later(wait_s, self._overrun, held, reason)

    def _overrun(self, held: Held, reason: StopReason) -> None:
        """Stop a handler whose time is over; the broker takes the job back by itself."""
        if held.void or held.stage is Stage.ENDED or held.signal.is_set:
            return
        if held.stage is Stage.WAITING:
            self.release_unstarted(held)
            return
        words = words_for(reason, held.assignment.spec)
        log.warning("%s is stopped: %s", held.job_id, words)
        self.stop(held, reason, words)

    def give_back_stuck(self) -> None:
        """Give back the jobs whose handlers do not stop at the worker's end."""
        stuck = [held for held in self._jobs.running if not held.void]
        if not stuck:
            return
        log.warning("%d handlers did not stop; their jobs are given back", len(stuck))
        released = Released(reason="the worker shut down before the handler stopped")
        for held in stuck:
            held.void = True
            self._reports.drop(held)
            self._jobs.void += 1
            self.say(held, held.completion(released=released))

    async def close(self) -> None:
        """End what runs, as far as it can be ended."""
        self.stuck.close(self._jobs.running)
        self._completions.close()
        await self._runner.close()
