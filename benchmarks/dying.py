"""A worker that takes one job and keeps it, to be killed; a program of `recovery`.

python -m benchmarks.dying TARGET QUEUE stream|unary WORKER_ID
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any, cast

from jobwire import Context, Worker

from benchmarks.jobs import OPERATION
from benchmarks.parts import say


async def _main(target: str, queue: str, way: str, worker_id: str) -> None:
    worker = Worker(
        target,
        queues=[queue],
        concurrency=1,
        prefetch=0,
        worker_id=worker_id,
        transport=cast(Any, way),
    )

    @worker.operation(OPERATION)
    async def keep(context: Context) -> None:
        say({"job": context.job_id})
        await asyncio.Event().wait()

    say({"ready": True})
    await worker.serve()


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
