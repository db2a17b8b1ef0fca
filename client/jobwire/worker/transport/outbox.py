"""What a worker has to say on its stream, gathered into frames.

It outlives streams: what one stream carried and no receipt answered goes out again on the next.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import islice

from jobwire.errors import (
    InvalidRequest,
    ResourceExhausted,
    Unavailable,
    from_item_error,
)
from jobwire.output import OutputLog
from jobwire.v1.job_pb2 import Payload, Progress
from jobwire.v1.worker_service_pb2 import (
    Assignment,
    Completion,
    LeaseRef,
    Receipt,
    StatusMetadata,
    WorkerStatus,
    WorkRequest,
)
from jobwire.worker.transport.base import Host, lacks
from jobwire.worker.transport.report_queue import ReportQueue, Resends

log = logging.getLogger("jobwire.worker")

# The contract's.
MAX_ACKS = 10_000
MAX_COMPLETIONS = 1_000
# A frame holds this much, unless one item is larger; servers take messages of 16 MiB.
FRAME_BYTES = 4 << 20
# Frames shrink no further for a server or proxy that takes less; a report may be as large.
LEAST_FRAME_BYTES = 1 << 20


class Outbox:
    """Gathers acknowledgements, reports, completions and wishes.

    A report and the completion of the same job are never under way together, so that the last
    report is not overtaken, and a refusal says which of the two it means.

    Attributes:
        ready: Set when there is something to say.
    """

    def __init__(self, host: Host) -> None:
        self.ready = asyncio.Event()
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._acks: dict[str, int] = {}
        self._received = 0
        """How many frames with assignments have arrived; 0: already acknowledged."""
        self._acks_wanted: asyncio.Future[None] | None = None
        self._resends = Resends(self.ready)
        self._reports = ReportQueue(host, self.ready, self._resends)
        self._completions: deque[Completion] = deque()
        self._held_back: dict[str, Completion] = {}
        """Completions of jobs whose last report has no receipt yet."""
        self._sent: dict[int, WorkRequest] = {}
        """Frames without a receipt."""
        self._frame_bytes = FRAME_BYTES
        self._late = False
        """Completions did not fit beside reports; now it is their turn."""
        self._sequence = 0
        self._credits_told: int | None = None
        self._stuck_told = 0
        self._status: WorkerStatus.ValueType | None = None
        self._metadata: StatusMetadata | None = None
        """What the worker tells of itself."""
        self._tells = False
        """That is to be said on this stream."""
        self._features: frozenset[str] = frozenset()
        self._lack_is_known = False
        self._beat = self._detach = False

    # In.

    def acknowledge(self, assignments: Iterable[Assignment]) -> None:
        """Acknowledge assignments one by one."""
        for assignment in assignments:
            self._acks[assignment.job_id] = assignment.fencing_token
        self.ready.set()

    def acknowledge_frames(self, count: int) -> None:
        """Acknowledge the first `count` frames with assignments of this stream: one number stands
        for hundreds of job ids.
        """
        self._received = count
        self.ready.set()

    @property
    def will_resend(self) -> bool:
        """True while something that the broker could not record waits to be said again."""
        return bool(self._resends)

    @property
    def owes_acks(self) -> bool:
        """True while no frame has taken what was acknowledged."""
        return bool(self._received or self._acks)

    async def acks_taken(self) -> None:
        """Wait until a frame has taken what was acknowledged."""
        if self._acks_wanted is None:
            self._acks_wanted = self._loop.create_future()
        await self._acks_wanted

    def report(
        self,
        lease: LeaseRef,
        progress: Progress | None,
        output: OutputLog | None = None,
        checkpoint: Payload | None = None,
    ) -> None:
        """Report a job's progress, output and checkpoint."""
        self._reports.add(lease, progress, output, checkpoint)

    def complete(self, completions: Sequence[Completion]) -> None:
        """Report how jobs ended."""
        waiting, under_way = self._reports.waiting, self._reports.under_way
        for completion in completions:
            job_id = completion.job_id
            if job_id in waiting or job_id in under_way:
                self._held_back[job_id] = completion
                continue
            if self._reports.logs:
                self._reports.logs.pop((job_id, completion.fencing_token), None)
            self._completions.append(completion)
        self.ready.set()

    def tell_credits(self) -> None:
        """Announce how many jobs the worker may hold, if that changed."""
        self.ready.set()

    def tell_status(self, status: WorkerStatus.ValueType) -> None:
        """Announce whether the worker takes jobs."""
        self._status = status
        self.ready.set()

    def tell(self, metadata: StatusMetadata) -> None:
        """Say what the worker tells of itself, on this stream and on those that follow."""
        self._metadata = metadata
        self._tell_again()

    def _tell_again(self) -> None:
        if self._metadata is None:
            return
        self._tells = "status_metadata" in self._features
        if self._tells:
            self.ready.set()
        elif not self._lack_is_known:
            self._lack_is_known = True
            log.warning(lacks("status_metadata", "what the worker tells of itself is not shown"))

    def beat(self) -> None:
        """Send a heartbeat, unless something else goes out."""
        self._beat = True
        self.ready.set()

    def detach(self) -> None:
        """Say goodbye, once there is nothing else to say."""
        self._detach = True
        self.ready.set()

    # Out.

    def next_frame(self) -> WorkRequest | None:
        """Take the next frame; None if there is nothing to say."""
        frame = WorkRequest()
        said = False
        if self._received or self._acks:
            self._take_acks(frame)
            said = True
        size = 0
        if not self._late and self._reports.waiting:
            size, silent = self._reports.fill(frame, self._sequence + 1, self._frame_bytes)
            for job_id in silent:
                self._release_completion(job_id)
        self._take_completions(frame, size)
        if frame.reports or frame.completions:
            self._sequence += 1
            frame.sequence = self._sequence
            self._sent[self._sequence] = frame
            said = True
        credits_now = self._host.capacity
        if credits_now != self._credits_told:
            frame.credits = self._credits_told = credits_now
            said = True
        if self._host.stuck != self._stuck_told:
            frame.stuck = self._stuck_told = self._host.stuck
            said = True
        if self._status is not None:
            frame.status, self._status = self._status, None
            said = True
        if self._tells and self._metadata is not None:
            frame.status_metadata.CopyFrom(self._metadata)
            self._tells, said = False, True
        if not said and self._detach:
            frame.detach.SetInParent()
            self._detach = self._beat = False
            return frame
        if not said and self._beat:
            frame.heartbeat.SetInParent()
            said = True
        self._beat = False
        return frame if said else None

    def _take_acks(self, frame: WorkRequest) -> None:
        if self._received:
            frame.received, self._received = self._received, 0
        for job_id in list(islice(self._acks, MAX_ACKS)):
            frame.acks.add(job_id=job_id, fencing_token=self._acks.pop(job_id))
        if self._acks_wanted is not None and not self._acks:
            if not self._acks_wanted.done():
                self._acks_wanted.set_result(None)
            self._acks_wanted = None

    def _take_completions(self, frame: WorkRequest, size: int) -> None:
        taken: list[Completion] = []
        while self._completions and len(taken) < MAX_COMPLETIONS:
            size += self._completions[0].ByteSize()
            if (taken or frame.reports) and size > self._frame_bytes:
                break
            taken.append(self._completions.popleft())
        frame.completions.extend(taken)
        self._late = bool(self._completions and frame.reports)

    # Answers.

    def receive(self, receipt: Receipt) -> None:
        """Take the answer to a frame."""
        frame = self._sent.pop(receipt.sequence, None)
        if frame is None:
            return
        refused = {(r.job_id, r.fencing_token): from_item_error(r.error) for r in receipt.refused}
        for report in frame.reports:
            error = refused.get((report.job_id, report.fencing_token))
            if self._reports.answered(report, error, receipt.sequence):
                self._release_completion(report.job_id)
        if not refused:
            self._host.recorded(frame.completions)
            return
        recorded: list[Completion] = []
        for completion in frame.completions:
            error = refused.get((completion.job_id, completion.fencing_token))
            if error is None:
                recorded.append(completion)
            elif isinstance(error, Unavailable | ResourceExhausted):
                self._resends.later(partial(self._completions.append, completion), error)
            else:
                self._host.refused(completion, error)
        self._host.recorded(recorded)

    def _release_completion(self, job_id: str) -> None:
        waits = job_id in self._reports.waiting or job_id in self._reports.under_way
        if not waits and job_id in self._held_back:
            self.complete([self._held_back.pop(job_id)])

    # Streams.

    def attach(self, told_credits: int, features: Iterable[str] = ()) -> None:
        """Continue on another stream, which was attached with `told_credits`.

        Whatever the last stream carried without an answer goes first on this one.

        Args:
            told_credits: How many jobs the worker said it may hold.
            features: What the server has beyond the first version of the contract.
        """
        self._features = frozenset(features)
        self._tell_again()
        self._credits_told = told_credits
        self._stuck_told = 0
        # The attachment named every lease.
        self._acks.clear()
        self._received = 0
        frames, self._sent = self._sent, {}
        unanswered = [c for frame in frames.values() for c in frame.completions]
        self._completions.extendleft(reversed(unanswered))
        self._reports.attach(reversed(frames.values()))
        self._beat = False
        self.ready.set()

    def refuse_oversized(self) -> None:
        """Make frames smaller after one was refused, and give up what is too large for any."""
        limit, self._frame_bytes = (
            self._frame_bytes,
            max(self._frame_bytes // 2, LEAST_FRAME_BYTES),
        )
        for frame in self._sent.values():
            # Such a one went alone; whichever frame was refused, this one is too large as well.
            if frame.completions and frame.completions[0].ByteSize() > limit:
                completion = frame.completions.pop()
                size = completion.ByteSize()
                why = InvalidRequest(f"{size} bytes are more than the server takes at once")
                self._host.refused(completion, why)

    def close(self) -> None:
        """Stop its timers."""
        self._resends.close()
