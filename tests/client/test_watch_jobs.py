"""Watching many jobs, queues and workers, with a real broker."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobwire import AsyncClient, Context, JobState, Worker

from tests.client.support import Server, worker_at

pytestmark = pytest.mark.processes

TOKENS = Path(__file__).resolve().parents[2] / "examples" / "tokens"


async def test_jobs_that_end_while_the_server_is_away_are_told(server: Server) -> None:
    gate = asyncio.Event()

    async def hold(context: Context) -> None:
        await gate.wait()

    client = AsyncClient(server.address, reconnect_s=30)
    async with client, worker_at(server.address, "stream", hold=hold):
        ids = [(await client.submit("hold")).id for _ in range(5)]
        ended = []
        async for job in client.watch_jobs(job_ids=ids):
            if job.state is JobState.RUNNING and not gate.is_set():
                await asyncio.to_thread(server.kill)
                gate.set()
                server.start()
            if job.state.is_terminal:
                ended.append(job.id)
        assert sorted(ended) == sorted(ids)


async def test_workers_and_queues_are_watched(broker_address: str) -> None:
    async with AsyncClient(broker_address) as client:
        worker: Worker = worker_at(broker_address, "stream", hold=lambda context: None)
        changes = client.watch_workers()
        async with worker, asyncio.timeout(20):
            first = await anext(changes)
            assert (first.id, first.worker is not None) == (worker.id, True)
        async with asyncio.timeout(20):
            async for change in changes:
                if change.worker is None:
                    assert change.id == worker.id
                    break
        await client.submit("nobody", queue="many")
        async with asyncio.timeout(20):
            async for queue in client.watch_queues(["many"], interval=0.2):
                if queue.counts.get(JobState.PENDING) == 1:
                    break


def test_the_reader_of_tokens_goes_on_where_it_was_cut_off(broker_address: str) -> None:
    environment = os.environ | {"JOBWIRE_TARGET": broker_address}
    command = [sys.executable, "-m", "jobwire.cli", "worker", "worker"]
    worker = subprocess.Popen(command, cwd=TOKENS, env=environment, stderr=subprocess.DEVNULL)
    try:
        done = subprocess.run(
            [sys.executable, "ask.py", "Why?"],
            cwd=TOKENS,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    finally:
        worker.terminate()
        worker.wait(20)
    text, last = done.stdout.replace("| ", "").splitlines()
    assert text.startswith("You asked: Why? A durable queue")
    assert text.strip().endswith("nothing comes twice.")
    assert last.startswith(f"{len(text.split())} tokens")
