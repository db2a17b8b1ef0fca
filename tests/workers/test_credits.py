"""Credits under random work: the server never has more with a worker than it may hold."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace

import pytest

from jobwire.v1.job_pb2 import JOB_STATE_SUCCEEDED
from jobwire.v1.worker_service_pb2 import Released

from tests.support.streams import QUICK, Producer, RawWorker, completion, stream_server

JOBS = 400
QUEUES = ("a", "b", "c")
WORKERS = 4
CALM = replace(QUICK, claim_timeout_ms=30_000, heartbeat_interval_ms=5_000)
"""Only what the test does moves jobs."""


class RandomWorker:
    """Completes, releases, and changes its credits at random, and watches what it is given.

    Args:
        worker: Its stream.
        seed: Of its doings.
    """

    def __init__(self, worker: RawWorker, seed: str) -> None:
        self.worker = worker
        self.random = random.Random(seed)
        self.allowed = worker.first.credits
        """The most credits that the server may still go by."""
        self.violations: list[str] = []
        self.done: Counter[str] = Counter()

    async def run(self, over: asyncio.Event) -> None:
        """Works until there is nothing left."""
        worker = self.worker
        while not over.is_set():
            held = [*worker.held.values()]
            if len(held) > self.allowed:
                self.violations.append(f"{worker.worker_id}: {len(held)} > {self.allowed}")
            chosen = self.random.sample(held, self.random.randint(0, len(held)))
            if chosen:
                back = self.random.random() < 0.15
                for assignment in chosen:
                    self.done[assignment.job_id] += not back
                outcome = {"released": Released(not_started=True)} if back else {}
                receipt = await worker.receipt(
                    await worker.post([completion(a, **outcome) for a in chosen])
                )
                assert not receipt.refused
            if self.random.random() < 0.3:
                await self._change()
            await asyncio.sleep(self.random.random() * 0.01)

    async def _change(self) -> None:
        wanted = self.random.choice([0, 1, 3, 10, 40])
        held = len(self.worker.held)
        await self.worker.send(credits=wanted)
        # The server may act on the old number until it has read this frame, which the receipt of
        # an empty report proves; what it sent before stays.
        await self.worker.receipt(
            await self.worker.post(reports=[{"job_id": "x"}])  # type: ignore[list-item]
        )
        self.allowed = max(wanted, held, len(self.worker.held))


@pytest.mark.parametrize("seed", range(3))
async def test_random_workers_never_hold_more_than_their_credits(
    valkey_url: str, seed: int
) -> None:
    async with (
        stream_server(valkey_url, CALM) as one,
        stream_server(valkey_url, CALM, "s2") as two,
        Producer(one.address) as producer,
        asyncio.TaskGroup() as tasks,
    ):
        workers = [
            RandomWorker(
                RawWorker(
                    (one, two)[at % 2].address,
                    f"w{at}",
                    queues=QUEUES[: at + 1] or QUEUES,
                    credits=5 * at,
                ),
                f"{seed}-{at}",
            )
            for at in range(WORKERS)
        ]
        over = asyncio.Event()
        for each in workers:
            await each.worker.attach()
            tasks.create_task(each.run(over))
        job_ids = [
            job_id
            for part in range(10)
            for queue in QUEUES
            for job_id in await producer.submit(JOBS // 30 + part % 2, queue)
        ]
        try:
            async with asyncio.timeout(60):
                while True:
                    if sum(sum(each.done.values()) for each in workers) == len(job_ids):
                        break
                    await asyncio.sleep(0.02)
        finally:
            over.set()
    for each in workers:
        await each.worker.break_off()
    assert [text for each in workers for text in each.violations] == []
    done = sum((each.done for each in workers), Counter[str]())
    assert {job_id for job_id, times in done.items() if times} == {*job_ids}
    assert max(done.values()) == 1
    async with stream_server(valkey_url, CALM, "s3") as three, Producer(three.address) as looker:
        for job_id in job_ids[::7]:
            job = await looker.job(job_id)
            assert job.state == JOB_STATE_SUCCEEDED
            assert (job.failures, job.crashes, job.interruptions) == (0, 0, 0)
