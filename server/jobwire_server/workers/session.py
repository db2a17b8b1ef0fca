"""A worker's session: the state of one stream, free of the stream itself.

The reader gives it frames (`receive`), the writer takes frames of what is `outgoing`, the
dispatcher fills its demand, and `Streams` looks at it now and then (`look`). Whoever finds that it
is over sets `ended`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from time import monotonic

from jobwire_server.domain.background import settle
from jobwire_server.domain.errors import (
    JobwireError,
    ServerDraining,
    StoreUnavailable,
)
from jobwire_server.domain.ids import job_id_of, job_ids_in
from jobwire_server.domain.model import (
    Assignment,
    CancelNotice,
    LeaseRef,
)
from jobwire_server.workers.broker_parts import Attempts, Reports
from jobwire_server.workers.frame_recorder import FrameRecorder
from jobwire_server.workers.frames import (
    Attach,
    DrainNotice,
    FrameIn,
)
from jobwire_server.workers.held_leases import HeldLeases
from jobwire_server.workers.known_workers import KnownWorkers
from jobwire_server.workers.outgoing import Outgoing
from jobwire_server.workers.session_news import SessionNews, Told
from jobwire_server.workers.session_times import SessionTimes
from jobwire_server.workers.stream_demand import StreamDemand


class WorkerSession:
    """One attached stream.

    Args:
        attach: The worker's first words.
        name: Of this session; unique over all servers.
        since_ms: Since when it counts, by the store's clock.
        lease_ms: The lease of its jobs.
        times: Its clockwork.
        attempts: End attempts, and give back jobs that did not reach the worker.
        reports: Record progress, and renew leases.
        known: Records the worker's wish to take jobs or not.
    """

    def __init__(
        self,
        attach: Attach,
        name: str,
        since_ms: int,
        lease_ms: int,
        times: SessionTimes,
        attempts: Attempts,
        reports: Reports,
        known: KnownWorkers,
    ) -> None:
        self.attach = attach
        self.worker_id = attach.spec.worker_id
        self.name = name
        self.since_ms = since_ms
        self.lease_ms = lease_ms
        self.times = times
        self._attempts = attempts
        self._known = known
        self.leases = HeldLeases(attach.credit_bytes)
        self.stuck = 0
        self.credits = attach.credits
        self.outgoing = Outgoing(self.leases, times.heartbeat_s)
        self.demand = StreamDemand(self, attach.spec, lease_ms, attach.credits)
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the stream is over; with an error where the worker should learn of one."""
        self.release: asyncio.Task[None] | None = None
        """What settles the session once it is over."""
        self.detached = False
        self.stood_still = False
        """It was ended for the worker's silence, though its connection held."""
        self._recorder = FrameRecorder(self, self.outgoing, attempts, reports)
        now = monotonic()
        self.heard_at = now
        self._born_at = now
        self._drain_until: float | None = None
        self._until_idle = False
        self.assigned = 0
        self.told = Told()

    @property
    def is_writing(self) -> bool:
        """True while a frame is on its way to the worker's buffers."""
        return self.outgoing.writing_since is not None

    # ------------------------------------------------------------ to the worker

    def assign(self, assignments: list[Assignment]) -> bool:
        """Put claimed jobs on their way; return False if the stream is over."""
        if self.ended.done() or self.demand.closed:
            return False
        surplus = len(self.leases) + len(assignments) - self.credits
        if surplus > 0:
            # Credits were taken away while the claim was under way.
            assignments = self._send_back(assignments, max(0, len(assignments) - surplus))
        fitting = self.leases.bytes.take(assignments, bool(self.leases))
        if fitting < len(assignments):
            assignments = self._send_back(assignments, fitting)
        self.leases.assign(assignments, self.times.claim_timeout_s)
        self.assigned += len(assignments)
        self.outgoing.assign(assignments)
        return True

    def _send_back(self, assignments: list[Assignment], at: int) -> list[Assignment]:
        """Return those from `at` on to the queue, and the others to the caller."""
        self._attempts.give_back(self.worker_id, assignments[at:])
        self.demand.unreserve(len(assignments) - at)
        return assignments[:at]

    def cancel(self, notice: CancelNotice) -> None:
        """Tell the worker to stop a job, once for each lease."""
        if self.leases.cancel(notice.job_id, notice.fencing_token):
            self.outgoing.cancel(notice)

    def lose(self, job_id: str, fencing_token: int) -> None:
        """Tell the worker that a job is no longer its own."""
        if self.leases.holds(job_id, fencing_token):
            self.forget(job_id)
            self.outgoing.lose(LeaseRef(job_id, fencing_token))

    def drain(
        self, deadline_s: float, now_ms: int, *, leave: bool, reason: str, until_idle: bool = False
    ) -> None:
        """Ask the worker to leave this stream; it gets no more jobs here.

        Args:
            deadline_s: When the stream is ended at the latest.
            now_ms: The store's time.
            leave: True if the worker is to end, not only the stream.
            reason: For people.
            until_idle: True to end the stream as soon as the worker holds no job.
        """
        self.demand.closed = True
        self._until_idle = self._until_idle or until_idle
        if self._drain_until is None and not self.ended.done():
            self._drain_until = monotonic() + deadline_s
            deadline_ms = now_ms + round(deadline_s * 1000)
            self.outgoing.drain(DrainNotice(deadline_ms, leave, reason))

    def end(self, error: JobwireError | None = None) -> None:
        """End the stream; harmless if it has ended."""
        self.demand.closed = True
        settle(self.ended, error)
        self.outgoing.wake()

    def release_by(self, settling: asyncio.Task[None]) -> None:
        """The session is over, and a task settles it."""
        self.release = settling

    # ---------------------------------------------------------- from the worker

    async def receive(self, frame: FrameIn) -> None:
        """Act on a frame; wait where the worker is ahead of the store or of its own reading."""
        # While this side takes its time, the other one is not silent.
        self.heard_at = float("inf")
        try:
            for ack in frame.acks:
                if not self.leases.acknowledge(ack.job_id, ack.fencing_token):
                    # Given back already: the worker must not run it.
                    self.outgoing.lose(ack)
            if frame.received:
                self.leases.have_arrived(frame.received)
            if (frame.acks or frame.received) and self.demand.suspended_at is not None:
                self.demand.trust()
            if frame.stuck is not None:
                self.stuck = frame.stuck
            if frame.credits is not None:
                more, self.credits = frame.credits - self.credits, frame.credits
                self.demand.unreserve(more)
            if frame.credit_bytes is not None:
                self.leases.bytes.change(frame.credit_bytes)
                # What did not fit before may fit now.
                self.demand.unreserve(0)
            if frame.told is not None:
                # With the next sign of life, however often it changes.
                self.told.metadata(frame.told)
            if frame.status is not None:
                await self._known.set_status(self.worker_id, frame.status)
                self.demand.apply_status(frame.status)
            if frame.reports or frame.completions or frame.refused:
                await self._take_in(frame)
            await self.outgoing.room()
            if frame.detach:
                self.detached = True
                await self._recorder.finish()
                self.end()
        finally:
            self.heard_at = monotonic()

    async def _take_in(self, frame: FrameIn) -> None:
        freed = 0
        for job_id, ended in zip(job_ids_in(frame.completions), frame.completions, strict=True):
            freed += self.leases.let_go(job_id, ended.fencing_token)
        if freed:
            self.demand.unreserve(freed)
        for report in frame.reports:
            self.leases.has_arrived(job_id_of(report.queue, report.ulid), report.fencing_token)
        for refused in frame.refused:
            # Wrong as it is, it shows that the assignment has arrived.
            self.leases.has_arrived(refused.job_id, refused.fencing_token)
        await self._recorder.take(frame)

    def forget(self, job_id: str, fencing_token: int | None = None) -> None:
        """Free the credit of a job that the worker no longer holds."""
        if self.leases.let_go(job_id, fencing_token):
            self.demand.unreserve(1)

    def keep(self, job_id: str, fencing_token: int) -> None:
        """Count in a job that the worker holds already.

        It named the job when it attached, or its completion was refused.
        """
        if not self.ended.done() and self.leases.keep(job_id, fencing_token):
            self.demand.count_in()

    # ------------------------------------------------------------ now and then

    def hear(self, arrived: Iterable[tuple[str, int]]) -> None:
        """The worker lives, as a call beside its stream tells: what holds the stream can't speak.

        Args:
            arrived: Ids and fencing tokens of jobs that it has, whether acknowledged or not.
        """
        self.heard_at = max(self.heard_at, monotonic())
        for job_id, fencing_token in arrived:
            self.leases.has_arrived(job_id, fencing_token)

    @property
    def renewable(self) -> bool:
        """True while the worker was heard of lately enough for its leases to be renewed."""
        silence = monotonic() - self.heard_at
        return not self.ended.done() and silence <= self.times.silence_s

    def look(self, now_ms: int) -> None:
        """Do what time asks for: overdue acknowledgements, silence, deafness, age."""
        now = monotonic()
        limit = self.times.silence_s
        self._give_back_overdue(now)
        if now - self.heard_at > limit:
            self.stood_still = True
            self.end(StoreUnavailable(f"nothing was heard from the worker for {limit:.1f} s"))
        elif self.outgoing.writing_since is not None and now - self.outgoing.writing_since > limit:
            self.end(StoreUnavailable(f"the worker has not read its stream for {limit:.1f} s"))
        elif self.demand.suspended_at is not None and now - self.demand.suspended_at > limit:
            self.end(StoreUnavailable("assignments are not acknowledged"))
        elif self._drain_until is not None:
            busy = self.leases or len(self._recorder) or self.outgoing
            if self._until_idle and not busy:
                self.end(ServerDraining())
            elif now > self._drain_until:
                self.end(StoreUnavailable("the stream was to be left by its deadline"))
        elif now - self._born_at > self.times.age_s:
            self.drain(
                self.times.drain_s, now_ms, leave=False, reason="the stream has reached its age"
            )

    def _give_back_overdue(self, now: float) -> None:
        overdue = self.leases.overdue()
        if not overdue:
            return
        # No more jobs for a worker that does not take those it has; an acknowledgement shows that
        # it lives.
        self.demand.suspend(now)
        # What the stream has not taken yet is not sent at all.
        self.outgoing.call_back({assignment.job_id for assignment in overdue})
        for assignment in overdue:
            self.lose(assignment.job_id, assignment.fencing_token)
        # Of no budget, for the stream holds: the worker stands still, and has not died of them.
        self._attempts.give_back(self.worker_id, overdue)

    def abandon(self) -> tuple[list[Assignment], list[Assignment]]:
        """Return what was never acknowledged, for the end of the stream: what the stream has not
        taken, and what was on its way.
        """
        self.demand.closed = True
        left = self.leases.take_unacknowledged()
        waiting = self.outgoing.unsent()
        unsent = [one for one in left if one.job_id in waiting]
        return unsent, [one for one in left if one.job_id not in waiting]

    async def settle(self) -> None:
        """Return once the frames in hand are recorded: the worker has sent them, stream or not."""
        await self._recorder.finish()

    def count_on(self, stats: str) -> None:
        """Count on from what an earlier stream of the process told (`stats`)."""
        if stats:
            told = json.loads(stats)
            # A worker that made calls before tells of stuck handlers alone.
            self.assigned = told.get("assigned", 0)
            self._recorder.count_on(told.get("succeeded", 0), told.get("failed", 0))

    def news(self) -> SessionNews:
        """Return what is new since the last call, for the registry."""
        counters = {
            "credits": self.credits,
            "assigned": self.assigned,
            "succeeded": self._recorder.succeeded,
            "failed": self._recorder.failed,
            "held_jobs": len(self.leases),
        }
        if self.stuck:
            counters["stuck"] = self.stuck
        return self.told.news(counters)
