"""Two servers whose own clocks are twenty minutes apart keep one time, the store's."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from jobwire.v1.admin_service_pb2 import GetServerInfoRequest
from jobwire.v1.admin_service_pb2_grpc import AdminServiceStub
from jobwire.v1.job_pb2 import (
    ATTEMPT_OUTCOME_CRASHED,
    ATTEMPT_OUTCOME_TIMED_OUT,
    JOB_STATE_FAILED,
    JOB_STATE_RUNNING,
    JOB_STATE_SUCCEEDED,
    Payload,
    RetryPolicy,
)
from jobwire.v1.worker_service_pb2 import (
    ClaimJobRequest,
    HeartbeatRequest,
    LeaseRef,
    RegisterWorkerRequest,
    WorkerSpec,
)
from jobwire.v1.worker_service_pb2_grpc import WorkerServiceStub

from tests.support.servers import ServerProcess
from tests.support.stores import StoreProcess
from tests.support.streams import Producer, RawWorker

OFF_S = 600
NEAR_S = 60
"""Far below what the clocks are off, far above what anything here takes."""


@pytest.fixture(scope="module")
def servers(valkey: StoreProcess) -> Iterator[list[ServerProcess]]:
    """One server ten minutes ahead, and one ten minutes behind."""
    valkey.flush()
    folder = str(Path(__file__).parent / "wrong_clock")
    path = os.pathsep.join(filter(None, (folder, os.environ.get("PYTHONPATH", ""))))
    started = [
        ServerProcess(
            *("--redis-url", valkey.url, "--worker-timeout", "60s"),
            env={"PYTHONPATH": path, "JOBWIRE_TEST_CLOCK_OFF_S": str(off_s)},
        )
        for off_s in (OFF_S, -OFF_S)
    ]
    try:
        for server in started:
            server.spawn()
        for server in started:
            server.wait_until_serving()
        yield started
    finally:
        for server in started:
            server.stop()


@pytest.fixture
async def producers(servers: list[ServerProcess]) -> AsyncIterator[list[Producer]]:
    """A producer of each server."""
    async with Producer(servers[0].address) as ahead, Producer(servers[1].address) as behind:
        yield [ahead, behind]


def _near(moment: Timestamp) -> bool:
    return abs(moment.ToMilliseconds() / 1000 - time.time()) < NEAR_S


def ulid_ms(ulid: str) -> int:
    """Returns the moment in a ULID, Unix ms."""
    ms = 0
    for character in ulid[:10]:
        ms = ms * 32 + "0123456789abcdefghjkmnpqrstvwxyz".index(character)
    return ms


def _in(seconds: int) -> Timestamp:
    return Timestamp(seconds=int(time.time()) + seconds)


async def test_the_clocks_of_the_servers_really_are_wrong(servers: list[ServerProcess]) -> None:
    told = []
    for server in servers:
        async with grpc.aio.insecure_channel(server.address) as channel:
            info = await AdminServiceStub(channel).GetServerInfo(GetServerInfoRequest())
        told.append(info.started_at.seconds)
        assert _near(info.store_time)
    assert told[0] - told[1] > OFF_S


async def test_jobs_are_stamped_and_named_by_the_store_s_time(producers: list[Producer]) -> None:
    for producer in producers:
        (job_id,) = await producer.submit()
        job = await producers[0].job(job_id)
        await producer.cancel(job_id)
        assert _near(job.created_at)
        assert abs(ulid_ms(job_id[-26:]) / 1000 - time.time()) < NEAR_S


async def test_delays_deadlines_and_expiries_are_taken_by_both_and_come_when_they_are_due(
    servers: list[ServerProcess], producers: list[Producer]
) -> None:
    for producer, other in (producers, producers[::-1]):
        (due,) = await producer.submit(run_at=_in(1), expires_at=_in(120), deadline=_in(180))
        (late,) = await producer.submit(run_at=_in(300), deadline=_in(600))
        (missed,) = await producer.submit(operation="nobody", deadline=_in(2))
        async with RawWorker(servers[0].address, credits=1) as worker:
            await worker.attach()
            (assignment,) = await worker.jobs(1)
            assert assignment.job_id == due
            await worker.complete(assignment)
            await worker.leave()
        job = await other.until(due, JOB_STATE_SUCCEEDED)
        assert job.started_at.ToMilliseconds() >= job.spec.run_at.ToMilliseconds()
        assert _near(job.started_at)
        failed = await other.until(missed, JOB_STATE_FAILED)
        assert failed.failure.type == "DEADLINE_EXCEEDED"
        assert failed.finished_at.ToMilliseconds() >= failed.spec.deadline.ToMilliseconds()
        assert (await other.job(late)).run_at.seconds == (await producer.job(late)).run_at.seconds
        await producer.cancel(late)


async def test_leases_last_as_long_whichever_server_gives_and_renews_them(
    servers: list[ServerProcess], producers: list[Producer]
) -> None:
    (job_id,) = await producers[0].submit(retry=RetryPolicy(max_attempts=1))
    async with grpc.aio.insecure_channel(servers[1].address) as channel:
        stub = WorkerServiceStub(channel)
        spec = WorkerSpec(worker_id="w1", operations=["work"], lease_duration=Duration(seconds=2))
        await stub.RegisterWorker(RegisterWorkerRequest(worker=spec))
        async with RawWorker(servers[0].address, "w2", lease_s=2) as worker:
            await worker.attach()
            (assignment,) = await worker.jobs(1)
            job = await producers[1].job(job_id)
            left_ms = job.lease_expires_at.ToMilliseconds() - job.started_at.ToMilliseconds()
            assert 2_000 <= left_ms < NEAR_S * 1_000
            lease = LeaseRef(job_id=job_id, fencing_token=assignment.fencing_token)
            told = await stub.Heartbeat(HeartbeatRequest(worker_id="w2", leases=[lease]))
            assert not told.lost_leases
            assert (await producers[0].job(job_id)).state == JOB_STATE_RUNNING
            await worker.complete(assignment)


async def test_a_lease_and_an_execution_timeout_end_in_time(
    servers: list[ServerProcess], producers: list[Producer]
) -> None:
    for at, producer in enumerate(producers):
        (slow,) = await producer.submit(
            execution_timeout=Duration(seconds=1), retry=RetryPolicy(max_attempts=1)
        )
        async with RawWorker(servers[at].address) as worker:
            await worker.attach()
            (assignment,) = await worker.jobs(1)
            await worker.loses(assignment)
            await worker.leave()
        job = await producers[1 - at].until(slow, JOB_STATE_FAILED)
        (attempt,) = job.attempts
        assert attempt.outcome == ATTEMPT_OUTCOME_TIMED_OUT
        ran_ms = attempt.ended_at.ToMilliseconds() - attempt.started_at.ToMilliseconds()
        assert 1_000 <= ran_ms < NEAR_S * 1_000


async def test_a_job_whose_worker_falls_silent_comes_back_when_its_lease_ends(
    servers: list[ServerProcess], producers: list[Producer]
) -> None:
    (job_id,) = await producers[0].submit(payload=Payload(json="1"))
    async with grpc.aio.insecure_channel(servers[0].address) as channel:
        stub = WorkerServiceStub(channel)
        spec = WorkerSpec(worker_id="w1", operations=["work"], lease_duration=Duration(seconds=1))
        await stub.RegisterWorker(RegisterWorkerRequest(worker=spec))
        await stub.ClaimJob(ClaimJobRequest(worker_id="w1"))
        async with RawWorker(servers[1].address, "w2") as other:
            await other.attach()
            (again,) = await other.jobs(1)
            assert (again.job_id, again.attempt) == (job_id, 2)
            await other.complete(again)
    job = await producers[1].until(job_id, JOB_STATE_SUCCEEDED)
    crashed = job.attempts[0]
    assert crashed.outcome == ATTEMPT_OUTCOME_CRASHED
    held_ms = crashed.ended_at.ToMilliseconds() - crashed.started_at.ToMilliseconds()
    assert 1_000 <= held_ms < NEAR_S * 1_000
