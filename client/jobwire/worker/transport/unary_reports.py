"""What jobs say before their end, in single calls."""

from __future__ import annotations

import asyncio
import logging

from jobwire._repeat import Backoff, is_passing
from jobwire.errors import CallError, LeaseLost, NotFound, OutputFull
from jobwire.output import OutputLog
from jobwire.v1 import worker_service_pb2 as pb
from jobwire.v1.job_pb2 import Payload, Progress
from jobwire.worker.transport.base import Host
from jobwire.worker.transport.calls import WorkerCalls
from jobwire.worker.transport.report_queue import mend_output

log = logging.getLogger("jobwire.worker")

REPORT_TIMEOUT_S = 5.0


class UnaryReports:
    """Sends reports, one call at a time for each job.

    Args:
        calls: Makes them.
        host: Hears what becomes of leases and checkpoints.
    """

    def __init__(self, calls: WorkerCalls, host: Host) -> None:
        self._calls = calls
        self._host = host
        self._newest: dict[str, pb.UpdateProgressRequest] = {}
        self._logs: dict[str, OutputLog] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        """By job: what sends its reports."""

    async def wait_for(self, job_id: str) -> None:
        """Wait until nothing that a job has said is on its way."""
        task = self._tasks.get(job_id)
        if task is not None:
            await asyncio.wait({task})

    async def close(self) -> None:
        """Drop what is on its way."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def report(
        self,
        lease: pb.LeaseRef,
        progress: Progress | None,
        output: OutputLog | None = None,
        checkpoint: Payload | None = None,
    ) -> None:
        """Report a job's progress, output and checkpoint."""
        request = self._newest.get(lease.job_id)
        if request is None or request.fencing_token != lease.fencing_token:
            request = pb.UpdateProgressRequest(
                worker_id=self._host.spec.worker_id,
                job_id=lease.job_id,
                fencing_token=lease.fencing_token,
            )
            self._newest[lease.job_id] = request
        if progress is not None:
            request.progress.CopyFrom(progress)
        if checkpoint is not None:
            request.checkpoint.CopyFrom(checkpoint)
        if output is not None:
            self._logs[lease.job_id] = output
        if lease.job_id not in self._tasks:
            task = asyncio.create_task(self._send_reports(lease.job_id))
            self._tasks[lease.job_id] = task

    async def _send_reports(self, job_id: str) -> None:
        try:
            while job_id in self._newest:
                await self._send_report(self._newest.pop(job_id), self._logs.pop(job_id, None))
        finally:
            del self._tasks[job_id]

    async def _send_report(
        self, request: pb.UpdateProgressRequest, output: OutputLog | None
    ) -> None:
        """Send a report; output and a checkpoint until they are recorded or refused for good."""
        lease = pb.LeaseRef(job_id=request.job_id, fencing_token=request.fencing_token)
        backoff = Backoff()
        while True:
            saves = request.HasField("checkpoint")
            if output is not None:
                del request.output[:]
                request.output.extend(output.take())
            if not (request.output or saves or request.HasField("progress")):
                return
            try:
                answer = await self._calls.call("UpdateProgress", request, REPORT_TIMEOUT_S)
            except CallError as error:
                if output is not None:
                    if isinstance(error, OutputFull) or error.reason == "OUTPUT_GAP":
                        mend_output(output, lease.job_id, error)
                        continue
                    output.again()
                if is_passing(error) and (output is not None or saves):
                    await asyncio.sleep(backoff.next_s(error.retry_after_s))
                    continue
                if output is not None:
                    output.close()
                if saves:
                    self._host.saved(lease, error)
                self._report_failed(lease, error)
                return
            backoff.reset()
            if output is not None:
                output.recorded()
            if saves:
                self._host.saved(lease, None)
            if answer.HasField("cancel"):
                self._host.cancel(answer.cancel)
            if output is None or not output.is_due:
                return
            request.ClearField("progress")
            request.ClearField("checkpoint")

    def _report_failed(self, lease: pb.LeaseRef, error: CallError) -> None:
        if isinstance(error, LeaseLost | NotFound):
            self._host.lose([lease])
        elif not is_passing(error):
            log.warning("a progress report of %s was refused: %s", lease.job_id, error)
