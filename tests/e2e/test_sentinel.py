"""Failovers by real sentinels: servers follow the primary, and what was replicated goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from jobwire import AsyncClient, AttemptOutcome, Client, Job, JobHandle, JobState
from jobwire.v1 import (
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    worker_service_pb2,
    worker_service_pb2_grpc,
)

from tests.support.dump import check_invariants
from tests.support.sentinels import SentinelStore, follows, role
from tests.support.servers import ServerProcess
from tests.support.stores import Engine, StoreProcess, wait_until
from tests.support.waiting import eventually
from tests.support.workers import WorkerProcess
from tests.watch.support import Hands, chunk

StartWorker = Callable[..., WorkerProcess]
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
PATIENT = ("--lease", "8s", "--heartbeat-interval", "300ms", "--worker-timeout", "20s")
"""Leases outlive a failover, and what one loses all the same comes back within a test."""
DEADLINE_S = 60.0


@pytest.fixture
def store(store_engine: Engine) -> Iterator[SentinelStore]:
    """A primary, a replica and three sentinels, once for each engine."""
    store = SentinelStore(store_engine)
    try:
        store.start()
        yield store
    finally:
        store.remove()


@pytest.fixture
def serve(store: SentinelStore) -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers that are given the sentinels."""
    started: list[ServerProcess] = []

    def start(*flags: str, wait: bool = True) -> ServerProcess:
        server = ServerProcess("--redis-url", store.url, *PATIENT, *flags)
        started.append(server)
        server.spawn()
        if wait:
            server.wait_until_serving()
        return server

    yield start
    for server in started:
        server.stop()


def _health(server: ServerProcess) -> int:
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=5).status)


def _totals(store: StoreProcess) -> dict[bytes, bytes]:
    with store.client() as client:
        totals: dict[bytes, bytes] = client.hgetall("jw:{default}:totals")
        return totals


def _submitted(store: StoreProcess) -> int:
    return int(_totals(store).get(b"submitted", 0))


def _done(store: StoreProcess) -> int:
    return int(_totals(store).get(b"succeeded", 0))


def _each_is_done_once(store: StoreProcess, client: Client, handles: list[JobHandle]) -> None:
    for handle in handles:
        job = handle.wait(timeout=DEADLINE_S)
        assert job.state is JobState.SUCCEEDED
        # The result is that of the holder of the last lease, and of nobody else.
        assert job.result == {"token": job.fencing_token}
        ends = [attempt.outcome for attempt in job.attempts]
        assert ends.count(AttemptOutcome.SUCCEEDED) == 1
    totals = client.queue("default").totals
    assert (totals.submitted, totals.succeeded) == (len(handles), len(handles))
    with store.client() as raw:
        check_invariants(raw)


def _retry_delay_s(error: grpc.RpcError) -> float:
    status = status_pb2.Status()
    for key, value in error.trailing_metadata():  # type: ignore[attr-defined]
        if key == "grpc-status-details-bin":
            status.ParseFromString(value)
    retry = error_details_pb2.RetryInfo()
    assert any(each.Unpack(retry) for each in status.details)
    return float(retry.retry_delay.ToMilliseconds()) / 1000


async def _persist(call: Callable[[], Awaitable[Any]]) -> Any:
    """Makes a call until it is answered."""
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as error:
            if error.code() != grpc.StatusCode.UNAVAILABLE:
                raise
        await asyncio.sleep(0.05)


def test_a_server_finds_the_primary_though_some_sentinels_are_away(
    store: SentinelStore, serve: Callable[..., ServerProcess], start_worker: StartWorker
) -> None:
    for sentinel in store.sentinels[:2]:
        sentinel.kill()
    server = serve()
    start_worker(server.address)
    with Client(server.address) as client:
        handles = [client.submit("e2e.work", 1) for _ in range(20)]
        _each_is_done_once(store.stores[0], client, handles)


