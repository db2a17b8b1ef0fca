"""A worker that other processes run, and that may be killed at any moment."""

from __future__ import annotations

import os
import time

from jobwire import Context, Worker

worker = Worker(concurrency=8)


@worker.operation("e2e.work")
def work(context: Context) -> dict[str, int]:
    """Takes a moment, so that something is always under way."""
    context.progress(0.5)
    time.sleep(context.payload / 1000)
    return {"token": context.fencing_token}


@worker.operation("e2e.poison")
async def poison(context: Context) -> None:
    """Ends the whole process before it could say anything."""
    os._exit(1)


@worker.operation("e2e.long")
def long(context: Context) -> str:
    """Runs until it is told to stop."""
    context.progress(None, "running")
    context.wait_cancelled(60)
    context.raise_if_cancelled()
    return "finished"
