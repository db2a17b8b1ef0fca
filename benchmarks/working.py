"""A worker as a user would write one: `python -m benchmarks.working TARGET CONCURRENCY PREFETCH`.

Its handler does nothing. It works until it is asked by a line for what it has done, and says it.
"""

from __future__ import annotations

import asyncio
import dataclasses
import sys

import uvloop

from jobwire import Context, Worker

from benchmarks import jobs
from benchmarks.parts import say


async def work(target: str, concurrency: int, prefetch: int) -> None:
    """Works until its input ends."""
    worker = Worker(target, concurrency=concurrency, prefetch=prefetch)
    handled = 0

    @worker.operation(jobs.OPERATION)
    async def nothing(context: Context) -> bytes:
        nonlocal handled
        handled += 1
        return b"done"

    loop = asyncio.get_running_loop()
    async with worker:
        say({"ready": True})
        while await loop.run_in_executor(None, sys.stdin.readline):
            say({**dataclasses.asdict(worker.stats), "handled": handled})


if __name__ == "__main__":
    uvloop.run(work(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