@pytest.mark.both_engines
def test_a_kill_of_the_primary_is_told_and_then_work_goes_on_at_the_new_one(
    store: SentinelStore, serve: Callable[..., ServerProcess], start_worker: StartWorker
) -> None:
    server = serve()
    start_worker(server.address)
    old, new = store.primary, store.replica
    with Client(server.address) as client, ThreadPoolExecutor(1) as elsewhere:
        handles = [client.submit("e2e.work", 250) for _ in range(60)]
        wait_until(lambda: _done(old) >= 10, "work is under way")
        store.replicate()
        for sentinel in store.sentinels[:2]:  # the last one can't decide anything alone
            sentinel.kill()
        old.kill()
        wait_until(lambda: _health(server) == NOT_SERVING, "the server says that it can't serve")
        with grpc.insecure_channel(server.address) as channel:
            request = job_service_pb2.SubmitJobRequest(spec=job_pb2.JobSpec(operation="e2e.work"))
            with pytest.raises(grpc.RpcError) as refused:
                job_service_pb2_grpc.JobServiceStub(channel).SubmitJob(request, timeout=10)
        assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
        assert _retry_delay_s(refused.value) > 0
        patient = elsewhere.submit(client.submit, "e2e.work", 1)
        late = serve("--store-wait", "30s", wait=False)
        wait_until(lambda: "waiting for the store" in late.log, "another server is started")
        for sentinel in store.sentinels[:2]:
            sentinel.start()
        store.when_promoted(new)
        wait_until(lambda: _health(server) == SERVING, "the server serves again")
        handles.append(patient.result())
        late.wait_until_serving()
        _each_is_done_once(new, client, handles)


def test_submissions_and_work_go_on_over_a_failover_of_a_primary_that_hangs(
    store: SentinelStore, serve: Callable[..., ServerProcess], start_worker: StartWorker
) -> None:
    servers = [serve(), serve()]
    target = ",".join(server.address for server in servers)
    start_worker(target)
    old, new = store.primary, store.replica
    with Client(target) as client:
        handles = [client.submit("e2e.work", 120) for _ in range(30)]
        wait_until(lambda: _done(old) >= 10, "work is under way")
        store.replicate()
        old.pause()
        try:
            handles += [client.submit("e2e.work", 10) for _ in range(20)]
            store.when_promoted(new)
            _each_is_done_once(new, client, handles)
        finally:
            old.resume()
        store.settle(new)
        assert role(old) == "slave"


async def test_a_watch_with_output_goes_on_over_a_failover_and_misses_nothing(
    store: SentinelStore, serve: Callable[..., ServerProcess]
) -> None:
    server = await asyncio.to_thread(serve, "--lease", "1m", "--worker-timeout", "1m")
    old, new = store.primary, store.replica
    told: list[str] = []
    states: list[JobState] = []

    async def watch(client: AsyncClient, job_id: str) -> None:
        async for event in client.job(job_id).watch(output=True):
            if isinstance(event, Job):
                states.append(event.state)
            else:
                told.append(event.data.decode())

    async with (
        asyncio.timeout(DEADLINE_S),
        Hands(server.address) as hands,
        AsyncClient(server.address) as client,
        asyncio.TaskGroup() as group,
    ):
        await hands.register()
        lease = await hands.running()
        group.create_task(watch(client, lease.job_id))
        written = ""
        for number in range(40):
            if number == 20:
                await eventually(lambda: "".join(told) == written, "the watcher has all")  # noqa: B023
                await asyncio.to_thread(store.replicate)
                await asyncio.to_thread(old.kill)
                await asyncio.to_thread(store.when_promoted, new)
            line = f"line {number}\n"
            piece = chunk(line, len(written))
            await _persist(lambda piece=piece: hands.write(lease, piece))  # type: ignore[misc]
            written += line
        # Live, before the end of the job could bring everything.
        await eventually(lambda: "".join(told) == written, "the new primary is heard")
        await _persist(lambda: hands.complete(lease))
    assert "".join(told) == written
    assert states[-1] is JobState.SUCCEEDED


def test_nothing_is_written_to_an_old_primary_that_comes_back(
    store: SentinelStore, serve: Callable[..., ServerProcess]
) -> None:
    server = serve()
    old, new = store.primary, store.replica
    with Client(server.address) as client:
        client.submit("nobody")
        store.replicate()
        old.kill()
        store.when_promoted(new)
        for sentinel in store.sentinels:
            sentinel.slow()
        old.start()
        assert role(old) == "master"  # by its own word, and would take anything
        with old.client() as raw:
            before = raw.dbsize()
        for _ in range(20):
            client.submit("nobody")
        assert _submitted(new) == 21
        assert _submitted(old) == 1
        with old.client() as raw:
            assert raw.dbsize() == before
        for sentinel in store.sentinels:
            sentinel.quick()
        # Sentinels ask a primary every ten seconds, and watch a false one for eight.
        wait_until(lambda: follows(old, new), "the old primary is made a replica", timeout_s=60)
        store.replicate()
        assert _submitted(old) == 21


