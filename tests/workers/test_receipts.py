"""What a worker says about its jobs, and what it is answered."""

from __future__ import annotations

import asyncio

from jobwire.v1.errors_pb2 import (
    ERROR_REASON_INVALID_FIELD,
    ERROR_REASON_LEASE_LOST,
    ERROR_REASON_TOO_LARGE,
    ERROR_REASON_WRONG_STATE,
)
from jobwire.v1.job_pb2 import (
    JOB_STATE_CANCELLED,
    JOB_STATE_FAILED,
    JOB_STATE_PENDING,
    JOB_STATE_RUNNING,
    JOB_STATE_SCHEDULED,
    JOB_STATE_SUCCEEDED,
    Failure,
    Payload,
    Progress,
)
from jobwire.v1.worker_service_pb2 import (
    WORKER_STATUS_PAUSED,
    WORKER_STATUS_READY,
    Cancelled,
    Completion,
    Report,
    Success,
)
from jobwire_server.domain.model import WorkerStatus

from tests.support.streams import (
    PATIENCE_S,
    Producer,
    RawWorker,
    StreamServer,
    completion,
    lease_of,
)
from tests.support.waiting import eventually


async def test_each_outcome_is_recorded_before_its_receipt(
    server: StreamServer, producer: Producer
) -> None:
    job_ids = await producer.submit(4)
    async with RawWorker(server.address) as worker:
        await worker.attach()
        done, failed, dead, back = await worker.jobs(4)
        await worker.send(credits=0)
        receipt = await worker.receipt(
            await worker.post(
                [
                    completion(done),
                    completion(failed, failure=Failure(type="Oops", message="no")),
                    completion(dead, failure=Failure(type="Oops", non_retryable=True)),
                    completion(back, released={"not_started": True}),
                ]
            )
        )
        assert not receipt.refused
        states = [(await producer.job(job_id)).state for job_id in job_ids]
    assert states == [JOB_STATE_SUCCEEDED, JOB_STATE_SCHEDULED, JOB_STATE_FAILED, JOB_STATE_PENDING]


async def test_a_receipt_names_what_was_refused_and_the_rest_is_recorded(
    server: StreamServer, producer: Producer
) -> None:
    await producer.submit(4)
    async with (
        RawWorker(server.address, "thief", credits=1) as thief,
        RawWorker(server.address, "owner", credits=3) as owner,
    ):
        await thief.attach()
        (own,) = await thief.jobs(1)
        await owner.attach()
        theirs, *_ = await owner.jobs(3)
        bad_json = Success(result=Payload(json="{"))
        sequence = await thief.post(
            [
                completion(theirs),
                Completion(job_id="nonsense", success=Success()),
                completion(own, success=bad_json),
                Completion(job_id=own.job_id, fencing_token=own.fencing_token),
                completion(own),
            ]
        )
        receipt = await thief.receipt(sequence)
        assert [(r.job_id, r.error.reason) for r in receipt.refused if r.error.code != 9] == [
            ("nonsense", ERROR_REASON_INVALID_FIELD),
            (own.job_id, ERROR_REASON_INVALID_FIELD),
            (own.job_id, ERROR_REASON_INVALID_FIELD),
        ]
        assert [(r.job_id, r.error.reason) for r in receipt.refused if r.error.code == 9] == [
            (theirs.job_id, ERROR_REASON_LEASE_LOST)
        ]
        fields = [[v.field for v in r.error.violations] for r in receipt.refused]
        assert ["success.result.json"] in fields
        assert ["outcome"] in fields
        assert (await producer.job(own.job_id)).state == JOB_STATE_SUCCEEDED
        # The owner has not noticed.
        assert not (await owner.complete(theirs)).refused
        assert not thief.call.done()


