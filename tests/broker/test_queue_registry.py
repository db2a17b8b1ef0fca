"""The registry of queues: a queue with jobs is in it, whatever the store forgot."""

from __future__ import annotations

import pytest

from jobwire_server.broker import announcements
from jobwire_server.store import keys

from tests.support.brokers import running_broker
from tests.support.jobs import new_job
from tests.support.waiting import eventually


async def test_a_queue_that_the_store_forgot_in_a_failover_is_registered_again(
    valkey_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(announcements, "DISCOVERY_S", 0.05)
    async with running_broker(valkey_url, server_id="s1") as one:
        await one.submit()
        # A replica that was promoted may lack the last writes of the former primary.
        assert one.client.zrem(keys.QUEUES, "default") == 1
        await one.submit(new_job(delay_ms=60_000))
        await eventually(
            lambda: one.client.zscore(keys.QUEUES, "default") is not None, "registered again"
        )
    # So another server keeps the queue after this one is gone.
    async with running_broker(valkey_url, server_id="s2") as two:
        await eventually(lambda: "default" in two.parts.clocks, "the other server keeps it")
        assert (await two.router.operators.get_queue("default")).name == "default"
