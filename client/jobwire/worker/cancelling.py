"""Whose cancellation a `CancelledError` is."""

from __future__ import annotations

import asyncio


def this_task_is_cancelled() -> bool:
    """Tell the cancellation of this task from that of what it awaits, which looks the same."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
