"""What comes over a stream, and what becomes of it when it is not taken."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import grpc
import pytest

from jobwire.v1.job_pb2 import (
    ATTEMPT_OUTCOME_CRASHED,
    ATTEMPT_OUTCOME_UNDELIVERED,
    JOB_STATE_FAILED,
    JOB_STATE_PENDING,
    JOB_STATE_RUNNING,
    JOB_STATE_SUCCEEDED,
)
from jobwire.v1.worker_service_pb2 import HeartbeatRequest, Report
from jobwire.v1.worker_service_pb2_grpc import WorkerServiceStub
from jobwire_server.workers import callers, known_workers

from tests.support.streams import (
    QUICK,
    Producer,
    RawWorker,
    StreamServer,
    lease_of,
    stream_server,
)
from tests.support.waiting import eventually


async def test_attached_comes_first_and_tells_the_clockwork(server: StreamServer) -> None:
    async with RawWorker(server.address) as worker:
        attached = await worker.attach()
    assert worker.frames[0].HasField("attached")
    assert attached.server_id == "s1"
    assert attached.heartbeat_interval.ToMilliseconds() == QUICK.heartbeat_interval_ms
    assert attached.claim_timeout.ToMilliseconds() == QUICK.claim_timeout_ms
    assert attached.reconnect_window.ToMilliseconds() == QUICK.reconnect_window_ms
    assert attached.lease_duration.ToMilliseconds() == QUICK.lease_ms
    assert not attached.lost_leases


async def test_a_job_goes_over_the_stream_and_its_result_comes_back(
    server: StreamServer, producer: Producer
) -> None:
    async with RawWorker(server.address) as worker:
        await worker.attach()
        (job_id,) = await producer.submit(size=100)
        (assignment,) = await worker.jobs(1)
        assert (assignment.job_id, assignment.attempt) == (job_id, 1)
        assert assignment.spec.payload.data == b"x" * 100
        receipt = await worker.complete(assignment)
        assert (receipt.sequence, len(receipt.refused)) == (1, 0)
        # The receipt came after the fact.
        assert (await producer.job(job_id)).state == JOB_STATE_SUCCEEDED


async def test_no_more_jobs_come_than_there_are_credits(
    server: StreamServer, producer: Producer
) -> None:
    await producer.submit(30)
    async with RawWorker(server.address, credits=7) as worker:
        await worker.attach()
        first = await worker.jobs(7)
        await worker.complete(*first[:3])
        await worker.jobs(10)
        await worker.complete(*worker.held.values())
        await worker.jobs(17)
        assert worker.peak == 7


async def test_no_credits_bring_no_jobs_until_there_are_some(
    server: StreamServer, producer: Producer
) -> None:
    (job_id,) = await producer.submit()
    async with RawWorker(server.address, credits=0) as worker:
        await worker.attach()
        await eventually(lambda: len(worker.frames) >= 4, "some heartbeats")
        assert not worker.got
        await worker.send(credits=1)
        (assignment,) = await worker.jobs(1)
        assert assignment.job_id == job_id


async def test_fewer_credits_leave_the_jobs_that_are_there(
    server: StreamServer, producer: Producer
) -> None:
    await producer.submit(10)
    async with RawWorker(server.address, credits=5) as worker:
        await worker.attach()
        await worker.jobs(5)
        await worker.send(credits=2)
        for _ in range(3):
            await worker.complete(next(iter(worker.held.values())))
        # Two are held, which is all that may be; the next completion brings the next job.
        assert len(worker.got) == 5
        assert not worker.lost
        await worker.complete(next(iter(worker.held.values())))
        await worker.jobs(6)
        assert len(worker.held) == 2


async def test_an_assignment_that_is_not_acknowledged_goes_back_untouched(
    server: StreamServer, producer: Producer
) -> None:
    first, second = await producer.submit(2)
    async with (
        RawWorker(server.address, "deaf", credits=1, acks=False) as deaf,
        RawWorker(server.address, "other", credits=2) as other,
    ):
        await deaf.attach()
        (mine,) = await deaf.jobs(1)
        assert mine.job_id == first
        await deaf.loses(mine)
        await producer.until(first, JOB_STATE_PENDING)
        await other.attach()
        again, then = await other.jobs(2)
        # At its old place, under the same number, with a new token.
        assert (again.job_id, then.job_id) == (first, second)
        assert (again.attempt, again.fencing_token) == (1, mine.fencing_token + 1)
        job = await producer.job(first)
        assert (job.failures, job.crashes, job.interruptions) == (0, 0, 0)
        assert [a.outcome for a in job.attempts][:1] == [ATTEMPT_OUTCOME_UNDELIVERED]
        # It gets nothing more until it shows that it takes what it gets.
        assert len(deaf.got) == 1


async def test_a_job_whose_workers_always_go_without_a_word_ends_as_one_that_crashes(
    server: StreamServer, producer: Producer
) -> None:
    (job_id,) = await producer.submit()
    for number in range(6):
        async with RawWorker(server.address, f"short-lived-{number}", acks=False) as worker:
            await worker.attach()
            await worker.jobs(1)
            await worker.break_off()
        last = number == 5
        await producer.until(job_id, JOB_STATE_FAILED if last else JOB_STATE_PENDING)
    job = await producer.job(job_id)
    assert [a.outcome for a in job.attempts] == [
        *[ATTEMPT_OUTCOME_UNDELIVERED] * 3,
        *[ATTEMPT_OUTCOME_CRASHED] * 3,
    ]
    assert (job.crashes, job.failure.type) == (3, "CRASHED_TOO_OFTEN")


async def test_a_report_acknowledges_the_assignment(
    server: StreamServer, producer: Producer
) -> None:
    (job_id,) = await producer.submit()
    async with RawWorker(server.address, acks=False) as worker:
        await worker.attach()
        (mine,) = await worker.jobs(1)
        report = Report(job_id=job_id, fencing_token=mine.fencing_token)
        report.progress.fraction = 0.5
        await worker.receipt(await worker.post(reports=[report]))
        await worker.break_off()
    await producer.until(job_id, JOB_STATE_PENDING)
    job = await producer.job(job_id)
    assert [a.outcome for a in job.attempts] == [ATTEMPT_OUTCOME_CRASHED]


async def test_frames_are_acknowledged_by_their_number(
    server: StreamServer, producer: Producer
) -> None:
    async with RawWorker(server.address, acks=False) as worker:
        attached = await worker.attach()
        assert "received" in attached.features
        await producer.submit()
        (first,) = await worker.jobs(1)
        await producer.submit()
        _, second = await worker.jobs(2)
        await worker.send(received=1)
        await worker.loses(second)
        assert worker.lost == [lease_of(second)]
        assert (await producer.job(first.job_id)).state == JOB_STATE_RUNNING
        # It was late, and shows that it reads again: it gets what it missed anew.
        await worker.send(received=2)
        again = (await worker.jobs(3))[2]
        assert again.job_id == second.job_id
        await worker.send(received=3)
        await worker.complete(first, again)


async def test_what_a_standing_worker_does_not_acknowledge_touches_no_budget(
    server: StreamServer, producer: Producer
) -> None:
    (job_id,) = await producer.submit()
    async with RawWorker(server.address, acks=False) as worker:
        await worker.attach()
        for number in range(1, 9):
            taken = (await worker.jobs(number))[number - 1]
            await worker.loses(taken)
            await worker.send(received=number)
        (await worker.jobs(9))
        await worker.send(received=9)
        job = await producer.job(job_id)
        assert (job.state, job.crashes, job.attempt) == (JOB_STATE_RUNNING, 0, 1)


async def test_a_heartbeat_by_call_speaks_for_a_stream_that_can_not(
    server: StreamServer, producer: Producer
) -> None:
    (job_id,) = await producer.submit()
    async with RawWorker(server.address, acks=False, beats=False) as worker:
        await worker.attach()
        (mine,) = await worker.jobs(1)
        stub = WorkerServiceStub(worker.channel)
        for _ in range(12):
            await stub.Heartbeat(
                HeartbeatRequest(worker_id=worker.worker_id, leases=[lease_of(mine)])
            )
            await asyncio.sleep(0.15)  # twice as long in all as the stream may be silent
        await worker.complete(mine)
        await producer.until(job_id, JOB_STATE_SUCCEEDED)


async def test_a_worker_heard_of_by_calls_is_not_lost_with_its_stream(
    server: StreamServer, second: StreamServer, producer: Producer
) -> None:
    (job_id,) = await producer.submit()
    async with (
        RawWorker(server.address, beats=False) as worker,
        grpc.aio.insecure_channel(second.address) as channel,
    ):
        await worker.attach()
        (mine,) = await worker.jobs(1)
        stub = WorkerServiceStub(channel)
        ended = asyncio.create_task(worker.end())
        until = asyncio.get_running_loop().time() + 2.5  # silence, and the window to come back
        while not ended.done() or asyncio.get_running_loop().time() < until:
            # To another server than the one that holds the stream.
            await stub.Heartbeat(
                HeartbeatRequest(worker_id=worker.worker_id, leases=[lease_of(mine)])
            )
            await asyncio.sleep(0.1)
        assert (await ended)[0].name == "UNAVAILABLE"
        job = await producer.job(job_id)
        assert (job.state, job.crashes) == (JOB_STATE_RUNNING, 0)
        async with RawWorker(server.address) as again:
            attached = await again.attach([mine])
            assert list(attached.lost_leases) == []
            await again.complete(mine)
        await producer.until(job_id, JOB_STATE_SUCCEEDED)


async def test_a_stream_that_never_acknowledges_is_ended(
    server: StreamServer, producer: Producer
) -> None:
    await producer.submit()
    async with RawWorker(server.address, acks=False) as deaf:
        await deaf.attach()
        code, details = await deaf.end()
    assert (code.name, details) == ("UNAVAILABLE", "assignments are not acknowledged")


async def test_an_assignment_whose_stream_breaks_before_the_ack_goes_back_untouched(
    server: StreamServer, producer: Producer
) -> None:
    (job_id,) = await producer.submit()
    async with RawWorker(server.address, acks=False) as broken:
        await broken.attach()
        (assignment,) = await broken.jobs(1)
        await broken.break_off()
        # At once: not after the claim timeout, the window or the lease.
        job = await producer.until(job_id, JOB_STATE_PENDING)
    assert (job.failures, job.crashes, job.interruptions) == (0, 0, 0)
    async with RawWorker(server.address, "w2") as other:
        await other.attach()
        (again,) = await other.jobs(1)
        assert (again.attempt, again.fencing_token) == (1, assignment.fencing_token + 1)


async def test_an_ack_that_comes_too_late_is_answered_by_a_lost_lease(
    server: StreamServer, producer: Producer
) -> None:
    await producer.submit()
    async with RawWorker(server.address, acks=False) as worker:
        await worker.attach()
        (assignment,) = await worker.jobs(1)
        await worker.loses(assignment)
        await worker.ack(assignment)
        await eventually(lambda: len(worker.lost) == 2, "the late ack is answered")
        assert worker.lost == [lease_of(assignment)] * 2


async def test_a_late_ack_does_not_stand_for_a_newer_assignment_of_the_same_job(
    server: StreamServer, producer: Producer
) -> None:
    await producer.submit()
    async with RawWorker(server.address, credits=1, acks=False) as worker:
        await worker.attach()
        (old,) = await worker.jobs(1)
        await worker.loses(old)
        await worker.ack(old)
        _, new = await worker.jobs(2)
        assert new.fencing_token == old.fencing_token + 1
        await worker.ack(old)
        # The new one was never acknowledged, so it goes back as well.
        await worker.loses(new)


async def test_a_completion_is_an_acknowledgement(server: StreamServer, producer: Producer) -> None:
    (job_id,) = await producer.submit()
    async with RawWorker(server.address, acks=False) as worker:
        await worker.attach()
        receipt = await worker.complete(*await worker.jobs(1))
        assert not receipt.refused
        assert (await producer.job(job_id)).state == JOB_STATE_SUCCEEDED
        await eventually(lambda: len(worker.frames) >= 6, "some heartbeats")
        assert not worker.lost
        assert not worker.call.done()


async def test_a_worker_that_is_heard_of_keeps_its_leases(valkey_url: str) -> None:
    options = replace(QUICK, lease_ms=1_000)
    async with (
        stream_server(valkey_url, options) as server,
        Producer(server.address) as producer,
        RawWorker(server.address) as worker,
    ):
        job_ids = await producer.submit(5)
        await worker.attach()
        await worker.jobs(5)
        before = [(await producer.job(j)).lease_expires_at.ToMilliseconds() for j in job_ids]
        # Three leases long.
        async with asyncio.timeout(20):
            while True:
                now = [(await producer.job(j)).lease_expires_at.ToMilliseconds() for j in job_ids]
                if min(now) - max(before) > 3_000:
                    break
                await asyncio.sleep(0.05)
        assert not worker.lost
        assert len(worker.got) == 5


async def test_a_lease_that_is_shorter_than_the_servers_is_kept_as_well(
    server: StreamServer, producer: Producer
) -> None:
    (job_id,) = await producer.submit()
    async with RawWorker(server.address, lease_s=1) as worker:
        attached = await worker.attach()
        assert attached.lease_duration.ToMilliseconds() == 1_000
        await worker.jobs(1)
        before = (await producer.job(job_id)).lease_expires_at.ToMilliseconds()
        async with asyncio.timeout(20):
            while True:
                job = await producer.job(job_id)
                assert (job.state, job.crashes) == (JOB_STATE_RUNNING, 0)
                if job.lease_expires_at.ToMilliseconds() - before > 3_000:
                    break
                await asyncio.sleep(0.05)
        assert not worker.lost


async def test_a_worker_that_stands_still_is_dropped_and_costs_no_crash(
    valkey_url: str,
) -> None:
    """Its connection holds all the while, so that it is not known to be dead."""
    options = replace(QUICK, lease_ms=1_500)
    async with (
        stream_server(valkey_url, options) as server,
        Producer(server.address) as producer,
        RawWorker(server.address, beats=False) as silent,
    ):
        (job_id,) = await producer.submit()
        await silent.attach()
        await silent.jobs(1)
        code, details = await silent.end()
        assert code.name == "UNAVAILABLE"
        assert details == "nothing was heard from the worker for 0.8 s"
        job = await producer.until(job_id, JOB_STATE_PENDING)
        assert job.crashes == 0
        assert [a.outcome for a in job.attempts] == [ATTEMPT_OUTCOME_UNDELIVERED]


async def test_a_worker_that_is_silent_for_two_of_its_intervals_keeps_its_stream_and_its_job(
    valkey_url: str,
) -> None:
    """As where a handler blocks the worker's loop."""
    options = replace(QUICK, heartbeat_interval_ms=100, lease_ms=18_000, worker_timeout_ms=3_000)
    async with (
        stream_server(valkey_url, options) as server,
        Producer(server.address) as producer,
        RawWorker(server.address, beats=False) as worker,
    ):
        (job_id,) = await producer.submit()
        await worker.attach()
        (assignment,) = await worker.jobs(1)
        beats = len(worker.frames)
        # Twice the time after which a worker without a server is lost, which is so long that a busy
        # machine is no server that is missing.
        await eventually(lambda: len(worker.frames) > beats + 60, "time passes", timeout_s=40)
        assert not (await worker.complete(assignment)).refused
        job = await producer.until(job_id, JOB_STATE_SUCCEEDED)
        assert (job.crashes, len(job.attempts)) == (0, 1)


