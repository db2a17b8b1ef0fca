"""A store without memory: new jobs are refused whole, and those that are there go on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress

import pytest

from jobwire_server.domain.errors import StoreFull
from jobwire_server.domain.model import Completed, JobState
from jobwire_server.store.attempts import ReportToWrite
from jobwire_server.store.upkeep import WHENEVER_MS

from tests.support.jobs import new_job, ulid_of, worker_spec
from tests.support.scripts import Scripts

S = JobState


@pytest.fixture
def full(scripts: Scripts) -> Iterator[Scripts]:
    """Fill the store, whose limit is then below what it uses, and free it after the test."""
    yield scripts
    scripts.client.config_set("maxmemory", 0)


def _fill(scripts: Scripts) -> None:
    scripts.client.config_set("maxmemory", "100kb")


async def test_a_full_store_refuses_a_batch_before_its_first_write(full: Scripts) -> None:
    await full.submit()
    _fill(full)
    before = full.dump()
    with pytest.raises(StoreFull):
        await full.submit(new_job(), new_job(delay_ms=5), new_job(priority=9))
    with pytest.raises(StoreFull):
        await full.queues.register("another")
    assert full.changed(before) == {}
    full.client.config_set("maxmemory", 0)
    await full.submit()
    full.check()


async def test_in_a_full_store_jobs_are_claimed_reported_completed_and_cancelled(
    full: Scripts,
) -> None:
    first, second, third, fourth, fifth = await full.submit(*(new_job() for _ in range(5)))
    _fill(full)
    assert [ulid_of(one.job_id) for one in await full.claim("w1", 4)] == [
        first,
        second,
        third,
        fourth,
    ]
    report = ReportToWrite(first, "w1", 1, 60_000, b"half")
    assert not (await full.jobs.report("default", [report]))[0].lost
    assert await full.succeed(first, result=b"r" * 200) == Completed(S.SUCCEEDED)
    retried = await full.end(await full.read(second), S.SCHEDULED, backoff_ms=1_000)
    assert retried.state is S.SCHEDULED
    assert (await full.end(await full.read(third), S.FAILED)).state is S.FAILED
    assert await full.cancel(fourth) is S.CANCELLING
    assert await full.cancel(fifth) is S.CANCELLED
    full.check()


async def test_a_full_store_promotes_and_forgets(full: Scripts) -> None:
    (ulid,) = await full.submit(new_job(delay_ms=1_000))
    (cancelled,) = await full.submit()
    await full.cancel(cancelled)
    _fill(full)
    full.shift(2_000)
    await full.tick()
    assert (await full.read(ulid)).state is S.PENDING
    full.shift(10 * 86_400_000)
    assert await full.upkeep.purge("default", 10) == (1, 0)
    full.check()


async def test_a_full_store_keeps_its_workers(full: Scripts) -> None:
    _fill(full)
    await full.workers.register(worker_spec("w1"))
    assert await full.workers.read("w1") is not None
    _, lost = await full.workers.sweep(0, 1_000, 10, WHENEVER_MS)
    assert len(lost) == 1
    assert await full.workers.remove("w1")


async def test_a_store_that_fills_up_in_between_loses_and_doubles_nothing(full: Scripts) -> None:
    full.client.config_set("maxmemory", full.client.info("memory")["used_memory"] + 600_000)
    accepted: list[str] = []
    with suppress(StoreFull):
        for _ in range(1_000):
            accepted += await full.submit(*(new_job(payload="x" * 2_000) for _ in range(50)))
    assert 50 <= len(accepted) < 50_000
    assert set(full.check().jobs) == set(accepted)
