"""The way to the worker: what a stream has to tell it, gathered until the next frame goes out."""

from __future__ import annotations

import asyncio
from collections.abc import Container
from time import monotonic

from jobwire_server.domain.model import Assignment, CancelNotice, LeaseRef
from jobwire_server.workers.frames import DrainNotice, FrameOut, Receipt
from jobwire_server.workers.held_leases import HeldLeases

MAX_RECEIPTS = 256
"""Receipts that wait to be read; a worker that does not read them is not listened to either."""
MAX_LOST = 20_000
"""Lost leases that wait to be read; as for receipts."""
FRAME_BYTES = 1 << 20
"""Records of one frame, but for a single one that is larger: with the rest of the frame well below
the 4 MiB that gRPC clients take unless told otherwise.
"""


class Outgoing:
    """Gathers what the worker is to be told, and hands it out frame by frame.

    Args:
        leases: Told which assignments the stream has taken.
        heartbeat_s: An empty frame goes out where there was nothing to tell for so long.
    """

    def __init__(self, leases: HeldLeases, heartbeat_s: float) -> None:
        self._leases = leases
        self._heartbeat_s = heartbeat_s
        self._next = FrameOut()
        self._wake = asyncio.Event()
        self._taken = asyncio.Event()
        self.writing_since: float | None = None
        """Since when the stream writes the frame in hand; None: it waits for the next."""

    def __bool__(self) -> bool:
        return bool(self._next)

    # ------------------------------------------------------------ what to tell

    def greet(self) -> None:
        """Put the answer to the attachment first."""
        self._next.attached = True
        self._wake.set()

    def assign(self, assignments: list[Assignment]) -> None:
        """Put jobs on their way."""
        self._next.assignments += assignments
        self._wake.set()

    def call_back(self, job_ids: Container[str]) -> None:
        """Do not send the assignments of these jobs, if they are here still."""
        self._next.assignments = [a for a in self._next.assignments if a.job_id not in job_ids]

    def unsent(self) -> set[str]:
        """Return the ids of the assignments that the stream has not taken."""
        return {assignment.job_id for assignment in self._next.assignments}

    def cancel(self, notice: CancelNotice) -> None:
        """Tell the worker to stop a job."""
        self._next.cancellations.append(notice)
        self._wake.set()

    def lose(self, lease: LeaseRef) -> None:
        """Tell the worker that a job is no longer its own."""
        self._next.lost.append(lease)
        self._wake.set()

    def confirm(self, receipt: Receipt) -> None:
        """Tell the worker what became of a frame."""
        self._next.receipts.append(receipt)
        self._wake.set()

    def drain(self, notice: DrainNotice) -> None:
        """Ask the worker to leave the stream."""
        self._next.drain = notice
        self._wake.set()

    def wake(self) -> None:
        """Let the stream see that it has ended."""
        self._wake.set()

    async def room(self) -> None:
        """Return once the worker has read what it was told, as far as that is bounded."""
        while len(self._next.receipts) >= MAX_RECEIPTS or len(self._next.lost) >= MAX_LOST:
            self._taken.clear()
            await self._taken.wait()

    # -------------------------------------------------------------- the stream

    async def next_frame(self) -> FrameOut:
        """Return what there is to tell, an empty frame as a sign of life."""
        if not self._next:
            self._wake.clear()
            try:
                async with asyncio.timeout(self._heartbeat_s):
                    await self._wake.wait()
            except TimeoutError:
                pass
        frame, self._next = self._next, FrameOut()
        size = 0
        for at, assignment in enumerate(frame.assignments):
            size += assignment.size
            if at and size > FRAME_BYTES:
                self._next = frame.split(at)
                break
        if frame.assignments:
            self._leases.sent(frame.assignments)
        self._taken.set()
        return frame

    def write_begins(self) -> None:
        """The stream begins to write a frame."""
        self.writing_since = monotonic()

    def write_ends(self) -> None:
        """The stream has written a frame, as far as the peer's buffers go."""
        self.writing_since = None
