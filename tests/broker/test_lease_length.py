"""How long a lease is, whoever renews it."""

from __future__ import annotations

from tests.support.brokers import running_broker
from tests.support.jobs import new_job, worker_spec


async def test_a_report_through_another_server_renews_for_as_long_as_the_worker_asked(
    valkey_url: str,
) -> None:
    async with (
        running_broker(valkey_url, server_id="s1") as one,
        running_broker(valkey_url, server_id="s2") as two,
    ):
        await one.router.register_worker(worker_spec("w1", lease_ms=600_000))
        (ulid,) = await one.submit(new_job())
        token = (await one.claim_one()).fencing_token
        renewal = await two.report("default", ulid, "w1", token, b"")
        left_ms = renewal.lease_expires_at_ms - two.router.clock.now_ms()
        assert left_ms > 500_000