async def test_a_refused_completion_leaves_the_job_with_its_worker(
    server: StreamServer, producer: Producer
) -> None:
    (job_id,) = await producer.submit()
    async with RawWorker(server.address, credits=1, lease_s=1) as worker:
        await worker.attach()
        (assignment,) = await worker.jobs(1)
        # Nobody cancelled it, so it goes on; its lease must go on as well.
        receipt = await worker.complete(assignment, cancelled=Cancelled())
        assert [r.error.reason for r in receipt.refused] == [ERROR_REASON_WRONG_STATE]
        large = Success(result=Payload(data=b"x" * (1 << 20)))
        receipt = await worker.complete(assignment, success=large)
        assert [r.error.reason for r in receipt.refused] == [ERROR_REASON_TOO_LARGE]
        worker.held[job_id] = assignment
        before = (await producer.job(job_id)).lease_expires_at.ToMilliseconds()
        while True:
            job = await producer.job(job_id)
            assert (job.state, job.crashes) == (JOB_STATE_RUNNING, 0)
            if job.lease_expires_at.ToMilliseconds() > before + 1_500:
                break
            await asyncio.sleep(0.02)
        # It still takes up the only place.
        await producer.submit()
        assert len(worker.got) == 1
        assert not (await worker.complete(assignment)).refused
        await worker.jobs(2)


async def test_a_repeated_completion_gets_the_same_receipt(
    server: StreamServer, producer: Producer
) -> None:
    await producer.submit()
    async with RawWorker(server.address) as worker:
        await worker.attach()
        (assignment,) = await worker.jobs(1)
        assert not (await worker.complete(assignment)).refused
        assert not (await worker.complete(assignment)).refused


async def test_a_recorded_end_gets_the_same_receipt_after_the_next_claim(
    server: StreamServer, producer: Producer
) -> None:
    await producer.submit()
    async with RawWorker(server.address) as worker:
        await worker.attach()
        (assignment,) = await worker.jobs(1)
        assert not (await worker.release(assignment)).refused
        (_, newer) = await worker.jobs(2)
        assert newer.fencing_token == assignment.fencing_token + 1
        assert not (await worker.release(assignment)).refused
        # It changed nothing about the one that runs now.
        assert not (await worker.complete(newer)).refused
        job = await producer.job(assignment.job_id)
        assert (job.interruptions, len(job.attempts)) == (1, 2)


async def test_progress_is_recorded_and_answered(server: StreamServer, producer: Producer) -> None:
    first, second = await producer.submit(2)
    async with RawWorker(server.address) as worker:
        await worker.attach()
        one, two = await worker.jobs(2)
        reports = [
            Report(
                job_id=a.job_id, fencing_token=token, progress=Progress(fraction=f, message="half")
            )
            for a, token, f in [(one, one.fencing_token, 0.5), (two, 7, 0.5), (two, 1, 7.0)]
        ]
        receipt = await worker.receipt(await worker.post(reports=reports))
        assert (await producer.job(first)).progress.fraction == 0.5
        assert not (await producer.job(second)).HasField("progress")
        by_reason = {r.error.reason: r for r in receipt.refused}
        assert by_reason.keys() == {ERROR_REASON_INVALID_FIELD, ERROR_REASON_LEASE_LOST}
        assert by_reason[ERROR_REASON_LEASE_LOST].fencing_token == 7
        assert not (await worker.complete(one, two)).refused


async def test_a_cancellation_is_pushed_within_a_second_whichever_server_takes_it(
    server: StreamServer, second: StreamServer, producer: Producer
) -> None:
    first, other = await producer.submit(2)
    async with RawWorker(server.address) as worker, Producer(second.address) as elsewhere:
        await worker.attach()
        assignments = await worker.jobs(2)
        for at, (job_id, where) in enumerate([(first, producer), (other, elsewhere)]):
            await where.cancel(job_id)
            await eventually(
                lambda at=at: len(worker.cancellations) > at,  # type: ignore[misc]
                "a cancellation",
                timeout_s=1.0,
            )
        assert [c.job_id for c in worker.cancellations] == [first, other]
        assert worker.cancellations[0].fencing_token == assignments[0].fencing_token
        receipt = await worker.complete(*assignments, cancelled=Cancelled())
        assert not receipt.refused
        assert (await producer.job(first)).state == JOB_STATE_CANCELLED


