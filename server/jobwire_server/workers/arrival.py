"""Arrival: a process takes a worker's id from another one only if it is there to have it.

A server or a store that stood still finds what a process sent before it was killed, and by then
another process may have its id. That a connection has ended shows a moment later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from jobwire_server.store.workers import AnotherLives

Found = TypeVar("Found")

PRESENT_S = 0.25
"""How long a process is to be there first; on a busy machine the end of a connection may show some
milliseconds after what was sent before.
"""
LATE_MS = 1_000
"""What reaches the store so much later than it was to shows that somebody stood still."""


async def arrive(take: Callable[[int], Awaitable[Found]]) -> Found:
    """Return what `take` returns, once it takes the id from nobody, or its call has outlived a
    moment. Whoever makes the call cancels this when its caller is gone.

    Args:
        take: Gets the store's time after which it is too late to take the id from another process;
            0: it is not to be taken. Raises AnotherLives.
    """
    not_after_ms = 0
    while True:
        try:
            return await take(not_after_ms)
        except AnotherLives as other:
            not_after_ms = other.now_ms + round(PRESENT_S * 1000) + LATE_MS
        await asyncio.sleep(PRESENT_S)
