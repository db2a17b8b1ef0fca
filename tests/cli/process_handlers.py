"""A worker whose handlers run in processes."""

from __future__ import annotations

import os

from jobwire import Context, Worker

worker = Worker(concurrency=1)


@worker.operation("own_pid", run="process")
def own_pid(context: Context) -> int:
    return os.getpid()
