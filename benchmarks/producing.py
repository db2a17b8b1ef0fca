"""A producer as a user would write one: `python -m benchmarks.producing TARGET BATCH IN_FLIGHT`.

For each number that it reads it submits so many jobs with the SDK and says how long that took.
"""

from __future__ import annotations

import asyncio
import sys
from time import perf_counter

import uvloop

from jobwire import AsyncClient, NewJob

from benchmarks import jobs
from benchmarks.parts import say


async def produce(target: str, batch: int, in_flight: int) -> None:
    """Does as it is told until its input ends."""
    payloads = [jobs.payload() for _ in range(64)]
    loop = asyncio.get_running_loop()
    async with AsyncClient(target) as client:

        async def submit(count: int) -> None:
            async def call(number: int) -> None:
                size = min(batch, count - number * batch)
                await client.submit_many(
                    [
                        NewJob(operation=jobs.OPERATION, payload=payloads[at % 64])
                        for at in range(size)
                    ]
                )

            await jobs.each(-(-count // batch), in_flight, call)

        say({"ready": True})
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            began = perf_counter()
            await submit(int(line))
            say({"took_s": perf_counter() - began})


if __name__ == "__main__":
    uvloop.run(produce(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