async def test_a_cancellation_is_told_once(server: StreamServer, producer: Producer) -> None:
    (job_id,) = await producer.submit()
    async with RawWorker(server.address, lease_s=3) as worker:
        await worker.attach()
        (assignment,) = await worker.jobs(1)
        await producer.cancel(job_id)
        await eventually(lambda: bool(worker.cancellations), "a cancellation")
        report = Report(job_id=job_id, fencing_token=assignment.fencing_token)
        before = (await producer.job(job_id)).lease_expires_at.ToMilliseconds()
        await worker.receipt(await worker.post(reports=[report]))
        # Some rounds of the lease renewal, each of which finds the job to be cancelled.
        await eventually(lambda: len(worker.frames) > 14, "some heartbeats", timeout_s=30)
        assert (await producer.job(job_id)).lease_expires_at.ToMilliseconds() > before
        assert len(worker.cancellations) == 1


async def test_a_job_that_was_taken_back_is_told_to_be_lost(
    server: StreamServer, producer: Producer
) -> None:
    (job_id,) = await producer.submit(execution_timeout={"nanos": 300_000_000})
    async with RawWorker(server.address, credits=1) as worker:
        await worker.attach()
        (assignment,) = await worker.jobs(1)
        await worker.loses(assignment)
        job = await producer.job(job_id)
        assert job.failures == 1
        receipt = await worker.complete(assignment)
        assert [r.error.reason for r in receipt.refused] == [ERROR_REASON_LEASE_LOST]
        # Its place is free again.
        (other,) = await producer.submit()
        assert other in [job.job_id for job in await worker.jobs(2)]


async def test_a_paused_worker_gets_no_jobs_until_it_is_ready(
    server: StreamServer, producer: Producer
) -> None:
    async with RawWorker(server.address) as worker:
        await worker.attach()
        await worker.set_status(WORKER_STATUS_PAUSED)
        async with asyncio.timeout(PATIENCE_S):
            while True:
                found = await server.router.operators.find_worker("w1")
                if found is not None and found.status is WorkerStatus.PAUSED:
                    break
                await asyncio.sleep(0.01)
        (job_id,) = await producer.submit()
        await eventually(lambda: len(worker.frames) > 5, "some heartbeats")
        assert not worker.got
        await worker.set_status(WORKER_STATUS_READY)
        (assignment,) = await worker.jobs(1)
        assert assignment.job_id == job_id


async def test_a_worker_that_detaches_gives_back_what_it_holds_as_interruptions(
    server: StreamServer, producer: Producer
) -> None:
    job_ids = await producer.submit(3)
    async with RawWorker(server.address) as worker:
        await worker.attach()
        one, *_ = await worker.jobs(3)
        await worker.complete(one)
        code, _ = await worker.leave()
        assert code.name == "OK"
    jobs = [await producer.job(job_id) for job_id in job_ids]
    assert [job.state for job in jobs] == [
        JOB_STATE_SUCCEEDED,
        JOB_STATE_PENDING,
        JOB_STATE_PENDING,
    ]
    assert [job.interruptions for job in jobs] == [0, 1, 1]
    assert [job.crashes for job in jobs] == [0, 0, 0]
    assert await server.router.operators.find_worker("w1") is None


async def test_what_was_sent_before_the_stream_ended_is_recorded(
    server: StreamServer, producer: Producer
) -> None:
    job_ids = await producer.submit(50)
    async with RawWorker(server.address, credits=50) as worker:
        await worker.attach()
        assignments = await worker.jobs(50)
        await worker.post([completion(assignment) for assignment in assignments])
        await worker.done_writing()
        await worker.end()
    for job_id in job_ids:
        assert (await producer.job(job_id)).state == JOB_STATE_SUCCEEDED


async def test_a_completion_for_another_workers_lease_harms_nobody(
    server: StreamServer, producer: Producer
) -> None:
    (job_id,) = await producer.submit()
    async with (
        RawWorker(server.address, "owner") as owner,
        RawWorker(server.address, "thief") as thief,
    ):
        await owner.attach()
        (assignment,) = await owner.jobs(1)
        await thief.attach()
        receipt = await thief.complete(assignment, released={"not_started": True})
        assert [r.error.reason for r in receipt.refused] == [ERROR_REASON_LEASE_LOST]
        assert [(r.job_id, r.fencing_token) for r in receipt.refused] == [
            (job_id, lease_of(assignment).fencing_token)
        ]
        assert (await producer.job(job_id)).state == JOB_STATE_RUNNING
        assert not (await owner.complete(assignment)).refused
