"""Worker streams over real servers that are killed, drained and cut off."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from time import monotonic
from typing import Any

import grpc
import pytest
import redis

from jobwire import Context, Worker
from jobwire.v1 import admin_service_pb2, admin_service_pb2_grpc
from jobwire.v1.job_pb2 import (
    ATTEMPT_OUTCOME_SUCCEEDED,
    JOB_STATE_PENDING,
    JOB_STATE_SUCCEEDED,
    Job,
    Payload,
)

from tests.support.proxy import Proxy
from tests.support.servers import ServerProcess
from tests.support.stores import StoreProcess, wait_until
from tests.support.streams import Producer, RawWorker, completion
from tests.support.waiting import eventually
from tests.support.workers import WorkerProcess

LONG_LEASE = ("--lease", "60s", "--worker-timeout", "60s")
"""Whatever comes back within a test does not wait for these."""
WORK = "stream.work"


@pytest.fixture
def serve(valkey: StoreProcess) -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers on one empty store."""
    valkey.flush()
    started: list[ServerProcess] = []

    def start(*flags: str) -> ServerProcess:
        server = ServerProcess("--redis-url", valkey.url, *LONG_LEASE, *flags)
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.stop()


class Recorder:
    """A worker of this process that writes down what it starts."""

    def __init__(self, target: str, concurrency: int = 20) -> None:
        self.starts: Counter[str] = Counter()
        self.worker = Worker(target, concurrency=concurrency, shutdown_grace_s=10.0)

        @self.worker.operation(WORK)
        async def work(context: Context) -> dict[str, int]:
            self.starts[context.job_id] += 1
            await asyncio.sleep(context.payload["ms"] / 1000)
            return {"token": context.fencing_token}


def takes(ms: int) -> dict[str, Any]:
    """Returns what to submit for a job that takes so long."""
    return {"operation": WORK, "payload": Payload(json=json.dumps({"ms": ms}))}


def succeeded(store: StoreProcess) -> int:
    """Returns how many jobs of the default queue have succeeded."""
    with redis.Redis.from_url(store.url) as client:
        return int(client.hget("jw:{default}:counts", "5") or 0)


async def until_succeeded(store: StoreProcess, count: int, timeout_s: float = 60.0) -> None:
    """Waits until so many jobs have succeeded."""
    await eventually(
        lambda: succeeded(store) >= count, f"{count} jobs succeed", timeout_s=timeout_s
    )


def budgets(job: Job) -> tuple[int, int, int]:
    """Returns what was counted against a job."""
    return job.failures, job.crashes, job.interruptions


async def each_was_done_once(
    producer: Producer, job_ids: list[str], starts: Counter[str] | None = None
) -> None:
    """Checks that each job was started once, ended once, and had nothing counted against it."""
    for job_id in job_ids:
        job = await producer.job(job_id)
        assert job.state == JOB_STATE_SUCCEEDED
        assert budgets(job) == (0, 0, 0)
        outcomes = [a.outcome for a in job.attempts]
        assert outcomes.count(ATTEMPT_OUTCOME_SUCCEEDED) == 1
        assert json.loads(job.result.json) == {"token": job.attempts[-1].fencing_token}
    if starts is not None:
        assert starts == Counter(job_ids)


async def owner_first(
    servers: list[ServerProcess], worker_id: str
) -> tuple[ServerProcess, ServerProcess]:
    """Returns the server that a worker is attached to, and the other one."""
    async with grpc.aio.insecure_channel(servers[0].address) as channel:
        admin = admin_service_pb2_grpc.AdminServiceStub(channel)
        request = admin_service_pb2.GetWorkerRequest(worker_id=worker_id)
        server_id = (await admin.GetWorker(request)).worker.server_id
    one, two = servers
    assert one.process is not None
    return (one, two) if f"-{one.process.pid}-" in server_id else (two, one)


