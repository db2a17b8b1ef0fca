"""What an SDK hides: calls that are made once, and a worker that says again what was recorded."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from jobwire._channels import open_async_channel
from jobwire._connection import ConnectionOptions
from jobwire.errors import from_item_error, from_rpc_error
from jobwire.ids import new_job_id
from jobwire.v1.job_pb2 import Failure, JobSpec, Payload, RetryPolicy
from jobwire.v1.job_service_pb2 import SubmitJobRequest, SubmitJobsRequest
from jobwire.v1.job_service_pb2_grpc import JobServiceStub
from jobwire.v1.worker_service_pb2 import (
    ClaimJobRequest,
    CompleteJobRequest,
    Completion,
    HeartbeatRequest,
    LeaseRef,
    RegisterWorkerRequest,
    Success,
    WorkerSpec,
)
from jobwire.v1.worker_service_pb2_grpc import WorkerServiceStub

from tests.faults.history import Journal
from tests.faults.lives import BARE
from tests.faults.wishes import draw

QUEUE = "faults-bare"
CALL_S = 3.0
PATIENCE_S = 60.0


def submission(job_id: str, queue: str, operation: str) -> SubmitJobRequest:
    """A plain job."""
    payload = Payload(json='{"kind":"noop","rows":0,"row_ms":0,"fails":0}')
    retry = RetryPolicy(max_attempts=10, initial_backoff=Duration(nanos=100_000_000))
    spec = JobSpec(operation=operation, payload=payload, retry=retry)
    return SubmitJobRequest(queue=queue, job_id=job_id, spec=spec)


class Bare:
    """A producer and a worker without an SDK.

    Args:
        target: Where the servers are.
        journal: Takes what they do.
        rng: Decides what they do.
        pause_s: The mean pause of each.
        stopping: Set when they are to stop.
    """

    def __init__(
        self,
        target: str,
        journal: Journal,
        rng: random.Random,
        pause_s: float,
        stopping: asyncio.Event,
    ) -> None:
        self.channel = open_async_channel(ConnectionOptions(target=target))
        self.jobs = JobServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.workers = WorkerServiceStub(self.channel)  # type: ignore[no-untyped-call]
        self.worker_id = f"{BARE}{rng.getrandbits(48):012x}"
        self.journal = journal
        self.rng = rng
        self.pause_s = pause_s
        self.stopping = stopping

    async def produce(self) -> None:
        """Submits batches, each in one call that is never repeated."""
        while not self.stopping.is_set():
            await asyncio.sleep(self.rng.uniform(0, 2 * self.pause_s))
            wish = draw(self.rng)
            job_ids = [new_job_id(wish.queue) for _ in range(self.rng.randrange(1, 8))]
            for job_id in job_ids:
                self.journal.write("submit", key=job_id, wish={"queue": wish.queue}, bare=True)
            requests = [submission(job_id, wish.queue, "faults.async") for job_id in job_ids]
            try:
                answer = await self.jobs.SubmitJobs(
                    SubmitJobsRequest(requests=requests), timeout=CALL_S
                )
            except grpc.RpcError as raised:
                for job_id in job_ids:
                    self._refused(job_id, from_rpc_error(raised))
                continue
            for job_id, result in zip(job_ids, answer.results, strict=True):
                if result.WhichOneof("outcome") == "error":
                    self._refused(job_id, from_item_error(result.error))
                else:
                    accepted = result.accepted
                    self.journal.write(
                        "accepted", key=job_id, job=accepted.job_id, existed=accepted.existed
                    )

    def _refused(self, job_id: str, error: Any) -> None:
        self.journal.write(
            "refused",
            key=job_id,
            code=error.code.name,
            reason=error.reason,
            text=str(error)[:300],
            bare=True,
        )

    async def work(self) -> None:
        """Fails jobs, and says each failure again once the job is claimed anew; then succeeds."""
        while not self.stopping.is_set():
            await asyncio.sleep(self.rng.uniform(0, 4 * self.pause_s))
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await self._one_job()
            except TimeoutError:
                continue

    async def _one_job(self) -> None:
        register = RegisterWorkerRequest(
            worker=WorkerSpec(worker_id=self.worker_id, queues=[QUEUE], operations=["bare"])
        )
        await self._insist(self.workers.RegisterWorker, register)
        job_id = new_job_id(QUEUE)
        self.journal.write("submit", key=job_id, wish={"queue": QUEUE}, bare=True)
        answer = await self._insist(self.jobs.SubmitJob, submission(job_id, QUEUE, "bare"))
        if isinstance(answer, str):
            return
        self.journal.write("accepted", key=job_id, job=job_id, existed=answer.existed)
        first = await self._claim(job_id)
        if first is None:
            return
        failed = self._completion(first, failure=Failure(type="Bare", message="to be said again"))
        self._end(first, "failed")
        before = await self._insist(self.workers.CompleteJob, failed)
        if isinstance(before, str):
            return
        second = await self._claim(job_id)
        if second is None:
            return
        again = await self._insist(self.workers.CompleteJob, failed)
        same = not isinstance(again, str) and again.state == before.state
        found = again if isinstance(again, str) else ("same" if same else f"state {again.state}")
        self.journal.write(
            "repeated", job=job_id, token=first.fencing_token, found=found, what_ended="failure"
        )
        self._end(second, "ok")
        done = self._completion(second, success=Success())
        await self._insist(self.workers.CompleteJob, done)

    async def _claim(self, job_id: str) -> Any:
        """Claims one job by its id, in calls of which the first may have lost its answer."""
        end = time.monotonic() + PATIENCE_S / 3
        while time.monotonic() < end:
            answer = await self._insist(
                self.workers.ClaimJob, ClaimJobRequest(worker_id=self.worker_id, job_id=job_id)
            )
            if not isinstance(answer, str) and answer.assignments:
                (assignment,) = answer.assignments
                self.journal.write(
                    *("begin",),
                    job=job_id,
                    token=assignment.fencing_token,
                    attempt=assignment.attempt,
                    kind="bare",
                    checkpoint=0,
                    rows=0,
                )
                lease = LeaseRef(job_id=job_id, fencing_token=assignment.fencing_token)
                await self._insist(
                    self.workers.Heartbeat,
                    HeartbeatRequest(worker_id=self.worker_id, leases=[lease]),
                )
                return assignment
            await asyncio.sleep(0.1)
        return None

    def _completion(self, assignment: Any, **outcome: Any) -> CompleteJobRequest:
        completion = Completion(
            job_id=assignment.job_id, fencing_token=assignment.fencing_token, **outcome
        )
        return CompleteJobRequest(worker_id=self.worker_id, completion=completion)

    def _end(self, assignment: Any, how: str) -> None:
        facts = {"job": assignment.job_id, "token": assignment.fencing_token}
        self.journal.write("end", **facts, how=how, reason="")

    async def _insist(self, method: Any, request: Any) -> Any:
        """Calls until something else than unavailability is said; the reason where it is an error.

        Raises:
            TimeoutError: Nothing was said for long.
        """
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            try:
                return await method(request, timeout=CALL_S)
            except grpc.RpcError as raised:
                error = from_rpc_error(raised)
            again = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED", "RESOURCE_EXHAUSTED")
            if error.code.name not in again:
                return error.reason or error.code.name
            await asyncio.sleep(0.1)
        raise TimeoutError
