"""Has the frames of one worker recorded: its reports and completions, a receipt for each frame."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Protocol

import structlog

from jobwire_server.domain.errors import (
    JobwireError,
    LeaseLost,
    ServerBusy,
    StoreUnavailable,
    WrongState,
)
from jobwire_server.domain.ids import job_id_of
from jobwire_server.domain.model import CancelNotice, Completed, Completion, WorkerReport
from jobwire_server.workers.broker_parts import Attempts, Reports
from jobwire_server.workers.frames import FrameIn, Receipt, Refused
from jobwire_server.workers.outgoing import Outgoing

log = structlog.get_logger(__name__)

MAX_FRAMES_IN_HAND = 32
"""Frames that wait for the store at once; beyond it the session reads no further."""
STILL_HELD = (WrongState, StoreUnavailable, ServerBusy)
"""Why a completion was refused although the job may be the worker's still."""


class Session(Protocol):
    """Whose frames they are."""

    worker_id: str

    def keep(self, job_id: str, fencing_token: int) -> None:
        """Count in a job that the worker holds still."""

    def forget(self, job_id: str, fencing_token: int | None = None) -> None:
        """Free the credit of a job that the worker no longer holds."""

    def cancel(self, notice: CancelNotice) -> None:
        """Tell the worker to stop a job."""


class FrameRecorder:
    """Records frames side by side, as far as their order allows.

    Args:
        session: Of the worker.
        outgoing: Takes the receipts.
        attempts: End attempts.
        reports: Record progress, and renew leases.
    """

    def __init__(
        self, session: Session, outgoing: Outgoing, attempts: Attempts, reports: Reports
    ) -> None:
        self._session = session
        self._outgoing = outgoing
        self._attempts = attempts
        self._reports = reports
        self._frames: set[asyncio.Task[None]] = set()
        self._reporting: set[asyncio.Task[None]] = set()
        """Those of the frames that hold reports."""
        self.succeeded = self.failed = 0

    def __len__(self) -> int:
        return len(self._frames)

    def count_on(self, succeeded: int, failed: int) -> None:
        """Count on from what an earlier stream of the process recorded."""
        self.succeeded, self.failed = succeeded, failed

    async def take(self, frame: FrameIn) -> None:
        """Begin to record a frame; wait where too many are in hand."""
        task = asyncio.create_task(self._record(frame, [*self._reporting]), name="frame")
        self._frames.add(task)
        task.add_done_callback(self._frames.discard)
        if frame.reports:
            self._reporting.add(task)
            task.add_done_callback(self._reporting.discard)
        while len(self._frames) >= MAX_FRAMES_IN_HAND:
            await asyncio.wait(self._frames, return_when=asyncio.FIRST_COMPLETED)

    async def finish(self) -> None:
        """Return once the frames in hand are recorded."""
        while self._frames:
            await asyncio.wait(self._frames)

    async def _record(self, frame: FrameIn, reporting: list[asyncio.Task[None]]) -> None:
        """Have a frame recorded: reports before completions, also those of the frames before it.

        Otherwise the last words of a job could come after its end, and be refused.
        """
        refused = frame.refused
        if frame.reports:
            refused += await self._record_reports(frame.reports)
        if frame.completions:
            if reporting:
                await asyncio.wait(reporting)
            refused += await self._record_completions(frame.completions)
        self._outgoing.confirm(Receipt(frame.sequence, refused))

    async def _record_completions(self, completions: Sequence[Completion]) -> list[Refused]:
        outcomes: Sequence[Completed | JobwireError]
        try:
            outcomes = await self._attempts.complete_many(self._session.worker_id, completions)
        except Exception as error:
            outcomes = [self._unrecorded(error)] * len(completions)
        refused = []
        for ended, outcome in zip(completions, outcomes, strict=True):
            if isinstance(outcome, JobwireError):
                job_id = job_id_of(ended.queue, ended.ulid)
                refused.append(Refused(job_id, ended.fencing_token, outcome))
                if isinstance(outcome, STILL_HELD):
                    self._session.keep(job_id, ended.fencing_token)
            elif type(ended.outcome) is bytes:
                self.succeeded += 1
            else:
                self.failed += 1
        return refused

    async def _record_reports(self, reports: Sequence[WorkerReport]) -> list[Refused]:
        try:
            renewals = await self._reports.report_many(self._session.worker_id, reports)
        except Exception as error:
            why = self._unrecorded(error)
            return [Refused(job_id_of(r.queue, r.ulid), r.fencing_token, why) for r in reports]
        refused = []
        for reported, renewal in zip(reports, renewals, strict=True):
            if renewal.lost:
                job_id = job_id_of(reported.queue, reported.ulid)
                self._session.forget(job_id, reported.fencing_token)
                lost = LeaseLost(job_id, reported.fencing_token)
                refused.append(Refused(job_id, reported.fencing_token, lost))
            elif renewal.refusal:
                job_id = job_id_of(reported.queue, reported.ulid)
                refused.append(Refused(job_id, reported.fencing_token, renewal.refusal))
            elif renewal.cancel:
                self._session.cancel(renewal.cancel)
        return refused

    def _unrecorded(self, error: Exception) -> JobwireError:
        """Refuse item by item what failed altogether, for a later repeat."""
        if isinstance(error, JobwireError):
            return error
        log.error("frame not recorded", worker_id=self._session.worker_id, exc_info=error)
        return StoreUnavailable("it is not known whether it was recorded; send it again")
