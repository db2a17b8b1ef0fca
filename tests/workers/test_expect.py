"""A submission wakes the workers of its own server without the way through the store's notices."""

from __future__ import annotations

import asyncio

import pytest

from jobwire_server.workers import dispatcher

from tests.support.brokers import running_broker
from tests.support.waiting import eventually


async def test_workers_of_the_server_that_submits_need_no_notice(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dispatcher, "POLL_S", 3_600.0)
    async with running_broker(valkey_url) as broker:
        await broker.register()
        # The dispatcher learns the route from a first job, the slow way.
        await broker.submit()
        await broker.claim_one()
        monkeypatch.setattr(dispatcher.QueueDispatcher, "notice", lambda self, data: None)
        async with asyncio.timeout(20):
            waiting = asyncio.create_task(broker.claim(wait_ms=20_000))
            found = broker.parts.dispatchers.of("default")
            await eventually(lambda: bool(found.demands.idle), "the claim waits")
            (ulid,) = await broker.submit()
            (assignment,) = await waiting
        assert assignment.job_id.endswith(ulid)
