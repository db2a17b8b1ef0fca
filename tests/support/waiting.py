"""Waiting for conditions in coroutines, without guessing how long they take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from tests.support.stores import FIRST_PAUSE_S, LONGEST_PAUSE_S


async def eventually(condition: Callable[[], bool], what: str, *, timeout_s: float = 10.0) -> None:
    """Wait until the condition holds.

    Raises:
        TimeoutError: It does not hold after timeout_s.
    """
    deadline = time.monotonic() + timeout_s
    pause_s = FIRST_PAUSE_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not so after {timeout_s:g} s")
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 1.1, LONGEST_PAUSE_S)