async def test_a_kill_of_the_server_that_a_worker_is_attached_to_costs_nothing(
    valkey: StoreProcess, serve: Callable[..., ServerProcess]
) -> None:
    servers = [serve(), serve()]
    recorder = Recorder(",".join(server.address for server in servers), concurrency=25)
    async with recorder.worker:
        mine, other = await owner_first(servers, recorder.worker.id)
        async with Producer(other.address) as producer:
            job_ids = await producer.submit(500, **takes(200))
            await until_succeeded(valkey, 100)
            mine.kill()
            began = monotonic()
            await until_succeeded(valkey, 500)
            took = monotonic() - began
            await each_was_done_once(producer, job_ids, recorder.starts)
    # Three seconds of work were left; a lease is a minute, the reconnect window five seconds.
    assert took < 20


async def test_a_server_that_is_told_to_end_costs_nothing(
    valkey: StoreProcess, serve: Callable[..., ServerProcess]
) -> None:
    servers = [serve(), serve()]
    recorder = Recorder(",".join(server.address for server in servers))
    async with recorder.worker:
        mine, other = await owner_first(servers, recorder.worker.id)
        async with Producer(other.address) as producer:
            # Some run all the while that the server drains.
            job_ids = await producer.submit(5, **takes(4_000))
            job_ids += await producer.submit(300, **takes(100))
            await until_succeeded(valkey, 50)
            mine.signal(signal.SIGTERM)
            await until_succeeded(valkey, 305)
            await each_was_done_once(producer, job_ids, recorder.starts)
        assert await asyncio.to_thread(mine.wait) == 0
    assert "defect" not in mine.log
    assert "defect" not in other.log


@pytest.mark.parametrize("directions", [("up",), ("down",), ("up", "down")])
async def test_a_connection_that_swallows_bytes_is_found_and_work_goes_on(
    valkey: StoreProcess, serve: Callable[..., ServerProcess], directions: tuple[str, ...]
) -> None:
    interval_s = 0.5
    server = serve("--heartbeat-interval", f"{interval_s * 1000:.0f}ms")
    async with Proxy(server.address) as proxy, Producer(server.address) as producer:
        recorder = Recorder(proxy.address)
        async with recorder.worker:
            job_ids = await producer.submit(10, **takes(4_000))
            await eventually(lambda: recorder.starts.total() == 10, "all are running")
            job_ids += await producer.submit(50, **takes(50))
            await until_succeeded(valkey, 10)
            before = proxy.accepted
            proxy.swallow(*directions)
            began = monotonic()
            job_ids += await producer.submit(50, **takes(50))
            await eventually(lambda: proxy.accepted > before, "another connection", timeout_s=30)
            if "down" in directions:
                # Not the ten seconds that it takes until pings are missed.
                assert monotonic() - began < 2 * interval_s + 4.0
            await until_succeeded(valkey, len(job_ids))
            await each_was_done_once(producer, job_ids)
            # What had arrived before runs on; what was on its way may have been sent once more.
            assert all(recorder.starts[job_id] == 1 for job_id in job_ids[:10])


async def test_workers_that_behave_badly_harm_nobody_else(
    valkey: StoreProcess, serve: Callable[..., ServerProcess]
) -> None:
    server = serve(
        *("--claim-timeout", "1s", "--heartbeat-interval", "1s", "--reconnect-window", "1s"),
        *("--lease", "3s"),
    )
    bad = [
        RawWorker(server.address, "never-acks", acks=False, credits=50, operations=[WORK]),
        RawWorker(server.address, "never-completes", credits=50, operations=[WORK]),
        RawWorker(server.address, "falls-silent", credits=50, beats=False, operations=[WORK]),
    ]
    deaf = RawWorker(server.address, "never-reads", credits=50, operations=[WORK])
    async with Producer(server.address) as producer:
        for each in bad:
            await each.attach()
        await deaf.attach_unread()
        job_ids = await producer.submit(400, **takes(5))
        for each in bad:
            await each.jobs(1)
        recorder = Recorder(server.address)
        async with recorder.worker:
            never_completes = bad[1]
            # All but those that a living, heartbeating worker holds.
            await until_succeeded(valkey, 400 - len(never_completes.held))
            assert len(never_completes.held) <= 50
            assert not never_completes.call.done()
            assert (await bad[0].end())[0].name == "UNAVAILABLE"
            assert (await bad[2].end())[0].name == "UNAVAILABLE"
            await never_completes.break_off()
            await until_succeeded(valkey, 400)
            for each in (*bad, deaf):
                await each.break_off()
            for job_id in job_ids:
                job = await producer.job(job_id)
                assert job.state == JOB_STATE_SUCCEEDED
                assert (job.failures, job.interruptions) == (0, 0)
                assert job.crashes <= 1