def test_a_server_that_meets_an_old_primary_as_a_replica_goes_to_the_new_one(
    store: SentinelStore, serve: Callable[..., ServerProcess], start_worker: StartWorker
) -> None:
    server = serve()
    start_worker(server.address)
    old, new = store.primary, store.replica
    with Client(server.address) as client:
        handles = [client.submit("e2e.work", 1) for _ in range(10)]
        _each_is_done_once(old, client, handles)
        store.replicate()
        for sentinel in store.sentinels:
            sentinel.slow()
        store.fail_over()
        with old.client() as raw:  # unlike a sentinel this leaves all connections open
            raw.replicaof("127.0.0.1", new.port)
        handles += [client.submit("e2e.work", 1) for _ in range(10)]
        _each_is_done_once(new, client, handles)


@pytest.mark.both_engines
def test_a_planned_failover_loses_nothing_where_a_primary_without_replica_takes_no_writes(
    store: SentinelStore, serve: Callable[..., ServerProcess], start_worker: StartWorker
) -> None:
    for one in store.stores:
        with one.client() as raw:
            raw.config_set("min-replicas-to-write", 1)
    server = serve()
    start_worker(server.address)
    old, new = store.primary, store.replica
    with Client(server.address) as client:
        handles = [client.submit("e2e.work", 150) for _ in range(60)]
        wait_until(lambda: _done(old) >= 10, "work is under way")
        store.replicate()
        store.sentinels[0].ask("FAILOVER", "jobs")
        wait_until(lambda: role(new) == "master", "the replica is promoted")
        # From here on all that is accepted is accepted by the new primary.
        handles += [client.submit("e2e.work", 10) for _ in range(20)]
        _each_is_done_once(new, client, handles)
        wait_until(lambda: follows(old, new), "the old primary is a replica")


async def test_what_was_answered_with_wait_replicas_is_there_after_a_kill_at_once(
    store: SentinelStore, serve: Callable[..., ServerProcess]
) -> None:
    server = await asyncio.to_thread(
        serve,
        *("--wait-replicas", "1", "--wait-timeout", "2s"),
        *("--lease", "1m", "--worker-timeout", "1m"),
    )
    old, new = store.primary, store.replica
    told: dict[str, int] = {}
    accepted: list[str] = []

    async def submit(client: AsyncClient) -> None:
        while True:
            accepted.append((await client.submit("work", 1)).id)

    async with (
        asyncio.timeout(DEADLINE_S),
        AsyncClient(server.address) as client,
        grpc.aio.insecure_channel(server.address) as channel,
    ):
        workers = worker_service_pb2_grpc.WorkerServiceStub(channel)
        spec = worker_service_pb2.WorkerSpec(
            worker_id="w1", queues=["default"], operations=["work"]
        )
        # A replica that is slow to confirm makes a call UNAVAILABLE, to be repeated.
        register = worker_service_pb2.RegisterWorkerRequest(worker=spec)
        await _persist(lambda: workers.RegisterWorker(register))
        submitting = [asyncio.create_task(submit(client)) for _ in range(8)]
        claim = worker_service_pb2.ClaimJobRequest(worker_id="w1", max_jobs=10)
        while len(told) < 60:
            answer = await _persist(lambda: workers.ClaimJob(claim))
            for one in answer.assignments:
                told[one.job_id] = one.fencing_token
        old.kill()
        for task in submitting:
            task.cancel()
        await asyncio.gather(*submitting, return_exceptions=True)
        await asyncio.to_thread(store.when_promoted, new)
        await eventually(lambda: _health(server) == SERVING, "it serves", timeout_s=DEADLINE_S)
        # A claim may be told before the submission of its job is answered.
        for job_id in {*accepted, *told}:
            job = await client.job(job_id).get()
            if job_id in told:
                assert (job.state, job.fencing_token) == (JobState.RUNNING, told[job_id])
    assert accepted
