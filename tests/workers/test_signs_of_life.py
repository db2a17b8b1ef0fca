"""How often servers say that the workers attached to them live."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise
from statistics import median

from redis.asyncio import Redis

from tests.support.streams import QUICK, RawWorker, stream_server


async def test_a_worker_is_told_to_live_well_before_it_would_be_lost(valkey_url: str) -> None:
    """Even where the silence that makes it lost is shorter than a second."""
    options = replace(QUICK, worker_timeout_ms=800)
    signs: list[float] = []
    async with (
        stream_server(valkey_url, options) as server,
        RawWorker(server.address) as worker,
        Redis.from_url(valkey_url) as store,
    ):
        await worker.attach()

        async with asyncio.timeout(20):
            while len(signs) <= 8:
                at = await store.zscore("jw:{workers}:seen", "w1")
                if at is not None and at not in signs:
                    signs.append(at)
                await asyncio.sleep(0.02)
    # Most of them, as a busy machine may hold up one or the other.
    assert median(b - a for a, b in pairwise(signs)) <= 400
