"""A worker for tests that kill it."""

from __future__ import annotations

from typing import Any

from jobwire import Context, Worker

worker = Worker()


@worker.operation("count")
def count(context: Context) -> dict[str, Any]:
    if context.checkpoint is not None:
        return {"from": context.checkpoint, "attempt": context.attempt}
    context.save_checkpoint({"rows": 1200})
    context.progress(None, "saved")
    context.wait_cancelled()
    return {}
