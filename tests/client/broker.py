# ruff: noqa: N802 - methods have the names of the contract
"""A broker in a few lines over real gRPC: it does as a test tells it, and notes what it is asked.

It holds jobs in memory and knows no time; a test says which lease is lost, which call fails.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]
from grpc import aio

from jobwire._convert import to_duration
from jobwire.v1 import admin_service_pb2 as admin
from jobwire.v1 import admin_service_pb2_grpc as admin_grpc
from jobwire.v1 import errors_pb2, job_pb2
from jobwire.v1 import job_service_pb2 as jobs
from jobwire.v1 import job_service_pb2_grpc as jobs_grpc
from jobwire.v1 import worker_service_pb2 as workers
from jobwire.v1 import worker_service_pb2_grpc as workers_grpc

TERMINAL = {
    job_pb2.JOB_STATE_SUCCEEDED,
    job_pb2.JOB_STATE_FAILED,
    job_pb2.JOB_STATE_CANCELLED,
    job_pb2.JOB_STATE_EXPIRED,
}


def rich_status(
    code: grpc.StatusCode, message: str, *details: Message
) -> tuple[grpc.StatusCode, str, tuple[tuple[str, bytes], ...]]:
    """A status with `google.rpc` details, as the servers send it."""
    status = status_pb2.Status(code=code.value[0], message=message)
    for detail in details:
        status.details.add().Pack(detail)
    return code, message, (("grpc-status-details-bin", status.SerializeToString()),)


def reason(name: str, **metadata: str) -> Message:
    """The ErrorInfo of a reason."""
    info: Message = error_details_pb2.ErrorInfo(reason=name, domain="jobwire", metadata=metadata)
    return info


def retry_info(seconds: float) -> Message:
    """The RetryInfo of a wait."""
    delay = Duration(nanos=round(seconds * 1e9))
    info: Message = error_details_pb2.RetryInfo(retry_delay=delay)
    return info


class Broker(
    jobs_grpc.JobServiceServicer,
    workers_grpc.WorkerServiceServicer,
    admin_grpc.AdminServiceServicer,
):
    def __init__(self) -> None:
        self.calls: dict[str, list[Any]] = defaultdict(list)
        self.metadata: dict[str, list[Any]] = defaultdict(list)
        self.failures: dict[str, deque[tuple[Any, ...]]] = defaultdict(deque)
        self.jobs: dict[str, job_pb2.Job] = {}
        self.pending: deque[str] = deque()
        self.workers: dict[str, workers.WorkerSpec] = {}
        self.notices: list[workers.CancelNotice] = []
        self.claim_notices: list[workers.CancelNotice] = []
        """For the next claim, which they end."""
        self.complete_notices: list[workers.CancelNotice] = []
        """For the next completion that asks for more."""
        self.lost: set[str] = set()
        self.drain = False
        self.heartbeat_s = 0.02
        self.changed = asyncio.Condition()
        self.server: aio.Server | None = None
        self.port = 0

    # For tests.

    @property
    def target(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        self.server = aio.server()
        jobs_grpc.add_JobServiceServicer_to_server(self, self.server)
        workers_grpc.add_WorkerServiceServicer_to_server(self, self.server)
        admin_grpc.add_AdminServiceServicer_to_server(self, self.server)
        self.add_services(self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self.server.start()

    def add_services(self, server: aio.Server) -> None:
        """Add what a test serves beside these services."""

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.stop(None)
            self.server = None

    def fail(self, method: str, *statuses: tuple[Any, ...]) -> None:
        """Make the next calls of a method fail, each with a status of `rich_status`."""
        self.failures[method].extend(statuses)

    async def until(self, condition: Callable[[], object], timeout_s: float = 60.0) -> None:
        """Wait for a condition on what this broker holds."""
        async with asyncio.timeout(timeout_s), self.changed:
            await self.changed.wait_for(condition)

    async def add(self, operation: str, payload: job_pb2.Payload | None = None) -> job_pb2.Job:
        """Put a job into the queue, without a client."""
        job_id = f"default-{len(self.jobs):026d}"
        job = job_pb2.Job(
            job_id=job_id,
            queue="default",
            spec=job_pb2.JobSpec(operation=operation, payload=payload),
            state=job_pb2.JOB_STATE_PENDING,
            revision=1,
        )
        self.jobs[job_id] = job
        self.pending.append(job_id)
        await self.touch()
        return job

    async def touch(self, job: job_pb2.Job | None = None) -> None:
        if job is not None:
            job.revision += 1
        async with self.changed:
            self.changed.notify_all()

    async def enter(self, method: str, request: Any, context: Any) -> None:
        self.calls[method].append(request)
        self.metadata[method].extend(context.invocation_metadata() or ())
        await self.touch()
        if self.failures[method]:
            code, message, metadata = self.failures[method].popleft()
            await context.abort(code, message, metadata)

    # JobService.

    def accept(self, request: jobs.SubmitJobRequest) -> jobs.SubmitJobResponse:
        existed = request.job_id in self.jobs
        if not existed:
            self.jobs[request.job_id] = job_pb2.Job(
                job_id=request.job_id,
                queue=request.queue,
                spec=request.spec,
                state=job_pb2.JOB_STATE_PENDING,
                revision=1,
            )
            self.pending.append(request.job_id)
        return jobs.SubmitJobResponse(
            job_id=request.job_id, state=self.jobs[request.job_id].state, existed=existed
        )

    async def SubmitJob(self, request: Any, context: Any) -> Any:
        await self.enter("SubmitJob", request, context)
        answer = self.accept(request)
        await self.touch()
        return answer

    async def SubmitJobs(self, request: Any, context: Any) -> Any:
        await self.enter("SubmitJobs", request, context)
        answer = jobs.SubmitJobsResponse()
        for one in request.requests:
            if one.spec.operation == "":
                answer.results.add().error.CopyFrom(
                    errors_pb2.ItemError(
                        code=3,
                        message="spec.operation: missing",
                        reason=1,  # type: ignore[arg-type]
                        violations=[
                            errors_pb2.FieldViolation(field="spec.operation", description="missing")
                        ],
                    )
                )
            else:
                answer.results.add().accepted.CopyFrom(self.accept(one))
        await self.touch()
        return answer

    async def GetJob(self, request: Any, context: Any) -> Any:
        await self.enter("GetJob", request, context)
        if request.job_id not in self.jobs:
            await context.abort(
                *rich_status(
                    grpc.StatusCode.NOT_FOUND, f"no job {request.job_id}", reason("JOB_NOT_FOUND")
                )
            )
        return jobs.GetJobResponse(job=self.jobs[request.job_id])

    async def ListJobs(self, request: Any, context: Any) -> Any:
        await self.enter("ListJobs", request, context)
        first = int(request.page_token or 0)
        found = [job for job in self.jobs.values() if job.queue == request.filter.queue]
        end = first + request.page_size
        return jobs.ListJobsResponse(
            jobs=found[first:end], next_page_token=str(end) if end < len(found) else ""
        )

    async def WatchJob(self, request: Any, context: Any) -> AsyncIterator[Any]:
        await self.enter("WatchJob", request, context)
        seen = 0
        while True:
            job = self.jobs[request.job_id]
            ended = job.state in TERMINAL  # as it is told, whatever becomes of it meanwhile
            if job.revision > seen:
                seen = job.revision
                yield jobs.WatchJobResponse(job=job)
                yield jobs.WatchJobResponse(bookmark=jobs.Bookmark())
            if ended:
                return
            await self._until_newer(job, seen)

    async def _until_newer(self, job: job_pb2.Job, seen: int) -> None:
        async with self.changed:
            await self.changed.wait_for(lambda: job.revision > seen)

    async def CancelJob(self, request: Any, context: Any) -> Any:
        await self.enter("CancelJob", request, context)
        job = self.jobs[request.job_id]
        job.cancel_reason = request.reason
        if job.state == job_pb2.JOB_STATE_RUNNING:
            job.state = job_pb2.JOB_STATE_CANCELLING
            self.notices.append(
                workers.CancelNotice(
                    job_id=job.job_id, fencing_token=job.fencing_token, reason=request.reason
                )
            )
        else:
            job.state = job_pb2.JOB_STATE_CANCELLED
        await self.touch(job)
        return jobs.CancelJobResponse(job=job)

    async def Produce(self, requests: Any, context: Any) -> None:
        """An older server has no such stream."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")

    # WorkerService.

    async def _check_worker(self, worker_id: str, context: Any) -> None:
        if worker_id not in self.workers:
            await context.abort(
                *rich_status(
                    grpc.StatusCode.NOT_FOUND, f"no worker {worker_id}", reason("WORKER_NOT_FOUND")
                )
            )

    async def _check_lease(self, request: Any, context: Any) -> job_pb2.Job:
        job = self.jobs[request.job_id]
        if job.fencing_token != request.fencing_token or job.job_id in self.lost:
            await context.abort(
                *rich_status(
                    grpc.StatusCode.FAILED_PRECONDITION, "the lease is lost", reason("LEASE_LOST")
                )
            )
        return job

    async def RegisterWorker(self, request: Any, context: Any) -> Any:
        await self.enter("RegisterWorker", request, context)
        self.workers[request.worker.worker_id] = request.worker
        return workers.RegisterWorkerResponse(
            heartbeat_interval=to_duration(self.heartbeat_s),
            worker_timeout=Duration(seconds=10),
            lease_duration=Duration(seconds=30),
            server_id="test",
        )

    def _hand_out(self, worker_id: str, max_jobs: int) -> list[workers.Assignment]:
        assignments: list[workers.Assignment] = []
        while self.pending and len(assignments) < max_jobs:
            job = self.jobs[self.pending.popleft()]
            job.state = job_pb2.JOB_STATE_RUNNING
            job.attempt += 1
            job.fencing_token += 1
            job.revision += 1
            job.worker_id = worker_id
            assignments.append(
                workers.Assignment(
                    job_id=job.job_id,
                    fencing_token=job.fencing_token,
                    attempt=job.attempt,
                    spec=job.spec,
                )
            )
        return assignments

    async def ClaimJob(self, request: Any, context: Any) -> Any:
        await self.enter("ClaimJob", request, context)
        await self._check_worker(request.worker_id, context)

        async with self.changed:
            await self.changed.wait_for(
                lambda: (
                    self.pending
                    or self.claim_notices
                    or self._is_draining(request.worker_id)
                    or request.worker_id not in self.workers
                )
            )
        await self._check_worker(request.worker_id, context)
        assignments: list[workers.Assignment] = []
        if not self._is_draining(request.worker_id):
            assignments = self._hand_out(request.worker_id, request.max_jobs)
        notices, self.claim_notices = self.claim_notices, []
        await self.touch()
        return workers.ClaimJobResponse(assignments=assignments, cancellations=notices)

    def _is_draining(self, worker_id: str) -> bool:
        return any(call.worker_id == worker_id for call in self.calls["UpdateWorkerStatus"])

    async def UpdateWorkerStatus(self, request: Any, context: Any) -> Any:
        await self.enter("UpdateWorkerStatus", request, context)
        return workers.UpdateWorkerStatusResponse(status=request.status)

    async def UpdateProgress(self, request: Any, context: Any) -> Any:
        await self.enter("UpdateProgress", request, context)
        job = await self._check_lease(request, context)
        job.progress.CopyFrom(request.progress)
        await self.touch(job)
        return workers.UpdateProgressResponse()

    async def CompleteJob(self, request: Any, context: Any) -> Any:
        await self.enter("CompleteJob", request, context)
        completion = request.completion
        job = await self._check_lease(completion, context)
        match completion.WhichOneof("outcome"):
            case "success":
                job.state = job_pb2.JOB_STATE_SUCCEEDED
                job.result.CopyFrom(completion.success.result)
            case "failure":
                job.state = job_pb2.JOB_STATE_FAILED
                job.failure.CopyFrom(completion.failure)
            case "cancelled":
                job.state = job_pb2.JOB_STATE_CANCELLED
            case "released":
                job.state = job_pb2.JOB_STATE_PENDING
        answer = workers.CompleteJobResponse(state=job.state)
        if request.HasField("claim_next"):
            answer.assignments.extend(
                self._hand_out(request.worker_id, request.claim_next.max_jobs)
            )
            answer.cancellations.extend(self.complete_notices)
            self.complete_notices.clear()
        await self.touch(job)
        return answer

    async def Heartbeat(self, request: Any, context: Any) -> Any:
        await self.enter("Heartbeat", request, context)
        await self._check_worker(request.worker_id, context)
        held = {lease.job_id for lease in request.leases}
        return workers.HeartbeatResponse(
            lost_leases=[lease for lease in request.leases if lease.job_id in self.lost],
            cancellations=[notice for notice in self.notices if notice.job_id in held],
            drain=workers.Drain(leave=True) if self.drain else None,
        )

    async def DeregisterWorker(self, request: Any, context: Any) -> Any:
        await self.enter("DeregisterWorker", request, context)
        self.workers.pop(request.worker_id, None)
        return workers.DeregisterWorkerResponse()

    # AdminService.

    async def ListQueues(self, request: Any, context: Any) -> Any:
        await self.enter("ListQueues", request, context)
        queue = admin.Queue(
            queue="default",
            counts=[admin.StateCount(state=job_pb2.JOB_STATE_PENDING, count=len(self.pending))],
        )
        return admin.ListQueuesResponse(queues=[queue])

    async def PauseQueue(self, request: Any, context: Any) -> Any:
        await self.enter("PauseQueue", request, context)
        return admin.PauseQueueResponse(queue=admin.Queue(queue=request.queue, paused=True))

    async def GetServerInfo(self, request: Any, context: Any) -> Any:
        await self.enter("GetServerInfo", request, context)
        return admin.GetServerInfoResponse(server_id="test", version="0.1.0", store_engine="valkey")
