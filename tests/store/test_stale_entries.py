"""Entries of jobs that ended while they waited: they go away although nobody claims."""

from __future__ import annotations

import pytest

from jobwire_server.domain.model import JobState, Outcome
from jobwire_server.store.bulk import BulkStore, RedriveItem

from tests.support.jobs import new_job
from tests.support.scripts import RETAIN_MS, Scripts


async def _ticks(scripts: Scripts, count: int) -> None:
    for _ in range(count):
        await scripts.tick()


@pytest.mark.parametrize("priority", [0, 5])
@pytest.mark.parametrize("end", ["cancelled", "expired", "forgotten"])
async def test_a_route_that_nobody_serves_keeps_no_entries_of_jobs_that_ended(
    scripts: Scripts, priority: int, end: str
) -> None:
    expires = scripts.now_ms + 60_000 if end == "expired" else 0
    jobs = [new_job(priority=priority, expires_at_ms=expires) for _ in range(500)]
    ulids = await scripts.submit(*jobs)
    if end == "expired":
        scripts.shift(60_001)
    else:
        await scripts.jobs.cancel("default", [(ulid, "") for ulid in ulids], 0, RETAIN_MS)
    if end == "forgotten":
        scripts.shift(RETAIN_MS + 1)
        assert await scripts.upkeep.purge("default", 1000) == (500, 0)
    await _ticks(scripts, 12)
    dump = scripts.check()
    assert "ready" not in dump.keys
    assert not dump.suffixes("l:")
    assert not dump.suffixes("z:")


@pytest.mark.parametrize("priority", [0, 5])
async def test_an_entry_of_a_job_that_waits_is_left_alone(scripts: Scripts, priority: int) -> None:
    ulids = await scripts.submit(*(new_job(priority=priority) for _ in range(6)))
    for ulid in ulids[:2] + ulids[3:5]:
        await scripts.cancel(ulid)
    await _ticks(scripts, 3)
    dump = scripts.check()
    (left,) = [*dump.suffixes("l:").values(), *dump.suffixes("z:").values()]
    assert [ulid for ulid in left if ulid in (ulids[2], ulids[5])] == [ulids[2], ulids[5]]
    assert next(iter(left)) == ulids[2]
    taken = await scripts.claim("w1", 9)
    assert [a.job_id[-26:] for a in taken] == [ulids[2], ulids[5]]
    scripts.check()


@pytest.mark.parametrize("priority", [0, 5])
@pytest.mark.parametrize("ageing", [None, 1_000])
async def test_a_job_that_was_cancelled_and_redriven_again_and_again_is_handed_out_once(
    scripts: Scripts, priority: int, ageing: int | None
) -> None:
    if ageing:
        await scripts.queues.configure("default", {"priority_ageing_ms": ageing})
    jobs = [new_job(priority=priority) for _ in range(40)]
    ulids = await scripts.submit(*jobs)
    for number in range(3):
        await scripts.jobs.cancel("default", [(ulid, "") for ulid in ulids], 0, RETAIN_MS)
        items = [RedriveItem(ulid, jobs[0].route.id, priority, number, "") for ulid in ulids]
        await BulkStore(scripts.runner).redrive("default", items)
        scripts.check()
    first = await scripts.claim("w1", 25)
    second = await scripts.claim("w1", 100)
    assert sorted(a.job_id[-26:] for a in first + second) == sorted(ulids)
    # A job that comes back stands in its place, whatever entries are left of it.
    for ulid in ulids[:3]:
        await scripts.end(
            await scripts.read(ulid), JobState.PENDING, condition="lost", outcome=Outcome.CRASHED
        )
    again = await scripts.claim("w1", 100)
    assert sorted(a.job_id[-26:] for a in again) == ulids[:3]
    assert await scripts.claim("w1", 100) == []
    assert "ready" not in scripts.check().keys
