"""Waiting for conditions in coroutines, without guessing how long they take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


async def eventually(condition: Callable[[], bool], what: str, *, timeout_s: float = 10.0) -> None:
    """Wait until the condition holds.

    Raises:
        TimeoutError: It does not hold after timeout_s.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not so after {timeout_s:g} s")
        await asyncio.sleep(0.005)
