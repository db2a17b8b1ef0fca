"""Real servers that answer a write only once a replica has it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import grpc
import pytest

from jobwire.v1 import (
    admin_service_pb2,
    admin_service_pb2_grpc,
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    worker_service_pb2,
    worker_service_pb2_grpc,
)

from tests.support.grpc_servers import eventually_answered, refusal
from tests.support.replicas import Replicated
from tests.support.servers import ServerProcess
from tests.support.stores import Engine, server_binary

WAITING = ("--wait-replicas", "1", "--wait-timeout", "300ms")


@pytest.fixture(scope="module", params=["valkey", "redis"])
def pair_of_module(request: pytest.FixtureRequest) -> Iterator[Replicated]:
    engine: Engine = request.param
    if server_binary(engine) is None:
        pytest.skip(f"no {engine}-server on PATH")
    pair = Replicated(engine)
    try:
        pair.start()
        yield pair
    finally:
        pair.remove()


@pytest.fixture
def pair(pair_of_module: Replicated) -> Iterator[Replicated]:
    """A primary and its replica, empty, once for each engine."""
    pair_of_module.primary.flush()
    pair_of_module.settle()
    yield pair_of_module
    pair_of_module.replica.resume()


class Stubs:
    """The services of a server, and the job that the tests submit."""

    def __init__(self, channel: grpc.aio.Channel, server: ServerProcess) -> None:
        self.server = server
        self.jobs = job_service_pb2_grpc.JobServiceStub(channel)
        self.workers = worker_service_pb2_grpc.WorkerServiceStub(channel)
        self.admin = admin_service_pb2_grpc.AdminServiceStub(channel)

    async def submit(self, request_id: str) -> str:
        """Submit a job; returns its id."""
        request = job_service_pb2.SubmitJobRequest(
            spec=job_pb2.JobSpec(operation="work"), request_id=request_id
        )
        return str((await self.jobs.SubmitJob(request)).job_id)

    async def submitted(self) -> int:
        """How many jobs were ever submitted."""
        answer = await self.admin.GetQueue(admin_service_pb2.GetQueueRequest(queue="default"))
        return int(answer.queue.totals.submitted)


@asynccontextmanager
async def served(pair: Replicated, *flags: str) -> AsyncIterator[Stubs]:
    """A server on the primary."""
    server = ServerProcess("--redis-url", pair.primary.url, *flags)
    try:
        await asyncio.to_thread(server.start)
        async with grpc.aio.insecure_channel(server.address) as channel:
            yield Stubs(channel, server)
    finally:
        await asyncio.to_thread(server.stop)


async def test_while_the_replica_is_stopped_a_submission_is_refused_and_later_accepted_once(
    pair: Replicated,
) -> None:
    async with served(pair, *WAITING) as stubs:
        info = await stubs.admin.GetServerInfo(admin_service_pb2.GetServerInfoRequest())
        assert info.store_durability == "aof everysec, wait for 1 replica"
        assert "wait_replicas" not in stubs.server.log
        await eventually_answered(lambda: stubs.submit("before"))
        pair.replica.pause()
        for _ in range(2):  # the second one finds all of it written
            refused = await refusal(stubs.submit("meanwhile"))
            assert refused.code is grpc.StatusCode.UNAVAILABLE
            assert refused.reason == "STORE_UNAVAILABLE"
            assert "wait_replicas is 1, and the write reached 0 within" in refused.message
            assert refused.retry_after_ms
        pair.replica.resume()
        job_id = await eventually_answered(lambda: stubs.submit("meanwhile"))
        assert await eventually_answered(lambda: stubs.submit("meanwhile")) == job_id
        assert await stubs.submitted() == 2
        assert "too few replicas have what is written" in stubs.server.log
        assert "enough replicas have what is written" in stubs.server.log


async def test_no_fencing_token_is_told_before_the_replica_knows_it(pair: Replicated) -> None:
    async with served(pair, *WAITING) as stubs:
        spec = worker_service_pb2.WorkerSpec(
            worker_id="w1", queues=["default"], operations=["work"]
        )
        await stubs.workers.RegisterWorker(worker_service_pb2.RegisterWorkerRequest(worker=spec))
        job_id = await eventually_answered(lambda: stubs.submit("a"))
        claim = worker_service_pb2.ClaimJobRequest(worker_id="w1")
        claim.wait.FromSeconds(5)
        pair.replica.pause()
        refused = await refusal(stubs.workers.ClaimJob(claim))
        assert refused.code is grpc.StatusCode.UNAVAILABLE
        assert "wait_replicas" in refused.message
        pair.replica.resume()
        # What nobody was told of is given back, and claimed with the next token.
        answer = await eventually_answered(lambda: stubs.workers.ClaimJob(claim))
        (assignment,) = answer.assignments
        assert (assignment.job_id, assignment.fencing_token) == (job_id, 2)


async def test_without_the_setting_a_stopped_replica_holds_up_nobody(pair: Replicated) -> None:
    async with served(pair) as stubs:
        await stubs.submit("before")
        before = pair.waits()
        pair.replica.pause()
        for number in range(20):
            await stubs.submit(f"job-{number}")
        assert pair.waits() == before
        assert await stubs.submitted() == 21
        pair.replica.resume()


async def test_a_start_says_what_is_waited_for_and_what_is_missing(pair: Replicated) -> None:
    flags = ("--wait-replicas", "2", "--wait-timeout", "100ms")
    async with served(pair, *flags) as stubs:
        info = await stubs.admin.GetServerInfo(admin_service_pb2.GetServerInfoRequest())
        assert info.store_durability == "aof everysec, wait for 2 replicas"
        assert "wait_replicas is 2, and the store has 1 replica now" in stubs.server.log
        refused = await refusal(stubs.submit("a"))
        assert "wait_replicas is 2, and the write reached 1 within" in refused.message
