"""Deadlines of jobs that a worker on a stream holds."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp

from jobwire.v1.job_pb2 import JOB_STATE_FAILED

from tests.support.streams import Producer, RawWorker, StreamServer


def _soon(server: StreamServer) -> Timestamp:
    at = Timestamp()
    at.FromMilliseconds(server.router.clock.now_ms() + 2_500)
    return at


async def test_a_worker_is_told_at_the_deadline_that_the_job_is_not_its_own_any_more(
    server: StreamServer, producer: Producer
) -> None:
    async with RawWorker(server.address, credits=1) as worker:
        await worker.attach()
        (job_id,) = await producer.submit(deadline=_soon(server))
        (assignment,) = await worker.jobs(1)
        assert assignment.spec.HasField("deadline")
        await worker.loses(assignment)
        job = await producer.until(job_id, JOB_STATE_FAILED)
        assert job.failure.type == "DEADLINE_EXCEEDED"
        # Its credit is free again.
        (other,) = await producer.submit()
        _, following = await worker.jobs(2)
        assert following.job_id == other


async def test_a_result_after_the_deadline_is_refused(
    server: StreamServer, producer: Producer
) -> None:
    async with RawWorker(server.address) as worker:
        await worker.attach()
        await producer.submit(deadline=_soon(server))
        (assignment,) = await worker.jobs(1)
        await worker.loses(assignment)
        receipt = await worker.complete(assignment)
        (refused,) = receipt.refused
        assert refused.job_id == assignment.job_id
