"""A client of a run: `python -m tests.faults.client async --target … --history …`.

Told to end it submits no more, waits for what it watches, and leaves.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import threading
from contextlib import suppress
from pathlib import Path

from jobwire import AsyncClient, BatchError, CallError, Client
from jobwire.ids import new_job_id

from tests.faults.bare import Bare
from tests.faults.history import Journal
from tests.faults.producing import Producers, new_job, options
from tests.faults.wishes import draw

RECONNECT_S = 600.0
"""No watch is to give up within a run."""
CALL_S = 20.0


async def run_async(given: argparse.Namespace, journal: Journal) -> None:
    """Many tasks around one client, and calls without an SDK beside them."""
    rng = random.Random(given.seed)
    async with AsyncClient(given.target, timeout_s=CALL_S, reconnect_s=RECONNECT_S) as client:
        producers = Producers(client, journal, rng, given.pause, given.block_ms)
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, producers.stopping.set)
        bare = Bare(given.target, journal, rng, given.pause * 10, producers.stopping)
        journal.write("up", id=bare.worker_id)
        tasks = [asyncio.create_task(work) for work in (bare.produce(), bare.work())]
        await producers.run()
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task
        await bare.channel.close()


def run_sync(given: argparse.Namespace, journal: Journal) -> None:
    """Threads around one client: one job and its result, or some at once."""
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())

    def work(client: Client, rng: random.Random) -> None:
        while not stopping.wait(rng.uniform(0, 2 * given.pause * 4)):
            count = rng.choice((1, 1, 1, 5))
            jobs = []
            for _ in range(count):
                wish = draw(rng, block_ms=given.block_ms)
                key = new_job_id(wish.queue)
                journal.write("submit", key=key, wish=wish.facts())
                jobs.append(new_job(wish, job_id=key, request_id=None))
            try:
                if count == 1:
                    outcomes = [
                        client.submit(jobs[0].operation, jobs[0].payload, **options(jobs[0]))
                    ]
                else:
                    outcomes = [*client.submit_many(jobs)]
            except BatchError as error:
                outcomes = [*error.outcomes]  # type: ignore[list-item]
            except CallError as error:
                outcomes = [error] * count  # type: ignore[list-item]
            for job, outcome in zip(jobs, outcomes, strict=True):
                if isinstance(outcome, CallError):
                    facts = {"code": outcome.code.name, "reason": outcome.reason}
                    journal.write("refused", key=job.job_id, **facts, text=str(outcome)[:300])
                else:
                    journal.write(
                        "accepted", key=job.job_id, job=outcome.id, existed=outcome.existed
                    )
            if count == 1 and not isinstance(outcomes[0], CallError) and rng.random() < 0.5:
                wait(outcomes[0])

    def wait(handle: object) -> None:
        try:
            job = handle.wait(timeout=60)  # type: ignore[attr-defined]
        except CallError as error:
            if error.code.name not in ("DEADLINE_EXCEEDED", "UNAVAILABLE"):
                journal.write("wait-end", job=handle.id, error=f"{error.code.name} {error}")  # type: ignore[attr-defined]
            return
        journal.write(
            "seen",
            job=job.id,
            watch=-1,
            state=job.state.value,
            revision=job.revision,
            token=job.fencing_token,
            redrives=job.last_redrive.number if job.last_redrive else 0,
        )

    with Client(given.target, timeout_s=CALL_S, reconnect_s=RECONNECT_S) as client:
        journal.write("up")
        threads = [
            threading.Thread(target=work, args=(client, random.Random(given.seed * 10 + at)))
            for at in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def main() -> None:
    """Runs until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=["async", "sync"])
    parser.add_argument("--target", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--history", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--pause", type=float, default=0.1)
    parser.add_argument("--block-ms", type=int, default=1_000)
    given = parser.parse_args()
    journal = Journal(given.history, given.name)
    if given.kind == "async":
        asyncio.run(run_async(given, journal))
    else:
        run_sync(given, journal)
    journal.write("down")


if __name__ == "__main__":
    main()
