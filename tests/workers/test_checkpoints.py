"""Checkpoints on the wire: in reports, assignments and the job."""

from __future__ import annotations

import grpc
import pytest

from jobwire.v1.errors_pb2 import ERROR_REASON_TOO_LARGE
from jobwire.v1.job_pb2 import JOB_VIEW_BASIC, Payload
from jobwire.v1.job_service_pb2 import GetJobRequest
from jobwire.v1.worker_service_pb2 import (
    ClaimJobRequest,
    ClaimNext,
    CompleteJobRequest,
    Completion,
    Released,
    Report,
    UpdateProgressRequest,
)
from jobwire.v1.worker_service_pb2_grpc import WorkerServiceStub

from tests.support.streams import Producer, RawWorker, StreamServer

SAVED = Payload(json='{ "at":  17 }')
LARGEST = Payload(data=b"x" * ((64 << 10) - 4))


async def test_a_checkpoint_of_a_report_comes_with_the_next_assignment(
    server: StreamServer, producer: Producer
) -> None:
    (job_id,) = await producer.submit()
    async with RawWorker(server.address, credits=1) as worker:
        await worker.attach()
        (first,) = await worker.jobs(1)
        assert not first.HasField("checkpoint")
        report = Report(job_id=job_id, fencing_token=first.fencing_token, checkpoint=SAVED)
        receipt = await worker.receipt(await worker.post(reports=[report]))
        assert not receipt.refused
        assert (await producer.job(job_id)).checkpoint == SAVED
        basic = GetJobRequest(job_id=job_id, view=JOB_VIEW_BASIC)
        assert not (await producer.stub.GetJob(basic)).job.HasField("checkpoint")
        await worker.release(first)
        _, second = await worker.jobs(2)
        assert second.checkpoint == SAVED
        assert second.spec.payload == first.spec.payload


async def test_a_checkpoint_that_is_too_large_is_refused_and_the_rest_of_the_frame_taken(
    server: StreamServer, producer: Producer
) -> None:
    one, two = await producer.submit(2)
    async with RawWorker(server.address, credits=2) as worker:
        await worker.attach()
        tokens = {job.job_id: job.fencing_token for job in await worker.jobs(2)}
        too_large = Payload(data=LARGEST.data + b"x")
        reports = [
            Report(job_id=one, fencing_token=tokens[one], checkpoint=LARGEST),
            Report(job_id=two, fencing_token=tokens[two], checkpoint=too_large),
        ]
        (refused,) = (await worker.receipt(await worker.post(reports=reports))).refused
        assert (refused.job_id, refused.error.reason) == (two, ERROR_REASON_TOO_LARGE)
        assert [violation.field for violation in refused.error.violations] == ["checkpoint"]
        assert (await producer.job(one)).checkpoint == LARGEST
        assert not (await producer.job(two)).HasField("checkpoint")


async def test_a_worker_that_makes_a_call_at_a_time_gets_checkpoints_too(
    server: StreamServer, producer: Producer
) -> None:
    async with (
        RawWorker(server.address, "w1", credits=0) as worker,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        await worker.attach()  # which makes it known
        stub = WorkerServiceStub(channel)
        (job_id,) = await producer.submit()
        claim = ClaimJobRequest(worker_id="w1", wait={"seconds": 5})
        (first,) = (await stub.ClaimJob(claim)).assignments
        update = UpdateProgressRequest(
            worker_id="w1", job_id=job_id, fencing_token=first.fencing_token, checkpoint=SAVED
        )
        await stub.UpdateProgress(update)
        update.checkpoint.CopyFrom(Payload(data=LARGEST.data + b"x"))
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await stub.UpdateProgress(update)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        completion = Completion(
            job_id=job_id, fencing_token=first.fencing_token, released=Released()
        )
        answer = await stub.CompleteJob(
            CompleteJobRequest(worker_id="w1", completion=completion, claim_next=ClaimNext())
        )
        (second,) = answer.assignments
        assert (second.job_id, second.attempt, second.checkpoint) == (job_id, 2, SAVED)