def resident_mib(server: ServerProcess) -> float:
    """Returns the memory of a server's process."""
    assert server.process is not None
    status = Path(f"/proc/{server.process.pid}/status")
    if not status.exists():
        pytest.skip("only Linux tells the memory of a process")
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1024


def holds_stream(store: StoreProcess, worker: RawWorker) -> bool:
    """Tells whether the broker takes a worker's stream for whole."""
    with redis.Redis.from_url(store.url) as client:
        return bool(client.hget(f"jw:{{workers}}:w:{worker.worker_id}", "up") != b"0")


async def test_workers_that_stop_reading_do_not_fill_the_server(
    valkey: StoreProcess, serve: Callable[..., ServerProcess]
) -> None:
    """50,000 jobs of 2 KB wait, and four workers with much room take them and do not read."""
    server = serve("--claim-timeout", "20s", "--heartbeat-interval", "1s", "--lease", "3s")
    async with Producer(server.address) as producer:
        await producer.submit(2_000, size=2_000)
        before = resident_mib(server)
        await producer.submit(48_000, size=2_000)
        deaf = [
            RawWorker(server.address, f"deaf-{at}", credits=10_000, credit_bytes=4 << 20)
            for at in range(4)
        ]
        most = before
        for each in deaf:
            await each.attach_unread()
        async with asyncio.timeout(60):
            while any(holds_stream(valkey, each) for each in deaf):
                most = max(most, resident_mib(server))
                await asyncio.sleep(0.05)
        # And it goes on serving.
        async with RawWorker(server.address, "reader", credits=100) as reader:
            await reader.attach()
            await reader.complete(*await reader.jobs(100))
        # Whoever reads after all learns that it is over.
        assert (await deaf[0].end())[0] is not grpc.StatusCode.OK
        # The others do not hold up the server's shutdown.
        server.signal(signal.SIGTERM)
        assert await asyncio.to_thread(server.wait, 10.0) == 0
        for each in deaf:
            await each.break_off()
    print(f"{before:.0f} MiB before, {most:.0f} MiB at most")
    # Four outboxes of 4 MiB, and what passing on 100 MB of submissions leaves.
    assert most - before < 50, f"{before:.0f} MiB before, {most:.0f} MiB at most"


async def test_a_worker_that_is_told_to_end_finishes_or_gives_back(
    valkey: StoreProcess,
    serve: Callable[..., ServerProcess],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server = serve()
    starts = tmp_path / "starts"
    monkeypatch.setenv("STARTS", str(starts))
    process = WorkerProcess(server.address, "tests.e2e.stream_handlers:worker")
    async with Producer(server.address) as producer:
        quick = await producer.submit(3, **takes(700))
        slow = await producer.submit(9, **takes(60_000))
        process.start()
        # Three quick ones and a slow one run, four wait in the worker, the rest in the queue.
        wait_until(lambda: starts.exists() and len(starts.read_text().split()) == 4, "four run")
        assert process.stop() == 0, process.log
        for job_id in quick:
            job = await producer.job(job_id)
            assert (job.state, budgets(job)) == (JOB_STATE_SUCCEEDED, (0, 0, 0))
        started = starts.read_text().split()
        assert len(started) == len({*started})
        for job_id in slow:
            job = await producer.job(job_id)
            # Only what had begun counts an interruption.
            assert job.state == JOB_STATE_PENDING
            assert budgets(job) == (0, 0, int(job_id in started))
        # All are there to be taken at once.
        async with RawWorker(server.address, credits=9, operations=[WORK]) as other:
            await other.attach()
            jobs = await other.jobs(9)
            assert sorted(job.job_id for job in jobs) == sorted(slow)
            await other.receipt(await other.post([completion(job) for job in jobs]))
