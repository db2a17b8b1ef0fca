"""Real servers on a real cluster, whose primaries are killed and whose slots are moved."""

from __future__ import annotations

import asyncio
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.request import urlopen

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from grpc_health.v1 import health_pb2, health_pb2_grpc  # type: ignore[import-untyped]

from jobwire import (
    AsyncClient,
    AsyncJobHandle,
    AttemptOutcome,
    Context,
    Job,
    JobState,
    QueueInUse,
    Worker,
)
from jobwire.v1 import (
    admin_service_pb2,
    admin_service_pb2_grpc,
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
)
from jobwire.v1.worker_service_pb2 import (
    ClaimJobRequest,
    CompleteJobRequest,
    RegisterWorkerRequest,
    WorkerSpec,
)
from jobwire.v1.worker_service_pb2_grpc import WorkerServiceStub
from jobwire_server.store.keys import queue_prefix

from tests.support import warm
from tests.support.clusters import Cluster, Node, slot_of
from tests.support.dump import check_invariants, dump_keys
from tests.support.grpc_servers import eventually_answered, refusal
from tests.support.servers import ServerProcess
from tests.support.stores import Engine, server_binary, wait_until
from tests.support.streams import Producer, completion
from tests.support.waiting import eventually

pytestmark = pytest.mark.timeout(120)

PATIENCE_S = 40.0
SOON_S = 2.5
"""Well below what a node that hangs takes to be given up."""
UNDELIVERED = AttemptOutcome.UNDELIVERED
LONG_LEASE = ("--lease", "60s", "--worker-timeout", "60s", "--heartbeat-interval", "500ms")
"""A failover must not cost an attempt, so that the tests see every second start."""
EACH_FOR_ITSELF = ("--cluster-require-full-coverage", "no")
"""Nodes that are left serve their slots while others are missing."""


def _skip_without(engine: Engine) -> None:
    if server_binary(engine) is None:
        pytest.skip(f"no {engine}-server on PATH")


@dataclass
class Site:
    """A cluster with a server on it."""

    cluster: Cluster
    server: ServerProcess

    @property
    def address(self) -> str:
        return self.server.address


def _site(engine: Engine, **options: Any) -> Iterator[Site]:
    _skip_without(engine)
    with ExitStack() as stack:
        cluster = Cluster(engine, **options)
        stack.callback(cluster.remove)
        cluster.start()
        server = ServerProcess("--redis-url", cluster.url, *LONG_LEASE)
        stack.callback(server.stop)
        server.start()
        yield Site(cluster, server)


@pytest.fixture(scope="module", params=["valkey", "redis"])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    """A cluster whose nodes all stay; each test takes queues of its own."""
    yield from _site(request.param)


@pytest.fixture
def fragile(store_engine: Engine) -> Iterator[Site]:
    """A cluster of this test alone, to kill nodes of."""
    yield from _site(store_engine)


@pytest.fixture
def without_replicas(store_engine: Engine) -> Iterator[Site]:
    """Three primaries that nobody takes over from."""
    yield from _site(store_engine, replicas=0, config=EACH_FOR_ITSELF)


@pytest.fixture
def all_or_nothing(store_engine: Engine) -> Iterator[Site]:
    """The same, as clusters are unless told otherwise: none serves while one is missing."""
    yield from _site(store_engine, replicas=0)


async def _until(condition: Callable[[], bool], what: str) -> None:
    await asyncio.to_thread(wait_until, condition, what, timeout_s=PATIENCE_S)


@dataclass
class Hands:
    """A worker of this process; what it runs in a queue ends once the queue is let go."""

    worker: Worker
    starts: Counter[str] = field(default_factory=Counter)
    gates: dict[str, asyncio.Event] = field(default_factory=lambda: defaultdict(asyncio.Event))

    @classmethod
    def at(cls, address: str, *queues: str) -> Hands:
        hands = cls(Worker(address, queues=queues, concurrency=100, shutdown_grace_s=1.0))

        @hands.worker.operation("work")
        async def work(context: Context) -> dict[str, int]:
            hands.starts[context.job_id] += 1
            await hands.gates[context.job_id.rpartition("-")[0]].wait()
            return {"token": context.fencing_token}

        return hands

    def let_go(self, *queues: str) -> None:
        for queue in queues:
            self.gates[queue].set()

    async def running(self, handles: list[AsyncJobHandle]) -> None:
        await eventually(
            lambda: all(self.starts[handle.id] for handle in handles),
            "all jobs have started",
            timeout_s=PATIENCE_S,
        )


async def _submit(client: AsyncClient, queue: str, count: int) -> list[AsyncJobHandle]:
    return [await client.submit("work", number, queue=queue) for number in range(count)]


