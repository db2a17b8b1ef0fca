"""What jobs say before their end, from the moment it is said until its receipt."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice

from jobwire.errors import (
    CallError,
    LeaseLost,
    NotFound,
    OutputFull,
    ResourceExhausted,
    Unavailable,
)
from jobwire.output import MAX_REPORT_BYTES, OutputLog
from jobwire.v1.job_pb2 import Payload, Progress
from jobwire.v1.worker_service_pb2 import LeaseRef, Report, WorkRequest
from jobwire.worker.transport.base import Host

log = logging.getLogger("jobwire.worker")

# The contract's.
MAX_REPORTS = 1_000
# What the broker could not record for now is said again after this long, or after what it asks for
# within bounds.
RESEND_S = 0.5
MOST_RESEND_S = 10.0


class Resends:
    """Says things again a little later.

    Args:
        ready: Set when something is to be said.
    """

    def __init__(self, ready: asyncio.Event) -> None:
        self._ready = ready
        self._loop = asyncio.get_running_loop()
        self._timers: set[asyncio.TimerHandle] = set()

    def __bool__(self) -> bool:
        return bool(self._timers)

    def later(self, say_again: Callable[[], object], error: CallError) -> None:
        """Call a function after the wait that an error asks for, and set `ready`."""
        wait_s = min(max(error.retry_after_s or 0.0, RESEND_S), MOST_RESEND_S)

        def resend() -> None:
            self._timers.discard(timer)
            say_again()
            self._ready.set()

        timer = self._loop.call_later(wait_s, resend)
        self._timers.add(timer)

    def close(self) -> None:
        """Stop the timers."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()


