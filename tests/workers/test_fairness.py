"""Several servers and many workers on one queue."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from time import monotonic

import pytest

from jobwire_server.workers import dispatcher, signs_of_life

from tests.support.streams import PATIENCE_S, QUICK, Producer, RawWorker, stream_server
from tests.support.waiting import eventually

CALM = replace(QUICK, claim_timeout_ms=30_000, heartbeat_interval_ms=5_000)


async def work_off(worker: RawWorker, count: list[int], all_of: int, takes_s: float = 0.0) -> None:
    """Completes whatever comes until all is done, by whomever."""
    while sum(count) < all_of:
        held = [*worker.held.values()]
        if held:
            await asyncio.sleep(takes_s)
            await worker.complete(*held)
            count.append(len(held))
        else:
            await asyncio.sleep(0.001)


async def test_two_servers_share_a_queue_fairly(valkey_url: str) -> None:
    jobs = 3_000
    async with (
        stream_server(valkey_url, CALM) as one,
        stream_server(valkey_url, CALM, "s2") as two,
        Producer(one.address) as producer,
    ):
        count: list[int] = []
        workers = [
            RawWorker(server.address, f"{server.router.server_id}-{at}", credits=10)
            for server in (one, two)
            for at in range(2)
        ]
        for worker in workers:
            await worker.attach()
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            for worker in workers:
                tasks.create_task(work_off(worker, count, jobs))
            await producer.submit(jobs)
        shares = [
            sum(len(w.got) for w in workers if w.worker_id.startswith(name)) / jobs
            for name in ("s1", "s2")
        ]
        for worker in workers:
            await worker.break_off()
    assert sum(shares) == 1.0
    assert min(shares) > 0.25, shares


async def test_two_servers_share_small_submissions_once_their_workers_are_busy(
    valkey_url: str,
) -> None:
    jobs, batch = 160, 8
    async with (
        stream_server(valkey_url, CALM) as one,
        stream_server(valkey_url, CALM, "s2") as two,
        Producer(one.address) as producer,
        RawWorker(one.address, "here", credits=2) as here,
        RawWorker(two.address, "there", credits=2) as there,
    ):
        await here.attach()
        await there.attach()
        count: list[int] = []
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            for worker in (here, there):
                tasks.create_task(work_off(worker, count, jobs, 0.005))
            # What the one server is given is handed over to its own workers first.
            for _ in range(jobs // batch):
                await producer.submit(batch)
        assert len(here.got) + len(there.got) == jobs
        assert min(len(here.got), len(there.got)) > jobs / 4, (len(here.got), len(there.got))


async def test_a_submit_through_one_server_wakes_an_idle_worker_on_another(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "POLL_S", 3_600.0)
    async with (
        stream_server(valkey_url, CALM) as one,
        stream_server(valkey_url, CALM, "s2") as two,
        Producer(one.address) as producer,
        RawWorker(two.address) as worker,
    ):
        await worker.attach()
        for count in range(1, 21):
            await producer.submit(operation="work", priority=count % 3)
            # Not so much as the tick of the queue's clock helps it along.
            (*_, assignment) = await worker.jobs(count)
            await worker.complete(assignment)


async def test_jobs_that_return_wake_idle_workers_on_other_servers(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "POLL_S", 3_600.0)
    async with (
        stream_server(valkey_url, CALM) as one,
        stream_server(valkey_url, CALM, "s2") as two,
        Producer(one.address) as producer,
        RawWorker(one.address, "giver", credits=1) as giver,
        RawWorker(two.address, "taker", credits=0) as taker,
    ):
        await giver.attach()
        await taker.attach()
        await producer.submit()
        (assignment,) = await giver.jobs(1)
        await taker.send(credits=1)
        await giver.send(credits=0)
        await giver.release(assignment)
        await taker.jobs(1)


async def test_a_cancellation_needs_no_round_of_the_lease_renewal(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signs_of_life, "PERIOD_S", 3_600.0)
    async with (
        stream_server(valkey_url, replace(CALM, lease_ms=3_600_000)) as one,
        stream_server(valkey_url, CALM, "s2") as two,
        Producer(two.address) as producer,
        RawWorker(one.address) as worker,
    ):
        await worker.attach()
        (job_id,) = await producer.submit()
        await worker.jobs(1)
        began = monotonic()
        await producer.cancel(job_id)
        await eventually(lambda: bool(worker.cancellations), "told", timeout_s=PATIENCE_S)
        assert monotonic() - began < 1.0


async def test_a_worker_is_not_starved_by_one_with_many_credits(valkey_url: str) -> None:
    async with (
        stream_server(valkey_url, CALM) as server,
        Producer(server.address) as producer,
        RawWorker(server.address, "big", credits=1_000) as big,
        RawWorker(server.address, "small", credits=1) as small,
    ):
        await big.attach()
        await small.attach()
        await producer.submit(3_000)
        count: list[int] = []
        async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
            for worker in (big, small):
                tasks.create_task(work_off(worker, count, 3_000))
        assert len(small.got) >= 3
        assert len(big.got) + len(small.got) == 3_000


async def test_queues_are_served_in_turn(valkey_url: str) -> None:
    async with (
        stream_server(valkey_url, CALM) as server,
        Producer(server.address) as producer,
        RawWorker(server.address, queues=["a", "b", "c"], credits=3) as worker,
    ):
        for queue in ("a", "b", "c"):
            await producer.submit(60, queue)
        await worker.attach()
        count: list[int] = []
        async with asyncio.timeout(60):
            await work_off(worker, count, 90)
        seen = [assignment.job_id[0] for assignment in worker.got[:90]]
        assert min(seen.count(queue) for queue in "abc") >= 15, seen
