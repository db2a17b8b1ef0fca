"""A worker that writes down what it starts, for tests that kill it."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from jobwire import Context, Worker

worker = Worker(concurrency=4, prefetch=4, shutdown_grace_s=1.5)


@worker.operation("stream.work")
async def work(context: Context) -> dict[str, int]:
    """Takes as long as the payload says, after a line in the file that STARTS names."""
    with Path(os.environ["STARTS"]).open("a") as starts:
        starts.write(f"{context.job_id}\n")
    await asyncio.sleep(context.payload["ms"] / 1000)
    return {"token": context.fencing_token}