class ReportQueue:
    """Merges the reports of each job while they wait, and keeps their order.

    Args:
        host: Hears what becomes of leases and checkpoints.
        ready: Set when there is something to say.
        resends: Says again what the broker could not record for now.

    Attributes:
        waiting: The report of each job that no frame carries yet.
        under_way: Jobs with a report under way, and the number of the frame that carries it.
        logs: What leases write out, until their completions are on their way.
    """

    def __init__(self, host: Host, ready: asyncio.Event, resends: Resends) -> None:
        self._host = host
        self._ready = ready
        self._resends = resends
        self.waiting: dict[str, Report] = {}
        self.under_way: dict[str, int] = {}
        self.logs: dict[tuple[str, int], OutputLog] = {}

    def add(
        self,
        lease: LeaseRef,
        progress: Progress | None,
        output: OutputLog | None,
        checkpoint: Payload | None,
    ) -> None:
        """Take what a job says; the newest progress and checkpoint replace those that wait."""
        if output is not None:
            self.logs[lease.job_id, lease.fencing_token] = output
        report = self.waiting.get(lease.job_id)
        if report is None or report.fencing_token != lease.fencing_token:
            report = Report(job_id=lease.job_id, fencing_token=lease.fencing_token)
            self.waiting[lease.job_id] = report
        if progress is not None:
            report.progress.CopyFrom(progress)
        if checkpoint is not None:
            report.checkpoint.CopyFrom(checkpoint)
        self._ready.set()

    def fill(self, frame: WorkRequest, sequence: int, limit_bytes: int) -> tuple[int, list[str]]:
        """Move reports into a frame.

        Args:
            frame: Takes them.
            sequence: The number that the frame will have.
            limit_bytes: How large the frame may get, unless one report is larger.

        Returns:
            Their size, give or take a few bytes, and the jobs that had nothing to say after all.
        """
        size = 0
        silent: list[str] = []
        for job_id in list(islice(self.waiting, MAX_REPORTS)):
            report = self.waiting[job_id]
            output = self._log_of(report)
            saves = report.HasField("checkpoint")
            # Output and checkpoints go out in order, so one report at a time.
            if (output is not None or saves) and job_id in self.under_way:
                continue
            more = report.ByteSize()
            if output is not None:
                more += min(output.waiting_bytes, MAX_REPORT_BYTES)
            if frame.reports and size + more > limit_bytes:
                break
            size += more
            if output is not None:
                report.output.extend(output.take())
            del self.waiting[job_id]
            if not (report.output or saves or report.HasField("progress")):
                silent.append(job_id)
                continue
            frame.reports.append(report)
            self.under_way[job_id] = sequence
        return size, silent

    def answered(self, report: Report, error: CallError | None, sequence: int) -> bool:
        """Take the answer to a report.

        Args:
            report: As it was sent.
            error: Why the broker refused it; None: it is recorded.
            sequence: Of the frame that carried it.

        Returns:
            True if nothing of the job is under way any more.
        """
        if isinstance(error, OutputFull) or (error and error.reason == "OUTPUT_GAP"):
            output = self._log_of(report)
            if output is not None:
                mend_output(output, report.job_id, error)
            self._again(report)
            self._ready.set()
            return False
        if isinstance(error, Unavailable | ResourceExhausted):
            self._resends.later(partial(self._again_unless_newer, report, sequence), error)
            return False
        self._settle_output(report, error)
        if report.HasField("checkpoint"):
            self._host.saved(_lease(report), error)
        if isinstance(error, LeaseLost | NotFound):
            self._host.lose([_lease(report)])
        elif error is not None:
            log.warning("a progress report of %s was refused: %s", report.job_id, error)
        if self.under_way.get(report.job_id) != sequence:
            return False
        del self.under_way[report.job_id]
        if report.job_id in self.waiting:
            self._ready.set()
        return True

    def attach(self, unanswered: Iterable[WorkRequest]) -> None:
        """Go on with another stream: say again what the last one carried without an answer.

        Args:
            unanswered: The frames, the newest first, beside which an older one adds only what it
                lacks.
        """
        self.logs = {lease: output for lease, output in self.logs.items() if not output.closed}
        for frame in unanswered:
            for report in frame.reports:
                self._again(report)

    def _log_of(self, report: Report) -> OutputLog | None:
        return self.logs.get((report.job_id, report.fencing_token))

    def _settle_output(self, report: Report, error: CallError | None) -> None:
        output = self._log_of(report)
        if output is None or not report.output:
            return
        if error is not None:
            output.close()
            return
        output.recorded()
        if output.is_due:
            self.add(_lease(report), None, None, None)

    def _again_unless_newer(self, report: Report, sequence: int) -> None:
        if self.under_way.get(report.job_id) != sequence:
            # A newer one has gone out since; beside it only the checkpoint counts.
            report.ClearField("progress")
            if not report.HasField("checkpoint"):
                return
        self._again(report)

    def _again(self, report: Report) -> None:
        self.under_way.pop(report.job_id, None)
        output = self._log_of(report)
        if output is not None:
            output.again()
        del report.output[:]
        waiting = self.waiting.get(report.job_id)
        if waiting is None:
            self.waiting[report.job_id] = report
        elif waiting.fencing_token == report.fencing_token:
            # What waits is newer, but may lack what this one has.
            if report.HasField("progress") and not waiting.HasField("progress"):
                waiting.progress.CopyFrom(report.progress)
            if report.HasField("checkpoint") and not waiting.HasField("checkpoint"):
                waiting.checkpoint.CopyFrom(report.checkpoint)


def mend_output(output: OutputLog, job_id: str, error: CallError) -> None:
    """Fit what a job writes out to a refusal: a limit, or a store that lost some of it."""
    if isinstance(error, OutputFull):
        if not output.refused():
            log.warning("%s: the output limit is reached; more is dropped", job_id)
        return
    output.continue_at(int(error.metadata.get("expected_offset", "0")))
    log.warning("%s: the broker lost some output", job_id)


def _lease(of: Report) -> LeaseRef:
    return LeaseRef(job_id=of.job_id, fencing_token=of.fencing_token)
