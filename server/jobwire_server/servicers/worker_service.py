"""WorkerService: workers that make a call at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

from jobwire.v1 import worker_service_pb2
from jobwire_server.broker.router import Router
from jobwire_server.domain.options import Limits
from jobwire_server.servicers import convert, wire
from jobwire_server.servicers.attempts import AttemptChecks
from jobwire_server.servicers.checks import Checker
from jobwire_server.servicers.work import WorkStreams
from jobwire_server.servicers.worker_checks import status_metadata, worker_spec, worker_status
from jobwire_server.workers.claims import ClaimWish

MAX_WAIT_MS = 60_000
MAX_LEASES = 10_000
MAX_STUCK = (1 << 31) - 1


class WorkerService:
    """Converts, asks the router, and converts back."""

    def __init__(self, router: Router, limits: Limits) -> None:
        self._router = router
        self._limits = limits
        self._attempts = AttemptChecks(limits.max_result_bytes)
        self._streams = WorkStreams(router, limits)

    async def RegisterWorker(
        self, request: worker_service_pb2.RegisterWorkerRequest, context: object
    ) -> worker_service_pb2.RegisterWorkerResponse:
        """Make a worker known."""
        checker = Checker()
        spec = worker_spec(request.worker, "worker", checker)
        instance = instance_of(checker, request.instance_id)
        checker.raise_if_any()
        await self._router.register_worker(spec, instance)
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
        """Hand out jobs."""
        checker = Checker()
        wish = claim_wish(checker, request, self._limits)
        checker.raise_if_any()
        handed = await self._router.claim(wish)
        return convert.add_handed(wire.ClaimJobResponse(), handed)

    async def UpdateProgress(
        self, request: worker_service_pb2.UpdateProgressRequest, context: object
    ) -> worker_service_pb2.UpdateProgressResponse:
        """Record how far a job is."""
        checker = Checker()
        checker.worker_id("worker_id", request.worker_id)
        reported = self._attempts.reported(checker, request)
        checker.raise_if_any()
        renewal = await self._router.report(request.worker_id, reported)
        return worker_service_pb2.UpdateProgressResponse(
            cancel=convert.cancel_notice(renewal.cancel) if renewal.cancel else None,
            lease_expires_at=convert.moment(renewal.lease_expires_at_ms),
        )

    async def CompleteJob(
        self, request: worker_service_pb2.CompleteJobRequest, context: object
    ) -> Any:
        """End an attempt, and bring the next jobs if asked."""
        checker = Checker()
        worker_id = checker.worker_id("worker_id", request.worker_id)
        following = next_claim_wish(checker, request, self._limits)
        ended = self._attempts.ended(checker, request.completion, "completion.")
        checker.raise_if_any()
        completed = await self._router.complete(worker_id, ended)
        answer = wire.CompleteJobResponse(state=completed.state.value, repeated=completed.repeated)
        convert.write_ms(answer.next_attempt_at, completed.next_attempt_at_ms)
        if following is not None:
            convert.add_handed(answer, await self._router.claim_next(following))
        return answer

    async def Work(
        self, requests: AsyncIterator[worker_service_pb2.WorkRequest], context: Any
    ) -> None:
        """Hold a worker's stream."""
        await self._streams.hold(requests, context)

    async def Heartbeat(
        self, request: worker_service_pb2.HeartbeatRequest, context: object
    ) -> worker_service_pb2.HeartbeatResponse:
        """Renew leases."""
        checker = Checker()
        checker.worker_id("worker_id", request.worker_id)
        leases = lease_refs(checker, request.leases)
        checker.number("stuck", request.stuck, 0, MAX_STUCK)
        checker.raise_if_any()
        stuck = min(request.stuck, MAX_LEASES) if request.HasField("stuck") else None
        beat = await self._router.heartbeat(request.worker_id, leases, stuck)
        answer = worker_service_pb2.HeartbeatResponse(lease_duration=convert.span(beat.lease_ms))
        if beat.drain is not None:
            convert.write_drain(answer.drain, beat.drain)
        for lease, renewal in zip(request.leases, beat.renewals, strict=True):
            if renewal.lost:
                answer.lost_leases.append(lease)
            elif renewal.cancel:
                answer.cancellations.append(convert.cancel_notice(renewal.cancel))
        return answer

    async def UpdateWorkerStatus(
        self, request: worker_service_pb2.UpdateWorkerStatusRequest, context: object
    ) -> worker_service_pb2.UpdateWorkerStatusResponse:
        """Change whether the worker takes jobs, and what it tells of itself."""
        checker = Checker()
        checker.worker_id("worker_id", request.worker_id)
        wanted = worker_status(checker, "status", request.status)
        told = None
        if request.HasField("metadata"):
            told = status_metadata(checker, "metadata.entries", request.metadata.entries)
        instance = instance_of(checker, request.instance_id)
        checker.raise_if_any()
        status = await self._router.set_worker_status(request.worker_id, wanted, told, instance)
        return worker_service_pb2.UpdateWorkerStatusResponse(status=status.value)  # type: ignore[arg-type]

    async def DeregisterWorker(
        self, request: worker_service_pb2.DeregisterWorkerRequest, context: object
    ) -> worker_service_pb2.DeregisterWorkerResponse:
        """End the worker."""
        checker = Checker()
        checker.worker_id("worker_id", request.worker_id)
        instance = instance_of(checker, request.instance_id)
        checker.raise_if_any()
        released = await self._router.deregister_worker(request.worker_id, instance)
        return worker_service_pb2.DeregisterWorkerResponse(released_jobs=released)


def instance_of(checker: Checker, instance_id: str) -> str:
    """Return the name of a worker's process; '' if it was not said."""
    return checker.worker_id("instance_id", instance_id) if instance_id else ""


def claim_wish(
    checker: Checker, request: worker_service_pb2.ClaimJobRequest, limits: Limits
) -> ClaimWish:
    """Return what a call asks for."""
    return ClaimWish(
        checker.worker_id("worker_id", request.worker_id),
        checker.queues("queues", request.queues),
        checker.count("max_jobs", request.max_jobs, 1, limits.max_batch_jobs, 1),
        checker.duration_ms("wait", request.wait, 0, MAX_WAIT_MS),
        checker.job_id("job_id", request.job_id) if request.job_id else None,
    )


def next_claim_wish(
    checker: Checker, request: worker_service_pb2.CompleteJobRequest, limits: Limits
) -> ClaimWish | None:
    """Return what a completion asks for besides, None for nothing."""
    if not request.HasField("claim_next"):
        return None
    wanted = request.claim_next
    most = checker.count("claim_next.max_jobs", wanted.max_jobs, 1, limits.max_batch_jobs, 1)
    wait_ms = checker.duration_ms("claim_next.wait", wanted.wait, 0, MAX_WAIT_MS)
    return ClaimWish(request.worker_id, (), most, wait_ms)


def lease_refs(
    checker: Checker, leases: Sequence[worker_service_pb2.LeaseRef]
) -> list[tuple[str, str, int]]:
    """Return (queue, ULID, fencing token) of the leases that a heartbeat names."""
    if len(leases) > MAX_LEASES:
        checker.add("leases", f"may name at most {MAX_LEASES}, not {len(leases)}")
        return []
    return [
        (*checker.job_id(f"leases[{at}].job_id", lease.job_id), lease.fencing_token)
        for at, lease in enumerate(leases)
    ]
