"""WorkerService: workers that make a call at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from jobwire.v1 import worker_service_pb2
from jobwire_server.broker.router import Router
from jobwire_server.domain.errors import JobwireError
from jobwire_server.domain.model import Completed, WorkerStatus
from jobwire_server.domain.options import Limits
from jobwire_server.servicers import convert, wire
from jobwire_server.servicers.checks import (
    Checker,
    check_checkpoint,
    check_failure,
    check_output,
    check_progress,
    worker_spec,
)
from jobwire_server.servicers.work import WorkStreams

MAX_WAIT_MS = 60_000
MAX_LEASES = 10_000
_CHOOSABLE = (WorkerStatus.READY, WorkerStatus.PAUSED, WorkerStatus.DRAINING)


class WorkerService:
    """Converts, asks the router, and converts back."""

    def __init__(self, router: Router, limits: Limits) -> None:
        self._router = router
        self._limits = limits
        self._streams = WorkStreams(router, limits)

    async def RegisterWorker(
        self, request: worker_service_pb2.RegisterWorkerRequest, context: object
    ) -> worker_service_pb2.RegisterWorkerResponse:
        """Makes a worker known."""
        checker = Checker()
        spec = worker_spec(request.worker, "worker", checker)
        if request.instance_id:
            checker.worker_id("instance_id", request.instance_id)
        checker.raise_if_any()
        await self._router.register_worker(spec, request.instance_id)
        options = self._router.options
        return worker_service_pb2.RegisterWorkerResponse(
            heartbeat_interval=convert.span(self._router.heartbeat_ms(spec)),
            worker_timeout=convert.span(options.worker_timeout_ms),
            lease_duration=convert.span(self._router.lease_ms(spec)),
            server_id=self._router.server_id,
            contact_timeout=convert.span(
                options.call_contact_timeout_ms(self._router.lease_ms(spec))
            ),
        )

    async def ClaimJob(self, request: worker_service_pb2.ClaimJobRequest, context: object) -> Any:
        """Hands out jobs."""
        checker = Checker()
        checker.worker_id("worker_id", request.worker_id)
        for at, name in enumerate(request.queues):
            checker.queue(f"queues[{at}]", name, required=True)
        most = checker.count("max_jobs", request.max_jobs, 1, self._limits.max_batch_jobs, 1)
        wait_ms = checker.duration_ms("wait", request.wait, 0, MAX_WAIT_MS)
        queue, ulid = checker.job_id("job_id", request.job_id) if request.job_id else ("", "")
        checker.raise_if_any()
        if ulid:
            assignment, lease_ms = await self._router.claim_job(request.worker_id, queue, ulid)
            assignments = [assignment]
            told = await self._router.cancellations(request.worker_id)
        else:
            assignments, lease_ms, told = await self._router.poll(
                request.worker_id, request.queues, most, wait_ms
            )
        answer = wire.ClaimJobResponse()
        convert.add_assignments(answer.assignments, assignments)
        convert.set_moment(answer.lease_duration, lease_ms)
        convert.add_cancellations(answer.cancellations, told)
        return answer

    async def UpdateProgress(
        self, request: worker_service_pb2.UpdateProgressRequest, context: object
    ) -> worker_service_pb2.UpdateProgressResponse:
        """Records how far a job is."""
        checker = Checker()
        checker.worker_id("worker_id", request.worker_id)
        queue, ulid = checker.job_id("job_id", request.job_id)
        progress = check_progress(checker, "progress", request.progress)
        output = check_output(checker, "output", request.output)
        checkpoint = check_checkpoint(checker, "checkpoint", request)
        checker.raise_if_any()
        renewal = await self._router.report(
            queue, ulid, request.worker_id, request.fencing_token, progress, output, checkpoint
        )
        return worker_service_pb2.UpdateProgressResponse(
            cancel=convert.cancel_notice(renewal.cancel) if renewal.cancel else None,
            lease_expires_at=convert.moment(renewal.lease_expires_at_ms),
        )

    async def CompleteJob(
        self, request: worker_service_pb2.CompleteJobRequest, context: object
    ) -> Any:
        """Ends an attempt, and brings the next jobs if asked."""
        checker = Checker()
        worker_id = request.worker_id
        checker.worker_id("worker_id", worker_id)
        claim_next = request.HasField("claim_next")
        most = wait_ms = 0
        if claim_next:
            wanted = request.claim_next
            most = checker.count(
                "claim_next.max_jobs", wanted.max_jobs, 1, self._limits.max_batch_jobs, 1
            )
            wait_ms = checker.duration_ms("claim_next.wait", wanted.wait, 0, MAX_WAIT_MS)
        completed = await self._complete(checker, worker_id, request.completion)
        answer = wire.CompleteJobResponse(state=completed.state.value, repeated=completed.repeated)
        convert.set_moment(answer.next_attempt_at, completed.next_attempt_at_ms)
        if claim_next:
            try:
                assignments, lease_ms, told = await self._router.poll(worker_id, (), most, wait_ms)
            except JobwireError:
                # The completion is recorded, which is what counts; the worker's next call hears
                # why there are no jobs.
                return answer
            convert.add_assignments(answer.assignments, assignments)
            convert.add_cancellations(answer.cancellations, told)
            convert.set_moment(answer.lease_duration, lease_ms)
        return answer

    async def Work(
        self, requests: AsyncIterator[worker_service_pb2.WorkRequest], context: Any
    ) -> None:
        """Holds a worker's stream."""
        await self._streams.hold(requests, context)

    async def _complete(
        self, checker: Checker, worker_id: str, completion: worker_service_pb2.Completion
    ) -> Completed:
        """Checks a completion and has it done."""
        queue, ulid = checker.job_id("completion.job_id", completion.job_id)
        token = completion.fencing_token
        kind = completion.WhichOneof("outcome")
        if kind == "success":
            result = completion.success.result
            checker.payload("completion.success.result", result, self._limits.max_result_bytes)
            checker.raise_if_any()
            return await self._router.succeed(
                queue, ulid, worker_id, token, result.SerializeToString()
            )
        if kind == "failure":
            failure = check_failure(checker, "completion.failure", completion.failure)
            checker.raise_if_any()
            return await self._router.fail(queue, ulid, worker_id, token, failure)
        if kind == "released":
            released = completion.released
            reason = checker.text("completion.released.reason", released.reason, 512)
            checker.raise_if_any()
            return await self._router.release(
                queue, ulid, worker_id, token, not released.not_started, reason
            )
        if kind is None:
            checker.add(
                "completion.outcome", "must be set to one of success, failure, cancelled, released"
            )
        checker.raise_if_any()
        return await self._router.confirm_cancel(queue, ulid, worker_id, token)

    async def Heartbeat(
        self, request: worker_service_pb2.HeartbeatRequest, context: object
    ) -> worker_service_pb2.HeartbeatResponse:
        """Renews leases."""
        checker = Checker()
        checker.worker_id("worker_id", request.worker_id)
        if len(request.leases) > MAX_LEASES:
            checker.add("leases", f"may name at most {MAX_LEASES}, not {len(request.leases)}")
            checker.raise_if_any()
        leases = [
            (*checker.job_id(f"leases[{at}].job_id", lease.job_id), lease.fencing_token)
            for at, lease in enumerate(request.leases)
        ]
        checker.raise_if_any()
        stuck = min(request.stuck, MAX_LEASES) if request.HasField("stuck") else None
        status, renewals, lease_ms = await self._router.heartbeat(request.worker_id, leases, stuck)
        answer = worker_service_pb2.HeartbeatResponse(
            drain=status is WorkerStatus.DRAINING, lease_duration=convert.span(lease_ms)
        )
        for lease, renewal in zip(request.leases, renewals, strict=True):
            if renewal.lost:
                answer.lost_leases.append(lease)
            elif renewal.cancel:
                answer.cancellations.append(convert.cancel_notice(renewal.cancel))
        return answer

    async def UpdateWorkerStatus(
        self, request: worker_service_pb2.UpdateWorkerStatusRequest, context: object
    ) -> worker_service_pb2.UpdateWorkerStatusResponse:
        """Changes whether the worker takes jobs."""
        checker = Checker()
        checker.worker_id("worker_id", request.worker_id)
        if request.status not in [status.value for status in _CHOOSABLE]:
            checker.add(
                "status",
                "must be WORKER_STATUS_READY, WORKER_STATUS_PAUSED or WORKER_STATUS_DRAINING",
            )
        checker.raise_if_any()
        await self._router.set_worker_status(request.worker_id, WorkerStatus(request.status))
        return worker_service_pb2.UpdateWorkerStatusResponse(status=request.status)

    async def DeregisterWorker(
        self, request: worker_service_pb2.DeregisterWorkerRequest, context: object
    ) -> worker_service_pb2.DeregisterWorkerResponse:
        """Ends the worker."""
        checker = Checker()
        checker.worker_id("worker_id", request.worker_id)
        checker.raise_if_any()
        released = await self._router.deregister_worker(request.worker_id)
        return worker_service_pb2.DeregisterWorkerResponse(released_jobs=released)
