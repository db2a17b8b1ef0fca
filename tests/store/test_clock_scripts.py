"""tick.lua and purge.lua: what the clock does to a queue."""

from __future__ import annotations

from itertools import pairwise

import pytest

from jobwire_server.domain.errors import LeaseLost
from jobwire_server.domain.model import JobState

from tests.support.jobs import new_job, ulid_of
from tests.support.scripts import GRACE_MS, LEASE_MS, RETAIN_MS, Scripts

S = JobState


async def test_a_due_job_becomes_ready_and_one_that_is_not_stays(scripts: Scripts) -> None:
    due, later = new_job(delay_ms=5_000, priority=2), new_job(delay_ms=9_000)
    await scripts.submit(due, later)
    before = scripts.dump()
    scripts.shift(6_000)
    tick = await scripts.tick()
    assert tick.now_ms == scripts.after(0)
    assert (tick.more, tick.overdue) == (False, [])
    assert tick.next_due_ms == scripts.after(3_000)
    ulid = ulid_of(due)
    assert scripts.changed(before) == {
        f"j:{ulid}": {**before[f"j:{ulid}"], "s": "2", "v": "1", "ps": scripts.after(0)},
        "scheduled": {ulid_of(later): scripts.after(3_000)},
        f"z:{due.route.id}": {ulid: 253.0},
        "ready": {due.route.id: "1"},
        "counts": {"1": "1", "2": "1"},
    }
    scripts.check()


async def test_a_tick_before_anything_is_due_changes_nothing(scripts: Scripts) -> None:
    await scripts.submit(new_job(delay_ms=5_000), new_job())
    await scripts.claim()
    before = scripts.dump()
    for _ in range(2):
        tick = await scripts.tick()
    assert tick.next_due_ms == scripts.after(5_000)
    assert scripts.changed(before) == {}


async def test_a_tick_handles_a_bounded_number_and_says_that_there_is_more(
    scripts: Scripts,
) -> None:
    await scripts.submit(*(new_job(delay_ms=1_000) for _ in range(25)))
    scripts.shift(2_000)
    assert (await scripts.tick(10)).more
    assert len(scripts.check().in_state(S.PENDING)) == 10
    assert (await scripts.tick(10)).more
    last = await scripts.tick(10)
    assert (last.more, last.next_due_ms) == (False, 0)
    assert len(scripts.check().in_state(S.PENDING)) == 25


@pytest.mark.parametrize("delay_ms", [0, 60_000])
async def test_a_job_that_was_not_started_expires(scripts: Scripts, delay_ms: int) -> None:
    job = new_job(delay_ms=delay_ms, expires_at_ms=scripts.now_ms + 1_000)
    (ulid,) = await scripts.submit(job)
    scripts.shift(2_000)
    await scripts.tick()
    found = await scripts.read(ulid)
    assert found.state is S.EXPIRED
    assert found.purge_at_ms == scripts.after(RETAIN_MS)
    dump = scripts.check()
    assert "scheduled" not in dump.keys
    assert dump.keys["totals"] == {"submitted": "1", "expired": "1"}


async def test_a_job_that_waits_for_its_second_attempt_does_not_expire(scripts: Scripts) -> None:
    ulid = await scripts.running(new_job(expires_at_ms=scripts.now_ms + 1_000))
    await scripts.end(await scripts.read(ulid), S.SCHEDULED, backoff_ms=5_000)
    scripts.shift(2_000)
    await scripts.tick()
    assert (await scripts.read(ulid)).state is S.SCHEDULED
    scripts.shift(5_000)
    assert [one.attempt for one in (await scripts.tick(), await scripts.claim())[1]] == [2]
    scripts.check()


