"""A worker's session: the state of one stream, free of the stream itself.

The reader gives it frames (`receive`), the writer takes frames from it (`next_frame`), the
dispatcher fills its demand, and the roster looks at it now and then (`look`). Whoever finds that it
is over sets `ended`.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

import structlog

from jobwire_server.domain.errors import (
    JobwireError,
    LeaseLost,
    ServerBusy,
    ServerDraining,
    StoreUnavailable,
    WrongState,
)
from jobwire_server.domain.model import (
    Assignment,
    CancelNotice,
    Completed,
    Ended,
    LeaseRef,
    Renewal,
    Reported,
    WorkerStatus,
)
from jobwire_server.workers.byte_credit import ByteCredit
from jobwire_server.workers.demand import Demand
from jobwire_server.workers.frames import (
    Attach,
    DrainNotice,
    FrameIn,
    FrameOut,
    Receipt,
    Refused,
)

log = structlog.get_logger(__name__)

MAX_FRAMES_IN_HAND = 32
"""Frames that wait for the store at once; beyond it the session reads no further."""
MAX_RECEIPTS = 256
"""Receipts that wait to be read; a worker that does not read them is not listened to either."""
MAX_LOST = 20_000
"""Lost leases that wait to be read; as for receipts."""
FRAME_BYTES = 1 << 20
"""Records of one frame, but for a single one that is larger: with the rest of the frame well below
the 4 MiB that gRPC clients take unless told otherwise.
"""
SILENT_INTERVALS = 3
"""A worker may be silent for so many of its heartbeat intervals."""

STILL_HELD = (WrongState, StoreUnavailable, ServerBusy)
"""Why a completion was refused although the job may be the worker's still."""


@dataclass(frozen=True, slots=True)
class SessionTimes:
    """The clockwork of a session, seconds."""

    heartbeat_s: float
    """This side says something at least so often."""
    worker_heartbeat_s: float
    """The other side is to say something at least so often."""
    silence_s: float
    """A worker that is silent for longer is not taken for alive any more, although its stream
    holds; nor is one that does not read.
    """
    claim_timeout_s: float
    age_s: float
    """When the stream is drained; with its jitter."""
    drain_s: float


class GiveBack(Protocol):
    """Returns jobs that did not reach the worker, in the background, as `Attempts.give_back`."""

    def __call__(
        self,
        worker_id: str,
        assignments: Sequence[Assignment],
        claimed_after_ms: int = 0,
        *,
        sent: bool = False,
    ) -> None: ...


class StreamDemand(Demand):
    """The room that a stream's credits leave."""

    def __init__(self, session: WorkerSession, room: int) -> None:
        super().__init__(session.attach.spec, session.lease_ms, room)
        self._session = session

    def reserve(self, most: int) -> int:
        """Takes room, as far as the credit in bytes allows."""
        session = self._session
        return super().reserve(min(most, session.bytes.room(bool(session.held))))

    def deliver(self, assignments: list[Assignment]) -> bool:
        """Hands the jobs to the session."""
        return self._session.assign(assignments)


