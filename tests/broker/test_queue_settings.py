"""Settings of queues: which retry defaults hold, and from when on, on which server."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from jobwire_server.domain.model import (
    NO_SETTINGS,
    Completed,
    Failure,
    JobState,
    QueueSettings,
    RetryPolicy,
)
from jobwire_server.domain.options import RetryDefaults
from jobwire_server.store.settings_cache import QueueSettingsCache

from tests.support.brokers import QUIET, Broker, running_broker
from tests.support.jobs import new_job
from tests.support.waiting import eventually

S = JobState
SERVER = RetryDefaults(5, 1_000, 600_000, 2.0, 0.0)
OPTIONS = replace(QUIET, retry=SERVER)
QUEUE = RetryPolicy(max_attempts=2, initial_backoff_ms=7_000)


async def _fail(broker: Broker, job: RetryPolicy | None = None) -> tuple[Completed, int]:
    """Runs and fails a new job; returns the answer, and the wait if there is one."""
    (ulid,) = await broker.submit(new_job(retry=job))
    claimed = await broker.claim_one()
    done = await broker.fail("default", ulid, "w1", claimed.fencing_token, Failure("Broken", ""))
    wait = done.next_attempt_at_ms - broker.now_ms() if done.next_attempt_at_ms else 0
    return done, -(-wait // 500) * 500


async def test_the_job_s_policy_goes_before_the_queue_s_and_that_before_the_server_s(
    valkey_url: str,
) -> None:
    async with running_broker(valkey_url, OPTIONS) as broker:
        await broker.register()
        assert (await _fail(broker))[1] == 1_000
        await broker.router.operators.configure_queue("default", {"retry": QUEUE})
        assert (await _fail(broker))[1] == 7_000
        assert (await _fail(broker, RetryPolicy(initial_backoff_ms=3_000)))[1] == 3_000
        done, _ = await _fail(broker, RetryPolicy(max_attempts=1))
        assert done.state is S.FAILED
        await broker.router.operators.configure_queue("default", {"retry": None})
        assert (await _fail(broker))[1] == 1_000


async def test_retry_defaults_hold_for_attempts_that_began_before_the_change(
    valkey_url: str,
) -> None:
    async with running_broker(valkey_url, OPTIONS) as broker:
        await broker.register()
        (ulid,) = await broker.submit()
        claimed = await broker.claim_one()
        await broker.router.operators.configure_queue(
            "default", {"retry": RetryPolicy(max_attempts=1)}
        )
        done = await broker.fail(
            "default", ulid, "w1", claimed.fencing_token, Failure("Broken", "")
        )
        assert done.state is S.FAILED


async def test_execution_timeouts_are_retried_as_the_queue_says(valkey_url: str) -> None:
    async with running_broker(valkey_url, OPTIONS) as broker:
        await broker.register()
        (ulid,) = await broker.submit(new_job(execution_timeout_ms=1_000))
        await broker.router.operators.configure_queue(
            "default", {"retry": RetryPolicy(max_attempts=1)}
        )
        await broker.claim_one()
        await broker.after(1_001)
        assert await broker.state(ulid) is S.FAILED


async def test_a_change_reaches_servers_that_did_not_make_it(valkey_url: str) -> None:
    async with (
        running_broker(valkey_url, OPTIONS, "s1") as one,
        running_broker(valkey_url, OPTIONS, "s2", tick_ms=20) as two,
    ):
        await one.submit()
        await two.submit()
        await one.router.operators.configure_queue("default", {"retry": QUEUE})
        await eventually(lambda: two.parts.settings.known("default").retry == QUEUE, "it is known")


async def test_a_server_that_has_not_looked_at_a_queue_asks_the_store(valkey_url: str) -> None:
    async with running_broker(valkey_url, OPTIONS) as broker:
        await broker.submit()
        await broker.router.operators.configure_queue("default", {"retry": QUEUE})
    async with running_broker(valkey_url, OPTIONS, "s2") as other:
        assert (await other.parts.settings.get("default")).retry == QUEUE
        assert await other.parts.settings.get("nobody") == NO_SETTINGS


async def test_names_that_somebody_made_up_fill_no_memory() -> None:
    asked: list[str] = []

    async def read(queue: str) -> QueueSettings:
        asked.append(queue)
        return NO_SETTINGS

    cache = QueueSettingsCache(read)
    for _ in range(2):
        assert await cache.get("nobody") == NO_SETTINGS
    assert asked == ["nobody", "nobody"]


async def test_what_was_read_before_a_change_does_not_hide_it() -> None:
    old, new = NO_SETTINGS, QueueSettings(max_pending_jobs=1)
    stored = new

    async def read(queue: str) -> QueueSettings:
        await asyncio.sleep(0)
        return stored

    cache = QueueSettingsCache(read)
    mark = cache.mark()  # A look begins, finds the old settings, and is answered late.
    await cache.changed("default")
    cache.learn("default", old, mark)
    assert await cache.get("default") == new
    cache.learn("default", old, cache.mark())
    assert await cache.get("default") == old