@pytest.mark.parametrize("sizes", [(1_000,) * 40, (10, 3_000) * 20, (5_000, 10, 10, 900) * 10])
async def test_the_credit_in_bytes_is_kept(
    server: StreamServer, producer: Producer, sizes: tuple[int, ...]
) -> None:
    job_ids = [(await producer.submit(size=size))[0] for size in sizes]
    most = 4_000
    async with RawWorker(server.address, credits=100, credit_bytes=most) as worker:
        await worker.attach()
        while len(worker.receipts) < len(sizes):
            await eventually(lambda: bool(worker.held), "another job", timeout_s=20)
            held = [*worker.held.values()]
            # Only one that comes to a worker without any may be larger.
            assert len(held) == 1 or sum(job.spec.ByteSize() for job in held) <= most
            await worker.complete(held[0])
        assert sorted(job.job_id for job in worker.got) == sorted(job_ids)


async def test_many_large_jobs_reach_a_client_with_the_usual_limit_of_messages(
    server: StreamServer, producer: Producer
) -> None:
    job_ids = await producer.submit(60, size=200_000)
    async with RawWorker(server.address, credits=100) as worker:
        await worker.attach()
        got = await worker.jobs(60)
        assert [job.job_id for job in got] == job_ids
        assert max(frame.ByteSize() for frame in worker.frames) < 4 << 20


async def test_a_report_renews_for_the_workers_own_lease_however_long_it_is_attached(
    server: StreamServer, producer: Producer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody is heard of lately enough to stay in the cache by that alone.
    monkeypatch.setattr(known_workers, "IDLE_S", -1.0)
    monkeypatch.setattr(callers, "FLUSH_S", 0.01)
    (job_id,) = await producer.submit()
    async with RawWorker(server.address, lease_s=3_600) as worker:
        await worker.attach()
        (assignment,) = await worker.jobs(1)
        await eventually(lambda: len(worker.frames) > 6, "some heartbeats")
        report = Report(job_id=job_id, fencing_token=assignment.fencing_token)
        await worker.receipt(await worker.post(reports=[report]))
        job = await producer.job(job_id)
        left = job.lease_expires_at.ToMilliseconds() - server.router.clock.now_ms()
        assert left > 3_000_000
