"""Priority ageing: what a claim takes first from a queue whose jobs have waited."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from jobwire_server.domain.ids import UlidFactory
from jobwire_server.domain.model import JobState, NewJob
from jobwire_server.store.claims import ClaimRequest

from tests.support.jobs import new_job, ulid_of
from tests.support.scripts import RETAIN_MS, Scripts

AGEING_MS = 60_000
"""Much longer than a slow machine takes for a test."""


async def _age(scripts: Scripts, ms: int = AGEING_MS) -> None:
    await scripts.queues.configure("default", {"priority_ageing_ms": ms})


def _ready(scripts: Scripts, waited_ms: int, priority: int = 0, operation: str = "work") -> NewJob:
    """Return a job that has waited so long, going by its id."""
    ulid = UlidFactory(lambda: scripts.now_ms - waited_ms)()
    return new_job(ulid=ulid, priority=priority, operation=operation)


async def _order(scripts: Scripts, jobs: Sequence[NewJob], at_once: int = 100) -> list[str]:
    """Claim everything; return the ULIDs in the order of the deliveries."""
    taken: list[str] = []
    while claimed := await scripts.claim("w1", at_once, *jobs):
        taken += [ulid_of(one.job_id) for one in claimed]
    assert not {key for key in scripts.dump() if key[:2] in ("l:", "z:")}
    assert "ready" not in scripts.dump()
    scripts.check()
    return taken


def _expected(scripts: Scripts, waited: dict[str, int], jobs: Sequence[NewJob]) -> list[str]:
    """The order that the contract promises."""

    def rank(job: NewJob) -> tuple[int, str]:
        return -(job.priority + waited[ulid_of(job)] // AGEING_MS), ulid_of(job)

    return [ulid_of(job) for job in sorted(jobs, key=rank)]


@pytest.mark.parametrize("at_once", [1, 7, 100])
@pytest.mark.parametrize("operations", [["work"], ["work", "other", "third"]])
async def test_jobs_go_by_what_their_priority_counts_as_and_the_oldest_first_within_it(
    scripts: Scripts, at_once: int, operations: list[str]
) -> None:
    rng = random.Random(at_once)
    await _age(scripts)
    waits = [step * AGEING_MS + 500 for step in range(12)]
    jobs, waited = [], {}
    for _ in range(60):
        wait = rng.choice(waits)
        job = _ready(scripts, wait, rng.choice([0, 0, 1, 5, 9]), rng.choice(operations))
        waited[ulid_of(job)] = wait
        jobs.append(job)
    # In a queue jobs stand in the order in which they came.
    jobs.sort(key=ulid_of)
    await scripts.submit(*jobs)
    assert await _order(scripts, jobs, at_once) == _expected(scripts, waited, jobs)


async def test_without_ageing_priorities_stay_what_they_are(scripts: Scripts) -> None:
    old, high = _ready(scripts, 100 * AGEING_MS), _ready(scripts, 0, priority=1)
    await scripts.submit(old, high)
    assert await _order(scripts, [old, high]) == [ulid_of(high), ulid_of(old)]


async def test_ageing_can_be_switched_off_again(scripts: Scripts) -> None:
    old, high = _ready(scripts, 100 * AGEING_MS), _ready(scripts, 0, priority=1)
    await scripts.submit(old, high)
    await _age(scripts)
    await _age(scripts, 0)
    assert await _order(scripts, [old, high]) == [ulid_of(high), ulid_of(old)]


async def test_a_job_counts_one_priority_higher_from_the_very_moment(scripts: Scripts) -> None:
    await _age(scripts, 100_000)
    for waited, first in ((98_000, "high"), (102_000, "old")):
        old, high = _ready(scripts, waited), _ready(scripts, 0, priority=1)
        await scripts.submit(old, high)
        names = {ulid_of(old): "old", ulid_of(high): "high"}
        assert names[(await _order(scripts, [old, high]))[0]] == first


@pytest.mark.parametrize("come", [1, 2])
async def test_a_job_is_overtaken_only_by_what_came_within_the_distance_of_their_priorities(
    scripts: Scripts, come: int
) -> None:
    await _age(scripts)
    low = _ready(scripts, 0)
    await scripts.submit(low)
    rounds = 0
    came: dict[str, int] = {}
    while True:
        # As many come as are taken, or twice as many: there is always a fresh one.
        jobs = [_ready(scripts, 0, priority=9) for _ in range(come)]
        came |= {job.job_id: rounds for job in jobs}
        await scripts.submit(*jobs)
        (taken,) = await scripts.claim("w1", 1)
        if taken.job_id == low.job_id:
            break
        assert came[taken.job_id] <= 2 * 9
        rounds += 1
        scripts.shift(AGEING_MS // 2)
    assert 2 * 8 < rounds <= 2 * 9 * come


async def test_a_delayed_job_waits_from_when_it_was_due(scripts: Scripts) -> None:
    await _age(scripts)
    delayed = new_job(delay_ms=100 * AGEING_MS)
    await scripts.submit(delayed)
    scripts.shift(100 * AGEING_MS)
    await scripts.tick()
    high = _ready(scripts, 0, priority=1)
    await scripts.submit(high)
    assert await _order(scripts, [high]) == [ulid_of(high), ulid_of(delayed)]


async def test_one_that_just_came_back_does_not_hide_those_behind_it_that_have_waited(
    scripts: Scripts,
) -> None:
    await _age(scripts)
    back = new_job(priority=3)
    await scripts.submit(back)
    await scripts.claim()
    behind = new_job(priority=3)
    await scripts.submit(behind)
    scripts.shift(5 * AGEING_MS)
    job = await scripts.read(ulid_of(back))
    await scripts.end(job, JobState.PENDING)
    rival = _ready(scripts, 0, priority=7)
    await scripts.submit(rival)
    order = await _order(scripts, [behind])
    assert order == [ulid_of(job) for job in (behind, rival, back)]


async def test_an_id_of_the_future_has_not_waited(scripts: Scripts) -> None:
    await _age(scripts)
    ahead, high = _ready(scripts, -3_600_000, priority=2), _ready(scripts, 0, priority=3)
    await scripts.submit(ahead, high)
    assert await _order(scripts, [high]) == [ulid_of(high), ulid_of(ahead)]


async def test_stale_entries_are_dropped_as_ever(scripts: Scripts) -> None:
    await _age(scripts)
    jobs = [new_job(priority=priority) for priority in (0, 0, 4, 4)]
    await scripts.submit(*jobs)
    for job in (jobs[0], jobs[2]):
        await scripts.cancel(ulid_of(job))
    assert await _order(scripts, jobs) == [ulid_of(jobs[3]), ulid_of(jobs[1])]


async def test_several_requests_of_one_call_share_what_there_is(scripts: Scripts) -> None:
    await _age(scripts)
    jobs = [
        _ready(scripts, 5 * AGEING_MS // 2, 1),
        _ready(scripts, AGEING_MS // 2, 2),
        _ready(scripts, 9 * AGEING_MS // 2),
    ]
    await scripts.submit(*sorted(jobs, key=ulid_of))
    route = (jobs[0].route.id,)
    requests = [ClaimRequest(worker, 2, 30_000, route) for worker in ("w1", "w2")]
    first, second = await scripts.jobs.claim("default", requests, RETAIN_MS)
    assert [one.job_id for one in first.assignments] == [jobs[2].job_id, jobs[0].job_id]
    assert [one.job_id for one in second.assignments] == [jobs[1].job_id]


async def test_a_queue_without_ageing_pays_nothing_for_it(scripts: Scripts) -> None:
    await scripts.submit(*(new_job(priority=priority) for priority in range(9)))
    scripts.client.config_resetstat()
    await scripts.claim("w1", 9)
    calls = {name: one["calls"] for name, one in scripts.client.info("commandstats").items()}
    # The size of a batch does not show: each job costs its HMGET and HSET, and nothing else.
    assert not {"cmdstat_zrem", "cmdstat_lrem", "cmdstat_zrange"} & calls.keys()
    assert calls["cmdstat_zpopmin"] == 1
