"""Servers and stores that hang: what they were to hear of costs no job an attempt, or overlaps."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from time import monotonic
from typing import Literal, get_args

import pytest

from jobwire import AsyncClient, AsyncJobHandle, AttemptOutcome, Context, JobState, Worker

from tests.support.proxy import Proxy
from tests.support.servers import ServerProcess
from tests.support.stores import StoreProcess
from tests.support.waiting import eventually

Way = Literal["stream", "unary"]
LEASE_S = 2.0
TIMEOUT_S = 3.0
STOP_S = 4.5
"""Longer than a lease, and than the silence that makes a worker lost."""
QUICK = (
    *("--lease", f"{LEASE_S:g}s", "--heartbeat-interval", "300ms", "--tick", "200ms"),
    *("--worker-timeout", f"{TIMEOUT_S:g}s", "--reconnect-window", "2s"),
)
CALMER = (
    *("--lease", "6s", "--heartbeat-interval", "300ms", "--tick", "200ms"),
    *("--worker-timeout", "5s", "--reconnect-window", "4s"),
)
"""A tenth of the window is what handlers have to stop in: enough on a busy machine."""
PATIENCE_S = 40.0
ways = pytest.mark.parametrize("way", ["stream", "unary"])


@pytest.fixture
def serve(own_store: StoreProcess) -> Iterator[Callable[..., ServerProcess]]:
    """Starts servers on one store, quick to notice what is lost."""
    started: list[ServerProcess] = []

    def start(times: tuple[str, ...] = QUICK) -> ServerProcess:
        server = ServerProcess("--redis-url", own_store.url, *times)
        started.append(server)
        server.start()
        return server

    yield start
    for server in started:
        server.signal(signal.SIGCONT)
        server.stop()


class Hands:
    """A worker of this process whose handlers wait, and that writes down when they run."""

    def __init__(self, target: str, way: Way, queue: str = "default") -> None:
        self.gate = asyncio.Event()
        self.runs: dict[str, list[tuple[float, float]]] = {}
        """Job id -> begin and end of each run; the end is infinite while it runs."""
        self.worker = Worker(
            target,
            queues=[queue],
            concurrency=10,
            transport=way,
            prefetch=0,
            shutdown_grace_s=0.1,
        )

        @self.worker.operation("hang.hold")
        async def hold(context: Context) -> int:
            runs = self.runs.setdefault(context.job_id, [])
            at = len(runs)
            runs.append((monotonic(), float("inf")))
            try:
                await self.gate.wait()
            finally:
                runs[at] = (runs[at][0], monotonic())
            return context.fencing_token

    @property
    def busy(self) -> set[str]:
        """The jobs that run now."""
        return {job for job, runs in self.runs.items() if runs[-1][1] == float("inf")}

    async def takes(self, handles: list[AsyncJobHandle]) -> None:
        """Waits until these run."""
        wanted = {handle.id for handle in handles}
        await eventually(lambda: wanted <= self.busy, "the jobs run", timeout_s=PATIENCE_S)


@asynccontextmanager
async def working(target: str, way: Way, queue: str = "default") -> AsyncIterator[Hands]:
    hands = Hands(target, way, queue)
    async with hands.worker:
        yield hands


def _holds_the_stream(servers: dict[str, ServerProcess]) -> str:
    """The address of the server that a worker is attached to."""
    sample = 'jobwire_rpc_in_flight{method="/jobwire.v1.WorkerService/Work"}'
    (found,) = (at for at, server in servers.items() if server.metric(sample) == 1)
    return found


async def _stopped_for(seconds: float) -> None:
    began = monotonic()
    await eventually(lambda: monotonic() - began > seconds, "it is time", timeout_s=PATIENCE_S)


async def _ends_without_a_crash(handles: list[AsyncJobHandle]) -> None:
    for handle in handles:
        job = await handle.wait(timeout=PATIENCE_S)
        assert (job.state, job.crashes) == (JobState.SUCCEEDED, 0)
        assert AttemptOutcome.CRASHED not in [attempt.outcome for attempt in job.attempts]


@ways
async def test_a_worker_leaves_a_server_that_hangs_for_another_one_with_its_jobs(
    serve: Callable[[], ServerProcess], way: Way
) -> None:
    servers = {server.address: server for server in (serve(), serve())}
    async with working(",".join(servers), way) as hands:
        address = next(iter(servers))
        if way == "stream":
            address = await asyncio.to_thread(_holds_the_stream, servers)
        hung = servers.pop(address)
        (other,) = servers
        async with AsyncClient(other) as client:
            handles = [await client.submit("hang.hold") for _ in range(10)]
            await hands.takes(handles)
            hung.signal(signal.SIGSTOP)
            await _stopped_for(STOP_S)
            assert hands.busy == {handle.id for handle in handles}
            hung.signal(signal.SIGCONT)
            # What it finds in its queues must not disturb the worker that has left it.
            await _stopped_for(1.0)
            hands.gate.set()
            await _ends_without_a_crash(handles)
            for handle in handles:
                assert (await handle.get()).result == 1
            late = await client.submit("hang.hold")
            await _ends_without_a_crash([late])
    assert {len(runs) for runs in hands.runs.values()} == {1}


@ways
@pytest.mark.parametrize("stop_s", [1.0, STOP_S])
async def test_the_only_server_may_hang_and_its_workers_jobs_count_no_crash(
    serve: Callable[[], ServerProcess], way: Way, stop_s: float
) -> None:
    server = serve()
    async with working(server.address, way) as hands, AsyncClient(server.address) as client:
        handles = [await client.submit("hang.hold") for _ in range(10)]
        await hands.takes(handles)
        server.signal(signal.SIGSTOP)
        await _stopped_for(stop_s)
        server.signal(signal.SIGCONT)
        # Longer than anything that could be taken for lost.
        await _stopped_for(LEASE_S)
        hands.gate.set()
        await _ends_without_a_crash(handles)
        if stop_s == 1.0:
            assert {len(runs) for runs in hands.runs.values()} == {1}


@ways
async def test_a_store_may_hang_longer_than_a_lease_and_nothing_is_taken_from_anybody(
    serve: Callable[[], ServerProcess], own_store: StoreProcess, way: Way
) -> None:
    server, second = serve(), serve()
    async with working(server.address, way) as hands, AsyncClient(second.address) as client:
        handles = [await client.submit("hang.hold") for _ in range(10)]
        await hands.takes(handles)
        own_store.pause()
        await _stopped_for(STOP_S)
        own_store.resume()
        await _stopped_for(LEASE_S)
        hands.gate.set()
        await _ends_without_a_crash(handles)
        if way == "stream":
            # Its server was heard all the while.
            assert {len(runs) for runs in hands.runs.values()} == {1}


@pytest.mark.alone
async def test_no_two_handlers_of_a_job_overlap_once_a_worker_is_cut_off(
    serve: Callable[..., ServerProcess],
) -> None:
    server = serve(CALMER)
    # Side by side, each on a queue of its own: it takes as long as the slowest.
    async with asyncio.TaskGroup() as cases:
        for way in get_args(Way):
            for directions in (("up",), ("down",), ("up", "down")):
                cases.create_task(_cut_off(server.address, way, directions))


async def _cut_off(address: str, way: Way, directions: tuple[str, ...]) -> None:
    queue = "-".join((way, *directions))
    async with Proxy(address) as proxy, AsyncClient(address) as client:
        cut_off = Hands(proxy.address, way, queue)
        async with cut_off.worker:
            handles = [await client.submit("hang.hold", queue=queue) for _ in range(5)]
            await cut_off.takes(handles)
            async with working(address, way, queue) as near:
                proxy.swallow(*directions)
                proxy.refuse()
                await near.takes(handles)
                near.gate.set()
                for handle in handles:
                    await handle.wait(timeout=PATIENCE_S)
        for handle in handles:
            (first,) = cut_off.runs[handle.id]
            assert first[1] < near.runs[handle.id][0][0], queue
