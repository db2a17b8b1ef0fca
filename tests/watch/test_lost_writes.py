"""A failover may lose the last moment's writes: watchers had seen what is no longer so."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from jobwire import AsyncClient, JobState
from jobwire.v1 import job_service_pb2

from tests.support.streams import StreamServer
from tests.watch.support import ALL, RUNNING, SUCCEEDED, Hands


class Past:
    """All that a store holds at this moment, to put back later."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url)
        self._values: dict[bytes, Any] = {
            key: self._client.dump(key) for key in self._client.scan_iter()
        }

    def comes_back(self) -> None:
        """Forgets what was written since, and the connections, as a failover does."""
        transaction = self._client.pipeline()
        transaction.flushall()
        for key, value in self._values.items():
            transaction.restore(key, 0, value)
        transaction.execute()
        self._client.client_kill_filter(_type="pubsub")
        self._client.close()


@pytest.mark.parametrize("lost", range(4))
async def test_a_watcher_who_saw_what_was_lost_is_told_the_end_all_the_same(
    lost: int, store_url: str, hands: Hands
) -> None:
    # The revision that was seen is now lower than that of the end, the same, or higher.
    job_id = await hands.submit()
    past = Past(store_url)
    lease = await hands.claim()
    for number in range(lost):
        await hands.progress(lease, f"step {number}")
    request = job_service_pb2.WatchJobRequest(job_id=job_id, content=ALL)
    stream = aiter(hands.jobs.WatchJob(request))
    assert (await anext(stream)).job.state == RUNNING
    past.comes_back()
    await hands.complete(await hands.claim())
    states = [answer.job.state async for answer in stream if answer.HasField("job")]
    assert states[-1] == SUCCEEDED


@pytest.mark.parametrize("left", ["open", "with its cursor"])
async def test_the_sdk_yields_the_end_to_a_watch_that_saw_what_was_lost(
    left: str, store_url: str, server: StreamServer, hands: Hands
) -> None:
    job_id = await hands.submit()
    past = Past(store_url)
    lease = await hands.claim()
    for number in range(5):
        await hands.progress(lease, f"step {number}")
    async with AsyncClient(server.address) as client:
        watch = client.job(job_id).watch(output=True)
        assert (await anext(watch)).state is JobState.RUNNING
        if left != "open":
            cursor = watch.cursor
            await watch.aclose()
            watch = client.job(job_id).watch(output=True, start=cursor)
        past.comes_back()
        await hands.complete(await hands.claim())
        states = [event.state async for event in watch]
    assert states[-1] is JobState.SUCCEEDED