async def _watched(handle: AsyncJobHandle) -> list[Job]:
    async with asyncio.timeout(PATIENCE_S):
        return [job async for job in handle.watch()]


async def _each_ends_once(hands: Hands, handles: list[AsyncJobHandle]) -> None:
    """Checks that each job was started once and has succeeded once."""
    for handle in handles:
        job = await handle.wait(timeout=PATIENCE_S)
        assert job.state is JobState.SUCCEEDED
        assert job.result == {"token": job.fencing_token}
        # A busy machine may acknowledge an assignment too late: it never began.
        begun = [each.outcome for each in job.attempts if each.outcome is not UNDELIVERED]
        assert begun == [AttemptOutcome.SUCCEEDED]
        assert hands.starts[handle.id] == 1


def _check(node: Node, queue: str) -> None:
    with node.client() as raw:
        dump = check_invariants(raw, queue)
    assert dump.jobs, "the queue is here"


def _health(address: str) -> int:
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return int(stub.Check(health_pb2.HealthCheckRequest(), timeout=5).status)


def _jobwire(*arguments: str) -> str:
    done = warm.run("jobwire.cli", arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode()


async def test_one_stream_serves_queues_on_every_node_and_watchers_see_each_end(
    site: Site,
) -> None:
    queues = [site.cluster.queue_on(index) for index in range(3)]
    hands = Hands.at(site.address, *queues)
    hands.let_go(*queues)
    async with hands.worker, AsyncClient(site.address) as client:
        handles = [handle for queue in queues for handle in await _submit(client, queue, 5)]
        seen = await asyncio.gather(*map(_watched, handles))
        await _each_ends_once(hands, handles)
    assert all(jobs[-1].state is JobState.SUCCEEDED for jobs in seen)
    for index, queue in enumerate(queues):
        _check(site.cluster.primaries[index], queue)


async def test_queues_are_deleted_on_every_node(site: Site) -> None:
    queues = [site.cluster.queue_on(index) for index in range(3)]
    hands = Hands.at(site.address, *queues)
    hands.let_go(*queues)
    async with hands.worker, AsyncClient(site.address) as client:
        for queue in queues:
            (handle,) = await _submit(client, queue, 1)
            await client.submit("none", queue=queue)
            with pytest.raises(QueueInUse):
                await client.delete_queue(queue)
            await handle.wait(timeout=PATIENCE_S)
            async for _ in client.cancel_jobs(queue):
                pass
            await client.delete_queue(queue)
        assert not {queue.name async for queue in client.queues()} & {*queues}
        for index, queue in enumerate(queues):
            with site.cluster.primaries[index].client() as raw:
                assert not dump_keys(raw, queue_prefix(queue))


async def test_queues_info_and_health_speak_for_all_nodes(site: Site) -> None:
    queues = [site.cluster.queue_on(index, ("q0", "q1", "q2")) for index in range(3)]
    async with AsyncClient(site.address) as client:
        for queue in queues:
            await _submit(client, queue, 2)
    listed = json.loads(_jobwire("queues", "--json", "--target", site.address).splitlines()[0])
    assert listed
    text = _jobwire("queues", "--target", site.address)
    assert all(queue in text for queue in queues)
    async with grpc.aio.insecure_channel(site.address) as channel:
        admin = admin_service_pb2_grpc.AdminServiceStub(channel)
        answer = await admin.ListQueues(admin_service_pb2.ListQueuesRequest())
        assert {*queues} <= {queue.queue for queue in answer.queues}
        info = await admin.GetServerInfo(admin_service_pb2.GetServerInfoRequest())
        assert info.store_engine == site.cluster.engine
        assert info.store_durability == "aof everysec"
    assert _health(site.address) == health_pb2.HealthCheckResponse.SERVING


async def test_writes_wait_for_the_replica_of_their_own_primary(site: Site) -> None:
    stopped, other = (site.cluster.queue_on(index) for index in (0, 1))
    server = ServerProcess(
        *("--redis-url", site.cluster.url, "--wait-replicas", "1", "--wait-timeout", "200ms")
    )
    try:
        await asyncio.to_thread(server.start)
        async with grpc.aio.insecure_channel(server.address) as channel:
            jobs = job_service_pb2_grpc.JobServiceStub(channel)

            async def submit(queue: str, request_id: str) -> str:
                request = job_service_pb2.SubmitJobRequest(
                    queue=queue, spec=job_pb2.JobSpec(operation="work"), request_id=request_id
                )
                return str((await jobs.SubmitJob(request)).job_id)

            for queue in (stopped, other):
                await eventually_answered(partial(submit, queue, "before"))
            site.cluster.replicas[0].pause()
            try:
                refused = await refusal(submit(stopped, "meanwhile"))
                await eventually_answered(partial(submit, other, "meanwhile"))
            finally:
                site.cluster.replicas[0].resume()
            assert refused.code is grpc.StatusCode.UNAVAILABLE
            assert "wait_replicas is 1, and the write reached 0 within" in refused.message
            await eventually_answered(partial(submit, stopped, "meanwhile"))
    finally:
        await asyncio.to_thread(server.stop)


# The first node has the registries of queues and workers too.
@pytest.mark.parametrize(("store_engine", "index"), [("valkey", 0), ("valkey", 2), ("redis", 0)])
async def test_a_replica_takes_over_from_a_killed_primary_and_every_job_ends_once(
    fragile: Site, index: int
) -> None:
    cluster = fragile.cluster
    hit = cluster.queue_on(index)
    spared = [cluster.queue_on(other) for other in range(3) if other != index]
    hands = Hands.at(fragile.address, hit, *spared)
    hands.let_go(*spared)
    async with hands.worker, AsyncClient(fragile.address) as client:
        handles = await _submit(client, hit, 20)
        await hands.running(handles)
        watches = [asyncio.create_task(_watched(handle)) for handle in handles]
        for at in range(3):
            cluster.wait_replicated(at)
        cluster.primaries[index].kill()
        hands.let_go(hit)  # completed while nobody can write it down
        await _until(lambda: cluster.took_over(index), "the replica takes over")
        # The channels of the queue follow: a waiting worker hears of new jobs.
        later = await _submit(client, hit, 5)
        await _each_ends_once(hands, handles + later)
        seen = await asyncio.gather(*watches)
        assert all(jobs[-1].state is JobState.SUCCEEDED for jobs in seen)
    _check(cluster.replicas[index], hit)


async def test_queues_of_other_nodes_go_on_while_a_primary_is_missing(
    without_replicas: Site,
) -> None:
    cluster = without_replicas.cluster
    # The node that has the registries of queues and workers too.
    hit, *spared = (cluster.queue_on(index) for index in range(3))
    hands = Hands.at(without_replicas.address, hit, *spared)
    async with (
        hands.worker,
        AsyncClient(without_replicas.address) as client,
        Producer(without_replicas.address) as producer,
    ):
        victims = await _submit(client, hit, 1)
        before = [h for queue in spared for h in await _submit(client, queue, 5)]
        await hands.running(victims + before)
        watches = [asyncio.create_task(_watched(handle)) for handle in before]
        cluster.primaries[0].kill()
        hands.let_go(*spared)
        await _each_ends_once(hands, before)
        # The same stream goes on to get jobs of these queues.
        for _ in range(20):
            after = [h for queue in spared for h in await _submit(client, queue, 1)]
            await _each_ends_once(hands, after)
        seen = await asyncio.gather(*watches)
        assert all(jobs[-1].state is JobState.SUCCEEDED for jobs in seen)
        said = await refusal(
            producer.stub.GetJob(job_service_pb2.GetJobRequest(job_id=victims[0].id))
        )
        assert said.code is grpc.StatusCode.UNAVAILABLE
        assert said.retry_after_ms
        # What still works is not to be taken out of a balancer's rotation.
        assert _health(without_replicas.address) == health_pb2.HealthCheckResponse.SERVING
        with urlopen(f"http://{without_replicas.server.http}/readyz", timeout=5) as answer:
            assert answer.status == 200
        cluster.primaries[0].start()
        hands.let_go(hit)
        await _each_ends_once(hands, victims)
    # Neither by connections nor by words does a node that is missing keep the server busy.
    assert len(without_replicas.server.log.splitlines()) < 200


async def test_a_worker_attaches_while_the_node_of_one_of_its_queues_is_missing(
    without_replicas: Site,
) -> None:
    cluster = without_replicas.cluster
    *spared, hit = (cluster.queue_on(index) for index in range(3))
    hands = Hands.at(without_replicas.address, hit, *spared)
    hands.let_go(hit, *spared)
    cluster.primaries[2].kill()
    async with hands.worker, AsyncClient(without_replicas.address) as client:
        handles = [h for queue in spared for h in await _submit(client, queue, 3)]
        await _each_ends_once(hands, handles)
        cluster.primaries[2].start()
        await _each_ends_once(hands, await _submit(client, hit, 3))


async def test_calls_for_jobs_do_not_wait_for_a_node_that_hangs(without_replicas: Site) -> None:
    cluster = without_replicas.cluster
    # Not the node that has the registries of queues and workers.
    here, hung = cluster.queue_on(1), cluster.queue_on(2)
    spec = WorkerSpec(worker_id="w1", queues=[hung, here], operations=["work"])
    async with (
        Producer(without_replicas.address) as producer,
        grpc.aio.insecure_channel(without_replicas.address) as channel,
    ):
        stub = WorkerServiceStub(channel)
        await stub.RegisterWorker(RegisterWorkerRequest(worker=spec))
        await producer.submit(20, queue=here)
        await producer.submit(1, queue=hung)
        cluster.primaries[2].pause()

        async def claim_and_complete() -> str:
            request = ClaimJobRequest(worker_id="w1", wait=Duration(seconds=20))
            async with asyncio.timeout(SOON_S):
                (job,) = (await stub.ClaimJob(request)).assignments
            done = CompleteJobRequest(worker_id="w1", completion=completion(job))
            await stub.CompleteJob(done)
            return str(job.job_id.rpartition("-")[0])

        # Before the store's answer is given up for lost, and after it.
        for _ in range(5):
            assert await claim_and_complete() == here
        log = without_replicas.server
        await eventually(lambda: "subscriptions lost" in log.log, "it is", timeout_s=PATIENCE_S)
        for _ in range(5):
            assert await claim_and_complete() == here
        cluster.primaries[2].resume()
        served = set()
        async with asyncio.timeout(PATIENCE_S):
            while hung not in served:
                await producer.submit(1, queue=here)
                served.add(await claim_and_complete())


async def test_a_cluster_that_serves_nothing_is_told_as_a_store_that_is_away(
    all_or_nothing: Site,
) -> None:
    cluster, address = all_or_nothing.cluster, all_or_nothing.address
    serving = health_pb2.HealthCheckResponse.SERVING
    async with AsyncClient(address) as client, Producer(address) as producer:
        (handle,) = await _submit(client, cluster.queue_on(1), 1)
        cluster.primaries[0].kill()
        await _until(
            lambda: cluster.primaries[1].facts("CLUSTER", "INFO")["cluster_state"] == "fail",
            "the nodes that are up refuse everything",
        )
        await _until(lambda: _health(address) != serving, "the health tells it")
        said = await refusal(producer.stub.GetJob(job_service_pb2.GetJobRequest(job_id=handle.id)))
        assert said.code is grpc.StatusCode.UNAVAILABLE
        assert said.retry_after_ms
        cluster.primaries[0].start()
        await _until(lambda: _health(address) == serving, "the health tells it")
        assert (await handle.get()).state is JobState.PENDING


@pytest.mark.parametrize("target", ["another", "new"])
async def test_a_slot_moves_while_its_queue_is_in_use_and_nothing_is_lost_or_stuck(
    site: Site, target: str
) -> None:
    cluster = site.cluster
    used = ("q0", "q1", "q2", *(cluster.queue_on(index) for index in range(3)))
    queue = cluster.queue_on(1, used if target == "new" else (*used, cluster.queue_on(1, used)))
    bystander = cluster.queue_on(0)
    slot, source = slot_of(queue), cluster.primaries[1]
    goal = cluster.primaries[2] if target == "another" else await asyncio.to_thread(cluster.add)
    hands = Hands.at(site.address, queue, bystander)
    hands.let_go(bystander)
    async with hands.worker, AsyncClient(site.address) as client:
        handles = await _submit(client, queue, 30)
        await hands.running(handles)
        watches = [asyncio.create_task(_watched(handle)) for handle in handles]
        cluster.open_slot(slot, source, goal)
        # Under way when the slot opens, and half moved: completions, submissions, claims.
        hands.let_go(queue)
        late = [asyncio.create_task(client.submit("work", n, queue=queue)) for n in range(10)]
        assert cluster.move_keys(slot, source, goal, 20) == 20
        others = await _submit(client, bystander, 3)
        await _each_ends_once(hands, others)
        cluster.move_keys(slot, source, goal)
        cluster.close_slot(slot, goal)
        handles += [await task for task in late]
        handles += await _submit(client, queue, 5)
        await _each_ends_once(hands, handles)
        seen = await asyncio.gather(*watches)
        assert all(jobs[-1].state is JobState.SUCCEEDED for jobs in seen)
        assert source.run("CLUSTER", "COUNTKEYSINSLOT", slot) == 0
        # What is told now is told by the new node.
        hands.gates[queue].clear()
        (last,) = await _submit(client, queue, 1)
        await hands.running([last])
        watch = asyncio.create_task(_watched(last))
        channel = f"jw:{{{queue}}}:events"
        heard = goal.run("PUBSUB", "SHARDNUMSUB", channel)
        assert heard[1] == 1
        hands.let_go(queue)
        assert (await watch)[-1].state is JobState.SUCCEEDED
    _check(goal, queue)
