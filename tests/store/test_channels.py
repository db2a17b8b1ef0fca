"""The names of channels: none means two things."""

from __future__ import annotations

import asyncio

from jobwire_server.domain.model import JobState
from jobwire_server.store import keys
from jobwire_server.store.connection.connect import connect
from jobwire_server.store.notices import Listener, Notices

from tests.support.brokers import running_broker
from tests.support.jobs import new_job, ulid_of

UNTIL_REFRESH_S = 10.0
"""Below the interval at which watched jobs are read whatever the store says."""


async def test_a_queue_called_workers_is_watched_beside_the_workers(valkey_url: str) -> None:
    async with running_broker(valkey_url) as broker:
        notices = broker.parts.notices
        job = new_job("workers")
        await broker.submitted(job)
        watch = broker.watch(ulid_of(job), "workers")
        first = await anext(watch)
        assert first is not None
        # As `Signals` does once a worker attaches.
        await notices.listen(keys.WORKER_EVENTS, Listener(lambda data: None, lambda: None))
        await broker.router.cancel_job("workers", ulid_of(job), "")
        async with asyncio.timeout(UNTIL_REFRESH_S):
            last = await anext(watch)
        assert last is not None
        assert last.state is JobState.CANCELLED


async def test_the_changes_of_workers_are_told_on_their_channel(valkey_url: str) -> None:
    connection = connect(valkey_url)
    notices = Notices(connection)
    await notices.start()
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
    try:
        await notices.listen(keys.WORKER_EVENTS, Listener(heard.set_result, lambda: None))
        async with running_broker(valkey_url) as broker:
            await broker.register("w1")
            async with asyncio.timeout(UNTIL_REFRESH_S):
                assert await heard == b"w1"
    finally:
        await notices.stop()
        await connection.close()