async def test_overdue_attempts_are_named_and_left_as_they_are(scripts: Scripts) -> None:
    leased = await scripts.running()
    timed = await scripts.running(new_job(execution_timeout_ms=20_000))
    cancelled = await scripts.running()
    await scripts.cancel(cancelled)
    before = scripts.dump()
    scripts.shift(GRACE_MS + 1)
    assert (await scripts.tick()).overdue == [("grace", cancelled)]
    scripts.shift(20_000 - GRACE_MS)
    assert (await scripts.tick()).overdue == [("grace", cancelled), ("timeout", timed)]
    scripts.shift(LEASE_MS)
    overdue = (await scripts.tick()).overdue
    assert sorted(overdue) == sorted(
        [("grace", cancelled), ("timeout", timed)]
        + [("lease", ulid) for ulid in (leased, timed, cancelled)]
    )
    assert scripts.changed(before) == {}


async def test_two_servers_that_end_the_same_attempt_end_it_once(scripts: Scripts) -> None:
    ulid = await scripts.running()
    scripts.shift(LEASE_MS + 1)
    job = await scripts.read(ulid)
    answers = [await scripts.end(job, S.PENDING, condition="lease") for _ in range(2)]
    assert answers[0].state is S.PENDING
    assert isinstance(answers[1], LeaseLost)
    assert (await scripts.read(ulid)).failures == 1
    scripts.check()


async def test_samples_are_taken_at_their_interval_and_bounded(scripts: Scripts) -> None:
    await scripts.submit()
    for _ in range(20):
        await scripts.tick()
        await scripts.tick()
        scripts.shift(5_001)
    queue = await scripts.queues.read("default", detail=True)
    assert len(queue.samples) == 13
    moments = [at for at, _ in queue.samples]
    assert all(newer - older >= 5_000 for newer, older in pairwise(moments))
    assert queue.samples[0][1] == {"submitted": 1, "started": 0, "succeeded": 0, "failed": 0}


async def test_a_job_is_forgotten_with_everything_of_it_when_its_retention_ends(
    scripts: Scripts,
) -> None:
    long_result = await scripts.running()
    await scripts.end(await scripts.read(long_result), S.PENDING)
    await scripts.claim()
    await scripts.succeed(long_result, 2, result=b"x" * 1000)
    failed = await scripts.running()
    await scripts.end(await scripts.read(failed), S.FAILED)
    (cancelled,) = await scripts.submit()
    await scripts.cancel(cancelled)
    (kept,) = await scripts.submit()
    before = scripts.dump()
    forgotten, next_due = await scripts.upkeep.purge("default", 100)
    assert forgotten == 0
    assert next_due == scripts.after(RETAIN_MS)
    assert scripts.changed(before) == {}
    scripts.shift(RETAIN_MS + 1)
    assert await scripts.upkeep.purge("default", 100) == (3, 0)
    dump = scripts.check()
    assert set(dump.jobs) == {kept}
    assert not dump.suffixes("j:")
    assert [one.job_id[-26:] for one in await scripts.claim("w1", 5)] == [kept]
    assert "ready" not in scripts.check().keys


async def test_a_purge_is_bounded(scripts: Scripts) -> None:
    ulids = await scripts.submit(*(new_job() for _ in range(30)))
    for ulid in ulids:
        await scripts.cancel(ulid)
    scripts.shift(RETAIN_MS + 1)
    forgotten, next_due = await scripts.upkeep.purge("default", 20)
    assert forgotten == 20
    assert next_due > 0
    assert len(scripts.check().jobs) == 10
    assert await scripts.upkeep.purge("default", 20) == (10, 0)
    scripts.check()


async def test_an_id_may_be_used_again_after_its_job_was_forgotten(scripts: Scripts) -> None:
    job = new_job()
    (ulid,) = await scripts.submit(job)
    await scripts.cancel(ulid)
    scripts.shift(RETAIN_MS + 1)
    await scripts.upkeep.purge("default", 10)
    await scripts.submit(job)
    scripts.check()
    assert [one.job_id for one in await scripts.claim("w1", 5)] == [job.job_id]
    scripts.check()