class WorkerSession:
    """One attached stream.

    Args:
        attach: The worker's first words.
        name: Of this session; unique over all servers.
        since_ms: Since when it counts, by the store's clock.
        lease_ms: The lease of its jobs.
        times: Its clockwork.
        complete: Has ends of attempts recorded; answers each.
        report: Has progress recorded; answers each.
        give_back: Returns jobs that did not reach the worker to their queues.
        set_status: Has the worker's wish to take jobs or not recorded.
    """

    def __init__(
        self,
        attach: Attach,
        name: str,
        since_ms: int,
        lease_ms: int,
        times: SessionTimes,
        complete: Callable[[str, Sequence[Ended]], Awaitable[Sequence[Completed | JobwireError]]],
        report: Callable[[str, Sequence[Reported]], Awaitable[Sequence[Renewal]]],
        give_back: GiveBack,
        set_status: Callable[[str, WorkerStatus], Awaitable[None]],
    ) -> None:
        self.attach = attach
        self.worker_id = attach.spec.worker_id
        self.name = name
        self.since_ms = since_ms
        self.lease_ms = lease_ms
        self.times = times
        self._complete = complete
        self._report = report
        self._give_back = give_back
        self._set_status = set_status
        self.held: dict[str, int] = {}
        """Job id -> fencing token of every lease that this stream knows of."""
        self._unacknowledged: dict[str, tuple[float, Assignment]] = {}
        """Job id -> when its acknowledgement is overdue, and the assignment; oldest first."""
        self._frames_out = 0
        """Frames with assignments that the stream has taken."""
        self._under_way: deque[tuple[int, Sequence[Assignment]]] = deque()
        """What they brought, until it is acknowledged; oldest first."""
        self._cancelled: set[str] = set()
        """Those of them that the worker was told to stop."""
        self.stuck = 0
        self.bytes = ByteCredit(attach.credit_bytes)
        self.credits = attach.credits
        self.demand = StreamDemand(self, attach.credits)
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Done when the stream is over; with an error where the worker should learn of one."""
        self.release: asyncio.Task[None] | None = None
        """What settles the session once it is over."""
        self.detached = False
        self.stood_still = False
        """It was ended for the worker's silence, though its connection held."""
        self._out = FrameOut()
        self._wake = asyncio.Event()
        self._drained = asyncio.Event()
        self._drained.set()
        self._frames: set[asyncio.Task[None]] = set()
        self._reporting: set[asyncio.Task[None]] = set()
        """Those of the frames that hold reports."""
        now = monotonic()
        self.heard_at = now
        self.writing_since: float | None = None
        self._born_at = now
        self._drain_until: float | None = None
        self._until_idle = False
        self._suspended_at: float | None = None
        self._ready = True
        self.assigned = self.succeeded = self.failed = 0
        self._told = ""

    # ------------------------------------------------------------ to the worker

    def assign(self, assignments: list[Assignment]) -> bool:
        """Puts claimed jobs on their way; False if the stream is over."""
        if self.ended.done() or self.demand.closed:
            return False
        surplus = len(self.held) + len(assignments) - self.credits
        if surplus > 0:
            # Credits were taken away while the claim was under way.
            assignments = self._send_back(assignments, max(0, len(assignments) - surplus))
        fitting = self.bytes.take(assignments, bool(self.held))
        if fitting < len(assignments):
            assignments = self._send_back(assignments, fitting)
        overdue = monotonic() + self.times.claim_timeout_s
        for assignment in assignments:
            self.held[assignment.job_id] = assignment.fencing_token
            self._unacknowledged[assignment.job_id] = (overdue, assignment)
        self.assigned += len(assignments)
        self._out.assignments += assignments
        self._wake.set()
        return True

    def _send_back(self, assignments: list[Assignment], at: int) -> list[Assignment]:
        """Returns those from `at` on to the queue, and the others to the caller."""
        self._give_back(self.worker_id, assignments[at:])
        self.demand.unreserve(len(assignments) - at)
        return assignments[:at]

    def cancel(self, notice: CancelNotice) -> None:
        """Tells the worker to stop a job, once for each lease."""
        job_id = notice.job_id
        if self.held.get(job_id) == notice.fencing_token and job_id not in self._cancelled:
            self._cancelled.add(job_id)
            self._out.cancellations.append(notice)
            self._wake.set()

    def lose(self, job_id: str, fencing_token: int) -> None:
        """Tells the worker that a job is no longer its own."""
        if self.held.get(job_id) == fencing_token:
            self._forget(job_id)
            self._out.lost.append(LeaseRef(job_id, fencing_token))
            self._wake.set()

    def drain(
        self, deadline_s: float, now_ms: int, *, leave: bool, reason: str, until_idle: bool = False
    ) -> None:
        """Asks the worker to leave this stream; it gets no more jobs here.

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
            self._out.drain = DrainNotice(now_ms + round(deadline_s * 1000), leave, reason)
            self._wake.set()

    def end(self, error: JobwireError | None = None) -> None:
        """Ends the stream; harmless if it has ended."""
        self.demand.closed = True
        if not self.ended.done():
            if error is None:
                self.ended.set_result(None)
            else:
                self.ended.set_exception(error)
                # Whoever holds the stream looks at it; a session that never had one must not
                # complain.
                self.ended.exception()
        self._wake.set()

    async def next_frame(self) -> FrameOut:
        """Returns what there is to tell, an empty frame as a sign of life."""
        if not self._out:
            self._wake.clear()
            try:
                async with asyncio.timeout(self.times.heartbeat_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
        frame, self._out = self._out, FrameOut()
        size = 0
        for at, assignment in enumerate(frame.assignments):
            size += assignment.size
            if at and size > FRAME_BYTES:
                self._out = frame.split(at)
                break
        if frame.assignments:
            self._frames_out += 1
            self._under_way.append((self._frames_out, frame.assignments))
            # Those whose jobs were acknowledged one by one, or have ended.
            while not any(a.job_id in self._unacknowledged for a in self._under_way[0][1]):
                self._under_way.popleft()
                if not self._under_way:
                    break
        self._drained.set()
        return frame

    def greet(self) -> None:
        """Puts the answer to the attachment first."""
        self._out.attached = True
        self._wake.set()

    # ---------------------------------------------------------- from the worker

    async def receive(self, frame: FrameIn) -> None:
        """Acts on a frame; waits where the worker is ahead of the store or of its own reading."""
        # While this side takes its time, the other one is not silent.
        self.heard_at = float("inf")
        try:
            await self._receive(frame)
        finally:
            self.heard_at = monotonic()

    async def _receive(self, frame: FrameIn) -> None:
        for ack in frame.acks:
            if self.held.get(ack.job_id) == ack.fencing_token:
                self._unacknowledged.pop(ack.job_id, None)
            else:
                # Given back already: the worker must not run it.
                self._out.lost.append(ack)
                self._wake.set()
        if frame.received:
            self._frames_have_arrived(frame.received)
        if (frame.acks or frame.received) and self._suspended_at is not None:
            self._suspended_at = None
            self._pause_or_resume()
        if frame.stuck is not None:
            self.stuck = frame.stuck
        if frame.credits is not None:
            more, self.credits = frame.credits - self.credits, frame.credits
            self.demand.unreserve(more)
        if frame.status is not None:
            await self._set_status(self.worker_id, frame.status)
            self.apply_status(frame.status)
        if frame.reports or frame.completions or frame.refused:
            await self._take_in(frame)
        while len(self._out.receipts) >= MAX_RECEIPTS or len(self._out.lost) >= MAX_LOST:
            self._drained.clear()
            await self._drained.wait()
        if frame.detach:
            self.detached = True
            while self._frames:
                await asyncio.wait(self._frames)
            self.end()

    async def _take_in(self, frame: FrameIn) -> None:
        places = 0
        for queue, ulid, token, _ in frame.completions:
            places += self._let_go(f"{queue}-{ulid}", token)
        if places:
            self.demand.unreserve(places)
        for report in frame.reports:
            self._has_arrived(f"{report.queue}-{report.ulid}", report.fencing_token)
        for refused in frame.refused:
            # Wrong as it is, it shows that the assignment has arrived.
            self._has_arrived(refused.job_id, refused.fencing_token)
        task = asyncio.create_task(self._record(frame, [*self._reporting]), name="frame")
        self._frames.add(task)
        task.add_done_callback(self._frames.discard)
        if frame.reports:
            self._reporting.add(task)
            task.add_done_callback(self._reporting.discard)
        while len(self._frames) >= MAX_FRAMES_IN_HAND:
            await asyncio.wait(self._frames, return_when=asyncio.FIRST_COMPLETED)

    def _frames_have_arrived(self, received: int) -> None:
        while self._under_way and self._under_way[0][0] <= received:
            for assignment in self._under_way.popleft()[1]:
                # Of what was given back meanwhile the worker hears as of a lost lease.
                self._has_arrived(assignment.job_id, assignment.fencing_token)

    def _has_arrived(self, job_id: str, fencing_token: int) -> None:
        if self._unacknowledged and self.held.get(job_id) == fencing_token:
            self._unacknowledged.pop(job_id, None)

    async def _record(self, frame: FrameIn, reporting: list[asyncio.Task[None]]) -> None:
        """Has a frame recorded: reports before completions, also those of the frames before it.

        Otherwise the last words of a job could come after its end, and be refused.
        """
        refused = frame.refused
        if frame.reports:
            refused += await self._record_reports(frame.reports)
        if frame.completions:
            if reporting:
                await asyncio.wait(reporting)
            refused += await self._record_completions(frame.completions)
        self._out.receipts.append(Receipt(frame.sequence, refused))
        self._wake.set()

    async def _record_completions(self, completions: Sequence[Ended]) -> list[Refused]:
        outcomes: Sequence[Completed | JobwireError]
        try:
            outcomes = await self._complete(self.worker_id, completions)
        except Exception as error:
            outcomes = [self._unrecorded(error)] * len(completions)
        refused = []
        for ended, outcome in zip(completions, outcomes, strict=True):
            if isinstance(outcome, JobwireError):
                job_id = f"{ended.queue}-{ended.ulid}"
                refused.append(Refused(job_id, ended.fencing_token, outcome))
                if isinstance(outcome, STILL_HELD):
                    self._keep(job_id, ended.fencing_token)
            elif type(ended.outcome) is bytes:
                self.succeeded += 1
            else:
                self.failed += 1
        return refused

    async def _record_reports(self, reports: Sequence[Reported]) -> list[Refused]:
        try:
            renewals = await self._report(self.worker_id, reports)
        except Exception as error:
            why = self._unrecorded(error)
            return [Refused(f"{r.queue}-{r.ulid}", r.fencing_token, why) for r in reports]
        refused = []
        for reported, renewal in zip(reports, renewals, strict=True):
            if renewal.lost:
                job_id = f"{reported.queue}-{reported.ulid}"
                self._forget(job_id, reported.fencing_token)
                lost = LeaseLost(job_id, reported.fencing_token)
                refused.append(Refused(job_id, reported.fencing_token, lost))
            elif renewal.refusal:
                job_id = f"{reported.queue}-{reported.ulid}"
                refused.append(Refused(job_id, reported.fencing_token, renewal.refusal))
            elif renewal.cancel:
                self.cancel(renewal.cancel)
        return refused

    def _unrecorded(self, error: Exception) -> JobwireError:
        """What failed altogether is refused item by item, for a later repeat."""
        if isinstance(error, JobwireError):
            return error
        log.error("frame not recorded", worker_id=self.worker_id, exc_info=error)
        return StoreUnavailable("it is not known whether it was recorded; send it again")

    def _forget(self, job_id: str, fencing_token: int | None = None) -> None:
        """Frees the place of a job that the worker no longer holds."""
        if self._let_go(job_id, fencing_token):
            self.demand.unreserve(1)

    def _let_go(self, job_id: str, fencing_token: int | None) -> bool:
        """Takes a job off the books; True if its place is to be freed."""
        token = self.held.get(job_id)
        if token is None or fencing_token not in (None, token):
            return False
        del self.held[job_id]
        self._unacknowledged.pop(job_id, None)
        self._cancelled.discard(job_id)
        self.bytes.free(job_id)
        return True

    def _keep(self, job_id: str, fencing_token: int) -> None:
        """Takes a place again for a job whose completion was refused: its lease goes on."""
        if job_id not in self.held and not self.ended.done():
            self.held[job_id] = fencing_token
            self.demand.room -= 1

    # ------------------------------------------------------------ now and then

    def hear(self, arrived: Iterable[tuple[str, int]]) -> None:
        """The worker lives, as a call beside its stream tells: what holds the stream can't speak.

        Args:
            arrived: Ids and fencing tokens of jobs that it has, whether acknowledged or not.
        """
        self.heard_at = max(self.heard_at, monotonic())
        for job_id, fencing_token in arrived:
            self._has_arrived(job_id, fencing_token)

    def apply_status(self, status: WorkerStatus) -> None:
        """Follows what the worker or an operator wants."""
        self._ready = status is WorkerStatus.READY
        self._pause_or_resume()

    def _pause_or_resume(self) -> None:
        wanted = self._ready and self._suspended_at is None
        if not wanted:
            self.demand.paused = True
        elif self.demand.paused:
            self.demand.resume()

    @property
    def renewable(self) -> bool:
        """True while the worker was heard of lately enough for its leases to be renewed."""
        silence = monotonic() - self.heard_at
        return not self.ended.done() and silence <= self.times.silence_s

    def look(self, now_ms: int) -> None:
        """Does what time asks for: overdue acknowledgements, silence, deafness, age."""
        now = monotonic()
        limit = self.times.silence_s
        self._give_back_overdue(now)
        if now - self.heard_at > limit:
            self.stood_still = True
            self.end(StoreUnavailable(f"nothing was heard from the worker for {limit:.1f} s"))
        elif self.writing_since is not None and now - self.writing_since > limit:
            self.end(StoreUnavailable(f"the worker has not read its stream for {limit:.1f} s"))
        elif self._suspended_at is not None and now - self._suspended_at > limit:
            self.end(StoreUnavailable("assignments are not acknowledged"))
        elif self._drain_until is not None:
            if self._until_idle and not self.held and not self._frames and not self._out:
                self.end(ServerDraining())
            elif now > self._drain_until:
                self.end(StoreUnavailable("the stream was to be left by its deadline"))
        elif now - self._born_at > self.times.age_s:
            self.drain(
                self.times.drain_s, now_ms, leave=False, reason="the stream has reached its age"
            )

    def _give_back_overdue(self, now: float) -> None:
        overdue: list[Assignment] = []
        for until, assignment in self._unacknowledged.values():
            if until > now:
                break
            overdue.append(assignment)
        if not overdue:
            return
        # No more jobs for a worker that does not take those it has; an acknowledgement shows that
        # it lives.
        self._suspended_at = self._suspended_at or now
        self._pause_or_resume()
        late = {assignment.job_id for assignment in overdue}
        # What the stream has not taken yet is not sent at all.
        self._out.assignments = [a for a in self._out.assignments if a.job_id not in late]
        for assignment in overdue:
            self.lose(assignment.job_id, assignment.fencing_token)
        # Of no budget, for the stream holds: the worker stands still, and has not died of them.
        self._give_back(self.worker_id, overdue)

    def abandon(self) -> tuple[list[Assignment], list[Assignment]]:
        """Returns what was never acknowledged, for the end of the stream: what the stream has not
        taken, and what was on its way.
        """
        self.demand.closed = True
        left = [assignment for _, assignment in self._unacknowledged.values()]
        self._unacknowledged.clear()
        return self._sorted(left)

    def _sorted(
        self, assignments: Sequence[Assignment]
    ) -> tuple[list[Assignment], list[Assignment]]:
        waiting = {assignment.job_id for assignment in self._out.assignments}
        unsent = [one for one in assignments if one.job_id in waiting]
        return unsent, [one for one in assignments if one.job_id not in waiting]

    async def settle(self) -> None:
        """Returns once the frames in hand are recorded: the worker has sent them, stream or not."""
        await asyncio.gather(*self._frames, return_exceptions=True)

    def count_on(self, stats: str) -> None:
        """Counts on from what an earlier stream of the process told (`stats`)."""
        if stats:
            told = json.loads(stats)
            self.assigned = told["assigned"]
            self.succeeded, self.failed = told["succeeded"], told["failed"]

    def stats(self) -> str:
        """Returns the counters as JSON if they changed since the last call, '' otherwise."""
        counters = {
            "credits": self.credits,
            "assigned": self.assigned,
            "succeeded": self.succeeded,
            "failed": self.failed,
        }
        if self.stuck:
            counters["stuck"] = self.stuck
        text = json.dumps(counters)
        if text == self._told:
            return ""
        self._told = text
        return text
